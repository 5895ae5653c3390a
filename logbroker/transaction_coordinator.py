"""The ends of transactions: who may decide, what is decided, and the markers that say so in the log.

There is no coordinator process. Every process does the same steps on what all of them share:

    fact                                  where                       life
    a holder, and what its transaction    view, volatile (Holding)    gone when nobody has the directory open
      has begun to write to
    that it was begun, where only its     journal (TransactionEvent)  durable, until it is decided
    process knows what it will commit
    the decision, with the offsets        journal (TransactionEvent)  durable: one event a transaction
    what the decision says, for readers   markers in the partitions   redone from the event wherever missing

    step of an end      a process that dies before the next step leaves
    1 data is synced    an open transaction: aborted, as no event decides it
    2 the event         a decided one: whoever comes first writes its markers
    3 the markers       nothing but a Holding that still names the partitions
    4 Holding cleared   (done)

**Fencing.** A claim raises the epoch in Holding before anything else. A partition is added to a transaction in
one step with a look at that epoch, and before the first batch goes there: so the claimer knows every partition
that an older holder may still write to, and a marker in each of them refuses what comes late.

**Epochs.** The markers of a transaction of epoch *e* carry e + 1, and so does the next transaction (KIP-890). An
end is about one epoch and can therefore not hit a later transaction, however late it comes. Kafka's older clients
keep their epoch: then a decision names where each log ended, and its markers end only what began before that.

Takers (``claim``, ``abort``, ``abort_orphans``) work under ``Journal.exclusive``, a commit under the journal's
check: one of two that disagree comes first, and the other sees it. So a commit that was broken off (a signal, a
full disk) is not aborted behind its own back: ``abort`` sees whether it was decided. Markers are written once,
whoever writes them (``PartitionLog.append_marker``).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError, StorageFailedError, TopicNotFoundError
from logbroker_storage.events import TransactionEvent
from logbroker_storage.journal import Item, JournalTurn, item_of
from logbroker_storage.record_batch import ControlType
from logbroker_storage.view import OpenTransaction, partition_key

from .commits import PendingCommit, together
from .groups import TopicPartition
from .holdings import Claim, Holding, Holdings, fenced

logger = logging.getLogger("logbroker.transactions")

MAX_EPOCH = (1 << 15) - 1  # of an int16
LAST_EPOCH = MAX_EPOCH - 2  # of ours: the marker behind it still has one
NOWHERE: TopicPartition = ("", -1)


class TransactionCoordinator:
    """The transactions of a directory. Safe across threads and processes; what it keeps is a help only."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self.holdings = Holdings(directory)
        # The transactional ids of the producer ids that were asked for last; replaced whole, so it needs no lock.
        self._ids: dict[int, str] = {}

    # Looking --------------------------------------------------------------------------------------

    def event(self, transactional_id: str) -> TransactionEvent | None:
        """How the id's last transaction ended; None when it was never claimed, or was forgotten."""
        return self._directory.view.events.get(TransactionEvent, TransactionEvent.key_of(transactional_id))

    def is_current(self, claim: Claim) -> bool:
        """Whether nobody has claimed the id since, and there is an epoch left to use.

        If so, the id is not forgotten in the next days.
        """
        if claim.epoch > LAST_EPOCH:
            return False
        holding = self.holdings.seen(claim)
        return holding is not None and holding.is_held_by(claim)

    # Holding an id --------------------------------------------------------------------------------

    def claim(self, transactional_id: str, *, timeout_ms: int, by_holder: bool = False) -> Claim:
        """Become the holder of the id: what an older holder left is finished or aborted, and it is fenced.

        Durable when it returns. *by_holder* says that it is the holder itself that begins anew.

        Raises:
            StorageFailedError, WriteFailedError: the id may be claimed or not; claim it again.
        """
        directory = self._directory
        fresh_id = directory.producer_ids.allocate()
        with directory.journal.exclusive() as turn:
            return self._take_over(
                turn,
                transactional_id,
                fresh_id,
                directory.process_id,
                timeout_ms,
                holder_goes_on=by_holder,
            )

    def resume(self, claim: Claim) -> Holding | None:
        """Make whoever held the id through another process, which is gone, hold it through this one.

        What was decided is finished first. None when it was somebody else, who is gone too, or a transaction was in
        progress: that is aborted, by whoever comes first, perhaps before this. When somebody else holds the id, or
        the claim is held through this process already: by whom.

        Partitions that were added with no batch in them may be forgotten. The transaction goes on then, because
        nothing that was answered for is missing from it.
        """
        with self._directory.journal.exclusive():
            holding = self.holdings.of(claim.transactional_id)
            known = self.event(claim.transactional_id)
            if known is None or (holding is not None and holding.process_id == self._directory.process_id):
                return holding
            if holding is None or holding.is_ended_by(known):
                current = claim._replace(producer_id=known.producer_id, epoch=known.following_epoch)
                number = 0 if known.ends is None else known.number + 1
                timeout_ms = known.timeout_ms
            else:
                current = claim._replace(producer_id=holding.producer_id, epoch=holding.epoch)
                number, timeout_ms = holding.number, holding.timeout_ms
            if current != claim:
                return None if self._is_aborted_for(claim, known, holding) else holding
            if holding is None and known.state == "begun":
                return None
            if holding is not None and holding.partitions and not holding.is_ended_by(known):
                return None
            return self._resume(claim, known, number, timeout_ms)

    def _is_aborted_for(self, claim: Claim, known: TransactionEvent, holding: Holding | None) -> bool:
        """Whether somebody else aborted the claim's transaction, and nobody has had the id since."""
        is_unheld = holding is None or holding.process_id is None
        is_of_claim = (known.producer_id, known.epoch) == (claim.producer_id, claim.epoch)
        return is_unheld and is_of_claim and known.state == "abort" and known.holder_goes_on

    def _resume(self, claim: Claim, known: TransactionEvent, number: int, timeout_ms: int) -> Holding | None:
        """Under the journal's lock: nobody else writes for the claim."""
        self._adopt_everywhere()
        if known.is_decided:
            self._write_markers(known)
        if self._open_places(claim.producer_id):
            return None
        return self.holdings.begin(
            claim, self._directory.process_id, timeout_ms, number=number, is_resumed=True
        )

    def raised(self, claim: Claim) -> Claim | None:
        """What the claim's holder is to go on with, when that was decided already and nothing was begun with it.

        None when nothing was, or somebody else has the id.
        """
        following = claim._replace(epoch=claim.epoch + 1)
        with self._directory.journal.exclusive():
            holding = self.holdings.of(claim.transactional_id)
            known = self.event(claim.transactional_id)
            if known is None or not known.holder_goes_on:
                return None
            if (known.producer_id, known.following_epoch) != (following.producer_id, following.epoch):
                return None
            if holding is not None and (holding.partitions or not holding.is_held_by(following)):
                return None
            resumed = self._resume(following, known, 0, known.timeout_ms)
            return None if resumed is None else following

    def finish_abort(self, decided: TransactionEvent) -> bool:
        """Write what is missing of an abort whose holder has gone on to the next epoch already; whether it is done."""
        with self._directory.journal.exclusive():
            holding = self.holdings.of(decided.transactional_id)
            if holding is None or decided.state != "abort" or holding.epoch != decided.following_epoch:
                return False
            self._write_markers(decided)
            claim = Claim(decided.transactional_id, decided.producer_id, holding.epoch)
            self.holdings.begin(claim, holding.process_id, holding.timeout_ms)
            return True

    def _take_over(
        self,
        turn: JournalTurn,
        transactional_id: str,
        fresh_id: int,
        process_id: str | None,
        timeout_ms: int,
        *,
        holder_goes_on: bool,
    ) -> Claim:
        known = self.event(transactional_id)
        if known is None:
            claim = Claim(transactional_id, fresh_id, 0)
            self.holdings.take(claim, process_id, timeout_ms)
            turn.record([self._event(claim, "empty", [], timeout_ms)])
            return claim
        before = self.holdings.of(transactional_id)
        if before is None:
            self._adopt_everywhere()
        held_epoch = known.following_epoch
        if before is not None and before.producer_id == known.producer_id:
            # Claims that the journal refused have raised it, perhaps beyond what a marker can carry.
            held_epoch = max(held_epoch, min(before.epoch, LAST_EPOCH + 1))
        claim = Claim(transactional_id, known.producer_id, held_epoch + 1)
        left_open = self.holdings.take(claim, process_id, timeout_ms)
        if known.is_decided:
            self._write_markers(known)
            if before is not None and before.is_ended_by(known):
                left_open = []  # they are those of the decided transaction, which is over now
        left_open += [place for place in self._open_places(known.producer_id) if place not in left_open]
        if left_open:
            aborted = msgspec.structs.replace(
                self._event(claim._replace(epoch=held_epoch), "abort", left_open, timeout_ms),
                holder_goes_on=holder_goes_on,
            )
            turn.record([aborted])
            self._write_markers(aborted)
        if claim.epoch > LAST_EPOCH:
            claim = Claim(transactional_id, fresh_id, 0)
        if not left_open or claim.producer_id == fresh_id:
            empty = self._event(claim, "empty", [], timeout_ms)
            turn.record([msgspec.structs.replace(empty, holder_goes_on=holder_goes_on)])
        self.holdings.begin(claim, process_id, timeout_ms)
        return claim

    def _adopt_everywhere(self) -> None:
        """Have every batch known that is in a log: where a dead holder wrote went with its Holding.

        A batch that it did not live to publish would be adopted by the next append, which may be the first of its
        successor's transaction; and that one's marker would end them both.
        """
        for place in self._places().values():
            try:
                self._directory.log(*place).adopt()
            except (TopicNotFoundError, StorageFailedError):
                pass  # deleted meanwhile; or it takes no batch and no marker before it was verified

    def begin_in_memory(self, claim: Claim, place: TopicPartition) -> None:
        """Note that the transaction goes on with *place*, of which this process knows something that no log does.

        Durable when it returns: when the process dies nobody takes the transaction for one that was not begun.

        Raises:
            FencedError: as ``Holdings.add_partitions``.
            LogbrokerError: it may be noted or not.
        """
        with self._directory.journal.exclusive() as turn:
            holding = self.holdings.of(claim.transactional_id)
            if holding is None or not holding.is_held_by(claim):
                raise fenced(claim)
            turn.record([self._event(claim, "begun", [], holding.timeout_ms)])
            self.holdings.add_partitions(claim, [place])

    # Ending ---------------------------------------------------------------------------------------

    def commit(
        self,
        claim: Claim,
        *,
        commits: Sequence[PendingCommit] = (),
        keeps_epoch: bool = False,
    ) -> Claim:
        """Decide that the claim's transaction counts, together with *commits*, durably; the claim for the next one.

        Every record of it must be in its log and as durable as its topic asks. Each of *commits* decides under the
        journal lock, the first to refuse is the last to be asked; none is settled here. Whatever this raises,
        ``abort`` is to follow: it finds out what was decided.

        With *keeps_epoch* the claim for the next one is the same, and a decision whose markers are still missing
        is finished by committing again.

        Raises:
            FencedError: as ``Holdings.add_partitions``; nothing was decided by this call.
            LogbrokerError: it may be decided or not.
        """
        holding = self.holdings.of(claim.transactional_id)
        if holding is None or not holding.is_held_by(claim):
            raise fenced(claim)
        decided = self.event(claim.transactional_id)
        if decided is None or decided.state != "commit" or not holding.is_ended_by(decided):
            decided = self._decision(claim, "commit", holding, keeps_epoch)
            self._decide(claim, decided, commits)
        following = claim._replace(epoch=decided.following_epoch)
        self._finish(decided, following, holding)
        return following

    def _decide(self, claim: Claim, decided: TransactionEvent, commits: Sequence[PendingCommit]) -> None:
        def hold() -> list[Item]:
            if not self.is_current(claim):
                raise fenced(claim)
            return [item_of(decided)]

        commit = together([PendingCommit(hold), *commits])
        self._directory.journal.decide(commit.decide, take_back=commit.take_back)

    def _decision(
        self, claim: Claim, state: Literal["commit", "abort"], holding: Holding, keeps_epoch: bool
    ) -> TransactionEvent:
        event = self._event(claim, state, list(holding.partitions), holding.timeout_ms)
        if not keeps_epoch:
            return event
        ends = [self._log_end(place) for place in holding.partitions]
        return msgspec.structs.replace(event, number=holding.number, ends=ends)

    def _log_end(self, place: TopicPartition) -> int:
        try:
            return self._directory.log(*place).offsets().log_end_offset
        except TopicNotFoundError:
            return 0  # deleted meanwhile: there is nothing to end

    def abort(self, claim: Claim, *, keeps_epoch: bool = False) -> Claim | None:
        """Decide that the claim's transaction is nothing; the claim for the next one, which *keeps_epoch* or not.

        None, when a commit that was broken off has decided it after all: it stands, and its markers are there.

        Raises:
            FencedError: the id has a newer holder, or has gone on: what became of the transaction is decided.
            LogbrokerError: it is not decided yet, or its markers are missing; whoever comes next sees to it.
        """
        directory = self._directory
        fresh_id = directory.producer_ids.allocate()
        with directory.journal.exclusive() as turn:
            holding = self.holdings.of(claim.transactional_id)
            if holding is None or not holding.is_held_by(claim):
                raise fenced(claim)
            known = self.event(claim.transactional_id)
            if known is not None and known.state == "commit" and holding.is_ended_by(known):
                self._write_markers(known)
                return None
            if keeps_epoch:
                decided = self._decision(claim, "abort", holding, keeps_epoch)
                turn.record([decided])
                self._finish(decided, claim, holding)
                return claim
            return self._take_over(
                turn,
                claim.transactional_id,
                fresh_id,
                holding.process_id,
                holding.timeout_ms,
                holder_goes_on=True,
            )

    def _finish(self, decided: TransactionEvent, following: Claim, holding: Holding) -> None:
        """Markers, then Holding. The decision stands whatever fails here; somebody else goes on with it."""
        try:
            self._write_markers(decided)
        except (LogbrokerError, OSError) as error:
            logger.warning(
                "transaction of %r: the commit is decided, its markers come later: %s",
                decided.transactional_id,
                error,
            )
            return

        self.holdings.go_on(decided, following, holding)

    def _write_markers(self, decided: TransactionEvent) -> None:
        """The markers of a decision that are missing, and all of them on the disk: the event may be replaced."""
        control_type = ControlType.COMMIT if decided.state == "commit" else ControlType.ABORT
        ends: Sequence[int | None] = decided.ends or [None] * len(decided.partitions)
        failures: list[LogbrokerError | OSError] = []
        for (topic, partition), before_offset in zip(decided.partitions, ends, strict=True):
            try:
                log = self._directory.log(topic, partition)
                log.append_marker(
                    control_type,
                    producer_id=decided.producer_id,
                    marker_epoch=decided.following_epoch,
                    before_offset=before_offset,
                )
                log.wait_durable(log.offsets().log_end_offset)
            except TopicNotFoundError:
                continue  # deleted meanwhile, with what the transaction wrote to it
            except (LogbrokerError, OSError) as error:
                failures.append(error)  # the others' readers do not wait for a partition that takes no marker
        if failures:
            raise failures[0]

    def _event(
        self,
        claim: Claim,
        state: Literal["empty", "begun", "commit", "abort"],
        partitions: list[TopicPartition],
        timeout_ms: int,
    ) -> TransactionEvent:
        return TransactionEvent(
            transactional_id=claim.transactional_id,
            producer_id=claim.producer_id,
            epoch=claim.epoch,
            state=state,
            partitions=partitions,
            timeout_ms=timeout_ms,
            updated_ms=self._directory.clock.now_ms(),
        )

    # What others left -----------------------------------------------------------------------------

    def abort_orphans(self) -> int:
        """Finish decided transactions, and abort those whose process is dead or whose time is over.

        Returns how many producers' transactions that were. Cheap when nothing is open.
        """
        by_producer: dict[int, list[OpenTransaction]] = {}
        for found in self._directory.view.partitions.open_transactions():
            by_producer.setdefault(found.producer_id, []).append(found)
        if not by_producer:
            return 0
        known = self._events_of(by_producer)
        return sum(
            self._finish_orphan(producer_id, known.get(producer_id), left_open)
            for producer_id, left_open in by_producer.items()
        )

    def _finish_orphan(
        self, producer_id: int, known: TransactionEvent | None, left_open: Sequence[OpenTransaction]
    ) -> bool:
        """Finish or abort one; the others do not wait for one whose partition takes no marker."""
        try:
            return self._end(producer_id, known, left_open)
        except (LogbrokerError, OSError) as error:
            logger.warning("a transaction of producer id %d cannot be ended yet: %s", producer_id, error)
            return False

    def abort_hanging(self, producer_id: int) -> bool:
        """As ``abort_orphans``, of one producer, for somebody who asks: whether its open transaction is nothing now.

        False when its holder is at work on it, or it was committed.

        Raises:
            LogbrokerError: it cannot be ended yet.
        """
        opened = self._directory.view.partitions.open_transactions()
        left_open = [found for found in opened if found.producer_id == producer_id]
        if not left_open:
            return True
        known = self._events_of([producer_id]).get(producer_id)
        if not self._end(producer_id, known, left_open):
            return False
        if known is None:
            return True
        settled = self.event(known.transactional_id)
        return settled is not None and settled.state != "commit"

    def _end(
        self, producer_id: int, known: TransactionEvent | None, left_open: Sequence[OpenTransaction]
    ) -> bool:
        """Finish or abort what a producer has open; False when its holder is at work on it."""
        return self._abort_stranger(producer_id) if known is None else self._settle(known, left_open)

    def _events_of(self, producer_ids: Collection[int]) -> dict[int, TransactionEvent]:
        """The events of the transactional ids that *producer_ids* belong to; of a stranger there is none.

        An id keeps its producer id for long, so it is asked first which it was: there may be very many of others.
        """
        looked_up = {producer_id: self._ids.get(producer_id) for producer_id in producer_ids}
        events = [self.event(name) for name in looked_up.values() if name is not None]
        known = {event.producer_id: event for event in events if event is not None}
        if not known.keys() >= looked_up.keys():
            known = {event.producer_id: event for event in self.events()}
        found = {producer_id: known[producer_id] for producer_id in looked_up if producer_id in known}
        self._ids = {producer_id: event.transactional_id for producer_id, event in found.items()}
        return found

    def events(self) -> list[TransactionEvent]:
        """Of every transactional id, by id."""
        return self._directory.view.events.all(TransactionEvent, TransactionEvent.ALL)

    def _settle(self, known: TransactionEvent, left_open: Sequence[OpenTransaction]) -> bool:
        if not self._undecided(known, left_open):
            # Without the lock: the event cannot be replaced before its markers are on the disk.
            self._write_markers(known)
            return True
        if self._is_alive(known):
            return False
        directory = self._directory
        fresh_id = directory.producer_ids.allocate()
        with directory.journal.exclusive() as turn:
            newest = self.event(known.transactional_id)
            if newest is None or self._is_alive(newest) or not self._are_open(newest, left_open):
                return False
            self._take_over(
                turn, newest.transactional_id, fresh_id, None, newest.timeout_ms, holder_goes_on=True
            )
        logger.info("transaction of %r was finished for its holder", known.transactional_id)
        return True

    def _are_open(self, newest: TransactionEvent, seen: Sequence[OpenTransaction]) -> bool:
        """Whether one of those that were *seen* open still is, and *newest* has not decided it meanwhile."""
        still_open = set(self._directory.view.partitions.open_transactions())
        return bool(self._undecided(newest, [found for found in seen if found in still_open]))

    def _undecided(
        self, known: TransactionEvent, left_open: Sequence[OpenTransaction]
    ) -> list[OpenTransaction]:
        """Those of *left_open* that are not of the transaction that *known* decided, but of another.

        That is a later one, or, where it did not write, an earlier one: a power cut may have taken back the marker of
        that, which is as durable as its topic asks, and what was decided of it is forgotten.
        """
        places = self._places()
        if known.ends is None:
            elsewhere = {key for key, place in places.items() if place not in known.partitions}
            return [
                found
                for found in left_open
                if found.partition_key in elsewhere or not self._is_decided_by_epoch(known, found)
            ]
        ends = dict(zip(known.partitions, known.ends, strict=True))
        return [
            found
            for found in left_open
            if found.first_offset >= ends.get(places.get(found.partition_key, NOWHERE), 0)
        ]

    def _is_decided_by_epoch(self, known: TransactionEvent, found: OpenTransaction) -> bool:
        entry = self._directory.view.partitions.producer(found.partition_key, found.producer_id)
        return known.is_decided and (entry is None or entry.epoch <= known.epoch)

    def _is_alive(self, known: TransactionEvent) -> bool:
        """Whether the holder is at work on its transaction, in time, and can end it itself."""
        holding = self.holdings.of(known.transactional_id)
        if holding is None or not holding.partitions:
            return False
        if holding.process_id is not None and not self._directory.process_alive(holding.process_id):
            return False
        return self.holdings.is_in_time(holding)

    def _abort_stranger(self, producer_id: int) -> bool:
        """A transaction in a log that came from elsewhere: nobody can decide it any more.

        One of the last epoch that there is gets a marker of that epoch, as a producer does that keeps its epoch.
        """
        for topic, partition in self._open_places(producer_id):
            log = self._directory.log(topic, partition)
            entry = self._directory.view.partitions.producer(log.key, producer_id)
            if entry is not None:
                log.append_marker(
                    ControlType.ABORT,
                    producer_id=producer_id,
                    marker_epoch=min(entry.epoch + 1, MAX_EPOCH),
                    before_offset=log.offsets().log_end_offset,
                )
                log.wait_durable(log.offsets().log_end_offset)
        return True

    def _open_places(self, producer_id: int) -> list[TopicPartition]:
        keys = {
            found.partition_key
            for found in self._directory.view.partitions.open_transactions()
            if found.producer_id == producer_id
        }
        return [place for key, place in self._places().items() if key in keys] if keys else []

    def _places(self) -> dict[bytes, TopicPartition]:
        return {
            partition_key(event.topic_id, number): (name, number)
            for name, event in self._directory.catalog.all().items()
            if event.state == "live"
            for number in range(event.partitions)
        }
