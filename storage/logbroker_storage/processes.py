"""Which processes have the directory open, and whether one of them is still alive.

Each process holds a ``flock`` on a file of its own in ``view/processes/``. The kernel gives the lock back
at the instant the process dies, however it dies, so a probe that can take the lock knows: dead. Unlike a
process id this is safe against reuse and across containers that share the directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets

from .files import Files


class ProcessRegistry:
    """This process's own entry, and probes of the others'."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        try:
            files.mkdir(directory)
        except FileExistsError:
            pass  # made by an earlier process
        self.process_id = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._fd = files.open(self._path(self.process_id), create=True, exclusive=True)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _path(self, process_id: str) -> str:
        return f"{self._directory}/{process_id}"

    def alive(self, process_id: str) -> bool:
        """Whether the process is alive and has the directory open. Exact at the moment of the call."""
        return process_id == self.process_id or _is_held(self._files, self._path(process_id))

    def sweep(self) -> None:
        """Remove the entries of dead processes."""
        for process_id in self._files.listdir(self._directory):
            if not self.alive(process_id):
                try:
                    self._files.unlink(self._path(process_id))
                except FileNotFoundError:
                    pass  # another process swept it

    def close(self) -> None:
        """Remove the own entry. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            self._files.unlink(self._path(self.process_id))
        except OSError as error:
            # Else somebody deleted the view, or moved the directory.
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        finally:
            self._files.close(fd)

    def abandon(self) -> None:
        """In a forked child: the entry is the parent's; drop our copy of its lock."""
        self._files.close(self._fd)


def has_live_entry(files: Files, directory: str) -> bool:
    """Whether any process holds its entry in *directory*, which need not be there."""
    try:
        names = files.listdir(directory)
    except FileNotFoundError:
        return False
    return any(_is_held(files, f"{directory}/{name}") for name in names)


def _is_held(files: Files, path: str) -> bool:
    """Whether the entry at *path* is locked by its process."""
    try:
        # Read-only: the closing of a writer is how a waiter learns of the process's death.
        fd = files.open(path, readonly=True)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        files.close(fd)
    return False
