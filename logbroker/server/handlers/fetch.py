"""Fetch: whole batches of each wanted partition, as they are stored, up to what the client may see.

    isolation           bound                     with the batches
    read_uncommitted    the high watermark        -
    read_committed      the last stable offset    the aborted transactions among them

A fetch that finds less than it wants waits until a log signals news, or its time is over. Bytes are read in
threads, because they may have to come from the disk. Only a megabyte that is known to lie in memory, in large
batches, is read at once: to hand it to a thread and back takes as long.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.log_offsets import Isolation, LogOffsets
from logbroker_storage.log_reader import check_bounds
from logbroker_storage.partition_log import PartitionLog

from ...groups import TopicPartition
from ..error_codes import RefusedError, code_of
from ..fetch_sessions import NO_SESSION, FetchSession, FetchWish, Reported
from ..log_watch import News
from ..node import LEADER_EPOCH, Node
from ..raw_reader import RawBatches
from ..replies import Buffer, Pieces, Values
from ..requests import Request

FIRST_WITH_TOPIC_ID = 13
LONGEST_WAIT_S = 60.0
QUICK_BYTES = 1 << 20  # clients ask for so much of a partition, if they are not told
UNKNOWN = -1


class _Served(NamedTuple):
    """What is answered for one partition."""

    wish: FetchWish
    log: PartitionLog | None
    offsets: LogOffsets | None
    batches: RawBatches | None
    aborted: list[Values] | None
    error: LogbrokerError | None

    @property
    def size_bytes(self) -> int:
        return 0 if self.batches is None else self.batches.size_bytes

    @property
    def report(self) -> Reported:
        offsets = self.offsets
        error = ErrorCode.none if self.error is None else code_of(self.error)
        if offsets is None:
            return Reported(UNKNOWN, UNKNOWN, UNKNOWN, error)
        return Reported(offsets.high_watermark, offsets.last_stable_offset, offsets.log_start_offset, error)


async def handle(node: Node, request: Request) -> bytes | Awaitable[list[Buffer]]:
    body = request.body
    named_by_id = request.version >= FIRST_WITH_TOPIC_ID
    wishes = [_wish(topic, data, named_by_id) for topic in body.topics for data in topic.partitions]
    forgotten = [
        (_topic_key(topic, named_by_id), partition)
        for topic in getattr(body, "forgotten_topics_data", ())
        for partition in topic.partitions
    ]
    try:
        session = node.sessions.session_of(
            getattr(body, "session_id", NO_SESSION),
            getattr(body, "session_epoch", -1),
            wishes,
            forgotten,
            named_by_id=named_by_id,
        )
    except RefusedError as error:
        return request.reply({"error_code": error.code, "responses": []})
    wanted = wishes if session is None else list(session.wishes.values())
    return _when_enough(node, request, session, wanted)


def _topic_key(topic: Any, named_by_id: bool) -> Hashable:
    key: Hashable = topic.topic_id if named_by_id else topic.topic
    return key


def _wish(topic: Any, data: Any, named_by_id: bool) -> FetchWish:
    return FetchWish(
        _topic_key(topic, named_by_id),
        data.partition,
        data.fetch_offset,
        data.partition_max_bytes,
        getattr(data, "current_leader_epoch", UNKNOWN),
    )


async def _when_enough(
    node: Node, request: Request, session: FetchSession | None, wishes: Sequence[FetchWish]
) -> list[Buffer]:
    body = request.body
    deadline = time.monotonic() + min(body.max_wait.total_seconds(), LONGEST_WAIT_S)
    isolation = Isolation.READ_COMMITTED if body.isolation_level else Isolation.READ_UNCOMMITTED
    news = News()
    watched: dict[TopicPartition, FetchWish] = {}
    try:
        while True:
            with node.answer_room(body.max_bytes) as max_bytes:
                served = await _serve(node, wishes, isolation, max_bytes)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or node.is_stopping or _is_enough(served, min(body.min_bytes, max_bytes)):
                return _answer(node, request, session, served)
            if not watched:
                watched = await _subscribed(node, wishes, news)
                continue  # what came before somebody watched
            try:
                # Not wait_for(): before Python 3.12 it goes on when news come as the connection is lost.
                async with asyncio.timeout(left_s):
                    await _something_new(node, watched, isolation, news)
            except TimeoutError:
                pass  # the time that the client gave: it gets what there is
    finally:
        node.watch.unsubscribe(watched, news)


async def _subscribed(node: Node, wishes: Sequence[FetchWish], news: News) -> dict[TopicPartition, FetchWish]:
    """The wishes by the partitions that are watched from now on; others are answered at once, with an error."""
    places: dict[TopicPartition, FetchWish] = {}
    for wish in wishes:
        try:
            log = _log(node, wish)
        except LogbrokerError:
            continue
        places[log.topic, log.partition] = wish
    return {place: places[place] for place in await node.subscribe(places, news)}


async def _something_new(
    node: Node, watched: Mapping[TopicPartition, FetchWish], isolation: Isolation, news: News
) -> None:
    """Wait until one of the partitions has something for its wish; only those that signalled are looked at."""
    while not node.is_stopping:
        for place in await news.wait():
            if isinstance(place, tuple) and place in watched:
                seen = _looked_up(node, watched[place])
                if seen.offsets is None or seen.wish.offset < seen.offsets.visible_end(isolation):
                    return


def _is_enough(served: Sequence[_Served], min_bytes: int) -> bool:
    return (
        any(part.error is not None for part in served)
        or sum(part.size_bytes for part in served) >= min_bytes
        or not served
    )


# Reading ----------------------------------------------------------------------------------------------


async def _serve(
    node: Node, wishes: Sequence[FetchWish], isolation: Isolation, max_bytes: int
) -> list[_Served]:
    served = [_looked_up(node, wish) for wish in wishes]
    readable = [
        part
        for part in served
        if part.error is None
        and part.offsets is not None
        and part.wish.offset < part.offsets.visible_end(isolation)
    ]
    if not readable:
        return served
    if _is_at_hand(node, readable, max_bytes):
        read = _read_all(node, readable, isolation, max_bytes)
    else:
        read = await node.run(_read_all, node, readable, isolation, max_bytes)
    by_key = {part.wish.key: part for part in read}
    return [by_key.get(part.wish.key, part) for part in served]


def _log(node: Node, wish: FetchWish) -> PartitionLog:
    """The log that *wish* is about.

    Raises:
        RefusedError, TopicNotFoundError: there is none.
    """
    if isinstance(wish.topic, str):
        return node.directory.log(wish.topic, wish.partition)
    event = node.topic_by_id(wish.topic if isinstance(wish.topic, uuid.UUID) else None)
    return node.directory.log(event.name, wish.partition)


def _looked_up(node: Node, wish: FetchWish) -> _Served:
    log: PartitionLog | None = None
    offsets: LogOffsets | None = None
    try:
        log = _log(node, wish)
        offsets = log.offsets()
        if wish.leader_epoch > LEADER_EPOCH:
            raise RefusedError(ErrorCode.unknown_leader_epoch)
        if not offsets.log_start_offset <= wish.offset <= offsets.log_end_offset:
            raise RefusedError(ErrorCode.offset_out_of_range)
    except LogbrokerError as error:
        return _Served(wish, log, offsets, None, None, error)
    return _Served(wish, log, offsets, None, None, None)


def _is_at_hand(node: Node, parts: Sequence[_Served], max_bytes: int) -> bool:
    """Whether one partition is wanted, no more of it than ``QUICK_BYTES``, and that needs no thread."""
    if len(parts) != 1:
        return False
    wish, log = parts[0].wish, parts[0].log
    assert log is not None
    limit = min(wish.max_bytes, max_bytes)
    return (
        limit <= QUICK_BYTES
        and _expire_at_ms(node, log) is None
        and node.readers.is_at_hand(log, wish.offset, limit)
    )


def _read_all(node: Node, parts: Sequence[_Served], isolation: Isolation, max_bytes: int) -> list[_Served]:
    """The first partition with records gives at least one batch, the others what then fits."""
    left_bytes = max_bytes
    read = []
    for part in parts:
        if left_bytes <= 0:
            break
        limit = min(part.wish.max_bytes, left_bytes)
        after = _read(node, part, isolation, limit)
        if left_bytes < max_bytes and after.size_bytes > left_bytes:
            continue
        left_bytes -= after.size_bytes
        read.append(after)
    return read


def _read(node: Node, part: _Served, isolation: Isolation, max_bytes: int) -> _Served:
    log, offsets = part.log, part.offsets
    assert log is not None
    assert offsets is not None
    try:
        end_offset = offsets.visible_end(isolation)
        batches = node.readers.read(
            log,
            part.wish.offset,
            end_offset=end_offset,
            max_bytes=max(1, max_bytes),
            expire_at_ms=_expire_at_ms(node, log),
        )
        aborted = None
        if isolation is Isolation.READ_COMMITTED:
            aborted = _aborted(log, part.wish.offset, batches.next_offset)
        return part._replace(batches=batches, aborted=aborted)
    except (LogbrokerError, OSError) as error:
        refused = error if isinstance(error, LogbrokerError) else RefusedError(ErrorCode.kafka_storage_error)
        return part._replace(error=refused)


def _aborted(log: PartitionLog, offset: int, end_offset: int) -> list[Values]:
    """The aborted transactions among what was read from *offset* on.

    Raises:
        OffsetOutOfRangeError: it was deleted meanwhile, perhaps with what says which of it was aborted.
    """
    found = log.aborted_transactions(offset, end_offset)
    check_bounds(log, offset, log.state())
    return [{"producer_id": one.producer_id, "first_offset": one.first_offset} for one in found]


def _expire_at_ms(node: Node, log: PartitionLog) -> int | None:
    """Now, where records may have expired; None where they cannot."""
    if log.config.message_ttl_ms < 0 and not node.directory.may_hold_ttl(log.topic):
        return None
    return node.directory.clock.now_ms()


# The answer -------------------------------------------------------------------------------------------


def _answer(
    node: Node, request: Request, session: FetchSession | None, served: Sequence[_Served]
) -> list[Buffer]:
    is_whole = session is None or request.body.session_epoch in (-1, 0)
    topics: dict[Hashable, list[_Served]] = {}
    for part in served:
        told = session is None or session.is_news(part.wish.key, part.report, has_records=part.size_bytes > 0)
        if told or is_whole:
            topics.setdefault(part.wish.topic, []).append(part)
            node.metrics.batch_bytes_out.inc(part.size_bytes)
    named_by_id = request.version >= FIRST_WITH_TOPIC_ID
    values = {
        "session_id": NO_SESSION if session is None else session.session_id,
        "responses": [
            {
                "topic_id" if named_by_id else "topic": topic,
                "partitions": [_partition(part) for part in parts],
            }
            for topic, parts in topics.items()
        ],
    }
    return request.reply_in_pieces(values)


def _partition(part: _Served) -> Values:
    report = part.report
    return {
        "partition_index": part.wish.partition,
        "error_code": report.error,
        "high_watermark": report.high_watermark,
        "last_stable_offset": report.last_stable_offset,
        "log_start_offset": report.log_start_offset,
        "aborted_transactions": part.aborted,
        "records": Pieces(() if part.batches is None else part.batches.pieces),
    }
