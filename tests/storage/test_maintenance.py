"""The background work: due syncs, recovery points, and that one failure does not stop the rest."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from logbroker_storage.checkpoints import parse_partition_offsets
from logbroker_storage.errors import StorageFailedError
from logbroker_storage.files import OsFiles
from logbroker_storage.maintenance import (
    CHECKPOINT_INTERVAL_S,
    CLEANING_INTERVAL_S,
    IDLE_INTERVAL_S,
    Maintenance,
)
from logbroker_storage.testing import FaultyFiles, ManualClock, Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    """On a clock that stands still, so that the thread of its own finds nothing due."""
    bench = Workbench(
        str(tmp_path / "data"),
        files=FaultyFiles(OsFiles()),
        clock=ManualClock(),
        partitions=3,
        durability="interval",
        durability_interval_ms=200,
    )
    yield bench
    bench.crash()


def pass_ms(bench: Workbench, ms: int) -> float:
    """Let time pass and do what is due then, in this thread; the pause until the next look."""
    bench.directory.maintenance.close()  # the thread; what it remembers stays
    assert isinstance(bench.clock, ManualClock)
    bench.clock.advance(ms=ms)
    return bench.directory.maintenance._step(bench.clock.monotonic())


def points(bench: Workbench) -> dict[tuple[str, int], int]:
    entries = parse_partition_offsets(Path(bench.directory.layout.recovery_points).read_bytes())
    return {(entry.topic, entry.partition): entry.offset for entry in entries}


def test_a_log_is_synced_when_its_interval_has_passed_since_the_first_append(bench):
    bench.put(b"a", sync=False)
    pass_ms(bench, 199)
    assert bench.log.offsets().synced_offset == 0
    bench.put(b"b", sync=False)
    pass_ms(bench, 1)
    assert bench.log.offsets().synced_offset == 2


def test_a_log_that_nobody_wrote_to_is_not_synced(bench):
    before = bench.directory.files.calls["fdatasync"]
    bench.put(b"a")
    assert bench.directory.files.calls["fdatasync"] == before + 1
    for _ in range(3):
        pass_ms(bench, 500)
    assert bench.directory.files.calls["fdatasync"] == before + 1


def test_an_append_behind_a_sync_is_due_an_interval_later(bench):
    bench.put(b"a", sync=False)
    pass_ms(bench, 200)
    bench.put(b"b", sync=False)
    pass_ms(bench, 199)
    assert bench.log.offsets().synced_offset == 1
    pass_ms(bench, 1)
    assert bench.log.offsets().synced_offset == 2


def test_one_log_that_cannot_be_synced_does_not_keep_the_others_waiting(bench):
    for number in range(3):
        bench.put(b"a", partition=number, sync=False)
    bench.directory.files.fail("fdatasync", error=errno.EIO)
    pass_ms(bench, 200)
    synced = [bench.partition(number).offsets().synced_offset for number in range(3)]
    assert sorted(synced) == [0, 1, 1]
    pass_ms(bench, 1000)
    with pytest.raises(StorageFailedError):
        bench.put(b"b", partition=synced.index(0))


def test_recovery_points_are_written_every_few_seconds_in_which_something_was_appended(bench):
    bench.put(b"a", b"b")
    pass_ms(bench, int(CHECKPOINT_INTERVAL_S * 1000))
    assert points(bench)["t", 0] == 2
    assert points(bench)["__journal", 0] > 0
    written = bench.directory.files.calls["rename"]
    pass_ms(bench, int(CHECKPOINT_INTERVAL_S * 1000))
    assert bench.directory.files.calls["rename"] == written
    bench.put(b"c", sync=False)
    pass_ms(bench, int(CHECKPOINT_INTERVAL_S * 1000))
    assert points(bench)["t", 0] == 3  # its sync was due, too


def test_a_sync_that_could_not_be_tried_is_still_due(bench):
    """A limit of descriptors, say: nothing is lost yet, and the interval's promise holds once it is raised."""
    bench.put(b"a", sync=False)
    bench.log.sync_lock.close()
    bench.directory.files.fail("open", error=errno.EMFILE, path=".log")
    pass_ms(bench, 200)
    assert bench.log.offsets().synced_offset == 0
    pass_ms(bench, 1)
    assert bench.log.offsets().synced_offset == 1


def test_recovery_points_that_cannot_be_written_do_not_keep_the_cleaner_from_making_room(bench):
    bench.directory.alter_topic(
        "t", {"segment.bytes": 1000, "retention.bytes": 1000, "file.delete.delay.ms": 0}
    )
    for _ in range(10):
        bench.put(bytes(900))
    done = []
    bench.directory.maintenance.add_task("last", lambda: done.append("last"))
    bench.directory.files.fail("rename", error=errno.ENOSPC, path="checkpoint", forever=True)
    before = bench.log.size_bytes()
    pass_ms(bench, int(CLEANING_INTERVAL_S * 1000))
    assert bench.directory.files.hits
    assert bench.log.size_bytes() < before / 2
    assert done == ["last"]


def test_a_task_that_fails_stops_neither_the_thread_nor_the_others(bench, caplog):
    done = []

    def fail() -> None:
        raise ZeroDivisionError("of a mistake")

    bench.directory.maintenance.add_task("first", fail)
    bench.directory.maintenance.add_task("second", lambda: done.append("second"))
    pass_ms(bench, 0)
    assert done == ["second"]
    assert "of a mistake" in caplog.text


def test_a_task_that_is_removed_is_called_no_more(bench):
    done = []
    for name in ("first", "second"):
        bench.directory.maintenance.add_task(name, lambda name=name: done.append(name))
    bench.directory.maintenance.remove_task("first")
    bench.directory.maintenance.remove_task("of nobody")
    pass_ms(bench, 0)
    assert done == ["second"]


def test_the_thread_looks_again_when_the_shortest_interval_has_passed(bench):
    bench.put(b"a", sync=False)
    assert pass_ms(bench, 1) == 0.2
    bench.directory.alter_topic("t", {"durability": "os"})
    assert pass_ms(bench, 1) == IDLE_INTERVAL_S


def test_the_thread_ends_with_the_directory(tmp_path):
    bench = Workbench(str(tmp_path / "data"))
    assert isinstance(bench.directory.maintenance, Maintenance)
    thread = bench.directory.maintenance._thread
    assert thread.is_alive()
    bench.close()
    assert not thread.is_alive()
    assert thread not in threading.enumerate()


READING = """
import sys
from logbroker_storage.view import View
with View(sys.argv[1]).read():
    print("reading", flush=True)
    sys.stdin.read()
"""


def test_the_pages_that_a_killed_reader_pins_are_used_again(bench):
    """Else the view grows with every write, up to its end, when a process was killed in the middle of a read."""
    view = bench.directory.layout.view
    with subprocess.Popen(
        [sys.executable, "-c", READING, view], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout.readline() == b"reading\n"
        reader.kill()

    def bytes_after_writing() -> int:
        for number in range(300):
            bench.directory.view.volatile.update(b"key", lambda _, number=number: b"%d" % number * 100)
        return os.stat(f"{view}/data.mdb").st_size

    pinned = bytes_after_writing()
    assert bytes_after_writing() > pinned
    pass_ms(bench, int(IDLE_INTERVAL_S * 1000))
    freed = bytes_after_writing()
    assert bytes_after_writing() == freed
