"""What the processes do whose power is cut: everything that acknowledges, and each acknowledgement goes into a diary.

The diaries lie on another file system. A worker has no clean-up: when a call fails, it notes the error and is gone.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from typing import NoReturn

import logbroker
from logbroker_storage.files import Files

PARTITIONS = 2
KEYS = 20
DAY_MS = 86_400_000
LAZY = ("lazy", "loose")  # topics that are not synced before the acknowledgement
TYPED_ERROR = 3  # the exit code of a worker that ended with an error of logbroker's own
TIMEOUT_S = 240.0  # no promise: this machine may be busy

Config = dict[str, str | int | float | bool]


def prepare(data: str) -> None:
    """Small segments, so that there is always one that was just begun."""
    with logbroker.open(data) as broker:
        small: Config = {"segment.bytes": 16 << 10, "index.interval.bytes": 512}
        for topic in ("orders", "copies", "jobs.dead"):
            broker.create_topic(topic, partitions=PARTITIONS, config=small)
        # However slow this machine is, an id that is sent again in another life is still known.
        broker.create_topic("jobs", partitions=PARTITIONS, config=small | {"deduplication.window.ms": DAY_MS})
        broker.create_topic(
            "lazy",
            partitions=PARTITIONS,
            config=small | {"durability": "interval", "durability.interval.ms": 50},
        )
        broker.create_topic("loose", partitions=PARTITIONS, config=small | {"durability": "os"})
        broker.create_topic("trimmed", config={"segment.bytes": 2 << 10, "file.delete.delay.ms": 0})
        compacted: Config = {
            "cleanup.policy": "compact",
            "segment.bytes": 2 << 10,
            "min.cleanable.dirty.ratio": 0,
        }
        broker.create_topic("prices", config=compacted | {"file.delete.delay.ms": 0})
        broker.create_subscription("workers", topic="jobs", dead_letter="jobs.dead", max_deliveries=10_000)


def value_of(name: str, sequence: int) -> bytes:
    """What a producer's record of this sequence says: of some length, and never the same."""
    return b"%s:%d:%s" % (name.encode(), sequence, b"x" * (sequence * 7919 % 400))


class Diary:
    """Lines that are true whenever the process dies: each chunk is one write."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, *lines: str) -> None:
        if lines:
            os.write(self._fd, "".join(f"{line}\n" for line in lines).encode())


class Worker:
    """One process's work: *life* counts the times that the machine was started."""

    def __init__(self, broker: logbroker.Broker, diary: Diary, rng: random.Random, life: int) -> None:
        self.broker = broker
        self.say = diary.say
        self.rng = rng
        self.life = life

    def produce(self) -> None:
        self._produce("first")

    def produce_too(self) -> None:
        self._produce("second")

    def _produce(self, name: str) -> None:
        producer = self.broker.producer(name=name, compression=self.rng.choice([None, "lz4", "zstd"]))
        places = [(topic, number) for topic in ("orders", *LAZY) for number in range(PARTITIONS)]
        last = {place: producer.last_sequence(place[0], partition=place[1]) for place in places}
        following = {place: 0 if last[place] is None else last[place] + 1 for place in places}  # type: ignore[operator]
        while True:
            receipts = []
            for _ in range(self.rng.randrange(1, 25)):
                topic, partition = place = self.rng.choices(places, [4, 4, 1, 1, 1, 1])[0]
                sequence = following[place]
                value = value_of(name, sequence)
                receipt = producer.send(topic, value, partition=partition, sequence=sequence)
                receipts.append((f"produced {topic} {partition} {name} {sequence}", receipt))
                following[place] += 1
            for _, receipt in receipts:
                receipt.result(TIMEOUT_S)
            self.say(*(line for line, _ in receipts), *self._synced())

    def _synced(self) -> list[str]:
        """What this process could tell a reader is safe."""
        return [
            f"synced {topic} {partition.partition} {partition.synced_offset}"
            for topic in ("orders", *LAZY)
            for partition in self.broker.topic(topic).partitions
        ]

    def supply(self) -> None:
        """Jobs, each sent twice under one id."""
        producer = self.broker.producer()
        begin = sum(partition.log_end_offset for partition in self.broker.topic("jobs").partitions)
        for number in itertools.count(max(0, begin - 10)):
            receipts = [producer.send("jobs", b"%d" % number, message_id=f"id-{number}") for _ in range(2)]
            for receipt in receipts:
                found = receipt.result(TIMEOUT_S)
                self.say(f"identified {number} {found.partition} {found.offset}")

    def copy(self) -> None:
        """Transactions that copy records, and move the group that read them."""
        consumer = self.broker.consumer("orders", group="copier", delivery="manual")
        while True:
            records = consumer.poll(self.rng.randrange(1, 60), 0.02)
            if not records:
                continue
            transaction = self.broker.transaction("copier")
            transaction_name = self.rng.getrandbits(48)
            for record in records:
                value = b"%d:%d:%d:%d" % (record.partition, record.offset, transaction_name, len(records))
                transaction.send("copies", value, partition=self.rng.randrange(PARTITIONS))
            count = int(transaction.state.get(b"count", b"0") or b"0")
            transaction.state.put(b"count", b"%d" % (count + len(records)))
            if self.rng.random() < 0.15:
                transaction.abort()
                consumer.return_to_committed()
                continue
            transaction.commit_offsets(consumer)
            transaction.commit()
            following = {record.partition: record.offset + 1 for record in records}
            self.say(*(f"copied {partition} {offset}" for partition, offset in following.items()))

    def read(self) -> None:
        consumer = self.broker.consumer("orders", group="readers", delivery="manual")
        while True:
            records = consumer.poll(self.rng.randrange(1, 60), 0.02)
            if not records:
                continue
            self.say(*(f"seen {r.partition} {r.offset} {(r.value or b'').decode()}" for r in records))
            consumer.commit()
            following = {record.partition: record.offset + 1 for record in records}
            self.say(*(f"committed {partition} {offset}" for partition, offset in following.items()))

    def work(self) -> None:
        queue = self.broker.queue(subscription="workers")
        while True:
            batch = queue.receive_many(self.rng.randrange(1, 10), 0.02)
            how = self.rng.choice(["accept", "accept", "reject"])
            if batch:
                self.say(*(f"settling {message.partition} {message.offset} {how}" for message in batch))
                batch.accept() if how == "accept" else batch.reject()
                self.say(*(f"settled {message.partition} {message.offset}" for message in batch))

    def administer(self) -> None:
        """Topics that come and go, deleted records, and the cleaner on a compacted topic."""
        producer = self.broker.producer(linger=0)
        for number in itertools.count(self.life * 1_000_000):
            key = number % KEYS
            producer.send("prices", b"%d" % number, key=b"%d" % key).result(TIMEOUT_S)
            self.say(f"priced {key} {number}")
            end = producer.send("trimmed", b"x" * 100).result(TIMEOUT_S).offset
            if number % 7 == 0:
                start = self.broker.delete_records("trimmed", {0: max(0, end - 5)})[0]
                self.say(f"trimmed {start}")
            if number % 11 == 0:
                self.broker.clean()
            name = f"passing-{number // 10}"
            if number % 10 == 2:
                self.broker.create_topic(name)
                self.say(f"created {name}")
            if number % 10 == 6 and name in self.broker.topics() and self.rng.random() < 0.8:
                self.say(f"deleting {name}")
                self.broker.delete_topic(name)
                self.say(f"deleted {name}")


ROLES: dict[str, Callable[[Worker], None]] = {
    role.__name__: role
    for role in (
        Worker.produce,
        Worker.produce_too,
        Worker.supply,
        Worker.copy,
        Worker.read,
        Worker.work,
        Worker.administer,
    )
}


def work_until_the_cut(
    role: str, data: str, diary_path: str, rng: random.Random, life: int, files: Files
) -> NoReturn:
    """Be a worker until a call fails; for a process that was forked for it."""
    diary = Diary(diary_path)
    try:
        broker = logbroker.open(data, files=files)
        ROLES[role](Worker(broker, diary, rng, life))
    except logbroker.LogbrokerError as error:
        diary.say(f"error {type(error).__name__}")
        os._exit(TYPED_ERROR)
    raise AssertionError("a worker works for ever")


def wait_for_diaries(paths: list[str], alive: Callable[[], None]) -> None:
    """Wait until each diary has its first line; *alive* raises when somebody ended before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not all(os.path.exists(path) and os.path.getsize(path) for path in paths):
        alive()
        assert time.monotonic() < deadline, "a worker did not get to its first acknowledgement"
        time.sleep(0.005)
