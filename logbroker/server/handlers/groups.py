"""JoinGroup, SyncGroup, Heartbeat, LeaveGroup of the classic protocol; FindCoordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from kio.schema.errors import ErrorCode

from ..classic_group import ClassicGroup
from ..classic_members import ClassicMembers
from ..classic_messages import JoinReply, JoinRequest, SyncReply, SyncRequest
from ..error_codes import RefusedError
from ..node import NODE_ID, Node
from ..replies import Values
from ..requests import Request

FIRST_WITH_MEMBER_ID_REQUIRED = 4
FIRST_WITH_NULL_PROTOCOL = 7
FIRST_WITH_SEVERAL_KEYS = 4
FIRST_WITH_SEVERAL_LEAVING = 3
GROUP_KEY, TRANSACTION_KEY = 0, 1


async def find_coordinator(node: Node, request: Request) -> bytes:
    """This broker coordinates everything."""
    body = request.body
    is_served = getattr(body, "key_type", GROUP_KEY) in (GROUP_KEY, TRANSACTION_KEY)
    found: dict[str, Any] = {"node_id": NODE_ID, "host": node.host, "port": node.port}
    found["error_message"] = None
    if not is_served:
        found = {
            "node_id": -1,
            "host": "",
            "port": -1,
            "error_code": ErrorCode.invalid_request,
            "error_message": "only groups and transactions have coordinators here",
        }
    if request.version < FIRST_WITH_SEVERAL_KEYS:
        return request.reply(found)
    return request.reply({"coordinators": [{"key": key, **found} for key in body.coordinator_keys]})


# Joining and syncing ------------------------------------------------------------------------------------


async def join_group(node: Node, request: Request) -> bytes | Awaitable[bytes]:
    body = request.body
    session_timeout_ms = _milliseconds(body.session_timeout)
    rebalance_timeout = getattr(body, "rebalance_timeout", None)
    asked = JoinRequest(
        member_id=body.member_id,
        instance_id=getattr(body, "group_instance_id", None),
        client_id=request.client_id,
        client_host=f"/{request.connection.host}",
        protocol_type=body.protocol_type,
        protocols=tuple((protocol.name, protocol.metadata) for protocol in body.protocols),
        session_timeout_ms=session_timeout_ms,
        rebalance_timeout_ms=(
            session_timeout_ms if rebalance_timeout is None else _milliseconds(rebalance_timeout)
        ),
        requires_known_member_id=request.version >= FIRST_WITH_MEMBER_ID_REQUIRED,
    )
    try:
        group = await node.groups.classic(body.group_id, asked)
    except RefusedError as error:
        return request.reply(_joined(request, _refused(error.code, body.member_id)))
    if isinstance(group, ClassicMembers):
        reply = group.join(asked, node.groups.shapes(), node.groups.now_ms())
        node.groups.touched(body.group_id)
        return request.reply(_joined(request, reply))
    token: asyncio.Future[JoinReply] = node.groups.new_token()
    node.groups.deliver(group.join(asked, token, node.groups.now_ms()))
    node.groups.touched(body.group_id)
    return asyncio.ensure_future(_when_joined(node, request, group, token))


async def _when_joined(
    node: Node, request: Request, group: ClassicGroup, token: asyncio.Future[JoinReply]
) -> bytes:
    try:
        return request.reply(_joined(request, await token))
    except RefusedError as error:
        return request.reply(_joined(request, _refused(error.code, request.body.member_id)))
    except asyncio.CancelledError:
        group.drop(token)
        node.groups.touched(request.body.group_id)
        raise


def _refused(code: ErrorCode, member_id: str) -> JoinReply:
    return JoinReply(code, -1, None, None, "", member_id, (), False)


def _joined(request: Request, reply: JoinReply) -> Values:
    no_name = None if request.version >= FIRST_WITH_NULL_PROTOCOL else ""
    return {
        "error_code": reply.error,
        "generation_id": reply.generation,
        "protocol_type": reply.protocol_type,
        "protocol_name": no_name if reply.protocol_name is None else reply.protocol_name,
        "leader": reply.leader,
        "skip_assignment": reply.skip_assignment,
        "member_id": reply.member_id,
        "members": [
            {"member_id": member_id, "group_instance_id": instance_id, "metadata": metadata}
            for member_id, instance_id, metadata in reply.members
        ],
    }


async def sync_group(node: Node, request: Request) -> bytes | Awaitable[bytes]:
    body = request.body
    group = node.groups.speaking_classic(body.group_id)
    if group is None:
        return request.reply(_synced(SyncReply(ErrorCode.unknown_member_id, None, None, b"")))
    asked = SyncRequest(
        member_id=body.member_id,
        instance_id=getattr(body, "group_instance_id", None),
        generation=body.generation_id,
        protocol_type=getattr(body, "protocol_type", None),
        protocol_name=getattr(body, "protocol_name", None),
        assignments=tuple((given.member_id, given.assignment) for given in body.assignments),
    )
    if isinstance(group, ClassicMembers):
        answer = group.sync(asked, node.groups.shapes(), node.groups.now_ms())
        node.groups.touched(body.group_id)
        return request.reply(_synced(answer))
    token: asyncio.Future[SyncReply] = node.groups.new_token()
    node.groups.deliver(group.sync(asked, token, node.groups.now_ms()))
    node.groups.touched(body.group_id)
    return asyncio.ensure_future(_when_synced(node, request, group, token))


async def _when_synced(
    node: Node, request: Request, group: ClassicGroup, token: asyncio.Future[SyncReply]
) -> bytes:
    try:
        return request.reply(_synced(await token))
    except RefusedError as error:
        return request.reply(_synced(SyncReply(error.code, None, None, b"")))
    except asyncio.CancelledError:
        group.drop(token)
        node.groups.touched(request.body.group_id)
        raise


def _synced(reply: SyncReply) -> Values:
    return {
        "error_code": reply.error,
        "protocol_type": reply.protocol_type,
        "protocol_name": reply.protocol_name,
        "assignment": reply.assignment,
    }


# Staying and leaving ------------------------------------------------------------------------------------


async def heartbeat(node: Node, request: Request) -> bytes:
    body = request.body
    group = node.groups.speaking_classic(body.group_id)
    if group is None:
        return request.reply({"error_code": ErrorCode.unknown_member_id})
    member = body.member_id, getattr(body, "group_instance_id", None), body.generation_id
    if isinstance(group, ClassicMembers):
        error = group.heartbeat(*member, node.groups.shapes(), node.groups.now_ms())
    else:
        error = group.heartbeat(*member, node.groups.now_ms())
    node.groups.touched(body.group_id)
    return request.reply({"error_code": error})


async def leave_group(node: Node, request: Request) -> bytes:
    body = request.body
    if request.version < FIRST_WITH_SEVERAL_LEAVING:
        leaving = [(body.member_id, None)]
    else:
        leaving = [(member.member_id, member.group_instance_id) for member in body.members]
    group = node.groups.speaking_classic(body.group_id)
    errors = [ErrorCode.unknown_member_id] * len(leaving)
    if group is not None:
        if isinstance(group, ClassicMembers):
            errors = group.leave(leaving, node.groups.shapes(), node.groups.now_ms())
        else:
            errors, deliveries = group.leave(leaving, node.groups.now_ms())
            node.groups.deliver(deliveries)
        node.groups.touched(body.group_id)
        await node.groups.settle(body.group_id)
    if request.version < FIRST_WITH_SEVERAL_LEAVING:
        return request.reply({"error_code": errors[0]})
    members = [
        {"member_id": member_id, "group_instance_id": instance_id, "error_code": error}
        for (member_id, instance_id), error in zip(leaving, errors, strict=True)
    ]
    return request.reply({"members": members})


def _milliseconds(duration: Any) -> int:
    return int(duration.total_seconds() * 1000)
