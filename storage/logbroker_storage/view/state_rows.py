"""What transactions remember (``tx.state``), as their logs say it: table ``state``.

    table  key                       value
    state  partition key · the key   the value
    meta   state NUL partition key   int64: up to where the partition's log was applied

Rebuilt from the partition's log, by whoever next uses the state (``StateTable`` in the broker).

Invariant: the rows of a partition are what its log says below the offset. So rows and offset change together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .environment import delete_prefix
from .seal import seal

if TYPE_CHECKING:
    from .environment import Environment, Transaction

SLICE = 1000  # items that are read in one transaction


def _offset_name(partition: bytes) -> bytes:
    return b"state\0" + partition


class StateRows:
    """The state of each partition, which its key names."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._state = environment.tables["state"]

    def offset(self, partition: bytes) -> int:
        """Up to where the partition's log was applied."""
        return self._environment.meta_int(_offset_name(partition))

    def value(self, partition: bytes, key: bytes) -> bytes | None:
        return self._environment.value(partition + key, self._state)

    def items(self, partition: bytes, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The items from *start* to below *end* by key, read a slice at a time: each slice as of one moment."""
        size, begin = len(partition), partition + start
        while True:
            found = self._environment.items(partition, self._state, begin=begin, limit=SLICE)
            for stored_key, value in found:
                key = stored_key[size:]
                if end is not None and key >= end:
                    return
                yield key, value
            if len(found) < SLICE:
                return
            begin = found[-1][0] + b"\0"

    def apply(
        self, partition: bytes, items: Iterable[tuple[bytes, bytes | None]], from_offset: int, to_offset: int
    ) -> None:
        """Put the items of offsets [from_offset, to_offset) of the log; nothing if somebody else was faster."""
        name = _offset_name(partition)
        with self._environment.write() as transaction:
            if self._environment.meta_int_in(transaction, name) != from_offset:
                return
            for key, value in items:
                stored_key = partition + key
                if value is None:
                    transaction.delete(stored_key, db=self._state)
                else:
                    transaction.put(stored_key, seal(stored_key, value), db=self._state)
            self._environment.put_meta_int(transaction, name, to_offset)

    def drop(self, transaction: Transaction, partition: bytes) -> None:
        """Forget the items together with the offset, which says that they are there."""
        delete_prefix(transaction, self._state, partition)
        self._environment.delete_meta(transaction, _offset_name(partition))
