"""Committed offsets: one register for each group and place, written by commits and read by those who begin there.

A value that was read is explained by a commit of it that had begun by then and was not surely replaced: no other
commit began after that one had ended, and was acknowledged before the read began. A commit whose end nobody saw may
come at any time, as a late request does, so it explains its value ever after.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from .findings import Finding, Kind
from .operations import NO_OFFSET, Commit, History, Look, Outcome, Place

Writes = Sequence[tuple[int, Commit]]  # offset, commit


def check_committed_offsets(history: History) -> Iterator[Finding]:
    writes: dict[tuple[str, Place], list[tuple[int, Commit]]] = defaultdict(list)
    for commit in history.commits:
        if commit.outcome is not Outcome.FAILED:
            for place, offset in commit.offsets.items():
                writes[commit.group, place].append((offset, commit))
    for look in history.looks:
        for place, offset in look.offsets.items():
            of_place = writes[look.group, place]
            if not _is_explained(offset, look, of_place):
                yield Finding(
                    Kind.WRONG_COMMITTED_OFFSET,
                    f"group {look.group!r} was told {offset} for {place} in {look}; committed were "
                    f"{_last_before(look, of_place)}",
                )


def _is_explained(offset: int, look: Look, writes: Writes) -> bool:
    # The latest moment at which a commit began that was acknowledged before we looked: what ended before is replaced.
    replaced_ns = max((commit.begun_ns for _, commit in writes if _is_before(commit, look)), default=-1)
    if offset == NO_OFFSET:
        return replaced_ns < 0
    return any(
        written == offset and commit.begun_ns <= look.ended_ns and commit.ended_ns >= replaced_ns
        for written, commit in writes
    )


def _is_before(commit: Commit, look: Look) -> bool:
    return commit.outcome is Outcome.OK and commit.ended_ns < look.begun_ns


def _last_before(look: Look, writes: Writes) -> list[tuple[int, Commit]]:
    return sorted(
        (write for write in writes if write[1].begun_ns <= look.ended_ns), key=lambda write: write[1].begun_ns
    )[-3:]
