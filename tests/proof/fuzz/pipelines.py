"""Targets: what transformations are given, and pipelines themselves."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2

from logbroker.errors import InvalidRequestError
from logbroker.records import Message
from logbroker.transforms import Pipeline, TransformError, load_pipeline
from logbroker_storage.record import Record

from .target import Target

MAX_OUTPUT_BYTES = 64 << 20
HEADERS = (("content-type", b"application/json"), ("ce_id", b"1"), ("ce_type", b"t"))
EVENT_HEADERS = (
    ("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/s"), ("ce_type", b"t"),
    ("content-type", b"application/json"),
)  # fmt: skip

AVRO_SCHEMA = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "who", "type": ["null", "string"]},
        {"name": "items", "type": {"type": "array", "items": "double"}},
        {"name": "tags", "type": {"type": "map", "values": "string"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "next", "type": ["null", "Order"]},
    ],
}


def protobuf_options() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax="proto3")
    message = file.message_type.add(name="Order")
    for number, (name, kind) in enumerate(
        [("order_id", 3), ("customer", 9), ("raw", 12), ("price", 1), ("flag", 8), ("signed", 18)], 1
    ):
        message.field.add(name=name, number=number, type=kind, label=1)
    message.field.add(name="next", number=7, type=11, label=1, type_name=".shop.Order")
    message.field.add(name="many", number=8, type=11, label=3, type_name=".shop.Order")
    descriptor = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
    return {"message": "shop.Order", "descriptor_set_base64": base64.b64encode(descriptor).decode()}


def _coding(name: str, **options: Any) -> list[dict[str, Any]]:
    return [{"kind": "decode", "format": name, **options}, {"kind": "encode", "format": name, **options}]


STEPS: dict[str, list[dict[str, Any]]] = {
    "json": _coding("json"),
    "messagepack": _coding("messagepack"),
    "avro": _coding("avro", schema=json.dumps(AVRO_SCHEMA)),
    "protobuf": _coding("protobuf", **protobuf_options()),
    "csv": [
        {"kind": "decode", "format": "csv", "header": True, "lines": "many"},
        {"kind": "encode", "format": "csv", "header": True},
    ],
}


def a_record(value: bytes | None, headers: tuple[tuple[str, bytes | None], ...] = HEADERS) -> Record:
    return Record("orders", 1, 7, 1_700_000_000_000, b"alice", value, headers)


@cache
def _pipeline(name: str) -> Pipeline:
    return load_pipeline({"step": STEPS[name]})


@cache
def _to_json(name: str) -> Pipeline:
    return load_pipeline({"step": [STEPS[name][0], {"kind": "encode", "format": "json"}]})


def _checked(messages: list[Message]) -> list[Message]:
    for message in messages:
        assert message.value is None or type(message.value) is bytes
        assert len(message.value or b"") <= MAX_OUTPUT_BYTES
    return messages


def through(name: str) -> Callable[[bytes], None]:
    """What is decoded is encoded again, and then says the same: also as JSON."""

    def try_value(data: bytes) -> None:
        record = a_record(data)
        as_json = _checked(_to_json(name).apply(record))
        (written,) = _checked(_pipeline(name).apply(record))
        again = _checked(_to_json(name).apply(a_record(written.value)))
        assert [message.value for message in again] == [message.value for message in as_json]

    return try_value


# CloudEvents ----------------------------------------------------------------------------------------------

_CONVERSIONS: list[list[dict[str, Any]]] = [
    [{"kind": "cloudevents_convert", "to": "structured"}],
    [{"kind": "cloudevents_convert", "to": "binary"}],
    [{"kind": "cloudevents_unwrap"}],
]


@cache
def _conversions() -> list[Pipeline]:
    return [load_pipeline({"step": steps}) for steps in _CONVERSIONS]


def try_cloud_event(data: bytes) -> None:
    """As a structured event, as the data of one in binary mode, and with the attributes in the input."""
    name, _, rest = data.partition(b"\0")
    value, _, other = rest.partition(b"\0")
    attribute = (f"ce_{name.decode(errors='surrogateescape')}", value)
    for record in (
        a_record(data, (("content-type", b"application/cloudevents+json"),)),
        a_record(data, EVENT_HEADERS),
        a_record(other, (*EVENT_HEADERS, attribute)),
    ):
        for pipeline in _conversions():
            try:
                _checked(pipeline.apply(record))
            except TransformError:
                pass


# Pipelines ------------------------------------------------------------------------------------------------

# What names modules and files of the machine could do anything.
REACHING_OUT = (
    b"python",
    b"function",
    b"entry_point",
    b"descriptor_set ",
    b"descriptor_set=",
    b"schema_file",
)


def try_pipeline(data: bytes) -> None:
    text, _, value = data.partition(b"\0")
    if b"=" not in text or any(word in text for word in REACHING_OUT):
        return
    pipeline = load_pipeline(text.decode(errors="replace"))
    assert pipeline.source is not None
    assert load_pipeline(pipeline.source).describe() == pipeline.describe(), "what is stored says the same"
    for record in (a_record(value or b'{"a": {"b": [1, "x"]}, "t": "2026-01-01"}'), a_record(None)):
        try:
            _checked(pipeline.apply(record))
        except TransformError:
            pass


TARGETS = {
    **{name: Target(through(name), (TransformError,)) for name in STEPS},
    "cloudevents": Target(try_cloud_event, (TransformError,)),
    "pipeline": Target(try_pipeline, (InvalidRequestError,)),
}
