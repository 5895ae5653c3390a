"""How soon a consumer in another process has a record that was acknowledged, and what an idle one costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import logbroker

RECORDS = 500
IDLE_S = 10.0

CONSUMER = """
import resource, sys, time
import logbroker
with logbroker.open(sys.argv[1]) as broker, broker.consumer("t", group="g", start="earliest") as consumer:
    consumer.poll(timeout=0)
    print("ready", flush=True)
    if sys.argv[2] == "idle":
        consumer.poll(timeout=1.0)  # the first wait imports and watches
        def cpu():
            usage = resource.getrusage(resource.RUSAGE_SELF)
            return usage.ru_utime + usage.ru_stime
        before, started = cpu(), time.monotonic()
        consumer.poll(timeout=float(sys.argv[3]))
        print((cpu() - before) / (time.monotonic() - started), flush=True)
        sys.exit()
    for record in consumer:
        print(time.time_ns() - int(record.value), flush=True)
"""


def start_consumer(data: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONSUMER, str(data), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_wake_up_of_a_consumer_in_another_process(benchmark: Any, tmp_path: Path) -> None:
    delays_us: list[float] = []
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t")
        process = start_consumer(tmp_path / "data", "tail")

        def send() -> None:
            with broker.producer(linger=0) as producer:
                for _ in range(RECORDS):
                    sent_ns = time.time_ns()
                    producer.send("t", b"%d" % sent_ns).result()
                    acknowledged_ns = time.time_ns()
                    assert process.stdout is not None
                    delays_us.append((int(process.stdout.readline()) - (acknowledged_ns - sent_ns)) / 1000)
                    time.sleep(0.002)

        benchmark.pedantic(send, rounds=1)
        process.kill()
        process.communicate()
    ordered = sorted(delays_us)
    benchmark.extra_info["p50_us_behind_the_acknowledgement"] = round(statistics.median(ordered))
    benchmark.extra_info["p99_us_behind_the_acknowledgement"] = round(ordered[int(len(ordered) * 0.99)])


def test_an_idle_consumer(benchmark: Any, tmp_path: Path) -> None:
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t", partitions=3)
    process = start_consumer(tmp_path / "data", "idle", str(IDLE_S))

    def wait() -> float:
        assert process.stdout is not None
        return float(process.stdout.readline())

    share = benchmark.pedantic(wait, rounds=1)
    process.communicate()
    benchmark.extra_info["percent_of_a_core"] = round(share * 100, 3)
