"""The state of a queue's messages in one partition, and every way that it changes. Pure: over ``Rows``.

    from       to         by
    (unknown)  ACQUIRED   ``acquire_fresh``: the next offsets of the log go into somebody's hands
    (unknown)  ARRANGING  the same with ``looks_ahead``: they are looked at before they are handed out
    READY      ACQUIRED   ``acquire``, by rank, then by offset; ARRANGING where they were not looked at yet
    WAITING    ACQUIRED   ``acquire``, together with the message of their key that was READY
    ACQUIRED   done       ``finish``: accepted, or not to be delivered at all
    ACQUIRED   READY      ``release``, or the end of the lease; DELAYED instead, where a delay was asked for
    ACQUIRED   REJECTED   ``reject``, or one of the two above at the delivery limit; done, where nobody buries it
    ACQUIRED   DELAYED    ``arrange``: the message says that it is to be delivered later; the delivery does not count
    ARRANGING  READY      ``arrange``, or DELAYED, by what the message says; ``release``, or the end of the lease
    ARRANGING  done       ``arrange``: not to be delivered at all; or ``finish``
    ARRANGING  REJECTED   ``reject``, or a ``release`` that counts, at the delivery limit; done, where nobody buries it
    DELAYED    READY      ``wake``, when its time has come
    READY      WAITING    by itself, with an order key: others of the key are in somebody's hands, or come first
    WAITING    READY      by itself, when it is the first of its key and none of them is in anybody's hands
    REJECTED   BURYING    ``acquire_rejected``
    BURYING    done       ``bury``: the dead letter is written in the same transaction
    BURYING    REJECTED   the end of the lease
    any        done       ``drop_below``: the log has lost them

An owner can only change what is in its own hands: offsets that are not come back from each call as *lost*. A lease
is over at its very end, whether ``expire`` was called or not. Ranges are pairs (first, last), both inclusive, as
Kafka's acknowledgements have them.

One at a time looks at messages, the first that were not looked at first: or the second might find a message of an
order key before the first finds an older one. Others meanwhile acquire what is arranged.

What must last is collected in ``changes``: the caller journals it under the same lock. It names whole blocks of
1024 offsets, so that its size does not depend on how much is in flight. Deliveries count for as long as the view
lasts; those that ended in anything but acceptance are in the changes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from .arranging import Arranged, arranged, leaving
from .done_offsets import DoneOffsets, bits_between, blocks_of, ranges_of
from .lasting import Attempt, BlockChange, Changes, attempt_of, run_of
from .order_keys import OrderKeys
from .rows import (
    BLOCK_OFFSETS,
    DELAYED,
    ENTRIES,
    FIRST_RANK,
    HEAD,
    HEAD_KEY,
    LEASED,
    LOOKED_AT,
    MAX_DELIVERY_COUNT,
    NO_KEY,
    NUMBER,
    RANKED,
    REJECTED_RANK,
    SCAN_ROWS,
    Head,
    Range,
    Rows,
    Run,
    State,
    as_delivered,
    as_undelivered,
    entry_key,
    first_of_index,
)
from .runs import RunTable, joined
from .settings import QueueSettings

__all__ = ["Arranged", "Attempt", "BlockChange", "Changes", "Counts", "QueueState", "Range"]

MAX_NOTE_CHARACTERS = 500
LIMIT_REACHED = "delivery limit reached"

NOT_ARRANGED = RANKED + bytes([FIRST_RANK])  # where these indexes begin; each ends where the next begins
ARRANGED = RANKED + bytes([FIRST_RANK + 1])
REJECTED = RANKED + bytes([REJECTED_RANK])
IN_HANDS = (State.ACQUIRED, State.ARRANGING)


class Counts(NamedTuple):
    """How many messages are in which state; those that are only looked at count as ready."""

    ready: int
    acquired: int
    delayed: int
    waiting: int
    rejected: int


class QueueState:
    """One transaction's work on one partition of a queue."""

    def __init__(self, rows: Rows, settings: QueueSettings) -> None:
        self.rows = rows
        self._settings = settings
        self._table = RunTable(rows)
        self._done = DoneOffsets(rows)
        self._keys = OrderKeys(rows, self._table)
        head = rows.get(HEAD_KEY)
        self.exists = head is not None
        self._head = Head(0, 0) if head is None else Head._make(HEAD.unpack(head))
        self._start_before = self._head.start_offset
        self._touched: set[int] = set()
        self._dropped: list[int] = []
        self.settled: list[Run] = []  # what an owner accepted, buried or rejected, for ``restore``
        self.woke_others = False  # there is something to do that somebody else may be waiting for

    @property
    def head(self) -> Head:
        return self._head

    # To begin with --------------------------------------------------------------------------------

    def begin(self, start_offset: int, blocks: dict[int, BlockChange]) -> None:
        """Forget everything and begin at *start_offset*, with what is known of the blocks behind it."""
        self.clear()
        ends = [start_offset]
        for block, known in blocks.items():
            self._done.store(block, known.done)
            if known.done:
                done = int.from_bytes(known.done, "little")
                ends.append(block * BLOCK_OFFSETS + done.bit_length())
            ends += [block * BLOCK_OFFSETS + attempt.last + 1 for attempt in known.attempts]
        self._put_head(Head(start_offset, max(ends)))
        for block in blocks_of(start_offset, self._head.next_offset - 1):
            self._begin_block(block, blocks[block].attempts if block in blocks else ())
        self._dropped += self._done.forget_below(start_offset)
        self._advance_start()
        self.exists = True
        self._start_before = self._head.start_offset

    def _begin_block(self, block: int, attempts: Iterable[Attempt]) -> None:
        base = block * BLOCK_OFFSETS
        left = self._done.undone(block, self._head.start_offset, self._head.next_offset - 1)
        for attempt in attempts:
            bits = bits_between(attempt.first, attempt.last)
            for first, last in ranges_of(left & bits):
                self._table.put(run_of(attempt, base + first, base + last))
            left &= ~bits
        # The others were in somebody's hands, or never in any: they are handed out (again).
        for first, last in ranges_of(left):
            self._table.put(Run(base + first, base + last, State.READY))

    def clear(self) -> None:
        """Remove every row."""
        while rows := self.rows.first(b"", b"\xff", SCAN_ROWS):
            for key, _ in rows:
                self.rows.delete(key)
        self.exists = False
        self._head = Head(0, 0)
        self._touched.clear()
        self._dropped = []

    # Into somebody's hands ------------------------------------------------------------------------

    def acquire(self, owner: str, limit: int, *, lease_end_ms: int) -> list[Run]:
        """Put up to *limit* READY messages into the hands of *owner*, the first in rank first.

        With ``looks_ahead`` one run of messages instead that are to be arranged first, whatever the limit, if there
        are any and nobody else does that at the moment. A message with an order key takes along those that wait for it.
        """
        begin = NOT_ARRANGED
        if self._settings.looks_ahead:
            begin = ARRANGED
            if limit > 0 and not self._is_arranging():
                for run in self._table.of_index(NOT_ARRANGED, ARRANGED, 1):
                    return [self._hand_out(self._table.first_part(run, BLOCK_OFFSETS), owner, lease_end_ms)]
        taken: list[Run] = []
        room = limit
        while room > 0:
            found = False
            for run in self._table.of_index(begin, REJECTED, min(room, SCAN_ROWS)):
                found = True
                part = self._table.first_part(run, room)
                taken.append(self._hand_out(part, owner, lease_end_ms))
                room -= part.size
                if part.order_key != NO_KEY and room > 0:
                    waiting = self._keys.waiting(part.order_key, room)
                    taken += [self._hand_out(one, owner, lease_end_ms) for one in waiting]
                    room -= len(waiting)
                if room <= 0:
                    break
            if not found:
                break
        return taken

    def acquire_fresh(self, owner: str, limit: int, *, visible_end: int, lease_end_ms: int) -> Run | None:
        """Put up to *limit* messages that nobody had yet, all below *visible_end*, into the hands of *owner*.

        None where there are none; with ``looks_ahead`` also while others arrange, or are to be arranged first.
        """
        first = self._head.next_offset
        last = min(first + limit, visible_end) - 1
        if last < first:
            return None
        state, count = State.ACQUIRED, 1
        if self._settings.looks_ahead:
            state, count = State.ARRANGING, 0
            if self._has_older_to_arrange():
                return None
        run = Run(first, last, state, count, lease_end_ms, owner)
        self._table.put(run)
        self._put_head(self._head._replace(next_offset=last + 1))
        return run

    def acquire_rejected(self, owner: str, limit: int, *, lease_end_ms: int) -> list[Run]:
        """Put up to *limit* REJECTED messages into the hands of *owner*, who is to bury them."""
        taken: list[Run] = []
        room = limit
        for run in self._table.of_index(REJECTED, REJECTED + b"\xff", limit):
            if room <= 0:
                break
            part = self._table.first_part(run, room)
            burying = replace(part, state=State.BURYING, owner=owner, due_ms=lease_end_ms)
            self._table.replace(part, burying)
            taken.append(burying)
            room -= part.size
        return taken

    def _is_arranging(self) -> bool:
        return bool(self.rows.first(LOOKED_AT, LOOKED_AT + b"\xff", 1))

    def _has_older_to_arrange(self) -> bool:
        if not self._settings.looks_ahead:
            return False
        return self._is_arranging() or bool(self.rows.first(NOT_ARRANGED, ARRANGED, 1))

    def _hand_out(self, run: Run, owner: str, lease_end_ms: int) -> Run:
        if self._settings.looks_ahead and not run.is_arranged:
            held = replace(run, state=State.ARRANGING, owner=owner, due_ms=lease_end_ms)
        else:
            count = min(run.delivery_count + 1, MAX_DELIVERY_COUNT)
            held = replace(run, state=State.ACQUIRED, owner=owner, due_ms=lease_end_ms, delivery_count=count)
        self._table.replace(run, held)
        if run.order_key != NO_KEY:
            self._keys.hold(held)
        return held

    # Out of them ----------------------------------------------------------------------------------

    def finish(self, owner: str, ranges: Iterable[Range], *, now_ms: int) -> list[Range]:
        """Be done with messages that *owner* holds; those that it does not are returned."""
        lost: list[Range] = []
        for run in self._taken_from(owner, ranges, now_ms, lost):
            self._mark_done(run.first, run.last)
            self.settled.append(run)
        self._advance_start()
        return lost

    def bury(self, owner: str, ranges: Iterable[Range], *, now_ms: int) -> list[Range]:
        """Be done with rejected messages that *owner* has written dead letters of; as ``finish``."""
        lost: list[Range] = []
        for run in self._taken_from(owner, ranges, now_ms, lost, states=(State.BURYING,)):
            self._mark_done(run.first, run.last)
            self.settled.append(run)
        self._advance_start()
        return lost

    def restore(self, runs: Sequence[Run]) -> None:
        """Take back what an earlier ``settled`` says: it could not be made to last.

        The owner has it in its hands as before, if it was delivered, and nobody got another message of its order
        key meanwhile: then it is to be handed out again.
        """
        start = self._head.start_offset
        new_start = min([start, *(run.first for run in runs)])
        if new_start < start:
            self._put_head(self._head._replace(start_offset=new_start))
            self._done.mark(new_start, start - 1)
        for run in chain.from_iterable(map(self._not_taken_up, runs)):
            self._done.unmark(run.first, run.last)
            if run.state is State.BURYING or (run.state is State.ACQUIRED and self._holds_again(run)):
                self._table.put(run)
            else:
                self._offer(replace(as_undelivered(run), owner="", due_ms=0))

    def _not_taken_up(self, run: Run) -> list[Run]:
        """The parts of a settled *run* that are in no table now: done, or rejected and taken out here."""
        if not self._table.overlapping(run.first, run.last):
            return [run]
        rejected = self._table.carve(run.first, run.last, lambda other: other.state is State.REJECTED, [])
        return [replace(run, first=part.first, last=part.last) for part in rejected]

    def _holds_again(self, run: Run) -> bool:
        return run.order_key == NO_KEY or self._keys.hold_again(run)

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

        *not_before_ms* (wall clock) delays the next delivery. Without *was_delivered* this one does not count; with
        it, a look that failed does.
        *note* is why they are rejected, should this have been the last delivery.
        """
        lost: list[Range] = []
        for run in self._taken_from(owner, ranges, now_ms, lost):
            if was_delivered:
                self._give_back(as_delivered(run), note, not_before_ms)
            else:
                self._put_back(as_undelivered(run), not_before_ms)
        self._advance_start()
        return lost

    def reject(
        self, owner: str, ranges: Iterable[Range], *, note: str, now_ms: int, was_delivered: bool = True
    ) -> list[Range]:
        """Deliver messages never again; those that *owner* does not hold are returned.

        Without *was_delivered* this delivery does not count: it came to a look alone.
        """
        lost: list[Range] = []
        for run in self._taken_from(owner, ranges, now_ms, lost):
            self._reject(run if was_delivered else as_undelivered(run), note)
            self.settled.append(run)
        self._advance_start()
        return lost

    def extend(self, owner: str, ranges: Iterable[Range], *, lease_end_ms: int, now_ms: int) -> list[Range]:
        """Hold messages until *lease_end_ms*; those that *owner* no longer holds are returned."""
        lost: list[Range] = []
        for run in self._carve(ranges, owner, now_ms, lost):
            self._table.put(replace(run, due_ms=lease_end_ms))
        return lost

    def arrange(
        self, owner: str, run: Run, messages: Sequence[Arranged], *, now_ms: int, now_wall_ms: int
    ) -> None:
        """Sort what *owner* acquired to look at: of *run*, only *messages* (ascending) are to be delivered.

        With ``looks_ahead`` they all go back to be handed out in their order. Without, only those that are to be
        delivered later do, and the others stay in the owner's hands.
        """
        for held in self._carve([(run.first, run.last)], owner, now_ms, []):
            position = held.first
            for first, last, message in leaving(held, messages, now_wall_ms):
                if first > position:
                    self._table.put(replace(held, first=position, last=first - 1))
                position = last + 1
                part = replace(held, first=first, last=last)
                self._let_go(part)
                if message is None:
                    self._mark_done(first, last)
                else:
                    not_before_ms = message.not_before_ms if message.not_before_ms > now_wall_ms else 0
                    self._put_back(arranged(part, message), not_before_ms, is_news=False)
            if position <= held.last:
                self._table.put(replace(held, first=position))
        self._advance_start()

    # By time, and by others -----------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether ``acquire`` would find anything."""
        begin = ARRANGED if self._settings.looks_ahead and self._is_arranging() else NOT_ARRANGED
        return bool(self.rows.first(begin, REJECTED, 1))

    def has_fresh(self, visible_end: int) -> bool:
        """Whether ``acquire_fresh`` would."""
        return self._head.next_offset < visible_end and not self._has_older_to_arrange()

    def has_rejected(self) -> bool:
        """Whether a message is to be buried."""
        return bool(self.rows.first(REJECTED, REJECTED + b"\xff", 1))

    def next_lease_end_ms(self) -> int | None:
        """When the first lease ends (monotonic)."""
        ends = (self._first_time(LEASED), self._first_time(LOOKED_AT))
        return min((end for end in ends if end is not None), default=None)

    def next_delivery_ms(self) -> int | None:
        """When the first of the DELAYED messages is to be handed out (wall clock)."""
        return self._first_time(DELAYED)

    def _first_time(self, index: bytes) -> int | None:
        found = self.rows.first(index, index + b"\xff", 1)
        return NUMBER.unpack_from(found[0][0], 1)[0] if found else None

    def expire(self, *, now_ms: int) -> int:
        """End the leases whose time is over; how many runs that were."""
        return self._end_leases(NUMBER.pack(now_ms + 1), lambda _: True)

    def end_leases_of(self, is_gone: Callable[[str], bool]) -> int:
        """End the leases of every owner that *is_gone*; how many runs that were."""
        return self._end_leases(b"\xff", is_gone)

    def held_by(self, owner: str) -> list[Range]:
        """What is in the hands of *owner*."""
        return [(run.first, run.last) for run in self._held(b"\xff") if run.owner == owner]

    def owners(self) -> set[str]:
        """Who holds anything now."""
        return {run.owner for run in self._held(b"\xff")}

    def _held(self, end: bytes) -> Iterator[Run]:
        """The runs in anybody's hands whose leases end before *end*, packed."""
        for index in (LEASED, LOOKED_AT):
            begin = index
            while found := self.rows.first(begin, index + end, SCAN_ROWS):
                for key, _ in found:
                    yield self._table.at(first_of_index(key))
                begin = found[-1][0] + b"\0"

    def _end_leases(self, end: bytes, is_over: Callable[[str], bool]) -> int:
        over = [run for run in self._held(end) if is_over(run.owner)]
        for run in over:
            self._table.remove(run)
            self._let_go(run)
            if run.state is State.BURYING:
                self._table.put(replace(run, state=State.REJECTED, owner="", due_ms=0), joins=True)
                self.woke_others = True
            else:
                self._give_back(run, LIMIT_REACHED, 0)
        self._advance_start()
        return len(over)

    def wake(self, *, now_wall_ms: int) -> int:
        """Make READY what was DELAYED until now, at most 1000 runs at a time; how many runs that were."""
        woken = 0
        for run in self._table.of_index(DELAYED, DELAYED + NUMBER.pack(now_wall_ms + 1), SCAN_ROWS):
            self._table.remove(run)
            self._offer(replace(run, due_ms=0, is_postponed=False))
            woken += 1
        return woken

    def drop_below(self, offset: int) -> None:
        """Be done with everything below *offset*, whoever holds it: the records are gone from the log."""
        if offset <= self._head.start_offset:
            return
        while found := self.rows.first(ENTRIES, entry_key(offset), SCAN_ROWS):
            for key, _ in found:
                run = self._table.at(first_of_index(key))  # as it is now: the one before may have woken it
                self._table.remove(run)
                if run.last >= offset:
                    self._table.put(replace(run, first=offset))
                self._let_go(run)
                if run.order_key != NO_KEY and run.state is State.READY:
                    self._offer_next(run)
        self._set_start(offset)
        self._advance_start()

    # Looking ----------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """How many messages are in which state."""
        totals = dict.fromkeys(State, 0)
        for run in self.runs():
            totals[run.state] += run.size
        return Counts(
            ready=totals[State.READY] + totals[State.ARRANGING],
            acquired=totals[State.ACQUIRED],
            delayed=totals[State.DELAYED],
            waiting=totals[State.WAITING],
            rejected=totals[State.REJECTED] + totals[State.BURYING],
        )

    def runs(self) -> Iterator[Run]:
        """Every run, by offset."""
        return self._table.all()

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
        lasting = self._table.lasting(base, base + BLOCK_OFFSETS - 1)
        return BlockChange(self._done.stored(block), [attempt_of(run, base) for run in lasting])

    # Its parts ----------------------------------------------------------------------------------------

    def _taken_from(
        self,
        owner: str,
        ranges: Iterable[Range],
        now_ms: int,
        lost: list[Range],
        *,
        states: tuple[State, ...] = IN_HANDS,
    ) -> Iterator[Run]:
        """The runs in *ranges* that *owner* holds, each out of the table and its hands; the rest goes to *lost*."""
        for run in self._carve(ranges, owner, now_ms, lost, states):
            self._let_go(run)
            yield run

    def _carve(
        self,
        ranges: Iterable[Range],
        owner: str,
        now_ms: int,
        lost: list[Range],
        states: tuple[State, ...] = IN_HANDS,
    ) -> Iterator[Run]:
        """The runs in *ranges* that *owner* holds, each out of the table; the rest goes to *lost*."""

        def is_held(run: Run) -> bool:
            return run.state in states and run.owner == owner and run.due_ms > now_ms

        for first, last in joined(ranges):
            yield from self._table.carve(first, last, is_held, lost)

    def _let_go(self, run: Run) -> None:
        """*run* has left the table: if it was in somebody's hands, others may have what that kept from them."""
        is_last_of_key = run.state is State.ACQUIRED and run.order_key != NO_KEY and self._keys.let_go(run)
        if run.state is State.ARRANGING or is_last_of_key:
            self.woke_others = True

    def _give_back(self, run: Run, note: str, not_before_ms: int) -> None:
        """Give back a run after a delivery, or a look, that came to nothing: only deliveries are limited."""
        was_delivered = run.state is State.ACQUIRED
        if was_delivered and run.delivery_count >= self._settings.max_deliveries:
            self._reject(run, note)
        else:
            self._put_back(run, not_before_ms)

    def _put_back(self, run: Run, not_before_ms: int, *, is_news: bool = True) -> None:
        """Make a run that was carved out READY, or DELAYED; *is_news* where it is to last."""
        free = replace(run, owner="", due_ms=not_before_ms)
        if not_before_ms:
            self._table.put(replace(free, state=State.DELAYED, is_postponed=is_news), joins=is_news)
            self.woke_others = True  # who waits for the next delivery may have to wait shorter
        else:
            self._offer(free, joins=is_news)
        if is_news:
            self._touch(run)

    def _offer(self, run: Run, *, joins: bool = True) -> None:
        """Have a run that is in no table handed out to whoever comes, when it is its turn.

        Without *joins* it differs from those beside it, as far as that is worth a look.
        """
        if run.order_key == NO_KEY:
            self._table.put(replace(run, state=State.READY), joins=joins)
            self.woke_others = True
        elif self._keys.offer(run):
            self.woke_others = True

    def _offer_next(self, run: Run) -> None:
        if self._keys.offer_next(run.order_key):
            self.woke_others = True

    def _reject(self, run: Run, note: str) -> None:
        if not self._settings.has_dead_letter:
            self._mark_done(run.first, run.last)
            return
        rejected = replace(
            run, state=State.REJECTED, owner="", due_ms=0, order_key=NO_KEY, note=note[:MAX_NOTE_CHARACTERS]
        )
        self._table.put(rejected, joins=True)
        self._touch(run)
        self.woke_others = True

    def _touch(self, run: Run) -> None:
        for block in blocks_of(run.first, run.last):
            self._touched.add(block)
            if not self._done.is_known(block):
                self._done.store(block, b"")  # it is journaled from now on, and to be dropped one day

    # Done -----------------------------------------------------------------------------------------

    def _mark_done(self, first: int, last: int) -> None:
        if first <= self._head.start_offset:
            self._set_start(last + 1)
        else:
            self._touched.update(self._done.mark(first, last))

    def _advance_start(self) -> None:
        """Move the start over what is done behind it."""
        self._set_start(self._done.first_undone(self._head.start_offset, self._head.next_offset))

    def _set_start(self, start_offset: int) -> None:
        if start_offset <= self._head.start_offset:
            return
        self._put_head(Head(start_offset, max(self._head.next_offset, start_offset)))
        self._dropped += self._done.forget_below(start_offset)

    def _put_head(self, head: Head) -> None:
        self._head = head
        self.rows.put(HEAD_KEY, HEAD.pack(*head))
