"""ListGroups, DescribeGroups, DeleteGroups: every group of the directory, whoever its members are, and every queue."""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import InvalidRequestError, LogbrokerError

from ...group_admin import delete_group
from ...group_store import live_members
from ...subscription_admin import delete_subscription
from ..classic_group import ClassicGroup, GroupState
from ..consumer_group import ConsumerGroup
from ..error_codes import code_of
from ..group_registry import is_empty
from ..node import Node
from ..replies import Values
from ..requests import Request
from .operations import with_operations

CONSUMER_TYPE, SHARE_TYPE, SIMPLE_TYPE = "consumer", "share", ""
EMBEDDED_CLIENT = "logbroker"
DEAD, EMPTY, STABLE = "Dead", "Empty", "Stable"
FIRST_THAT_MISSES_GROUPS = 6  # older clients are told "Dead"


async def list_groups(node: Node, request: Request) -> bytes:
    body = request.body
    states = {state.lower() for state in getattr(body, "states_filter", ())}
    types = {kind.lower() for kind in getattr(body, "types_filter", ())}
    stored = set(await node.run(node.directory.groups.names))
    groups = [_listed(node, name, name in stored) for name in sorted({*stored, *node.groups.all()})]
    groups += [_listed_share(node, name) for name in node.share.all()]
    return request.reply(
        {
            "groups": [
                group
                for group in sorted(groups, key=lambda group: str(group["group_id"]))
                if group["group_state"] != DEAD
                and (not states or group["group_state"].lower() in states)
                and (not types or group["group_type"].lower() in types)
            ]
        }
    )


def _listed(node: Node, name: str, is_stored: bool) -> Values:
    group = node.groups.get(name)
    if group is None or is_empty(group):
        has_embedded = bool(live_members(node.directory, name))
        state = STABLE if has_embedded else EMPTY if is_stored else DEAD
    else:
        state = _state(group)
    return {
        "group_id": name,
        "protocol_type": _protocol_type(node, name),
        "group_state": state,
        "group_type": node.groups.type_of(name),
    }


def _protocol_type(node: Node, name: str) -> str:
    """What the group's members are, or were; "" of a group that only committed, as Kafka has it."""
    group = node.groups.get(name)
    if isinstance(group, ClassicGroup) and group.protocol_type:
        return group.protocol_type
    is_subscribed = node.directory.groups.subscribed(name) is not None
    is_of_consumers = is_subscribed or node.groups.type_of(name) == CONSUMER_TYPE
    return CONSUMER_TYPE if is_of_consumers or live_members(node.directory, name) else SIMPLE_TYPE


def _listed_share(node: Node, name: str) -> Values:
    return {
        "group_id": name,
        "protocol_type": SHARE_TYPE,
        "group_state": STABLE if node.share.has_members(name) else EMPTY,
        "group_type": SHARE_TYPE,
    }


def _state(group: ClassicGroup | ConsumerGroup) -> str:
    return group.state.value if isinstance(group, ClassicGroup) else group.state


async def describe_groups(node: Node, request: Request) -> bytes:
    stored = set(await node.run(node.directory.groups.names))
    groups = [_described(node, request, name, name in stored) for name in request.body.groups]
    return request.reply({"groups": with_operations(request, groups)})


def _described(node: Node, request: Request, name: str, is_stored: bool) -> Values:
    group = node.groups.get(name)
    described: dict[str, Any] = {
        "error_message": None,
        "group_id": name,
        "group_state": DEAD,
        "protocol_type": "",
        "protocol_data": "",
        "members": [],
    }
    if node.share.subscription(name) is not None or (isinstance(group, ConsumerGroup) and group.members):
        if request.version >= FIRST_THAT_MISSES_GROUPS:
            described["error_code"] = ErrorCode.group_id_not_found
        return described | {"error_message": f"Group {name} is not a classic group."}
    if isinstance(group, ClassicGroup) and not is_empty(group):
        is_settled = group.state is GroupState.STABLE
        return described | {
            "group_state": group.state.value,
            "protocol_type": group.protocol_type or "",
            "protocol_data": group.protocol_name or "" if is_settled else "",
            "members": [_member(member, is_settled) for member in group.members.values()],
        }
    if is_stored:
        members = live_members(node.directory, name)
        return described | {
            "group_state": STABLE if members else EMPTY,
            "protocol_type": _protocol_type(node, name),
            "members": [_embedded(member_id) for member_id in members],
        }
    if request.version >= FIRST_THAT_MISSES_GROUPS:
        described |= {"error_code": ErrorCode.group_id_not_found, "error_message": f"Group {name} not found."}
    return described


def _member(member: Any, is_settled: bool) -> Values:
    return {
        "member_id": member.member_id,
        "group_instance_id": member.instance_id,
        "client_id": member.client_id,
        "client_host": member.client_host,
        "member_metadata": member.metadata if is_settled else b"",
        "member_assignment": member.assignment if is_settled else b"",
    }


def _embedded(member_id: str) -> Values:
    """A consumer in some process of the directory; what it reads is not told in the protocol's form."""
    return {
        "member_id": member_id,
        "group_instance_id": None,
        "client_id": EMBEDDED_CLIENT,
        "client_host": "",
        "member_metadata": b"",
        "member_assignment": b"",
    }


async def delete_groups(node: Node, request: Request) -> bytes:
    results = [
        {"group_id": name, "error_code": await _delete(node, name)} for name in request.body.groups_names
    ]
    return request.reply({"results": results})


async def _delete(node: Node, name: str) -> ErrorCode:
    if node.share.subscription(name) is not None:
        return await _delete_share(node, name)
    group = node.groups.get(name)
    if group is not None and not is_empty(group):
        return ErrorCode.non_empty_group
    await node.groups.settle(name)  # embedded consumers may be told that it is in use
    if name not in await node.run(node.directory.groups.names):
        return ErrorCode.none if group is not None else ErrorCode.group_id_not_found
    try:
        await node.run(delete_group, node.directory, name)
    except InvalidRequestError:
        return ErrorCode.non_empty_group
    except LogbrokerError as error:
        return code_of(error)
    return ErrorCode.none


async def _delete_share(node: Node, name: str) -> ErrorCode:
    """Forget the queue that a share group is."""
    if node.share.has_members(name):
        return ErrorCode.non_empty_group
    try:
        await node.run(delete_subscription, node.directory, node.share.subscriptions, name)
    except LogbrokerError as error:
        return code_of(error)
    return ErrorCode.none
