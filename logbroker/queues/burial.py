"""Dead letters: the copy in the dead letter topic and the end of the original, in one transaction.

Whoever rejects a message buries it at once; what a process leaves behind is buried by the next consumer of the queue
that comes by. A process that dies in between has buried it or not: an undecided transaction is aborted, and the
message is still REJECTED. If the dead letter cannot be written, nothing is lost: it is tried again.

The transactional id belongs to the queue, so that whoever goes on finishes what a dead one left; a lock sees to it
that the living do not fence each other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LeaseLostError, LogbrokerError
from logbroker_storage.locks import ProcessLock
from logbroker_storage.record_batch import Record

from ..dead_letters import dead_letter_message
from ..groups import TopicPartition
from ..records import Message
from ..subscriptions import Subscription
from ..transaction import Transactions
from .partition import QueuePartition, owner_name
from .rows import Run
from .state import Range

logger = logging.getLogger("logbroker.queues")

AT_A_TIME = 500
TIMEOUT_S = 60.0


class Burial:
    """What buries the rejected messages of one queue; for one thread at a time."""

    def __init__(
        self, directory: DataDirectory, transactions: Transactions, subscription: Subscription
    ) -> None:
        self._directory = directory
        self._transactions = transactions
        self._subscription = subscription
        self._lock = ProcessLock(directory.files, directory.layout.lock(f"burial-{subscription.id}"))
        self._owner = owner_name(directory, "burial")

    def run(self, partitions: Iterable[QueuePartition]) -> int:
        """Bury what is rejected in *partitions*, unless somebody is at it; how many messages that were."""
        waiting = [partition for partition in partitions if partition.has_rejected()]
        if not waiting or not self._lock.try_acquire():
            return 0
        try:
            return sum(self._bury_all(partition) for partition in waiting)
        finally:
            self._lock.release()

    def _bury_all(self, partition: QueuePartition) -> int:
        buried = 0
        while True:
            runs = partition.acquire_rejected(self._owner, AT_A_TIME, lease_ms=int(TIMEOUT_S * 1000))
            if not runs:
                return buried
            try:
                buried += self._bury(partition, runs)
            except LogbrokerError as error:
                logger.error(
                    "dead letters of subscription %r cannot be written to %r, and will be later: %s",
                    self._subscription.name,
                    self._subscription.rules.dead_letter,
                    error,
                )
                partition.give_up(lambda owner: owner == self._owner)
                return buried

    def _bury(self, partition: QueuePartition, runs: Sequence[tuple[Run, list[Record]]]) -> int:
        topic = self._subscription.rules.dead_letter
        assert topic is not None, "without a dead letter topic nothing stays rejected"
        ranges = [(run.first, run.last) for run, _ in runs]

        def refuse(place: TopicPartition, lost: Sequence[Range]) -> None:
            raise LeaseLostError([(*place, *one) for one in lost])

        with self._transactions.begin(f"dead-letters/{self._subscription.id}", TIMEOUT_S) as transaction:
            for run, records in runs:
                transaction.send_many(topic, self._letters(partition, run, records))
            transaction.commit_with(partition.burial(self._owner, ranges, refuse))
        return sum(run.last - run.first + 1 for run, _ in runs)

    def _letters(self, partition: QueuePartition, run: Run, records: list[Record]) -> list[Message]:
        error = None
        if not records:
            topic, number = partition.place
            records = [
                Record(topic=topic, partition=number, offset=run.first, timestamp_ms=-1, key=None, value=None)
            ]
            error = f"offsets {run.first} to {run.last} cannot be read"
        return [
            dead_letter_message(
                record,
                reason=run.note,
                error=error,
                by=self._subscription.name,
                deliveries=run.delivery_count,
                subscription_id=self._subscription.id,
            )
            for record in records
        ]

    def close(self) -> None:
        self._lock.close()
