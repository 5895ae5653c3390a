"""Damaged and hostile batches: every flip is noticed, and nothing but CorruptBatchError ever escapes."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from logbroker_storage.batch_header import write_header
from logbroker_storage.errors import BatchDefect, CorruptBatchError
from logbroker_storage.record_batch import (
    CRC_START,
    HEADER_BYTES,
    BatchHeader,
    Compression,
    NewRecord,
    StoredBatch,
    decode_records,
    encode_batch,
    encode_values,
    read_batch,
    read_header,
)
from logbroker_storage.varint import encode_varint

pytestmark = pytest.mark.usefixtures("codec_twin")

T0 = 1_700_000_000_000
MIXED = encode_batch(
    [
        NewRecord(b"value", b"key", [("type", b"created"), ("null", None)], T0),
        NewRecord(None, None, (), T0 + 3000),
        NewRecord(b"x" * 70, b"", (), T0 - 1),
    ]
)
UNIFORM = encode_batch(
    [NewRecord(b"value%02d" % index, b"k%02d" % index, [("h", b"%02d" % index)], T0) for index in range(80)]
)


def sealed(records: bytes, **fields: int) -> StoredBatch:
    """A batch of any bytes whose header and checksum are right."""
    batch = bytearray(HEADER_BYTES) + records
    header = BatchHeader(
        base_offset=0, batch_length=len(batch) - 12, partition_leader_epoch=0, magic=2, crc=0, attributes=0,
        last_offset_delta=fields.get("record_count", 1) - 1, base_timestamp_ms=T0, max_timestamp_ms=T0,
        producer_id=-1, producer_epoch=-1, base_sequence=-1, record_count=1,
    )  # fmt: skip
    write_header(batch, replace(header, **fields))
    return StoredBatch(BatchHeader(*struct.unpack_from(">qiibIhiqqqhii", batch)), memoryview(batch))


# Flips and cuts


@pytest.mark.parametrize("batch", [MIXED, UNIFORM], ids=["mixed", "uniform"])
def test_every_flipped_bit_under_the_checksum_is_noticed(batch):
    for position in range(CRC_START - 4, len(batch)):
        for bit in range(8):
            damaged = bytearray(batch)
            damaged[position] ^= 1 << bit
            with pytest.raises(CorruptBatchError) as caught:
                read_batch(damaged)
            assert caught.value.defect in (BatchDefect.BAD_CRC, BatchDefect.BAD_HEADER)


def test_flips_before_the_checksum_are_noticed_or_change_only_offset_and_epoch():
    sound = read_header(MIXED)
    for position in range(CRC_START - 4):
        for bit in range(8):
            damaged = bytearray(MIXED)
            damaged[position] ^= 1 << bit
            try:
                header = read_batch(damaged).header
            except CorruptBatchError:
                continue
            unassigned = replace(
                header, base_offset=sound.base_offset, partition_leader_epoch=sound.partition_leader_epoch
            )
            assert unassigned == sound


@pytest.mark.parametrize("size", range(len(MIXED)))
def test_a_batch_cut_short_anywhere_is_truncated(size):
    with pytest.raises(CorruptBatchError) as caught:
        read_batch(b"before" + MIXED[:size], 6)
    assert caught.value.defect is BatchDefect.TRUNCATED
    assert caught.value.position == 6


@pytest.mark.parametrize(
    ("field", "value", "defect"),
    [
        ("magic", 1, BatchDefect.BAD_MAGIC),
        ("batch_length", 48, BatchDefect.BAD_LENGTH),
        ("batch_length", -1, BatchDefect.BAD_LENGTH),
        ("base_offset", -1, BatchDefect.BAD_HEADER),
        ("base_offset", (1 << 63) - 3, BatchDefect.BAD_HEADER),
        ("last_offset_delta", -1, BatchDefect.BAD_HEADER),
        ("last_offset_delta", 1, BatchDefect.BAD_HEADER),
        ("record_count", -1, BatchDefect.BAD_HEADER),
        ("record_count", 4, BatchDefect.BAD_HEADER),
        ("partition_leader_epoch", -2, BatchDefect.BAD_HEADER),
        ("producer_id", -2, BatchDefect.BAD_HEADER),
        ("producer_epoch", -2, BatchDefect.BAD_HEADER),
        ("base_sequence", -2, BatchDefect.BAD_HEADER),
        ("attributes", 5, BatchDefect.BAD_HEADER),
        ("attributes", 7, BatchDefect.BAD_HEADER),
    ],
)
def test_a_header_field_that_cannot_be_is_noticed_without_the_checksum(field, value, defect):
    batch = bytearray(MIXED)
    write_header(batch, replace(read_header(MIXED), **{field: value}))
    with pytest.raises(CorruptBatchError) as caught:
        read_header(batch)
    assert caught.value.defect is defect


def test_a_record_count_that_an_uncompressed_batch_is_too_small_for_is_noticed():
    batch = encode_values([b""] * 3, [(0, T0)])
    write_header(batch, replace(read_header(batch), record_count=1 << 30, last_offset_delta=1 << 30))
    with pytest.raises(CorruptBatchError) as caught:
        read_header(batch)
    assert caught.value.defect is BatchDefect.BAD_HEADER


# Records that are wrong under a right checksum


def record(*fields: bytes | int, length: int | None = None) -> bytes:
    """A record: integers become varints, bytes stay; the length is right unless it is given."""
    body = b"".join(encode_varint(field) if isinstance(field, int) else field for field in fields)
    return encode_varint(len(body) if length is None else length) + body


SOUND = record(b"\0", 0, 0, -1, 1, b"v", 0)
MALFORMED = {
    "no record at all": b"",
    "length beyond the batch": record(b"\0", 0, 0, -1, 1, b"v", 0, length=8),
    "length too small": record(b"\0", 0, 0, -1, 1, b"v", 0, length=6) + b"\0",
    "length negative": record(b"\0", 0, 0, -1, 1, b"v", 0, length=-1),
    "length enormous": record(length=(1 << 31) - 1),
    "length without end": b"\xff" * 20,
    "nothing behind the length": b"\x02",
    "offset negative": record(b"\0", 0, -1, -1, 1, b"v", 0),
    "offset beyond the batch's last": record(b"\0", 0, 1, -1, 1, b"v", 0),
    "key length below -1": record(b"\0", 0, 0, -2, 1, b"v", 0),
    "key length beyond the record": record(b"\0", 0, 0, 100, b"k"),
    "key length enormous": record(b"\0", 0, 0, (1 << 31) - 1, b"k"),
    "value length below -1": record(b"\0", 0, 0, -1, -3, b"v", 0),
    "value length beyond the record": record(b"\0", 0, 0, -1, 50, b"v", 0),
    "header count negative": record(b"\0", 0, 0, -1, 1, b"v", -1),
    "header count enormous": record(b"\0", 0, 0, -1, 1, b"v", (1 << 31) - 1),
    "header count missing": record(b"\0", 0, 0, -1, 1, b"v"),
    "header key null": record(b"\0", 0, 0, -1, 1, b"v", 1, -1, 1, b"h"),
    "header key beyond the record": record(b"\0", 0, 0, -1, 1, b"v", 1, 99, b"k"),
    "header value below -1": record(b"\0", 0, 0, -1, 1, b"v", 1, 1, b"k", -2),
    "bytes behind the record's fields": record(b"\0", 0, 0, -1, 1, b"v", 0, b"more"),
    "bytes behind the last record": SOUND + b"\0",
    "a record behind the last record": SOUND + SOUND,
    "timestamp delta of more than 64 bits": record(b"\0", b"\xff" * 9 + b"\x7f", 0, -1, 1, b"v", 0),
    "timestamp beyond 64 bits": record(b"\0", (1 << 63) - 1, 0, -1, 1, b"v", 0),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_record_is_corrupt(case):
    with pytest.raises(CorruptBatchError) as caught:
        decode_records(sealed(MALFORMED[case]))
    assert caught.value.defect is BatchDefect.BAD_RECORDS


def test_the_sound_record_of_these_tests_is_sound():
    assert [found.value for found in decode_records(sealed(SOUND))] == [b"v"]


@pytest.mark.parametrize(
    "case", [case for case in MALFORMED if "last" not in case and "no record" not in case]
)
@pytest.mark.parametrize("place", [0, 1, 7, 8, 30, 63, 64, 70])
def test_a_malformed_record_among_many_alike_is_corrupt(case, place):
    records = [record(b"\0", 0, index, -1, 1, b"v", 0) for index in range(100)]
    records[place] = MALFORMED[case].replace(SOUND[:4], records[place][:4])
    with pytest.raises(CorruptBatchError):
        decode_records(sealed(b"".join(records), record_count=100))


@pytest.mark.parametrize("offset", [0, 10, 29, 31, 1 << 20])
def test_a_run_whose_offsets_do_not_increase_by_one_is_not_read_as_a_run(offset):
    records = [record(b"\0", 0, index, -1, 1, b"v", 0) for index in range(60)]
    records[30] = record(b"\0", 0, offset, -1, 1, b"v", 0)
    with pytest.raises(CorruptBatchError):
        decode_records(sealed(b"".join(records), record_count=60))


def test_fewer_or_more_records_than_the_header_says_are_corrupt():
    records = b"".join(record(b"\0", 0, index, -1, 1, b"v", 0) for index in range(60))
    for count in (0, 1, 30, 59, 61, 65):
        with pytest.raises(CorruptBatchError):
            decode_records(sealed(records, record_count=count))


@pytest.mark.parametrize("batch", [MIXED, UNIFORM], ids=["mixed", "uniform"])
def test_flips_inside_records_under_a_right_checksum_never_make_anything_else_escape(batch):
    records = bytes(batch[HEADER_BYTES:])
    count = read_header(batch).record_count
    generator = random.Random(6)
    places = range(len(records)) if len(records) < 300 else sorted(generator.sample(range(len(records)), 250))
    for position in places:
        for bit in range(8):
            damaged = bytearray(records)
            damaged[position] ^= 1 << bit
            try:
                assert len(decode_records(sealed(bytes(damaged), record_count=count))) == count
            except CorruptBatchError:
                pass


@given(records=st.binary(max_size=200), count=st.integers(0, 100), attributes=st.integers(0, 4))
@settings(max_examples=500, deadline=None)
def test_no_records_at_all_make_anything_but_a_corrupt_batch_escape(records, count, attributes):
    batch = sealed(records, record_count=count, last_offset_delta=max(count - 1, 0), attributes=attributes)
    try:
        assert len(decode_records(batch)) == count
    except CorruptBatchError:
        pass


@pytest.mark.parametrize("codec", [codec for codec in Compression if codec], ids=lambda codec: codec.name)
def test_records_that_decompress_to_too_much_are_refused(codec):
    batch = read_batch(encode_values([bytes(1 << 20)], [(0, T0)], compression=codec))
    assert len(decode_records(batch)) == 1
    with pytest.raises(CorruptBatchError) as caught:
        decode_records(batch, max_decompressed_bytes=1 << 20)
    assert caught.value.defect is BatchDefect.TOO_LARGE


def test_a_small_compressed_batch_that_claims_two_billion_records_is_corrupt():
    count = (1 << 31) - 1
    batch = encode_values([b"v"] * 100, [(0, T0)], compression=Compression.ZSTD)
    write_header(batch, replace(read_header(batch), record_count=count, last_offset_delta=count - 1))
    with pytest.raises(CorruptBatchError):
        decode_records(read_batch(batch))
