"""Power cuts at random moments of a random workload: what was acknowledged is there, and nothing else.

The files are recorded as they are written and synced; a power cut leaves what was synced, and any part of
the rest. Each state is opened by the real recovery.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.events import OffsetEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.segment_files import TIME_INDEX_SUFFIX, segment_name
from logbroker_storage.testing import RecordingFiles, Workbench
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_storage.testing.workbench import TOPIC, crash
from logbroker_storage.time_index import ENTRY_BYTES

STEPS = 60
CUTS = 25
GROUP = "g"
TIME_INDEX = segment_name(0) + TIME_INDEX_SUFFIX


class Workload:
    """A random sequence of appends, commits, rolls and checkpoints, and what it was promised so far."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.rng = rng
        root.mkdir()
        self.files = RecordingFiles(OsFiles(), str(root))
        self.bench = Workbench(
            str(root / "data"), files=self.files, segment_bytes=rng.choice([400, 1500, 1 << 20])
        )
        self.written: list[bytes] = []
        self.acknowledged = 0  # of ``written``, from the start
        self.committed = 0
        self.sequence = 0

    def step(self) -> None:
        self.rng.choices(
            [self.append, self.sync, self.commit, self.roll, self.checkpoint, self.new_topic],
            weights=[50, 20, 10, 5, 5, 2],
        )[0]()

    def append(self) -> None:
        count = self.rng.randint(1, 4)
        values = [b"%06d" % (len(self.written) + n) * self.rng.randint(1, 30) for n in range(count)]
        self.bench.put(*values, sync=False, producer_id=7, sequence=self.sequence)
        self.sequence += count
        self.written += values

    def sync(self) -> None:
        self.bench.log.sync()
        self.acknowledged = len(self.written)

    def commit(self) -> None:
        self.sync()
        offset = self.rng.randint(self.committed, self.acknowledged)
        self.bench.directory.journal.record([OffsetEvent(GROUP, TOPIC, 0, offset, "", 0)])
        self.committed = offset

    def roll(self) -> None:
        self.bench.log.roll_now()

    def checkpoint(self) -> None:
        self.bench.directory.checkpoint()

    def new_topic(self) -> None:
        name = f"topic-{len(self.bench.directory.topics())}"
        self.bench.directory.create_topic(name, 1, self.bench.log.config)


def state_of(directory: DataDirectory) -> tuple[object, ...]:
    log = directory.log(TOPIC, 0)
    return (
        directory.topics(),
        log.offsets(),
        directory.committed(GROUP, TOPIC, 0),
        log.last_sequence(7),
    )


@pytest.mark.parametrize("repetition", range(6))
@pytest.mark.parametrize("survivors", ["what was synced", "any part of the rest"])
def test_a_power_cut_takes_back_nothing_that_was_acknowledged(
    tmp_path: Path,
    rng: random.Random,
    survivors: str,
    repetition: int,
) -> None:
    work = Workload(tmp_path / "recorded", rng)
    cuts = sorted(rng.sample(range(STEPS), CUTS // 5))
    for step in range(STEPS):
        work.step()
        if step in cuts:
            target = tmp_path / f"cut-{step}"
            target.mkdir()
            work.files.export_after_power_cut(str(target), rng if survivors.startswith("any") else None)
            check_recovery(target / "data", work)
    work.bench.close()


def check_recovery(path: Path, work: Workload) -> None:
    bench = Workbench(str(path))
    try:
        values = bench.values()
        assert values[: work.acknowledged] == work.written[: work.acknowledged]
        assert values == work.written[: len(values)]  # whole batches, in order, nothing invented
        committed = bench.directory.committed(GROUP, TOPIC, 0)
        assert (committed.offset if committed else 0) == work.committed
        assert work.committed <= bench.log.offsets().log_end_offset
        last_sequence = bench.log.last_sequence(7)
        assert last_sequence == (len(values) - 1 if values else None)
        assert set(work.bench.directory.topics()) <= set(bench.directory.topics())
        first = state_of(bench.directory)
    finally:
        crash(bench.directory)
    bench.reopen(without_view=True)  # a second recovery changes nothing
    assert state_of(bench.directory) == first
    assert bench.values() == values
    bench.put(b"goes on", producer_id=7, sequence=len(values))
    bench.close()


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
    timestamps = [START_MS + rng.randrange(1000) for _ in range(60)]
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
