"""A named producer: exactly once across restarts, by sequences that the user counts.

The user numbers the records of a partition (a line number, say) and opens the producer under a name. What
the log has of that name is known after a crash too, so a record whose sequence is not above the last one is
acknowledged and not appended again.

A sequence may have 62 bits; a batch header's has 31. So a name owns one producer id for each block of 2**31
sequences (``block = sequence >> 31``), and a batch never spans two blocks. Sequences may have gaps: a batch
of n records that ends with sequence s is stored with the base sequence ``(s & 0x7fffffff) - (n - 1)``, so
that the batch's last sequence is the user's. It cannot be negative, because n increasing sequences of one
block end at n - 1 or above.

**One holder.** Opening raises the name's epoch in the journal. Before its first record to a partition a
holder *claims* it: under the partition's append lock it takes up what a dead process left behind, raises the
epoch that the log knows for its producer ids, and reads their last sequences. From then on the log refuses
an older holder, and no older batch can come in behind what was read. Before each batch a holder also looks
whether its epoch is still the newest, so that it stops where the new holder has not claimed yet.

**After a failure** the partition takes nothing more, until ``last_sequence`` is asked: records behind
a failed one would otherwise make its sequence look written.

Guards: the producer's lock for ``last_sequence``, ``claimed`` and ``failure`` of a queue; its ``sending``
lock is held while it is claimed.
"""

from __future__ import annotations

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError, InvalidRequestError, LogbrokerError

from .accumulator import Batch
from .partition_queue import NEVER_WROTE, PartitionQueue
from .sequences import BatchNumber

BLOCK_BITS = 31
BLOCK_MASK = (1 << BLOCK_BITS) - 1
MAX_SEQUENCE = (1 << 62) - 1
EPOCH_MASK = 0x7FFF  # a batch header's epoch is an int16


def block_of(sequence: int) -> int:
    """Which producer id of the name carries *sequence*."""
    return sequence >> BLOCK_BITS


def stored_base_sequence(last_sequence: int, count: int) -> int:
    """The base sequence of a batch of *count* records that ends with the user's *last_sequence*."""
    return (last_sequence & BLOCK_MASK) - (count - 1)


class NamedSequences:
    """The holder of a producer's name; see ``Sequences``."""

    allow_gaps = True
    fails_together = True

    def __init__(self, directory: DataDirectory, name: str) -> None:
        self.name = name
        self._directory = directory
        event = directory.producer_ids.open_named(name)
        self._epoch = event.epoch
        self._producer_ids = dict(event.producer_ids)  # block -> producer id; only grows

    def claim(self, queue: PartitionQueue) -> int:
        """The last sequence that the log has, ``NEVER_WROTE`` without one; durable, and no other will follow.

        Under the queue's ``sending`` lock. Raises ``FencedError`` when a newer holder has the name.
        """
        self._check_current()
        last_sequence = NEVER_WROTE
        for block, producer_id in sorted(self._producer_ids.items()):
            stored = queue.log.take_over(producer_id, self._epoch & EPOCH_MASK)
            if stored is not None:
                last_sequence = (block << BLOCK_BITS) | stored
        # What is acknowledged as a duplicate must be as durable as what is acknowledged as new.
        queue.log.wait_durable(queue.log.offsets().log_end_offset)
        return last_sequence

    def assign(self, queue: PartitionQueue, sequence: int | None) -> int | None:
        """The sequence of the next record, None when it is in the log already. Under the producer's lock."""
        if queue.failure is not None:
            raise queue.failure.with_traceback(None)
        last_sequence = queue.last_sequence
        if sequence is None:
            return last_sequence + 1
        if type(sequence) is not int or not 0 <= sequence <= MAX_SEQUENCE:
            raise InvalidRequestError(f"a sequence is an integer from 0 to 2**62 - 1, not {sequence!r}")
        return sequence if sequence > last_sequence else None

    def room_in_block(self, queue: PartitionQueue) -> int:
        """How many consecutive sequences after the last one share a block, and so a batch."""
        return BLOCK_MASK - ((queue.last_sequence + 1) & BLOCK_MASK) + 1

    def number(self, queue: PartitionQueue, batch: Batch) -> BatchNumber:
        if queue.failure is not None:
            raise queue.failure.with_traceback(None)
        self._check_current()
        block = block_of(batch.last_sequence)
        producer_id = self._producer_ids.get(block)
        if producer_id is None:
            producer_id = self._directory.producer_ids.add_block(self.name, self._epoch, block)
            self._producer_ids[block] = producer_id
        base_sequence = stored_base_sequence(batch.last_sequence, batch.count)
        return BatchNumber(producer_id, self._epoch & EPOCH_MASK, base_sequence)

    def appended(self, queue: PartitionQueue, batch: Batch) -> None:
        """Nothing: sequences were assigned when the records came in."""

    def failed(self, queue: PartitionQueue, error: LogbrokerError) -> None:
        queue.failure = queue.failure or error

    def _check_current(self) -> None:
        newest = self._directory.producer_ids.named(self.name)
        if newest is None or newest.epoch != self._epoch:
            raise FencedError(
                f"producer {self.name!r} was opened again elsewhere and that holder goes on; "
                "nothing was written: stop this one"
            )
