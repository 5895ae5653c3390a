"""Shared pieces of the benchmarks: directories on the disk under test, and ratios to a peer."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import logbroker

VALUE = b"x" * 100


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--records", type=int, default=500_000, help="records of a bulk benchmark")
    parser.addoption(
        "--gigabytes", type=int, default=1, help="size of the large partitions that are read from"
    )


@pytest.fixture
def records(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--records"))


@pytest.fixture
def one_core() -> Iterator[None]:
    """All threads of this process share one core, where the system can say so.

    What pytest and its plugins have made is frozen: it is not what an application's garbage collections
    would go through, and costs a bulk benchmark 10 to 20 %.
    """
    gc.collect()
    gc.freeze()
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def cached_broker(tmp_path: Path) -> Iterator[logbroker.Broker]:
    """A broker with a topic ``t`` that does not wait for the disk."""
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t", config={"durability": "os"})
        yield broker


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int
) -> tuple[float, float, float]:
    """Run the two in turn; the medians of ours, of the peer, and of the ratio ours / peer (seconds)."""
    pairs = [(seconds(ours), seconds(peer)) for _ in range(rounds)]
    return (
        statistics.median(first for first, _ in pairs),
        statistics.median(second for _, second in pairs),
        statistics.median(first / second for first, second in pairs),
    )
