"""Members of Kafka's classic protocol inside a KIP-848 group, so that a group can be upgraded while it works.

The server assigns for them as for everybody else. What they send is translated:

    JoinGroup    a step of ``ConsumerGroup.heartbeat`` that tells everything. It is answered at once, the member
                 epoch being the generation, and nobody is the leader
    SyncGroup    the answer is what the member has been assigned
    Heartbeat    no step: it only keeps the session and says whether a step is due, that is a join
    LeaveGroup   the end of the membership

How a member gives partitions up depends on its own protocol. An eager one stops consuming before it joins, so a
join says that it owns nothing. A cooperative one names what it owns in its metadata; it syncs to hear what it
may keep, gives up the rest and joins again, and only that join sets the rest free.

Which clock ends what, besides the session with a timeout of the member's own:

    join        a member that heard ``rebalance_in_progress`` and does not join: its rebalance timeout
    sync        a member that joined and does not sync: its rebalance timeout
    reserved    a member id that was handed out and not used (KIP-394): the session timeout asked for

Unlike Kafka, a group does not become classic again when its last KIP-848 member leaves; its classic members
stay as they are.

Sources: KIP-848 (online migration), KIP-345, KIP-394, KIP-429, and Apache Kafka 4's group coordinator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from kio.schema.errors import ErrorCode

from .classic_group import MAX_SESSION_TIMEOUT_MS, MIN_SESSION_TIMEOUT_MS, ClassicGroup
from .classic_messages import (
    NO_LEADER,
    NO_MEMBER_ID,
    JoinReply,
    JoinRequest,
    Protocols,
    SyncReply,
    SyncRequest,
    refused_join,
    refused_sync,
)
from .classic_roster import Member
from .consumer_group import ClassicClocks, ConsumerGroup, GroupMember, MemberState
from .consumer_messages import (
    JOIN_EPOCH,
    LEAVE_FOR_A_WHILE_EPOCH,
    UNCHANGED_TIMEOUT_MS,
    GroupError,
    HeartbeatRequest,
    Partitions,
    Place,
    Places,
    TopicShape,
)
from .consumer_protocol import (
    CONSUMER_PROTOCOL_TYPE,
    Subscription,
    assignment_bytes,
    read_assignment,
    read_subscription,
)

EAGER_ASSIGNORS: Final = frozenset({"range", "roundrobin", "sticky"})
"""Those of Kafka's clients. A client that offers one of them gives up everything before it joins."""

_SESSION_TIMEOUTS_MS: Final = range(MIN_SESSION_TIMEOUT_MS, MAX_SESSION_TIMEOUT_MS + 1)

Topics = Mapping[str, TopicShape]


class ClassicMembers:
    """Members of the classic protocol in a KIP-848 group.

    All that is remembered is in *group*; this only speaks for it, and may be made anew for each request.
    ``new_member_id`` gets the client id, or the instance id of a static member.
    """

    def __init__(self, group: ConsumerGroup, *, new_member_id: Callable[[str], str]) -> None:
        self._group = group
        self._new_member_id = new_member_id

    def has(self, member_id: str) -> bool:
        """Whether a member of the classic protocol has this id."""
        return self._group.is_classic(member_id)

    # Requests ---------------------------------------------------------------------------------------------

    def join(self, request: JoinRequest, topics: Topics, now_ms: int) -> JoinReply:
        """One step of the member; a success is a generation, which for everybody is to sync."""
        error = self._join_error(request)
        if error is not ErrorCode.none:
            return refused_join(error, request.member_id)
        if request.requires_known_member_id and _is_nobody(request):
            return self._hand_out_id(request, now_ms)
        protocol_name, metadata = request.protocols[0]
        clocks = ClassicClocks(
            protocol_name,
            request.session_timeout_ms,
            sync_deadline_ms=now_ms + _rebalance_timeout_ms(request),
        )
        subscription = read_subscription(metadata)
        assert subscription is not None
        try:
            self._release_instance(request, topics, now_ms)
            step = self._as_step(request, subscription)
            reply = self._group.heartbeat(step, topics, now_ms, classic=clocks)
        except GroupError as refused:
            return refused_join(refused.code, request.member_id)
        self._group.reserved_ids.pop(reply.member_id, None)
        return JoinReply(
            error=ErrorCode.none,
            generation=reply.member_epoch,
            protocol_type=CONSUMER_PROTOCOL_TYPE,
            protocol_name=protocol_name,
            leader=NO_LEADER,
            member_id=reply.member_id,
            members=(),
            skip_assignment=False,
        )

    def sync(self, request: SyncRequest, topics: Topics, now_ms: int) -> SyncReply:
        """What the member is assigned in its generation; what it sends as a leader would is ignored."""
        self._group.notice(topics)
        error = self._membership_error(request.member_id, request.instance_id, request.generation)
        if error is not ErrorCode.none:
            return refused_sync(error)
        member, clocks = self._speaking(request.member_id)
        if request.protocol_type not in (None, CONSUMER_PROTOCOL_TYPE):
            return refused_sync(ErrorCode.inconsistent_group_protocol)
        if request.protocol_name not in (None, clocks.protocol_name):
            return refused_sync(ErrorCode.inconsistent_group_protocol)
        clocks.sync_deadline_ms = None
        # Who has to give up something first hears here what that is, whatever has happened to the group since.
        is_told_to_revoke = member.state is MemberState.UNREVOKED_PARTITIONS
        if member.epoch < self._group.group_epoch and not is_told_to_revoke:
            _call_to_join(member, clocks, now_ms)
            return refused_sync(ErrorCode.rebalance_in_progress)
        self._group.renew_session(member, now_ms)
        assignment = assignment_bytes(self._group.named(member.assigned))
        return SyncReply(ErrorCode.none, CONSUMER_PROTOCOL_TYPE, clocks.protocol_name, assignment)

    def heartbeat(
        self, member_id: str, instance_id: str | None, generation: int, topics: Topics, now_ms: int
    ) -> ErrorCode:
        """Keep the session; ``rebalance_in_progress`` when the member can get further by joining again."""
        self._group.notice(topics)
        error = self._membership_error(member_id, instance_id, generation)
        if error is not ErrorCode.none:
            return error
        member, clocks = self._speaking(member_id)
        self._group.renew_session(member, now_ms)
        if not self._group.can_go_on(member):
            return ErrorCode.none
        _call_to_join(member, clocks, now_ms)
        return ErrorCode.rebalance_in_progress

    def leave(
        self, members: Sequence[tuple[str, str | None]], topics: Topics, now_ms: int
    ) -> list[ErrorCode]:
        """Remove members, each named by member id, instance id or both; one error code for each.

        An administrator removes members of whatever protocol with it, static ones by their instance id alone.
        """
        gone: dict[str, GroupMember] = {}
        errors = [self._leave(member_id, instance_id, gone) for member_id, instance_id in members]
        self._group.remove(list(gone.values()))
        self._group.advance(topics, now_ms)
        return errors

    def _leave(self, member_id: str, instance_id: str | None, gone: dict[str, GroupMember]) -> ErrorCode:
        if self._group.reserved_ids.pop(member_id, None) is not None:
            return ErrorCode.none
        if member_id == NO_MEMBER_ID and instance_id is not None:
            member = self._group.member_of_instance(instance_id)
        else:
            error = self._identity_error(member_id, instance_id)
            if error is not ErrorCode.none:
                return error
            member = self._group.member(member_id)
        if member is None or member.member_id in gone:
            return ErrorCode.unknown_member_id
        gone[member.member_id] = member
        return ErrorCode.none

    # Who is speaking --------------------------------------------------------------------------------------

    def _join_error(self, request: JoinRequest) -> ErrorCode:
        if request.session_timeout_ms not in _SESSION_TIMEOUTS_MS:
            return ErrorCode.invalid_session_timeout
        if not can_join(self._group, request):
            return ErrorCode.inconsistent_group_protocol
        if _is_nobody(request) and not self._group.has_room:
            return ErrorCode.group_max_size_reached
        is_invited = request.instance_id is None and request.member_id in self._group.reserved_ids
        if request.member_id == NO_MEMBER_ID or is_invited:
            return ErrorCode.none
        return self._identity_error(request.member_id, request.instance_id)

    def _membership_error(self, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        error = self._identity_error(member_id, instance_id)
        if error is not ErrorCode.none:
            return error
        if not self.has(member_id):
            return ErrorCode.unknown_member_id
        member, _ = self._speaking(member_id)
        return ErrorCode.none if member.epoch == generation else ErrorCode.illegal_generation

    def _identity_error(self, member_id: str, instance_id: str | None) -> ErrorCode:
        """What is wrong with how a member is named, whichever protocol it speaks."""
        if instance_id is not None:
            holder = self._group.member_of_instance(instance_id)
            if holder is not None and holder.member_id != member_id:
                return ErrorCode.fenced_instance_id
            if holder is None:
                return ErrorCode.unknown_member_id
        return ErrorCode.unknown_member_id if self._group.member(member_id) is None else ErrorCode.none

    def _speaking(self, member_id: str) -> tuple[GroupMember, ClassicClocks]:
        member = self._group.member(member_id)
        assert member is not None
        assert member.classic is not None
        return member, member.classic

    # Joining ----------------------------------------------------------------------------------------------

    def _hand_out_id(self, request: JoinRequest, now_ms: int) -> JoinReply:
        member_id = self._new_member_id(request.client_id)
        self._group.reserved_ids[member_id] = now_ms + request.session_timeout_ms
        return refused_join(ErrorCode.member_id_required, member_id)

    def _release_instance(self, request: JoinRequest, topics: Topics, now_ms: int) -> None:
        """An instance that is back without its member id was restarted: its former process is gone.

        So that process left for a while as far as the group is concerned, which fences it off and keeps its
        place and partitions for the new one.
        """
        if request.instance_id is None or request.member_id != NO_MEMBER_ID:
            return
        former = self._group.member_of_instance(request.instance_id)
        if former is not None and former.epoch != LEAVE_FOR_A_WHILE_EPOCH:
            self._group.heartbeat(_going_away(former), topics, now_ms)

    def _as_step(self, request: JoinRequest, subscription: Subscription) -> HeartbeatRequest:
        """The KIP-848 heartbeat of a member that says what this join does; who is new owns nothing."""
        known = self._group.member(request.member_id)
        return HeartbeatRequest(
            member_id=request.member_id or self._new_member_id(request.instance_id or request.client_id),
            member_epoch=JOIN_EPOCH if known is None else known.epoch,
            instance_id=request.instance_id,
            rack_id=subscription.rack_id,
            rebalance_timeout_ms=_rebalance_timeout_ms(request),
            subscribed_topics=subscription.topics,
            subscribed_regex="",
            assignor=None,
            owned={} if known is None or _is_eager(request.protocols) else subscription.owned,
            client_id=request.client_id,
            client_host=request.client_host,
        )


def can_join(group: ConsumerGroup, request: JoinRequest) -> bool:
    """Whether a join of the classic protocol makes sense here, whoever it comes from.

    It has to be of a consumer whose subscriptions can be read, and not under the id of a KIP-848 member.
    """
    is_other = group.member(request.member_id) is not None and not group.is_classic(request.member_id)
    return (
        not is_other
        and request.protocol_type == CONSUMER_PROTOCOL_TYPE
        and bool(request.protocols)
        and all(read_subscription(metadata) is not None for _, metadata in request.protocols)
    )


def _is_nobody(request: JoinRequest) -> bool:
    return request.member_id == NO_MEMBER_ID and request.instance_id is None


def _is_eager(protocols: Protocols) -> bool:
    return any(name in EAGER_ASSIGNORS for name, _ in protocols)


def _rebalance_timeout_ms(asked: JoinRequest | Member) -> int:
    """The classic protocol lets a client ask for none at all."""
    return max(asked.rebalance_timeout_ms, 1)


def _call_to_join(member: GroupMember, clocks: ClassicClocks, now_ms: int) -> None:
    """Being told again does not give more time."""
    if clocks.join_deadline_ms is None:
        clocks.join_deadline_ms = now_ms + member.rebalance_timeout_ms


def _going_away(member: GroupMember) -> HeartbeatRequest:
    return HeartbeatRequest(
        member_id=member.member_id,
        member_epoch=LEAVE_FOR_A_WHILE_EPOCH,
        instance_id=member.instance_id,
        rack_id=None,
        rebalance_timeout_ms=UNCHANGED_TIMEOUT_MS,
        subscribed_topics=None,
        subscribed_regex=None,
        assignor=None,
        owned=None,
        client_id=member.client_id,
        client_host=member.client_host,
    )


# Upgrading ------------------------------------------------------------------------------------------------


def upgraded(
    classic: ClassicGroup,
    topics: Topics,
    now_ms: int,
    *,
    heartbeat_interval_ms: int,
    session_timeout_ms: int,
    new_member_id: Callable[[], str],
) -> ConsumerGroup | None:
    """A KIP-848 group with the members of *classic*, which stays as it is; ``None`` if there cannot be one.

    Members come in at their generation with all that they may own, so nobody gets any of it before they let
    it go. Who waits in a first join was in no generation: its id is only reserved, for the next join.

    A group that was rebalancing has partitions that nobody has, and they stay so until the group epoch grows.
    The join of the KIP-848 member that an upgrade is made for sees to that; if it is refused, drop the result.
    """
    if classic.protocol_type != CONSUMER_PROTOCOL_TYPE:
        return None
    members = [member for member in classic.members.values() if not member.is_new]
    metadata = [
        read_subscription(member.offer(classic.protocol_name) or member.protocols[0][1]) for member in members
    ]
    subscriptions = [subscription for subscription in metadata if subscription is not None]
    parsed = [read_assignment(member.assignment) for member in members]
    assignments = [assignment for assignment in parsed if assignment is not None]
    if len(subscriptions) < len(members) or len(assignments) < len(members):
        return None
    group = ConsumerGroup(
        classic.group_id,
        session_timeout_ms=session_timeout_ms,
        heartbeat_interval_ms=heartbeat_interval_ms,
        new_member_id=new_member_id,
        generation=classic.generation,
    )
    owned = _owned_by(members, assignments, subscriptions, topics)
    protocol_name = classic.protocol_name or ""
    adopted = [
        _adopted(member, subscription, protocol_name, owned[member.member_id], now_ms)
        for member, subscription in zip(members, subscriptions, strict=True)
    ]
    group.adopt(adopted, topics)
    group.reserved_ids = classic.handed_out_ids | {
        member.member_id: now_ms + member.session_timeout_ms
        for member in classic.members.values()
        if member.is_new and member.instance_id is None
    }
    return group


def _owned_by(
    members: Sequence[Member],
    assignments: Sequence[Partitions],
    subscriptions: Sequence[Subscription],
    topics: Topics,
) -> Mapping[str, Places]:
    """What each member was assigned last, or said it owned when it joined last: it may own either still.

    A cooperative member has what it joined with until it syncs, and a phase that was broken off took away its
    assignment but not its partitions. What two claim goes to who was assigned it, then to the first.
    """
    holder: dict[Place, str] = {}
    for member, assigned in zip(members, assignments, strict=True):
        for place in _places(assigned, topics):
            holder.setdefault(place, member.member_id)
    for member, subscription in zip(members, subscriptions, strict=True):
        if not _is_eager(member.protocols):
            for place in _places(subscription.owned, topics):
                holder.setdefault(place, member.member_id)
    owned: defaultdict[str, set[Place]] = defaultdict(set)
    for place, member_id in holder.items():
        owned[member_id].add(place)
    return {member.member_id: frozenset(owned[member.member_id]) for member in members}


def _adopted(
    member: Member, subscription: Subscription, protocol_name: str, owned: Places, now_ms: int
) -> GroupMember:
    return GroupMember(
        member_id=member.member_id,
        instance_id=member.instance_id,
        rack_id=subscription.rack_id,
        client_id=member.client_id,
        client_host=member.client_host,
        rebalance_timeout_ms=_rebalance_timeout_ms(member),
        subscribed_topics=tuple(sorted(set(subscription.topics))),
        assigned=owned,
        session_deadline_ms=now_ms + member.session_timeout_ms,
        classic=ClassicClocks(protocol_name, member.session_timeout_ms),
    )


def _places(partitions: Partitions, topics: Topics) -> Iterator[Place]:
    """Those of *partitions* that exist."""
    for topic, numbers in partitions.items():
        shape = topics.get(topic)
        if shape is not None:
            yield from ((shape.topic_id, number) for number in numbers if 0 <= number < shape.partitions)
