"""Calls that threads do for the event loop: one key's in turn, and all that wait by then in one go.

To start a thread's work and to hear of its end costs as much processor time as an append (60 µs). While a thread
appends for one client, the requests of others for the same partition come in, and the next go does them all: with 16
clients that is 200 µs a request instead of 430. What all of them need in the end, a sync, is part of the go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

GO_S = 0.002  # after so long a go ends: the first of its calls is told when the last is done

RunInThread = Callable[[Callable[[], int]], "asyncio.Future[int]"]


class _Call(Generic[Result]):
    __slots__ = ("error", "finish", "function", "future", "result")

    def __init__(self, function: Callable[[], Result], finish: Callable[[list[Result]], object]) -> None:
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.function = function
        self.finish = finish
        self.result: list[Result] = []  # one, or none
        self.error: BaseException | None = None

    def call(self) -> None:
        """In a thread."""
        try:
            self.result.append(self.function())
        except StopIteration as error:
            self.error = RuntimeError(f"{error!r} in a thread")  # which no future takes
        except BaseException as error:  # noqa: BLE001 (whatever it is, it belongs to who called)
            self.error = error

    def tell(self) -> None:
        if self.future.done():
            return  # nobody waits any more
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result[0])


class InTurn:
    """On the event loop."""

    def __init__(self, run_in_thread: RunInThread, *, go_s: float = GO_S) -> None:
        self._run_in_thread = run_in_thread
        self._go_s = go_s
        self._waiting: dict[Hashable, list[_Call[Any]]] = {}  # for each key that a thread is at work for
        self._going: set[asyncio.Future[int]] = set()

    def run(
        self, key: Hashable, function: Callable[[], Result], finish: Callable[[list[Result]], object] = len
    ) -> asyncio.Future[Result]:
        """What *function* returns, or raises, called behind all that came before with the same *key*.

        It is called even if nobody waits for it any more. Before anybody is told, *finish*, the same for all calls
        of a key, is called in the same thread with what those of the go have returned.
        """
        call = _Call(function, finish)
        if key in self._waiting:
            self._waiting[key].append(call)
        else:
            self._waiting[key] = [call]
            self._go(key)
        return call.future

    def _go(self, key: Hashable) -> None:
        calls = list(self._waiting[key])
        try:
            going = self._run_in_thread(partial(_call_some, calls, self._go_s))
        except Exception as error:  # noqa: BLE001 (no thread can be had: who waits must be told)
            going = asyncio.get_running_loop().create_future()
            going.set_exception(error)
        self._going.add(going)
        going.add_done_callback(partial(self._gone, key, calls))

    def _gone(self, key: Hashable, calls: list[_Call[Any]], going: asyncio.Future[int]) -> None:
        self._going.discard(going)
        error = asyncio.CancelledError() if going.cancelled() else going.exception()
        count = len(calls) if error is not None else going.result()
        del self._waiting[key][:count]
        for call in calls[:count]:
            call.error = call.error or error
            call.tell()
        if self._waiting[key]:
            self._go(key)
        else:
            del self._waiting[key]

    async def finish(self) -> None:
        """Wait for the calls at work, and those behind them."""
        while self._going:
            await asyncio.wait(self._going)


def _call_some(calls: list[_Call[Any]], go_s: float) -> int:
    """Make the calls that come in one go; how many that were."""
    end_s = time.monotonic() + go_s
    count = 0
    for call in calls:
        call.call()
        count += 1
        if time.monotonic() >= end_s:
            break
    made = [call for call in calls[:count] if call.error is None]
    try:
        if made:
            made[0].finish([call.result[0] for call in made])
    except BaseException as error:  # noqa: BLE001 (as in ``call``)
        for call in made:
            call.error = error
    return count
