"""A real file system that is mirrored in memory, so that a power cut can be played on real directories.

Code that needs real files (locks, LMDB) runs on the inner file system; the mirror, a ``MemoryFiles``,
follows every change and every sync. At any moment a test asks the mirror for a state after a power cut,
exports it into a fresh directory, and opens that.

    files = RecordingFiles(OsFiles(), root)
    ... use files below root ...
    files.export_after_power_cut(fresh_root, random.Random(seed))

Only what goes through this object is seen; the tree below *root* must be empty when it begins.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence

from ..files import Buffer, Files, OsFiles, read_file, replace_file
from .memory_files import MemoryFiles


class RecordingFiles:
    """Carries out every call on *inner* and, below *root*, on ``mirror`` too. Thread-safe."""

    def __init__(self, inner: Files, root: str) -> None:
        """*root* is an existing, empty directory of *inner*."""
        self.inner = inner
        self.root = os.path.abspath(root)
        self.mirror = MemoryFiles()
        self._mirror_fds: dict[int, int] = {}  # by the inner descriptor; guarded by _lock
        # Also held across each change and its mirroring, so that both see one order.
        self._lock = threading.RLock()

    def export_after_power_cut(self, target: str, survivors: random.Random | None = None) -> None:
        """Fill the existing directory *target* with what a power cut now would leave of *root*."""
        with self._lock:
            left = self.mirror.after_power_cut(survivors)
        left.export("/", OsFiles(), target)

    # Files --------------------------------------------------------------------------------------------

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        with self._lock:
            fd = self.inner.open(path, create=create, exclusive=exclusive, readonly=readonly)
            below = self._below(path)
            if below is not None and (create or self.mirror.exists(below)):
                self._mirror_fds[fd] = self.mirror.open(below, create=create, readonly=readonly)
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self.inner.close(fd)
            mirror_fd = self._mirror_fds.pop(fd, None)
            if mirror_fd is not None:
                self.mirror.close(mirror_fd)

    def pread(self, fd: int, size: int, position: int) -> bytes:
        return self.inner.pread(fd, size, position)

    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        with self._lock:
            self.inner.pwrite(fd, data, position)
            if fd in self._mirror_fds:
                self.mirror.pwrite(self._mirror_fds[fd], data, position)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], position: int) -> None:
        with self._lock:
            self.inner.pwritev(fd, buffers, position)
            if fd in self._mirror_fds:
                self.mirror.pwritev(self._mirror_fds[fd], buffers, position)

    def fsync(self, fd: int) -> None:
        with self._lock:
            self.inner.fsync(fd)
            if fd in self._mirror_fds:
                self.mirror.fsync(self._mirror_fds[fd])

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            self.inner.fdatasync(fd)
            if fd in self._mirror_fds:
                self.mirror.fdatasync(self._mirror_fds[fd])

    def write_zeros(self, fd: int, position: int, size: int) -> None:
        with self._lock:
            self.inner.write_zeros(fd, position, size)
            if fd in self._mirror_fds:
                self.mirror.write_zeros(self._mirror_fds[fd], position, size)

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            self.inner.truncate(fd, size)
            if fd in self._mirror_fds:
                self.mirror.truncate(self._mirror_fds[fd], size)

    def allocate(self, fd: int, position: int, size: int) -> None:
        with self._lock:
            self.inner.allocate(fd, position, size)
            if fd in self._mirror_fds:
                self.mirror.allocate(self._mirror_fds[fd], position, size)

    def size(self, fd: int) -> int:
        return self.inner.size(fd)

    def fsync_directory(self, path: str) -> None:
        with self._lock:
            self.inner.fsync_directory(path)
            below = self._below(path)
            if below is not None:
                self.mirror.fsync_directory(below)

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            self.inner.rename(source, target)
            old, new = self._below(source), self._below(target)
            if old is not None and new is not None:
                self.mirror.rename(old, new)

    def unlink(self, path: str) -> None:
        with self._lock:
            self.inner.unlink(path)
            below = self._below(path)
            if below is not None:
                self.mirror.unlink(below)

    def rmdir(self, path: str) -> None:
        with self._lock:
            self.inner.rmdir(path)
            below = self._below(path)
            if below is not None:
                self.mirror.rmdir(below)

    def mkdir(self, path: str) -> None:
        with self._lock:
            self.inner.mkdir(path)
            below = self._below(path)
            if below is not None:
                self.mirror.mkdir(below)

    def listdir(self, path: str) -> list[str]:
        return self.inner.listdir(path)

    def exists(self, path: str) -> bool:
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
        self.inner.drop_cache(fd)

    def _below(self, path: str) -> str | None:
        """*path* as the mirror names it; None when it lies outside the root."""
        absolute = os.path.abspath(path)
        if absolute == self.root:
            return "/"
        if not absolute.startswith(self.root + "/"):
            return None
        return absolute[len(self.root) :]
