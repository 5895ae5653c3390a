"""The deduplication window of a topic: of the records with one message id, one is appended.

    the id                                         a second record with it
    nobody has, or its window is over              is appended, and has the id from now on
    a record in the log has                        is a duplicate of that one
    a record of the sender's own transaction has   is a duplicate: both come or go together
    a record of another open transaction has       is refused: which of the two it is shows when that ends
    a record of an aborted transaction had         is appended; freed at the latest when its segment goes

Looking and appending are one step for everybody, across partitions, threads and processes: the topic's lock
is held around both. Only batches with ids take it. The partition where the lock's holder is about to append is
noted in the view first: when he dies in mid-append, the next holder adopts what he left there before he looks,
so the ids of a batch in the log are always known. The ids are in the records' headers: a view that is made
anew takes them from the end of the logs (``restore``).

The window begins when the first record was sent, by the sender's clock, and ends ``deduplication.window.ms``
later; what becomes of that record meanwhile (it expires, is consumed, compacted, deleted) does not matter, as
long as the view lives.

Lock order: the topic's, then an append lock; never two append locks. Nobody who has an append lock, or the
journal's, asks for a topic's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .aborted_index import AbortedByProducer, by_producer, is_aborted
from .clock import Clock
from .errors import CorruptionError, MessageIdInUseError
from .events import MessageIdEvent
from .locks import ProcessLock
from .log_config import Durability
from .message_ids import IdentifiedRecord, identified_in
from .partition_log import AppendResult, PartitionLog
from .record_batch import StoredBatch, read_header
from .view import View
from .view.message_ids import NO_PRODUCER, FirstRecord, IdUpdate, id_update

NOTHING_MS = -1  # the timestamp of no record
RESTORED_AT_ONCE = 1000  # ids in one transaction
READ_BYTES = 1 << 20


class Taken(NamedTuple):
    """Nothing was appended, because of these ids: the record that has each, or why that cannot be said."""

    by: Mapping[bytes, FirstRecord | MessageIdInUseError]


class DeduplicationWindow:
    """The window of one topic. Safe across threads and processes."""

    def __init__(
        self,
        *,
        topic_id: bytes,
        lock: ProcessLock,
        view: View,
        clock: Clock,
        log_of: Callable[[int], PartitionLog],
    ) -> None:
        self._topic_id = topic_id
        self.lock = lock
        self._view = view
        self._clock = clock
        self._log_of = log_of

    def append(
        self, log: PartitionLog, batch: bytearray, records: Sequence[IdentifiedRecord]
    ) -> AppendResult | Taken:
        """``log.append``, unless one of *records*, which are those of *batch* with an id, is not the first.

        No id is there twice. Leave the taken ones out, and try again.

        Raises:
            as ``PartitionLog.append``.
        """
        try:
            with self.lock:
                return self._append(log, batch, records)
        except OSError as error:
            raise log.write_refused(error) from error

    def _append(
        self, log: PartitionLog, batch: bytearray, records: Sequence[IdentifiedRecord]
    ) -> AppendResult | Taken:
        last = self._view.message_ids.last_append(self._topic_id)
        if last is not None:
            self._log_of(last).adopt()  # what its process left when it died there
        found = self._view.message_ids.first_records(
            self._topic_id, [record.message_id for record in records]
        )
        taken = self._taken(log, batch, found) if found else None
        if taken:
            return Taken(taken)
        if last != log.partition:
            self._view.message_ids.note_append(self._topic_id, log.partition)
        return log.append(batch, records=records)

    def wait_durable(self, partition: int, end_offset: int) -> None:
        """Have the records of a partition below *end_offset* as durable as the topic asks.

        Raises:
            StorageFailedError: whether they are on the disk is unknown.
        """
        log = self._log_of(partition)
        if log.config.durability is Durability.FSYNC:
            log.sync_below(end_offset)

    def _taken(
        self, log: PartitionLog, batch: bytearray, found: Mapping[bytes, FirstRecord]
    ) -> dict[bytes, FirstRecord | MessageIdInUseError]:
        header = read_header(batch)
        sender = header.producer_id if header.is_transactional else NO_PRODUCER
        oldest_ms = self._clock.now_ms() - log.config.deduplication_window_ms
        taken: dict[bytes, FirstRecord | MessageIdInUseError] = {}
        for message_id, first in found.items():
            if first.sent_ms <= oldest_ms:
                continue
            verdict = self._holder(log.topic, message_id, first, sender)
            if verdict is not None:
                taken[message_id] = verdict
        return taken

    def _holder(
        self, topic: str, message_id: bytes, first: FirstRecord, sender: int
    ) -> FirstRecord | MessageIdInUseError | None:
        """Who has the id, *first* having taken it; None: nobody any more."""
        if first.producer_id == NO_PRODUCER:
            return first
        log = self._log_of(first.partition)
        # First, because a transaction that is over stays over.
        entry = self._view.partitions.producer(log.key, first.producer_id)
        if entry is not None and 0 <= entry.txn_first_offset <= first.offset:
            if first.producer_id == sender:
                return first
            return MessageIdInUseError(topic, message_id.decode())
        if was_aborted(first, by_producer(log.aborted_transactions(first.offset, first.offset + 1))):
            return None
        if first.offset < log.offsets().log_start_offset:
            # Its segment may have gone meanwhile, with what said so; then the id went before (``free_aborted``).
            return self._view.message_ids.first_records(self._topic_id, [message_id]).get(message_id)
        return first

    def release(self) -> bool:
        """Close the lock's descriptor unless a thread is using it; it opens again by itself."""
        return self.lock.close_if_idle(lambda: None)

    def abandon(self, forked: Any) -> None:
        """In a forked child: close the inherited descriptor; every later use meets *forked*, which raises."""
        self.lock.abandon()
        self.lock = self._view = forked


def was_aborted(first: FirstRecord, aborted: AbortedByProducer) -> bool:
    """Whether the record is of one of the *aborted* transactions of its partition."""
    return any(
        one.first_offset <= first.offset <= one.last_offset for one in aborted.get(first.producer_id, ())
    )


def free_aborted(log: PartitionLog, end_offset: int) -> None:
    """Free the ids of aborted records below *end_offset*, before the segments go that tell that they were aborted."""
    if log.view.events.value(MessageIdEvent.key_of(log.topic)) is None:
        return  # it has never had one
    aborted = by_producer(log.aborted_transactions(0, end_offset))
    if aborted:
        log.view.message_ids.drop(
            log.topic_id, log.partition, end_offset, lambda first: was_aborted(first, aborted)
        )


def restore(log: PartitionLog) -> None:
    """Put the ids of a recovered log into a view that is made anew. For the only process.

    Segments are read from the newest back to the first in which nothing is as young as the window.
    """
    window_ms = log.config.deduplication_window_ms
    oldest_ms = log.clock.now_ms() - window_ms
    end = log.state().end
    firsts: dict[bytes, FirstRecord] = {}
    behind = end.log_end_offset
    for base in reversed(log.segments(end)):
        begin = max(base, end.log_start_offset)
        newest_ms, found = _ids_between(log, begin, behind)
        for message_id, first in found.items():
            if first.sent_ms > oldest_ms:
                firsts.setdefault(message_id, first)
        if NOTHING_MS < newest_ms <= oldest_ms:
            break
        behind = base
    items = list(firsts.items())
    for begin in range(0, len(items), RESTORED_AT_ONCE):
        some = dict(items[begin : begin + RESTORED_AT_ONCE])
        log.view.message_ids.restore(IdUpdate(log.topic_id, some, oldest_ms))


def _ids_between(log: PartitionLog, begin: int, end: int) -> tuple[int, dict[bytes, FirstRecord]]:
    """The newest time that records of offsets [begin, end) tell, and who has which id among them.

    ``NOTHING_MS`` where no record is, as in a segment that was begun and not written to.
    """
    newest_ms = NOTHING_MS
    found: dict[bytes, FirstRecord] = {}
    aborted = by_producer(log.aborted_transactions(begin, end))
    for batch in _batches_between(log, begin, end):
        header = batch.header
        newest_ms = max(newest_ms, header.max_timestamp_ms)
        if is_aborted(header, aborted):
            continue
        update = id_update(
            log.topic_id,
            log.partition,
            identified_in(batch),
            base_offset=0,
            producer_id=header.producer_id if header.is_transactional else NO_PRODUCER,
            window_ms=log.config.deduplication_window_ms,
            now_ms=log.clock.now_ms(),
        )
        if update is not None:
            found.update(update.firsts)
    return max([newest_ms, *(first.sent_ms for first in found.values())]), found


def _batches_between(log: PartitionLog, begin: int, end: int) -> Iterator[StoredBatch]:
    """The sound ones; whoever reads the log is told of the others."""
    reader = log.reader(begin)
    try:
        while reader.position < end:
            try:
                batches = reader.read_below(end, READ_BYTES)
            except CorruptionError as damage:
                reader.seek(damage.end_offset)
                continue
            if not batches:
                return
            yield from batches
    finally:
        reader.close()
