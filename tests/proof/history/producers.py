"""Clients that write, by librdkafka: plain, idempotent, transactional."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from .client import CALL_S, CLIENT, EVENTS, GIVE_UP_S, PARTITIONS, GaveUpError, Life, Task
from .operations import Ended, Ending, Outcome, Place, Recorder, Sending, Sent, now_ns

MOST_UNANSWERED = 1000


class Sender:
    """A producer of the library, with its records written down."""

    def __init__(self, task: Task, recorder: Recorder, **settings: Any) -> None:
        self._recorder = recorder
        self._numbers = itertools.count()
        self._unanswered: set[int] = set()
        self._told: list[Sent] = []
        settings |= {
            "bootstrap.servers": task.address,
            "enable.idempotence": True,
            "request.timeout.ms": 2000,
        }
        settings = CLIENT | settings | task.options
        self._is_once = bool(settings["enable.idempotence"])
        self.producer = Producer(settings)

    def send(
        self,
        places: Iterable[Place],
        transaction: int | None = None,
        sources: Mapping[int, tuple[Place, int]] | None = None,
    ) -> None:
        """One record to each of *places*; *sources* has what it is made from, by its position among them."""
        lines = [
            Sending(
                now_ns(),
                next(self._numbers),
                place,
                transaction,
                None if sources is None else sources[position],
                self._is_once,
            )
            for position, place in enumerate(places)
        ]
        self._recorder.write(*lines)
        self._unanswered.update(line.number for line in lines)
        for line in lines:
            self._produce(line)

    def _produce(self, line: Sending) -> None:
        topic, _, partition = line.place.rpartition("-")
        value = self._recorder.value(line.number).encode()
        try:
            self.producer.produce(
                topic, value, partition=int(partition), on_delivery=partial(self._delivered, line.number)
            )
        except KafkaException as error:
            self._unanswered.discard(line.number)
            self._told.append(Sent(now_ns(), line.number, Outcome.FAILED, None, str(error)))
            raise GaveUpError from error

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        self._unanswered.discard(number)
        if error is None:
            offset = message.offset()  # none, where all that is known is that it was there before
            known = offset if offset is not None and offset >= 0 else None
            self._told.append(Sent(now_ns(), number, Outcome.OK, known))
        else:  # an earlier attempt, of which nothing was heard, may have succeeded
            self._told.append(Sent(now_ns(), number, Outcome.UNKNOWN, None, str(error)))

    @property
    def unanswered(self) -> int:
        return len(self._unanswered)

    def serve(self, wait_s: float) -> None:
        """Hear of outcomes, and write them down.

        Raises:
            GaveUpError: the library cannot go on.
        """
        self.producer.poll(wait_s)
        self._write_told()

    def _write_told(self) -> None:
        told, self._told = self._told, []
        self._recorder.write(*told)

    def finish(self) -> None:
        """Wait for what was sent."""
        deadline = time.monotonic() + GIVE_UP_S
        while self.unanswered and time.monotonic() < deadline:
            self.serve(0.1)

    def close(self) -> None:
        self.producer.purge()
        try:
            self.producer.flush(1)
        except (KafkaException, SystemError):
            # It has failed for good, as whoever gave it up knows; confluent-kafka 2.16 may say so while it calls us.
            pass
        self._write_told()


def producer(task: Task, recorder: Recorder, life: Life, rng: random.Random) -> None:
    fatal: list[KafkaError] = []

    def heard(error: KafkaError) -> None:
        if error.fatal():
            fatal.append(error)

    sender = Sender(task, recorder, error_cb=heard)
    try:
        while not life.is_over and not fatal:
            if sender.unanswered < MOST_UNANSWERED:
                sender.send(_some_places(rng, EVENTS))
            sender.serve(rng.uniform(0.01, 0.08))
        if not fatal:
            sender.finish()
    finally:
        sender.close()


def _some_places(rng: random.Random, topic: str) -> list[Place]:
    return [f"{topic}-{rng.randrange(PARTITIONS)}" for _ in range(rng.randrange(1, 30))]


class Transactor:
    """A transactional producer: one transaction after the other."""

    def __init__(self, task: Task, recorder: Recorder, life: Life) -> None:
        self._recorder = recorder
        self.life = life
        self._numbers = itertools.count()
        self.number = -1  # of the transaction in progress
        settings = {"transactional.id": task.name, "transaction.timeout.ms": 8000}
        self.sender = Sender(task, recorder, **settings)
        self.insist(self.sender.producer.init_transactions, life)

    def insist(self, call: Callable[[float], object], life: Life | None = None) -> None:
        """Until it is through; with *life* only while that lasts.

        Raises:
            KafkaException: it is refused.
            GaveUpError: for a minute nothing was heard.
        """
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            try:
                call(CALL_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                if time.monotonic() > deadline or (life is not None and life.is_over):
                    raise GaveUpError from error

    def begin(self) -> int:
        self.number = next(self._numbers)
        self.sender.producer.begin_transaction()
        return self.number

    def end(self, *, commit: bool, group: str = "", offsets: Mapping[Place, int] | None = None) -> bool:
        """Whether it is committed.

        Raises:
            GaveUpError: nobody knows, or the producer is fenced.
        """
        producer = self.sender.producer
        self._recorder.write(Ending(now_ns(), self.number, commit, group, dict(offsets or {})))
        try:
            self.insist(producer.commit_transaction if commit else producer.abort_transaction)
        except KafkaException as error:
            self.sender.serve(0)
            if not commit or not error.args[0].txn_requires_abort():
                raise GaveUpError from error
            return self.aborted(str(error))
        self.sender.serve(0)
        self._recorder.write(Ended(now_ns(), self.number, Outcome.OK))
        return commit

    def aborted(self, reason: str) -> bool:
        """Abort what the library refuses to commit: before it has asked the broker to, or because that refused."""
        try:
            self.insist(self.sender.producer.abort_transaction)
        except KafkaException as error:
            raise GaveUpError from error
        self.sender.serve(0)
        self._recorder.write(Ended(now_ns(), self.number, Outcome.FAILED, reason))
        return False


def transactional(task: Task, recorder: Recorder, life: Life, rng: random.Random) -> None:
    transactor: Transactor | None = None
    try:
        transactor = Transactor(task, recorder, life)
        while not life.is_over:
            number = transactor.begin()
            for _ in range(rng.randrange(1, 4)):
                transactor.sender.send(_some_places(rng, EVENTS), number)
                transactor.sender.serve(rng.uniform(0, 0.06))
            transactor.end(commit=rng.random() > 0.25)
    except KafkaException as error:
        raise GaveUpError from error
    finally:
        if transactor is not None:
            transactor.sender.close()
