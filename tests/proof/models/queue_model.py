"""Any order of what may happen to a queue, against a model that is one entry a message, and crashes at any point.

The model knows no runs, blocks or indexes: of each offset it has what a reader of the documentation would keep. It
says which messages an ``acquire`` is to return, one by one. A crash throws the rows away and begins anew with what
was journaled.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logbroker.queues.rows import BLOCK_OFFSETS, NO_KEY, Run, State
from logbroker.queues.settings import QueueSettings
from logbroker.queues.state import LIMIT_REACHED, Arranged, QueueState, Range
from logbroker_storage.testing import MemoryRows
from tests.queues.consistency import inconsistencies
from tests.queues.specification import Journal

READY, ACQUIRED, DELAYED, WAITING, REJECTED, BURYING, ARRANGING = State
FREE = (READY, WAITING)  # which of the two follows from the other messages of the key
IN_HANDS = (ACQUIRED, ARRANGING)

OWNERS = st.sampled_from(["ann", "bob", "cid"])
SIZES = st.integers(1, 9)
LEASES_MS = st.sampled_from([1000, 1000, 100, 1])
KEYS = st.sampled_from([b"key-aaaa", b"key-aaaa", b"key-bbbb", NO_KEY])
SELDOM = st.sampled_from([False] * 5 + [True])
DELAYS_MS = st.sampled_from([0, 0, 0, 0, 0, 0, 0, 5, 50])
FIRST_OFFSETS = [0, BLOCK_OFFSETS - 10, 5 * BLOCK_OFFSETS - 3]


@dataclass
class Message:
    """What is known of one message that is not done."""

    state: State
    count: int = 0
    due_ms: int = 0
    owner: str = ""
    note: str = ""
    is_arranged: bool = False
    is_postponed: bool = False  # the delay was asked for on release, and is to last
    priority: int = 0
    order_key: bytes = NO_KEY

    def is_held_by(self, owner: str, now_ms: int, states: Sequence[State] = IN_HANDS) -> bool:
        return self.state in states and self.owner == owner and self.due_ms > now_ms


class QueueMachine(RuleBasedStateMachine):
    """One partition of a queue; subclasses say by which rules."""

    looks_ahead = False

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1000
        self.wall_ms = 1_000_000
        self.messages: dict[int, Message] = {}

    @initialize(
        data=st.data(),
        start=st.sampled_from(FIRST_OFFSETS),
        has_dead_letter=st.booleans(),
        max_deliveries=st.integers(1, 3),
    )
    def begin(self, data: st.DataObject, start: int, has_dead_letter: bool, max_deliveries: int) -> None:
        self.settings = QueueSettings(
            max_deliveries=max_deliveries, has_dead_letter=has_dead_letter, looks_ahead=self.looks_ahead
        )
        self.rows = MemoryRows()
        self.start = self.next = start  # done: every offset below next that is no message
        self.journal = Journal(start)
        with self.transaction() as queue:
            queue.begin(start, {})
        self.look(data=data, owner="ann", limit=9)

    def has(self, *states: State) -> bool:
        return any(message.state in states for message in self.messages.values())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[QueueState]:
        """One transaction: what changed is journaled when it ends."""
        before = {run.first: run for run in self.state().runs()} if self.state().exists else {}
        queue = self.state()
        yield queue
        self.journal.apply(queue.changes())
        if not queue.woke_others:
            for run in queue.runs():
                offered = run.state in (READY, REJECTED) and run.first in before
                assert not offered or before[run.first].state is run.state, f"nobody is told of {run}"

    def state(self) -> QueueState:
        return QueueState(self.rows, self.settings)

    # What the model expects ---------------------------------------------------------------------------

    def order(self) -> list[int]:
        """The offsets that may be handed out, the first one first; of each order key only the first."""
        held = {message.order_key for message in self.messages.values() if message.state in IN_HANDS}
        unseen = held - {NO_KEY}
        found: list[tuple[int, int]] = []
        for offset, message in sorted(self.messages.items()):
            if message.state not in FREE or message.order_key in unseen:
                continue
            if message.order_key != NO_KEY:
                unseen.add(message.order_key)
            found.append((-message.priority if message.is_arranged else -1000, offset))
        return [offset for _, offset in sorted(found)]

    def order_of_arranged(self) -> list[int]:
        return [offset for offset in self.order() if self.messages[offset].is_arranged]

    def unarranged(self) -> list[int]:
        """Those that may be handed out, once somebody looked at them."""
        return [offset for offset in self.order() if not self.messages[offset].is_arranged]

    def free_of_key(self, order_key: bytes) -> list[int]:
        return [
            offset
            for offset, message in sorted(self.messages.items())
            if message.state in FREE and message.order_key == order_key
        ]

    def free(self, offset: int, *, due_ms: int = 0, is_postponed: bool = False) -> None:
        message = self.messages[offset]
        message.state = DELAYED if due_ms else READY
        message.due_ms, message.owner, message.note, message.is_postponed = due_ms, "", "", is_postponed

    def reject_one(self, offset: int, note: str) -> None:
        message = self.messages[offset]
        if not self.settings.has_dead_letter:
            del self.messages[offset]
            return
        message.state, message.owner, message.due_ms, message.note = REJECTED, "", 0, note
        message.order_key = NO_KEY

    def give_back(self, offset: int, note: str, due_ms: int = 0) -> None:
        message = self.messages[offset]
        if message.state is ACQUIRED and message.count >= self.settings.max_deliveries:
            self.reject_one(offset, note)
        else:
            self.free(offset, due_ms=due_ms, is_postponed=bool(due_ms))

    def hand_out(self, offset: int, owner: str, state: State, lease_end_ms: int) -> None:
        message = self.messages[offset]
        message.state, message.owner, message.due_ms = state, owner, lease_end_ms
        message.is_postponed = False
        if state is ACQUIRED:
            message.count += 1

    def split_lost(
        self, owner: str, ranges: Sequence[Range], states: Sequence[State]
    ) -> tuple[list[int], list[int]]:
        """The offsets of *ranges* that *owner* holds, and those that it does not."""
        mine: list[int] = []
        lost: list[int] = []
        for first, last in ranges:
            for offset in range(first, last + 1):
                message = self.messages.get(offset)
                is_mine = (
                    message is not None
                    and message.is_held_by(owner, self.now_ms, states)
                    and offset not in mine
                )
                (mine if is_mine else lost).append(offset)
        return mine, lost

    def some_of(self, data: st.DataObject, *states: State) -> tuple[str, list[Range]]:
        """An owner, and ranges about what it holds; seldom about what it does not."""
        held = sorted(offset for offset, message in self.messages.items() if message.state in states)
        first = data.draw(st.sampled_from(held))
        owner = data.draw(OWNERS) if data.draw(SELDOM) else self.messages[first].owner
        ranges = [(first, first + data.draw(st.sampled_from([0, 0, 1, 2, 6])))]
        if data.draw(SELDOM):
            first = data.draw(st.integers(max(self.start - 2, 0), self.next + 2))
            ranges.append((first, first + data.draw(st.integers(0, 6))))
        return owner, ranges

    # Into hands -----------------------------------------------------------------------------------

    @rule(owner=OWNERS, limit=SIZES, lease_ms=LEASES_MS)
    def acquire_fresh(self, owner: str, limit: int, lease_ms: int) -> None:
        with self.transaction() as queue:
            run = queue.acquire_fresh(
                owner, limit, visible_end=self.next + 7, lease_end_ms=self.now_ms + lease_ms
            )
        if self.looks_ahead and (self.has(ARRANGING) or self.unarranged()):
            assert run is None, "the older ones are to be looked at first, by one at a time"
            return
        assert run is not None
        last = self.next + min(limit, 7) - 1
        assert (run.first, run.last, run.owner) == (self.next, last, owner)
        for offset in range(run.first, run.last + 1):
            self.messages[offset] = Message(READY)
            self.hand_out(offset, owner, ARRANGING if self.looks_ahead else ACQUIRED, self.now_ms + lease_ms)
        self.next = run.last + 1

    @rule(owner=OWNERS)
    def acquire_fresh_where_there_is_none(self, owner: str) -> None:
        with self.transaction() as queue:
            assert queue.acquire_fresh(owner, 5, visible_end=self.next, lease_end_ms=self.now_ms + 1) is None

    @rule(owner=OWNERS, limit=SIZES, lease_ms=LEASES_MS)
    def acquire(self, owner: str, limit: int, lease_ms: int) -> None:
        lease_end_ms = self.now_ms + lease_ms
        with self.transaction() as queue:
            runs = queue.acquire(owner, limit, lease_end_ms=lease_end_ms)
        taken = _offsets(runs)
        order = self.order()
        if self.looks_ahead:
            unarranged = self.unarranged()
            if unarranged and not self.has(ARRANGING):
                assert taken, "there is something to look at"
                assert len(runs) == 1, "at most one run to look at"
                assert taken[0] == unarranged[0], "not the first was taken"
                assert set(taken) <= set(unarranged)
                for offset in taken:
                    self.hand_out(offset, owner, ARRANGING, lease_end_ms)
                return
            order = self.order_of_arranged()
        expected: list[int] = []
        for offset in order:
            key = self.messages[offset].order_key
            group = [offset] if key == NO_KEY else self.free_of_key(key)
            expected += group[: limit - len(expected)]
        assert taken == expected
        for offset in taken:
            self.hand_out(offset, owner, ACQUIRED, lease_end_ms)
        for run in runs:
            assert run.state is ACQUIRED
            assert run.delivery_count == self.messages[run.first].count
            assert (run.owner, run.due_ms) == (owner, lease_end_ms)

    @rule(data=st.data(), owner=OWNERS, limit=SIZES)
    def look(self, data: st.DataObject, owner: str, limit: int) -> None:
        """What is to be looked at is, at once, as a consumer does it."""
        if self.unarranged():
            self.acquire(owner=owner, limit=limit, lease_ms=1000)
        else:
            self.acquire_fresh(owner=owner, limit=limit, lease_ms=1000)
        if self.has(ARRANGING if self.looks_ahead else ACQUIRED):
            self.arrange(data=data)

    @precondition(lambda self: self.has(READY))
    @rule(data=st.data(), owner=OWNERS, limit=st.integers(1, 3))
    def receive(self, data: st.DataObject, owner: str, limit: int) -> None:
        """A few of those that are ready."""
        if self.looks_ahead and self.unarranged():
            self.look(data=data, owner=owner, limit=9)
        self.acquire(owner=owner, limit=limit, lease_ms=1000)

    @precondition(lambda self: self.has(REJECTED))
    @rule(owner=OWNERS, limit=SIZES, lease_ms=LEASES_MS)
    def acquire_rejected(self, owner: str, limit: int, lease_ms: int) -> None:
        with self.transaction() as queue:
            runs = queue.acquire_rejected(owner, limit, lease_end_ms=self.now_ms + lease_ms)
        rejected = sorted(offset for offset, message in self.messages.items() if message.state is REJECTED)
        assert _offsets(runs) == rejected[:limit]
        for run in runs:
            for offset in range(run.first, run.last + 1):
                assert run.note == self.messages[offset].note
                self.hand_out(offset, owner, BURYING, self.now_ms + lease_ms)

    # Out of them ----------------------------------------------------------------------------------

    @precondition(lambda self: self.has(*IN_HANDS))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        owner, ranges = self.some_of(data, *IN_HANDS)
        with self.transaction() as queue:
            answer = queue.finish(owner, ranges, now_ms=self.now_ms)
        mine, lost = self.split_lost(owner, ranges, IN_HANDS)
        assert _spread(answer) == sorted(lost)
        for offset in mine:
            del self.messages[offset]

    @precondition(lambda self: self.has(BURYING))
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        owner, ranges = self.some_of(data, BURYING)
        with self.transaction() as queue:
            answer = queue.bury(owner, ranges, now_ms=self.now_ms)
        mine, lost = self.split_lost(owner, ranges, [BURYING])
        assert _spread(answer) == sorted(lost)
        for offset in mine:
            del self.messages[offset]

    @precondition(lambda self: self.has(ACQUIRED, BURYING))
    @rule(data=st.data(), other=OWNERS, meanwhile=st.integers(0, 3))
    def finish_in_vain(self, data: st.DataObject, other: str, meanwhile: int) -> None:
        """The disk is full: what was finished is taken back, and others may have received meanwhile."""
        state = data.draw(st.sampled_from([state for state in (ACQUIRED, BURYING) if self.has(state)]))
        owner, ranges = self.some_of(data, state)
        queue = self.state()
        (queue.finish if state is ACQUIRED else queue.bury)(owner, ranges, now_ms=self.now_ms)
        states = IN_HANDS if state is ACQUIRED else [BURYING]
        mine, _ = self.split_lost(owner, ranges, states)
        taken_back = {offset: self.messages.pop(offset) for offset in mine}
        if meanwhile:
            self.acquire(owner=other, limit=meanwhile, lease_ms=1000)
        self.state().restore(queue.settled)
        for offset, message in sorted(taken_back.items()):
            others = {
                one.owner
                for one in self.messages.values()
                if one.order_key == message.order_key != NO_KEY and one.state is ACQUIRED
            }
            self.messages[offset] = message
            if message.state is ARRANGING or others - {owner}:
                message.count -= message.state is ACQUIRED
                self.free(offset)

    @precondition(lambda self: self.has(*IN_HANDS))
    @rule(data=st.data(), delay_ms=DELAYS_MS, was_delivered=st.booleans())
    def release(self, data: st.DataObject, delay_ms: int, was_delivered: bool) -> None:
        owner, ranges = self.some_of(data, *IN_HANDS)
        due_ms = self.wall_ms + delay_ms if delay_ms else 0
        with self.transaction() as queue:
            answer = queue.release(
                owner,
                ranges,
                now_ms=self.now_ms,
                not_before_ms=due_ms,
                was_delivered=was_delivered,
                note="why",
            )
        mine, lost = self.split_lost(owner, ranges, IN_HANDS)
        assert _spread(answer) == sorted(lost)
        for offset in mine:
            message = self.messages[offset]
            if was_delivered:
                message.count += message.state is ARRANGING  # a look that came to nothing, and is to count
                message.state = ACQUIRED
                self.give_back(offset, "why", due_ms)
            else:
                message.count -= message.state is ACQUIRED
                self.free(offset, due_ms=due_ms, is_postponed=bool(due_ms))

    @precondition(lambda self: self.has(*IN_HANDS))
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        owner, ranges = self.some_of(data, *IN_HANDS)
        with self.transaction() as queue:
            answer = queue.reject(owner, ranges, note="no", now_ms=self.now_ms)
        mine, lost = self.split_lost(owner, ranges, IN_HANDS)
        assert _spread(answer) == sorted(lost)
        for offset in mine:
            self.reject_one(offset, "no")

    @precondition(lambda self: self.has(*IN_HANDS))
    @rule(data=st.data(), lease_ms=LEASES_MS)
    def extend(self, data: st.DataObject, lease_ms: int) -> None:
        owner, ranges = self.some_of(data, *IN_HANDS)
        mine, lost = self.split_lost(owner, ranges, IN_HANDS)
        with self.transaction() as queue:
            answer = queue.extend(owner, ranges, lease_end_ms=self.now_ms + lease_ms, now_ms=self.now_ms)
        assert _spread(answer) == sorted(offset for offset in lost if offset not in mine)
        for offset in mine:
            self.messages[offset].due_ms = self.now_ms + lease_ms

    @precondition(lambda self: self.has(ARRANGING if self.looks_ahead else ACQUIRED))
    @rule(data=st.data())
    def arrange(self, data: st.DataObject) -> None:
        """Of what somebody took to look at, some are to be delivered, and say how."""
        state = ARRANGING if self.looks_ahead else ACQUIRED
        run = data.draw(st.sampled_from([run for run in self.state().runs() if run.state is state]))
        owner = "nobody" if data.draw(SELDOM) else run.owner
        gaps = (
            data.draw(st.sets(st.integers(run.first, run.last), max_size=3)) if data.draw(SELDOM) else set()
        )
        offsets = set(range(run.first, run.last + 1)) - gaps
        arranged = [
            Arranged(
                offset,
                priority=data.draw(st.integers(0, 2)),
                order_key=data.draw(KEYS),
                not_before_ms=self.wall_ms + data.draw(DELAYS_MS),
            )
            for offset in sorted(offsets)
        ]
        with self.transaction() as queue:
            queue.arrange(owner, run, arranged, now_ms=self.now_ms, now_wall_ms=self.wall_ms)
        if not self.messages[run.first].is_held_by(owner, self.now_ms):
            return
        for offset in set(range(run.first, run.last + 1)) - offsets:
            del self.messages[offset]
        for one in arranged:
            is_delayed = one.not_before_ms > self.wall_ms
            message = self.messages[one.offset]
            if self.looks_ahead:
                message.is_arranged, message.priority, message.order_key = True, one.priority, one.order_key
            elif is_delayed:
                message.count -= 1
            if self.looks_ahead or is_delayed:
                self.free(one.offset, due_ms=one.not_before_ms if is_delayed else 0)

    # By time, and by others -----------------------------------------------------------------------

    @rule(ms=st.sampled_from([1, 1, 5, 100, 1000]))
    def let_time_pass(self, ms: int) -> None:
        self.now_ms += ms
        self.wall_ms += ms

    @rule(ms=st.sampled_from([4, 50]))
    def let_the_wall_clock_be_set(self, ms: int) -> None:
        self.wall_ms += ms

    def end_lease(self, offset: int) -> None:
        if self.messages[offset].state is BURYING:
            self.messages[offset].state, self.messages[offset].owner = REJECTED, ""
            self.messages[offset].due_ms = 0
        else:
            self.give_back(offset, LIMIT_REACHED)

    @precondition(lambda self: self.has(*IN_HANDS, BURYING))
    @rule()
    def expire(self) -> None:
        over = [
            offset
            for offset, message in self.messages.items()
            if message.state in (*IN_HANDS, BURYING) and message.due_ms <= self.now_ms
        ]
        with self.transaction() as queue:
            assert bool(queue.expire(now_ms=self.now_ms)) == bool(over)
        for offset in over:
            self.end_lease(offset)

    @precondition(lambda self: self.has(*IN_HANDS, BURYING))
    @rule(owner=OWNERS)
    def die(self, owner: str) -> None:
        with self.transaction() as queue:
            assert queue.owners() == {m.owner for m in self.messages.values() if m.owner}
            queue.end_leases_of(lambda name: name == owner)
        for offset, message in list(self.messages.items()):
            if message.owner == owner:
                self.end_lease(offset)

    @precondition(lambda self: self.has(DELAYED))
    @rule()
    def wake(self) -> None:
        over = [o for o, m in self.messages.items() if m.state is DELAYED and m.due_ms <= self.wall_ms]
        with self.transaction() as queue:
            assert bool(queue.wake(now_wall_ms=self.wall_ms)) == bool(over)
        for offset in over:
            self.free(offset)

    @rule(data=st.data())
    def drop_below(self, data: st.DataObject) -> None:
        """The log lost its beginning, and perhaps what nobody had yet."""
        offset = max(self.start + data.draw(st.sampled_from([-1, 0, 1, 1, 2, 4])), 0)
        with self.transaction() as queue:
            queue.drop_below(offset)
        self.next = max(self.next, offset)
        for one in [one for one in self.messages if one < offset]:
            del self.messages[one]

    @rule()
    def crash(self) -> None:
        """The machine restarts: only what was journaled is left."""
        self.rows = MemoryRows()
        with self.transaction() as queue:
            queue.begin(self.journal.start_offset, dict(self.journal.blocks))
        after = {offset: run for run in queue.runs() for offset in range(run.first, run.last + 1)}
        assert queue.head.next_offset <= max(self.next, queue.head.start_offset)
        before = self.messages
        self.next = queue.head.next_offset
        self.messages = {}
        for offset, message in before.items():
            run = after.pop(offset, None)
            is_rejected = message.state in (REJECTED, BURYING)
            lasting = message.count - (message.state is ACQUIRED)
            if run is None:
                assert offset >= self.next, f"{offset} counts as done, and was not"
                assert not lasting, f"{offset} was delivered in vain: forgotten"
                assert not is_rejected, f"{offset} was rejected: forgotten"
                assert not message.is_postponed, f"{offset} was delayed: forgotten"
                continue
            assert run.delivery_count == lasting
            if is_rejected:
                assert (run.state, run.note) == (REJECTED, message.note)
            elif run.state is DELAYED:
                assert run.due_ms <= self.wall_ms or run.due_ms == message.due_ms
            else:
                assert run.state is READY
                assert not message.is_postponed
            self.messages[offset] = Message(
                run.state, lasting, run.due_ms, note=run.note, is_postponed=run.state is DELAYED
            )
        assert not after, f"{sorted(after)} were done"

    # After every step -----------------------------------------------------------------------------

    @invariant()
    def the_rows_are_consistent(self) -> None:
        if hasattr(self, "rows"):
            assert inconsistencies(self.rows) == []

    @invariant()
    def they_say_what_the_model_says(self) -> None:
        if not hasattr(self, "rows"):
            return
        queue = self.state()
        first_in_order = set(self.order())
        found: dict[int, Message] = {}
        for run in queue.runs():
            for offset in range(run.first, run.last + 1):
                found[offset] = Message(
                    run.state,
                    run.delivery_count,
                    run.due_ms,
                    run.owner,
                    run.note,
                    run.is_arranged,
                    run.is_postponed,
                    run.priority,
                    run.order_key,
                )
        for offset, message in self.messages.items():
            if message.state in FREE:
                message.state = READY if offset in first_in_order else WAITING
        assert found == self.messages
        self.start = min(found, default=self.next)
        assert queue.head == (self.start, self.next)
        states = Counter(message.state for message in self.messages.values())
        assert queue.counts() == (
            states[READY] + states[ARRANGING],
            states[ACQUIRED],
            states[DELAYED],
            states[WAITING],
            states[REJECTED] + states[BURYING],
        )
        assert queue.has_rejected() == bool(states[REJECTED])
        may_look = self.looks_ahead and not states[ARRANGING]
        takeable = self.order() if may_look or not self.looks_ahead else self.order_of_arranged()
        assert queue.has_ready() == bool(takeable)
        is_held_up = self.looks_ahead and bool(states[ARRANGING] or self.unarranged())
        assert queue.has_fresh(self.next + 1) == (not is_held_up)
        assert not queue.has_fresh(self.next)
        for owner in {message.owner for message in self.messages.values()} - {""}:
            held = [offset for offset, message in self.messages.items() if message.owner == owner]
            assert _spread(queue.held_by(owner)) == sorted(held)
        leases = [message.due_ms for message in self.messages.values() if message.owner]
        assert queue.next_lease_end_ms() == min(leases, default=None)
        delays = [message.due_ms for message in self.messages.values() if message.state is DELAYED]
        assert queue.next_delivery_ms() == min(delays, default=None)
        assert self.journal.start_offset <= self.start
        first_block = self.start // BLOCK_OFFSETS
        assert all(block >= first_block for block in self.journal.blocks), "the journal keeps what is behind"


class QueueMachineLookingAhead(QueueMachine):
    looks_ahead = True


def _offsets(runs: Sequence[Run]) -> list[int]:
    return [offset for run in runs for offset in range(run.first, run.last + 1)]


def _spread(ranges: Sequence[Range]) -> list[int]:
    return sorted(offset for first, last in ranges for offset in range(first, last + 1))
