"""InitProducerId and transactions: partitions and offsets of one, its end, and what there is to see of them."""

from __future__ import annotations

import datetime
from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.events import OffsetEvent, TransactionEvent

from ...holdings import Claim, Holding
from ..error_codes import code_of, told_of
from ..expressions import ExpressionError, compile_expression
from ..node import Node
from ..replies import Values
from ..requests import Request
from .offsets import check_group, check_member, offset_event

NO_PRODUCER_ID, NO_EPOCH = -1, -1
NOT_STARTED_MS = -1
FIRST_EPOCH = 0
FIRST_OF_SEVERAL = 4  # AddPartitionsToTxn
FIRST_WITH_PRODUCER_FENCED = {"InitProducerId": 4, "AddPartitionsToTxn": 2, "AddOffsetsToTxn": 2, "EndTxn": 2}
FIRST_ENDTXN_OF_V2 = 5
FIRST_WITH_MEMBERS = 3  # TxnOffsetCommit
ANY_GENERATION = -1
# One that was begun and has no holder any more is gone.
STATES = {"commit": "CompleteCommit", "abort": "CompleteAbort", "empty": "Empty", "begun": "Empty"}
ONGOING = "Ongoing"


def _fenced(request: Request, name: str) -> ErrorCode:
    """The code of a fenced producer; clients of old know no other than this one."""
    is_known = request.version >= FIRST_WITH_PRODUCER_FENCED[name]
    return ErrorCode.producer_fenced if is_known else ErrorCode.invalid_producer_epoch


def _code(error: LogbrokerError) -> ErrorCode:
    """A coordinator whose disk fails is not available now: the client tries again.

    Of an error of storage it would believe that nothing was decided, and abort what may be committed.
    """
    code = code_of(error)
    return ErrorCode.coordinator_not_available if code is ErrorCode.kafka_storage_error else code


async def init_producer_id(node: Node, request: Request) -> bytes:
    body = request.body
    try:
        if body.transactional_id is None:
            producer_id = await node.run(node.directory.producer_ids.allocate)
            return request.reply({"producer_id": producer_id, "producer_epoch": FIRST_EPOCH})
        claim = await node.run(_begin_holding, node, request)
    except LogbrokerError as error:
        return request.reply(
            {"error_code": _code(error), "producer_id": NO_PRODUCER_ID, "producer_epoch": NO_EPOCH}
        )
    return request.reply({"producer_id": claim.producer_id, "producer_epoch": claim.epoch})


def _begin_holding(node: Node, request: Request) -> Claim:
    body = request.body
    return node.network_transactions.begin_holding(
        body.transactional_id,
        timeout_ms=int(body.transaction_timeout.total_seconds() * 1000),
        producer_id=getattr(body, "producer_id", NO_PRODUCER_ID),
        producer_epoch=getattr(body, "producer_epoch", NO_EPOCH),
        fenced=_fenced(request, "InitProducerId"),
    )


# Partitions and offsets -----------------------------------------------------------------------------------


async def add_partitions(node: Node, request: Request) -> bytes:
    body = request.body
    if request.version >= FIRST_OF_SEVERAL:
        results: list[Values] = [
            {
                "transactional_id": transaction.transactional_id,
                "topic_results": await node.run(
                    _add_partitions,
                    node,
                    request,
                    transaction.transactional_id,
                    transaction.producer_id,
                    transaction.producer_epoch,
                    transaction.topics,
                    transaction.verify_only,
                ),
            }
            for transaction in body.transactions
        ]
        return request.reply({"results_by_transaction": results})
    results = await node.run(
        _add_partitions,
        node,
        request,
        body.v3_and_below_transactional_id,
        body.v3_and_below_producer_id,
        body.v3_and_below_producer_epoch,
        body.v3_and_below_topics,
        False,
    )
    return request.reply({"results_by_topic_v3_and_below": results})


def _add_partitions(
    node: Node,
    request: Request,
    transactional_id: str,
    producer_id: int,
    producer_epoch: int,
    topics: Any,
    verify_only: bool,
) -> list[Values]:
    places = [(topic.name, partition) for topic in topics for partition in topic.partitions]
    errors = {place: _missing(node, place) for place in places}
    if any(errors.values()):  # all or nothing, as in Kafka
        errors = {place: error or ErrorCode.operation_not_attempted for place, error in errors.items()}
    else:
        failed = ErrorCode.none
        try:
            node.network_transactions.add_partitions(
                transactional_id,
                producer_id,
                producer_epoch,
                places,
                fenced=_fenced(request, "AddPartitionsToTxn"),
                verify_only=verify_only,
            )
        except LogbrokerError as error:
            failed = _code(error)
        errors = dict.fromkeys(places, failed)
    return [
        {
            "name": topic.name,
            "results_by_partition": [
                {"partition_index": number, "partition_error_code": errors[topic.name, number]}
                for number in topic.partitions
            ],
        }
        for topic in topics
    ]


def _missing(node: Node, place: tuple[str, int]) -> ErrorCode | None:
    try:
        node.directory.log(*place)
    except LogbrokerError as error:
        return code_of(error)
    return None


async def add_offsets(node: Node, request: Request) -> bytes:
    """The group's offsets are of the transaction; there is no partition to add for them here."""
    try:
        await node.run(_check_holder, node, request)
    except LogbrokerError as error:
        return request.reply({"error_code": _code(error)})
    return request.reply({})


def _check_holder(node: Node, request: Request) -> None:
    body = request.body
    node.network_transactions.check_holder(
        body.transactional_id,
        body.producer_id,
        body.producer_epoch,
        fenced=_fenced(request, "AddOffsetsToTxn"),
    )


async def commit_offsets(node: Node, request: Request) -> bytes:
    body = request.body
    refused: ErrorCode | None = None
    errors: dict[tuple[str, int], ErrorCode] = {}
    events = []
    try:
        _check_committer(node, request)
        for topic in body.topics:
            for part in topic.partitions:
                try:
                    events.append(offset_event(node, body.group_id, topic.name, part))
                except LogbrokerError as error:
                    errors[topic.name, part.partition_index] = code_of(error)
        claim = Claim(body.transactional_id, body.producer_id, body.producer_epoch)
        await node.run(_add_offsets, node, claim, events)
    except LogbrokerError as error:
        refused = _code(error)
    topics = [
        {
            "name": topic.name,
            "partitions": [
                {
                    "partition_index": part.partition_index,
                    "error_code": refused or errors.get((topic.name, part.partition_index), ErrorCode.none),
                }
                for part in topic.partitions
            ],
        }
        for topic in body.topics
    ]
    return request.reply({"topics": topics})


def _add_offsets(node: Node, claim: Claim, events: list[OffsetEvent]) -> None:
    node.network_transactions.add_offsets(claim, events, fenced=ErrorCode.invalid_producer_epoch)


def _check_committer(node: Node, request: Request) -> None:
    """A client that tells its generation must be a member in it; one that does not is trusted (KIP-447)."""
    body = request.body
    generation = getattr(body, "generation_id", ANY_GENERATION)
    member_id = getattr(body, "member_id", "")
    if request.version < FIRST_WITH_MEMBERS or (generation == ANY_GENERATION and not member_id):
        check_group(node, body.group_id)
    else:
        check_member(node, body.group_id, member_id, body.group_instance_id, generation)


async def end(node: Node, request: Request) -> bytes:
    body = request.body
    claim = Claim(body.transactional_id, body.producer_id, body.producer_epoch)
    keeps_epoch = request.version < FIRST_ENDTXN_OF_V2
    try:
        following = await node.run(_end, node, request, claim, keeps_epoch)
    except LogbrokerError as error:
        return request.reply({"error_code": _code(error)})
    return request.reply({"producer_id": following.producer_id, "producer_epoch": following.epoch})


def _end(node: Node, request: Request, claim: Claim, keeps_epoch: bool) -> Claim:
    return node.network_transactions.end(
        claim,
        commit=request.body.committed,
        keeps_epoch=keeps_epoch,
        fenced=_fenced(request, "EndTxn"),
    )


# Looking --------------------------------------------------------------------------------------------------


def _state(event: TransactionEvent, holding: Holding | None) -> str:
    is_ongoing = holding is not None and holding.partitions and not holding.is_ended_by(event)
    return ONGOING if is_ongoing else STATES[event.state]


async def list_transactions(node: Node, request: Request) -> bytes:
    body = request.body
    known = {ONGOING, *STATES.values()}
    pattern = getattr(body, "transactional_id_pattern", None)
    try:
        expression = compile_expression(pattern) if pattern else None
    except ExpressionError:
        return request.reply(
            {
                "error_code": ErrorCode.invalid_regular_expression,
                "unknown_state_filters": [],
                "transaction_states": [],
            }
        )
    now_ms = node.directory.clock.now_ms()
    duration_ms = getattr(body, "duration_filter", -1)
    states = []
    for event in node.transactions.events():
        holding = node.transactions.holdings.of(event.transactional_id)
        state = _state(event, holding)
        started_ms = holding.started_ms if holding is not None and state == ONGOING else now_ms
        if (
            (not body.state_filters or state in body.state_filters)
            and (not body.producer_id_filters or event.producer_id in body.producer_id_filters)
            and (duration_ms < 0 or now_ms - started_ms > duration_ms)
            and (expression is None or expression.fullmatch(event.transactional_id))
        ):
            states.append(
                {
                    "transactional_id": event.transactional_id,
                    "producer_id": event.producer_id,
                    "transaction_state": state,
                }
            )
    unknown = [name for name in body.state_filters if name not in known]
    return request.reply({"unknown_state_filters": unknown, "transaction_states": states})


async def describe_transactions(node: Node, request: Request) -> bytes:
    states = [_described(node, transactional_id) for transactional_id in request.body.transactional_ids]
    return request.reply({"transaction_states": states})


def _described(node: Node, transactional_id: str) -> Values:
    event = node.transactions.event(transactional_id)
    holding = node.transactions.holdings.of(transactional_id)
    described: dict[str, Any] = {
        "transactional_id": transactional_id,
        "transaction_state": "",
        "transaction_timeout": datetime.timedelta(0),
        "transaction_start_time": _moment(NOT_STARTED_MS),
        "producer_id": NO_PRODUCER_ID,
        "producer_epoch": NO_EPOCH,
        "topics": [],
    }
    if event is None:
        return described | {"error_code": ErrorCode.transactional_id_not_found}
    described |= {
        "transaction_state": _state(event, holding),
        "transaction_timeout": datetime.timedelta(milliseconds=event.timeout_ms),
        "producer_id": event.producer_id,
        "producer_epoch": event.epoch if holding is None else holding.epoch,
    }
    if holding is not None and described["transaction_state"] == ONGOING:
        topics: dict[str, list[int]] = {}
        for topic, partition in holding.partitions:
            topics.setdefault(topic, []).append(partition)
        described["topics"] = [{"topic": topic, "partitions": numbers} for topic, numbers in topics.items()]
        described["transaction_start_time"] = _moment(holding.started_ms)
    return described


def _moment(milliseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)


async def describe_producers(node: Node, request: Request) -> bytes:
    topics = [
        {
            "name": topic.name,
            "partitions": [_producers(node, topic.name, index) for index in topic.partition_indexes],
        }
        for topic in request.body.topics
    ]
    return request.reply({"topics": topics})


def _producers(node: Node, topic: str, index: int) -> Values:
    try:
        log = node.directory.log(topic, index)
    except LogbrokerError as error:
        return {
            "partition_index": index,
            **told_of(error),
            "active_producers": [],
        }
    return {
        "partition_index": index,
        "error_message": None,
        "active_producers": [
            {
                "producer_id": producer_id,
                "producer_epoch": entry.epoch,
                "last_sequence": entry.last_sequence,
                "last_timestamp": entry.timestamp_ms,
                "coordinator_epoch": max(0, entry.coordinator_epoch),
                "current_txn_start_offset": entry.txn_first_offset,
            }
            for producer_id, entry in sorted(node.directory.view.partitions.producers(log.key).items())
        ],
    }
