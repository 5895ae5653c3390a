"""How the batches of a transaction are numbered: by the claim's producer id and epoch, from 0 in each epoch.

Before its first batch goes to a partition, the partition is added to the transaction: from then on somebody
will end it there, whatever becomes of this process.

Guards: as ``Sequences``; ``begin`` and ``give_up`` are called while no batch is on its way.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from logbroker_storage.errors import InvalidRequestError, LogbrokerError
from logbroker_storage.producer_state import next_sequence

from .groups import TopicPartition
from .holdings import Claim
from .partition_queue import FIRST_SEQUENCE
from .sequences import BatchNumber
from .transaction_coordinator import TransactionCoordinator

if TYPE_CHECKING:
    from .accumulator import Batch
    from .partition_queue import PartitionQueue


class TransactionalSequences:
    """The sequences of the transactions of one holder, one transaction after the other."""

    allow_gaps = False
    fails_together = True

    def __init__(self, coordinator: TransactionCoordinator) -> None:
        self._coordinator = coordinator
        self._claim: Claim | None = None
        self._next: dict[
            TopicPartition, int
        ] = {}  # of each partition added to the transaction; guarded by _lock
        self._lock = threading.Lock()
        self.failure: LogbrokerError | None = None  # the transaction can only be aborted

    def begin(self, claim: Claim) -> None:
        """Begin a transaction. It is the first to write in the claim's epoch, so sequences begin at 0."""
        self._claim = claim
        self._next = {}
        self.failure = None

    def give_up(self, error: LogbrokerError) -> None:
        """Write nothing more of this transaction: what is still on its way fails with *error*."""
        self.failure = self.failure or error

    @property
    def has_written(self) -> bool:
        """Whether anything of the transaction may be in a log."""
        return bool(self._next)

    def number(self, queue: PartitionQueue, batch: Batch) -> BatchNumber:  # noqa: ARG002 (protocol)
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        claim = self._claim
        if claim is None:
            raise InvalidRequestError("no transaction is open; begin one with broker.transaction()")
        place = (queue.topic, queue.partition)
        with self._lock:
            if place not in self._next:
                self._coordinator.holdings.add_partitions(claim, [place])
                self._next[place] = FIRST_SEQUENCE
            return BatchNumber(claim.producer_id, claim.epoch, self._next[place], transactional=True)

    def appended(self, queue: PartitionQueue, batch: Batch) -> None:
        place = (queue.topic, queue.partition)
        self._next[place] = next_sequence(self._next[place], batch.kept_count)

    def failed(self, queue: PartitionQueue, error: LogbrokerError) -> None:  # noqa: ARG002 (protocol)
        self.failure = self.failure or error
