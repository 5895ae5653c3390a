"""What a consumer group was handed out: at least once, and nothing again of what is committed.

A poll commits what the one before it handed out, before it hands out more. So a member that is handed [first, end)
of a partition right behind what it was handed there before shows that *first* is committed; whoever asks after that
begins at *first* or behind it. What nobody was handed must not be passed over: below the end of the furthest poll
everything was noted by somebody, for a poll that is not noted was not committed either.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from itertools import accumulate

KEPT_COMMITS = 10_000  # of a partition


class Stretches:
    """A set of offsets, as [first, end) that do not touch each other."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, int]] = []

    def add(self, first: int, end: int) -> None:
        at = bisect_left(self._stretches, (first, end))
        if at and self._stretches[at - 1][1] >= first:
            at -= 1
        last = at
        while last < len(self._stretches) and self._stretches[last][0] <= end:
            first, end = min(first, self._stretches[last][0]), max(end, self._stretches[last][1])
            last += 1
        self._stretches[at:last] = [(first, end)]

    @property
    def end_of_first(self) -> int:
        """Up to where it is complete from 0 on."""
        return self._stretches[0][1] if self._stretches and self._stretches[0][0] == 0 else 0


class HandedOut:
    """Told of polls in any order, as diaries are read."""

    def __init__(self) -> None:
        self._handed: dict[int, Stretches] = defaultdict(Stretches)
        self._furthest: dict[int, int] = defaultdict(int)
        self._ends: dict[tuple[int, int], int] = {}  # of a worker in a partition
        self._commits: dict[int, list[tuple[float, int]]] = defaultdict(list)  # when an offset was committed
        self._polls: list[tuple[int, float, int]] = []  # partition, before, first: not compared yet
        self.polls = 0

    def polled(self, worker: int, before: float, after: float, partition: int, first: int, end: int) -> None:
        assert first < end
        self.polls += 1
        if self._ends.get((worker, partition)) == first:
            insort(self._commits[partition], (after, first))
        self._ends[worker, partition] = end
        self._polls.append((partition, before, first))
        self._handed[partition].add(first, end)

    def ended(self, worker: int) -> None:
        for place in [place for place in self._ends if place[0] == worker]:
            del self._ends[place]

    def compare(self) -> None:
        """All diaries were read since the last time, so all polls up to then are known."""
        for partition, end in self._furthest.items():
            complete = self._handed[partition].end_of_first
            assert complete >= end, f"partition {partition}: {complete} was handed to nobody, {end - 1} was"
        highest = {
            partition: list(accumulate((offset for _, offset in commits), max))
            for partition, commits in self._commits.items()
        }
        for partition, before, first in self._polls:
            earlier = bisect_left(self._commits[partition], (before, 0))
            committed = highest[partition][earlier - 1] if earlier else 0
            assert first >= committed, (
                f"partition {partition}: a poll after {before} begins at {first}, {committed} was committed"
            )
            self._furthest[partition] = max(self._furthest[partition], first)
        self._polls.clear()
        for partition, commits in self._commits.items():
            # Later polls of workers that live on may still be told, so the last ones stay as they are.
            old = len(commits) - KEPT_COMMITS
            if old > 0:
                commits[:old] = [(commits[old - 1][0], highest[partition][old - 1])]

    def check_complete(self, ends: dict[int, int]) -> None:
        """Everybody has read everything below *ends*."""
        complete = {partition: self._handed[partition].end_of_first for partition in ends}
        assert complete == ends, f"handed out up to {complete}, written up to {ends}"
