"""A client that reads EVENTS in a group and writes a copy of each record to COPIES, exactly once.

Offsets go with the records in one transaction, before them or behind them: both are allowed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec
from confluent_kafka import KafkaException

from .client import COPIES, STUCK_S, GaveUpError, Life, Task
from .consumers import Receiver, partitions_of
from .operations import Isolation, Place, Recorder
from .producers import Transactor


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
    is_early = rng.random() < 0.5
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
        transactor.insist(lambda wait_s: send(partitions_of(offsets), metadata, wait_s))
