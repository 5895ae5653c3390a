"""A flipped bit in a segment costs the batch that holds it, and nothing else, with the view and without it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import logbroker

BATCHES = 18
PER_BATCH = 5
SEGMENT_BYTES = 1_000  # about four batches


def write_batches(data: Path) -> list[Path]:
    """Batches of every kind in several segments."""
    codecs = (None, "gzip", "snappy", "lz4", "zstd")
    with logbroker.open(data) as broker:
        broker.create_topic("t", config={"segment.bytes": SEGMENT_BYTES})
        for number in range(BATCHES):
            with broker.producer(compression=codecs[number % 5]) as producer:
                producer.send_many("t", [b"%d.%d" % (number, index) * 20 for index in range(PER_BATCH)])
    return sorted((data / "logs" / "t-0").glob("*.log"))


def read_around_damage(data: Path) -> tuple[list[int], list[tuple[int, int]]]:
    """The offsets that can be read, and the ranges that an error named."""
    offsets: list[int] = []
    ranges: list[tuple[int, int]] = []
    with logbroker.open(data) as broker, broker.consumer("t", start="earliest") as consumer:
        for _ in range(5):
            try:
                while records := consumer.poll(max_records=1000, timeout=0):
                    offsets += [record.offset for record in records]
                break
            except logbroker.CorruptionError as error:
                ranges.append((error.start_offset, error.end_offset))
                consumer.seek(error.partition, error.end_offset)
    return offsets, ranges


@pytest.mark.slow
@pytest.mark.parametrize("view", ["kept", "deleted"])
def test_all_other_batches_stay_readable_behind_any_flipped_bit(
    tmp_path: Path, rng: random.Random, long_run: bool, view: str
) -> None:
    data = tmp_path / "data"
    segments = write_batches(data)
    assert len(segments) >= 3
    intact = list(range(BATCHES * PER_BATCH))
    assert read_around_damage(data) == (intact, [])
    places = [(path, bit) for path in segments for bit in range(path.stat().st_size * 8)]
    for path, bit in places if long_run else rng.sample(places, 100):
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if view == "deleted":
            shutil.rmtree(data / "view")
        offsets, ranges = read_around_damage(data)
        assert path.read_bytes() == damaged  # nobody mends or cuts what was acknowledged
        path.write_bytes(sound)
        where = f"bit {bit} of {path.name}"
        assert len(ranges) == 1, where
        start, end = ranges[0]
        assert (start % PER_BATCH, end - start) == (0, PER_BATCH), where
        assert offsets == [offset for offset in intact if not start <= offset < end], where
    assert read_around_damage(data) == (intact, [])
