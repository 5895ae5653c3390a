"""Locks across threads and processes: a ``threading.Lock`` around a ``flock`` on a file.

``flock`` belongs to the open file, not to the process, and the kernel gives it back when the process
dies at whatever instruction. Threads of one process share the descriptor, so a thread lock comes first.

**Interrupts.** A signal handler that raises (Ctrl-C, or ``sys.exit`` on SIGTERM) may do so behind any call of the main
thread and at the start of any function, ``__exit__`` too: then nobody gives the lock back. So the lock notes the
function that took it. When a thread is no longer in that function, the lock was left, and it is freed:

    by                                     when
    the thread that left it                it comes again, to close the broker on its way out, say
    another that waits for it              ``LOOK_S`` later
    another that tries to take it          at once
    the maintenance thread                 at its next look, so that other processes do not wait for long

A thread that comes again while it still is in that function is a signal handler, or a finalizer, in the middle of a
use of the broker: it would wait for itself, and is refused. So a ``finally`` that takes a lock, or closes it, does not
stand in the function whose ``with`` may have left it.

Lock order, everywhere: a topic's deduplication lock, then partition append locks in (topic, partition)
order, then the journal's, then the LMDB write transaction. A partition's sync lock is taken with no other
lock held (but for the journal's own sync, which runs under ``Journal.exclusive``).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sys
import threading
from collections.abc import Callable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from threading import get_ident
from types import FrameType, TracebackType

from .errors import ClosedError, InvalidRequestError
from .files import Files
from .touching import make_touchable, touch

logger = logging.getLogger("logbroker.storage")

_ENTER_CONTEXT = contextlib.ExitStack.enter_context.__code__

LOOK_S = 0.5  # a lock is held for microseconds, or as long as a disk takes

_YIELDS = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR  # in a function's flags
_Holder = tuple[FrameType, int]  # the function that took it, and its thread


class ProcessLock:
    """A lock that one thread of one process holds at a time. Not reentrant."""

    def __init__(self, files: Files, path: str, *, opened: Callable[[], None] | None = None) -> None:
        """*opened* is called whenever the descriptor was opened, by a thread that has the lock or is about to."""
        self.path = path
        self._files = files
        self._opened = opened
        self._thread_lock = threading.Lock()
        # Of the thread that is about to take the thread lock. So who has this one, and finds the other taken by
        # nobody, knows that an interrupt came between that and noting the holder.
        self._entrance = threading.Lock()
        self._holder: _Holder | None = None  # written by who has _thread_lock
        self._fd = -1  # guarded by _thread_lock
        self._is_retired = False

    def __enter__(self) -> ProcessLock:
        with self._entrance:
            if not self._thread_lock.acquire(False):  # a keyword would cost a fifth of a microsecond
                self._wait()
            frame = sys._getframe(1)  # mostly the function already, without a call to find it
            code = frame.f_code
            if code.co_flags & CO_GENERATOR or code is _ENTER_CONTEXT:
                frame = _function_of(frame)
            self._holder = frame, get_ident()
        try:
            if self._fd < 0:
                self._open()
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self._give_back()
            raise
        return self

    def _wait(self) -> None:
        """Take the thread lock behind whoever has it. Under the entrance."""
        holder = self._holder
        is_ours = holder is not None and holder[1] == get_ident()
        if holder is None or is_ours:
            self._free_if_left()
        if is_ours and self._holder is holder:
            raise InvalidRequestError(
                "this thread is in the middle of another use of the broker, which a signal handler or a finalizer has "
                "interrupted: let it set a flag, and use the broker where that is seen"
            )
        while not self._thread_lock.acquire(timeout=LOOK_S):
            self._free_if_left()

    def _free_if_left(self) -> None:
        """Under the entrance, so that nobody takes it meanwhile."""
        holder = self._holder
        if holder is None:
            if self._thread_lock.locked():
                self._give_back()
        elif not _is_inside(holder) and holder is self._holder:  # else it was just given back
            self._give_back()

    def free_if_left(self) -> None:
        """Have others go on whom an interrupted thread keeps waiting; for a thread that is not interrupted itself."""
        if self._thread_lock.locked() and self._entrance.acquire(blocking=False):
            try:
                self._free_if_left()
            finally:
                self._entrance.release()

    def _give_back(self) -> None:
        try:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            # No call between the two, so they are one step for other threads and for signals (see ``accumulator``).
            self._holder = None
            self._thread_lock.release()

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
        # ``_give_back``, without a call more.
        try:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._holder = None
            self._thread_lock.release()

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it; ``release`` gives it back. For locks that nobody waits for."""
        with self._entrance:
            if not self._thread_lock.acquire(blocking=False):
                self._free_if_left()
                if not self._thread_lock.acquire(blocking=False):
                    return False
            self._holder = _function_of(sys._getframe(1)), get_ident()
        try:
            if self._fd < 0:
                self._open()
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._give_back()
            return False
        except BaseException:
            self._give_back()
            raise
        return True

    def release(self) -> None:
        """Give back what ``try_acquire`` took."""
        self._give_back()

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

    def close(self, action: Callable[[], None] = lambda: None) -> None:
        """Close the descriptor, after *action*; the lock opens it again when it is next taken."""
        with self._entrance:
            if not self._thread_lock.acquire(blocking=False):
                self._wait()
            try:
                action()
                self._close()
            finally:
                self._thread_lock.release()

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
        if not self._entrance.acquire(blocking=False):
            return False
        try:
            if not self._thread_lock.acquire(blocking=False):
                return False
            try:
                action()
                self._close()
            finally:
                self._thread_lock.release()
        finally:
            self._entrance.release()
        return True

    def abandon(self) -> None:
        """In a forked child: close the inherited descriptor, so that the parent's death frees the lock."""
        self._close()


def _is_inside(holder: _Holder) -> bool:
    """Whether the thread is in the function, or in one that this called; or where it is cannot be told.

    The thread goes on while its callers are gone through. One that returns meanwhile still tells who called it, but one
    that yields does not: where they end at a generator, or a coroutine, they are cut off there.
    """
    function, thread = holder
    frame = sys._current_frames().get(thread)
    if frame is None:
        return True  # an identity of gevent's, say
    while frame is not function and (caller := frame.f_back) is not None:
        frame = caller
    return frame is function or bool(frame.f_code.co_flags & _YIELDS)


def _function_of(frame: FrameType) -> FrameType:
    """The function whose ``with`` takes the lock, be it by way of context managers that are generators."""
    while frame.f_code.co_flags & CO_GENERATOR or frame.f_code.co_filename == contextlib.__file__:
        if frame.f_back is None:
            break
        frame = frame.f_back
    return frame
