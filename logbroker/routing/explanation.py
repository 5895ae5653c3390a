"""A dry run of the router: where a message would go, and why each binding takes it or not."""

from __future__ import annotations

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    InvalidRequestError,
    LogbrokerError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
)

from ..arguments import whole_number
from ..consumer import Consumer
from ..partitioner import partition_for_key
from ..pending_record import not_bytes
from ..records import HeadersArgument, Message, Record, stored_headers, timestamp_ms_of
from ..topic_names import check_topic_name
from .bindings import stored_bindings
from .descriptions import RoutedMessage, RouteExplanation, RouteVerdict
from .plan import SENTENCES, Binding, Reason, Verdict, in_order, plan, routes, written

NO_TOPIC_ID = b""


def explain_message(
    directory: DataDirectory,
    topic: str,
    value: bytes | None,
    *,
    key: bytes | None,
    headers: HeadersArgument | None,
) -> RouteExplanation:
    """Of a message as if it were sent now; see ``Broker.explain_route``."""
    check_topic_name(topic)
    for what, content in (("value", value), ("key", key)):
        if content is not None and type(content) is not bytes:
            raise not_bytes(what, content)
    topic_id, partition, offset = _place(directory, topic, key)
    record = Record(topic, partition, offset, directory.clock.now_ms(), key, value, stored_headers(headers))
    return _explain(directory, record, topic_id)


def _place(directory: DataDirectory, topic: str, key: bytes | None) -> tuple[bytes, int, int]:
    """The topic's id, and the partition and offset that the next message of *key* would have."""
    try:
        event = directory.topic(topic)
        partition = 0 if key is None else partition_for_key(key, event.partitions)
        return event.topic_id, partition, directory.log(topic, partition).offsets().log_end_offset
    except TopicNotFoundError:
        return NO_TOPIC_ID, 0, 0


def explain_record(
    directory: DataDirectory, topic: str, at: tuple[int, int], *, is_alone: bool
) -> RouteExplanation:
    """Of the record at (partition, offset); see ``Broker.explain_route``."""
    if not is_alone:
        raise InvalidRequestError(
            "explain a message or the record at a place, not both: leave at= out or the rest"
        )
    if not isinstance(at, tuple) or len(at) != 2:
        raise InvalidRequestError(f"at= is a (partition, offset), not {at!r}")
    partition, offset = at
    whole_number("offset", offset, least=0)
    offsets = directory.log(topic, partition).offsets()
    with Consumer(directory, topic, start={partition: offset}, isolation="read_uncommitted") as consumer:
        for other in consumer.assignment():
            if other != (topic, partition):
                consumer.pause(other)
        found = consumer.poll(1) if offsets.log_start_offset <= offset < offsets.high_watermark else []
    if not found:
        raise OffsetOutOfRangeError(
            topic,
            partition,
            offset=offset,
            start_offset=offsets.log_start_offset,
            end_offset=offsets.high_watermark,
        )
    if found[0].offset != offset:
        raise InvalidRequestError(
            f"{topic}-{partition} holds no record at offset {offset} that is delivered: it was compacted away, has "
            f"expired, or is a transaction's marker; the next one is {found[0].offset}"
        )
    return _explain(directory, found[0], directory.topic(topic).topic_id)


def _explain(directory: DataDirectory, record: Record, topic_id: bytes) -> RouteExplanation:
    bindings = in_order(Binding(event, directory.clock) for event in stored_bindings(directory))
    asked = routes(bindings, record.topic, topic_id, record.partition)
    # One that cannot be used here holds the router up; the others are explained without it.
    usable = [route for route in asked if route.binding.error is None]
    found = {verdict.binding.name: verdict for verdict in plan(record, usable)}
    broken = {route.binding.name for route in asked if route.binding.error is not None}
    return RouteExplanation(
        topic=record.topic,
        verdicts=[
            _unusable(binding)
            if binding.name in broken
            else _verdict(binding, found.get(binding.name), record)
            for binding in bindings
        ],
    )


def _unusable(binding: Binding) -> RouteVerdict:
    return RouteVerdict(
        binding=binding.name,
        target=binding.target,
        taken=False,
        reason=Reason.STALLED.value,
        because=SENTENCES[Reason.STALLED],
        error=str(binding.error),
        messages=[],
    )


def _verdict(binding: Binding, verdict: Verdict | None, record: Record) -> RouteVerdict:
    reason = Reason.OTHER_TOPIC if verdict is None else verdict.reason
    error: LogbrokerError | None = None
    messages: list[RoutedMessage] = []
    if verdict is not None and reason in (Reason.TAKEN, Reason.FAILED):
        outcome = written(verdict, record)
        error = outcome.error
        reason = Reason.TAKEN if error is None else Reason.FAILED
        messages = [_routed(outcome.topic, message) for message in outcome.messages]
    return RouteVerdict(
        binding=binding.name,
        target=binding.target,
        taken=reason in (Reason.TAKEN, Reason.FAILED),
        reason=reason.value,
        because=SENTENCES[reason],
        error=None if error is None else str(error),
        messages=messages,
    )


def _routed(topic: str, message: Message) -> RoutedMessage:
    timestamp = message.timestamp
    return RoutedMessage(
        topic=topic,
        key=message.key,
        value=message.value,
        headers=list(stored_headers(message.headers)),
        partition=message.partition,
        timestamp_ms=None if timestamp is None else timestamp_ms_of(timestamp),
    )
