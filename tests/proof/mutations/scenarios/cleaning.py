"""Retention and compaction: files go only when what replaces them is on the disk."""

from __future__ import annotations

import contextlib
from pathlib import Path

from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import ControlType, NewRecord, encode_batch
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.testing import ProcessKilled, Workbench
from logbroker_storage.testing.workbench import crash

from .logs import committed_values
from .machine import Machine, WatchedFiles, died_at_each_operation, names

COMPACTED = {
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

    for path, _ in machine.states_during(bench.directory.maintenance.clean, seeds=3):
        after = Workbench(path)
        offsets = [record.offset for record in after.records()]
        assert _latest(after) == latest
        assert offsets == sorted(set(offsets))
        crash(after.directory)
    assert bench.log.size_bytes() < size, "nothing was compacted"
    after = machine.cut()
    assert after.log.size_bytes() < size, "what was compacted came back"
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
    """A process that dies while it clears up behind one that died in compacting loses nothing either."""
    latest: dict[bytes, bytes] = {}

    def prepare(path: str) -> None:
        files = WatchedFiles(OsFiles())
        bench = Workbench(path, files=files, **COMPACTED)
        latest.update(_fill(bench))

        def die(operation: str, name: str) -> None:
            if operation == "rename" and name.endswith(".log"):
                raise ProcessKilled

        files.before = die
        with contextlib.suppress(ProcessKilled):
            _clean(bench)
        files.before = None
        crash(bench.directory)
        assert any(name.endswith(".replaces") for name in names(bench.folder))

    for path, operation, _ in died_at_each_operation(folder, prepare, _clean):
        bench = Workbench(path)
        _clean(bench)
        assert _latest(bench) == latest, f"died at operation {operation}"
        crash(bench.directory)


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



