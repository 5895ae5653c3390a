"""Dead letters: the copy in the dead letter topic and the end of the original, in one transaction.

Whoever rejects a message buries it at once; what a process leaves behind is buried by the next consumer of the queue
that comes by. A process that dies in between has buried it or not: an undecided transaction is aborted, and the
message is still REJECTED. If the dead letter cannot be written, nothing is lost: it is tried again.

The transactional id belongs to the queue, so that whoever goes on finishes what a dead one left; a lock sees to it
that the living do not fence each other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError, RecordTooLargeError
from logbroker_storage.locks import ProcessLock
from logbroker_storage.record_batch import Record

from ..dead_letters import dead_letter_message
from ..records import Message
from ..subscriptions import Subscription
from ..transaction import Transactions
from .owners import owner_name
from .partition import QueuePartition
from .rows import Run
from .settling import refuse

logger = logging.getLogger("logbroker.queues")

AT_A_TIME = 500  # messages of one transaction
TIMEOUT_S = 60.0  # of a transaction, and of the lease on what it buries
RETRY_S = 5.0  # after a failure

Rejected = tuple[Run, list[Record]]


class Burial:
    """What buries the rejected messages of one queue; one thread at a time does it, whoever else asks."""

    def __init__(
        self, directory: DataDirectory, transactions: Transactions, subscription: Subscription
    ) -> None:
        self.subscription = subscription  # as it is now: it may be renamed
        self._directory = directory
        self._transactions = transactions
        self._lock = ProcessLock(directory.files, directory.layout.lock(f"burial-{subscription.id}"))
        self._owner = owner_name(directory, "burial")
        self._next_try = 0.0  # monotonic

    def run(self, partitions: Iterable[QueuePartition]) -> int:
        """Bury what is rejected in *partitions*, unless somebody is at it; how many messages that were."""
        if self._directory.clock.monotonic() < self._next_try:
            return 0
        waiting = [partition for partition in partitions if partition.has_rejected()]
        if not waiting or not self._lock.try_acquire():
            return 0
        try:
            return sum(self._bury_all(partition) for partition in waiting)
        finally:
            self._lock.release()

    def _bury_all(self, partition: QueuePartition) -> int:
        buried = 0
        failures = 0
        try:
            while runs := partition.acquire_rejected(self._owner, AT_A_TIME, lease_ms=int(TIMEOUT_S * 1000)):
                done = self._bury_what_fits(partition, runs)
                buried += done
                failures += sum(run.last - run.first + 1 for run, _ in runs) - done
        except LogbrokerError as error:
            failures += 1
            self._log_failure(error)
        if failures:
            # What cannot be buried was kept until here, or it would have been the first to be tried again.
            partition.give_up(lambda owner: owner == self._owner)
            self._next_try = self._directory.clock.monotonic() + RETRY_S
        return buried

    def _log_failure(self, error: LogbrokerError) -> None:
        logger.error(
            "dead letters of subscription %r cannot be written to %r, and will be later: %s",
            self.subscription.name,
            self.subscription.rules.dead_letter,
            error,
        )

    def _bury_what_fits(self, partition: QueuePartition, runs: Sequence[Rejected]) -> int:
        """Bury *runs*; where one of them is too large for the topic, at least the others. How many messages."""
        try:
            return self._bury(partition, runs)
        except RecordTooLargeError as error:
            singles = list(_singles(runs))
            if len(singles) == 1:
                self._log_failure(error)
                return 0
        return sum(self._bury_what_fits(partition, [single]) for single in singles)

    def _bury(self, partition: QueuePartition, runs: Sequence[Rejected]) -> int:
        topic = self.subscription.rules.dead_letter
        assert topic is not None, "without a dead letter topic nothing stays rejected"
        ranges = [(run.first, run.last) for run, _ in runs]
        with self._transactions.begin(f"dead-letters/{self.subscription.id}", TIMEOUT_S) as transaction:
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
                by=self.subscription.name,
                deliveries=run.delivery_count,
                subscription_id=self.subscription.id,
            )
            for record in records
        ]

    def close(self) -> None:
        self._lock.close()


def _singles(runs: Iterable[Rejected]) -> Iterator[Rejected]:
    """The same messages, each as a run of its own; what has no record goes with the one before it."""
    for run, records in runs:
        if not records:
            yield run, records
            continue
        firsts = [run.first, *(record.offset for record in records[1:])]
        ends = [*firsts[1:], run.last + 1]
        for first, end, record in zip(firsts, ends, records, strict=True):
            yield replace(run, first=first, last=end - 1), [record]
