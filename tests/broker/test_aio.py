"""The asyncio twins: the same answers, a loop that never blocks, and cancellation that loses nothing."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

import logbroker
from logbroker.aio import AsyncBroker
from logbroker.errors import ClosedError, InvalidRequestError, TopicNotFoundError, WriteFailedError
from logbroker.worker import ended
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop] | None] = {"asyncio": None}
try:
    import uvloop
except ImportError:
    pass
else:
    LOOPS["uvloop"] = uvloop.new_event_loop


@pytest.fixture(params=LOOPS)
def run(request, tmp_path) -> Callable[[Callable[[AsyncBroker], Awaitable[Any]]], Any]:
    """Run a coroutine function with an open broker that has a topic "t", in debug mode."""

    def run(body: Callable[[AsyncBroker], Awaitable[Any]], **options: Any) -> Any:
        async def main() -> Any:
            async with logbroker.open_async(tmp_path / "data", **options) as broker:
                await broker.create_topic("t", exist_ok=True)
                return await body(broker)

        with asyncio.Runner(debug=True, loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main())

    return run


def test_a_send_returns_the_metadata_of_an_acknowledged_record(run):
    async def body(broker):
        async with broker.producer() as producer:
            first = await producer.send("t", b"a")
            second = await producer.send("t", b"b", key=b"k", headers={"h": b"1"})
        assert [first.offset, second.offset] == [0, 1]
        description = await broker.topic("t")
        assert description.partitions[0].high_watermark == 2

    run(body)


def test_a_send_says_of_the_delivery_what_the_blocking_one_does(run):
    async def body(broker):
        async with broker.producer() as producer:
            first = await producer.send("t", b"a", None, {"h": b"1"}, priority=3, message_id="m")
            second = await producer.send("t", b"b", delay=timedelta(seconds=1), message_id="m")
            forgotten = await producer.send("t", b"c", acks="none")
            with pytest.raises(InvalidRequestError, match="priority"):
                await producer.send("t", b"d", priority=99)
        async with broker.transaction("tx") as tx:
            third = await tx.send("t", b"e", message_id="m")
        assert [first.duplicate, second.duplicate, third.duplicate] == [False, True, True]
        assert [second.offset, third.offset, forgotten.offset] == [0, 0, -1]
        assert await committed(broker) == [b"a", b"c"]

    run(body)


def test_a_thousand_concurrent_sends_share_a_few_syncs(run):
    files = FaultyFiles(OsFiles())

    async def body(broker):
        async with broker.producer() as producer:
            await producer.send("t", b"first")
            before = files.calls["fdatasync"]
            sent = await asyncio.gather(*(producer.send("t", b"%d" % number) for number in range(1000)))
            assert files.calls["fdatasync"] - before <= 3
            assert [metadata.offset for metadata in sent] == list(range(1, 1001))

    run(body, files=files)


def test_errors_reach_the_send_that_they_belong_to(run):
    async def body(broker):
        async with broker.producer() as producer:
            outcomes = await asyncio.gather(
                producer.send("t", b"a"),
                producer.send("nowhere", b"b"),
                producer.send("t", "text"),
                return_exceptions=True,
            )
        assert outcomes[0].offset == 0
        assert isinstance(outcomes[1], TopicNotFoundError)
        assert isinstance(outcomes[2], InvalidRequestError)

    run(body)


def test_a_stop_iteration_of_the_callers_own_code_reaches_who_awaits_it(run):
    """No future takes one: the caller would wait for ever, and so would those who sent at the same moment."""

    class Headers:
        def __iter__(self):
            return next(iter([]))

    def matches(record):
        return next(value for name, value in record.headers if name == "kind") == b"x"

    async def body(broker):
        async with broker.producer() as producer, broker.consumer("t", filter=matches) as consumer:
            async with asyncio.timeout(30):
                broken, sent = await asyncio.gather(
                    producer.send("t", b"a", headers=Headers()),
                    producer.send("t", b"b"),
                    return_exceptions=True,
                )
                assert isinstance(broken, RuntimeError)
                assert isinstance(broken.__cause__, StopIteration)
                assert sent.offset == 0
                with pytest.raises(RuntimeError, match="StopIteration"):
                    await consumer.poll(timeout=1)

    run(body)


def test_the_failure_of_a_cancelled_send_is_raised_on_leaving(run):
    files = FaultyFiles(OsFiles())

    async def body(broker):
        producer = broker.producer()
        await producer.send("t", b"a")
        files.fail("pwrite", path=".log", error=errno.ENOSPC)
        task = asyncio.ensure_future(producer.send("t", b"b"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        with pytest.raises(WriteFailedError):
            await producer.close()

    run(body, files=files)


def test_send_many_waits_until_all_is_acknowledged(run):
    async def body(broker):
        producer = broker.producer(linger=1000.0)
        assert await producer.send_many("t", (b"%d" % number for number in range(5000))) == 5000
        assert (await broker.topic("t")).partitions[0].high_watermark == 5000
        await producer.close()
        await producer.close()
        with pytest.raises(ClosedError):
            await producer.send("t", b"x")

    run(body)


def test_a_named_producer_knows_its_last_sequence(run):
    async def body(broker):
        async with broker.producer(name="loader") as producer:
            assert await producer.last_sequence("t") is None
            await asyncio.gather(*(producer.send("t", b"x", sequence=number) for number in range(5)))
            assert await producer.last_sequence("t") == 4
            await producer.flush()

    run(body)


def test_a_consumer_polls_and_commits(run):
    async def body(broker):
        async with broker.producer() as producer:
            await producer.send_many("t", [b"%d" % number for number in range(10)])
        async with broker.consumer("t", group="g") as consumer:
            assert await consumer.assignment() == [("t", 0)]
            assert [record.value for record in await consumer.poll(4, 5.0)] == [b"0", b"1", b"2", b"3"]
            await consumer.commit()
            assert await consumer.committed() == {0: 4}
            assert await consumer.position() == {0: 4}
            assert await consumer.lag() == {0: 6}
            await consumer.seek(0, 8)
            assert [record.value for record in await consumer.poll(timeout=5.0)] == [b"8", b"9"]
            assert await consumer.poll(timeout=0) == []
        assert await broker.groups() == ["g"]

    run(body)


def test_an_iteration_waits_for_records_and_ends_with_the_consumer(run):
    async def body(broker):
        seen = []

        async def read(consumer):
            async for record in consumer:
                seen.append(record.value)
                if len(seen) == 3:
                    arrived.set()

        arrived = asyncio.Event()
        async with broker.producer() as producer:
            consumer = broker.consumer("t")
            reading = asyncio.ensure_future(read(consumer))
            for value in (b"a", b"b", b"c"):
                await producer.send("t", value)
            await arrived.wait()
            await consumer.close()
            await reading
        assert seen == [b"a", b"b", b"c"]

    run(body)


def test_a_commit_in_an_iteration_covers_the_records_handed_out(run):
    async def body(broker):
        async with broker.producer() as producer:
            await producer.send_many("t", [b"x"] * 100)
        async with broker.consumer("t", group="g", delivery="manual") as consumer:
            count = 0
            async for _ in consumer:
                count += 1
                if count == 37:
                    await consumer.commit()
                    break
            assert await consumer.committed() == {0: 37}

    run(body)


def test_a_cancelled_poll_ends_at_once_and_loses_no_record(run):
    async def body(broker):
        async with broker.producer() as producer, broker.consumer("t", group="g") as consumer:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(consumer.poll(timeout=None), 0.02)
            sent = []
            for number in range(30):
                poll = asyncio.ensure_future(consumer.poll(timeout=None))
                await asyncio.sleep(0)
                await producer.send("t", b"%d" % number)
                poll.cancel()
                try:
                    sent += await poll
                except asyncio.CancelledError:
                    pass
            while len(sent) < 30:
                sent += await consumer.poll(timeout=5.0)
            assert [record.value for record in sent] == [b"%d" % number for number in range(30)]

    run(body)


def test_a_cancelled_iteration_goes_on_where_it_was(run):
    async def body(broker):
        async with broker.producer() as producer, broker.consumer("t") as consumer:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(consumer), 0.02)
            await producer.send_many("t", [b"a", b"b", b"c"])
            assert (await anext(consumer)).value == b"a"
            assert (await anext(consumer)).value == b"b"
            assert [record.value for record in await consumer.poll(timeout=5.0)] == [b"c"]

    run(body)


def test_a_poll_after_a_cancelled_iteration_keeps_to_its_own_timeout(run):
    async def body(broker):
        async with broker.producer() as producer, broker.consumer("t") as consumer:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(consumer), 0.02)
            assert await consumer.poll(timeout=0.01) == []
            await producer.send_many("t", [b"a", b"b"])
            found = []
            while len(found) < 2:
                found += await consumer.poll(1, 5.0)
            assert [record.value for record in found] == [b"a", b"b"]

    run(body)


def test_what_a_cancelled_poll_took_is_not_committed(run):
    async def body(broker):
        async with broker.producer() as producer:
            await producer.send_many("t", [b"a", b"b"])
        async with broker.consumer("t", group="g") as consumer:
            poll = asyncio.ensure_future(consumer.poll(timeout=5.0))
            while consumer._polling is None:  # noqa: ASYNC110 (there is no event for it)
                await asyncio.sleep(0)
            poll.cancel()
            with pytest.raises(asyncio.CancelledError):
                await poll
            await consumer.commit()
            assert await consumer.committed() in ({0: None}, {0: 0})
        async with broker.consumer("t", group="g") as consumer:
            assert [record.value for record in await consumer.poll(timeout=5.0)] == [b"a", b"b"]

    run(body)


def test_a_paused_partition_hands_out_nothing_until_it_is_resumed(run):
    async def body(broker):
        await broker.alter_topic("t", partitions=2)
        async with broker.producer() as producer, broker.consumer("t", group="g") as consumer:
            assert consumer.group == "g"
            await producer.send_many("t", [b"a%d" % number for number in range(300)], partition=0)
            seen = [(await anext(consumer)).value for _ in range(250)]
            await consumer.pause(("t", 0))
            await producer.send("t", b"x", partition=1)
            assert (await anext(consumer)).value == b"x"
            assert await consumer.poll(timeout=0.01) == []
            await consumer.resume(("t", 0))
            while len(seen) < 300:
                seen += [record.value for record in await consumer.poll(timeout=5.0)]
            assert seen == [b"a%d" % number for number in range(300)]
            with pytest.raises(InvalidRequestError, match="topic, number"):
                await consumer.pause(0)

    run(body)


def test_a_pause_puts_back_what_a_cancelled_wait_has_brought(run):
    async def body(broker):
        async with broker.producer() as producer, broker.consumer("t") as consumer:
            waiting = asyncio.ensure_future(anext(consumer))
            while consumer._next is None:  # noqa: ASYNC110 (there is no event for it)
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            await producer.send("t", b"a")
            await ended(consumer._next, 5)
            await consumer.pause(("t", 0))
            assert await consumer.poll(timeout=0.05) == []
            await consumer.resume(("t", 0))
            assert [record.value for record in await consumer.poll(timeout=5.0)] == [b"a"]

    run(body)


def test_two_tasks_cannot_read_from_one_consumer(run):
    async def body(broker):
        async with broker.consumer("t") as consumer:
            first = asyncio.ensure_future(consumer.poll(timeout=None))
            while not consumer._reading:  # noqa: ASYNC110 (there is no event for it)
                await asyncio.sleep(0)
            with pytest.raises(InvalidRequestError):
                await consumer.poll()
            consumer.wakeup()
            assert await first == []

    run(body)


def test_the_loop_turns_while_a_consumer_waits(run):
    async def body(broker):
        async with broker.consumer("t") as consumer:
            poll = asyncio.ensure_future(consumer.poll(timeout=None))
            for _ in range(1000):  # of a loop that stands still none ends
                await asyncio.sleep(0)
            assert not poll.done()
            consumer.wakeup()
            assert await poll == []

    run(body)


def test_topics_and_groups_are_managed_as_with_the_blocking_broker(run):
    async def body(broker):
        await broker.create_topic("orders", 3, config={"retention.ms": 1000})
        await broker.alter_topic("orders", config={"retention.ms": None}, partitions=4)
        assert await broker.topics() == ["orders", "t"]
        assert len((await broker.topic("orders")).partitions) == 4
        async with broker.producer() as producer, broker.consumer("orders", group="g") as consumer:
            await producer.send("orders", b"x", partition=0)
            await consumer.poll(timeout=5.0)
        assert (await broker.group("g")).name == "g"
        assert await broker.delete_records("orders", {0: 1}) == {0: 1}
        assert (await broker.reset_group("g", "earliest", dry_run=True))["orders", 0] == 1
        await broker.delete_group("g")
        await broker.delete_topic("orders")
        with pytest.raises(TopicNotFoundError):
            await broker.topic("orders")
        assert await broker.clean() is True

    run(body)


def test_a_closed_broker_says_so(run):
    async def body(broker):
        await broker.close()
        with pytest.raises(ClosedError):
            await broker.topics()

    run(body)


def test_the_engine_is_not_imported_in_the_loop():
    code = "import logbroker.aio, sys; print('lmdb' in sys.modules, 'logbroker.broker' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "False False\n"


def test_a_broker_says_where_it_is(run, tmp_path):
    async def body(broker):
        assert broker.path == str(tmp_path / "data")
        assert broker.request_counts.sent == 0

    run(body)


# Transactions -------------------------------------------------------------------------------------------


async def no_thread(name: str) -> None:
    """Wait until there is none of that name."""
    async with asyncio.timeout(30):
        while name in [thread.name for thread in threading.enumerate()]:  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0.01)


async def committed(broker: AsyncBroker, topic: str = "t") -> list[bytes]:
    async with broker.consumer(topic) as consumer:
        return [record.value for record in await consumer.poll(1000, 0.2)]


def test_a_transaction_is_all_or_nothing(run):
    async def body(broker):
        transaction = broker.transaction("x")
        assert (transaction.transactional_id, transaction.is_open) == ("x", False)
        async with transaction as tx:
            assert tx.is_open
            metadata = await tx.send("t", b"a")
            assert metadata.offset == 0
            assert await tx.send_many("t", [b"b", b"c"]) == 2
            assert await committed(broker) == []
        assert not tx.is_open
        await tx.abort()
        with pytest.raises(InvalidRequestError, match="is committed; begin another"):
            await tx.send("t", b"late")
        await no_thread("logbroker-aio-transaction")
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 (it passes through the block)
            async with broker.transaction("x") as tx:
                await tx.send("t", b"d")
                1 / 0  # noqa: B018
        return await committed(broker)

    assert run(body) == [b"a", b"b", b"c"]


def test_a_cancelled_transaction_is_aborted(run):
    async def body(broker):
        sent = asyncio.Event()

        async def never_ends():
            async with broker.transaction("x") as tx:
                await tx.send("t", b"a")
                sent.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(never_ends())
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with broker.transaction("x") as tx:
            await tx.send("t", b"b")
        return await committed(broker)

    assert run(body) == [b"b"]


def test_offsets_and_state_are_part_of_it(run):
    async def body(broker):
        await broker.create_topic("out")
        async with broker.producer() as producer:
            await producer.send_many("t", [b"a", b"b"])
        async with broker.consumer("t", group="g", delivery="manual") as consumer:
            async with broker.transaction("x") as tx:
                for record in await consumer.poll(2, 5):
                    await tx.send("out", record.value.upper())
                    await tx.put(record.value, b"1")
                await tx.put(b"a", None)
                await tx.commit_offsets(consumer)
            async with broker.transaction("x") as tx:
                assert await tx.items() == [(b"b", b"1")]
                assert await tx.get(b"a") is None
        assert (await broker.group("g")).offsets[0].committed_offset == 2
        return await committed(broker, "out")

    assert run(body) == [b"A", b"B"]


def test_a_transform_runs_beside_the_loop_until_it_is_cancelled(run):
    async def body(broker):
        await broker.create_topic("out")
        running = asyncio.create_task(
            broker.transform("t", "out", group="g", function=lambda record: record.value * 2)
        )
        async with broker.producer() as producer, broker.consumer("out") as consumer:
            await producer.send("t", b"a")
            found = await consumer.poll(1, 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return [record.value for record in found]

    assert run(body) == [b"aa"]
