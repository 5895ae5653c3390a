"""What must not grow with history: opening a directory, and reading one record from anywhere."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import logbroker

from .conftest import in_turn

PARTITIONS = 1000
READS = 100
ROUNDS = 11


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of 1,000 partitions with a record each, cleanly closed."""
    data = tmp_path_factory.mktemp("wide") / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t", partitions=PARTITIONS, config={"durability": "os"})
        with broker.producer() as producer:
            for partition in range(PARTITIONS):
                producer.send("t", b"value", partition=partition)
    return data


@pytest.mark.parametrize("view", ["kept", "deleted"])
def test_open_a_thousand_partitions(benchmark: Any, wide: Path, view: str) -> None:
    def setup() -> None:
        if view == "deleted":
            shutil.rmtree(wide / "view")

    def open_and_look() -> None:
        with logbroker.open(wide) as broker:
            assert broker.topics() == ["t"]

    benchmark.pedantic(open_and_look, setup=setup, rounds=5)
    benchmark.extra_info["seconds"] = round(benchmark.stats.stats.median, 4)


@pytest.mark.parametrize("segment_bytes", [1 << 20, 1 << 30])
def test_read_one_record_at_a_random_offset(
    benchmark: Any, tmp_path: Path, request: pytest.FixtureRequest, segment_bytes: int
) -> None:
    """A partition of 10 MB beside one a hundred times as large or more, in many segments or in few."""
    gigabytes = int(request.config.getoption("--gigabytes"))
    rng = random.Random(1)
    with logbroker.open(tmp_path / "data") as broker:
        for topic, megabytes in (("small", 10), ("large", 1000 * gigabytes)):
            broker.create_topic(topic, config={"durability": "os", "segment.bytes": segment_bytes})
            fill(broker, topic, megabytes)
        with (
            broker.consumer("small", start="earliest") as small,
            broker.consumer("large", start="earliest") as large,
        ):
            work = (lambda: read_some(large, rng), lambda: read_some(small, rng))
            mine, small_seconds, ratio = benchmark.pedantic(in_turn, args=(*work, ROUNDS), rounds=1)
    benchmark.extra_info["GB"] = gigabytes
    benchmark.extra_info["us_per_read"] = round(mine / READS * 1e6)
    benchmark.extra_info["us_per_read_of_10_MB"] = round(small_seconds / READS * 1e6)
    benchmark.extra_info["ratio_to_10_MB"] = round(ratio, 2)


def fill(broker: logbroker.Broker, topic: str, megabytes: int) -> None:
    values = [b"x" * 1000] * 1000
    with broker.producer(acks="written") as producer:
        for _ in range(megabytes):
            producer.send_many(topic, values)


def read_some(consumer: logbroker.Consumer, rng: random.Random) -> None:
    end = consumer.position()[0] + consumer.lag()[0]
    for _ in range(READS):
        offset = rng.randrange(end)
        consumer.seek(0, offset)
        assert consumer.poll(max_records=1, timeout=1.0)[0].offset == offset
