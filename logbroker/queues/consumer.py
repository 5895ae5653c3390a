"""``broker.queue``: one consumer of a queue, and the messages in its hands.

    with queue.receive(timeout=1.0) as message: ...    accepted on leaving, released on an exception
    for message in queue.receive_many(50): ...         each settled by itself
    batch = queue.receive_many(50); batch.accept()     all with one sync of the disk

A message is in one consumer's hands until it is settled or its lease ends; then it is delivered again. ``Queue`` is
one pair of hands: where messages of one key must not be worked on at the same time, give each thread its own.

    field                   guard        written by
    _partitions             _lock        whoever receives, when topics or the subscription change
    everything else         (constant)
"""

from __future__ import annotations

import datetime
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING

from logbroker_storage.catalog import SIGNAL as TOPICS_SIGNAL
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    ClosedError,
    InvalidRequestError,
    LeaseLostError,
    LogbrokerError,
    QueueEmptyError,
    TopicNotFoundError,
)
from logbroker_storage.record_batch import Record

from ..arrivals import Arrivals
from ..commits import PendingCommit, together
from ..expressions import Predicate
from ..groups import TopicPartition
from ..records import may_have_reserved_headers, without_reserved_headers
from ..subscriptions import MAX_LEASE_S, SIGNAL, Subscription, Subscriptions
from ..topic_selection import TopicSelection
from .burial import Burial
from .partition import Lost, QueuePartition, owner_name, queue_signal, ranges_of
from .state import Range

if TYPE_CHECKING:
    from ..transaction import Transactions

logger = logging.getLogger("logbroker.queues")

MAX_MESSAGES = 100_000  # at once
MAX_DELAY_S = 366 * 86_400.0
NEIGHBOUR_CHECK_S = 0.25  # how soon the leases of a dead process return
RENEWALS_PER_LEASE = 3

_queue_numbers = count(1)

_MakeCommit = Callable[[QueuePartition, list[Range], Lost], PendingCommit]


class QueueMessage:
    """A message in a consumer's hands; the fields are a record's, and ``delivery_count`` (1 at first)."""

    __slots__ = ("delivery_count", "is_settled", "queue", "queue_partition", "record")

    def __init__(
        self, queue: Queue, queue_partition: QueuePartition, record: Record, delivery_count: int
    ) -> None:
        self.queue = queue  # whose hands it is in
        self.queue_partition = queue_partition  # of a topic that may have been deleted and made again since
        self.record = record
        self.delivery_count = delivery_count
        self.is_settled = False  # whether it was accepted, released or rejected here

    @property
    def topic(self) -> str:
        return self.record.topic

    @property
    def partition(self) -> int:
        return self.record.partition

    @property
    def offset(self) -> int:
        return self.record.offset

    @property
    def timestamp_ms(self) -> int:
        return self.record.timestamp_ms

    @property
    def timestamp(self) -> datetime.datetime:
        """``timestamp_ms`` as an aware UTC datetime."""
        return self.record.timestamp

    @property
    def key(self) -> bytes | None:
        return self.record.key

    @property
    def value(self) -> bytes | None:
        return self.record.value

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """The headers, in order, as a list of the caller's own."""
        return self.record.headers

    def accept(self) -> None:
        """Be done with the message: durable when this returns. See ``Queue.accept``."""
        self.queue.accept([self])

    def release(self, *, delay: float | datetime.timedelta = 0.0) -> None:
        """Give it back, to be delivered again to anybody. See ``Queue.release``."""
        self.queue.release([self], delay=delay)

    def reject(self, reason: str = "rejected") -> None:
        """Never deliver it again: it goes to the dead letters. See ``Queue.reject``."""
        self.queue.reject([self], reason)

    def extend(self, lease: float | None = None) -> None:
        """Hold it for *lease* seconds from now (default: the subscription's). See ``Queue.extend``."""
        self.queue.extend([self], lease)

    def __enter__(self) -> QueueMessage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Accept it, or release it when an exception passes; nothing more when it was settled inside."""
        if self.is_settled:
            return
        if error is None:
            self.accept()
            return
        try:
            self.release()
        except LogbrokerError as failure:
            logger.warning("%r comes again when its lease ends: %s", self, failure)  # *error* goes on

    def __repr__(self) -> str:
        return f"<QueueMessage {self.topic}-{self.partition}@{self.offset} delivery {self.delivery_count}>"


class MessageBatch(list[QueueMessage]):
    """Messages received together: a list that can be settled with one sync of the disk."""

    def __init__(self, queue: Queue, messages: Iterable[QueueMessage] = ()) -> None:
        super().__init__(messages)
        self._queue = queue

    def _open(self) -> list[QueueMessage]:
        return [message for message in self if not message.is_settled]

    def accept(self) -> None:
        """Accept all that are not settled yet."""
        self._queue.accept(self._open())

    def release(self, *, delay: float | datetime.timedelta = 0.0) -> None:
        """Release all that are not settled yet."""
        self._queue.release(self._open(), delay=delay)

    def reject(self, reason: str = "rejected") -> None:
        """Reject all that are not settled yet."""
        self._queue.reject(self._open(), reason)


class Queue:
    """A consumer of a queue. Use ``broker.queue()``; closing it releases what is in its hands."""

    def __init__(
        self,
        directory: DataDirectory,
        transactions: Transactions,
        topics: str | Iterable[str] | None,
        *,
        subscription: str,
        filter: Predicate | None = None,  # noqa: A002  (as the option is called)
        lease: float | None = None,
        renew: bool = False,
    ) -> None:
        self._directory = DataDirectory.open(directory.path)  # a user of its own, until it is closed
        try:
            self._subscriptions = Subscriptions(self._directory)
            found = self._subscriptions.get(subscription)
            if found.kind != "queue":
                raise InvalidRequestError(
                    f"subscription {subscription!r} is a stream: read it with "
                    f"broker.consumer(…, group={subscription!r})"
                )
            self._subscription = found
            self._selection = None if topics is None else TopicSelection.parse(topics)
            if self._selection is not None:
                self._check_selection(found, self._selection)
            self.lease_ms = found.rules.lease_ms if lease is None else checked_lease_ms(lease)
        except BaseException:
            self._directory.close()
            raise
        self.owner = owner_name(self._directory, f"queue-{next(_queue_numbers)}")
        self._filter = filter
        self._partitions: dict[TopicPartition, QueuePartition] = {}
        self._versions = (-1, -1)  # of topics and subscriptions, that _partitions was made for
        self._turn = 0  # whose partition comes first
        self._lock = threading.RLock()
        self._burial = Burial(self._directory, transactions, found)
        self._arrivals = Arrivals(self._directory, [TOPICS_SIGNAL, SIGNAL, queue_signal(found)])
        self._next_neighbour_check = 0.0
        self._closed = threading.Event()
        self._renewer: threading.Thread | None = None
        if renew:
            self._renewer = threading.Thread(target=self._renew, name="logbroker-leases", daemon=True)
            self._renewer.start()

    def _check_selection(self, subscription: Subscription, selection: TopicSelection) -> None:
        selection.check_names(self._directory.topics())
        for name in selection.names:
            if not subscription.selection.wants(name):
                raise InvalidRequestError(
                    f"subscription {subscription.name!r} does not read topic {name!r}; it reads "
                    f"{', '.join(subscription.topics)}"
                )

    @property
    def subscription(self) -> str:
        """The subscription's name, as of when it was last looked at."""
        return self._subscription.name

    # Receiving ------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> QueueMessage:
        """The next message; waits for it at most *timeout* seconds (None: for ever).

        Raises:
            QueueEmptyError: none came.
            As ``receive_many``.
        """
        messages = self.receive_many(1, timeout)
        if not messages:
            raise QueueEmptyError(
                f"no message of subscription {self.subscription!r} came within {timeout} seconds"
            )
        return messages[0]

    def receive_many(self, max_messages: int = 100, timeout: float | None = 0.0) -> MessageBatch:
        """Up to *max_messages* messages; waits for the first at most *timeout* seconds (None: for ever).

        An empty batch when none came, also while the subscription is paused.

        Raises:
            SubscriptionNotFoundError: it was deleted.
            CorruptionError: a part of the log is damaged. The other messages come with the next call; those come
                again, and at last are rejected.
            What the filter raises: what was to be judged goes back.
        """
        if isinstance(max_messages, bool) or not isinstance(max_messages, int) or max_messages < 1:
            raise InvalidRequestError(f"max_messages={max_messages!r}: give it a positive number")
        limit = min(max_messages, MAX_MESSAGES)
        deadline = None if timeout is None else time.monotonic() + timeout
        # Another thread may be waiting inside: it must not hold this one up for longer than asked for.
        if not self._lock.acquire(
            timeout=-1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        ):
            return MessageBatch(self)
        try:
            return self._receive_until(deadline, limit)
        finally:
            self._lock.release()

    def _receive_until(self, deadline: float | None, limit: int) -> MessageBatch:
        while True:
            self._check_open()
            messages = self._receive(limit)
            if messages:
                return messages
            partitions = [] if self._subscription.is_paused else list(self._partitions.values())
            watches_now = self._arrivals.begin(partitions)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return messages
            if not watches_now:
                self._arrivals.wait(self._pause(partitions, left), partitions)

    def _receive(self, limit: int) -> MessageBatch:
        messages = MessageBatch(self)
        partitions = self._current_partitions()
        if not partitions:
            return messages
        self._look_after(partitions)
        self._turn = (self._turn + 1) % len(partitions)
        try:
            for partition in [*partitions[self._turn :], *partitions[: self._turn]]:
                messages += self._receive_from(partition, limit - len(messages))
                if len(messages) >= limit:
                    break
        except BaseException:
            for partition, ranges, _ in self._by_partition(messages):
                partition.give_back(self.owner, ranges)  # nobody has seen them
            raise
        if not messages:
            self._bury()  # what a look has found to be at its delivery limit
        return messages

    def _receive_from(self, partition: QueuePartition, limit: int) -> list[QueueMessage]:
        try:
            held = partition.receive(self.owner, limit, lease_ms=self.lease_ms)
        except TopicNotFoundError:
            return []  # deleted a moment ago
        messages: list[QueueMessage] = []
        for taken in held:
            records = taken.records
            if may_have_reserved_headers(records):
                records = list(map(without_reserved_headers, records))
            count = taken.delivery_count
            messages += [QueueMessage(self, partition, record, count) for record in records]
        return messages

    def _current_partitions(self) -> list[QueuePartition]:
        """The partitions to receive from, as topics and the subscription are now; none while it is paused."""
        versions = (self._directory.topics_version(), self._subscriptions.version())
        if versions != self._versions:
            self._subscription = subscription = self._subscriptions.get_by_id(
                self._subscription.id, self._subscription.name
            )
            wanted = self._wanted_places(subscription)
            for place, partition in list(self._partitions.items()):
                same = (
                    partition.log.key == wanted.get(place)
                    and partition.subscription.rules == subscription.rules
                )
                if not same:
                    self._arrivals.unwatch(partition)
                    self._partitions.pop(place).close()
            for place in wanted:
                if place not in self._partitions:
                    partition = QueuePartition(self._directory, subscription, place, also=self._filter)
                    self._partitions[place] = partition
                    self._arrivals.watch(partition)
            self._burial.subscription = subscription
            self._versions = versions
        return [] if self._subscription.is_paused else list(self._partitions.values())

    def _wanted_places(self, subscription: Subscription) -> dict[TopicPartition, bytes]:
        """The partitions that these hands receive from, and the keys of their logs."""
        wanted: dict[TopicPartition, bytes] = {}
        for place in self._subscriptions.places(subscription):
            if self._selection is None or self._selection.wants(place[0]):
                try:
                    wanted[place] = self._directory.log(*place).key
                except TopicNotFoundError:
                    pass  # deleted a moment ago: the next look at the topics finds them as they are then
        return wanted

    def _look_after(self, partitions: Sequence[QueuePartition]) -> None:
        """Now and then: end what dead processes hold, and bury what is rejected."""
        now = self._directory.clock.monotonic()
        if now < self._next_neighbour_check:
            return
        self._next_neighbour_check = now + NEIGHBOUR_CHECK_S
        for partition in partitions:
            partition.give_up_for_the_dead()
        self._bury()

    def _pause(self, partitions: Sequence[QueuePartition], left: float | None) -> float | None:
        """How long to wait for news: until something is due by the clock, or others may have died."""
        pauses = [] if left is None else [left]
        for partition in partitions:
            due = partition.look()
            if due.has_work:
                return 0.0
            if due.next_due_s is not None:
                pauses.append(max(due.next_due_s, 0.001))
            if due.next_due_s is not None or due.has_rejected:
                pauses.append(NEIGHBOUR_CHECK_S)
        return min(pauses, default=None)

    def __iter__(self) -> Iterator[QueueMessage]:
        """Messages one by one, for ever; each is to be settled by whoever takes it."""
        while True:
            yield self.receive()

    # Settling -------------------------------------------------------------------------------------

    def accept(self, messages: Iterable[QueueMessage]) -> None:
        """Be done with *messages*, which came from this queue; durable when this returns, with one sync for all.

        Raises:
            LeaseLostError: some are no longer in these hands. The others are accepted.
            WriteFailedError: nothing was accepted; the messages are still in these hands.
            StorageFailedError: whether they were accepted is unknown.
        """
        self._settle(messages, lambda partition, ranges, lost: partition.acceptance(self.owner, ranges, lost))

    def reject(self, messages: Iterable[QueueMessage], reason: str = "rejected") -> None:
        """Never deliver *messages* again, durably. They go to the dead letter topic, if the subscription has one;
        where that cannot be written now, later.

        Raises:
            As ``accept``.
        """
        if not isinstance(reason, str) or not reason:
            raise InvalidRequestError(f"reason={reason!r}: say in a few words why")
        self._settle(
            messages, lambda partition, ranges, lost: partition.rejection(self.owner, ranges, reason, lost)
        )
        self._bury()

    def release(self, messages: Iterable[QueueMessage], *, delay: float | datetime.timedelta = 0.0) -> None:
        """Give *messages* back, to be delivered again to anybody; *delay* in seconds. One delivery is used up.

        Not durable by itself: should the machine stop, they may come again sooner, with fewer deliveries.

        Raises:
            LeaseLostError: some are no longer in these hands, which comes to the same.
        """
        delay_ms = _delay_ms(delay)
        self._settle(
            messages,
            lambda partition, ranges, lost: partition.surrender(self.owner, ranges, delay_ms, lost),
            is_lasting=False,
        )
        self._bury()

    def extend(self, messages: Iterable[QueueMessage], lease: float | None = None) -> None:
        """Hold *messages* for *lease* seconds from now (default: as they were received).

        Raises:
            LeaseLostError: some are no longer in these hands.
        """
        lease_ms = self.lease_ms if lease is None else checked_lease_ms(lease)
        self._check_open()
        lost: list[tuple[str, int, int, int]] = []
        for partition, ranges, _ in self._by_partition(messages):
            lost += [
                (*partition.place, *one) for one in partition.extend(self.owner, ranges, lease_ms=lease_ms)
            ]
        if lost:
            raise LeaseLostError(lost)

    def pending_acceptance(self, messages: Iterable[QueueMessage]) -> list[PendingCommit]:
        """``accept`` as parts of a transaction, which is refused when one of *messages* is lost."""

        def refuse(place: TopicPartition, lost: Sequence[Range]) -> None:
            raise LeaseLostError([(*place, *one) for one in lost])

        self._check_open()
        return [
            partition.acceptance(self.owner, ranges, refuse, in_transaction=True).followed_by(
                partial(_mark_settled, own)
            )
            for partition, ranges, own in self._by_partition(messages)
        ]

    def _settle(
        self, messages: Iterable[QueueMessage], make: _MakeCommit, *, is_lasting: bool = True
    ) -> None:
        lost: list[tuple[str, int, int, int]] = []

        def note(place: TopicPartition, ranges: Sequence[Range]) -> None:
            lost.extend((*place, *one) for one in ranges)

        self._check_open()
        groups = self._by_partition(messages)
        if not groups:
            return
        commit = together([make(partition, ranges, note) for partition, ranges, _ in groups])
        self._directory.journal.decide(commit.decide, take_back=commit.take_back, is_lasting=is_lasting)
        commit.settle()
        for _, _, own in groups:
            _mark_settled(own)
        if lost:
            raise LeaseLostError(lost)

    def _by_partition(
        self, messages: Iterable[QueueMessage]
    ) -> list[tuple[QueuePartition, list[Range], list[QueueMessage]]]:
        groups: dict[QueuePartition, list[QueueMessage]] = {}
        for message in messages:
            if message.queue is not self:
                raise InvalidRequestError(f"{message!r} is in the hands of another Queue; settle it there")
            groups.setdefault(message.queue_partition, []).append(message)
        return [
            (partition, ranges_of([message.record.offset for message in own]), own)
            for partition, own in groups.items()
        ]

    def _bury(self) -> None:
        if self._subscription.rules.dead_letter is not None:
            self._burial.run(list(self._partitions.values()))

    # The rest of its life -------------------------------------------------------------------------

    def _renew(self) -> None:
        """Extend the leases of everything in these hands, again and again, until the queue is closed."""
        while not self._closed.wait(self.lease_ms / 1000 / RENEWALS_PER_LEASE):
            for partition in list(self._partitions.values()):
                try:
                    partition.extend_all(self.owner, lease_ms=self.lease_ms)
                except LogbrokerError as error:
                    logger.warning("leases of %s-%d could not be renewed: %s", *partition.place, error)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClosedError("the queue was closed; make another with broker.queue()")

    def close(self) -> None:
        """Release what is in these hands. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._arrivals.wake()
        if self._renewer is not None:
            self._renewer.join()
        with self._lock:
            try:
                if not self._directory.closed:
                    for partition in self._partitions.values():
                        if self.owner in partition.owners():
                            partition.give_up(lambda owner: owner == self.owner)
                    self._bury()
            finally:
                for partition in self._partitions.values():
                    partition.close()
                self._arrivals.close()
                self._burial.close()
                self._directory.close()

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Queue of subscription {self.subscription!r}{' closed' if self._closed.is_set() else ''}>"


def _mark_settled(messages: Iterable[QueueMessage]) -> None:
    for message in messages:
        message.is_settled = True


def checked_lease_ms(lease: float) -> int:
    """*lease*, in seconds, as milliseconds.

    Raises:
        InvalidRequestError: it is none.
    """
    if isinstance(lease, bool) or not isinstance(lease, (int, float)) or not 0.001 <= lease <= MAX_LEASE_S:
        raise InvalidRequestError(f"lease={lease!r}: give it seconds, from 0.001 to {MAX_LEASE_S:g} (a day)")
    return int(lease * 1000)


def _delay_ms(delay: float | datetime.timedelta) -> int:
    seconds = delay.total_seconds() if isinstance(delay, datetime.timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= MAX_DELAY_S:
        raise InvalidRequestError(f"delay={delay!r}: give it seconds, from 0 to {MAX_DELAY_S:g} (a year)")
    return math.ceil(seconds * 1000)
