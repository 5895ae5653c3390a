"""The state of a queue's messages in one partition, and every way that it changes. Pure: over ``Rows``.

    from       to         by
    (unknown)  ACQUIRED   ``acquire_fresh``: the next offsets of the log go into somebody's hands
    READY      ACQUIRED   ``acquire``; WAITING instead, where another owner holds messages of its key
    ACQUIRED   done       ``finish``: accepted, or not to be delivered at all
    ACQUIRED   READY      ``release``, or the end of the lease; DELAYED instead, where a delay was asked for
    ACQUIRED   REJECTED   ``reject``, or one of the two above at the delivery limit; done, where nobody buries it
    ACQUIRED   READY …    ``arrange``: READY, DELAYED or WAITING by what the message says; no delivery counts
    DELAYED    READY      ``wake``, when its time has come
    WAITING    READY      by itself, when the messages of its key have left the other hands
    REJECTED   BURYING    ``acquire_rejected``
    BURYING    done       ``bury``: the dead letter is written in the same transaction
    BURYING    REJECTED   the end of the lease

An owner can only change what is in its own hands: offsets that are not come back from each call as *lost*. Ranges
are pairs (first, last), both inclusive, as Kafka's acknowledgements have them.

What must last is collected in ``changes``: the caller journals it under the same lock. It names whole blocks of
1024 offsets, so that its size does not depend on how much is in flight. Deliveries count for as long as the view
lasts; those that ended in anything but acceptance are in the changes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from logbroker_storage.events import Attempt as Attempt

from .rows import (
    BLOCK_OFFSETS,
    COUNT,
    DELAYED,
    DONE,
    ENTRIES,
    HEAD,
    HEAD_KEY,
    KEYS,
    LEASED,
    NO_KEY,
    NUMBER,
    RANKED,
    REJECTED_RANK,
    WAITING,
    Head,
    Rows,
    Run,
    State,
    block_key,
    decode_run,
    encode_run,
    entry_key,
    first_of_index,
    index_key,
)
from .settings import QueueSettings

Range = tuple[int, int]

BLOCK_BYTES = BLOCK_OFFSETS // 8
MAX_DELIVERY_COUNT = 0xFFFF
MAX_NOTE_CHARACTERS = 500
SCAN_ROWS = 1000  # of an index, at a time
LIMIT_REACHED = "delivery limit reached"
AFTER_ENTRIES = bytes([ENTRIES[0] + 1])


class Arranged(NamedTuple):
    """What a message says of its own delivery."""

    offset: int
    priority: int = 0
    order_key: bytes = NO_KEY
    not_before_ms: int = 0


class BlockChange(NamedTuple):
    """What is to last of a block; *done* and *attempts* empty: nothing."""

    done: bytes
    attempts: list[Attempt]


class Changes(NamedTuple):
    """What is to last; *start_offset* None: the queue begins where it began."""

    start_offset: int | None
    blocks: dict[int, BlockChange]
    dropped_blocks: list[int]


class Counts(NamedTuple):
    """How many messages are in which state."""

    ready: int
    acquired: int
    delayed: int
    waiting: int
    rejected: int


class QueueState:
    """One transaction's work on one partition of a queue."""

    def __init__(self, rows: Rows, settings: QueueSettings) -> None:
        self._rows = rows
        self._settings = settings
        head = rows.get(HEAD_KEY)
        self.exists = head is not None
        self._head = Head(0, 0) if head is None else Head._make(HEAD.unpack(head))
        self._start_before = self._head.start_offset
        self._touched: set[int] = set()
        self._dropped: list[int] = []
        self.woke_others = False  # something became READY that somebody else may be waiting for
        self.settled: list[Run] = []  # what an owner was done with, for ``restore``

    @property
    def head(self) -> Head:
        return self._head

    # To begin with --------------------------------------------------------------------------------

    def begin(self, start_offset: int, blocks: dict[int, BlockChange]) -> None:
        """Forget everything and begin at *start_offset*, with what is known of the blocks behind it."""
        self.clear()
        ends = [start_offset]
        for block, known in blocks.items():
            if known.done:
                self._rows.put(block_key(block), known.done)
                done = int.from_bytes(known.done, "little")
                ends.append(block * BLOCK_OFFSETS + done.bit_length())
            ends += [block * BLOCK_OFFSETS + attempt.last + 1 for attempt in known.attempts]
        self._put_head(Head(start_offset, max(ends)))
        attempted: list[Run] = []
        for block, known in sorted(blocks.items()):
            attempted += self._attempted(block * BLOCK_OFFSETS, known.attempts)
        for run in attempted:
            self._put(run)
        # What lies between was in somebody's hands, or never in any: it is handed out (again).
        covered = sorted((run.first, run.last) for run in attempted)
        for first, last in self._undone(start_offset, self._head.next_offset - 1):
            for gap in _without(first, last, covered):
                self._put(Run(*gap, State.READY))
        self._advance_start()
        self.exists = True
        self._start_before = self._head.start_offset

    def _attempted(self, base: int, attempts: Iterable[Attempt]) -> Iterator[Run]:
        """The runs of a block's *attempts* that were not done later."""
        for attempt in attempts:
            run = _attempted_run(base, attempt)
            for first, last in self._undone(max(run.first, self._head.start_offset), run.last):
                yield run._replace(first=first, last=last)

    def clear(self) -> None:
        """Remove every row."""
        while rows := self._rows.first(b"", b"\xff", SCAN_ROWS):
            for key, _ in rows:
                self._rows.delete(key)
        self.exists = False

    # Into somebody's hands ------------------------------------------------------------------------

    def acquire(self, owner: str, limit: int, *, lease_end_ms: int) -> list[Run]:
        """Put up to *limit* READY messages into the hands of *owner*, the first in rank first.

        With ``looks_ahead`` also runs that are not arranged yet: at most one, and nothing else with it.
        """
        taken: list[Run] = []
        room = limit
        while room > 0:
            found = self._rows.first(RANKED, RANKED + bytes([REJECTED_RANK]), min(room, SCAN_ROWS))
            for key, _ in found:
                run = self._run_at(first_of_index(key))
                if self._settings.looks_ahead and not run.is_arranged:
                    if not taken:
                        taken.append(self._hand_out(run, owner, lease_end_ms, counts=0))
                    return taken
                if run.order_key != NO_KEY and not self._may_hold(run.order_key, owner):
                    self._move(run, run._replace(state=State.WAITING))
                    continue
                if run.last - run.first >= room:
                    run = self._split(run, run.first + room)[0]
                taken.append(self._hand_out(run, owner, lease_end_ms))
                room -= run.last - run.first + 1
                if run.order_key != NO_KEY and room > 0:
                    waiting = self._waiting_for(run.order_key, room)
                    taken += [self._hand_out(one, owner, lease_end_ms) for one in waiting]
                    room -= len(waiting)
                if room <= 0:
                    break
            if not found:
                break
        return taken

    def acquire_fresh(self, owner: str, limit: int, *, visible_end: int, lease_end_ms: int) -> Run | None:
        """Put up to *limit* messages that nobody had yet, all below *visible_end*, into the hands of *owner*."""
        first = self._head.next_offset
        last = min(first + limit, visible_end) - 1
        if last < first:
            return None
        count = 0 if self._settings.looks_ahead else 1
        run = Run(first, last, State.ACQUIRED, count, lease_end_ms, owner)
        self._put(run)
        self._put_head(self._head._replace(next_offset=last + 1))
        return run

    def acquire_rejected(self, owner: str, limit: int, *, lease_end_ms: int) -> list[Run]:
        """Put up to *limit* REJECTED messages into the hands of *owner*, who is to bury them."""
        taken: list[Run] = []
        begin = RANKED + bytes([REJECTED_RANK])
        for key, _ in self._rows.first(begin, begin + b"\xff", limit):
            run = self._run_at(first_of_index(key))
            room = limit - sum(one.last - one.first + 1 for one in taken)
            if room <= 0:
                break
            if run.last - run.first >= room:
                run = self._split(run, run.first + room)[0]
            burying = run._replace(state=State.BURYING, owner=owner, due_ms=lease_end_ms)
            self._move(run, burying)
            taken.append(burying)
        return taken

    def _hand_out(self, run: Run, owner: str, lease_end_ms: int, *, counts: int = 1) -> Run:
        count = min(run.delivery_count + counts, MAX_DELIVERY_COUNT)
        acquired = run._replace(
            state=State.ACQUIRED, owner=owner, due_ms=lease_end_ms, delivery_count=count, note=""
        )
        self._move(run, acquired)
        return acquired

    # Out of them ----------------------------------------------------------------------------------

    def finish(self, owner: str, ranges: Iterable[Range], *, now_ms: int) -> list[Range]:
        """Be done with messages that *owner* holds; those that it does not are returned."""
        lost: list[Range] = []
        for first, last in ranges:
            for run in self._carve(first, last, owner, State.ACQUIRED, now_ms, lost):
                self._mark_done(run.first, run.last)
                self.settled.append(run)
        self._advance_start()
        return lost

    def bury(self, owner: str, ranges: Iterable[Range], *, now_ms: int) -> list[Range]:
        """Be done with rejected messages that *owner* has written dead letters of; as ``finish``."""
        lost: list[Range] = []
        for first, last in ranges:
            for run in self._carve(first, last, owner, State.BURYING, now_ms, lost):
                self._mark_done(run.first, run.last)
                self.settled.append(run)
        self._advance_start()
        return lost

    def restore(self, runs: Sequence[Run]) -> None:
        """Take back what an earlier ``settled`` says: it could not be made to last."""
        start = self._head.start_offset
        new_start = min([start, *(run.first for run in runs)])
        if new_start < start:
            self._put_head(Head(new_start, self._head.next_offset))
            for first, last in _without(new_start, start - 1, sorted((run.first, run.last) for run in runs)):
                self._mark_done(first, last)
        for run in runs:
            self._mark_undone(run.first, run.last)
            self._put(run)

    def release(
        self,
        owner: str,
        ranges: Iterable[Range],
        *,
        now_ms: int,
        not_before_ms: int = 0,
        was_delivered: bool = True,
        note: str = LIMIT_REACHED,
    ) -> list[Range]:
        """Give messages back; those that *owner* does not hold are returned.

        *not_before_ms* (wall clock) delays the next delivery. Without *was_delivered* this one does not count.
        *note* is why they are rejected, should this have been the last delivery.
        """
        lost: list[Range] = []
        for first, last in ranges:
            for run in self._carve(first, last, owner, State.ACQUIRED, now_ms, lost):
                if was_delivered:
                    self._give_back(run, note, not_before_ms)
                else:
                    count = max(run.delivery_count - 1, 0)
                    self._put_back(run._replace(delivery_count=count), not_before_ms)
        self._advance_start()
        return lost

    def reject(self, owner: str, ranges: Iterable[Range], *, note: str, now_ms: int) -> list[Range]:
        """Deliver messages never again; those that *owner* does not hold are returned."""
        lost: list[Range] = []
        for first, last in ranges:
            for run in self._carve(first, last, owner, State.ACQUIRED, now_ms, lost):
                self._reject(run, note)
        self._advance_start()
        return lost

    def extend(self, owner: str, ranges: Iterable[Range], *, lease_end_ms: int, now_ms: int) -> list[Range]:
        """Hold messages until *lease_end_ms*; those that *owner* no longer holds are returned."""
        lost: list[Range] = []
        for first, last in ranges:
            for run in self._carve(first, last, owner, State.ACQUIRED, now_ms, lost, keeps_key=True):
                self._put(run._replace(due_ms=lease_end_ms), takes_key=False)
        return lost

    def arrange(
        self, owner: str, run: Run, messages: Sequence[Arranged], *, now_ms: int, now_wall_ms: int
    ) -> None:
        """Sort what *owner* acquired to look at: of *run*, only *messages* (ascending) are to be delivered.

        With ``looks_ahead`` they all go back to be handed out in their order. Without, only those that are to be
        delivered later do, and the others stay in the owner's hands.
        """
        lost: list[Range] = []
        position = run.first
        for message in messages:
            if message.offset > position:
                self._finish_gap(owner, position, message.offset - 1, now_ms, lost)
            position = message.offset + 1
            is_delayed = message.not_before_ms > now_wall_ms
            if not is_delayed and not self._settings.looks_ahead:
                continue
            for held in self._carve(message.offset, message.offset, owner, State.ACQUIRED, now_ms, lost):
                count = held.delivery_count - (0 if self._settings.looks_ahead else 1)
                arranged = held._replace(
                    delivery_count=max(count, 0),
                    is_arranged=self._settings.looks_ahead,
                    priority=message.priority,
                    order_key=message.order_key,
                )
                self._put_back(arranged, message.not_before_ms if is_delayed else 0, is_news=False)
        if position <= run.last:
            self._finish_gap(owner, position, run.last, now_ms, lost)
        self._advance_start()

    def _finish_gap(self, owner: str, first: int, last: int, now_ms: int, lost: list[Range]) -> None:
        for run in self._carve(first, last, owner, State.ACQUIRED, now_ms, lost):
            self._mark_done(run.first, run.last)

    # By time, and by others -----------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether a message is to be handed out (again)."""
        return bool(self._rows.first(RANKED, RANKED + bytes([REJECTED_RANK]), 1))

    def has_rejected(self) -> bool:
        """Whether a message is to be buried."""
        return bool(self._rows.first(RANKED + bytes([REJECTED_RANK]), RANKED + b"\xff\xff", 1))

    def next_lease_end_ms(self) -> int | None:
        """When the first lease ends (monotonic)."""
        found = self._rows.first(LEASED, LEASED + b"\xff", 1)
        return NUMBER.unpack_from(found[0][0], 1)[0] if found else None

    def next_delivery_ms(self) -> int | None:
        """When the first of the DELAYED messages is to be handed out (wall clock)."""
        found = self._rows.first(DELAYED, DELAYED + b"\xff", 1)
        return NUMBER.unpack_from(found[0][0], 1)[0] if found else None

    def expire(self, *, now_ms: int) -> int:
        """End the leases whose time is over; how many runs that were."""
        return self._end_leases(LEASED + NUMBER.pack(now_ms + 1), lambda _: True)

    def end_leases_of(self, is_gone: Callable[[str], bool]) -> int:
        """End the leases of every owner that *is_gone*; how many runs that were."""
        return self._end_leases(LEASED + b"\xff", is_gone)

    def held_by(self, owner: str) -> list[Range]:
        """What is in the hands of *owner*."""
        return [(run.first, run.last) for run in self._held(LEASED + b"\xff") if run.owner == owner]

    def owners(self) -> set[str]:
        """Who holds anything now."""
        return {run.owner for run in self._held(LEASED + b"\xff")}

    def _held(self, end: bytes) -> Iterator[Run]:
        begin = LEASED
        while found := self._rows.first(begin, end, SCAN_ROWS):
            for key, _ in found:
                yield self._run_at(first_of_index(key))
            begin = found[-1][0] + b"\0"

    def _end_leases(self, end: bytes, is_over: Callable[[str], bool]) -> int:
        ended = 0
        for run in list(self._held(end)):
            if not is_over(run.owner):
                continue
            ended += 1
            self._remove(run)
            if run.state is State.BURYING:
                self._put(run._replace(state=State.REJECTED, owner="", due_ms=0))
            elif self._settings.looks_ahead and not run.is_arranged:
                self._put_back(run, 0, is_news=False)  # nobody has seen it: it was only looked at
            else:
                self._give_back(run, LIMIT_REACHED, 0)
        self._advance_start()
        return ended

    def wake(self, *, now_wall_ms: int) -> int:
        """Make READY what was DELAYED until now; how many runs that were."""
        found = self._rows.first(DELAYED, DELAYED + NUMBER.pack(now_wall_ms + 1), SCAN_ROWS)
        for key, _ in found:
            run = self._run_at(first_of_index(key))
            self._remove(run)
            self._put(run._replace(state=State.READY, due_ms=0))
        self.woke_others = self.woke_others or bool(found)
        return len(found)

    def drop_below(self, offset: int) -> None:
        """Be done with everything below *offset*, whoever holds it: the records are gone from the log."""
        if offset <= self._head.start_offset:
            return
        while found := self._rows.first(ENTRIES, entry_key(offset), SCAN_ROWS):
            for key, value in found:
                run = decode_run(key, value)
                self._remove(run)
                if run.last >= offset:
                    self._put(run._replace(first=offset))
                if run.order_key != NO_KEY and self._rows.get(KEYS + run.order_key) is None:
                    self._wake_next_of(
                        run.order_key
                    )  # it may have been the one that was woken for the others
        self._set_start(offset)
        self._advance_start()

    # Looking ------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """How many messages are in which state."""
        totals = dict.fromkeys(State, 0)
        for run in self.runs():
            totals[run.state] += run.last - run.first + 1
        return Counts(
            ready=totals[State.READY],
            acquired=totals[State.ACQUIRED],
            delayed=totals[State.DELAYED],
            waiting=totals[State.WAITING],
            rejected=totals[State.REJECTED] + totals[State.BURYING],
        )

    def runs(self) -> Iterator[Run]:
        """Every run, by offset."""
        begin = ENTRIES
        while found := self._rows.first(begin, AFTER_ENTRIES, SCAN_ROWS):
            for key, value in found:
                yield decode_run(key, value)
            begin = found[-1][0] + b"\0"

    def changes(self) -> Changes:
        """What this transaction changed of what must last."""
        start_offset = self._head.start_offset
        first_block = start_offset // BLOCK_OFFSETS
        return Changes(
            start_offset=start_offset if start_offset != self._start_before else None,
            blocks={block: self._block(block) for block in sorted(self._touched) if block >= first_block},
            dropped_blocks=self._dropped,
        )

    def _block(self, block: int) -> BlockChange:
        base = block * BLOCK_OFFSETS
        attempts: list[Attempt] = []
        found = self._rows.floor(ENTRIES, entry_key(base))
        begin = entry_key(base) if found is None else found[0]
        for key, value in self._rows.first(begin, entry_key(base + BLOCK_OFFSETS), BLOCK_OFFSETS + 1):
            run = decode_run(key, value)
            attempt = _attempt(run, base)
            if run.last >= base and attempt is not None:
                attempts.append(attempt)
        return BlockChange(self._rows.get(block_key(block)) or b"", attempts)

    # Its parts ----------------------------------------------------------------------------------------

    def _run_at(self, first: int) -> Run:
        key = entry_key(first)
        value = self._rows.get(key)
        assert value is not None, f"an index names a run at {first} that is not there"
        return decode_run(key, value)

    def _put(self, run: Run, *, takes_key: bool = True) -> None:
        self._rows.put(entry_key(run.first), encode_run(run))
        self._rows.put(index_key(run), b"")
        if takes_key and run.order_key != NO_KEY and run.state is State.ACQUIRED:
            self._hold_key(run)

    def _remove(self, run: Run, *, keeps_key: bool = False) -> None:
        self._rows.delete(entry_key(run.first))
        self._rows.delete(index_key(run))
        if not keeps_key and run.order_key != NO_KEY and run.state is State.ACQUIRED:
            self._let_go_of_key(run.order_key)

    def _move(self, before: Run, after: Run) -> None:
        self._remove(before)
        self._put(after)

    def _split(self, run: Run, at: int) -> tuple[Run, Run]:
        """*run* as two, the second of which begins with offset *at*."""
        left, right = run._replace(last=at - 1), run._replace(first=at)
        assert run.order_key == NO_KEY, "a message with an order key is a run of its own"
        self._remove(run)
        self._put(left)
        self._put(right)
        return left, right

    def _carve(
        self,
        first: int,
        last: int,
        owner: str,
        state: State,
        now_ms: int,
        lost: list[Range],
        *,
        keeps_key: bool = False,
    ) -> list[Run]:
        """Take the runs in [first, last] that *owner* holds out of the table; the rest goes to *lost*."""
        carved: list[Run] = []
        position = first
        for run in self._overlapping(first, last):
            is_held = run.state is state and run.owner == owner and run.due_ms > now_ms
            if not is_held:
                continue
            part = run._replace(first=max(run.first, first), last=min(run.last, last))
            if part.first > position:
                lost.append((position, part.first - 1))
            position = part.last + 1
            self._remove(run, keeps_key=keeps_key)
            if run.first < part.first:
                self._put(run._replace(last=part.first - 1))
            if part.last < run.last:
                self._put(run._replace(first=part.last + 1))
            carved.append(part)
        if position <= last:
            lost.append((position, last))
        return carved

    def _overlapping(self, first: int, last: int) -> list[Run]:
        found = self._rows.floor(ENTRIES, entry_key(first))
        begin = entry_key(first) if found is None else found[0]
        runs = [decode_run(*row) for row in self._rows.first(begin, entry_key(last + 1), last - first + 2)]
        return [run for run in runs if run.last >= first]

    def _give_back(self, run: Run, note: str, not_before_ms: int) -> None:
        if run.delivery_count >= self._settings.max_deliveries:
            self._reject(run, note)
        else:
            self._put_back(run, not_before_ms)

    def _put_back(self, run: Run, not_before_ms: int, *, is_news: bool = True) -> None:
        """Make a run that was carved out READY, or DELAYED; *is_news* where it is to last."""
        state = State.DELAYED if not_before_ms else State.READY
        self._put(run._replace(state=state, owner="", due_ms=not_before_ms, note=""))
        if is_news:
            self._touch(run)
        self.woke_others = True

    def _reject(self, run: Run, note: str) -> None:
        if not self._settings.has_dead_letter:
            self._mark_done(run.first, run.last)
            return
        rejected = run._replace(
            state=State.REJECTED, owner="", due_ms=0, order_key=NO_KEY, note=note[:MAX_NOTE_CHARACTERS]
        )
        self._put(rejected)
        self._touch(run)
        self.woke_others = True

    def _touch(self, run: Run) -> None:
        for block in range(run.first // BLOCK_OFFSETS, run.last // BLOCK_OFFSETS + 1):
            self._touched.add(block)
            if self._rows.get(block_key(block)) is None:
                self._rows.put(
                    block_key(block), b""
                )  # it is journaled from now on, and to be dropped one day

    # Order keys -----------------------------------------------------------------------------------

    def _may_hold(self, order_key: bytes, owner: str) -> bool:
        held = self._rows.get(KEYS + order_key)
        return held is None or held[COUNT.size :].decode() == owner

    def _hold_key(self, run: Run) -> None:
        key = KEYS + run.order_key
        held = self._rows.get(key)
        count = 0 if held is None else COUNT.unpack_from(held)[0]
        self._rows.put(key, COUNT.pack(count + 1) + run.owner.encode())

    def _let_go_of_key(self, order_key: bytes) -> None:
        key = KEYS + order_key
        held = self._rows.get(key)
        assert held is not None, f"order key {order_key!r} of a message in somebody's hands is not held"
        count = COUNT.unpack_from(held)[0] - 1
        if count:
            self._rows.put(key, COUNT.pack(count) + held[COUNT.size :])
            return
        self._rows.delete(key)
        self._wake_next_of(order_key)

    def _wake_next_of(self, order_key: bytes) -> None:
        """Make the first that waits for *order_key* READY: who gets it takes along the others."""
        for run in self._waiting_for(order_key, 1):
            self._move(run, run._replace(state=State.READY))
            self.woke_others = True

    def _waiting_for(self, order_key: bytes, limit: int) -> list[Run]:
        prefix = WAITING + order_key
        found = self._rows.first(prefix, prefix + b"\xff" * 9, limit)
        return [self._run_at(first_of_index(key)) for key, _ in found]

    # Done -----------------------------------------------------------------------------------------

    def _mark_done(self, first: int, last: int) -> None:
        if first <= self._head.start_offset:
            self._set_start(last + 1)
            return
        for block in range(first // BLOCK_OFFSETS, last // BLOCK_OFFSETS + 1):
            base = block * BLOCK_OFFSETS
            low, high = max(first - base, 0), min(last - base, BLOCK_OFFSETS - 1)
            bits = self._done_bits(block) | ((1 << (high - low + 1)) - 1) << low
            self._put_done_bits(block, bits)
            self._touched.add(block)

    def _mark_undone(self, first: int, last: int) -> None:
        for block in range(first // BLOCK_OFFSETS, last // BLOCK_OFFSETS + 1):
            bits = self._done_bits(block)
            for offset in range(
                max(first, block * BLOCK_OFFSETS), min(last, (block + 1) * BLOCK_OFFSETS - 1) + 1
            ):
                bits &= ~(1 << offset % BLOCK_OFFSETS)
            self._put_done_bits(block, bits)

    def _done_bits(self, block: int) -> int:
        return int.from_bytes(self._rows.get(block_key(block)) or b"", "little")

    def _put_done_bits(self, block: int, bits: int) -> None:
        self._rows.put(block_key(block), bits.to_bytes((bits.bit_length() + 7) // 8, "little"))

    def _advance_start(self) -> None:
        """Move the start over what is done behind it."""
        start = self._head.start_offset
        while start < self._head.next_offset:
            block, at = divmod(start, BLOCK_OFFSETS)
            rest = self._done_bits(block) >> at
            done = (~rest & (rest + 1)).bit_length() - 1  # how many ones the number ends with
            if not done:
                break
            start = block * BLOCK_OFFSETS + at + done
        self._set_start(start)

    def _set_start(self, start_offset: int) -> None:
        if start_offset <= self._head.start_offset:
            return
        self._put_head(Head(start_offset, max(self._head.next_offset, start_offset)))
        while found := self._rows.first(DONE, block_key(start_offset // BLOCK_OFFSETS), SCAN_ROWS):
            for key, _ in found:
                self._rows.delete(key)
                self._dropped.append(NUMBER.unpack_from(key, 1)[0])

    def _put_head(self, head: Head) -> None:
        self._head = head
        self._rows.put(HEAD_KEY, HEAD.pack(*head))

    def _undone(self, first: int, last: int) -> Iterator[Range]:
        """The ranges in [first, last] that no block calls done."""
        position = first
        while position <= last:
            block, at = divmod(position, BLOCK_OFFSETS)
            base = block * BLOCK_OFFSETS
            rest = self._done_bits(block) >> at
            if rest & 1:
                position += (~rest & (rest + 1)).bit_length() - 1
                continue
            free = (rest & -rest).bit_length() - 1 if rest else BLOCK_OFFSETS - at
            end = min(base + at + free - 1, last)
            yield position, end
            position = end + 1


def _attempted_run(base: int, attempt: Attempt) -> Run:
    state = State.READY
    if attempt.is_rejected:
        state = State.REJECTED
    elif attempt.not_before_ms:
        state = State.DELAYED
    return Run(
        first=base + attempt.first,
        last=base + attempt.last,
        state=state,
        delivery_count=attempt.delivery_count,
        due_ms=attempt.not_before_ms,
        note=attempt.note,
    )


def _attempt(run: Run, base: int) -> Attempt | None:
    """What is to last of *run* within the block that begins with offset *base*."""
    is_rejected = run.state in (State.REJECTED, State.BURYING)
    count = run.delivery_count - (1 if run.state is State.ACQUIRED else 0)
    if count <= 0 and not is_rejected:
        return None
    return Attempt(
        first=max(run.first - base, 0),
        last=min(run.last - base, BLOCK_OFFSETS - 1),
        delivery_count=max(count, 0),
        not_before_ms=run.due_ms if run.state is State.DELAYED else 0,
        is_rejected=is_rejected,
        note=run.note,
    )


def _without(first: int, last: int, covered: Sequence[Range]) -> Iterator[Range]:
    """The parts of [first, last] that no range of *covered* (ascending) covers."""
    position = first
    for begin, end in covered:
        if end < position or begin > last:
            continue
        if begin > position:
            yield position, begin - 1
        position = end + 1
    if position <= last:
        yield position, last
