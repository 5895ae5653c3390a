"""The journal: what must last is a record here first, and then in the view.

``__journal-0`` is a partition like any other; its records are typed events (``events``). The view's
journal table mirrors the latest event of every key, up to the offset in ``meta``:

    append   under the journal lock, after the caller's check
    sync     without the lock, so that many callers share one
    apply    in the order of the log, whoever comes first: from the applied offset to the synced one

Who syncs its own events, and has nobody's before them to apply, puts both into the view in one transaction.
A process that dies between the steps leaves an event that the next caller applies. ``exclusive`` is for
decisions that need to see everything: it holds the lock with all earlier events applied.

Compaction needs no second mechanism: because an event is the whole state of its key, writing every live
event again into a new segment makes all older segments superfluous. A crash in between leaves both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .clock import Clock
from .errors import (
    CorruptionError,
    InvalidRequestError,
    LogbrokerError,
    OffsetOutOfRangeError,
    StorageFailedError,
    WriteFailedError,
)
from .events import BindingEvent, Event, GroupEvent, SubscriptionEvent, TopicEvent, encode_event
from .locks import ProcessLock
from .log_config import LogConfig
from .partition_log import PartitionLog
from .record_batch import NewRecord, decode_records, encode_batch
from .segment_removal import delete_segments_below
from .view import LogEnd, View

if TYPE_CHECKING:
    from .view.environment import Transaction

logger = logging.getLogger("logbroker.journal")

JOURNAL_TOPIC = "__journal"
JOURNAL_TOPIC_ID = bytes(15) + b"\x01"
JOURNAL_CONFIG = LogConfig.parse(
    {"segment.bytes": 1 << 30, "segment.ms": 1 << 62, "max.message.bytes": 64 << 20}
)

APPLIED = b"journal_applied_offset"
COMPACTED_BYTES = b"journal_compacted_bytes"
IS_INCOMPLETE = b"journal_is_incomplete"  # 1 while the view knows events that the log has lost
TOPICS_VERSION = b"topics_version"  # grows with every change to a topic
SUBSCRIPTIONS_VERSION = b"subscriptions_version"  # … to a subscription
BINDINGS_VERSION = b"bindings_version"  # … to a binding
GROUPS_VERSION = b"groups_version"  # … to the topics that a consumer group has subscribed to
_VERSIONS = (
    (TopicEvent.ALL, TOPICS_VERSION),
    (SubscriptionEvent.ALL, SUBSCRIPTIONS_VERSION),
    (BindingEvent.ALL, BINDINGS_VERSION),
    (GroupEvent.ALL, GROUPS_VERSION),
)

COMPACT_FROM_BYTES = 1 << 20
COMPACT_GROWTH = 4
EVENTS_PER_BATCH = 1000
MAX_UNAPPLIED = 10_000  # events that may wait for one that has to last
MAX_KEY_BYTES = 511  # what LMDB takes

Item = tuple[bytes, bytes | None]


def item_of(event: Event) -> Item:
    """The journal record that says *event*."""
    return event.key(), encode_event(event)


class Journal:
    """Durable events of the directory. Safe across threads and processes."""

    def __init__(self, log: PartitionLog, view: View, clock: Clock, lock_path: str) -> None:
        self.log = log
        self._view = view
        self._clock = clock
        self.lock = ProcessLock(log.files, lock_path)
        self.compact_from_bytes = COMPACT_FROM_BYTES  # tests of compaction want it earlier

    def record(self, events: Sequence[Event], *, check: Callable[[], None] | None = None) -> None:
        """Make *events* last: durable and visible in the view when this returns.

        *check* runs under the journal lock, so that nothing decided under ``exclusive`` can come between
        it and the events; whatever it raises, nothing is written.

        Raises:
            StorageFailedError: the outcome is unknown. It may be on the disk while the view, which had no space for
                it, does not know it yet; then it holds from the next event on, and ``exclusive`` tells.
            WriteFailedError: nothing was written.
            InvalidRequestError: the names of an event are too long together; nothing was written.
        """
        self.write([item_of(event) for event in events], check=check)

    def delete(self, keys: Iterable[bytes], *, check: Callable[[], None] | None = None) -> None:
        """Make the absence of *keys* last."""
        self.write([(key, None) for key in keys], check=check)

    def write(self, items: Sequence[Item], *, check: Callable[[], None] | None = None) -> None:
        """Both of the above: a None value deletes the key."""
        if not items:
            return

        def checked() -> Sequence[Item]:
            if check is not None:
                check()
            return items

        self.decide(checked)

    def decide(
        self,
        decision: Callable[[], Sequence[Item]],
        *,
        take_back: Callable[[], None] | None = None,
        is_lasting: bool = True,
    ) -> None:
        """Run *decision* under the journal lock, and append the items that it returns before anybody else decides.

        They are durable and in the view when this returns; without *is_lasting* that comes with the next that are,
        or when there are many.
        What *decision* raises is passed on, and nothing is written. Where it changed something, or was about to, and
        there is nothing in the log, *take_back* changes it back, under the same lock. Items that need not last are
        only missed where they cannot be written: a warning says so, and what was decided holds.

        Raises:
            StorageFailedError: the outcome is unknown.
            WriteFailedError: as ``record``.
        """
        with self.lock:
            before = self.log.state().end
            items: Sequence[Item] = ()
            try:
                items = decision()
                if not items:
                    return
                base_offset, end_offset = self._append(items)
            except (WriteFailedError, InvalidRequestError) as error:
                if items and not is_lasting:
                    logger.warning("%d events could not be journaled: %s", len(items), error)
                    return
                if take_back is not None:
                    take_back()
                raise
            except BaseException:  # an interrupt may come at any instruction
                if take_back is not None and self._ends_at(before.log_end_offset):
                    take_back()
                raise
        if not is_lasting and end_offset - self._view.meta_int(APPLIED) < MAX_UNAPPLIED:
            return
        self._make_last(items, base_offset, end_offset)
        if self._compaction_is_due(before):
            self._compact_in_passing()

    def _ends_at(self, end_offset: int) -> bool:
        """Whether nothing was appended behind *end_offset*; False as well where that cannot be told."""
        try:
            return self.log.adopt().log_end_offset == end_offset
        except LogbrokerError as error:
            logger.warning("whether something was journaled cannot be told before the next append: %s", error)
            return False

    @contextmanager
    def exclusive(self) -> Iterator[JournalTurn]:
        """Hold the journal lock with every event so far applied to the view."""
        with self.lock:
            self.catch_up()
            yield JournalTurn(self)

    def finish(self) -> None:
        """Apply what dead processes appended and did not get to apply."""
        with self.exclusive():
            pass

    def catch_up(self) -> None:
        """Sync and apply whatever is in the log, also what a dead process wrote and did not publish."""
        end_offset = self.log.adopt().log_end_offset
        if self._view.meta_int(APPLIED) < end_offset:
            self.log.sync(end_offset)
            self._apply_from_log(end_offset)

    def _append(self, items: Sequence[Item]) -> tuple[int, int]:
        """Append the items as one batch; its base offset and the offset behind it."""
        _check_keys(items)
        now_ms = self._clock.now_ms()
        records = [NewRecord(value=value, key=key, timestamp_ms=now_ms) for key, value in items]
        result = self.log.append(encode_batch(records))
        return result.base_offset, result.last_offset + 1

    def _make_last(self, items: Sequence[Item], base_offset: int, end_offset: int) -> None:
        """Sync and apply the items, which were appended."""
        is_applied = False

        def put(transaction: Transaction) -> None:
            nonlocal is_applied
            is_applied = self._put_in(transaction, items, base_offset, end_offset)

        self.log.sync(end_offset, also=put)
        if not is_applied:
            self._apply(items, base_offset, end_offset)

    def _apply(self, items: Sequence[Item], base_offset: int, end_offset: int) -> None:
        """Apply what is in the log and on the disk, if it is not yet: too late to be refused."""
        try:
            applied = self._view.meta_int(APPLIED)
            if applied != base_offset or not self._put(items, base_offset, end_offset):
                self._apply_from_log(end_offset)
        except (WriteFailedError, OSError) as error:
            raise StorageFailedError(
                f"it is on the disk, but does not hold yet ({error}): it does as soon as anything is journaled again"
            ) from error

    def _put(self, items: Sequence[Item], from_offset: int, end_offset: int) -> bool:
        """Apply the items of [from_offset, end_offset); False when somebody else has begun to."""
        with self._view.write() as transaction:
            return self._put_in(transaction, items, from_offset, end_offset)

    def _put_in(
        self, transaction: Transaction, items: Sequence[Item], from_offset: int, end_offset: int
    ) -> bool:
        """The same, in *transaction*."""
        if self._view.meta_int_in(transaction, APPLIED) != from_offset:
            return False
        self._view.events.apply(transaction, items)
        for prefix, name in _VERSIONS:
            changed = [key for key, _ in items if key.startswith(prefix)]
            if changed:
                self._view.changes.note(transaction, name, changed)
        self._view.put_meta_int(transaction, APPLIED, end_offset)
        return True

    def _apply_from_log(self, end_offset: int) -> None:
        while (applied := self._view.meta_int(APPLIED)) < end_offset:
            try:
                items, next_offset = self._read(applied)
            except OffsetOutOfRangeError:
                continue  # it was compacted meanwhile: whoever did that had everything applied before
            self._put(items, applied, next_offset)

    def _read(self, offset: int) -> tuple[list[Item], int]:
        """Some events from *offset* on, and the offset behind them. Damaged ones are passed over."""
        reader = self.log.reader(max(offset, self.log.state().end.log_start_offset))
        try:
            batches = reader.read()
        except CorruptionError as error:
            logger.error("events are lost: %s", error)
            return [], error.end_offset
        finally:
            reader.close()
        items = [
            (record.key, record.value)
            for batch in batches
            for record in decode_records(batch, JOURNAL_TOPIC, 0)
            if record.offset >= offset and record.key is not None
        ]
        return items, reader.position

    def replay(self) -> None:
        """Fill the view's journal table from the log alone; for a view that was just created."""
        state = self.log.state()
        with self._view.write() as transaction:
            self._view.put_meta_int(transaction, APPLIED, state.end.log_start_offset)
        self._apply_from_log(state.end.log_end_offset)

    def _compaction_is_due(self, end: LogEnd) -> bool:
        written = end.active_bytes
        return written > self.compact_from_bytes and written > COMPACT_GROWTH * self._view.meta_int(
            COMPACTED_BYTES
        )

    def _compact_in_passing(self) -> None:
        """Compact after a write that is done: what goes wrong here is no failure of that write."""
        try:
            with self.exclusive() as turn:
                turn.compact()
        except (LogbrokerError, OSError) as error:
            logger.warning("the journal could not be compacted, and will be later: %s", error)

    def _compact(self, deleted: int) -> None:
        """Write every live event into a new segment, then remove the older ones. Under the lock."""
        end = self.log.state().end
        is_sparse = deleted > self._view.events.count() and end.active_bytes > self.compact_from_bytes
        # Else another process did it while we waited for the lock.
        if is_sparse or self._compaction_is_due(end):
            self._write_again()

    def restore(self) -> None:
        """Write every live event again if the log is shorter than the view says, which is then the last to know them.

        For the only process: somebody has cut the log, or taken it away, while nobody had the directory open.
        """
        end = self.log.state().end
        if self.log.segment_bytes(end.active_base_offset) < end.active_bytes:
            # Before the log is used, which makes it as long as the view says: whoever finds that this was cut short
            # could not tell any more.
            with self._view.write() as transaction:
                self._view.put_meta_int(transaction, IS_INCOMPLETE, 1)
        if self._view.meta_int(IS_INCOMPLETE):
            with self.exclusive():
                self._write_again()

    def _write_again(self) -> None:
        before = self.log.state().end
        self.log.roll_now()
        start_offset = before.log_end_offset
        live = self._view.events.items(b"")
        end_offset = start_offset
        for first in range(0, len(live), EVENTS_PER_BATCH):
            _, end_offset = self._append(live[first : first + EVENTS_PER_BATCH])
        compacted_bytes = self.log.state().end.active_bytes
        self.log.sync()
        with self._view.write() as transaction:
            self._view.put_meta_int(transaction, APPLIED, end_offset)
            self._view.put_meta_int(transaction, COMPACTED_BYTES, compacted_bytes)
            self._view.put_meta_int(transaction, IS_INCOMPLETE, 0)
        delete_segments_below(self.log, start_offset)
        logger.info("journal compacted: %d bytes became %d live events", before.active_bytes, len(live))

    def close(self) -> None:
        self.lock.close()

    def abandon(self) -> None:
        self.lock.abandon()


def _check_keys(items: Sequence[Item]) -> None:
    """Refuse what the view could not take: an event in the log that cannot be applied blocks every open."""
    for key, _ in items:
        if len(key) > MAX_KEY_BYTES:
            raise InvalidRequestError(
                f"the names in {key[:100]!r}… take {len(key)} bytes together, {MAX_KEY_BYTES} are allowed; "
                "use shorter ones"
            )


class JournalTurn:
    """What the holder of ``Journal.exclusive`` may do without taking the lock again."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def record(self, events: Sequence[Event]) -> None:
        """As ``Journal.record``."""
        self.write([item_of(event) for event in events])

    def write(self, items: Sequence[Item]) -> None:
        """As ``Journal.write``."""
        if items:
            self._journal._make_last(items, *self._journal._append(items))

    def compact(self, *, deleted: int = 0) -> None:
        """Compact the journal if it has grown enough, or if so many events were *deleted* that fewer are left."""
        self._journal._compact(deleted)
