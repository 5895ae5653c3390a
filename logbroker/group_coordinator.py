"""The coordinator: a process's one thread that looks after the members it has in a directory's groups.

It wakes when a group or the topics change, when another process dies (inotify; twice a second without), when
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

    key                            value                     life
    heartbeat NUL <process id>     monotonic ms, int64       gone with the view
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple, Protocol

from logbroker_storage.background import going_on
from logbroker_storage.catalog import SIGNAL as TOPICS_SIGNAL
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import ForkedError, LogbrokerError, StorageFailedError
from logbroker_storage.wakeup import Waiter

from .group_store import change_group, group_key, group_signal, topic_shapes
from .groups import Expire, GroupEventKind, GroupState, Leave, Tick, TopicsChanged, decode_group

logger = logging.getLogger("logbroker.groups")

IDLE_TICK_S = 2.0
BLIND_TICK_S = 0.5  # where nothing wakes us when a process dies
MOVING_TICK_S = 0.1  # while a partition waits for its owner
HEARTBEATS_PER_SESSION = 5

_HEARTBEAT = struct.Struct(">q")
_HEARTBEAT_PREFIX = b"heartbeat\0"

_coordinators: dict[int, Coordinator] = {}  # by id of their DataDirectory; guarded by _coordinators_lock
_coordinators_lock = threading.Lock()


class Holder(Protocol):
    """Who reads for a member; the coordinator's thread calls it and must not be kept waiting."""

    def tend(self) -> bool:
        """Release what can be released; False when the member holds records for too long and must leave."""


class Tended(Protocol):
    """A member of this process, as the coordinator knows it."""

    group: str
    member_id: str
    holder: weakref.ref[Holder]
    look: Callable[[], None]  # tells the coordinator to look at the member now


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
        self._directory = directory.one_more_use()
        self._members: dict[str, Tended] = {}  # by member id; guarded by _coordinators_lock
        self._leaving: dict[str, Tended] = {}  # that could not leave yet; guarded by _coordinators_lock
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
    def enter(directory: DataDirectory, member: Tended, session_timeout_ms: int) -> Coordinator:
        """Have the coordinator of *directory*, which is started for its first member, look after one more."""
        with _coordinators_lock:
            coordinator = _coordinators.get(id(directory))
            is_new = coordinator is None
            if coordinator is None:
                coordinator = Coordinator(directory)
            try:
                coordinator._waiter.watch_signal(TOPICS_SIGNAL)
                coordinator._waiter.watch_signal(group_signal(member.group))
                if is_new:
                    coordinator._thread.start()
            except BaseException:
                if is_new:
                    coordinator._close()
                raise
            _coordinators[id(directory)] = coordinator
            member.look = coordinator._waiter.wake
            coordinator._members[member.member_id] = member
            shortest = min(coordinator._session_timeout_ms, session_timeout_ms)
            coordinator._session_timeout_ms = shortest
        return coordinator

    @staticmethod
    def leave(directory: DataDirectory, member: Tended) -> None:
        with _coordinators_lock:
            coordinator = _coordinators.get(id(directory))
            if coordinator is None or member.member_id not in coordinator._members:
                return
        try:
            change_group(directory, member.group, [Leave(member.member_id)])
        except BaseException:
            Coordinator.leave_later(directory, member)
            raise
        Coordinator.forget(directory, member)

    @staticmethod
    def leave_later(directory: DataDirectory, member: Tended) -> None:
        """Have the thread see to it that the member leaves: nobody else would, while this process is alive."""
        with _coordinators_lock:
            coordinator = _coordinators.get(id(directory))
            if coordinator is None:
                return
            if coordinator._drop(member):
                coordinator._leaving[member.member_id] = member
        coordinator._waiter.wake()

    @staticmethod
    def forget(directory: DataDirectory, member: Tended) -> None:
        """No longer look after a member; the thread ends with the last."""
        with _coordinators_lock:
            coordinator = _coordinators.get(id(directory))
            if coordinator is None:
                return
            coordinator._drop(member)
            last = not coordinator._has_work
            if last:
                del _coordinators[id(directory)]
        if last:
            coordinator._stop()

    def _drop(self, member: Tended) -> bool:
        """Look after *member* no longer, nor watch a group without any; False when it was not looked after.

        Under _coordinators_lock, so that a member who comes to the group meanwhile watches it again.
        """
        if self._members.pop(member.member_id, None) is None:
            return False
        if all(other.group != member.group for other in self._members.values()):
            self._waiter.unwatch_signal(group_signal(member.group))
        return True

    def _stop(self) -> None:
        self._waiter.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._goes_on():
                pause = IDLE_TICK_S
                # Members that nobody looks after lose their partitions.
                with going_on(logger, "looking after consumer groups failed and is tried again"):
                    try:
                        pause = self._step()
                    except ForkedError:
                        return
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
        for member in leaving:
            try:
                if self._directory.is_shared_in_process:  # else its members go with this process's presence
                    change_group(self._directory, member.group, [Leave(member.member_id)])
            except StorageFailedError as error:  # nobody can change a group any more before it is opened anew
                logger.warning("%s does not leave: %s", member.member_id, error)
            except (LogbrokerError, OSError) as error:
                logger.warning("%s leaves later: %s", member.member_id, error)
                continue
            with _coordinators_lock:
                self._leaving.pop(member.member_id, None)

    def beat(self) -> None:
        """Say that this process is alive and not stopped."""
        key = _HEARTBEAT_PREFIX + self._directory.process_id.encode()
        value = _HEARTBEAT.pack(self._directory.clock.monotonic_ms())
        self._directory.view.volatile.update(key, lambda _: value)

    def _step(self) -> float:
        """Do what is due; seconds until something may be due again, if nothing wakes us."""
        self._take_leave()
        with _coordinators_lock:
            if not self._has_work:
                return 0  # it ends now: until then it holds the directory open
            members = list(self._members.values())
            timeout_ms = self._session_timeout_ms
        now_ms = self._directory.clock.monotonic_ms()
        if now_ms >= self._next_beat_ms:
            self._next_beat_ms = now_ms + timeout_ms // HEARTBEATS_PER_SESSION
            self.beat()
        version = self._directory.topics_version()
        groups = {member.group for member in members}
        self._forget_all_but(groups)
        for group in groups:
            events = self._due(group, now_ms, topics_changed=version != self._topics_version)
            if events:
                change_group(self._directory, group, events)
        self._topics_version = version
        for member in members:
            self._tend(member)
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

    def _tend(self, member: Tended) -> None:
        holder = member.holder()
        with _coordinators_lock:
            if member.member_id not in self._members:
                return  # it left while we were busy with others
        if holder is None:
            logger.warning("%s was dropped without close(); it leaves its group", member.member_id)
            Coordinator.leave(self._directory, member)
        elif not holder.tend():
            logger.warning(
                "%s holds records and did not poll for too long; it leaves group %r until it polls again",
                member.member_id,
                member.group,
            )
            change_group(self._directory, member.group, [Leave(member.member_id)])


def _forget_in_child() -> None:
    """The coordinators belong to the parent: their threads are not here, and their lock may be held."""
    global _coordinators_lock
    _coordinators_lock = threading.Lock()
    _coordinators.clear()


os.register_at_fork(after_in_child=_forget_in_child)
