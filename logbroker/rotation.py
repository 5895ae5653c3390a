"""The partitions of a consumer, read in turn, so that a busy one does not keep the others from being read.

A partition whose read fails has its turn like the others: its error is raised when there is nothing else to
hand out, and the next time another partition comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from logbroker_storage.errors import TopicNotFoundError
from logbroker_storage.record_batch import Record

from .cursor import Cursor

READ_BYTES = 1 << 20  # of one partition at a time
ALL_READ_BYTES = 16 << 20  # of all partitions together
LEAST_READ_BYTES = 64 << 10


class Taken(NamedTuple):
    """Records of one partition."""

    cursor: Cursor
    records: list[Record]


class Rotation:
    """Whose turn it is. The consumer's lock guards it."""

    def __init__(self) -> None:
        self.cursors: list[Cursor] = []
        self._next = 0
        self._read_bytes = READ_BYTES

    def follow(self, cursors: Iterable[Cursor]) -> None:
        """Read *cursors* from now on, and of them those that are not to move to another member."""
        self.cursors = [cursor for cursor in cursors if not cursor.leaving]
        self._next = 0
        share = ALL_READ_BYTES // max(1, len(self.cursors))
        self._read_bytes = max(LEAST_READ_BYTES, min(READ_BYTES, share))

    @property
    def passed_over(self) -> bool:
        """Whether some partition's last turn came only to records that nobody is to see: there may be more."""
        return any(cursor.passed_over for cursor in self.cursors)

    def take_one(self, count: int, *, enough: int | None = None) -> Taken | None:
        """Up to *count* records of the next partition that has any; see ``Cursor.take`` for *enough*.

        None as well behind one that has only passed over records: whoever reads is asked first whether to go on.

        Raises:
            LogbrokerError: the read of the partition whose turn it is failed.
        """
        for _ in range(len(self.cursors)):
            cursor = self._turn()
            try:
                records = cursor.take(count, self._read_bytes, enough=enough)
            except TopicNotFoundError:
                continue  # deleted a moment ago: the next look at the topics says what that means
            if records:
                return Taken(cursor, records)
            if cursor.passed_over:
                break
        return None

    def take(self, count: int) -> list[Taken]:
        """Up to *count* records of all partitions that have any, one after the other.

        Raises:
            LogbrokerError: the read of a partition failed before any record was taken.
        """
        taken: list[Taken] = []
        left = count
        for _ in range(len(self.cursors)):
            try:
                one = self.take_one(left)
            except Exception:  # of a read, or of the user's filter
                if taken:
                    self._next -= 1  # it comes first the next time
                    break
                raise
            except BaseException:  # Ctrl-C: nobody will see what was taken
                for one in taken:
                    one.cursor.give_back(len(one.records))
                raise
            if one is None:
                break
            taken.append(one)
            left -= len(one.records)
            if not left:
                break
        return taken

    def _turn(self) -> Cursor:
        self._next %= len(self.cursors)
        cursor = self.cursors[self._next]
        self._next += 1
        return cursor
