"""Membership in consumer groups: the group state machine (``groups``) run over a data directory.

A group's state is one volatile value of the view. Every change to it is made under ``Journal.exclusive``,
and every offset commit checks it under the same lock: when a partition has a new owner, all commits of the
old one are visible and no later one is accepted.

    key                            value                     life
    group NUL <group>              GroupState, msgpack       gone with the view
    network NUL <group>            process id of a server    gone with the view
    heartbeat NUL <process id>     monotonic ms, int64       gone with the view

One daemon thread a process and directory, the coordinator, looks after all members of this process. It
wakes when a group or the topics change, when another process dies (inotify; twice a second without), when
something below is due, and every two seconds: a wake-up of an idle machine costs 0.2 to 0.4 ms of its time,
whatever is done in it.

    it sees                                              it does
    a fifth of the shortest session timeout passed       writes the heartbeat of this process
    the next process (in a ring by process id) is dead   expires its members
    a heartbeat older than a member's session timeout    expires that member
    a partition not released in time                     takes it from its owner
    topics came, went or grew                            changes the group's partitions
    a member of ours is to release partitions            lets the consumer do it, if it is not at work
    a member of ours holds records for too long          leaves the group for it
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import NamedTuple, Protocol

from logbroker_storage.catalog import SIGNAL as TOPICS_SIGNAL
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    FencedError,
    ForkedError,
    InvalidRequestError,
    LogbrokerError,
    StorageFailedError,
    SubscriptionExistsError,
)
from logbroker_storage.events import GroupEvent, SubscriptionEvent
from logbroker_storage.wakeup import Waiter

from .groups import (
    Expire,
    GroupEventKind,
    GroupState,
    Join,
    Leave,
    Member,
    Release,
    Slot,
    Tick,
    TopicPartition,
    TopicsChanged,
    TopicShape,
    apply,
    decode_group,
    encode_group,
)
from .topic_selection import TopicSelection

logger = logging.getLogger("logbroker.groups")

IDLE_TICK_S = 2.0
BLIND_TICK_S = 0.5  # where nothing wakes us when a process dies
MOVING_TICK_S = 0.1  # while a partition waits for its owner
HEARTBEATS_PER_SESSION = 5

_HEARTBEAT = struct.Struct(">q")
_HEARTBEAT_PREFIX = b"heartbeat\0"

_coordinators: dict[int, Coordinator] = {}  # by id of their DataDirectory; guarded by _coordinators_lock
_coordinators_lock = threading.Lock()
_member_numbers = count(1)


class Holder(Protocol):
    """Who reads for a member; the coordinator's thread calls it and must not be kept waiting."""

    def tend(self) -> bool:
        """Release what can be released; False when the member holds records for too long and must leave."""


def group_key(group: str) -> bytes:
    return b"group\0" + group.encode()


def group_signal(group: str) -> str:
    return f"group-{group}"


def monotonic_ms(directory: DataDirectory) -> int:
    return int(directory.clock.monotonic() * 1000)


def group_state(directory: DataDirectory, group: str) -> GroupState:
    """The group as it is now, dead members included until somebody noticed them."""
    return decode_group(directory.view.volatile.value(group_key(group)))


def live_members(directory: DataDirectory, group: str) -> dict[str, Member]:
    """The members whose process is alive."""
    members = group_state(directory, group).members
    return {name: member for name, member in members.items() if directory.process_alive(member.process_id)}


# Changing a group -------------------------------------------------------------------------------------------


def change_group(directory: DataDirectory, group: str, events: Sequence[GroupEventKind]) -> GroupState:
    """Apply *events* to the group, tell every process, and journal topics that it subscribed to anew."""
    with directory.journal.exclusive() as turn:
        if any(isinstance(event, Join) for event in events):
            check_not_on_network(directory, group)
            check_not_a_queue(directory, group)
        before = group_state(directory, group)
        state = before
        for event in events:
            state = apply(state, event, now_ms=monotonic_ms(directory))
        if state is before:
            return state
        known = _known_subscription(directory, group)
        if known is None or not set(state.topics) <= set(known.topics):
            turn.record([_subscription(directory, group, known, state.topics)])
        encoded = encode_group(state)
        directory.view.volatile.update(group_key(group), lambda _: encoded)
    directory.signal(group_signal(group))
    _log_change(group, before, state)
    return state


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


def topic_shapes(directory: DataDirectory) -> dict[str, TopicShape]:
    """What groups have to know of the live topics."""
    return {
        name: TopicShape(event.topic_id, event.partitions)
        for name, event in directory.catalog.all().items()
        if event.state == "live"
    }


# A member ---------------------------------------------------------------------------------------------------


class Membership:
    """One consumer's place in a group, from joining to leaving. Safe across threads."""

    def __init__(self, directory: DataDirectory, group: str, member_id: str, holder: Holder) -> None:
        self.group = group
        self.member_id = member_id
        self.holder = weakref.ref(holder, lambda _: self.look())
        self.look: Callable[[], None] = lambda: None  # tells the coordinator to look at the member now
        self._directory = directory
        self._key = group_key(group)
        self._seen: tuple[bytes | None, dict[TopicPartition, Slot] | None] = (b"", None)  # replaced whole

    def owned(self) -> dict[TopicPartition, Slot] | None:
        """The partitions that the member owns now; None when the group no longer has it as a member.

        The same object until something changes.
        """
        stored = self._directory.view.volatile.value(self._key)
        seen, owned = self._seen
        if stored == seen:
            return owned
        state = decode_group(stored)
        fresh = state.owned_by(self.member_id) if self.member_id in state.members else None
        if fresh != owned:
            owned = fresh
        self._seen = (stored, owned)
        return owned

    def check(self, places: Mapping[TopicPartition, int]) -> None:
        """Hold that the member owns *places* since the given generations; for use under the journal lock.

        Raises:
            FencedError: one of them has another owner now, or this member got it anew.
        """
        owned = self.owned() or {}
        lost = [place for place, since in places.items() if place not in owned or owned[place].since != since]
        if lost:
            raise self.fenced(lost)

    def fenced(self, lost: Iterable[TopicPartition]) -> FencedError:
        """The error of a commit for partitions that the member no longer owns."""
        names = ", ".join(f"{topic}-{partition}" for topic, partition in sorted(lost))
        return FencedError(
            f"{self.member_id} no longer owns {names} in group {self.group!r}: another member reads on "
            "from the last committed offset; nothing of this commit was written. Poll again to go on "
            "with what this member owns, and keep the time between polls below session_timeout"
        )

    def release(self, places: Iterable[TopicPartition]) -> None:
        """Let go of partitions that are to move to other members."""
        change_group(self._directory, self.group, [Release(self.member_id, tuple(places))])

    def leave(self) -> None:
        """Leave the group: what the member owned goes to the others at once. Idempotent."""
        Coordinator.leave(self._directory, self)


def join_group(
    directory: DataDirectory,
    group: str,
    selection: TopicSelection,
    *,
    session_timeout_ms: int,
    holder: Holder,
) -> Membership:
    """Become a member of *group*, which exists from then on; its dead members are removed on the way."""
    member_id = f"consumer-{directory.process_id}-{next(_member_numbers)}"
    membership = Membership(directory, group, member_id, holder)
    coordinator = Coordinator.enter(directory, membership, session_timeout_ms)
    try:
        coordinator.beat()
        member = Member(directory.process_id, selection, session_timeout_ms)
        dead = _members_of_dead_processes(directory, group_state(directory, group))
        change_group(directory, group, [Expire(dead), Join(member_id, member, topic_shapes(directory))])
    except BaseException:
        Coordinator.leave_later(directory, membership)  # what failed may have come after it had joined
        raise
    return membership


def check_not_on_network(directory: DataDirectory, group: str) -> None:
    """That no server keeps *group* for members over the network.

    Raises:
        InvalidRequestError: one does.
    """
    server = directory.view.volatile.value(_network_key(group))
    if server is not None and directory.process_alive(server.decode()):
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
    server = directory.view.volatile.value(_network_key(name))
    is_on_network = server is not None and directory.process_alive(server.decode())
    if directory.groups.has(name) or is_on_network or live_members(directory, name):
        raise SubscriptionExistsError(name, what="consumer group")


def _network_key(group: str) -> bytes:
    return b"network\0" + group.encode()


def reserve_for_network(directory: DataDirectory, group: str) -> bool:
    """Keep *group* for members that are connected to a server in this process; False when it has embedded ones,
    or is a queue.
    """
    with directory.journal.exclusive():
        if is_queue(directory, group) or live_members(directory, group):
            return False
        value = directory.process_id.encode()
        directory.view.volatile.update(_network_key(group), lambda _: value)
    return True


def release_from_network(directory: DataDirectory, group: str) -> None:
    """The opposite of ``reserve_for_network``."""
    directory.view.volatile.update(_network_key(group), lambda _: None)


def record_subscription(directory: DataDirectory, group: str, topics: Iterable[str]) -> None:
    """Have the journal say that *group* reads *topics*, besides what it read before."""
    with directory.journal.exclusive() as turn:
        known = _known_subscription(directory, group)
        event = _subscription(directory, group, known, topics)
        if event != known:
            turn.record([event])


def _members_of_dead_processes(directory: DataDirectory, state: GroupState) -> tuple[str, ...]:
    processes = {member.process_id for member in state.members.values()}
    dead = {process_id for process_id in processes if not directory.process_alive(process_id)}
    return tuple(name for name, member in state.members.items() if member.process_id in dead)


# The thread -------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """A group's state, so that it is decoded and gone through only when it changed."""

    stored: bytes | None
    state: GroupState
    next_release_ms: int  # when the first partition is to be taken from its owner, 0 for none

    @classmethod
    def of(cls, stored: bytes | None) -> _Seen:
        state = decode_group(stored)
        moving = [slot.release_by_ms for _, slot in state.slots() if slot.release_by_ms]
        return cls(stored, state, min(moving, default=0))


class Coordinator:
    """Looks after the members that this process has in a directory's groups. See the module's table."""

    def __init__(self, directory: DataDirectory) -> None:
        # A user of the directory of its own: the view must not be closed under the thread.
        self._directory = DataDirectory.open(directory.path)
        self._members: dict[str, Membership] = {}  # by member id; guarded by _coordinators_lock
        self._leaving: dict[str, Membership] = {}  # that could not leave yet; guarded by _coordinators_lock
        self._session_timeout_ms = 1 << 31  # the shortest of the members'; guarded by _coordinators_lock
        self._topics_version = -1  # that the groups were told of; the thread's own
        self._states: dict[str, _Seen] = {}  # as decoded last; the thread's own
        self._next_beat_ms = 0  # the thread's own
        self._neighbours: dict[str, str] = {}  # group -> process whose death we watch for; the thread's own
        try:
            self._waiter = Waiter(self._directory)
        except BaseException:
            self._directory.close()
            raise
        self._thread = threading.Thread(target=self._run, name="logbroker-coordinator", daemon=True)

    @staticmethod
    def enter(directory: DataDirectory, membership: Membership, session_timeout_ms: int) -> Coordinator:
        """Have the coordinator of *directory*, which is started for its first member, look after one more."""
        with _coordinators_lock:
            coordinator = _coordinators.get(id(directory))
            is_new = coordinator is None
            if coordinator is None:
                coordinator = Coordinator(directory)
            try:
                coordinator._waiter.watch_signal(TOPICS_SIGNAL)
                coordinator._waiter.watch_signal(group_signal(membership.group))
                if is_new:
                    coordinator._thread.start()
            except BaseException:
                if is_new:
                    coordinator._close()
                raise
            _coordinators[id(directory)] = coordinator
            membership.look = coordinator._waiter.wake
            coordinator._members[membership.member_id] = membership
            shortest = min(coordinator._session_timeout_ms, session_timeout_ms)
            coordinator._session_timeout_ms = shortest
        return coordinator

    @staticmethod
    def leave(directory: DataDirectory, membership: Membership) -> None:
        with _coordinators_lock:
            coordinator = _coordinators.get(id(directory))
            if coordinator is None or membership.member_id not in coordinator._members:
                return
        try:
            change_group(directory, membership.group, [Leave(membership.member_id)])
        except BaseException:
            Coordinator.leave_later(directory, membership)
            raise
        Coordinator.forget(directory, membership)

    @staticmethod
    def leave_later(directory: DataDirectory, membership: Membership) -> None:
        """Have the thread see to it that the member leaves: nobody else would, while this process is alive."""
        with _coordinators_lock:
            coordinator = _coordinators.get(id(directory))
            if coordinator is None:
                return
            if coordinator._members.pop(membership.member_id, None) is not None:
                coordinator._leaving[membership.member_id] = membership
        coordinator._waiter.wake()

    @staticmethod
    def forget(directory: DataDirectory, membership: Membership) -> None:
        """No longer look after a member; the thread ends with the last."""
        with _coordinators_lock:
            coordinator = _coordinators.get(id(directory))
            if coordinator is None:
                return
            coordinator._members.pop(membership.member_id, None)
            last = not coordinator._has_work and _coordinators.get(id(directory)) is coordinator
            if last:
                del _coordinators[id(directory)]
        if last:
            coordinator._stop()

    def _stop(self) -> None:
        self._waiter.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._goes_on():
                pause = IDLE_TICK_S
                try:
                    pause = self._step()
                except ForkedError:
                    return
                except (LogbrokerError, OSError) as error:
                    logger.warning("looking after consumer groups failed and is tried again: %s", error)
                self._waiter.wait(pause)
        finally:
            self._close()

    def _close(self) -> None:
        self._waiter.close()
        try:
            self._directory.close()
        except (LogbrokerError, OSError) as error:  # as the last user of the directory
            logger.warning("the directory could not be closed cleanly: %s", error)

    @property
    def _has_work(self) -> bool:
        """Under _coordinators_lock."""
        return bool(self._members or self._leaving)

    def _goes_on(self) -> bool:
        with _coordinators_lock:
            if not self._has_work:
                # By itself it comes to an end after those that left late.
                for key, coordinator in list(_coordinators.items()):
                    if coordinator is self:
                        del _coordinators[key]
            return self._has_work

    def _take_leave(self) -> None:
        """Leave for those that could not."""
        with _coordinators_lock:
            leaving = list(self._leaving.values())
        for membership in leaving:
            try:
                if self._directory.is_shared_in_process:  # else its members go with this process's presence
                    change_group(self._directory, membership.group, [Leave(membership.member_id)])
            except StorageFailedError as error:  # nobody can change a group any more before it is opened anew
                logger.warning("%s does not leave: %s", membership.member_id, error)
            except (LogbrokerError, OSError) as error:
                logger.warning("%s leaves later: %s", membership.member_id, error)
                continue
            with _coordinators_lock:
                self._leaving.pop(membership.member_id, None)

    def beat(self) -> None:
        """Say that this process is alive and not stopped."""
        key = _HEARTBEAT_PREFIX + self._directory.process_id.encode()
        value = _HEARTBEAT.pack(monotonic_ms(self._directory))
        self._directory.view.volatile.update(key, lambda _: value)

    def _step(self) -> float:
        """Do what is due; seconds until something may be due again, if nothing wakes us."""
        self._take_leave()
        with _coordinators_lock:
            members = list(self._members.values())
            timeout_ms = self._session_timeout_ms
        now_ms = monotonic_ms(self._directory)
        if now_ms >= self._next_beat_ms:
            self._next_beat_ms = now_ms + timeout_ms // HEARTBEATS_PER_SESSION
            self.beat()
        version = self._directory.topics_version()
        groups = {membership.group for membership in members}
        self._forget_all_but(groups)
        for group in groups:
            events = self._due(group, now_ms, topics_changed=version != self._topics_version)
            if events:
                change_group(self._directory, group, events)
        self._topics_version = version
        for membership in members:
            self._tend(membership)
        return self._pause(now_ms)

    def _pause(self, now_ms: int) -> float:
        is_blind = self._waiter.fileno() < 0 and bool(self._neighbours)
        pause = BLIND_TICK_S if is_blind else IDLE_TICK_S
        if any(seen.next_release_ms for seen in self._states.values()):
            pause = MOVING_TICK_S
        return min(pause, max(0, self._next_beat_ms - now_ms) / 1000)

    def _forget_all_but(self, groups: set[str]) -> None:
        for group in self._states.keys() - groups:
            del self._states[group]
            self._watch_neighbour(group, None)

    def _state(self, group: str) -> GroupState:
        stored = self._directory.view.volatile.value(group_key(group))
        seen = self._states.get(group)
        if seen is None or seen.stored != stored:
            seen = self._states[group] = _Seen.of(stored)
        return seen.state

    def _due(self, group: str, now_ms: int, *, topics_changed: bool) -> list[GroupEventKind]:
        """What has to happen to the group now."""
        state = self._state(group)
        events: list[GroupEventKind] = []
        gone = self._dead_neighbours(group, state) + self._silent(state, now_ms)
        if gone:
            logger.warning("group %r: %s died or stopped; their partitions move on", group, ", ".join(gone))
            events.append(Expire(gone))
        if topics_changed:
            events.append(TopicsChanged(topic_shapes(self._directory)))
        if 0 < self._states[group].next_release_ms <= now_ms:
            events.append(Tick())
        return events

    def _dead_neighbours(self, group: str, state: GroupState) -> tuple[str, ...]:
        """Members of the dead processes between ours and the next living one in the ring.

        Every living process has one that watches it, so a group of any size costs each process the same.
        """
        others = sorted(
            {member.process_id for member in state.members.values()} - {self._directory.process_id}
        )
        ring = [name for name in others if name > self._directory.process_id]
        ring += [name for name in others if name < self._directory.process_id]
        if not ring:
            self._watch_neighbour(group, None)
        dead = set()
        for process_id in ring:
            self._watch_neighbour(group, process_id)  # before the probe, so that no death falls in between
            if self._directory.process_alive(process_id):
                break
            dead.add(process_id)
            self._directory.view.volatile.update(_HEARTBEAT_PREFIX + process_id.encode(), lambda _: None)
        return tuple(name for name, member in state.members.items() if member.process_id in dead)

    def _watch_neighbour(self, group: str, process_id: str | None) -> None:
        before = self._neighbours.pop(group, None)
        if process_id is not None:
            self._neighbours[group] = process_id
            self._waiter.watch_process(process_id)
        if before is not None and before not in self._neighbours.values():
            self._waiter.unwatch_process(before)

    def _silent(self, state: GroupState, now_ms: int) -> tuple[str, ...]:
        """Members whose process is there but wrote no heartbeat for a session timeout: stopped, or hung."""
        if len({member.process_id for member in state.members.values()}) < 2:
            return ()
        beats = {
            key[len(_HEARTBEAT_PREFIX) :].decode(): int(_HEARTBEAT.unpack(value)[0])
            for key, value in self._directory.view.volatile.items(_HEARTBEAT_PREFIX)
        }
        return tuple(
            name
            for name, member in state.members.items()
            if member.process_id != self._directory.process_id
            and member.process_id in beats
            and now_ms - beats[member.process_id] > member.session_timeout_ms
        )

    def _tend(self, membership: Membership) -> None:
        holder = membership.holder()
        with _coordinators_lock:
            if membership.member_id not in self._members:
                return  # it left while we were busy with others
        if holder is None:
            logger.warning("%s was dropped without close(); it leaves its group", membership.member_id)
            Coordinator.leave(self._directory, membership)
        elif not holder.tend():
            logger.warning(
                "%s holds records and did not poll for too long; it leaves group %r until it polls again",
                membership.member_id,
                membership.group,
            )
            change_group(self._directory, membership.group, [Leave(membership.member_id)])


def _forget_in_child() -> None:
    """The coordinators belong to the parent: their threads are not here, and their lock may be held."""
    global _coordinators_lock
    _coordinators_lock = threading.Lock()
    _coordinators.clear()


os.register_at_fork(after_in_child=_forget_in_child)
