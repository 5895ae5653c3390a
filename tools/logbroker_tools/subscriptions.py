"""The subscriptions of a directory, as the journal has them: their rules, and how far each is in each partition.

    what       start_offset                    done                               attempted, rejected
    queue      all below is done               messages behind it that are done   handed out in vain; to be buried
    stream     the group's committed offset    -                                  -
    redriven   -                               dead letters that were sent back   -

Leases are not in the journal: what is in somebody's hands is neither done nor attempted here. Progress of a
subscription that is not there is shown without a name.
"""

from __future__ import annotations

import msgspec

from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.events import (
    AnyEvent,
    OffsetEvent,
    QueueBlockEvent,
    QueueEvent,
    SubscriptionEvent,
    decode_attempts,
)

from .event_fields import done_offsets, rules_of
from .layout import Target
from .reading import Report, live_events

QUEUE, STREAM, REDRIVEN = "queue", "stream", "redriven"

_Place = tuple[str, int]


class SubscriptionPlace(msgspec.Struct, frozen=True):
    """How far a subscription is in one partition; counts are of messages."""

    topic: str
    partition: int
    what: str
    start_offset: int | None
    done: int | None
    attempted: int | None
    rejected: int | None


class SubscriptionSummary(msgspec.Struct, frozen=True):
    """A subscription; all but id and places are None where only its progress is left."""

    subscription_id: str
    name: str | None
    kind: str | None
    topics: list[str] | None
    is_paused: bool | None
    created_ms: int | None
    rules: object
    places: list[SubscriptionPlace]


class _Counts:
    """What the blocks of one partition say."""

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.attempted = 0
        self.rejected = 0

    def add(self, block: QueueBlockEvent) -> None:
        self.done.update(done_offsets(block))
        try:
            attempts = decode_attempts(block.attempts)
        except CorruptBatchError:
            return  # `journal` shows it as it is
        for attempt in attempts:
            count = attempt.last - attempt.first + 1
            if attempt.is_rejected:
                self.rejected += count
            else:
                self.attempted += count


def subscriptions(target: Target, report: Report) -> list[SubscriptionSummary]:
    """Every subscription, by name; progress without one at the end."""
    live = list(live_events(target, report).values())
    known = {event.subscription_id: event for event in live if isinstance(event, SubscriptionEvent)}
    progress = (event for event in live if isinstance(event, QueueEvent | QueueBlockEvent))
    orphans = sorted({event.subscription_id for event in progress} - known.keys())
    found = [
        SubscriptionSummary(
            subscription_id=event.subscription_id,
            name=event.name,
            kind=event.subscription_kind,
            topics=event.topics,
            is_paused=event.is_paused,
            created_ms=event.created_ms,
            rules=rules_of(event),
            places=_stream_places(live, event.name)
            if event.subscription_kind == "stream"
            else _queue_places(live, event.subscription_id),
        )
        for event in sorted(known.values(), key=lambda event: event.name)
    ]
    return found + [
        SubscriptionSummary(
            subscription_id=subscription_id,
            name=None,
            kind=None,
            topics=None,
            is_paused=None,
            created_ms=None,
            rules=None,
            places=_queue_places(live, subscription_id),
        )
        for subscription_id in orphans
    ]


def _stream_places(live: list[AnyEvent], group: str) -> list[SubscriptionPlace]:
    committed = [event for event in live if isinstance(event, OffsetEvent) and event.group == group]
    committed.sort(key=lambda event: (event.topic, event.partition))
    return [
        SubscriptionPlace(event.topic, event.partition, STREAM, event.offset, None, None, None)
        for event in committed
    ]


def _queue_places(live: list[AnyEvent], subscription_id: str) -> list[SubscriptionPlace]:
    starts: dict[_Place, int] = {}
    counts: dict[_Place, _Counts] = {}
    for event in live:
        if isinstance(event, QueueEvent) and event.subscription_id == subscription_id:
            starts[event.topic, event.partition] = event.start_offset
            counts.setdefault((event.topic, event.partition), _Counts())
        elif isinstance(event, QueueBlockEvent) and event.subscription_id == subscription_id:
            counts.setdefault((event.topic, event.partition), _Counts()).add(event)
    return [_queue_place(place, starts.get(place), counts[place]) for place in sorted(counts)]


def _queue_place(place: _Place, start_offset: int | None, found: _Counts) -> SubscriptionPlace:
    if start_offset is None:  # a queue has one wherever it has blocks: this is its dead letter topic
        return SubscriptionPlace(*place, REDRIVEN, None, len(found.done), None, None)
    done = sum(offset >= start_offset for offset in found.done)
    return SubscriptionPlace(*place, QUEUE, start_offset, done, found.attempted, found.rejected)
