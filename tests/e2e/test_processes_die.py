"""Producers and consumers in processes of their own, one of them killed every second."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest

import logbroker

PARTITIONS = 3


class Worker:
    """A process of ``worker.py``, started again under the same name whenever it is killed."""

    def __init__(self, role: str, data: Path, name: str) -> None:
        self._arguments = [sys.executable, str(Path(__file__).with_name("worker.py")), role, str(data), name]
        self.lines: list[str] = []
        self._reader: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", (
            self.process.stderr and self.process.stderr.read()
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.lines.append(line.decode().rstrip("\n"))

    def kill(self) -> None:
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read().decode()
        self.process.kill()
        self.process.wait()
        assert self._reader is not None
        self._reader.join()
        self.process.stdout and self.process.stdout.close()
        self.process.stderr and self.process.stderr.close()


def acknowledged(producers: dict[str, Worker]) -> dict[int, set[str]]:
    """The values that the producers were told are on the disk, by partition."""
    values: dict[int, set[str]] = defaultdict(set)
    for name, worker in producers.items():
        for line in worker.lines:
            partition, sequence = map(int, line.split())
            values[partition].add(f"{name}:{sequence}")
    return values


def wait_until_read(consumers: list[Worker], offsets: dict[int, int], *, seconds: float) -> None:
    """Wait until the group has seen every offset below *offsets*, by partition."""
    deadline = time.monotonic() + seconds
    seen: dict[int, set[int]] = defaultdict(set)
    looked_at = [0] * len(consumers)
    while time.monotonic() < deadline:
        for number, worker in enumerate(consumers):
            lines = worker.lines[looked_at[number] :]
            looked_at[number] += len(lines)
            for line in lines:
                partition, offset, _ = line.split(" ", 2)
                seen[int(partition)].add(int(offset))
        if all(len(seen[partition]) >= end for partition, end in offsets.items()):
            return
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("durability", "kills"), [("fsync", 10), ("os", 5)])
def test_every_acknowledged_record_is_read_in_its_producers_order_while_processes_die(
    tmp_path: Path, rng: random.Random, long_run: bool, durability: str, kills: int
) -> None:
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic(
            "t", partitions=PARTITIONS, config={"segment.bytes": 100_000, "durability": durability}
        )
    producers = {f"p{number}": Worker("produce", data, f"p{number}") for number in range(4)}
    consumers = [Worker("consume", data, "readers") for _ in range(2)]
    workers = [*producers.values(), *consumers]
    try:
        for _ in range(6 * kills if long_run else kills):
            time.sleep(1)
            victim = rng.choice(workers)
            victim.kill()
            victim.start()
        for worker in producers.values():
            worker.kill()
        with logbroker.open(data) as broker:
            ends = {part.partition: part.high_watermark for part in broker.topic("t").partitions}
            wait_until_read(consumers, ends, seconds=30)
            written = read_all(broker)
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.kill()
    verify = [sys.executable, "-m", "logbroker_tools.cli", "verify", str(data)]
    verified = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout
    assert_log_is_right(written, acknowledged(producers))
    assert_group_read(consumers, written)
    print(f"{sum(map(len, written.values()))} records")


def read_all(broker: logbroker.Broker) -> dict[int, dict[int, str]]:
    """What the log holds: offset to value, by partition."""
    found: dict[int, dict[int, str]] = defaultdict(dict)
    with broker.consumer("t", start="earliest") as consumer:
        while records := consumer.poll(max_records=10_000, timeout=0.5):
            for record in records:
                assert record.value is not None
                found[record.partition][record.offset] = record.value.decode()
    return found


def assert_log_is_right(written: dict[int, dict[int, str]], acknowledged: dict[int, set[str]]) -> None:
    for partition, values in written.items():
        assert list(values) == list(range(len(values)))  # offsets without a gap
        assert acknowledged[partition] <= set(values.values())
        following: dict[str, int] = defaultdict(int)
        for value in values.values():
            name, sequence = value.split(":")
            assert int(sequence) == following[name]  # in order, none twice, none left out, none invented
            following[name] += 1


def assert_group_read(consumers: list[Worker], written: dict[int, dict[int, str]]) -> None:
    """At least once: all of it, and nothing that is not in the log."""
    seen: dict[int, set[int]] = defaultdict(set)
    for worker in consumers:
        for line in worker.lines:
            partition, offset, value = line.split(" ", 2)
            assert written[int(partition)][int(offset)] == value
            seen[int(partition)].add(int(offset))
    assert {partition: len(offsets) for partition, offsets in seen.items()} == {
        partition: len(values) for partition, values in written.items()
    }
