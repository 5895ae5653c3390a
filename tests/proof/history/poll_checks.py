"""What consumers got, in which order: nothing twice within one assignment, and nothing left out.

A consumer's position moves in three ways only: it is placed (assigned, sought), it polls, or the place is taken away.
Between an offset and the next one that it polls there is no record that it should have seen. Of a group as a whole
every visible record below a committed offset was in some member's hands: members write down what they got before
they commit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from .findings import Finding, Kind
from .operations import Dropped, History, Isolation, Outcome, Place, Placed, Polled, Reader

Visible = Callable[[Isolation, Place], Sequence[tuple[int, str]]]


def check_polls(history: History, visible: Visible) -> Iterator[Finding]:
    for reader in history.readers:
        yield from _check_reader(reader, visible)
    yield from _check_groups(history, visible)


def _check_reader(reader: Reader, visible: Visible) -> Iterator[Finding]:
    positions: dict[Place, int] = {}
    for step in reader.steps:
        match step:
            case Placed():
                positions.update(step.offsets)
            case Dropped():
                for place in step.places:
                    positions.pop(place, None)
            case Polled():
                for place, records in step.records.items():
                    yield from _check_poll(
                        reader, visible, positions, place, [offset for offset, _ in records]
                    )


def _check_poll(
    reader: Reader, visible: Visible, positions: dict[Place, int], place: Place, offsets: Sequence[int]
) -> Iterator[Finding]:
    records = visible(reader.isolation, place)
    if place not in positions:
        yield Finding(
            Kind.NON_MONOTONIC_POLL, f"{reader.client} got {place} {offsets}, which it does not read"
        )
        return
    for offset in offsets:
        position = positions[place]
        if offset < position:
            yield Finding(
                Kind.NON_MONOTONIC_POLL, f"{reader.client} got {place} {offset} when it was at {position}"
            )
        passed = records[bisect_left(records, (position, "")) : bisect_left(records, (offset, ""))]
        if passed:
            yield Finding(
                Kind.SKIPPED_POLL,
                f"{reader.client} ({reader.isolation.value}) got {place} {offset} when it was at {position}, and "
                f"passed by {len(passed)} records, the first {passed[0]}",
            )
        positions[place] = offset + 1


def _check_groups(history: History, visible: Visible) -> Iterator[Finding]:
    got: dict[tuple[str, Place], set[int]] = defaultdict(set)
    isolations: dict[str, Isolation] = {}
    for reader in history.readers:
        if reader.group:
            isolations[reader.group] = reader.isolation
            for step in reader.steps:
                if isinstance(step, Polled):
                    for place, records in step.records.items():
                        got[reader.group, place].update(offset for offset, _ in records)
    ends: dict[tuple[str, Place], int] = defaultdict(int)
    for commit in history.commits:
        if commit.outcome is Outcome.OK:
            for place, offset in commit.offsets.items():
                ends[commit.group, place] = max(ends[commit.group, place], offset)
    for (group, place), end in ends.items():
        passed = [
            record
            for record in visible(isolations[group], place)
            if record[0] < end and record[0] not in got[group, place]
        ]
        if passed:
            yield Finding(
                Kind.SKIPPED_POLL,
                f"group {group!r} committed {place} up to {end}, and nobody got {len(passed)} of the records below, "
                f"the first {passed[0]}",
            )
