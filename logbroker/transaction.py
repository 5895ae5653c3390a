"""Transactions: ``with broker.transaction("enricher") as tx`` writes all of it or nothing.

    leaving the block          what happens
    normally                   every record is synced; one journal event decides the commit together with the
                               offsets; markers show the records to readers
    with an exception          the transaction is aborted, and the exception goes on
    the process dies           aborted by whoever comes by, or finished if it was decided

A ``Holder`` keeps a transactional id between transactions, so that only the first of a loop claims it. Each
transaction looks whether the claim is still the newest; somebody who has it by now is fenced by a new claim. Of the
ids that have no transaction open, those used last are kept, ``IDLE_HOLDERS`` of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    ClosedError,
    FencedError,
    InvalidRequestError,
    LogbrokerError,
)
from logbroker_storage.journal import Item

from .arguments import place, positive_milliseconds, several
from .commits import PendingCommit
from .consumer import Consumer
from .holdings import Claim, fenced
from .producer import Producer
from .queues.message import Hands, QueueMessage
from .receipts import Receipt
from .records import HeadersArgument, Message, SendOptions
from .transaction_coordinator import TransactionCoordinator
from .transaction_state import StateTable, TransactionState
from .transactional_sequences import TransactionalSequences

if TYPE_CHECKING:
    from .groups import TopicPartition

logger = logging.getLogger("logbroker.transactions")

COMMITTED, ABORTED, IN_DOUBT = "committed", "aborted", "in doubt"

# A fenced holder's batches and commit are refused in any case; a look costs 4 µs, a send without it 1.
LOOK_S = 0.001
# Each takes some 14 KB. An id whose holder was dropped is claimed anew, for one event of the journal.
IDLE_HOLDERS = 1000
LINGER_S = 0.05  # a commit flushes: batches need not go out earlier for anybody's sake


_Ended = Callable[["Transaction", "Holder"], None]


class Holder:
    """One transactional id as this process holds it: its claim and its producer."""

    def __init__(self, directory: DataDirectory, coordinator: TransactionCoordinator, name: str) -> None:
        self.transactional_id = name
        self.coordinator = coordinator
        self.sequences = TransactionalSequences(coordinator)
        self.producer = Producer(directory, sequences=self.sequences, linger=LINGER_S)
        self.claim: Claim | None = None
        self._timeout_ms = -1  # of the claim
        self.directory = directory
        self._state_table: StateTable | None = None

    def begin(self, timeout_ms: int) -> Claim:
        """Be the newest holder, with nothing open."""
        claim = self.claim
        if claim is None or timeout_ms != self._timeout_ms or not self.coordinator.is_current(claim):
            self.claim = None
            claim = self.claim = self.coordinator.claim(self.transactional_id, timeout_ms=timeout_ms)
            self._timeout_ms = timeout_ms
        self.sequences.begin(claim)
        return claim

    def state_table(self) -> StateTable:
        """The committed state of the id, up to date. For the holder: nobody else adds to it meanwhile."""
        if self._state_table is None:
            self._state_table = StateTable(self.directory, self.transactional_id)
        self._state_table.catch_up()
        return self._state_table

    def close(self) -> None:
        self.producer.close()


class Transactions:
    """The transactions of one broker handle. Safe across threads."""

    def __init__(self, directory: DataDirectory, coordinator: TransactionCoordinator) -> None:
        self._directory = directory
        self._coordinator = coordinator
        self._idle: dict[str, Holder] = {}  # by id, the one that was used last at the end; guarded by _lock
        self._open: set[Transaction] = set()  # guarded by _lock
        self._closed = False  # written under _lock, once
        self._lock = threading.Lock()
        self._task = f"open transactions of {id(self)}"  # a process may have several handles on the directory
        directory.maintenance.add_task(self._task, self._be_seen)

    def _be_seen(self) -> None:
        """Have no id forgotten whose transaction is open, however long that waits for its first record."""
        with self._lock:
            claims = [transaction._claim for transaction in self._open]
        for claim in claims:
            self._coordinator.holdings.seen(claim)

    def begin(self, transactional_id: str, timeout: float) -> Transaction:
        timeout_ms = positive_milliseconds("timeout", timeout)
        self.check_open()
        with self._lock:
            holder = self._idle.pop(transactional_id, None)
        if holder is None:
            holder = Holder(self._directory, self._coordinator, transactional_id)
        try:
            claim = holder.begin(timeout_ms)
        except BaseException:
            holder.close()
            raise
        transaction = Transaction(holder, claim, self._ended)
        with self._lock:
            if not self._closed:
                self._open.add(transaction)
                return transaction
        transaction.abort()
        raise _broker_closed()

    def check_open(self) -> None:
        """Raises ClosedError once the broker was closed; for whoever works on in a thread of its own."""
        if self._closed:
            raise _broker_closed()

    def _ended(self, transaction: Transaction, holder: Holder) -> None:
        with self._lock:
            self._open.discard(transaction)
            is_kept = not self._closed and holder.transactional_id not in self._idle
            if is_kept:
                self._idle[holder.transactional_id] = holder
        if is_kept:
            self._drop_surplus()
        else:
            holder.close()

    def _drop_surplus(self) -> None:
        with self._lock:
            if len(self._idle) <= IDLE_HOLDERS:
                return
            oldest = self._idle.pop(next(iter(self._idle)))
        try:
            oldest.close()
        except LogbrokerError as error:  # no business of the transaction that has just ended
            logger.warning("what transactional id %r held is not closed: %s", oldest.transactional_id, error)

    def close(self) -> None:
        """Abort what is open."""
        if not self._directory.closed:  # else its maintenance is over, or a parent's
            self._directory.maintenance.remove_task(self._task)
        with self._lock:
            self._closed = True
            transactions, holders = list(self._open), list(self._idle.values())
            self._idle.clear()
        for transaction in transactions:
            transaction.cut_off()
        for holder in holders:
            holder.close()


def _broker_closed() -> ClosedError:
    return ClosedError("the broker was closed; call logbroker.open() again")


class Transaction:
    """Records to several partitions, and consumers' offsets, that become visible together or never.

    Use ``with broker.transaction(id) as tx``, or end it with ``commit`` or ``abort``. Its methods are for one
    thread at a time.
    """

    def __init__(self, holder: Holder, claim: Claim, ended: _Ended) -> None:
        """Use ``broker.transaction()``."""
        self._holder = holder
        self._claim = claim
        self._ended = ended
        self._consumers: dict[Consumer, dict[TopicPartition | None, PendingCommit]] = {}  # None: of all
        self._commits: list[PendingCommit] = []  # of others than consumers
        self._outcome: str | None = None  # how it ended
        self._may_be_committed = False
        self._next_look = 0.0  # at whether the claim is still the newest
        self._state: TransactionState | None = None
        self._was_cut_off = False  # nobody asked for its end

    @property
    def state(self) -> TransactionState:
        """The key-value store of this transactional id; what is written to it is part of the transaction."""
        self._check_open()
        if self._state is None:
            self._state = TransactionState(self._holder.state_table())
        return self._state

    @property
    def transactional_id(self) -> str:
        """The id that it was begun with."""
        return self._claim.transactional_id

    @property
    def is_open(self) -> bool:
        """Whether it was neither committed nor aborted."""
        return self._outcome is None

    def __repr__(self) -> str:
        return f"<Transaction {self.transactional_id!r} {self._outcome or 'open'}>"

    # Inside ---------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        **options: Unpack[SendOptions],
    ) -> Receipt:
        """Write one record as part of the transaction; arguments and errors as ``Producer.send``.

        The receipt says that the record is in its log, not that it was committed. After a failed record the
        transaction can only be aborted.
        """
        self._check_open()
        return self._holder.producer.send(topic, value, key, headers, **options)

    def send_many(
        self,
        topic: str,
        values: Iterable[bytes | Message | None],
        *,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> int:
        """Write many records as part of the transaction; as ``Producer.send_many``."""
        self._check_open()
        return self._holder.producer.send_many(topic, values, key=key, partition=partition)

    def commit_offsets(self, consumer: Consumer, *, only: TopicPartition | None = None) -> None:
        """Commit, together with the records, that everything *consumer* has handed out so far is done.

        *only* names the one (topic, partition) that this transaction is about. From now on the consumer commits
        nothing by itself. If the transaction is aborted, it goes back to what its group has committed. Give it
        ``delivery="manual"`` from the start.

        Raises:
            InvalidRequestError: the consumer has no group, commits before it hands out (at-most-once), or reads
                another directory.
            FencedError: a partition that it read has moved to another member of the group.
        """
        self._check_open()
        if not isinstance(consumer, Consumer):
            raise InvalidRequestError(f"commit_offsets takes a consumer, not {consumer!r:.100}")
        if only is not None:
            place(only)
        commit = consumer.leave_commits_to_transactions(self._holder.directory, only)
        if only is None:
            self._consumers[consumer] = {}  # it says everything that was said before
        self._consumers.setdefault(consumer, {})[only] = commit

    def accept(self, messages: Iterable[QueueMessage]) -> None:
        """Accept *messages* of queues together with the records: done with if it commits, still in hand if not.

        Committing raises ``LeaseLostError``, and aborts, when one of them is no longer in its consumer's hands.

        Raises:
            InvalidRequestError: one of them is of another directory; none is accepted.
        """
        self._check_open()
        by_queue: dict[Hands, list[QueueMessage]] = {}
        for message in several("messages", messages):
            if not isinstance(message, QueueMessage):
                raise InvalidRequestError(
                    f"a transaction accepts messages that a queue has handed out, not {message!r:.100}"
                )
            by_queue.setdefault(message.queue, []).append(message)
        directory = self._holder.directory
        for commit in [
            commit for queue, own in by_queue.items() for commit in queue.pending_acceptance(own, directory)
        ]:
            self.commit_with(commit)

    # The end --------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make it all visible, durably. Whatever it raises but StorageFailedError: nothing of it will be seen.

        Raises:
            LogbrokerError: the first failure of a record, and the transaction was aborted.
            FencedError: a newer holder has the id, the transaction timed out, or a consumer's partition has
                moved to another member; it was aborted.
            StorageFailedError: whether it is committed may be unknown. The next transaction of the id finds out.
        """
        self._check_open()
        holder = self._holder
        try:
            self._send_state()
            holder.producer.flush()
            if holder.sequences.failure is not None:
                raise holder.sequences.failure.with_traceback(None)
            self._decide_commit()
        except BaseException as error:
            self._abort()
            if self._outcome != COMMITTED or not isinstance(error, Exception):
                raise
            logger.warning("transaction of %r is committed, in spite of: %s", self.transactional_id, error)
        else:
            self._end(COMMITTED)
        for commit in self._pending():
            commit.settle()

    def commit_with(self, commit: PendingCommit) -> None:
        """Have *commit* decided together with the transaction."""
        self._check_open()
        self._commits.append(commit)

    def _pending(self) -> list[PendingCommit]:
        of_consumers = [commit for by_place in self._consumers.values() for commit in by_place.values()]
        return [*of_consumers, *self._commits]

    def _send_state(self) -> None:
        if self._state is not None:
            for key, value in self._state.writes.items():
                self._holder.producer.send(self._state.topic, value, key=key, partition=0)

    def _decide_commit(self) -> None:
        pending = self._pending()
        if not pending and not self._holder.sequences.has_written:
            return
        commits = [*pending, PendingCommit(self._note_decision)]
        self._holder.claim = self._holder.coordinator.commit(self._claim, commits=commits)

    def _note_decision(self) -> list[Item]:
        """Nobody has refused: the decision is written next."""
        self._may_be_committed = True
        return []

    def abort(self) -> None:
        """Take it all back. Nothing happens when it has ended already."""
        if self._outcome is None:
            self._abort()

    def cut_off(self) -> None:
        """Abort it because the broker is being closed."""
        self._was_cut_off = True
        self.abort()

    def _abort(self) -> None:
        """Take it back, unless a commit that was broken off turns out to have been decided."""
        holder = self._holder
        holder.claim = None  # until it is known
        holder.sequences.give_up(
            InvalidRequestError(f"transaction {self.transactional_id!r} was aborted; begin another")
        )
        outcome = IN_DOUBT if self._may_be_committed else ABORTED
        try:
            outcome = self._taken_back(outcome)
        finally:
            self._end(outcome)
        if outcome == ABORTED:
            for consumer in self._consumers:
                consumer.return_to_committed()

    def _taken_back(self, outcome: str) -> str:
        """How the transaction ended; *outcome* where that cannot be told now."""
        holder = self._holder
        try:
            holder.producer.flush()
        except LogbrokerError as error:
            logger.debug("aborted transaction of %r: %s", self.transactional_id, error)  # as was asked for
        if not holder.sequences.has_written and not self._may_be_committed:
            holder.claim = self._claim
            return ABORTED
        try:
            holder.claim = holder.coordinator.abort(self._claim)
        except FencedError:
            return outcome  # whoever fenced it has aborted what was not committed
        except LogbrokerError as error:
            logger.warning(
                "transaction of %r could not be aborted now, and will be by the next holder or after its "
                "timeout: %s",
                self.transactional_id,
                error,
            )
            return outcome
        return COMMITTED if holder.claim is None else ABORTED

    def _end(self, outcome: str) -> None:
        self._outcome = outcome
        if self._state is not None:
            self._state.is_open = False
        self._ended(self, self._holder)

    def _check_open(self) -> None:
        if self._outcome is not None:
            raise InvalidRequestError(
                f"transaction {self.transactional_id!r} is {self._outcome}; begin another with "
                "broker.transaction()"
            )
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            if not self._holder.coordinator.is_current(self._claim):
                raise fenced(self._claim)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or abort when an exception passes; nothing more when it has ended already."""
        if error is None:
            self.leave()
        else:
            self.abort()

    def leave(self) -> None:
        """At the end of a block: commit, if it has not ended already.

        Raises:
            ClosedError: it was aborted because the broker was closed.
            as ``commit``.
        """
        if self._outcome is None:
            self.commit()
        elif self._was_cut_off:
            raise ClosedError(
                f"the broker was closed before transaction {self.transactional_id!r} was committed: it was aborted"
            )
