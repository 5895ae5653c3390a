"""Writing a group's offsets: durable, never above what is on the disk, never by a member that lost them.

1  sync each log as far as the offset to be committed: a power cut must not take records back that
   the group will not read again
2  under the journal lock: hold that the member still owns the partitions since the same generation,
   and that the topics are there, not others of their names; append the events
3  sync the journal; the view shows the offsets; only then the cursors take note
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError, TopicNotFoundError
from logbroker_storage.events import OffsetEvent
from logbroker_storage.journal import Item, item_of

from .cursor import Cursor
from .membership import Membership


def items_of(events: Sequence[OffsetEvent]) -> list[Item]:
    """What the journal is to say of *events*: a negative offset takes back what was committed."""
    return [item_of(event) if event.offset >= 0 else (event.key(), None) for event in events]


class PendingCommit(msgspec.Struct, frozen=True):
    """What a consumer is through with, to be journaled together with something else.

    Attributes:
        decide: called under the journal lock; what to journal. It may refuse by raising.
        take_back: called under the same lock, when that could not be written, or *decide* was broken off.
        settle: called when it was.
    """

    decide: Callable[[], list[Item]]
    take_back: Callable[[], None] = lambda: None
    settle: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, events: Sequence[OffsetEvent]) -> PendingCommit:
        """Of *events* whatever happens."""
        return cls(lambda: items_of(events))

    @classmethod
    def holding(cls, check: Callable[[], None]) -> PendingCommit:
        """Of nothing, if *check* holds: it refuses by raising."""

        def decide() -> list[Item]:
            check()
            return []

        return cls(decide)

    def followed_by(self, then: Callable[[], None]) -> PendingCommit:
        """The same, and *then* is called when it was written."""

        def settle() -> None:
            self.settle()
            then()

        return PendingCommit(self.decide, self.take_back, settle)


def check_directory(directory: DataDirectory, *, of: DataDirectory, what: str) -> None:
    """Raises InvalidRequestError when *what*, which uses the directory *of*, is to commit in another one."""
    of.check_usable(f"this {what}")
    if of is not directory:  # a process has one object for each
        raise InvalidRequestError(
            f"this {what} uses {of.path}, and the transaction {directory.path}, where it has nothing to commit; "
            f"begin the transaction with a broker of the {what}'s directory"
        )


def together(commits: Sequence[PendingCommit]) -> PendingCommit:
    """All of *commits* or none: what the first of them decided is taken back when a later one refuses."""
    if len(commits) == 1:
        return commits[0]
    decided: list[PendingCommit] = []

    def decide() -> list[Item]:
        items: list[Item] = []
        try:
            for commit in commits:
                decided.append(commit)
                items += commit.decide()
        except BaseException:
            take_back()
            raise
        return items

    def take_back() -> None:
        for commit in decided:
            commit.take_back()

    def settle() -> None:
        for commit in commits:
            commit.settle()

    return PendingCommit(decide, take_back, settle)


def prepare_commit(
    directory: DataDirectory, membership: Membership, offsets: Mapping[Cursor, int]
) -> PendingCommit:
    """The commit of *offsets*, with the logs synced far enough for it.

    Raises:
        TopicNotFoundError: a topic was deleted.
        StorageFailedError: a log cannot be synced; nothing was committed.
    """
    for cursor, offset in offsets.items():
        cursor.log.sync_below(offset)
    now_ms = directory.clock.now_ms()
    group = membership.group
    since = {cursor.place: cursor.since for cursor in offsets}

    def decide() -> list[Item]:
        membership.check(since)
        for cursor in offsets:  # the group may not have been told yet that a topic was made again
            if directory.topic(cursor.log.topic).topic_id != cursor.log.topic_id:
                raise TopicNotFoundError(cursor.log.topic, partition=cursor.log.partition)
        return items

    def settle() -> None:
        for cursor, offset in offsets.items():
            cursor.note_committed(offset)

    items = [
        item_of(OffsetEvent(group, *cursor.place, offset, "", now_ms)) for cursor, offset in offsets.items()
    ]
    return PendingCommit(decide=decide, settle=settle)


def write_commit(directory: DataDirectory, membership: Membership, offsets: Mapping[Cursor, int]) -> float:
    """Commit *offsets*; they are durable when this returns. How many seconds it took.

    Raises:
        FencedError: the member no longer owns one of the partitions; nothing was committed.
        TopicNotFoundError: a topic was deleted; nothing was committed.
        StorageFailedError: whether they were committed is unknown.
    """
    if not offsets:
        return 0.0
    began = time.monotonic()
    commit = prepare_commit(directory, membership, offsets)
    directory.journal.decide(commit.decide, take_back=commit.take_back)
    commit.settle()
    return time.monotonic() - began
