"""What consumers put into the classic group protocol: subscriptions into joins, assignments into syncs.

    at  size  field     type   meaning
     0     2  version   int16  of what follows; one above those known is read as the last known
     2        message          ConsumerProtocolSubscription or ConsumerProtocolAssignment

To the group protocol itself these are bytes. Readers give None for what they cannot read. The bytes are a
stranger's like those of a request, and are held to the same bounds (see ``request_bounds``).
"""

from __future__ import annotations

import io
import struct
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from kio.schema.consumer_protocol_assignment.v0 import data as assignment_v0
from kio.schema.consumer_protocol_subscription.v0 import data as subscription_v0
from kio.schema.consumer_protocol_subscription.v1 import data as subscription_v1
from kio.schema.consumer_protocol_subscription.v2 import data as subscription_v2
from kio.schema.consumer_protocol_subscription.v3 import data as subscription_v3
from kio.schema.types import TopicName
from kio.serial import entity_reader, entity_writer
from kio.serial.errors import SerialError
from kio.static.primitive import i32

from .classic_messages import NO_ASSIGNMENT
from .consumer_messages import Partitions
from .request_bounds import BoundsError, check_bounds

CONSUMER_PROTOCOL_TYPE: Final = "consumer"
VERSION: Final = struct.Struct(">h")
_ASSIGNMENT_VERSION: Final = 0  # the later ones have the same fields

_SUBSCRIPTIONS: Final[tuple[type[Any], ...]] = tuple(
    version.ConsumerProtocolSubscription
    for version in (subscription_v0, subscription_v1, subscription_v2, subscription_v3)
)
_write_assignment = entity_writer(assignment_v0.ConsumerProtocolAssignment)


class Subscription(NamedTuple):
    """What a member wants, and what it says it owns (from version 1 on)."""

    topics: tuple[str, ...]
    owned: Partitions
    rack_id: str | None


def read_subscription(metadata: bytes) -> Subscription | None:
    """``None`` for anything but a ConsumerProtocolSubscription of any version."""
    version = _version(metadata)
    if version is None:
        return None
    message = _read(_SUBSCRIPTIONS[min(version, len(_SUBSCRIPTIONS) - 1)], metadata)
    if message is None:
        return None
    owned = getattr(message, "owned_partitions", None) or ()
    return Subscription(message.topics, _by_topic(owned), getattr(message, "rack_id", None) or None)


def read_topics(metadata: bytes) -> frozenset[str] | None:
    """The topics of a ConsumerProtocolSubscription, ``None`` for anything else.

    Nothing behind them is looked at, and the version neither: every version begins as version 0 does.
    """
    message = _read(_SUBSCRIPTIONS[0], metadata)
    return None if message is None else frozenset(message.topics)


def read_assignment(assignment: bytes) -> Partitions | None:
    """``None`` for anything but a ConsumerProtocolAssignment; no bytes at all assign nothing."""
    if assignment == NO_ASSIGNMENT:
        return {}
    if _version(assignment) is None:
        return None
    message = _read(assignment_v0.ConsumerProtocolAssignment, assignment)
    return None if message is None else _by_topic(message.assigned_partitions)


def assignment_bytes(partitions: Partitions) -> bytes:
    """*partitions* as a ConsumerProtocolAssignment."""
    message = assignment_v0.ConsumerProtocolAssignment(
        assigned_partitions=tuple(
            assignment_v0.TopicPartition(topic=TopicName(topic), partitions=tuple(map(i32, numbers)))
            for topic, numbers in partitions.items()
        ),
        user_data=None,
    )
    buffer = io.BytesIO(VERSION.pack(_ASSIGNMENT_VERSION))
    buffer.seek(0, io.SEEK_END)
    _write_assignment(buffer, message)
    return buffer.getvalue()


def _read(message: type[Any], data: bytes) -> Any:
    try:
        check_bounds(message, memoryview(data), VERSION.size)
        read, _ = entity_reader(message)(data, VERSION.size)
    except (BoundsError, SerialError, ValueError):  # the last for text that is not UTF-8
        return None
    return read


def _version(message: bytes) -> int | None:
    if len(message) < VERSION.size:
        return None
    version: int = VERSION.unpack_from(message)[0]
    return version if version >= 0 else None


def _by_topic(listed: Iterable[Any]) -> Partitions:
    """A client may list a topic more than once."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for each in listed:
        numbers[each.topic].update(each.partitions)
    return {topic: tuple(sorted(numbers[topic])) for topic in numbers}
