"""Clients that read, by librdkafka: from the beginning by ``assign``, or as members of a group."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Mapping

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from .client import CLIENT, EVENTS, PLACES, GaveUpError, Life, Task
from .operations import (
    NO_OFFSET,
    Committed,
    Committing,
    Dropped,
    Looked,
    Opened,
    Outcome,
    Place,
    Placed,
    Polled,
    Recorder,
    now_ns,
)

LOOK_S = 6.0
POLLED_AT_ONCE = 200


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
        self.consumer.assign(partitions_of(self.positions))

    def seek(self, place: Place, offset: int) -> None:
        try:
            self.consumer.seek(partitions_of({place: offset})[0])
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
        (consumer.incremental_assign if self._is_incremental else consumer.assign)(partitions_of(offsets))

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
        asked = partitions_of(dict.fromkeys(places, OFFSET_INVALID))
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
            self._got.setdefault(place, []).append(record_of(message))
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
            self.consumer.commit(offsets=partitions_of(offsets), asynchronous=True)
            return
        try:
            told = self.consumer.commit(offsets=partitions_of(offsets), asynchronous=False)
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


def partitions_of(offsets: Mapping[Place, int]) -> list[TopicPartition]:
    split = ((*place.rpartition("-"), offset) for place, offset in offsets.items())
    return [TopicPartition(topic, int(partition), offset) for topic, _, partition, offset in split]


def record_of(message: Message) -> tuple[int, str]:
    """Offset and value."""
    offset = message.offset()
    assert offset is not None
    return offset, (message.value() or b"").decode()


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
