"""Appending to one partition: offsets, rolls, indexes, producers, durability, failures."""

from __future__ import annotations

import errno
import gc
import os
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from logbroker_storage.descriptors import Descriptors
from logbroker_storage.errors import (
    CorruptBatchError,
    FencedError,
    OutOfOrderSequenceError,
    RecordTooLargeError,
    StorageFailedError,
    TopicNotFoundError,
    WriteFailedError,
)
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.log_growth import roll_is_due
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import read_header
from logbroker_storage.segment import rebuild_indexes
from logbroker_storage.segment_files import segment_name
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.testing import FaultyFiles, LogBuilder, ManualClock, Workbench
from logbroker_storage.testing.manual_clock import START_MS

HOUR_MS = 3_600_000


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def bench(path) -> Iterator[Workbench]:
    bench = Workbench(path)
    yield bench
    bench.close()


def open_bench(path: str, request: pytest.FixtureRequest, **settings) -> Workbench:
    bench = Workbench(path, **settings)
    request.addfinalizer(bench.close)
    return bench


# Offsets ----------------------------------------------------------------------------------------------


def test_offsets_count_the_records(bench):
    assert bench.put(b"a", b"b")[:2] == (0, 1)
    assert bench.put(b"c")[:2] == (2, 2)
    assert [(record.offset, record.value) for record in bench.records()] == [(0, b"a"), (1, b"b"), (2, b"c")]


def test_an_empty_log_starts_and_ends_at_0(bench):
    assert bench.log.offsets() == (0, 0, 0, 0, 0)
    assert bench.log.size_bytes() == 0


def test_the_bytes_of_a_batch_go_to_disk_unchanged_but_for_base_offset_and_leader_epoch(bench):
    bench.put(b"a")
    batch = bench.batch(b"b", b"c")
    sent = bytes(batch)
    bench.log.append(batch)
    stored = LogBuilder(bench.folder).content()[-len(sent) :]
    assert stored[16:] == sent[16:]
    assert struct.unpack(">q", stored[:8]) == (1,)
    assert stored[8:12] == sent[8:12]


def test_what_is_not_synced_is_in_the_log_but_not_visible(bench):
    bench.put(b"a")
    bench.put(b"b", sync=False)
    offsets = bench.log.offsets()
    assert (offsets.high_watermark, offsets.synced_offset, offsets.log_end_offset) == (1, 1, 2)
    assert bench.values() == [b"a"]
    assert bench.log.sync() == 2
    assert bench.values() == [b"a", b"b"]


@pytest.mark.parametrize("durability", ["interval", "os"])
def test_with_weaker_durability_a_record_is_visible_at_once(path, request, durability):
    bench = open_bench(path, request, durability=durability)
    bench.put(b"a", sync=False)
    offsets = bench.log.offsets()
    assert (offsets.high_watermark, offsets.synced_offset) == (1, 0)
    assert bench.values() == [b"a"]


def test_interval_durability_syncs_by_itself_when_the_interval_has_passed(path, request):
    bench = open_bench(path, request, durability="interval", durability_interval_ms=20)
    bench.put(b"a", sync=False)
    waiting = threading.Event()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if bench.log.offsets().synced_offset == 1:
            return
        waiting.wait(0.01)
    pytest.fail("not synced by itself")


def test_one_sync_covers_everything_appended_so_far(path, request):
    files = FaultyFiles(OsFiles())
    bench = open_bench(path, request, files=files)
    for value in (b"a", b"b", b"c"):
        bench.put(value, sync=False)
    before = files.calls["fdatasync"]
    bench.log.wait_durable(1)
    bench.log.wait_durable(3)
    assert files.calls["fdatasync"] - before == 1


def test_waiting_for_durability_costs_nothing_where_the_topic_does_not_ask_for_it(path, request):
    files = FaultyFiles(OsFiles())
    bench = open_bench(path, request, files=files, durability="os")
    before = files.calls["fdatasync"]
    bench.put(b"a", sync=False)
    bench.log.wait_durable(1)
    assert files.calls["fdatasync"] == before


def test_threads_append_whole_batches_in_one_order(bench):
    def append(name: int) -> None:
        for number in range(50):
            bench.put(b"%d-%d" % (name, number), b"second half", sync=number % 10 == 0)

    threads = [threading.Thread(target=append, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.log.sync()
    values = bench.values()
    assert len(values) == 400
    for name in range(4):
        mine = [value for value in values[::2] if value.startswith(b"%d-" % name)]
        assert mine == [b"%d-%d" % (name, number) for number in range(50)]


# Timestamps -------------------------------------------------------------------------------------------


def test_log_append_time_replaces_the_producer_s_timestamps(path, request):
    clock = ManualClock(START_MS + HOUR_MS)
    bench = open_bench(path, request, clock=clock, message_timestamp_type="LogAppendTime")
    result = bench.put(b"a", b"b", timestamp_ms=5)
    assert result.timestamp_ms == START_MS + HOUR_MS
    assert [record.timestamp_ms for record in bench.records()] == [START_MS + HOUR_MS] * 2
    assert bench.log.offset_for_timestamp(START_MS + HOUR_MS) == 0


def test_a_timestamp_leads_to_the_first_record_that_is_not_older(path, request):
    bench = open_bench(path, request, segment_bytes=200, index_interval_bytes=1)
    times = [10, 20, 20, 30, 25, 40]
    for number, timestamp_ms in enumerate(times):
        bench.put(b"%d" % number * 20, timestamp_ms=timestamp_ms)
    assert len(bench.segments()) > 2
    for wanted in range(45):
        expected = next((offset for offset, time in enumerate(times) if time >= wanted), None)
        assert bench.log.offset_for_timestamp(wanted) == expected, wanted


def test_a_missing_time_index_costs_time_but_not_the_answer(path, request):
    bench = open_bench(path, request, segment_bytes=200)
    for number in range(9):
        bench.put(b"v" * 50, timestamp_ms=number)
    for name in os.listdir(bench.folder):
        if name.endswith("index"):
            os.unlink(f"{bench.folder}/{name}")
    assert [bench.log.offset_for_timestamp(number) for number in range(10)] == [*range(9), None]


def test_a_timestamp_never_leads_to_what_is_deleted_or_not_yet_visible(bench):
    for number in range(4):
        bench.put(b"v", timestamp_ms=number)
    bench.put(b"v", timestamp_ms=4, sync=False)
    bench.log.delete_before(2)
    assert bench.log.offset_for_timestamp(0) == 2
    assert bench.log.offset_for_timestamp(4) is None


# Rolling ----------------------------------------------------------------------------------------------


def test_a_segment_rolls_before_it_would_exceed_its_size(path, request):
    bench = open_bench(path, request, segment_bytes=300)
    for _ in range(10):
        bench.put(b"v" * 30)
    sizes = [len(content) for name, content in bench.contents([".log"]).items()]
    assert len(sizes) > 2
    assert all(size <= 300 for size in sizes)
    assert bench.values() == [b"v" * 30] * 10
    assert bench.log.size_bytes() == sum(sizes)


def test_a_batch_larger_than_a_segment_gets_one_of_its_own(path, request):
    bench = open_bench(path, request, segment_bytes=100)
    bench.put(b"a")
    bench.put(b"b" * 500)
    bench.put(b"c")
    assert bench.segments() == [0, 1, 2]
    assert bench.values() == [b"a", b"b" * 500, b"c"]


def test_a_segment_rolls_at_the_first_append_after_its_age(path, request):
    clock = ManualClock()
    bench = open_bench(path, request, clock=clock, segment_ms=HOUR_MS)
    bench.put(b"a")
    clock.advance(ms=HOUR_MS - 1)
    bench.put(b"b")
    assert bench.segments() == [0]
    clock.advance(ms=1)
    bench.put(b"c")
    assert bench.segments() == [0, 2]


def test_an_empty_segment_does_not_age(path, request):
    clock = ManualClock()
    bench = open_bench(path, request, clock=clock, segment_ms=HOUR_MS)
    clock.advance(ms=10 * HOUR_MS)
    bench.put(b"a")
    bench.put(b"b")
    assert bench.segments() == [0]


def test_a_wall_clock_set_back_rolls_nothing(path, request):
    clock = ManualClock()
    bench = open_bench(path, request, clock=clock, segment_ms=HOUR_MS)
    bench.put(b"a")
    clock.set_back(ms=5 * HOUR_MS)
    bench.put(b"b")
    assert bench.segments() == [0]


def test_a_segment_rolls_when_its_index_is_full(path, request):
    bench = open_bench(path, request, index_interval_bytes=1, segment_index_bytes=32)
    for _ in range(12):
        bench.put(b"v")
    index_sizes = [len(content) for content in bench.contents([".index"]).values()]
    assert len(index_sizes) > 1
    assert max(index_sizes) <= 32


def test_a_segment_rolls_when_a_relative_offset_would_not_fit(bench):
    bench.put(b"a")
    end = bench.log.state().end
    far = end._replace(active_base_offset=-(1 << 31) + 1)  # as if the segment had begun that far below
    header = read_header(bench.batch(b"b"))
    assert roll_is_due(far, header, bench.log.config, now_ms=0)
    assert not roll_is_due(end, header, bench.log.config, now_ms=0)


def test_rolling_by_hand_leaves_an_empty_segment_alone(bench):
    bench.log.roll_now()
    bench.put(b"a")
    bench.log.roll_now()
    bench.log.roll_now()
    assert bench.segments() == [0, 1]


@pytest.mark.parametrize("interval_bytes", [1, 150, 4096])
def test_the_indexes_are_those_that_kafka_s_rules_build_from_the_log(path, request, interval_bytes):
    bench = open_bench(path, request, segment_bytes=2000, index_interval_bytes=interval_bytes)
    for number in range(60):
        bench.put(*[b"v" * (number % 7)] * (1 + number % 5), timestamp_ms=1000 + (number * 37) % 90)
    bench.reopen()
    written = bench.contents()
    files = OsFiles()
    for base in bench.segments():
        rebuild_indexes(files, bench.folder, base, bench.log.segment_bytes(base), interval_bytes)
    assert written == bench.contents()
    assert len(bench.segments()) > 2


# Producers --------------------------------------------------------------------------------------------


def test_a_batch_sent_again_is_acknowledged_with_its_first_place(bench):
    first = bench.put(b"a", b"b", producer_id=1, sequence=0)
    bench.put(b"c", producer_id=1, sequence=2)
    again = bench.put(b"a", b"b", producer_id=1, sequence=0)
    assert again == first._replace(duplicate=True)
    assert bench.values() == [b"a", b"b", b"c"]


def test_a_gap_is_refused_and_says_what_was_due(bench):
    bench.put(b"a", producer_id=1, sequence=0)
    with pytest.raises(OutOfOrderSequenceError) as caught:
        bench.put(b"c", producer_id=1, sequence=2)
    assert (caught.value.expected, caught.value.received, caught.value.producer_id) == (1, 2, 1)
    assert bench.values() == [b"a"]


def test_a_named_producer_s_sequences_may_be_sparse_but_only_increase(bench):
    bench.put(b"a", producer_id=1, sequence=10, gaps=True)
    bench.put(b"b", producer_id=1, sequence=20, gaps=True)
    assert bench.put(b"b", producer_id=1, sequence=20, gaps=True).duplicate
    with pytest.raises(OutOfOrderSequenceError):
        bench.put(b"x", producer_id=1, sequence=15, gaps=True)
    assert bench.log.last_sequence(1) == 20


def test_an_older_epoch_is_fenced(bench):
    bench.put(b"a", producer_id=1, epoch=1, sequence=0)
    with pytest.raises(FencedError):
        bench.put(b"b", producer_id=1, epoch=0, sequence=1)
    assert bench.values() == [b"a"]


def test_taking_over_fences_the_holder_before_and_keeps_the_sequence(bench):
    bench.put(b"a", b"b", producer_id=1, sequence=0)
    assert bench.log.take_over(1, epoch=4) == 1
    with pytest.raises(FencedError):
        bench.put(b"c", producer_id=1, epoch=3, sequence=2)
    bench.put(b"c", producer_id=1, epoch=4, sequence=2)
    assert bench.log.take_over(2, epoch=0) is None


def test_producers_do_not_know_of_each_other(bench):
    bench.put(b"a", producer_id=1, sequence=0)
    bench.put(b"b", producer_id=2, sequence=0)
    assert bench.log.last_sequence(1) == bench.log.last_sequence(2) == 0
    assert bench.log.last_sequence(3) is None


# What is refused --------------------------------------------------------------------------------------


def test_a_batch_above_the_limit_is_refused_whole(path, request):
    bench = open_bench(path, request, max_message_bytes=100)
    with pytest.raises(RecordTooLargeError) as caught:
        bench.put(b"v" * 100)
    assert caught.value.max_bytes == 100
    bench.put(b"a")
    assert bench.values() == [b"a"]


@pytest.mark.parametrize(
    "damage", [lambda batch: batch[:-1], lambda batch: batch + b"x", lambda batch: batch * 2]
)
def test_bytes_that_are_not_one_batch_are_refused(bench, damage):
    with pytest.raises(CorruptBatchError):
        bench.log.append(bytearray(damage(bench.batch(b"a"))))
    assert bench.log.offsets().log_end_offset == 0


def test_a_deleted_topic_takes_no_appends_and_gives_no_records(bench):
    log = bench.log
    bench.put(b"a")
    reader = log.reader(0)
    bench.directory.delete_topic("t")
    for use in (lambda: log.append(bench.batch(b"b")), log.sync, log.offsets, reader.read, log.adopt):
        with pytest.raises(TopicNotFoundError):
            use()
    assert bench.directory.view.partitions.state(log.key) is None
    reader.close()


# A file system that refuses ---------------------------------------------------------------------------

WRITE_FAULTS = [
    ("pwrite", ".log", errno.ENOSPC, 0),
    ("pwrite", ".log", errno.EIO, 0),
    ("pwrite", ".log", errno.ENOSPC, 1),
    ("pwrite", ".log", errno.ENOSPC, 60),
    ("pwrite", ".log", errno.EIO, 80),
    ("pwrite", ".index", errno.ENOSPC, 0),
    ("pwrite", ".index", errno.ENOSPC, 5),
    ("pwrite", ".timeindex", errno.EIO, 0),
    ("pwrite", ".timeindex", errno.EIO, 7),
    ("pwrite", ".snapshot.tmp", errno.ENOSPC, 3),
    ("open", ".snapshot.tmp", errno.EMFILE, 0),
    ("open", ".log", errno.ENOSPC, 0),
    ("open", ".index", errno.EMFILE, 0),
    ("open", ".timeindex", errno.EMFILE, 0),
    ("size", ".log", errno.EIO, 0),
    ("truncate", ".index", errno.EIO, 0),
]


@pytest.mark.parametrize(("operation", "suffix", "error", "written"), WRITE_FAULTS)
@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_a_refused_write_appends_nothing_and_the_next_one_goes_on(
    path, request, operation, suffix, error, written, skip
):
    """At whatever append the fault strikes, each value is in the log exactly if it was acknowledged."""
    files = FaultyFiles(OsFiles())
    bench = open_bench(path, request, files=files, index_interval_bytes=1, segment_bytes=260)
    acknowledged: list[bytes] = []
    files.fail(operation, path=suffix, error=error, written=written, at=1 + skip)
    refusals = 0
    for number in range(12):
        value = b"value %d" % number + b"v" * 20
        while True:
            try:
                bench.put(value, producer_id=1, sequence=number)
                break
            except WriteFailedError:
                refusals += 1  # sent again, as a producer does: no sequence is lost
                assert bench.log.last_sequence(1) == (number - 1 if number else None)
            except StorageFailedError:
                refusals += 1  # the fault struck the sync, before it was tried
                assert bench.log.last_sequence(1) == number
        acknowledged.append(value)
    assert refusals <= 1
    assert bench.values() == acknowledged
    bench.crash()
    assert bench.open().reopen(without_view=True).values() == acknowledged
    assert bench.side_files() == []


def test_a_full_disk_is_named_in_the_error(path, request):
    files = FaultyFiles(OsFiles())
    bench = open_bench(path, request, files=files)
    files.fail("pwrite", path=".log", error=errno.ENOSPC)
    with pytest.raises(WriteFailedError, match="the disk is full"):
        bench.put(b"a")


def test_a_write_that_cannot_be_taken_back_is_of_unknown_outcome(path, request):
    files = FaultyFiles(OsFiles())
    bench = open_bench(path, request, files=files, index_interval_bytes=1)
    bench.put(b"a")
    files.fail("pwrite", path=".index", error=errno.EIO).fail("truncate", path=".log", error=errno.EIO)
    with pytest.raises(StorageFailedError):
        bench.put(b"b", producer_id=1, sequence=0)
    again = bench.put(b"b", producer_id=1, sequence=0)  # the batch was whole, and is known by its sequence
    assert again.duplicate
    assert bench.values() == [b"a", b"b"]


def test_a_smaller_batch_after_a_failed_roll_stays_in_the_old_segment_and_nothing_is_lost(path, request):
    """The roll left an empty segment behind, in the middle of what the old one goes on to hold."""
    files = FaultyFiles(OsFiles())
    bench = open_bench(path, request, files=files, segment_bytes=450)
    bench.put(b"a" * 200)
    files.fail("open", path=".timeindex", error=errno.EMFILE, at=1)
    with pytest.raises(WriteFailedError):
        bench.put(b"b" * 200)
    for value in (b"c", b"d"):
        bench.put(value)
    expected = [b"a" * 200, b"c", b"d"]
    assert bench.values() == expected
    bench.crash()
    assert bench.open().values() == expected
    assert bench.reopen(without_view=True).values() == expected
    bench.put(b"e" * 200)
    assert bench.values() == [*expected, b"e" * 200]
    assert bench.segments() == [0, 3]


# A failed sync ----------------------------------------------------------------------------------------


@pytest.fixture
def failed(path) -> Iterator[Workbench]:
    """A log of a synced and an unsynced record, whose last sync has failed."""
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    bench.put(b"synced")
    bench.put(b"unknown", sync=False)
    files.fail("fdatasync", error=errno.EIO)
    with pytest.raises(StorageFailedError):
        bench.log.sync()
    yield bench
    if not bench.directory.closed:
        bench.crash()


def test_after_a_failed_sync_the_partition_takes_no_writes(failed):
    with pytest.raises(StorageFailedError):
        failed.put(b"more")
    with pytest.raises(StorageFailedError):
        failed.log.take_over(1, epoch=0)


def test_a_failed_sync_is_never_tried_again(failed):
    syncs = failed.directory.files.calls["fdatasync"]
    for _ in range(3):
        with pytest.raises(StorageFailedError):
            failed.log.sync()
    with pytest.raises(StorageFailedError):
        failed.close()
    assert failed.directory.closed
    assert failed.directory.files.calls["fdatasync"] - syncs <= 1  # the journal's own, at closing


def test_a_failed_sync_is_never_tried_again_although_the_view_cannot_be_told(path, monkeypatch, caplog):
    """A full disk refuses both at once, and the next sync would be reported as done without the data."""
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    bench.put(b"unknown", sync=False)
    files.fail("fdatasync", error=errno.ENOSPC)
    syncs = files.calls["fdatasync"]

    def refused(*_: object) -> bool:
        raise WriteFailedError("the view could not be written")

    with monkeypatch.context() as patched:
        patched.setattr(bench.directory.view.partitions, "publish_sync", refused)
        for _ in range(2):
            with pytest.raises(StorageFailedError, match="disk sync of t-0 failed"):
                bench.log.sync()
    assert "other processes are not told yet" in caplog.text
    for _ in range(2):
        with pytest.raises(StorageFailedError, match="disk sync of t-0 failed"):
            bench.log.sync()
    assert bench.log.state().sync.failed
    assert files.calls["fdatasync"] == syncs + 1
    bench.crash()
    assert bench.open().values() == [b"unknown"]
    bench.close()


def test_after_a_failed_sync_readers_stop_at_what_is_synced(failed):
    assert failed.values() == [b"synced"]
    assert failed.log.offsets().high_watermark == 1


@pytest.mark.parametrize("durability", ["interval", "os"])
def test_after_a_failed_sync_readers_stop_there_with_weaker_durability_too(path, durability):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files, durability=durability)
    bench.put(b"synced")
    bench.put(b"unknown", sync=False)
    assert bench.values() == [b"synced", b"unknown"]
    files.fail("fdatasync", error=errno.EIO)
    with pytest.raises(StorageFailedError):
        bench.log.sync()
    assert bench.values() == [b"synced"]
    bench.crash()


def test_a_failed_sync_stops_the_writers_of_other_processes(failed, path):
    script = f"""
        from logbroker_storage.errors import StorageFailedError
        from logbroker_storage.partition_log import PartitionLog
        import logbroker_storage.data_directory as module
        module.reopen_failed = lambda log: None  # as a process that had opened before the sync failed
        from logbroker_storage.testing import Workbench
        bench = Workbench({path!r})
        try:
            bench.put(b"more")
        except StorageFailedError:
            print("refused", bench.values())
    """
    assert run_python(script) == "refused [b'synced']"


def test_opening_again_verifies_a_failed_partition_from_the_disk(failed):
    with pytest.raises(StorageFailedError):
        failed.close()
    failed.open()
    assert failed.values() == [b"synced", b"unknown"]
    failed.put(b"more")
    assert failed.reopen(without_view=True).values() == [b"synced", b"unknown", b"more"]


def test_verifying_cuts_what_does_not_read_back(failed):
    """The kernel may have dropped the pages that it could not write: the file holds something else there."""
    with pytest.raises(StorageFailedError):
        failed.close()
    LogBuilder(failed.folder).flip(batch=1)
    failed.open()
    assert failed.values() == [b"synced"]
    assert len(failed.side_files()) == 1
    assert failed.put(b"more").base_offset == 1


def test_descriptors_running_out_is_no_failed_sync(path, request):
    files = FaultyFiles(OsFiles())
    bench = open_bench(path, request, files=files)
    bench.put(b"a", sync=False)
    files.fail("open", path=".log", error=errno.EMFILE)
    with pytest.raises(StorageFailedError):
        bench.log.sync()
    bench.log.sync()
    assert bench.values() == [b"a"]


def test_a_segment_removed_before_its_sync_needs_none(path, request):
    bench = open_bench(path, request, durability="os", segment_bytes=100)
    for value in (b"a" * 50, b"b" * 50, b"c" * 50):
        bench.put(value, sync=False)
    delete_segments_below(bench.log, 2)
    assert bench.log.sync() == 3
    assert bench.values() == [b"c" * 50]


# Deleting ---------------------------------------------------------------------------------------------


def test_deleting_before_an_offset_moves_the_start_and_only_forward(bench):
    for value in (b"a", b"b", b"c"):
        bench.put(value)
    assert bench.log.delete_before(2) == 2
    assert bench.log.delete_before(1) == 2
    assert bench.values() == [b"c"]
    assert bench.log.delete_before(99) == 3
    assert bench.log.offsets().log_start_offset == 3


def test_segments_below_an_offset_go_whole(path, request):
    bench = open_bench(path, request, segment_bytes=100)
    for number in range(5):
        bench.put(b"%d" % number * 50)
    assert delete_segments_below(bench.log, 3) == [0, 1, 2]
    assert bench.values() == [b"3" * 50, b"4" * 50]
    assert delete_segments_below(bench.log, 99) == [3]
    assert bench.segments() == [4]
    assert bench.values() == [b"4" * 50]


class Removals(OsFiles):
    """Notes what is removed, and when directories are synced."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.calls.append(os.path.basename(path))

    def fsync_directory(self, path: str) -> None:
        super().fsync_directory(path)
        self.calls.append("sync")


def test_a_segment_is_gone_for_good_before_its_indexes_and_the_next_segment_go(path, request):
    """After a power cut an older segment before a gap would pass for the log's end."""
    files = Removals()
    bench = open_bench(path, request, segment_bytes=100, files=files)
    for number in range(3):
        bench.put(b"%d" % number * 50)
    files.calls.clear()
    delete_segments_below(bench.log, 2)
    expected = ["sync"]  # of the snapshots' names
    for base in range(2):
        name = segment_name(base)
        expected += [f"{name}.log", "sync", f"{name}.index", f"{name}.timeindex", f"{name}.checksums"]
    assert files.calls == expected


def test_the_active_segment_is_never_removed_even_beside_what_a_failed_roll_left(path, request):
    bench = open_bench(path, request)
    bench.put(b"a", b"b")
    LogBuilder(bench.folder, base_offset=2).roll()  # an empty segment that nobody published
    bench.put(b"c")
    assert delete_segments_below(bench.log, 3) == []
    assert bench.values() == [b"a", b"b", b"c"]


# Descriptors ------------------------------------------------------------------------------------------


def open_descriptors() -> int:
    gc.collect()  # what others left is not to go meanwhile
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def test_logs_that_were_not_used_lately_close_their_descriptors(path, request):
    bench = open_bench(path, request, partitions=20)
    bench.directory._descriptors.logs_limit = 3
    before = open_descriptors()
    for _ in range(2):
        for number in range(20):
            bench.put(b"v", partition=number)
    assert open_descriptors() - before <= 6 * 4
    assert [bench.values(partition=number) for number in range(20)] == [[b"v"] * 2] * 20


def test_readers_above_their_share_close_after_each_read(path, request):
    bench = open_bench(path, request, segment_bytes=150)
    bench.directory._descriptors.readers_limit = 2
    for number in range(6):
        bench.put(b"%d" % number * 40)
    before = open_descriptors()
    readers = [bench.log.reader(0) for _ in range(10)]
    read = [[reader.read(1)[0].header.base_offset for _ in range(6)] for reader in readers]
    assert read == [list(range(6))] * 10
    assert open_descriptors() - before <= 2
    for reader in readers:
        reader.close()
    assert not bench.directory._descriptors._readers


def test_readers_that_are_dropped_give_their_descriptors_back(path, request):
    """As those of consumers that nobody has closed."""
    bench = open_bench(path, request)
    bench.put(b"a")
    before = open_descriptors()
    for _ in range(50):
        assert bench.log.reader(0).read()
    assert open_descriptors() == before
    assert not bench.directory._descriptors._readers


def test_a_log_in_use_keeps_its_descriptors(path, request):
    bench = open_bench(path, request, partitions=3)
    descriptors: Descriptors = bench.directory._descriptors
    descriptors.logs_limit = 1
    first: PartitionLog = bench.partition(0)
    bench.put(b"v", partition=0)
    with first.append_lock, first.sync_lock:
        bench.put(b"v", partition=1)
        assert not first.release_files()
    assert first.release_files()


def run_python(script: str, *arguments: str, **options) -> str:
    """What *script* prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_300_partitions_work_under_a_limit_of_256_descriptors(path):
    script = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        from logbroker_storage.testing import Workbench
        bench = Workbench({path!r}, partitions=300, durability="os")
        for round in range(2):
            for number in range(300):
                bench.put(b"%d" % number, partition=number, sync=round == 1)
        readers = [bench.partition(number).reader(0) for number in range(300)]
        for number, reader in enumerate(readers):
            assert sum(batch.header.record_count for batch in reader.read()) == 2, number
        for reader in readers:
            reader.close()
        bench.close()
        print("done")
    """
    assert run_python(script) == "done"


# Other processes --------------------------------------------------------------------------------------


def test_two_processes_append_to_one_partition_in_turns(path, request):
    bench = open_bench(path, request, segment_bytes=600, index_interval_bytes=100)
    script = f"""
        import sys
        from logbroker_storage.testing import Workbench
        bench = Workbench({path!r})
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(150):
            bench.put(b"theirs %d" % number, producer_id=2, sequence=number, sync=number % 3 == 0)
        bench.close()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        child.stdin.write("go\n")
        child.stdin.flush()
        for number in range(150):
            bench.put(b"ours %d" % number, producer_id=1, sequence=number, sync=number % 4 == 0)
    assert child.returncode == 0
    bench.log.sync()
    values = bench.values()
    assert [value for value in values if value.startswith(b"ours")] == [b"ours %d" % n for n in range(150)]
    assert [value for value in values if value.startswith(b"theirs")] == [
        b"theirs %d" % n for n in range(150)
    ]
    assert [record.offset for record in bench.records()] == list(range(300))
    assert (bench.log.last_sequence(1), bench.log.last_sequence(2)) == (149, 149)
    assert bench.reopen(without_view=True).values() == values


def test_a_changed_configuration_reaches_an_open_log(path, request):
    bench = open_bench(path, request)
    bench.put(b"a" * 100)
    bench.directory.alter_topic("t", {"max.message.bytes": 100})
    with pytest.raises(RecordTooLargeError):
        bench.put(b"b" * 100)
    assert bench.log.config == LogConfig.parse({"max.message.bytes": 100})


@pytest.mark.parametrize(("durability", "expected"), [("fsync", 1), ("os", 0), ("interval", 0)])
def test_the_disk_begins_with_what_somebody_will_wait_for(path, monkeypatch, durability, expected):
    begun = []
    monkeypatch.setattr(OsFiles, "start_writeback", lambda *args: begun.append(args[2:]))
    bench = Workbench(path, durability=durability)
    begun.clear()  # the journal's
    appended = bench.log.append(bench.batch(b"v"))
    assert begun == [(0, len(bench.batch(b"v")))] * expected
    bench.log.wait_durable(appended.last_offset + 1)
    bench.close()
