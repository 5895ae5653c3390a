"""That messages share a run is seen by nobody: a queue that joins runs does the same as one that never does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker.queues import arranging
from logbroker.queues.rows import BLOCK_OFFSETS, Run, State
from logbroker.queues.runs import RunTable
from logbroker.queues.state import Arranged

from .specification import QueueSpecification, message

START = BLOCK_OFFSETS - 9  # what happens does so on both sides of a block's border
END = START + 41
OFFSETS = st.integers(START, END - 1)
RANGES = st.tuples(OFFSETS, st.sampled_from([0, 1, 3, 12])).map(lambda pair: range(pair[0], sum(pair) + 1))
OWNERS = st.sampled_from(["ann", "bob"])

STEPS = st.one_of(
    *[st.tuples(st.just("acquire"), OWNERS, st.integers(1, 9))] * 3,
    *[st.tuples(st.just("release"), OWNERS, RANGES, st.sampled_from([0, 0, 30]), st.booleans())] * 3,
    *[st.tuples(st.just("reject_each"), OWNERS, RANGES)] * 2,
    st.tuples(st.just("release_each"), OWNERS, RANGES, st.booleans()),
    st.tuples(st.just("look"), OWNERS, st.integers(1, 14), st.booleans()),
    st.tuples(st.just("take_rejected"), OWNERS, st.integers(1, 5)),
    st.tuples(st.just("finish"), OWNERS, RANGES),
    st.tuples(st.just("bury"), OWNERS, RANGES),
    st.tuples(st.just("fail"), OWNERS, RANGES, st.sampled_from(["finish", "bury", "reject"])),
    st.tuples(st.just("later"), st.sampled_from([1, 10, 50, 100])),
    st.tuples(st.just("die"), OWNERS),
    st.tuples(st.just("drop_below"), OFFSETS),
    st.tuples(st.just("crash")),
)


def asked(offset: int) -> list[Arranged]:
    """What the message at *offset* asks for; [] where there is none."""
    if offset % 11 == 3:
        return []
    key = ["", "k", "l"][offset % 3] if offset // 6 % 3 == 0 else ""
    not_before = 40 if offset // 9 % 5 == 2 else 0
    return [message(offset, priority=offset % 2 * (offset // 5 % 2), key=key, not_before=not_before)]


class Queue(QueueSpecification):
    """One that looks at all it comes across."""

    def arrange_all(self, owner: str, run: Run) -> None:
        found = [one for offset in range(run.first, run.last + 1) for one in asked(offset)]
        if not self.settings.looks_ahead:
            found = [Arranged(one.offset, not_before_ms=one.not_before_ms) for one in found]
        self.arrange(owner, run, *found)

    def do(self, step: tuple) -> object:
        """One of STEPS; what came of it."""
        name, *given = step
        return getattr(self, f"do_{name}")(*given)

    def do_look(self, owner: str, count: int, is_arranged: bool) -> object:
        run = self.fresh(owner, count, visible_end=END)
        if run is not None and is_arranged:
            self.arrange_all(owner, run)
        return run

    def do_acquire(self, owner: str, count: int) -> list[int]:
        while True:
            runs = self._open().acquire(owner, count, lease_end_ms=self.now_ms + self.lease_ms)
            self._commit()
            if not runs or runs[0].state is not State.ARRANGING:
                return [offset for run in runs for offset in range(run.first, run.last + 1)]
            self.arrange_all(owner, runs[0])

    def do_finish(self, owner: str, offsets: range) -> object:
        return self.finish(owner, offsets[0], offsets[-1])

    def do_bury(self, owner: str, offsets: range) -> object:
        return self.bury(owner, offsets[0], offsets[-1])

    def do_release(self, owner: str, offsets: range, delay: int, was_delivered: bool) -> object:
        until = self.now_ms + delay if delay else 0
        return self.release(owner, offsets[0], offsets[-1], until=until, was_delivered=was_delivered)

    def do_release_each(self, owner: str, offsets: range, is_backwards: bool) -> object:
        return [self.release(owner, offset) for offset in (reversed(offsets) if is_backwards else offsets)]

    def do_reject_each(self, owner: str, offsets: range) -> object:
        return [self.reject(owner, offset, note=["bad", "worse"][offset // 3 % 2]) for offset in offsets]

    def do_fail(self, owner: str, offsets: range, name: str) -> None:
        """It is settled, which cannot be made to last."""
        state = self._open()
        note = {"note": "bad"} if name == "reject" else {}
        getattr(state, name)(owner, [(offsets[0], offsets[-1])], now_ms=self.now_ms, **note)
        settled = list(state.settled)
        self._open().restore(settled)
        self._commit()

    def do_later(self, passed_ms: int) -> None:
        self.at(self.now_ms + passed_ms)

    def do_take_rejected(self, owner: str, count: int) -> object:
        return self.take_rejected(owner, count)

    def do_die(self, owner: str) -> None:
        self.die(owner)

    def do_drop_below(self, offset: int) -> None:
        self.drop_below(offset)

    def do_crash(self) -> None:
        self.crash()

    def seen(self) -> object:
        """All that is known of each message, in the rows and in the journal."""
        rows = [
            (offset, run.state, *[getattr(run, name) for name in Run.__struct_fields__[3:]])
            for run in self.state.runs()
            for offset in range(run.first, run.last + 1)
        ]
        journal = {
            block: (
                known.done,
                sorted(
                    (offset, one.delivery_count, one.not_before_ms, one.is_rejected, one.note)
                    for one in known.attempts
                    for offset in range(one.first, one.last + 1)
                ),
            )
            for block, known in self.journal.blocks.items()
        }
        return rows, journal, self.journal.start_offset, self.state.head


@contextmanager
def nothing_joined() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunTable, "_with_neighbours", lambda _, run: run)
        patch.setattr(arranging, "_are_alike", lambda _one, _other: False)
        yield


@settings(deadline=None, max_examples=150)
@given(
    steps=st.lists(STEPS, min_size=20, max_size=60),
    has_dead_letter=st.booleans(),
    looks_ahead=st.booleans(),
    max_deliveries=st.sampled_from([2, 5]),
)
def test_joined_or_not_a_queue_does_the_same(
    steps: list[tuple], has_dead_letter: bool, looks_ahead: bool, max_deliveries: int
):
    joining, apart = (
        Queue(
            has_dead_letter=has_dead_letter,
            looks_ahead=looks_ahead,
            max_deliveries=max_deliveries,
            start=START,
        )
        for _ in range(2)
    )
    for step in [("look", "ann", 20, True), ("acquire", "bob", 20), *steps]:
        came = joining.do(step)
        with nothing_joined():
            assert apart.do(step) == came
        assert apart.seen() == joining.seen()
