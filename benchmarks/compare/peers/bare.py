"""The physical limit: bytes written to a file, with or without ``fdatasync``, and read again. No product at all."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from ..contender import Contender, Session, Work

BLOCK_BYTES = 1 << 20


class _Session(Session):
    def __init__(self, path: Path, *, is_synced: bool, number: int = 0) -> None:
        self._path = path
        self._is_synced = is_synced
        self._numbers = itertools.count(number + 1)
        # A file a thread: what a program without group commit could do at best.
        self._fd = os.open(f"{path}-{number}", os.O_RDWR | os.O_CREAT)
        self._position = os.fstat(self._fd).st_size
        self._lock = threading.Lock()

    def another(self) -> Session:
        with self._lock:
            return _Session(self._path, is_synced=self._is_synced, number=next(self._numbers))

    def produce(self, values: Sequence[bytes]) -> None:
        at = 0
        step = max(1, BLOCK_BYTES // len(values[0]))
        while at < len(values):
            self._write(b"".join(values[at : at + step]))
            at += step
        if self._is_synced:
            os.fdatasync(self._fd)

    def append(self, value: bytes) -> None:
        self._write(value)
        os.fdatasync(self._fd)

    def _write(self, data: bytes) -> None:
        self._position += os.pwrite(self._fd, data, self._position)

    def consume(self, count: int) -> int:
        size, position = 0, 0
        while block := os.pread(self._fd, BLOCK_BYTES, position):
            position += len(block)
            size += len(block)
        return size

    def close(self) -> None:
        os.close(self._fd)


class Bare(Contender):
    """Records back to back, joined into blocks of 1 MiB, without framing."""

    def __init__(self, *, is_synced: bool) -> None:
        self._is_synced = is_synced
        self.name = f"bare file, {'write + fdatasync' if is_synced else 'write'}"
        self.works = frozenset({Work.PRODUCE_100, Work.PRODUCE_1K, Work.PRODUCE_MIXED})
        self.works |= {Work.DURABLE_1, Work.DURABLE_16} if is_synced else {Work.CONSUME_100, Work.CONSUME_1K}

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return _Session(folder / "bare", is_synced=self._is_synced)


CONTENDERS = [Bare(is_synced=True), Bare(is_synced=False)]
