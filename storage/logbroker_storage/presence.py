"""A process's place among those that have a directory open.

lock of                          is held             by
opening (``logs/.lock``)         exclusively         who opens or closes the directory at the moment
presence (``lock``)              shared              everybody who has the directory open
a process (``view/processes``)   exclusively         that process, while it has the directory open
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from contextlib import ExitStack

from .files import Files
from .layout import DataLayout
from .locks import ProcessLock
from .processes import ProcessRegistry, has_live_entry
from .startup import note_checksum
from .view import View

DYING_S = 5.0  # the kernel takes milliseconds, or as long as a disk takes
LOOK_S = 0.001


class Presence:
    """Made outside, then ``enter``, then ``leave``."""

    def __init__(self, files: Files, layout: DataLayout) -> None:
        self._files = files
        self._layout = layout
        self.opening_lock = ProcessLock(files, layout.opening_lock)
        self._fd = files.open(layout.presence_lock, create=True)

    def enter(self, first_view: Callable[[], View], shared_view: Callable[[], View]) -> View:
        """Come in, with a view that is true: *first_view* if nobody else is there, else *shared_view*."""
        with ExitStack() as undo:
            undo.callback(self.opening_lock.close)
            undo.callback(self._close_presence)
            view = self._enter(first_view, shared_view, undo)
            undo.pop_all()
        self.process_id = self._processes.process_id
        return view

    def _enter(
        self, first_view: Callable[[], View], shared_view: Callable[[], View], undo: ExitStack
    ) -> View:
        with self.opening_lock:
            self.came_first = self._comes_first()
            view = first_view() if self.came_first else shared_view()
            undo.callback(view.close)
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            # Under the opening lock, so that no sweep sees our file before we have locked it.
            self._processes = ProcessRegistry(self._files, self._layout.processes)
            undo.callback(self._processes.close)
        return view

    def _comes_first(self) -> bool:
        """Whether nobody else has the directory open; then the presence lock is ours alone. Under the opening lock.

        The kernel frees a dead process's locks one by one, and the opening lock may be the first. So who still
        holds the presence lock may have died a moment ago, over making the view: it must not be taken for made.
        It is where somebody has it open who has an entry, which comes after the view; and who has none, and is not
        dead, is in ``enter`` or ``leave``, and holds the opening lock.

        the presence lock                        an entry is held    then
        is free                                                      we come first
        is held by others                        yes                 we do not
        is held by others                        no                  they are dead: wait for the kernel
        still is, ``DYING_S`` later              no                  we do not: somebody deleted the view
        """
        deadline = time.monotonic() + DYING_S
        while not _is_alone(self._fd):
            if has_live_entry(self._files, self._layout.processes) or time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def sweep(self) -> None:
        """Remove what dead processes have left of their presence."""
        with self.opening_lock:
            self._processes.sweep()

    def alive(self, process_id: str) -> bool:
        """Whether the process is alive and has the directory open."""
        return self._processes.alive(process_id)

    def leave(self, view: View) -> None:
        """Close *view* and go, even where an interrupt comes in between; who goes last vouches for the view's file."""
        with ExitStack() as left_to_do:
            left_to_do.callback(self.opening_lock.close)
            left_to_do.callback(self._close_presence)
            left_to_do.callback(view.close)
            left_to_do.callback(self._processes.close)
            self._leave(view)

    def _leave(self, view: View) -> None:
        with self.opening_lock:
            try:
                self._processes.close()
            finally:
                view.close()
                if _is_alone(self._fd):
                    note_checksum(self._files, self._layout)
                self._close_presence()

    def _close_presence(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)

    def abandon(self) -> None:
        """In a forked child: the place is the parent's; drop our copies of its locks."""
        self._processes.abandon()
        self._close_presence()
        self.opening_lock.abandon()


def _is_alone(presence_fd: int) -> bool:
    """Whether nobody else holds the presence lock; then it is ours alone, and else we hold it no more."""
    try:
        fcntl.flock(presence_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
