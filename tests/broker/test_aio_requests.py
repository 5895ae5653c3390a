"""Request and reply for asyncio: the same answers, a loop that never blocks, cancellation that leaves nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import logbroker
from logbroker import NoRespondersError, RequestTimeoutError, ResponderError
from logbroker.aio import AsyncBroker
from logbroker.errors import InvalidRequestError

DEADLINE_S = 20.0


@pytest.fixture
def run(tmp_path) -> Callable[[Callable[[AsyncBroker], Awaitable[Any]]], Any]:
    """Run a coroutine function with an open broker, in debug mode."""

    def run(body: Callable[[AsyncBroker], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with logbroker.open_async(tmp_path / "data") as broker:
                return await asyncio.wait_for(body(broker), DEADLINE_S)

        with asyncio.Runner(debug=True) as runner:
            return runner.run(main())

    return run


async def upper(request):
    await asyncio.sleep(0)
    return request.value.upper()


def test_a_coroutine_answers_and_another_asks(run):
    async def body(broker):
        responder = await broker.responder("t")(upper)
        reply = await broker.request("t", b"hello", key=b"k", headers={"a": b"1"})
        assert reply.value == b"HELLO"
        assert responder.is_running
        await responder.stop()
        assert not responder.is_running
        assert responder.counts.answered == 1

    run(body)


def test_many_requests_of_a_moment_are_answered_at_the_same_time(run):
    """Each of ten needs the other nine to be at work: one after the other they would wait for ever."""

    async def body(broker):
        together = asyncio.Barrier(10)

        @broker.responder("t", concurrency=10)
        async def meet(request):
            await together.wait()
            return request.value

        await meet
        values = [b"%d" % number for number in range(10)]
        replies = await asyncio.gather(*(broker.request("t", value) for value in values))
        assert [reply.value for reply in replies] == values

    run(body)


def test_the_blocking_and_the_awaited_kind_answer_each_other(run, tmp_path):
    async def body(broker):
        with logbroker.open(tmp_path / "data") as blocking:
            blocking.responder("blocking")(lambda request: b"blocking")
            assert (await broker.request("blocking", b"")).value == b"blocking"
            async with broker.responder("awaited")(upper):
                reply = await asyncio.to_thread(blocking.request, "awaited", b"a")
                assert reply.value == b"A"

    run(body)


def test_failures_are_the_same_typed_errors(run):
    async def body(broker):
        with pytest.raises(NoRespondersError):
            await broker.request("t", b"")
        with pytest.raises(RequestTimeoutError):
            await broker.request("t", b"", timeout=0.05, if_nobody="wait")

        @broker.responder("t")
        async def fail(request):
            raise ValueError("no")

        await fail
        with pytest.raises(ResponderError, match="ValueError: no"):
            await broker.request("t", b"")

    run(body)


def test_a_cancelled_request_is_given_up_and_its_reply_dropped(run):
    async def body(broker):
        entered, opened = asyncio.Event(), asyncio.Event()

        @broker.responder("t")
        async def wait(request):
            entered.set()
            await opened.wait()
            return b"late"

        await wait
        asking = asyncio.create_task(broker.request("t", b""))
        await entered.wait()
        await broker._exchange._worker.submit(lambda: None)  # behind the sending, which may have to end still
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        opened.set()
        assert (await broker.request("t", b"")).value == b"late"
        counts = broker.request_counts
        assert (counts.sent, counts.answered, counts.given_up, counts.dropped) == (2, 1, 1, 1)

    run(body)


def test_a_request_is_cancelled_though_its_reply_comes_at_the_same_moment(run, tmp_path):
    async def body(broker):
        is_asked, may_answer = threading.Event(), threading.Event()

        def answer(request):
            is_asked.set()
            may_answer.wait(DEADLINE_S)
            return b"just now"

        with logbroker.open(tmp_path / "data") as blocking:
            blocking.responder("t")(answer)
            asking = asyncio.create_task(broker.request("t", b""))
            await asyncio.to_thread(is_asked.wait, DEADLINE_S)
            await broker._exchange._worker.submit(
                lambda: None
            )  # behind the sending, which may have to end still
            await asyncio.sleep(0.01)  # now it waits for the reply
            may_answer.set()
            ends = time.monotonic() + DEADLINE_S
            while broker.request_counts.answered == 0:  # until the thread has it, and the loop does not know
                assert time.monotonic() < ends
                time.sleep(0.001)  # noqa: ASYNC251
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    run(body)


def test_closing_the_broker_waits_for_the_answer_at_hand(run, tmp_path):
    with logbroker.open(tmp_path / "data") as asking:
        replies = []

        async def body(broker):
            entered = asyncio.Event()

            @broker.responder("t")
            async def slow(request):
                entered.set()
                await asyncio.sleep(0.1)
                return b"done"

            await slow
            thread = threading.Thread(target=lambda: replies.append(asking.request("t", b"")))
            thread.start()
            await entered.wait()
            return thread

        run(body).join(DEADLINE_S)
        assert [reply.value for reply in replies] == [b"done"]


def test_run_answers_until_it_is_cancelled(run):
    async def body(broker):
        responder = broker.responder("t")(upper)
        running = asyncio.create_task(responder.run())
        await responder
        assert (await broker.request("t", b"a")).value == b"A"
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(NoRespondersError):
            await broker.request("t", b"a")

    run(body)


def test_what_keeps_a_responder_from_starting_is_told_who_awaits_it(run):
    async def body(broker):
        responder = broker.responder("t", concurrency=0)(upper)
        with pytest.raises(InvalidRequestError, match="concurrency=0"):
            await responder
        with pytest.raises(InvalidRequestError, match="coroutine function"):
            broker.responder("t")(lambda request: b"")

    run(body)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_a_responder_stops_though_all_tasks_were_cancelled_when_it_started(run, steps):
    async def body(broker):
        before = asyncio.all_tasks()
        responder = broker.responder("t")(upper)
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await responder.stop()
        assert not responder.is_running
        with pytest.raises(NoRespondersError):
            await broker.request("t", b"a")

    run(body)
