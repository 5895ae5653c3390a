"""Reading a partition: whole checked batches, in order, or an error that says exactly what cannot be read."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from logbroker_storage.errors import CorruptionError, OffsetOutOfRangeError
from logbroker_storage.files import OsFiles
from logbroker_storage.log_reader import LogReader
from logbroker_storage.record_batch import StoredBatch, decode_records
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.testing import LogBuilder, Workbench


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def bench(path) -> Iterator[Workbench]:
    """Six batches of two records each, in three segments."""
    bench = Workbench(path, segment_bytes=250, index_interval_bytes=1, durability="os")
    for number in range(6):
        bench.put(value(2 * number), value(2 * number + 1), sync=False)
    assert bench.segments() == [0, 4, 8]
    yield bench
    bench.close()


def value(offset: int) -> bytes:
    return b"%02d" % offset * 10


def bases(batches: list[StoredBatch]) -> list[int]:
    return [batch.header.base_offset for batch in batches]


def rest(reader: LogReader, max_bytes: int = 1 << 20) -> list[int]:
    """The base offsets of everything from the reader's place on."""
    found = []
    while batches := reader.read(max_bytes):
        found += bases(batches)
    return found


# Where a read begins and ends -------------------------------------------------------------------------


@pytest.mark.parametrize("offset", range(13))
def test_reading_begins_with_the_batch_that_holds_the_offset(bench, offset):
    reader = bench.log.reader(offset)
    assert rest(reader) == list(range(offset // 2 * 2, 12, 2))
    assert reader.position == 12
    reader.close()


@pytest.mark.parametrize("max_bytes", [1, 60, 61, 62, 110, 111, 112, 113, 250, 10_000])
@pytest.mark.parametrize("offset", [0, 3, 8, 11])
def test_with_any_byte_limit_every_batch_comes_once_and_whole(bench, max_bytes, offset):
    reader = bench.log.reader(offset)
    assert rest(reader, max_bytes) == list(range(offset // 2 * 2, 12, 2))
    reader.close()


def test_a_read_stays_within_its_limit_unless_one_batch_alone_is_larger(bench):
    reader = bench.log.reader(0)
    size = reader.read(1)[0].header.size_bytes
    reader.seek(0)
    assert bases(reader.read(2 * size)) == [0, 2]
    reader.seek(0)
    assert bases(reader.read(2 * size - 1)) == [0]
    reader.seek(0)
    assert bases(reader.read(size - 1)) == [0]
    reader.close()


def test_a_read_gives_no_more_than_one_segment_at_a_time_and_goes_on_in_the_next(bench):
    reader = bench.log.reader(0)
    assert [bases(reader.read()) for _ in range(4)] == [[0, 2], [4, 6], [8, 10], []]
    reader.close()


def test_at_the_end_a_read_gives_nothing_and_then_what_is_appended(bench):
    reader = bench.log.reader(12)
    assert reader.read() == []
    for number in range(5):  # across rolls
        bench.put(b"new %d" % number * 10, sync=False)
        assert bases(reader.read()) == [12 + number]
        assert reader.read() == []
    reader.close()


def test_reading_stops_at_the_high_watermark(path):
    bench = Workbench(path)
    bench.put(b"a")
    bench.put(b"b", sync=False)
    reader = bench.log.reader(0)
    assert bases(reader.read()) == [0]
    assert reader.read() == []
    bench.log.sync()
    assert bases(reader.read()) == [1]
    reader.close()
    bench.close()


def test_large_batches_that_are_cached_are_at_hand_for_who_reads_on(path):
    files = OsFiles()
    with closing(Workbench(path, durability="os", files=files)) as bench:
        for _ in range(4):
            bench.put(bytes(20_000), sync=False)
        reader = bench.log.reader(0)
        assert not reader.is_at_hand(40_000), "nothing is open yet"
        reader.read(25_000)
        assert reader.position == 1
        assert reader.is_at_hand(40_000) is files.is_cached(reader._fd, 0, 40_000)
        reader.seek(3)
        assert not reader.is_at_hand(40_000), "an index would have to be read"
        reader.read()
        for _ in range(100):
            bench.put(b"small", sync=False)
        reader.read()
        assert not reader.is_at_hand(40_000), "there may be thousands of small batches"
        reader.close()
        assert not reader.is_at_hand(40_000)


def test_seeking_works_in_any_direction(bench):
    reader = bench.log.reader(0)
    for offset in random.Random(5).choices(range(12), k=60):
        reader.seek(offset)
        assert reader.position == offset
        assert bases(reader.read(1)) == [offset // 2 * 2]
    reader.close()


def test_without_its_indexes_a_log_reads_the_same(bench):
    for name in os.listdir(bench.folder):
        if name.endswith(".index"):
            os.unlink(f"{bench.folder}/{name}")
    for offset in range(12):
        reader = bench.log.reader(offset)
        assert rest(reader) == list(range(offset // 2 * 2, 12, 2))
        reader.close()


def test_a_closed_reader_reads_on_where_it_was(bench):
    reader = bench.log.reader(0)
    reader.read(1)
    reader.close()
    assert bases(reader.read(1)) == [2]
    reader.close()


# Out of range -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 3, 13, 1000])
def test_an_offset_outside_of_the_log_is_an_error_that_names_the_range(bench, offset):
    bench.log.delete_before(4)
    reader = bench.log.reader(offset)
    with pytest.raises(OffsetOutOfRangeError) as caught:
        reader.read()
    assert (caught.value.offset, caught.value.start_offset, caught.value.end_offset) == (offset, 4, 12)
    reader.seek(caught.value.start_offset)
    assert rest(reader) == [4, 6, 8, 10]
    reader.close()


def test_an_offset_between_the_high_watermark_and_the_log_s_end_only_waits(path):
    bench = Workbench(path)
    bench.put(b"a", b"b", sync=False)
    for offset in (0, 1, 2):
        assert bench.log.reader(offset).read() == []
    bench.close()


def test_a_reader_in_a_deleted_segment_is_told_so(bench):
    reader = bench.log.reader(0)
    reader.read(1)
    delete_segments_below(bench.log, 8)
    with pytest.raises(OffsetOutOfRangeError):
        reader.read()
    reader.seek(8)
    assert rest(reader) == [8, 10]
    reader.close()


def test_a_reader_that_has_not_opened_its_deleted_segment_yet_is_told_so_too(bench):
    reader = bench.log.reader(2)
    delete_segments_below(bench.log, 4)
    with pytest.raises(OffsetOutOfRangeError):
        reader.read()
    reader.close()


def test_a_reader_behind_what_the_disk_lost_is_told_so(bench):
    reader = bench.log.reader(0)
    rest(reader)
    bench.lose(6)
    with pytest.raises(OffsetOutOfRangeError):
        reader.read()
    reader.seek(4)
    assert rest(reader) == [4]
    bench.put(b"other", sync=False)
    assert rest(reader) == [6]
    reader.close()


@pytest.mark.parametrize("way", ["delete_before", "delete_segments_below", "lose"])
def test_a_reader_that_races_with_removal_gets_records_or_a_clean_error(path, way):
    """While one thread appends and removes, whatever others read is what was written at that offset."""
    bench = Workbench(path, segment_bytes=400, index_interval_bytes=1, durability="os")
    stop = threading.Event()
    wrong: list[object] = []

    def read(seed: int) -> None:
        choose = random.Random(seed)
        reader = bench.log.reader(0)
        try:
            while not stop.is_set():
                try:
                    for batch in reader.read(300):
                        wrong.extend(
                            record
                            for record in decode_records(batch)
                            if record.value != b"%d" % record.offset * 9
                        )
                except OffsetOutOfRangeError as error:
                    reader.seek(choose.randint(error.start_offset, error.end_offset))
        except BaseException as error:
            wrong.append(error)
        finally:
            reader.close()

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in readers:
        thread.start()
    choose = random.Random(1)
    offset = 0
    for _ in range(300):
        bench.put(b"%d" % offset * 9, sync=False)
        offset += 1
        if choose.random() < 0.1:
            if way == "delete_before":
                bench.log.delete_before(offset - 2)
            elif way == "delete_segments_below":
                delete_segments_below(bench.log, offset - 2)
            else:
                offset -= 1
                bench.lose(offset)
    stop.set()
    for thread in readers:
        thread.join()
    bench.close()
    assert wrong == []


# Damage -----------------------------------------------------------------------------------------------


def read_around_damage(bench: Workbench) -> tuple[list[bytes | None], list[tuple[int, int]]]:
    """Every value that can be read, and the ranges that the errors on the way named."""
    reader = bench.log.reader(bench.log.offsets().log_start_offset)
    values: list[bytes | None] = []
    damaged: list[tuple[int, int]] = []
    for _ in range(100):
        try:
            batches = reader.read()
        except CorruptionError as error:
            damaged.append((error.start_offset, error.end_offset))
            reader.seek(error.end_offset)
            continue
        if not batches:
            reader.close()
            return values, damaged
        values += [record.value for batch in batches for record in decode_records(batch)]
    raise AssertionError("the reader does not come to an end")


def test_damage_is_reported_with_its_place_and_everything_else_is_read(bench):
    everything = bench.values()
    log = LogBuilder(bench.folder)
    log.flip(batch=0)
    reader = bench.log.reader(8)
    with pytest.raises(CorruptionError) as caught:
        reader.read()
    error = caught.value
    assert (error.topic, error.partition, error.start_offset, error.end_offset) == ("t", 0, 8, 10)
    assert (error.path, error.position) == (log.log_path, 0)
    reader.close()
    assert read_around_damage(bench) == (everything[:8] + everything[10:], [(8, 10)])


@pytest.mark.parametrize("segment", [0, 4, 8])
def test_any_flipped_bit_costs_the_batch_that_holds_it_and_no_other(bench, segment):
    """Every bit of the headers, and some of the records; with and without an index that helps."""
    everything = bench.values()
    file = f"{bench.folder}/{segment:020}.log"
    with open(file, "rb") as source:
        sound = source.read()
    size = len(sound) // 2
    choose = random.Random(3)
    bits = [*range(61 * 8), *choose.sample(range(61 * 8, size * 8), 30)]
    for batch in (0, 1):
        start = segment + 2 * batch
        for bit in choose.sample(bits, 260):
            position = batch * size + bit // 8
            flipped = bytearray(sound)
            flipped[position] ^= 1 << bit % 8
            with open(file, "r+b") as target:
                target.write(flipped)
            values, damaged = read_around_damage(bench)
            assert damaged == [(start, start + 2)], (batch, bit)
            assert values == everything[:start] + everything[start + 2 :], (batch, bit)
    with open(file, "r+b") as target:
        target.write(sound)
    assert bench.values() == everything


def test_an_offset_behind_damage_is_found_from_cold(bench):
    LogBuilder(bench.folder).flip(batch=0, byte=25, bit=7)  # the last offset delta now leads far away
    reader = bench.log.reader(10)
    assert bases(reader.read()) == [10]
    reader.close()


def test_a_whole_missing_segment_is_damage_up_to_the_next(bench):
    os.unlink(f"{bench.folder}/{4:020}.log")
    everything = [value(number) for number in range(12)]
    assert read_around_damage(bench) == (everything[:4] + everything[8:], [(4, 8)])


def test_a_missing_first_segment_is_damage_too(bench):
    os.unlink(f"{bench.folder}/{0:020}.log")
    assert read_around_damage(bench)[1] == [(0, 4)]


def test_a_missing_active_segment_is_damage_up_to_the_end(bench):
    os.unlink(f"{bench.folder}/{8:020}.log")
    assert read_around_damage(bench)[1] == [(8, 12)]


def test_a_sealed_segment_that_ends_too_early_is_damage_up_to_the_next(bench):
    os.truncate(f"{bench.folder}/{4:020}.log", 30)
    assert read_around_damage(bench)[1] == [(4, 8)]
    os.truncate(f"{bench.folder}/{4:020}.log", 0)
    assert read_around_damage(bench)[1] == [(4, 8)]


def test_zeros_in_a_segment_are_damage(bench):
    size = os.path.getsize(f"{bench.folder}/{4:020}.log") // 2
    with open(f"{bench.folder}/{4:020}.log", "r+b") as file:
        file.write(bytes(size))
    assert read_around_damage(bench)[1] == [(4, 6)]


def test_a_batch_stored_as_a_value_is_not_taken_for_one_of_the_log_s(path):
    bench = Workbench(path, durability="os")
    bench.put(b"a", sync=False)
    inner = bench.batch(b"trap")
    inner[:8] = (2).to_bytes(8, "big")  # it pretends to be the batch of offset 2
    bench.put(bytes(inner), sync=False)
    bench.put(b"c", sync=False)
    LogBuilder(bench.folder).flip(batch=1, byte=30)
    assert read_around_damage(bench) == ([b"a", b"c"], [(1, 2)])
    bench.close()
