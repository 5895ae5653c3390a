"""Listing segments without a lock, while others put rewritten ones in their places: none is missed."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logbroker_storage.cleaner import segment_batches
from logbroker_storage.errors import OffsetOutOfRangeError
from logbroker_storage.files import OsFiles
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import ControlType, decode_records, encode_values
from logbroker_storage.recovery import reopen_failed
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
        self.behind_file: Callable[[str], object] = lambda name: None
        self.before_change: Callable[[], object] = lambda: None

    def listdir(self, path: str) -> list[str]:
        names = super().listdir(path)
        if self.name not in names or not next(self.misses, False):
            return names
        self.behind()
        return [name for name in names if name != self.name]

    def read_file(self, path: str) -> bytes:
        content = super().read_file(path)
        self.behind_file(os.path.basename(path))
        return content

    def rename(self, source: str, target: str) -> None:
        self.before_change()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self.before_change()
        super().unlink(path)
        self.before_change()

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


# What readers see at each step of others -------------------------------------------------------------------


def put_aborted(log: PartitionLog, producer_id: int) -> None:
    batch = encode_values(
        [b"aborted"],
        [(0, START_MS)],
        producer_id=producer_id,
        producer_epoch=0,
        base_sequence=0,
        transactional=True,
    )
    log.append(batch)
    log.append_marker(ControlType.ABORT, producer_id=producer_id, marker_epoch=1)


@pytest.fixture
def merging(tmp_path: Path, files: Listing) -> Iterator[Workbench]:
    """Three segments that compaction makes one of, each with an aborted transaction."""
    bench = Workbench(
        str(tmp_path / "merging"), files=files, cleanup_policy="compact", min_cleanable_dirty_ratio=0
    )
    for number in range(3):
        put_aborted(bench.log, ALICE + number)
        bench.put(b"%d" % number)
        bench.log.roll_now()
    bench.put(b"3")
    assert bench.segments() == [0, 3, 6, 9]
    yield bench
    bench.close()


def test_what_was_aborted_is_known_at_each_step_of_a_compaction(merging: Workbench, files: Listing) -> None:
    log = merging.log
    looks = 0
    old = log.reader(0, Isolation.READ_COMMITTED)  # it keeps the old file open
    old.read(1)

    def look() -> None:
        nonlocal looks
        looks += 1
        assert seen(log) == [b"0", b"1", b"2", b"3"]
        assert {found.producer_id for found in log.aborted_transactions(0, 9)} == {
            ALICE,
            ALICE + 1,
            ALICE + 2,
        }
        old.seek(0)
        committed = [
            record.value
            for batch in old.read(1)
            if not batch.header.is_control
            for record in decode_records(batch)
        ]
        assert b"aborted" not in committed

    files.before_change = look
    assert merging.directory.maintenance.clean()
    files.before_change = lambda: None
    old.close()
    assert merging.segments() == [0, 9]
    assert looks > 20


def test_a_reader_that_twice_comes_too_late_for_a_segment_of_one_replacement_goes_on(
    merging: Workbench, files: Listing
) -> None:
    log, folder = merging.log, Path(merging.folder)
    reader = log.reader(3, Isolation.READ_COMMITTED)
    reader.read(1)
    reader.close()  # it knows all segments, and has none open

    def remove(base: int) -> None:
        for path in folder.glob(f"{base:020d}.*"):
            path.unlink()

    def step_4(name: str) -> None:
        if name == f"{0:020d}.checksums":
            files.behind_file = lambda name: None
            remove(6)

    segments = [0, 3, 6]
    indexes = b"".join((folder / f"{base:020d}.txnindex").read_bytes() for base in segments)
    batches = [batch.data for base in segments for batch in segment_batches(log, base)]
    write_replacement(log, 0, batches, aborted_index=indexes)
    for path in folder.glob("*.cleaned"):
        path.rename(folder / path.name.removesuffix(".cleaned"))
    remove(3)
    files.behind_file = step_4
    reader.seek(3)
    assert [batch.header.base_offset for batch in reader.read() if not batch.header.is_control] == [5, 8]
    assert not (folder / f"{6:020d}.log").exists()
    reader.close()


def test_what_was_aborted_is_known_while_its_index_is_built_again(bench: Workbench, files: Listing) -> None:
    index = Path(bench.folder, f"{SECOND}.txnindex")
    damaged = bytearray(index.read_bytes())
    damaged[5] ^= 1
    index.write_bytes(damaged)
    with bench.log.append_lock:
        bench.log.syncing.refused(OSError(errno.EIO, "lost"))
    looks = []
    files.before_change = lambda: looks.append(seen(bench.log))
    reopen_failed(bench.log)
    files.before_change = lambda: None
    assert looks
    assert all(found == WHOLE for found in [*looks, seen(bench.log)])
    assert index.read_bytes() != damaged


# Many at once ----------------------------------------------------------------------------------------------


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
