"""What the classic group protocol asks and answers, as values: ``classic_group`` takes and gives them."""

from __future__ import annotations

from typing import Final, NamedTuple

from kio.schema.errors import ErrorCode

NO_MEMBER_ID: Final = ""
NO_LEADER: Final = ""
NO_GENERATION: Final = -1
NO_ASSIGNMENT: Final = b""

Protocols = tuple[tuple[str, bytes], ...]


class JoinRequest(NamedTuple):
    """What a client asks with JoinGroup. ``protocols``: names with metadata, the one it likes best first.

    ``requires_known_member_id``: the client can be told to come again with an id (JoinGroup v4 and later).
    """

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    protocol_type: str
    protocols: Protocols
    session_timeout_ms: int
    rebalance_timeout_ms: int
    requires_known_member_id: bool


class JoinReply(NamedTuple):
    """``members`` (id, instance id, metadata) is for the leader, everybody else gets none."""

    error: ErrorCode
    generation: int
    protocol_type: str | None
    protocol_name: str | None
    leader: str
    member_id: str
    members: tuple[tuple[str, str | None, bytes], ...]
    skip_assignment: bool


def refused_join(error: ErrorCode, member_id: str) -> JoinReply:
    """A reply with *error*; *member_id* is the one to go on with."""
    return JoinReply(error, NO_GENERATION, None, None, NO_LEADER, member_id, (), skip_assignment=False)


class SyncRequest(NamedTuple):
    """``assignments`` (member id, bytes) counts only when the leader sends it."""

    member_id: str
    instance_id: str | None
    generation: int
    protocol_type: str | None
    protocol_name: str | None
    assignments: tuple[tuple[str, bytes], ...]


class SyncReply(NamedTuple):
    """The member's own part of the assignment."""

    error: ErrorCode
    protocol_type: str | None
    protocol_name: str | None
    assignment: bytes


def refused_sync(error: ErrorCode) -> SyncReply:
    """A reply with *error* and no assignment."""
    return SyncReply(error, None, None, NO_ASSIGNMENT)


class Delivery(NamedTuple):
    """The answer to the request that came with *token*, to be sent now."""

    token: object
    reply: JoinReply | SyncReply
