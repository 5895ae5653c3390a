"""How much memory some work needs."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that *work* had at one time, of three times; the least of the three.

    Whatever else the process does meanwhile is counted too: what other tests left may have threads of its own, and is
    given back at any time. *work* itself takes as much each time.
    """
    return min(_traced_peak(work) for _ in range(3))


def _traced_peak(work: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
