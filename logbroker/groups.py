"""A consumer group as a pure state machine: who is a member, who owns which partition, who is to own it.

``apply(state, event, now_ms)`` gives the next state; it does no I/O and never fails. Each partition has
two names: its *owner*, who may read it and commit for it now, and its *target*, who the assignor wants to
own it. They differ while a partition moves, and it moves only when its owner lets go:

    event           who raises it                what it does
    Join            a new member                 adds it, assigns anew
    Leave           the member                   removes it: what it owned is free; assigns anew
    Expire          anyone, of a dead member     the same
    TopicsChanged   anyone who sees it           adds and removes partitions, assigns anew
    Release         the owner                    gives up partitions whose target is another member
    Tick            anyone, now and then         takes away partitions that were not released in time

After every event free partitions go to their targets. A partition gets the number of the generation in
which its owner got it (``since``): a commit is valid only with the owner and the ``since`` that the
partition has at that moment, so a member that lost a partition and got it back cannot commit what it
read the first time.

Times are milliseconds of the monotonic clock, which the processes of one machine share; a group's state
does not outlive the machine's boot.

Invariants: one owner a partition; every partition that a member subscribes to has a target; an owner is a
member; generations only grow; applying an event that changes nothing gives the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec

from .assignor import Assignment, assign
from .assignor import TopicPartition as TopicPartition
from .topic_selection import TopicSelection

NOBODY = ""
NOT_MOVING = 0


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A consumer of the group. ``joined`` numbers the joins of the group, so the oldest member is known."""

    process_id: str
    selection: TopicSelection
    session_timeout_ms: int
    joined: int = 0


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """One partition: its owner since which generation, its target, and until when the owner may keep it."""

    owner: str = NOBODY
    since: int = 0
    target: str = NOBODY
    release_by_ms: int = NOT_MOVING


class TopicSlots(msgspec.Struct, frozen=True, array_like=True):
    """The partitions of a topic, by partition number. A topic that was made again has another id."""

    topic_id: bytes
    slots: tuple[Slot, ...]


class TopicShape(msgspec.Struct, frozen=True):
    """What a group has to know of an existing topic."""

    topic_id: bytes
    partitions: int


class GroupState(msgspec.Struct, frozen=True):
    """Everything that the members of a group share, besides committed offsets."""

    generation: int = 0
    joins: int = 0
    members: dict[str, Member] = {}
    topics: dict[str, TopicSlots] = {}

    def owned_by(self, member_id: str) -> dict[TopicPartition, Slot]:
        """The member's partitions, those that it is to release included."""
        return {place: slot for place, slot in self.slots() if slot.owner == member_id}

    def slots(self) -> Iterable[tuple[TopicPartition, Slot]]:
        for topic, topic_slots in self.topics.items():
            for partition, slot in enumerate(topic_slots.slots):
                yield (topic, partition), slot

    def slot(self, topic: str, partition: int) -> Slot | None:
        topic_slots = self.topics.get(topic)
        if topic_slots is None or partition >= len(topic_slots.slots):
            return None
        return topic_slots.slots[partition]


# Bytes ----------------------------------------------------------------------------------------------------

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(GroupState)


def encode_group(state: GroupState) -> bytes:
    return _ENCODER.encode(state)


def decode_group(stored: bytes | None) -> GroupState:
    """The stored state; an empty group when there is none."""
    return GroupState() if stored is None else _DECODER.decode(stored)


# Events ---------------------------------------------------------------------------------------------------


class Join(msgspec.Struct, frozen=True):
    """A member comes; *topics* are the topics there are, for all members."""

    member_id: str
    member: Member
    topics: Mapping[str, TopicShape]


class Leave(msgspec.Struct, frozen=True):
    """A member goes."""

    member_id: str


class Expire(msgspec.Struct, frozen=True):
    """Members whose process is dead, or whose session timed out."""

    member_ids: tuple[str, ...]


class TopicsChanged(msgspec.Struct, frozen=True):
    """*topics* are all the topics that there are now."""

    topics: Mapping[str, TopicShape]


class Release(msgspec.Struct, frozen=True):
    """The owner has nothing more to commit for these partitions."""

    member_id: str
    partitions: tuple[TopicPartition, ...]


class Tick(msgspec.Struct, frozen=True):
    """Time went by."""


GroupEventKind = Join | Leave | Expire | TopicsChanged | Release | Tick


# Transitions ----------------------------------------------------------------------------------------------


def apply(state: GroupState, event: GroupEventKind, *, now_ms: int) -> GroupState:
    """The state after *event*; *state* itself when nothing changes."""
    after = _TRANSITIONS[type(event)](state, event, now_ms)
    return state if after is state else _settled(after)


def _join(state: GroupState, event: Join, now_ms: int) -> GroupState:
    joins = state.joins + 1
    member = msgspec.structs.replace(event.member, joined=joins)
    members = {**state.members, event.member_id: member}
    changed = msgspec.structs.replace(state, joins=joins, members=members)
    return _retargeted(_with_topics(changed, event.topics), now_ms)


def _leave(state: GroupState, event: Leave, now_ms: int) -> GroupState:
    return _without(state, (event.member_id,), now_ms)


def _expire(state: GroupState, event: Expire, now_ms: int) -> GroupState:
    return _without(state, event.member_ids, now_ms)


def _without(state: GroupState, gone: tuple[str, ...], now_ms: int) -> GroupState:
    members = {name: member for name, member in state.members.items() if name not in gone}
    if len(members) == len(state.members):
        return state
    changed = _with_slots(
        msgspec.structs.replace(state, members=members),
        lambda _, slot: _freed(slot) if slot.owner in gone else slot,
    )
    return _retargeted(_only_wanted(changed), now_ms)


def _topics_changed(state: GroupState, event: TopicsChanged, now_ms: int) -> GroupState:
    changed = _with_topics(state, event.topics)
    return state if changed.topics == state.topics else _retargeted(changed, now_ms)


def _release(state: GroupState, event: Release, now_ms: int) -> GroupState:  # noqa: ARG001 (a row of the table)
    released = set(event.partitions)

    def let_go(place: TopicPartition, slot: Slot) -> Slot:
        given_up = slot.owner == event.member_id != slot.target and place in released
        return _freed(slot) if given_up else slot

    return _with_slots(state, let_go)


def _tick(state: GroupState, event: Tick, now_ms: int) -> GroupState:  # noqa: ARG001 (a row of the table)
    return _with_slots(
        state, lambda _, slot: _freed(slot) if NOT_MOVING < slot.release_by_ms <= now_ms else slot
    )


_TRANSITIONS: dict[type, Callable[[GroupState, Any, int], GroupState]] = {
    Join: _join,
    Leave: _leave,
    Expire: _expire,
    TopicsChanged: _topics_changed,
    Release: _release,
    Tick: _tick,
}


# Their parts ----------------------------------------------------------------------------------------------


def _freed(slot: Slot) -> Slot:
    return Slot(target=slot.target)


def _with_slots(state: GroupState, change: Callable[[TopicPartition, Slot], Slot]) -> GroupState:
    """*state* with every slot changed; itself when none was."""
    topics = {
        topic: TopicSlots(
            held.topic_id,
            tuple(change((topic, partition), slot) for partition, slot in enumerate(held.slots)),
        )
        for topic, held in state.topics.items()
    }
    return state if topics == state.topics else msgspec.structs.replace(state, topics=topics)


def _with_topics(state: GroupState, shapes: Mapping[str, TopicShape]) -> GroupState:
    """*state* with the partitions of the topics that some member wants, of those in *shapes*."""
    wanted = sorted(set().union(*_resolved(state, shapes).values()))
    topics = {name: _grown(state.topics.get(name), shapes[name]) for name in wanted}
    return msgspec.structs.replace(state, topics=topics)


def _resolved(state: GroupState, existing: Collection[str]) -> dict[TopicSelection, frozenset[str]]:
    """What the members want of *existing*: looked up once for all who ask for the same, as most of a group do."""
    selections = {member.selection for member in state.members.values()}
    return {selection: frozenset(selection.resolve(existing)) for selection in selections}


def _grown(held: TopicSlots | None, shape: TopicShape) -> TopicSlots:
    before = held.slots if held is not None and held.topic_id == shape.topic_id else ()
    return TopicSlots(shape.topic_id, (*before, *(Slot() for _ in range(len(before), shape.partitions))))


def _only_wanted(state: GroupState) -> GroupState:
    """Without the topics that only members who went had subscribed to."""
    shapes = {topic: TopicShape(held.topic_id, len(held.slots)) for topic, held in state.topics.items()}
    return _with_topics(state, shapes)


def _retargeted(state: GroupState, now_ms: int) -> GroupState:
    """Ask the assignor, and start the clock for every partition that is to move."""
    resolved = _resolved(state, state.topics)
    targets = assign(
        Assignment(
            subscriptions={
                name: resolved[state.members[name].selection]
                for name in sorted(state.members, key=lambda name: state.members[name].joined)
            },
            held={place: (slot.target, slot.owner) for place, slot in state.slots()},
        )
    )

    def aim(place: TopicPartition, slot: Slot) -> Slot:
        target = targets.get(place, NOBODY)
        if slot.owner in (target, NOBODY):
            release_by_ms = NOT_MOVING
        elif slot.release_by_ms:
            release_by_ms = slot.release_by_ms
        else:
            release_by_ms = now_ms + state.members[slot.owner].session_timeout_ms
        return Slot(slot.owner, slot.since, target, release_by_ms)

    return _with_slots(state, aim)


def _settled(state: GroupState) -> GroupState:
    """Give free partitions to their targets; the generation grows when any owner changed."""
    generation = state.generation + 1

    def own(_: TopicPartition, slot: Slot) -> Slot:
        if slot.owner == NOBODY != slot.target:
            return Slot(owner=slot.target, since=generation, target=slot.target)
        return slot

    settled = _with_slots(state, own)
    return msgspec.structs.replace(settled, generation=generation)
