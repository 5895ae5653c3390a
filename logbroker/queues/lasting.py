"""What of a queue's state is to last: values for the journal, and the way from runs to them and back. Pure."""

from __future__ import annotations

from typing import NamedTuple

from logbroker_storage.events import Attempt as Attempt

from .rows import BLOCK_OFFSETS, Run, State


class BlockChange(NamedTuple):
    """What is to last of a block; *done* and *attempts* empty: nothing."""

    done: bytes
    attempts: list[Attempt]


class Changes(NamedTuple):
    """What is to last; *start_offset* None: the queue begins where it began."""

    start_offset: int | None
    blocks: dict[int, BlockChange]
    dropped_blocks: list[int]


def attempt_of(run: Run, base: int) -> Attempt:
    """What is to last of *run*, of which something is to, within the block that begins with offset *base*."""
    return Attempt(
        first=max(run.first - base, 0),
        last=min(run.last - base, BLOCK_OFFSETS - 1),
        delivery_count=max(run.vain_deliveries, 0),
        not_before_ms=run.due_ms if run.state is State.DELAYED else 0,
        is_rejected=run.is_rejected,
        note=run.note,
    )


def run_of(attempt: Attempt, first: int, last: int) -> Run:
    """The offsets [first, last] of a queue that begins anew, as *attempt* left them."""
    state = State.READY
    if attempt.is_rejected:
        state = State.REJECTED
    elif attempt.not_before_ms:
        state = State.DELAYED
    return Run(
        first=first,
        last=last,
        state=state,
        delivery_count=attempt.delivery_count,
        due_ms=attempt.not_before_ms,
        note=attempt.note,
        is_postponed=state is State.DELAYED,
    )
