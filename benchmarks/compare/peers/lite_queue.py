"""litequeue: a queue in one SQLite table. It sets ``synchronous`` so that a power cut may lose commits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..contender import Contender, Session, Work


class _Session(Session):
    def __init__(self, folder: Path) -> None:
        from litequeue import LiteQueue

        self._queue = LiteQueue(str(folder / "queue.sqlite"))

    def produce(self, values: Sequence[bytes]) -> None:
        for value in values:
            self._queue.put(value)

    def take(self, count: int) -> int:
        taken = 0
        for _ in range(count):
            message = self._queue.pop()
            if message is None:
                break
            self._queue.done(message.message_id)
            taken += 1
        return taken


class LiteQueueContender(Contender):
    name = "litequeue, not synced"
    works = frozenset({Work.PRODUCE_100, Work.QUEUE})
    chunk = 2000

    def missing(self) -> str:
        return "" if find_spec("litequeue") else "litequeue is not installed"

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return _Session(folder)


CONTENDERS = [LiteQueueContender()]
