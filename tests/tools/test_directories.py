"""Directories in whatever state the broker leaves them, also while it runs, are sound to ``verify``."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import Compression, NewRecord, encode_batch
from logbroker_storage.testing import LogBuilder, ManualClock
from logbroker_tools.findings import Finding, Severity
from logbroker_tools.layout import find
from logbroker_tools.verify import verify

START_MS = 1_700_000_000_000
CONFIG = {
    "segment.bytes": 2000,
    "index.interval.bytes": 200,
    "cleanup.policy": "compact,delete",
    "retention.ms": 90_000_000,
    "min.cleanable.dirty.ratio": 0.01,
    "delete.retention.ms": 1000,
}


def errors(path: Path) -> list[Finding]:
    return [finding for finding in verify(find(str(path))) if finding.severity is Severity.ERROR]


class Workload:
    """Appends, cleanings, deletions, reopenings in random order, on a manual clock."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.rng = rng
        self.clock = ManualClock(START_MS)
        self.sequences: dict[int, int] = {}
        self.directory = DataDirectory.open(str(path), clock=self.clock)
        self.directory.create_topic("t", 2, LogConfig.parse(CONFIG))

    def log(self) -> PartitionLog:
        return self.directory.log("t", self.rng.randrange(2))

    def append(self) -> None:
        log, rng = self.log(), self.rng
        for _ in range(rng.randrange(1, 12)):
            count = rng.randrange(1, 6)
            now_ms = self.clock.now_ms() - rng.choice([0, 0, 5000])
            records = [
                NewRecord(rng.choice([None, b"v" * rng.randrange(90)]), b"k%d" % rng.randrange(9), (), now_ms)
                for _ in range(count)
            ]
            producer_id = log.partition * 10 + rng.randrange(3)
            sequence = self.sequences.get(producer_id, 0)
            self.sequences[producer_id] = sequence + count
            log.append(
                encode_batch(
                    records,
                    compression=rng.choice(list(Compression)),
                    producer_id=producer_id,
                    producer_epoch=0,
                    base_sequence=sequence,
                )
            )
            self.clock.advance(ms=rng.randrange(3000))
        log.sync()

    def clean(self) -> None:
        self.clock.advance(ms=self.rng.choice([10_000, 4_000_000]))
        assert self.directory.maintenance.clean()

    def delete_before(self) -> None:
        log = self.log()
        offsets = log.offsets()
        log.delete_before(self.rng.randint(offsets.log_start_offset, offsets.high_watermark))

    def reopen(self) -> None:
        self.directory.close()
        if self.rng.random() < 0.5:
            shutil.rmtree(self.path / "view")
        self.directory = DataDirectory.open(str(self.path), clock=self.clock)

    def step(self) -> str:
        name = self.rng.choice(["append"] * 5 + ["clean", "clean", "delete_before", "reopen"])
        getattr(self, name)()
        return name


def test_after_every_step_of_a_random_workload(tmp_path: Path, rng: random.Random) -> None:
    workload = Workload(tmp_path / "data", rng)
    taken: list[str] = []
    try:
        for _ in range(60):
            taken.append(workload.step())
            assert errors(workload.path) == [], taken
    finally:
        workload.directory.close()
    assert errors(workload.path) == []


@pytest.mark.parametrize("has_view", [True, False])
@pytest.mark.parametrize("cut", [1, 40, 90])
def test_a_crash_in_an_append_leaves_one_torn_tail_until_the_next_append(
    tmp_path: Path, rng: random.Random, cut: int, has_view: bool
) -> None:
    workload = Workload(tmp_path / "data", rng)
    for _ in range(8):
        workload.append()
    crashed = tmp_path / "crashed"
    shutil.copytree(workload.path, crashed)
    workload.directory.close()
    log = max((crashed / "logs" / "t-1").glob("*.log"))
    batch = encode_batch([NewRecord(b"x" * 100, None, (), START_MS)])
    LogBuilder(str(log.parent)).raw(batch[:-cut])
    (finding,) = errors(crashed)
    assert finding.path == str(log)
    assert "side file" in (finding.advice or "")
    if not has_view:
        shutil.rmtree(crashed / "view")
    directory = DataDirectory.open(str(crashed), clock=workload.clock)
    directory.log("t", 1).append(batch)
    directory.close()
    assert errors(crashed) == []


class CleanerAtWork(OsFiles):
    """Removes a segment as the cleaner does, when its folder was listed, or its time index is about to be read."""

    def __init__(self, log: Path, *, comes_late: bool) -> None:
        self.log = log
        self.trigger = log.with_suffix(".timeindex") if comes_late else log.parent

    def _remove(self, path: str) -> None:
        if Path(path) == self.trigger:
            for suffix in (".log", ".index", ".timeindex", ".txnindex", ".checksums"):
                self.log.with_suffix(suffix).unlink(missing_ok=True)

    def listdir(self, path: str) -> list[str]:
        names = super().listdir(path)
        self._remove(path)
        return names

    def read_file(self, path: str) -> bytes:
        self._remove(path)
        return super().read_file(path)


@pytest.mark.parametrize("comes_late", [False, True])
def test_a_segment_that_is_removed_while_its_side_files_are_looked_at_is_no_damage(
    tmp_path: Path, rng: random.Random, comes_late: bool
) -> None:
    workload = Workload(tmp_path / "data", rng)
    while len(logs := sorted((workload.path / "logs" / "t-1").glob("*.log"))) < 3:
        workload.append()
    workload.directory.close()
    assert logs[0].with_suffix(".checksums").exists()
    found = list(verify(find(str(workload.path)), CleanerAtWork(logs[0], comes_late=comes_late)))
    assert [finding for finding in found if finding.severity is Severity.ERROR] == []
    assert not logs[0].exists()


def newest_snapshot(path: Path) -> int:
    return max((int(file.stem) for file in path.glob("logs/t-*/*.snapshot")), default=-1)


def test_a_writer_that_rolls_between_the_listing_and_the_checks_is_no_damage(
    tmp_path: Path, rng: random.Random
) -> None:
    workload = Workload(tmp_path / "data", rng)
    for _ in range(8):
        workload.append()
    target = find(str(workload.path))
    known = newest_snapshot(workload.path)
    for _ in range(40):
        workload.append()
    try:
        assert newest_snapshot(workload.path) > known, "it has rolled"
        assert [f for f in verify(target) if f.severity is Severity.ERROR] == []
    finally:
        workload.directory.close()
