"""What the tests of transformations share: records, and pipelines in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import logbroker
from logbroker.broker import Broker
from logbroker.records import Message, Record
from logbroker.transforms import Pipeline, load_pipeline

JSON_IN = {"kind": "decode", "format": "json"}
JSON_OUT = {"kind": "encode", "format": "json"}


def a_record(value: bytes | None, **fields: Any) -> Record:
    base: dict[str, Any] = {
        "topic": "orders",
        "partition": 1,
        "offset": 7,
        "timestamp_ms": 1_700_000_000_000,
        "key": b"alice",
        "value": value,
    }
    return Record(**(base | fields))


def steps(*tables: dict[str, Any]) -> Pipeline:
    """A pipeline of these steps."""
    return load_pipeline({"step": list(tables)})


def on_json(*tables: dict[str, Any]) -> Pipeline:
    """A pipeline of these steps between decoding and encoding JSON."""
    return steps(JSON_IN, *tables, JSON_OUT)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("raw", partitions=2)
        broker.create_topic("clean")
        broker.create_topic("dead")
        yield broker


@pytest.fixture
def fill(broker: Broker) -> Callable[..., None]:
    def fill(*messages: Message) -> None:
        with broker.producer() as producer:
            producer.send_many("raw", list(messages))

    return fill


@pytest.fixture
def read(broker: Broker) -> Callable[[str], list[Record]]:
    def read(topic: str) -> list[Record]:
        with broker.consumer(topic) as consumer:
            return consumer.poll(10_000, 0)

    return read
