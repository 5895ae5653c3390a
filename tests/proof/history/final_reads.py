"""The whole log, when all is over: read by the library, and by fresh consumers over the network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

import logbroker

from .client import CLIENT, COPIES, EVENTS, PLACES
from .consumers import record_of
from .operations import FinalRead, Isolation, Place

PATIENCE_S = 60.0


def read_topic(
    broker: logbroker.Broker, topic: str, isolation: Isolation
) -> dict[Place, list[tuple[int, str]]]:
    found: dict[Place, list[tuple[int, str]]] = {}
    with broker.consumer(topic, isolation=isolation.value) as consumer:
        while records := consumer.poll(5000, 0.1):
            for record in records:
                value = (record.value or b"").decode()
                found.setdefault(f"{topic}-{record.partition}", []).append((record.offset, value))
    return found


def read_embedded(data: Path, name: str) -> Iterator[FinalRead]:
    with logbroker.open(data) as broker:
        for isolation in Isolation:
            records = read_topic(broker, EVENTS, isolation) | read_topic(broker, COPIES, isolation)
            yield FinalRead(name, isolation, records)


def read_over_network(port: int) -> Iterator[FinalRead]:
    for isolation in Isolation:
        settings = {
            "bootstrap.servers": f"127.0.0.1:{port}",
            "group.id": "nobody",
            "isolation.level": isolation.value,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "check.crcs": True,
        }
        consumer = Consumer(CLIENT | settings)
        places = {place: tuple(place.rsplit("-", 1)) for place in PLACES}
        consumer.assign([TopicPartition(topic, int(number), 0) for topic, number in places.values()])
        found: dict[Place, list[tuple[int, str]]] = {}
        at_end: set[Place] = set()
        deadline = time.monotonic() + PATIENCE_S
        while len(at_end) < len(PLACES):
            assert time.monotonic() < deadline, (
                f"a fresh consumer did not come to the end of {set(PLACES) - at_end}"
            )
            for message in consumer.consume(1000, 0.2):
                place = f"{message.topic()}-{message.partition()}"
                error = message.error()
                if error is None:
                    found.setdefault(place, []).append(record_of(message))
                else:
                    assert error.name() == "_PARTITION_EOF", error
                    at_end.add(place)
        consumer.close()
        yield FinalRead("a fresh consumer", isolation, found)
