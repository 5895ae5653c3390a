"""Accidents in a row: what the first one left, and what was done about it, must withstand the second."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path

from logbroker_storage.files import OsFiles
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import ControlType, encode_values
from logbroker_storage.testing import FaultyFiles, ProcessKilled, RecordingFiles, Workbench
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_storage.testing.workbench import crash


def recorded(path: Path) -> RecordingFiles:
    path.mkdir()
    return RecordingFiles(OsFiles(), str(path))


def after_power_cut(files: RecordingFiles, target: Path) -> Path:
    """What was synced, and nothing else."""
    target.mkdir()
    files.export_after_power_cut(str(target))
    return target


def halved(files: RecordingFiles, target: Path) -> Path:
    """What a power cut leaves that takes the second half of each file beside a log that is not synced."""
    shutil.copytree(files.root, target)
    shutil.rmtree(target / "data" / "view")
    for path in files.mirror.unsynced_paths():
        left = target / path.removeprefix("/")
        if left.suffix in (".index", ".timeindex", ".txnindex", ".checksums", ".snapshot"):
            os.truncate(left, left.stat().st_size // 2)
    return target


def check_that_the_next_record_lasts(bench: Workbench, files: RecordingFiles, tmp_path: Path) -> None:
    """Behind a record "a"; then the power is cut."""
    bench.put(b"b")
    after = Workbench(str(after_power_cut(files, tmp_path / "cut") / "data"))
    assert after.values() == [b"a", b"b"]
    after.close()
    bench.close()


def test_a_segment_that_a_killed_process_had_begun_lasts_once_it_is_written_to(tmp_path: Path) -> None:
    """Its recovery point was exact, but nobody had synced the name of the segment behind it."""
    files = recorded(tmp_path / "disk")
    bench = Workbench(str(tmp_path / "disk" / "data"), files=files)
    bench.put(b"a")
    bench.log.roll_now()
    bench.directory.checkpoint()
    bench.crash()
    shutil.rmtree(bench.directory.layout.view)
    bench.open(files=files)
    check_that_the_next_record_lasts(bench, files, tmp_path)


def test_a_segment_rolled_before_a_clean_close_lasts_once_it_is_written_to(tmp_path: Path) -> None:
    files = recorded(tmp_path / "disk")
    bench = Workbench(str(tmp_path / "disk" / "data"), files=files)
    bench.put(b"a")
    bench.log.roll_now()
    bench.reopen(without_view=True, files=files)
    check_that_the_next_record_lasts(bench, files, tmp_path)


def test_a_producer_snapshot_that_outlived_its_records_does_not_come_back(tmp_path: Path) -> None:
    """Else the producer's next batch would be acknowledged as a duplicate of one that is gone."""
    files = recorded(tmp_path / "disk")
    bench = Workbench(str(tmp_path / "disk" / "data"), files=files)
    bench.put(b"a", producer_id=7, sequence=0)
    bench.directory.checkpoint()
    end_position = bench.log.state().end.active_bytes
    bench.put(b"lost", sync=False, producer_id=7, sequence=1)
    bench.log.roll_now()
    bench.crash()
    # The first power cut takes the record and the new segment, and leaves the snapshot.
    log, snapshot = (
        files.open(f"{bench.folder}/{0:020d}.log"),
        files.open(f"{bench.folder}/{2:020d}.snapshot"),
    )
    files.truncate(log, end_position)
    for fd in (log, snapshot):
        files.fsync(fd)
        files.close(fd)
    files.unlink(f"{bench.folder}/{2:020d}.log")
    files.fsync_directory(bench.folder)
    shutil.rmtree(bench.directory.layout.view)
    bench.open(files=files)
    assert bench.values() == [b"a"]
    bench.put(b"other", producer_id=8, sequence=0)
    bench.directory.checkpoint()
    after = Workbench(str(after_power_cut(files, tmp_path / "cut") / "data"))
    assert after.values() == [b"a", b"other"]
    assert not after.put(b"lost", producer_id=7, sequence=1).duplicate
    after.close()
    bench.close()


def test_an_aborted_index_that_recovery_wrote_lasts(tmp_path: Path) -> None:
    """A process dies over an abort marker; what the next one shows of it is not taken back by a power cut.

    Behind the recovery point nobody looks at the marker again: its entry alone hides the records.
    """
    for operation in itertools.count(1):
        disk = recorded(tmp_path / str(operation))
        files = FaultyFiles(disk)
        bench = Workbench(f"{disk.root}/data", files=files)
        batch = encode_values(
            [b"aborted"],
            [(0, START_MS)],
            producer_id=7,
            producer_epoch=0,
            base_sequence=0,
            transactional=True,
        )
        bench.log.append(batch)
        bench.log.sync()
        bench.directory.checkpoint()
        files.kill(at=operation)
        died = True
        with contextlib.suppress(ProcessKilled):
            bench.log.append_marker(ControlType.ABORT, producer_id=7, marker_epoch=1)
            died = False
        bench.crash()
        shutil.rmtree(bench.directory.layout.view)
        bench.open(files=disk)
        bench.directory.checkpoint()
        after = Workbench(str(after_power_cut(disk, tmp_path / f"{operation}-cut") / "data"))
        committed = after.log.reader(0, Isolation.READ_COMMITTED)
        assert all(batch.header.is_control for batch in committed.read()), operation
        committed.close()
        crash(after.directory)
        crash(bench.directory)
        if not died:
            return


def test_an_index_that_recovery_built_again_lasts(tmp_path: Path) -> None:
    """Below the recovery point a time index that ends too early is well-formed: a look-up would pass records over."""
    files = recorded(tmp_path / "disk")
    bench = Workbench(str(tmp_path / "disk" / "data"), files=files, index_interval_bytes=0)
    for number in range(21):  # 20 entries, as the first batch needs none
        bench.put(b"x", timestamp_ms=START_MS + number)
    bench.log.roll_now()
    bench.put(b"late", timestamp_ms=START_MS + 1000)
    bench.directory.checkpoint()
    bench.crash()
    damaged = files.open(f"{bench.folder}/{0:020d}.timeindex")
    files.pwrite(damaged, b"\xff" * 8, 0)
    files.fsync(damaged)
    files.close(damaged)
    shutil.rmtree(bench.directory.layout.view)
    bench.open(files=files)
    bench.directory.checkpoint()
    left = halved(files, tmp_path / "cut")
    bench.close()
    after = Workbench(str(left / "data"))
    for number in range(21):
        assert after.log.offset_for_timestamp(START_MS + number) == number
    after.close()
