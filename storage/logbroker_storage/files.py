"""The file-system seam: every byte that storage reads or writes passes through ``Files``.

The methods are the system calls by their own names, with promises that the calls do not make:

    open           a file, or an exception that names it: never a directory, and a FIFO makes nobody wait
    pread          short only at the end of the file
    pwrite(v)      everything or an exception (what reached the file before it is unknown: truncate back)
    fdatasync      on the disk, not in the drive's cache, also on macOS (F_FULLFSYNC)
    close          never fails: what it could tell of earlier writes, a sync has told or will tell

A failure is the ``OSError`` of the system call, and a ``FileSystemError`` too, so that one which nobody expects
reaches the user with a type. Where it decides about records, the caller, who knows which, turns it into
``WriteFailedError`` or ``StorageFailedError``. A failed sync is never tried again here, because the kernel
reports success the second time while the data is gone.

Descriptors are plain integers, opened close-on-exec. All methods are thread-safe as their calls are.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, Protocol, TypeVar

from .errors import FileSystemError, file_system_error

if sys.platform == "darwin":
    import fcntl

Buffer = bytes | bytearray | memoryview
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
TEMPORARY_SUFFIX = ".tmp"  # of replace_file()

# Linux takes 1024 buffers a call (UIO_MAXIOV), macOS too.
_MAX_BUFFERS = 1024
_CACHED_STEP_BYTES = (
    128 << 10
)  # what was read or written lately is cached in stretches: one look at each tells

_SYNC_FILE_RANGE_WRITE = 2


class Files(Protocol):
    """What storage needs of a file system. Every method but ``close`` raises ``OSError`` when its call fails."""

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        """A descriptor for reading and writing; *exclusive* (with *create*) refuses an existing file."""

    def close(self, fd: int) -> None:
        """Give the descriptor back; it is gone whatever the system says. Nothing that must last hangs on it."""

    def pread(self, fd: int, size: int, position: int) -> bytes:
        """*size* bytes from *position*; fewer only where the file ends."""

    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        """All of *data* at *position*, or an exception with an unknown part of it written."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], position: int) -> None:
        """The buffers one behind the other, as ``pwrite`` of their concatenation."""

    def start_writeback(self, fd: int, position: int, size: int) -> None:
        """Have the disk begin with these bytes while we do other things; never raises, a sync has to follow.

        May do nothing where the system cannot.
        """

    def fsync(self, fd: int) -> None:
        """Data and metadata are on the disk. After an error the file must be taken for lost."""

    def fdatasync(self, fd: int) -> None:
        """Data, and what is needed to read it back (its length), are on the disk."""

    def write_zeros(self, fd: int, position: int, size: int) -> None:
        """*size* zeros at *position*, as ``pwrite`` of them."""

    def truncate(self, fd: int, size: int) -> None: ...

    def allocate(self, fd: int, position: int, size: int) -> None:
        """Blocks for [position, position + size), the file's length included: zeros where it was shorter.

        May do nothing where the system cannot.
        """

    def size(self, fd: int) -> int: ...

    def fsync_directory(self, path: str) -> None:
        """Names created, renamed or removed in the directory *path* so far are on the disk."""

    def rename(self, source: str, target: str) -> None:
        """Atomically; an existing file *target* is replaced."""

    def unlink(self, path: str) -> None: ...

    def rmdir(self, path: str) -> None: ...

    def mkdir(self, path: str) -> None:
        """One directory; ``FileExistsError`` when the name is taken."""

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""

    def exists(self, path: str) -> bool: ...

    def read_file(self, path: str) -> bytes: ...

    def replace_file(self, path: str, data: Buffer) -> None:
        """*path* holds *data*, durably, or what it held before: nothing between, whatever happens."""

    def is_cached(self, fd: int, position: int, size: int) -> bool:
        """Whether reading [position, position + size) would probably not wait for the disk; never raises.

        False where the system cannot tell.
        """

    def drop_cache(self, fd: int) -> None:
        """A hint that cached pages of the file will not be wanted again; may do nothing."""


def _typed(call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """*call*, whose ``OSError`` becomes a ``FileSystemError``."""

    @functools.wraps(call)
    def typed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return call(*args, **kwargs)
        except OSError as error:
            raise file_system_error(error) from error

    return typed


class OsFiles:
    """The real file system."""

    @_typed
    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        # O_NONBLOCK: the open of a FIFO would wait for its other end. To a file it means nothing.
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if readonly else os.O_RDWR)
        if create:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_EXCL
        fd = os.open(path, flags, FILE_MODE)
        try:
            _check_is_file(fd, path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self, fd: int) -> None:
        try:
            os.close(fd)
        except OSError as error:
            # Linux frees the descriptor first (close(2)); a report of a lost write comes too late for any use, and
            # whoever needs to know has synced. A number that was not open is a mistake of ours.
            if error.errno == errno.EBADF:
                raise

    @_typed
    def pread(self, fd: int, size: int, position: int) -> bytes:
        data = os.pread(fd, size, position)
        if len(data) == size or not data:
            return data
        return _read_rest(fd, data, size, position)

    @_typed
    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        written = os.pwrite(fd, data, position)
        if written != len(data):
            _write_rest(fd, memoryview(data)[written:], position + written)

    @_typed
    def pwritev(self, fd: int, buffers: Sequence[Buffer], position: int) -> None:
        for first in range(0, len(buffers), _MAX_BUFFERS):
            position = _write_buffers(fd, buffers[first : first + _MAX_BUFFERS], position)

    def start_writeback(self, fd: int, position: int, size: int) -> None:
        start = _sync_file_range()
        if start is not None:
            start(fd, position, size, _SYNC_FILE_RANGE_WRITE)

    @_typed
    def fsync(self, fd: int) -> None:
        _sync(fd)

    @_typed
    def fdatasync(self, fd: int) -> None:
        if sys.platform == "darwin":
            _sync(fd)
        else:
            os.fdatasync(fd)

    def write_zeros(self, fd: int, position: int, size: int) -> None:
        self.pwrite(fd, bytes(size), position)

    @_typed
    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    @_typed
    def allocate(self, fd: int, position: int, size: int) -> None:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(fd, position, size)

    @_typed
    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    @_typed
    def fsync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(fd)
        finally:
            os.close(fd)

    @_typed
    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    @_typed
    def unlink(self, path: str) -> None:
        os.unlink(path)

    @_typed
    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    @_typed
    def mkdir(self, path: str) -> None:
        os.mkdir(path, DIRECTORY_MODE)

    @_typed
    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def read_file(self, path: str) -> bytes:
        return read_file(self, path)

    def replace_file(self, path: str, data: Buffer) -> None:
        replace_file(self, path, data)

    def is_cached(self, fd: int, position: int, size: int) -> bool:
        if sys.platform != "linux":
            return False
        byte = [bytearray(1)]
        try:
            for at in range(position, position + size, _CACHED_STEP_BYTES):
                if not os.preadv(fd, byte, at, os.RWF_NOWAIT):
                    break  # the file ends
        except OSError:  # EAGAIN: it would wait; EOPNOTSUPP: this file system does not say
            return False
        return True

    def drop_cache(self, fd: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


class PlacedFiles(OsFiles):
    """The real file system, for as long as the *marks*, files that are made where they are missing, are the same files.

    A data directory is open by its path. Where it was moved, removed or replaced (by a backup, say) meanwhile, the
    same names are those of another directory, which must not be written by what is known of this one. So every
    call that takes a path looks first, and fails with ESTALE (a sync of a directory harms none, and need not);
    open descriptors go on. For what is moved in the instant between the two there is no remedy: not every system
    has the calls that begin at a descriptor.
    """

    def __init__(self, directory: str, marks: Sequence[str]) -> None:
        """*directory* is for messages. Raises ``OSError``: a mark cannot be opened."""
        self._directory = directory
        for mark in marks:
            super().close(super().open(mark, create=True))
        self._marks = {mark: identity_of(mark) for mark in marks}

    @_typed
    def is_in_place(self) -> bool:
        """Whether the marks are the same files. Raises ``OSError`` where nobody can say."""
        try:
            return all(identity_of(mark) == identity for mark, identity in self._marks.items())
        except (FileNotFoundError, NotADirectoryError):
            return False

    @_typed
    def _look(self) -> None:
        if not self.is_in_place():
            reason = "the data directory, or its logs, were moved, removed or replaced while it was open"
            raise OSError(errno.ESTALE, reason, self._directory)

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        self._look()
        return super().open(path, create=create, exclusive=exclusive, readonly=readonly)

    def rename(self, source: str, target: str) -> None:
        self._look()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._look()
        super().unlink(path)

    def rmdir(self, path: str) -> None:
        self._look()
        super().rmdir(path)

    def mkdir(self, path: str) -> None:
        self._look()
        super().mkdir(path)

    def listdir(self, path: str) -> list[str]:
        self._look()
        return super().listdir(path)

    def exists(self, path: str) -> bool:
        self._look()
        return super().exists(path)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """sync_file_range(2), which Python does not call; None where it is not."""
    if sys.platform != "linux":
        return None
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return found


def _check_is_file(fd: int, path: str) -> None:
    """What else may have a file's name would be refused later, by a call that knows no name, or never end."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENXIO, "Is no file, but a FIFO or a device", path)


def identity_of(path: str) -> tuple[int, int]:
    """Device and inode: no other file has them as long as this one is there, or open."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def read_file(files: Files, path: str) -> bytes:
    """The whole content of the file at *path*, by the calls of *files*."""
    fd = files.open(path, readonly=True)
    try:
        return files.pread(fd, files.size(fd), 0)
    finally:
        files.close(fd)


def replace_file(files: Files, path: str, data: Buffer) -> None:
    """Give *path* the content *data*, durably and all at once, by the calls of *files*.

    Safe against a crash at any instruction; of two callers at once, one wins whole.
    """
    temporary = f"{path}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}"
    try:
        write_synced(files, temporary, data)
        # Sync the file before its directory entry: a name that survives a crash must never point
        # at bytes that did not.
        files.rename(temporary, path)
    except OSError:
        _unlink_quietly(files, temporary)
        raise
    files.fsync_directory(os.path.dirname(path) or ".")


def put_file(files: Files, path: str, data: Buffer) -> None:
    """Give *path* the content *data*, all at once for whoever looks, but not durably; for one caller at a time."""
    fd = files.open(path + TEMPORARY_SUFFIX, create=True)
    try:
        files.truncate(fd, 0)
        files.pwrite(fd, data, 0)
    finally:
        files.close(fd)
    files.rename(path + TEMPORARY_SUFFIX, path)  # whole or not there, also when the process dies in between


def absolute_path(path: str) -> str:
    """*path* from the root on: where it leads now, whatever directory the process works in later.

    Raises:
        FileSystemError: it is relative, and the directory that the process works in is gone.
    """
    try:
        return os.path.abspath(path)
    except OSError as error:
        reason = f"the current directory, from which this path is to lead, is gone: {error.strerror}"
        raise FileSystemError(error.errno, reason, path) from error


def remove_temporaries(files: Files, directory: str, names: Iterable[str], prefix: str = "") -> None:
    """Remove what killed calls of ``replace_file`` left in *directory*, for names that begin with *prefix*.

    *names* are those of the files there. For who knows that nobody is replacing one of these files now.
    """
    for name in names:
        if name.startswith(prefix) and name.endswith(TEMPORARY_SUFFIX):
            files.unlink(f"{directory}/{name}")


def write_synced(files: Files, path: str, data: Buffer) -> None:
    """Make a new file *path* with the content *data*, which is on the disk then; its name need not be."""
    fd = open_fresh(files, path)
    try:
        files.pwrite(fd, data, 0)
        files.fsync(fd)
    finally:
        files.close(fd)


def open_fresh(files: Files, path: str) -> int:
    """A descriptor of a new, empty file; what had its name is removed.

    Never the same file again: its sync may have failed, and another one would say nothing.
    """
    if files.exists(path):
        files.unlink(path)
    return files.open(path, create=True, exclusive=True)


def _unlink_quietly(files: Files, path: str) -> None:
    try:
        files.unlink(path)
    except OSError:
        pass  # the first error is the one to report; a leftover is swept when the directory is next opened


def _sync(fd: int) -> None:
    """fsync(2) as it is meant; macOS's own stops at the drive's cache (its man page says so)."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            # Network and FUSE volumes have no such command; their fsync is all there is.
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(fd)


def _read_rest(fd: int, data: bytes, size: int, position: int) -> bytes:
    pieces = [data]
    done = len(data)
    while done < size:
        piece = os.pread(fd, size - done, position + done)
        if not piece:
            break
        pieces.append(piece)
        done += len(piece)
    return b"".join(pieces)


def _write_rest(fd: int, rest: memoryview, position: int) -> None:
    """Go on after a short write: the next call either writes more or says why it cannot."""
    while rest:
        written = os.pwrite(fd, rest, position)
        if written == 0:
            raise OSError(errno.EIO, "pwrite wrote nothing")
        rest = rest[written:]
        position += written


def _write_buffers(fd: int, buffers: Sequence[Buffer], position: int) -> int:
    """Write at most ``_MAX_BUFFERS`` buffers; the position behind them."""
    if not hasattr(os, "pwritev"):  # macOS before 11
        joined = b"".join(buffers)
        _write_rest(fd, memoryview(joined), position)
        return position + len(joined)
    end_position = position + sum(map(len, buffers))
    written = os.pwritev(fd, buffers, position)
    if position + written != end_position:
        _write_rest(fd, memoryview(b"".join(buffers))[written:], position + written)
    return end_position
