"""Calls that threads do for the event loop, in turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from logbroker.server.in_turn import GO_S, InTurn

UNENDING_S = 3600.0  # of a go that ends when nobody waits any more, however slow the machine


class Threads:
    """Threads whose starts are counted."""

    def __init__(self) -> None:
        self.starts = 0
        self.executor = ThreadPoolExecutor(4)

    def run(self, function: Callable[[], int]) -> asyncio.Future[int]:
        self.starts += 1
        return asyncio.get_running_loop().run_in_executor(self.executor, function)


@pytest.fixture
def threads() -> Threads:
    return Threads()


async def gathered(*waiting: object) -> list[object]:
    return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)


def test_calls_of_one_key_are_done_in_order_and_those_that_wait_in_one_go(threads: Threads) -> None:
    async def body() -> None:
        in_turn, gate, order = InTurn(threads.run, go_s=UNENDING_S), threading.Event(), []
        first = asyncio.ensure_future(in_turn.run("t", lambda: gate.wait(10) and order.append(0)))
        await asyncio.sleep(0)
        rest = [
            asyncio.ensure_future(in_turn.run("t", lambda n=n: order.append(n) or n)) for n in range(1, 9)
        ]
        await asyncio.sleep(0.01)
        assert order == []
        gate.set()
        assert await gathered(first, *rest) == [None, *range(1, 9)]
        assert order == list(range(9))
        assert threads.starts == 2

    asyncio.run(body())


def test_who_is_through_early_does_not_wait_for_many_others(threads: Threads) -> None:
    async def body() -> None:
        in_turn = InTurn(threads.run)
        slow = [in_turn.run("t", lambda n=n: time.sleep(GO_S) or n) for n in range(4)]
        assert await gathered(*slow) == list(range(4))
        assert threads.starts == 4

    asyncio.run(body())


def test_other_keys_wait_for_nobody(threads: Threads) -> None:
    async def body() -> None:
        in_turn, gate = InTurn(threads.run), threading.Event()
        held = asyncio.ensure_future(in_turn.run("held up", lambda: gate.wait(10)))
        assert await gathered(*(in_turn.run(f"t-{n}", lambda n=n: n) for n in range(9))) == list(range(9))
        assert not held.done()
        gate.set()
        assert await gathered(held) == [True]

    asyncio.run(body())


def test_an_exception_is_told_to_who_called_only(threads: Threads) -> None:
    def fail() -> None:
        raise ValueError("mine")

    async def body() -> None:
        in_turn = InTurn(threads.run)
        before, failed, behind = await gathered(
            *(in_turn.run("t", function) for function in (lambda: 1, fail, lambda: 2))
        )
        assert (before, repr(failed), behind) == (1, "ValueError('mine')", 2)

    asyncio.run(body())


def test_a_call_is_made_though_nobody_waits_for_it_any_more(threads: Threads) -> None:
    async def body() -> None:
        in_turn, gate, made = InTurn(threads.run), threading.Event(), []
        first = asyncio.ensure_future(in_turn.run("t", lambda: gate.wait(10)))
        await asyncio.sleep(0)
        cancelled = asyncio.ensure_future(in_turn.run("t", lambda: made.append("cancelled")))
        behind = asyncio.ensure_future(in_turn.run("t", lambda: made.append("behind")))
        await asyncio.sleep(0)
        cancelled.cancel()
        gate.set()
        await gathered(first, cancelled, behind)
        assert cancelled.cancelled()
        assert made == ["cancelled", "behind"]

    asyncio.run(body())


def test_what_a_go_needs_in_the_end_is_done_once_before_anybody_is_told(threads: Threads) -> None:
    def fail() -> None:
        raise ValueError

    async def body() -> None:
        in_turn, gate = InTurn(threads.run, go_s=UNENDING_S), threading.Event()
        finished: list[list[object]] = []
        told: list[object] = []

        def finish(results: list[object]) -> None:
            assert threading.current_thread() is not threading.main_thread()
            assert not set(results) & set(told)
            finished.append(results)

        async def run(function: Callable[[], object]) -> None:
            told.append(await in_turn.run("t", function, finish))

        first = asyncio.ensure_future(run(lambda: gate.wait(10) and 0))
        await asyncio.sleep(0)
        rest = [asyncio.ensure_future(run(function)) for function in (lambda: 1, fail, lambda: 2)]
        await asyncio.sleep(0)
        gate.set()
        await gathered(first, *rest)
        assert finished == [[0], [1, 2]]
        assert told == [0, 1, 2]

    asyncio.run(body())


def test_an_end_that_breaks_is_told_to_all_of_its_go(threads: Threads) -> None:
    def finish(results: list[int]) -> None:
        raise OSError(results)

    async def body() -> None:
        in_turn = InTurn(threads.run)
        told = await gathered(*(in_turn.run("t", lambda n=n: n, finish) for n in range(3)))
        assert all(isinstance(error, OSError) and n in error.args[0] for n, error in enumerate(told))
        assert await gathered(in_turn.run("t", lambda: 4)) == [4]

    asyncio.run(body())


def test_where_no_thread_can_be_had_everybody_is_told(threads: Threads) -> None:
    threads.executor.shutdown()

    async def body() -> None:
        in_turn = InTurn(threads.run)
        for _ in range(2):
            told = await gathered(*(in_turn.run("t", lambda: 1) for _ in range(3)))
            assert {type(error) for error in told} == {RuntimeError}

    asyncio.run(body())
