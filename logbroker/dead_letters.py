"""A dead letter: a record that could not be worked on, with where it came from and why.

    header                       is
    x-dead-letter-topic          the topic of the record
    x-dead-letter-partition      its partition, a decimal number
    x-dead-letter-offset         its offset, a decimal number
    x-dead-letter-timestamp      its timestamp, in milliseconds since 1970 UTC
    x-dead-letter-by             who gave it up: a transformation's group, a subscription, a route
    x-dead-letter-reason         a word or two for machines, for example ``transform-failed``
    x-dead-letter-error          what was wrong, for people; not always there
    x-dead-letter-deliveries     how often a queue had handed it out, a decimal number; only from queues
    x-dead-letter-subscription   the id of the queue's subscription, which stays when that is renamed; likewise

Key, value and the other headers are the record's. It has no time to live, whatever the record had, and its
own timestamp is when it became a dead letter. A dead letter that dies again tells of its last death.
"""

from __future__ import annotations

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import TopicExistsError
from logbroker_storage.log_config import ConfigValue, LogConfig
from logbroker_storage.record_batch import RESERVED_HEADER_PREFIX

from .records import Message, Record

PREFIX = "x-dead-letter-"
TOPIC_HEADER = PREFIX + "topic"
PARTITION_HEADER = PREFIX + "partition"
OFFSET_HEADER = PREFIX + "offset"
TIMESTAMP_HEADER = PREFIX + "timestamp"
BY_HEADER = PREFIX + "by"
REASON_HEADER = PREFIX + "reason"
ERROR_HEADER = PREFIX + "error"
DELIVERIES_HEADER = PREFIX + "deliveries"
SUBSCRIPTION_HEADER = PREFIX + "subscription"
DEAD_LETTER_HEADERS = (
    TOPIC_HEADER,
    PARTITION_HEADER,
    OFFSET_HEADER,
    TIMESTAMP_HEADER,
    BY_HEADER,
    REASON_HEADER,
    ERROR_HEADER,
    DELIVERIES_HEADER,
    SUBSCRIPTION_HEADER,
)
MAX_ERROR_CHARACTERS = 2000  # an error may quote the value, and the letter has to fit as the record did


# A letter is larger than its record, and the topic of that may allow more than is usual.
TOPIC_CONFIG: dict[str, ConfigValue] = {"max.message.bytes": 64 << 20}


def make_dead_letter_topic(directory: DataDirectory, topic: str) -> bool:
    """Have *topic* be there for dead letters; whether it was made."""
    try:
        directory.create_topic(topic, 1, LogConfig.parse(TOPIC_CONFIG))
    except TopicExistsError:
        return False
    return True


class Death(msgspec.Struct, frozen=True):
    """What the headers of a dead letter say; None where they do not."""

    topic: str | None
    partition: int | None
    offset: int | None
    timestamp_ms: int | None
    by: str | None
    reason: str | None
    error: str | None
    deliveries: int | None
    subscription_id: str | None


def dead_letter_message(
    record: Record,
    *,
    reason: str,
    error: str | None,
    by: str,
    deliveries: int | None = None,
    subscription_id: str | None = None,
) -> Message:
    """The dead letter of *record*, to be sent to the topic for them.

    Args:
        record: as it was read.
        reason: a word or two that programs can tell apart.
        error: what was wrong; cut after 2,000 characters.
        by: who gives it up.
        deliveries: how often it was handed out before.
        subscription_id: of the queue that gives it up.
    """
    told: list[tuple[str, bytes | None]] = [
        (TOPIC_HEADER, record.topic.encode()),
        (PARTITION_HEADER, b"%d" % record.partition),
        (OFFSET_HEADER, b"%d" % record.offset),
        (TIMESTAMP_HEADER, b"%d" % record.timestamp_ms),
        (BY_HEADER, _utf8(by)),
        (REASON_HEADER, _utf8(reason)),
    ]
    if error is not None:
        told.append((ERROR_HEADER, _utf8(error[:MAX_ERROR_CHARACTERS])))
    if deliveries is not None:
        told.append((DELIVERIES_HEADER, b"%d" % deliveries))
    if subscription_id is not None:
        told.append((SUBSCRIPTION_HEADER, subscription_id.encode()))
    return Message(record.value, record.key, [*without_dead_letter_headers(record), *told])


def without_dead_letter_headers(record: Record) -> list[tuple[str, bytes | None]]:
    """The headers that the record had before it died, none of them the broker's own; for sending it again."""
    return [
        pair
        for pair in record.header_pairs
        if pair[0] not in DEAD_LETTER_HEADERS and not pair[0].startswith(RESERVED_HEADER_PREFIX)
    ]


def death_of(record: Record) -> Death | None:
    """What a dead letter tells of its death; None when *record* is none."""
    told = {
        name: value.decode(errors="replace")
        for name, value in record.header_pairs
        if name in DEAD_LETTER_HEADERS and value is not None
    }
    if not told:
        return None
    return Death(
        topic=told.get(TOPIC_HEADER),
        partition=_number(told.get(PARTITION_HEADER)),
        offset=_number(told.get(OFFSET_HEADER)),
        timestamp_ms=_number(told.get(TIMESTAMP_HEADER)),
        by=told.get(BY_HEADER),
        reason=told.get(REASON_HEADER),
        error=told.get(ERROR_HEADER),
        deliveries=_number(told.get(DELIVERIES_HEADER)),
        subscription_id=told.get(SUBSCRIPTION_HEADER),
    )


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None  # somebody else wrote the header


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")
