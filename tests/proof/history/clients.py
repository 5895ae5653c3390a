"""The client processes: ``python -m tests.proof.history.clients`` with a ``Task`` as JSON.

They are killed like that, or end at SIGTERM with exit code 0. A client that cannot go on (it was fenced, or its
library gave up) is followed by a new one in the same process, with a new name; what it did not hear of stays unknown.

    role             does
    producer         sends bursts to every partition of EVENTS; idempotent or not
    transactional    the same in transactions, of which it aborts some
    transformer      reads EVENTS in a group and writes a copy of each record to COPIES: exactly once
    reader           reads everything from the beginning by ``assign``, seeks back now and then
    member           reads EVENTS by ``subscribe``, commits
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from .operations import (
    NO_OFFSET,
    Committed,
    Committing,
    Dropped,
    Ended,
    Ending,
    Isolation,
    Looked,
    Opened,
    Outcome,
    Place,
    Placed,
    Polled,
    Recorder,
    Sending,
    Sent,
    now_ns,
)

EVENTS, COPIES = "events", "copies"
PARTITIONS = 3
PLACES = [f"{topic}-{number}" for topic in (EVENTS, COPIES) for number in range(PARTITIONS)]
CALL_S = 10.0  # a call of the library that takes longer is made again
GIVE_UP_S = 60.0
LOOK_S = 6.0
STUCK_S = 12.0
MOST_UNANSWERED = 1000
POLLED_AT_ONCE = 200
CLIENT: dict[str, Any] = {
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 100,
    "retry.backoff.ms": 20,
    "retry.backoff.max.ms": 200,
    "socket.timeout.ms": 2000,
    "topic.metadata.refresh.interval.ms": 5000,
    "log_level": 0,
}


class Task(msgspec.Struct, frozen=True):
    """What a process is to do."""

    role: str
    name: str
    folder: str
    """Where its history goes."""
    address: str
    """host:port, or for an embedded client the data directory."""
    seed: int
    isolation: Isolation = Isolation.COMMITTED
    group: str = ""
    options: dict[str, Any] = {}
    """Further settings of the library."""


class GaveUpError(Exception):
    """This client cannot go on; the next may."""


class Life:
    """Of the process: SIGTERM ends it, when its clients are through with what they began; SIGUSR1 asks where it is."""

    def __init__(self) -> None:
        self.is_over = False
        faulthandler.register(signal.SIGUSR1)
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: object) -> None:
        self.is_over = True

    @contextmanager
    def returning_within(self, seconds: float) -> Iterator[None]:
        """Begin the process anew if the block takes longer: librdkafka 2.16's send_offsets_to_transaction may hang when
        its coordinator was away (librdkafka issues 5456 and 5511)."""
        timer = threading.Timer(seconds, self._begin_anew)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _begin_anew(self) -> None:
        if self.is_over:
            os._exit(0)
        os.execv(sys.executable, sys.orig_argv)


# Producers ------------------------------------------------------------------------------------------------


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


# Consumers ------------------------------------------------------------------------------------------------


class Receiver:
    """A consumer of the library, with what it gets and where it begins written down."""

    def __init__(self, task: Task, recorder: Recorder) -> None:
        self._recorder = recorder
        self._group = task.group
        self._got: dict[Place, list[tuple[int, str]]] = {}
        self.positions: dict[Place, int] = {}
        self._commits = itertools.count()
        self._awaited: dict[tuple[tuple[Place, int], ...], int] = {}  # commits that nobody waits for
        settings = {
            "bootstrap.servers": task.address,
            "group.id": task.group or "nobody",
            "isolation.level": task.isolation.value,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "check.crcs": True,
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 50,
            "on_commit": self._committed,
        }
        if task.options.get("group.protocol") != "consumer" and task.group:
            settings |= {"session.timeout.ms": 6000, "heartbeat.interval.ms": 300}
        recorder.write(Opened(now_ns(), task.isolation, task.group))
        self.consumer = Consumer(CLIENT | settings | task.options)
        is_cooperative = task.options.get("partition.assignment.strategy") == "cooperative-sticky"
        self._is_incremental = is_cooperative or task.options.get("group.protocol") == "consumer"

    # Where it reads -----------------------------------------------------------------------------------------

    def assign(self, places: Iterable[Place]) -> None:
        """Read *places* from their beginnings."""
        self._place(dict.fromkeys(places, 0))
        self.consumer.assign(_partitions(self.positions))

    def seek(self, place: Place, offset: int) -> None:
        try:
            self.consumer.seek(_partitions({place: offset})[0])
        except KafkaException as error:
            raise GaveUpError from error
        self._place({place: offset})

    def subscribe(self) -> None:
        self.consumer.subscribe(
            [EVENTS], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    def _place(self, offsets: dict[Place, int]) -> None:
        self.flush()
        self.positions |= offsets
        self._recorder.write(Placed(now_ns(), offsets))

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        offsets = self.look([_place_of(partition) for partition in partitions])
        self._place(offsets)
        (consumer.incremental_assign if self._is_incremental else consumer.assign)(_partitions(offsets))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.flush()
        places = [_place_of(partition) for partition in partitions]
        self._recorder.write(Dropped(now_ns(), places))
        for place in places:
            self.positions.pop(place, None)
        if self._is_incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def look(self, places: Iterable[Place]) -> dict[Place, int]:
        """Where the group is in *places*; 0 where it has not been yet.

        Raises:
            GaveUpError: nobody could tell. A member that lost its place in the group meanwhile is told nothing, and
                cannot join again while it is asked to take over partitions.
        """
        deadline = time.monotonic() + LOOK_S
        asked = _partitions(dict.fromkeys(places, OFFSET_INVALID))
        while True:
            begun_ns = now_ns()
            try:
                told = self.consumer.committed(asked, timeout=LOOK_S / 2)
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise GaveUpError from error
                time.sleep(0.05)
                continue
            if not any(partition.error for partition in told):
                break
            if time.monotonic() > deadline:
                raise GaveUpError(str(told))
            time.sleep(0.05)
        offsets = {_place_of(found): NO_OFFSET if found.offset < 0 else found.offset for found in told}
        self._recorder.write(Looked(now_ns(), begun_ns, offsets))
        return {place: max(offset, 0) for place, offset in offsets.items()}

    def return_to_committed(self) -> None:
        """Read again what was not committed."""
        for place, offset in self.look(list(self.positions)).items():
            self.seek(place, offset)

    # What it gets -------------------------------------------------------------------------------------------

    def poll(self, wait_s: float) -> dict[Place, list[tuple[int, str]]]:
        """What there is; written down. One record at a time, so that it is known what a rebalance came between."""
        for _ in range(POLLED_AT_ONCE):
            message = self.consumer.poll(wait_s)
            if message is None:
                break
            error = message.error()
            if error is not None and error.code() == KafkaError._FATAL:
                # librdkafka 2.16 may join a KIP-848 group with half a request, when it was fenced before.
                raise GaveUpError(str(error))
            if error is not None:
                raise RuntimeError(f"{message.topic()}-{message.partition()}: {message.error()}")
            place = f"{message.topic()}-{message.partition()}"
            self._got.setdefault(place, []).append((message.offset(), (message.value() or b"").decode()))
            wait_s = 0
        return self.flush()

    def flush(self) -> dict[Place, list[tuple[int, str]]]:
        """Write down what was got; it."""
        got, self._got = self._got, {}
        if got:
            self._recorder.write(Polled(now_ns(), got))
            for place, records in got.items():
                if place in self.positions:
                    self.positions[place] = records[-1][0] + 1
        return got

    # Committing ---------------------------------------------------------------------------------------------

    def commit(self, offsets: dict[Place, int], *, wait: bool) -> None:
        number = next(self._commits)
        self._recorder.write(Committing(now_ns(), number, offsets))
        if not wait:
            self._awaited[tuple(sorted(offsets.items()))] = number
            self.consumer.commit(offsets=_partitions(offsets), asynchronous=True)
            return
        try:
            told = self.consumer.commit(offsets=_partitions(offsets), asynchronous=False)
        except KafkaException as error:
            self._recorder.write(Committed(now_ns(), number, Outcome.UNKNOWN, str(error)))
            return
        refused = [str(partition.error) for partition in told or () if partition.error]
        outcome = Outcome.UNKNOWN if refused else Outcome.OK
        self._recorder.write(Committed(now_ns(), number, outcome, " ".join(refused)))

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        key = tuple(sorted((_place_of(partition), partition.offset) for partition in partitions))
        number = self._awaited.pop(key, None)
        if number is not None:
            is_ok = error is None and not any(partition.error for partition in partitions)
            outcome = Outcome.OK if is_ok else Outcome.UNKNOWN
            self._recorder.write(Committed(now_ns(), number, outcome, str(error or "")))

    def close(self) -> None:
        self.consumer.close()


def _partitions(offsets: Mapping[Place, int]) -> list[TopicPartition]:
    split = ((*place.rpartition("-"), offset) for place, offset in offsets.items())
    return [TopicPartition(topic, int(partition), offset) for topic, _, partition, offset in split]


def _place_of(partition: TopicPartition) -> Place:
    return f"{partition.topic}-{partition.partition}"


def reader(task: Task, recorder: Recorder, life: Life, rng: random.Random) -> None:
    receiver = Receiver(task, recorder)
    try:
        receiver.assign(PLACES)
        while not life.is_over:
            receiver.poll(0.2)
            if rng.random() < 0.01:
                place = rng.choice(PLACES)
                position = receiver.positions[place]
                receiver.seek(place, rng.randrange(max(0, position - 300), position + 1))
    finally:
        receiver.close()


def member(task: Task, recorder: Recorder, life: Life, rng: random.Random) -> None:
    receiver = Receiver(task, recorder)
    try:
        receiver.subscribe()
        while not life.is_over:
            got = receiver.poll(0.2)
            if got and rng.random() < 0.7:
                offsets = {
                    place: records[-1][0] + 1 for place, records in got.items() if place in receiver.positions
                }
                if offsets:
                    receiver.commit(offsets, wait=rng.random() < 0.5)
            elif not got and receiver.positions:
                receiver.commit(dict(receiver.positions), wait=True)
                time.sleep(0.1)
    finally:
        receiver.close()


def transformer(task: Task, recorder: Recorder, life: Life, rng: random.Random) -> None:
    receiver = Receiver(msgspec.structs.replace(task, isolation=Isolation.COMMITTED), recorder)
    plain = msgspec.structs.replace(task, options={})
    transactor: Transactor | None = None
    try:
        transactor = Transactor(plain, recorder, life)
        receiver.subscribe()
        while not life.is_over:
            got = receiver.poll(0.2)
            if got and not _transform(receiver, transactor, task.group, got, rng):
                receiver.return_to_committed()
    except KafkaException as error:
        raise GaveUpError from error
    finally:
        receiver.close()
        if transactor is not None:
            transactor.sender.close()


def _transform(
    receiver: Receiver,
    transactor: Transactor,
    group: str,
    got: Mapping[Place, list[tuple[int, str]]],
    rng: random.Random,
) -> bool:
    """Whether the copies are committed, together with the offsets behind their sources."""
    number = transactor.begin()
    sources = [(place, offset) for place, records in got.items() for offset, _ in records]
    offsets = {place: records[-1][0] + 1 for place, records in got.items()}
    places = [f"{COPIES}-{source[0].rpartition('-')[2]}" for source in sources]
    is_early = rng.random() < 0.5  # offsets first, or records first: both are allowed
    try:
        if is_early:
            _send_offsets(receiver, transactor, offsets)
        transactor.sender.send(places, number, dict(enumerate(sources)))
        transactor.sender.serve(rng.uniform(0, 0.02))
        if not is_early:
            _send_offsets(receiver, transactor, offsets)
    except KafkaException as error:
        if not error.args[0].txn_requires_abort():
            raise GaveUpError from error
        return transactor.aborted(str(error))
    if rng.random() < 0.1:
        return transactor.end(commit=False)
    return transactor.end(commit=True, group=group, offsets=offsets)


def _send_offsets(receiver: Receiver, transactor: Transactor, offsets: Mapping[Place, int]) -> None:
    metadata = receiver.consumer.consumer_group_metadata()
    send = transactor.sender.producer.send_offsets_to_transaction
    with transactor.life.returning_within(STUCK_S):
        transactor.insist(lambda wait_s: send(_partitions(offsets), metadata, wait_s))


ROLES: dict[str, Callable[[Task, Recorder, Life, random.Random], None]] = {
    "producer": producer,
    "transactional": transactional,
    "transformer": transformer,
    "reader": reader,
    "member": member,
}


def live(task: Task, role: Callable[[Task, Recorder, Life, random.Random], None]) -> None:
    """One client after the other, until SIGTERM."""
    life = Life()
    rng = random.Random(task.seed)
    while not life.is_over:
        recorder = Recorder.of_new_client(Path(task.folder), f"{task.name}.{os.getpid()}")
        try:
            role(task, recorder, life, rng)
        except GaveUpError as error:
            print(f"{recorder.client} gave up: {error!r} {error.__cause__!r}", file=sys.stderr, flush=True)
        finally:
            recorder.close()


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.argv[1], type=Task)
    live(wanted, ROLES[wanted.role])
