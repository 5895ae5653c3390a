"""Index of aborted transactions: which records a read-committed reader has to leave out.

One entry for each transaction that was aborted with its marker in this segment. The file exists only
where there is one. Unlike the other two indexes it cannot be rebuilt from its own segment alone, since
the transaction may have begun in an earlier one; rebuild it with the producer state at the base offset.

    at  size  field               type   meaning
     0     2  version             int16  0
     2     8  producer_id         int64
    10     8  first_offset        int64  of the transaction's first record
    18     8  last_offset         int64  of its abort marker
    26     8  last_stable_offset  int64  of the partition once the marker was written

Invariant: first_offset <= last_offset, and last_offset and last_stable_offset never decrease.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from .batch_header import BatchHeader
from .offset_index import IndexDefect

ENTRY = struct.Struct(">hqqqq")
ENTRY_BYTES = ENTRY.size
VERSION = 0


class AbortedTransaction(msgspec.Struct, frozen=True, gc=False):
    """One aborted transaction of a partition; all offsets absolute, ``last_offset`` inclusive."""

    producer_id: int
    first_offset: int
    last_offset: int
    last_stable_offset: int


AbortedByProducer = Mapping[int, Sequence[AbortedTransaction]]


def by_producer(transactions: Iterable[AbortedTransaction]) -> dict[int, list[AbortedTransaction]]:
    """The transactions by producer id."""
    found: dict[int, list[AbortedTransaction]] = {}
    for transaction in transactions:
        found.setdefault(transaction.producer_id, []).append(transaction)
    return found


def is_aborted(header: BatchHeader, aborted: AbortedByProducer) -> bool:
    """Whether the batch belongs to one of the *aborted* transactions. A marker belongs to none."""
    if not header.is_transactional or header.is_control:
        return False
    return any(
        transaction.first_offset <= header.base_offset <= transaction.last_offset
        for transaction in aborted.get(header.producer_id, ())
    )


def encode_entry(transaction: AbortedTransaction) -> bytes:
    """The 34 bytes of one entry."""
    return ENTRY.pack(
        VERSION,
        transaction.producer_id,
        transaction.first_offset,
        transaction.last_offset,
        transaction.last_stable_offset,
    )


def parse(buffer: bytes | memoryview) -> list[AbortedTransaction]:
    """Every whole entry, in file order, unchecked."""
    whole = len(buffer) // ENTRY_BYTES * ENTRY_BYTES
    return [AbortedTransaction(*fields[1:]) for fields in ENTRY.iter_unpack(buffer[:whole])]


def check(buffer: bytes | memoryview, *, base_offset: int, end_offset: int) -> IndexDefect | None:
    """What makes the index of the segment [base_offset, end_offset) unusable, or None."""
    if len(buffer) % ENTRY_BYTES:
        return IndexDefect.BAD_SIZE
    if any(version != VERSION for version, *_ in ENTRY.iter_unpack(buffer)):
        return IndexDefect.BAD_VERSION
    previous = AbortedTransaction(-1, -1, -1, -1)
    for transaction in parse(buffer):
        if not base_offset <= transaction.last_offset < end_offset:
            return IndexDefect.OUT_OF_BOUNDS
        if not 0 <= transaction.first_offset <= transaction.last_offset:
            return IndexDefect.OUT_OF_BOUNDS
        if transaction.last_offset <= previous.last_offset:
            return IndexDefect.NOT_ASCENDING
        if transaction.last_stable_offset < previous.last_stable_offset:
            return IndexDefect.NOT_ASCENDING
        previous = transaction
    return None


def overlapping(
    transactions: Iterable[AbortedTransaction], *, start_offset: int, end_offset: int
) -> list[AbortedTransaction]:
    """The aborted transactions with a record or marker in [start_offset, end_offset), in file order.

    Feed the entries of the segment of *start_offset* and of those behind it, in order: reading ends at
    the first whose last stable offset reaches *end_offset*, as no later one can begin below that.
    """
    found = []
    for transaction in transactions:
        if transaction.last_offset >= start_offset and transaction.first_offset < end_offset:
            found.append(transaction)
        if transaction.last_stable_offset >= end_offset:
            break
    return found
