"""A consumer's place in one partition: reads batches, decodes them as they are wanted, hands records out.

    log ──read()──► batches ──decode──► records ──take()──► the consumer
                    (bytes)             not handed out yet      │
                                                                ▼
        committed  ≤  done  ≤  position  =  offset behind the last record handed out

Batches stay bytes until records are asked for, so that a consumer of many partitions holds bytes of each
but records of few. What consumers must not see goes here: control batches are passed over whole; a record
is dropped when its time to live (the topic's, or its own) has passed, be it after it was decoded; headers
of the broker's are taken off. ``position`` moves past all of these.

All work is done per batch: a record costs its decoding and a place in a list.
"""

from __future__ import annotations

import enum
import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from operator import attrgetter, length_hint

from logbroker_storage.errors import (
    CorruptBatchError,
    CorruptionError,
    OffsetOutOfRangeError,
)
from logbroker_storage.log_offsets import Isolation, LogOffsets
from logbroker_storage.log_reader import LogReader
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import Record, StoredBatch, decode_batch, decode_range
from logbroker_storage.record_expiry import record_ttl_ms

from .records import without_reserved_headers

logger = logging.getLogger("logbroker.consumer")

NEVER_MS = 1 << 63
FEW_RECORDS = 10
FEW_READ_BYTES = 64 << 10  # a whole megabyte read and checked made a random read take almost twice as long

_offset_of = attrgetter("offset")


class Origin(enum.Enum):
    """Why a cursor stands where it stands; decides what happens when that offset is not in the log."""

    START = "the start= argument"
    COMMITTED = "the committed offset"
    READ = "reading"
    SOUGHT = "seek"


class Cursor:
    """One partition as one consumer reads it. The consumer's lock guards it."""

    def __init__(
        self,
        log: PartitionLog,
        *,
        since: int,
        position: int,
        origin: Origin,
        committed: int | None,
        isolation: Isolation,
        restart: Callable[[PartitionLog], int],
        now_ms: Callable[[], int],
        matches: Callable[[Record], bool] | None = None,
    ) -> None:
        """*since* is the generation of the ownership; *restart* finds the offset that start= stands for.

        Only records that *matches*, a subscription's filter, are handed out.
        """
        self.log = log
        self.place = (log.topic, log.partition)
        self.since = since
        self.position = position  # the next offset to hand out
        self.done = position  # everything below was asked on from: the user is through with it
        self.committed = committed  # what this member knows to be the group's offset
        self.moved = False  # position is news to the group: handed out, passed over or sought, not committed
        self.handed_out = False  # records were handed out and not committed yet
        self.leaving = False  # the group wants the partition for another member: read no more
        self.paused = False  # hand out nothing
        self.passed_over = False  # the last take came only to what nobody is to see: there may be more
        self.expires_ms = NEVER_MS  # when the first of the records not handed out expires
        self.keeps_ttl_headers = False  # for the broker's own use: it takes off all of its headers itself
        self._began = position
        self._isolation = isolation
        self._origin = origin
        self._restart = restart
        self._now_ms = now_ms
        self._matches = matches
        self._reader: LogReader | None = None
        self._batches: deque[StoredBatch] = deque()
        self._is_first_read = True  # here, or behind a seek
        self._records: list[Record] = []
        self._next = 0  # index in _records of the next to hand out
        self._end = position  # the position when all of _records were handed out
        self._deadlines: dict[int, int] = {}  # offset -> when it expires, of records with a ttl of their own

    def take(self, count: int, read_bytes: int, *, enough: int | None = None) -> list[Record]:
        """Up to *count* records, [] when there are none now; moves ``position``.

        It reads once at most. Where nothing of that is to be handed out, ``passed_over`` says so.

        With *enough* of them decoded no other batch is (default: *count*).

        Raises:
            CorruptionError: the log is damaged at ``position``; again at each call until a seek.
            OffsetOutOfRangeError: the records at ``position`` were deleted after some were handed out.
            TopicNotFoundError: the topic was deleted.
        """
        self.passed_over = False
        if self.paused:
            return []
        if self.expires_ms <= self._now_ms():
            self._drop_expired()
        enough = min(count, enough or count)
        if len(self._records) - self._next < enough and not self._refill(enough, read_bytes):
            return []
        begin, self._next = self._next, min(self._next + count, len(self._records))
        whole = not begin and self._next == len(self._records)
        taken = self._records if whole else self._records[begin : self._next]
        self._origin = Origin.READ
        self.moved = self.handed_out = True
        self.position = self._end if self._next == len(self._records) else taken[-1].offset + 1
        return taken

    def give_back(self, count: int) -> None:
        """The last *count* records of the last ``take`` were not handed out after all."""
        if count:
            self._next -= count
            behind = self._records[self._next - 1].offset + 1 if self._next else self._records[0].offset
            self.position = behind

    def note_committed(self, offset: int) -> None:
        """The group's offset here is *offset* now."""
        self.committed = offset
        if offset == self.position:
            self.moved = self.handed_out = False

    def seek(self, offset: int, origin: Origin = Origin.SOUGHT) -> None:
        """Go on at *offset*."""
        self.position = self.done = offset
        self.moved = True
        self._origin = origin
        self._forget_buffer()

    def return_to_committed(self) -> None:
        """Hand out again what the group has not committed."""
        committed = self.committed
        self.seek(self._began if committed is None else committed, Origin.COMMITTED)
        self.handed_out = False
        self.moved = False

    def is_expired(self, record: Record) -> bool:
        """Whether *record*, of the last ``take``, has expired by now."""
        return self._deadline_ms(record) <= self._now_ms()

    def visible_end(self, offsets: LogOffsets) -> int:
        """Up to where this reader may read, of the log's *offsets*."""
        return offsets.visible_end(self._isolation)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # Reading ahead --------------------------------------------------------------------------------

    def _forget_buffer(self) -> None:
        self._batches.clear()
        self._records = []
        self._next = 0
        self._end = self.position
        self._deadlines = {}
        self.expires_ms = NEVER_MS
        self._is_first_read = True
        if self._reader is not None:
            self._reader.seek(self.position)

    def _refill(self, enough: int, read_bytes: int) -> bool:
        """Decode until there are *enough* records or no more batch is at hand; whether there is any."""
        records = self._records[self._next :]
        if not records:
            self._deadlines = {}
            self.expires_ms = NEVER_MS
        self._records = []
        self._next = 0
        has_read = False
        # Perhaps nothing else is wanted of this place.
        wants_few = self._is_first_read and enough <= FEW_RECORDS
        try:
            while len(records) < enough:
                if not self._batches:
                    if records or has_read:
                        break
                    if not self._read(min(read_bytes, FEW_READ_BYTES) if wants_few else read_bytes):
                        break
                    has_read = True
                batch = self._batches[0]
                end = batch.header.next_offset
                if wants_few:
                    end = min(end, max(self._end, batch.header.base_offset) + enough)
                    wants_few = False
                try:
                    decoded = self._decoded(batch, end, is_first=not records)
                except Exception:  # of the user's filter, say: the records before it go out first
                    if not records:
                        raise
                    break
                if decoded is None:
                    break
                if end == batch.header.next_offset:
                    self._batches.popleft()
                self._end = end
                records = records + decoded if records else decoded
        except BaseException:
            self._forget_buffer()  # what was read ahead is read again: nobody has seen it
            raise
        self._records = records
        if not records and self.position < self._end:
            self.position = self._end  # only records that consumers do not see: the group may know of it
            self.moved = self.passed_over = True
        return bool(records)

    def _read(self, read_bytes: int) -> bool:
        if self._reader is None:
            self._reader = self.log.reader(self.position, self._isolation)
        try:
            self._batches.extend(self._reader.read(read_bytes))
        except OffsetOutOfRangeError as error:
            if self._origin in (Origin.READ, Origin.SOUGHT):
                raise
            self._start_over(error)
            self._batches.extend(self._reader.read(read_bytes))
        self._is_first_read = False
        return bool(self._batches)

    def _start_over(self, error: OffsetOutOfRangeError) -> None:
        """Nothing was handed out here yet, so start= decides, as for a group without a committed offset."""
        offset = min(max(self._restart(self.log), error.start_offset), error.end_offset)
        logger.warning(
            "%s of %s-%d is %d, outside of [%d, %d]: it goes on at %d",
            self._origin.value,
            *self.place,
            error.offset,
            error.start_offset,
            error.end_offset,
            offset,
        )
        self.seek(offset, Origin.START)

    def _decoded(self, batch: StoredBatch, end: int, *, is_first: bool) -> list[Record] | None:
        """The records of *batch* from ``_end`` to below offset *end* that may be handed out.

        None puts damage off until those before are.
        """
        header = batch.header
        ttl_ms = self.log.config.message_ttl_ms
        if header.is_control or not header.record_count:
            return []
        if ttl_ms >= 0 <= header.base_timestamp_ms and header.max_timestamp_ms + ttl_ms <= self._now_ms():
            return []
        try:
            if end < header.next_offset:
                records, have_reserved = decode_range(batch, self._end, end, *self.place)
            else:
                records, have_reserved = decode_batch(batch, *self.place)
        except CorruptBatchError as error:
            if not is_first:
                return None
            raise CorruptionError.of_records(
                *self.place,
                start_offset=max(header.base_offset, self.position),
                end_offset=header.next_offset,
                path=self.log.directory,
                error=error,
            ) from error
        if header.base_offset < self._end:
            del records[: bisect_left(records, self._end, key=_offset_of)]
        if have_reserved:
            records = self._without_ttl_headers(records)
        if ttl_ms >= 0 or self._deadlines:
            records = self._unexpired(records)
        if self._matches is not None:
            matches = self._matches
            # Not filter(): a StopIteration out of the user's function would be its end, and lose the rest.
            records = [record for record in records if matches(record)]
        return records

    def _without_ttl_headers(self, records: list[Record]) -> list[Record]:
        """Note when records with a time to live of their own expire, and take the broker's headers off."""
        for record in records:
            ttl_ms = record_ttl_ms(record)
            if ttl_ms >= 0 <= record.timestamp_ms:
                self._deadlines[record.offset] = record.timestamp_ms + ttl_ms
        if self.keeps_ttl_headers:
            return records
        return [without_reserved_headers(record) for record in records]

    def _deadline_ms(self, record: Record) -> int:
        own_ms = self._deadlines.get(record.offset, NEVER_MS)
        ttl_ms = self.log.config.message_ttl_ms
        if ttl_ms < 0 or record.timestamp_ms < 0:
            return own_ms
        return min(own_ms, record.timestamp_ms + ttl_ms)

    def _unexpired(self, records: list[Record]) -> list[Record]:
        """Those that have not expired; ``expires_ms`` takes note of when the first of them will."""
        now_ms = self._now_ms()
        deadlines = list(map(self._deadline_ms, records))
        if min(deadlines, default=NEVER_MS) <= now_ms:
            pairs = zip(records, deadlines, strict=True)
            records = [record for record, deadline_ms in pairs if deadline_ms > now_ms]
            deadlines = [deadline_ms for deadline_ms in deadlines if deadline_ms > now_ms]
        self.expires_ms = min(self.expires_ms, min(deadlines, default=NEVER_MS))
        return records

    def _drop_expired(self) -> None:
        """Look at each record that is not handed out yet; the first of them has expired."""
        self.expires_ms = NEVER_MS
        self._records = self._unexpired(self._records[self._next :])
        self._next = 0
        if not self._records and self.position != self._end:
            self.position = self._end
            self.moved = True


class Handout:
    """Records that an iteration hands out one by one, without a line of Python for each.

    The list iterator itself knows how far it is; ``length_hint`` asks it. Emptying it from anywhere ends
    the iteration behind the record that was last handed out.
    """

    def __init__(self, cursor: Cursor, records: list[Record], *, started: float) -> None:
        self.cursor = cursor
        self.records = records
        self.iterator = iter(records)
        self.started = started

    @property
    def position(self) -> int:
        """The offset behind the record last handed out."""
        left = length_hint(self.iterator)
        if not left:
            return self.cursor.position
        yielded = len(self.records) - left
        return self.records[yielded - 1].offset + 1 if yielded else self.records[0].offset

    @property
    def done(self) -> int:
        """The offset of the record last handed out: all before it were asked on from."""
        yielded = len(self.records) - length_hint(self.iterator)
        return self.records[max(yielded - 1, 0)].offset if self.records else self.cursor.position

    def cut(self) -> None:
        """Hand out no more of these records; the rest goes back to the cursor.

        Another thread may do this: emptying the iterator is one step for the interpreter.
        """
        left = len(list(self.iterator))
        self.records = self.records[: len(self.records) - left]
        self.cursor.give_back(left)
