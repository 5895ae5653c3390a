"""A small language for what happens to a queue: offsets from 0, owners by name, a clock that is set.

A queue is shown as one letter an offset::

    .  done       a  acquired      d  delayed     x  rejected
    r  ready      l  looked at     w  waiting     b  being buried
"""

from __future__ import annotations

from typing import TypeVar

from logbroker.queues.rows import NO_KEY, Run, State
from logbroker.queues.settings import QueueSettings
from logbroker.queues.state import Arranged, BlockChange, Changes, QueueState, Range
from logbroker_storage.testing import MemoryRows

from .consistency import inconsistencies

Answer = TypeVar("Answer")

LETTERS = {
    State.READY: "r",
    State.ACQUIRED: "a",
    State.DELAYED: "d",
    State.WAITING: "w",
    State.REJECTED: "x",
    State.BURYING: "b",
    State.ARRANGING: "l",
}


class Journal:
    """What was journaled of a queue: enough to begin anew."""

    def __init__(self, start_offset: int) -> None:
        self.start_offset = start_offset
        self.blocks: dict[int, BlockChange] = {}

    def apply(self, changes: Changes) -> None:
        if changes.start_offset is not None:
            self.start_offset = changes.start_offset
        self.blocks |= changes.blocks
        for block in changes.dropped_blocks:
            self.blocks.pop(block, None)


class QueueSpecification:
    """A queue and its clock; each method is one transaction, journaled and checked."""

    def __init__(
        self,
        *,
        max_deliveries: int = 5,
        has_dead_letter: bool = False,
        looks_ahead: bool = False,
        start: int = 0,
    ) -> None:
        self.settings = QueueSettings(
            max_deliveries=max_deliveries, has_dead_letter=has_dead_letter, looks_ahead=looks_ahead
        )
        self.rows = MemoryRows()
        self.journal = Journal(start)
        self.now_ms = 0
        self.lease_ms = 100
        self.state = QueueState(self.rows, self.settings)
        self.state.begin(start, {})
        self._commit()

    # What happens ---------------------------------------------------------------------------------

    def fresh(self, owner: str, count: int, *, visible_end: int = 1 << 40) -> Run | None:
        """*owner* takes the next *count* of the log."""
        state = self._open()
        return self._commit(
            state.acquire_fresh(
                owner, count, visible_end=visible_end, lease_end_ms=self.now_ms + self.lease_ms
            )
        )

    def fresh_range(self, owner: str, count: int, *, visible_end: int = 1 << 40) -> Range | None:
        """As ``fresh``: the first and the last of them."""
        run = self.fresh(owner, count, visible_end=visible_end)
        return None if run is None else (run.first, run.last)

    def take(self, owner: str, count: int) -> list[int]:
        """*owner* takes *count* of those that are ready; their offsets, in the order of delivery."""
        runs = self._open().acquire(owner, count, lease_end_ms=self.now_ms + self.lease_ms)
        return self._commit([offset for run in runs for offset in range(run.first, run.last + 1)])

    def take_rejected(self, owner: str, count: int) -> list[tuple[int, str]]:
        """*owner* takes *count* to bury; their offsets and why they are rejected."""
        runs = self._open().acquire_rejected(owner, count, lease_end_ms=self.now_ms + self.lease_ms)
        return self._commit([(offset, run.note) for run in runs for offset in range(run.first, run.last + 1)])

    def look(self, owner: str, *messages: Arranged, count: int = 0) -> None:
        """*owner* looks at the next *count* offsets (else: up to the last message); only *messages* are there."""
        run = self.fresh(owner, count or messages[-1].offset + 1 - self.state.head.next_offset)
        assert run is not None
        self.arrange(owner, run, *messages)

    def arrange(self, owner: str, run: Run, *messages: Arranged) -> None:
        self._open().arrange(owner, run, messages, now_ms=self.now_ms, now_wall_ms=self.now_ms)
        self._commit()

    def finish(self, owner: str, first: int, last: int | None = None) -> list[Range]:
        return self._commit(self._open().finish(owner, _range(first, last), now_ms=self.now_ms))

    def bury(self, owner: str, first: int, last: int | None = None) -> list[Range]:
        return self._commit(self._open().bury(owner, _range(first, last), now_ms=self.now_ms))

    def release(
        self,
        owner: str,
        first: int,
        last: int | None = None,
        *,
        until: int = 0,
        was_delivered: bool = True,
        note: str = "gave up",
    ) -> list[Range]:
        state = self._open()
        lost = state.release(
            owner,
            _range(first, last),
            now_ms=self.now_ms,
            not_before_ms=until,
            was_delivered=was_delivered,
            note=note,
        )
        return self._commit(lost)

    def reject(self, owner: str, first: int, last: int | None = None, *, note: str = "bad") -> list[Range]:
        return self._commit(self._open().reject(owner, _range(first, last), note=note, now_ms=self.now_ms))

    def extend(self, owner: str, first: int, last: int | None = None, *, until: int) -> list[Range]:
        state = self._open()
        return self._commit(state.extend(owner, _range(first, last), lease_end_ms=until, now_ms=self.now_ms))

    def at(self, now_ms: int) -> QueueSpecification:
        """It is that time now: leases end and delays are over, as the keeper of the queue sees to."""
        self.now_ms = now_ms
        state = self._open()
        state.expire(now_ms=now_ms)
        state.wake(now_wall_ms=now_ms)
        return self._commit(self)

    def die(self, owner: str) -> None:
        """*owner* is found to be gone."""
        self._open().end_leases_of(lambda name: name == owner)
        self._commit()

    def drop_below(self, offset: int) -> None:
        self._open().drop_below(offset)
        self._commit()

    def crash(self) -> QueueSpecification:
        """Only what was journaled is left, and the queue begins anew with it."""
        self.rows = MemoryRows()
        self.state = QueueState(self.rows, self.settings)
        self.state.begin(self.journal.start_offset, self.journal.blocks)
        return self._commit(self)

    # What is seen ---------------------------------------------------------------------------------

    def shows(self, *, start: int = 0) -> str:
        """A letter for each offset from *start*."""
        letters = ["."] * (self.state.head.next_offset - start)
        for run in self.state.runs():
            for offset in range(run.first, run.last + 1):
                letters[offset - start] = LETTERS[run.state]
        return "".join(letters)

    def delivery_counts(self) -> dict[int, int]:
        """Of each offset that is not done."""
        return {
            offset: run.delivery_count
            for run in self.state.runs()
            for offset in range(run.first, run.last + 1)
        }

    @property
    def has_woken_others(self) -> bool:
        """Whether the last transaction gave others something to do."""
        return self.state.woke_others

    def _open(self) -> QueueState:
        self.state = QueueState(self.rows, self.settings)
        return self.state

    def _commit(self, answer: Answer = None) -> Answer:
        self.journal.apply(self.state.changes())
        assert inconsistencies(self.rows) == []
        return answer


def message(offset: int, *, priority: int = 0, key: str = "", not_before: int = 0) -> Arranged:
    """What a message says of its delivery."""
    return Arranged(offset, priority, key.encode().ljust(8, b"-") if key else NO_KEY, not_before)


def _range(first: int, last: int | None) -> list[Range]:
    return [(first, first if last is None else last)]
