"""What a consumer commits for its group, and when: that is its delivery.

    delivery         before records go out   when the next is asked for   on closing
    at-least-once    nothing                 what was handed out before   what was handed out; after an error only
                                                                            what the next was asked for behind
    at-most-once     these records           nothing                      takes back what was not handed out
    manual           nothing                 nothing                      nothing

``commit()`` commits what was handed out, in an iteration up to and including the current record.

A commit that the consumer makes by itself passes over partitions that moved to another member: what was handed
out of them is delivered again there. One that is asked for raises ``FencedError``, once, and commits nothing.

Nothing here is locked: the consumer's lock guards all of it. How a commit is written: ``commits``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError, InvalidRequestError, LogbrokerError, TopicNotFoundError

from .assigned import AssignedPartitions
from .commits import PendingCommit, prepare_commit, write_commit
from .cursor import Cursor
from .groups import TopicPartition
from .membership import Membership
from .rotation import Taken

logger = logging.getLogger("logbroker.consumer")

Delivery = Literal["at-least-once", "at-most-once", "manual"]

DELIVERIES: tuple[Delivery, ...] = ("at-least-once", "at-most-once", "manual")

COMMIT_SHARE = 20  # an iteration commits when this many times a commit's cost has passed


class ConsumerCommits:
    """The commits of one consumer, of the partitions that it is assigned."""

    def __init__(self, directory: DataDirectory, assigned: AssignedPartitions, delivery: Delivery) -> None:
        self.delivery = delivery
        self._directory = directory
        self._assigned = assigned
        self._next_commit = 0.0  # from when on an iteration commits

    # By itself ------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether an iteration is to commit now, between two slices."""
        return time.monotonic() >= self._next_commit or self._assigned.any_leaving

    def asked_on(self) -> None:
        """The next is asked for, and a commit is due: with at-least-once, commit what was handed out before."""
        membership = self._assigned.membership
        if self.delivery != "at-least-once" or membership is None:
            return
        try:
            self._commit(membership)
        except (FencedError, TopicNotFoundError):
            self._assigned.follow(anew=True)
            # The group may not have been told yet that a topic is gone, or made again.
            self._commit(self._assigned.membership or membership, only_live=True)
        self._assigned.lost.clear()

    def committed_first(self, taken: list[Taken]) -> bool:
        """With at-most-once: commit before the records go out; False when a partition was lost meanwhile."""
        membership = self._assigned.membership
        if membership is None or self.delivery != "at-most-once":
            return True
        try:
            self._commit(membership)
        except LogbrokerError as error:
            for one in taken:
                one.cursor.give_back(len(one.records))
            if not isinstance(error, FencedError):
                raise
            self._assigned.follow()
            return False
        return True

    def on_closing(self, commit_up_to: Callable[[Cursor], int]) -> None:
        """The last commit; *commit_up_to* is ``handed_out_position`` or ``done_position`` of the assigned."""
        assigned = self._assigned
        membership = assigned.membership
        if membership is None or self.delivery == "manual":
            return
        if self.delivery == "at-most-once":
            # Takes back what was committed but never handed out.
            commit_up_to = assigned.handed_out_position
        offsets = {
            cursor: commit_up_to(cursor)
            for cursor in assigned.cursors.values()
            if (cursor.moved or cursor.committed is not None) and commit_up_to(cursor) != cursor.committed
        }
        if commit_up_to == assigned.done_position:  # an explicit commit may have been ahead of it
            offsets = {
                cursor: offset for cursor, offset in offsets.items() if offset > (cursor.committed or 0)
            }
        try:
            write_commit(self._directory, membership, offsets)
        except (FencedError, TopicNotFoundError) as error:
            logger.warning("the last commit of group %r came too late: %s", membership.group, error)

    # As asked -------------------------------------------------------------------------------------

    def commit(self) -> None:
        """As ``Consumer.commit``."""
        try:
            self._commit(self._unlost_membership())
        except FencedError:
            # What this tells of is not to be told again when the next poll notices it.
            self._assigned.follow()
            self._assigned.lost.clear()
            raise
        self._assigned.release_idle()

    def pending(self, only: TopicPartition | None) -> PendingCommit:
        """As ``Consumer.pending_commit``."""
        membership = self._unlost_membership()
        offsets = {
            cursor: offset
            for cursor, offset in self._assigned.uncommitted().items()
            if only is None or cursor.place == only
        }
        return prepare_commit(self._directory, membership, offsets)

    def uncommitted_places(self) -> list[TopicPartition]:
        """As ``Consumer.uncommitted_places``."""
        self._unlost_membership()
        return [cursor.place for cursor in self._assigned.uncommitted()]

    def leave_to_transactions(self) -> None:
        """Commit nothing without being asked any more.

        Raises:
            InvalidRequestError: this consumer commits before it hands out.
        """
        if self.delivery == "at-most-once":
            raise InvalidRequestError(
                "a consumer of delivery='at-most-once' has committed before it hands out; use "
                "delivery='manual' with transactions"
            )
        self.delivery = "manual"

    def _unlost_membership(self) -> Membership:
        """The membership to commit as, if everything handed out can still be committed."""
        membership = self._assigned.membership
        if membership is None:
            raise InvalidRequestError(
                "a consumer without a group has nowhere to commit to; make it with group='…'"
            )
        lost, self._assigned.lost = self._assigned.lost, set()
        if lost:
            raise membership.fenced(lost)
        return membership

    # Writing --------------------------------------------------------------------------------------

    def _commit(self, membership: Membership, *, only_live: bool = False) -> None:
        offsets = self._assigned.uncommitted()
        if only_live:  # what was read of a topic that is gone is committed nowhere
            offsets = {cursor: offset for cursor, offset in offsets.items() if self._is_live(cursor)}
        took_s = write_commit(self._directory, membership, offsets)
        self._next_commit = time.monotonic() + COMMIT_SHARE * took_s

    def _is_live(self, cursor: Cursor) -> bool:
        event = self._directory.catalog.all().get(cursor.log.topic)
        return event is not None and event.state == "live" and event.topic_id == cursor.log.topic_id


def checked_delivery(delivery: str) -> Delivery:
    """*delivery* as one of those above.

    Raises:
        InvalidRequestError: it is not; the message says what to use.
    """
    if delivery == "exactly-once":
        raise InvalidRequestError(
            "a consumer alone cannot deliver exactly once: what the application does with a record is not "
            "part of its commit. Use broker.transform(), or a transaction: broker.transaction() with "
            "tx.commit_offsets(consumer) and a consumer of delivery='manual'"
        )
    for known in DELIVERIES:
        if delivery == known:
            return known
    raise InvalidRequestError(f"delivery={delivery!r} is not known; use one of {', '.join(DELIVERIES)}")
