"""One durable record at a time, beside the least that any such program must do: a write and an fdatasync."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import logbroker

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
