"""A thread that cannot be started, as where a process has too many: an error once, and nothing that stays behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import logbroker
from logbroker import Broker
from logbroker.request_reply.requester import Requester
from logbroker.worker import Worker

HANG_S = 30.0  # so long only what never comes is waited for, on any machine

Refuse = Callable[[str], None]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with logbroker.open(tmp_path / "d") as broker:
        broker.create_topic("t")
        yield broker


def test_the_next_record_starts_the_thread_that_appends_in_time(broker: Broker, refuse_thread: Refuse):
    with broker.producer(linger=0.001) as producer, broker.consumer("t") as consumer:
        refuse_thread("logbroker-producer")
        with pytest.raises(RuntimeError, match="new thread"):
            producer.send("t", b"refused")
        producer.send("t", b"sent")
        assert [record.value for record in consumer.poll(timeout=HANG_S)] == [b"sent"]


def test_the_next_call_starts_the_thread_of_an_event_loop(refuse_thread: Refuse):
    async def main():
        worker, calls = Worker("logbroker-test"), []
        refuse_thread("logbroker-test")
        with pytest.raises(RuntimeError, match="new thread"):
            worker.submit(lambda: calls.append("refused"))
        async with asyncio.timeout(HANG_S):
            await worker.submit(lambda: calls.append("made"))
        assert calls == ["made"]
        worker.stop()

    asyncio.run(main())


def test_a_send_or_an_acceptance_is_told_that_its_thread_was_refused(
    broker: Broker, tmp_path: Path, refuse_thread: Refuse
):
    broker.create_subscription("q", topic="t")

    async def main():
        async with (
            logbroker.open_async(tmp_path / "d") as twin,
            twin.producer() as producer,
            twin.queue(subscription="q") as queue,
            asyncio.timeout(HANG_S),
        ):
            refuse_thread("logbroker-aio-producer")
            with pytest.raises(RuntimeError, match="new thread"):
                await producer.send("t", b"refused")
            await producer.send("t", b"sent")
            message = await queue.receive(timeout=HANG_S)
            assert message.value == b"sent"
            refuse_thread("logbroker-aio-settle")
            with pytest.raises(RuntimeError, match="new thread"):
                await message.accept()
            await message.accept()

    asyncio.run(main())


def use_renewing_queue(broker: Broker) -> None:
    broker.queue(subscription="q", renew=True).close()


def use_requester(broker: Broker) -> None:
    Requester(broker._directory).close()


def use_responder(broker: Broker) -> None:
    broker.responder("rpc", concurrency=2)(lambda request: request.value).stop()


def use_group(broker: Broker) -> None:
    broker.consumer("t", group="g").close()


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (use_renewing_queue, "logbroker-leases"),
        (use_requester, "logbroker-replies"),
        (use_responder, "logbroker-responder"),
        (use_responder, "logbroker-leases"),
        (use_group, "logbroker-coordinator"),
    ],
)
def test_what_has_not_got_its_thread_leaves_nothing_open(broker: Broker, refuse_thread: Refuse, use, name):
    """Neither a use of the directory, nor a descriptor, a thread, or a topic for replies."""
    broker.create_subscription("q", topic="t")
    use(broker)
    before = held(broker)
    refuse_thread(name)
    with pytest.raises(RuntimeError, match="new thread"):
        use(broker)
    assert held(broker) == before
    use(broker)


def descriptors() -> int:
    """How many this process has, without those that wait for the garbage collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def held(broker: Broker) -> tuple[int, int, set[str], set[str]]:
    return (
        broker._directory.users,
        descriptors(),
        {thread.name for thread in threading.enumerate()},
        set(broker._directory.topics()),
    )


def test_a_directory_that_has_not_got_its_thread_is_not_open(tmp_path: Path, refuse_thread: Refuse):
    logbroker.open(tmp_path / "d").close()
    before = descriptors()
    refuse_thread("logbroker-maintenance")
    with pytest.raises(RuntimeError, match="new thread"):
        logbroker.open(tmp_path / "d")
    assert descriptors() == before
    logbroker.open(tmp_path / "d").close()
