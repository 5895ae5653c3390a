"""Batches that Kafka's own Java classes wrote: read right, and written again byte for byte.

``tests/golden/README.md`` says how they were made.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from logbroker_storage.record_batch import (
    Compression,
    ControlType,
    NewRecord,
    Record,
    decode_control_record,
    decode_records,
    encode_batch,
    encode_control_batch,
    encode_empty_batch,
    find_next_batch,
    read_batch,
    read_header,
)

pytestmark = pytest.mark.usefixtures("codec_twin")

GOLDEN = Path(__file__).parents[1] / "golden" / "kafka_batches.jsonl"
BATCHES = {
    entry["name"]: bytes.fromhex(entry["hex"]) for entry in map(json.loads, GOLDEN.read_text().splitlines())
}

T0 = 1_700_000_000_000
MIXED = [
    NewRecord(b"value", b"key", [], T0),
    NewRecord(b"null key", None, [], T0 + 70_000),
    NewRecord(None, b"null value", [], T0 - 5),
    NewRecord(b"", b"", [], T0),
    NewRecord(
        b"x" * 200,
        b"headers",
        [("type", b"created"), ("empty", b""), ("null", None), ("größe", "ü".encode())],
        T0 + 1,
    ),
]
UNIFORM = [NewRecord(b"value", b"k%04d" % index, [("n", b"1")], T0 + index // 100) for index in range(300)]
MIXED_FIELDS = {
    "base_offset": 1000, "partition_leader_epoch": 3, "producer_id": 7, "producer_epoch": 2,
    "base_sequence": 40,
}  # fmt: skip

every_codec = pytest.mark.parametrize("codec", list(Compression), ids=lambda codec: codec.name.lower())


def name(kind: str, codec: Compression) -> str:
    return f"{kind}-{codec.name.lower()}"


def new(records: list[Record]) -> list[NewRecord]:
    return [NewRecord(record.value, record.key, record.headers, record.timestamp_ms) for record in records]


@every_codec
def test_kafkas_mixed_records_are_read(codec):
    batch = read_batch(BATCHES[name("mixed", codec)])
    assert batch.header.compression is codec
    assert {field: getattr(batch.header, field) for field in MIXED_FIELDS} == MIXED_FIELDS
    assert (batch.header.base_timestamp_ms, batch.header.max_timestamp_ms) == (T0, T0 + 70_000)
    assert batch.header.last_sequence == 44
    records = decode_records(batch)
    assert new(records) == MIXED
    assert [record.offset for record in records] == [1000, 1001, 1002, 1003, 1004]


@every_codec
def test_kafkas_run_of_records_is_read(codec):
    records = decode_records(read_batch(BATCHES[name("uniform", codec)]))
    assert new(records) == UNIFORM
    assert [record.offset for record in records] == list(range(300))


def test_the_same_records_are_written_as_the_same_bytes():
    assert encode_batch(MIXED, **MIXED_FIELDS) == BATCHES["mixed-none"]
    assert encode_batch(UNIFORM) == BATCHES["uniform-none"]
    transactional = encode_batch(
        MIXED, base_offset=9, producer_id=11, producer_epoch=1, base_sequence=0, transactional=True
    )
    assert transactional == BATCHES["transactional"]


@every_codec
def test_what_kafka_decompresses_to_is_what_we_compress(codec):
    ours = read_batch(encode_batch(MIXED, compression=codec, **MIXED_FIELDS))
    assert decode_records(ours) == decode_records(read_batch(BATCHES[name("mixed", codec)]))


def test_kafkas_append_time_is_every_records_timestamp():
    batch = read_batch(BATCHES["append-time"])
    assert batch.header.uses_log_append_time
    assert [record.timestamp_ms for record in decode_records(batch)] == [T0 + 999] * 5


@pytest.mark.parametrize(
    "control_type", list(ControlType), ids=lambda control_type: control_type.name.lower()
)
def test_kafkas_transaction_markers_are_read_and_written(control_type):
    golden = BATCHES[control_type.name.lower()]
    (record,) = decode_records(read_batch(golden))
    marker = decode_control_record(record)
    assert (marker.control_type, marker.coordinator_epoch) == (control_type, 6)
    ours = encode_control_batch(
        control_type, producer_id=11, producer_epoch=1, timestamp_ms=T0, coordinator_epoch=6, base_offset=12
    )
    assert ours == golden


def test_kafkas_empty_batch_keeps_its_offsets():
    header = read_header(BATCHES["empty"])
    assert (header.base_offset, header.next_offset, header.last_sequence) == (20, 30, 12)
    assert decode_records(read_batch(BATCHES["empty"])) == []
    ours = encode_empty_batch(
        base_offset=20, last_offset=29, timestamp_ms=T0, producer_id=11, producer_epoch=1, base_sequence=3,
        transactional=True,
    )  # fmt: skip
    assert ours == BATCHES["empty"]


def test_every_batch_is_found_in_a_log_of_them_all():
    log = b"".join(BATCHES.values())
    position = 0
    for batch in BATCHES.values():
        assert find_next_batch(log, position, min_offset=0) == position
        position += len(batch)
