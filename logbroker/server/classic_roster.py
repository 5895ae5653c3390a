"""The members of a classic group: who each one is, who leads, and which protocols all of them know.

A member is named by its member id. A static member (KIP-345) has an instance id, too, which it keeps when it is
restarted and has lost the other: it then gets a new member id, in its old place, and leads if it did.

Invariants: an instance id names one member; the leader is a member, and there is one whenever there are members.
"""

from __future__ import annotations

from collections import Counter

import msgspec
from kio.schema.errors import ErrorCode

from .classic_messages import NO_ASSIGNMENT, NO_MEMBER_ID, JoinRequest, Protocols


class Member(msgspec.Struct):
    """A member as its last join described it.

    ``metadata`` belongs to the protocol of the current generation; ``protocols`` may already be an offer
    for the next one. ``is_new`` until its first join phase ended.
    """

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    protocols: Protocols
    session_timeout_ms: int
    rebalance_timeout_ms: int
    metadata: bytes = b""
    assignment: bytes = NO_ASSIGNMENT
    is_new: bool = True
    session_deadline_ms: int = 0

    def describe(self, request: JoinRequest) -> None:
        """Take over what the member says of itself in another join."""
        self.client_id = request.client_id
        self.client_host = request.client_host
        self.protocols = request.protocols
        self.session_timeout_ms = request.session_timeout_ms
        self.rebalance_timeout_ms = request.rebalance_timeout_ms

    def offer(self, protocol_name: str | None) -> bytes:
        """Its metadata for a protocol, empty when it does not know the protocol."""
        return next((metadata for name, metadata in self.protocols if name == protocol_name), b"")

    def names(self) -> list[str]:
        """The protocols it knows, best first."""
        return [name for name, _ in self.protocols]


class Roster:
    """The members, in the order of their joining, and the leader."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.leader: str | None = None
        self._instances: dict[str, str] = {}  # instance id -> member id

    def add(self, member_id: str, request: JoinRequest) -> Member:
        """A new member; it leads if it is the first."""
        member = Member(
            member_id,
            request.instance_id,
            request.client_id,
            request.client_host,
            request.protocols,
            request.session_timeout_ms,
            request.rebalance_timeout_ms,
        )
        self.members[member_id] = member
        if self.leader is None:
            self.leader = member_id
        if request.instance_id is not None:
            self._instances[request.instance_id] = member_id
        return member

    def rename(self, instance_id: str, new_id: str) -> Member:
        """The static member, in its old place under a new member id."""
        old_id = self._instances[instance_id]
        self.members = {
            new_id if member_id == old_id else member_id: member for member_id, member in self.members.items()
        }
        member = self.members[new_id]
        member.member_id = self._instances[instance_id] = new_id
        if self.leader == old_id:
            self.leader = new_id
        return member

    def remove(self, member_id: str) -> bool:
        """Forget a member, and have another lead if it did; whether it was there."""
        member = self.members.pop(member_id, None)
        if member is None:
            return False
        if member.instance_id is not None:
            del self._instances[member.instance_id]
        if self.leader == member_id:
            self.leader = next(iter(self.members), None)
        return True

    # Who is speaking --------------------------------------------------------------------------------------

    def id_of_instance(self, instance_id: str) -> str | None:
        """The member id of a static member, None if there is none of that instance id."""
        return self._instances.get(instance_id)

    def current_id(self, member_id: str, instance_id: str | None) -> str:
        """The id of a request, or that of the static member that it names by its instance id alone."""
        if member_id == NO_MEMBER_ID and instance_id is not None:
            return self._instances.get(instance_id, NO_MEMBER_ID)
        return member_id

    def identity_error(self, member_id: str, instance_id: str | None) -> ErrorCode:
        """Whether a request with these ids comes from a member."""
        if instance_id is not None:
            holder = self._instances.get(instance_id)
            if holder is None:
                return ErrorCode.unknown_member_id
            if holder != member_id:
                return ErrorCode.fenced_instance_id
        return ErrorCode.none if member_id in self.members else ErrorCode.unknown_member_id

    # What they have in common -----------------------------------------------------------------------------

    def common_protocols(self) -> set[str]:
        """The protocols that every member knows; none without members."""
        offers = (set(member.names()) for member in self.members.values())
        return set.intersection(*offers) if self.members else set()

    def chosen_protocol(self) -> str:
        """The protocol with the most votes; with as many, the one that was voted for first."""
        common = self.common_protocols()
        votes = Counter(
            next(name for name in member.names() if name in common) for member in self.members.values()
        )
        return votes.most_common(1)[0][0]

    def rebalance_timeout_ms(self) -> int:
        """How long the slowest member may take to join or sync; 0 without members."""
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    def listing(self) -> tuple[tuple[str, str | None, bytes], ...]:
        """The members as the leader hears of them."""
        return tuple(
            (member.member_id, member.instance_id, member.metadata) for member in self.members.values()
        )
