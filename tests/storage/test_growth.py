"""What an operation costs does not grow with what the directory already holds: reads are counted, nothing is timed."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import logbroker
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker_storage.data_directory import WINDOWS_OPEN, DataDirectory
from logbroker_storage.events import GroupEvent, NamedProducerEvent, OffsetEvent, TransactionEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import NewRecord, encode_batch
from logbroker_storage.testing import ManualClock, Workbench
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_storage.view import View
from logbroker_storage.view.gate import Gate


class CountingFiles(OsFiles):
    """Counts whole files that are read, and descriptors that are open, by suffix."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.open_now: Counter[str] = Counter()
        self._suffixes: dict[int, str] = {}

    def open(self, path: str, *, create: bool = False, **how: bool) -> int:
        fd = super().open(path, create=create, **how)
        self._suffixes[fd] = path.rpartition(".")[2]
        self.open_now[self._suffixes[fd]] += 1
        return fd

    def close(self, fd: int) -> None:
        self.open_now[self._suffixes.pop(fd, "")] -= 1
        super().close(fd)

    def read_file(self, path: str) -> bytes:
        self.read[path.rpartition(".")[2]] += 1
        return super().read_file(path)


class Values:
    """How many values of the view this thread looked at inside of the block; the directory has others."""

    count = 0


@contextmanager
def counted_values() -> Iterator[Values]:
    found = Values()
    unseal = View.unseal
    counted = threading.get_ident()

    def counting(view: View, key: bytes, stored: bytes) -> bytes:
        found.count += threading.get_ident() == counted
        return unseal(view, key, stored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(View, "unseal", counting)
        yield found


@contextmanager
def counted_reads() -> Iterator[Values]:
    """The same of transactions: what each of them costs is what several values do."""
    found = Values()
    enter = Gate.enter
    counted = threading.get_ident()

    def counting(gate: Gate) -> None:
        found.count += threading.get_ident() == counted
        enter(gate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gate, "enter", counting)
        yield found


def log_of_segments(directory: DataDirectory, clock: ManualClock, segments: int) -> PartitionLog:
    """A log of one record a segment, one second after the other."""
    directory.create_topic("t", 1, LogConfig.parse({"segment.bytes": 100, "durability": "os"}))
    log = directory.log("t", 0)
    for _ in range(segments):
        log.append(encode_batch([NewRecord(value=b"x" * 50, timestamp_ms=clock.now_ms())]))
        clock.advance(ms=1000)
    return log


@pytest.mark.parametrize("segments", [5, 50])
def test_a_search_by_time_reads_the_index_of_the_segment_it_ends_in(tmp_path: object, segments: int) -> None:
    """That of each sealed segment is read once for all searches."""
    files, clock = CountingFiles(), ManualClock()
    directory = DataDirectory.open(f"{tmp_path}/data", files=files, clock=clock)
    log = log_of_segments(directory, clock, segments)
    first_ms = clock.now_ms() - segments * 1000
    assert log.offset_for_timestamp(first_ms + (segments - 2) * 1000) == segments - 2
    for offset in range(segments - 1):
        files.read.clear()
        assert log.offset_for_timestamp(first_ms + offset * 1000) == offset
        assert files.read["timeindex"] == 1
    directory.close()


def test_what_is_known_of_segment_times_is_forgotten_with_the_list_of_segments(tmp_path: object) -> None:
    """A log that lost its end to a bad disk, and has gone on, has the same base offsets and other times."""
    bench = Workbench(f"{tmp_path}/data", segment_bytes=100, durability="os")
    for number in range(4):
        bench.put(b"x" * 50, sync=False, timestamp_ms=START_MS + number)
    assert bench.log.offset_for_timestamp(START_MS + 3) == 3
    bench.lose(1)
    late_ms = START_MS + 100_000
    for number in range(3):
        bench.put(b"y" * 50, sync=False, timestamp_ms=late_ms + number)
    assert bench.log.offset_for_timestamp(START_MS + 3) == 1
    assert bench.log.offset_for_timestamp(late_ms + 1) == 2
    bench.close()


@pytest.mark.parametrize("segments", [5, 50])
def test_a_pass_of_the_cleaner_reads_no_index_that_it_has_read_before(
    tmp_path: object, segments: int
) -> None:
    files, clock = CountingFiles(), ManualClock()
    directory = DataDirectory.open(f"{tmp_path}/data", files=files, clock=clock)
    log_of_segments(directory, clock, segments)
    assert directory.maintenance.clean()
    files.read.clear()
    assert directory.maintenance.clean()
    assert files.read["timeindex"] == 0
    directory.close()


def values_of_a_pass(path: str, *, groups: int, named: int, partitions: int, **config: str) -> int:
    """How many values the cleaner's second pass looks at."""
    directory = DataDirectory.open(path)
    settings = {key.replace("_", "."): value for key, value in config.items()}
    directory.create_topic("t", partitions, LogConfig.parse(settings))
    directory.journal.record([GroupEvent(f"g{number}", ["t"], 0) for number in range(groups)])
    directory.journal.record([NamedProducerEvent(f"p{number}", 0, {}) for number in range(named)])
    assert directory.maintenance.clean()
    with counted_values() as found:
        assert directory.maintenance.clean()
    directory.close()
    return found.count


def test_a_pass_of_the_cleaner_asks_for_groups_only_where_they_decide(tmp_path: object) -> None:
    few, many = (
        values_of_a_pass(f"{tmp_path}/{groups}", groups=groups, named=0, partitions=3) for groups in (1, 100)
    )
    assert many == few


def test_a_pass_of_the_cleaner_looks_at_each_group_once_a_partition_that_it_decides_on(
    tmp_path: object,
) -> None:
    """At what it has committed, that is: which topics it reads is known."""
    few, many = (
        values_of_a_pass(
            f"{tmp_path}/{groups}", groups=groups, named=0, partitions=3, retention_policy="consumed"
        )
        for groups in (1, 100)
    )
    assert many == few  # none has committed, so that there is no value


def test_a_pass_of_the_cleaner_looks_at_named_producers_once(tmp_path: object) -> None:
    few, many = (
        values_of_a_pass(f"{tmp_path}/{named}", groups=0, named=named, partitions=10) for named in (1, 41)
    )
    assert many == few + 40


def test_looking_at_a_group_costs_the_same_beside_others(tmp_path: object) -> None:
    counts = []
    with logbroker.open(f"{tmp_path}/data") as broker:
        broker.create_topic("t")
        directory = broker._directory
        for groups in (1, 100):
            directory.journal.record([GroupEvent(f"g{number}", ["t"], 0) for number in range(groups)])
            directory.journal.record(
                [OffsetEvent(f"g{number}", "t", 0, 0, "", 0) for number in range(groups)]
            )
            broker.group("g0")  # learns what has changed
            with counted_values() as found:
                assert broker.group("g0").offsets[0].committed_offset == 0
            counts.append(found.count)
    assert counts[0] == counts[1]


def test_groups_are_listed_without_looking_at_what_each_has_committed(tmp_path: object) -> None:
    directory = DataDirectory.open(f"{tmp_path}/data")
    directory.journal.record([OffsetEvent(name, "t", 0, 0, "", 0) for name in ("a", "ab", "b")])
    directory.journal.record([OffsetEvent("ab", "t", number, 0, "", 0) for number in range(100)])
    directory.journal.record([GroupEvent("only subscribed", ["t"], 0), GroupEvent("a", ["t"], 0)])
    with counted_values() as found:
        assert directory.groups.names() == ["a", "ab", "b", "only subscribed"]
        assert found.count == 0
    assert [directory.groups.has(name) for name in ("a", "ab", "only subscribed", "onl", "c")] == [
        True, True, True, False, False
    ]  # fmt: skip
    directory.close()


def test_open_transactions_are_looked_after_without_looking_at_other_ids(tmp_path: object) -> None:
    counts = []
    with logbroker.open(f"{tmp_path}/data") as broker:
        broker.create_topic("t")
        directory = broker._directory
        coordinator = TransactionCoordinator(directory)
        with broker.transaction("at work") as transaction:
            transaction.send("t", b"v").result()
            for others in (1, 100):
                for number in range(others):
                    directory.journal.record([transaction_event(f"id {number}", producer_id=1000 + number)])
                coordinator.abort_orphans()  # learns whose the open one is
                with counted_values() as found:
                    assert coordinator.abort_orphans() == 0
                counts.append(found.count)
    assert counts[0] == counts[1]


def transaction_event(transactional_id: str, *, producer_id: int) -> TransactionEvent:
    return TransactionEvent(transactional_id, producer_id, 0, "empty", [], 60_000, START_MS)


def test_a_topic_is_made_without_looking_at_the_others(tmp_path: object) -> None:
    """By who makes it, and by whoever else has the directory open."""
    counts = []
    for topics in (2, 200):
        directory = DataDirectory.open(f"{tmp_path}/{topics}")
        for number in range(topics):
            directory.create_topic(f"t{number}", 1, LogConfig.parse({}))
        assert len(directory.topics()) == topics
        with counted_values() as found:
            directory.create_topic("new", 1, LogConfig.parse({}))
            assert "new" in directory.topics()
        counts.append(found.count)
        directory.close()
    assert counts[0] == counts[1]


def test_the_recovery_points_of_all_partitions_are_read_at_once(tmp_path: object) -> None:
    """They are written every few seconds, and with each topic that is deleted."""
    counts = []
    for partitions in (1, 100):
        directory = DataDirectory.open(f"{tmp_path}/{partitions}")
        directory.create_topic("t", partitions, LogConfig.parse({}))
        with counted_reads() as found:
            directory.checkpoint()
        counts.append(found.count)
        directory.close()
    assert counts[0] == counts[1]


def test_of_the_windows_with_message_ids_only_the_last_keep_their_descriptors(tmp_path: object) -> None:
    """However long ago they were made."""
    files = CountingFiles()
    directory = DataDirectory.open(f"{tmp_path}/data", files=files)
    windows = []
    for number in range(WINDOWS_OPEN + 20):
        directory.create_topic(f"t{number}", 1, LogConfig.parse({}))
        windows.append(directory.deduplication(f"t{number}"))
    for window in (*windows, *windows[:10]):
        with window.lock:
            pass
    assert files.open_now["ids"] == WINDOWS_OPEN
    directory.close()
    assert files.open_now["ids"] == 0


def test_a_log_is_forgotten_with_its_topic(tmp_path: object) -> None:
    """By who had it open, too, and its descriptors are closed; one that was just in use follows later."""
    directory = DataDirectory.open(f"{tmp_path}/data")
    logs = []
    for number in range(10):
        directory.create_topic(f"t{number}", 1, LogConfig.parse({"durability": "os"}))
        log = directory.log(f"t{number}", 0)
        log.append(encode_batch([NewRecord(value=b"x")]))
        logs.append(weakref.ref(log))
    with log.append_lock:
        for number in range(10):
            directory.delete_topic(f"t{number}")
        assert directory.open_logs() == []
        gc.collect()
        assert [log_of() is None for log_of in logs] == [True] * 9 + [False]
    del log
    directory.create_topic("next", 1, LogConfig.parse({"durability": "os"}))
    directory.log("next", 0).append(encode_batch([NewRecord(value=b"x")]))
    gc.collect()
    assert logs[-1]() is None
    open_files = [
        os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)
    ]
    assert not [path for path in open_files if path.startswith(str(tmp_path)) and "deleted" in path]
    directory.close()
