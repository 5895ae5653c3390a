"""What the file system refuses, where the answer decides about records; each was once answered wrongly."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from logbroker_storage.errors import FileSystemError, LogbrokerError, StorageFailedError
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.testing import FaultyFiles, Workbench
from logbroker_storage.testing.faulty_files import EVERY_CALL
from logbroker_storage.view.environment import LOCK_BYTES


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(OsFiles())


def test_what_the_system_refuses_is_an_error_of_ours_and_still_the_systems(tmp_path: Path) -> None:
    with pytest.raises(FileSystemError, match="try again") as caught:
        OsFiles().listdir(str(tmp_path / "gone"))
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, LogbrokerError)
    assert caught.value.errno == errno.ENOENT


def test_a_record_that_is_in_the_log_is_not_refused_because_nobody_could_be_woken(
    tmp_path: Path, files: FaultyFiles
) -> None:
    bench = Workbench(str(tmp_path / "data"), files=files, durability="os")
    bench.put(b"a", sync=False)
    files.fail("pread", path=".append", error=errno.EIO, forever=True)
    bench.put(b"b", sync=False)
    assert bench.values() == [b"a", b"b"]
    bench.close()


def test_a_record_that_cannot_be_taken_back_is_not_refused_for_certain(
    tmp_path: Path, files: FaultyFiles
) -> None:
    bench = Workbench(str(tmp_path / "data"), files=files, index_interval_bytes=0)
    bench.put(b"a")
    files.fail(["pwrite"], path=".index", error=errno.EIO)
    files.fail(["truncate", "size"], error=errno.EIO, forever=True)
    with pytest.raises(StorageFailedError, match="could not be taken back"):
        bench.put(b"b")
    files.heal()
    bench.put(b"c")
    assert bench.values() == [b"a", b"b", b"c"]
    bench.close()


def test_a_topic_is_deleted_though_its_files_cannot_be_removed_now(
    tmp_path: Path, files: FaultyFiles
) -> None:
    bench = Workbench(str(tmp_path / "data"), files=files)
    bench.directory.create_topic("doomed", 1, LogConfig.parse({}))
    files.fail("rename", error=errno.EIO, forever=True)
    bench.directory.delete_topic("doomed")
    assert bench.directory.topics() == ["t"]
    files.heal()
    bench.directory.create_topic("doomed", 1, LogConfig.parse({}))
    bench.close()


def test_a_directory_that_could_not_be_opened_can_be_opened_when_the_cause_is_mended(
    tmp_path: Path, files: FaultyFiles
) -> None:
    """LMDB opens a file once a process: what was opened on the way must be closed."""
    bench = Workbench(str(tmp_path / "data"))
    bench.put(b"a")
    bench.close()
    files.fail("unlink", path="damaged", error=errno.EIO)
    with pytest.raises(FileSystemError):
        bench.open(files=files)
    assert bench.open(files=files).values() == [b"a"]
    bench.close()


def test_the_mapped_lock_file_of_the_view_has_its_blocks(tmp_path: Path) -> None:
    """A page that a full disk has no block for would be a SIGBUS."""
    bench = Workbench(str(tmp_path / "data"))
    status = os.stat(f"{bench.path}/view/lock.mdb")
    assert status.st_size >= LOCK_BYTES
    assert status.st_blocks * 512 >= LOCK_BYTES
    bench.close()


def test_a_failed_sync_of_the_aborted_index_is_never_repeated(tmp_path: Path, files: FaultyFiles) -> None:
    bench = Workbench(str(tmp_path / "data"), files=files)
    log = bench.log
    bench.put(b"a")
    files.fail("fdatasync", path=".txnindex", error=errno.EIO)
    with log.append_lock, pytest.raises(StorageFailedError):
        log.active.append_to_aborted_index(log.state().end, bytes(34))
    before = files.calls["fdatasync"]
    with pytest.raises(StorageFailedError):
        bench.put(b"b")
    assert files.calls["fdatasync"] == before
    bench.crash()


def test_every_call_of_the_seam_can_be_made_to_fail() -> None:
    methods = {name for name in vars(OsFiles) if not name.startswith("_")}
    composed = {"read_file", "replace_file"}
    never_fail = {"close", "is_cached", "start_writeback"}
    assert methods - composed - never_fail == EVERY_CALL - {"create"}
