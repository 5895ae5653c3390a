"""One partition's log: append under its lock, sync in groups, publish in the view.

An append, under the partition's append lock (a ``flock``, so across processes):

    1. read LogEnd from the view; bytes behind it, other than room (see ``segment_files``), were left by a
       process that died in mid-append: whole batches are adopted, the rest is cut off (``adoption``)
    2. decide by the producer's entry: append, duplicate, out of order, fenced (``producer_state``)
    3. roll to a new segment if one is due (``log_growth``), and publish that (``rolling``): a segment that
       holds bytes is a known one
    4. write the batch at LogEnd's position (one write), then index entries (``active_segment``)
    5. publish LogEnd and the producer's entry in one LMDB transaction: now the batch is in the log

Dying before 5 leaves bytes that the next append finds in 1. Readers never look above the high watermark, which
is published after 5, so they need no lock.

A transaction's marker is appended the same way, if it has a transaction to end.

Durability is a second step with a lock of its own, so that appends go on while the disk syncs (``log_sync``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .aborted_index import AbortedTransaction
from .aborted_lookup import AbortedLookup
from .active_segment import ActiveSegment
from .adoption import writable_end
from .closing import leave_caches, leave_no_room
from .errors import (
    BatchDefect,
    CorruptBatchError,
    FencedError,
    OutOfOrderSequenceError,
    RecordTooLargeError,
    ViewError,
    WriteFailedError,
    advice_on,
    reason_of,
)
from .local_log import LocalLog, LogPlace, Shared
from .log_config import Durability, LogConfig, TimestampType
from .log_growth import roll_is_due
from .log_offsets import Isolation
from .log_reader import LogReader
from .log_sync import LogSync
from .message_ids import IdentifiedRecord
from .producer_fold import aborted_transaction, first_unstable
from .producer_state import (
    NO_SEQUENCE,
    NO_TRANSACTION,
    BatchSpan,
    Decision,
    MarkerVerdict,
    ProducerEntry,
    Verdict,
    advance,
    decide,
    decide_marker,
)
from .record_batch import (
    BatchHeader,
    ControlType,
    assign,
    encode_control_batch,
    read_header,
    stamp_append_time,
)
from .rolling import roll
from .segment import TimestampOffset
from .segment_list import look
from .segment_times import SegmentTimes
from .time_search import newest_record, record_at_time
from .view import LogEnd

if TYPE_CHECKING:
    from .view.environment import Transaction


class AppendResult(NamedTuple):
    """Where a batch went; of a duplicate, where the first copy went."""

    base_offset: int
    last_offset: int
    timestamp_ms: int
    duplicate: bool


class PartitionLog(LocalLog):
    """The log of one partition: what appends to it, has it synced, and reads it. Safe across threads and processes."""

    def __init__(self, place: LogPlace, config: LogConfig, shared: Shared) -> None:
        super().__init__(place, config, shared)
        self.appends = 0  # by this process; guarded by append_lock
        self.is_deleted = False  # with its topic; guarded by descriptors
        self.syncing = LogSync(self)
        self.active = ActiveSegment(self, self.syncing)
        self.segment_times = SegmentTimes(self)

    # Reading --------------------------------------------------------------------------------------

    def reader(self, offset: int, isolation: Isolation = Isolation.READ_UNCOMMITTED) -> LogReader:
        """A cursor whose first read begins at *offset*."""
        return LogReader(self, offset, isolation)

    def aborted_transactions(self, start_offset: int, end_offset: int) -> list[AbortedTransaction]:
        """The aborted transactions with a record or their marker in [start_offset, end_offset)."""
        return look(
            self,
            lambda state, segments: AbortedLookup(self).between(
                state.end, segments, start_offset, end_offset
            ),
        )

    def offset_for_timestamp(self, timestamp_ms: int) -> int | None:
        """The first visible offset whose record is not older than *timestamp_ms*; None when all are."""
        found = record_at_time(self, self.segment_times, timestamp_ms)
        return None if found is None else found.offset

    def record_at_time(self, timestamp_ms: int) -> TimestampOffset | None:
        """The first visible record that is not older than *timestamp_ms*; None when all are."""
        return record_at_time(self, self.segment_times, timestamp_ms)

    def newest_record(self) -> TimestampOffset | None:
        """The first visible record with the largest timestamp."""
        return newest_record(self, self.segment_times)

    def last_sequence(self, producer_id: int) -> int | None:
        """The producer's last sequence in this partition; None when it wrote nothing here."""
        entry = self.view.partitions.producer(self.key, producer_id)
        return None if entry is None or entry.last_sequence < 0 else entry.last_sequence

    def size_bytes(self) -> int:
        """The bytes of all segments' log files."""
        return look(
            self,
            lambda state, segments: (
                state.end.active_bytes + sum(self.segment_bytes(base) for base in segments.bases[:-1])
            ),
        )

    # Appending ------------------------------------------------------------------------------------

    def append(
        self,
        batch: bytearray,
        *,
        allow_sequence_gaps: bool = False,
        records: Sequence[IdentifiedRecord] = (),
    ) -> AppendResult:
        """Append one encoded batch; its base offset and leader epoch are assigned here, in place.

        The batch is in the page cache when this returns; ``wait_durable`` waits for the disk.
        *allow_sequence_gaps* is for named producers, whose sequences only have to increase. *records* are those
        of the batch with a message id, which they take; see ``deduplication``.

        Raises:
            FencedError: the batch's producer epoch is older than the last one seen.
            OutOfOrderSequenceError: a batch of this producer is missing before it.
            RecordTooLargeError: the batch is larger than max.message.bytes.
            WriteFailedError: the file system refused (full disk, I/O error); nothing was appended.
            StorageFailedError: an earlier sync of the partition failed.
            TopicNotFoundError: the topic was deleted.
            CorruptBatchError: *batch* is not exactly one batch.
        """
        if self.config.message_timestamp_type is TimestampType.LOG_APPEND_TIME:
            stamp_append_time(batch, self.clock.now_ms())
        header = read_header(batch)
        if header.size_bytes != len(batch):
            raise CorruptBatchError(
                BatchDefect.BAD_LENGTH, detail=f"{len(batch)} bytes were given as one batch"
            )
        try:
            with self.append_lock:
                return self._append(batch, header, allow_sequence_gaps, records)
        except OSError as error:
            self.state()  # a folder that is gone because the topic is has an error of its own
            raise self.write_refused(error) from error

    def _append(
        self,
        batch: bytearray,
        header: BatchHeader,
        allow_sequence_gaps: bool,
        records: Sequence[IdentifiedRecord],
    ) -> AppendResult:
        state, entry = self.view.partitions.append_state(self.key, header.producer_id)
        end = writable_end(self, self.active, state or self.state())
        if header.producer_id >= 0:
            if state is None or end is not state.end:
                # It may be in what was adopted.
                entry = self.view.partitions.producer(self.key, header.producer_id)
            decision = decide(entry, header, allow_gaps=allow_sequence_gaps)
            if decision.verdict is not Verdict.APPEND:
                return self._refuse(header, decision)
        max_bytes = self.config.max_message_bytes
        if header.size_bytes > max_bytes:
            raise RecordTooLargeError(self.topic, size_bytes=header.size_bytes, max_bytes=max_bytes)
        end = self._rolled(end, header)
        result = self._log(batch, header, end, entry, records=records)
        if self.config.durability is not Durability.FSYNC:
            self.append_lock.signal()
        return result

    def append_marker(
        self,
        control_type: ControlType,
        *,
        producer_id: int,
        marker_epoch: int,
        before_offset: int | None = None,
    ) -> AppendResult | None:
        """End the producer's open transaction here, exactly once, whoever else tries to.

        None, and nothing is written, when it has none (any more), or has gone on to *marker_epoch* or beyond.
        A producer that keeps its epoch goes on in *marker_epoch*: then *before_offset* tells the transaction
        that is meant, which began below it, from the next one.

        In any case batches of epochs below *marker_epoch* are refused from now on. What the marker says must
        last already: readers believe it before it is on the disk.

        Raises:
            WriteFailedError, StorageFailedError, TopicNotFoundError: as ``append``.
        """
        try:
            with self.append_lock:
                return self._append_marker(control_type, producer_id, marker_epoch, before_offset)
        except OSError as error:
            self.state()
            raise self.write_refused(error) from error

    def _append_marker(
        self, control_type: ControlType, producer_id: int, marker_epoch: int, before_offset: int | None
    ) -> AppendResult | None:
        end = writable_end(self, self.active, self.state())
        entry = self.view.partitions.producer(self.key, producer_id)
        verdict = decide_marker(entry, marker_epoch, before_offset)
        if verdict is MarkerVerdict.PAST:
            return None
        now_ms = self.clock.now_ms()
        if verdict is MarkerVerdict.FENCE:
            fence = BatchSpan(NO_SEQUENCE, NO_SEQUENCE, -1, -1, now_ms)
            with self.view.write() as transaction:
                self.view.partitions.put_producer(
                    transaction, self.key, producer_id, ProducerEntry(marker_epoch, (fence,))
                )
            return None
        assert entry is not None
        batch = encode_control_batch(
            control_type, producer_id=producer_id, producer_epoch=marker_epoch, timestamp_ms=now_ms
        )
        header = read_header(batch)
        result = self._log(batch, header, self._rolled(end, header), entry, control_type)
        self.append_lock.signal()  # the last stable offset may have moved
        return result

    def _log(
        self,
        batch: bytearray,
        header: BatchHeader,
        before: LogEnd,
        entry: ProducerEntry | None,
        marker: ControlType | None = None,
        records: Sequence[IdentifiedRecord] = (),
    ) -> AppendResult:
        """Write *batch* behind *before* and publish it; *marker* ends the transaction of *entry*, its producer."""
        base_offset = before.log_end_offset
        assign(batch, base_offset, 0)
        closed_offset = NO_TRANSACTION
        end = self.active.write(before, batch, header)
        try:
            if marker is not None:
                assert entry is not None
                closed_offset = entry.txn_first_offset
                end = self._transaction_ended(before, end, header, marker, closed_offset)
            if header.producer_id >= 0:
                entry = advance(entry, header, base_offset)
            ids = self.id_update(header, records, base_offset) if records else None
            self.publish_end(end, header.producer_id, entry, closed_offset, ids)
        except (OSError, WriteFailedError, ViewError) as error:
            self.active.take_back(before, error)
            raise
        self.appends += 1
        if self.dirty_since is None and self.config.durability is not Durability.FSYNC:
            self.dirty_since = self.clock.monotonic()
        return AppendResult(base_offset, end.log_end_offset - 1, header.max_timestamp_ms, False)

    def _transaction_ended(
        self, before: LogEnd, end: LogEnd, header: BatchHeader, marker: ControlType, first_offset: int
    ) -> LogEnd:
        """*end*, behind the marker that *before* was followed by, without the transaction of *first_offset*."""
        still_open = first_unstable(
            found.first_offset
            for found in self.view.partitions.open_transactions(self.key)
            if found.first_offset != first_offset
        )
        end = end._replace(first_unstable_offset=still_open)
        if marker is not ControlType.ABORT:
            return end
        aborted = aborted_transaction(
            header.producer_id,
            first_offset=first_offset,
            marker_offset=before.log_end_offset,
            first_unstable_offset=still_open,
        )
        return self.active.write_aborted_entry(end, aborted)

    def write_refused(self, error: OSError) -> WriteFailedError:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else reason_of(error)
        return WriteFailedError(
            f"nothing was appended to {self.topic}-{self.partition}: {reason}; "
            f"{advice_on(error, again='send again')}"
        )

    def take_over(self, producer_id: int, epoch: int) -> int | None:
        """Make *epoch* the producer's epoch here; its last sequence, None when it wrote nothing.

        What a process left in mid-append counts, and no batch of another epoch comes in after it: the
        sequence stays true until the caller appends. Holds in the view only, as long as any process has
        the directory open; a holder who outlives that does not exist.

        Raises:
            StorageFailedError, TopicNotFoundError: as ``append``.
        """
        with self.append_lock:
            writable_end(self, self.active, self.state())
            entry = self.view.partitions.producer(self.key, producer_id)
            entry = ProducerEntry(epoch) if entry is None else entry._replace(epoch=epoch)
            with self.view.write() as transaction:
                self.view.partitions.put_producer(transaction, self.key, producer_id, entry)
        return entry.last_sequence if entry.last_sequence >= 0 else None

    def adopt(self) -> LogEnd:
        """LogEnd, with what a dead process appended but did not publish; as every append finds it."""
        with self.append_lock:
            return writable_end(self, self.active, self.state())

    def _refuse(self, header: BatchHeader, decision: Decision) -> AppendResult:
        if decision.duplicate_of is not None:
            first = decision.duplicate_of
            return AppendResult(first.base_offset, first.last_offset, first.timestamp_ms, duplicate=True)
        if decision.verdict is Verdict.FENCED:
            raise FencedError(
                f"producer {header.producer_id} of epoch {header.producer_epoch} was replaced by a newer holder "
                f"on {self.topic}-{self.partition}; nothing was written: stop, or open the producer again"
            )
        raise OutOfOrderSequenceError(
            self.topic,
            self.partition,
            producer_id=header.producer_id,
            expected=decision.expected_sequence,
            received=header.base_sequence,
        )

    # Rolling --------------------------------------------------------------------------------------

    def _rolled(self, end: LogEnd, header: BatchHeader) -> LogEnd:
        """LogEnd of the segment that takes the batch, which is a new one where that is due."""
        return (
            roll(self, self.active, end)
            if roll_is_due(end, header, self.config, self.clock.now_ms())
            else end
        )

    def roll_now(self) -> None:
        """Begin a new segment, unless the active one is empty."""
        with self.append_lock:
            end = writable_end(self, self.active, self.state())
            if end.active_bytes:
                roll(self, self.active, end)

    # Durability -----------------------------------------------------------------------------------

    def wait_durable(self, end_offset: int) -> None:
        """Wait until records below *end_offset* are as durable as the topic's configuration asks.

        Raises:
            StorageFailedError: a disk sync failed; whether the records are on the disk is unknown.
        """
        if self.config.durability is Durability.FSYNC:
            self.sync(end_offset)

    def sync(
        self, end_offset: int | None = None, *, also: Callable[[Transaction], object] | None = None
    ) -> int:
        """Have everything below *end_offset* (default: the log's end now) on the disk; the synced offset.

        *also* puts into the view what is to show together with this. Where another's sync was enough, nobody asks it.

        Raises:
            StorageFailedError: this sync, or an earlier one, failed: the outcome is unknown.
        """
        if end_offset is None:
            end_offset = self.state().end.log_end_offset
        return self.syncing.sync(end_offset, also)

    def sync_below(self, offset: int) -> None:
        """Have what a group will not read again on the disk, before *offset* is committed for it.

        A power cut must not take back records below a committed offset. Without a lock where nothing is missing.

        Raises:
            StorageFailedError: as ``sync``.
        """
        offsets = self.offsets()
        if offsets.synced_offset < offset:
            self.sync(min(offset, offsets.log_end_offset))  # another's sync, as we wait for it, may be enough

    # Deleting -------------------------------------------------------------------------------------

    def delete_before(self, offset: int) -> int:
        """Make *offset* the log start offset: records below it are no longer read. Returns the new start.

        Volatile by itself: the caller journals it (``LogStartEvent``) first. The cleaner removes the
        segments that lie wholly below it.
        """
        with self.append_lock:
            end, sync = self.state()
            start = max(end.log_start_offset, min(offset, max(end.visible_offset, sync.synced_offset)))
            self.publish_end(end._replace(log_start_offset=start))
        return start

    # Descriptors ----------------------------------------------------------------------------------

    def release_files(self) -> bool:
        """Close the descriptors if no thread is using the log now; they open again by themselves."""
        return self.append_lock.close_if_idle(self.active.close) and self.sync_lock.close_if_idle(
            self.syncing.close_descriptor
        )

    def close_files(self) -> None:
        """The same, behind the threads that are using the log now."""
        self.append_lock.close(self.active.close)
        self.sync_lock.close(self.syncing.close_descriptor)

    def _opened(self) -> None:
        """A lock, with which every use begins, has opened its file."""
        self.descriptors.log_opened(self)

    def close_cleanly(self) -> None:
        """Leave nothing for the next one to do, and everything on the disk.

        Raises:
            StorageFailedError: the last sync failed.
        """
        try:
            if self.appends:
                leave_caches(self, self.active)
                self.sync()
            elif self.active.is_open:  # it has looked at the end, and may have adopted what another left
                leave_no_room(self, self.active)
        finally:
            self.release_files()

    def abandon(self, forked: Any) -> None:
        """In a forked child: close inherited descriptors; every later use meets *forked*, which raises."""
        self.append_lock.abandon()
        self.sync_lock.abandon()
        self.active.close()
        self.syncing.close_descriptor()
        self.append_lock = self.sync_lock = self.view = forked
