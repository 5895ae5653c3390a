"""Durable bindings: made, removed and looked at.

A binding is a journal event. It is made and removed under ``Journal.exclusive``, and every commit of a router
looks under the same lock whether the bindings are still those that its plan was made with.
So each record is routed by the bindings of one moment, and a change of them falls between two records:

    made, start="latest"    it counts from where readers of each partition were at that moment, as a consumer's
                            "latest"; a topic that is created later counts from its beginning
    made, start="earliest"  it counts from what each partition still holds. Where the router has got further it is
                            taken back, and the other bindings of the topic note up to where they were written
    removed                 nothing more comes of it once ``unbind`` has returned; topics that no other binding
                            reads leave the router's group

All bindings share one group and so one offset a partition, ``ROUTER_GROUP``. A topic without a binding begins
there where its first binding counts from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    BindingExistsError,
    BindingNotFoundError,
    InvalidRequestError,
    TopicNotFoundError,
)
from logbroker_storage.events import (
    BindingEvent,
    GroupEvent,
    OffsetEvent,
    TopicEvent,
    TopicReach,
    encode_event,
)
from logbroker_storage.journal import BINDINGS_VERSION, Item
from logbroker_storage.log_offsets import Isolation

from ..arguments import utf8
from ..dead_letters import make_dead_letter_topic
from ..expressions import compile_expression
from ..topic_names import check_binding_name, check_source, check_topic_name, is_wildcard, source_matches
from ..transforms import load_pipeline
from ..transforms.loading import Source
from .descriptions import BindingDescription, StallDescription
from .plan import find_loop

logger = logging.getLogger("logbroker.router")

ROUTER_GROUP = "__router"
DEAD_SUFFIX = ".dead"

BindingStart = Literal["earliest", "latest"]
HeadersMatch = Literal["all", "any"]


# What is there ----------------------------------------------------------------------------------------------


def bindings_version(directory: DataDirectory) -> int:
    """Grows with every change to any binding."""
    return directory.view.meta_int(BINDINGS_VERSION)


def stored_bindings(directory: DataDirectory) -> list[BindingEvent]:
    """Every binding, by name."""
    return directory.view.events.all(BindingEvent, BindingEvent.ALL)


def stored_binding(directory: DataDirectory, name: str) -> BindingEvent:
    """The binding of this name.

    Raises:
        BindingNotFoundError: there is none.
        InvalidRequestError: no binding can have such a name.
    """
    event = directory.view.events.get(BindingEvent, BindingEvent.key_of(check_binding_name(name)))
    if event is None:
        raise BindingNotFoundError(name, known=[event.name for event in stored_bindings(directory)])
    return event


def topics_of(directory: DataDirectory, source: str) -> list[TopicEvent]:
    """The live topics that *source* means now, by name."""
    return [event for event in directory.catalog.live() if source_matches(source, event.name)]


# Made -------------------------------------------------------------------------------------------------------


def make_binding(
    directory: DataDirectory,
    source: str,
    target: str,
    *,
    name: str | None,
    when: str | None,
    headers: Mapping[str, str | bytes | None] | None,
    headers_match: HeadersMatch,
    transform: Source | None,
    unrouted: bool,
    dead_letter: str | None,
    start: BindingStart,
) -> BindingEvent:
    """As ``Broker.bind``."""
    check_source(source)
    check_topic_name(target)
    if headers_match not in ("all", "any"):
        raise InvalidRequestError(f"headers_match={headers_match!r} is not known; use 'all' or 'any'")
    if start not in ("earliest", "latest"):
        raise InvalidRequestError(f"start={start!r} is not known; a binding starts 'earliest' or 'latest'")
    if unrouted and (when is not None or headers):
        raise InvalidRequestError(
            "unrouted=True takes what no other binding takes: it goes with neither when= nor headers="
        )
    if when is not None:
        compile_expression(when)
    event = BindingEvent(
        name=check_binding_name(f"{source}->{target}" if name is None else name),
        source=source,
        target=target,
        dead_letter=target + DEAD_SUFFIX if dead_letter is None else dead_letter,
        created_ms=directory.clock.now_ms(),
        when=when,
        headers=_stored_conditions(headers or {}),
        headers_match=headers_match,
        transform=_stored_pipeline(transform),
        unrouted=bool(unrouted),
    )
    check_topic_name(event.dead_letter)
    if event.dead_letter == target:
        raise InvalidRequestError(
            f"dead letters of a binding to {target!r} cannot go to that topic itself; name another"
        )
    # Looked at twice: a topic is only made for a binding that can be, and the journal's lock is not for making it.
    _check(directory, event, makes_dead_letter=dead_letter is None)
    if dead_letter is None and make_dead_letter_topic(directory, event.dead_letter):
        logger.info("topic %r was made: the dead letter of binding %r", event.dead_letter, event.name)
    with directory.journal.exclusive() as turn:
        _check(directory, event, makes_dead_letter=False)
        reaching, items = _reaching(directory, event, earliest=start == "earliest")
        turn.write([*items, (reaching.key(), encode_event(reaching))])
    logger.info("binding %r: %s -> %s", event.name, source, target)
    return reaching


def _stored_conditions(headers: Mapping[str, str | bytes | None]) -> dict[str, str | None]:
    if not isinstance(headers, Mapping):
        raise InvalidRequestError(f"headers= maps header keys to text, and is no {type(headers).__name__}")
    conditions: dict[str, str | None] = {}
    for key, value in headers.items():
        utf8("a header's key", key)
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise InvalidRequestError(
                    f"header {key!r} is compared as text, and {value!r} is no UTF-8; use when="
                ) from None
        if value is not None and not isinstance(value, str):
            raise InvalidRequestError(
                f"header {key!r} is compared with text or None (any value), not {type(value).__name__}"
            )
        if value is not None:
            utf8(f"the text of header {key!r}", value)
        conditions[key] = value
    return conditions


def _stored_pipeline(transform: Source | None) -> str | None:
    """The TOML text to store; it loads."""
    if transform is None:
        return None
    pipeline = load_pipeline(transform)
    if pipeline.source is None:
        raise InvalidRequestError(
            "a binding outlives this process, so its transform cannot be a Python callable: declare it in TOML, "
            "or run broker.transform()"
        )
    return pipeline.source


def _check(directory: DataDirectory, event: BindingEvent, *, makes_dead_letter: bool) -> None:
    """That *event* can come to the bindings that are there.

    Raises:
        BindingExistsError, TopicNotFoundError, RoutingLoopError: it cannot.
    """
    existing = stored_bindings(directory)
    if any(known.name == event.name for known in existing):
        raise BindingExistsError(event.name)
    if not is_wildcard(event.source):
        directory.topic(event.source)
    directory.topic(event.target)
    if not makes_dead_letter:
        directory.topic(event.dead_letter)
    loop = find_loop(existing, event)
    if loop is not None:
        raise loop


# Where it starts, under the journal's lock --------------------------------------------------------------------


class _Changes:
    """Reaches of the other bindings as they come to be, and offsets of the router's group."""

    def __init__(self, others: Sequence[BindingEvent]) -> None:
        self.others = {event.name: event for event in others}
        self.changed: set[str] = set()
        self.offsets: list[OffsetEvent] = []

    def note_routed(self, topic: TopicEvent, offsets: Mapping[int, int]) -> None:
        """Everything of these partitions below their offset is written, by the bindings that were there."""
        for name, event in self.others.items():
            if offsets and source_matches(event.source, topic.name):
                self.others[name] = _routed_to(event, topic, offsets)
                self.changed.add(name)

    def items(self) -> list[Item]:
        events = [*(self.others[name] for name in sorted(self.changed)), *self.offsets]
        return [(event.key(), encode_event(event)) for event in events]


def _reaching(
    directory: DataDirectory, event: BindingEvent, *, earliest: bool
) -> tuple[BindingEvent, list[Item]]:
    """*event* with the offsets that it counts from, and what else has to change with it."""
    others = stored_bindings(directory)
    changes = _Changes(others)
    reach = []
    for topic in topics_of(directory, event.source):
        starts = [_start(directory, topic.name, number, earliest) for number in range(topic.partitions)]
        reach.append(TopicReach(topic.name, topic.topic_id, starts, starts))
        is_read = any(source_matches(other.source, topic.name) for other in others)
        routed: dict[int, int] = {}
        for partition, start in enumerate(starts):
            committed = directory.groups.committed(ROUTER_GROUP, topic.name, partition)
            if is_read and (committed is None or committed.offset <= start):
                continue  # the router comes to it
            if is_read and committed is not None:
                routed[partition] = committed.offset
            changes.offsets.append(
                OffsetEvent(ROUTER_GROUP, topic.name, partition, start, "", directory.clock.now_ms())
            )
        changes.note_routed(topic, routed)
    return msgspec.structs.replace(event, reach=reach), changes.items()


def _start(directory: DataDirectory, topic: str, partition: int, earliest: bool) -> int:
    log = directory.log(topic, partition)
    offsets = log.offsets()
    start = offsets.log_start_offset if earliest else offsets.visible_end(Isolation.READ_COMMITTED)
    log.sync_below(start)  # it is committed for the group, and a power cut must not leave it above the end
    return start


def _routed_to(event: BindingEvent, topic: TopicEvent, offsets: Mapping[int, int]) -> BindingEvent:
    """*event*, whose records of these partitions are written below their offset."""
    known = next((reach for reach in event.reach if reach.topic_id == topic.topic_id), None)
    missing = [0] * (topic.partitions - (0 if known is None else len(known.starts)))
    starts = [*(known.starts if known is not None else []), *missing]
    routed = [*(known.routed if known is not None else []), *missing]
    for partition, offset in offsets.items():
        routed[partition] = max(routed[partition], offset)
    reach = [other for other in event.reach if other.topic_id != topic.topic_id and other.topic != topic.name]
    reach.append(TopicReach(topic.name, topic.topic_id, starts, routed))
    return msgspec.structs.replace(event, reach=reach)


# Removed ----------------------------------------------------------------------------------------------------


def remove_binding(directory: DataDirectory, name: str) -> None:
    """As ``Broker.unbind``."""
    with directory.journal.exclusive() as turn:
        event = stored_binding(directory, name)
        remaining = [other for other in stored_bindings(directory) if other.name != name]
        items: list[Item] = [(event.key(), None)]
        items += _forgotten(directory, remaining)
        turn.write(items)
        for stall in stalled_partitions(directory):
            if not any(source_matches(other.source, stall.topic) for other in remaining):
                clear_stall(directory, stall.topic, stall.partition)
    logger.info("binding %r is gone", name)


def _forgotten(directory: DataDirectory, remaining: Sequence[BindingEvent]) -> list[Item]:
    """What makes the router's group forget the topics that none of the *remaining* bindings reads."""

    def is_read(topic: str) -> bool:
        return any(source_matches(event.source, topic) for event in remaining)

    items: list[Item] = [
        (event.key(), None)
        for event in directory.groups.committed_offsets(ROUTER_GROUP)
        if not is_read(event.topic)
    ]
    group = directory.view.events.get(GroupEvent, GroupEvent.key_of(ROUTER_GROUP))
    if group is not None:
        topics = list(filter(is_read, group.topics))
        kept = encode_event(msgspec.structs.replace(group, topics=topics)) if topics else None
        items.append((group.key(), kept))
    return items


# Looked at --------------------------------------------------------------------------------------------------


def describe_bindings(directory: DataDirectory) -> list[BindingDescription]:
    """As ``Broker.bindings``."""
    stalls = stalled_partitions(directory)
    return [_describe(directory, event, stalls) for event in stored_bindings(directory)]


def router_offsets(directory: DataDirectory, topic: str, partition: int) -> list[int]:
    """How far the router is in a partition that a binding reads: retention.policy=consumed must wait for it."""
    if not any(source_matches(event.source, topic) for event in stored_bindings(directory)):
        return []
    committed = directory.groups.committed(ROUTER_GROUP, topic, partition)
    return [0 if committed is None else committed.offset]


def describe_binding(directory: DataDirectory, event: BindingEvent) -> BindingDescription:
    """One of them."""
    return _describe(directory, event, stalled_partitions(directory))


def _describe(
    directory: DataDirectory, event: BindingEvent, stalls: Iterable[StallDescription]
) -> BindingDescription:
    topics = topics_of(directory, event.source)
    names = [topic.name for topic in topics]
    fields = {field: getattr(event, field) for field in event.__struct_fields__ if field != "reach"}
    return BindingDescription(
        **fields,
        topics=names,
        lag=sum(_lag(directory, event, topic) for topic in topics),
        stalled=[stall for stall in stalls if stall.topic in names],
    )


def _lag(directory: DataDirectory, event: BindingEvent, topic: TopicEvent) -> int:
    """Offsets of *topic* that count for the binding and that the router has not come to."""
    reach = next((reach for reach in event.reach if reach.topic_id == topic.topic_id), None)
    lag = 0
    for partition in range(topic.partitions):
        try:
            offsets = directory.log(topic.name, partition).offsets()
        except TopicNotFoundError:
            break  # deleted a moment ago
        committed = directory.groups.committed(ROUTER_GROUP, topic.name, partition)
        starts = reach.starts if reach is not None else []
        begin = max(
            0 if committed is None else committed.offset,
            starts[partition] if partition < len(starts) else 0,
            offsets.log_start_offset,
        )
        lag += max(0, offsets.high_watermark - begin)
    return lag


# Stalls: volatile; noted by the router that has the partition, cleared by whichever goes on there --------------

_STALL_PREFIX = b"stall\0"


class _Stall(msgspec.Struct, frozen=True):
    process_id: str
    error: str
    since_ms: int


def _stall_key(topic: str, partition: int) -> bytes:
    return _STALL_PREFIX + b"%s\0%d" % (topic.encode(), partition)


def note_stall(directory: DataDirectory, topic: str, partition: int, error: str, since_ms: int) -> None:
    """Show that this process's router cannot go on in a partition."""
    value = msgspec.msgpack.encode(_Stall(directory.process_id, error, since_ms))
    directory.view.volatile.update(_stall_key(topic, partition), lambda _: value)


def clear_stall(directory: DataDirectory, topic: str, partition: int) -> bool:
    """A router goes on in a partition; whether one was held up there before."""
    key = _stall_key(topic, partition)
    if directory.view.volatile.value(key) is None:
        return False
    directory.view.volatile.update(key, lambda _: None)
    return True


def stalled_partitions(directory: DataDirectory) -> list[StallDescription]:
    """Where routers that are alive cannot go on, by topic and partition."""
    found = []
    for key, value in directory.view.volatile.items(_STALL_PREFIX):
        stall = msgspec.msgpack.decode(value, type=_Stall)
        if directory.process_alive(stall.process_id):
            topic, partition = key[len(_STALL_PREFIX) :].split(b"\0")
            found.append(StallDescription(topic.decode(), int(partition), stall.error, stall.since_ms))
    return found
