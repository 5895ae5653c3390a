"""Queues for asyncio: the same answers, a loop that never blocks, and cancelled receives that keep nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import logbroker
from logbroker.aio import AsyncBroker
from logbroker.errors import (
    ClosedError,
    InvalidRequestError,
    LeaseLostError,
    QueueEmptyError,
    SubscriptionNotFoundError,
)
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles, ManualClock

Body = Callable[[AsyncBroker], Awaitable[Any]]


@pytest.fixture
def run(tmp_path) -> Callable[..., Any]:
    """Run a coroutine function, in debug mode, with an open broker that has a topic and a queue of it."""

    def run(body: Body, **options: Any) -> Any:
        async def main() -> Any:
            async with logbroker.open_async(tmp_path / "data", **options) as broker:
                await broker.create_topic("jobs", exist_ok=True)
                await broker.create_subscription("workers", topic="jobs", dead_letter="dead", exist_ok=True)
                return await body(broker)

        with asyncio.Runner(debug=True) as runner:
            return runner.run(main())

    return run


async def send(broker: AsyncBroker, count: int, *, first: int = 0) -> None:
    async with broker.producer() as producer:
        await producer.send_many("jobs", [b"%d" % number for number in range(first, first + count)])


async def in_flight(broker: AsyncBroker) -> int:
    return (await broker.subscription("workers")).in_flight


# Receiving and settling -----------------------------------------------------------------------------------


def test_a_message_is_received_and_accepted(run):
    async def body(broker):
        await send(broker, 2)
        async with broker.queue("jobs", subscription="workers") as queue:
            message = await queue.receive(timeout=5)
            assert (message.topic, message.partition, message.offset) == ("jobs", 0, 0)
            assert (message.key, message.value, message.headers) == (None, b"0", [])
            assert message.delivery_count == 1
            assert message.timestamp.timestamp() * 1000 == pytest.approx(message.timestamp_ms)
            await message.accept()
            assert message.is_settled
            assert (await broker.subscription("workers")).lag == 1

    run(body)


def test_a_timeout_that_is_no_number_of_seconds_is_refused(run):
    async def body(broker):
        async with broker.queue(subscription="workers") as queue:
            for timeout in ("1", float("nan")):
                with pytest.raises(InvalidRequestError, match="give it seconds"):
                    await queue.receive(timeout=timeout)

    run(body)


def test_leaving_the_block_accepts_and_an_exception_releases(run):
    async def body(broker):
        await send(broker, 1)
        async with broker.queue(subscription="workers") as queue:
            with pytest.raises(ZeroDivisionError):
                async with queue.receive(timeout=5):
                    raise ZeroDivisionError
            async with queue.receive(timeout=5) as message:
                assert message.delivery_count == 2
            assert (await broker.subscription("workers")).lag == 0
            with pytest.raises(QueueEmptyError):
                async with queue.receive(timeout=0.01):
                    pytest.fail("there is none")

    run(body)


def test_a_message_that_was_awaited_is_a_context_manager_too(run):
    async def body(broker):
        await send(broker, 2)
        async with broker.queue(subscription="workers") as queue:
            async with await queue.receive(timeout=5) as message:
                await message.reject("no good")
            async with await queue.receive(timeout=5) as message:
                pass
        description = await broker.subscription("workers")
        assert (description.lag, description.dead_letters) == (0, 1)

    run(body)


def test_a_wakeup_ends_the_receive_that_waits_or_the_next_one_that_would(run):
    async def body(broker):
        queue = broker.queue(subscription="workers")
        assert queue.subscription == "workers"
        queue.wakeup()
        assert await queue.receive_many(timeout=None) == []
        waiting = asyncio.ensure_future(queue.receive(timeout=None))
        await asyncio.sleep(0.05)
        queue.wakeup()
        with pytest.raises(QueueEmptyError, match=r"before wakeup\(\)"):
            await waiting
        await send(broker, 1)
        queue.wakeup()
        assert len(await queue.receive_many(timeout=None)) == 1  # it had no need to wait
        assert await queue.receive_many(timeout=None) == []
        await queue.close()

    run(body)


def test_a_wakeup_does_not_end_an_iteration(run):
    async def body(broker):
        async with broker.queue(subscription="workers") as queue:
            waiting = asyncio.ensure_future(anext(queue))
            await asyncio.sleep(0.05)
            queue.wakeup()
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await send(broker, 1)
            await (await waiting).accept()

    run(body)


def test_what_is_given_back_was_never_delivered(run):
    async def body(broker):
        await send(broker, 2)
        async with broker.queue(subscription="workers") as queue:
            batch = await queue.receive_many(2, timeout=5)
            await queue.give_back(batch)
            assert [message.is_settled for message in batch] == [True, True]
            again = await queue.receive_many(2, timeout=5)
            assert [(message.value, message.delivery_count) for message in again] == [(b"0", 1), (b"1", 1)]

    run(body)


def test_an_acceptance_that_need_not_last_syncs_nothing(run):
    files = FaultyFiles(OsFiles())

    async def body(broker):
        await send(broker, 3)
        async with broker.queue(subscription="workers") as queue:
            first, second, third = await queue.receive_many(3, timeout=5)
            before = files.calls["fdatasync"]
            await queue.accept([first], durable=False)
            assert files.calls["fdatasync"] == before
            await asyncio.gather(queue.accept([second], durable=False), queue.accept([third]))
            assert files.calls["fdatasync"] == before + 1
            assert (await broker.subscription("workers")).lag == 0

    run(body, files=files)


def test_many_are_settled_together(run):
    files = FaultyFiles(OsFiles())

    async def body(broker):
        await send(broker, 100)
        async with broker.queue(subscription="workers") as queue:
            batch = await queue.receive_many(100, timeout=5)
            assert [message.offset for message in batch] == list(range(100))
            await batch[0].extend(60)
            await batch[1].release(delay=3600)
            await batch[2].reject()
            before = files.calls["fdatasync"]
            await batch.accept()
            assert files.calls["fdatasync"] - before == 1
            assert await queue.receive_many() == []
            assert (await broker.subscription("workers")).lag == 1
        async with broker.queue(subscription="workers") as queue:
            assert await queue.receive_many(timeout=0.0) == []

    run(body, files=files)


def test_what_many_tasks_accept_at_a_time_shares_a_few_syncs(run):
    files = FaultyFiles(OsFiles())

    async def body(broker):
        await send(broker, 500)
        async with broker.queue(subscription="workers") as queue:
            batch = await queue.receive_many(500, timeout=5)
            before = files.calls["fdatasync"]
            await asyncio.gather(*(message.accept() for message in batch))
            assert files.calls["fdatasync"] - before <= 3
            assert (await broker.subscription("workers")).lag == 0

    run(body, files=files)


def test_of_tasks_that_accept_together_only_those_that_lost_theirs_are_told(run):
    async def body(broker):
        await send(broker, 10)
        async with broker.queue(subscription="workers") as queue:
            batch = await queue.receive_many(10, timeout=5)
            await asyncio.gather(batch[3].accept(), batch[7].accept())
            outcomes = await asyncio.gather(*(message.accept() for message in batch), return_exceptions=True)
            assert [number for number, outcome in enumerate(outcomes) if outcome is not None] == [3, 7]
            assert isinstance(outcomes[3], LeaseLostError)
            assert outcomes[7].lost == [("jobs", 0, 7, 7)]
            assert (await broker.subscription("workers")).lag == 0

    run(body)


def test_an_iteration_hands_out_each_message_and_ends_with_the_queue(run):
    async def body(broker):
        seen = []
        done = asyncio.Event()

        async def work():
            async for message in queue:
                seen.append(message.value)
                await message.accept()
                if len(seen) == 30:
                    done.set()

        async with broker.queue(subscription="workers") as queue:
            tasks = [asyncio.ensure_future(work()) for _ in range(5)]
            await send(broker, 20)
            await send(broker, 10, first=20)
            await asyncio.wait_for(done.wait(), 20)
        await asyncio.gather(*tasks)
        assert sorted(seen, key=int) == [b"%d" % number for number in range(30)]

    run(body)


def test_a_task_that_waits_behind_another_keeps_its_own_timeout(run):
    async def body(broker):
        async with broker.queue(subscription="workers") as queue:
            patient = asyncio.ensure_future(queue.receive_many(timeout=None))
            await asyncio.sleep(0.05)
            began = time.monotonic()
            assert await queue.receive_many(timeout=0.1) == []
            assert await queue.receive_many(timeout=0.0) == []
            assert time.monotonic() - began < 30
            await send(broker, 1)
            assert [message.value for message in await patient] == [b"0"]

    run(body)


def test_a_detached_message_is_accepted_by_its_handle(run):
    async def body(broker):
        await send(broker, 3)
        async with broker.queue(subscription="workers", detached=True) as queue:
            handles = [message.handle for message in await queue.receive_many(2, timeout=5)]
        assert await in_flight(broker) == 2
        async with broker.queue(subscription="workers") as queue:
            await queue.accept(handles)
            with pytest.raises(InvalidRequestError):
                await queue.accept(["nonsense"])
        assert (await broker.subscription("workers")).lag == 1

    run(body)


def test_renewed_leases_last_while_the_task_works(run):
    clock = ManualClock()

    async def body(broker):
        await send(broker, 1)
        async with broker.queue(subscription="workers", lease=0.3, renew=True) as queue:
            message = await queue.receive(timeout=5)
            (partition,) = queue._lifetime.blocking._partitions.values()
            for _ in range(4):
                clock.advance(ms=200)
                async with asyncio.timeout(30):
                    while partition.glance().next_due_s < 0.3:  # noqa: ASYNC110 (there is no event for it)
                        await asyncio.sleep(0.001)
            await message.accept()

    run(body, clock=clock)


def test_a_message_of_another_queue_is_refused(run):
    async def body(broker):
        await send(broker, 1)
        async with broker.queue(subscription="workers") as one, broker.queue(subscription="workers") as other:
            message = await one.receive(timeout=5)
            with pytest.raises(InvalidRequestError, match="another queue"):
                await other.accept([message])

    run(body)


# Cancellation ---------------------------------------------------------------------------------------------


def test_a_cancelled_receive_ends_at_once_and_holds_nothing(run):
    async def body(broker):
        async with broker.queue(subscription="workers") as queue:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(queue.receive(), 0.05)
            await send(broker, 1)
            message = await queue.receive(timeout=5)
            assert message.delivery_count == 1

    run(body)


def test_receives_that_are_cancelled_while_messages_come_lose_none_and_use_up_no_delivery(run, rng):
    async def body(broker):
        seen = []
        async with broker.queue(subscription="workers") as queue, broker.producer() as producer:
            for number in range(60):
                receiving = asyncio.ensure_future(queue.receive_many(10, timeout=None))
                sending = asyncio.ensure_future(producer.send("jobs", b"%d" % number))
                await asyncio.sleep(rng.random() * 0.002)
                receiving.cancel()
                try:
                    batch = await receiving
                except asyncio.CancelledError:
                    pass
                else:
                    seen += batch
                    await batch.accept()
                await sending
            while batch := await queue.receive_many(100, timeout=0.5):
                seen += batch
                await batch.accept()
        assert sorted(int(message.value) for message in seen) == list(range(60))
        assert {message.delivery_count for message in seen} == {1}
        assert (await broker.subscription("workers")).lag == 0

    run(body)


def test_closing_behind_a_cancelled_receive_gives_back_what_it_brought(run):
    async def body(broker):
        await send(broker, 5)
        queue = broker.queue(subscription="workers")
        await queue.receive_many(1, timeout=5)
        receiving = asyncio.ensure_future(queue.receive_many(2, timeout=None))
        await asyncio.sleep(0)
        receiving.cancel()
        await queue.close()
        assert await in_flight(broker) == 0
        async with broker.queue(subscription="workers") as queue:
            counts = {message.offset: message.delivery_count for message in await queue.receive_many(5, 5)}
        assert counts == {0: 2, 1: 1, 2: 1, 3: 1, 4: 1}

    run(body)


def test_receives_that_are_cancelled_one_after_the_other_do_not_hold_up_the_next(run):
    async def body(broker):
        async with broker.queue(subscription="workers") as queue:
            waiting = [asyncio.ensure_future(queue.receive_many(timeout=None)) for _ in range(20)]
            await asyncio.sleep(0.02)
            for task in waiting:
                task.cancel()
                await asyncio.sleep(0)
            await send(broker, 1)
            assert (await queue.receive(timeout=5)).delivery_count == 1

    run(body)


def test_a_cancelled_acceptance_is_carried_out(run):
    async def body(broker):
        await send(broker, 1)
        async with broker.queue(subscription="workers") as queue:
            message = await queue.receive(timeout=5)
            accepting = asyncio.ensure_future(message.accept())
            await asyncio.sleep(0)
            accepting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await accepting
        assert (await broker.subscription("workers")).lag == 0

    run(body)


def test_a_task_that_is_cancelled_in_its_work_releases_the_message(run):
    async def body(broker):
        await send(broker, 1)

        async def work(queue):
            async with queue.receive(timeout=5):
                started.set()
                await asyncio.sleep(3600)

        started = asyncio.Event()
        async with broker.queue(subscription="workers") as queue:
            working = asyncio.ensure_future(work(queue))
            await started.wait()
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            message = await queue.receive(timeout=5)
            assert message.delivery_count == 2

    run(body)


# The rest -------------------------------------------------------------------------------------------------


def test_the_loop_runs_on_while_a_receive_waits(run):
    async def body(broker):
        async with broker.queue(subscription="workers") as queue:
            receiving = asyncio.ensure_future(queue.receive_many(timeout=None))
            for _ in range(1000):  # of a loop that stands still none ends
                await asyncio.sleep(0)
            assert not receiving.done()
            queue.wakeup()
            assert await receiving == []

    run(body)


def test_a_closed_queue_says_so(run):
    async def body(broker):
        queue = broker.queue(subscription="workers")
        await queue.close()
        await queue.close()
        with pytest.raises(ClosedError):
            await queue.receive(timeout=0)
        waiting = broker.queue(subscription="workers")
        receiving = asyncio.ensure_future(waiting.receive_many(timeout=None))
        await asyncio.sleep(0.1)
        await waiting.close()
        with pytest.raises(ClosedError):
            await receiving

    run(body)


def test_what_cannot_be_opened_raises_and_can_be_tried_again(run):
    async def body(broker):
        queue = broker.queue(subscription="later")
        for _ in range(2):
            with pytest.raises(SubscriptionNotFoundError):
                await queue.receive(timeout=0)
        await broker.create_subscription("later", topic="jobs")
        await send(broker, 1)
        assert (await queue.receive(timeout=5)).value == b"0"
        await queue.close()

    run(body)


def test_a_transaction_accepts_messages_with_what_was_made_of_them(run):
    async def body(broker):
        await send(broker, 2)
        await broker.create_topic("out")
        async with broker.queue(subscription="workers") as queue:
            first, second = await queue.receive_many(2, timeout=5)
            async with broker.transaction("worker") as tx:
                await tx.send("out", first.value.upper())
                await tx.accept([first])
            assert first.is_settled
            async with broker.transaction("worker") as tx:
                await tx.send("out", second.value)
                await tx.accept([second])
                await tx.abort()
            assert not second.is_settled
        async with broker.consumer("out") as consumer:
            assert [record.value for record in await consumer.poll(timeout=5)] == [b"0"]
        assert (await broker.subscription("workers")).lag == 1

    run(body)


def test_subscriptions_are_managed(run):
    async def body(broker):
        await send(broker, 5)
        assert await broker.subscriptions() == ["workers"]
        await broker.pause_subscription("workers")
        assert (await broker.subscription("workers")).is_paused
        await broker.resume_subscription("workers")
        assert await broker.reset_subscription("workers", 3) == {("jobs", 0): 3}
        await broker.rename_subscription("workers", "crew")
        assert (await broker.subscription("crew")).lag == 2
        await broker.delete_subscription("crew")
        assert await broker.subscriptions() == []

    run(body)


def test_dead_letters_are_listed_and_redriven(run):
    async def body(broker):
        await send(broker, 3)
        async with broker.queue(subscription="workers") as queue:
            await (await queue.receive_many(3, timeout=5)).reject("no good")
            letters = await broker.dead_letters("workers")
            assert [letter.death.reason for letter in letters] == ["no good"] * 3
            assert (await broker.redrive("workers", only=[letters[1].place])).sent == {"jobs": 1}
            assert (await broker.redrive("workers", dry_run=True)).count == 2
            assert (await queue.receive(timeout=5)).value == b"1"
        assert len(await broker.dead_letters("workers", redriven=True)) == 3

    run(body)


def test_opening_a_queue_does_not_make_the_loop_wait_for_imports(tmp_path):
    program = """
import asyncio, sys, logbroker
async def main():
    async with logbroker.open_async(sys.argv[1]) as broker:
        queue = broker.queue(subscription="workers")
        assert "logbroker.queues.consumer" in sys.modules, "the worker has imported the engine"
modules = set(sys.modules)
import logbroker.aio_queue
assert "logbroker.queues.consumer" not in sys.modules
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "data")], check=True)
