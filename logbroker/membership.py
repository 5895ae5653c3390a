"""Membership in consumer groups: joining, what a member owns, and leaving.

The group's state is ``group_store``'s, what changes without the member's doing (death, silence, topics that come
and go) ``group_coordinator``'s.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from itertools import count

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError

from .group_coordinator import Coordinator, Holder
from .group_store import add_member, change_group, group_key, group_state
from .groups import GroupState, Member, Release, Slot, TopicPartition, decode_group
from .topic_selection import TopicSelection

_member_numbers = count(1)


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
        add_member(directory, group, member_id, member, without=dead)
    except BaseException:
        Coordinator.leave_later(directory, membership)  # what failed may have come after it had joined
        raise
    return membership


def _members_of_dead_processes(directory: DataDirectory, state: GroupState) -> tuple[str, ...]:
    processes = {member.process_id for member in state.members.values()}
    dead = {process_id for process_id in processes if not directory.process_alive(process_id)}
    return tuple(name for name, member in state.members.items() if member.process_id in dead)
