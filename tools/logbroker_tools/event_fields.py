"""Journal events as documents that people can read: what an event packs is unpacked."""

from __future__ import annotations

from itertools import groupby

import msgspec

from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.events import (
    BLOCK_OFFSETS,
    AnyEvent,
    QueueBlockEvent,
    SubscriptionEvent,
    decode_attempts,
)


def event_fields(event: AnyEvent) -> dict[str, object]:
    """The fields of *event* for JSON.

    Of a subscription the rules are a map; of a block of a queue, *done* and *attempts* are ranges of offsets of the
    partition, both ends inclusive. What cannot be unpacked stays base64.
    """
    fields = msgspec.to_builtins(event)
    assert isinstance(fields, dict)
    if isinstance(event, SubscriptionEvent):
        return {**fields, "rules": rules_of(event)}
    if isinstance(event, QueueBlockEvent):
        return {**fields, "done": done_ranges(event), "attempts": attempt_fields(event)}
    return fields


def rules_of(event: SubscriptionEvent) -> object:
    """The rules of a subscription; those that are missing have their defaults."""
    try:
        return msgspec.to_builtins(msgspec.msgpack.decode(event.rules))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.to_builtins(event.rules)  # `verify` checks the record around it


def done_offsets(event: QueueBlockEvent) -> list[int]:
    """The offsets that a block calls done, ascending."""
    bits = int.from_bytes(event.done, "little")
    base = event.block * BLOCK_OFFSETS
    return [base + bit for bit in range(bits.bit_length()) if bits >> bit & 1]


def done_ranges(event: QueueBlockEvent) -> list[tuple[int, int]]:
    """The same as ranges, both ends inclusive."""
    ranges: list[tuple[int, int]] = []
    for _, run in groupby(enumerate(done_offsets(event)), key=lambda pair: pair[1] - pair[0]):
        offsets = [offset for _, offset in run]
        ranges.append((offsets[0], offsets[-1]))
    return ranges


def attempt_fields(event: QueueBlockEvent) -> object:
    """What was handed out in vain, with offsets of the partition."""
    base = event.block * BLOCK_OFFSETS
    try:
        attempts = decode_attempts(event.attempts)
    except CorruptBatchError:
        return msgspec.to_builtins(event.attempts)
    return [
        {
            "first": base + attempt.first,
            "last": base + attempt.last,
            "delivery_count": attempt.delivery_count,
            "not_before_ms": attempt.not_before_ms or None,
            "is_rejected": attempt.is_rejected,
            "note": attempt.note,
        }
        for attempt in attempts
    ]
