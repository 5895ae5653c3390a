"""Hours of mixed load, and nothing grows: memory, descriptors, threads, watches, reader slots, the view, the files.

A dozen processes use one directory in every way that there is (``worker``), at about half a core together: they open
and close what they use all the time, some are killed over it, and the cleaner keeps the logs at their retention.
Meanwhile they are measured from outside (``gauges``), and at the end each series must be flat (``flatness``).

What grows by design is no leak, but it is counted too: of each *anonymous* producer a partition remembers the id for a
day (as Kafka's does), so the producers here have names.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ..proof import Row, Scope
from .flatness import Bound, Growth, growth_of
from .gauges import ViewGauges, directory_gauges, process_gauges, view_gauges
from .topics import prepare

ROOT = Path(__file__).parents[3]
BOUNDED_S = 24
LONG_S = 3600
SAMPLES = 240
LEAST_PAUSE_S = 0.25  # a sample costs some 20 ms
PROCESS = "tests.proof.soak.worker"

KIB, MIB = 1 << 10, 1 << 20

# Over the second half of a run. What is said of a share of the median is for what swings with the load.
BOUNDS = {
    "memory": Bound(2 * MIB),
    # Two logs' that are used for the first time, six each; what leaks with every second turn is more in a bounded run.
    "descriptors": Bound(12),
    # A server's three pools of eight start one whenever more is to be done at once than ever before.
    "threads": Bound(4),
    # Who reads every topic has two for each partition that there is just now.
    "watches": Bound(4, share=0.25),
    "readers": Bound(2),
    "pages": Bound(16, share=0.25),
    "file_bytes": Bound(256 * KIB, share=0.1),
    # The state of transactions is compacted when its segment is full; until then its log grows.
    "log_bytes": Bound(8 * MIB, share=0.5),
    "journal_bytes": Bound(MIB, share=0.25),
    "files": Bound(20, share=0.25),
    "rows": Bound(40, share=0.25),
}

# How long each role pauses after a turn, for about half of one core together.
PAUSES_S = {
    "produce": 0.4,
    "supply": 0.4,
    "read": 0.3,
    "read 2": 0.3,
    "tail": 0.4,
    "copy": 0.4,
    "work": 0.4,
    "work 2": 0.4,
    "administer": 1.0,
    "ask": 0.4,
    "die": 2.0,
    "connect": 0.5,
}
UNMEASURED = ("connect",)  # a foreign client
END_S = 240


class Process:
    """A process of the load: a worker, or the server."""

    def __init__(self, name: str, arguments: list[str], folder: Path, expected: str) -> None:
        self.name = name
        self._log_path = folder / f"{name}.log"
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
            )
        self.pid = self._process.pid
        self._expected = expected
        self.said = ""

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline().decode()
        assert self.said.startswith(self._expected), f"{self.name}: {self.said!r}, and logged: {self.log()}"

    def log(self) -> str:
        return self._log_path.read_text()

    def check(self) -> None:
        assert self._process.poll() is None, f"{self.name} ended: {self.log()}"

    def end(self, *, terminate: bool = False) -> str:
        """End it as its kind is ended; what it said at last."""
        if terminate:
            self._process.terminate()
        said, _ = self._process.communicate(timeout=END_S)
        assert self._process.returncode == 0, (
            f"{self.name}: exit code {self._process.returncode}: {self.log()}"
        )
        return said.decode()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Record:
    """What was measured, by process and gauge."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, of: str, time_s: float, gauges: dict[str, float]) -> None:
        for gauge, value in gauges.items():
            self._times[of, gauge].append(time_s)
            self._values[of, gauge].append(value)

    def growths(self) -> list[Growth]:
        found = []
        for (of, gauge), times in self._times.items():
            bound = BOUNDS[gauge.split()[0]]
            growth = growth_of(of, gauge, times, self._values[of, gauge], bound)
            assert growth is not None, f"{of} {gauge}: too few samples, {len(times)}"
            found.append(growth)
        return found


def run(scope: Scope) -> Iterator[Row]:
    seconds = scope.count(BOUNDED_S, LONG_S)
    record = soak(scope.folder, seconds, life=scope.count(bounded=3, long=20))
    growths = record.growths()
    print(table_of(growths))
    growing = [growth for growth in growths if not growth.is_flat]
    assert not growing, f"not flat over the second half of {seconds} s:\n{table_of(growing)}"
    yield Row("mixed load is flat", len(growths), f"series over {seconds:,} s")


def soak(folder: Path, seconds: float, *, life: int) -> Record:
    """Run the load for *seconds*, with lives of *life* turns, and measure it."""
    data = str(folder / "data")
    prepare(data)
    record = Record()
    with ExitStack() as stack:
        server = Process(
            "serve",
            [
                "logbroker.cli.app",
                "--data",
                data,
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--log-level",
                "warning",
            ],
            folder,
            "listening on ",
        )
        stack.callback(server.kill)
        server.wait_until_ready()
        address = server.said.split()[-1]
        workers = []
        for name, pause_s in PAUSES_S.items():
            role = name.split()[0]
            worker = Process(name, [PROCESS, role, data, str(pause_s), str(life), address], folder, "ready")
            stack.callback(worker.kill)
            workers.append(worker)
        for worker in workers:
            worker.wait_until_ready()
        with view_gauges(f"{data}/view") as view:
            _measure(record, data, view, [server, *workers], seconds)
        turns = {worker.name: int(worker.end()) for worker in workers}
        server.end(terminate=True)
    idle = [name for name, count in turns.items() if count < 3]
    assert not idle, f"these did nearly nothing, so the load was not mixed: {idle} of {turns}"
    return record


def _measure(record: Record, data: str, view: ViewGauges, processes: list[Process], seconds: float) -> None:
    begun = time.monotonic()
    ticks = threading.Event()  # never set
    while (now := time.monotonic() - begun) < seconds:
        for process in processes:
            process.check()
            gauges = process_gauges(process.pid)
            if gauges is not None and process.name not in UNMEASURED:
                record.add(process.name, now, gauges)
        record.add("view", now, view.read())
        record.add("directory", now, directory_gauges(data))
        ticks.wait(max(LEAST_PAUSE_S, seconds / SAMPLES))


def table_of(growths: list[Growth]) -> str:
    """First, median and last value, and what the second half grew, beside what it may."""
    lines = [
        f"{'of':12} {'gauge':18} {'first':>12} {'median':>12} {'last':>12} {'growth':>10} {'allowed':>10}"
    ]
    for growth in growths:
        flag = "" if growth.is_flat else "  GROWS"
        lines.append(
            f"{growth.of:12} {growth.gauge:18} {growth.first:12,.0f} {growth.median:12,.0f} {growth.last:12,.0f} "
            f"{growth.growth:10,.0f} {growth.allowed:10,.0f}{flag}"
        )
    return "\n".join(lines)
