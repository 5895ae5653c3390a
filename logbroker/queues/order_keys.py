"""Messages with an order key: in one owner's hands at a time, and in the order of their offsets. Pure: over ``Rows``.

Of those that are to be handed out, at most one of a key is READY:

    the key's row   of its messages
    (none)          none is in anybody's hands, READY or WAITING
    count 0         the first is READY, the others are WAITING
    count > 0       so many are ACQUIRED, all by one owner; the others are WAITING

So nobody ever comes across a message that it may not have, however many wait. Those that are DELAYED or REJECTED
are out of the order: the others do not wait for them.
"""

from __future__ import annotations

from msgspec.structs import replace

from .rows import COUNT, KEYS, NUMBER, WAITING, Rows, Run, State
from .runs import RunTable


class OrderKeys:
    """The rows of the keys. The runs that are given to it have an order key."""

    def __init__(self, rows: Rows, table: RunTable) -> None:
        self._rows = rows
        self._table = table

    def hold(self, run: Run) -> None:
        """*run*, which was READY or waited for others in the same hands, is in its owner's hands."""
        key = KEYS + run.order_key
        held = self._rows.get(key)
        count = 0 if held is None else COUNT.unpack_from(held)[0]
        self._rows.put(key, COUNT.pack(count + 1) + run.owner.encode())

    def hold_again(self, run: Run) -> bool:
        """*run*, which is in no table now, is back in its owner's hands; not when another owner has the key."""
        held = self._rows.get(KEYS + run.order_key)
        if held is not None and COUNT.unpack_from(held)[0]:
            if held[COUNT.size :].decode() != run.owner:
                return False
        elif held is not None:
            ready = self._table.at(NUMBER.unpack_from(held, COUNT.size)[0])
            self._table.replace(ready, replace(ready, state=State.WAITING))
        self.hold(run)
        return True

    def let_go(self, run: Run) -> bool:
        """*run* has left its owner's hands; whether another became READY."""
        key = KEYS + run.order_key
        held = self._rows.get(key)
        assert held is not None, f"order key {run.order_key!r} of a message in somebody's hands is not held"
        count = COUNT.unpack_from(held)[0] - 1
        if count:
            self._rows.put(key, COUNT.pack(count) + held[COUNT.size :])
            return False
        return self.offer_next(run.order_key)

    def offer(self, run: Run) -> bool:
        """Put *run*, which is in no table now, to be handed out when it is its turn; whether it is READY."""
        held = self._rows.get(KEYS + run.order_key)
        if held is not None:
            ready_offset = NUMBER.unpack_from(held, COUNT.size)[0] if not COUNT.unpack_from(held)[0] else -1
            if ready_offset < run.first:
                self._table.put(replace(run, state=State.WAITING))
                return False
            overtaken = self._table.at(ready_offset)
            self._table.replace(overtaken, replace(overtaken, state=State.WAITING))
        self._table.put(replace(run, state=State.READY))
        self._set_ready(run)
        return True

    def offer_next(self, order_key: bytes) -> bool:
        """Nobody has the key, and none of its messages is READY: make the first that waits so, if one does."""
        for run in self.waiting(order_key, 1):
            self._table.replace(run, replace(run, state=State.READY))
            self._set_ready(run)
            return True
        self._rows.delete(KEYS + order_key)
        return False

    def waiting(self, order_key: bytes, limit: int) -> list[Run]:
        """The first *limit* messages that wait for others of the key."""
        prefix = WAITING + order_key
        return list(self._table.of_index(prefix, prefix + b"\xff", limit))

    def _set_ready(self, run: Run) -> None:
        self._rows.put(KEYS + run.order_key, COUNT.pack(0) + NUMBER.pack(run.first))
