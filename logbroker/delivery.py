"""The way of batches from a producer to the disk, one queue a partition.

    open ──close──► closed ──append──► written ──sync──► settled
         (full, linger,   (in order, one      (group commit: one sync for
          result, flush)   thread at a time)   all that is written by then)

Nobody waits for a thread that is not working for him. A sender that fills a batch appends it itself;
whoever asks for a result appends and syncs the batch itself, as *leader* of its partition, unless another
thread leads: then it waits, and finds its batch settled or leads next (``lead``). While the leader syncs, records
gather in the next batch: so concurrent durable sends share appends and syncs. The producer's own thread
(``linger``) does what nobody asked for: batches whose linger ran out, syncs of full batches.

    lock                       guards                                     held during I/O
    Delivery.lock              all of Delivery, most of PartitionQueue    never; for microseconds
    PartitionQueue.sending     the order of its batches                   encoding and append; no sync
                                                                          but for ``_end_of_firsts``

Lock order: ``sending``, then ``lock``; log locks come inside ``sending``.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterable

from logbroker_storage.errors import (
    BufferFullError,
    ClosedError,
    DeliveryTimeoutError,
    ForkedError,
    LogbrokerError,
    RecordTooLargeError,
    StorageFailedError,
)
from logbroker_storage.log_config import TimestampType
from logbroker_storage.partition_log import AppendResult
from logbroker_storage.record_batch import HEADER_BYTES
from logbroker_storage.view.message_ids import FirstRecord

from .accumulator import FAILED, OPEN, SETTLED, WRITTEN, Batch
from .deadlines import deadline_after, left_until
from .failures import Failures
from .lead import Turn
from .linger import LingerThread
from .partition_queue import PartitionQueue
from .sequences import Sequences


class Acks(enum.Enum):
    """What a record is acknowledged after."""

    ALL = "all"
    WRITTEN = "written"
    NONE = "none"


class HandleState(enum.Enum):
    """Whether the producer takes records."""

    OPEN = "open"
    CLOSED = "closed"
    FORKED = "forked"


class Delivery:
    """Everything of a producer behind ``send``. Safe across threads."""

    def __init__(
        self,
        *,
        sequences: Sequences,
        acks: Acks,
        linger: float,
        batch_bytes: int,
        buffer_bytes: int,
    ) -> None:
        self.lock = threading.Lock()
        self.acks = acks
        self.fire_and_forget = acks is Acks.NONE
        self.waits_for_disk = acks is Acks.ALL
        self.linger = linger
        self.state = HandleState.OPEN
        self.open: dict[Batch, None] = {}  # oldest first
        self.unsynced: dict[PartitionQueue, None] = {}  # left to the linger thread
        self._sequences = sequences
        self._batch_bytes = batch_bytes
        self._buffer_bytes = buffer_bytes
        self._queues: dict[PartitionQueue, None] = {}
        self._buffered_bytes = 0  # open batches by their limit, others by their size
        self._space = threading.Condition(self.lock)
        self.space_wanted = 0  # threads that wait for space
        self.failures = Failures()
        self._thread = LingerThread(self)

    # Under the lock: collecting ---------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise unless the producer takes records."""
        if self.state is HandleState.FORKED:
            raise ForkedError("this producer")
        if self.state is HandleState.CLOSED:
            raise ClosedError("the producer is closed; open another with broker.producer()")

    def add_queue(self, queue: PartitionQueue) -> None:
        self._queues[queue] = None

    def drop_queue(self, queue: PartitionQueue) -> None:
        """The partition is gone: what is still under way fails when it is appended."""
        queue.is_gone = True
        for known in list(self._queues):
            if known.is_gone and known.last_batch() is None:
                del self._queues[known]
        if queue.open is not None:
            self.close_batch(queue.open)
            self.unsynced[queue] = None
            self._thread.wake()

    def limit_bytes(self, queue: PartitionQueue, needed_bytes: int) -> int:
        """The limit of a new batch that begins with a record of *needed_bytes*.

        An open batch takes up its limit, so half of the buffer has room for one of each partition that was written
        to. Else the first record for a partition too many would have all others appended with what they have: 1,000
        partitions in turn got a batch a record, at 100 µs.
        """
        share_bytes = self._buffer_bytes // 2 // max(1, len(self._queues))
        largest_bytes = min(self._batch_bytes, queue.log.config.max_message_bytes - HEADER_BYTES)
        return max(needed_bytes, min(largest_bytes, share_bytes))

    def open_batch(self, queue: PartitionQueue, needed_bytes: int) -> Batch | None:
        """A new open batch of *queue*; None when the buffer has no room for it."""
        limit_bytes = self.limit_bytes(queue, needed_bytes)
        if not self._fits(limit_bytes):
            return None
        # First: when no thread can be started, no batch is left open that nobody will look at.
        self._thread.arm()
        batch = Batch(queue, limit_bytes=limit_bytes, opened_s=time.monotonic())
        self._buffered_bytes += limit_bytes
        queue.open = batch
        self.open[batch] = None
        return batch

    def close_batch(self, batch: Batch) -> None:
        """*batch* takes no more records; somebody has to call ``append_closed`` after this."""
        batch.close()
        self._buffered_bytes += batch.size_bytes - batch.limit_bytes
        del self.open[batch]
        batch.queue.open = None
        batch.queue.closed.append(batch)

    def _fits(self, limit_bytes: int) -> bool:
        return not self._buffered_bytes or self._buffered_bytes + limit_bytes <= self._buffer_bytes

    def _release_bytes(self, batch: Batch) -> None:
        self._buffered_bytes -= batch.size_bytes
        if self.space_wanted:
            self._space.notify_all()

    # Backpressure -----------------------------------------------------------------------------------

    def wait_for_space(self, limit_bytes: int, *, deadline_s: float, max_block: float) -> None:
        """Wait until a batch of *limit_bytes* fits into the buffer.

        Raises:
            BufferFullError: *deadline_s* (monotonic) passed first.
        """
        self.append_open()
        with self.lock:
            self.check_open()
            self.space_wanted += 1
            try:
                self._thread.wake()
                fits = self._space.wait_for(
                    lambda: self._fits(limit_bytes), timeout=max(0.0, deadline_s - time.monotonic())
                )
            finally:
                self.space_wanted -= 1
        if not fits:
            raise BufferFullError(
                f"{self._buffered_bytes} bytes wait for the disk, and no room came up within "
                f"max_block={max_block} s; send more slowly, or open the producer with a larger buffer_bytes="
            )

    def append_open(self) -> None:
        """Append every batch that is open now."""
        with self.lock:
            batches = list(self.open)
            for batch in batches:
                self.close_batch(batch)
        for batch in batches:
            self.append_closed(batch.queue)

    # Appending --------------------------------------------------------------------------------------

    def append_closed(self, queue: PartitionQueue, deadline_s: float | None = None) -> None:
        """Append the closed batches of *queue*, in order. Failures go into the batches.

        Raises:
            DeliveryTimeoutError: another thread was appending until *deadline_s* (monotonic).
        """
        if deadline_s is None:
            with queue.sending:
                self._append_all(queue)
            return
        if not queue.sending.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise DeliveryTimeoutError("another thread is still appending to the partition; ask again")
        try:
            self._append_all(queue)
        finally:
            queue.sending.release()

    def _append_all(self, queue: PartitionQueue) -> None:
        while queue.closed:
            with self.lock:
                if not queue.closed:
                    return  # they failed meanwhile, with all of the partition
                batch = queue.closed[0]
            self._append(queue, batch)

    def _append(self, queue: PartitionQueue, batch: Batch) -> None:
        """Append *batch*, the oldest closed one. Under ``sending``."""
        try:
            end_offset = self._written_end(queue, batch) if batch.count else queue.written_end
        except LogbrokerError as error:
            self._append_failed(queue, batch, error)
            return
        except BaseException as error:
            self._append_failed(queue, batch, _broken_off("append to", queue, error))
            if not isinstance(error, Exception):
                raise
            return
        with self.lock:
            if batch.is_over:
                return  # failed meanwhile, with all of the partition
            if batch.left_out:
                self._tell_refusals(queue, batch)
            # No call from here until somebody has the batch: see ``_end``.
            del queue.closed[0]
            batch.end_offset = queue.written_end = end_offset
            if self.waits_for_disk and (end_offset > queue.durable_end or queue.written):
                batch.state = WRITTEN
                queue.written.append(batch)
            else:
                batch.state, batch.is_over = SETTLED, True
                self._release_bytes(batch)
            if queue.lead.holder is None or not self.waits_for_disk:
                self.unsynced[queue] = None
                self._thread.wake()
        batch.release_records()

    def _written_end(self, queue: PartitionQueue, batch: Batch) -> int:
        """Have *batch* in the page cache; the offset behind its last record."""
        if batch.message_ids is not None:
            return self._written_once(queue, batch)
        data = self._encoded(queue, batch)
        result = queue.log.append(data, allow_sequence_gaps=self._sequences.allow_gaps)
        return self._appended(queue, batch, result)

    def _written_once(self, queue: PartitionQueue, batch: Batch) -> int:
        """As ``_written_end``, for a batch with message ids: records whose id another has are left out."""
        end_offset = queue.written_end
        while batch.kept_count:
            outcome = queue.window.append(queue.log, self._encoded(queue, batch), batch.identified())
            if isinstance(outcome, AppendResult):
                end_offset = self._appended(queue, batch, outcome)
                break
            batch.leave_out(outcome.by)
        if batch.elsewhere and self.waits_for_disk:
            end_offset = max(end_offset, self._end_of_firsts(queue, batch.elsewhere))
        return end_offset

    def _end_of_firsts(
        self, queue: PartitionQueue, elsewhere: dict[int, FirstRecord | LogbrokerError]
    ) -> int:
        """The offset up to which the queue's next sync has to come, for duplicates to be acknowledged.

        First records that it does not cover are synced here, which is rare: an id goes to one partition, if the
        sender leaves that to the producer.
        """
        end_offset = 0
        for index, first in elsewhere.items():
            if not isinstance(first, FirstRecord):
                continue
            if first.partition == queue.partition and first.offset >= queue.durable_end:
                end_offset = max(end_offset, first.offset + 1)
                continue
            try:
                queue.window.wait_durable(first.partition, first.offset + 1)
            except LogbrokerError as error:
                elsewhere[index] = error
        return end_offset

    def _encoded(self, queue: PartitionQueue, batch: Batch) -> bytearray:
        number = self._sequences.number(queue, batch)
        max_bytes = queue.log.config.max_message_bytes
        data = batch.encode(
            compression=queue.compression,
            producer_id=number.producer_id,
            producer_epoch=number.producer_epoch,
            base_sequence=number.base_sequence,
            transactional=number.transactional,
        )
        if len(data) > max_bytes:
            raise RecordTooLargeError(queue.topic, size_bytes=len(data), max_bytes=max_bytes)
        return data

    def _appended(self, queue: PartitionQueue, batch: Batch, result: AppendResult) -> int:
        """*batch* is in the page cache; the offset behind its last record."""
        self._sequences.appended(queue, batch)
        if queue.log.config.message_timestamp_type is TimestampType.LOG_APPEND_TIME:
            batch.take_append_time(result.timestamp_ms)
        batch.base_offset = result.base_offset
        return result.last_offset + 1

    def _append_failed(self, queue: PartitionQueue, batch: Batch, error: LogbrokerError) -> None:
        with self.lock:
            if batch.is_over:
                return
            queue.closed.popleft()
            self._fail(queue, [batch], error)

    # Settling ---------------------------------------------------------------------------------------

    def settle(self, batch: Batch, timeout: float | None) -> None:
        """Have *batch* settled or failed when this returns.

        Raises:
            DeliveryTimeoutError: it is neither after *timeout* seconds.
        """
        deadline_s = deadline_after(timeout)
        queue = batch.queue
        while not batch.is_over:
            turn = Turn(batch)
            try:
                try:
                    self._take(queue, turn, deadline_s)
                finally:
                    self._end(queue, turn)
            except BaseException:
                self._end(queue, turn)  # again: see there
                raise

    def _take(self, queue: PartitionQueue, turn: Turn, deadline_s: float | None) -> None:
        """Wait for *turn*, and lead, if its batch is not settled then."""
        with self.lock:
            if self.state is HandleState.FORKED:
                raise ForkedError("this producer")
            left = -1.0 if deadline_s is None else deadline_s - time.monotonic()
            if deadline_s is not None and left <= 0:
                raise DeliveryTimeoutError(
                    f"a record for {queue.topic}-{queue.partition} is not acknowledged yet; "
                    "it may still be: ask again"
                )
            queue.lead.ask(turn)
        if (queue.lead.holder is turn or turn.has_come.acquire(timeout=left)) and not turn.batch.is_over:
            with self.lock:
                if turn.batch.state is OPEN:
                    self.close_batch(turn.batch)
            self._lead(queue, deadline_s)

    def lead_if_free(self, queue: PartitionQueue) -> None:
        """Append and sync what *queue* has, unless another thread does: that one sees to the rest."""
        turn = Turn(queue.settled)
        with self.lock:
            if queue.lead.holder is not None:
                return
            queue.lead.ask(turn)
        try:
            self._lead(queue, None)
        finally:
            self._end(queue, turn)

    def _lead(self, queue: PartitionQueue, deadline_s: float | None) -> None:
        self.append_closed(queue, deadline_s)
        if self.waits_for_disk:
            self.sync(queue)

    def _end(self, queue: PartitionQueue, turn: Turn) -> None:
        """Pass the lead on, if *turn* has it; else wait for it no longer. Doing it again does nothing.

        An exception out of a signal handler (Ctrl-C) may come behind any call, before the first step of this one
        too, and the others would wait for ever.
        """
        with self.lock:
            if queue.lead.pass_on(turn):
                return
            if queue.closed or queue.needs_sync:
                self.unsynced[queue] = None
                self._thread.wake()
            queue.lead.holder = None

    def sync(self, queue: PartitionQueue) -> None:
        """Wait until all that is written is as durable as the topic asks, and settle it."""
        end_offset = queue.written_end
        if end_offset <= queue.durable_end:
            return
        try:
            queue.log.wait_durable(end_offset)
        except Exception as error:  # noqa: BLE001 (every receipt must learn of it, whatever it is)
            failure = error if isinstance(error, LogbrokerError) else _broken_off("sync of", queue, error)
            with self.lock:
                self._sync_failed(queue, end_offset, failure)
            return
        with self.lock:
            written = queue.written
            while written and written[0].end_offset <= end_offset:
                # No call from here to release: see ``_end``. Those that are left are settled by the next sync.
                batch = written[0]
                batch.state, batch.is_over = SETTLED, True
                del written[0]
                self._release_bytes(batch)
            queue.durable_end = max(queue.durable_end, end_offset)

    def _sync_failed(self, queue: PartitionQueue, end_offset: int, error: LogbrokerError) -> None:
        queue.durable_end = max(queue.durable_end, end_offset)  # never tried again
        batches = list(queue.written)
        queue.written.clear()
        self._fail(queue, batches, error)
        if self.acks is Acks.WRITTEN:
            self.failures.note(error)

    # Failures ---------------------------------------------------------------------------------------

    def _fail(self, queue: PartitionQueue, batches: Iterable[Batch], error: LogbrokerError) -> None:
        """*batches*, which are in no queue any more, failed. Under the lock."""
        self._sequences.failed(queue, error)
        failed = list(batches)
        if self._sequences.fails_together:
            if queue.open is not None:
                self.close_batch(queue.open)
            failed += queue.closed
            queue.closed.clear()
        for batch in failed:
            batch.error = error
            batch.await_observers()
            batch.end(FAILED)
            batch.release_records()
            self._release_bytes(batch)
        if self.acks is Acks.NONE:
            self.failures.lose(queue, sum(batch.count for batch in failed), error)
            return
        self.failures.lose(queue, sum(len(batch.forgotten or ()) for batch in failed), error)
        self.failures.remember(failed)

    def _tell_refusals(self, queue: PartitionQueue, batch: Batch) -> None:
        """Take note of the records of *batch* that were refused while it was appended. Under the lock."""
        batch.await_observers()
        for index in batch.left_out:
            failure = batch.failure_of(index)
            if failure is None:
                continue
            if self._sequences.fails_together:
                self._sequences.failed(queue, failure)
            if self.acks is Acks.NONE or index in (batch.forgotten or ()):
                self.failures.lose(queue, 1, failure)
        if self.acks is not Acks.NONE:
            self.failures.remember([batch])

    def raise_unobserved(self) -> None:
        """Raise the first failure that no receipt has told; it counts as told from now on."""
        with self.lock:
            error = self.failures.take()
        if error is not None:
            raise error.with_traceback(None)

    # Flushing and closing ---------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Have every record that was taken before settled or failed."""
        deadline_s = deadline_after(timeout)
        with self.lock:
            if self.state is HandleState.FORKED:
                raise ForkedError("this producer")
            for batch in list(self.open):
                self.close_batch(batch)
            last_batches = [last for queue in self._queues if (last := queue.last_batch()) is not None]
        try:
            for batch in last_batches:
                self.append_closed(batch.queue, deadline_s)
        except BaseException:
            with self.lock:
                self.unsynced.update({batch.queue: None for batch in last_batches})
                self._thread.wake()
            raise
        for batch in last_batches:
            self.settle(batch, left_until(deadline_s))

    def close(self) -> None:
        """Settle everything, sync what was only written, and take nothing more."""
        with self.lock:
            if self.state is not HandleState.OPEN:
                return
            self.state = HandleState.CLOSED
        self.flush()
        self._thread.stop()
        for queue in list(self._queues):
            self.sync(queue)

    def abandon(self) -> None:
        """In a forked child: nothing here is ours, and the locks may be held by threads that do not exist."""
        self.state = HandleState.FORKED
        self.lock = threading.Lock()
        self._space = threading.Condition(self.lock)


def _broken_off(what: str, queue: PartitionQueue, error: BaseException) -> StorageFailedError:
    failure = StorageFailedError(
        f"the {what} {queue.topic}-{queue.partition} was broken off ({error!r}): "
        "whether it happened is unknown until the log is read"
    )
    failure.__cause__ = error
    return failure
