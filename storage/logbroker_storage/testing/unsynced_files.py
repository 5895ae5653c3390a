"""A file system that never waits for the disk."""

from __future__ import annotations

from ..files import OsFiles


class UnsyncedFiles(OsFiles):
    """Without the syncs' cost: for what is not about power cuts. A process's death leaves the page cache alone."""

    def fsync(self, fd: int) -> None:
        pass

    def fdatasync(self, fd: int) -> None:
        pass

    def fsync_directory(self, path: str) -> None:
        pass
