"""Walking a segment: where a scan stops and why, and how an offset or a timestamp is found."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker_storage import offset_index, segment, time_index
from logbroker_storage.errors import BatchDefect
from logbroker_storage.record_batch import ControlType, NewRecord, assign, encode_values
from logbroker_storage.segment import ScanStop, SoundBatch, TimestampOffset
from logbroker_storage.testing import LogBuilder, MemoryFiles
from logbroker_storage.testing.manual_clock import START_MS


@pytest.fixture
def log() -> LogBuilder:
    return new_log()


def new_log(base_offset: int = 0) -> LogBuilder:
    return LogBuilder("/log", files=MemoryFiles(), base_offset=base_offset)


def scan_all(log: LogBuilder, *, start=0, end=None, expected=0, **options):
    """(positions, stop) of a scan over the newest segment."""
    fd = log.files.open(log.log_path, readonly=True)
    end = log.files.size(fd) if end is None else end
    items = list(
        segment.scan(
            log.files, fd, start_position=start, end_position=end, expected_offset=expected, **options
        )
    )
    log.files.close(fd)
    assert isinstance(items[-1], ScanStop)
    return [position for position, _ in items[:-1]], items[-1]


# Scanning -----------------------------------------------------------------------------------------------


def test_a_sound_segment_is_scanned_to_its_end(log):
    log.batch(b"a", b"b").batch(b"c").empty(3).batch(b"d")
    assert scan_all(log) == (log.positions, ScanStop(log.size_bytes(), 7, None))


def test_an_empty_segment_has_no_batches(log):
    assert scan_all(log) == ([], ScanStop(0, 0, None))


def test_a_scan_can_start_and_end_at_any_batch(log):
    log.batch(b"a").batch(b"b").batch(b"c").batch(b"d")
    second, fourth = log.positions[1], log.positions[3]
    assert scan_all(log, start=second, end=fourth, expected=1) == (
        log.positions[1:3],
        ScanStop(fourth, 3, None),
    )


DAMAGE = [
    ("a batch cut in its records", lambda log: log.torn(drop_bytes=3), BatchDefect.TRUNCATED),
    ("a batch cut in its header", lambda log: log.torn(drop_bytes=30), BatchDefect.TRUNCATED),
    ("a flipped bit in a record", lambda log: log.flip(byte=65, bit=2), BatchDefect.BAD_CRC),
    ("a flipped bit in the checksum", lambda log: log.flip(byte=18), BatchDefect.BAD_CRC),
    ("a flipped bit in the base offset", lambda log: log.flip(byte=7, bit=4), BatchDefect.BAD_OFFSET),
    ("a flipped bit in the epoch", lambda log: log.flip(byte=15), BatchDefect.BAD_EPOCH),
    ("a flipped bit in the magic", lambda log: log.flip(byte=16, bit=6), BatchDefect.BAD_MAGIC),
    ("a length that is too small", lambda log: log.flip(byte=11, bit=6), BatchDefect.BAD_LENGTH),
    ("a length behind the end", lambda log: log.flip(byte=8, bit=4), BatchDefect.TRUNCATED),
]


@pytest.mark.parametrize(
    ("damage", "defect"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE]
)
def test_a_scan_stops_at_damage_and_names_it(log, damage, defect):
    damage(log.batch(b"a").batch(b"b").batch(b"some value"))
    assert scan_all(log) == (log.positions[:2], ScanStop(log.positions[2], 2, defect))


def test_zeros_are_not_a_batch(log):
    log.batch(b"a")
    end = log.size_bytes()
    assert scan_all(log.zeros(4096)) == ([0], ScanStop(end, 1, BatchDefect.ZEROS))


def test_a_missing_batch_is_seen_by_its_offset(log):
    log.batch(b"a")
    log.next_offset += 1
    log.batch(b"c")
    assert scan_all(log)[1] == ScanStop(log.positions[1], 1, BatchDefect.BAD_OFFSET)


def test_offsets_and_epochs_are_checked_only_when_asked(log):
    log.batch(b"a")
    log.next_offset += 10
    stray = encode_values([b"c"], [(0, START_MS)])
    assign(stray, 11, 3)
    log.batch(b"b").raw(stray)
    positions, stop = scan_all(log, expected=None, leader_epoch=None)
    assert (len(positions), stop.defect, stop.offset) == (3, None, 12)


def test_without_the_checksum_only_headers_are_looked_at(log):
    log.batch(b"a").batch(b"b" * 100_000).flip(byte=5000).batch(b"c")
    assert scan_all(log, check_crc=False) == (log.positions, ScanStop(log.size_bytes(), 3, None))


@pytest.mark.parametrize("size", [segment.SCAN_BLOCK_BYTES - 200, segment.SCAN_BLOCK_BYTES + 1, 3 << 20])
def test_batches_larger_than_a_block_are_checked_whole(log, size):
    log.batch(b"a").batch(random.Random(size).randbytes(size)).batch(b"c")
    assert scan_all(log)[1].defect is None
    log.flip(batch=1, byte=size // 2)
    assert scan_all(log) == ([0], ScanStop(log.positions[1], 1, BatchDefect.BAD_CRC))


def test_a_file_that_is_shorter_than_it_should_be_is_truncated(log):
    log.batch(b"a").batch(b"b")
    size = log.size_bytes()
    assert scan_all(log, end=size + 500)[1] == ScanStop(size, 2, BatchDefect.TRUNCATED)
    for cut in range(1, 70):
        assert scan_all(log.torn(drop_bytes=1), end=size + 500)[1].defect is BatchDefect.TRUNCATED, cut


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_flipped_bit_goes_unnoticed_and_what_is_before_it_is_found(data):
    log = new_log()
    for size in data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)):
        log.batch(*[b"value"] * size)
    bit = data.draw(st.integers(0, log.size_bytes() * 8 - 1))
    hit = max(index for index, position in enumerate(log.positions) if position <= bit // 8)
    log.flip(batch=hit, byte=bit // 8 - log.positions[hit], bit=bit % 8)
    positions, stop = scan_all(log)
    assert positions == log.positions[:hit]
    assert (stop.position, stop.defect is None) == (log.positions[hit], False)


# Behind damage ------------------------------------------------------------------------------------------


def next_sound(log: LogBuilder, batch: int, min_offset: int) -> SoundBatch | None:
    fd = log.files.open(log.log_path, readonly=True)
    try:
        return segment.next_sound_batch(
            log.files, fd, log.positions[batch], end_position=log.size_bytes(), min_offset=min_offset
        )
    finally:
        log.files.close(fd)


@pytest.mark.parametrize("byte", [3, 10, 16, 18, 22, 70])
def test_the_log_goes_on_behind_a_damaged_batch_wherever_the_damage_is(log, byte):
    log.batch(b"a").batch(b"b" * 50).flip(byte=byte, bit=1).batch(b"c")
    assert next_sound(log, 1, min_offset=2) == SoundBatch(log.positions[2], 2)


def test_a_stored_copy_of_a_batch_is_not_taken_for_the_logs_own(log):
    copy = encode_values([b"inner"], [(0, START_MS)])
    assign(copy, 6, 0)
    log.batch(b"a").batch(bytes(copy)).flip(byte=22, bit=1).batch(b"c")
    assert next_sound(log, 1, min_offset=2) == SoundBatch(log.positions[2], 2)


def test_a_sound_batch_is_found_across_blocks_and_behind_large_ones(log):
    log.batch(b"a").batch(b"\0\0\0\0\2" * 400_000).flip(byte=9, bit=0).batch(b"c" * (2 << 20)).batch(b"d")
    assert next_sound(log, 1, min_offset=2) == SoundBatch(log.positions[2], 2)


def test_nothing_is_found_where_nothing_sound_follows(log):
    log.batch(b"a").batch(b"b").flip(byte=3).zeros(2 << 20)
    assert next_sound(log, 1, min_offset=2) is None


# Finding an offset --------------------------------------------------------------------------------------


def locate(log: LogBuilder, offset: int, index: bytes | None = None, end: int | None = None) -> int:
    fd = log.files.open(log.log_path, readonly=True)
    if index is None:
        index = log.files.read_file(log.log_path.replace(".log", ".index"))
    end = log.size_bytes() if end is None else end
    try:
        return segment.locate(log.files, fd, index, log.base_offset, offset, end).position
    finally:
        log.files.close(fd)


batch_sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 300)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(batch_sizes, st.integers(0, 10**12), st.integers(0, 1000), st.data())
def test_every_offset_is_located_in_its_batch(sizes, base_offset, interval_bytes, data):
    log = new_log(base_offset)
    for count, size in sizes:
        log.batch(*[b"v" * size] * count)
    log.indexes(interval_bytes)
    batches, _ = log.scan()
    offset = data.draw(st.integers(base_offset, log.next_offset - 1))
    expected = next(position for position, header in batches if header.last_offset >= offset)
    assert locate(log, offset) == expected
    assert locate(log, offset, index=b"") == expected


def test_offsets_outside_give_the_first_batch_and_the_end(log):
    log.batch(b"a").batch(b"b").batch(b"c").indexes(0)
    assert locate(log, -1) == 0
    assert locate(log, 3) == log.size_bytes()
    assert locate(log, 2, end=log.positions[2]) == log.positions[2]


WRONG_INDEXES = {
    "empty": b"",
    "zeros allocated in advance": bytes(80),
    "into the middle of a batch": offset_index.encode_entry(1, 100),
    "a batch behind": offset_index.encode_entry(1, 148),
    "behind the end": offset_index.encode_entry(1, 1 << 30),
    "not whole entries": b"\0\0\0\1\0\0\0",
    "descending": offset_index.encode_entry(3, 222) + offset_index.encode_entry(1, 74),
}


@pytest.mark.parametrize("index", WRONG_INDEXES.values(), ids=WRONG_INDEXES.keys())
def test_a_wrong_index_costs_time_but_not_the_answer(log, index):
    for value in (b"a", b"b", b"c", b"d", b"e"):
        log.batch(value)
    for offset in range(5):
        assert locate(log, offset, index=index) == log.positions[offset]


def test_a_lookup_reads_only_the_neighbourhood_that_the_index_names(log):
    for number in range(1000):
        log.batch(b"%d" % number * 20)
    log.indexes()
    reads = []
    pread = log.files.pread

    class Counting(MemoryFiles):
        def pread(self, fd, size, position):
            reads.append(size)
            return pread(fd, size, position)

    fd = log.files.open(log.log_path, readonly=True)
    index = log.files.read_file(log.log_path.replace(".log", ".index"))
    assert segment.locate(Counting(), fd, index, 0, 900, log.size_bytes()) == (log.positions[900], 900)
    assert sum(reads) <= segment.HEADER_BLOCK_BYTES + 100


@pytest.mark.parametrize("bit", range(3))
def test_a_batch_that_the_index_names_is_not_taken_at_a_base_offset_that_was_changed(log, bit):
    """The checksum does not cover it, and it may still lie within the segment: its records would be others'."""
    for number in range(40):
        log.batch(*[b"%d" % number] * 8)
    log.indexes(500)
    entries = offset_index.parse(log.files.read_file(log.log_path.replace(".log", ".index")))
    batch = log.positions.index(entries[3].position)
    log.flip(batch=batch, byte=7, bit=bit)
    fd = log.files.open(log.log_path, readonly=True)
    index = b"".join(offset_index.encode_entry(*entry) for entry in entries)
    for offset in range(batch * 8, batch * 8 + 8):
        found = segment.locate(log.files, fd, index, 0, offset, log.size_bytes())
        assert found == (log.positions[batch], batch * 8), offset


def test_an_offset_behind_damage_is_found_and_one_inside_gives_the_damage(log):
    log.batch(b"a").batch(b"b", b"c").batch(b"d").batch(b"e")
    log.indexes(1 << 20)
    log.flip(batch=1, byte=10, bit=0)
    assert locate(log, 0) == 0
    assert locate(log, 1) == locate(log, 2) == log.positions[1]
    assert locate(log, 3) == log.positions[2]
    assert locate(log, 4) == log.positions[3]


# Finding a timestamp ------------------------------------------------------------------------------------


def locate_timestamp(log: LogBuilder, timestamp_ms: int) -> TimestampOffset | None:
    fd = log.files.open(log.log_path, readonly=True)
    stem = log.log_path.removesuffix(".log")
    try:
        return segment.locate_timestamp(
            log.files,
            fd,
            log.files.read_file(stem + ".timeindex"),
            log.files.read_file(stem + ".index"),
            log.base_offset,
            timestamp_ms,
            log.size_bytes(),
        )
    finally:
        log.files.close(fd)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=5), min_size=1, max_size=25),
    st.integers(0, 1000),
    st.sampled_from([1, 1000]),
)
def test_the_first_record_that_is_not_older_is_found_also_out_of_order(batches, interval_bytes, scale):
    log = new_log(base_offset=500)
    for timestamps in batches:
        log.records(*[NewRecord(b"v" * 40, timestamp_ms=timestamp * scale) for timestamp in timestamps])
    log.indexes(interval_bytes)
    records = log.stored_records()
    for wanted in range(0, 62 * scale, max(1, scale // 2)):
        expected = [
            (record.offset, record.timestamp_ms) for record in records if record.timestamp_ms >= wanted
        ]
        assert locate_timestamp(log, wanted) == (expected[0] if expected else None)


def test_markers_empty_batches_and_damaged_ones_are_passed_over(log):
    log.batch(b"a", timestamp_ms=10)
    log.next_timestamp_ms = 20
    log.control(ControlType.COMMIT, producer_id=1)
    log.empty(1, producer_id=1)
    log.batch(b"damaged", timestamp_ms=25).batch(b"c", timestamp_ms=30).indexes().flip(batch=3)
    assert locate_timestamp(log, 11) == (4, 30)


# Indexes ------------------------------------------------------------------------------------------------


def test_indexes_follow_kafkas_rule(log):
    """An entry when more than the interval was written since the last, naming last offset and start."""
    for number in range(10):
        log.batch(b"x" * 430, b"y" * 430, timestamp_ms=100 - number if number in (3, 4) else 200 + number)
    log.indexes(2000)
    entries = offset_index.parse(log.files.read_file(log.log_path.replace(".log", ".index")))
    size = log.positions[1]
    assert 2000 / 3 < size < 1000
    # Batches 3, 6 and 9 start more than 2000 bytes behind the one indexed before.
    assert entries == [(7, 3 * size), (13, 6 * size), (19, 9 * size)]
    times = time_index.parse(log.files.read_file(log.log_path.replace(".log", ".timeindex")))
    assert times == [(203, 5), (207, 13), (210, 19)]


def test_the_time_index_is_completed_when_the_segment_is_sealed(log):
    log.batch(b"a", timestamp_ms=5).batch(b"b", b"c", timestamp_ms=9).batch(b"d", timestamp_ms=7).indexes()
    assert log.files.read_file(log.log_path.replace(".log", ".index")) == b""
    assert time_index.parse(log.files.read_file(log.log_path.replace(".log", ".timeindex"))) == [(10, 2)]


def test_time_entries_are_written_only_when_the_timestamp_grows(log):
    for _ in range(5):
        log.batch(b"x" * 100, timestamp_ms=7)
    log.indexes(0)
    assert len(offset_index.parse(log.files.read_file(log.log_path.replace(".log", ".index")))) == 4
    assert time_index.parse(log.files.read_file(log.log_path.replace(".log", ".timeindex"))) == [(7, 0)]


@settings(max_examples=50, deadline=None)
@given(batch_sizes, st.integers(0, 2000), st.booleans())
def test_built_indexes_are_sound_and_go_on_behind_damage(sizes, interval_bytes, damaged):
    log = new_log(base_offset=7)
    for count, size in sizes:
        log.batch(*[b"v" * size] * count)
    if damaged:
        log.flip(batch=len(sizes) // 2, byte=11, bit=0)
    log.indexes(interval_bytes)
    stem = log.log_path.removesuffix(".log")
    end = log.next_offset - 7
    entries = log.files.read_file(stem + ".index")
    assert offset_index.check(entries, end_relative_offset=end, end_position=log.size_bytes()) is None
    assert time_index.check(log.files.read_file(stem + ".timeindex"), end_relative_offset=end) is None
    if interval_bytes == 0 and not damaged:
        assert [entry.position for entry in offset_index.parse(entries)] == log.positions[1:]
