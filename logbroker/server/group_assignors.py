"""The assignors of KIP-848 groups: who of the subscribers shall have which partition.

uniform    balanced first, then as little moved as possible (``assignor``, which embedded consumers have too)
range      of each topic a range for each subscriber, so that equal partition numbers stay together
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..assignor import Assignment, TopicPartition, assign

Owners = dict[TopicPartition, str]


class Subscriber(NamedTuple):
    """A member as an assignor sees it: who it is, and which existing topics it wants."""

    member_id: str
    instance_id: str | None
    topics: frozenset[str]


class AssignorInput(NamedTuple):
    """Members in the order of their joining, the topics they want, and who had each partition so far."""

    subscribers: Sequence[Subscriber]
    topics: Mapping[str, int]
    held: Mapping[TopicPartition, tuple[str, ...]]


def uniform(wanted: AssignorInput) -> Owners:
    """As even as subscriptions allow (at most one apart when they are equal), and little moves."""
    places = ((topic, number) for topic in sorted(wanted.topics) for number in range(wanted.topics[topic]))
    return assign(
        Assignment(
            subscriptions={subscriber.member_id: subscriber.topics for subscriber in wanted.subscribers},
            held={place: wanted.held.get(place, ()) for place in places},
        )
    )


def ranges(wanted: AssignorInput) -> Owners:
    """Of each topic a range for each subscriber, always in the same order of subscribers.

    So members with equal subscriptions get the same partition numbers of all topics with equally many
    partitions. Static members come first, by instance id, so their ranges survive a restart.
    """
    ordered = sorted(wanted.subscribers, key=_place_in_ranges)
    owners: Owners = {}
    for topic, partitions in wanted.topics.items():
        takers = [subscriber.member_id for subscriber in ordered if topic in subscriber.topics]
        for number, member_id in enumerate(_in_ranges(takers, partitions)):
            owners[topic, number] = member_id
    return owners


def _place_in_ranges(subscriber: Subscriber) -> tuple[bool, str]:
    return subscriber.instance_id is None, subscriber.instance_id or subscriber.member_id


def _in_ranges(takers: Sequence[str], partitions: int) -> Iterable[str]:
    if not takers:
        return
    quota, extra = divmod(partitions, len(takers))
    for index, taker in enumerate(takers):
        yield from [taker] * (quota + (index < extra))


DEFAULT_ASSIGNOR = "uniform"
ASSIGNORS: dict[str, Callable[[AssignorInput], Owners]] = {DEFAULT_ASSIGNOR: uniform, "range": ranges}
