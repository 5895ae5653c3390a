"""``produce --producer`` killed with -9, with several partitions: what is there in the end is the file.

One partition, and kills all over the place, are the end-to-end proofs' business.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from pathlib import Path

import pytest

from .conftest import Cli

LINES = [b"%d v%d" % (number % 97, number) for number in range(30_000)]
GROWTH_BYTES = 100_000
KILLS = 3


@pytest.mark.parametrize("options", [[], ["--key-separator", " "]], ids=["values", "keys"])
def test_each_line_is_there_once_and_in_order_in_its_partition(
    cli: Cli, tmp_path: Path, options: list[str]
) -> None:
    cli("topic", "create", "t", "--partitions", "3")
    source = tmp_path / "lines"
    source.write_bytes(b"\n".join(LINES))
    run = ["produce", "t", "--producer", "loader", *options]
    kills = sum(_kill_while_it_writes(cli, [*run, "-"]) for _ in range(KILLS))
    assert kills == KILLS
    assert cli(*run, str(source)).code == 0
    assert _numbers(cli, [*run, str(source)]) == list(range(len(LINES)))


def _kill_while_it_writes(cli: Cli, run: list[str]) -> bool:
    """Whether it was alive; its input stays open, so that it cannot have come to an end."""
    before = _log_bytes(cli)
    with cli.start(*run) as process:
        assert process.stdin is not None
        # Every line but the last ones, again and again: it skips what is there.
        written = (before // GROWTH_BYTES + 1) * len(LINES) // (KILLS + 1)
        process.stdin.write(b"\n".join(LINES[:written]) + b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while _log_bytes(cli) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        alive = process.poll() is None
        process.kill()
    return alive


def _log_bytes(cli: Cli) -> int:
    return sum(path.stat().st_size for path in cli.data.glob("logs/t-*/*.log"))


def _numbers(cli: Cli, run: list[str]) -> list[int]:
    """The numbers of the lines that are there, ascending; in each partition they must stand so."""
    assert cli(*run, "--json").document["skipped"] == len(LINES)
    places: dict[str, list[int]] = defaultdict(list)
    out = cli("tail", "t", "--from", "earliest", "--format", r"%p %v\n").out.decode()
    for partition, number in (line.replace("v", " ").split()[:: 1 - 2] for line in out.splitlines()):
        places[partition].append(int(number))
    assert all(numbers == sorted(numbers) for numbers in places.values())
    return sorted(itertools.chain(*places.values()))
