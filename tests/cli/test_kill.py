"""``produce --producer`` killed with -9, with several partitions: what is there in the end is the file.

One partition, and kills at any moment, are the end-to-end proofs' business.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from .conftest import Cli

LINES = [b"%d v%d\n" % (number % 97, number) for number in range(30_000)]
KILLS = 3


@pytest.mark.parametrize("options", [[], ["--key-separator", " "]], ids=["values", "keys"])
def test_each_line_is_there_once_and_in_order_in_its_partition(
    cli: Cli, tmp_path: Path, options: list[str]
) -> None:
    source = tmp_path / "lines"
    source.write_bytes(b"".join(LINES))
    run = ["produce", "t", "--producer", "loader", *options]
    cli("topic", "create", "t", "--partitions", "3")
    for kill in range(1, KILLS + 1):
        _kill_while_it_writes(cli, run, LINES[: kill * len(LINES) // (KILLS + 1)])
    assert cli(*run, str(source)).code == 0
    assert cli(*run, str(source), "--json").document["skipped"] == len(LINES)
    found = _numbers_by_partition(cli)
    assert len(found) == 3
    assert all(numbers == sorted(numbers) for numbers in found.values())
    assert sorted(chain(*found.values())) == list(range(len(LINES)))


def _kill_while_it_writes(cli: Cli, run: Sequence[str], lines: Sequence[bytes]) -> None:
    """Its input stays open, so that it cannot have come to its end."""
    before = _log_bytes(cli)
    with cli.start(*run) as process:
        assert process.stdin is not None
        process.stdin.write(b"".join(lines))
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while _log_bytes(cli) == before:
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.kill()


def _log_bytes(cli: Cli) -> int:
    return sum(path.stat().st_size for path in cli.data.glob("logs/t-*/*.log"))


def _numbers_by_partition(cli: Cli) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for line in cli("tail", "t", "--from", "earliest", "--format", r"%p %v\n").out.decode().splitlines():
        partition, _, value = line.partition(" ")
        found[partition].append(int(value.rpartition("v")[2]))
    return found
