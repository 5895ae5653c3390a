"""The queues that share groups fetch from, as threads of the server use them.

field       guard     written by
_open       _lock     whoever asks for a partition; those that nobody asked for in a while are closed
_burials    _lock     whoever is the first to bury for a subscription; each burial has a lock of its own
_checked_s  (none)    whoever looks for dead owners; one look more does no harm
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kio.schema.errors import ErrorCode

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError
from logbroker_storage.journal import Item
from logbroker_storage.record_batch import StoredBatch

from ..commits import PendingCommit
from ..groups import TopicPartition
from ..queues.burial import Burial
from ..queues.consumer import NEIGHBOUR_CHECK_S
from ..queues.looks import Held
from ..queues.owners import owner_name
from ..queues.partition import QueuePartition, ranges_of
from ..queues.settlement import Settlement
from ..queues.state import Range
from ..subscriptions import Subscription
from ..transaction import Transactions
from .error_codes import RefusedError, code_of
from .raw_reader import ReaderPool
from .share_sessions import ShareSession

logger = logging.getLogger("logbroker.server")

IDLE_S = 60.0
REJECTED = "rejected by a share consumer"


class Acquired(NamedTuple):
    """Messages of one partition in a member's hands: first and last offset and delivery count of each range."""

    ranges: list[tuple[int, int, int]]
    batches: list[StoredBatch]

    @property
    def size_bytes(self) -> int:
        return sum(len(batch.data) for batch in self.batches)


class Wish(NamedTuple):
    """What a fetch asks for. ``max_messages`` is exact with ``is_strict``, else the last batch comes whole.

    However many messages come first that are not to be delivered, behind *deadline_s* (monotonic) nobody searches on.
    """

    max_messages: int
    min_bytes: int
    max_bytes: int
    is_strict: bool
    deadline_s: float


class Acquisition(NamedTuple):
    """What came of it; ``next_due_s`` is when something may be had that no signal tells of."""

    acquired: dict[TopicPartition, Acquired]
    errors: dict[TopicPartition, ErrorCode]
    next_due_s: float | None


class SharePartitions:
    """Safe across threads."""

    def __init__(self, directory: DataDirectory, transactions: Transactions, readers: ReaderPool) -> None:
        self._directory = directory
        self._transactions = transactions
        self._readers = readers
        # With the monotonic time of their last use.
        self._open: dict[tuple[str, TopicPartition], tuple[QueuePartition, float]] = {}
        self._burials: dict[str, tuple[Burial, threading.Lock]] = {}
        self._checked_s: dict[tuple[str, TopicPartition], float] = {}  # when the dead were looked for
        self._lock = threading.Lock()

    def of(self, subscription: Subscription, place: TopicPartition) -> QueuePartition:
        """One partition of a group.

        Raises:
            TopicNotFoundError: it is not there.
            RefusedError: the group does not read it.
        """
        if not subscription.selection.wants(place[0]):
            raise RefusedError(ErrorCode.unknown_topic_or_partition)
        log = self._directory.log(*place)
        key = (subscription.id, place)
        now_s = self._directory.clock.monotonic()
        with self._lock:
            known = None if key not in self._open else self._open[key][0]
            if known is not None and known.is_still(log, subscription):
                self._open[key] = (known, now_s)
                return known
            fresh = QueuePartition(self._directory, subscription, place)
            self._open[key] = (fresh, now_s)
        if known is not None:
            known.close()
        return fresh

    # Acquiring ----------------------------------------------------------------------------------------

    def glance(self, subscription: Subscription, places: Iterable[TopicPartition]) -> Acquisition | None:
        """That nothing is to be had, and until when; None where only ``acquire`` can tell. For the event loop."""
        if subscription.is_paused:
            return Acquisition({}, {}, None)
        pauses: list[float] = []
        for place in places:
            try:
                due = self.of(subscription, place).glance()
            except LogbrokerError:
                return None
            if not due.exists or due.has_work or due.is_due or due.has_rejected:
                return None
            if due.next_due_s is not None:
                pauses += [due.next_due_s, NEIGHBOUR_CHECK_S]
        return Acquisition({}, {}, min(pauses, default=None))

    def acquire(
        self, session: ShareSession, subscription: Subscription, places: Sequence[TopicPartition], wish: Wish
    ) -> Acquisition:
        """Put messages into the hands of the session's member; nothing once it is closed, or the group paused."""
        errors: dict[TopicPartition, ErrorCode] = {}
        partitions: list[QueuePartition] = []
        for place in places:
            try:
                partitions.append(self.of(subscription, place))
            except LogbrokerError as error:
                errors[place] = code_of(error)
        if subscription.is_paused:
            return Acquisition({}, errors, None)
        acquired: dict[TopicPartition, Acquired] = {}
        is_enough = wish.min_bytes <= 1 or self._waiting_bytes(partitions, wish.min_bytes) >= wish.min_bytes
        if is_enough:
            acquired = self._receive(session, subscription, partitions, wish, errors)
        if acquired:
            return Acquisition(acquired, errors, None)
        self._look_after(subscription, partitions)
        return Acquisition({}, errors, _next_due_s(partitions, takes_what_is_there=is_enough))

    def _receive(
        self,
        session: ShareSession,
        subscription: Subscription,
        partitions: Sequence[QueuePartition],
        wish: Wish,
        errors: dict[TopicPartition, ErrorCode],
    ) -> dict[TopicPartition, Acquired]:
        owner = owner_name(self._directory, session.hands)
        session.held_in.update(partition.place for partition in partitions)
        acquired: dict[TopicPartition, Acquired] = {}
        room, left_bytes = wish.max_messages, wish.max_bytes
        for partition in partitions:
            if room <= 0 or left_bytes <= 0:
                break
            try:
                held = partition.receive(
                    owner,
                    room,
                    lease_ms=subscription.rules.lease_ms,
                    max_bytes=left_bytes,
                    whole_batches=not wish.is_strict,
                    is_enough=lambda: session.is_closed or time.monotonic() >= wish.deadline_s,
                )
            except LogbrokerError as error:
                errors[partition.place] = code_of(error)
                continue
            if held:
                found = acquired[partition.place] = _acquired(held)
                room -= sum(len(one.records) for one in held)
                left_bytes -= found.size_bytes
        if session.is_closed:  # whoever closed it may have given back before we took
            for partition in partitions:
                if partition.place in acquired:
                    taken = acquired[partition.place].ranges
                    partition.give_back(owner, [(first, last) for first, last, _ in taken])
            return {}
        return acquired

    def _waiting_bytes(self, partitions: Iterable[QueuePartition], enough: int) -> int:
        """How many bytes of batches could be had, as far as it is less than *enough*."""
        found = 0
        for partition in partitions:
            try:
                ahead = partition.ahead()
                if ahead.has_ready:
                    return enough  # what was given back waits for no more to come
                if ahead.next_offset < ahead.visible_end and found < enough:
                    found += self._readers.read(
                        partition.log,
                        ahead.next_offset,
                        end_offset=ahead.visible_end,
                        max_bytes=enough,
                        expire_at_ms=None,
                    ).size_bytes
            except LogbrokerError:
                return enough  # the fetch finds out
        return found

    def _look_after(self, subscription: Subscription, partitions: Iterable[QueuePartition]) -> None:
        """End what dead processes hold, and bury what is rejected."""
        now_s = self._directory.clock.monotonic()
        due = [
            partition
            for partition in partitions
            if now_s - self._checked_s.get((subscription.id, partition.place), 0.0) >= NEIGHBOUR_CHECK_S
        ]
        if not due:
            return
        self._checked_s |= {(subscription.id, partition.place): now_s for partition in due}
        try:
            for partition in due:
                partition.give_up_for_the_dead()
        except LogbrokerError as error:
            logger.warning(
                "messages of dead consumers of %r come when their leases end: %s", subscription.name, error
            )
        self.bury(subscription, due)

    # Giving back and settling -------------------------------------------------------------------------

    def settle(
        self, session: ShareSession, subscription: Subscription, wanted: Mapping[TopicPartition, Settlement]
    ) -> dict[TopicPartition, ErrorCode]:
        """Settle in each partition all that is *wanted*, or nothing; durable when this returns.

        The errors of the partitions in which it was nothing.
        """
        errors: dict[TopicPartition, ErrorCode] = {}
        commits: dict[TopicPartition, PendingCommit] = {}
        partitions: dict[TopicPartition, QueuePartition] = {}
        owner = owner_name(self._directory, session.hands)
        for place, settlement in wanted.items():
            try:
                partition = partitions[place] = self.of(subscription, place)
            except LogbrokerError as error:
                errors[place] = code_of(error)
                continue
            commits[place] = partition.settlement(
                owner, settlement, _refuse, lease_ms=subscription.rules.lease_ms, note=REJECTED
            )
        decided: list[PendingCommit] = []

        def decide() -> list[Item]:
            items: list[Item] = []
            for place, commit in commits.items():
                decided.append(commit)
                try:
                    items += commit.decide()
                except LogbrokerError as error:
                    decided.pop().take_back()
                    errors[place] = code_of(error)
            return items

        def take_back() -> None:
            for commit in decided:
                commit.take_back()

        is_lasting = any(wanted[place].is_lasting for place in commits)
        try:
            self._directory.journal.decide(decide, take_back=take_back, is_lasting=is_lasting)
        except LogbrokerError as error:
            logger.error("acknowledgements of group %r: %s", subscription.name, error)
            return dict.fromkeys(wanted, code_of(error))
        for commit in decided:
            commit.settle()
        if any(wanted[place].rejected or wanted[place].released for place in partitions):
            self.bury(subscription, partitions.values())
        return errors

    def give_up(
        self, subscription: Subscription, session: ShareSession, places: Iterable[TopicPartition]
    ) -> int:
        """Give back whatever is still held in *places*; in how many that was."""
        owner = owner_name(self._directory, session.hands)
        found: list[QueuePartition] = []
        for place in places:
            try:
                partition = self.of(subscription, place)
                if owner in partition.owners():
                    partition.give_up(lambda other: other == owner)
                    found.append(partition)
            except LogbrokerError as error:
                logger.debug("%s: %s", subscription.name, error)  # deleted: nobody holds anything there
        if found:
            self.bury(subscription, found)
        return len(found)

    def bury(self, subscription: Subscription, partitions: Iterable[QueuePartition]) -> None:
        """Write the dead letters of what is rejected, unless somebody is at it."""
        if subscription.rules.dead_letter is None:
            return
        with self._lock:
            known = self._burials.get(subscription.id)
            if known is None or known[0].subscription != subscription:
                burial = Burial(self._directory, self._transactions, subscription)
                fresh = (burial, threading.Lock())
                self._burials[subscription.id] = fresh
            else:
                fresh = known
        if known is not None and known is not fresh:
            with known[1]:
                known[0].close()
        burial, lock = fresh
        if not lock.acquire(blocking=False):
            return
        try:
            burial.run(partitions)
        except LogbrokerError as error:
            logger.error("dead letters of %r come later: %s", subscription.name, error)
        finally:
            lock.release()

    def close_idle(self) -> None:
        """Close what nobody has asked for in ``IDLE_S``."""
        self._close_used_before(self._directory.clock.monotonic() - IDLE_S)

    def close(self) -> None:
        self._close_used_before(math.inf)

    def _close_used_before(self, moment_s: float) -> None:
        with self._lock:
            idle = [key for key, (_, used_s) in self._open.items() if used_s < moment_s]
            closing = [self._open.pop(key)[0] for key in idle]
            for key in idle:
                self._checked_s.pop(key, None)
            in_use = {subscription_id for subscription_id, _ in self._open}
            unused = [name for name in self._burials if name not in in_use]
            burials = [self._burials.pop(subscription_id) for subscription_id in unused]
        for partition in closing:
            partition.close()
        for burial, lock in burials:
            with lock:
                burial.close()


def _refuse(place: TopicPartition, ranges: Sequence[Range]) -> None:
    first, last = ranges[0]
    raise RefusedError(
        ErrorCode.invalid_record_state,
        f"{place[0]}-{place[1]}: [{first}, {last}] is not in the member's hands",
    )


def _acquired(held: Iterable[Held]) -> Acquired:
    ranges: list[tuple[int, int, int]] = []
    batches: dict[int, StoredBatch] = {}
    for one in held:
        offsets = [record.offset for record in one.records]
        ranges += [(first, last, one.delivery_count) for first, last in ranges_of(offsets)]
        for batch in one.batches:
            batches[batch.header.base_offset] = batch
    ranges.sort()
    used = _holding(ranges, [batches[base] for base in sorted(batches)])
    return Acquired(_merged(ranges), used)


def _holding(ranges: Sequence[tuple[int, int, int]], batches: Sequence[StoredBatch]) -> list[StoredBatch]:
    """Those of *batches* with an offset in one of *ranges*; both are ascending."""
    found: list[StoredBatch] = []
    number = 0
    for batch in batches:
        while number < len(ranges) and ranges[number][1] < batch.header.base_offset:
            number += 1
        if number < len(ranges) and ranges[number][0] < batch.header.next_offset:
            found.append(batch)
    return found


def _merged(ranges: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Adjacent ranges with equal delivery counts as one."""
    merged: list[tuple[int, int, int]] = []
    for first, last, count in ranges:
        if merged and merged[-1][1] + 1 == first and merged[-1][2] == count:
            merged[-1] = (merged[-1][0], last, count)
        else:
            merged.append((first, last, count))
    return merged


def _next_due_s(partitions: Iterable[QueuePartition], *, takes_what_is_there: bool) -> float | None:
    pauses: list[float] = []
    for partition in partitions:
        try:
            due = partition.look()
        except LogbrokerError:
            continue
        if due.has_work and takes_what_is_there:
            return 0.0
        if due.next_due_s is not None:
            pauses += [max(due.next_due_s, 0.001), NEIGHBOUR_CHECK_S]
    return min(pauses, default=None)
