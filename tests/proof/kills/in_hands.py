"""The messages of a queue: in one worker's hands at a time, done once, and never seen again.

A worker has a message in its hands for certain

    from   the return of the call that received it
    to     the first of: its lease's end, counted from before that call; the call that settles it; the kill

What it had in its hands when it died may be anywhere, and what it was about to settle may be done or not.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

CLOCK_GRAIN_S = 0.002  # leases are counted in whole milliseconds
DONE = ("accepted", "rejected")

Place = tuple[int, int]  # partition and offset


class Hold(NamedTuple):
    """What a worker had for certain, and since when it can have had it."""

    worker: int
    called: float
    begin: float
    end: float


class InHands:
    """Told of the workers' notes, each worker's in their order, the workers in any."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._received: dict[tuple[int, Place], tuple[float, float]] = {}  # by worker: called and returned
        self._settling: dict[int, set[Place]] = defaultdict(set)  # by worker
        self._holds: dict[Place, list[Hold]] = defaultdict(list)
        self._done: dict[int, dict[int, float]] = defaultdict(dict)  # by partition and offset: when
        self._unanswered: set[Place] = set()
        self.deliveries = 0

    # Notes --------------------------------------------------------------------------------------------

    def received(self, worker: int, before: float, after: float, place: Place) -> None:
        self.deliveries += 1
        if (worker, place) in self._received:
            self._over(worker, place, before)
        self._received[worker, place] = (before, after)

    def settling(self, worker: int, before: float, place: Place) -> None:
        self._over(worker, place, before)
        self._settling[worker].add(place)

    def settled(self, worker: int, how: str, after: float, place: Place) -> None:
        self._settling[worker].remove(place)
        if how not in DONE:
            return
        done = self._done[place[0]]
        assert place[1] not in done, f"{place} is {how} by {worker}, and was done before"
        done[place[1]] = after
        for hold in self._holds[place]:
            assert hold.called <= after, f"{place} came to {hold} after {worker} had it {how} at {after}"

    def ended(self, worker: int, at: float) -> None:
        """It says nothing more: it was killed at that moment, or has left."""
        for held_by, place in list(self._received):
            if held_by == worker:
                self._over(worker, place, at)
        self._unanswered |= self._settling.pop(worker, set())

    def _over(self, worker: int, place: Place, until: float) -> None:
        assert (worker, place) in self._received, (
            f"{worker} has {place} in its hands once, and settles it twice"
        )
        called, begin = self._received.pop((worker, place))
        hold = Hold(worker, called, begin, min(until, called + self._lease_s - CLOCK_GRAIN_S))
        done = self._done[place[0]].get(place[1])
        assert done is None or called <= done, f"{place} was done at {done}, and then came to {hold}"
        for other in self._holds[place]:
            for one, two in ((hold, other), (other, hold)):
                came_between = one.begin <= two.called and two.begin <= one.end
                assert not came_between, f"{place} is in two hands: {one}, {two}"
            both = max(hold.begin, other.begin) < min(hold.end, other.end)
            assert not both, f"{place} is in two hands: {hold}, {other}"
        self._holds[place].append(hold)

    # Proof --------------------------------------------------------------------------------------------

    def forget(self, before: float) -> None:
        """Nobody whose notes are not all told has called anything before that moment."""
        for place, holds in list(self._holds.items()):
            left = [hold for hold in holds if hold.end >= before]
            if left:
                self._holds[place] = left
            else:
                del self._holds[place]

    def check_complete(self, ends: dict[int, int]) -> None:
        """The queue is drained up to *ends*: whatever is not known to be done was being settled by who died."""
        for partition, end in ends.items():
            done = self._done[partition]
            assert all(offset < end for offset in done), f"partition {partition}: done beyond {end}"
            lost = [
                offset
                for offset in range(end)
                if offset not in done and (partition, offset) not in self._unanswered
            ]
            assert not lost, f"partition {partition}: gone, and done by nobody: {lost[:20]}"
