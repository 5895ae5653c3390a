"""The journal: an event is durable and visible when the call returns, and the newest of a key is what counts."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from logbroker_storage.errors import InvalidRequestError, StorageFailedError, WriteFailedError
from logbroker_storage.events import BindingEvent, OffsetEvent, TopicEvent, encode_event
from logbroker_storage.files import OsFiles
from logbroker_storage.journal import (
    APPLIED,
    BINDINGS_VERSION,
    COMPACT_FROM_BYTES,
    MAX_UNAPPLIED,
    Journal,
    item_of,
)
from logbroker_storage.record_batch import NewRecord, encode_batch
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.testing import FaultyFiles, LogBuilder, UnsyncedFiles, Workbench


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def bench(path: str) -> Iterator[Workbench]:
    bench = Workbench(path)
    yield bench
    bench.close()


def commit(offset: int, *, partition: int = 0, group: str = "g") -> OffsetEvent:
    return OffsetEvent(group, "t", partition, offset, "", 0)


def committed(bench: Workbench, *, partition: int = 0, group: str = "g") -> int | None:
    event = bench.directory.groups.committed(group, "t", partition)
    return None if event is None else event.offset


def table(bench: Workbench) -> list[tuple[bytes, bytes]]:
    return bench.directory.view.events.items(b"")


def journal_of(bench: Workbench) -> Journal:
    return bench.directory.journal


def test_an_event_is_visible_and_on_the_disk_when_the_call_returns(path):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    before = files.calls["fdatasync"]
    journal_of(bench).record([commit(5), commit(6, partition=1)])
    assert (committed(bench), committed(bench, partition=1)) == (5, 6)
    assert files.calls["fdatasync"] == before + 1
    offsets = journal_of(bench).log.offsets()
    assert offsets.synced_offset == offsets.log_end_offset
    bench.crash()
    assert committed(bench.open()) == 5
    assert committed(bench.reopen(without_view=True)) == 5
    bench.close()


def test_the_latest_event_of_a_key_counts_and_a_tombstone_deletes_it(bench):
    for offset in (1, 2, 3):
        journal_of(bench).record([commit(offset)])
    journal_of(bench).record([commit(9, partition=1)])
    journal_of(bench).delete([commit(0, partition=1).key()])
    for again in (bench, bench.reopen(without_view=True)):
        assert (committed(again), committed(again, partition=1)) == (3, None)


def test_no_events_are_no_batch(bench):
    before = journal_of(bench).log.offsets()
    journal_of(bench).record([])
    journal_of(bench).delete([])
    assert journal_of(bench).log.offsets() == before


def test_a_check_that_raises_writes_nothing(bench):
    def refuse() -> None:
        raise LookupError

    before = journal_of(bench).log.offsets()
    with pytest.raises(LookupError):
        journal_of(bench).record([commit(1)], check=refuse)
    assert journal_of(bench).log.offsets() == before
    journal_of(bench).record([commit(2)])
    assert committed(bench) == 2


def test_a_check_runs_under_the_journal_s_lock(bench):
    """So nothing that was decided under ``exclusive`` comes between the check and its events."""
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def check() -> None:
        inside.set()
        go_on.wait(10)
        order.append("checked")

    def decide() -> None:
        with journal_of(bench).exclusive():
            order.append("exclusive")

    writer = threading.Thread(target=journal_of(bench).record, args=([commit(1)],), kwargs={"check": check})
    writer.start()
    inside.wait(10)
    decider = threading.Thread(target=decide)
    decider.start()
    decider.join(0.05)
    go_on.set()
    writer.join()
    decider.join()
    assert order == ["checked", "exclusive"]


def test_many_threads_share_syncs_and_lose_nothing(bench):
    def write(partition: int) -> None:
        for offset in range(40):
            journal_of(bench).record([commit(offset, partition=partition)])
            assert committed(bench, partition=partition) == offset

    threads = [threading.Thread(target=write, args=(partition,)) for partition in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.offset for event in bench.directory.groups.committed_offsets("g")] == [39] * 6


def test_three_processes_write_at_once(path, bench):
    script = f"""
        import sys
        from logbroker_storage.data_directory import DataDirectory
        from logbroker_storage.events import OffsetEvent
        directory = DataDirectory.open({path!r})
        name = sys.argv[1]
        for offset in range(60):
            everybodys = OffsetEvent("all", "t", 0, offset, name, 0)
            directory.journal.record([OffsetEvent(name, "t", 0, offset, "", 0), everybodys])
            assert directory.groups.committed(name, "t", 0).offset == offset
        directory.close()
    """
    processes = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), name]) for name in "abc"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert [committed(bench, group=name) for name in "abc"] == [59] * 3
    before = table(bench)
    assert table(bench.reopen(without_view=True)) == before


def test_an_event_that_a_dead_process_did_not_apply_is_applied_by_the_next_one(path, bench):
    """It was appended and published, or only written: the opener, and every decision, sees it."""
    batch = encode_batch([NewRecord(encode_event(commit(7)), commit(7).key(), (), 0)])
    journal_of(bench).log.append(bytearray(batch))
    assert committed(bench) is None
    with journal_of(bench).exclusive():
        assert committed(bench) == 7
    stray = encode_batch([NewRecord(encode_event(commit(8)), commit(8).key(), (), 0)])
    LogBuilder(journal_of(bench).log.directory).append(stray)
    with journal_of(bench).exclusive():
        assert committed(bench) == 8
    LogBuilder(journal_of(bench).log.directory).append(
        encode_batch([NewRecord(encode_event(commit(9)), commit(9).key(), (), 0)])
    )
    bench.crash()
    assert committed(bench.open()) == 9


def test_events_are_applied_in_the_order_of_the_log_whoever_applies_them(bench):
    journal_of(bench).record([commit(1)])
    for offset in (2, 3):
        batch = encode_batch([NewRecord(encode_event(commit(offset)), commit(0).key(), (), 0)])
        journal_of(bench).log.append(bytearray(batch))
    journal_of(bench).record([commit(5, partition=1)])
    assert (committed(bench), committed(bench, partition=1)) == (3, 5)


def test_topic_events_move_the_version_and_others_do_not(bench):
    before = bench.directory.topics_version()
    journal_of(bench).record([commit(1)])
    assert bench.directory.topics_version() == before
    journal_of(bench).record([bench.directory.topic("t")])
    assert bench.directory.topics_version() > before
    assert isinstance(bench.directory.topic("t"), TopicEvent)


def test_binding_events_move_a_version_of_their_own(bench):
    def versions() -> tuple[int, int]:
        return bench.directory.topics_version(), bench.directory.view.meta_int(BINDINGS_VERSION)

    topics, bindings = versions()
    journal_of(bench).record([BindingEvent("b", "s", "t", "d", 0)])
    assert versions() == (topics, bindings + 1)
    journal_of(bench).delete([BindingEvent.key_of("b")])
    assert versions() == (topics, bindings + 2)


# Failures ---------------------------------------------------------------------------------------------


def test_a_refused_write_records_nothing(path):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    journal_of(bench).record([commit(1)])
    files.fail("pwrite", path=".log", error=errno.ENOSPC, written=20)
    with pytest.raises(WriteFailedError):
        journal_of(bench).record([commit(2)])
    assert committed(bench) == 1
    journal_of(bench).record([commit(3)])
    assert committed(bench.reopen(without_view=True)) == 3
    bench.close()


def test_a_failed_sync_is_of_unknown_outcome_until_the_directory_is_opened_again(path):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    journal_of(bench).record([commit(1)])
    files.fail("fdatasync", path=".log", error=errno.EIO)
    with pytest.raises(StorageFailedError):
        journal_of(bench).record([commit(2)])
    assert committed(bench) == 1
    with pytest.raises(StorageFailedError):
        journal_of(bench).record([commit(3)])
    with pytest.raises(StorageFailedError):
        bench.close()
    bench.open()
    assert committed(bench) == 2  # its bytes were sound on the disk
    journal_of(bench).record([commit(4)])
    assert committed(bench.reopen(without_view=True)) == 4
    bench.close()


def test_what_may_be_in_the_log_is_not_taken_back_where_the_disk_cannot_be_asked(path):
    """The whole event is written, the write fails, cannot be cut off again, and nothing can be read any more."""
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    journal_of(bench).record([commit(1)])
    taken_back = []
    files.fail("pwrite", path=".log", error=errno.EIO, written=1.0)
    files.fail("truncate", path=".log", error=errno.EIO, forever=True)
    files.fail(
        "pread", path=".log", error=errno.EIO, at=2, forever=True
    )  # the first looks where the log ends
    with pytest.raises(StorageFailedError, match="could not be taken back"):
        journal_of(bench).decide(lambda: [item_of(commit(2))], take_back=lambda: taken_back.append(True))
    assert not taken_back
    files.heal()
    journal_of(bench).record([commit(3, group="another")])
    assert committed(bench) == 2
    bench.close()


def test_a_damaged_event_costs_itself_and_no_other(path):
    bench = Workbench(path)
    for partition in range(4):
        journal_of(bench).record([commit(7, partition=partition)])
    bench.close()
    LogBuilder(journal_of(bench).log.directory).flip(batch=-2)
    shutil.rmtree(bench.directory.layout.view)
    bench.open()
    found = [committed(bench, partition=partition) for partition in range(4)]
    assert found == [7, 7, None, 7]
    bench.close()


# Compaction -------------------------------------------------------------------------------------------


def test_a_hundred_thousand_commits_leave_a_small_journal_that_says_the_same(path):
    bench = Workbench(path, files=UnsyncedFiles())
    largest = 0
    for first in range(0, 100_000, 10):
        journal_of(bench).record(
            [commit(number, partition=number % 10) for number in range(first, first + 10)]
        )
        if first % 1000 == 0:
            largest = max(largest, journal_of(bench).log.size_bytes())
    assert largest < 3 * COMPACT_FROM_BYTES
    before = table(bench)
    assert [event.offset for event in bench.directory.groups.committed_offsets("g")] == list(
        range(99_990, 100_000)
    )
    bench.reopen(without_view=True, files=UnsyncedFiles())
    assert table(bench) == before
    bench.close()


def test_compacting_gives_the_space_back_and_replays_the_same(path):
    bench = Workbench(path, files=UnsyncedFiles())
    for number in range(COMPACT_FROM_BYTES // 4000 - 20):
        journal_of(bench).record([OffsetEvent("g", "t", number % 3, number, "m" * 4000, 0)])
    before = table(bench)
    journal_of(bench).delete([commit(0, partition=2).key()])
    assert journal_of(bench).log.offsets().log_start_offset == 0
    for number in range(40):
        journal_of(bench).record([OffsetEvent("g", "t", number % 2, number, "m" * 4000, 0)])
    log = journal_of(bench).log
    assert log.offsets().log_start_offset > 200
    assert log.size_bytes() < COMPACT_FROM_BYTES // 2
    after = table(bench)
    assert len(after) == len(before) - 1
    assert table(bench.reopen(without_view=True, files=UnsyncedFiles())) == after
    bench.close()


def test_a_compaction_that_fails_is_no_failure_of_the_write_before_it(path, caplog):
    files = FaultyFiles(UnsyncedFiles())
    bench = Workbench(path, files=files)
    files.fail("open", path=".tmp", error=errno.ENOSPC, forever=True)
    for number in range(COMPACT_FROM_BYTES // 4000 + 5):
        journal_of(bench).record([OffsetEvent("g", "t", 0, number, "m" * 4000, 0)])
        assert committed(bench) == number
    assert "could not be compacted" in caplog.text
    files.heal()
    journal_of(bench).record([commit(1)])
    assert journal_of(bench).log.size_bytes() < COMPACT_FROM_BYTES // 2
    assert committed(bench.reopen(without_view=True)) == 1
    bench.close()


def test_a_writer_whose_events_another_process_compacted_away_is_done(bench):
    """It appended and synced, and before it could apply, somebody applied and compacted all."""
    journal = journal_of(bench)
    base_offset, end_offset = journal._append([(commit(1).key(), encode_event(commit(1)))])
    journal.log.sync(end_offset)
    journal.catch_up()
    journal.log.roll_now()
    journal.record([commit(2)])
    journal._apply([(commit(1).key(), encode_event(commit(1)))], base_offset, end_offset)
    assert committed(bench) == 2
    assert bench.directory.view.meta_int(APPLIED) == journal.log.offsets().log_end_offset


def test_a_writer_in_whose_way_another_process_compacts_the_journal_is_done(bench, monkeypatch):
    """It was about to read what is to be applied: that is gone, and was applied by who compacted."""
    journal = journal_of(bench)
    journal.record([commit(0)])
    items = [(commit(1).key(), encode_event(commit(1)))]
    base_offset, end_offset = journal._append(items)
    journal.log.sync(end_offset)
    unpatched = journal.log.reader
    compacted = []

    def reader(offset):
        found = unpatched(offset)
        monkeypatch.setattr(journal.log, "reader", unpatched)
        journal.catch_up()
        journal.log.roll_now()
        journal.record([commit(2)])
        compacted.append(delete_segments_below(journal.log, end_offset))
        return found

    monkeypatch.setattr(journal.log, "reader", reader)
    journal._apply(items, base_offset - 1, end_offset)
    assert compacted == [[0]]
    assert committed(bench) == 2


def test_what_need_not_last_at_once_is_synced_and_compacted_before_it_becomes_too_much(path: str) -> None:
    bench = Workbench(path, files=UnsyncedFiles())
    journal = journal_of(bench)
    events = [item_of(commit(offset, group="x" * 100)) for offset in range(1000)]
    for _ in range(60):
        journal.decide(lambda: events, is_lasting=False)
    assert journal.log.state().end.log_end_offset - bench.directory.view.meta_int(APPLIED) < MAX_UNAPPLIED
    assert journal.log.state().end.active_bytes < 2 * COMPACT_FROM_BYTES
    bench.close()


def test_no_producer_id_is_given_out_twice_although_the_event_that_says_which_were_is_damaged(tmp_path):
    """The second holder's first batch would be taken for a duplicate of the first's: acknowledged, not written."""
    bench = Workbench(str(tmp_path / "data"))
    producer_id = bench.directory.producer_ids.allocate()
    bench.put(b"first", producer_id=producer_id, sequence=0)
    bench.put(b"foreign", producer_id=(1 << 63) - 1, sequence=0)
    bench.close()
    journal = Path(bench.path, "logs", "__journal-0", f"{0:020d}.log")
    content = journal.read_bytes()
    journal.write_bytes(content.replace(b"next_producer_id", b"last_producer_id"))
    bench.reopen(without_view=True)
    fresh = bench.directory.producer_ids.allocate()
    assert fresh > producer_id
    assert not bench.put(b"second", producer_id=fresh, sequence=0).duplicate
    bench.close()


@pytest.mark.parametrize("offset", [True, 2.5, None])
def test_an_event_that_nobody_could_read_is_refused(offset):
    with pytest.raises(InvalidRequestError, match="OffsetEvent"):
        encode_event(msgspec.structs.replace(commit(1), offset=offset))
