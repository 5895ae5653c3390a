"""A file system on which the n-th call of an operation fails, as planned by the test.

    files = FaultyFiles(OsFiles())
    files.fail("fdatasync", at=3, error=errno.EIO)                     the third sync fails, once
    files.fail("pwrite", path=".index", error=errno.ENOSPC, forever=True)
    files.fail("pwrite", written=10, error=errno.ENOSPC)               ten bytes reach the file first
    files.fail(EVERY_CALL, at=7, error=errno.EIO)                      the seventh call, whatever it is
    files.fail(CALLS_THAT_TAKE_SPACE, error=errno.ENOSPC, forever=True)   the disk is full
    files.kill(at=7)                                                   the process dies at its seventh call

Composite operations (``read_file``, ``replace_file``) run on the single ones, so each step of theirs can
be hit. A killed process does nothing more: no clean-up in a ``finally`` reaches the files.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..errors import file_system_error
from ..files import Buffer, Files, read_file, replace_file

WRITES = frozenset(["pwrite", "pwritev", "write_zeros"])
CALLS_THAT_TAKE_SPACE = WRITES | {"allocate", "create", "mkdir", "rename"}
EVERY_CALL = CALLS_THAT_TAKE_SPACE | {
    *("open", "pread", "fsync", "fdatasync", "truncate", "size", "fsync_directory"),
    *("unlink", "rmdir", "listdir", "exists", "drop_cache"),
}


class ProcessKilled(BaseException):
    """The end of the process at one of its calls; only a test catches it."""


@dataclass
class _Fault:
    operations: Collection[str]
    path: str
    error: int
    at: int  # how many matching calls from now on it hits; counts down
    forever: bool
    written: int | float

    def hits(self, operation: str, path: str, also: str) -> bool:
        named = operation in self.operations or also in self.operations
        if not named or not path.endswith(self.path):
            return False
        self.at -= 1
        return self.at == 0 or (self.at < 0 and self.forever)


class FaultyFiles:
    """Passes every call on to *inner*, except where a fault was planned. Thread-safe."""

    def __init__(self, inner: Files) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()  # by operation, those that failed included; guarded by _lock
        self.hits: list[
            tuple[str, str]
        ] = []  # operation and path of every call that a fault hit; guarded by _lock
        self._faults: list[_Fault] = []  # guarded by _lock
        self._paths: dict[int, str] = {}  # of open descriptors; guarded by _lock
        self._kill_at: int | None = None  # guarded by _lock
        self._lock = threading.RLock()  # a reader that is collected in the middle of a call closes its file

    def fail(
        self,
        operation: str | Collection[str],
        *,
        error: int,
        at: int = 1,
        path: str = "",
        forever: bool = False,
        written: int | float = 0,
    ) -> FaultyFiles:
        """Plan an ``OSError`` with the errno *error* at the *at*-th call of *operation* from now on.

        *operation* is the name of a method, or several; ``"create"`` is an ``open`` that makes the file. Only
        calls on paths that end in *path* count. With *forever* each further call fails too. A write puts its
        first *written* bytes (a float: that share of them) into the file before it fails.
        """
        operations = [operation] if isinstance(operation, str) else operation
        for unknown in set(operations) - EVERY_CALL:
            raise ValueError(f"Files has no operation {unknown!r}")
        with self._lock:
            self._faults.append(_Fault(operations, path, error, at, forever, written))
        return self

    def kill(self, *, at: int) -> FaultyFiles:
        """Let the process die at the *at*-th call of any operation from now on (1 = the next)."""
        with self._lock:
            self._kill_at = self.calls.total() + at
        return self

    def heal(self) -> None:
        """Forget every planned fault."""
        with self._lock:
            self._faults.clear()
            self._kill_at = None

    # Files --------------------------------------------------------------------------------------------

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        self._enter("open", path, "create" if create and not self.inner.exists(path) else "")
        fd = self.inner.open(path, create=create, exclusive=exclusive, readonly=readonly)
        with self._lock:
            self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        # The kernel closes the descriptors of a dead process, so a close is carried out even then. It never fails.
        try:
            self._planned("close", self._path(fd))
        finally:
            self.inner.close(fd)
            with self._lock:
                self._paths.pop(fd, None)

    def pread(self, fd: int, size: int, position: int) -> bytes:
        self._enter("pread", self._path(fd))
        return self.inner.pread(fd, size, position)

    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        fault = self._planned("pwrite", self._path(fd))
        self._write(fault, fd, data, position)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], position: int) -> None:
        fault = self._planned("pwritev", self._path(fd))
        if fault is None:
            self.inner.pwritev(fd, buffers, position)
        else:
            self._write(fault, fd, b"".join(buffers), position)

    def write_zeros(self, fd: int, position: int, size: int) -> None:
        fault = self._planned("write_zeros", self._path(fd))
        if fault is None:
            self.inner.write_zeros(fd, position, size)
        else:
            self._write(fault, fd, bytes(size), position)

    def fsync(self, fd: int) -> None:
        self._enter("fsync", self._path(fd))
        self.inner.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        self._enter("fdatasync", self._path(fd))
        self.inner.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._enter("truncate", self._path(fd))
        self.inner.truncate(fd, size)

    def allocate(self, fd: int, position: int, size: int) -> None:
        self._enter("allocate", self._path(fd))
        self.inner.allocate(fd, position, size)

    def size(self, fd: int) -> int:
        self._enter("size", self._path(fd))
        return self.inner.size(fd)

    def fsync_directory(self, path: str) -> None:
        self._enter("fsync_directory", path)
        self.inner.fsync_directory(path)

    def rename(self, source: str, target: str) -> None:
        self._enter("rename", target)
        self.inner.rename(source, target)

    def unlink(self, path: str) -> None:
        self._enter("unlink", path)
        self.inner.unlink(path)

    def rmdir(self, path: str) -> None:
        self._enter("rmdir", path)
        self.inner.rmdir(path)

    def mkdir(self, path: str) -> None:
        self._enter("mkdir", path)
        self.inner.mkdir(path)

    def listdir(self, path: str) -> list[str]:
        self._enter("listdir", path)
        return self.inner.listdir(path)

    def exists(self, path: str) -> bool:
        self._enter("exists", path)
        return self.inner.exists(path)

    def read_file(self, path: str) -> bytes:
        return read_file(self, path)

    def replace_file(self, path: str, data: Buffer) -> None:
        replace_file(self, path, data)

    def start_writeback(self, fd: int, position: int, size: int) -> None:
        self.inner.start_writeback(fd, position, size)

    def is_cached(self, fd: int, position: int, size: int) -> bool:
        return self.inner.is_cached(fd, position, size)

    def drop_cache(self, fd: int) -> None:
        self._enter("drop_cache", self._path(fd))
        self.inner.drop_cache(fd)

    # Faults -------------------------------------------------------------------------------------------

    def _path(self, fd: int) -> str:
        with self._lock:
            return self._paths.get(fd, "")

    def _planned(self, operation: str, path: str, also: str = "") -> _Fault | None:
        """Count the call; the fault that hits it (by its name, or *also* by another), if any."""
        with self._lock:
            self.calls[operation] += 1
            if self._kill_at is not None and self.calls.total() >= self._kill_at:
                raise ProcessKilled(f"{operation} {path}")
            # Every fault counts every call it matches, so no short cut.
            hits = [fault for fault in self._faults if fault.hits(operation, path, also)]
            if hits:
                self.hits.append((operation, path))
            return hits[0] if hits else None

    def _enter(self, operation: str, path: str, also: str = "") -> None:
        fault = self._planned(operation, path, also)
        if fault is not None:
            raise _error(fault, path)

    def _write(self, fault: _Fault | None, fd: int, data: Buffer, position: int) -> None:
        if fault is None:
            self.inner.pwrite(fd, data, position)
            return
        written = fault.written if isinstance(fault.written, int) else int(len(data) * fault.written)
        if written:
            self.inner.pwrite(fd, memoryview(data)[:written], position)
        raise _error(fault, self._path(fd))


def _error(fault: _Fault, path: str) -> OSError:
    return file_system_error(OSError(fault.error, os.strerror(fault.error), path))
