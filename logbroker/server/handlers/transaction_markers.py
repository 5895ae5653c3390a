"""WriteTxnMarkers: the end of a transaction that hangs, as an administrator asks for it (KIP-664).

In a Kafka cluster this is how coordinators tell partitions what they decided. Here the coordinator writes its markers
itself, and whoever sends this request is not it: an abort that the holder or the coordinator did not decide
would take records out of a transaction that may still be committed. So only what nobody else can end is ended:

    the producer's transaction in the partition     answer
    there is none                                   NONE
    is of a newer epoch than the request            INVALID_PRODUCER_EPOCH
    is to be committed                              TRANSACTION_COORDINATOR_FENCED: nobody decided that
    its holder is at work on it, and in time        TRANSACTION_COORDINATOR_FENCED
    it was decided that it is committed             TRANSACTION_COORDINATOR_FENCED; its markers are written
    its holder is gone or too late                  NONE: it is aborted in all its partitions
    is of a producer that no transactional id has   NONE: likewise
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import LogbrokerError

from ..error_codes import code_of
from ..node import Node
from ..replies import Values
from ..requests import Request


async def write(node: Node, request: Request) -> bytes:
    return request.reply({"markers": await node.run(_write, node, request.body.markers)})


def _write(node: Node, markers: Any) -> list[Values]:
    ended: dict[int, ErrorCode] = {}  # by producer id: asked for once, however many partitions are named
    return [
        {
            "producer_id": marker.producer_id,
            "topics": [
                {
                    "name": topic.name,
                    "partitions": [
                        {
                            "partition_index": number,
                            "error_code": _end(node, marker, topic.name, number, ended),
                        }
                        for number in topic.partition_indexes
                    ],
                }
                for topic in marker.topics
            ],
        }
        for marker in markers
    ]


def _end(node: Node, marker: Any, topic: str, number: int, ended: dict[int, ErrorCode]) -> ErrorCode:
    try:
        log = node.directory.log(topic, number)
    except LogbrokerError as error:
        return code_of(error)
    entry = node.directory.view.partitions.producer(log.key, marker.producer_id)
    if entry is None:
        return ErrorCode.none
    if marker.producer_epoch < entry.epoch:
        return ErrorCode.invalid_producer_epoch
    if entry.txn_first_offset < 0:
        return ErrorCode.none
    if marker.transaction_result or marker.coordinator_epoch < entry.coordinator_epoch:
        return ErrorCode.transaction_coordinator_fenced
    if marker.producer_id not in ended:
        ended[marker.producer_id] = _abort(node, marker.producer_id)
    return ended[marker.producer_id]


def _abort(node: Node, producer_id: int) -> ErrorCode:
    try:
        is_aborted = node.transactions.abort_hanging(producer_id)
    except LogbrokerError as error:
        return code_of(error)
    except OSError:
        return ErrorCode.kafka_storage_error
    return ErrorCode.none if is_aborted else ErrorCode.transaction_coordinator_fenced
