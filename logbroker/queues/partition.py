"""One partition of one queue in a data directory: the state machine over the view, the journal and the log.

    step                                   under                      made to last
    messages into somebody's hands         a transaction of the view  no: a lease ends by itself
    read and judged (user's filter)        nothing
    what is not to be delivered: done      the journal's lock         with the next that waits for the disk
    given back, or the lease has ended     the journal's lock         the same: only deliveries are counted
    accepted, rejected                     the journal's lock         before the call returns

Leases are measured by the monotonic clock, which all processes of a machine share; delays by the wall clock.
An owner's name begins with the id of its process, so that others can see that it is dead; or with "~": then it
belongs to no process, and only the lease's end frees what it holds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from msgspec.structs import replace

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    CorruptionError,
    OffsetOutOfRangeError,
    SubscriptionNotFoundError,
    TopicNotFoundError,
)
from logbroker_storage.events import (
    QueueBlockEvent,
    QueueEvent,
    SubscriptionEvent,
    decode_attempts,
    encode_attempts,
)
from logbroker_storage.journal import Item, item_of
from logbroker_storage.log_offsets import Isolation, LogOffsets
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import Record

from ..commits import PendingCommit
from ..expressions import Predicate, as_predicate
from ..groups import TopicPartition
from ..subscriptions import Subscription, both
from .aftermath import Aftermath
from .looks import Ahead, Due, Held, Progress, without
from .owners import is_detached, process_of
from .reading import Judge, RangeRead, RangeReader
from .rows import Run
from .runs import end_of_delay_ms
from .settlement import Settlement
from .state import Arranged, BlockChange, QueueState, Range

if TYPE_CHECKING:
    from logbroker_storage.view.environment import Transaction

LOOK_AHEAD_OFFSETS = 1000  # read at a time, to be arranged by priority and order key
LOOK_AHEAD_WINDOW = 1_000_000  # from the first message that is not done
MAX_STEP = 1000  # offsets that are taken in search of a message to be delivered
DAMAGE_DELAY_MS = 30_000

Lost = Callable[[TopicPartition, Sequence[Range]], None]


class QueuePartition:
    """Safe across threads and processes."""

    def __init__(
        self,
        directory: DataDirectory,
        subscription: Subscription,
        place: TopicPartition,
        *,
        also: Predicate | None = None,
    ) -> None:
        """*also* is a filter of this reader's own: what it refuses is done, for the whole subscription."""
        self.place = place
        self.log = directory.log(*place)
        self.subscription = subscription
        self._directory = directory
        self._settings = subscription.rules.queue
        self._prefix = self.log.key + bytes.fromhex(subscription.id)
        self._aftermath = Aftermath(
            directory, subscription.id, place, prefix=self._prefix, settings=self._settings
        )
        self._reader = RangeReader(self.log)
        self._reading = threading.Lock()  # guards _reader
        rules = subscription.rules
        self._judge = Judge(
            matches=both(None if rules.filter is None else as_predicate(rules.filter), also),
            ordered=rules.ordered,
            priorities=rules.priorities,
            buries_expired=rules.expired == "dead-letter",
            buries_unknown=rules.dead_letter is not None,
        )

    def is_still(self, log: PartitionLog, subscription: Subscription) -> bool:
        """Whether this is the queue of *log* that *subscription*, as it is now, asks for."""
        return self.log.key == log.key and self.subscription.rules == subscription.rules

    def visible_end(self, offsets: LogOffsets) -> int:
        return offsets.visible_end(Isolation.READ_COMMITTED)

    def close(self) -> None:
        with self._reading:
            self._reader.close()

    # Receiving ------------------------------------------------------------------------------------

    def receive(
        self,
        owner: str,
        limit: int,
        *,
        lease_ms: int,
        max_bytes: int | None = None,
        whole_batches: bool = False,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> list[Held]:
        """Put up to *limit* messages into the hands of *owner*, [] when none is to be had now.

        However many come first that are not to be delivered: between steps *is_enough* is asked whether to leave off.

        Each comes once, also where the leases of the first end before this is through, and it takes them again.

        With *max_bytes* no more than come in batches of so many bytes, but those of one batch. With
        *whole_batches* above *limit* the rest of the last batch too: who is sent its bytes may as well have it.

        Raises:
            CorruptionError: the log is damaged; its messages there come again in half a minute, at last as
                dead letters.
            TopicNotFoundError, SubscriptionNotFoundError: deleted meanwhile.
        """
        held: list[Held] = []
        acquired: list[Run] = []
        room = size = limit
        left_bytes = math.inf if max_bytes is None else max_bytes
        self._aftermath.say_that_hands_are_here()
        try:
            while room > 0 and left_bytes > 0 and (due := self.look()).has_work:
                if not due.is_synced:
                    # What is journaled of a message must not hold for another that gets its offset after a power cut.
                    self.log.sync_below(due.visible_end)
                runs = self._acquire(owner, size, lease_ms, due.visible_end, looks_first=not acquired)
                if not runs:
                    break
                if held and held[0].lease_end_ms <= self._now_ms():
                    held = without(held, runs)
                    room = limit - sum(len(taken.records) for taken in held)
                acquired += runs
                had = room
                for number, run in enumerate(runs):
                    if room <= 0 or left_bytes <= 0:
                        self.give_back(owner, [(left.first, left.last) for left in runs[number:]])
                        break
                    taken = self._within(owner, self._take(owner, run, left_bytes), room)
                    if taken.records:
                        held.append(taken)
                        room -= len(taken.records)
                        left_bytes -= sum(len(batch.data) for batch in taken.batches)
                # Where nothing is to be delivered (filtered out, delayed), single steps would take for ever.
                size = room if room < had else max(room, min(2 * size, MAX_STEP))
                if is_enough():
                    break
            if whole_batches and held and not self._settings.looks_ahead:
                for rest in self._acquire_rest_of_batch(owner, held[-1], lease_ms):
                    acquired.append(rest)
                    taken = self._take(owner, rest, math.inf)
                    held += [taken] if taken.records else []
        except BaseException:
            self.give_back(owner, [(run.first, run.last) for run in acquired])  # nobody has seen them
            raise
        return held

    def _acquire_rest_of_batch(self, owner: str, last: Held, lease_ms: int) -> list[Run]:
        """What follows *last* in its batch, if nobody has had it."""
        visible_end = self.log.state().last_stable_offset
        first, end = last.records[-1].offset + 1, last.batches[-1].header.next_offset
        if first >= min(end, visible_end):
            return []
        with self._transaction() as state:
            if not state.exists or state.head.next_offset != first:
                return []
            lease_end_ms = self._now_ms() + lease_ms
            fresh = state.acquire_fresh(
                owner, end - first, visible_end=visible_end, lease_end_ms=lease_end_ms
            )
            return [] if fresh is None else [fresh]

    def ahead(self) -> Ahead:
        """What ``receive`` would find."""
        visible_end = self.look().visible_end
        with self._reading_state() as state:
            return Ahead(state.has_ready(), state.head.next_offset, visible_end)

    def _within(self, owner: str, taken: Held, room: int) -> Held:
        """The first *room* messages of *taken*; the others go back."""
        surplus = taken.records[room:]
        if not surplus:
            return taken
        self.give_back(owner, ranges_of([record.offset for record in surplus]))
        return taken._replace(records=taken.records[:room])

    def look(self) -> Due:
        """What is to be done here; what is due is done first."""
        due = self.glance()
        if not due.exists:
            self._load()
            due = self.glance()
        if due.is_due:
            # Asked out here: no thread goes into the view twice.
            start_offset = self.log.state().end.log_start_offset
            self._change(partial(self._tick, start_offset))
            due = self.glance()
        return due

    def glance(self) -> Due:
        """The same, and nothing is done: it reads the view, and waits for nobody."""
        now_ms, now_wall_ms = self._now_ms(), self._directory.clock.now_ms()
        with self._directory.view.read() as transaction:
            log, state = self.log.state(transaction), self._state(transaction)
            visible_end = log.last_stable_offset
            lease_end_ms, delivery_ms = state.next_lease_end_ms(), state.next_delivery_ms()
            has_work = state.has_fresh(self._fresh_end(state, visible_end)) or state.has_ready()
            exists = state.exists
            is_cut = state.head.start_offset < log.end.log_start_offset
            has_rejected = self._settings.has_dead_letter and state.has_rejected()
        left = [] if lease_end_ms is None else [lease_end_ms - now_ms]
        if delivery_ms is not None:
            left.append(delivery_ms - now_wall_ms)
        return Due(
            exists=exists,
            visible_end=visible_end,
            is_synced=visible_end <= log.sync.synced_offset,
            has_work=has_work and exists,
            has_rejected=has_rejected,
            is_due=is_cut or any(ms <= 0 for ms in left),
            next_due_s=min(left) / 1000 if left else None,
        )

    def _tick(self, start_offset: int, state: QueueState) -> None:
        state.drop_below(start_offset)
        state.expire(now_ms=self._now_ms())
        state.wake(now_wall_ms=self._directory.clock.now_ms())

    def _acquire(
        self, owner: str, limit: int, lease_ms: int, visible_end: int, *, looks_first: bool
    ) -> list[Run]:
        """Runs for *owner*; with *looks_first* news of the log, to be arranged, before any of them."""
        lease_end_ms = self._now_ms() + lease_ms
        with self._transaction() as state:
            if not state.exists:
                return []
            if not self._settings.looks_ahead:
                runs = state.acquire(owner, limit, lease_end_ms=lease_end_ms)
                room = limit - sum(run.last - run.first + 1 for run in runs)
                fresh = state.acquire_fresh(owner, room, visible_end=visible_end, lease_end_ms=lease_end_ms)
                return [*runs, fresh] if fresh is not None else runs
            fresh_end = self._fresh_end(state, visible_end)
            runs = [] if looks_first else state.acquire(owner, limit, lease_end_ms=lease_end_ms)
            if runs:
                return runs
            fresh = state.acquire_fresh(
                owner, LOOK_AHEAD_OFFSETS, visible_end=fresh_end, lease_end_ms=lease_end_ms
            )
            return [fresh] if fresh is not None else state.acquire(owner, limit, lease_end_ms=lease_end_ms)

    def _fresh_end(self, state: QueueState, visible_end: int) -> int:
        """Up to where messages may be handed out that nobody had yet."""
        if not self._settings.looks_ahead:
            return visible_end
        return min(visible_end, state.head.start_offset + LOOK_AHEAD_WINDOW)

    def _take(self, owner: str, run: Run, max_bytes: float) -> Held:
        """Read a run and sort out what of it is not to be delivered (now); what is too much goes back."""
        is_only_arranged = self._settings.looks_ahead and not run.is_arranged
        try:
            records, batches, end_offset, have_reserved = self._read(
                run, math.inf if is_only_arranged else max_bytes
            )
            if end_offset <= run.last:
                self.give_back(owner, [(end_offset, run.last)])
                run = replace(run, last=end_offset - 1)
            verdict = self._judge.judge(
                records,
                have_reserved=have_reserved,
                now_ms=self._directory.clock.now_ms(),
                ttl_ms=self.log.config.message_ttl_ms,
            )
        except OffsetOutOfRangeError as error:
            start_offset = error.start_offset
            self._change(lambda state: state.drop_below(start_offset))
            if start_offset > run.last:
                return Held([], run.delivery_count, run.due_ms)
            return self._take(owner, replace(run, first=max(run.first, start_offset)), max_bytes)
        except CorruptionError as error:
            self._put_off(owner, run, error)
            raise
        is_whole = verdict.is_plain and len(records) == run.last - run.first + 1
        if not is_whole or is_only_arranged:
            self._sort_out(owner, run, verdict.rejected, verdict.arranged)
        if is_only_arranged:
            return Held([], run.delivery_count, run.due_ms)
        return Held(verdict.deliver, run.delivery_count, run.due_ms, batches, have_reserved)

    def _read(self, run: Run, max_bytes: float = math.inf) -> RangeRead:
        with self._reading:
            return self._reader.read(run.first, run.last, max_bytes)

    def _sort_out(
        self, owner: str, run: Run, rejected: dict[str, list[int]], arranged: Sequence[Arranged]
    ) -> None:
        def sort_out(state: QueueState) -> None:
            now_ms = self._now_ms()
            for note, offsets in rejected.items():
                state.reject(owner, ranges_of(offsets), note=note, now_ms=now_ms, was_delivered=False)
            state.arrange(
                owner,
                run,
                arranged,
                now_ms=now_ms,
                now_wall_ms=self._directory.clock.now_ms(),
            )

        self._change(sort_out)

    def _put_off(self, owner: str, run: Run, error: CorruptionError) -> None:
        """Give back what of *run* is damaged, to be tried again later, as a delivery in vain."""
        damaged = (max(run.first, error.start_offset), min(run.last, error.end_offset - 1))
        self.give_back(owner, [damaged], delay_ms=DAMAGE_DELAY_MS, note=f"damaged: {error.reason}")

    # Settling -------------------------------------------------------------------------------------
    #
    # Each of these gives a commit, so that several of them, or a transaction with them, take one sync. *lost* is
    # told what *owner* does not hold (any more): it may refuse by raising, and then nothing is changed.

    def acceptance(
        self, owner: str, ranges: Sequence[Range], lost: Lost, *, in_transaction: bool = False
    ) -> PendingCommit:
        """Be done with messages."""
        return self._pending(
            lambda state: state.finish(owner, ranges, now_ms=self._now_ms()),
            lost,
            in_transaction=in_transaction,
        )

    def rejection(self, owner: str, ranges: Sequence[Range], note: str, lost: Lost) -> PendingCommit:
        """Deliver messages never again; *note* says why."""
        return self._pending(
            lambda state: state.reject(owner, ranges, note=note, now_ms=self._now_ms()), lost
        )

    def surrender(self, owner: str, ranges: Sequence[Range], delay_ms: int, lost: Lost) -> PendingCommit:
        """Give messages back, to be delivered again after *delay_ms*."""
        not_before_ms = end_of_delay_ms(self._directory.clock.now_ms(), delay_ms)
        return self._pending(
            lambda state: state.release(owner, ranges, now_ms=self._now_ms(), not_before_ms=not_before_ms),
            lost,
        )

    def burial(self, owner: str, ranges: Sequence[Range], lost: Lost) -> PendingCommit:
        """Be done with rejected messages, in the transaction that writes their dead letters."""
        return self._pending(
            lambda state: state.bury(owner, ranges, now_ms=self._now_ms()), lost, in_transaction=True
        )

    def settlement(
        self, owner: str, wanted: Settlement, lost: Lost, *, lease_ms: int, note: str
    ) -> PendingCommit:
        """All of the above at once; *lease_ms* for what is renewed, *note* for what is rejected."""

        def settle(state: QueueState) -> list[Range]:
            now_ms = self._now_ms()
            return wanted.settle(state, owner, now_ms=now_ms, lease_end_ms=now_ms + lease_ms, note=note)

        return self._pending(settle, lost)

    def give_back(
        self, owner: str, ranges: Sequence[Range], *, delay_ms: int = 0, note: str | None = None
    ) -> None:
        """Give back what could not be delivered; with a *note* it counts as a delivery all the same."""
        not_before_ms = end_of_delay_ms(self._directory.clock.now_ms(), delay_ms)
        self._change(
            lambda state: state.release(
                owner,
                ranges,
                now_ms=self._now_ms(),
                not_before_ms=not_before_ms,
                was_delivered=note is not None,
                note=note or "",
            )
        )

    def extend(self, owner: str, ranges: Iterable[Range], *, lease_ms: int) -> list[Range]:
        """Hold messages for *lease_ms* from now; those that *owner* does not hold any more are returned."""
        now_ms = self._now_ms()
        with self._transaction() as state:
            return state.extend(owner, ranges, lease_end_ms=now_ms + lease_ms, now_ms=now_ms)

    def extend_all(self, owner: str, *, lease_ms: int) -> None:
        """Hold everything that *owner* holds for *lease_ms* from now."""
        now_ms = self._now_ms()
        with self._transaction() as state:
            state.extend(owner, state.held_by(owner), lease_end_ms=now_ms + lease_ms, now_ms=now_ms)

    def give_up(self, is_gone: Callable[[str], bool]) -> None:
        """End the leases of every owner that *is_gone*."""
        self._change(lambda state: state.end_leases_of(is_gone))

    def give_up_for_the_dead(self) -> None:
        """End the leases of processes that are dead, and what they had left undecided."""
        self.finish_undecided()
        dead = self._aftermath.dead(
            lambda: {process_of(owner) for owner in self.owners() if not is_detached(owner)}
        )
        if dead:
            self.give_up(lambda owner: process_of(owner) in dead)
        self._aftermath.forget(dead)

    def finish_undecided(self) -> None:
        """Set right what processes had settled for transactions that they did not live to decide."""
        self._aftermath.finish_undecided()

    # Dead letters ---------------------------------------------------------------------------------

    def has_rejected(self) -> bool:
        """Whether there is something to bury."""
        with self._reading_state() as state:
            return state.has_rejected()

    def acquire_rejected(self, owner: str, limit: int, *, lease_ms: int) -> list[tuple[Run, list[Record]]]:
        """Put rejected messages into the hands of *owner*, to be buried; runs with their records.

        Of a run whose records cannot be read there are none.
        """
        self._aftermath.say_that_hands_are_here()
        with self._transaction() as state:
            lease_end_ms = self._now_ms() + lease_ms
            runs = state.acquire_rejected(owner, limit, lease_end_ms=lease_end_ms)
        return [(run, self._read_if_possible(run)) for run in runs]

    def _read_if_possible(self, run: Run) -> list[Record]:
        try:
            return self._read(run).records
        except (OffsetOutOfRangeError, CorruptionError):
            return []  # the dead letter says so

    # Looking and administration -------------------------------------------------------------------

    def owners(self) -> set[str]:
        """Who holds messages now, the living and the dead."""
        with self._reading_state() as state:
            return state.owners()

    def progress(self) -> Progress:
        """How far the queue is."""
        self.look()
        with self._reading_state() as state:
            return Progress(*state.head, state.counts())

    def lag(self) -> int:
        """How many messages are not done; those that were never looked at count by their offsets."""
        progress = self.progress()
        return sum(progress.counts) + max(0, self.log.offsets().high_watermark - progress.next_offset)

    def reset(self, offset: int) -> None:
        """Go on at *offset*, durably: everything below is done, everything else is delivered (again)."""
        self.log.sync_below(offset)
        prefix = QueueBlockEvent.prefix_of(self.subscription.id, *self.place)
        with self._directory.journal.exclusive() as turn:
            self._check_exists()
            # Not one block that is in the journal may be missed: it would call messages done.
            blocks = [(key, None) for key, _ in self._directory.view.events.items(prefix)]
            turn.write([item_of(QueueEvent(self.subscription.id, *self.place, offset)), *blocks])
            with self._transaction() as state:
                state.begin(offset, {})
        self._directory.signal(queue_signal(self.subscription))

    def forget(self) -> None:
        """Remove the rows of a subscription that was deleted."""
        with self._transaction() as state:
            state.clear()
        self._aftermath.forget_hands()

    # Its parts ------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[QueueState]:
        """The state, to be changed: nobody else changes it meanwhile."""
        with self._directory.view.write() as transaction:
            yield self._state(transaction)

    @contextmanager
    def _reading_state(self) -> Iterator[QueueState]:
        """The state as it is now, which is not to be changed."""
        with self._directory.view.read() as transaction:
            yield self._state(transaction)

    def _state(self, transaction: Transaction) -> QueueState:
        return QueueState(self._directory.view.queue_rows(transaction, self._prefix), self._settings)

    def _change(self, change: Callable[[QueueState], object]) -> None:
        """Change the state under the journal's lock; what of it must last does so with the next that waits."""

        def without_loss(state: QueueState) -> list[Range]:
            change(state)  # what is not held when it is given back, others have by now
            return []

        pending = self._pending(without_loss, lambda _place, _ranges: None)
        self._directory.journal.decide(pending.decide, take_back=pending.take_back, is_lasting=False)
        pending.settle()

    def _pending(
        self, change: Callable[[QueueState], list[Range]], lost: Lost, *, in_transaction: bool = False
    ) -> PendingCommit:
        settled: list[Run] = []
        woke: list[bool] = []

        def decide() -> list[Item]:
            self._aftermath.ask_the_journal()
            is_live = self._is_live()  # asked out here: no thread goes into the view twice
            with self._transaction() as state:
                if not is_live:
                    state.clear()  # a topic of the same name must not begin with what is journaled now
                not_held = change(state)
                if not_held:
                    lost(self.place, not_held)
                settled.extend(state.settled)
                if in_transaction and settled:
                    self._aftermath.note(state.rows, settled)
                woke.append(state.woke_others)
                return self._items(state)

        def take_back() -> None:
            if settled:
                self._aftermath.restore(settled)

        def settle() -> None:
            if in_transaction and settled:
                self._aftermath.forget_note(settled)
            if any(woke):
                self._directory.signal(queue_signal(self.subscription))

        return PendingCommit(decide, take_back, settle)

    def _now_ms(self) -> int:
        return self._directory.clock.monotonic_ms()

    def _items(self, state: QueueState) -> list[Item]:
        subscription_id = self.subscription.id
        changes = state.changes()
        items: list[Item] = []
        if changes.start_offset is not None:
            items.append(item_of(QueueEvent(subscription_id, *self.place, changes.start_offset)))
        for block, change in changes.blocks.items():
            attempts = encode_attempts(change.attempts)
            event = QueueBlockEvent(subscription_id, *self.place, block, change.done, attempts)
            items.append(item_of(event))
        items += [
            (QueueBlockEvent.key_of(subscription_id, *self.place, block), None)
            for block in changes.dropped_blocks
        ]
        return items

    def _load(self) -> None:
        """Fill the rows from the journal: the view was rebuilt, or nobody has received here before."""
        with self._directory.journal.exclusive() as turn:
            self._check_exists()
            key = QueueEvent.key_of(self.subscription.id, *self.place)
            event = self._directory.view.events.get(QueueEvent, key)
            if event is None:  # the partition came to be after the subscription: all of it counts
                event = QueueEvent(self.subscription.id, *self.place, self.log.offsets().log_start_offset)
                turn.record([event])
            prefix = QueueBlockEvent.prefix_of(self.subscription.id, *self.place)
            blocks = {
                block.block: BlockChange(block.done, decode_attempts(block.attempts))
                for block in self._directory.view.events.all(QueueBlockEvent, prefix)
            }
            with self._transaction() as state:
                if not state.exists:
                    state.begin(event.start_offset, blocks)

    def _is_live(self) -> bool:
        """Whether the topic is there, and is not being deleted; exact under the journal's lock."""
        topic, _ = self.place
        try:
            return self._directory.topic(topic).topic_id == self.log.topic_id
        except TopicNotFoundError:
            return False

    def _check_exists(self) -> None:
        if not self._is_live():
            raise TopicNotFoundError(self.place[0], partition=self.place[1])
        key = SubscriptionEvent.key_of(self.subscription.id)
        if self._directory.view.events.value(key) is None:
            raise SubscriptionNotFoundError(self.subscription.name)


def queue_signal(subscription: Subscription) -> str:
    """What is touched when messages of the queue are to be had again."""
    return f"queue-{subscription.id}"


def ranges_of(offsets: Sequence[int]) -> list[Range]:
    """*offsets*, in any order, as ascending ranges, both ends inclusive."""
    if offsets and offsets == list(range(offsets[0], offsets[0] + len(offsets))):
        return [(offsets[0], offsets[-1])]  # as they mostly are: 1 µs for a hundred instead of 25
    ranges: list[Range] = []
    for _, group in groupby(enumerate(sorted(set(offsets))), key=lambda pair: pair[1] - pair[0]):
        run = [offset for _, offset in group]
        ranges.append((run[0], run[-1]))
    return ranges
