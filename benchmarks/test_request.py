"""How long a request takes from one process to another and back, beside what any way between processes costs.

The peer is a connection over a Unix socket (``multiprocessing.connection``): no log, no competition for the requests,
nothing that a third process could see. It is the floor, not a rival.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

import logbroker

REQUESTS = 3_000
WARM_UP = 200
ROUNDS = 3
VALUE = b"x" * 100

RESPONDER = """
import sys
import logbroker
with logbroker.open(sys.argv[1]) as broker:
    responder = broker.responder("rpc", concurrency=int(sys.argv[2]))(lambda request: request.value)
    print("ready", flush=True)
    responder.run()
"""
ECHO = """
import sys
from multiprocessing.connection import Listener
with Listener(sys.argv[1], "AF_UNIX") as listener:
    print("ready", flush=True)
    with listener.accept() as connection:
        while True:
            connection.send_bytes(connection.recv_bytes())
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def times_us(ask: Callable[[], bytes | None]) -> list[float]:
    """Of each of ``REQUESTS`` requests."""
    found: list[float] = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        assert ask() == VALUE
        found.append((time.perf_counter() - began) * 1e6)
    return found


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_round_trip_between_two_processes(benchmark: Any, tmp_path: Path, durability: str) -> None:
    ours: list[float] = []
    peers: list[float] = []
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("rpc", config={"durability": durability})
        responder = start(RESPONDER, str(tmp_path / "data"), "1")
        echo = start(ECHO, str(tmp_path / "socket"))
        connection = Client(str(tmp_path / "socket"), "AF_UNIX")

        def ask_peer() -> bytes:
            connection.send_bytes(VALUE)
            return connection.recv_bytes()

        def in_turn() -> None:
            ours.extend(times_us(lambda: broker.request("rpc", VALUE).value))
            peers.extend(times_us(ask_peer))

        for _ in range(WARM_UP):
            broker.request("rpc", VALUE)
            ask_peer()
        benchmark.pedantic(in_turn, rounds=ROUNDS)
        connection.close()
        end(echo)
        end(responder)
    for name, figures in (("", ours), ("unix_socket_", peers)):
        ordered = sorted(figures)
        benchmark.extra_info[f"{name}p50_us"] = round(statistics.median(ordered))
        benchmark.extra_info[f"{name}p99_us"] = round(ordered[int(len(ordered) * 0.99)])
    benchmark.extra_info["requests_per_s"] = round(1e6 / statistics.mean(ours))


def test_many_requesters_at_once(benchmark: Any, tmp_path: Path) -> None:
    """Eight threads ask one process that answers with four."""
    from concurrent.futures import ThreadPoolExecutor

    with logbroker.open(tmp_path / "data") as broker:
        responder = start(RESPONDER, str(tmp_path / "data"), "4")
        pool = ThreadPoolExecutor(8)

        def ask_all() -> None:
            for value in pool.map(lambda _: broker.request("rpc", VALUE).value, range(REQUESTS)):
                assert value == VALUE

        benchmark.pedantic(ask_all, rounds=ROUNDS, warmup_rounds=1)
        pool.shutdown()
        end(responder)
    benchmark.extra_info["requests_per_s"] = round(REQUESTS / benchmark.stats.stats.median)
