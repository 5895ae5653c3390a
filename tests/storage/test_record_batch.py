"""Record batches: what is encoded comes back, whichever way, in the documented layout."""

from __future__ import annotations

import datetime
import re
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logbroker_storage import batch_header, control_record
from logbroker_storage.batch_header import HEADER
from logbroker_storage.compression import decompress
from logbroker_storage.errors import BatchDefect, CorruptBatchError, InvalidRequestError
from logbroker_storage.offset_columns import offset_columns, run_end
from logbroker_storage.record_batch import (
    HEADER_BYTES,
    BatchHeader,
    Compression,
    ControlType,
    NewRecord,
    Record,
    StoredBatch,
    assign,
    check_crc,
    decode_batch,
    decode_control_record,
    decode_range,
    decode_records,
    encode_batch,
    encode_control_batch,
    encode_empty_batch,
    encode_values,
    find_next_batch,
    read_batch,
    read_header,
    stamp_append_time,
)
from logbroker_storage.varint import decode_varint, decode_varlong, encode_varint

pytestmark = pytest.mark.usefixtures("codec_twin")

T0 = 1_700_000_000_000


# A second decoder, which knows no fast path: what decode_records must agree with


def plain_records(batch: StoredBatch) -> list[Record]:
    header = batch.header
    data = decompress(header.compression, batch.data[HEADER_BYTES:], 1 << 30)
    position = 0
    records = []

    def blob() -> bytes | None:
        nonlocal position
        size, position = decode_varint(data, position)
        if size == -1:
            return None
        position += size
        return data[position - size : position]

    for _ in range(header.record_count):
        _, position = decode_varint(data, position)
        timestamp_delta, position = decode_varlong(data, position + 1)
        offset_delta, position = decode_varint(data, position)
        key, value = blob(), blob()
        header_count, position = decode_varint(data, position)
        headers = tuple((str(blob(), "utf-8", "surrogateescape"), blob()) for _ in range(header_count))
        timestamp_ms = header.base_timestamp_ms + timestamp_delta
        if header.uses_log_append_time:
            timestamp_ms = header.max_timestamp_ms
        records.append(Record("t", 3, header.base_offset + offset_delta, timestamp_ms, key, value, headers))
    assert position == len(data)
    return records


def decoded(batch: bytearray) -> list[Record]:
    stored = read_batch(batch)
    records, have_reserved = decode_batch(stored, "t", 3)
    assert records == plain_records(stored)
    assert have_reserved is any(
        key.startswith("logbroker.") for record in records for key, _ in record.header_pairs
    )
    assert all(
        type(item) is bytes for record in records for item in (record.key, record.value) if item is not None
    )
    return records


def new(record: Record) -> NewRecord:
    return NewRecord(record.value, record.key, record.headers, record.timestamp_ms)


# Strategies: records of every kind, and runs of records of one kind

timestamps_ms = st.one_of(st.integers(T0 - 100, T0 + 100), st.integers(-1, 1 << 62), st.just(T0))
nullable = (
    st.none() | st.binary(max_size=20) | st.sampled_from([bytes(63), bytes(64), bytes(8191), bytes(8192)])
)
header_keys = st.sampled_from(
    ["", "type", "größe", "\udcff", "k" * 70, "logbroker.", "logbroker.ttl.ms"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
new_records = st.builds(
    NewRecord,
    value=nullable,
    key=nullable,
    headers=st.lists(st.tuples(header_keys, nullable), max_size=4),
    timestamp_ms=timestamps_ms,
)


@st.composite
def bursts(draw: st.DrawFn) -> list[NewRecord]:
    """Runs of records of one shape, as long as the columns need, broken by records of other shapes."""
    records: list[NewRecord] = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(new_records)
        for index in range(draw(st.sampled_from([1, 3, 7, 8, 9, 20, 70]))):
            mark = bytes([index])
            records.append(
                NewRecord(
                    shape.value and mark + shape.value[1:],
                    shape.key and mark + shape.key[1:],
                    [(key, value and mark + value[1:]) for key, value in shape.headers],
                    shape.timestamp_ms,
                )
            )
    return records


some_records = st.lists(new_records, min_size=1, max_size=10) | bursts()


# Round trips


@pytest.mark.parametrize("compression", list(Compression), ids=lambda codec: codec.name)
@given(records=some_records, base_offset=st.integers(0, 1 << 62))
@settings(max_examples=60, deadline=None)
def test_every_record_comes_back_with_its_offset_and_timestamp(compression, records, base_offset):
    read = decoded(encode_batch(records, compression=compression, base_offset=base_offset))
    assert [new(record) for record in read] == [
        NewRecord(record.value, record.key, list(record.headers), record.timestamp_ms) for record in records
    ]
    assert [record.offset for record in read] == list(range(base_offset, base_offset + len(records)))
    assert {(record.topic, record.partition) for record in read} == {("t", 3)}


@st.composite
def values_and_runs(draw: st.DrawFn) -> tuple[list[bytes | None], list[tuple[int, int]]]:
    values: list[bytes | None] = []
    for _ in range(draw(st.integers(1, 4))):
        value = draw(st.none() | st.binary(max_size=12) | st.just(bytes(64)))
        values += [value] * draw(st.sampled_from([1, 2, 40, 63, 64, 65, 200]))
    starts = draw(st.sets(st.integers(1, len(values)), max_size=4)) - {len(values)}
    return values, [(first, draw(timestamps_ms)) for first in (0, *sorted(starts))]


@given(values_and_runs())
@example(([bytes([index % 251]) * 3 for index in range(20_000)], [(0, T0), (9000, T0 + 1)]))
@example(([bytes(index % 5) for index in range(20_000)], [(0, T0)]))
@example(([b"same"] * (8192 * 3 + 5), [(0, T0)]))
@settings(max_examples=80, deadline=None)
def test_encoding_values_gives_the_bytes_of_encoding_records(values_and_runs):
    values, runs = values_and_runs
    per_record = [
        next(timestamp_ms for first, timestamp_ms in reversed(runs) if first <= index)
        for index in range(len(values))
    ]
    records = [NewRecord(value, timestamp_ms=at) for value, at in zip(values, per_record, strict=True)]
    batch = encode_values(values, runs, base_offset=5, producer_id=7, producer_epoch=1, base_sequence=9)
    assert batch == encode_batch(records, base_offset=5, producer_id=7, producer_epoch=1, base_sequence=9)
    assert [(record.value, record.timestamp_ms) for record in decoded(batch)] == list(
        zip(values, per_record, strict=True)
    )


@given(records=some_records, data=st.data())
@settings(max_examples=60, deadline=None)
def test_offsets_that_compaction_left_come_back(records, data):
    gaps = data.draw(
        st.lists(st.sampled_from([1, 1, 1, 2, 60, 9000]), min_size=len(records), max_size=len(records))
    )
    deltas = [sum(gaps[: index + 1]) - 1 for index in range(len(gaps))]
    batch = encode_batch(records, offset_deltas=deltas, last_offset_delta=deltas[-1] + 7, base_offset=100)
    assert [record.offset for record in decoded(batch)] == [100 + delta for delta in deltas]
    assert read_header(batch).next_offset == 100 + deltas[-1] + 8


@given(records=some_records, has_gaps=st.booleans(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_range_is_what_all_of_the_batch_has_of_it(records, has_gaps, data):
    deltas = [index * (1 + has_gaps) for index in range(len(records))]
    batch = read_batch(
        encode_batch(records, offset_deltas=deltas, last_offset_delta=deltas[-1] + has_gaps, base_offset=100)
    )
    everything = decode_batch(batch, "t", 3).records
    begin = data.draw(st.integers(98, batch.header.next_offset + 1))
    end = data.draw(st.integers(begin, batch.header.next_offset + 2))
    found = decode_range(batch, begin, end, "t", 3)
    assert found.records == [record for record in everything if begin <= record.offset < end]
    has_reserved = any(key.startswith("logbroker.") for one in found.records for key, _ in one.header_pairs)
    assert found.have_reserved or not has_reserved


@pytest.mark.parametrize("at", [0, 1, 3, 30, -2])
def test_of_a_malformed_batch_a_range_is_right_or_refused(at):
    records = [NewRecord(b"value %d" % index, timestamp_ms=T0) for index in range(9)]
    sound = read_batch(encode_batch(records))
    content = bytearray(sound.data)
    content[HEADER_BYTES + at if at >= 0 else at] ^= 0xFF
    damaged = StoredBatch(sound.header, memoryview(bytes(content)))
    for begin in range(9):
        try:
            found = decode_range(damaged, begin, begin + 1, "t", 3).records
        except CorruptBatchError:
            continue
        assert [record.offset for record in found] == [begin]


def test_a_batch_may_have_more_records_than_two_byte_offsets():
    records = [NewRecord(b"%08d" % index, b"key", [("n", b"%05d" % index)], T0) for index in range(20_000)]
    assert [new(record) for record in decoded(encode_batch(records))] == records


@pytest.mark.parametrize("deltas", [(0, 1 << 62), (-(1 << 62), (1 << 62) - 1), ((1 << 63) - 1, -1)])
def test_timestamps_far_apart_come_back(deltas):
    records = [NewRecord(b"", timestamp_ms=timestamp_ms) for timestamp_ms in deltas]
    assert [record.timestamp_ms for record in decoded(encode_batch(records))] == list(deltas)


def test_timestamps_whose_difference_needs_more_than_64_bits_are_refused():
    with pytest.raises(InvalidRequestError):
        encode_batch([NewRecord(b"", timestamp_ms=-(1 << 63)), NewRecord(b"", timestamp_ms=(1 << 63) - 1)])


def test_fields_that_do_not_fit_the_header_are_refused():
    with pytest.raises(InvalidRequestError):
        encode_batch([NewRecord(b"", timestamp_ms=1 << 63)])
    with pytest.raises(InvalidRequestError):
        encode_empty_batch(base_offset=0, last_offset=1 << 31)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(InvalidRequestError):
        encode_batch([])
    with pytest.raises(InvalidRequestError):
        encode_values([], [(0, T0)])


def test_records_of_one_batch_do_not_share_their_lists_of_headers():
    for headers in ([], [("k", b"v")]):
        records = decode_records(read_batch(encode_batch([NewRecord(b"v", None, headers, T0)] * 20)))
        records[0].headers.append(("mine", None))
        assert records[1].headers == headers


# The header


def test_the_table_in_the_docstring_is_the_struct():
    types = {"b": "int8", "h": "int16", "i": "int32", "I": "uint32", "q": "int64"}
    rows = re.findall(r"^ +(\d+) +(\d+)  (\w+) +(\w+)  ", batch_header.__doc__ or "", re.MULTILINE)
    position = 0
    for row, code, field in zip(rows, HEADER.format[1:], BatchHeader.__struct_fields__, strict=True):
        assert row == (str(position), str(struct.calcsize(code)), field, types[code])
        position += struct.calcsize(code)
    assert position == HEADER_BYTES == 61


def test_the_control_records_docstring_is_the_structs():
    assert re.findall(r"at (\d)  (\w+) +(\w+)", control_record.__doc__ or "") == [
        ("0", "version", "int16"), ("2", "control_type", "int16"),
        ("0", "version", "int16"), ("2", "coordinator_epoch", "int32"),
    ]  # fmt: skip
    assert (control_record.KEY.format, control_record.VALUE.format) == (">hh", ">hi")


def test_the_header_says_what_the_caller_said():
    batch = encode_batch(
        [NewRecord(b"a", timestamp_ms=T0 + 5), NewRecord(b"b", timestamp_ms=T0)],
        compression=Compression.LZ4,
        base_offset=10,
        partition_leader_epoch=4,
        producer_id=7,
        producer_epoch=2,
        base_sequence=(1 << 31) - 1,
        transactional=True,
        log_append_time=True,
    )
    header = read_header(b"xx" + batch, 2)
    assert header.size_bytes == len(batch)
    assert (header.base_offset, header.last_offset, header.next_offset) == (10, 11, 12)
    assert (header.base_timestamp_ms, header.max_timestamp_ms) == (T0 + 5, T0 + 5)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 2, (1 << 31) - 1)
    assert header.last_sequence == 0  # wraps
    assert header.compression is Compression.LZ4
    assert (header.is_transactional, header.is_control, header.uses_log_append_time) == (True, False, True)
    assert (header.partition_leader_epoch, header.record_count) == (4, 2)
    assert check_crc(b"xx" + batch, 2, header)


def test_a_batch_without_producer_has_no_last_sequence():
    assert read_header(encode_values([b"a", b"b"], [(0, T0)])).last_sequence == -1


def test_assigning_a_place_in_the_log_leaves_the_checksum_right():
    batch = encode_values([b"a", b"b"], [(0, T0)])
    assign(batch, 1 << 40, 3)
    assert [record.offset for record in decoded(batch)] == [1 << 40, (1 << 40) + 1]
    assert read_header(batch).partition_leader_epoch == 3


@pytest.mark.parametrize("count", [1, 3, 100])
def test_log_append_time_is_every_records_timestamp(count):
    batch = encode_values([b"v"] * count, [(0, T0)])
    stamp_append_time(batch, T0 + 77)
    assert {record.timestamp_ms for record in decoded(batch)} == {T0 + 77}
    assert read_header(batch).base_timestamp_ms == T0


def test_an_empty_batch_keeps_offsets_and_producer():
    batch = encode_empty_batch(
        base_offset=20, last_offset=29, timestamp_ms=T0, producer_id=7, producer_epoch=1, base_sequence=3
    )
    header = read_header(batch)
    assert (header.base_offset, header.next_offset, header.last_sequence) == (20, 30, 12)
    assert decoded(batch) == []


@pytest.mark.parametrize("control_type", list(ControlType))
def test_a_transaction_marker_comes_back(control_type):
    batch = encode_control_batch(
        control_type, producer_id=7, producer_epoch=1, timestamp_ms=T0, coordinator_epoch=6, base_offset=9
    )
    header = read_header(batch)
    assert (header.is_control, header.is_transactional, header.base_sequence) == (True, True, -1)
    assert (header.producer_id, header.producer_epoch, header.next_offset) == (7, 1, 10)
    (record,) = decoded(batch)
    marker = decode_control_record(record)
    assert (marker.control_type, marker.coordinator_epoch) == (control_type, 6)


@pytest.mark.parametrize(
    ("key", "value"), [(None, None), (b"\0\0\0", bytes(6)), (bytes(4), bytes(5)), (b"\0\0\0\x02", bytes(6))]
)
def test_what_is_no_transaction_marker_is_corrupt(key, value):
    with pytest.raises(CorruptBatchError):
        decode_control_record(Record("t", 0, 0, T0, key, value))


@pytest.mark.parametrize(
    ("timestamp_ms", "expected"),
    [
        (0, datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)),
        (T0 + 1, datetime.datetime(2023, 11, 14, 22, 13, 20, 1000, tzinfo=datetime.UTC)),
        (-1, datetime.datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=datetime.UTC)),
        ((1 << 63) - 1, datetime.datetime.max.replace(tzinfo=datetime.UTC)),
        (-(1 << 63), datetime.datetime.min.replace(tzinfo=datetime.UTC)),
    ],
)
def test_a_records_timestamp_is_an_aware_datetime_whatever_it_is(timestamp_ms, expected):
    assert Record("t", 0, 0, timestamp_ms, None, None).timestamp == expected


# Columns


@given(delta=st.integers(0, 3_000_000), length=st.integers(1, 9000))
@settings(max_examples=60, deadline=None)
def test_columns_are_the_bytes_of_the_varints_that_differ(delta, length):
    end = run_end(delta, delta + length)
    assert delta < end <= delta + length
    varints = [encode_varint(value) for value in range(delta, end)]
    columns = offset_columns(delta, end)
    assert [bytes(encoded[index] for encoded in varints) for index in range(len(columns))] == list(columns)
    assert {encoded[len(columns) :] for encoded in varints} == {varints[0][len(columns) :]}


# Looking for the place where a log goes on


def log_of(*values: bytes) -> bytes:
    return b"".join(
        encode_values([value], [(0, T0)], base_offset=offset) for offset, value in enumerate(values)
    )


def test_the_next_batch_is_found_behind_damage():
    log = log_of(b"a", b"b", b"c")
    size = len(log) // 3
    damaged = log[:size] + b"\xff" * size + log[2 * size :]
    assert find_next_batch(damaged, size, min_offset=2) == 2 * size
    assert find_next_batch(memoryview(damaged), size, min_offset=2) == 2 * size


def test_the_search_starts_at_the_position_and_offset_that_it_is_given():
    log = log_of(b"a", b"b", b"c")
    size = len(log) // 3
    assert [find_next_batch(log, start, min_offset=0) for start in (0, 1, size, 2 * size, 2 * size + 1)] == [
        0, size, size, 2 * size, None
    ]  # fmt: skip
    assert find_next_batch(log, 0, min_offset=2) == 2 * size
    assert find_next_batch(log, 0, min_offset=3) is None


def test_a_batch_that_is_cut_short_is_not_found():
    log = log_of(b"a", b"b")
    assert find_next_batch(log[:-1], 1, min_offset=0) is None


def test_a_copy_of_an_older_batch_inside_a_value_is_not_taken_for_the_log():
    outer = encode_values([log_of(b"copy") * 3], [(0, T0)], base_offset=5)
    outer[30] ^= 1
    follower = encode_values([b"next"], [(0, T0)], base_offset=6)
    assert find_next_batch(outer + follower, 0, min_offset=6) == len(outer)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_batch_is_found_in_any_rubbish(before, after):
    batch = encode_values([b"found"], [(0, T0)], base_offset=1 << 50)
    assert find_next_batch(before + batch + after, 0, min_offset=1 << 50) == len(before)


def test_zeros_are_no_batch():
    with pytest.raises(CorruptBatchError) as caught:
        read_batch(bytes(4096))
    assert caught.value.defect is BatchDefect.ZEROS
    assert find_next_batch(bytes(4096), 0, min_offset=0) is None
