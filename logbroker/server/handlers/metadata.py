"""Metadata, DescribeCluster, DescribeTopicPartitions: the one broker there is, and the topics."""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from typing import Any

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.events import TopicEvent

from ...topic_names import is_internal
from ..error_codes import code_of
from ..node import LEADER_EPOCH, NODE_ID, Node, topic_uuid
from ..replies import Values
from ..requests import Request, response_header
from .operations import OF_CLUSTER, OF_TOPIC, if_asked_for

FIRST_WITH_NULL_NAME = 12
KEPT_ANSWERS = 20
ALL_BY_ABSENCE = 0  # Metadata 0 has no null: an empty list means every topic


async def metadata(node: Node, request: Request) -> bytes:
    """The answer to the same question is kept until a topic changes: 1,000 partitions take 5 ms to encode."""
    asked = _question(node, request)
    known = node.kept_metadata.get(asked)
    if known is None:
        known = await _metadata(node, request)
        if _question(node, request) == asked:
            node.kept_metadata[asked] = known
            if len(node.kept_metadata) > KEPT_ANSWERS:
                del node.kept_metadata[next(iter(node.kept_metadata))]
    return response_header(request) + known


def _question(node: Node, request: Request) -> tuple[Hashable, ...]:
    body = request.body
    topics = None
    if body.topics is not None:
        topics = tuple((asked.name, getattr(asked, "topic_id", None)) for asked in body.topics)
    create = getattr(body, "allow_auto_topic_creation", True)
    version = node.directory.topics_version()
    operations = _operations_of_topic(request), _operations_of_cluster(request)
    return request.version, version, create, topics, operations


async def _metadata(node: Node, request: Request) -> bytes:
    body = request.body
    create = getattr(body, "allow_auto_topic_creation", True)
    if body.topics is None or (request.version == ALL_BY_ABSENCE and not body.topics):
        topics = [_topic(event, _operations_of_topic(request)) for event in node.topics()]
    else:
        topics = [await _asked_for(node, request, asked, create=create) for asked in body.topics]
    return request.body_of_reply(
        {
            "brokers": [_broker(node)],
            "cluster_id": node.cluster_id,
            "controller_id": NODE_ID,
            "topics": topics,
            "cluster_authorized_operations": _operations_of_cluster(request),
        }
    )


def _operations_of_topic(request: Request) -> int:
    return if_asked_for(request, "include_topic_authorized_operations", OF_TOPIC)


def _operations_of_cluster(request: Request) -> int:
    return if_asked_for(request, "include_cluster_authorized_operations", OF_CLUSTER)


def _broker(node: Node) -> Values:
    return {"node_id": NODE_ID, "host": node.host, "port": node.port, "rack": None}


async def _asked_for(node: Node, request: Request, asked: Any, *, create: bool) -> Values:
    name: str | None = asked.name
    topic_id: uuid.UUID | None = getattr(asked, "topic_id", None)
    try:
        if name is None or topic_id is not None:  # Java sends an empty name beside an id
            event = node.topic_by_id(topic_id)
        else:
            event = await node.topic(name, create=create)
    except LogbrokerError as error:
        return {
            "error_code": code_of(error),
            "name": "" if name is None and request.version < FIRST_WITH_NULL_NAME else name,
            "topic_id": topic_id,
            "is_internal": False,
            "partitions": [],
        }
    return _topic(event, _operations_of_topic(request))


def _topic(event: TopicEvent, operations: int) -> Values:
    return {
        "name": event.name,
        "topic_id": topic_uuid(event),
        "is_internal": is_internal(event.name),
        "partitions": [_partition(number) for number in range(event.partitions)],
        "topic_authorized_operations": operations,
    }


def _partition(number: int) -> Values:
    return {
        "partition_index": number,
        "leader_id": NODE_ID,
        "leader_epoch": LEADER_EPOCH,
        "replica_nodes": (NODE_ID,),
        "isr_nodes": (NODE_ID,),
        "offline_replicas": (),
        "eligible_leader_replicas": (),
        "last_known_elr": (),
    }


async def describe_cluster(node: Node, request: Request) -> bytes:
    endpoint_type = getattr(request.body, "endpoint_type", 1)
    brokers = [{"broker_id": NODE_ID, "host": node.host, "port": node.port, "rack": None, "is_fenced": False}]
    return request.reply(
        {
            "error_message": None,
            "endpoint_type": endpoint_type,
            "cluster_id": node.cluster_id,
            "controller_id": NODE_ID,
            "brokers": brokers,
            "cluster_authorized_operations": _operations_of_cluster(request),
        }
    )


async def describe_topic_partitions(node: Node, request: Request) -> bytes:
    """All of the asked topics at once; so the cursor of the answer is always null."""
    body = request.body
    names = [topic.name for topic in body.topics] or [event.name for event in node.topics()]
    cursor = body.cursor
    topics = []
    for name in sorted(set(names)):
        if cursor is not None and name < cursor.topic_name:
            continue
        first = cursor.partition_index if cursor is not None and name == cursor.topic_name else 0
        topics.append(_described(node, name, first))
    return request.reply({"topics": topics, "next_cursor": None})


def _described(node: Node, name: str, first_partition: int) -> Values:
    try:
        described = dict(_topic(node.directory.topic(name), OF_TOPIC))
    except LogbrokerError as error:
        return {"error_code": code_of(error), "name": name, "topic_id": None, "partitions": []}
    described["partitions"] = described["partitions"][max(0, first_partition) :]
    return described
