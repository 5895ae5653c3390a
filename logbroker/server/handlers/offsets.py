"""OffsetCommit, OffsetFetch, OffsetDelete: what groups have read.

A commit is durable when it is answered, and the records below it are as well. Every consumer of the directory
sees it: embedded, over the network, ``logbroker group``.
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError, WriteFailedError
from logbroker_storage.events import OffsetEvent

from ...commits import items_of
from ...group_store import is_on_other_server, live_members
from ..classic_group import ClassicGroup
from ..consumer_group import ConsumerGroup
from ..consumer_protocol import CONSUMER_PROTOCOL_TYPE
from ..error_codes import RefusedError, check_group_id, code_of, trouble
from ..group_registry import is_empty
from ..node import Node
from ..replies import Values
from ..requests import Request

FIRST_WITH_TOPIC_ID = 10
FIRST_WITH_SEVERAL_GROUPS = 8
FIRST_WITH_NULL_TOPICS = 2
MAX_METADATA_BYTES = 4096  # Kafka's offset.metadata.max.bytes
NO_OFFSET, NO_EPOCH = -1, -1


# Committing ---------------------------------------------------------------------------------------------


async def commit(node: Node, request: Request) -> bytes:
    """One commit of a group after the other: a late one of an older generation must not come behind a newer."""
    async with node.groups.committing(request.body.group_id):
        return await _commit(node, request)


async def _commit(node: Node, request: Request) -> bytes:
    body = request.body
    named_by_id = request.version >= FIRST_WITH_TOPIC_ID
    try:
        check_member(
            node,
            body.group_id,
            body.member_id,
            getattr(body, "group_instance_id", None),
            body.generation_id_or_member_epoch,
        )
    except RefusedError as error:
        refused = error.code
        return request.reply(_outcome(body.topics, lambda _topic, _partition: refused))
    errors: dict[tuple[int, int], ErrorCode] = {}
    events: list[OffsetEvent] = []
    for number, topic in enumerate(body.topics):
        for part in topic.partitions:
            try:
                name = node.topic_by_id(topic.topic_id).name if named_by_id else topic.name
                events.append(offset_event(node, body.group_id, name, part))
            except LogbrokerError as error:
                errors[number, part.partition_index] = code_of(error)
    failed = await node.run(_write, node.directory, events)
    return request.reply(
        _outcome(
            body.topics, lambda topic, partition: errors.get((topic, partition), failed or ErrorCode.none)
        )
    )


def check_group(node: Node, group_id: str) -> None:
    """That there can be a consumer group of this name, whoever commits.

    Raises:
        RefusedError: there cannot.
    """
    check_group_id(group_id)
    if node.share.subscription(group_id) is not None:
        raise RefusedError(ErrorCode.group_id_not_found, f"Group {group_id} is a share group.")


def check_member(node: Node, group_id: str, member_id: str, instance_id: str | None, generation: int) -> None:
    """That whoever commits is a member at the right generation, or nobody is in the group.

    Raises:
        RefusedError: says which it is not.
    """
    check_group(node, group_id)
    _check_not_elsewhere(node, group_id)
    group = node.groups.get(group_id)
    if isinstance(group, ClassicGroup):
        refusal = group.check_commit(member_id, instance_id, generation, node.groups.now_ms())
        node.groups.touched(group_id)
    elif isinstance(group, ConsumerGroup):
        refusal = group.check_commit(member_id, generation)
    elif generation >= 0 or live_members(node.directory, group_id):
        # A member of before a restart. Java's KIP-848 consumers fail for any other code (KafkaException).
        refusal = ErrorCode.unknown_member_id
    else:
        refusal = ErrorCode.none
    if refusal is not ErrorCode.none:
        raise RefusedError(refusal)


def _check_not_elsewhere(node: Node, group_id: str) -> None:
    """That the members of the group are not those of another server of the directory.

    Raises:
        RefusedError: they are, so that nothing is known of them here.
    """
    group = node.groups.get(group_id)
    if (group is None or is_empty(group)) and is_on_other_server(node.directory, group_id):
        raise RefusedError(ErrorCode.coordinator_not_available, "another server has members in the group")


def offset_event(node: Node, group_id: str, topic: str, part: Any) -> OffsetEvent:
    """The event of one committed offset; a negative one stands for none, as to a client that fetches it.

    Raises:
        TopicNotFoundError: there is no such partition.
        RefusedError: the metadata is too long.
    """
    node.directory.log(topic, part.partition_index)
    metadata = part.committed_metadata or ""
    if len(metadata.encode()) > MAX_METADATA_BYTES:
        raise RefusedError(ErrorCode.offset_metadata_too_large)
    now_ms = node.directory.clock.now_ms()
    return OffsetEvent(group_id, topic, part.partition_index, part.committed_offset, metadata, now_ms)


def _write(directory: DataDirectory, events: list[OffsetEvent]) -> ErrorCode | None:
    """In a thread; the error that all of them met, None when they last."""
    try:
        directory.sync_below(events)
        directory.journal.write(items_of(events))
    except WriteFailedError as error:
        trouble.tell(error)
        return ErrorCode.coordinator_not_available
    except LogbrokerError as error:
        return code_of(error)
    return None


def _outcome(topics: Any, error_of: Any) -> Values:
    return {
        "topics": [
            {
                "name": getattr(topic, "name", None),
                "topic_id": getattr(topic, "topic_id", None),
                "partitions": [
                    {
                        "partition_index": part.partition_index,
                        "error_code": error_of(number, part.partition_index),
                    }
                    for part in topic.partitions
                ],
            }
            for number, topic in enumerate(topics)
        ]
    }


# Fetching -----------------------------------------------------------------------------------------------


async def fetch(node: Node, request: Request) -> bytes:
    body = request.body
    require_stable = getattr(body, "require_stable", False)
    if request.version < FIRST_WITH_SEVERAL_GROUPS:
        topics = body.topics
        if topics is not None and not topics and request.version < FIRST_WITH_NULL_TOPICS:
            return request.reply({"topics": []})
        return request.reply({"topics": _committed(node, request, body.group_id, topics, require_stable)})
    return request.reply({"groups": [_group(node, request, asked, require_stable) for asked in body.groups]})


def _group(node: Node, request: Request, asked: Any, require_stable: bool) -> Values:
    try:
        _check_epoch(node, asked)
    except RefusedError as error:
        return {"group_id": asked.group_id, "topics": [], "error_code": error.code}
    topics = _committed(node, request, asked.group_id, asked.topics, require_stable)
    return {"group_id": asked.group_id, "topics": topics}


def _check_epoch(node: Node, asked: Any) -> None:
    member_id = getattr(asked, "member_id", None)
    group = node.groups.get(asked.group_id)
    if not member_id or asked.member_epoch < 0:
        return
    if isinstance(group, ConsumerGroup):
        error = group.check_commit(member_id, asked.member_epoch)
        if error is not ErrorCode.none:
            raise RefusedError(error)
    elif group is None:
        raise RefusedError(ErrorCode.unknown_member_id)


def _committed(
    node: Node, request: Request, group_id: str, topics: Any, require_stable: bool
) -> list[Values]:
    undecided = node.network_transactions.pending_offsets(group_id) if require_stable else frozenset()
    if topics is None:
        return _all_committed(node, request, group_id, undecided)
    found: list[Values] = []
    for topic in topics:
        name = getattr(topic, "name", None)
        topic_id = getattr(topic, "topic_id", None)
        error = ErrorCode.none
        if request.version >= FIRST_WITH_TOPIC_ID:
            try:
                name = node.topic_by_id(topic_id).name
            except RefusedError as refused:
                error = refused.code
        parts = [_part(node, group_id, name, index, error, undecided) for index in topic.partition_indexes]
        found.append({"name": name, "topic_id": topic_id, "partitions": parts})
    return found


def _part(
    node: Node,
    group_id: str,
    topic: str | None,
    index: int,
    error: ErrorCode,
    undecided: frozenset[tuple[str, int]],
) -> Values:
    event = None if topic is None else node.directory.groups.committed(group_id, topic, index)
    if (topic, index) in undecided:
        event, error = None, ErrorCode.unstable_offset_commit
    return {
        "partition_index": index,
        "committed_offset": NO_OFFSET if event is None else event.offset,
        "committed_leader_epoch": NO_EPOCH,
        "metadata": "" if event is None else event.metadata,
        "error_code": error,
    }


def _all_committed(
    node: Node, request: Request, group_id: str, undecided: frozenset[tuple[str, int]]
) -> list[Values]:
    topics: dict[str, list[Values]] = {}
    for event in node.directory.groups.committed_offsets(group_id):
        part = _part(node, group_id, event.topic, event.partition, ErrorCode.none, undecided)
        topics.setdefault(event.topic, []).append(part)
    found: list[Values] = []
    for name, parts in topics.items():
        topic_id = None
        if request.version >= FIRST_WITH_TOPIC_ID:
            topic_id = node.topic_uuid(name)
        found.append({"name": name, "topic_id": topic_id, "partitions": parts})
    return found


# Deleting -----------------------------------------------------------------------------------------------


async def delete(node: Node, request: Request) -> bytes:
    body = request.body
    if not node.directory.groups.has(body.group_id):
        return request.reply({"error_code": ErrorCode.group_id_not_found, "topics": []})
    try:
        subscribed = _subscribed_topics(node, body.group_id)
    except RefusedError as refused:
        return request.reply({"error_code": refused.code, "topics": []})
    keys = []
    topics = []
    for topic in body.topics:
        parts = []
        for part in topic.partitions:
            error = ErrorCode.none
            if subscribed is None or topic.name in subscribed:
                error = ErrorCode.group_subscribed_to_topic
            elif node.directory.groups.committed(body.group_id, topic.name, part.partition_index) is not None:
                keys.append(OffsetEvent.key_of(body.group_id, topic.name, part.partition_index))
            parts.append({"partition_index": part.partition_index, "error_code": error})
        topics.append({"name": topic.name, "partitions": parts})
    try:
        await node.run(node.directory.journal.delete, keys)
    except LogbrokerError as error:
        return request.reply({"error_code": code_of(error), "topics": []})
    return request.reply({"topics": topics})


def _subscribed_topics(node: Node, group_id: str) -> frozenset[str] | None:
    """The topics that live members of the group read, whoever they are; None when they cannot be known.

    Raises:
        RefusedError: it has members that are no consumers, as those of Kafka Connect, or members elsewhere.
    """
    _check_not_elsewhere(node, group_id)
    group = node.groups.get(group_id)
    if group is None or is_empty(group):
        existing = node.directory.topics()
        members = live_members(node.directory, group_id).values()
        return frozenset(topic for member in members for topic in member.selection.resolve(existing))
    if isinstance(group, ConsumerGroup):
        return group.subscribed_topics(node.groups.shapes())
    if group.protocol_type != CONSUMER_PROTOCOL_TYPE:
        raise RefusedError(ErrorCode.non_empty_group)
    return group.subscribed_topics()
