"""The partitions that a consumer reads now, and how it follows the topics and its group.

    what changed                                     what follows
    a topic or its configuration                     new limits; drop what is of a topic that is gone, or was
                                                     made again; alone: partitions come and go
    the group gave us a partition                    open a cursor where the group got to, or at start=
    the group took one (too late, or its topic went) drop it; what was handed out of it is "lost"
    the group wants one for another member           read it no more; release it as soon as nothing that was
                                                     handed out of it waits for its commit
    the group removed us                             drop everything, join again

Nothing here is locked: the consumer's lock guards all of it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError, TopicNotFoundError
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import Record

from .arrivals import Arrivals
from .commits import write_commit
from .cursor import Cursor, Handout, Origin
from .group_coordinator import Holder
from .groups import Slot, TopicPartition
from .membership import Membership, join_group
from .rotation import Rotation
from .start import Start, StartPolicy
from .topic_selection import TopicSelection

logger = logging.getLogger("logbroker.consumer")


def place_name(place: TopicPartition) -> str:
    """A partition as logs and messages name it."""
    return f"{place[0]}-{place[1]}"


class AssignedPartitions:
    """The cursors of one consumer. ``handout`` is what its iteration is handing out."""

    def __init__(
        self,
        directory: DataDirectory,
        selection: TopicSelection,
        *,
        start: Start,
        isolation: Isolation,
        arrivals: Arrivals,
        commits_later: bool,
        group: str | None,
        session_timeout_ms: int,
        holder: Holder,
        matches: Callable[[Record], bool] | None,
    ) -> None:
        """*commits_later*: what is handed out is committed afterwards, not before (at-most-once)."""
        self.cursors: dict[TopicPartition, Cursor] = {}
        self.rotation = Rotation()
        self.handout: Handout | None = None
        self.lost: set[TopicPartition] = set()  # moved away before what was handed out was committed
        self.membership: Membership | None = None
        self._directory = directory
        self._selection = selection
        self._arrivals = arrivals
        self._commits_later = commits_later
        self._session_timeout_ms = session_timeout_ms
        self._holder = weakref.ref(holder)  # it holds us: a cycle would keep a dropped consumer alive
        self._followed: object = None  # the group's assignment that the cursors follow
        self._topics_version = -1
        self._keeps_ttl_headers = False
        self._missing: TopicNotFoundError | None = None  # a subscribed name that does not exist now
        self._isolation = isolation
        self._matches = matches
        self._start = StartPolicy(start, self._existing(), isolation)
        if group is not None:
            self.membership = self._join(group)

    # Positions ------------------------------------------------------------------------------------

    def settle_handout(self) -> None:
        """What an iteration has not handed out goes back to its cursor."""
        handout, self.handout = self.handout, None
        if handout is not None:
            handout.cut()

    def handed_out_position(self, cursor: Cursor) -> int:
        """The offset behind the last record that the user was given."""
        handout = self.handout
        return handout.position if handout is not None and handout.cursor is cursor else cursor.position

    def done_position(self, cursor: Cursor) -> int:
        """The offset behind the last record that the user has asked on from."""
        handout = self.handout
        return handout.done if handout is not None and handout.cursor is cursor else cursor.done

    def uncommitted(self) -> dict[Cursor, int]:
        """The offset to commit for each partition that moved."""
        return {
            cursor: self.handed_out_position(cursor)
            for cursor in self.cursors.values()
            if cursor.moved and self.handed_out_position(cursor) != cursor.committed
        }

    def keep_ttl_headers(self) -> None:
        """See ``Consumer.keep_ttl_headers``."""
        self._keeps_ttl_headers = True
        for cursor in self.cursors.values():
            cursor.keeps_ttl_headers = True

    def owes_a_commit(self) -> bool:
        """Whether this is a member of the group that holds records it did not commit."""
        is_member = self.membership is not None and self.membership.owned() is not None
        return is_member and any(map(self._awaits_commit, self.cursors.values()))

    def _awaits_commit(self, cursor: Cursor) -> bool:
        return (
            self._commits_later and cursor.handed_out and self.handed_out_position(cursor) != cursor.committed
        )

    @property
    def any_leaving(self) -> bool:
        return len(self.rotation.cursors) < len(self.cursors)

    # Following ------------------------------------------------------------------------------------

    def follow(self, *, anew: bool = False) -> None:
        """Bring the cursors in line with the topics and the group; *anew*: whatever was seen before.

        Raises:
            TopicNotFoundError: a topic that was subscribed by name does not exist now.
        """
        if anew:
            self._topics_version = -1
        self._follow_topics()
        if self.membership is not None:
            self._follow_group(self.membership)
            self.release_idle()

    def _existing(self) -> dict[TopicPartition, int]:
        """Every partition that is subscribed to; a consumer alone owns them all since generation 0."""
        return {
            (topic, partition): 0
            for topic in self._selection.resolve(self._directory.topics())
            for partition in range(self._directory.topic(topic).partitions)
        }

    def _follow_topics(self) -> None:
        version = self._directory.topics_version()
        if version != self._topics_version:
            self._topics_version = version
            self._followed = None  # the group may not have been told yet that a topic is gone, or made again
            self._directory.open_logs()  # brings changed configurations to the cursors' logs
            try:
                self._selection.check_names(self._directory.topics())
                self._missing = None
            except TopicNotFoundError as error:
                self._missing = error
            if self.membership is None:
                self._reconcile(self._existing())
                self.rotation.follow(self.cursors.values())
        if self._missing is not None:
            raise self._missing

    def _join(self, group: str) -> Membership:
        holder = self._holder()
        assert holder is not None
        return join_group(
            self._directory,
            group,
            self._selection,
            session_timeout_ms=self._session_timeout_ms,
            holder=holder,
        )

    def _follow_group(self, membership: Membership) -> None:
        owned = membership.owned()
        if owned is None:
            membership, owned = self._join_again(membership)
        if owned is not self._followed:
            self._reconcile({place: slot.since for place, slot in owned.items()})
            for place, cursor in self.cursors.items():
                cursor.leaving = owned[place].target != membership.member_id
            self.rotation.follow(self.cursors.values())
            self._followed = owned

    def _join_again(self, membership: Membership) -> tuple[Membership, dict[TopicPartition, Slot]]:
        logger.warning("%s was removed from group %r; it joins again", membership.member_id, membership.group)
        self._reconcile({})
        self.membership = self._join(membership.group)
        membership.leave()
        return self.membership, self.membership.owned() or {}

    def release_idle(self) -> None:
        """Let go of partitions that are to move and of which nothing handed out awaits its commit."""
        membership = self.membership
        if membership is None or not self.any_leaving:
            return
        busy = self.handout.cursor if self.handout is not None else None
        idle = [
            place
            for place, cursor in self.cursors.items()
            if cursor.leaving and cursor is not busy and not self._awaits_commit(cursor)
        ]
        if idle:
            membership.release(idle)
            self._follow_group(membership)

    # Opening and dropping -------------------------------------------------------------------------

    def _reconcile(self, owned: Mapping[TopicPartition, int]) -> None:
        """Drop the cursors of partitions that are not owned any more, open those of new ones."""
        lost = [cursor for cursor in self.cursors.values() if not self._is_current(cursor, owned)]
        for cursor in lost:
            self._drop(cursor)
        gained = [place for place in owned if place not in self.cursors]
        for place in gained:
            self._open(place, owned[place])
        membership = self.membership
        if membership is not None and (lost or gained):
            changes = [f"-{place_name(c.place)}" for c in lost] + [f"+{place_name(p)}" for p in gained]
            logger.info("%s in group %r: %s", membership.member_id, membership.group, ", ".join(changes))
            self._keep_starts(membership, gained)

    def _is_current(self, cursor: Cursor, owned: Mapping[TopicPartition, int]) -> bool:
        if owned.get(cursor.place) != cursor.since:
            return False
        try:
            return self._directory.topic(cursor.place[0]).topic_id == cursor.log.topic_id
        except TopicNotFoundError:
            return False

    def _drop(self, cursor: Cursor) -> None:
        if self.membership is not None and self._awaits_commit(cursor):
            self.lost.add(cursor.place)
            logger.warning(
                "%s is no longer this member's, and what it handed out of it was not committed: offsets %s "
                "to %d are delivered again",
                place_name(cursor.place),
                cursor.committed if cursor.committed is not None else "the start",
                self.handed_out_position(cursor) - 1,
            )
        if self.handout is not None and self.handout.cursor is cursor:
            self.settle_handout()
        del self.cursors[cursor.place]
        cursor.close()
        self._arrivals.unwatch(cursor)

    def _open(self, place: TopicPartition, since: int) -> None:
        membership = self.membership
        try:
            log = self._directory.log(*place)
            event = (
                self._directory.groups.committed(membership.group, *place) if membership is not None else None
            )
            cursor = Cursor(
                log,
                since=since,
                position=event.offset if event is not None else self._start.offset(log),
                origin=Origin.START if event is None else Origin.COMMITTED,
                committed=None if event is None else event.offset,
                isolation=self._isolation,
                restart=self._start.offset,
                now_ms=self._directory.clock.now_ms,
                matches=self._matches,
            )
        except TopicNotFoundError:
            return  # deleted a moment ago: the group will be told
        cursor.keeps_ttl_headers = self._keeps_ttl_headers
        self.cursors[place] = cursor
        self._arrivals.watch(cursor)

    def _keep_starts(self, membership: Membership, gained: Iterable[TopicPartition]) -> None:
        """Commit where a group starts when that is not the log's start.

        Else a member that takes the partition over before the first commit would start at another
        "latest", and skip what came in between.
        """
        if self._start.is_log_start:
            return
        cursors = [self.cursors[place] for place in gained if place in self.cursors]
        fresh = {cursor: cursor.position for cursor in cursors if cursor.committed is None}
        try:
            write_commit(self._directory, membership, fresh)
        except (FencedError, TopicNotFoundError) as error:
            logger.info("the start of group %r is left to another member: %s", membership.group, error)

    def close(self) -> None:
        """Close the cursors and leave the group."""
        self.settle_handout()
        for cursor in self.cursors.values():
            cursor.close()
        if self.membership is not None:
            self.membership.leave()
