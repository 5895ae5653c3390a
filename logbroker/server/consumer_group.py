"""A consumer group of the KIP-848 protocol as a pure state machine: the server assigns, members follow.

The client only heartbeats. Three epochs say how far everybody is:

    group epoch        grows when members, subscriptions, assignors or subscribed topics change
    assignment epoch   the group epoch that the target assignment was computed for, at the next heartbeat
    member epoch       the assignment epoch that the member has arrived at

What a heartbeat asks for is in its member epoch:

     0   join, or join again: what the member had is free; a static member takes over what its instance left
         behind
     n   go on: n is the member's epoch, or the one before with nothing owned that is not assigned (its
         last reply was lost)
    -1   leave
    -2   leave for a while (static members): partitions stay reserved until the session times out

Each member walks to its target on its own, one step a heartbeat, and nobody waits for the slowest:

    state                   step                                            goes on to
    STABLE                  is at the assignment epoch: nothing to do       STABLE
    STABLE                  is behind                                       see below
    UNREVOKED_PARTITIONS    still owns what it is to give up: wait          UNREVOKED_PARTITIONS
    UNREVOKED_PARTITIONS    owns nothing of it any more: it is free         see below
    UNRELEASED_PARTITIONS   look again for what others had                  see below

    below: partitions to give up, and they are still owned                  UNREVOKED_PARTITIONS, same epoch
    below: some of the target still belongs to somebody                     UNRELEASED_PARTITIONS, new epoch
    below: otherwise                                                        STABLE, new epoch

A partition is in the hands of the member that it is assigned to or being revoked from. It is handed out
only when it is in nobody's. A member that does not give up in its rebalance timeout, or does not heartbeat
in the session timeout, is removed.

Members of the classic protocol walk the same way, one step a JoinGroup (``classic_members``). They have clocks
of their own beside the session: one for joining again when they were told to, and one for asking what they
are assigned when they joined.

Topics are kept by id, so a topic that was made again under its name is another topic. Names at the seam
are those of the topics that were passed last; partitions of topics that are gone are not shown.

Times are milliseconds of the monotonic clock and come in as arguments. A call that raises ``GroupError``
changed nothing. A ``ConsumerGroup`` belongs to one thread at a time.

Invariants: a partition is in at most one member's hands; epochs of the group only grow; the assignment
epoch is never above the group epoch; a member in UNREVOKED_PARTITIONS has a rebalance deadline.

Unlike Kafka, expressions are resolved in the heartbeat that brings them; the previous epoch of a member
stays valid until its epoch changes again, so that a retry may be lost too; and a member that was fenced may join
again at once, where Kafka refuses it until its session has timed out.

Sources: KIP-848, and the behaviour of Apache Kafka 4's group coordinator.
"""

from __future__ import annotations

import enum
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from kio.schema.errors import ErrorCode

from ..groups import TopicPartition
from .classic_group import MAX_GROUP_SIZE
from .consumer_messages import (
    JOIN_EPOCH,
    LEAVE_EPOCH,
    LEAVE_FOR_A_WHILE_EPOCH,
    NO_INTERVAL_MS,
    UNCHANGED_TIMEOUT_MS,
    GroupError,
    HeartbeatReply,
    HeartbeatRequest,
    MemberDescription,
    Partitions,
    Place,
    Places,
    TopicShape,
    by_topic,
    check_fields,
)
from .expressions import ExpressionError, compile_expression
from .group_assignors import ASSIGNORS, AssignorInput, Subscriber


def compiled_expression(expression: str) -> re.Pattern[str] | None:
    """The pattern that whole topic names are matched with; ``None`` for the empty expression."""
    try:
        return compile_expression(expression) if expression else None
    except ExpressionError as error:
        raise GroupError(ErrorCode.invalid_regular_expression, str(error)) from error


# Members --------------------------------------------------------------------------------------------------

NOTHING: Places = frozenset()


class MemberState(enum.Enum):
    """How far a member is on the way to its target."""

    STABLE = enum.auto()
    UNREVOKED_PARTITIONS = enum.auto()
    UNRELEASED_PARTITIONS = enum.auto()


@dataclass(slots=True)
class ClassicClocks:
    """What only a member of the classic protocol has: the protocol that it was told, and its own clocks."""

    protocol_name: str
    session_timeout_ms: int
    join_deadline_ms: int | None = None  # it was told to join again
    sync_deadline_ms: int | None = None  # it joined, and does not know yet what it is assigned


@dataclass(slots=True)
class GroupMember:
    """A member as the group keeps it; nobody else but ``classic_members`` looks at it, or makes one."""

    member_id: str
    instance_id: str | None = None
    rack_id: str | None = None
    client_id: str = ""
    client_host: str = ""
    rebalance_timeout_ms: int = 0
    subscribed_topics: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    assignor: str | None = None
    topics: frozenset[str] = frozenset()  # the existing ones it subscribes to

    state: MemberState = MemberState.STABLE
    epoch: int = JOIN_EPOCH
    previous_epoch: int = JOIN_EPOCH
    assigned: Places = NOTHING
    revoking: Places = NOTHING
    target: Places = NOTHING
    session_deadline_ms: int = 0
    rebalance_deadline_ms: int | None = None
    classic: ClassicClocks | None = None

    @property
    def in_hands(self) -> Places:
        return self.assigned | self.revoking

    @property
    def subscribed_regex(self) -> str:
        return "" if self.pattern is None else self.pattern.pattern

    def subscription(self) -> tuple[object, ...]:
        """What the target assignment depends on."""
        return self.subscribed_topics, self.subscribed_regex, self.assignor

    def deadlines_ms(self) -> Iterator[int]:
        deadlines_ms = [self.session_deadline_ms, self.rebalance_deadline_ms]
        if self.classic is not None:
            deadlines_ms += [self.classic.join_deadline_ms, self.classic.sync_deadline_ms]
        return (deadline_ms for deadline_ms in deadlines_ms if deadline_ms is not None)


# The group ------------------------------------------------------------------------------------------------


class ConsumerGroup:
    """Members, what they are to have and what they have; see the module for how it moves.

    *generation* is the epoch to start above, for a group that was used with the classic protocol before.
    ``state`` is never "Dead" here: that is what a coordinator says of a group that it does not have.
    ``reserved_ids``: those handed out to members of the classic protocol to join with, and until when.
    """

    def __init__(
        self,
        group_id: str,
        *,
        max_size: int = MAX_GROUP_SIZE,
        session_timeout_ms: int = 45_000,
        heartbeat_interval_ms: int = 5_000,
        new_member_id: Callable[[], str],
        generation: int = 0,
    ) -> None:
        self.group_id = group_id
        self.group_epoch = generation
        self.assignment_epoch = generation
        self.reserved_ids: dict[str, int] = {}
        self._max_size = max_size
        self._session_timeout_ms = session_timeout_ms
        self._heartbeat_interval_ms = heartbeat_interval_ms
        self._new_member_id = new_member_id
        self._members: dict[str, GroupMember] = {}
        self._instances: dict[str, GroupMember] = {}
        self._in_hands_of: dict[Place, str] = {}
        self._topics: dict[str, TopicShape] = {}
        self._names: dict[uuid.UUID, str] = {}
        self._subscribed: dict[str, TopicShape] = {}

    # Views

    @property
    def state(self) -> str:
        """Kafka's name: "Empty", "Assigning", "Reconciling" or "Stable"."""
        if not self._members:
            return "Empty"
        if self.group_epoch > self.assignment_epoch:
            return "Assigning"
        arrived = all(
            member.state is MemberState.STABLE and member.epoch == self.assignment_epoch
            for member in self._members.values()
        )
        return "Stable" if arrived else "Reconciling"

    @property
    def assignor_name(self) -> str:
        """The assignor that most members prefer; among equals the first of ``ASSIGNORS``."""
        votes = Counter(member.assignor for member in self._members.values() if member.assignor)
        return max(ASSIGNORS, key=lambda name: votes[name])

    @property
    def is_empty(self) -> bool:
        return not self._members

    @property
    def members(self) -> dict[str, MemberDescription]:
        """All members in the order of their joining, made anew at each call."""
        return {member_id: self._described(member) for member_id, member in self._members.items()}

    @property
    def has_room(self) -> bool:
        return len(self._members) < self._max_size

    def member(self, member_id: str) -> GroupMember | None:
        return self._members.get(member_id)

    def member_of_instance(self, instance_id: str) -> GroupMember | None:
        return self._instances.get(instance_id)

    def is_classic(self, member_id: str) -> bool:
        """Whether this is a member, and speaks the classic protocol."""
        member = self._members.get(member_id)
        return member is not None and member.classic is not None

    def can_go_on(self, member: GroupMember) -> bool:
        """Whether its next step would bring *member* further, or would if it gave up what it has to."""
        if member.epoch < self.group_epoch:  # as is everybody who has something to give up
            return True
        # One part after another would stop a member that stops for each step again and again.
        missing = member.target - member.assigned
        return bool(missing) and missing == self._free_for(member, missing)

    def subscribed_topics(self, topics: Mapping[str, TopicShape]) -> frozenset[str]:
        """Those of *topics* that some member subscribes to."""
        return frozenset().union(*_subscriptions(self._members.values(), topics))

    def check_commit(self, member_id: str, member_epoch: int) -> ErrorCode:
        """Whether a member at this epoch may commit; without an id only while there are no members."""
        if not member_id and member_epoch < 0 and not self._members:
            return ErrorCode.none
        member = self._members.get(member_id)
        if member is None:
            return ErrorCode.unknown_member_id
        if member_epoch < 0 or member.epoch != member_epoch:
            return ErrorCode.stale_member_epoch if member.classic is None else ErrorCode.illegal_generation
        return ErrorCode.none

    def next_deadline_ms(self) -> int | None:
        """When ``advance`` has something to do at the latest."""
        deadlines = (deadline for member in self._members.values() for deadline in member.deadlines_ms())
        return min(chain(deadlines, self.reserved_ids.values()), default=None)

    def _described(self, member: GroupMember) -> MemberDescription:
        return MemberDescription(
            instance_id=member.instance_id,
            rack_id=member.rack_id,
            member_epoch=member.epoch,
            client_id=member.client_id,
            client_host=member.client_host,
            subscribed_topics=member.subscribed_topics,
            subscribed_regex=member.subscribed_regex,
            assignor=member.assignor,
            assigned=self.named(member.assigned),
            target=self.named(member.target),
        )

    # Events

    def heartbeat(
        self,
        request: HeartbeatRequest,
        topics: Mapping[str, TopicShape],
        now_ms: int,
        *,
        classic: ClassicClocks | None = None,
    ) -> HeartbeatReply:
        """One step of one member; *topics* are all that exist. ``GroupError`` when it is refused.

        *classic* are the clocks from now on of a member whose join of the classic protocol this stands for.
        """
        check_fields(request)
        if request.leaves:
            return self._leave(request)
        pattern = compiled_expression(request.subscribed_regex or "")
        owned = _owned(request, topics)
        member = self._joining(request, owned) if request.joins else self._going_on(request, owned)
        is_new = member.member_id not in self._members
        self._members[member.member_id] = member
        before = member.assigned
        changed = self._told(member, request, pattern) or is_new
        if self._saw(topics, resubscribe=changed) or changed:
            self.group_epoch += 1
        if self.group_epoch > self.assignment_epoch:
            self._assign()
        self._reconcile(member, owned, now_ms)
        member.classic = classic
        self.renew_session(member, now_ms)
        return HeartbeatReply(
            member_id=member.member_id,
            member_epoch=member.epoch,
            heartbeat_interval_ms=self._heartbeat_interval_ms,
            assignment=(
                self.named(member.assigned) if request.is_full() or member.assigned != before else None
            ),
        )

    def advance(self, topics: Mapping[str, TopicShape], now_ms: int) -> None:
        """Remove the members whose time is over, and take note of *topics*, all that exist."""
        self.remove(
            [member for member in self._members.values() if any(at <= now_ms for at in member.deadlines_ms())]
        )
        self.reserved_ids = {
            member_id: until_ms for member_id, until_ms in self.reserved_ids.items() if until_ms > now_ms
        }
        self.notice(topics)

    def notice(self, topics: Mapping[str, TopicShape]) -> None:
        """Take note of *topics*, all that exist."""
        if self._saw(topics):
            self.group_epoch += 1

    def renew_session(self, member: GroupMember, now_ms: int) -> None:
        own = member.classic
        timeout_ms = self._session_timeout_ms if own is None else own.session_timeout_ms
        member.session_deadline_ms = now_ms + timeout_ms

    def adopt(self, members: Iterable[GroupMember], topics: Mapping[str, TopicShape]) -> None:
        """Take in members that are new here, at the group's epoch. What they are assigned is their target."""
        for member in members:
            places, member.assigned = member.assigned, NOTHING
            self._take_in_hand(member, places)
            member.assigned = member.target = places
            member.epoch = member.previous_epoch = self.group_epoch
            self._members[member.member_id] = member
            if member.instance_id is not None:
                self._instances[member.instance_id] = member
        self._saw(topics, resubscribe=True)

    # Who is speaking

    def _joining(self, request: HeartbeatRequest, owned: Places | None) -> GroupMember:
        """The member that joins: a new one, or one that is here because its reply was lost or it is static."""
        former = None if request.instance_id is None else self._instances.get(request.instance_id)
        if former is not None and former.epoch == LEAVE_FOR_A_WHILE_EPOCH:
            return self._taken_over(former, request.member_id)
        if former is not None and former.member_id != request.member_id:
            # Static members of the classic protocol do not say when they leave.
            if former.classic is not None:
                return self._taken_over(former, request.member_id)
            raise GroupError(
                ErrorCode.unreleased_instance_id,
                f"Instance {request.instance_id} belongs to member {former.member_id}, which has not left.",
            )
        member = self._members.get(request.member_id)
        if member is not None:
            if member.classic is not None or _is_at(member, request, owned):
                _check_epoch(member, request, owned)
                return member
            # It has given up what it had, as it was told to when it was fenced.
            self.remove([member])
        if not self.has_room:
            raise GroupError(
                ErrorCode.group_max_size_reached, f"Group {self.group_id} has {self._max_size} members."
            )
        return GroupMember(request.member_id or self._new_member_id())

    def _taken_over(self, former: GroupMember, member_id: str) -> GroupMember:
        """*former*, which left for a while, under its new id, at the same place among the members."""
        if member_id in self._members and member_id != former.member_id:
            raise GroupError(ErrorCode.invalid_request, f"Member id {member_id} is in use.")
        member = replace(
            former,
            member_id=member_id or self._new_member_id(),
            epoch=JOIN_EPOCH,
            previous_epoch=JOIN_EPOCH,
        )
        everyone = [member if each is former else each for each in self._members.values()]
        self._members = {each.member_id: each for each in everyone}
        self._in_hands_of.update(dict.fromkeys(member.in_hands, member.member_id))
        if member.instance_id is not None:
            self._instances[member.instance_id] = member
        return member

    def _going_on(self, request: HeartbeatRequest, owned: Places | None) -> GroupMember:
        member = self._addressed(request)
        _check_epoch(member, request, owned)
        return member

    def _addressed(self, request: HeartbeatRequest) -> GroupMember:
        if request.instance_id is None:
            member = self._members.get(request.member_id)
        else:
            member = self._instances.get(request.instance_id)
        if member is None:
            who = request.member_id if request.instance_id is None else f"of instance {request.instance_id}"
            raise GroupError(
                ErrorCode.unknown_member_id, f"Group {self.group_id} has no member {who}; join again."
            )
        if member.member_id != request.member_id:
            raise GroupError(
                ErrorCode.fenced_instance_id,
                f"Instance {request.instance_id} is now member {member.member_id}.",
            )
        return member

    # What changed

    def _told(self, member: GroupMember, request: HeartbeatRequest, pattern: re.Pattern[str] | None) -> bool:
        """Note what the member says of itself; whether its subscription or assignor changed."""
        before = member.subscription()
        member.client_id, member.client_host = request.client_id, request.client_host
        if request.instance_id is not None:
            self._instances.pop(member.instance_id or "", None)
            self._instances[request.instance_id] = member
            member.instance_id = request.instance_id
        if request.rack_id is not None:
            member.rack_id = request.rack_id
        if request.rebalance_timeout_ms != UNCHANGED_TIMEOUT_MS:
            member.rebalance_timeout_ms = request.rebalance_timeout_ms
        if request.subscribed_topics is not None:
            member.subscribed_topics = tuple(sorted(set(request.subscribed_topics)))
        if request.subscribed_regex is not None:
            member.pattern = pattern
        if request.assignor is not None:
            member.assignor = request.assignor
        return member.subscription() != before

    def _saw(self, topics: Mapping[str, TopicShape], *, resubscribe: bool = False) -> bool:
        """Note the existing topics; whether those that members subscribe to changed."""
        if topics == self._topics and not resubscribe:
            return False
        self._topics = dict(topics)
        self._names = {shape.topic_id: topic for topic, shape in topics.items()}
        before = self._subscribed
        self._resubscribe()
        return self._subscribed != before

    def _resubscribe(self) -> None:
        everyone = self._members.values()
        for member, wanted in zip(everyone, _subscriptions(everyone, self._topics), strict=True):
            member.topics = wanted
        subscribed = frozenset().union(*(member.topics for member in everyone))
        self._subscribed = {topic: self._topics[topic] for topic in sorted(subscribed)}

    def _leave(self, request: HeartbeatRequest) -> HeartbeatReply:
        member = self._addressed(request)
        if request.member_epoch == LEAVE_EPOCH:
            self.remove([member])
        else:
            self._move(member, MemberState.STABLE, LEAVE_FOR_A_WHILE_EPOCH, assigned=member.assigned)
        return HeartbeatReply(request.member_id, request.member_epoch, NO_INTERVAL_MS, None)

    def remove(self, gone: Sequence[GroupMember]) -> None:
        """Whatever they had in hands is free."""
        if not gone:
            return
        for member in gone:
            self._take_in_hand(member, NOTHING)
            del self._members[member.member_id]
            if member.instance_id is not None:
                del self._instances[member.instance_id]
        self._resubscribe()
        self.group_epoch += 1

    def _assign(self) -> None:
        """Ask the assignor that most members prefer what everybody should have."""
        owners = ASSIGNORS[self.assignor_name](
            AssignorInput(
                subscribers=[
                    Subscriber(member.member_id, member.instance_id, member.topics)
                    for member in self._members.values()
                ],
                topics={topic: shape.partitions for topic, shape in self._subscribed.items()},
                held=self._held(),
            )
        )
        targets = defaultdict(list)
        for (topic, number), member_id in owners.items():
            targets[member_id].append((self._subscribed[topic].topic_id, number))
        for member_id, member in self._members.items():
            member.target = frozenset(targets[member_id])
        self.assignment_epoch = self.group_epoch

    def _held(self) -> dict[TopicPartition, tuple[str, ...]]:
        """For each partition who was to have it, then who has it: those it should stay with if it can."""
        everyone = self._members.values()
        targets = ((member.member_id, member.target) for member in everyone)
        in_hands = ((member.member_id, member.in_hands) for member in everyone)
        held: defaultdict[TopicPartition, tuple[str, ...]] = defaultdict(tuple)
        for member_id, places in chain(targets, in_hands):
            for topic_id, number in places:
                if topic_id in self._names:
                    held[self._names[topic_id], number] += (member_id,)
        return dict(held)

    # The way to the target

    def _reconcile(self, member: GroupMember, owned: Places | None, now_ms: int) -> None:
        """One step, as in the table above. *owned* is ``None`` when the member did not say."""
        if member.state is MemberState.STABLE and member.epoch == self.assignment_epoch:
            return
        if member.state is MemberState.UNREVOKED_PARTITIONS and _still_owns(owned, member.revoking):
            self._revoke_unsubscribed(member, now_ms)
            return
        kept = member.assigned & member.target
        revoking = member.assigned - member.target
        if revoking and _still_owns(owned, revoking):
            self._revoke(member, kept, revoking, now_ms)
            return
        missing = member.target - kept
        free = self._free_for(member, missing)
        state = MemberState.STABLE if free == missing else MemberState.UNRELEASED_PARTITIONS
        self._move(member, state, self.assignment_epoch, assigned=kept | free)

    def _free_for(self, member: GroupMember, places: Places) -> Places:
        """Those in nobody else's hands: what the member was revoking is its own again at once."""
        in_hands_of, mine = self._in_hands_of, member.member_id
        return frozenset(place for place in places if in_hands_of.get(place, mine) == mine)

    def _revoke_unsubscribed(self, member: GroupMember, now_ms: int) -> None:
        """A member on its way does not get to keep topics that it ceased to subscribe to meanwhile."""
        wanted = {self._topics[topic].topic_id for topic in member.topics}
        kept = frozenset(place for place in member.assigned if place[0] in wanted)
        if kept != member.assigned:
            self._revoke(member, kept, member.in_hands - kept, now_ms)

    def _revoke(self, member: GroupMember, kept: Places, revoking: Places, now_ms: int) -> None:
        self._move(member, MemberState.UNREVOKED_PARTITIONS, member.epoch, assigned=kept, revoking=revoking)
        member.rebalance_deadline_ms = now_ms + member.rebalance_timeout_ms

    def _move(
        self,
        member: GroupMember,
        state: MemberState,
        epoch: int,
        *,
        assigned: Places,
        revoking: Places = NOTHING,
    ) -> None:
        self._take_in_hand(member, assigned | revoking)
        if epoch != member.epoch:
            member.epoch, member.previous_epoch = epoch, member.epoch
        member.state, member.assigned, member.revoking = state, assigned, revoking
        member.rebalance_deadline_ms = None

    def _take_in_hand(self, member: GroupMember, places: Places) -> None:
        """*places* instead of what the member has in hands so far."""
        for place in member.in_hands - places:
            del self._in_hands_of[place]
        for place in places:
            holder = self._in_hands_of.setdefault(place, member.member_id)
            assert holder == member.member_id

    def named(self, places: Places) -> Partitions:
        return by_topic(places, self._names)


def _owned(request: HeartbeatRequest, topics: Mapping[str, TopicShape]) -> Places | None:
    """What the member says it owns; nobody can own partitions of a topic that is gone."""
    if request.owned is None:
        return None
    return frozenset(
        (topics[topic].topic_id, number)
        for topic, numbers in request.owned.items()
        if topic in topics
        for number in numbers
    )


def _check_epoch(member: GroupMember, request: HeartbeatRequest, owned: Places | None) -> None:
    if not _is_at(member, request, owned):
        raise GroupError(
            ErrorCode.fenced_member_epoch,
            f"Member {member.member_id} is at epoch {member.epoch}, not {request.member_epoch}; "
            "give up all partitions and join again.",
        )


def _is_at(member: GroupMember, request: HeartbeatRequest, owned: Places | None) -> bool:
    """The member's own epoch, or the one before as long as it took nothing that it was not given."""
    lost_its_reply = (
        request.member_epoch == member.previous_epoch < member.epoch
        and owned is not None
        and owned <= member.assigned
    )
    return request.member_epoch == member.epoch or lost_its_reply


def _still_owns(owned: Places | None, places: Places) -> bool:
    """A member that does not say what it owns may still own anything."""
    return owned is None or not owned.isdisjoint(places)


def _subscriptions(
    members: Collection[GroupMember], topics: Mapping[str, TopicShape]
) -> Iterable[frozenset[str]]:
    """For each of *members* in turn those of *topics* that it subscribes to."""
    patterns = {member.pattern for member in members if member.pattern is not None}
    matched = {pattern: frozenset(filter(pattern.fullmatch, topics)) for pattern in patterns}
    for member in members:
        by_pattern = frozenset() if member.pattern is None else matched[member.pattern]
        yield by_pattern.union(topic for topic in member.subscribed_topics if topic in topics)
