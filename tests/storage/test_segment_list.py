"""Listing segments without a lock, while others put rewritten ones in their places: none is missed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logbroker_storage.cleaner import segment_batches
from logbroker_storage.errors import OffsetOutOfRangeError
from logbroker_storage.files import OsFiles
from logbroker_storage.log_reader import Isolation
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import ControlType, decode_records, encode_values
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.segment_replacement import (
    begin_pass,
    replace_segments,
    write_replacement,
)
from logbroker_storage.testing import Workbench
from logbroker_storage.testing.manual_clock import START_MS

ALICE = 101
SECOND = f"{2:020d}"
MISSED = {
    "the first listing misses it": [True, False],
    "the second listing misses it": [False, True],
}


class Listing(OsFiles):
    """Some listings of a partition's folder miss a name, as if it were renamed over meanwhile."""

    def __init__(self) -> None:
        self.name = ""
        self.misses: Iterator[bool] = iter(())
        self.behind: Callable[[], None] = lambda: None
        """Called behind a listing that misses it."""
        self.behind_read: Callable[[], object] = lambda: None

    def listdir(self, path: str) -> list[str]:
        names = super().listdir(path)
        if self.name not in names or not next(self.misses, False):
            return names
        self.behind()
        return [name for name in names if name != self.name]

    def pread(self, fd: int, size: int, position: int) -> bytes:
        data = super().pread(fd, size, position)
        self.behind_read()
        return data

    def miss(self, name: str, misses: list[bool]) -> None:
        self.name, self.misses = name, iter(misses)


@pytest.fixture
def files() -> Listing:
    return Listing()


@pytest.fixture
def bench(tmp_path: Path, files: Listing) -> Iterator[Workbench]:
    """Ten records of a second each in segments of two; those of 2 and 3 are of a transaction that was aborted."""
    bench = Workbench(str(tmp_path / "data"), files=files, retention_ms=-1)
    for base in range(0, 10, 2):
        if base == 2:
            batch = encode_values(
                [b"aborted"],
                [(0, START_MS + base * 1000)],
                producer_id=ALICE,
                producer_epoch=0,
                base_sequence=0,
                transactional=True,
            )
            bench.log.append(batch)
            bench.log.append_marker(ControlType.ABORT, producer_id=ALICE, marker_epoch=1)
        else:
            for offset in (base, base + 1):
                bench.put(b"%d" % offset, timestamp_ms=START_MS + offset * 1000)
        bench.log.roll_now()
    assert bench.segments() == [0, 2, 4, 6, 8, 10]
    yield bench
    bench.close()


def rewrite(log: PartitionLog, base: int) -> None:
    """As the cleaner does where it takes nothing out."""
    write_replacement(log, base, [batch.data for batch in segment_batches(log, base)])
    replace_segments(log, [base])


def seen(log: PartitionLog, isolation: Isolation = Isolation.READ_COMMITTED, start: int = 0) -> list[bytes]:
    reader = log.reader(start, isolation)
    found = []
    with contextlib.closing(reader):
        while batches := reader.read():
            found += [
                record.value or b""
                for batch in batches
                if not batch.header.is_control
                for record in decode_records(batch)
            ]
    return found


WHOLE = [b"0", b"1", b"4", b"5", b"6", b"7", b"8", b"9"]


@pytest.mark.parametrize("misses", MISSED.values(), ids=MISSED)
def test_a_reader_finds_a_segment_that_one_listing_misses(
    bench: Workbench, files: Listing, misses: list[bool]
) -> None:
    files.miss(f"{6:020d}.log", misses)
    assert seen(bench.log) == WHOLE


@pytest.mark.parametrize("misses", MISSED.values(), ids=MISSED)
def test_an_aborted_transaction_stays_hidden_where_one_listing_misses_its_index(
    bench: Workbench, files: Listing, misses: list[bool]
) -> None:
    files.miss(f"{SECOND}.txnindex", misses)
    assert seen(bench.log) == WHOLE
    files.miss(f"{SECOND}.txnindex", misses)
    assert [found.producer_id for found in bench.log.aborted_transactions(0, 10)] == [ALICE]


@pytest.mark.parametrize("misses", MISSED.values(), ids=MISSED)
def test_a_search_by_time_finds_a_segment_that_one_listing_misses(
    bench: Workbench, files: Listing, misses: list[bool]
) -> None:
    files.miss(f"{6:020d}.log", misses)
    assert bench.log.offset_for_timestamp(START_MS + 6000) == 6
    files.miss(f"{8:020d}.log", misses)
    newest = bench.log.newest_record()
    assert newest is not None
    assert newest.offset == 9


def test_a_list_is_made_anew_where_both_listings_may_have_missed_a_segment(
    bench: Workbench, files: Listing
) -> None:
    """It was replaced in both of them, by one pass of the cleaner and by the next."""
    passes = []

    def a_pass_of_the_cleaner() -> None:
        begin_pass(bench.log)
        rewrite(bench.log, 6)
        passes.append(6)

    files.behind = a_pass_of_the_cleaner
    files.miss(f"{6:020d}.log", [True, True])
    assert seen(bench.log) == WHOLE
    assert len(passes) == 2


def test_what_was_aborted_stays_hidden_where_its_segment_is_removed_while_it_is_read(
    bench: Workbench, files: Listing
) -> None:
    """With it goes what says that it was aborted; the reader has its file open."""

    def removed_meanwhile() -> None:
        files.behind_read = lambda: None
        delete_segments_below(bench.log, 4)

    files.behind_read = removed_meanwhile
    with pytest.raises(OffsetOutOfRangeError, match="seek to"):
        seen(bench.log, start=2)


def test_readers_beside_a_cleaner_that_never_rests_read_everything(tmp_path: Path) -> None:
    """In a folder of so many files that it cannot be listed in one call."""
    bench = Workbench(str(tmp_path / "data"), retention_ms=-1, durability="os")
    count = 250
    for number in range(count):
        bench.put(b"%d" % number, sync=False)
        bench.log.roll_now()
    expected = [b"%d" % number for number in range(count)]
    done = threading.Event()
    replaced = 0

    def clean() -> None:
        nonlocal replaced
        while not done.is_set():
            begin_pass(bench.log)
            for base in range(0, count, 7):
                rewrite(bench.log, base)
                replaced += 1

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for _ in range(8):
            assert seen(bench.log, Isolation.READ_UNCOMMITTED) == expected
    finally:
        done.set()
        cleaner.join()
    assert replaced
    bench.close()
