"""The asyncio twins where something is cut short: polls, receives and closings that are cancelled, damage, a fork."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Coroutine
from pathlib import Path

import pytest

import logbroker
from logbroker.aio import AsyncBroker
from logbroker.aio_consumer import AsyncConsumer
from logbroker.worker import ended

HANG_S = 30.0  # so long only what never comes is waited for, on any machine


def damage(folder: Path) -> None:
    (path,) = folder.glob("*.log")
    path.write_bytes(path.read_bytes().replace(b"value-2", b"valUe-2"))


def test_async_iteration_goes_on_behind_damage(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            async with broker.producer() as producer:
                for number in range(5):
                    await producer.send("t", b"value-%d" % number)
        damage(tmp_path / "d" / "logs" / "t-0")
        seen = []
        async with logbroker.open_async(tmp_path / "d") as broker, broker.consumer("t") as consumer:
            for _ in range(2):
                try:
                    async with asyncio.timeout(HANG_S):
                        async for record in consumer:
                            seen.append(record.offset)
                            if record.offset == 4:
                                break
                except logbroker.CorruptionError as error:
                    await consumer.seek(error.partition, error.end_offset)
        assert seen == [0, 1, 3, 4]

    asyncio.run(main())


def test_an_async_transaction_commits_nothing_that_a_cancelled_poll_brought(tmp_path):
    async def main():
        with logbroker.open(tmp_path / "d") as blocking, blocking.producer() as producer:
            blocking.create_topic("t")
            producer.send("t", b"0").result(HANG_S)
            async with logbroker.open_async(tmp_path / "d") as broker:
                async with broker.consumer("t", group="g", delivery="manual") as consumer:
                    assert len(await consumer.poll(timeout=HANG_S)) == 1
                    more = asyncio.create_task(consumer.poll(timeout=None))
                    await asyncio.sleep(0.2)
                    producer.send("t", b"1").result(HANG_S)
                    time.sleep(0.3)  # noqa: ASYNC251 (the thread has it, the loop does not know)
                    more.cancel()
                    await asyncio.wait([more])
                    async with broker.transaction("x") as tx:
                        await tx.commit_offsets(consumer)
                async with broker.consumer("t", group="g", delivery="manual") as consumer:
                    assert [record.value for record in await consumer.poll(timeout=HANG_S)] == [b"1"]

    asyncio.run(main())


async def cancelled_poll(consumer: AsyncConsumer) -> None:
    """Have a poll cancelled whose records the thread still brings."""
    await consumer.assignment()
    polling = asyncio.create_task(consumer.poll(5, timeout=HANG_S))
    while consumer._polling is None:  # noqa: ASYNC110 (it tells nobody)
        await asyncio.sleep(0)
    polling.cancel()
    await asyncio.wait([polling])


async def send_ten(broker: AsyncBroker) -> None:
    await broker.create_topic("t")
    async with broker.producer() as producer:
        await producer.send_many("t", [b"%d" % n for n in range(10)])


def test_a_commit_beside_a_poll_hands_nothing_out_twice(tmp_path):
    """Both wait for the poll that was cancelled before."""

    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await send_ten(broker)
            async with broker.consumer("t", group="g", delivery="manual") as consumer:
                await cancelled_poll(consumer)
                offsets = []

                async def read():
                    while len(offsets) < 10:
                        offsets.extend(record.offset for record in await consumer.poll(5, timeout=HANG_S))

                await asyncio.gather(consumer.commit(), read())
                assert offsets == list(range(10))
                assert await consumer.position() == {0: 10}

    asyncio.run(main())


@pytest.mark.parametrize("way", ["poll", "iteration"])
def test_what_is_being_put_back_is_read_before_the_rest(tmp_path, way):
    """The seek back is still to come when the next read begins, as its commit was cancelled."""

    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await send_ten(broker)
            async with broker.consumer("t", group="g", delivery="manual") as consumer:
                await cancelled_poll(consumer)
                await ended(consumer._polling)
                go_on = threading.Event()
                consumer._control.submit(go_on.wait)
                committing = asyncio.create_task(consumer.commit())
                while consumer._seeking is None:  # noqa: ASYNC110 (it tells nobody)
                    await asyncio.sleep(0)
                committing.cancel()

                async def read():
                    if way == "iteration":
                        return [(await anext(consumer)).offset for _ in range(10)]
                    return [
                        record.offset for _ in range(2) for record in await consumer.poll(5, timeout=HANG_S)
                    ]

                reading = asyncio.create_task(read())
                await asyncio.wait([reading], timeout=0.2)
                go_on.set()
                assert await reading == list(range(10))

    asyncio.run(main())


async def make_queue(broker: AsyncBroker, count: int = 1, **options) -> None:
    """A topic "t" with *count* messages, and its subscription "s"."""
    await broker.create_topic("t")
    await broker.create_subscription("s", topic="t", **options)
    async with broker.producer() as producer:
        await producer.send_many("t", [b"%d" % n for n in range(count)])


def test_a_receive_without_waiting_does_not_wait_behind_another(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await make_queue(broker, 0)
            async with broker.queue(subscription="s") as queue, broker.producer() as producer:

                async def taking():
                    await queue.receive(timeout=HANG_S)
                    async with asyncio.timeout(HANG_S):
                        return await queue.receive_many(10, timeout=0.0)

                one = asyncio.create_task(taking())
                await asyncio.sleep(0.1)
                other = asyncio.create_task(queue.receive_many(1, timeout=None))
                await asyncio.sleep(0.1)
                await producer.send("t", b"1")
                assert await one == []
                other.cancel()
                await asyncio.wait([other])

    asyncio.run(main())


def test_closing_an_async_queue_is_carried_out_though_cancelled(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await make_queue(broker, lease=3600.0)
            queue = broker.queue(subscription="s", renew=True)
            await queue.receive(timeout=HANG_S)
            waiting = asyncio.create_task(queue.receive_many(1, timeout=None))
            await asyncio.sleep(0.2)
            closing = asyncio.create_task(queue.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, waiting, return_exceptions=True)
            async with broker.queue(subscription="s") as again:
                assert (await again.receive(timeout=HANG_S)).value == b"0"

    asyncio.run(main())


def test_a_handle_of_a_deleted_topic_fails_nobody_elses_acceptance(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("a")
            await broker.create_topic("b")
            await broker.create_subscription("s", topic=["a", "b"])
            async with broker.producer() as producer:
                await producer.send("a", b"")
                await producer.send("b", b"")
            async with broker.queue(subscription="s", detached=True) as queue:
                messages = {
                    m.topic: m
                    for m in [await queue.receive(timeout=HANG_S), await queue.receive(timeout=HANG_S)]
                }
                await broker.delete_topic("b")
                outcomes = await asyncio.gather(
                    messages["a"].accept(), queue.accept([messages["b"].handle]), return_exceptions=True
                )
                assert outcomes[0] is None
                assert isinstance(outcomes[1], logbroker.LogbrokerError)
            assert (await broker.subscription("s")).lag == 0

    asyncio.run(main())


def test_async_objects_say_so_in_a_forked_child(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            async with broker.producer() as producer, broker.consumer("t") as consumer:
                await producer.send("t", b"")
                await consumer.poll(timeout=HANG_S)

                @broker.responder("rpc")
                async def answer(request):
                    return request.value

                await answer
                if (child := os.fork()) == 0:
                    code = 1
                    try:
                        asyncio.events._set_running_loop(None)

                        async def inside():
                            for call in (broker.topics, lambda: producer.send("t", b""), consumer.poll):
                                with pytest.raises(logbroker.ForkedError):
                                    async with asyncio.timeout(HANG_S):
                                        await call()
                            for twin in (producer, consumer, broker):
                                async with asyncio.timeout(HANG_S):
                                    await twin.close()  # nothing here is the child's to close

                        asyncio.run(inside())
                        code = 0
                    finally:
                        os._exit(code)
                assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 (nothing else is to go on)

    asyncio.run(main())


def test_closing_an_async_consumer_that_is_being_opened_closes_it(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            consumer = broker.consumer("t", group="g")
            polling = asyncio.create_task(consumer.poll(timeout=HANG_S))
            await asyncio.sleep(0)
            await consumer.close()
            await asyncio.wait([polling])
            assert (await broker.group("g")).members == []

    asyncio.run(main())


def test_entering_an_async_consumer_that_is_cancelled_leaves_no_member_behind(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")

            async def enter():
                async with broker.consumer("t", group="g"):
                    raise AssertionError("it was cancelled before")

            entering = asyncio.create_task(enter())
            await asyncio.sleep(0)
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
            assert (await broker.group("g")).members == []

    asyncio.run(main())


def test_a_first_poll_that_is_cancelled_leaves_one_member(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            consumer = broker.consumer("t", group="g")
            polling = asyncio.create_task(consumer.poll(timeout=None))
            await asyncio.sleep(0)
            polling.cancel()
            await asyncio.wait([polling])
            assert await consumer.assignment() == [("t", 0)]
            assert len((await broker.group("g")).members) == 1
            await consumer.close()
            assert (await broker.group("g")).members == []

    asyncio.run(main())


def test_closing_an_async_consumer_that_is_being_opened_ends_its_iteration(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            consumer = broker.consumer("t")

            async def read():
                return [record async for record in consumer]

            reading = asyncio.create_task(read())
            await asyncio.sleep(0)
            await consumer.close()
            assert await reading == []

    asyncio.run(main())


def test_closing_an_async_producer_is_carried_out_though_cancelled(tmp_path):
    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            producer = broker.producer(name="n")
            await producer.send("t", b"0")
            closing = asyncio.create_task(producer.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            async with asyncio.timeout(HANG_S):
                await producer.close()  # waits for what was begun
            assert producer._lifetime.blocking.closed

    asyncio.run(main())


def test_leaving_an_async_transaction_of_a_closed_broker_is_no_commit(tmp_path):
    async def main():
        broker = logbroker.open_async(tmp_path / "d")
        await broker.create_topic("t")
        async with broker.transaction("x") as tx:
            await tx.send("t", b"payment")
            await broker.close()

    with pytest.raises(logbroker.ClosedError):
        asyncio.run(main())


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_transaction_is_ended_where_all_tasks_are_cancelled(tmp_path, error):
    """Also when the task that ends it has just been made: left open, it would hold up every reader."""

    async def use(broker: AsyncBroker, is_left: asyncio.Event):
        async with broker.transaction("x") as tx:
            await tx.send("t", b"1")
            is_left.set()
            if error is not None:
                raise error

    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            is_left = asyncio.Event()
            using = asyncio.create_task(use(broker, is_left))
            await is_left.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            assert using.cancelled()
            async with broker.consumer("t") as consumer, broker.producer() as producer:
                await producer.send("t", b"2")
                async with asyncio.timeout(HANG_S):
                    values = [(await anext(consumer)).value]
                    if error is None:
                        values.append((await anext(consumer)).value)
            assert values == ([b"1", b"2"] if error is None else [b"2"])

    asyncio.run(main())


@pytest.mark.parametrize("is_asked_for", [True, False], ids=["commit", "leave"])
def test_an_async_transaction_does_not_commit_without_a_cancelled_send_that_failed(tmp_path, is_asked_for):
    async def cancelled(call: Coroutine[object, object, object]):
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            async with broker.transaction("x") as tx:
                await cancelled(tx.send("t", b"1"))  # is part of it
            with pytest.raises(logbroker.TopicNotFoundError):  # noqa: PT012 (by whichever of the two)
                async with broker.transaction("x") as tx:
                    await tx.send("t", b"2")
                    await cancelled(tx.send("nowhere", b"3"))
                    if is_asked_for:
                        await tx.commit()
            async with broker.transaction("x") as tx:
                await tx.send("t", b"4")
            async with broker.consumer("t") as consumer:
                assert [record.value for record in await consumer.poll(timeout=HANG_S)] == [b"1", b"4"]

    asyncio.run(main())


def test_a_commit_that_is_cancelled_before_its_turn_is_made_in_its_turn(tmp_path):
    """It must not wait for itself, as one of the calls before it."""
    may_go_on = threading.Event()

    def values():
        yield b"1"
        may_go_on.wait(HANG_S)

    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            async with asyncio.timeout(HANG_S), broker.transaction("x") as tx:
                sending = asyncio.create_task(tx.send_many("t", values()))
                committing = asyncio.create_task(tx.commit())
                await asyncio.sleep(0)
                committing.cancel()
                await asyncio.wait([committing])
                may_go_on.set()
                assert await sending == 1
            async with broker.consumer("t") as consumer:
                assert [record.value for record in await consumer.poll(timeout=HANG_S)] == [b"1"]

    asyncio.run(main())


READERS = {
    "poll": lambda consumer: consumer.poll(timeout=None),
    "iteration": lambda consumer: consumer.__anext__(),
    "receive": lambda queue: queue.receive_many(1, timeout=None),
}


def test_a_wait_that_is_given_up_again_and_again_leaves_nothing(tmp_path):
    """Such as for the next record, a moment at a time, where none comes for days."""

    def futures() -> int:
        gc.collect()
        return sum(isinstance(thing, asyncio.Future) for thing in gc.get_objects())

    async def main():
        async with logbroker.open_async(tmp_path / "d") as broker:
            await broker.create_topic("t")
            async with broker.consumer("t") as consumer:
                before = futures()
                for _ in range(100):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.001):
                            await anext(consumer)
                    assert await consumer.poll(timeout=0.001) == []
                assert futures() - before < 20

    asyncio.run(main())


@pytest.mark.parametrize("is_read_on", [True, False])
@pytest.mark.parametrize("way", READERS)
def test_what_was_read_for_a_loop_that_is_closed_is_there_for_the_next(tmp_path, way, is_read_on):
    """Ctrl-C, say, ended the first while the thread was reading; the next goes on, or only closes."""
    is_reading, may_go_on = threading.Event(), threading.Event()

    def matches(record):
        is_reading.set()
        return may_go_on.wait(HANG_S)

    def made(broker: AsyncBroker):
        if way == "receive":
            return broker.queue(subscription="s", filter=matches)
        return broker.consumer("t", filter=matches)

    async def first():
        broker = logbroker.open_async(tmp_path / "d")
        await make_queue(broker)
        reader = made(broker)
        task = asyncio.ensure_future(READERS[way](reader))
        await asyncio.to_thread(is_reading.wait, HANG_S)
        return broker, reader, task

    async def second():
        async with asyncio.timeout(HANG_S):
            if is_read_on:
                found = await READERS[way](reader)
                assert (found[0] if isinstance(found, list) else found).offset == 0
            await reader.close()
            async with broker.queue(subscription="s") as queue:
                assert (await queue.receive(timeout=HANG_S)).delivery_count == 1 + (
                    is_read_on and way == "receive"
                )
            await broker.close()

    broker, reader, _ = asyncio.run(first())
    may_go_on.set()
    asyncio.run(second())
