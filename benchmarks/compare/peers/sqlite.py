"""sqlite3 of the standard library: a table with a number, write-ahead log."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from ..contender import LOG_WORKS, Contender, Session, Work

POLL_S = 0.001  # sqlite3 tells other processes nothing: a reader looks again
TABLE = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, time INTEGER, value BLOB)"
INSERT = "INSERT INTO t (time, value) VALUES (?, ?)"


class _Session(Session):
    def __init__(self, path: Path, *, is_synced: bool) -> None:
        self._path = path
        self._is_synced = is_synced
        # Each thread has a session, which the thread that made it may have opened.
        self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(f"PRAGMA synchronous={'FULL' if is_synced else 'OFF'}")
        self._connection.execute(TABLE)
        self._last = 0

    def another(self) -> Session:
        return _Session(self._path, is_synced=self._is_synced)

    def produce(self, values: Sequence[bytes]) -> None:
        now = time.time_ns() // 1_000_000
        self._connection.execute("BEGIN")
        self._connection.executemany(INSERT, ((now, value) for value in values))
        self._connection.execute("COMMIT")

    def append(self, value: bytes) -> None:
        self._connection.execute(INSERT, (time.time_ns() // 1_000_000, value))

    def consume(self, count: int) -> int:
        rows = self._connection.execute("SELECT value FROM t ORDER BY id LIMIT ?", (count,))
        return sum(len(value) for (value,) in rows)

    def tail(self) -> None:
        (last,) = self._connection.execute("SELECT coalesce(max(id), 0) FROM t").fetchone()
        self._last = last

    def next(self) -> bytes:
        while True:
            row = self._connection.execute(
                "SELECT id, value FROM t WHERE id > ? ORDER BY id LIMIT 1", (self._last,)
            ).fetchone()
            if row is not None:
                self._last, value = row
                return bytes(value)
            time.sleep(POLL_S)

    def read_offset(self, offset: int) -> bytes:
        (value,) = self._connection.execute("SELECT value FROM t WHERE id = ?", (offset + 1,)).fetchone()
        return bytes(value)

    def close(self) -> None:
        self._connection.close()


class Sqlite(Contender):
    def __init__(self, *, is_synced: bool) -> None:
        self._is_synced = is_synced
        self.name = f"sqlite3, {'synced' if is_synced else 'not synced'}"
        self.works = LOG_WORKS | {Work.TAIL_SAME, Work.RANDOM_OFFSET, Work.OPEN_CLEAN, Work.OPEN_KILLED}
        if not is_synced:
            self.works -= {Work.DURABLE_1, Work.DURABLE_16}

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return _Session(folder / "t.sqlite", is_synced=self._is_synced)


CONTENDERS = [Sqlite(is_synced=True), Sqlite(is_synced=False)]
