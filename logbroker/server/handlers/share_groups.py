"""ShareGroupHeartbeat and ShareGroupDescribe: members of share groups (KIP-932)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import LogbrokerError

from ..consumer_messages import GroupError, TopicShape, assignment_values, refusal_values, reply_values
from ..error_codes import code_of
from ..node import Node
from ..replies import Values
from ..requests import Request
from ..share_group import ASSIGNOR, ShareHeartbeat
from .operations import with_operations


async def heartbeat(node: Node, request: Request) -> bytes:
    body = request.body
    shapes = node.groups.shapes()
    topics = body.subscribed_topic_names
    asked = ShareHeartbeat(
        member_id=body.member_id,
        member_epoch=body.member_epoch,
        rack_id=body.rack_id,
        subscribed_topics=None if topics is None else tuple(topics),
        client_id=request.client_id,
        client_host=f"/{request.connection.host}",
    )
    try:
        reply = await node.share.heartbeat(body.group_id, asked, shapes)
    except (GroupError, LogbrokerError) as error:
        code = error.code if isinstance(error, GroupError) else code_of(error)
        return request.reply(refusal_values(code, error))
    return request.reply(reply_values(reply, shapes))


async def describe(node: Node, request: Request) -> bytes:
    shapes = node.groups.shapes()
    groups = [_described(node, group_id, shapes) for group_id in request.body.group_ids]
    return request.reply({"groups": with_operations(request, groups)})


def _described(node: Node, group_id: str, shapes: Mapping[str, TopicShape]) -> Values:
    described: dict[str, Any] = {
        "error_message": None,
        "group_id": group_id,
        "group_state": "Empty",
        "group_epoch": 0,
        "assignment_epoch": 0,
        "assignor_name": ASSIGNOR,
        "members": [],
    }
    if node.share.subscription(group_id) is None:
        return described | {
            "error_code": ErrorCode.group_id_not_found,
            "error_message": f"Group {group_id} is not a share group.",
            "group_state": "Dead",
            "assignor_name": "",
        }
    group = node.share.get(group_id)
    if group is None:
        return described
    return described | {
        "group_state": group.state,
        "group_epoch": group.group_epoch,
        "assignment_epoch": group.group_epoch,
        "members": [
            {
                "member_id": member_id,
                "rack_id": member.rack_id,
                "member_epoch": member.member_epoch,
                "client_id": member.client_id,
                "client_host": member.client_host,
                "subscribed_topic_names": member.subscribed_topics,
                "assignment": assignment_values(member.assigned, shapes),
            }
            for member_id, member in group.members.items()
        ],
    }
