"""What the KIP-848 group protocol asks and answers, as values, and what is wrong with a request by itself."""

from __future__ import annotations

import datetime
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kio.schema.errors import ErrorCode

from .group_assignors import ASSIGNORS

JOIN_EPOCH = 0
LEAVE_EPOCH = -1
LEAVE_FOR_A_WHILE_EPOCH = -2

UNCHANGED_TIMEOUT_MS = -1
NO_INTERVAL_MS = 0

Partitions = dict[str, tuple[int, ...]]
"""Ascending partition numbers by topic name."""
Place = tuple[uuid.UUID, int]
"""A partition, by its topic's id: a topic that is made again has another."""
Places = frozenset[Place]


class TopicShape(NamedTuple):
    """What a group has to know of an existing topic."""

    topic_id: uuid.UUID
    partitions: int


def by_topic(places: Places, names: Mapping[uuid.UUID, str]) -> Partitions:
    """*places* by the *names* of their topics, ascending; those of a topic without a name are left out."""
    numbers = defaultdict(list)
    for topic_id, number in places:
        if topic_id in names:
            numbers[names[topic_id]].append(number)
    return {topic: tuple(sorted(numbers[topic])) for topic in sorted(numbers)}


def assignment_values(partitions: Partitions, shapes: Mapping[str, TopicShape]) -> Mapping[str, object]:
    """An assignment as it stands in answers; topics that are gone are left out."""
    return {
        "topic_partitions": [
            {"topic_id": shapes[topic].topic_id, "topic_name": topic, "partitions": numbers}
            for topic, numbers in partitions.items()
            if topic in shapes
        ]
    }


class HeartbeatRequest(NamedTuple):
    """What a member says. ``None``, and a timeout of -1, stand for "as I said before"."""

    member_id: str
    member_epoch: int
    instance_id: str | None
    rack_id: str | None
    rebalance_timeout_ms: int
    subscribed_topics: tuple[str, ...] | None
    subscribed_regex: str | None  # "" ends the subscription by expression
    assignor: str | None
    owned: Partitions | None
    client_id: str
    client_host: str

    @property
    def joins(self) -> bool:
        return self.member_epoch == JOIN_EPOCH

    @property
    def leaves(self) -> bool:
        return self.member_epoch in (LEAVE_EPOCH, LEAVE_FOR_A_WHILE_EPOCH)

    def is_full(self) -> bool:
        """Whether the member tells everything, and so needs to be told everything."""
        return self.member_epoch == JOIN_EPOCH or (
            self.rebalance_timeout_ms != UNCHANGED_TIMEOUT_MS
            and (self.subscribed_topics is not None or self.subscribed_regex is not None)
            and self.owned is not None
        )


class HeartbeatReply(NamedTuple):
    """What the member is told; an ``assignment`` of ``None`` is the one of the last reply."""

    member_id: str
    member_epoch: int
    heartbeat_interval_ms: int
    assignment: Partitions | None


def reply_values(reply: HeartbeatReply, shapes: Mapping[str, TopicShape]) -> dict[str, object]:
    """A heartbeat's reply as it stands in its answer."""
    return {
        "error_message": None,
        "member_id": reply.member_id,
        "member_epoch": reply.member_epoch,
        "heartbeat_interval": datetime.timedelta(milliseconds=reply.heartbeat_interval_ms),
        "assignment": None if reply.assignment is None else assignment_values(reply.assignment, shapes),
    }


def refusal_values(code: ErrorCode, error: Exception) -> dict[str, object]:
    """The answer to a heartbeat that was refused."""
    return {
        "error_code": code,
        "error_message": str(error),
        "member_id": None,
        "member_epoch": 0,
        "heartbeat_interval": datetime.timedelta(milliseconds=NO_INTERVAL_MS),
        "assignment": None,
    }


class MemberDescription(NamedTuple):
    """A member as the group sees it now."""

    instance_id: str | None
    rack_id: str | None
    member_epoch: int
    client_id: str
    client_host: str
    subscribed_topics: tuple[str, ...]
    subscribed_regex: str
    assignor: str | None
    assigned: Partitions
    target: Partitions


class GroupError(Exception):
    """The request is refused: ``code`` is for the client, ``message`` for its user."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


# What is wrong with a request -----------------------------------------------------------------------------


def _has_bad_timeout(request: HeartbeatRequest) -> bool:
    if request.leaves:  # nobody will wait for it any more
        return False
    may_be_left_out = not request.joins
    is_left_out = request.rebalance_timeout_ms == UNCHANGED_TIMEOUT_MS
    return request.rebalance_timeout_ms <= 0 and not (may_be_left_out and is_left_out)


def _leaves_for_a_while_without_instance(request: HeartbeatRequest) -> bool:
    return request.member_epoch == LEAVE_FOR_A_WHILE_EPOCH and request.instance_id is None


def _joins_without_subscription(request: HeartbeatRequest) -> bool:
    return request.joins and request.subscribed_topics is None and request.subscribed_regex is None


_FAULTS: tuple[tuple[Callable[[HeartbeatRequest], bool], str], ...] = (
    (lambda it: it.member_epoch < LEAVE_FOR_A_WHILE_EPOCH, "There is no member epoch below -2."),
    (lambda it: not it.joins and not it.member_id, "Only a member that joins may have no id."),
    (lambda it: it.instance_id == "", "The instance id is empty; leave it out."),
    (lambda it: it.rack_id == "", "The rack id is empty; leave it out."),
    (_leaves_for_a_while_without_instance, "Only a static member can leave for a while."),
    (_has_bad_timeout, "The rebalance timeout has to be positive."),
    (_joins_without_subscription, "A member that joins has to subscribe, to topics or by an expression."),
    (lambda it: it.joins and it.owned != {}, "A member that joins owns nothing, and has to say so."),
)


def check_fields(request: HeartbeatRequest) -> None:
    """Hold that the request is complete in itself, whatever the group looks like.

    Raises:
        GroupError: says what is missing, or wrong.
    """
    for is_faulty, message in _FAULTS:
        if is_faulty(request):
            raise GroupError(ErrorCode.invalid_request, message)
    if request.assignor is not None and request.assignor not in ASSIGNORS:
        raise GroupError(
            ErrorCode.unsupported_assignor,
            f"Assignor {request.assignor!r} is not one of {', '.join(ASSIGNORS)}.",
        )
