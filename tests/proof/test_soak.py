"""A minute's worth of the soak, and that its measurements would show each kind of leak."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .proof import Proof
from .soak import BOUNDS, run
from .soak.flatness import Bound, growth_of, slope
from .soak.gauges import directory_gauges, process_gauges, view_gauges

POINTS = 60
LEAKING = """
import ctypes, os, sys, threading
kept = []
libc = ctypes.CDLL(None)
watcher = libc.inotify_init1(0)
print(flush=True)
for line in sys.stdin:
    match line.strip():
        case "memory": kept.append(os.urandom(128 << 10))
        case "descriptors": kept.append(os.open("/", os.O_RDONLY))
        case "threads":
            kept.append(threading.Thread(target=threading.Event().wait, daemon=True))
            kept[-1].start()
        case "watches":
            kept.append(f"{sys.argv[1]}/{len(kept)}")
            open(kept[-1], "w").close()
            libc.inotify_add_watch(watcher, kept[-1].encode(), 1)
    print(flush=True)
"""


CREATING = """
import sys, logbroker
with logbroker.open(sys.argv[1]) as broker:
    print(flush=True)
    for number, _ in enumerate(sys.stdin):
        broker.create_topic(f"topic-{number}", partitions=4)
        print(flush=True)
"""


@pytest.mark.slow
def test_nothing_grows_under_a_mixed_load(prove: Callable[[Proof], object]) -> None:
    prove(run)


# The checker --------------------------------------------------------------------------------------------------


def test_the_slope_is_that_of_most_points() -> None:
    line = [(float(time), 10.0 + 2 * time) for time in range(40)]
    assert slope(line) == 2
    outliers = [(time, value if number % 5 else 1000.0) for number, (time, value) in enumerate(line)]
    assert slope(outliers) == pytest.approx(2, abs=0.1)


def test_noise_and_saw_teeth_are_flat_and_a_slow_leak_in_them_is_not(rng: random.Random) -> None:
    times = [float(time) for time in range(200)]
    teeth = [100 + time % 20 + rng.uniform(-5, 5) for time in times]
    leaking = [value + 0.5 * time for time, value in zip(times, teeth, strict=True)]
    assert growth_of("p", "g", times, teeth, Bound(10)).is_flat  # type: ignore[union-attr]
    assert not growth_of("p", "g", times, leaking, Bound(10)).is_flat  # type: ignore[union-attr]


def test_what_grows_only_while_it_warms_up_is_flat() -> None:
    times = [float(time) for time in range(100)]
    warming = [min(time, 40) * 1000 for time in times]
    assert growth_of("p", "g", times, warming, Bound(0)).is_flat  # type: ignore[union-attr]


def test_too_few_points_say_nothing() -> None:
    assert growth_of("p", "g", [0.0, 1.0, 2.0], [1.0, 2.0, 3.0], Bound(1)) is None


@pytest.fixture
def leak(tmp_path: Path) -> Iterator[Callable[[str], list[float]]]:
    """``leak(gauge)``: what is measured of a process while it leaks one of these after the other."""
    command = [sys.executable, "-c", LEAKING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()

        def measure(kind: str) -> list[float]:
            values = []
            for _ in range(POINTS):
                process.stdin.write(f"{kind}\n".encode())  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                process.stdout.readline()  # type: ignore[union-attr]
                gauges = process_gauges(process.pid)
                assert gauges is not None
                values.append(gauges[kind])
            return values

        yield measure
        process.stdin.close()


@pytest.mark.parametrize("kind", ["memory", "descriptors", "threads", "watches"])
def test_a_process_that_leaks_is_found_out(leak: Callable[[str], list[float]], kind: str) -> None:
    times = [float(time) for time in range(POINTS)]
    growth = growth_of("leaking", kind, times, leak(kind), BOUNDS[kind])
    assert growth is not None
    assert not growth.is_flat


def test_rows_and_files_that_are_left_over_are_found_out(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    times = [float(time) for time in range(POINTS)]
    rows, files, journal = [], [], []
    command = [sys.executable, "-c", CREATING, data]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as creating:
        assert creating.stdin is not None
        assert creating.stdout is not None
        creating.stdout.readline()
        with view_gauges(f"{data}/view") as view:
            for _ in times:
                creating.stdin.write(b"\n")
                creating.stdin.flush()
                creating.stdout.readline()
                rows.append(view.read()["rows ends"])
                gauges = directory_gauges(data)
                files.append(gauges["files logs"])
                journal.append(gauges["journal_bytes"])
        creating.stdin.close()
    for name, values in (("rows", rows), ("files", files)):
        growth = growth_of("directory", name, times, values, BOUNDS[name])
        assert growth is not None
        assert not growth.is_flat
    assert journal[-1] > journal[0]
