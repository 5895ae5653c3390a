"""``python -m benchmarks.growth`` measures what it says, on the smallest directories that it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.growth",
        "--folder",
        str(folder),
        "--output",
        str(folder / "out"),
    ]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(("work", "sizes"), [("history", [10_000]), ("partitions", [1]), ("groups", [1])])
def test_each_work_gives_figures_for_each_size_and_leaves_nothing_else(
    tmp_path: Path, work: str, sizes: list[int]
) -> None:
    widest = str(max(sizes))
    done = run(
        tmp_path, "--quick", "--records", "10000", "--widest", widest, "--openings", "1", "--work", work
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "growth.json").read_text())
    by_size = results["works"][work]
    assert [int(size) for size in by_size] == sizes
    keys = [set(figures) for figures in by_size.values()]
    assert all(each == keys[0] for each in keys)
    assert {"open_ms", "open_killed_ms", "open_rebuilt_ms", "resident_mib", "view_mib"} < keys[0]
    assert all(value >= 0 for figures in by_size.values() for value in figures.values())
    markdown = (tmp_path / "out" / "growth.md").read_text()
    assert markdown == done.stdout.removesuffix("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path: Path) -> None:
    done = run(tmp_path, "--work", "history", "--records", str(10**15))
    assert done.returncode == 2
    assert "GB free" in done.stderr
    assert list(tmp_path.iterdir()) == []
