"""persist-queue: its file queue, its SQLite queue, and its SQLite queue with acknowledgements."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..contender import Contender, Session, Work


class _FileSession(Session):
    """It pickles, and syncs each put and each ``task_done``."""

    def __init__(self, folder: Path) -> None:
        from persistqueue import Queue

        self._queue = Queue(str(folder / "queue"))

    def produce(self, values: Sequence[bytes]) -> None:
        for value in values:
            self._queue.put(value)

    def append(self, value: bytes) -> None:
        self._queue.put(value)

    def take(self, count: int) -> int:
        count = min(count, self._queue.qsize())
        for _ in range(count):
            self._queue.get()
        self._queue.task_done()  # saves how far it was read
        return count


class _SqliteSession(Session):
    def __init__(self, folder: Path) -> None:
        from persistqueue import SQLiteQueue

        self._queue = SQLiteQueue(str(folder / "queue"), auto_commit=False, multithreading=True)

    def produce(self, values: Sequence[bytes]) -> None:
        for value in values:
            self._queue.put(value)
        self._queue.task_done()  # commits

    def append(self, value: bytes) -> None:
        self._queue.put(value)
        self._queue.task_done()

    def take(self, count: int) -> int:
        count = min(count, self._queue.qsize())
        for _ in range(count):
            self._queue.get()
        self._queue.task_done()
        return count


class _AckSession(Session):
    def __init__(self, folder: Path) -> None:
        from persistqueue import SQLiteAckQueue

        self._queue = SQLiteAckQueue(str(folder / "queue"), auto_commit=True, multithreading=True)

    def produce(self, values: Sequence[bytes]) -> None:
        for value in values:
            self._queue.put(value)

    def append(self, value: bytes) -> None:
        self._queue.put(value)

    def take(self, count: int) -> int:
        items: list[Any] = []
        while len(items) < count and self._queue.size > 0:
            items.append(self._queue.get())
        for item in items:
            self._queue.ack(item)
        return len(items)


class PersistQueue(Contender):
    chunk = 500
    works = frozenset({Work.PRODUCE_100, Work.DURABLE_1, Work.QUEUE})

    def __init__(self, name: str, session: type[_FileSession | _SqliteSession | _AckSession]) -> None:
        self.name = f"persist-queue, {name}"
        self._session = session

    def missing(self) -> str:
        return "" if find_spec("persistqueue") else "persist-queue is not installed"

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return self._session(folder)


CONTENDERS = [
    PersistQueue("files, synced", _FileSession),
    PersistQueue("SQLite", _SqliteSession),
    PersistQueue("SQLite with ack", _AckSession),
]
