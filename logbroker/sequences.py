"""Which producer id, epoch and sequence a batch carries: what makes an append happen once.

An unnamed producer has a producer id of its own and numbers the records of each partition from 0, without
gaps; after 2**31 - 1 comes 0 again. A sequence is used up when its batch is in the log, and only then: a
batch that was refused leaves its sequences to the next one. After an outcome that is unknown (a failed
sync, an interrupt in mid-append) the log is asked what it has.

Guard: a queue's ``sending`` lock for ``next_sequence``, and for taking ``in_doubt`` back.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError, OutOfOrderSequenceError, StorageFailedError
from logbroker_storage.producer_state import next_sequence

from .accumulator import Batch
from .partition_queue import FIRST_SEQUENCE, PartitionQueue

FIRST_EPOCH = 0


class BatchNumber(NamedTuple):
    """The producer fields of a batch header."""

    producer_id: int
    producer_epoch: int
    base_sequence: int
    transactional: bool = False


class Sequences(Protocol):
    """Numbers the batches of one producer. ``number`` and ``appended`` are called under ``sending``."""

    allow_gaps: bool  # sequences only have to increase
    fails_together: bool  # after a failed batch the partition takes nothing more

    def number(self, queue: PartitionQueue, batch: Batch) -> BatchNumber:
        """The fields for *batch*, which is the next of *queue*; may ask the log, and raise."""

    def appended(self, queue: PartitionQueue, batch: Batch) -> None:
        """*batch* is in the log."""

    def failed(self, queue: PartitionQueue, error: LogbrokerError) -> None:
        """A batch of *queue* failed with *error*. Under the producer's lock."""


class AnonymousSequences:
    """An unnamed producer: contiguous sequences under a producer id that nobody else has."""

    allow_gaps = False
    fails_together = False

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._producer_id = -1  # allocated with the first batch; guarded by _lock

    @property
    def producer_id(self) -> int:
        with self._lock:
            if self._producer_id < 0:
                self._producer_id = self._directory.producer_ids.allocate()
            return self._producer_id

    def number(self, queue: PartitionQueue, batch: Batch) -> BatchNumber:  # noqa: ARG002 (protocol)
        producer_id = self._producer_id if self._producer_id >= 0 else self.producer_id
        if queue.in_doubt:
            last_sequence = queue.log.take_over(producer_id, FIRST_EPOCH)
            queue.next_sequence = FIRST_SEQUENCE if last_sequence is None else next_sequence(last_sequence)
            queue.in_doubt = False
        return BatchNumber(producer_id, FIRST_EPOCH, queue.next_sequence)

    def appended(self, queue: PartitionQueue, batch: Batch) -> None:
        queue.next_sequence = next_sequence(queue.next_sequence, batch.kept_count)

    def failed(self, queue: PartitionQueue, error: LogbrokerError) -> None:
        # Every other error means that nothing was written.
        if isinstance(error, (StorageFailedError, OutOfOrderSequenceError)):
            queue.in_doubt = True
