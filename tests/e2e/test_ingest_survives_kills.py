"""A file through ``logbroker produce --producer``, killed with -9 again and again, comes back byte for byte."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiokafka.record.memory_records import MemoryRecords as AiokafkaRecords
from kafka.record.memory_records import MemoryRecords as KafkaPythonRecords

COMMAND = [sys.executable, "-m", "logbroker.cli.app"]
MAX_RUNS = 400


def write_packages(path: Path, lines: int, rng: random.Random) -> None:
    """Something like a distribution's list of packages: short, long, empty and undecodable lines."""
    with path.open("wb") as file:
        for number in range(lines):
            kind = rng.random()
            if kind < 0.05:
                line = b""
            elif kind < 0.06:
                line = bytes(rng.choices([byte for byte in range(256) if byte != 10], k=40)) + b"\r"
            elif kind < 0.061:
                line = b"Depends: " + b"libexample (>= 1.0), " * 300
            else:
                line = b"Package: example-%d Version: %d.%d" % (number, rng.randrange(9), rng.randrange(99))
            file.write(line + b"\n")


def produce_until_done(data: Path, source: Path, rng: random.Random) -> int:
    """Run ``produce`` and kill it at random moments until a run ends by itself; how many were killed."""
    arguments = [*COMMAND, "--data", str(data), "produce", "packages", str(source), "--producer", "loader"]
    longest = 0.5
    for killed in range(MAX_RUNS):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.05, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            longest *= 1.02  # so that the last run is sure to come
            continue
        assert process.returncode == 0, errors.decode()
        return killed
    raise AssertionError(f"not done after {MAX_RUNS} runs")


@pytest.mark.slow
def test_a_file_comes_back_byte_for_byte_however_often_its_producer_is_killed(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    source, data = tmp_path / "packages", tmp_path / "data"
    write_packages(source, 800_000 if long_run else 80_000, rng)
    create = ["topic", "create", "packages", "--config", f"segment.bytes={(8 if long_run else 1) << 20}"]
    subprocess.run([*COMMAND, "--data", str(data), *create], check=True, stdout=subprocess.DEVNULL)
    started = time.monotonic()
    killed = produce_until_done(data, source, rng)
    print(f"{killed} runs killed in {time.monotonic() - started:.1f} s")
    assert killed > 0
    tail = ["tail", "packages", "--from", "earliest", "--value-only"]
    back = subprocess.run([*COMMAND, "--data", str(data), *tail], check=True, stdout=subprocess.PIPE).stdout
    assert back == source.read_bytes()
    assert_other_parsers_read_it(data / "logs" / "packages-0", back)


def assert_other_parsers_read_it(partition: Path, expected: bytes) -> None:
    """aiokafka's and kafka-python's record classes read every segment, and find the same values in it."""
    segments = sorted(partition.glob("*.log"))
    assert len(segments) > 1
    for parser in (AiokafkaRecords, KafkaPythonRecords):
        values = []
        for segment in segments:
            records = parser(segment.read_bytes())
            while (batch := records.next_batch()) is not None:
                assert batch.validate_crc()
                values += [record.value for record in batch]
        assert b"".join(value + b"\n" for value in values) == expected
