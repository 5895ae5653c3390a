"""Locks across threads and processes: a ``threading.Lock`` around a ``flock`` on a file.

``flock`` belongs to the open file, not to the process, and the kernel gives it back when the process
dies at whatever instruction. Threads of one process share the descriptor, so a thread lock comes first.

Lock order, everywhere: a topic's deduplication lock, then partition append locks in (topic, partition)
order, then the journal's, then the LMDB write transaction. A partition's sync lock is taken with no other
lock held (but for the journal's own sync, which runs under ``Journal.exclusive``).
"""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Callable
from types import TracebackType

from .errors import ClosedError
from .files import Files
from .wakeup import make_touchable, touch

logger = logging.getLogger("logbroker.storage")


class ProcessLock:
    """A lock that one thread of one process holds at a time. Not reentrant."""

    def __init__(self, files: Files, path: str, *, opened: Callable[[], None] | None = None) -> None:
        """*opened* is called whenever the descriptor was opened, by a thread that has the lock or is about to."""
        self.path = path
        self._files = files
        self._opened = opened
        self._thread_lock = threading.Lock()
        self._fd = -1  # guarded by _thread_lock
        self._is_retired = False

    def __enter__(self) -> ProcessLock:
        self._thread_lock.acquire()
        try:
            if self._fd < 0:
                self._open()
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self._thread_lock.release()
            raise
        return self

    def _open(self) -> None:
        if self._is_retired:
            raise ClosedError.in_use()
        fd = self._files.open(self.path, create=True)
        try:
            make_touchable(self._files, fd)  # now, when nothing is done yet that would be taken for refused
        except BaseException:
            self._files.close(fd)
            raise
        self._fd = fd
        if self._opened is not None:
            self._opened()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._thread_lock.release()

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it; leave it with ``__exit__`` (see ``release``)."""
        if not self._thread_lock.acquire(blocking=False):
            return False
        try:
            if self._fd < 0:
                self._open()
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._thread_lock.release()
            return False
        except BaseException:
            self._thread_lock.release()
            raise
        return True

    def release(self) -> None:
        """Give back what ``try_acquire`` took."""
        self.__exit__(None, None, None)

    def ensure_file(self) -> None:
        """Have the lock's file exist, so that it can be watched."""
        if not self._files.exists(self.path):
            fd = self._files.open(self.path, create=True)
            try:
                make_touchable(self._files, fd)
            finally:
                self._files.close(fd)

    def signal(self) -> None:
        """Touch the lock's file, which wakes whoever watches it (``wakeup.Waiter``). For the holder only.

        What is to be told is done, and stays done if it cannot be told: others notice later.
        """
        try:
            touch(self._files, self._fd)
        except OSError as error:
            logger.warning("%s: those who wait are not woken: %s", self.path, error)

    def close(self) -> None:
        """Close the descriptor; the lock opens it again when it is next taken."""
        with self._thread_lock:
            self._close()

    def retire(self) -> None:
        """``close`` it for good: taking it is a ClosedError from now on."""
        self._is_retired = True
        self.close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)

    def close_if_idle(self, action: Callable[[], None]) -> bool:
        """``close``, after *action*, unless a thread of this process has the lock; never waits."""
        if not self._thread_lock.acquire(blocking=False):
            return False
        try:
            action()
            self._close()
        finally:
            self._thread_lock.release()
        return True

    def abandon(self) -> None:
        """In a forked child: close the inherited descriptor, so that the parent's death frees the lock."""
        self._close()
