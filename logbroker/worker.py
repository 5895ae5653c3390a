"""One thread that does an event loop's blocking calls, one after the other, in order.

    loop                                   thread
    submit(call) ──► SimpleQueue ────────► call()
    future ◄── call_soon_threadsafe ◄───── result or exception

A future that was cancelled does not stop its call: what the call returns is then dropped, unless the
caller shielded the future and looks at it later. What must not be dropped, though the loop be closed meanwhile,
is begun with ``begin`` and waited for with ``ended``: its future belongs to no loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from logbroker_storage.errors import ForkedError

Result = TypeVar("Result")


class Worker:
    """Started by the first call, ended by ``stop``. Belongs to the loop that uses it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[asyncio.Future[Any] | None, Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None  # used by the loop's thread only
        self._pid = os.getpid()

    def submit(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """Have *call* done in the thread; its result or exception comes through the future."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._put(future, call)
        return future

    def begin(self, call: Callable[[], Result]) -> Begun[Result]:
        """Have *call* done in the thread; its future outlasts the task and the loop that wait for it (``ended``)."""
        future: Begun[Result] = Begun()
        self._put(None, partial(future.carry_out, call))
        return future

    def do(self, call: Callable[[], None]) -> None:
        """Have *call* done, which reports by itself and never raises."""
        self._put(None, call)

    def _put(self, future: asyncio.Future[Any] | None, call: Callable[[], Any]) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("this broker")  # the thread is not here
        self.start()
        self._calls.put((future, call))  # last: a call that was refused is not made later

    def start(self) -> None:
        """Have the thread there, for whoever calls ``do`` where nobody would hear that it was refused.

        Raises:
            RuntimeError: the process has too many threads. The next call tries again.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread

    def stop(self) -> None:
        """End the thread behind the calls that were submitted before. Does not wait."""
        if self._thread is not None:
            self._thread = None
            self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 (whatever it is, it belongs to who called)
                if future is not None:
                    post(future.get_loop(), fail, future, error)
            else:
                if future is not None:
                    post(future.get_loop(), _succeed, future, result)
            del item, future, call  # not kept alive until the next call


class Begun(Future[Result]):
    """A call in the thread. It belongs to no loop; tasks of any loop wait for it (``ended``)."""

    def __init__(self) -> None:
        super().__init__()
        # Of those who wait. A callback of the future could not be taken back by whoever gives up, again and again.
        self.waiters: set[asyncio.Future[None]] = set()  # set operations are atomic

    def carry_out(self, call: Callable[[], Result]) -> None:
        """In the thread."""
        try:
            self.set_result(call())
        except BaseException as error:  # noqa: BLE001 (as in Worker._run)
            self.set_exception(error)
        for waiter in self.waiters.copy():
            post(waiter.get_loop(), _succeed, waiter, None)


async def ended(call: Begun[Any], timeout: float | None = None) -> bool:  # noqa: ASYNC109 (some give up, some do not)
    """Wait at most *timeout* seconds for *call* to end; whether it has. When this is cancelled it goes on."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    call.waiters.add(waiter)
    if call.done():  # and may have told its waiters before
        _succeed(waiter, None)
    try:
        await asyncio.wait([waiter], timeout=timeout)
    finally:
        call.waiters.discard(waiter)
    return call.done()


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: object) -> None:
    """Have *callback* called in the loop, unless the loop was closed: then nobody waits any more."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _succeed(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Give *future* what a call raised, unless it is done, as when it was cancelled. In the future's loop."""
    if future.done():
        return
    if isinstance(error, StopIteration):
        # Of the caller's own code; no future takes one, as no generator does.
        stopped, error = error, RuntimeError("a call raised StopIteration")
        error.__cause__ = stopped
    future.set_exception(error)
