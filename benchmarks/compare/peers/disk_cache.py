"""diskcache's ``Deque``: an SQLite file that is not synced on each commit (``synchronous=NORMAL`` with a WAL)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..contender import Contender, Session, Work


class _Session(Session):
    def __init__(self, folder: Path) -> None:
        from diskcache import Deque

        self._deque = Deque(directory=str(folder / "deque"))

    def produce(self, values: Sequence[bytes]) -> None:
        with self._deque.transact():
            self._deque.extend(values)

    def consume(self, count: int) -> int:
        return sum(len(value) for value in self._deque)

    def take(self, count: int) -> int:
        """It has no acknowledgement: what is popped is gone."""
        taken = 0
        with self._deque.transact():
            while taken < count and self._deque:
                self._deque.popleft()
                taken += 1
        return taken

    def close(self) -> None:
        self._deque.cache.close()


class DiskCache(Contender):
    name = "diskcache Deque, not synced"
    works = frozenset({Work.PRODUCE_100, Work.CONSUME_100, Work.QUEUE})
    chunk = 2000

    def missing(self) -> str:
        return "" if find_spec("diskcache") else "diskcache is not installed"

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return _Session(folder)


CONTENDERS = [DiskCache()]
