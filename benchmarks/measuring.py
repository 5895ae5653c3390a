"""What the commands of the benchmarks share: figures from a process of their own, the machine, tables, plots."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Figures = dict[str, float]


def machine() -> str:
    """What was measured on; of the cores, those that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def figures_of(command: Sequence[str], timeout_s: float) -> Figures:
    """Run a process of ours; the figures that it printed as JSON on its last line.

    Raises:
        RuntimeError: it failed; the message is what it said.
        subprocess.TimeoutExpired: it took too long.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"it ended with {done.returncode}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def peak_mib() -> float:
    """The most memory that this process had resident. ``ru_maxrss`` would be the parent's, kept over exec."""
    return memory_mib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def memory_mib(field: str, process_id: int | None = None) -> float | None:
    """A line of /proc/PID/status (of this process by default); None where there is no such thing."""
    status = Path(f"/proc/{process_id or 'self'}/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def pyplot() -> Any:
    """matplotlib's pyplot, drawing SVG; None where it is not installed: tables and JSON say the same."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: as outlines it is a megabyte
    from matplotlib import pyplot as plotting

    return plotting
