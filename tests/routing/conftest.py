"""A broker with a few topics, and the words that tests of the router are made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import logbroker
from logbroker import Message
from logbroker.broker import Broker


class Routing:
    """A directory with its router at hand: ``send``, then ``route``, then look at ``values``."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def topics(self, *names: str, partitions: int = 1) -> None:
        for name in names:
            self.broker.create_topic(name, partitions)

    def send(self, topic: str, *values: bytes | Message, **options: Any) -> None:
        with self.broker.producer() as producer:
            for value in values:
                if isinstance(value, Message):
                    producer.send_many(topic, [value])
                else:
                    producer.send(topic, value, **options)

    def route(self, **options: Any) -> int:
        """Run a router until nothing more comes."""
        return self.broker.run_router(**{"idle_timeout": 0.25} | options)

    def records(self, topic: str) -> list[logbroker.Record]:
        with self.broker.consumer(topic) as consumer:
            return consumer.poll(100_000, 0)

    def values(self, topic: str) -> list[bytes | None]:
        return [record.value for record in self.records(topic)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def routing(path: Path) -> Iterator[Routing]:
    """Topics ``orders`` and ``out``, and no binding yet."""
    with logbroker.open(path) as broker:
        routing = Routing(broker)
        routing.topics("orders", "out")
        yield routing
