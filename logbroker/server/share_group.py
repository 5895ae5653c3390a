"""A share group of KIP-932 as a pure state machine: who is in it, and which partitions each member fetches from.

Several members may fetch from one partition, and what they get of it is decided elsewhere (``queues``). So there is
nothing to hand over: a member is at its target with the heartbeat that tells it.

    group epoch     grows when members, subscriptions or subscribed topics change; all are assigned anew at once
    member epoch    the group epoch of the member's last heartbeat

What a heartbeat asks for is in its member epoch:

     0   join, or join again
     n   go on: n is the member's epoch, or the one before (its last reply was lost)
    -1   leave

The assignor spreads the partitions of all topics over the members with equal subscriptions, in the order of their
joining: every partition has at least one member, and every member a partition, if there is one.

Times are milliseconds of the monotonic clock and come in as arguments. A call that raises ``GroupError`` changed
nothing. A ``ShareGroup`` belongs to one thread at a time.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kio.schema.errors import ErrorCode

from .consumer_messages import (
    JOIN_EPOCH,
    LEAVE_EPOCH,
    NO_INTERVAL_MS,
    GroupError,
    HeartbeatReply,
    Partitions,
    Place,
    Places,
    TopicShape,
    by_topic,
)

ASSIGNOR = "simple"
MAX_MEMBERS = 1000
MAX_MEMBER_ID_BYTES = 255


class ShareHeartbeat(NamedTuple):
    """What a member says; ``subscribed_topics`` of ``None`` are those of before."""

    member_id: str
    member_epoch: int
    rack_id: str | None
    subscribed_topics: tuple[str, ...] | None
    client_id: str = ""
    client_host: str = ""


class ShareMemberDescription(NamedTuple):
    """A member as the group sees it now."""

    rack_id: str | None
    member_epoch: int
    client_id: str
    client_host: str
    subscribed_topics: tuple[str, ...]
    assigned: Partitions


@dataclass(slots=True)
class _Member:
    member_id: str
    rack_id: str | None = None
    client_id: str = ""
    client_host: str = ""
    subscribed_topics: tuple[str, ...] = ()
    epoch: int = JOIN_EPOCH
    previous_epoch: int = JOIN_EPOCH
    target: Places = frozenset()
    session_deadline_ms: int = 0


class ShareGroup:
    """Members and what they fetch from; see the module. *generation* is the epoch to start above."""

    def __init__(
        self,
        group_id: str,
        *,
        max_size: int = MAX_MEMBERS,
        session_timeout_ms: int = 45_000,
        heartbeat_interval_ms: int = 5_000,
        generation: int = 0,
    ) -> None:
        self.group_id = group_id
        self.group_epoch = generation
        self._max_size = max_size
        self._session_timeout_ms = session_timeout_ms
        self._heartbeat_interval_ms = heartbeat_interval_ms
        self._members: dict[str, _Member] = {}
        self._seen: Mapping[str, TopicShape] = {}  # all topics, when they were last looked at
        self._wanted: frozenset[str] = frozenset()  # what members subscribe to, whether or not it exists
        self._topics: dict[str, TopicShape] = {}  # those of them that exist
        self._names: dict[uuid.UUID, str] = {}

    # Views

    @property
    def state(self) -> str:
        """Kafka's name: "Empty" or "Stable"."""
        return "Stable" if self._members else "Empty"

    @property
    def is_empty(self) -> bool:
        return not self._members

    @property
    def members(self) -> dict[str, ShareMemberDescription]:
        """All members in the order of their joining, made anew at each call."""
        return {
            member.member_id: ShareMemberDescription(
                rack_id=member.rack_id,
                member_epoch=member.epoch,
                client_id=member.client_id,
                client_host=member.client_host,
                subscribed_topics=member.subscribed_topics,
                assigned=by_topic(member.target, self._names),
            )
            for member in self._members.values()
        }

    def next_deadline_ms(self) -> int | None:
        """When ``advance`` has something to do at the latest."""
        return min((member.session_deadline_ms for member in self._members.values()), default=None)

    # Events

    def check(self, request: ShareHeartbeat) -> None:
        """Whether ``heartbeat`` would take *request* now.

        Raises:
            GroupError: it would not.
        """
        _check_fields(request)
        if request.member_epoch == JOIN_EPOCH:
            self._joining(request)
        elif request.member_epoch == LEAVE_EPOCH:
            self._addressed(request)
        else:
            self._going_on(request)

    def heartbeat(
        self, request: ShareHeartbeat, topics: Mapping[str, TopicShape], now_ms: int
    ) -> HeartbeatReply:
        """One step of one member; *topics* are all that exist, another mapping whenever they changed.

        Raises:
            GroupError: it is refused.
        """
        _check_fields(request)
        if request.member_epoch == LEAVE_EPOCH:
            member = self._addressed(request)
            self._remove([member])
            return HeartbeatReply(request.member_id, LEAVE_EPOCH, NO_INTERVAL_MS, None)
        member = self._joining(request) if request.member_epoch == JOIN_EPOCH else self._going_on(request)
        is_new = member.member_id not in self._members
        self._members[member.member_id] = member
        if self._told(member, request) or is_new or self._has_changed(topics):
            self.group_epoch += 1
            self._assign(topics)
        if member.epoch != self.group_epoch:
            member.previous_epoch, member.epoch = member.epoch, self.group_epoch
        member.session_deadline_ms = now_ms + self._session_timeout_ms
        is_full = request.member_epoch == JOIN_EPOCH or request.subscribed_topics is not None
        is_behind = request.member_epoch != member.epoch
        assignment = by_topic(member.target, self._names) if is_full or is_behind else None
        return HeartbeatReply(member.member_id, member.epoch, self._heartbeat_interval_ms, assignment)

    def advance(self, now_ms: int) -> list[str]:
        """Remove the members whose time is over; who that was."""
        late = [member for member in self._members.values() if member.session_deadline_ms <= now_ms]
        self._remove(late)
        return [member.member_id for member in late]

    # Its parts

    def _joining(self, request: ShareHeartbeat) -> _Member:
        known = self._members.get(request.member_id)
        if known is not None:
            return known  # its reply was lost, or it has forgotten itself
        if len(self._members) >= self._max_size:
            raise GroupError(
                ErrorCode.group_max_size_reached,
                f"Group {self.group_id} has {self._max_size} members, which is the most.",
            )
        return _Member(request.member_id)

    def _going_on(self, request: ShareHeartbeat) -> _Member:
        member = self._addressed(request)
        if request.member_epoch not in (member.epoch, member.previous_epoch):
            raise GroupError(
                ErrorCode.fenced_member_epoch,
                f"Member {member.member_id} is at epoch {member.epoch}, not {request.member_epoch}; join again.",
            )
        return member

    def _addressed(self, request: ShareHeartbeat) -> _Member:
        member = self._members.get(request.member_id)
        if member is None:
            raise GroupError(
                ErrorCode.unknown_member_id,
                f"Group {self.group_id} has no member {request.member_id}; join again.",
            )
        return member

    def _told(self, member: _Member, request: ShareHeartbeat) -> bool:
        """Note what the member says of itself; whether its subscription changed."""
        before = member.subscribed_topics
        member.client_id, member.client_host = request.client_id, request.client_host
        if request.rack_id is not None:
            member.rack_id = request.rack_id
        if request.subscribed_topics is not None:
            member.subscribed_topics = tuple(sorted(set(request.subscribed_topics)))
        return member.subscribed_topics != before

    def _has_changed(self, topics: Mapping[str, TopicShape]) -> bool:
        """Whether the subscribed topics are not those that were assigned."""
        if topics is self._seen:
            return False
        self._seen = topics
        return any(topics.get(topic) != self._topics.get(topic) for topic in self._wanted)

    def _remove(self, gone: Iterable[_Member]) -> None:
        gone = list(gone)
        for member in gone:
            del self._members[member.member_id]
        if gone:
            self.group_epoch += 1
            self._assign(self._seen)

    def _assign(self, topics: Mapping[str, TopicShape]) -> None:
        self._seen = topics
        self._wanted = frozenset().union(*(member.subscribed_topics for member in self._members.values()))
        self._topics = {topic: topics[topic] for topic in self._wanted if topic in topics}
        self._names = {shape.topic_id: topic for topic, shape in self._topics.items()}
        targets = assign(
            {member.member_id: member.subscribed_topics for member in self._members.values()}, self._topics
        )
        for member in self._members.values():
            member.target = targets[member.member_id]


def assign(subscriptions: Mapping[str, Sequence[str]], topics: Mapping[str, TopicShape]) -> dict[str, Places]:
    """The partitions of each member; *subscriptions* are the topics by member, in the order of joining."""
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for member_id, wanted in subscriptions.items():
        alike[tuple(wanted)].append(member_id)
    targets: dict[str, set[Place]] = {member_id: set() for member_id in subscriptions}
    for wanted, members in alike.items():
        places = [
            (topics[topic].topic_id, number)
            for topic in wanted
            if topic in topics
            for number in range(topics[topic].partitions)
        ]
        for turn in range(max(len(places), len(members)) if places else 0):
            targets[members[turn % len(members)]].add(places[turn % len(places)])
    return {member_id: frozenset(places) for member_id, places in targets.items()}


def check_member_id(member_id: str | None) -> str:
    """*member_id*, if a member of a share group can be called so.

    Raises:
        GroupError: it cannot.
    """
    if not member_id or not member_id.isprintable() or len(member_id.encode()) > MAX_MEMBER_ID_BYTES:
        raise GroupError(
            ErrorCode.invalid_request,
            f"A member id has 1 to {MAX_MEMBER_ID_BYTES} bytes of printable text; the client makes it.",
        )
    return member_id


def _check_fields(request: ShareHeartbeat) -> None:
    check_member_id(request.member_id)
    if request.member_epoch < LEAVE_EPOCH:
        raise GroupError(ErrorCode.invalid_request, "There is no member epoch below -1.")
    if request.rack_id == "":
        raise GroupError(ErrorCode.invalid_request, "The rack id is empty; leave it out.")
    if request.member_epoch == JOIN_EPOCH and not request.subscribed_topics:
        raise GroupError(ErrorCode.invalid_request, "A member that joins has to subscribe to topics.")
