"""What must not grow with history: opening a directory, and reading one record from anywhere."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import logbroker

PARTITIONS = 1000
READS = 200


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


@pytest.mark.parametrize("segments", [1, 1000])
def test_read_one_record_at_a_random_offset(benchmark: Any, tmp_path: Path, segments: int) -> None:
    """Segments of 1 MiB: the long partition has a thousand times the history of the short one."""
    value = b"x" * 1000
    rng = random.Random(1)
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t", config={"durability": "os", "segment.bytes": 1 << 20})
        with broker.producer(acks="written") as producer:
            for _ in range(segments):
                producer.send_many("t", [value] * 1000)
        end = broker.topic("t").partitions[0].high_watermark
        with broker.consumer("t", start="earliest") as consumer:

            def read_some() -> None:
                for _ in range(READS):
                    offset = rng.randrange(end)
                    consumer.seek(0, offset)
                    assert consumer.poll(max_records=1, timeout=1.0)[0].offset == offset

            benchmark.pedantic(read_some, rounds=5)
    benchmark.extra_info["us_per_read"] = round(benchmark.stats.stats.median / READS * 1e6)
