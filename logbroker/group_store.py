"""Consumer groups in a data directory: the group state machine (``groups``) run over the view and the journal.

A group's state is one volatile value of the view. Every change to it is made under ``Journal.exclusive``,
and every offset commit checks it under the same lock: when a partition has a new owner, all commits of the
old one are visible and no later one is accepted.

    key                            value                     life
    group NUL <group>              GroupState, msgpack       gone with the view
    network NUL <group>            process id of a server    gone with the view

What outlives the view, the topics that a group reads, is the journal's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from enum import Enum

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError, SubscriptionExistsError
from logbroker_storage.events import GroupEvent, SubscriptionEvent
from logbroker_storage.journal import JournalTurn

from .groups import (
    Expire,
    GroupEventKind,
    GroupState,
    Join,
    Member,
    TopicShape,
    apply,
    decode_group,
    encode_group,
)

logger = logging.getLogger("logbroker.groups")


def group_key(group: str) -> bytes:
    return b"group\0" + group.encode()


def group_signal(group: str) -> str:
    return f"group-{group}"


def group_state(directory: DataDirectory, group: str) -> GroupState:
    """The group as it is now, dead members included until somebody noticed them."""
    return decode_group(directory.view.volatile.value(group_key(group)))


def live_members(directory: DataDirectory, group: str) -> dict[str, Member]:
    """The members whose process is alive."""
    members = group_state(directory, group).members
    return {name: member for name, member in members.items() if directory.process_alive(member.process_id)}


def topic_shapes(directory: DataDirectory) -> dict[str, TopicShape]:
    """What groups have to know of the live topics."""
    return {
        name: TopicShape(event.topic_id, event.partitions)
        for name, event in directory.catalog.all().items()
        if event.state == "live"
    }


# Changing a group -------------------------------------------------------------------------------------------


def change_group(directory: DataDirectory, group: str, events: Sequence[GroupEventKind]) -> GroupState:
    """Apply *events* to the group, tell every process, and journal topics that it subscribed to anew."""
    with directory.journal.exclusive() as turn:
        before, state = _changed(directory, turn, group, events)
    _tell(directory, group, before, state)
    return state


def add_member(
    directory: DataDirectory, group: str, member_id: str, member: Member, *, without: tuple[str, ...]
) -> None:
    """Have *member* in the group, and those of *without* in it no longer; see ``change_group``.

    Raises:
        InvalidRequestError: the name is a queue's, or that of a group of members over the network.
    """
    with directory.journal.exclusive() as turn:
        check_not_on_network(directory, group)
        check_not_a_queue(directory, group)
        # Not looked up before: a topic that is made while this waits for the lock would be taken out of the group.
        joining = Join(member_id, member, topic_shapes(directory))
        before, state = _changed(directory, turn, group, [Expire(without), joining])
    _tell(directory, group, before, state)


def _changed(
    directory: DataDirectory, turn: JournalTurn, group: str, events: Sequence[GroupEventKind]
) -> tuple[GroupState, GroupState]:
    """The group before and behind *events*; the same object where they change nothing."""
    state = before = group_state(directory, group)
    for event in events:
        state = apply(state, event, now_ms=directory.clock.monotonic_ms())
    if state is not before:
        known = _known_subscription(directory, group)
        if known is None or not set(state.topics) <= set(known.topics):
            turn.record([_subscription(directory, group, known, state.topics)])
        encoded = encode_group(state)
        directory.view.volatile.update(group_key(group), lambda _: encoded)
    return before, state


def _known_subscription(directory: DataDirectory, group: str) -> GroupEvent | None:
    return directory.view.events.get(GroupEvent, GroupEvent.key_of(group))


def _subscription(
    directory: DataDirectory, group: str, known: GroupEvent | None, topics: Iterable[str]
) -> GroupEvent:
    """The event that says that the group reads *topics*, besides those of *known* that are still there."""
    if known is None:
        return GroupEvent(group, sorted(topics), directory.clock.now_ms())
    existing = set(known.topics).intersection(directory.topics())
    return GroupEvent(group, sorted(existing.union(topics)), known.created_ms)


def record_subscription(directory: DataDirectory, group: str, topics: Iterable[str]) -> None:
    """Have the journal say that *group* reads *topics*, besides what it read before."""
    with directory.journal.exclusive() as turn:
        known = _known_subscription(directory, group)
        event = _subscription(directory, group, known, topics)
        if event != known:
            turn.record([event])


def _tell(directory: DataDirectory, group: str, before: GroupState, after: GroupState) -> None:
    """Every process, and the log; of nothing where nothing was changed."""
    if after is not before:
        directory.signal(group_signal(group))
        _log_change(group, before, after)


def _log_change(group: str, before: GroupState, after: GroupState) -> None:
    came, went = set(after.members) - set(before.members), set(before.members) - set(after.members)
    moving = sum(1 for _, slot in after.slots() if slot.release_by_ms)
    logger.info(
        "group %r, generation %d: %d members (%s), %d partitions still to move",
        group,
        after.generation,
        len(after.members),
        ", ".join([f"+{name}" for name in sorted(came)] + [f"-{name}" for name in sorted(went)])
        or "the same",
        moving,
    )


# Who may have a name ----------------------------------------------------------------------------------------


def check_not_on_network(directory: DataDirectory, group: str) -> None:
    """That no server keeps *group* for members over the network.

    Raises:
        InvalidRequestError: one does.
    """
    if _is_on_network(directory, group):
        raise InvalidRequestError(
            f"group {group!r} has members that are connected to a server of this directory, and a group's members "
            "share its partitions in one way only: use another group, or stop them first"
        )


def is_queue(directory: DataDirectory, name: str) -> bool:
    """Whether *name* is that of a queue, so that no group can have it."""
    subscriptions = directory.view.events.all(SubscriptionEvent, SubscriptionEvent.ALL)
    return any(event.name == name and event.subscription_kind == "queue" for event in subscriptions)


def check_not_a_queue(directory: DataDirectory, group: str) -> None:
    """That *group* is not the name of a queue.

    Raises:
        InvalidRequestError: it is.
    """
    if is_queue(directory, group):
        raise InvalidRequestError(
            f"{group!r} is the name of a queue: receive from it with broker.queue(…, subscription={group!r}), or "
            "choose another group"
        )


def check_no_group(directory: DataDirectory, name: str) -> None:
    """That no consumer group has *name*, not even one that has read nothing yet. Under the journal lock.

    Raises:
        SubscriptionExistsError: one has.
    """
    if directory.groups.has(name) or _is_on_network(directory, name) or live_members(directory, name):
        raise SubscriptionExistsError(name, what="consumer group")


def _network_key(group: str) -> bytes:
    return b"network\0" + group.encode()


def _server(directory: DataDirectory, group: str) -> str | None:
    """The process id of the live server that keeps *group*."""
    value = directory.view.volatile.value(_network_key(group))
    server = None if value is None else value.decode()
    return None if server is None or not directory.process_alive(server) else server


def _is_on_network(directory: DataDirectory, group: str) -> bool:
    return _server(directory, group) is not None


def is_on_other_server(directory: DataDirectory, group: str) -> bool:
    """Whether a server in another process keeps *group* for its members."""
    return _server(directory, group) not in (None, directory.process_id)


class Reservation(Enum):
    """What became of the wish to keep a group for members over the network."""

    KEPT = "kept"
    HAS_EMBEDDED = "it has embedded members, or is a queue"
    ON_OTHER_SERVER = "a server in another process keeps it"


def reserve_for_network(directory: DataDirectory, group: str) -> Reservation:
    """Keep *group* for members that are connected to a server in this process, if nobody else is in it."""
    with directory.journal.exclusive():
        if is_on_other_server(directory, group):
            return Reservation.ON_OTHER_SERVER
        if is_queue(directory, group) or live_members(directory, group):
            return Reservation.HAS_EMBEDDED
        value = directory.process_id.encode()
        directory.view.volatile.update(_network_key(group), lambda _: value)
    return Reservation.KEPT


def release_from_network(directory: DataDirectory, group: str) -> None:
    """The opposite of ``reserve_for_network``; what another process keeps is left alone."""
    own = directory.process_id.encode()
    directory.view.volatile.update(_network_key(group), lambda value: None if value == own else value)
