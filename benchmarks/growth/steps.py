"""The steps of a work, each in a process of its own: ``python -m benchmarks.growth.child STEP FOLDER AMOUNT``.

A step takes the data directory and a number, and returns figures. Those here are about opening, for every work.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import logbroker
import logbroker.broker  # the package does so at the first ``open``, whose time is not meant

from ..measuring import ROOT, Figures, figures_of, memory_mib

TOPIC = "t"
VALUE = b"x" * 100
LONGEST_S = 900.0
Step = Callable[[str, int], Figures]


class Runner(NamedTuple):
    """Runs steps on the data directory in *folder*."""

    folder: Path
    quick: bool
    openings_each: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def run(self, step: Step, amount: int = 0) -> Figures:
        return figures_of(self._command(step, amount), LONGEST_S)

    def run_to_death(self, step: Step, amount: int = 0) -> None:
        """Run a step that ends by killing its process."""
        done = subprocess.run(self._command(step, amount), cwd=ROOT, timeout=LONGEST_S)
        if done.returncode != -signal.SIGKILL:
            raise RuntimeError(f"{step.__name__} ended with {done.returncode}")

    def _command(self, step: Step, amount: int) -> list[str]:
        name = f"{step.__module__.rpartition('.')[2]}.{step.__name__}"
        return [sys.executable, "-m", "benchmarks.growth.child", name, str(self.data), str(amount)]

    def openings(self) -> Figures:
        """Opening after a clean close, after kill -9, and without a view (as when the machine was restarted);
        closing; and what is in memory and in the view.
        """
        clean, killed, rebuilt = [], [], []
        for _ in range(self.openings_each):
            clean.append(self.run(open_and_close))
            self.run_to_death(append_and_die)
            killed.append(self.run(open_and_close))
            shutil.rmtree(self.data / "view")
            rebuilt.append(self.run(open_and_close))
        figures = {key: statistics.median(each[key] for each in clean) for key in clean[0]}
        return {
            "open_ms": figures.pop("open_ms"),
            "open_killed_ms": statistics.median(each["open_ms"] for each in killed),
            "open_rebuilt_ms": statistics.median(each["open_ms"] for each in rebuilt),
            **figures,
            "view_mib": os.stat(self.data / "view" / "data.mdb").st_blocks * 512 / 2**20,
        }


def median_us(work: Callable[[], object], rounds: int) -> float:
    return statistics.median(timed_us(work) for _ in range(rounds))


def timed_us(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e6


def open_and_close(data: str, _: int) -> Figures:
    began = time.perf_counter()
    broker = logbroker.open(data)
    opened = time.perf_counter()
    with broker.consumer(TOPIC, start="earliest") as consumer:
        assert consumer.poll(1)
    resident_mib = memory_mib("VmRSS") or 0.0
    closing = time.perf_counter()
    broker.close()
    return {
        "open_ms": (opened - began) * 1e3,
        "close_ms": (time.perf_counter() - closing) * 1e3,
        "resident_mib": resident_mib,
    }


def append_and_die(data: str, _: int) -> Figures:
    broker = logbroker.open(data)
    broker.producer().send(TOPIC, VALUE).result()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives on")
