"""ElectLeaders, AlterPartitionReassignments, ListPartitionReassignments: partitions where they must be.

Each partition has one replica, on the one broker there is, which leads it. So no election is needed and no
reassignment is ever in progress; one to this broker is done already, and another cannot be done.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import LogbrokerError

from ..error_codes import RefusedError, told_of
from ..node import NODE_ID, Node
from ..replies import Values
from ..requests import Request

PREFERRED, UNCLEAN = 0, 1


def check_replicas(broker_ids: Collection[int]) -> None:
    """That a partition is to be where it can be.

    Raises:
        RefusedError: it is to be on a broker that does not exist, on several, or on none.
    """
    if tuple(broker_ids) != (NODE_ID,):
        raise RefusedError(
            ErrorCode.invalid_replica_assignment, f"each partition is on broker {NODE_ID}, and on no other"
        )


def _check_partition(node: Node, topic: str, number: int) -> None:
    """That there is such a partition.

    Raises:
        RefusedError, TopicNotFoundError: there is none.
    """
    if not 0 <= number < node.directory.topic(topic).partitions:
        raise RefusedError(ErrorCode.unknown_topic_or_partition, f"there is no partition {topic}-{number}")


# Leaders ----------------------------------------------------------------------------------------------------


async def elect_leaders(node: Node, request: Request) -> bytes:
    body = request.body
    election_type = getattr(body, "election_type", PREFERRED)
    if election_type not in (PREFERRED, UNCLEAN):
        return request.reply({"error_code": ErrorCode.invalid_request, "replica_election_results": []})
    if body.topic_partitions is None:  # all: of those only partitions that need an election are told
        results: list[Values] = [{"topic": event.name, "partition_result": []} for event in node.topics()]
    else:
        results = [
            {
                "topic": asked.topic,
                "partition_result": [_elected(node, asked.topic, number) for number in asked.partitions],
            }
            for asked in body.topic_partitions
        ]
    return request.reply({"replica_election_results": results})


def _elected(node: Node, topic: str, number: int) -> Values:
    try:
        _check_partition(node, topic, number)
    except LogbrokerError as error:
        return {"partition_id": number} | told_of(error)
    leads = f"broker {NODE_ID} leads the partition"
    return {"partition_id": number, "error_code": ErrorCode.election_not_needed, "error_message": leads}


# Reassignments ----------------------------------------------------------------------------------------------


async def alter_reassignments(node: Node, request: Request) -> bytes:
    responses = [
        {
            "name": topic.name,
            "partitions": [_reassigned(node, topic.name, part) for part in topic.partitions],
        }
        for topic in request.body.topics
    ]
    return request.reply(
        {
            "allow_replication_factor_change": getattr(request.body, "allow_replication_factor_change", True),
            "error_message": None,
            "responses": responses,
        }
    )


def _reassigned(node: Node, topic: str, part: Any) -> Values:
    reassigned: dict[str, Any] = {"partition_index": part.partition_index, "error_message": None}
    try:
        _check_partition(node, topic, part.partition_index)
        if part.replicas is None:
            raise RefusedError(
                ErrorCode.no_reassignment_in_progress, "there is no reassignment that could be cancelled"
            )
        check_replicas(part.replicas)
    except LogbrokerError as error:
        reassigned |= told_of(error)
    return reassigned


async def list_reassignments(node: Node, request: Request) -> bytes:  # noqa: ARG001 (a handler)
    return request.reply({"error_message": None, "topics": []})
