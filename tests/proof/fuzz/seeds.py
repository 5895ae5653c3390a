"""Writes the first inputs of each corpus, made of real data: ``python -m tests.proof.fuzz.seeds [DIRECTORY]``.

The corpora grow from them by fuzzing; see the package for how they are made small again.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fastavro
import msgspec
from kio.index import load_request_schema

from logbroker.server.apis import VERSIONS
from logbroker.transforms import load_pipeline
from logbroker_storage.compression import Compression, compress
from logbroker_storage.record_batch import (
    ControlType,
    NewRecord,
    assign,
    encode_batch,
    encode_control_batch,
    encode_empty_batch,
    encode_values,
)
from tests.server.raw_client import encode, message
from tests.transforms.examples import DOCUMENT, read_examples

from . import inspector, pipelines
from .running import CORPUS
from .targets import TARGETS

NOW_MS = 1_700_000_000_000
CODECS = [codec for codec in Compression if codec is not Compression.NONE]


def batches() -> list[bytes]:
    records = [
        NewRecord(b"v", b"k", (("h", b"x"), ("n", None)), NOW_MS),
        NewRecord(None, b"", (), NOW_MS + 5),
    ]
    made = [
        encode_values([b"a", b"bb", None], [(0, NOW_MS)]),
        encode_batch(records),
        *[encode_batch(records, compression=codec) for codec in CODECS],
        encode_batch(records, transactional=True, producer_id=7, producer_epoch=1, base_sequence=0),
        encode_control_batch(ControlType.ABORT, producer_id=7, producer_epoch=1, timestamp_ms=NOW_MS),
        encode_empty_batch(base_offset=0, last_offset=5, timestamp_ms=NOW_MS),
        encode_values([b"x" * 9] * 70, [(0, NOW_MS)]),
    ]
    for batch in made:
        assign(batch, 40, 0)
    return [bytes(batch) for batch in made]


def events() -> list[bytes]:
    """Of a directory in which everything that is journaled was done."""
    known: list[dict[str, Any]] = [
        {"kind": "topic", "name": "t", "topic_id": bytes(16), "partitions": 3, "config": {"segment.bytes": "1"},
         "created_ms": NOW_MS, "state": "live"},
        {"kind": "offset", "group": "g", "topic": "t", "partition": 0, "offset": 5, "metadata": "",
         "committed_ms": NOW_MS},
        {"kind": "group", "group": "g", "topics": ["t"], "created_ms": NOW_MS},
        {"kind": "producer", "name": "p", "epoch": 1, "producer_ids": {0: 7}},
        {"kind": "ids", "next_producer_id": 1000},
        {"kind": "start", "topic": "t", "partition": 0, "log_start_offset": 4},
        {"kind": "transaction", "transactional_id": "x", "producer_id": 7, "epoch": 1, "state": "commit",
         "partitions": [["t", 0]], "timeout_ms": 1000, "updated_ms": NOW_MS, "number": 1, "ends": {}},
        {"kind": "ttl", "topic": "t"},
        {"kind": "queue", "subscription_id": "0" * 16, "topic": "t", "partition": 0, "start_offset": 1},
        {"kind": "queue-block", "subscription_id": "0" * 16, "topic": "t", "partition": 0, "block": 0,
         "done": b"\x07", "attempts": msgspec.msgpack.encode([[0, 1, 2, 0, False, "why"]])},
        {"kind": "binding", "name": "b", "source": "a.*", "target": "c", "dead_letter": "d", "created_ms": 1},
    ]  # fmt: skip
    return [*map(msgspec.msgpack.encode, known), msgspec.msgpack.encode([[0, 1, 2, 0, False, "why"]])]


def requests() -> list[bytes]:
    """Every API in its lowest and highest version, empty and with names and numbers in it."""
    found = []
    for api_key, versions in VERSIONS.items():
        for version in sorted({versions.start, versions.stop - 1}):
            schema = load_request_schema(api_key, version)
            head = {"request_api_key": api_key, "request_api_version": version, "correlation_id": 5}
            header = encode(message(schema.__header_schema__, head | {"client_id": "c"}))
            for fields in ({}, _FIELDS):
                try:
                    found.append(header + encode(message(schema, fields)))
                except Exception:  # a field that is called the same and is of another kind
                    continue
    return found


_FIELDS: dict[str, Any] = {
    "group_id": "g", "member_id": "", "topics": [{"name": "t", "topic": "t", "num_partitions": 1, "partitions": [
        {"partition": 0, "partition_index": 0, "fetch_offset": 0, "committed_offset": 0, "timestamp": -1}
    ]}],
    "topic_data": [{"name": "t", "partition_data": [{"index": 0, "records": batches()[0]}]}],
    "acks": -1, "transactional_id": "x", "session_timeout": 6000, "protocol_type": "consumer", "max_wait": 1,
    "protocols": [{"name": "range", "metadata": b"\0\1\0\0\0\1\0\1t\0\0\0\0"}], "key": "g", "timeout": 1000,
    "coordinator_keys": ["g"], "groups": ["g"], "producer_id": 0, "producer_epoch": 0, "max_bytes": 1000,
    "resources": [{"resource_type": 2, "resource_name": "t", "configs": []}], "topic_names": ["t"],
}  # fmt: skip


def directories() -> list[bytes]:
    logs = inspector.logs_folder()
    found = []
    for number, name in enumerate(inspector.FILES):
        content = (logs / name).read_bytes()[:4000]
        found += [bytes([number]) + content, bytes([number | inspector.RESEAL]) + content]
    log = b"".join(batches())
    return [*found, bytes([0]) + log, bytes([inspector.RESEAL]) + log]


def small_files() -> list[bytes]:
    logs = inspector.logs_folder()
    names = [name for name in inspector.FILES if not name.endswith(".log")]
    return [(logs / name).read_bytes() for name in names if (logs / name).exists()]


def expressions() -> list[bytes]:
    from tests.transforms import test_expressions

    text = Path(str(test_expressions.__file__)).read_text()
    quoted = {piece for line in text.splitlines() for piece in line.split('"')[1::2] if 2 < len(piece) < 120}
    written = [
        'json.customer.name == "Ada" && json.items.exists(i, i == "x")',
        'headers["kind"] == "order" || key.startsWith("a")',
        'json.items.map(i, type(i) == int ? i + 1 : 0)',
        'timestamp > timestamp("2020-01-01T00:00:00Z") ? size(value) : 0',
        'value.replace("a", "b").split(",")[0] + string(offset)',
    ]  # fmt: skip
    return [piece.encode() for piece in [*sorted(quoted), *written]] + [b'json.a.b == 1\0{"a": {"b": 1}}']


def values(name: str) -> list[bytes]:
    if name == "avro":
        return [order(None), order("Ada"), b"[1]", b""]
    shop = {
        "order_id": "5",
        "customer": "Ada",
        "raw": "AAE=",
        "price": 1.5,
        "many": [{"flag": True, "signed": "-3"}],
    }
    given = shop if name == "protobuf" else {"a": [1, None, True, 2.5], "b": {"c": "é"}}
    if name == "csv":
        return [b"a,b\n1,2\n", b'"x ""y""",\r\n', b"a;b\n\n", "é,\ufeff\n".encode()]
    encoder = load_pipeline({"step": [{"kind": "decode", "format": "json"}, pipelines.STEPS[name][1]]})
    (made,) = encoder.apply(pipelines.a_record(json.dumps(given).encode()))
    return [made.value or b"", b"[1]", b'"x"', b"\xff"]


def order(who: str | None) -> bytes:
    fields = {"id": 5, "who": who, "items": [1.5, -2.0], "tags": {"a": "b"}, "day": datetime.date(2026, 1, 2),
              "price": decimal.Decimal("12.50"), "next": None}  # fmt: skip
    out = io.BytesIO()
    fastavro.schemaless_writer(
        out, fastavro.parse_schema(dict(pipelines.AVRO_SCHEMA)), fields | {"next": fields}
    )
    return out.getvalue()


def cloud_events() -> list[bytes]:
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "datacontenttype": "application/json",
             "time": "2026-01-01T00:00:00Z", "ext": "x"}  # fmt: skip
    found = [event | {"data": {"a": 1}}, event | {"data_base64": "AAE="}, event]
    return [*(json.dumps(one).encode() for one in found), b"time\x002026-01-01T00:00:00Z\x00{}"]


def documented_pipelines() -> list[bytes]:
    examples = read_examples(DOCUMENT.read_text())
    found = [f"{example.pipeline}\0{example.record.value!s}".encode() for example in examples]
    return [*found, *(example.pipeline.encode() for example in examples)]


def all_seeds() -> dict[str, Iterable[bytes]]:
    plain = [b"a" * 300, bytes(range(256)) * 3, b""]
    return {
        "record-batch": batches(),
        **{codec.name.lower(): [compress(codec, data) for data in plain] for codec in CODECS},
        "journal-event": events(),
        "small-files": small_files(),
        "frames": [len(request).to_bytes(4, "big") + request for request in requests()],
        "requests": requests(),
        "inspector": directories(),
        "cel": expressions(),
        **{name: values(name) for name in pipelines.STEPS},
        "cloudevents": cloud_events(),
        "pipeline": documented_pipelines(),
    }


def main() -> None:
    corpus = Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS
    for name, inputs in all_seeds().items():
        folder = corpus / name
        folder.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            if len(data) <= TARGETS[name].max_bytes:
                (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    main()
