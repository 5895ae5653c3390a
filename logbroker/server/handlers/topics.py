"""CreateTopics, DeleteTopics, CreatePartitions, DeleteRecords, DescribeLogDirs."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.catalog import check_partitions
from logbroker_storage.errors import LogbrokerError, TopicNotFoundError
from logbroker_storage.events import TopicEvent
from logbroker_storage.log_config import LogConfig

from ...topic_names import check_topic_name
from ..error_codes import RefusedError, code_of, told_of
from ..node import Node, topic_uuid
from ..replies import Values
from ..requests import Request
from .configs import FIXED, overrides
from .replicas import check_replicas

BY_DEFAULT = -1
REPLICATION_FACTORS = (-1, 1)
FIRST_WITH_TOPIC_ID = 6
HIGH_WATERMARK = -1


async def create(node: Node, request: Request) -> bytes:
    body = request.body
    names = Counter(topic.name for topic in body.topics)
    topics = []
    for topic in {topic.name: topic for topic in body.topics}.values():  # each is answered once
        try:
            if names[topic.name] > 1:
                raise RefusedError(ErrorCode.invalid_request, "the topic is named twice")
            topics.append(await _create(node, topic, validate_only=body.validate_only))
        except LogbrokerError as error:
            topics.append(
                {"name": topic.name, "topic_id": None, "num_partitions": -1, "replication_factor": -1}
                | told_of(error)
                | {"configs": None}
            )
    return request.reply({"topics": topics})


async def _create(node: Node, topic: Any, *, validate_only: bool) -> Values:
    check_topic_name(topic.name)
    if topic.replication_factor not in REPLICATION_FACTORS:
        raise RefusedError(ErrorCode.invalid_replication_factor, "there is one broker: no replicas")
    partitions = topic.num_partitions
    if topic.assignments:
        if partitions not in (BY_DEFAULT, len(topic.assignments)):
            raise RefusedError(ErrorCode.invalid_request, "num_partitions and assignments disagree")
        for given in topic.assignments:
            check_replicas(given.broker_ids)
        partitions = len(topic.assignments)
        if {given.partition_index for given in topic.assignments} != set(range(partitions)):
            raise RefusedError(
                ErrorCode.invalid_replica_assignment, "partitions are numbered from 0, each assigned once"
            )
    if partitions == BY_DEFAULT:
        partitions = node.settings.default_partitions
    config = LogConfig.parse({item.name: item.value for item in topic.configs if item.value is not None})
    created: dict[str, Any] = {
        "name": topic.name,
        "topic_id": None,
        "error_message": None,
        "num_partitions": partitions,
        "replication_factor": 1,
        "configs": [
            {"name": name, "value": value, "read_only": name in FIXED, "config_source": source}
            | {"is_sensitive": False}
            for name, value, source in overrides(config)
        ],
    }
    if validate_only:
        check_partitions(partitions)
        if topic.name in node.directory.topics():
            raise RefusedError(ErrorCode.topic_already_exists, f"topic {topic.name!r} already exists")
        return created
    event = await node.run(node.directory.create_topic, topic.name, partitions, config)
    created["topic_id"] = topic_uuid(event)
    return created


async def delete(node: Node, request: Request) -> bytes:
    body = request.body
    if request.version < FIRST_WITH_TOPIC_ID:
        asked: list[tuple[str | None, Any]] = [(name, None) for name in body.topic_names]
    else:
        asked = [(topic.name, topic.topic_id) for topic in body.topics]
    responses = [
        await _delete(node, name, topic_id, times=times) for (name, topic_id), times in Counter(asked).items()
    ]
    return request.reply({"responses": responses})


async def _delete(node: Node, name: str | None, topic_id: Any, *, times: int) -> Values:
    deleted: dict[str, Any] = {"name": name, "topic_id": topic_id, "error_message": None}
    try:
        if times > 1:
            raise RefusedError(ErrorCode.invalid_request, "the topic is named twice")
        if name is not None and topic_id is not None:
            raise RefusedError(ErrorCode.invalid_request, "a topic is named or its id is given, not both")
        event = node.topic_by_id(topic_id) if name is None else node.directory.topic(name)
        deleted |= {"name": event.name, "topic_id": topic_uuid(event)}
        check_topic_name(event.name)
        await node.run(node.directory.delete_topic, event.name)
    except LogbrokerError as error:
        return deleted | told_of(error)
    for number in range(event.partitions):
        node.watch.forget((event.name, number))
    return deleted


async def create_partitions(node: Node, request: Request) -> bytes:
    body = request.body
    names = Counter(topic.name for topic in body.topics)
    results = []
    for topic in {topic.name: topic for topic in body.topics}.values():  # each is answered once
        result: dict[str, Any] = {"name": topic.name, "error_message": None}
        try:
            if names[topic.name] > 1:
                raise RefusedError(ErrorCode.invalid_request, "the topic is named twice")
            await _add_partitions(node, topic, validate_only=body.validate_only)
        except LogbrokerError as error:
            result |= told_of(error)
        results.append(result)
    return request.reply({"results": results})


async def _add_partitions(node: Node, topic: Any, *, validate_only: bool) -> None:
    event = node.directory.topic(topic.name)
    check_topic_name(event.name)
    if topic.count <= event.partitions:
        raise RefusedError(
            ErrorCode.invalid_partitions, f"it has {event.partitions} partitions, and can only grow"
        )
    check_partitions(topic.count)
    if topic.assignments is not None:
        if len(topic.assignments) != topic.count - event.partitions:
            raise RefusedError(ErrorCode.invalid_replica_assignment, "one assignment for each new partition")
        for given in topic.assignments:
            check_replicas(given.broker_ids)
    if not validate_only:
        await node.run(node.directory.add_partitions, topic.name, topic.count)


async def delete_records(node: Node, request: Request) -> bytes:
    topics = [
        {
            "name": topic.name,
            "partitions": await node.run(_delete_from, node, topic),
        }
        for topic in request.body.topics
    ]
    return request.reply({"topics": topics})


def _delete_from(node: Node, topic: Any) -> list[Values]:
    return [_delete_records(node, topic.name, part) for part in topic.partitions]


def _delete_records(node: Node, topic: str, part: Any) -> Values:
    try:
        log = node.directory.log(check_topic_name(topic), part.partition_index)
        if not log.config.cleanup_policy.deletes:
            raise RefusedError(
                ErrorCode.policy_violation, "of a compacted topic only compaction removes records"
            )
        offsets = log.offsets()
        before = offsets.high_watermark if part.offset == HIGH_WATERMARK else part.offset
        if not 0 <= before <= offsets.high_watermark:
            raise RefusedError(ErrorCode.offset_out_of_range)
        low_watermark = node.directory.delete_records(topic, part.partition_index, before)
    except LogbrokerError as error:
        return {
            "partition_index": part.partition_index,
            "low_watermark": -1,
            "error_code": code_of(error),
        }
    return {"partition_index": part.partition_index, "low_watermark": low_watermark}


# Sizes ----------------------------------------------------------------------------------------------------


async def describe_log_dirs(node: Node, request: Request) -> bytes:
    return request.reply({"results": [await node.run(_log_dir, node, request.body.topics)]})


def _log_dir(node: Node, asked: Any) -> Values:
    if asked is None:
        wanted = {event.name: range(event.partitions) for event in node.topics()}
    else:
        wanted = {topic.topic: topic.partitions for topic in asked}
    space = os.statvfs(node.directory.layout.logs)
    topics = []
    for name, numbers in wanted.items():
        event = node.directory.catalog.all().get(name)
        if event is not None and event.state == "live":
            topics.append({"name": name, "partitions": _sizes(node, event, numbers)})
    return {
        "log_dir": os.path.abspath(node.directory.layout.logs),
        "topics": topics,
        "total_bytes": space.f_frsize * space.f_blocks,
        "usable_bytes": space.f_frsize * space.f_bavail,
    }


def _sizes(node: Node, event: TopicEvent, numbers: Any) -> list[Values]:
    sizes: list[Values] = []
    for number in numbers:
        try:
            size_bytes = node.directory.log(event.name, number).size_bytes()
        except TopicNotFoundError:
            continue  # no such partition, or deleted meanwhile
        sizes.append(
            {
                "partition_index": number,
                "partition_size": size_bytes,
                "offset_lag": 0,
                "is_future_key": False,
            }
        )
    return sizes
