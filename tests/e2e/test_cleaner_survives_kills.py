"""A process that compacts a topic is killed again and again; the newest record of each key is always there."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import logbroker

WORKER = Path(__file__).with_name("worker.py")
KEYS = 50
CONFIG: dict[str, str | int | float | bool] = {
    "cleanup.policy": "compact",
    "segment.bytes": 4_000,
    "min.cleanable.dirty.ratio": 0,
    "file.delete.delay.ms": 0,
}


def compact_and_kill(data: Path, rng: random.Random) -> int:
    """Let a worker append and compact, and kill it; the last number that it was told is on the disk, or -1."""
    command = [sys.executable, str(WORKER), "compact", str(data), "writer"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.3))
        assert process.poll() is None
    finally:
        process.kill()
        said = process.communicate()[0]
    lines = said.split("\n")[:-1]
    return int(lines[-1]) if lines else -1


def newest_of_each_key(data: Path) -> dict[bytes, int]:
    newest: dict[bytes, int] = {}
    with logbroker.open(data) as broker, broker.consumer("t", start="earliest") as consumer:
        while records := consumer.poll(max_records=10_000, timeout=0.2):
            for record in records:
                assert record.key is not None
                assert record.value is not None
                assert int(record.value) > newest.get(record.key, -1)  # compaction keeps the order
                newest[record.key] = int(record.value)
    return newest


@pytest.mark.slow
def test_the_newest_record_of_each_key_survives_a_killed_compaction(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t", config=CONFIG)
    acknowledged = -1
    for _ in range(100 if long_run else 10):
        acknowledged = max(acknowledged, compact_and_kill(data, rng))
        newest = newest_of_each_key(data)
        last = max(newest.values(), default=-1)
        assert last >= acknowledged
        assert newest == {b"key %d" % (n % KEYS): n for n in range(max(0, last - KEYS + 1), last + 1)}
        verify = [sys.executable, "-m", "logbroker_tools.cli", "verify", str(data)]
        verified = subprocess.run(verify, capture_output=True, text=True, check=False)
        assert verified.returncode == 0, verified.stdout
    with logbroker.open(data) as broker:
        left = broker.topic("t").partitions[0].size_bytes
    print(f"{acknowledged + 1} records acknowledged, {left} bytes left")
    assert acknowledged > 0
