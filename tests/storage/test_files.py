"""The file seam: its promises hold on the real file system and on the one in memory alike."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from logbroker_storage.errors import FileSystemError
from logbroker_storage.files import Files, OsFiles, PlacedFiles
from logbroker_storage.testing import MemoryFiles


@pytest.fixture(params=["os", "memory"])
def place(request, tmp_path) -> tuple[Files, str]:
    """A file system, and an empty directory on it."""
    if request.param == "os":
        return OsFiles(), str(tmp_path)
    files = MemoryFiles()
    files.mkdir("/data")
    return files, "/data"


def test_a_read_is_short_only_at_the_end_of_the_file(place):
    files, root = place
    fd = files.open(f"{root}/a", create=True)
    files.pwrite(fd, b"abcdef", 0)
    assert files.pread(fd, 4, 0) == b"abcd"
    assert files.pread(fd, 4, 4) == b"ef"
    assert files.pread(fd, 4, 6) == b""
    files.close(fd)


def test_a_write_behind_the_end_leaves_zeros_between(place):
    files, root = place
    fd = files.open(f"{root}/a", create=True)
    files.pwrite(fd, memoryview(b"xy"), 3)
    assert files.pread(fd, 10, 0) == b"\0\0\0xy"
    files.close(fd)


@pytest.mark.parametrize("count", [0, 1, 3, 1024, 1025, 3000])
def test_many_buffers_are_written_as_one(place, count):
    files, root = place
    fd = files.open(f"{root}/a", create=True)
    buffers = [str(number).encode() for number in range(count)]
    files.pwritev(fd, buffers, 2)
    assert files.pread(fd, 1 << 20, 0)[2:] == b"".join(buffers)
    files.close(fd)


def test_truncate_cuts_and_extends(place):
    files, root = place
    fd = files.open(f"{root}/a", create=True)
    files.pwrite(fd, b"abcdef", 0)
    files.truncate(fd, 2)
    files.truncate(fd, 4)
    assert files.pread(fd, 10, 0) == b"ab\0\0"
    assert files.size(fd) == 4
    files.close(fd)


def test_zeros_overwrite_what_is_there_and_leave_zeros_before_them(place):
    files, root = place
    fd = files.open(f"{root}/a", create=True)
    files.pwrite(fd, b"abcdef", 0)
    files.write_zeros(fd, 4, 1)
    files.write_zeros(fd, 8, 2)
    assert files.pread(fd, 20, 0) == b"abcd\0f" + bytes(4)
    files.close(fd)


@pytest.mark.parametrize(("position", "size", "left"), [(0, 4, 6), (2, 4, 6), (6, 3, 9), (8, 2, 10)])
def test_allocating_extends_with_zeros_and_keeps_what_is_there(place, position, size, left):
    files, root = place
    fd = files.open(f"{root}/a", create=True)
    files.pwrite(fd, b"abcdef", 0)
    files.allocate(fd, position, size)
    assert files.pread(fd, 20, 0) == b"abcdef" + bytes(left - 6)
    files.close(fd)


def test_opening_says_what_is_missing_or_in_the_way(place):
    files, root = place
    with pytest.raises(FileNotFoundError):
        files.open(f"{root}/a")
    files.close(files.open(f"{root}/a", create=True))
    with pytest.raises(FileExistsError):
        files.open(f"{root}/a", create=True, exclusive=True)
    with pytest.raises(FileNotFoundError):
        files.open(f"{root}/missing/a", create=True)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_directory_is_not_opened_and_the_error_names_it(place, readonly):
    files, root = place
    files.mkdir(f"{root}/d")
    with pytest.raises(IsADirectoryError, match=f"{root}/d"):
        files.open(f"{root}/d", readonly=readonly)
    with pytest.raises(IsADirectoryError, match=f"{root}/d"):
        files.open(f"{root}/d", create=True)


@pytest.mark.parametrize("readonly", [False, True])
def test_nobody_waits_at_a_fifo_or_a_device(tmp_path, readonly):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to(os.devnull)
    before = len(os.listdir("/dev/fd"))
    for name in ("fifo", "device"):
        with pytest.raises(FileSystemError, match=f"{name}'; put back what belongs there"):
            OsFiles().open(str(tmp_path / name), readonly=readonly)
    assert len(os.listdir("/dev/fd")) == before


def test_a_descriptor_opened_for_reading_does_not_write(place):
    files, root = place
    files.close(files.open(f"{root}/a", create=True))
    fd = files.open(f"{root}/a", readonly=True)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        files.pwrite(fd, b"x", 0)
    files.close(fd)


def test_names_are_created_listed_renamed_and_removed(place):
    files, root = place
    files.mkdir(f"{root}/d")
    with pytest.raises(FileExistsError):
        files.mkdir(f"{root}/d")
    for name in "ba":
        files.close(files.open(f"{root}/d/{name}", create=True))
    assert files.listdir(f"{root}/d") == ["a", "b"]
    files.rename(f"{root}/d/b", f"{root}/d/a")
    assert files.listdir(f"{root}/d") == ["a"]
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        files.rmdir(f"{root}/d")
    files.unlink(f"{root}/d/a")
    files.rmdir(f"{root}/d")
    assert not files.exists(f"{root}/d")
    with pytest.raises(FileNotFoundError):
        files.unlink(f"{root}/d/a")


def test_an_open_file_outlives_its_name(place):
    files, root = place
    fd = files.open(f"{root}/a", create=True)
    files.unlink(f"{root}/a")
    files.pwrite(fd, b"still", 0)
    assert files.pread(fd, 9, 0) == b"still"
    files.close(fd)


def test_replacing_a_file_leaves_the_new_content_and_no_other_name(place):
    files, root = place
    for content in (b"first, longer", b"second"):
        files.replace_file(f"{root}/a", content)
        assert files.read_file(f"{root}/a") == content
    assert files.listdir(root) == ["a"]


def test_syncing_and_dropping_the_cache_keep_the_content(place):
    files, root = place
    fd = files.open(f"{root}/a", create=True)
    files.pwrite(fd, b"x", 0)
    files.fdatasync(fd)
    files.fsync(fd)
    files.fsync_directory(root)
    files.drop_cache(fd)
    assert files.pread(fd, 1, 0) == b"x"
    files.close(fd)


def test_a_disk_that_is_asked_to_begin_early_changes_nothing_and_never_fails(tmp_path):
    files = OsFiles()
    fd = files.open(str(tmp_path / "a"), create=True)
    files.pwrite(fd, b"content", 0)
    files.start_writeback(fd, 0, 7)
    files.start_writeback(fd, 1 << 40, 1)  # nothing is there
    files.fdatasync(fd)
    assert files.read_file(str(tmp_path / "a")) == b"content"
    files.close(fd)
    files.start_writeback(fd, 0, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what it has in memory")
def test_what_was_just_written_is_cached_and_what_was_dropped_is_not(tmp_path):
    files = OsFiles()
    fd = files.open(str(tmp_path / "a"), create=True)
    files.pwrite(fd, bytes(1 << 20), 0)
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        files.close(fd)
        pytest.skip(f"the file system of the tests does not tell: {error}")
    assert files.is_cached(fd, 0, 1 << 20)
    assert files.is_cached(fd, 1000, 4 << 20)  # as much of it as there is
    files.fsync(fd)
    files.drop_cache(fd)
    if not _is_in_memory(tmp_path):
        assert not files.is_cached(fd, 0, 1 << 20)
    files.close(fd)
    assert not files.is_cached(fd, 0, 1)


def _is_in_memory(path) -> bool:
    """Whether *path* lies on a tmpfs, whose pages cannot be dropped."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    under = [(point, kind) for point, kind in mounts if str(path).startswith(point)]
    return max(under, key=lambda mount: len(mount[0]))[1] == "tmpfs"


def test_new_files_are_readable_by_others_and_closed_on_exec(tmp_path):
    files = OsFiles()
    old_umask = os.umask(0o022)
    try:
        fd = files.open(str(tmp_path / "a"), create=True)
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o644
    assert not os.get_inheritable(fd)
    files.close(fd)


def test_a_place_that_cannot_be_looked_at_is_not_said_to_be_another(tmp_path):
    """Whoever was told so would look for what moved it."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    files = PlacedFiles(str(tmp_path), [str(tmp_path / "link" / "mark")])
    (tmp_path / "link").unlink()
    with pytest.raises(FileSystemError) as moved:
        files.listdir(str(tmp_path))
    assert moved.value.errno == errno.ESTALE
    assert str(moved.value).endswith("; close the broker and all that uses it, and open it again")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(FileSystemError, match="mend the cause") as unknown:
        files.listdir(str(tmp_path))
    assert unknown.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    "call", ["files.pwrite(fd, b'x' * 5000, 0)", "files.pwritev(fd, [b'x' * 3000] * 2, 0)"]
)
def test_a_short_write_goes_on_until_the_system_says_why_it_cannot(tmp_path, call):
    """RLIMIT_FSIZE lets a write stop short at the limit, and only the next one fails."""
    script = f"""
        import errno, resource, signal
        from logbroker_storage.files import OsFiles
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        files = OsFiles()
        fd = files.open({str(tmp_path / "a")!r}, create=True)
        try:
            {call}
        except OSError as error:
            assert error.errno == errno.EFBIG, error
            print(files.size(fd))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("4096", "")
