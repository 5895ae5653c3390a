"""A consumer group of Kafka's classic protocol as a pure state machine: joining, syncing, staying, leaving.

The members (``classic_roster``) agree on an assignment in two phases, and each phase ends when everybody has
asked. An answer that has to wait is owed to the *token* its request came with (``classic_waits``); whatever
call ends the wait returns the tokens with their replies (``Delivery``) and the caller sends them.

    state                what it waits for          leaves to               when
    Empty                a first join               PreparingRebalance      a member joins
    PreparingRebalance   a join of every member     CompletingRebalance     all joined, or the time is over
                                                    Empty                   nobody is left
    CompletingRebalance  the leader's assignment    Stable                  the leader syncs
                                                    PreparingRebalance      see below
    Stable               nothing                    PreparingRebalance      see below
    Dead                 nothing                    nothing                 it was deleted while Empty

A rebalance starts when a member comes, goes, offers other metadata, or is the leader and joins again, and
when a member does not sync in time. Each end of a join phase is a new generation, an empty one included.

Which clock ends what:

    session        a member that is silent, unless it waits for an answer
    new member     a member waiting in its first join: its client may be gone without anyone noticing
    pending        a member id that was handed out and not used (KIP-394)
    join           the join phase: the largest rebalance timeout, or the initial delay of an empty group
    sync           members that joined and did not sync: the largest rebalance timeout

Times are monotonic milliseconds that the caller passes; a clock takes effect in ``advance`` only. Sources:
Kafka's ClassicGroup and GroupMetadataManager, KIP-134 (initial delay), KIP-345 (static members), KIP-394
(member ids), KIP-814 (static leaders).

Invariants: generations only grow; whoever waits is a member, and waits in join only while PreparingRebalance,
in sync only while CompletingRebalance; all members have a protocol in common.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from kio.schema.errors import ErrorCode

from .classic_messages import (
    NO_ASSIGNMENT,
    NO_LEADER,
    NO_MEMBER_ID,
    Delivery,
    JoinReply,
    JoinRequest,
    Protocols,
    SyncReply,
    SyncRequest,
    refused_join,
    refused_sync,
)
from .classic_roster import Member, Roster
from .classic_waits import Waits
from .consumer_protocol import CONSUMER_PROTOCOL_TYPE, read_topics

MAX_GROUP_SIZE: Final = 10_000
MIN_SESSION_TIMEOUT_MS: Final = 6_000
MAX_SESSION_TIMEOUT_MS: Final = 1_800_000
NEW_MEMBER_JOIN_TIMEOUT_MS: Final = 300_000


class GroupState(enum.Enum):
    """Where the group stands; the values are the names that DescribeGroups and ListGroups show."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


class ClassicGroup:
    """One group, from its first join to its deletion.

    Not thread-safe: the owner serialises the calls. ``new_member_id`` gets the client id, or the instance
    id of a static member, and returns an id that was never used in this group.
    """

    def __init__(
        self,
        group_id: str,
        *,
        max_size: int = MAX_GROUP_SIZE,
        min_session_timeout_ms: int = MIN_SESSION_TIMEOUT_MS,
        max_session_timeout_ms: int = MAX_SESSION_TIMEOUT_MS,
        initial_rebalance_delay_ms: int = 0,
        new_member_id: Callable[[str], str],
    ) -> None:
        self.group_id = group_id
        self.state = GroupState.EMPTY
        self.generation = 0
        self.protocol_type: str | None = None
        self.protocol_name: str | None = None
        self._max_size = max_size
        self._session_timeouts_ms = range(min_session_timeout_ms, max_session_timeout_ms + 1)
        self._initial_delay_ms = initial_rebalance_delay_ms
        self._new_member_id = new_member_id
        self._roster = Roster()
        self._waits = Waits()
        self._pending: dict[str, int] = {}  # member id handed out -> when it is forgotten
        self._unsynced: set[str] = set()
        self._join_deadline_ms: int | None = None
        self._sync_deadline_ms: int | None = None
        self._initial_limit_ms: int | None = None  # set in the first join phase of an empty group
        self._newcomer = False  # somebody joined since the initial delay began

    @property
    def members(self) -> dict[str, Member]:
        """By member id, in the order of their joining."""
        return self._roster.members

    @property
    def leader(self) -> str | None:
        """The member that assigns for all."""
        return self._roster.leader

    # Requests ---------------------------------------------------------------------------------------------

    def join(self, request: JoinRequest, token: object, now_ms: int) -> list[Delivery]:
        """Take part in the next generation. The answer to *token* is in this list, or in a later one."""
        member_id, instance_id = request.member_id, request.instance_id
        error = self._join_error(request)
        if error is not ErrorCode.none:
            self._refuse_join(request, token, error, now_ms)
        elif member_id in self._pending and instance_id is None:
            self._add(member_id, request, token, now_ms)
        elif member_id != NO_MEMBER_ID:
            self._rejoin(request, token, now_ms)
        elif instance_id is not None and self._roster.id_of_instance(instance_id) is not None:
            self._replace_static(request, token, now_ms)
        elif instance_id is None and request.requires_known_member_id:
            self._hand_out_id(request, token, now_ms)
        else:
            self._add(self._new_member_id(instance_id or request.client_id), request, token, now_ms)
        return self._waits.taken()

    def sync(self, request: SyncRequest, token: object, now_ms: int) -> list[Delivery]:
        """Ask for the assignment of a generation; the leader brings it along."""
        error = self._sync_error(request)
        if error is not ErrorCode.none:
            self._waits.reply(token, refused_sync(error))
            return self._waits.taken()
        member = self.members[request.member_id]
        self._count_as_synced(member.member_id)
        if self.state is GroupState.STABLE:
            self._waits.reply(token, self._assignment_of(member))
            self._renew_session(member, now_ms)
        else:
            self._waits.answer_sync(member.member_id, refused_sync(ErrorCode.rebalance_in_progress))
            self._waits.syncing[member.member_id] = token
            if member.member_id == self.leader:
                self._assign(dict(request.assignments), now_ms)
        return self._waits.taken()

    def heartbeat(self, member_id: str, instance_id: str | None, generation: int, now_ms: int) -> ErrorCode:
        """Keep the member's session; ``rebalance_in_progress`` tells it to join again."""
        error = self._membership_error(member_id, instance_id, generation)
        if error is not ErrorCode.none:
            return error
        self._renew_session(self.members[member_id], now_ms)
        if self.state is GroupState.PREPARING_REBALANCE:
            return ErrorCode.rebalance_in_progress
        return ErrorCode.none

    def leave(
        self, members: Sequence[tuple[str, str | None]], now_ms: int
    ) -> tuple[list[ErrorCode], list[Delivery]]:
        """Remove members, each named by member id, instance id or both; one error code for each.

        A static member may be named by its instance id alone, which is how an administrator removes it.
        """
        size = len(self.members)
        errors = [self._leave(member_id, instance_id) for member_id, instance_id in members]
        if len(self.members) < size:
            self._rebalance(now_ms)
        else:
            self._complete_when_all_joined(now_ms)
        return errors, self._waits.taken()

    def check_commit(
        self, member_id: str, instance_id: str | None, generation: int, now_ms: int
    ) -> ErrorCode:
        """Whether this member may commit offsets now; a permitted commit counts as a heartbeat.

        A negative generation is a consumer that assigns itself, which an empty group allows. Members may
        still commit while they are called to rejoin: what they finished would be lost otherwise.
        """
        if generation < 0 and self.state is GroupState.EMPTY:
            return ErrorCode.none
        error = self._membership_error(member_id, instance_id, generation)
        if error is not ErrorCode.none:
            return error
        if self.state is GroupState.COMPLETING_REBALANCE:
            return ErrorCode.rebalance_in_progress
        self._renew_session(self.members[member_id], now_ms)
        return ErrorCode.none

    def delete(self) -> ErrorCode:
        """Make an empty group Dead; it answers ``coordinator_not_available`` from then on."""
        if self.state is GroupState.DEAD:
            return ErrorCode.group_id_not_found
        if self.state is not GroupState.EMPTY:
            return ErrorCode.non_empty_group
        self._pending.clear()
        self.state = GroupState.DEAD
        return ErrorCode.none

    def dissolve(self, now_ms: int) -> list[Delivery]:
        """Answer everybody who waits with ``rebalance_in_progress``: a group of another protocol takes over."""
        for member_id in [*self._waits.joining, *self._waits.syncing]:
            self._renew_session(self.members[member_id], now_ms)
            self._waits.answer_join(member_id, refused_join(ErrorCode.rebalance_in_progress, member_id))
            self._waits.answer_sync(member_id, refused_sync(ErrorCode.rebalance_in_progress))
        return self._waits.taken()

    @property
    def handed_out_ids(self) -> dict[str, int]:
        """The member ids that nobody joined with yet, and when each is forgotten."""
        return dict(self._pending)

    def drop(self, token: object) -> None:
        """Nobody waits for this answer any more. Its member stays until its session times out."""
        self._waits.drop(token)

    # Time -------------------------------------------------------------------------------------------------

    def next_deadline_ms(self) -> int | None:
        """The earliest time at which ``advance`` has something to do, None while no clock runs."""
        return min(self._deadlines(), default=None)

    def advance(self, now_ms: int) -> list[Delivery]:
        """Let every clock that ran out by *now_ms* take effect."""
        self._expire_pending(now_ms)
        self._expire_sessions(now_ms)
        if _is_due(self._join_deadline_ms, now_ms):
            self._end_or_extend_join(now_ms)
        if _is_due(self._sync_deadline_ms, now_ms):
            self._expire_unsynced(now_ms)
        return self._waits.taken()

    def _deadlines(self) -> Iterator[int]:
        yield from self._pending.values()
        yield from (member.session_deadline_ms for member in self._mortal_members())
        for deadline_ms in (self._join_deadline_ms, self._sync_deadline_ms):
            if deadline_ms is not None:
                yield deadline_ms

    def _mortal_members(self) -> Iterator[Member]:
        """Members whose session can time out: not those that are silent because they wait for us."""
        for member_id, member in self.members.items():
            if member.is_new or member_id not in self._waits:
                yield member

    def _expire_pending(self, now_ms: int) -> None:
        expired = [member_id for member_id, until_ms in self._pending.items() if until_ms <= now_ms]
        for member_id in expired:
            del self._pending[member_id]
        if expired:
            self._complete_when_all_joined(now_ms)

    def _expire_sessions(self, now_ms: int) -> None:
        expired = [member for member in self._mortal_members() if member.session_deadline_ms <= now_ms]
        for member in expired:
            self._remove(member.member_id)
        if expired:
            self._rebalance(now_ms)

    def _end_or_extend_join(self, now_ms: int) -> None:
        limit_ms = self._initial_limit_ms
        if limit_ms is not None and self._newcomer and now_ms < limit_ms:
            self._newcomer = False
            self._join_deadline_ms = min(now_ms + self._initial_delay_ms, limit_ms)
        else:
            self._complete_join(now_ms)

    def _expire_unsynced(self, now_ms: int) -> None:
        for member_id in list(self._unsynced):
            self._remove(member_id)
        self._rebalance(now_ms)

    def _renew_session(self, member: Member, now_ms: int) -> None:
        timeout_ms = NEW_MEMBER_JOIN_TIMEOUT_MS if member.is_new else member.session_timeout_ms
        member.session_deadline_ms = now_ms + timeout_ms

    # What is wrong with a request -------------------------------------------------------------------------

    def _join_error(self, request: JoinRequest) -> ErrorCode:
        if self.state is GroupState.DEAD:
            return ErrorCode.coordinator_not_available
        if request.session_timeout_ms not in self._session_timeouts_ms:
            return ErrorCode.invalid_session_timeout
        if not self._has_room_for(self._roster.current_id(request.member_id, request.instance_id)):
            return ErrorCode.group_max_size_reached
        if not self._supports(request.protocol_type, request.protocols):
            return ErrorCode.inconsistent_group_protocol
        return ErrorCode.none

    def _sync_error(self, request: SyncRequest) -> ErrorCode:
        error = self._membership_error(request.member_id, request.instance_id, request.generation)
        if error is not ErrorCode.none:
            return error
        if request.protocol_type not in (None, self.protocol_type):
            return ErrorCode.inconsistent_group_protocol
        if request.protocol_name not in (None, self.protocol_name):
            return ErrorCode.inconsistent_group_protocol
        if self.state is GroupState.PREPARING_REBALANCE:
            return ErrorCode.rebalance_in_progress
        return ErrorCode.none

    def _membership_error(self, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        if self.state is GroupState.DEAD:
            return ErrorCode.coordinator_not_available
        error = self._roster.identity_error(member_id, instance_id)
        if error is ErrorCode.none and generation != self.generation:
            return ErrorCode.illegal_generation
        return error

    def _has_room_for(self, member_id: str) -> bool:
        """In a join phase the first to join are in, old members or not; afterwards those that are in stay."""
        if self.state is GroupState.PREPARING_REBALANCE:
            return member_id in self._waits.joining or len(self._waits.joining) < self._max_size
        return member_id in self.members or len(self.members) < self._max_size

    def _supports(self, protocol_type: str, protocols: Protocols) -> bool:
        if self.state is GroupState.EMPTY:
            return bool(protocol_type and protocols)
        if protocol_type != self.protocol_type:
            return False
        return not self._roster.common_protocols().isdisjoint(name for name, _ in protocols) or (
            not self.members and bool(protocols)
        )

    # Ways to join -----------------------------------------------------------------------------------------

    def _refuse_join(self, request: JoinRequest, token: object, error: ErrorCode, now_ms: int) -> None:
        member_id = request.member_id
        if error is ErrorCode.group_max_size_reached:
            member_id = NO_MEMBER_ID
            self._pending.pop(request.member_id, None)
            self._remove(request.member_id)
            self._complete_when_all_joined(now_ms)
        self._waits.reply(token, refused_join(error, member_id))

    def _hand_out_id(self, request: JoinRequest, token: object, now_ms: int) -> None:
        member_id = self._new_member_id(request.client_id)
        self._pending[member_id] = now_ms + request.session_timeout_ms
        self._waits.reply(token, refused_join(ErrorCode.member_id_required, member_id))

    def _add(self, member_id: str, request: JoinRequest, token: object, now_ms: int) -> None:
        self._pending.pop(member_id, None)
        if not self.members:
            self.protocol_type = request.protocol_type
        member = self._roster.add(member_id, request)
        self._newcomer = self.state is GroupState.PREPARING_REBALANCE
        self._waits.joining[member_id] = token
        self._renew_session(member, now_ms)
        self._rebalance(now_ms)

    def _rejoin(self, request: JoinRequest, token: object, now_ms: int) -> None:
        error = self._roster.identity_error(request.member_id, request.instance_id)
        if error is not ErrorCode.none:
            self._waits.reply(token, refused_join(error, request.member_id))
            return
        member = self.members[request.member_id]
        if self._is_repeated_join(member, request):
            self._waits.reply(token, self._generation_for(member))
            self._renew_session(member, now_ms)
            return
        member.describe(request)
        self._waits.answer_join(
            member.member_id, refused_join(ErrorCode.rebalance_in_progress, member.member_id)
        )
        self._waits.joining[member.member_id] = token
        self._rebalance(now_ms)

    def _is_repeated_join(self, member: Member, request: JoinRequest) -> bool:
        """Whether the member only wants to hear again about a generation that it is already in.

        A leader of a stable group wants more: something that metadata does not show has changed, such as
        the number of partitions.
        """
        if member.protocols != request.protocols:
            return False
        if self.state is GroupState.STABLE:
            return member.member_id != self.leader
        return self.state is GroupState.COMPLETING_REBALANCE

    def _replace_static(self, request: JoinRequest, token: object, now_ms: int) -> None:
        """A static member is back without its member id: the id that it had is fenced off."""
        assert request.instance_id is not None
        member = self._renamed(request.instance_id)
        before = member.metadata
        member.describe(request)
        if self.state is GroupState.STABLE and self._fits_generation(member, before):
            member.metadata = member.offer(self.protocol_name)
            reply = self._generation_for(member)
            # Nobody would hear of an assignment that a stable group's leader made, so it is told not to.
            self._waits.reply(token, reply._replace(skip_assignment=member.member_id == self.leader))
            self._renew_session(member, now_ms)
            return
        self._waits.joining[member.member_id] = token
        self._renew_session(member, now_ms)
        self._rebalance(now_ms)

    def _renamed(self, instance_id: str) -> Member:
        """The static member, in its old place under a new member id."""
        old_id = self._roster.id_of_instance(instance_id)
        assert old_id is not None
        self._waits.answer_join(old_id, refused_join(ErrorCode.fenced_instance_id, old_id))
        self._waits.answer_sync(old_id, refused_sync(ErrorCode.fenced_instance_id))
        new_id = self._new_member_id(instance_id)
        member = self._roster.rename(instance_id, new_id)
        if old_id in self._unsynced:
            self._unsynced.remove(old_id)
            self._unsynced.add(new_id)
        return member

    def _fits_generation(self, member: Member, before: bytes) -> bool:
        """Whether the assignment still holds with what the member offers now, *before* being its metadata."""
        if self._roster.chosen_protocol() != self.protocol_name:
            return False
        now = member.offer(self.protocol_name)
        if now == before:
            return True
        if self.protocol_type != CONSUMER_PROTOCOL_TYPE:
            return False
        # The rest of a subscription (owned partitions, generation) differs after every restart.
        topics = read_topics(now)
        return topics is not None and topics == read_topics(before)

    # Phases -----------------------------------------------------------------------------------------------

    def _rebalance(self, now_ms: int) -> None:
        """The membership changed: start a join phase, or end the one that runs if nobody is missing."""
        if self.state is GroupState.PREPARING_REBALANCE:
            self._complete_when_all_joined(now_ms)
        else:
            self._prepare_join(now_ms)

    def _prepare_join(self, now_ms: int) -> None:
        if self.state is GroupState.COMPLETING_REBALANCE:
            self._cancel_syncs(now_ms)
        self._unsynced.clear()
        self._sync_deadline_ms = None
        timeout_ms = self._roster.rebalance_timeout_ms()
        if self.state is GroupState.EMPTY:
            self._newcomer = False
            self._join_deadline_ms = now_ms + self._initial_delay_ms
            self._initial_limit_ms = now_ms + timeout_ms
        else:
            self._join_deadline_ms = now_ms + timeout_ms
        self.state = GroupState.PREPARING_REBALANCE
        if self._join_deadline_ms <= now_ms:
            self._complete_join(now_ms)
        else:
            self._complete_when_all_joined(now_ms)

    def _complete_when_all_joined(self, now_ms: int) -> None:
        """Not in the first phase of an empty group, whose point is to wait for more."""
        if self.state is not GroupState.PREPARING_REBALANCE or self._initial_limit_ms is not None:
            return
        if len(self._waits.joining) == len(self.members) and not self._pending:
            self._complete_join(now_ms)

    def _complete_join(self, now_ms: int) -> None:
        """Begin a generation with those who joined, and static members, whose place is kept (KIP-345)."""
        joining = self._waits.joining
        for member_id in self.members.keys() - joining.keys():
            if self.members[member_id].instance_id is None:
                self._remove(member_id)
        if self.members and not joining:
            # Only their sessions end this.
            self._join_deadline_ms = now_ms + self._roster.rebalance_timeout_ms()
            return
        if self.leader not in joining:
            self._roster.leader = next(iter(joining), None)
        self._join_deadline_ms = self._initial_limit_ms = None
        self.generation += 1
        if not self.members:
            self.state = GroupState.EMPTY
            self.protocol_name = None
            return
        self.state = GroupState.COMPLETING_REBALANCE
        self.protocol_name = self._roster.chosen_protocol()
        self._unsynced = set(joining)
        self._sync_deadline_ms = now_ms + self._roster.rebalance_timeout_ms()
        for member in self.members.values():
            member.metadata = member.offer(self.protocol_name)
            member.is_new = False
            if member.member_id in joining:
                self._renew_session(member, now_ms)
        for member in self.members.values():
            self._waits.answer_join(member.member_id, self._generation_for(member))

    def _assign(self, assignments: dict[str, bytes], now_ms: int) -> None:
        """Every member gets its part of what the leader sent, or an empty one."""
        self.state = GroupState.STABLE
        for member in self.members.values():
            member.assignment = assignments.get(member.member_id, NO_ASSIGNMENT)
            if self._waits.answer_sync(member.member_id, self._assignment_of(member)):
                self._renew_session(member, now_ms)

    def _cancel_syncs(self, now_ms: int) -> None:
        for member in self.members.values():
            member.assignment = NO_ASSIGNMENT
            if self._waits.answer_sync(member.member_id, refused_sync(ErrorCode.rebalance_in_progress)):
                self._renew_session(member, now_ms)

    def _count_as_synced(self, member_id: str) -> None:
        self._unsynced.discard(member_id)
        if not self._unsynced:
            self._sync_deadline_ms = None

    # Members ----------------------------------------------------------------------------------------------

    def _leave(self, member_id: str, instance_id: str | None) -> ErrorCode:
        if self.state is GroupState.DEAD:
            return ErrorCode.coordinator_not_available
        if member_id in self._pending:
            del self._pending[member_id]
            return ErrorCode.none
        member_id = self._roster.current_id(member_id, instance_id)
        error = self._roster.identity_error(member_id, instance_id)
        if error is ErrorCode.none:
            self._remove(member_id)
        return error

    def _remove(self, member_id: str) -> None:
        """Forget a member; if it waits, it learns that it is to start over without an id."""
        if not self._roster.remove(member_id):
            return
        self._waits.answer_join(member_id, refused_join(ErrorCode.unknown_member_id, NO_MEMBER_ID))
        self._waits.answer_sync(member_id, refused_sync(ErrorCode.unknown_member_id))
        self._unsynced.discard(member_id)

    def subscribed_topics(self) -> frozenset[str] | None:
        """The topics of a consumer group's current generation; None when they cannot be known."""
        if self.protocol_type != CONSUMER_PROTOCOL_TYPE:
            return None
        if self.members and self.protocol_name is None:
            return None
        topics: set[str] = set()
        for member in self.members.values():
            if not member.is_new:
                subscription = read_topics(member.metadata)
                if subscription is None:
                    return None
                topics |= subscription
        return frozenset(topics)

    # Replies ----------------------------------------------------------------------------------------------

    def _generation_for(self, member: Member) -> JoinReply:
        """What a member hears of the current generation."""
        leads = member.member_id == self.leader
        return JoinReply(
            error=ErrorCode.none,
            generation=self.generation,
            protocol_type=self.protocol_type,
            protocol_name=self.protocol_name,
            leader=self.leader or NO_LEADER,
            member_id=member.member_id,
            members=self._roster.listing() if leads else (),
            skip_assignment=False,
        )

    def _assignment_of(self, member: Member) -> SyncReply:
        return SyncReply(ErrorCode.none, self.protocol_type, self.protocol_name, member.assignment)


def _is_due(deadline_ms: int | None, now_ms: int) -> bool:
    return deadline_ms is not None and deadline_ms <= now_ms
