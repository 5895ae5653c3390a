"""``broker.queue``: one consumer of a queue, and the messages in its hands.

    with queue.receive(timeout=1.0) as message: ...    accepted on leaving, released on an exception
    for message in queue.receive_many(50): ...         each settled by itself
    batch = queue.receive_many(50); batch.accept()     all with one sync of the disk

A message is in one consumer's hands until it is settled or its lease ends; then it is delivered again. ``Queue`` is
one pair of hands: where messages of one key must not be worked on at the same time, give each thread its own.

Those of a *detached* queue belong to no process: what is received stays leased when the queue is closed or its
process ends, and whoever has a message's ``handle`` settles it, with any queue of the subscription.

    field                   guard        written by
    _partitions             _lock        whoever receives, when topics or the subscription change
    _by_handle              (none)       whoever settles by a handle: of two that are made at a time, one is left
    _receiving_thread       _lock        whoever holds it to receive
    _woken                  (a flag)     set by wakeup, taken back by the receive that returns for it
    _gave_back              _lock        the last step of closing
    everything else         (constant)
"""

from __future__ import annotations

import datetime
import logging
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, repeat
from types import TracebackType
from typing import TYPE_CHECKING

from logbroker_storage.catalog import SIGNAL as TOPICS_SIGNAL
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    ClosedError,
    InvalidRequestError,
    LogbrokerError,
    QueueEmptyError,
    TopicNotFoundError,
)
from logbroker_storage.partition_log import PartitionLog

from ..arguments import several, utf8, whole_number
from ..arrivals import Arrivals
from ..commits import PendingCommit, check_directory, together
from ..deadlines import deadline_after, left_until
from ..expressions import Predicate, as_predicate
from ..groups import TopicPartition
from ..records import without_reserved_headers
from ..subscriptions import SIGNAL, Subscription, Subscriptions
from ..topic_selection import TopicSelection
from .burial import Burial
from .handles import ReceiptHandle
from .message import MessageBatch as MessageBatch
from .message import QueueMessage as QueueMessage
from .owners import detached_owner, owner_name
from .partition import Lost, QueuePartition, queue_signal, ranges_of
from .settings import lease_ms_of
from .settling import InHand, Losses, refuse

if TYPE_CHECKING:
    from ..transaction import Transactions

logger = logging.getLogger("logbroker.queues")

MAX_MESSAGES = 100_000  # at once
MAX_DELAY_S = 366 * 86_400.0
NEIGHBOUR_CHECK_S = 0.25  # how soon the leases of a dead process return, while somebody waits
RENEWALS_PER_LEASE = 3

_queue_numbers = count(1)

_MakeCommit = Callable[[InHand, Lost], PendingCommit]


class Queue:
    """A consumer of a queue. Use ``broker.queue()``; closing it releases what is in its hands."""

    def __init__(
        self,
        directory: DataDirectory,
        transactions: Transactions,
        topics: str | Iterable[str] | None,
        *,
        subscription: str,
        filter: str | Predicate | None = None,  # noqa: A002  (as the option is called)
        lease: float | None = None,
        renew: bool = False,
        detached: bool = False,
    ) -> None:
        self._directory = directory.one_more_use()  # a user of its own, until it is closed
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
            self.lease_ms = found.rules.lease_ms if lease is None else lease_ms_of(lease)
            self._filter = None if filter is None else as_predicate(filter)
        except BaseException:
            self._directory.close()
            raise
        self._is_detached = detached
        self.owner = (
            detached_owner() if detached else owner_name(self._directory, f"queue-{next(_queue_numbers)}")
        )
        self._partitions: dict[TopicPartition, QueuePartition] = {}
        self._by_handle: dict[TopicPartition, QueuePartition] = {}  # what handles have named besides
        self._versions = (-1, -1)  # of topics and subscriptions, that _partitions was made for
        self._turn = 0  # whose partition comes first
        self._lock = threading.RLock()
        self._receiving_thread: int | None = None
        self._gave_back = False
        self._burial = Burial(self._directory, transactions, found)
        self._arrivals = Arrivals(self._directory, [TOPICS_SIGNAL, SIGNAL, queue_signal(found)])
        self._next_neighbour_check = 0.0
        self._closed = threading.Event()
        self._woken = False  # by wakeup, and no receive has returned for it yet
        self._renewer: threading.Thread | None = None
        if renew:
            renewer = threading.Thread(target=self._renew, name="logbroker-leases", daemon=True)
            try:
                renewer.start()
            except BaseException:
                self.close()
                raise
            self._renewer = renewer

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
            QueueEmptyError: none came, or ``wakeup`` was called.
            As ``receive_many``.
        """
        messages = self.receive_many(1, timeout)
        if not messages:
            when = "before wakeup()" if timeout is None else f"within {timeout} seconds"
            raise QueueEmptyError(f"no message of subscription {self.subscription!r} came {when}")
        return messages[0]

    def receive_many(self, max_messages: int = 100, timeout: float | None = 0.0) -> MessageBatch:
        """Up to *max_messages* messages; waits for the first at most *timeout* seconds (None: for ever).

        An empty batch when none came, also while the subscription is paused, and after ``wakeup``. Messages that are
        not to be delivered are passed over first, however long that takes: the timeout is for waiting where no
        others are left.

        Raises:
            SubscriptionNotFoundError: it was deleted.
            CorruptionError: a part of the log is damaged. The other messages come with the next call; those come
                again, and at last are rejected.
            What the filter raises: what was to be judged goes back.
        """
        limit = min(whole_number("max_messages", max_messages), MAX_MESSAGES)
        deadline = deadline_after(timeout)
        # Another thread may be waiting inside: it must not hold this one up for longer than asked for.
        if not self._lock.acquire(
            timeout=-1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        ):
            return MessageBatch(self)
        self._receiving_thread = threading.get_ident()
        try:
            return self._receive_until(deadline, limit)
        finally:
            self._receiving_thread = None
            self._lock.release()
            if self._closed.is_set():
                self.close()  # what was called meanwhile has left it to us

    def _receive_until(self, deadline: float | None, limit: int) -> MessageBatch:
        while True:
            self._check_open()
            messages = self._receive(limit)
            if messages:
                return messages
            if self._woken:
                self._woken = False
                return messages
            partitions = [] if self._subscription.is_paused else list(self._partitions.values())
            watches_now = self._arrivals.begin(partitions)
            left = left_until(deadline)
            if left is not None and left <= 0:
                return messages
            if not watches_now:
                self._arrivals.wait(self._pause(partitions, left), partitions)

    def wakeup(self) -> None:
        """Make a ``receive_many`` that waits (or the next one that would) return at once; from any thread."""
        self._woken = True
        self._arrivals.wake()

    def _is_told_to_return(self) -> bool:
        return self._woken or self._closed.is_set()

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
            self.give_back(messages)  # nobody has seen them
            raise
        if not messages:
            self._bury(partitions)  # what a look has found to be at its delivery limit
        return messages

    def _receive_from(self, partition: QueuePartition, limit: int) -> list[QueueMessage]:
        try:
            held = partition.receive(
                self.owner, limit, lease_ms=self.lease_ms, is_enough=self._is_told_to_return
            )
        except TopicNotFoundError:
            return []  # deleted a moment ago
        messages: list[QueueMessage] = []
        for taken in held:
            records = map(without_reserved_headers, taken.records) if taken.have_reserved else taken.records
            # 4 µs for a hundred; with a Python ``__init__`` 11.
            messages += map(
                QueueMessage, repeat(self), repeat(partition), records, repeat(taken.delivery_count)
            )
        return messages

    def _current_partitions(self) -> list[QueuePartition]:
        """The partitions to receive from, as topics and the subscription are now; none while it is paused."""
        versions = (self._directory.topics_version(), self._subscriptions.version())
        if versions != self._versions:
            self._subscription = subscription = self._subscriptions.get_by_id(
                self._subscription.id, self._subscription.name
            )
            wanted = self._wanted_logs(subscription)
            for place, partition in list(self._partitions.items()):
                log = wanted.get(place)
                if log is None or not partition.is_still(log, subscription):
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

    def _wanted_logs(self, subscription: Subscription) -> dict[TopicPartition, PartitionLog]:
        """The partitions that these hands receive from."""
        wanted: dict[TopicPartition, PartitionLog] = {}
        for place in self._subscriptions.places(subscription):
            if self._selection is None or self._selection.wants(place[0]):
                try:
                    wanted[place] = self._directory.log(*place)
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
        self._bury(partitions)

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
            yield from self.receive_many(1, None)

    # Settling -------------------------------------------------------------------------------------

    def accept(self, messages: Iterable[QueueMessage | str], *, durable: bool = True) -> None:
        """Be done with *messages*; durable when this returns, with one sync for all.

        Each is a message that came from this queue, or the ``handle`` of one that any queue of the subscription
        holds; so it is with the others below.

        With ``durable=False`` it holds for every process when this returns, and lasts through a power cut when the next
        that waits for the disk does: until then such messages would come again.

        Raises:
            LeaseLostError: some are no longer in those hands. The others are accepted.
            WriteFailedError: nothing was accepted; the messages are still in those hands.
            StorageFailedError: whether they were accepted is unknown.
        """
        self._settle(
            messages,
            lambda held, lost: held.partition.acceptance(held.owner, held.ranges, lost),
            is_lasting=durable,
        )

    def reject(self, messages: Iterable[QueueMessage | str], reason: str = "rejected") -> None:
        """Never deliver *messages* again, durably. They go to the dead letter topic, if the subscription has one;
        where that cannot be written now, later.

        Raises:
            InvalidRequestError: *reason* is empty, or has no UTF-8 form; nothing was rejected.
            As ``accept``.
        """
        if not utf8("reason", reason):
            raise InvalidRequestError(f"reason={reason!r}: say in a few words why")
        self._settle(
            messages,
            lambda held, lost: held.partition.rejection(held.owner, held.ranges, reason, lost),
            may_bury=True,
        )

    def release(
        self, messages: Iterable[QueueMessage | str], *, delay: float | datetime.timedelta = 0.0
    ) -> None:
        """Give *messages* back, to be delivered again to anybody; *delay* in seconds. One delivery is used up.

        Not durable by itself: should the machine stop, they may come again sooner, with fewer deliveries.

        Raises:
            LeaseLostError: some are no longer in those hands, which comes to the same.
        """
        delay_ms = _delay_ms(delay)
        self._settle(
            messages,
            lambda held, lost: held.partition.surrender(held.owner, held.ranges, delay_ms, lost),
            is_lasting=False,
            may_bury=True,
        )

    def give_back(self, messages: Iterable[QueueMessage | str]) -> None:
        """Have *messages* as if they had never been received: no delivery is used up.

        Those that are no longer in those hands are passed over.
        """
        for held in self._by_partition(messages):
            held.partition.give_back(held.owner, held.ranges)
            _mark_settled(held.messages)

    def extend(self, messages: Iterable[QueueMessage | str], lease: float | None = None) -> None:
        """Hold *messages* for *lease* seconds from now (default: as this queue receives them).

        Raises:
            LeaseLostError: some are no longer in those hands.
        """
        lease_ms = self.lease_ms if lease is None else lease_ms_of(lease)
        self._check_open()
        losses = Losses()
        for held in self._by_partition(messages):
            losses.note(
                held.partition.place, held.partition.extend(held.owner, held.ranges, lease_ms=lease_ms)
            )
        losses.check()

    def pending_acceptance(
        self, messages: Iterable[QueueMessage], directory: DataDirectory
    ) -> list[PendingCommit]:
        """``accept`` as parts of a transaction of *directory*, which is refused when one of *messages* is lost.

        Raises:
            InvalidRequestError: this is a queue of another directory.
        """
        self._check_open()
        check_directory(directory, of=self._directory, what="queue")
        return [
            held.partition.acceptance(held.owner, held.ranges, refuse, in_transaction=True).followed_by(
                partial(_mark_settled, held.messages)
            )
            for held in self._by_partition(messages)
        ]

    def _settle(
        self,
        messages: Iterable[QueueMessage | str],
        make: _MakeCommit,
        *,
        is_lasting: bool = True,
        may_bury: bool = False,
    ) -> None:
        self._check_open()
        in_hand = self._by_partition(messages)
        if not in_hand:
            return
        losses = Losses()
        commit = together([make(held, losses.note) for held in in_hand])
        self._directory.journal.decide(commit.decide, take_back=commit.take_back, is_lasting=is_lasting)
        commit.settle()
        for held in in_hand:
            _mark_settled(held.messages)
        losses.check()
        if may_bury:
            self._bury([held.partition for held in in_hand])

    def _by_partition(self, messages: Iterable[QueueMessage | str]) -> list[InHand]:
        """*messages* by partition and owner."""
        given: defaultdict[tuple[QueuePartition, str], list[QueueMessage]] = defaultdict(list)
        named: defaultdict[tuple[QueuePartition, str], list[int]] = defaultdict(list)  # offsets, by handles
        last: QueuePartition | None = None
        for message in several("messages", messages):  # 4 µs for a hundred
            if isinstance(message, QueueMessage):
                if message.queue is not self:
                    raise InvalidRequestError(
                        f"{message!r} is in the hands of another Queue; settle it there"
                    )
                if message.queue_partition is not last:
                    last = message.queue_partition
                    of_last = given[last, self.owner]
                of_last.append(message)
            elif isinstance(message, str):
                handle = ReceiptHandle.parse(message)
                partition = self._partition_at((handle.topic, handle.partition))
                named[partition, handle.owner].append(handle.offset)
            else:
                raise InvalidRequestError(f"{message!r} is no message of a queue, and no receipt handle")
        return [
            InHand(
                *hands,
                ranges_of([message.record.offset for message in given[hands]] + named[hands]),
                given[hands],
            )
            for hands in dict.fromkeys([*given, *named])
        ]

    def _partition_at(self, place: TopicPartition) -> QueuePartition:
        """The partition that a handle names, whether these hands receive from it or not.

        Raises:
            InvalidRequestError, TopicNotFoundError: the subscription does not read it, or it is not there.
        """
        key = self._directory.log(*place).key
        for found in (self._partitions.get(place), self._by_handle.get(place)):
            if found is not None and found.log.key == key:
                return found
        before = self._subscription
        subscription = self._subscriptions.get_by_id(before.id, before.name)
        self._check_selection(subscription, TopicSelection.parse([place[0]]))
        partition = self._by_handle[place] = QueuePartition(self._directory, subscription, place)
        return partition

    def _bury(self, partitions: Iterable[QueuePartition]) -> None:
        if self._subscription.rules.dead_letter is not None:
            self._burial.run(partitions)

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
        """Release what is in these hands, unless they are detached. Idempotent.

        From another thread it ends a receive that waits first. A signal handler does not call it, but ``wakeup``: the
        call that it has interrupted may hold what closing would wait for.
        """
        self._closed.set()
        if self._directory.closed:
            return  # closed before, or a forked child's copy: there is nothing that is ours to release
        self._arrivals.wake()
        if self._receiving_thread == threading.get_ident():
            return  # called inside a receive, by a signal handler: the receive closes when it ends
        if self._renewer is not None:
            self._renewer.join()
        with self._lock:
            if self._gave_back:
                return
            self._gave_back = True
            try:
                if not self._is_detached:
                    for partition in self._partitions.values():
                        if self.owner in partition.owners():
                            partition.give_up(lambda owner: owner == self.owner)
                    self._bury(list(self._partitions.values()))
            finally:
                for partition in [*self._partitions.values(), *self._by_handle.values()]:
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


def _delay_ms(delay: float | datetime.timedelta) -> int:
    seconds = delay.total_seconds() if isinstance(delay, datetime.timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= MAX_DELAY_S:
        raise InvalidRequestError(f"delay={delay!r}: give it seconds, from 0 to {MAX_DELAY_S:g} (a year)")
    return math.ceil(seconds * 1000)
