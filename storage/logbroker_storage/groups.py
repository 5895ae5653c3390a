"""What consumer groups have subscribed to and committed, as the journal's events say it."""

from __future__ import annotations

from collections.abc import Collection

from .events import GroupEvent, OffsetEvent
from .journal import GROUPS_VERSION
from .known_events import KnownEvents
from .view import View


class Groups:
    """The groups of a directory, by name. Safe across threads."""

    def __init__(self, view: View) -> None:
        self._events = view.events
        self._known = KnownEvents(view, GroupEvent, GroupEvent.ALL, GROUPS_VERSION)

    def committed(self, group: str, topic: str, partition: int) -> OffsetEvent | None:
        return self._events.get(OffsetEvent, OffsetEvent.key_of(group, topic, partition))

    def committed_offsets(self, group: str) -> list[OffsetEvent]:
        """What the group has committed, by topic and partition."""
        offsets = self._events.all(OffsetEvent, OffsetEvent.prefix_of(group))
        return sorted(offsets, key=lambda event: (event.topic, event.partition))

    def names(self) -> list[str]:
        """Every group that has subscribed or committed, ascending."""
        subscribed, committed = (self._events.first_names(kind.ALL) for kind in (GroupEvent, OffsetEvent))
        return sorted({*subscribed, *committed})

    def has(self, group: str) -> bool:
        """Whether *group* is one of ``names``; as quick with many of them."""
        if self._events.value(GroupEvent.key_of(group)) is not None:
            return True
        return self._events.has_any(OffsetEvent.prefix_of(group))

    def subscribed(self, group: str) -> GroupEvent | None:
        """The topics that *group* has subscribed to; None when it only committed."""
        return self._events.get(GroupEvent, GroupEvent.key_of(group))

    def all(self) -> Collection[GroupEvent]:
        """Every consumer group, with the topics that it has subscribed to."""
        return self._known.all().values()
