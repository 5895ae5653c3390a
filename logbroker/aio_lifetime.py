"""How the asyncio twins begin and end: each holds a ``Lifetime`` of its blocking object.

    opened        the first call begins to make the object, and all wait for that one attempt. It goes on when they are
                  cancelled: the next call finds what it brought. When it fails they are told, and the next tries again
    entered       the same at the head of an ``async with``; cancelled there, it is closed: nobody will leave the block
    close         done once, by a task of its own, which goes on when those who wait for it are cancelled. A failure is
                  told once, to the first who is still there
    forked child  is refused the object, and has nothing to close

Opening and closing go on, too, where all tasks of the loop are cancelled, as at the end of ``asyncio.run``
(``carried_out``).

All of it belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from logbroker_storage.errors import ClosedError, ForkedError

from .worker import Worker

Blocking = TypeVar("Blocking")
Result = TypeVar("Result")


class _Undeterred(asyncio.Task[Result]):
    """Not to be cancelled: ``asyncio.run``, and whoever else cancels all tasks there are, waits for it."""

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002 (as Task.cancel)
        return False


def carried_out(coroutine: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """A task that does *coroutine* to its end. Nothing in it may wait for long, or use ``asyncio.timeout``."""
    return _Undeterred(coroutine, loop=asyncio.get_running_loop())


class Lifetime(Generic[Blocking]):
    """The life of one blocking object. ``blocking`` is None until it was made."""

    def __init__(
        self, name: str, make: Callable[[], Awaitable[Blocking]], *workers: Worker, again: str | None = None
    ) -> None:
        """
        Args:
            name: what it is, for messages.
            make: makes the object.
            workers: the threads that make its calls; stopped at the end.
            again: how the user gets another.
        """
        self.blocking: Blocking | None = None
        self.is_closed = False  # or being closed
        self._name = name
        self._make = make
        self._workers = workers
        self._again = again or f"broker.{name}()"
        self._opening: asyncio.Future[Blocking] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._failure_is_told = False
        self._pid = os.getpid()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that the threads are in, and no forked child of it."""
        return os.getpid() == self._pid

    def check_usable(self) -> None:
        """Raises ClosedError, and ForkedError in a forked child."""
        if self.is_closed:
            raise ClosedError(f"the {self._name} was closed; make another with {self._again}")
        if not self.is_ours:
            raise ForkedError(f"this {self._name}")

    async def opened(self) -> Blocking:
        """The object, which the first call has made.

        Raises:
            ClosedError, ForkedError: it cannot be used any more, or not in this process.
            What making it raises.
        """
        self.check_usable()
        if self.blocking is not None:
            return self.blocking
        if self._opening is None or self._opening.done():
            self._opening = carried_out(self._open())
        blocking = await asyncio.shield(self._opening)
        self.check_usable()
        return blocking

    async def entered(self, close: Callable[[Blocking], Awaitable[object]]) -> None:
        """Have it opened at the head of an ``async with``."""
        try:
            await self.opened()
        except asyncio.CancelledError:
            await self.close(close)
            raise

    async def close(self, close: Callable[[Blocking], Awaitable[object]]) -> None:
        """Have *close* done with the object, if there is one, and the threads stopped. Idempotent.

        Raises what *close* does, once.
        """
        if not self.is_ours:
            return
        if self._closing is None:
            self.is_closed = True
            self._closing = carried_out(self._close(close))
        if not self._closing.done():
            await asyncio.wait([self._closing])
        if not self._failure_is_told:
            self._failure_is_told = True
            self._closing.result()

    async def _open(self) -> Blocking:
        try:
            self.blocking = await self._make()
        except BaseException:
            self._stop_workers()
            raise
        return self.blocking

    async def _close(self, close: Callable[[Blocking], Awaitable[object]]) -> None:
        if self._opening is not None and not self._opening.done():
            await asyncio.wait([self._opening])  # who waits for it is told how that went
        try:
            if self.blocking is not None:
                await close(self.blocking)
        finally:
            self._stop_workers()

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.stop()
