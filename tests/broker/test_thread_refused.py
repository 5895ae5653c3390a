"""A thread that cannot be started, as where a process has too many: an error once, and nothing that stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import logbroker
from logbroker import Broker
from logbroker.worker import Worker

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
        assert [record.value for record in consumer.poll(timeout=5)] == [b"sent"]


def test_the_next_call_starts_the_thread_of_an_event_loop(refuse_thread: Refuse):
    async def main():
        worker, calls = Worker("logbroker-test"), []
        refuse_thread("logbroker-test")
        with pytest.raises(RuntimeError, match="new thread"):
            worker.submit(lambda: calls.append("refused"))
        async with asyncio.timeout(5):
            await worker.submit(lambda: calls.append("made"))
        assert calls == ["made"]
        worker.stop()

    asyncio.run(main())
