"""A broker with a queue, and the words that its tests are made of.

    desk = QueueDesk(path).queue_of("jobs", lease=10.0)       the topic, and a subscription "workers" to it
    desk.put("a", "b")
    hands = desk.hands()
    assert values(hands.receive_many()) == ["a", "b"]
    desk.advance(10)                                          the leases end

The clock stands still until it is advanced, so nothing here waits: every receive looks once.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable

import logbroker
from logbroker.dead_letters import Death, death_of
from logbroker.descriptions import SubscriptionPartitionDescription
from logbroker.queues.consumer import Queue, QueueMessage
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.files import Files
from logbroker_storage.testing import ManualClock
from logbroker_storage.testing.workbench import crash

NOON_MS = 1_700_000_000_000


class QueueDesk:
    """See the module."""

    def __init__(self, path: object, *, files: Files | None = None, clock: ManualClock | None = None) -> None:
        self.path = str(path)
        self.clock = clock or ManualClock(NOON_MS)
        self.open(files=files)

    @property
    def directory(self) -> DataDirectory:
        return self.broker._directory

    # What is there ------------------------------------------------------------------------------------

    def topic(self, name: str = "jobs", partitions: int = 1, **config: object) -> QueueDesk:
        """A topic; its configuration keys with underscores for dots."""
        self.broker.create_topic(
            name, partitions, config={key.replace("_", "."): value for key, value in config.items()}
        )
        return self

    def subscription(self, name: str = "workers", *, topic: object = "jobs", **options: object) -> QueueDesk:
        self.broker.create_subscription(name, topic=topic, **options)
        return self

    def queue_of(self, topic: str = "jobs", partitions: int = 1, **options: object) -> QueueDesk:
        """A topic and the subscription "workers" to it."""
        return self.topic(topic, partitions).subscription(topic=topic, **options)

    def put(self, *texts: str, topic: str = "jobs", **options: object) -> QueueDesk:
        """One record each, acknowledged; *options* are those of ``send``."""
        with self.broker.producer(linger=60) as producer:  # one batch, however slow the machine
            for text in texts:
                producer.send(topic, text.encode(), **options)
        return self

    def hands(self, topic: object = None, *, subscription: str = "workers", **options: object) -> Queue:
        """A consumer, which ``close`` closes."""
        queue = self.broker.queue(topic, subscription=subscription, **options)
        self.queues.append(queue)
        return queue

    # What happens -------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        self.clock.advance(ms=round(seconds * 1000))

    def somebody_dies_with(self, count: int, *, subscription: str = "workers") -> list[str]:
        """Another process takes *count* messages and is gone, as kill -9 leaves it; their values."""
        script = (
            "import os, sys, logbroker\n"
            "broker = logbroker.open(sys.argv[1])\n"
            "queue = broker.queue(subscription=sys.argv[2])\n"
            "taken = queue.receive_many(int(sys.argv[3]))\n"
            "print(*(message.value.decode() for message in taken), flush=True)\n"
            "os._exit(0)\n"
        )
        arguments = [sys.executable, "-c", script, self.path, subscription, str(count)]
        return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()

    # How it stands ------------------------------------------------------------------------------------

    def partition(
        self, number: int = 0, *, subscription: str = "workers"
    ) -> SubscriptionPartitionDescription:
        return self.broker.subscription(subscription).partitions[number]

    def lag(self, subscription: str = "workers") -> int:
        return self.broker.subscription(subscription).lag

    def dead_letters(self, topic: str = "jobs.dead") -> list[tuple[str, Death]]:
        """Value and death of every dead letter."""
        found = []
        with self.broker.consumer(topic) as consumer:
            while records := consumer.poll():
                found += [((record.value or b"").decode(), death_of(record)) for record in records]
        return found

    def deaths(self, topic: str = "jobs.dead") -> list[tuple[str, str]]:
        """Value and reason of every dead letter."""
        return [(value, death.reason) for value, death in self.dead_letters(topic)]

    def left(self, *, subscription: str = "workers", **options: object) -> list[str]:
        """The values of everything that can be had now, which is accepted."""
        found: list[str] = []
        with self.broker.queue(subscription=subscription, **options) as queue:
            while batch := queue.receive_many(1000):
                found += values(batch)
                batch.accept()
        return found

    # Ending and beginning anew ------------------------------------------------------------------------

    def open(self, *, files: Files | None = None) -> QueueDesk:
        self.broker = logbroker.open(self.path, files=files, clock=self.clock)
        self.queues: list[Queue] = []
        return self

    def close(self) -> None:
        for queue in self.queues:
            queue.close()
        self.broker.close()

    def crash(self) -> None:
        """Die at this instruction: nothing is released, nothing written any more."""
        crash(self.directory)

    def reopen(self, *, without_view: bool = False) -> QueueDesk:
        """After ``close`` or ``crash``."""
        if without_view:
            shutil.rmtree(f"{self.path}/view")
        return self.open()


def values(messages: Iterable[QueueMessage]) -> list[str]:
    return [(message.value or b"").decode() for message in messages]


def counts(messages: Iterable[QueueMessage]) -> list[int]:
    return [message.delivery_count for message in messages]
