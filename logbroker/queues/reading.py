"""Records by ranges of offsets, and what each says of its own delivery.

A queue's messages are read as they come into somebody's hands: mostly one range behind the other, so a reader keeps
the records of the batch that it decoded last, and its place in the log.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import NamedTuple

from logbroker_storage.log_offsets import Isolation
from logbroker_storage.log_reader import LogReader
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import Record, StoredBatch, decode_batch

from ..delivery_headers import deliver_at_ms, expires_at_ms, priority_of
from ..expressions import ExpressionError, Predicate
from .rows import NO_KEY
from .state import Arranged

READ_BYTES = 256 << 10

_offset_of = attrgetter("offset")
_base_offset_of = attrgetter("header.base_offset")


class RangeRead(NamedTuple):
    """Records, the batches that hold them, and the offset up to which this is all: behind the last, if to the end."""

    records: list[Record]
    batches: list[StoredBatch]
    end_offset: int
    have_reserved: bool  # some records may have reserved headers; False is certain


class RangeReader:
    """Reads committed records of one partition. For one thread at a time."""

    def __init__(self, log: PartitionLog) -> None:
        self._log = log
        self._reader: LogReader | None = None
        self._records: list[Record] = []
        self._batches: list[StoredBatch] = []  # that _records are of
        self._have_reserved = False
        self._begin = self._end = 0  # the offsets that _records speaks of

    def read(self, first: int, last: int, max_bytes: float = math.inf) -> RangeRead:
        """The records with offsets in [first, last], ascending; offsets without one are left out.

        With *max_bytes* only those of the first batch, and of further ones as long as all fit.

        Raises:
            OffsetOutOfRangeError, CorruptionError, TopicNotFoundError: as ``LogReader.read``.
        """
        records: list[Record] = []
        batches: list[StoredBatch] = []
        have_reserved = False
        position, left_bytes = first, max_bytes
        while position <= last:
            if not self._begin <= position < self._end and not self._fill(position):
                break
            end_offset = min(self._end, last + 1)
            for batch in self._batches_in(position, end_offset):
                left_bytes -= len(batch.data)
                if left_bytes < 0 and batches:
                    end_offset = max(position, batch.header.base_offset)
                    break
                batches.append(batch)
            begin = bisect_left(self._records, position, key=_offset_of)
            end = bisect_left(self._records, end_offset, key=_offset_of)
            records += self._records[begin:end]
            have_reserved = have_reserved or self._have_reserved
            if left_bytes < 0 and end_offset <= last:
                return RangeRead(records, batches, end_offset, have_reserved)
            position = self._end
        return RangeRead(records, batches, last + 1, have_reserved)

    def _batches_in(self, begin: int, end: int) -> list[StoredBatch]:
        """Those read last that have offsets in [begin, end)."""
        first = bisect_right(self._batches, begin, key=_base_offset_of) - 1
        behind = bisect_left(self._batches, end, key=_base_offset_of)
        return [batch for batch in self._batches[max(first, 0) : behind] if batch.header.next_offset > begin]

    def _fill(self, offset: int) -> bool:
        """Decode what holds *offset* and what comes with it; False when nothing is there (any more)."""
        if self._reader is None:
            self._reader = self._log.reader(offset, Isolation.READ_COMMITTED)
        self._reader.seek(offset)
        batches = self._reader.read(READ_BYTES)
        if self._reader.position <= offset:
            return False
        self._batches = [batch for batch in batches if not batch.header.is_control]
        records: list[Record] = []
        have_reserved = False
        for batch in self._batches:
            decoded = decode_batch(batch, self._log.topic, self._log.partition)
            records += decoded.records
            have_reserved = have_reserved or decoded.have_reserved
        self._records, self._have_reserved = records, have_reserved
        self._begin, self._end = offset, self._reader.position
        return True

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class Verdict(NamedTuple):
    """What is to become of the records of a run."""

    deliver: list[Record]
    arranging: (
        list[Arranged] | None
    )  # of those, and of those to be delivered later; None: they ask for nothing
    rejected: dict[str, list[int]]  # note -> offsets
    is_plain: bool  # every record is to be delivered, now

    @property
    def arranged(self) -> list[Arranged]:
        if self.arranging is None:
            return [Arranged(record.offset) for record in self.deliver]
        return self.arranging


class Judge(NamedTuple):
    """By what a subscription decides which messages are delivered, and in which order."""

    matches: Predicate | None
    ordered: bool
    priorities: bool
    buries_expired: bool
    buries_unknown: bool  # whether what the filter has no value for is rejected, or passed over

    def judge(self, records: list[Record], *, have_reserved: bool, now_ms: int, ttl_ms: int) -> Verdict:
        """*have_reserved*: some records may have headers of the broker's own.

        *now_ms* is wall clock; *ttl_ms* the topic's time to live, -1 for none.
        """
        if self.matches is None and ttl_ms < 0 and not self.ordered and not have_reserved:
            return Verdict(records, None, {}, True)
        deliver: list[Record] = []
        arranged: list[Arranged] = []
        rejected: dict[str, list[int]] = {}
        for record in records:
            expires_ms = expires_at_ms(record, ttl_ms)
            if expires_ms is not None and expires_ms <= now_ms:
                if self.buries_expired:
                    rejected.setdefault(EXPIRED, []).append(record.offset)
                continue
            reason = self._reason_against(record)
            if reason is not None:
                if reason:
                    rejected.setdefault(reason, []).append(record.offset)
                continue
            message = self._arranged(record)
            arranged.append(message)
            if message.not_before_ms <= now_ms:
                deliver.append(record)
        return Verdict(deliver, arranged, rejected, len(deliver) == len(records))

    def _reason_against(self, record: Record) -> str | None:
        """Why *record* is not delivered: "" for no reason to be told, None when it is."""
        if self.matches is None:
            return None
        try:
            return None if self.matches(record) else ""
        except ExpressionError as error:
            return f"filter: {error.reason}" if self.buries_unknown else ""

    def _arranged(self, record: Record) -> Arranged:
        return Arranged(
            record.offset,
            priority_of(record) if self.priorities else 0,
            order_key_of(record) if self.ordered else NO_KEY,
            deliver_at_ms(record) or 0,
        )


EXPIRED = "expired"


def order_key_of(record: Record) -> bytes:
    """8 bytes that records of one key have in common; those without a key have none."""
    if record.key is None:
        return NO_KEY
    return hashlib.blake2b(record.key, digest_size=8).digest()
