"""Queues: receiving and accepting, in batches and one by one, by one process and several, beside two peers.

Everything is on the disk when ``accept`` returns; ``persist-queue`` syncs each step too, ``litequeue`` none.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import litequeue
import persistqueue
import pytest

import logbroker
from logbroker.queues.consumer import Queue

from .conftest import VALUE

BATCH = 100
PEER_MESSAGES = 1000
ROUNDS = 5
OTHERS = 100_000  # messages that are of no concern to the receiver


def send(broker: logbroker.Broker, count: int, **options: Any) -> None:
    with broker.producer() as producer:
        for _ in range(count):
            producer.send("jobs", VALUE, **options)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[logbroker.Broker]:
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("jobs")
        yield broker


def in_batches(queue: Queue, count: int, size: int = BATCH) -> None:
    for _ in range(count // size):
        queue.receive_many(size).accept()


def one_by_one(queue: Queue, count: int) -> None:
    for _ in range(count):
        queue.receive(0).accept()


def rounds_per_s(work: Callable[[int], object], count: int) -> list[float]:
    """How many of *count* a second, in each of several rounds."""
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work(count)
        rates.append(count / (time.perf_counter() - began))
    return rates


def note(benchmark: Any, rates: list[float]) -> None:
    benchmark.extra_info["messages_per_s"] = round(statistics.median(rates))
    benchmark.extra_info["messages_per_s_best_round"] = round(max(rates))


def test_receive_and_accept_in_batches(benchmark: Any, broker: logbroker.Broker, records: int) -> None:
    count = records // 10
    broker.create_subscription("workers", topic="jobs")
    send(broker, count * ROUNDS)
    with broker.queue(subscription="workers") as queue:
        rates = benchmark.pedantic(
            rounds_per_s, args=(lambda count: in_batches(queue, count), count), rounds=1
        )
    assert broker.subscription("workers").lag == 0
    note(benchmark, rates)


def test_receive_and_accept_one_by_one(benchmark: Any, broker: logbroker.Broker) -> None:
    broker.create_subscription("workers", topic="jobs")
    send(broker, 1000 * ROUNDS)
    with broker.queue(subscription="workers") as queue:
        rates = benchmark.pedantic(
            rounds_per_s, args=(lambda count: one_by_one(queue, count), 1000), rounds=1
        )
    assert broker.subscription("workers").lag == 0
    note(benchmark, rates)


WORKER = """
import sys, time, logbroker
with logbroker.open(sys.argv[1]) as broker, broker.queue(subscription="workers") as queue:
    print("ready", flush=True)
    sys.stdin.readline()
    began, count = time.monotonic(), 0
    while batch := queue.receive_many(100):
        batch.accept()
        count += len(batch)
    print(count, began, time.monotonic(), flush=True)
"""


def test_four_processes_together(benchmark: Any, broker: logbroker.Broker, records: int) -> None:
    count = records // 5
    broker.create_subscription("workers", topic="jobs")
    send(broker, count)

    def run() -> float:
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, broker.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        told = [worker.communicate()[0].split() for worker in workers]
        assert sum(int(line[0]) for line in told) == count
        return max(float(line[2]) for line in told) - min(float(line[1]) for line in told)

    elapsed = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["messages_per_s"] = round(count / elapsed)


# Beside peers -----------------------------------------------------------------------------------------------


def persist_queue(kind: str) -> Callable[[Path], tuple[Callable[[int], None], Callable[[int], None]]]:
    def made(folder: Path) -> tuple[Callable[[int], None], Callable[[int], None]]:
        options = {"autosave": True} if kind == "Queue" else {}
        queue: Any = getattr(persistqueue, kind)(str(folder / kind), **options)
        numbers = itertools.count()  # a UniqueAckQ takes each value once

        def put(count: int) -> None:
            for _ in range(count):
                queue.put(VALUE + b"%d" % next(numbers))

        def get(count: int) -> None:
            for _ in range(count):
                item = queue.get(block=False)
                queue.task_done() if kind == "Queue" else queue.ack(item)

        return put, get

    return made


def lite_queue(folder: Path) -> tuple[Callable[[int], None], Callable[[int], None]]:
    queue: Any = litequeue.LiteQueue(folder / "lite.db")
    text = VALUE.decode()

    def put(count: int) -> None:
        for _ in range(count):
            queue.put(text)

    def get(count: int) -> None:
        for _ in range(count):
            message = queue.pop()
            assert message is not None
            queue.done(message.message_id)

    return put, get


PEERS = {
    "persist-queue SQLiteAckQueue": persist_queue("SQLiteAckQueue"),
    "persist-queue UniqueAckQ": persist_queue("UniqueAckQ"),
    "persist-queue Queue": persist_queue("Queue"),
    "litequeue": lite_queue,
}


@pytest.mark.parametrize("name", PEERS)
def test_beside_a_peer(benchmark: Any, broker: logbroker.Broker, tmp_path: Path, name: str) -> None:
    """As many messages through each in turn; ours in batches of 100, and one by one."""
    broker.create_subscription("workers", topic="jobs")
    put, get = PEERS[name](tmp_path)
    rates: dict[str, list[float]] = {"ours": [], "one by one": [], "peer": []}

    def compare() -> None:
        with broker.queue(subscription="workers") as queue:
            works: dict[str, Callable[[int], None]] = {
                "ours": lambda count: in_batches(queue, count),
                "one by one": lambda count: one_by_one(queue, count),
                "peer": get,
            }
            for _ in range(ROUNDS):
                send(broker, 2 * PEER_MESSAGES)
                put(PEER_MESSAGES)
                for key, work in works.items():
                    began = time.perf_counter()
                    work(PEER_MESSAGES)
                    rates[key].append(PEER_MESSAGES / (time.perf_counter() - began))

    benchmark.pedantic(compare, rounds=1)
    pairs = list(zip(rates["ours"], rates["one by one"], rates["peer"], strict=True))
    benchmark.extra_info["messages_per_s"] = round(statistics.median(rates["ours"]))
    benchmark.extra_info["peer_per_s"] = round(statistics.median(rates["peer"]))
    benchmark.extra_info["times_peer"] = round(statistics.median(ours / peer for ours, _, peer in pairs), 1)
    benchmark.extra_info["one_by_one_times_peer"] = round(
        statistics.median(single / peer for _, single, peer in pairs), 2
    )


# That it does not grow ----------------------------------------------------------------------------------------


def nothing_else(broker: logbroker.Broker) -> None:
    assert broker.subscription("workers").lag == 0


def accepted_before(broker: logbroker.Broker) -> None:
    send(broker, OTHERS)
    with broker.queue(subscription="workers") as queue:
        in_batches(queue, OTHERS, 1000)


def delayed(broker: logbroker.Broker) -> None:
    send(broker, OTHERS, delay=timedelta(days=1))
    with broker.queue(subscription="workers") as queue:
        assert queue.receive_many(1) == []


def in_other_hands(broker: logbroker.Broker) -> None:
    send(broker, OTHERS)
    for message in broker.queue(subscription="workers", lease=3600.0).receive_many(OTHERS):
        if message.offset % 2:
            message.extend(3600.0 + message.offset / 1000)  # so that each is a run of its own


def waiting_for_their_key(broker: logbroker.Broker) -> None:
    send(broker, OTHERS, key=b"k")
    assert len(broker.queue(subscription="workers", lease=3600.0).receive_many(1)) == 1
    with broker.queue(subscription="workers") as queue:
        assert queue.receive_many(1) == []


@pytest.mark.parametrize(
    ("others", "options"),
    [
        (nothing_else, {}),
        (accepted_before, {}),
        (delayed, {}),
        (in_other_hands, {}),
        (nothing_else, {"ordered": True}),
        (waiting_for_their_key, {"ordered": True}),
        (nothing_else, {"priorities": True}),
    ],
)
def test_beside_other_messages(
    benchmark: Any,
    broker: logbroker.Broker,
    others: Callable[[logbroker.Broker], None],
    options: dict[str, Any],
) -> None:
    broker.create_subscription("workers", topic="jobs", **options)
    began = time.perf_counter()
    others(broker)
    benchmark.extra_info["seconds_to_prepare"] = round(time.perf_counter() - began, 2)
    with broker.queue(subscription="workers") as queue:
        send(broker, 2000 * ROUNDS + 200 * ROUNDS)
        rates = rounds_per_s(lambda count: in_batches(queue, count), 2000)
        singly = benchmark.pedantic(
            rounds_per_s, args=(lambda count: one_by_one(queue, count), 200), rounds=1
        )
    note(benchmark, rates)
    benchmark.extra_info["one_by_one_per_s"] = round(statistics.median(singly))
