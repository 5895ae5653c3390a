"""The journal's latest event of each key, as it is there: table ``journal``.

Rebuilt from the journal; ``Journal`` applies to it what it has written, and keeps in ``meta`` up to where.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from ..events import Event, decode_event
from .seal import seal

if TYPE_CHECKING:
    from .environment import Environment, Transaction

AnyKind = TypeVar("AnyKind", bound=Event)


class EventRows:
    """Events by key, encoded or decoded."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._journal = environment.tables["journal"]

    def value(self, key: bytes) -> bytes | None:
        """The journal's latest value for *key*."""
        return self._environment.value(key, self._journal)

    def get(self, kind: type[AnyKind], key: bytes) -> AnyKind | None:
        """The same, decoded; None when there is none of this kind."""
        value = self.value(key)
        event = None if value is None else decode_event(value)
        return event if isinstance(event, kind) else None

    def items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return self._environment.items(prefix, self._journal)

    def all(self, kind: type[AnyKind], prefix: bytes) -> list[AnyKind]:
        """The latest events whose keys begin with *prefix*, by key."""
        decoded = (decode_event(value) for _, value in self.items(prefix))
        return [event for event in decoded if isinstance(event, kind)]

    def count(self) -> int:
        """How many keys have an event."""
        with self._environment.read() as transaction:
            entries: int = transaction.stat(self._journal)["entries"]
        return entries

    def has_any(self, prefix: bytes) -> bool:
        """Whether there is an event whose key begins with *prefix*."""
        return bool(self._environment.items(prefix, self._journal, limit=1))

    def first_names(self, prefix: bytes) -> list[str]:
        """What stands behind *prefix* in the keys of events, up to the next NUL, ascending: each name once.

        One step of the table for each name, however many events it has.
        """
        names: list[str] = []
        with self._environment.read() as transaction, transaction.cursor(db=self._journal) as cursor:
            found = cursor.set_range(prefix)
            while found and (key := cursor.key()).startswith(prefix):
                name = key[len(prefix) :].partition(b"\0")[0]
                names.append(name.decode())
                found = cursor.set_range(prefix + name + b"\1")  # behind every key of this name
        return names

    def apply(self, transaction: Transaction, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put each journal key's latest value; None deletes it."""
        for key, value in items:
            if value is None:
                transaction.delete(key, db=self._journal)
            else:
                transaction.put(key, seal(key, value), db=self._journal)
