"""Accidents in a row: what the first one left, and what was done about it, must withstand the second."""

from __future__ import annotations

import shutil
from pathlib import Path

from logbroker_storage.files import OsFiles
from logbroker_storage.testing import RecordingFiles, Workbench


def recorded(path: Path) -> RecordingFiles:
    path.mkdir()
    return RecordingFiles(OsFiles(), str(path))


def after_power_cut(files: RecordingFiles, target: Path) -> Path:
    """What was synced, and nothing else."""
    target.mkdir()
    files.export_after_power_cut(str(target))
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
