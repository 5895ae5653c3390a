"""All events of one kind as a process knows them: read once, and then only those that changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from .events import Event
from .view import View

AnyKind = TypeVar("AnyKind", bound=Event)


class KnownEvents(Generic[AnyKind]):
    """By what their keys say behind the prefix that all of them have, in no order. Safe across threads."""

    def __init__(self, view: View, kind: type[AnyKind], prefix: bytes, version_name: bytes) -> None:
        self._view = view
        self._kind = kind
        self._prefix = prefix
        self._version_name = version_name
        # What was known at a version of the view; replaced whole, so it needs no lock.
        self._known: tuple[int, Mapping[str, AnyKind]] = (-1, {})

    def version(self) -> int:
        """Grows with every change to any of them."""
        return self._view.meta_int(self._version_name)

    def all(self) -> Mapping[str, AnyKind]:
        """Every event as of now."""
        version = self.version()
        known = self._known
        if known[0] != version:
            # Not read back from the field: a thread that looked earlier may put an older table there meanwhile.
            known = self._known = (version, self._brought_to(version, known))
        return known[1]

    def _brought_to(self, version: int, known: tuple[int, Mapping[str, AnyKind]]) -> Mapping[str, AnyKind]:
        changed = None if known[0] < 0 else self._view.changes.between(self._version_name, known[0], version)
        if changed is None:
            events = self._view.events.all(self._kind, self._prefix)
            return {self._name(event.key()): event for event in events}
        after = dict(known[1])
        for key in changed:
            event = self._view.events.get(self._kind, key)
            if event is None:
                after.pop(self._name(key), None)
            else:
                after[self._name(key)] = event
        return after

    def _name(self, key: bytes) -> str:
        return key[len(self._prefix) :].decode()
