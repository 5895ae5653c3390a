"""An ordered table of bytes in memory, which counts the rows that were touched."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort


class MemoryRows:
    """Keys in a sorted list, values beside it; ``touched`` counts every row read, written or deleted."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._values: dict[bytes, bytes] = {}
        self.touched = 0

    def get(self, key: bytes) -> bytes | None:
        self.touched += 1
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.touched += 1
        if key not in self._values:
            insort(self._keys, key)
        self._values[key] = value

    def delete(self, key: bytes) -> None:
        """Nothing happens when it is not there."""
        self.touched += 1
        if self._values.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    def first(self, begin: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """The first *limit* rows with begin <= key < end, ascending."""
        at = bisect_left(self._keys, begin)
        keys = self._keys[at : min(bisect_left(self._keys, end), at + limit)]
        self.touched += 1 + len(keys)
        return [(key, self._values[key]) for key in keys]

    def floor(self, begin: bytes, key: bytes) -> tuple[bytes, bytes] | None:
        """The last row with begin <= its key <= *key*."""
        self.touched += 1
        at = bisect_right(self._keys, key) - 1
        if at < 0 or self._keys[at] < begin:
            return None
        return self._keys[at], self._values[self._keys[at]]

    def snapshot(self) -> dict[bytes, bytes]:
        """Every row, as it is now."""
        return dict(self._values)
