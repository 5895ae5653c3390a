"""Many records: sending to the page cache beside sqlite3's bulk insert, consuming, and memory."""

from __future__ import annotations

import itertools
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import logbroker

from .conftest import VALUE, seconds

ROUNDS = 5

pytestmark = pytest.mark.usefixtures("one_core")


def insert_into_sqlite(path: Path, records: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB)")
    with connection:
        connection.executemany("INSERT INTO t (value) VALUES (?)", itertools.repeat((VALUE,), records))
    connection.close()


def send_each(broker: logbroker.Broker, records: int) -> None:
    with broker.producer() as producer:
        send = producer.send
        for _ in range(records):
            send("t", VALUE)


def send_many(broker: logbroker.Broker, values: list[bytes]) -> None:
    with broker.producer() as producer:
        producer.send_many("t", values)


@pytest.mark.parametrize("way", ["send", "send_many"])
def test_send_to_the_page_cache(
    benchmark: Any, cached_broker: logbroker.Broker, tmp_path: Path, records: int, way: str
) -> None:
    numbers = itertools.count()
    values = [VALUE] * records
    sqlite_seconds: list[float] = []
    our_seconds: list[float] = []
    core_seconds: list[float] = []

    def ours() -> None:
        if way == "send":
            send_each(cached_broker, records)
        else:
            send_many(cached_broker, values)

    def pair() -> None:
        before = time.process_time()
        our_seconds.append(seconds(ours))
        core_seconds.append(time.process_time() - before)

    def setup() -> None:
        path = tmp_path / f"{next(numbers)}.sqlite"
        sqlite_seconds.append(seconds(lambda: insert_into_sqlite(path, records)))

    benchmark.pedantic(pair, setup=setup, rounds=ROUNDS)
    ratios = [theirs / mine for theirs, mine in zip(sqlite_seconds, our_seconds, strict=True)]
    benchmark.extra_info["records_per_s"] = round(records / statistics.median(our_seconds))
    benchmark.extra_info["records_per_s_best_round"] = round(records / min(our_seconds))
    benchmark.extra_info["records_per_s_of_a_core"] = round(records / statistics.median(core_seconds))
    benchmark.extra_info["times_sqlite_bulk_insert"] = round(statistics.median(ratios), 2)


@pytest.mark.parametrize("group", [None, "g"])
def test_consume_from_the_start(
    benchmark: Any, cached_broker: logbroker.Broker, records: int, group: str | None
) -> None:
    send_many(cached_broker, [VALUE] * records)
    numbers = itertools.count()
    core_seconds: list[float] = []

    def consume() -> None:
        before = time.process_time()
        name = group and f"{group}{next(numbers)}"
        with cached_broker.consumer("t", group=name, start="earliest") as consumer:
            for _ in itertools.islice(consumer, records):
                pass
        core_seconds.append(time.process_time() - before)

    benchmark.pedantic(consume, rounds=ROUNDS)
    benchmark.extra_info["records_per_s"] = round(records / benchmark.stats.stats.median)
    benchmark.extra_info["records_per_s_best_round"] = round(records / benchmark.stats.stats.min)
    benchmark.extra_info["records_per_s_of_a_core"] = round(records / statistics.median(core_seconds))


# Its own process, so that nothing that ran before it has made its memory large already.
FLAT = """
import sys
import logbroker

def resident_mib():
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            pages, shared = map(int, file.read().split()[1:3])
        return (pages - shared) * 4096 / 2**20  # without the files that are mapped
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # the peak; macOS: bytes

path, steps, records = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
value = b"x" * 100
with logbroker.open(path) as broker:
    broker.create_topic("t", config={"durability": "os"})
    with broker.producer() as producer, broker.consumer("t", start="earliest") as consumer:
        for _ in range(steps):
            for _ in range(records):
                producer.send("t", value)
            producer.flush()
            for _ in zip(range(records), consumer):
                pass
            print(resident_mib(), flush=True)
"""


def test_memory_stays_flat(benchmark: Any, tmp_path: Path, records: int) -> None:
    """Twenty times as many records as the other benchmarks take, sent and consumed."""
    arguments = [sys.executable, "-c", FLAT, str(tmp_path / "data"), "10", str(2 * records)]

    def work() -> list[float]:
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
        return [float(line) for line in done.stdout.split()]

    sizes = benchmark.pedantic(work, rounds=1)
    benchmark.extra_info["records"] = 20 * records
    benchmark.extra_info["MiB_after_a_tenth"] = round(sizes[0], 1)
    benchmark.extra_info["MiB_at_the_end"] = round(sizes[-1], 1)
    benchmark.extra_info["ratio_end_to_tenth"] = round(sizes[-1] / sizes[0], 2)
