"""What the asyncio producer says of records that take their time, fail, or are nobody's any more."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import logbroker
from logbroker.aio import AsyncBroker
from logbroker.errors import DeliveryTimeoutError, InvalidRequestError, WriteFailedError
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles, GatedFiles


@pytest.fixture
def run(tmp_path) -> Callable[..., Any]:
    """Run a coroutine function, in debug mode, with an open broker that has a topic "t"."""

    def run(body: Callable[[AsyncBroker], Awaitable[Any]], **options: Any) -> Any:
        async def main() -> Any:
            async with logbroker.open_async(tmp_path / "data", **options) as broker:
                await broker.create_topic("t")
                return await body(broker)

        with asyncio.Runner(debug=True) as runner:
            return runner.run(main())

    return run


async def begun(awaitable) -> asyncio.Task:
    """A task that has got as far as it gets by itself."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


def test_a_flush_keeps_to_its_timeout_behind_sends_that_wait_for_the_disk(run):
    disk = GatedFiles()

    async def body(broker):
        async with broker.producer() as producer:
            await producer.send("t", b"a")
            disk.gate.clear()
            try:
                sending = await begun(producer.send("t", b"b"))
                started = time.monotonic()
                with pytest.raises(DeliveryTimeoutError):
                    await producer.flush(timeout=0.05)
                assert time.monotonic() - started < 30
            finally:
                disk.gate.set()
            assert (await sending).offset == 1
            await producer.flush(timeout=30)

    run(body, files=disk)


def test_a_flush_without_time_is_enough_where_all_is_acknowledged(run):
    async def body(broker):
        async with broker.producer(linger=1000.0) as producer:
            for _ in range(50):
                await producer.send("t", b"a")
                await producer.flush(timeout=0)

    run(body)


def test_a_flush_that_was_cancelled_hides_nothing(run):
    files = FaultyFiles(OsFiles())

    async def body(broker):
        producer = broker.producer()
        await producer.send("t", b"a")
        files.fail("pwrite", path=".log", error=errno.ENOSPC)
        sending = asyncio.ensure_future(producer.send_many("t", [b"b"] * 10))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        flushing = asyncio.ensure_future(producer.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.wait([flushing])
        with pytest.raises(WriteFailedError):
            await producer.close()

    run(body, files=files)


def test_a_flush_tells_once_what_a_cancelled_send_has_failed_with(run):
    files = FaultyFiles(OsFiles())

    async def body(broker):
        async with broker.producer() as producer:
            await producer.send("t", b"a")
            files.fail("pwrite", path=".log", error=errno.ENOSPC)
            sending = asyncio.ensure_future(producer.send("t", b"b"))
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait([sending])
            with pytest.raises(WriteFailedError):
                await producer.flush()
            await producer.flush()

    run(body, files=files)


def test_an_answer_that_nobody_waits_for_any_more_is_no_failure_of_a_record(run):
    async def body(broker):
        async with broker.producer() as producer:
            asking = asyncio.ensure_future(producer.last_sequence("t"))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            with pytest.raises(InvalidRequestError, match="named producer"):
                await producer.last_sequence("t")

    run(body)


def test_it_says_what_it_is_called_whether_it_is_closed_and_what_it_lost(run):
    files = FaultyFiles(OsFiles())

    async def body(broker):
        producer = broker.producer(name="loader")
        assert (producer.name, producer.closed, producer.lost_records) == ("loader", False, 0)
        await producer.close()
        assert producer.closed
        async with broker.producer(acks="none") as forgetful:
            assert forgetful.name is None
            await forgetful.send("t", b"a")
            await forgetful.flush()
            files.fail("pwrite", path=".log", error=errno.ENOSPC, forever=True)
            await asyncio.gather(*(forgetful.send("t", b"b") for _ in range(3)))
            try:
                await forgetful.flush()
            finally:
                files.heal()
            assert forgetful.lost_records == 3

    run(body, files=files)


def test_an_unknown_argument_is_refused_at_once(run):
    async def body(broker):
        for call in (
            lambda: broker.producer(lingr=1),
            lambda: broker.consumer("t", grup="g"),
            lambda: broker.queue(subscription="s", leese=1),
        ):
            with pytest.raises(TypeError, match="unexpected keyword"):
                call()

    run(body)


def test_a_send_is_told_that_goes_together_with_one_of_a_loop_that_was_closed(tmp_path):
    may_go_on = threading.Event()

    def values():
        yield b"0"
        may_go_on.wait(10)

    async def first():
        broker = logbroker.open_async(tmp_path / "data")
        await broker.create_topic("t")
        producer = broker.producer()
        tasks = [asyncio.ensure_future(producer.send_many("t", values()))]
        while producer._worker._calls.qsize() or not producer._at_work:  # noqa: ASYNC110 (it tells nobody)
            await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(producer.send("t", b"1")))
        await asyncio.sleep(0)
        return broker, producer, tasks

    async def second():
        async with asyncio.timeout(30):
            sending = asyncio.ensure_future(producer.send("t", b"2"))
            await asyncio.sleep(0)
            may_go_on.set()
            assert (await sending).offset == 2
            await producer.close()
            await broker.close()

    broker, producer, _ = asyncio.run(first())
    asyncio.run(second())
