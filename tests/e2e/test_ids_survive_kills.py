"""Processes that send the same message ids at the same time, and are killed: each id is in the topic once."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import logbroker

from .test_processes_die import Worker, read_all

PARTITIONS = 3


def acknowledged(workers: list[Worker]) -> list[tuple[int, bool]]:
    """The ids that the workers were told are on the disk, and whether as duplicates."""
    lines = [line.split() for worker in workers for line in worker.lines]
    return [(int(number), duplicate == "1") for number, duplicate in lines]


def test_of_an_id_that_several_processes_send_one_record_is_appended_whoever_is_killed(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t", partitions=PARTITIONS, config={"segment.bytes": 200_000, "durability": "os"})
    workers = [Worker("identify", data, f"w{number}") for number in range(3)]
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
        values = [int(value) for records in read_all(broker).values() for value in records.values()]
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
