"""A consumer: reads topics alone or as a member of a group, and remembers how far the group got.

A poll, and each step of an iteration:

    1  what was handed out before is done
    2  commit it (at-least-once)
    3  follow the group: take partitions, let them go
    4  take records, partition after partition
    5  commit them (at-most-once), hand them out
    6  nothing of it to be handed out: from 3 on, now and then from 2
    7  nothing there: wait for a signal, from 3

Commits are the matter of ``consumer_commits``, partitions that come and go that of ``assigned``.

A poll commits each time. An iteration hands out slices that take about a tenth of a second (from one
record to thousands), and commits between them as often as that costs at most a twentieth of the time;
a crash therefore delivers again a fraction of a second's work. It always commits before it waits.

Locks: ``_turn`` is held by the thread that polls, for as long as it does (a second one is refused);
``_lock`` guards all state and is not held while waiting or while the user's code runs. The coordinator's
thread only ever tries it.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, filterfalse
from types import TracebackType
from typing import Literal

from logbroker_storage.catalog import SIGNAL as TOPICS_SIGNAL
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    ClosedError,
    InvalidRequestError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
)
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import Record

from .arguments import place as checked_place
from .arguments import positive_milliseconds, positive_seconds, whole_number
from .arrivals import Arrivals
from .assigned import AssignedPartitions, place_name
from .commits import PendingCommit, check_directory
from .consumer_commits import ConsumerCommits, Delivery, checked_delivery
from .cursor import NEVER_MS, Cursor, Handout
from .deadlines import deadline_after, left_until
from .expressions import Predicate
from .group_store import group_signal
from .groups import TopicPartition
from .records import timestamp_ms_of
from .start import Start, check_start
from .subscriptions import SIGNAL as SUBSCRIPTIONS_SIGNAL
from .subscriptions import StreamRules
from .topic_names import check_group_name
from .topic_selection import TopicSelection

Place = int | TopicPartition

IsolationName = Literal["read_committed", "read_uncommitted"]

LARGEST_SLICE = 1024  # records that an iteration hands out between two looks at the clock
ENOUGH = 128  # a slice of so many is not filled up from the next batch: this one is still in the cache
SLICE_S = 0.1  # how long a slice should take at most
STALE_SLICE_S = 0.25  # a slice that takes longer is cut short by the coordinator


class Consumer:
    """Reads records of one or more topics, in offset order within each partition.

    One thread at a time may poll or iterate; ``wakeup`` and ``close`` may be called from any. A process
    that forks has to open a broker and consumers of its own in the child.

    Used as ``with broker.consumer(…) as consumer:``; leaving it closes the consumer.
    """

    def __init__(
        self,
        directory: DataDirectory,
        topics: str | Iterable[str],
        *,
        group: str | None = None,
        start: Start = "earliest",
        delivery: Delivery = "at-least-once",
        session_timeout: float = 10.0,
        max_poll_interval: float = 300.0,
        max_poll_records: int = 500,
        isolation: IsolationName = "read_committed",
        filter: str | Predicate | None = None,  # noqa: A002  (as the option is called)
    ) -> None:
        """Subscribe to *topics*, and join *group* if one is given.

        Args:
            directory: where the topics are.
            topics: a name, a pattern such as ``"orders.*"`` (it takes up topics created later), or several.
            group: partitions are shared out among the consumers of a group, which remembers how far it got. The
                name of a stream subscription stands for its group, with its filter, and nothing comes while it is
                paused.
                None: this consumer reads all partitions, and nothing is remembered.
            start: where to begin in a partition for which the group has no committed offset (or one that was
                deleted meanwhile): ``"earliest"``, ``"latest"``, the first record not older than an aware
                datetime, or a mapping of partitions to offsets (the others: earliest; an offset that is not in the
                log means the nearer end). With several topics the keys of the mapping are (topic, partition).
                Partitions and topics that are created while the consumer runs are read from their beginning
                with ``"latest"``, too.
            delivery: ``"at-least-once"`` commits what was handed out when the next is asked for,
                ``"at-most-once"`` commits before it hands out, ``"manual"`` leaves it to ``commit()``.
            session_timeout: seconds after which a member that shows no sign of life loses its partitions (a
                dead process loses them at once), and which a member has to finish with records of a partition
                that is to move to another member.
            max_poll_interval: a member that holds records for so many seconds without asking for more leaves.
            max_poll_records: how many records ``poll`` returns at most when it is not told.
            isolation: ``"read_committed"`` waits where a transaction is undecided and leaves out what was
                aborted; ``"read_uncommitted"`` hands out everything.
            filter: only records that match are handed out: a CEL expression (see ``expressions``), or a function of
                a record, which must not use this consumer; what it raises comes out of ``poll``.

        Raises:
            TopicNotFoundError: a named topic does not exist (a pattern need not match anything yet).
            InvalidTopicError, InvalidRequestError: an argument that cannot be used; the message says why.

        """
        self._selection = TopicSelection.parse(topics)
        check_start(start)
        delivery = checked_delivery(delivery)
        self._isolation = _checked_isolation(isolation)
        session_timeout_ms = positive_milliseconds("session_timeout", session_timeout)
        self._max_poll_interval_s = positive_seconds("max_poll_interval", max_poll_interval)
        self._max_poll_records = whole_number("max_poll_records", max_poll_records)
        self.group = check_group_name(group) if group is not None else None
        self._selection.check_names(directory.topics())

        self._turn_lock = threading.Lock()
        self._turn_thread: int | None = None  # the thread that holds _turn_lock
        self._closing = False  # set by any thread, never taken back
        self._woken = False  # set by any thread, taken back by the one that polls
        self._lock = threading.Lock()  # guards everything below
        self._gave_back = False  # the last step of closing
        self._slice = 1  # records in the next handout
        self._last_poll = time.monotonic()

        # A user of the directory of its own: the view must not be closed while the consumer reads.
        self._directory = directory.one_more_use()
        signals = [TOPICS_SIGNAL]
        if group is not None:
            signals += [group_signal(group), SUBSCRIPTIONS_SIGNAL]
        self._arrivals = Arrivals(self._directory, signals)
        try:
            self._stream = StreamRules(self._directory, group, also=filter)
            with self._lock:
                self._assigned = AssignedPartitions(
                    self._directory,
                    self._selection,
                    start=start,
                    isolation=self._isolation,
                    arrivals=self._arrivals,
                    commits_later=delivery != "at-most-once",
                    group=self.group,
                    session_timeout_ms=session_timeout_ms,
                    holder=self,
                    matches=self._stream.matches,
                )
                self._commits = ConsumerCommits(self._directory, self._assigned, delivery)
        except BaseException:
            self._closing = True
            self._directory.close()
            raise
        try:
            with self._lock:
                self._assigned.follow()
        except BaseException:
            self.close()
            raise

    # Reading --------------------------------------------------------------------------------------

    def poll(self, max_records: int | None = None, timeout: float | None = 0.0) -> list[Record]:
        """The next records, up to *max_records*; waits up to *timeout* seconds (None: for ever) for some.

        Returns [] when there are none in time, and after ``wakeup()``; never raises a time-out error. Records that
        a filter refuses, or that have expired, are passed over first, however long that takes: the timeout is for
        waiting where nothing is left to be read.

        Raises:
            CorruptionError: the next records of a partition are damaged. Again at each poll that comes to
                this partition until ``seek(error.partition, error.end_offset)``; others are read on.
            OffsetOutOfRangeError: the next records were deleted (by retention, say) while they were being
                read; seek to a place in the range that the error names.
            TopicNotFoundError: a topic that was subscribed by name was deleted.
            InvalidRequestError: another thread is polling.
            ClosedError, ForkedError: the consumer cannot be used any more, or not in this process.

        """
        wanted = self._max_poll_records if max_records is None else whole_number("max_records", max_records)
        deadline = deadline_after(timeout)
        with self._turn():
            passed_over = False
            while True:
                with self._lock:
                    self._ask_on(commit=not passed_over or self._commits.is_due())
                    records = self._collect(wanted)
                    passed_over = not records and self._may_read_on()
                if records or self._interrupted():
                    return records
                if passed_over:
                    continue
                left = left_until(deadline)
                if left is not None and left <= 0:
                    return []
                self._wait(left)

    def __iter__(self) -> Iterator[Record]:
        """Records one after the other, for ever: waits for more, ends when the consumer is closed.

        ``commit()`` inside the loop commits everything up to and including the current record. Raises as
        ``poll``; iterating again after ``seek`` goes on.
        """
        # Not a generator: "yield from" would cost each record a step of Python, a tenth of its price.
        return chain.from_iterable(self._handed_out())

    def _handed_out(self) -> Iterator[Iterable[Record]]:
        """The records of one handout after the other."""
        self._check_usable()
        while (handout := self._next_handout()) is not None:
            if handout.cursor.expires_ms == NEVER_MS:
                yield handout.iterator
            else:
                yield filterfalse(handout.cursor.is_expired, handout.iterator)

    def wakeup(self) -> None:
        """Make a poll that waits in another thread (or the next one) return at once. Thread-safe."""
        self._woken = True
        self._arrivals.wake()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the one thread that polls."""
        self._check_usable()
        if not self._turn_lock.acquire(blocking=False):
            raise InvalidRequestError(
                "this consumer is being polled by another thread; give each thread a consumer of its own"
            )
        self._turn_thread = threading.get_ident()
        try:
            yield
        finally:
            self._turn_thread = None
            self._turn_lock.release()
            if self._closing:
                self.close()

    def _check_usable(self) -> None:
        if self._closing:
            raise ClosedError("the consumer was closed; make another with broker.consumer()")
        self._directory.check_usable("this consumer")

    def _interrupted(self) -> bool:
        woken, self._woken = self._woken, False
        return woken or self._closing

    def _ask_on(self, *, commit: bool) -> None:
        """The next is asked for: what was handed out before is done. Under the lock."""
        self._last_poll = time.monotonic()
        assigned = self._assigned
        assigned.settle_handout()
        for cursor in assigned.cursors.values():
            cursor.done = cursor.position
        if commit:
            self._commits.asked_on()
        assigned.follow()

    def _collect(self, wanted: int) -> list[Record]:
        """Up to *wanted* records of all partitions; for at-most-once already committed. Under the lock."""
        if self._stream.is_paused:
            return []
        taken = self._assigned.rotation.take(wanted)
        if not taken or not self._commits.committed_first(taken):
            return []
        if len(taken) == 1:
            return taken[0].records
        return [record for one in taken for record in one.records]

    def _may_read_on(self) -> bool:
        """Whether the look that has just found nothing came only to what nobody is to see. Under the lock."""
        return not self._stream.is_paused and self._assigned.rotation.passed_over

    # Iterating ------------------------------------------------------------------------------------

    def _next_handout(self) -> Handout | None:
        """The next slice for an iteration, as soon as there is one; None when the consumer is closed."""
        if self._closing:
            return None
        with self._turn():
            while True:
                with self._lock:
                    self._size_slice()
                    self._ask_on(commit=self._commits.is_due())
                    handout = self._slice_of_next()
                    passed_over = handout is None and self._may_read_on()
                    if handout is None and not passed_over:
                        self._ask_on(commit=True)  # before it waits
                if handout is not None or self._closing:
                    return handout
                if passed_over:
                    continue
                self._woken = False
                self._wait(None)

    def _slice_of_next(self) -> Handout | None:
        if self._stream.is_paused:
            return None
        taken = self._assigned.rotation.take_one(self._slice, enough=ENOUGH)
        if taken is None or not self._commits.committed_first([taken]):
            return None
        handout = Handout(taken.cursor, taken.records, started=time.monotonic())
        self._assigned.handout = handout
        return handout

    def _size_slice(self) -> None:
        """Slices that take neither much longer than SLICE_S nor much less."""
        handout = self._assigned.handout
        if handout is None:
            return
        took_s = time.monotonic() - handout.started
        if took_s > SLICE_S:
            self._slice = max(1, int(len(handout.records) * SLICE_S / took_s))
        elif took_s < SLICE_S / 4:
            self._slice = min(LARGEST_SLICE, 2 * self._slice)

    # Waiting --------------------------------------------------------------------------------------

    def _wait(self, timeout: float | None) -> None:
        """Wait for records, for the group, for the topics, for ``wakeup``; may return early."""
        with self._lock:
            if self._arrivals.begin(self._assigned.cursors.values()):
                return
            cursors = list(self._assigned.rotation.cursors)
        if not self._closing and not self._woken:
            self._arrivals.wait(timeout, cursors)

    def tend(self) -> bool:
        """For the coordinator: release partitions while the user's code runs, and keep slices short.

        Returns False when records were handed out and the next was not asked for in max_poll_interval.
        """
        if self._closing or not self._lock.acquire(blocking=False):
            return True  # at work: it follows the group by itself
        try:
            return self._gave_back or self._tend(time.monotonic())
        except TopicNotFoundError:
            return True  # the next poll raises it
        finally:
            self._lock.release()

    def _tend(self, now: float) -> bool:
        handout = self._assigned.handout
        if (
            handout is not None
            and now - handout.started > STALE_SLICE_S
            and self._commits.delivery != "at-most-once"
        ):
            handout.cut()
        if self._turn_thread is None and now - self._last_poll > self._max_poll_interval_s:
            return not self._assigned.owes_a_commit()
        self._assigned.follow()
        return True

    # Committing -----------------------------------------------------------------------------------

    def commit(self) -> None:
        """Commit everything handed out so far; durable when this returns.

        In an iteration that includes the current record. After a ``seek`` the new place is committed.

        Raises:
            FencedError: a partition moved to another member meanwhile; nothing was committed.
            TopicNotFoundError: a topic was deleted meanwhile; nothing was committed.
            InvalidRequestError: the consumer has no group.
            StorageFailedError: whether it was committed is unknown.

        """
        with self._lock:
            self._check_usable()
            self._commits.commit()

    def pending_commit(self, only: TopicPartition | None = None) -> PendingCommit:
        """What ``commit()`` would write, for a caller that journals it together with events of its own."""
        with self._lock:
            self._check_usable()
            return self._commits.pending(only)

    def uncommitted_places(self) -> list[TopicPartition]:
        """The partitions in which more was handed out or passed over than is committed.

        Raises:
            FencedError: one of them has moved to another member meanwhile.
        """
        with self._lock:
            self._check_usable()
            return self._commits.uncommitted_places()

    def leave_commits_to_transactions(
        self, directory: DataDirectory, only: TopicPartition | None = None
    ) -> PendingCommit:
        """As ``pending_commit``, of one partition or all, and commit nothing without being asked any more.

        Raises:
            InvalidRequestError: this consumer commits before it hands out, or reads another than *directory*.
        """
        with self._lock:
            self._check_usable()
            check_directory(directory, of=self._directory, what="consumer")
            self._commits.leave_to_transactions()
        return self.pending_commit(only)

    def return_to_committed(self) -> None:
        """Go on at what the group has committed in each partition, else where this consumer began."""
        with self._lock:
            self._assigned.settle_handout()
            for cursor in self._assigned.cursors.values():
                cursor.return_to_committed()

    def return_to_stored(self) -> None:
        """As ``return_to_committed``, for who cannot tell what became of a commit: look at what is stored."""
        with self._lock:
            self._assigned.settle_handout()
            for cursor in self._assigned.cursors.values():
                event = self._directory.groups.committed(self.group, *cursor.place) if self.group else None
                cursor.committed = None if event is None else event.offset
                cursor.return_to_committed()

    def committed_in(self, place: TopicPartition) -> int | None:
        """What this member takes for the group's committed offset in an assigned partition."""
        with self._lock:
            cursor = self._assigned.cursors.get(place)
            return None if cursor is None else cursor.committed

    def keep_ttl_headers(self) -> None:
        """From now on hand out records with the broker's own headers where they have a time to live.

        For what passes records on inside the broker: it carries the time to live on, and takes off the headers.
        """
        with self._lock:
            self._assigned.keep_ttl_headers()

    # Places ---------------------------------------------------------------------------------------

    def assignment(self) -> list[TopicPartition]:
        """The partitions that this consumer reads now, as (topic, partition), ascending."""
        self._check_usable()
        with self._lock:
            self._assigned.follow()
            return sorted(self._assigned.cursors)

    def position(self) -> dict[Place, int]:
        """The next offset that will be handed out, for each assigned partition.

        Keyed by partition if the consumer was made for one topic by name, else by (topic, partition).
        """
        self._check_usable()
        with self._lock:
            self._assigned.follow()
            return {
                self._label(place): self._assigned.handed_out_position(cursor)
                for place, cursor in sorted(self._assigned.cursors.items())
            }

    def committed(self) -> dict[Place, int | None]:
        """What the group has committed in each assigned partition, or None; keys as ``position``."""
        self._check_usable()
        with self._lock:
            self._assigned.follow()
            return {
                self._label(place): cursor.committed
                for place, cursor in sorted(self._assigned.cursors.items())
            }

    def lag(self) -> dict[Place, int]:
        """How many offsets each assigned partition has from ``position`` on; keys as ``position``."""
        self._check_usable()
        with self._lock:
            self._assigned.follow()
            return {
                self._label(place): max(
                    0,
                    cursor.visible_end(cursor.log.offsets()) - self._assigned.handed_out_position(cursor),
                )
                for place, cursor in sorted(self._assigned.cursors.items())
            }

    def _label(self, place: TopicPartition) -> Place:
        return place[1] if self._selection.single_topic is not None else place

    def seek(self, partition: Place, offset: int, *, topic: str | None = None) -> None:
        """Go on at *offset* in an assigned partition: a number, or (topic, number) with several topics.

        Records that were handed out of it before count as abandoned: the next commit takes the new place.

        Raises:
            OffsetOutOfRangeError: the partition does not have that offset; its end is allowed.
            InvalidRequestError: the partition is not assigned to this consumer, or is ambiguous.

        """
        self._check_usable()
        with self._lock:
            self._assigned.follow()
            self._seek(self._cursor_at(partition, topic), offset)

    def seek_to(self, moment: datetime.datetime) -> None:
        """Go on, in every assigned partition, at the first record that is not older than *moment* (aware).

        Where all are older, at the end.
        """
        self._check_usable()
        timestamp_ms = timestamp_ms_of(moment)
        with self._lock:
            self._assigned.follow()
            for cursor in self._assigned.cursors.values():
                found = cursor.log.offset_for_timestamp(timestamp_ms)
                end = cursor.visible_end(cursor.log.offsets())
                self._seek(cursor, end if found is None else found)

    def pause(self, place: TopicPartition) -> None:
        """Hand out nothing of a partition until ``resume``, or until it has moved to another member and back."""
        self._set_paused(place, True)

    def resume(self, place: TopicPartition) -> None:
        """Hand out records of a partition again."""
        self._set_paused(place, False)

    def _set_paused(self, place: TopicPartition, paused: bool) -> None:
        self._check_usable()
        with self._lock:
            cursor = self._assigned.cursors.get(checked_place(place))
            if cursor is None:
                return
            cursor.paused = paused
            handout = self._assigned.handout
            if paused and handout is not None and handout.cursor is cursor:
                handout.cut()  # an iteration is in the middle of it

    def _cursor_at(self, partition: Place, topic: str | None) -> Cursor:
        if isinstance(partition, tuple):
            topic, partition = checked_place(partition)
        elif type(partition) is not int:
            raise InvalidRequestError(
                f"a partition is a number, or a (topic, number), not {partition!r:.100}"
            )
        found = [
            cursor
            for place, cursor in self._assigned.cursors.items()
            if place[1] == partition and topic in (None, place[0])
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidRequestError(
                f"several topics have a partition {partition}; say which: seek((topic, {partition}), offset)"
            )
        raise InvalidRequestError(
            f"partition {partition} is not assigned to this consumer, which reads "
            f"{', '.join(map(place_name, sorted(self._assigned.cursors))) or 'nothing now'}"
        )

    def _seek(self, cursor: Cursor, offset: int) -> None:
        if type(offset) is not int:  # nor a bool or a float: it is stored
            raise InvalidRequestError(f"an offset is an integer, not {offset!r}")
        offsets = cursor.log.offsets()
        if not offsets.log_start_offset <= offset <= offsets.log_end_offset:
            raise OffsetOutOfRangeError(
                *cursor.place,
                offset=offset,
                start_offset=offsets.log_start_offset,
                end_offset=offsets.high_watermark,
            )
        self._assigned.settle_handout()
        cursor.seek(offset)

    # Closing --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the group at once and close; with at-least-once, commit what was handed out. Idempotent.

        From another thread it ends a poll or an iteration first. Not for signal handlers: one that has interrupted
        its own thread's ``commit`` or ``seek`` would wait for that for ever. A handler calls ``wakeup``, sets an
        ``Event``, or raises ``KeyboardInterrupt`` or ``SystemExit``, and nothing else.
        """
        self._close(self._assigned.handed_out_position)

    def __enter__(self) -> Consumer:
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close. When an exception passes, at-least-once commits only what was done before.

        That is what was handed out before the last record of an iteration, or before the last poll.
        """
        self._close(self._assigned.handed_out_position if error is None else self._assigned.done_position)

    def _close(self, commit_up_to: Callable[[Cursor], int]) -> None:
        self._closing = True
        if self._directory.closed:
            return  # closed before, or a forked child's copy: there is nothing that is ours to give back
        self._arrivals.wake()
        if self._turn_thread == threading.get_ident():
            return  # called inside a poll, by a signal handler: the poll closes when it returns
        with self._turn_lock, self._lock:
            if self._gave_back:
                return
            self._gave_back = True
            try:
                self._commits.on_closing(commit_up_to)
            finally:
                self._give_everything_back()

    def _give_everything_back(self) -> None:
        try:
            self._assigned.close()
        finally:
            self._arrivals.close()
            self._directory.close()

    def __repr__(self) -> str:
        topics = ", ".join(self._selection.entries)
        state = (
            "closed"
            if self._closing
            else ", ".join(map(place_name, sorted(self._assigned.cursors))) or "no partitions"
        )
        return f"<Consumer of {topics} in group {self.group!r}: {state}>"


# Arguments ------------------------------------------------------------------------------------------------


def _checked_isolation(isolation: str) -> Isolation:
    try:
        return Isolation(isolation)
    except ValueError:
        names = ", ".join(repr(known.value) for known in Isolation)
        raise InvalidRequestError(f"isolation={isolation!r} is not known; use one of {names}") from None
