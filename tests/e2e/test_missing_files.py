"""A segment file that is gone or cut short costs the records that were in it, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import logbroker

PER_BATCH = 5
BATCHES = 30


def write_segments(data: Path) -> list[Path]:
    with logbroker.open(data) as broker:
        broker.create_topic("t", config={"segment.bytes": 1_000})
        for number in range(BATCHES):
            with broker.producer() as producer:
                producer.send_many("t", [b"%d.%d" % (number, index) * 10 for index in range(PER_BATCH)])
    return sorted((data / "logs" / "t-0").glob("*.log"))


def base_offset(segment: Path) -> int:
    return int(segment.stem)


def empty(segment: Path) -> None:
    os.truncate(segment, 0)


def drop_the_last_byte(segment: Path) -> None:
    os.truncate(segment, segment.stat().st_size - 1)


def read_around_damage(broker: logbroker.Broker) -> tuple[list[int], list[tuple[int, int]]]:
    """The offsets that can be read, and the ranges that an error named."""
    offsets: list[int] = []
    ranges: list[tuple[int, int]] = []
    with broker.consumer("t", start="earliest") as consumer:
        for _ in range(5):
            try:
                while records := consumer.poll(max_records=1000, timeout=0):
                    offsets += [record.offset for record in records]
                break
            except logbroker.CorruptionError as error:
                ranges.append((error.start_offset, error.end_offset))
                consumer.seek(error.partition, error.end_offset)
    return offsets, ranges


@pytest.mark.parametrize("view", ["kept", "deleted"])
@pytest.mark.parametrize("index", [2, -1], ids=["middle", "last"])
@pytest.mark.parametrize("damage", [Path.unlink, empty, drop_the_last_byte])
def test_the_rest_stays_readable_and_no_offset_is_given_twice(
    tmp_path: Path, damage: Callable[[Path], None], index: int, view: str
) -> None:
    data = tmp_path / "data"
    segments = write_segments(data)
    end = BATCHES * PER_BATCH
    lost_end = end if index == -1 else base_offset(segments[index + 1])
    lost_start = lost_end - PER_BATCH if damage is drop_the_last_byte else base_offset(segments[index])
    damage(segments[index])
    if view == "deleted":
        shutil.rmtree(data / "view")
    left = [offset for offset in range(end) if not lost_start <= offset < lost_end]
    with logbroker.open(data) as broker:
        assert read_around_damage(broker) == (left, [(lost_start, lost_end)])
        with broker.producer() as producer:
            assert producer.send("t", b"more").result().offset == end
    with logbroker.open(data) as broker:
        assert read_around_damage(broker) == ([*left, end], [(lost_start, lost_end)])
