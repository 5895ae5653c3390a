"""A flipped bit in a segment costs the batch that holds it, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import logbroker
from logbroker_storage.record_batch import read_header

BATCHES = 12
PER_BATCH = 5


def write_batches(data: Path) -> Path:
    with logbroker.open(data) as broker:
        broker.create_topic("t")
        for number in range(BATCHES):
            with broker.producer(compression="lz4" if number % 3 == 2 else None) as producer:
                producer.send_many("t", [b"%d.%d" % (number, index) * 20 for index in range(PER_BATCH)])
    return data / "logs" / "t-0" / "00000000000000000000.log"


def in_leader_epoch(segment: bytes, position: int) -> bool:
    """Whether the byte at *position* belongs to the leader epoch of a batch."""
    start = 0
    while start + read_header(segment, start).size_bytes <= position:
        start += read_header(segment, start).size_bytes
    return 12 <= position - start < 16


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
def test_all_other_batches_stay_readable_behind_any_flipped_bit(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    data = tmp_path / "data"
    segment = write_batches(data)
    sound = segment.read_bytes()
    intact = list(range(BATCHES * PER_BATCH))
    assert read_around_damage(data) == (intact, [])
    bits = range(len(sound) * 8)
    for bit in bits if long_run else rng.sample(bits, 150):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        segment.write_bytes(damaged)
        offsets, ranges = read_around_damage(data)
        if in_leader_epoch(sound, bit // 8):
            assert (offsets, ranges) == (intact, []), (
                f"bit {bit}"
            )  # no record depends on it; verify reports it
            continue
        assert len(ranges) == 1, f"bit {bit}"
        start, end = ranges[0]
        assert (start % PER_BATCH, end - start) == (0, PER_BATCH), f"bit {bit}"
        assert offsets == [offset for offset in intact if not start <= offset < end], f"bit {bit}"
    segment.write_bytes(sound)
    assert read_around_damage(data) == (intact, [])
