"""A file through ``logbroker produce --producer``, killed with -9 again and again, comes back byte for byte.

Two kinds of kills, chosen at random:

    after               hits
    a time              start-up, recovery, reading what is there already
    a growth of the log the ingest itself: a process that is writing is killed up to 3 ms later
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.record.memory_records import MemoryRecords as AiokafkaRecords
from kafka.record.memory_records import MemoryRecords as KafkaPythonRecords

COMMAND = [sys.executable, "-m", "logbroker.cli.app"]
MAX_RUNS = 400
TIMED_SHARE = 0.3
SECTIONS = [b"admin", b"libs", b"net", b"python", b"utils"]


def write_packages(path: Path, lines: int, rng: random.Random) -> None:
    """Something like a distribution's list of packages: short, long, empty and undecodable lines."""
    with path.open("wb") as file:
        file.writelines(line + b"\n" for line in package_lines(lines, rng))


def package_lines(count: int, rng: random.Random) -> Iterator[bytes]:
    field = 0
    for number in range(count):
        kind = rng.random()
        if kind < 0.01:
            yield bytes(rng.choices([byte for byte in range(256) if byte != 10], k=40)) + b"\r"
        elif kind < 0.011:
            yield b"Depends: " + b"libexample-%d (>= 1.0), " % number * 300
        else:
            yield stanza_line(field, number, rng)
            field = (field + 1) % 7


def stanza_line(field: int, number: int, rng: random.Random) -> bytes:
    match field:
        case 0:
            return b"Package: example-%d" % number
        case 1:
            return b"Version: %d.%d-%d" % (rng.randrange(9), rng.randrange(99), rng.randrange(5))
        case 2:
            return b"Section: " + rng.choice(SECTIONS)
        case 3:
            return b"Installed-Size: %d" % rng.randrange(1 << 20)
        case 4:
            return "Description: Beispielprogramm für alles Mögliche".encode()
        case 5:
            return b"SHA256: " + rng.randbytes(32).hex().encode()
    return b""


def size_bytes(path: Path) -> int:
    """0 when it is gone: an empty segment that a killed process had begun is removed by the next."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Ingest:
    """``logbroker produce``, run and killed until a run ends by itself."""

    def __init__(self, data: Path, source: Path, rng: random.Random) -> None:
        self._arguments = [
            *COMMAND,
            *("--data", str(data)),
            *("produce", "packages", str(source), "--producer", "loader"),
        ]
        self._logs = data / "logs"
        self._step_bytes = source.stat().st_size // 8
        self._rng = rng
        self.kills = 0
        self.kills_while_writing = 0

    def run_until_done(self) -> None:
        for _ in range(MAX_RUNS):
            process = subprocess.Popen(self._arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            before = self.log_bytes()
            try:
                self._wait_for_the_moment(process, before)
            finally:
                process.kill()
                _, errors = process.communicate()
            if process.returncode >= 0:
                assert process.returncode == 0, errors.decode()
                return
            self.kills += 1
            self.kills_while_writing += self.log_bytes() > before
        raise AssertionError(f"not done after {MAX_RUNS} runs")

    def _wait_for_the_moment(self, process: subprocess.Popen[bytes], before: int) -> None:
        rng = self._rng
        timed = self.kills_while_writing > 0 and rng.random() < TIMED_SHARE
        deadline = time.monotonic() + (rng.uniform(0.02, 0.5) if timed else 30)
        enough = before + rng.randrange(1, self._step_bytes)
        while process.poll() is None and time.monotonic() < deadline:
            if not timed and self.log_bytes() >= enough:
                time.sleep(rng.uniform(0, 0.003))
                return
            time.sleep(0.0005)

    def log_bytes(self) -> int:
        return sum(map(size_bytes, self._logs.glob("packages-*/*.log")))


def run(data: Path, *arguments: str) -> bytes:
    command = [*COMMAND, "--data", str(data), *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout[-2000:] + done.stderr).decode()
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("partitions", [1, 3])
def test_a_file_comes_back_byte_for_byte_however_often_its_producer_is_killed(
    tmp_path: Path, rng: random.Random, long_run: bool, partitions: int
) -> None:
    source, data = tmp_path / "packages", tmp_path / "data"
    write_packages(source, 800_000 if long_run else 240_000, rng)
    segment_bytes = (8 if long_run else 1) << 20
    create = ["--partitions", str(partitions), "--config", f"segment.bytes={segment_bytes // partitions}"]
    run(data, "topic", "create", "packages", *create)
    ingest = Ingest(data, source, rng)
    ingest.run_until_done()
    print(f"{ingest.kills} runs killed, {ingest.kills_while_writing} of them while they wrote")
    assert ingest.kills_while_writing > 0

    back = run(data, "tail", "packages", "--from", "earliest", "--value-only")
    if partitions == 1:
        assert back == source.read_bytes()
    else:  # the order holds within each partition only
        assert Counter(back.split(b"\n")) == Counter(source.read_bytes().split(b"\n"))
    folders = [data / "logs" / f"packages-{partition}" for partition in range(partitions)]
    for folder in folders:
        one = ["--partition", folder.name.rpartition("-")[2]]
        values = run(data, "tail", "packages", *one, "--from", "earliest", "--value-only")
        assert_other_parsers_read_it(folder, values)
    run(data, "inspect", "verify")  # ends with an error when it finds damage


def assert_other_parsers_read_it(partition: Path, expected: bytes) -> None:
    """aiokafka's and kafka-python's record classes read every segment, and find the same values in it."""
    segments = sorted(partition.glob("*.log"))
    assert len(segments) > 1
    for parser in (AiokafkaRecords, KafkaPythonRecords):
        records = []
        for segment in segments:
            batches = parser(segment.read_bytes())
            while (batch := batches.next_batch()) is not None:
                assert batch.validate_crc()
                records += [(record.offset, record.value) for record in batch]
        assert [offset for offset, _ in records] == list(range(len(records)))
        assert b"".join(value + b"\n" for _, value in records) == expected
