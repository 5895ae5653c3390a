"""``logbroker queue dead-letters redrive`` killed with -9 again and again: in the end each letter was sent once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import logbroker

LETTERS = 30_000
KILLS = 10


def make_letters(data: Path) -> None:
    with logbroker.open(data) as broker:
        broker.create_topic("jobs", partitions=3)
        broker.create_subscription("workers", topic="jobs", dead_letter="dead")
        with broker.producer() as producer:
            producer.send_many("jobs", [b"%d" % number for number in range(LETTERS)])
        with broker.queue(subscription="workers") as queue:
            while batch := queue.receive_many(2000, timeout=0.0):
                batch.reject("no good")


def sent_again(data: Path) -> Counter[bytes]:
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        found: Counter[bytes] = Counter()
        while batch := queue.receive_many(5000, timeout=0.5):
            found.update(message.value for message in batch if message.value is not None)
            batch.accept()
        return found


def wait_for_growth(data: Path, running: list[subprocess.Popen[bytes]]) -> None:
    """Until somebody has written messages, or everybody has ended."""
    before = log_bytes(data)
    deadline = time.monotonic() + 30
    while log_bytes(data) == before and any(process.poll() is None for process in running):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def log_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in data.glob("logs/jobs-*/*.log"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_each_letter_is_redriven_exactly_once(tmp_path: Path, rng: random.Random, processes: int) -> None:
    """Two at a time wait for each other, and who goes on finishes what the dead one had decided."""
    data = tmp_path / "data"
    make_letters(data)
    command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(data)]
    command += ["queue", "dead-letters", "redrive", "workers"]
    left = [LETTERS]
    while left[-1] and len(left) <= KILLS:
        running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(processes)]
        wait_for_growth(data, running)
        for process in running:
            time.sleep(rng.random() * 0.15)
            process.kill()
        for process in running:
            process.wait()
        with logbroker.open(data) as broker:
            left.append(sum(1 for _ in broker.dead_letters("workers")))
    assert any(0 < number < LETTERS for number in left), "no kill came in the middle"
    last = subprocess.run(command, capture_output=True, check=False)
    assert last.returncode in (0, 3), last.stderr
    assert sent_again(data) == Counter(b"%d" % number for number in range(LETTERS))
    print(f"left after each kill: {left}")
