"""What a partition's batches say of its producers and their transactions, one batch after the other.

Recovery and adoption fold the log with this; an append does the same step for its one batch by itself. The
result is the producers' entries, which transactions are open, and for each abort marker the entry that the
aborted index must have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .aborted_index import AbortedTransaction
from .control_record import ControlType
from .producer_state import NO_TRANSACTION, ProducerEntry, advance
from .record_batch import BatchHeader

Load = Callable[[int], ProducerEntry | None]


def first_unstable(open_offsets: Iterable[int]) -> int:
    """The first offset of the oldest of the open transactions, -1 without one."""
    return min(open_offsets, default=NO_TRANSACTION)


def aborted_transaction(
    producer_id: int, *, first_offset: int, marker_offset: int, first_unstable_offset: int
) -> AbortedTransaction:
    """The index entry of a transaction that ended with an abort marker at *marker_offset*.

    *first_unstable_offset* is that of the transactions still open behind it.
    """
    stable = first_unstable_offset if first_unstable_offset >= 0 else marker_offset + 1
    return AbortedTransaction(producer_id, first_offset, marker_offset, stable)


class ProducerFold:
    """The producers of one partition: ``producers`` holds those known before, and all that a batch was added of."""

    def __init__(self, known: Mapping[int, ProducerEntry] | None = None, *, load: Load | None = None) -> None:
        """*known* are the producers before the first batch; *load* asks for one that is not among them."""
        self.producers: dict[int, ProducerEntry] = dict(known or {})
        self._load = load
        self._open = {
            producer_id: entry.txn_first_offset
            for producer_id, entry in self.producers.items()
            if entry.txn_first_offset >= 0
        }

    def open(self, producer_id: int, first_offset: int) -> None:
        """A transaction that was open before the first batch."""
        self._open[producer_id] = first_offset

    @property
    def first_unstable_offset(self) -> int:
        """Of the transactions open behind the last batch; -1 without one."""
        return first_unstable(self._open.values())

    def add(self, header: BatchHeader, control_type: ControlType | None) -> AbortedTransaction | None:
        """Take in the next batch; what the aborted index must say of it."""
        producer_id = header.producer_id
        if producer_id < 0:
            return None
        before = self.producers.get(producer_id)
        if before is None and self._load is not None:
            before = self._load(producer_id)
        after = self.producers[producer_id] = advance(before, header, header.base_offset)
        first_offset = NO_TRANSACTION if before is None else before.txn_first_offset
        if after.txn_first_offset >= 0:
            self._open[producer_id] = after.txn_first_offset
            return None
        self._open.pop(producer_id, None)
        if first_offset < 0 or control_type is not ControlType.ABORT:
            return None
        return aborted_transaction(
            producer_id,
            first_offset=first_offset,
            marker_offset=header.base_offset,
            first_unstable_offset=self.first_unstable_offset,
        )
