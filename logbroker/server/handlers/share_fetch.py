"""ShareFetch and ShareAcknowledge: messages into a member's hands, and what becomes of them.

A fetch settles first, durably, what it acknowledges. Then it acquires, or waits until there is something: a record
that becomes visible, a message that somebody gives back, a lease or a delay that ends. Record bytes go out as they
are stored, in the batches that hold acquired offsets; the client drops the others. What the subscription's filter
or a time to live keeps from delivery is never among the acquired offsets.
"""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kio.schema.errors import ErrorCode

from logbroker_storage.catalog import SIGNAL as TOPICS_SIGNAL
from logbroker_storage.errors import LogbrokerError

from ...groups import TopicPartition
from ...queues.partition import queue_signal
from ...queues.settlement import Settlement
from ...subscriptions import SIGNAL, Subscription
from ..consumer_messages import GroupError, Place
from ..error_codes import RefusedError, code_of
from ..log_watch import News
from ..node import LEADER_EPOCH, NODE_ID, Node
from ..replies import Buffer, Pieces, Values
from ..requests import Request
from ..share_acknowledgements import settlement_of
from ..share_group import check_member_id
from ..share_partitions import Acquired, Acquisition, Wish
from ..share_sessions import FINAL_EPOCH, INITIAL_EPOCH, ShareSession
from .fetch import LONGEST_WAIT_S

STRICT = 1  # share_acquire_mode: no more records than asked for
MAX_RECORDS = 100_000  # at once
NOTHING = Acquired([], [])


class _Asked(NamedTuple):
    """What a request names: whether it is there, and what is to become of messages in it."""

    names: dict[Place, TopicPartition]
    acknowledged: dict[Place, Settlement]
    errors: dict[Place, ErrorCode]  # of places
    refused: dict[Place, ErrorCode]  # of acknowledgements


async def fetch(node: Node, request: Request) -> bytes | list[Buffer] | Awaitable[list[Buffer]]:
    body = request.body
    try:
        subscription = _checked(node, request)
        session = await _session_to_fetch(node, request, subscription)
    except (GroupError, RefusedError) as error:
        return request.reply(_failed(error))
    asked = _asked(node, body.topics, may_renew=getattr(body, "is_renew_ack", False))
    if body.share_session_epoch != FINAL_EPOCH:
        forgotten = [
            (topic.topic_id, number) for topic in body.forgotten_topics_data for number in topic.partitions
        ]
        session.change([place for place in asked.names if place not in asked.errors], forgotten)
    acknowledged = await _settle(node, session, subscription, asked)
    if body.share_session_epoch == FINAL_EPOCH:
        await node.share.close_session(body.group_id, body.member_id)
        nothing = Acquisition({}, {}, None)
        return request.reply_in_pieces(_fetched(request, subscription, nothing, asked, acknowledged, {}))
    return _when_something_is_there(node, request, session, subscription, asked, acknowledged)


def _checked(node: Node, request: Request) -> Subscription:
    """The group's subscription.

    Raises:
        GroupError, RefusedError: the request is none, or there is no such group.
    """
    body = request.body
    check_member_id(body.member_id)
    if body.share_session_epoch < FINAL_EPOCH:
        raise RefusedError(ErrorCode.invalid_share_session_epoch)
    return node.share.existing(body.group_id)


async def _session_to_fetch(node: Node, request: Request, subscription: Subscription) -> ShareSession:
    body = request.body
    asks_for_records = body.max_bytes or body.min_bytes or body.max_records or body.max_wait
    if asks_for_records and getattr(body, "is_renew_ack", False):
        raise RefusedError(ErrorCode.invalid_request, "who renews leases asks for no records")
    if body.share_session_epoch != INITIAL_EPOCH:
        return node.share.sessions.go_on(
            body.group_id, body.member_id, body.share_session_epoch, request.connection
        )
    if any(part.acknowledgement_batches for topic in body.topics for part in topic.partitions):
        raise RefusedError(ErrorCode.invalid_request, "a session that begins has nothing to acknowledge")
    return await node.share.begin_session(subscription, body.member_id, request.connection)


def _asked(node: Node, topics: Iterable[Any], *, may_renew: bool) -> _Asked:
    asked = _Asked({}, {}, {}, {})
    for topic in topics:
        for part in topic.partitions:
            place = (topic.topic_id, part.partition_index)
            try:
                asked.names[place] = _name(node, place)
            except LogbrokerError as error:
                asked.errors[place] = code_of(error)
                continue
            if part.acknowledgement_batches:
                try:
                    asked.acknowledged[place] = settlement_of(
                        part.acknowledgement_batches, may_renew=may_renew
                    )
                except RefusedError as error:
                    asked.refused[place] = error.code
    return asked


def _name(node: Node, place: Place) -> TopicPartition:
    """The name and number of a partition that there is.

    Raises:
        RefusedError, TopicNotFoundError: there is none.
    """
    name = node.topic_by_id(place[0]).name
    node.directory.log(name, place[1])
    return name, place[1]


# Acknowledging ----------------------------------------------------------------------------------------------


async def acknowledge(node: Node, request: Request) -> bytes:
    body = request.body
    try:
        subscription = _checked(node, request)
        if body.share_session_epoch == INITIAL_EPOCH:
            raise RefusedError(ErrorCode.invalid_share_session_epoch, "a session begins with a fetch")
        session = node.share.sessions.go_on(
            body.group_id, body.member_id, body.share_session_epoch, request.connection
        )
    except (GroupError, RefusedError) as error:
        return request.reply(_failed(error))
    asked = _asked(node, body.topics, may_renew=getattr(body, "is_renew_ack", False))
    acknowledged = await _settle(node, session, subscription, asked)
    if body.share_session_epoch == FINAL_EPOCH:
        await node.share.close_session(body.group_id, body.member_id)
    codes = asked.errors | acknowledged
    parts = {place: {"error_code": codes[place]} for place in codes}
    return request.reply(_head(subscription) | {"responses": _by_topic(parts)})


async def _settle(
    node: Node, session: ShareSession, subscription: Subscription, asked: _Asked
) -> dict[Place, ErrorCode]:
    """Do what is acknowledged; what came of it, by place."""
    outcome = dict(asked.refused)
    if asked.acknowledged:
        by_name = {asked.names[place]: settlement for place, settlement in asked.acknowledged.items()}
        errors = await node.run(node.share.partitions.settle, session, subscription, by_name)
        for place in asked.acknowledged:
            outcome[place] = errors.get(asked.names[place], ErrorCode.none)
    return outcome


# Fetching ---------------------------------------------------------------------------------------------------


async def _when_something_is_there(
    node: Node,
    request: Request,
    session: ShareSession,
    subscription: Subscription,
    asked: _Asked,
    acknowledged: Mapping[Place, ErrorCode],
) -> list[Buffer]:
    body = request.body
    deadline = time.monotonic() + min(body.max_wait.total_seconds(), LONGEST_WAIT_S)
    news = News()
    watched: list[TopicPartition] = []
    signals: list[str] = []
    is_woken = False
    session.when_closed.add(news.end)
    try:
        while True:
            current = node.share.subscription(body.group_id)
            if current is None:
                return request.reply_in_pieces(_failed(RefusedError(ErrorCode.group_id_not_found)))
            subscription = current
            places, gone = _wanted(node, session)
            if not signals:
                signals = [TOPICS_SIGNAL, SIGNAL, queue_signal(subscription)]
                watched = await _subscribed(node, places.values(), signals, news)
            wanted = list(places.values())
            if is_woken:
                found = await _acquire_in_turn(node, request, session, subscription, wanted, deadline)
            else:
                found = await _acquire(node, request, session, subscription, wanted, deadline)
            left_s = deadline - time.monotonic()
            wants_nothing = body.max_records <= 0 or body.max_bytes <= 0
            is_over = left_s <= 0 or node.is_stopping or session.is_closed or wants_nothing
            if is_over or found.acquired or found.errors or gone or asked.errors or acknowledged:
                values = _fetched(request, subscription, found, asked, acknowledged, places, gone)
                node.metrics.batch_bytes_out.inc(sum(one.size_bytes for one in found.acquired.values()))
                session.served(place for place, name in places.items() if name in found.acquired)
                return request.reply_in_pieces(values)
            try:
                # Not wait_for(): before Python 3.12 it goes on when news come as the connection is lost, and would
                # acquire for a session that is gone.
                async with asyncio.timeout(_least(left_s, found.next_due_s)):
                    await news.wait()
                is_woken = True
            except TimeoutError:
                is_woken = False  # something is due, or the time that the client gave is over
    finally:
        session.when_closed.discard(news.end)
        node.watch.unsubscribe(watched, news)
        for signal in signals:
            node.watch.unsubscribe_signal(signal, news)


def _least(left_s: float, due_s: float | None) -> float:
    return left_s if due_s is None else min(left_s, due_s)


def _wanted(node: Node, session: ShareSession) -> tuple[dict[Place, TopicPartition], dict[Place, ErrorCode]]:
    """The names of the session's partitions, and what became of those that are not there."""
    places: dict[Place, TopicPartition] = {}
    gone: dict[Place, ErrorCode] = {}
    for place in session.places:
        try:
            places[place] = _name(node, place)
        except LogbrokerError as error:
            gone[place] = code_of(error)
    return places, gone


async def _subscribed(
    node: Node, places: Iterable[TopicPartition], signals: Sequence[str], news: News
) -> list[TopicPartition]:
    """Those of *places* that *news* will come of, besides the signals."""
    watched = await node.subscribe(places, news)
    for signal in signals:
        node.watch.subscribe_signal(signal, news)
    return watched


async def _acquire_in_turn(
    node: Node,
    request: Request,
    session: ShareSession,
    subscription: Subscription,
    places: Sequence[TopicPartition],
    deadline_s: float,
) -> Acquisition:
    """One after the other of all whom the same news woke: mostly there is nothing left behind the first."""
    async with node.share.turn(subscription):
        nothing = None if session.is_closed else node.share.partitions.glance(subscription, places)
        if nothing is not None:
            return nothing
        return await _acquire(node, request, session, subscription, places, deadline_s)


async def _acquire(
    node: Node,
    request: Request,
    session: ShareSession,
    subscription: Subscription,
    places: Sequence[TopicPartition],
    deadline_s: float,
) -> Acquisition:
    body = request.body
    if body.max_records <= 0 or body.max_bytes <= 0 or node.is_stopping:
        return Acquisition({}, {}, None)
    with node.answer_room(body.max_bytes) as max_bytes:
        wish = Wish(
            max_messages=min(body.max_records, MAX_RECORDS),
            min_bytes=min(body.min_bytes, max_bytes),
            max_bytes=max_bytes,
            is_strict=getattr(body, "share_acquire_mode", 0) == STRICT,
            deadline_s=deadline_s,
        )
        return await node.run(node.share.partitions.acquire, session, subscription, places, wish)


# The answers ------------------------------------------------------------------------------------------------


def _failed(error: GroupError | RefusedError) -> Values:
    return {
        "error_code": error.code,
        "error_message": str(error),
        "acquisition_lock_timeout": datetime.timedelta(0),
        "responses": [],
        "node_endpoints": [],
    }


def _head(subscription: Subscription) -> dict[str, Any]:
    return {
        "error_message": None,
        "acquisition_lock_timeout": datetime.timedelta(milliseconds=subscription.rules.lease_ms),
        "node_endpoints": [],
    }


def _fetched(
    request: Request,
    subscription: Subscription,
    found: Acquisition,
    asked: _Asked,
    acknowledged: Mapping[Place, ErrorCode],
    places: Mapping[Place, TopicPartition],
    gone: Mapping[Place, ErrorCode] | None = None,
) -> Values:
    errors = {**asked.errors, **(gone or {})}
    errors |= {place: found.errors[name] for place, name in places.items() if name in found.errors}
    acquired = {place: found.acquired[name] for place, name in places.items() if name in found.acquired}
    parts: dict[Place, Values] = {}
    for place in errors.keys() | acquired.keys() | acknowledged.keys():
        mine = acquired.get(place, NOTHING)
        parts[place] = {
            "error_code": errors.get(place, ErrorCode.none),
            "acknowledge_error_code": acknowledged.get(place, ErrorCode.none).value,
            "acknowledge_error_message": None,
            "records": Pieces([batch.data for batch in mine.batches]),
            "acquired_records": [
                {"first_offset": first, "last_offset": last, "delivery_count": count}
                for one in mine.ranges
                for first, last, count in _in_pieces(one, request.body.batch_size)
            ],
        }
    return _head(subscription) | {"responses": _by_topic(parts)}


def _in_pieces(acquired: tuple[int, int, int], batch_size: int) -> Iterable[tuple[int, int, int]]:
    """A range as ranges of at most *batch_size* offsets, which the client acknowledges one by one."""
    first, last, count = acquired
    size = batch_size if batch_size > 0 else last - first + 1
    for begin in range(first, last + 1, size):
        yield begin, min(begin + size - 1, last), count


def _by_topic(parts: Mapping[Place, Values]) -> list[Values]:
    topics: dict[uuid.UUID, list[Values]] = {}
    for (topic_id, number), values in sorted(parts.items(), key=lambda item: item[0][1]):
        part = {
            "partition_index": number,
            "error_message": None,
            "current_leader": {"leader_id": NODE_ID, "leader_epoch": LEADER_EPOCH},
            **values,
        }
        topics.setdefault(topic_id, []).append(part)
    return [{"topic_id": topic_id, "partitions": partitions} for topic_id, partitions in topics.items()]
