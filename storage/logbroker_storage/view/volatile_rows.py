"""Facts that are gone with the view: members, heartbeats, leases, who waits for what. Table ``volatile``.

Keys and values are set by the broker. Keys that begin with ``OF_PARTITION`` and a partition's key go with the
partition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .environment import delete_prefix
from .seal import seal

if TYPE_CHECKING:
    from .environment import Environment, Transaction

OF_PARTITION = b"of-partition\0"


class VolatileRows:
    """Values by key; each change is a transaction of its own."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._volatile = environment.tables["volatile"]

    def value(self, key: bytes) -> bytes | None:
        return self._environment.value(key, self._volatile)

    def items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return self._environment.items(prefix, self._volatile)

    def update(self, key: bytes, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        """Replace a value by a function of it in one write transaction; None deletes it. Returns the new one."""
        with self._environment.write() as transaction:
            before = self._environment.value_in(transaction, key, self._volatile)
            after = change(before)
            if after is None:
                transaction.delete(key, db=self._volatile)
            elif after != before:
                transaction.put(key, seal(key, after), db=self._volatile)
        return after

    def forget(self, prefix: bytes) -> None:
        """Delete every volatile value whose key begins with *prefix*."""
        with self._environment.write() as transaction:
            delete_prefix(transaction, self._volatile, prefix)

    def clear(self) -> None:
        """Forget members, heartbeats and leases: nobody has the directory open."""
        with self._environment.write() as transaction:
            transaction.drop(self._volatile, delete=False)

    def drop_partition(self, transaction: Transaction, partition: bytes) -> None:
        """Forget what goes with a partition, which its key names."""
        delete_prefix(transaction, self._volatile, OF_PARTITION + partition)
