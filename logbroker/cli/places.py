"""The partitions that topic arguments mean, and positions in them as offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logbroker_storage.errors import TopicNotFoundError

from ..groups import TopicPartition
from ..topic_selection import TopicSelection
from .positions import Moment, Named, Offset, Position, Shift

if TYPE_CHECKING:
    from ..broker import Broker
    from ..consumer import Consumer


@dataclass(frozen=True)
class Range:
    """The offsets of a partition that can be read: from *start* up to, but not including, *end*."""

    start: int
    end: int

    def clamp(self, offset: int) -> int:
        """The nearest offset to *offset* that a reader may stand at."""
        return min(max(offset, self.start), self.end)


Ranges = Mapping[TopicPartition, Range]


def ranges_of(
    broker: Broker, topics: Sequence[str], partition: int | None = None
) -> dict[TopicPartition, Range]:
    """Every partition that *topics* (names and patterns) mean now.

    Raises:
        TopicNotFoundError: a topic that is named is not there, or none of them has *partition*.
    """
    selection = TopicSelection.parse(topics)
    existing = broker.topics()
    selection.check_names(existing)
    found = {
        (name, part.partition): Range(part.log_start_offset, part.last_stable_offset)
        for name in selection.resolve(existing)
        for part in broker.topic(name).partitions
    }
    if partition is not None and found and all(number != partition for _, number in found):
        topic = min(found)[0]
        count = sum(name == topic for name, _ in found)
        raise TopicNotFoundError(topic, partition=partition, partitions=count)
    return found


def offsets_at(broker: Broker, found: Ranges, position: Position) -> dict[TopicPartition, int]:
    """*position* as an offset of each partition, brought inside it."""
    if isinstance(position, Moment) and found:
        with broker.consumer({topic for topic, _ in found}) as consumer:
            consumer.seek_to(position.time)
            at = positions(consumer)
        return {place: limits.clamp(at.get(place, limits.end)) for place, limits in found.items()}
    return {place: _offset_at(limits, position) for place, limits in found.items()}


def _offset_at(limits: Range, position: Position) -> int:
    match position:
        case Named.LATEST:
            return limits.end
        case Offset(offset):
            return limits.clamp(offset)
        case Shift(records):
            return limits.clamp(limits.end + records)
    return limits.start


def positions(consumer: Consumer) -> dict[TopicPartition, int]:
    """``consumer.position()``, always by topic and partition."""
    return _by_place(consumer, consumer.position())


def lags(consumer: Consumer) -> dict[TopicPartition, int]:
    """``consumer.lag()``, always by topic and partition."""
    return _by_place(consumer, consumer.lag())


def _by_place(consumer: Consumer, values: Mapping[int | TopicPartition, int]) -> dict[TopicPartition, int]:
    """A consumer of one topic labels its answers by partition alone."""
    label: dict[int | TopicPartition, TopicPartition] = {}
    for place in consumer.assignment():
        label[place] = label[place[1]] = place
    return {label[key]: value for key, value in values.items() if key in label}
