"""A failing file system that remembers which syncs have failed, and notices when one is tried again.

After a failed sync the kernel reports success the second time, the data being gone: so nobody may sync that
file again before the directory was opened anew and the file verified.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from logbroker_storage.files import Files
from logbroker_storage.testing import FaultyFiles

_Identity = tuple[int, int]  # device and inode


class SyncLedger(FaultyFiles):
    """``FaultyFiles`` with a ledger. A file is known by its inode, which is kept from being used anew."""

    def __init__(self, inner: Files) -> None:
        super().__init__(inner)
        self.failed: list[
            str
        ] = []  # paths whose sync has failed; guarded by the interpreter, as all of these
        self.repeated: list[str] = []  # paths that were synced again after that
        self._kept: dict[_Identity, int] = {}  # of files whose sync has failed: a descriptor of our own

    def fsync(self, fd: int) -> None:
        self._sync(super().fsync, fd)

    def fdatasync(self, fd: int) -> None:
        self._sync(super().fdatasync, fd)

    def _sync(self, sync: Callable[[int], None], fd: int) -> None:
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        if identity in self._kept:
            self.repeated.append(self._path(fd))
        try:
            sync(fd)
        except OSError:
            self.failed.append(self._path(fd))
            if identity not in self._kept:
                self._kept[identity] = os.dup(fd)
            raise

    def fsync_directory(self, path: str) -> None:
        try:
            super().fsync_directory(path)
        except OSError:
            self.failed.append(path)
            raise

    def has_failed_in(self, folder: str) -> bool:
        """Whether the sync of *folder*, or of a file in it, has failed."""
        return any(path == folder or path.startswith(folder + "/") for path in self.failed)

    def forget(self) -> None:
        """The directory was closed: whoever opens it anew verifies what failed."""
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()
