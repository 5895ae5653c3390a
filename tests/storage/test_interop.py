"""Both Python clients of Kafka read what we write, and we read what they write, in every codec.

kafka-python needs python-snappy for bare snappy; its own xerial framing is put over cramjam's bare codec.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable

import cramjam
import pytest
from aiokafka.record.control_record import ABORT_MARKER, COMMIT_MARKER
from aiokafka.record.control_record import ControlRecord as AioControlRecord
from aiokafka.record.default_records import DefaultRecordBatch as AioBatch
from aiokafka.record.default_records import DefaultRecordBatchBuilder as AioBuilder
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy as AioPlainBuilder
from aiokafka.record.default_records import _DefaultRecordBatchPy as AioPlainBatch
from aiokafka.record.memory_records import MemoryRecords as AioMemoryRecords

from logbroker_storage.record_batch import (
    Compression,
    ControlType,
    NewRecord,
    decode_records,
    encode_batch,
    encode_control_batch,
    encode_values,
    read_batch,
    stamp_append_time,
)

with warnings.catch_warnings():  # kafka-python reads its schemas in a way that Python deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.codec
    from kafka.record.default_records import DefaultRecordBatch as KafkaBatch
    from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaBuilder
    from kafka.record.memory_records import MemoryRecords as KafkaMemoryRecords

pytestmark = pytest.mark.usefixtures("codec_twin")

T0 = 1_700_000_000_000
MIXED = [
    NewRecord(
        b"value", b"key", [("type", b"created"), ("null", None), ("größe", b""), ("type", b"again")], T0
    ),
    NewRecord(None, b"tombstone", [], T0 + 70_000),
    NewRecord(b"null key" * 500, None, [], T0 - 1),
    NewRecord(b"", b"", [], T0),
]
UNIFORM = [
    NewRecord(b"v%05d" % index, b"k%05d" % index, [("n", b"1")], T0 + index // 100) for index in range(300)
]
KINDS = {"mixed": MIXED, "uniform": UNIFORM}

READERS = {"aiokafka": AioBatch, "aiokafka-plain": AioPlainBatch, "kafka-python": KafkaBatch}
WRITERS = {"aiokafka": AioBuilder, "aiokafka-plain": AioPlainBuilder, "kafka-python": KafkaBuilder}

every_codec = pytest.mark.parametrize("codec", list(Compression), ids=lambda codec: codec.name)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def bare_snappy_for_kafka_python(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = types.SimpleNamespace(
        compress=lambda data: bytes(cramjam.snappy.compress_raw(data)),
        decompress=lambda data: bytes(cramjam.snappy.decompress_raw(data)),
    )
    monkeypatch.setattr(kafka.codec, "snappy", bare)


def as_new(record: object) -> NewRecord:
    return NewRecord(record.value, record.key, list(record.headers), record.timestamp)  # type: ignore[attr-defined]


@every_codec
@every_kind
@pytest.mark.parametrize("reader", READERS)
def test_they_read_what_we_write(reader, kind, codec):
    batch = encode_batch(
        KINDS[kind], compression=codec, base_offset=50, producer_id=7, producer_epoch=2, base_sequence=40
    )
    theirs = READERS[reader](bytes(batch))
    assert theirs.validate_crc()
    assert (theirs.compression_type, theirs.base_offset, theirs.next_offset) == (
        codec,
        50,
        50 + len(KINDS[kind]),
    )
    assert (theirs.producer_id, theirs.producer_epoch, theirs.base_sequence) == (7, 2, 40)
    records = list(theirs)
    assert [as_new(record) for record in records] == KINDS[kind]
    assert [record.offset for record in records] == list(range(50, 50 + len(KINDS[kind])))


@every_codec
@every_kind
@pytest.mark.parametrize("writer", WRITERS)
def test_we_read_what_they_write(writer, kind, codec):
    builder = WRITERS[writer](
        magic=2, compression_type=codec, is_transactional=True, producer_id=7, producer_epoch=2,
        base_sequence=40, batch_size=1 << 20,
    )  # fmt: skip
    for offset, record in enumerate(KINDS[kind]):
        assert (
            builder.append(offset, record.timestamp_ms, record.key, record.value, record.headers) is not None
        )
    batch = read_batch(bytes(builder.build()))
    assert batch.header.compression is codec
    assert batch.header.is_transactional
    assert (batch.header.producer_id, batch.header.producer_epoch, batch.header.base_sequence) == (7, 2, 40)
    records = decode_records(batch)
    assert [NewRecord(item.value, item.key, item.headers, item.timestamp_ms) for item in records] == KINDS[
        kind
    ]
    assert [record.offset for record in records] == list(range(len(KINDS[kind])))


@pytest.mark.parametrize("writer", WRITERS)
@every_kind
def test_uncompressed_batches_are_the_same_bytes(writer, kind):
    builder = WRITERS[writer](
        magic=2, compression_type=0, is_transactional=False, producer_id=7, producer_epoch=2,
        base_sequence=40, batch_size=1 << 20,
    )  # fmt: skip
    for offset, record in enumerate(KINDS[kind]):
        builder.append(offset, record.timestamp_ms, record.key, record.value, record.headers)
    theirs = bytes(builder.build())
    leader_epoch = read_batch(theirs).header.partition_leader_epoch  # each has its own idea of "not assigned"
    ours = encode_batch(
        KINDS[kind], producer_id=7, producer_epoch=2, base_sequence=40, partition_leader_epoch=leader_epoch
    )
    assert ours == theirs


@pytest.mark.parametrize("reader", READERS)
def test_they_read_values_that_were_laid_down_as_columns(reader):
    values = [b"%05d" % index for index in range(10_000)] + [None]
    theirs = READERS[reader](bytes(encode_values(values, [(0, T0), (100, T0 + 1)])))
    assert theirs.validate_crc()
    records = list(theirs)
    assert [record.value for record in records] == values
    assert [record.offset for record in records] == list(range(10_001))
    assert [record.timestamp for record in records] == [T0] * 100 + [T0 + 1] * 9_901


@pytest.mark.parametrize("reader", READERS)
def test_they_see_our_append_time(reader):
    batch = encode_values([b"a", b"b"], [(0, T0)])
    stamp_append_time(batch, T0 + 500)
    theirs = READERS[reader](bytes(batch))
    assert theirs.validate_crc()
    assert [(record.timestamp, record.timestamp_type) for record in theirs] == [(T0 + 500, 1)] * 2


@pytest.mark.parametrize("control_type", list(ControlType), ids=lambda control_type: control_type.name)
def test_they_see_our_transaction_markers(control_type):
    batch = bytes(encode_control_batch(control_type, producer_id=7, producer_epoch=1, timestamp_ms=T0))
    for reader in READERS.values():
        theirs = reader(batch)
        assert theirs.is_control_batch
        assert theirs.is_transactional
        assert theirs.validate_crc()
    (record,) = AioBatch(batch)
    expected = COMMIT_MARKER if control_type is ControlType.COMMIT else ABORT_MARKER
    assert AioControlRecord.parse(record.key) == expected
    (record,) = KafkaBatch(batch)
    assert record.commit is (control_type is ControlType.COMMIT)


@pytest.mark.parametrize("log", [AioMemoryRecords, KafkaMemoryRecords])
def test_they_walk_a_log_of_our_batches(log: Callable[[bytes], object]):
    data = b"".join(
        encode_values([b"a", b"b"], [(0, T0)], base_offset=2 * number, compression=codec)
        for number, codec in enumerate(Compression)
    )
    memory = log(data)
    offsets: list[int] = []
    while (batch := memory.next_batch()) is not None:  # type: ignore[attr-defined]
        offsets += [record.offset for record in batch]
    assert offsets == list(range(10))
