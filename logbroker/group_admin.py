"""Looking at a consumer group from outside, and changing it while nobody is in it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.events import GroupEvent, OffsetEvent, SubscriptionEvent

from .descriptions import GroupDescription, MemberDescription, OffsetDescription
from .group_store import check_not_on_network, group_key
from .groups import GroupState, TopicPartition, decode_group
from .records import MILLISECOND, timestamp_ms_of
from .start import inside
from .topic_names import check_group_name
from .topic_selection import entries_of

ResetTarget = str | int | datetime.datetime | datetime.timedelta


def _live_state(directory: DataDirectory, group: str) -> GroupState:
    return decode_group(directory.view.volatile.value(group_key(group)))


def _live_members(directory: DataDirectory, state: GroupState) -> list[str]:
    return [
        member_id for member_id, member in state.members.items() if directory.process_alive(member.process_id)
    ]


def _subscribed_topics(directory: DataDirectory, group: str) -> set[str]:
    event = directory.groups.subscribed(group)
    return set() if event is None else set(event.topics)


def _check_exists(directory: DataDirectory, group: str) -> None:
    check_group_name(group)
    if not directory.groups.has(group):
        raise InvalidRequestError(f"there is no consumer group {group!r}; `logbroker group list` names them")


def describe_group(directory: DataDirectory, group: str) -> GroupDescription:
    """As ``Broker.group``."""
    _check_exists(directory, group)
    state = _live_state(directory, group)
    members = [
        MemberDescription(
            member_id=member_id,
            process_id=state.members[member_id].process_id,
            topics=state.members[member_id].selection.entries,
            assignment=sorted(state.owned_by(member_id)),
        )
        for member_id in sorted(_live_members(directory, state))
    ]
    owners = {place: slot.owner for place, slot in state.slots() if slot.owner}
    return GroupDescription(
        name=group,
        generation=state.generation,
        members=members,
        offsets=_describe_offsets(directory, group, owners),
    )


def _describe_offsets(
    directory: DataDirectory, group: str, owners: dict[tuple[str, int], str]
) -> list[OffsetDescription]:
    committed = {
        (event.topic, event.partition): event.offset for event in directory.groups.committed_offsets(group)
    }
    existing = set(directory.topics())
    topics = (_subscribed_topics(directory, group) | {topic for topic, _ in committed}) & existing
    rows = []
    for topic in sorted(topics):
        for partition in range(directory.topic(topic).partitions):
            offsets = directory.log(topic, partition).offsets()
            offset = committed.get((topic, partition))
            behind = None if offset is None else max(offset, offsets.log_start_offset)
            rows.append(
                OffsetDescription(
                    topic=topic,
                    partition=partition,
                    committed_offset=offset,
                    high_watermark=offsets.high_watermark,
                    lag=None if behind is None else max(0, offsets.high_watermark - behind),
                    member_id=owners.get((topic, partition)),
                )
            )
    return rows


def reset_group(
    directory: DataDirectory,
    group: str,
    to: ResetTarget,
    *,
    topics: Iterable[str] | None = None,
    shift: bool = False,
    dry_run: bool = False,
) -> dict[tuple[str, int], int]:
    """As ``Broker.reset_group``."""
    check_group_name(group)
    committed = {
        (event.topic, event.partition): event.offset for event in directory.groups.committed_offsets(group)
    }
    places = _places_to_reset(directory, group, topics, committed)
    offset_of = _target(directory, to, shift, committed)
    targets = {place: _clamped(directory, place, offset_of(*place)) for place in places}
    if not dry_run:
        now_ms = directory.clock.now_ms()
        events = [
            OffsetEvent(group, topic, partition, offset, "", now_ms)
            for (topic, partition), offset in targets.items()
        ]
        directory.journal.record(events, check=lambda: check_no_members(directory, group, "reset"))
    return targets


def reset_offsets(
    directory: DataDirectory, to: ResetTarget, places: Mapping[TopicPartition, int], *, shift: bool
) -> dict[TopicPartition, int]:
    """The offset that *to* means in each of *places*, brought inside the log and on the disk.

    *places* are with the offset that *shift* counts from.
    """
    offset_of = _target(directory, to, shift, places)
    return {place: _clamped(directory, place, offset_of(*place)) for place in places}


def _places_to_reset(
    directory: DataDirectory,
    group: str,
    topics: Iterable[str] | None,
    committed: dict[tuple[str, int], int],
) -> list[tuple[str, int]]:
    if topics is None:
        names = {topic for topic, _ in committed} | _subscribed_topics(directory, group)
        names &= set(directory.topics())
    else:
        names = set(entries_of(topics))
    if not names:
        raise InvalidRequestError(f"group {group!r} has committed nothing: name the topics to reset")
    return [(topic, number) for topic in sorted(names) for number in range(directory.topic(topic).partitions)]


def _target(
    directory: DataDirectory, to: ResetTarget, shift: bool, committed: Mapping[tuple[str, int], int]
) -> Callable[[str, int], int]:
    """A function from topic and partition to the wanted offset, before it is brought inside the log."""
    if shift:
        if type(to) is not int:
            raise InvalidRequestError(f"shift=True takes a number of records, not {to!r}")
        return lambda topic, partition: committed.get((topic, partition), 0) + to
    if to == "earliest":
        return lambda topic, partition: directory.log(topic, partition).offsets().log_start_offset
    if to == "latest":
        return lambda topic, partition: directory.log(topic, partition).offsets().high_watermark
    if isinstance(to, int) and not isinstance(to, bool):
        return lambda _topic, _partition: to
    if isinstance(to, datetime.timedelta):
        return _at_time(directory, directory.clock.now_ms() - to // MILLISECOND)
    if isinstance(to, datetime.datetime):
        return _at_time(directory, timestamp_ms_of(to))
    raise InvalidRequestError(
        f"reset to 'earliest', 'latest', an offset, a datetime or a timedelta, not {to!r}"
    )


def _at_time(directory: DataDirectory, timestamp_ms: int) -> Callable[[str, int], int]:
    def offset_of(topic: str, partition: int) -> int:
        log = directory.log(topic, partition)
        found = log.offset_for_timestamp(timestamp_ms)
        return log.offsets().high_watermark if found is None else found

    return offset_of


def _clamped(directory: DataDirectory, place: tuple[str, int], offset: int) -> int:
    log = directory.log(*place)
    offset = inside(log, offset)
    log.sync_below(offset)
    return offset


def check_no_members(directory: DataDirectory, group: str, what: str) -> None:
    """That *group* can be changed as a whole; *what* is to be done with it.

    Raises:
        InvalidRequestError: it has live members.
    """
    check_not_on_network(directory, group)
    members = _live_members(directory, _live_state(directory, group))
    if members:
        raise InvalidRequestError(
            f"group {group!r} cannot be {what} while it has live members ({', '.join(sorted(members))}); "
            "stop them first"
        )


def delete_group(directory: DataDirectory, group: str) -> None:
    """As ``Broker.delete_group``."""
    _check_exists(directory, group)
    subscriptions = directory.view.events.all(SubscriptionEvent, SubscriptionEvent.ALL)
    if any(event.name == group for event in subscriptions):
        raise InvalidRequestError(
            f"group {group!r} belongs to a subscription; use broker.delete_subscription() or "
            "`logbroker subscription delete`"
        )
    keys = [event.key() for event in directory.groups.committed_offsets(group)]
    keys.append(GroupEvent.key_of(group))
    directory.journal.delete(keys, check=lambda: check_no_members(directory, group, "deleted"))
    directory.view.volatile.update(group_key(group), lambda _: None)
