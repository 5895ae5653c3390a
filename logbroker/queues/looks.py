"""What is found in one partition of a queue: messages that came into somebody's hands, and how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from logbroker_storage.record_batch import Record, StoredBatch

from .rows import Run
from .state import Counts


class Held(NamedTuple):
    """Messages in an owner's hands, of one run; ``batches`` are those that they are stored in, ascending.

    ``have_reserved``: some of them may have headers of the broker's own.
    """

    records: list[Record]
    delivery_count: int
    lease_end_ms: int
    batches: Sequence[StoredBatch] = ()
    have_reserved: bool = False


def without(held: Iterable[Held], runs: Sequence[Run]) -> list[Held]:
    """*held* but for the messages of *runs*."""
    left = []
    for taken in held:
        records = [
            record
            for record in taken.records
            if not any(run.first <= record.offset <= run.last for run in runs)
        ]
        if records:
            left.append(taken._replace(records=records))
    return left


class Progress(NamedTuple):
    """How far a queue is: all below ``start_offset`` is done, nothing from ``next_offset`` on was ever looked at."""

    start_offset: int
    next_offset: int
    counts: Counts


class Ahead(NamedTuple):
    """What may be had: messages given back, and offsets that nobody had yet, in [``next_offset``, ``visible_end``)."""

    has_ready: bool
    next_offset: int
    visible_end: int


class Due(NamedTuple):
    """What a look at a queue finds."""

    exists: bool
    visible_end: int  # of the log
    is_synced: bool  # whether the log is on the disk as far as that
    has_work: bool  # a message may be had
    has_rejected: bool  # something is to be buried
    is_due: bool  # leases or delays are over, or records were deleted
    next_due_s: float | None  # until one is
