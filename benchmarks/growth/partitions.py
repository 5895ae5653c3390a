"""Over the number of partitions of one topic, with the same number of records in all."""

from __future__ import annotations

import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import logbroker

from ..measuring import Figures, memory_mib
from .steps import TOPIC, VALUE, Runner, median_us, timed_us

RECORDS = 100_000
VISIT = 100  # records for one partition before the next
CHUNK = 500
COMMITS = 5
POLLS = 200
SETTLING_S = 2.0
WATCHED_S, WATCHED_QUICKLY_S = 31.0, 3.0  # the cleaner runs every 30


def measure(runner: Runner, sizes: list[int]) -> Iterator[tuple[int, Figures]]:
    for size in sizes:
        figures = runner.run(produce, size)
        figures |= runner.run(consume)
        figures |= runner.openings()
        figures |= serve(runner)
        yield size, figures
        shutil.rmtree(runner.data)


def produce(data: str, partitions: int) -> Figures:
    with logbroker.open(data) as broker:
        create_us = timed_us(
            lambda: broker.create_topic(TOPIC, partitions=partitions, config={"durability": "os"})
        )
        with broker.producer() as producer:
            values = [VALUE] * VISIT

            def produce_once() -> None:
                for number in range(RECORDS // VISIT):
                    producer.send_many(TOPIC, values, partition=number % partitions)
                producer.flush()

            produce_once()  # opens every log
            produce_us = timed_us(produce_once)
        closing = time.perf_counter()
    return {
        "create_ms": create_us / 1e3,
        "produce_us_per_record": produce_us / RECORDS,
        "close_after_ms": (time.perf_counter() - closing) * 1e3,
    }


def consume(data: str, _: int) -> Figures:
    """All records, then nothing; commits are of every partition."""
    with logbroker.open(data) as broker, broker.consumer(TOPIC, group="g", delivery="manual") as consumer:
        count = 0
        began = time.perf_counter()
        commit_us: list[float] = []
        pauses_us = 0.0
        while count < 2 * RECORDS:
            count += len(consumer.poll(CHUNK, timeout=10))
            if len(commit_us) < COMMITS and count >= (len(commit_us) + 1) * 2 * RECORDS / COMMITS:
                commit_us.append(timed_us(consumer.commit))
                pauses_us += commit_us[-1]
        elapsed_us = (time.perf_counter() - began) * 1e6 - pauses_us
        return {
            "consume_us_per_record": elapsed_us / count,
            "poll_of_nothing_us": median_us(lambda: consumer.poll(timeout=0), POLLS),
            "commit_ms": statistics.median(commit_us) / 1e3,
            "clean_ms": median_us(broker.clean, 3) / 1e3,
            "consumer_resident_mib": memory_mib("VmRSS") or 0.0,
        }


def serve(runner: Runner) -> Figures:
    """An idle server: its share of a core, and its memory."""
    program = Path(sys.executable).parent / "logbroker"
    command = [str(program), "serve", "--listen", "127.0.0.1:0", "--log-level", "error"]
    command += ["--data", str(runner.data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline().startswith("listening"):
                raise RuntimeError("the server does not listen")
            time.sleep(SETTLING_S)
            before_s, begun = _processor_s(process.pid), time.monotonic()
            time.sleep(WATCHED_QUICKLY_S if runner.quick else WATCHED_S)
            used_s, elapsed_s = _processor_s(process.pid) - before_s, time.monotonic() - begun
            resident_mib = memory_mib("VmRSS", process.pid) or 0.0
        finally:
            process.send_signal(signal.SIGTERM)
    return {"idle_server_core_percent": used_s / elapsed_s * 100, "idle_server_resident_mib": resident_mib}


def _processor_s(process_id: int) -> float:
    """Seconds of processor time so far, of all threads; /proc/PID/stat would say so in hundredths only."""
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
