"""ListOffsets and OffsetForLeaderEpoch: where a partition begins and ends, and where a time is in it."""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.partition_log import PartitionLog

from ..error_codes import RefusedError, code_of
from ..node import LEADER_EPOCH, Node
from ..replies import Values
from ..requests import Request

LATEST, EARLIEST, MAX_TIMESTAMP, EARLIEST_LOCAL, LATEST_TIERED, EARLIEST_PENDING_UPLOAD = (
    -1,
    -2,
    -3,
    -4,
    -5,
    -6,
)
NOTHING = -1


async def handle(node: Node, request: Request) -> bytes:
    isolated = getattr(request.body, "isolation_level", 0)
    isolation = Isolation.READ_COMMITTED if isolated else Isolation.READ_UNCOMMITTED
    topics = [
        {
            "name": topic.name,
            "partitions": await node.run(_partitions, node, topic, isolation),
        }
        for topic in request.body.topics
    ]
    return request.reply({"topics": topics})


def _partitions(node: Node, topic: Any, isolation: Isolation) -> list[Values]:
    return [_partition(node, topic.name, data, isolation) for data in topic.partitions]


def _partition(node: Node, topic: str, data: Any, isolation: Isolation) -> Values:
    index = data.partition_index
    try:
        log = node.directory.log(topic, index)
        _check_epoch(getattr(data, "current_leader_epoch", -1))
        timestamp_ms, offset = _found(log, data.timestamp, isolation)
    except LogbrokerError as error:
        return {"partition_index": index, "error_code": code_of(error)}
    return {
        "partition_index": index,
        "timestamp": timestamp_ms,
        "offset": offset,
        "leader_epoch": LEADER_EPOCH if offset >= 0 else -1,
    }


def _check_epoch(epoch: int) -> None:
    if epoch > LEADER_EPOCH:
        raise RefusedError(ErrorCode.unknown_leader_epoch)


def _found(log: PartitionLog, wanted: int, isolation: Isolation) -> tuple[int, int]:
    """The timestamp and offset that *wanted*, a time or one of the special values, leads to; -1 for neither."""
    offsets = log.offsets()
    if wanted == LATEST:
        return NOTHING, offsets.visible_end(isolation)
    if wanted in (EARLIEST, EARLIEST_LOCAL):
        return NOTHING, offsets.log_start_offset
    if wanted in (LATEST_TIERED, EARLIEST_PENDING_UPLOAD):
        return NOTHING, NOTHING  # nothing is stored elsewhere
    if wanted == MAX_TIMESTAMP:
        found = log.newest_record()
    elif wanted >= 0:
        found = log.record_at_time(wanted)
    else:
        raise RefusedError(ErrorCode.invalid_request, f"{wanted} is no time")
    if found is None or found.offset >= offsets.visible_end(isolation):
        return NOTHING, NOTHING
    return found.timestamp_ms, found.offset


async def offset_for_leader_epoch(node: Node, request: Request) -> bytes:
    topics = [
        {
            "topic": topic.topic,
            "partitions": [_epoch_end(node, topic.topic, data) for data in topic.partitions],
        }
        for topic in request.body.topics
    ]
    return request.reply({"topics": topics})


def _epoch_end(node: Node, topic: str, data: Any) -> Values:
    try:
        log = node.directory.log(topic, data.partition)
        _check_epoch(data.current_leader_epoch)
        is_known = data.leader_epoch == LEADER_EPOCH
        return {
            "partition": data.partition,
            "leader_epoch": LEADER_EPOCH if is_known else -1,
            "end_offset": log.offsets().high_watermark if is_known else NOTHING,
        }
    except LogbrokerError as error:
        return {"partition": data.partition, "error_code": code_of(error)}
