"""Produce: batches go to the log as they came, but for base offset, leader epoch and a wrong largest timestamp.

    acks   answered                                                 synced
    -1     when the batch is as durable as its topic asks           before the answer
    1      when it is in the page cache                             soon after
    0      not at all                                               soon after

Appends of one connection happen in the order of its requests. Those of several connections to the same partitions
share the way to a thread and back, and one sync at its end. But a connection that has sent more by then does not wait
for a sync there: what follows is appended meanwhile, and shares the next one (``disk_sync``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from itertools import chain
from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import CorruptBatchError, LogbrokerError, RecordTooLargeError
from logbroker_storage.events import TopicEvent
from logbroker_storage.log_config import TimestampType
from logbroker_storage.message_ids import IdentifiedRecord, identified
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import (
    TTL_HEADER,
    BatchHeader,
    StoredBatch,
    read_batch,
    stamp_max_timestamp,
)
from logbroker_storage.record_survey import Survey, survey

from ...topic_names import check_reply_to
from ..error_codes import RefusedError
from ..frames import FrameError
from ..node import Node
from ..requests import Request
from .produce_answer import Part, answer

ACKS_ALL, ACKS_NONE = -1, 0
ACKS = (ACKS_ALL, ACKS_NONE, 1)
FIRST_WITH_TOPIC_ID = 13
FIRST_OF_TRANSACTIONS_V2 = 12  # the partition is added to the transaction by the batch itself (KIP-890)


class _Appended:
    """A request's parts, and what is left to be synced of them."""

    __slots__ = ("is_durable", "parts", "request", "syncs")

    def __init__(self, request: Request, parts: list[Part]) -> None:
        self.request = request
        self.parts = parts
        self.is_durable = False
        self.syncs: list[asyncio.Task[None] | None] = []  # one for each part, once they were begun


async def handle(node: Node, request: Request) -> bytes | Awaitable[bytes | None] | None:
    body = request.body
    if body.acks not in ACKS:
        refused = RefusedError(ErrorCode.invalid_required_acks, f"acks={body.acks}")
        parts = [
            Part(topic, data.index, None, None, None, refused)
            for topic in body.topic_data
            for data in topic.partition_data
        ]
        return answer(request, parts)
    events = [await _event(node, request, topic) for topic in body.topic_data]
    work = node.appends.run(
        _places(request, events), partial(_append_all, node, request, events), partial(_sync_together, node)
    )
    # A connection that is lost meanwhile does not keep what was appended from being synced.
    work.add_done_callback(partial(_begin_syncs, node))
    appended = await asyncio.shield(work)
    if body.acks == ACKS_ALL and not appended.is_durable:
        return asyncio.ensure_future(_when_durable(appended))
    if body.acks == ACKS_NONE:
        if any(part.error is not None for part in appended.parts):
            raise FrameError("a record with acks=0 was refused, which can be told in no other way")
        return None
    return answer(request, appended.parts)


def _begin_syncs(node: Node, work: asyncio.Future[_Appended]) -> None:
    """Have synced what is not durable yet, whether anybody waits for it or not."""
    if work.cancelled() or work.exception() is not None:
        return
    appended = work.result()
    _count(node, appended.parts)
    if not appended.is_durable:
        appended.syncs = [
            None
            if part.log is None or part.result is None
            else node.sync.begin(part.log, part.result.last_offset + 1)
            for part in appended.parts
        ]


def _places(
    request: Request, events: list[TopicEvent | LogbrokerError]
) -> tuple[tuple[str | None, int], ...]:
    return tuple(
        (None if isinstance(event, LogbrokerError) else event.name, data.index)
        for topic, event in zip(request.body.topic_data, events, strict=True)
        for data in topic.partition_data
    )


async def _event(node: Node, request: Request, topic: Any) -> TopicEvent | LogbrokerError:
    try:
        if request.version >= FIRST_WITH_TOPIC_ID:
            event = node.topic_by_id(topic.topic_id)
        else:
            event = await node.topic(topic.name, create=True)
        check_reply_to(event.name)  # other internal ones are written by the broker only
        return event
    except LogbrokerError as error:
        return error


# In a thread ------------------------------------------------------------------------------------------


def _append_all(node: Node, request: Request, events: list[TopicEvent | LogbrokerError]) -> _Appended:
    parts = [
        _append(node, request, topic, event, data)
        for topic, event in zip(request.body.topic_data, events, strict=True)
        for data in topic.partition_data
    ]
    return _Appended(request, parts)


def _sync_together(node: Node, go: list[_Appended]) -> None:
    """Sync what connections wait for that have sent nothing more yet."""
    waited_for = [
        appended
        for appended in go
        if appended.request.body.acks == ACKS_ALL and not appended.request.connection.has_more
    ]
    end_offsets: dict[PartitionLog, int] = {}
    for part in chain.from_iterable(appended.parts for appended in waited_for):
        if part.log is not None and part.result is not None:
            end_offsets[part.log] = max(end_offsets.get(part.log, 0), part.result.last_offset + 1)
    failures: dict[PartitionLog | None, LogbrokerError] = {}
    for log, end_offset in end_offsets.items():
        try:
            node.sync.sync(log, end_offset)
        except LogbrokerError as error:
            failures[log] = error
    for appended in waited_for:
        appended.parts = [_synced(part, failures.get(part.log)) for part in appended.parts]
        appended.is_durable = True


def _synced(part: Part, failure: LogbrokerError | None) -> Part:
    return part if failure is None or part.result is None else part._replace(error=failure)


def _append(node: Node, request: Request, topic: Any, event: TopicEvent | LogbrokerError, data: Any) -> Part:
    log: PartitionLog | None = None
    header: BatchHeader | None = None
    try:
        if isinstance(event, LogbrokerError):
            raise event
        log = node.directory.log(event.name, data.index)
        batch = bytearray(data.records or b"")
        header, identified_records = _checked(node.directory, batch, log)
        if header.is_transactional:
            _check_transaction(node, request, header, (event.name, data.index))
        # The batch is taken as it is or not at all, so an id makes nothing a duplicate here; it is taken, though.
        result = log.append(batch, records=identified_records)
        return Part(topic, data.index, log, header, result, None, log.offsets().log_start_offset)
    except LogbrokerError as error:
        return Part(topic, data.index, log, header, None, error)


def _checked(
    directory: DataDirectory, batch: bytearray, log: PartitionLog
) -> tuple[BatchHeader, list[IdentifiedRecord]]:
    """The header of *batch*, if the log may hold it as it is, and its records with a message id.

    Raises:
        CorruptBatchError: it is no sound batch, or its records do not parse.
        RefusedError: it is sound, but not to be taken.
    """
    if len(batch) > log.config.max_message_bytes:
        raise RecordTooLargeError(log.topic, size_bytes=len(batch), max_bytes=log.config.max_message_bytes)
    stored = read_batch(batch)
    header = stored.header
    if header.size_bytes != len(batch):
        raise RefusedError(ErrorCode.invalid_record, "one batch for each partition, and nothing behind it")
    if header.is_control:
        raise RefusedError(ErrorCode.invalid_record, "a control batch is the broker's to write")
    if header.record_count < 1 or header.last_offset_delta != header.record_count - 1:
        raise RefusedError(ErrorCode.invalid_record, "its offsets do not number its records")
    if header.producer_id >= 0 and (header.producer_epoch < 0 or header.base_sequence < 0):
        raise RefusedError(ErrorCode.invalid_record, "a producer id without an epoch or a sequence")
    if header.is_transactional and header.producer_id < 0:
        raise RefusedError(ErrorCode.invalid_record, "a transactional batch without a producer id")
    found = _surveyed(stored, log, directory.clock.now_ms())
    if header.max_timestamp_ms != found.newest_ms:
        # As Kafka does: a client may round the header's time and the records' each in its own way (rskafka).
        stamp_max_timestamp(batch, found.newest_ms)
    records = found.records
    if any(name == TTL_HEADER for record in records for name, _ in record.header_pairs):
        directory.note_ttl(log.topic)
    base_offset = header.base_offset
    identified_records = identified(
        (record.offset - base_offset, record.header_pairs, record.timestamp_ms) for record in records
    )
    if identified_records:
        directory.note_message_ids(log.topic)
    return header, identified_records


def _surveyed(stored: StoredBatch, log: PartitionLog, now_ms: int) -> Survey:
    """What is to be known of the records, which every reader can read; with keys where compaction goes by them."""
    try:
        found = survey(stored, log.topic, log.partition)
    except CorruptBatchError as error:
        raise RefusedError(ErrorCode.invalid_record, str(error)) from error
    if not found.follow:
        raise RefusedError(ErrorCode.invalid_record, "its records skip offsets")
    if log.config.cleanup_policy.compacts and not found.have_keys:
        raise RefusedError(ErrorCode.invalid_record, f"{log.topic!r} is compacted: every record needs a key")
    _check_timestamps(stored.header, found, log, now_ms)
    return found


def _check_timestamps(header: BatchHeader, found: Survey, log: PartitionLog, now_ms: int) -> None:
    config = log.config
    if header.uses_log_append_time:
        raise RefusedError(ErrorCode.invalid_timestamp, "the log's time is the broker's to give")
    if config.message_timestamp_type is TimestampType.LOG_APPEND_TIME:
        return
    oldest_ms, newest_ms = found.oldest_ms, found.newest_ms
    if newest_ms > now_ms + config.message_timestamp_after_max_ms:
        raise RefusedError(
            ErrorCode.invalid_timestamp, f"{newest_ms} is above message.timestamp.after.max.ms"
        )
    if 0 <= oldest_ms < now_ms - config.message_timestamp_before_max_ms:
        raise RefusedError(
            ErrorCode.invalid_timestamp, f"{oldest_ms} is below message.timestamp.before.max.ms"
        )


def _check_transaction(node: Node, request: Request, header: BatchHeader, place: tuple[str, int]) -> None:
    """That the batch is of the transaction in progress, which from version 12 on it may itself begin."""
    transactional_id = request.body.transactional_id
    if transactional_id is None:
        raise RefusedError(ErrorCode.invalid_txn_state, "a transactional batch without a transactional id")
    node.network_transactions.check_batch(
        transactional_id,
        header.producer_id,
        header.producer_epoch,
        place,
        adds=request.version >= FIRST_OF_TRANSACTIONS_V2,
    )


# The answer -------------------------------------------------------------------------------------------


async def _when_durable(appended: _Appended) -> bytes:
    settled = []
    for part, sync in zip(appended.parts, appended.syncs, strict=True):
        failure = None
        try:
            if sync is not None:
                await asyncio.shield(sync)
        except LogbrokerError as error:
            failure = error
        settled.append(_synced(part, failure))
    return answer(appended.request, settled)


def _count(node: Node, parts: list[Part]) -> None:
    for part in parts:
        if part.result is not None and part.header is not None and not part.result.duplicate:
            node.metrics.records_in.inc(part.header.record_count)
            node.metrics.batch_bytes_in.inc(part.header.size_bytes)
