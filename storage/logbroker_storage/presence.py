"""A process's place among those that have a directory open.

lock of                          is held             by
opening (``logs/.lock``)         exclusively         who opens or closes the directory at the moment
presence (``lock``)              shared              everybody who has the directory open
a process (``view/processes``)   exclusively         that process, while it has the directory open
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable

from .files import Files
from .layout import DataLayout
from .locks import ProcessLock
from .processes import ProcessRegistry
from .startup import closed_on_failure, note_checksum
from .view import View


class Presence:
    """Made outside, then ``enter``, then ``leave``."""

    def __init__(self, files: Files, layout: DataLayout) -> None:
        self._files = files
        self._layout = layout
        self.opening_lock = ProcessLock(files, layout.opening_lock)
        self._fd = files.open(layout.presence_lock, create=True)

    def enter(self, first_view: Callable[[], View], shared_view: Callable[[], View]) -> View:
        """Come in, with a view that is true: *first_view* if nobody else is there, else *shared_view*."""
        try:
            with self.opening_lock:
                self.came_first = _alone(self._fd)
                view = first_view() if self.came_first else shared_view()
                with closed_on_failure(view):
                    fcntl.flock(self._fd, fcntl.LOCK_SH)
                    # Under the opening lock, so that no sweep sees our file before we have locked it.
                    self._processes = ProcessRegistry(self._files, self._layout.processes)
        except BaseException:
            self._files.close(self._fd)
            self.opening_lock.close()
            raise
        self.process_id = self._processes.process_id
        return view

    def sweep(self) -> None:
        """Remove what dead processes have left of their presence."""
        with self.opening_lock:
            self._processes.sweep()

    def alive(self, process_id: str) -> bool:
        """Whether the process is alive and has the directory open."""
        return self._processes.alive(process_id)

    def leave(self, view: View) -> None:
        """Close *view* and go; who goes last vouches for the view's file."""
        try:
            self._processes.close()
        finally:
            with self.opening_lock:
                view.close()
                if _alone(self._fd):
                    note_checksum(self._files, self._layout)
                self._files.close(self._fd)
            self.opening_lock.close()

    def abandon(self) -> None:
        """In a forked child: the place is the parent's; drop our copies of its locks."""
        self._processes.abandon()
        self._files.close(self._fd)
        self.opening_lock.abandon()


def _alone(presence_fd: int) -> bool:
    """Whether nobody else has the directory open; then the presence lock is ours alone. Under the opening lock.

    held by others         by whom                                                then
    not at all             nobody                                                 we are alone
    shared                 those who have the directory open                      we are not
    exclusively            who died over making the view, a moment ago: the       wait for that moment, look again
                           kernel frees a dead process's locks one by one, and
                           the opening lock came first
    """
    while True:
        try:
            fcntl.flock(presence_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        try:
            fcntl.flock(presence_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            fcntl.flock(presence_fd, fcntl.LOCK_SH)
