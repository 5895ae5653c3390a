"""Transactions of clients over the network, on the coordinator that embedded transactions have.

What a client of a transactional id tells with each request, producer id and epoch, is all that a claim is: nothing
is kept between requests but the offsets that a transaction will commit. Those wait in memory. The server is the
holder's process: when it dies the transaction is aborted, so no commit can come to lack them. That there were such
offsets is journaled before they are answered for, because nothing else may be left of the transaction.

    a request of a holder      the server was restarted since
    no transaction             it goes on
    one of which nothing       it goes on too; that partitions were added is forgotten, so a batch adds its own
      was written
    one that was decided       it is answered again; markers that are missing are written first
    one that was in progress   its transaction is gone, whether somebody has aborted it yet or not: the client has
                               to abort it, and begin anew

    transactions    a batch's partition is added by    at the end
    version 1       AddPartitionsToTxn, before it      the epoch stays
    version 2       the batch itself (KIP-890)         the epoch grows, which the answer tells

Used in threads; safe across them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec
from kio.schema.errors import ErrorCode

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError, InvalidRequestError, TopicNotFoundError
from logbroker_storage.events import OffsetEvent

from ..commits import PendingCommit
from ..groups import TopicPartition
from ..holdings import Claim, Holding
from ..topic_names import check_transactional_id
from ..transaction_coordinator import LAST_EPOCH, TransactionCoordinator
from .error_codes import RefusedError

OFFSETS_PLACE: TopicPartition = (
    "__consumer_offsets",
    0,
)  # stands for offsets among a transaction's partitions
MAX_TIMEOUT_MS = 15 * 60 * 1000  # Kafka's transaction.max.timeout.ms


class _Waiting(msgspec.Struct, frozen=True):
    """Offsets that a transaction will commit."""

    claim: Claim
    events: tuple[OffsetEvent, ...]


class NetworkTransactions:
    """The transactions that clients of one server have."""

    def __init__(self, directory: DataDirectory, coordinator: TransactionCoordinator) -> None:
        self._directory = directory
        self._coordinator = coordinator
        self._lock = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}  # by transactional id; guarded by _lock

    def begin_holding(
        self,
        transactional_id: str,
        *,
        timeout_ms: int,
        producer_id: int,
        producer_epoch: int,
        fenced: ErrorCode,
    ) -> Claim:
        """InitProducerId: become the holder of the id, or (with the producer's own id and epoch) begin anew.

        Raises:
            RefusedError: the timeout or the id cannot be used, or (*fenced*) the producer is not the holder any more.
        """
        try:
            check_transactional_id(transactional_id)
        except InvalidRequestError as error:
            raise RefusedError(ErrorCode.invalid_request, str(error)) from error
        if not 0 < timeout_ms <= MAX_TIMEOUT_MS:
            raise RefusedError(ErrorCode.invalid_transaction_timeout)
        claim = None
        if producer_id >= 0:
            # Its answer may have been lost, or its transaction been aborted for it.
            own = Claim(transactional_id, producer_id, producer_epoch)
            claim = self._coordinator.raised(own)
            if claim is None:
                self._check_newest(own, fenced)
        if claim is None:
            claim = self._coordinator.claim(
                transactional_id, timeout_ms=timeout_ms, by_holder=producer_id >= 0
            )
        with self._lock:
            self._waiting.pop(transactional_id, None)
        return claim

    def _check_newest(self, claim: Claim, fenced: ErrorCode) -> None:
        """That nobody has claimed the id since; whatever became of the transaction.

        An id that nobody ever claimed, or that was forgotten, is anybody's, as in Kafka: some clients always tell a
        producer id, 0 at first.

        Raises:
            RefusedError: somebody has.
        """
        known = self._coordinator.event(claim.transactional_id)
        if known is None:
            return
        holding = self._coordinator.holdings.of(claim.transactional_id)
        if holding is not None:
            newest = claim._replace(producer_id=holding.producer_id, epoch=holding.epoch)
        else:
            newest = claim._replace(producer_id=known.producer_id, epoch=known.following_epoch)
        if newest != claim:
            raise RefusedError(fenced)

    def _held(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        fenced: ErrorCode,
        ended: ErrorCode = ErrorCode.invalid_producer_id_mapping,
    ) -> Holding:
        """What the producer holds.

        Raises:
            RefusedError: the id has another holder, *fenced* when that is a newer one; or the transaction ended with
                the server that began it (*ended*), or the id was forgotten: librdkafka then aborts
                (INVALID_PRODUCER_EPOCH would be fatal to it).
        """
        holding = self._holding(Claim(transactional_id, producer_id, producer_epoch))
        if holding is None:
            is_forgotten = self._coordinator.event(transactional_id) is None
            raise RefusedError(ErrorCode.invalid_producer_id_mapping if is_forgotten else ended)
        if holding.producer_id != producer_id:
            raise RefusedError(ErrorCode.invalid_producer_id_mapping)
        if holding.epoch != producer_epoch:
            raise RefusedError(fenced)
        return holding

    def _holding(self, claim: Claim) -> Holding | None:
        """Who holds the id; None when the claim's transaction ended with the server that began it."""
        holding = self._coordinator.holdings.seen(claim)
        if holding is None or holding.process_id != self._directory.process_id:  # the server was restarted
            return self._coordinator.resume(claim)
        return holding

    def add_partitions(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        places: Sequence[TopicPartition],
        *,
        fenced: ErrorCode,
        verify_only: bool = False,
    ) -> None:
        """Have *places* be of the transaction, or (*verify_only*) see that they are.

        Raises:
            RefusedError: the producer is not the holder, or the places are not of its transaction.
        """
        holding = self._held(transactional_id, producer_id, producer_epoch, fenced)
        missing = [place for place in places if place not in holding.partitions]
        if missing and verify_only:
            raise RefusedError(ErrorCode.transaction_abortable, "the partition is not of the transaction")
        if missing:
            claim = Claim(transactional_id, producer_id, producer_epoch)
            self._coordinator.holdings.add_partitions(claim, missing)

    def check_batch(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        place: TopicPartition,
        *,
        adds: bool,
    ) -> None:
        """That a transactional batch may go to *place*; with *adds* it is what begins the transaction there.

        So it is after a restart: to refuse what was added before it would have the commit succeed without it.

        Raises:
            RefusedError, FencedError: it may not.
        """
        # Java aborts for this one, and goes on; for the other its producer would end.
        ended = ErrorCode.invalid_producer_epoch if adds else ErrorCode.invalid_producer_id_mapping
        holding = self._held(
            transactional_id, producer_id, producer_epoch, ErrorCode.invalid_producer_epoch, ended
        )
        if place in holding.partitions:
            return
        if not adds and not holding.is_resumed:
            raise RefusedError(
                ErrorCode.invalid_txn_state, f"{place[0]}-{place[1]} was not added to the transaction"
            )
        self._coordinator.holdings.add_partitions(
            Claim(transactional_id, producer_id, producer_epoch), [place]
        )

    # Offsets --------------------------------------------------------------------------------------------

    def check_holder(
        self, transactional_id: str, producer_id: int, producer_epoch: int, *, fenced: ErrorCode
    ) -> None:
        """That the producer is the holder; raises as ``add_partitions``."""
        self._held(transactional_id, producer_id, producer_epoch, fenced)

    def add_offsets(self, claim: Claim, events: Sequence[OffsetEvent], *, fenced: ErrorCode) -> None:
        """Have the transaction commit *events*; a later one of a partition replaces an earlier one.

        Raises:
            RefusedError: as ``add_partitions``.
            StorageFailedError, WriteFailedError: try again.
        """
        holding = self._held(claim.transactional_id, claim.producer_id, claim.epoch, fenced)
        if OFFSETS_PLACE not in holding.partitions:
            self._check_finished(claim)  # the note takes the place of the decision before
            self._coordinator.begin_in_memory(claim, OFFSETS_PLACE)
        with self._lock:
            waiting = self._waiting.get(claim.transactional_id)
            before = waiting.events if waiting is not None and waiting.claim == claim else ()
            by_key = {event.key(): event for event in (*before, *events)}
            self._waiting[claim.transactional_id] = _Waiting(claim, tuple(by_key.values()))

    def pending_offsets(self, group_id: str) -> frozenset[TopicPartition]:
        """The partitions whose committed offset some transaction is about to change."""
        with self._lock:
            return frozenset(
                (event.topic, event.partition)
                for waiting in self._waiting.values()
                for event in waiting.events
                if event.group == group_id
            )

    def abort_expired(self) -> int:
        """Abort transactions that have offsets to commit and took too long; how many.

        Those that only have records are found in the logs, by any process (``abort_orphans``).
        """
        with self._lock:
            waiting = list(self._waiting.values())
        return sum(self._abort_if_expired(found) for found in waiting)

    def _abort_if_expired(self, waiting: _Waiting) -> bool:
        claim = waiting.claim
        holding = self._coordinator.holdings.of(claim.transactional_id)
        if holding is not None and holding.is_held_by(claim):
            if self._coordinator.holdings.is_in_time(holding):
                return False
            try:
                self._coordinator.abort(claim)
            except FencedError:
                pass  # its holder, or a newer one, has just ended it
        with self._lock:
            if self._waiting.get(claim.transactional_id) is waiting:
                del self._waiting[claim.transactional_id]
        return True

    # Ending ---------------------------------------------------------------------------------------------

    def end(self, claim: Claim, *, commit: bool, keeps_epoch: bool, fenced: ErrorCode) -> Claim:
        """EndTxn: commit or abort the transaction; what the producer goes on with.

        An end that was answered, and whose answer was lost, is answered again.

        Raises:
            RefusedError: the producer is not the holder, or the transaction ended the other way.
            StorageFailedError, WriteFailedError: try again.
        """
        again = self._answered_again(claim, commit=commit, keeps_epoch=keeps_epoch)
        if again is not None:
            return again
        if not commit and not keeps_epoch:
            begun_anew = self._aborted_with_its_server(claim, fenced)
            if begun_anew is not None:
                return begun_anew
        holding = self._held(claim.transactional_id, claim.producer_id, claim.epoch, fenced)
        if not holding.partitions:
            self._check_not_ended(claim, holding)
            return claim  # nothing was begun: there is nothing to end
        with self._lock:
            waiting = self._waiting.get(claim.transactional_id)
        if commit:
            events = waiting.events if waiting is not None and waiting.claim == claim else ()
            self._make_durable(holding)
            self._directory.sync_below(events)
            following = self._coordinator.commit(
                claim, commits=[PendingCommit.of(events)] if events else [], keeps_epoch=keeps_epoch
            )
        else:
            aborted = self._coordinator.abort(claim, keeps_epoch=keeps_epoch)
            if aborted is None:
                raise RefusedError(ErrorCode.invalid_txn_state, "the transaction was committed")
            following = aborted
        with self._lock:
            if self._waiting.get(claim.transactional_id) is waiting:
                self._waiting.pop(claim.transactional_id, None)
        self._check_finished(claim)
        if following.epoch > LAST_EPOCH:
            return self._coordinator.claim(claim.transactional_id, timeout_ms=holding.timeout_ms)
        return following

    def _make_durable(self, holding: Holding) -> None:
        for topic, partition in holding.partitions:
            try:
                log = self._directory.log(topic, partition)
                log.wait_durable(log.offsets().log_end_offset)
            except TopicNotFoundError:
                continue  # deleted meanwhile, with what was written to it; or the offsets' place

    def _check_finished(self, claim: Claim) -> None:
        """That the next transaction may begin: the markers of this one are written."""
        holding = self._coordinator.holdings.of(claim.transactional_id)
        decided = self._coordinator.event(claim.transactional_id)
        if holding is not None and decided is not None and holding.is_ended_by(decided):
            raise RefusedError(ErrorCode.concurrent_transactions, "its markers are still to be written")

    def _check_not_ended(self, claim: Claim, holding: Holding) -> None:
        """That the producer means no transaction that ended the other way, the answer to which may have been lost.

        After a restart it may mean the next one, of which only that partitions were added was forgotten.
        """
        known = self._coordinator.event(claim.transactional_id)
        if (
            known is not None
            and known.is_decided
            and holding.is_held_by(claim._replace(producer_id=known.producer_id, epoch=known.epoch))
            and not holding.is_resumed
        ):
            ended = "committed" if known.state == "commit" else "aborted"
            raise RefusedError(ErrorCode.invalid_txn_state, f"the transaction was {ended}")

    def _aborted_with_its_server(self, claim: Claim, fenced: ErrorCode) -> Claim | None:
        """What the producer goes on with whose transaction ended as it asks now; None of any other."""
        known = self._coordinator.event(claim.transactional_id)
        if known is None or self._holding(claim) is not None:
            return None
        return self.begin_holding(
            claim.transactional_id,
            timeout_ms=known.timeout_ms,
            producer_id=claim.producer_id,
            producer_epoch=claim.epoch,
            fenced=fenced,
        )

    def _answered_again(self, claim: Claim, *, commit: bool, keeps_epoch: bool) -> Claim | None:
        """What an end was answered with that the producer asks for a second time."""
        known = self._coordinator.event(claim.transactional_id)
        if known is None or known.epoch != claim.epoch or known.state != ("commit" if commit else "abort"):
            return None
        following = claim._replace(epoch=known.following_epoch)
        if known.state == "abort" and following != claim and not known.holder_goes_on:
            return None  # by whoever claimed the id since: the next epoch is not the producer's
        if keeps_epoch and following != claim:
            return None  # it was aborted for the producer, which would not hear with what epoch it goes on
        holding = self._holding(following)
        if holding is None or not holding.is_held_by(following):
            return None
        if holding.partitions and following == claim:
            return None  # the next transaction of this epoch
        if holding.partitions and not self._coordinator.finish_abort(known):
            raise RefusedError(ErrorCode.concurrent_transactions, "its markers are still to be written")
        return following
