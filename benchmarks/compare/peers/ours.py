"""logbroker as a library, in this process."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path

import logbroker

from ..contender import LOG_WORKS, Contender, Session, Work

TOPIC = "t"
OUT = "out"
GROUP = "workers"


class _Session(Session):
    def __init__(self, folder: Path, durability: str, work: Work, *, one_by_one: bool) -> None:
        self._broker = logbroker.open(folder / "data")
        self._one_by_one = one_by_one
        if TOPIC not in self._broker.topics():
            self._broker.create_topic(TOPIC, config={"durability": durability})
            self._broker.create_topic(OUT, config={"durability": durability})
            if work is Work.QUEUE:
                self._broker.create_subscription(GROUP, topic=TOPIC)
        self._producer = self._broker.producer()
        self._queue = self._broker.queue(subscription=GROUP) if work is Work.QUEUE else None
        self._tail: logbroker.Consumer | None = None
        self._reader: logbroker.Consumer | None = None

    def produce(self, values: Sequence[bytes]) -> None:
        if self._one_by_one:
            send = self._producer.send
            for value in values:
                send(TOPIC, value)
        else:
            self._producer.send_many(TOPIC, values)
        self._producer.flush()

    def append(self, value: bytes) -> None:
        self._producer.send(TOPIC, value).result()

    def consume(self, count: int) -> int:
        size = 0
        with self._broker.consumer(TOPIC, start="earliest") as consumer:
            for record in itertools.islice(consumer, count):
                size += len(record.value or b"")
        return size

    def tail(self) -> None:
        self._tail = self._broker.consumer(TOPIC, start="latest")
        self._tail.poll(timeout=0)

    def next(self) -> bytes:
        assert self._tail is not None
        return next(iter(self._tail)).value or b""

    def take(self, count: int) -> int:
        assert self._queue is not None
        batch = self._queue.receive_many(count, timeout=0)
        batch.accept()
        return len(batch)

    def transform(self, count: int) -> None:
        done = self._broker.transform(
            TOPIC, OUT, group=GROUP, function=lambda record: (record.value or b"").upper(), idle_timeout=0
        )
        assert done == count

    def read_offset(self, offset: int) -> bytes:
        reader = self._open_reader()
        reader.seek(0, offset)
        return reader.poll(1)[0].value or b""

    def read_time(self, timestamp_ms: int) -> bytes:
        reader = self._open_reader()
        reader.seek_to(datetime.datetime.fromtimestamp(timestamp_ms / 1000, datetime.UTC))
        return reader.poll(1)[0].value or b""

    def _open_reader(self) -> logbroker.Consumer:
        if self._reader is None:
            self._reader = self._broker.consumer(TOPIC, start="earliest")
            self._reader.poll(1)
        return self._reader

    def close(self) -> None:
        self._broker.close()


class Ours(Contender):
    """``send_many`` unless *one_by_one*."""

    works = LOG_WORKS | {
        Work.TAIL_SAME,
        Work.QUEUE,
        Work.TRANSFORM,
        Work.RANDOM_OFFSET,
        Work.RANDOM_TIME,
        Work.OPEN_CLEAN,
        Work.OPEN_KILLED,
    }

    def __init__(self, durability: str, *, one_by_one: bool = False) -> None:
        self._durability = durability
        self._one_by_one = one_by_one
        setting = "synced" if durability == "fsync" else "not synced"
        self.name = f"logbroker{', send()' if one_by_one else ''}, {setting}"
        if one_by_one:
            self.works = frozenset({Work.PRODUCE_100, Work.PRODUCE_1K, Work.PRODUCE_MIXED})
        elif durability != "fsync":
            self.works -= {Work.DURABLE_1, Work.DURABLE_16, Work.QUEUE, Work.TRANSFORM}

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return _Session(folder, self._durability, work, one_by_one=self._one_by_one)


CONTENDERS = [Ours("fsync"), Ours("os"), Ours("os", one_by_one=True)]
