"""Which events were changed last: table ``changes``.

Of each kind of event there is a version in ``meta``, which grows by one with every change to any of them. A process
that knows all of them as of one version looks here for what it has to read again, instead of reading all.

    key                             value
    <name of the version> NUL slot  version, int64; then the key of the event that it was given to

The slot of a version is its remainder by ``KEPT``, as uint16. Whoever is further behind than that reads everything, as
does who finds another version there than it looked for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .seal import seal

if TYPE_CHECKING:
    from .environment import Environment, Transaction

KEPT = 256
_SLOT = struct.Struct(">H")
_VERSION = struct.Struct(">q")


class Changes:
    """The last changes to events, by the name of their kind's version."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._changes = environment.tables["changes"]

    def note(self, transaction: Transaction, name: bytes, keys: Sequence[bytes]) -> None:
        """Say that the events of *keys* were changed, one after the other."""
        known = self._environment.meta_int_in(transaction, name)
        for version, key in enumerate(keys, known + 1):
            stored_key = _key(name, version)
            payload = _VERSION.pack(version) + key
            transaction.put(stored_key, seal(stored_key, payload), db=self._changes)
        self._environment.put_meta_int(transaction, name, known + len(keys))

    def between(self, name: bytes, known: int, version: int) -> set[bytes] | None:
        """The keys of the events that were changed behind version *known*, up to *version*; None when too many were."""
        if not 0 <= version - known <= KEPT:
            return None
        keys = set()
        for number in range(known + 1, version + 1):
            payload = self._environment.value(_key(name, number), self._changes)
            if payload is None or _VERSION.unpack_from(payload)[0] != number:
                return None
            keys.add(payload[_VERSION.size :])
        return keys


def _key(name: bytes, version: int) -> bytes:
    return name + b"\0" + _SLOT.pack(version % KEPT)
