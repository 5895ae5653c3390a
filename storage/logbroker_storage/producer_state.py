"""What the last batches of one producer were: the fold that makes appends idempotent.

One entry per (partition, producer id) holds the producer's epoch and its last five batches, as Kafka
does, because a client may have five requests in flight. The entry is a fold over batch headers, so it
can be rebuilt from the log alone.

    the batch's epoch   its base sequence                    decision
    below the entry's   any                                  FENCED
    above the entry's   0, or gaps allowed                   APPEND (a new epoch starts a new history)
    above the entry's   anything else                        OUT_OF_ORDER (its first batch is missing)
    equal               is one of the last five batches      DUPLICATE: answer with its offset
    equal               follows the last sequence            APPEND
    equal               above the last, gaps allowed         APPEND (named producers: sparse sequences)
    equal               0, where the epoch has none yet      APPEND
    equal               anything else                        OUT_OF_ORDER
    no entry            any                                  APPEND

Sequences are 31 bits and wrap to 0. A transactional batch opens its producer's transaction, unless one is
open; a marker closes it. A marker of a newer epoch starts a new history, as a batch does.

A marker ends at most one transaction, however many try to write it:

    the entry's epoch        its open transaction                     decision
    above the marker's       any                                      PAST
    equal                    began below the offset that is given     END (its producer keeps its epoch)
    equal                    anything else                            PAST
    below                    one                                      END
    below                    none                                     FENCE
    no entry                                                          FENCE

    at  size  field             type    meaning
     0     2  epoch             int16   the producer's current epoch
     2     4  coordinator_epoch int32   of its last transaction marker
     6     8  txn_first_offset  int64   first offset of its open transaction, -1 without one
    14    30  x count           batch   oldest first, at most five:
     0     4  base_sequence     int32   first sequence of the batch, -1 for a marker
     4     4  last_sequence     int32
     8     8  base_offset       int64
    16     8  last_offset       int64
    24     8  timestamp_ms      int64   largest timestamp of the batch
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from .record_batch import BatchHeader

SEQUENCE_LIMIT = 1 << 31
NO_SEQUENCE = -1
NO_TRANSACTION = -1
REMEMBERED_BATCHES = 5

ENTRY_HEAD = struct.Struct(">hiq")
ENTRY_BATCH = struct.Struct(">iiqqq")
_pack_batch = ENTRY_BATCH.pack


class BatchSpan(NamedTuple):
    """Where one batch of a producer went."""

    base_sequence: int
    last_sequence: int
    base_offset: int
    last_offset: int
    timestamp_ms: int


class ProducerEntry(NamedTuple):
    """The state of one producer in one partition; ``batches`` are oldest first."""

    epoch: int
    batches: tuple[BatchSpan, ...] = ()
    coordinator_epoch: int = -1
    txn_first_offset: int = NO_TRANSACTION

    @property
    def last_sequence(self) -> int:
        """The last sequence, -1 when this epoch has written none."""
        return self.batches[-1].last_sequence if self.batches else -1

    @property
    def last_offset(self) -> int:
        return self.batches[-1].last_offset if self.batches else -1

    @property
    def timestamp_ms(self) -> int:
        return self.batches[-1].timestamp_ms if self.batches else -1


class Verdict(enum.Enum):
    """What an append of a producer's batch comes to."""

    APPEND = "append"
    DUPLICATE = "duplicate"
    OUT_OF_ORDER = "out of order"
    FENCED = "fenced"


class Decision(NamedTuple):
    """The verdict, with the earlier batch of a duplicate and the sequence that was due."""

    verdict: Verdict
    duplicate_of: BatchSpan | None = None
    expected_sequence: int = -1


class MarkerVerdict(enum.Enum):
    """What is to be done to end a producer's transaction."""

    END = "end"  # append the marker
    FENCE = "fence"  # there is none: only refuse older epochs from now on
    PAST = "past"  # it was ended already, or the producer has gone on


_APPEND = Decision(Verdict.APPEND)


def next_sequence(sequence: int, count: int = 1) -> int:
    """The sequence *count* records after *sequence*, with the wrap from 2**31 - 1 to 0."""
    return (sequence + count) % SEQUENCE_LIMIT


def decide(entry: ProducerEntry | None, header: BatchHeader, *, allow_gaps: bool = False) -> Decision:
    """Whether the batch with *header* may follow what *entry* remembers; see the table above."""
    if entry is None:
        return _APPEND
    if header.producer_epoch < entry.epoch:
        return Decision(Verdict.FENCED)
    last_sequence = entry.last_sequence
    base_sequence = header.base_sequence
    if last_sequence < 0 or header.producer_epoch > entry.epoch:
        if base_sequence <= 0 or allow_gaps:
            return _APPEND
        return Decision(Verdict.OUT_OF_ORDER, expected_sequence=0)
    expected = next_sequence(last_sequence)
    if base_sequence == expected:
        return _APPEND
    for span in reversed(entry.batches):
        if span.base_sequence == base_sequence and span.last_sequence == header.last_sequence:
            return Decision(Verdict.DUPLICATE, duplicate_of=span)
    if allow_gaps and base_sequence > last_sequence:
        return _APPEND
    return Decision(Verdict.OUT_OF_ORDER, expected_sequence=expected)


def decide_marker(
    entry: ProducerEntry | None, marker_epoch: int, before_offset: int | None = None
) -> MarkerVerdict:
    """Whether a marker of *marker_epoch* has a transaction to end; see the second table above.

    *before_offset* is given for a producer that keeps its epoch: its transaction that is meant began below it.
    """
    if entry is None:
        return MarkerVerdict.FENCE
    first_offset = entry.txn_first_offset
    if entry.epoch == marker_epoch and before_offset is not None:
        return MarkerVerdict.END if 0 <= first_offset < before_offset else MarkerVerdict.PAST
    if entry.epoch >= marker_epoch:
        return MarkerVerdict.PAST
    return MarkerVerdict.FENCE if first_offset < 0 else MarkerVerdict.END


def advance(entry: ProducerEntry | None, header: BatchHeader, base_offset: int) -> ProducerEntry:
    """The entry after the batch with *header* was appended at *base_offset*."""
    if header.is_control:
        return _after_marker(entry, header, base_offset)
    if header.base_sequence < 0:
        return ProducerEntry(header.producer_epoch) if entry is None else entry
    span = BatchSpan(
        header.base_sequence,
        header.last_sequence,
        base_offset,
        base_offset + header.last_offset_delta,
        header.max_timestamp_ms,
    )
    txn_first_offset = NO_TRANSACTION if entry is None else entry.txn_first_offset
    if header.is_transactional and txn_first_offset < 0:
        txn_first_offset = base_offset
    if entry is None:
        return ProducerEntry(header.producer_epoch, (span,), txn_first_offset=txn_first_offset)
    if entry.epoch != header.producer_epoch:
        return ProducerEntry(header.producer_epoch, (span,), entry.coordinator_epoch, txn_first_offset)
    batches = (*entry.batches, span)[-REMEMBERED_BATCHES:]
    return ProducerEntry(entry.epoch, batches, entry.coordinator_epoch, txn_first_offset)


def _after_marker(entry: ProducerEntry | None, header: BatchHeader, base_offset: int) -> ProducerEntry:
    if entry is not None and header.producer_epoch <= entry.epoch:
        return (
            entry if header.producer_epoch < entry.epoch else entry._replace(txn_first_offset=NO_TRANSACTION)
        )
    span = BatchSpan(NO_SEQUENCE, NO_SEQUENCE, base_offset, base_offset, header.max_timestamp_ms)
    return ProducerEntry(header.producer_epoch, (span,), -1 if entry is None else entry.coordinator_epoch)


def encode_entry(entry: ProducerEntry) -> bytes:
    head = ENTRY_HEAD.pack(entry.epoch, entry.coordinator_epoch, entry.txn_first_offset)
    return head + b"".join([_pack_batch(*span) for span in entry.batches])


def decode_entry(data: bytes) -> ProducerEntry:
    epoch, coordinator_epoch, txn_first_offset = ENTRY_HEAD.unpack_from(data)
    spans = tuple(map(BatchSpan._make, ENTRY_BATCH.iter_unpack(data[ENTRY_HEAD.size :])))
    return ProducerEntry(epoch, spans, coordinator_epoch, txn_first_offset)
