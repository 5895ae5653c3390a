"""DescribeShareGroupOffsets, AlterShareGroupOffsets, DeleteShareGroupOffsets: how far share groups are.

A group's start offset in a partition is that of the queue: every message below it is done. Nobody may be in the group
when it is changed; messages in the hands of embedded consumers are theirs no longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import LogbrokerError

from ...queues.partition import QueuePartition
from ...subscriptions import Subscription
from ...topic_selection import TopicSelection
from ..error_codes import RefusedError, told_of
from ..node import LEADER_EPOCH, Node
from ..replies import Values
from ..requests import Request
from ..share_groups import check_name

NO_OFFSET = NO_LAG = -1


def _empty_group(node: Node, group_id: str) -> Subscription:
    """The subscription of a group that nobody is in.

    Raises:
        RefusedError: somebody is, or there is no such group.
    """
    subscription = node.share.existing(group_id)
    if node.share.has_members(group_id):
        raise RefusedError(ErrorCode.non_empty_group, f"Group {group_id} has members; stop them first.")
    return subscription


# Looking ----------------------------------------------------------------------------------------------------


async def describe(node: Node, request: Request) -> bytes:
    return request.reply(
        {"groups": [await node.run(_described, node, asked) for asked in request.body.groups]}
    )


def _described(node: Node, asked: Any) -> Values:
    described = {"group_id": asked.group_id, "topics": [], "error_message": None}
    try:
        subscription = node.share.existing(asked.group_id)
    except RefusedError as error:
        return described | told_of(error)
    if asked.topics is None:
        wanted: dict[str, list[int]] = {}
        for topic, number in node.share.subscriptions.places(subscription):
            wanted.setdefault(topic, []).append(number)
    else:
        wanted = {topic.topic_name: list(topic.partitions) for topic in asked.topics}
    return described | {
        "topics": [
            {
                "topic_name": topic,
                "topic_id": node.topic_uuid(topic),
                "partitions": [
                    _partition(node, subscription, topic, number) for number in sorted({*numbers})
                ],
            }
            for topic, numbers in wanted.items()
        ]
    }


def _partition(node: Node, subscription: Subscription, topic: str, number: int) -> Values:
    part: dict[str, Any] = {
        "partition_index": number,
        "start_offset": NO_OFFSET,
        "leader_epoch": LEADER_EPOCH,
        "lag": NO_LAG,
        "error_message": None,
    }
    try:
        node.directory.log(topic, number)
        if not subscription.selection.wants(topic):
            return part
        partition = node.share.partitions.of(subscription, (topic, number))
        return part | {"start_offset": partition.progress().start_offset, "lag": partition.lag()}
    except LogbrokerError as error:
        return part | told_of(error)


# Changing ---------------------------------------------------------------------------------------------------


async def alter(node: Node, request: Request) -> bytes:
    body = request.body
    try:
        _empty_group(node, body.group_id)
    except RefusedError as error:
        return request.reply(told_of(error) | {"responses": []})
    responses = [await node.run(_altered, node, body.group_id, topic) for topic in body.topics]
    return request.reply({"error_message": None, "responses": responses})


def _altered(node: Node, group_id: str, topic: Any) -> Values:
    return {
        "topic_name": topic.topic_name,
        "topic_id": node.topic_uuid(topic.topic_name),
        "partitions": [
            _alter(node, group_id, topic.topic_name, number, offset)
            for number, offset in {
                part.partition_index: part.start_offset for part in topic.partitions
            }.items()
        ],
    }


def _alter(node: Node, group_id: str, topic: str, number: int, start_offset: int) -> Values:
    altered: dict[str, Any] = {"partition_index": number, "error_message": None}
    try:
        offsets = node.directory.log(check_name(topic), number).offsets()
        if not 0 <= start_offset <= offsets.high_watermark:
            raise RefusedError(
                ErrorCode.offset_out_of_range,
                f"{start_offset} is not in [0, {offsets.high_watermark}]",
            )
        subscription = node.share.widen(group_id, [topic])
        partition = QueuePartition(node.directory, subscription, (topic, number))
        partition.reset(max(start_offset, offsets.log_start_offset))
    except LogbrokerError as error:
        return altered | told_of(error)
    return altered


# Deleting ---------------------------------------------------------------------------------------------------


async def delete(node: Node, request: Request) -> bytes:
    body = request.body
    try:
        subscription = _empty_group(node, body.group_id)
        names = [topic.topic_name for topic in body.topics]
        errors = {name: _refusal(subscription, name) for name in names}
        leaving = [name for name in names if errors[name] is None]
        if leaving:
            await node.run(_leave, node, subscription, leaving)
    except LogbrokerError as error:
        return request.reply(told_of(error) | {"responses": []})
    return request.reply(
        {
            "error_message": None,
            "responses": [
                {
                    "topic_name": name,
                    "topic_id": node.topic_uuid(name),
                    "error_code": ErrorCode.none if refusal is None else ErrorCode.unknown_topic_or_partition,
                    "error_message": refusal,
                }
                for name, refusal in errors.items()
            ],
        }
    )


def _refusal(subscription: Subscription, topic: str) -> str | None:
    """Why the group cannot leave *topic*, None when it can."""
    if TopicSelection((), subscription.selection.patterns).wants(topic):
        return f"the group reads {topic} by a pattern; change the subscription instead"
    return None if topic in subscription.selection.names else f"the group does not read {topic}"


def _leave(node: Node, subscription: Subscription, topics: Iterable[str]) -> None:
    """In a thread: have the group read *topics* no longer, durably."""
    topics = list(topics)
    partitions = [
        QueuePartition(node.directory, subscription, place)
        for place in node.share.subscriptions.places(subscription)
        if place[0] in topics
    ]
    node.share.subscriptions.leave_topics(subscription.name, topics)
    for partition in partitions:
        partition.forget()
