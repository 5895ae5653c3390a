"""Two processes share a transform with state, and one of them is killed again and again: every count is exact."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import logbroker

RECORDS = 12_000

WORKER = """
import sys
import logbroker
from logbroker import Message

def count(record, state):
    number = int(state.get(record.key, b"0")) + 1
    state.put(record.key, b"%d" % number)
    return Message(b"%d" % number, key=record.key)

with logbroker.open(sys.argv[1]) as broker:
    broker.transform("in", "out", group="g", function=count, max_records=30, idle_timeout=4.0)
"""


def start(data: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(data)])


def test_every_record_counts_once_whoever_dies(tmp_path: Path, rng: random.Random, long_run: bool) -> None:
    data = tmp_path / "data"
    keys = [b"key %d" % rng.randrange(200) for _ in range(RECORDS)]
    with logbroker.open(data) as broker:
        broker.create_topic("in", partitions=3)
        broker.create_topic("out", partitions=2)
        with broker.producer() as producer:
            for key in keys:
                producer.send("in", b"x", key=key)

    workers = [start(data), start(data)]
    for _ in range(100 if long_run else 10):
        time.sleep(rng.uniform(0.1, 0.7))
        victim = rng.randrange(2)
        workers[victim].send_signal(signal.SIGKILL)
        workers[victim].wait()
        workers[victim] = start(data)
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]

    with logbroker.open(data) as broker:
        with broker.consumer("out") as consumer:
            numbers: dict[bytes | None, list[int]] = {}
            while records := consumer.poll(10_000, 0):
                for record in records:
                    numbers.setdefault(record.key, []).append(int(record.value or b"-1"))
        assert [offset.lag for offset in broker.group("g").offsets] == [0, 0, 0]
    assert numbers == {key: list(range(1, count + 1)) for key, count in Counter(keys).items()}
