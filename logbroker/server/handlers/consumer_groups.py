"""ConsumerGroupHeartbeat and ConsumerGroupDescribe: the group protocol of KIP-848, in which the server assigns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from ..consumer_group import ConsumerGroup
from ..consumer_messages import (
    JOIN_EPOCH,
    GroupError,
    HeartbeatRequest,
    Partitions,
    TopicShape,
    assignment_values,
    refusal_values,
    reply_values,
)
from ..error_codes import RefusedError
from ..node import Node
from ..replies import Values
from ..requests import Request
from .operations import with_operations

MEMBER_TYPE_CLASSIC, MEMBER_TYPE_CONSUMER = 0, 1
FIRST_WITH_MEMBER_ID_OF_CLIENT = 1


async def heartbeat(node: Node, request: Request) -> bytes:
    body = request.body
    shapes = node.groups.shapes()
    try:
        if request.version >= FIRST_WITH_MEMBER_ID_OF_CLIENT and not body.member_id:
            raise RefusedError(ErrorCode.invalid_request, "from version 1 on the client makes the member id")
        if body.member_epoch != JOIN_EPOCH and not isinstance(node.groups.get(body.group_id), ConsumerGroup):
            raise RefusedError(ErrorCode.unknown_member_id, "the group does not know its member: join again")
        group = await node.groups.consumer(body.group_id)
        try:
            reply = group.heartbeat(_asked(request, shapes), shapes, node.groups.now_ms())
            node.groups.install(body.group_id, group)
        finally:
            node.groups.touched(body.group_id)
    except (GroupError, RefusedError) as error:
        return request.reply(refusal_values(error.code, error))
    if reply.member_epoch < JOIN_EPOCH:
        await node.groups.settle(body.group_id)  # it has left
    return request.reply(reply_values(reply, shapes))


def _asked(request: Request, shapes: Mapping[str, TopicShape]) -> HeartbeatRequest:
    body = request.body
    names = {shape.topic_id: name for name, shape in shapes.items()}
    owned: Partitions | None = None
    if body.topic_partitions is not None:
        owned = {
            names[topic.topic_id]: tuple(sorted(topic.partitions))
            for topic in body.topic_partitions
            if topic.topic_id in names
        }
    topics = body.subscribed_topic_names
    return HeartbeatRequest(
        member_id=body.member_id,
        member_epoch=body.member_epoch,
        instance_id=body.instance_id,
        rack_id=body.rack_id,
        rebalance_timeout_ms=int(body.rebalance_timeout.total_seconds() * 1000),
        subscribed_topics=None if topics is None else tuple(topics),
        subscribed_regex=getattr(body, "subscribed_topic_regex", None),
        assignor=body.server_assignor,
        owned=owned,
        client_id=request.client_id,
        client_host=f"/{request.connection.host}",
    )


async def describe(node: Node, request: Request) -> bytes:
    shapes = node.groups.shapes()
    groups = [_described(node, group_id, shapes) for group_id in request.body.group_ids]
    return request.reply({"groups": with_operations(request, groups)})


def _described(node: Node, group_id: str, shapes: Mapping[str, TopicShape]) -> Values:
    group = node.groups.get(group_id)
    if not isinstance(group, ConsumerGroup):
        return {
            "error_code": ErrorCode.group_id_not_found,
            "error_message": f"Group {group_id} is not a consumer group.",
            "group_id": group_id,
            "group_state": "Dead",
            "group_epoch": 0,
            "assignment_epoch": 0,
            "assignor_name": "",
            "members": [],
        }
    return {
        "error_message": None,
        "group_id": group_id,
        "group_state": group.state,
        "group_epoch": group.group_epoch,
        "assignment_epoch": group.assignment_epoch,
        "assignor_name": group.assignor_name,
        "members": [_member(group, member_id, member, shapes) for member_id, member in group.members.items()],
    }


def _member(group: ConsumerGroup, member_id: str, member: Any, shapes: Mapping[str, TopicShape]) -> Values:
    return {
        "member_id": member_id,
        "instance_id": member.instance_id,
        "rack_id": member.rack_id,
        "member_epoch": member.member_epoch,
        "client_id": member.client_id,
        "client_host": member.client_host,
        "subscribed_topic_names": member.subscribed_topics,
        "subscribed_topic_regex": member.subscribed_regex or None,
        "assignment": assignment_values(member.assigned, shapes),
        "target_assignment": assignment_values(member.target, shapes),
        "member_type": MEMBER_TYPE_CLASSIC if group.is_classic(member_id) else MEMBER_TYPE_CONSUMER,
    }
