"""Whether a series of measurements is flat: a robust slope, and how much growth is still called flat.

The first half of a run is for warming up: caches fill, pools are made, the logs reach the size that retention keeps
them at. Over the second half a line is laid through the points by Theil and Sen: its slope is the median of the slopes
between all pairs of points, which no saw-tooth and no outlier moves (up to 29 % of the points may be anything). What
that line climbs from the middle of the run to its end is the growth.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POINTS = 300  # 45,000 pairs; more points are thinned out


@dataclass(frozen=True)
class Bound:
    """How much a gauge may grow over the second half of a run."""

    absolute: float
    share: float = 0.0
    """Of the gauge's median, on top."""


@dataclass(frozen=True)
class Growth:
    """One gauge of one process, or of the directory, over a run."""

    of: str
    gauge: str
    first: float
    median: float
    last: float
    growth: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        return self.growth <= self.allowed


def growth_of(
    of: str, gauge: str, times: Sequence[float], values: Sequence[float], bound: Bound
) -> Growth | None:
    """What the second half of a series says; None when it holds too few points to say anything."""
    middle = (times[0] + times[-1]) / 2
    half = [(time, value) for time, value in zip(times, values, strict=True) if time >= middle]
    half = half[:: max(1, len(half) // MAX_POINTS)]
    if len(half) < 5:
        return None
    median = statistics.median(value for _, value in half)
    growth = slope(half) * (half[-1][0] - half[0][0])
    allowed = bound.absolute + bound.share * median
    return Growth(of, gauge, values[0], median, values[-1], growth, allowed)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's: the median slope between any two of *points* (time, value), whose times differ."""
    pairs = itertools.combinations(points, 2)
    return statistics.median((later[1] - sooner[1]) / (later[0] - sooner[0]) for sooner, later in pairs)
