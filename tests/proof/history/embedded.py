"""Client processes that use the directory itself, beside the server: ``python -m tests.proof.history.embedded TASK``.

role          does
producer      sends bursts to every partition of EVENTS
transactor    the same in transactions, of which it aborts some
"""

from __future__ import annotations

import itertools
import random
import sys
import time

import msgspec

import logbroker

from .client import EVENTS, PARTITIONS, GaveUpError, Life, Task, live
from .operations import Ended, Ending, Outcome, Recorder, Sending, Sent, now_ns

RECEIPT_S = 60.0


class Writer:
    """Numbers of one client, sent and waited for."""

    def __init__(self, recorder: Recorder, rng: random.Random) -> None:
        self._recorder = recorder
        self._rng = rng
        self._next = 0

    def write(
        self, producer: logbroker.Producer | logbroker.Transaction, transaction: int | None = None
    ) -> None:
        partitions = [self._rng.randrange(PARTITIONS) for _ in range(self._rng.randrange(1, 30))]
        lines = [
            Sending(now_ns(), self._next + position, f"{EVENTS}-{partition}", transaction)
            for position, partition in enumerate(partitions)
        ]
        self._next += len(lines)
        self._recorder.write(*lines)
        receipts = [
            producer.send(EVENTS, self._recorder.value(line.number).encode(), partition=partition)
            for line, partition in zip(lines, partitions, strict=True)
        ]
        if transaction is None:
            offsets = [receipt.result(RECEIPT_S).offset for receipt in receipts]
            told = now_ns()
            self._recorder.write(
                *(
                    Sent(told, line.number, Outcome.OK, offset)
                    for line, offset in zip(lines, offsets, strict=True)
                )
            )


def produce(task: Task, recorder: Recorder, life: Life, rng: random.Random) -> None:
    writer = Writer(recorder, rng)
    try:
        with logbroker.open(task.address) as broker, broker.producer() as producer:
            while not life.is_over:
                writer.write(producer)
                time.sleep(rng.uniform(0.01, 0.08))
    except logbroker.LogbrokerError as error:
        raise GaveUpError from error


def transact(task: Task, recorder: Recorder, life: Life, rng: random.Random) -> None:
    writer = Writer(recorder, rng)
    try:
        with logbroker.open(task.address) as broker:
            for number in itertools.count():
                if life.is_over:
                    return
                _transact(broker.transaction(task.name), recorder, writer, rng, number)
                time.sleep(rng.uniform(0.01, 0.08))
    except logbroker.LogbrokerError as error:
        raise GaveUpError from error


def _transact(
    transaction: logbroker.Transaction, recorder: Recorder, writer: Writer, rng: random.Random, number: int
) -> None:
    """One transaction. What its commit raises says that nothing of it counts, or that nobody knows."""
    writer.write(transaction, number)
    commit = rng.random() > 0.25
    recorder.write(Ending(now_ns(), number, commit))
    try:
        (transaction.commit if commit else transaction.abort)()
    except logbroker.StorageFailedError:
        raise
    except logbroker.LogbrokerError as error:
        recorder.write(Ended(now_ns(), number, Outcome.FAILED, str(error)))
        raise
    recorder.write(Ended(now_ns(), number, Outcome.OK))


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.argv[1], type=Task)
    live(wanted, {"embedded-producer": produce, "embedded-transactor": transact}[wanted.role])
