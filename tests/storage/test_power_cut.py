"""What power cuts have taught, one by one. Every state that one may leave is tried by ``tests.proof.crash_states``."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from logbroker_storage.files import OsFiles
from logbroker_storage.segment_files import TIME_INDEX_SUFFIX, segment_name
from logbroker_storage.testing import RecordingFiles, Workbench
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_storage.testing.workbench import crash
from logbroker_storage.time_index import ENTRY_BYTES

TIME_INDEX = segment_name(0) + TIME_INDEX_SUFFIX


@pytest.mark.parametrize("rolls_since_the_recovery_point", [0, 1, 2, 6])
def test_a_producer_is_remembered_whose_records_retention_has_removed(
    tmp_path: Path, rolls_since_the_recovery_point: int
) -> None:
    """Only snapshots know of it then, so one that says enough is on the disk before the segments go."""
    root = tmp_path / "recorded"
    root.mkdir()
    files = RecordingFiles(OsFiles(), str(root))
    bench = Workbench(str(root / "data"), files=files, retention_bytes=10_000, retention_ms=-1)
    bench.put(b"once", producer_id=7, sequence=0)
    for number in range(8):
        if number == 8 - rolls_since_the_recovery_point:
            bench.directory.checkpoint()
        bench.log.roll_now()
        bench.put(b"x" * 4_000, producer_id=8, sequence=number)
    bench.directory.maintenance.clean()
    assert bench.records()[0].offset > 0
    bench.log.roll_now()
    bench.put(b"x", producer_id=8, sequence=8)  # syncs the directory: the segments are gone for good
    target = tmp_path / "cut"
    target.mkdir()
    files.export_after_power_cut(str(target))
    bench.close()
    recovered = Workbench(str(target / "data"))
    assert recovered.log.last_sequence(7) == 0
    assert recovered.log.last_sequence(8) == 8
    recovered.close()


def test_a_lost_tail_of_the_time_index_misleads_nobody(tmp_path: Path, rng: random.Random) -> None:
    """The indexes of the active segment are not synced with it: each may miss entries below the recovery point."""
    bench = Workbench(str(tmp_path / "data"), index_interval_bytes=200)
    # Rising, so that the index has entries: it takes one only for a timestamp above all before it.
    timestamps = [START_MS + 10 * number + rng.randrange(400) for number in range(60)]
    for timestamp_ms in timestamps:
        bench.put(b"x", timestamp_ms=timestamp_ms)
    bench.directory.checkpoint()
    crash(bench.directory)
    entries = os.path.getsize(f"{bench.folder}/{TIME_INDEX}") // ENTRY_BYTES
    assert entries > 1
    for kept in range(entries + 1):
        copy = shutil.copytree(bench.path, tmp_path / f"kept-{kept}")
        shutil.rmtree(copy / "view")
        os.truncate(copy / "logs" / "t-0" / TIME_INDEX, kept * ENTRY_BYTES)
        recovered = Workbench(str(copy))
        for wanted_ms in range(START_MS, START_MS + 1000, 10):
            first = next((offset for offset, ms in enumerate(timestamps) if ms >= wanted_ms), None)
            assert recovered.log.offset_for_timestamp(wanted_ms) == first, (kept, wanted_ms - START_MS)
        recovered.close()
