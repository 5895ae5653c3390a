"""Records by ranges of offsets, and what each says of its own delivery.

A queue's messages are read as they come into somebody's hands: mostly one range behind the other, so a reader keeps
the records of what it decoded last, and its place in the log. Messages of one order key lie scattered: for a reader
that jumps, what it has read stays for a while, and of a batch only what is asked for is decoded.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import NamedTuple

from logbroker_storage.errors import CorruptBatchError, CorruptionError
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.log_reader import LogReader
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import Decoded, Record, StoredBatch, decode_batch, decode_range

from ..delivery_headers import deliver_at_ms, expires_at_ms, priority_of
from ..expressions import ExpressionError, Predicate
from .rows import NO_KEY
from .state import Arranged

READ_BYTES = 256 << 10
KEPT_BYTES = 4 << 20  # of a reader that goes to and fro,
ALL_KEPT_BYTES = 64 << 20  # and of all of a process, but for what each was in last
PART = 8  # less than one PART-th of a batch is decoded alone, unless it follows what was read last,
MOST_PARTS = 16  # or is one part more of what was read: by then all of it is cheaper

_offset_of = attrgetter("offset")
_base_offset_of = attrgetter("header.base_offset")

_readers: weakref.WeakSet[RangeReader] = weakref.WeakSet()  # that may keep something


class RangeRead(NamedTuple):
    """Records, the batches that hold them, and the offset up to which this is all: behind the last, if to the end."""

    records: list[Record]
    batches: list[StoredBatch]
    end_offset: int
    have_reserved: bool  # some records may have reserved headers; False is certain


class _Stretch(NamedTuple):
    """Batches that were read and checked, but those of markers: all there is of the offsets [begin, end)."""

    begin: int
    end: int
    batches: list[StoredBatch]

    def within(self, begin: int, end: int) -> list[StoredBatch]:
        """Its batches that have offsets in [begin, end)."""
        first = bisect_right(self.batches, begin, key=_base_offset_of) - 1
        behind = bisect_left(self.batches, end, key=_base_offset_of)
        return [batch for batch in self.batches[max(first, 0) : behind] if batch.header.next_offset > begin]

    @property
    def size_bytes(self) -> int:
        """What it takes at most: however little was used of a read, what was asked for may stay with it."""
        return max(READ_BYTES, sum(len(batch.data) for batch in self.batches))


class RangeReader:
    """Reads committed records of one partition. For one thread at a time."""

    def __init__(self, log: PartitionLog) -> None:
        self._log = log
        self._reader: LogReader | None = None
        self._stretches: list[_Stretch] = []  # the one that was used last is the last
        self._decoded: _Stretch | None = None  # that these are all records of
        self._records: list[Record] = []
        self._have_reserved = False
        self._behind = -1  # the offset behind what was read last
        self._parts = 0  # that were decoded alone, one behind the other, of the stretch that was used last

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
        while position <= last and left_bytes >= 0:
            stretch = self._stretch_at(position)
            if stretch is None:
                break
            end_offset = min(stretch.end, last + 1)
            for batch in stretch.within(position, end_offset):
                left_bytes -= len(batch.data)
                if left_bytes < 0 and batches:
                    end_offset = max(position, batch.header.base_offset)
                    break
                batches.append(batch)
            found = self._records_of(stretch, position, end_offset)
            records += found.records
            have_reserved = have_reserved or found.have_reserved
            self._behind = position = end_offset
        return RangeRead(records, batches, position if left_bytes < 0 else last + 1, have_reserved)

    def _stretch_at(self, offset: int) -> _Stretch | None:
        """What holds *offset* and what comes with it; None when nothing is there (any more)."""
        if self._stretches and self._stretches[-1].begin <= offset < self._stretches[-1].end:
            return self._stretches[-1]
        self._parts = 0
        for index, known in enumerate(self._stretches):
            if known.begin <= offset < known.end:
                self._stretches.append(self._stretches.pop(index))
                return known
        if self._reader is None:
            self._reader = self._log.reader(offset, Isolation.READ_COMMITTED)
            _readers.add(self)
        self._reader.seek(offset)
        batches = self._reader.read(READ_BYTES)
        end = self._reader.position
        if end <= offset:
            return None
        begin = min(offset, batches[0].header.base_offset) if batches else offset
        found = _Stretch(begin, end, [batch for batch in batches if not batch.header.is_control])
        if offset == self._behind:
            self._stretches.clear()  # who reads on does not come back
        self._stretches.append(found)
        kept_bytes = min(KEPT_BYTES, ALL_KEPT_BYTES // max(1, len(_readers)))
        while sum(one.size_bytes for one in self._stretches) > kept_bytes and len(self._stretches) > 1:
            del self._stretches[0]
        return found

    def _records_of(self, stretch: _Stretch, begin: int, end: int) -> Decoded:
        if stretch is not self._decoded and (self._is_part(stretch, begin, end) or not self._decode(stretch)):
            return self._alone(stretch.within(begin, end), begin, end)
        first = bisect_left(self._records, begin, key=_offset_of)
        behind = bisect_left(self._records, end, key=_offset_of)
        return Decoded(self._records[first:behind], self._have_reserved)

    def _is_part(self, stretch: _Stretch, begin: int, end: int) -> bool:
        """Whether [begin, end) is to be decoded alone."""
        batches = stretch.within(begin, end)
        if begin == self._behind or len(batches) != 1 or self._parts >= MOST_PARTS:
            return False
        header = batches[0].header
        if not header.is_whole or (end - begin) * PART >= header.record_count:
            return False
        self._parts += 1
        return True

    def _decode(self, stretch: _Stretch) -> bool:
        """Have all records of *stretch*; False where some do not parse, which need not be those that are asked for."""
        self._decoded = None  # until all of it is
        records: list[Record] = []
        have_reserved = False
        for batch in stretch.batches:
            try:
                decoded = decode_batch(batch, self._log.topic, self._log.partition)
            except CorruptBatchError:
                return False
            records += decoded.records
            have_reserved = have_reserved or decoded.have_reserved
        self._records, self._have_reserved, self._decoded = records, have_reserved, stretch
        return True

    def _alone(self, batches: list[StoredBatch], begin: int, end: int) -> Decoded:
        records: list[Record] = []
        have_reserved = False
        for batch in batches:
            try:
                decoded = decode_range(batch, begin, end, self._log.topic, self._log.partition)
            except CorruptBatchError as error:
                raise CorruptionError.of_records(
                    self._log.topic,
                    self._log.partition,
                    start_offset=batch.header.base_offset,
                    end_offset=batch.header.next_offset,
                    path=self._log.directory,
                    error=error,
                ) from error
            records += decoded.records
            have_reserved = have_reserved or decoded.have_reserved
        return Decoded(records, have_reserved)

    def close(self) -> None:
        _readers.discard(self)
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
