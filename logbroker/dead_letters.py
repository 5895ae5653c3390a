"""Dead letters: what a message becomes that could not be handled. Key, value and headers stay; headers say why.

    header                     says
    x-dead-letter-topic        where it came from
    x-dead-letter-partition
    x-dead-letter-offset
    x-dead-letter-timestamp    its own, in milliseconds since 1970 UTC
    x-dead-letter-by           which subscription, binding or transform gave it up
    x-dead-letter-reason       why
    x-dead-letter-error        what went wrong exactly, where that is known
    x-dead-letter-deliveries   how often a queue had handed it out
    x-dead-letter-subscription the id of the queue's subscription, which stays when that is renamed

Those of an earlier death are replaced. ``original`` goes the other way.

The time of a dead letter is when it became one: by an old message's own, the retention of the dead letter topic
would take it at once.
"""

from __future__ import annotations

import msgspec

from .records import Message, Record, without_reserved_headers

PREFIX = "x-dead-letter-"
TOPIC, PARTITION, OFFSET, TIMESTAMP = (
    PREFIX + name for name in ("topic", "partition", "offset", "timestamp")
)
BY, REASON, ERROR, DELIVERIES = (PREFIX + name for name in ("by", "reason", "error", "deliveries"))
SUBSCRIPTION = PREFIX + "subscription"

MAX_ERROR_CHARACTERS = 2000


class Death(msgspec.Struct, frozen=True):
    """What the headers of a dead letter say; what they do not is None."""

    topic: str | None
    partition: int | None
    offset: int | None
    timestamp_ms: int | None
    by: str | None
    reason: str | None
    error: str | None
    deliveries: int | None
    subscription_id: str | None = None


def dead_letter_message(
    record: Record,
    *,
    reason: str,
    error: str | None,
    by: str,
    deliveries: int | None = None,
    subscription_id: str | None = None,
) -> Message:
    """*record* as a dead letter; *by* is who gave it up."""
    told: dict[str, str | int | None] = {
        TOPIC: record.topic,
        PARTITION: record.partition,
        OFFSET: record.offset,
        TIMESTAMP: record.timestamp_ms,
        BY: by,
        REASON: reason,
        ERROR: error,
        DELIVERIES: deliveries,
        SUBSCRIPTION: subscription_id,
    }
    headers = [
        pair for pair in without_reserved_headers(record).header_pairs if not pair[0].startswith(PREFIX)
    ]
    headers += [
        (name, str(value)[:MAX_ERROR_CHARACTERS].encode())
        for name, value in told.items()
        if value is not None
    ]
    return Message(record.value, key=record.key, headers=headers)


def death_of(record: Record) -> Death | None:
    """What a dead letter's headers say of its death; None when it is none."""
    told = {
        name.removeprefix(PREFIX): value.decode(errors="replace")
        for name, value in record.header_pairs
        if name.startswith(PREFIX) and value is not None
    }
    if not told:
        return None
    return Death(
        topic=told.get("topic"),
        partition=_number(told.get("partition")),
        offset=_number(told.get("offset")),
        timestamp_ms=_number(told.get("timestamp")),
        by=told.get("by"),
        reason=told.get("reason"),
        error=told.get("error"),
        deliveries=_number(told.get("deliveries")),
        subscription_id=told.get("subscription"),
    )


def original(record: Record) -> Message:
    """A dead letter as the message that it was, to be sent again."""
    headers = [
        pair for pair in without_reserved_headers(record).header_pairs if not pair[0].startswith(PREFIX)
    ]
    return Message(record.value, key=record.key, headers=headers)


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None  # somebody else's header
