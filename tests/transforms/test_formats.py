"""Formats: what is written is read again, and bytes from anywhere are a value or a TransformError, soon."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import sys
from typing import Any

import fastavro
import msgspec
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker.errors import InvalidRequestError
from logbroker.transforms import Pipeline, PipelineError, TransformError
from logbroker.transforms.formats.avro import HEADER
from logbroker.transforms.formats.avro_schema import check_schema

from .conftest import JSON_IN, JSON_OUT, a_record, steps

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "who", "type": ["null", "string"]},
        {"name": "items", "type": {"type": "array", "items": "double"}},
        {"name": "tags", "type": {"type": "map", "values": "string"}},
    ],
}
ORDERS = st.fixed_dictionaries(
    {
        "id": st.integers(-(2**63), 2**63 - 1),
        "who": st.none() | TEXT,
        "items": st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
        "tags": st.dictionaries(TEXT, TEXT, max_size=4),
    }
)
TREE = {
    "type": "record",
    "name": "Tree",
    "fields": [{"name": "next", "type": ["null", "Tree"]}],
}


def descriptor_set() -> str:
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax="proto3")
    message = file.message_type.add(name="Order")
    message.field.add(name="order_id", number=1, type=3, label=1)
    message.field.add(name="customer", number=2, type=9, label=1)
    message.field.add(name="next", number=3, type=11, label=1, type_name=".shop.Order")
    return base64.b64encode(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()).decode()


PROTOBUF = {"message": "shop.Order", "descriptor_set_base64": descriptor_set()}


def coding(coding: str, format: str, **options: Any) -> dict[str, Any]:
    return {"kind": coding, "format": format, **options}


def through(pipeline: Pipeline, value: bytes) -> bytes:
    (message,) = pipeline.apply(a_record(value))
    assert message.value is not None
    return message.value


def there_and_back(format: str, document: Any, **options: Any) -> Any:
    """*document* after it was written in a format and read again."""
    there = steps(JSON_IN, coding("encode", format, **options))
    back = steps(coding("decode", format, **options), JSON_OUT)
    return json.loads(through(back, through(there, msgspec.json.encode(document))))


# Round trips --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(document=JSON_VALUES)
@pytest.mark.parametrize("format", ["json", "messagepack"])
def test_any_json_goes_through_json_and_messagepack(format: str, document: Any) -> None:
    assert there_and_back(format, document) == document


@settings(deadline=None)
@given(document=JSON_VALUES)
@pytest.mark.parametrize("format", ["json", "messagepack"])
def test_with_sorted_keys_equal_values_are_equal_bytes(format: str, document: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(inner) for key, inner in reversed(value.items())}
        return [turned(inner) for inner in value] if isinstance(value, list) else value

    pipeline = steps(JSON_IN, coding("encode", format, sort_keys=True))
    one, other = msgspec.json.encode(document), msgspec.json.encode(turned(document))
    assert through(pipeline, one) == through(pipeline, other)


@settings(deadline=None)
@given(order=ORDERS)
@pytest.mark.parametrize("framing", ["plain", "single_object"])
def test_avro(framing: str, order: Any) -> None:
    assert there_and_back("avro", order, schema=ORDER, framing=framing) == order


@settings(deadline=None)
@given(orders=st.lists(ORDERS, max_size=4))
def test_an_avro_container_is_a_list_and_brings_its_schema(orders: list[Any]) -> None:
    there = steps(JSON_IN, coding("encode", "avro", schema=ORDER, framing="container"))
    back = steps(coding("decode", "avro", framing="container"), JSON_OUT)
    value = through(there, msgspec.json.encode(orders))
    assert value == through(there, msgspec.json.encode(orders)), "made again, it is the same"
    assert json.loads(through(back, value)) == orders


def test_avro_with_a_schema_id_and_a_newer_reader() -> None:
    there = steps(JSON_IN, coding("encode", "avro", schema=ORDER, framing="confluent", schema_id=300))
    value = through(there, b'{"id": 1, "who": null, "items": [], "tags": {}}')
    assert value[:5] == b"\x00\x00\x00\x01\x2c"
    newer = ORDER | {"fields": [*ORDER["fields"], {"name": "paid", "type": "boolean", "default": False}]}
    back = steps(
        coding("decode", "avro", schema=newer, writer_schema=ORDER, framing="confluent", schema_id=300),
        JSON_OUT,
    )
    assert json.loads(through(back, value))["paid"] is False
    other = steps(coding("decode", "avro", schema=ORDER, framing="confluent", schema_id=301), JSON_OUT)
    with pytest.raises(TransformError, match="schema 300, not 301"):
        other.apply(a_record(value))


@pytest.mark.parametrize("framing", ["plain", "container"])
def test_avro_data_do_not_share_the_default_of_a_field(framing: str) -> None:
    """A step that changes the default in one message changes it in no other."""
    number = {"name": "id", "type": "long"}
    tags = {"name": "tags", "type": {"type": "map", "values": "long"}, "default": {}}
    older = {"type": "record", "name": "Order", "fields": [number]}
    newer = {"type": "record", "name": "Order", "fields": [number, tags]}
    there = steps(JSON_IN, coding("encode", "avro", schema=older, framing=framing))
    back = steps(
        coding("decode", "avro", schema=newer, writer_schema=older, framing=framing),
        *([{"kind": "split"}] if framing == "container" else []),
        {"kind": "rename", "fields": {"id": "tags.id", "tags.id": "tags.before"}},
        JSON_OUT,
    )
    values = [b'{"id": 1}', b'{"id": 2}'] if framing == "plain" else [b'[{"id": 1}, {"id": 2}]']
    messages = [message for value in values for message in back.apply(a_record(through(there, value)))]
    assert [json.loads(message.value or b"") for message in messages] == [
        {"tags": {"id": 1}},
        {"tags": {"id": 2}},
    ]


@settings(deadline=None)
@given(order_id=st.integers(-(2**63), 2**63 - 1), customer=TEXT)
def test_protobuf(order_id: int, customer: str) -> None:
    document = {"order_id": str(order_id), "customer": customer, "next": {"customer": "x"}}
    back = there_and_back("protobuf", document, **PROTOBUF)
    defaults = {"order_id": "0", "customer": ""}  # are not written
    assert back == {name: value for name, value in document.items() if value != defaults.get(name)}


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), delimiter=st.sampled_from(",;\t|"))
def test_csv(rows: list[tuple[str, str]], delimiter: str) -> None:
    maps = [dict(zip("ab", row, strict=True)) for row in rows]
    there = steps(JSON_IN, coding("encode", "csv", columns=["a", "b"], header=True, delimiter=delimiter))
    back = steps(coding("decode", "csv", header=True, lines="many", delimiter=delimiter), JSON_OUT)
    assert json.loads(through(back, through(there, msgspec.json.encode(maps)))) == maps


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-16"), max_size=20))
def test_text(text: str) -> None:
    there = steps(coding("decode", "text"), coding("encode", "text", encoding="utf-16-le"))
    back = steps(coding("decode", "text", encoding="utf-16-le"), coding("encode", "text"))
    assert through(back, through(there, text.encode())) == text.encode()


@settings(deadline=None)
@given(data=st.binary(max_size=40))
@pytest.mark.parametrize("encoding", ["base64", "base64url", "hex"])
def test_bytes(encoding: str, data: bytes) -> None:
    there, back = (steps(coding(way, "bytes", encoding=encoding)) for way in ("encode", "decode"))
    assert through(there, data).isascii()
    assert through(back, through(there, data)) == data


# Bytes from anywhere ------------------------------------------------------------------------------------

READERS = {
    "json": steps(JSON_IN, JSON_OUT),
    "messagepack": steps(coding("decode", "messagepack"), JSON_OUT),
    "avro": steps(coding("decode", "avro", schema=ORDER), JSON_OUT),
    "avro of itself": steps(coding("decode", "avro", schema=TREE), JSON_OUT),
    "avro single object": steps(coding("decode", "avro", schema=ORDER, framing="single_object"), JSON_OUT),
    "avro container": steps(coding("decode", "avro", framing="container"), JSON_OUT),
    "protobuf": steps(coding("decode", "protobuf", **PROTOBUF), JSON_OUT),
    "csv": steps(coding("decode", "csv", columns=["a", "b"]), JSON_OUT),
    "csv header": steps(coding("decode", "csv", header=True, lines="many"), JSON_OUT),
    "text": steps(coding("decode", "text"), coding("encode", "text")),
    "base64": steps(coding("decode", "bytes")),
    "base64url": steps(coding("decode", "bytes", encoding="base64url")),
    "hex": steps(coding("decode", "bytes", encoding="hex")),
}


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=80))
@pytest.mark.parametrize("format", READERS)
def test_any_bytes_are_a_value_or_a_transform_error(format: str, data: bytes) -> None:
    try:
        READERS[format].apply(a_record(data))
    except TransformError:
        pass


def varint(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


def container(schema: object, codec: str = "null", blocks: bytes = b"") -> bytes:
    """An Avro file with this header, whatever comes behind."""
    header = {
        "magic": b"Obj\x01",
        "meta": {"avro.codec": codec.encode(), "avro.schema": json.dumps(schema).encode()},
        "sync": b"s" * 16,
    }
    written = io.BytesIO()
    fastavro.schemaless_writer(written, HEADER, header)
    return written.getvalue() + blocks


def multiplied(levels: int) -> object:
    """A record that takes no bytes and two to the power of *levels* steps to read."""
    schema: object = {"type": "record", "name": "R0", "fields": []}
    for level in range(1, levels):
        fields = [{"name": "a", "type": schema}, {"name": "b", "type": f"R{level - 1}"}]
        schema = {"type": "record", "name": f"R{level}", "fields": fields}
    return schema


DEEP = 100_000
HOSTILE = {
    "json nested deep": ("json", b"[" * DEEP),
    "json nested deep, sound": ("json", b"[" * DEEP + b"]" * DEEP),
    "a messagepack array of 4 billion": ("messagepack", b"\xdd\xff\xff\xff\xff"),
    "messagepack arrays in arrays": ("messagepack", b"\xdd\x10\x00\x00\x00" * 20),
    "a messagepack map of 4 billion": ("messagepack", b"\xdf\xff\xff\xff\xff"),
    "messagepack nested deep": ("messagepack", b"\x91" * DEEP),
    "a messagepack extension": ("messagepack", b"\xc7\x01\x05a"),
    "messagepack with a list as key": ("messagepack", b"\x81\x91\x01\x02"),
    "an avro array of a trillion": ("avro", b"\x00\x00" + varint(1 << 40)),
    "avro text of a terabyte": ("avro", b"\x00\x02" + varint(1 << 40)),
    "an avro length below zero": ("avro", b"\x00\x02\x03"),
    "an avro choice that is none": ("avro", b"\x00\x08"),
    "an avro number without end": ("avro", b"\xff" * 1000),
    "avro nested deep": ("avro of itself", b"\x02" * DEEP + b"\x00"),
    "avro with bytes behind": ("avro", b"\x00\x00\x00\x00\x00"),
    "a container that is compressed": ("avro container", container("long", "deflate")),
    "a container of a nested schema": (
        "avro container",
        container(json.loads('{"type":"array","items":' * 200 + '"long"' + "}" * 200)),
    ),
    "a container of arrays of nothing": (
        "avro container",
        container(
            {"type": "array", "items": "null"},
            blocks=varint(1) + varint(9) + varint(1 << 40) + b"\0" + b"s" * 16,
        ),
    ),
    "a container of records of nothing": (
        "avro container",
        container(multiplied(60), blocks=varint(1) + varint(0) + b"s" * 16),
    ),
    "a container of a trillion nothings": (
        "avro container",
        container("null", blocks=varint(1 << 40) + varint(0) + b"s" * 16),
    ),
    "a container nested deep": (
        "avro container",
        container(TREE, blocks=varint(1) + varint(DEEP + 1) + b"\x02" * DEEP + b"\x00" + b"s" * 16),
    ),
    "protobuf nested deep": ("protobuf", b"\x1a" * 1000),
    "csv of another width": ("csv", b"a,b,c"),
    "csv with an open quote": ("csv", b'"a,b\n' * 1000),
    "a csv cell of a megabyte": ("csv", b"a" * (1 << 20) + b",b"),
    "a csv header with a name twice": ("csv header", b"a,a\n1,2"),
    "text that is none": ("text", b"\xff"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_message_is_a_transform_error_and_soon(case: str) -> None:
    format, data = HOSTILE[case]
    with pytest.raises(TransformError) as raised:
        READERS[format].apply(a_record(data))
    assert raised.value.offset == 7
    assert len(str(raised.value)) < 2000


ON_A_SMALL_STACK = """
import sys, threading
sys.path.insert(0, sys.argv[1])
threading.stack_size(512 << 10)
import fastavro
from logbroker.records import Record
from logbroker.transforms import load_pipeline, TransformError
TREE = {"type": "record", "name": "Tree", "fields": [{"name": "next", "type": ["null", "Tree"]}]}
back = {"step": [{"kind": "decode", "format": "avro", "schema": TREE}, {"kind": "encode", "format": "json"}]}
there = {"step": [{"kind": "decode", "format": "json"}, {"kind": "encode", "format": "avro", "schema": TREE}]}
def run():
    for pipeline, value in [(back, b"\\x02" * 5000 + b"\\x00"),
                            (there, b'{"next":' * 400 + b"null" + b"}" * 400)]:
        try:
            load_pipeline(pipeline).apply(Record("t", 0, 0, 0, None, value))
        except TransformError:
            print("refused")
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("schema", "contains_itself"),
    [
        (TREE, True),
        (TREE | {"fields": [{"name": "next", "type": {"type": "array", "items": "Tree"}}]}, True),
        (
            TREE
            | {"fields": [{"name": "next", "type": {"type": "map", "values": "a.Tree"}}], "namespace": "a"},
            True,
        ),
        (ORDER, False),
        (["null", ORDER, {"type": "array", "items": "Order"}], False),
        ({"type": "long"}, False),
    ],
)
def test_whether_a_schema_contains_itself_is_found_out(schema: Any, contains_itself: bool) -> None:
    fastavro.parse_schema(schema)
    assert check_schema(schema) is contains_itself


def test_a_schema_of_itself_does_not_use_up_the_stack() -> None:
    """The compiled reader and writer would, and end the process."""
    done = subprocess.run(
        [sys.executable, "-c", ON_A_SMALL_STACK, "."], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "refused\nrefused\n"), done.stderr


# What cannot be written ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "document", "says"),
    [
        (coding("encode", "avro", schema=ORDER), {"id": "x"}, "does not fit the Avro schema"),
        (coding("encode", "avro", schema=ORDER), [1], "does not fit the Avro schema"),
        (coding("encode", "avro", schema="long"), 1.7, "does not fit .* expected long"),
        (coding("encode", "avro", schema="long"), True, "does not fit .* expected long"),
        (coding("encode", "avro", schema="int"), 3_000_000_000, "does not fit .* expected int"),
        (coding("encode", "avro", schema="boolean"), None, "does not fit .* expected boolean"),
        (
            coding("encode", "avro", schema=["null", "boolean"]),
            17,
            "does not fit .* null; .* expected boolean",
        ),
        (
            coding("encode", "avro", schema="boolean", framing="container"),
            [True, 17],
            "does not fit .* boolean",
        ),
        (coding("encode", "protobuf", **PROTOBUF), {"unknown": 1}, "does not fit shop.Order"),
        (coding("encode", "protobuf", **PROTOBUF), {"order_id": "x"}, "does not fit shop.Order"),
        (coding("encode", "protobuf", **PROTOBUF), [1], "not a map"),
        (coding("encode", "csv"), {"a": {"b": 1}}, "flatten"),
        (coding("encode", "csv"), [{"a": 1}, {"b": 1, "c": 2}], "different fields"),
        (coding("encode", "csv"), 7, "neither a map"),
        (coding("encode", "text"), 7, "not text"),
        (coding("encode", "text", encoding="ascii"), "é", "cannot be written in ascii"),
        (coding("encode", "messagepack"), 2**70, "MessagePack"),
    ],
)
def test_what_a_format_cannot_say_is_an_error(step: dict[str, Any], document: Any, says: str) -> None:
    with pytest.raises(TransformError, match=says):
        steps(JSON_IN, step).apply(a_record(json.dumps(document).encode()))


# Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (coding("decode", "avro"), "schema"),
        (coding("decode", "avro", schema="{"), "not JSON"),
        (coding("decode", "avro", schema={"type": "nothing"}), "Avro schema is wrong"),
        (coding("decode", "avro", schema={"type": "array", "items": "null"}), "no bytes"),
        (
            coding(
                "decode",
                "avro",
                schema={"type": "array", "items": {"type": "record", "name": "N", "fields": []}},
            ),
            "no bytes",
        ),
        (coding("decode", "avro", schema=multiplied(2)), "takes no bytes"),
        (coding("encode", "avro", schema="long", framing="confluent"), "schema_id"),
        (coding("decode", "avro", schema="long", framing="zip"), "Invalid enum value 'zip'"),
        (coding("decode", "protobuf", message="shop.Order"), "descriptor_set"),
        (
            coding("decode", "protobuf", message="shop.Nothing", descriptor_set_base64=descriptor_set()),
            "shop.Order",
        ),
        (coding("decode", "protobuf", message="a.B", descriptor_set_base64="%%"), "no descriptor set"),
        (coding("decode", "csv"), "columns"),
        (coding("decode", "csv", columns=["a", "a"]), "one name"),
        (coding("decode", "csv", columns=["a"], delimiter=",,"), "one character"),
        (coding("decode", "text", encoding="base64"), "encoding"),
        (coding("decode", "text", encoding="nothing"), "encoding"),
        (coding("decode", "avro", schema_file="nothing.avsc"), "nothing.avsc"),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_pipeline_is_made(
    step: dict[str, Any], says: str
) -> None:
    with pytest.raises(PipelineError, match=f"step 1: .*{says}") as raised:
        steps(step, JSON_OUT)
    assert isinstance(raised.value, InvalidRequestError)
    assert raised.value.step == 1


def test_single_objects_are_of_one_schema() -> None:
    data = struct.pack(">2s8sb", b"\xc3\x01", b"8 others", 0)
    with pytest.raises(TransformError, match=b"8 others".hex()):
        READERS["avro single object"].apply(a_record(data))
