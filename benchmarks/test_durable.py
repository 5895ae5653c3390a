"""One durable record at a time, beside the least that any such program must do: a write and an fdatasync."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logbroker
from logbroker_storage.segment_files import ROOM_BYTES

from .conftest import VALUE, in_turn, seconds

APPENDS = 50
ROUNDS = 21
BATCH_BYTES = 61 + 8 + len(VALUE)  # what the log writes for one such record

fdatasync = os.fsync if sys.platform == "darwin" else os.fdatasync


def test_single_durable_append(benchmark: Any, tmp_path: Path) -> None:
    with logbroker.open(tmp_path / "data") as broker, broker.producer() as producer:
        broker.create_topic("t")
        fd = os.open(tmp_path / "bare", os.O_RDWR | os.O_CREAT)
        written = 0

        def ours() -> None:
            for _ in range(APPENDS):
                producer.send("t", VALUE).result()

        def bare() -> None:
            nonlocal written
            for _ in range(APPENDS):
                os.pwrite(fd, b"y" * BATCH_BYTES, written)
                fdatasync(fd)
                written += BATCH_BYTES

        ours()
        bare()
        mine, theirs, ratio = benchmark.pedantic(in_turn, args=(ours, bare, ROUNDS), rounds=1)
        os.close(fd)
    benchmark.extra_info["us_per_append"] = round(mine / APPENDS * 1e6)
    benchmark.extra_info["bare_us"] = round(theirs / APPENDS * 1e6)
    benchmark.extra_info["ratio_to_bare"] = round(ratio, 2)


class _Room:
    """A file that is written and synced batch by batch, into room that *make* makes (descriptor, position)."""

    def __init__(self, path: Path, batch_bytes: int, make: Callable[[int, int], object]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self._batch = b"y" * batch_bytes
        self._make = make
        self._written = self._room_end = 0

    def append_some(self) -> None:
        for _ in range(APPENDS):
            os.pwrite(self._fd, self._batch, self._written)
            self._written += len(self._batch)
            if self._written > self._room_end:
                self._make(self._fd, self._written)
                self._room_end = self._written + ROOM_BYTES
            fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system does not allocate in advance")
@pytest.mark.parametrize("batch_bytes", [BATCH_BYTES, 1100, 8000, 30_000])
def test_syncs_into_room_that_was_written_or_allocated(
    benchmark: Any, tmp_path: Path, batch_bytes: int
) -> None:
    zeros = bytes(ROOM_BYTES)
    written = _Room(tmp_path / "written", batch_bytes, lambda fd, at: os.pwrite(fd, zeros, at))
    allocated = _Room(
        tmp_path / "allocated", batch_bytes, lambda fd, at: os.posix_fallocate(fd, at, ROOM_BYTES)
    )
    mine, theirs, ratio = benchmark.pedantic(
        in_turn, args=(written.append_some, allocated.append_some, ROUNDS), rounds=1
    )
    written.close()
    allocated.close()
    benchmark.extra_info["written_us"] = round(mine / APPENDS * 1e6)
    benchmark.extra_info["allocated_us"] = round(theirs / APPENDS * 1e6)
    benchmark.extra_info["ratio"] = round(ratio, 2)


@pytest.mark.parametrize("threads", [1, 4, 16])
def test_durable_appends_of_many_threads_share_syncs(benchmark: Any, tmp_path: Path, threads: int) -> None:
    with logbroker.open(tmp_path / "data") as broker, broker.producer() as producer:
        broker.create_topic("t")

        def work() -> None:
            for _ in range(APPENDS):
                producer.send("t", VALUE).result()

        def run() -> None:
            workers = [threading.Thread(target=work) for _ in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        run()
        elapsed = benchmark.pedantic(seconds, args=(run,), rounds=5)
    benchmark.extra_info["appends_per_s"] = round(threads * APPENDS / benchmark.stats.stats.median)
    assert elapsed > 0
