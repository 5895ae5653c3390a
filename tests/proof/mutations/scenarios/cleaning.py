"""Retention and compaction: files go only when what replaces them is on the disk."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
from pathlib import Path
from typing import Any

from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import ControlType, NewRecord, encode_batch
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.segment_replacement import finish_replacements
from logbroker_storage.testing import FaultyFiles, MemoryFiles, ProcessKilled, Workbench
from logbroker_storage.testing.workbench import crash
from logbroker_tools.findings import Severity
from logbroker_tools.layout import find
from logbroker_tools.verify import verify

from .logs import committed_values
from .machine import Machine, WatchedFiles, died_at_each_operation, names

SURVIVALS = 12  # states that are made of each moment
COMPACTED: dict[str, Any] = {
    "cleanup_policy": "compact",
    "segment_bytes": 400,
    "min_cleanable_dirty_ratio": 0,
    "index_interval_bytes": 0,
}


def _fill(bench: Workbench) -> dict[bytes, bytes]:
    """Several segments of superseded records; the latest value of each key."""
    latest: dict[bytes, bytes] = {}
    for number in range(16):
        key, value = b"k%d" % (number % 4), b"%03d" % number * 15
        bench.log.append(encode_batch([NewRecord(value, key, timestamp_ms=1_000_000 + number)]))
        latest[key] = value
    bench.log.roll_now()
    bench.log.sync()
    bench.directory.alter_topic("t", {"segment.bytes": 2000})  # so that several of them become one
    bench.directory.checkpoint()
    return latest


def _latest(bench: Workbench) -> dict[bytes, bytes]:
    return {record.key: record.value for record in bench.records() if record.key and record.value}


def compacted_records(folder: Path) -> None:
    """Compaction keeps the latest value of each key, whenever the power is cut and whatever of it survives."""
    machine = Machine(folder)
    bench = machine.bench(**COMPACTED)
    latest = _fill(bench)
    size = bench.log.size_bytes()

    for path, _ in machine.states_during(bench.directory.maintenance.clean, seeds=1):
        after = Workbench(path)
        offsets = [record.offset for record in after.records()]
        assert _latest(after) == latest
        assert offsets == sorted(set(offsets))
        crash(after.directory)
    assert bench.log.size_bytes() < size, "nothing was compacted"
    after = machine.cut()
    assert after.log.size_bytes() < size, "what was compacted came back"
    after.close()


def replaced_files(folder: Path) -> None:
    """Whatever changes of names survive a power cut in a compaction, the next process knows what it looks at."""
    machine = Machine(folder)
    bench = machine.bench(**COMPACTED)
    _fill(bench)
    before = _files(machine.state())
    found: list[dict[str, bytes]] = []

    def look(operation: str, path: str) -> None:
        if operation in ("rename", "unlink", "fsync_directory") and "/t-0" in path:
            found.extend(_files(machine.state(random.Random(f"{len(found)}"))) for _ in range(4 * SURVIVALS))

    machine.during(bench.directory.maintenance.clean, look)
    after = _files(machine.state())
    lists = {
        name: content for files in found for name, content in files.items() if name.endswith(".replaces")
    }
    replaced = {name: content.decode().split() for name, content in lists.items() if content.strip(b"\0")}
    assert any(replaced.values()), "nothing was replaced"
    for files in found:
        for name, others in replaced.items():
            log = name.replace(".replaces", ".log")
            is_new = files.get(log) == after[log] != before[log]
            gone = [base for base in others if f"{int(base):020d}.log" not in files]
            if name in files and f"{log}.cleaned" not in files:
                assert is_new, "the list counts, and the new log is not in place"
            assert is_new or not gone, "segments are gone, and the new log is not in place"
            if is_new and name not in files:
                assert len(gone) == len(others), "replaced segments came back, and no list names them"
    for name in replaced:
        for suffix in (".log", ".index", ".timeindex"):
            file = name.replace(".replaces", suffix)
            assert after[file] == machine.files.read_file(f"{bench.folder}/{file}"), (
                f"{suffix} is not on the disk"
            )


def _files(state: MemoryFiles) -> dict[str, bytes]:
    """What lies in the folder of partition 0."""
    folder = "/data/logs/t-0"
    return {name: state.read_file(f"{folder}/{name}") for name in state.listdir(folder)}


def a_list_that_counts_no_more(folder: Path) -> None:
    """Whatever survives a power cut while a replacement is cleared up that was not put in place: it never counts."""
    disk = MemoryFiles()
    disk.mkdir("/t-0")
    log, index, replaces = (f"/t-0/{0:020d}{suffix}" for suffix in (".log", ".index", ".replaces"))
    for path in (log, f"{log}.cleaned", f"{index}.cleaned"):
        disk.replace_file(path, b"content")
    disk.replace_file(replaces, b"7\n")
    files = WatchedFiles(disk)

    def look(operation: str, path: str) -> None:
        for number in range(SURVIVALS):
            state = disk.after_power_cut(random.Random(f"{operation} {path} {number}"))
            assert not state.exists(replaces) or state.exists(f"{log}.cleaned")

    files.before = look
    finish_replacements(files, "/t-0")
    look("end", "")
    assert disk.listdir("/t-0") == [log.rpartition("/")[2]]


def removed_segments(folder: Path) -> None:
    """Whatever changes of names survive a power cut in removing segments, those that are left follow each other."""
    machine = Machine(folder)
    bench = machine.bench(segment_bytes=300)
    for number in range(8):
        bench.put(b"%d" % number * 60)
    bases = [f"{base:020d}.log" for base in bench.segments()]
    found: list[list[str]] = []

    def look(operation: str, path: str) -> None:
        for number in range(SURVIVALS):
            names = _files(machine.state(random.Random(f"{operation} {path} {number}")))
            found.append(sorted(name for name in names if name.endswith(".log")))

    machine.during(lambda: delete_segments_below(bench.log, 6), look)
    assert found[-1] == bases[-1:]
    for left in found:
        assert left == bases[-len(left) :], "a segment is gone between others"


def producers_of_removed_segments(folder: Path) -> None:
    """Where a segment is gone after a power cut, a snapshot remembers the producers that wrote only there."""
    machine = Machine(folder)
    bench = machine.bench(segment_bytes=300, durability="os")
    for number in range(8):
        bench.put(
            b"%d" % number * 60, sync=False, producer_id=7 if not number else -1, sequence=-bool(number)
        )
    oldest, snapshot = f"{0:020d}.log", f"{bench.segments()[-1]:020d}.snapshot"
    content = machine.files.read_file(f"{bench.folder}/{snapshot}")
    found: list[dict[str, bytes]] = []

    def look(operation: str, path: str) -> None:
        seeds = [f"{operation} {path} {number}" for number in range(3 * SURVIVALS)]
        found.extend(_files(machine.state(random.Random(seed))) for seed in seeds)

    machine.during(lambda: delete_segments_below(bench.log, 6), look)
    gone = [files for files in found if oldest not in files]
    assert gone
    for files in gone:
        assert files.get(snapshot) == content, "nobody remembers the producer"


def producers_of_compacted_records(folder: Path) -> None:
    """A power cut behind a compaction leaves something of every producer, though its last batch was not synced."""
    machine = Machine(folder)
    bench = machine.bench(**COMPACTED)
    log = bench.log
    log.append(encode_batch([NewRecord(b"0" * 300, b"k")], producer_id=7, producer_epoch=0, base_sequence=0))
    for number in range(1, 4):
        log.append(encode_batch([NewRecord(b"%d" % number * 300, b"k")]))
    log.sync()
    log.append(encode_batch([NewRecord(b"last", b"k")], producer_id=7, producer_epoch=0, base_sequence=1))
    size = log.size_bytes()
    _clean(bench)
    assert log.size_bytes() < size, "nothing was compacted"
    after = machine.cut()
    assert 7 in after.log.view.partitions.producers(after.log.key), "nobody remembers the producer"
    after.close()


def deaths_in_compacting(folder: Path) -> None:
    """A process that dies while it compacts leaves the latest value of each key; and so does who dies in its place."""
    latest: dict[bytes, bytes] = {}

    def prepare(path: str) -> None:
        bench = Workbench(path, **COMPACTED)
        latest.update(_fill(bench))
        bench.close()

    for path, operation, _ in died_at_each_operation(folder, prepare, _clean):
        bench = Workbench(path)
        assert _latest(bench) == latest, f"died at operation {operation}"
        _clean(bench)
        assert _latest(bench) == latest, f"died at operation {operation}"
        crash(bench.directory)


def deaths_over_what_a_compaction_left(folder: Path) -> None:
    """A process that dies while it clears up behind one that died in compacting loses nothing, and mixes nothing up."""
    watched = WatchedFiles(OsFiles())
    bench = Workbench(str(folder / "left"), files=watched, **COMPACTED)
    latest = _fill(bench)

    def die(operation: str, name: str) -> None:
        if operation == "rename" and name.endswith(".log"):
            raise ProcessKilled

    watched.before = die
    with contextlib.suppress(ProcessKilled):
        _clean(bench)
    watched.before = None
    crash(bench.directory)
    assert any(name.endswith(".replaces") for name in names(bench.folder))

    left, died = bench.path, True
    for operation in itertools.count(1):
        path = shutil.copytree(left, folder / f"death-{operation}")
        files = FaultyFiles(OsFiles()).kill(at=operation)
        try:
            finish_replacements(files, f"{path}/logs/t-0")
            died = False
        except ProcessKilled:
            pass
        bench = Workbench(str(path))
        wrong = [finding for finding in verify(find(bench.folder)) if finding.severity is Severity.ERROR]
        assert not wrong, f"died at operation {operation}: {wrong}"
        _clean(bench)
        assert _latest(bench) == latest, f"died at operation {operation}"
        crash(bench.directory)
        if not died:
            return


def _clean(bench: Workbench) -> None:
    assert bench.directory.maintenance.clean()


def compacted_transactions(folder: Path) -> None:
    """What was aborted stays so behind a compaction, whenever the power is cut."""
    machine = Machine(folder)
    bench = machine.bench(**COMPACTED)
    for number in range(8):
        batch = encode_batch(
            [NewRecord(b"aborted" * 9, b"k")],
            producer_id=5,
            producer_epoch=number,
            base_sequence=0,
            transactional=True,
        )
        bench.log.append(batch)
        bench.log.append_marker(ControlType.ABORT, producer_id=5, marker_epoch=number + 1)
        bench.log.append(encode_batch([NewRecord(b"%03d" % number * 15, b"k")]))
    bench.log.roll_now()
    bench.log.sync()
    bench.directory.checkpoint()
    for path, _ in machine.states_during(bench.directory.maintenance.clean, seeds=1):
        after = Workbench(path)
        assert b"aborted" * 9 not in committed_values(after)
        crash(after.directory)


def deaths_in_removing_segments(folder: Path) -> None:
    """A process that dies while it removes old segments leaves nothing that a reader misses."""

    def prepare(path: str) -> None:
        bench = Workbench(path, segment_bytes=300)
        for number in range(6):
            bench.put(b"%d" % number * 60)
        bench.close()

    for path, _, _ in died_at_each_operation(
        folder, prepare, lambda bench: delete_segments_below(bench.log, 5)
    ):
        bench = Workbench(path)
        found = bench.values()
        assert found == [b"%d" % number * 60 for number in range(6 - len(found), 6)]
        crash(bench.directory)
