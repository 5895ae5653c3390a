"""An ordered table of bytes in the view, for one transaction: the part of an LMDB table below a prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .seal import seal

if TYPE_CHECKING:
    from .environment import Table, Transaction


class TableRows:
    """Rows by key, ascending; keys are given and returned without the prefix. See ``View.queue_rows``."""

    def __init__(
        self, transaction: Transaction, table: Table, prefix: bytes, unseal: Callable[[bytes, bytes], bytes]
    ) -> None:
        self._transaction = transaction
        self._table = table
        self._prefix = prefix
        self._unseal = unseal

    def get(self, key: bytes) -> bytes | None:
        stored_key = self._prefix + key
        stored = self._transaction.get(stored_key, db=self._table)
        return None if stored is None else self._unseal(stored_key, stored)

    def put(self, key: bytes, value: bytes) -> None:
        stored_key = self._prefix + key
        self._transaction.put(stored_key, seal(stored_key, value), db=self._table)

    def delete(self, key: bytes) -> None:
        self._transaction.delete(self._prefix + key, db=self._table)

    def first(self, begin: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """The first *limit* rows with begin <= key < end."""
        found: list[tuple[bytes, bytes]] = []
        size, stored_end = len(self._prefix), self._prefix + end
        with self._transaction.cursor(db=self._table) as cursor:
            if limit <= 0 or not cursor.set_range(self._prefix + begin):
                return found
            for key, stored in cursor:
                if key >= stored_end:
                    break
                found.append((key[size:], self._unseal(key, stored)))
                if len(found) == limit:
                    break
        return found

    def floor(self, begin: bytes, key: bytes) -> tuple[bytes, bytes] | None:
        """The last row with begin <= its key <= *key*."""
        stored_key = self._prefix + key
        with self._transaction.cursor(db=self._table) as cursor:
            is_there = cursor.set_range(stored_key)
            if not is_there:
                is_there = cursor.last()
            elif cursor.key() != stored_key:
                is_there = cursor.prev()
            if not is_there or cursor.key() < self._prefix + begin:
                return None
            found = cursor.key()
            return found[len(self._prefix) :], self._unseal(found, cursor.value())
