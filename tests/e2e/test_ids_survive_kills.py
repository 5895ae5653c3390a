"""Processes that send the same message ids at the same time, and are killed: each id is in the topic once."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import logbroker

PARTITIONS = 3


class Worker:
    """A process of ``worker.py``, started again under the same name whenever it is killed."""

    def __init__(self, data: Path, name: str) -> None:
        program = str(Path(__file__).with_name("worker.py"))
        self._arguments = [sys.executable, program, "identify", str(data), name]
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


def acknowledged(workers: list[Worker]) -> list[tuple[int, bool]]:
    """The ids that the workers were told are on the disk, and whether as duplicates."""
    lines = [line.split() for worker in workers for line in worker.lines]
    return [(int(number), duplicate == "1") for number, duplicate in lines]


def read_all(broker: logbroker.Broker) -> list[int]:
    """The numbers that the log holds."""
    found: list[int] = []
    with broker.consumer("t", start="earliest") as consumer:
        while records := consumer.poll(max_records=10_000, timeout=0.5):
            found += [int(record.value or b"") for record in records]
    return found


def test_of_an_id_that_several_processes_send_one_record_is_appended_whoever_is_killed(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t", partitions=PARTITIONS, config={"segment.bytes": 200_000, "durability": "os"})
    workers = [Worker(data, f"w{number}") for number in range(3)]
    try:
        for _ in range(100 if long_run else 12):
            time.sleep(rng.uniform(0.05, 0.5))
            victim = rng.choice(workers)
            victim.kill()
            victim.start()
    finally:
        for worker in workers:
            worker.kill()
    told = acknowledged(workers)
    with logbroker.open(data) as broker:
        values = read_all(broker)
    counted = Counter(values)
    assert [number for number, count in counted.items() if count > 1] == []
    assert {number for number, _ in told} <= set(values)
    firsts = Counter(number for number, duplicate in told if not duplicate)
    assert max(firsts.values()) == 1  # nobody was told of an id as new that another was told of as new
    assert sum(duplicate for _, duplicate in told) > 100  # they did send the same
    print(f"{len(values)} records, {len(told)} acknowledgements")

    shutil.rmtree(data / "view")
    with logbroker.open(data) as broker, broker.producer() as producer:
        for number in sorted(values)[-300:]:
            assert producer.send("t", b"again", message_id=f"id-{number}").result().duplicate


RACER = """
import sys, logbroker
with logbroker.open(sys.argv[1]) as broker, broker.producer(linger=0.001) as producer:
    print("ready", flush=True)
    sys.stdin.readline()
    found = [producer.send("t", sys.argv[2].encode(), partition=int(sys.argv[2]) % 2, message_id=str(n)).result()
                for n in range(int(sys.argv[3]))]
    print(sum(not one.duplicate for one in found), flush=True)
"""


@pytest.mark.parametrize("ids", [1, 3000])
def test_two_processes_that_begin_at_the_same_moment_append_each_id_once(tmp_path: Path, ids: int) -> None:
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t", partitions=2, config={"durability": "os"})
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, str(data), str(number), str(ids)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(3)
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        counts = [int(racer.communicate(timeout=60)[0]) for racer in racers]
        assert sum(counts) == ids
        assert sum(partition.log_end_offset for partition in broker.topic("t").partitions) == ids
        if ids > 1:
            assert len([count for count in counts if count]) > 1
