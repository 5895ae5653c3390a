"""The router: reads the sources of all bindings as one consumer group, and writes what ``routing`` plans.

    follow    the bindings and the topics; when either changed what is read: a new consumer, from the
              committed offsets
    poll      records of the partitions that the group gives us
    route     one transaction for each partition (``exactly_once``): targets, dead letters and the offset
    look      under the journal's lock, at the commit: are these still the bindings that the plan was made with?

Any number of routers share the partitions. A batch that was planned with other bindings is taken back and
planned anew, so a change of the bindings is never half in force.

Nothing is skipped. What fails for one record's sake (its condition, its transform, a target that it does not
fit) sends that record to the dead letter; whatever else fails **stalls** the source partition: it is paused and
tried again after a second, then ever more slowly, and ``broker.bindings()`` shows it all the while. The other
partitions go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    ClosedError,
    CorruptionError,
    FencedError,
    ForkedError,
    InvalidRequestError,
    LogbrokerError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicNotFoundError,
)

from ..arguments import whole_number
from ..commits import PendingCommit
from ..consumer import Consumer
from ..deadlines import check_timeout
from ..exactly_once import Stop, by_partition, check_stop, commit_once
from ..groups import TopicPartition
from ..records import Record
from ..topic_names import source_matches
from ..transaction import Transaction, Transactions
from .bindings import (
    ROUTER_GROUP,
    bindings_version,
    clear_stall,
    note_stall,
    stored_bindings,
)
from .plan import Binding, Reason, Route, Verdict, dead_letter, plan, routes, written

logger = logging.getLogger("logbroker.router")

MAX_RECORDS = 5000  # of one transaction
FIRST_RECORDS = 500  # of the first
LONG_BATCH_S = 5.0  # batches that take longer are made smaller
POLL_S = 0.2  # how soon a stop, and a change of the bindings, is noticed while nothing comes
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 30.0

_TAKEN, _FAILED = Reason.TAKEN, Reason.FAILED


def run_router(
    directory: DataDirectory,
    transactions: Transactions,
    *,
    stop: Stop,
    idle_timeout: float | None = None,
    max_records: int = MAX_RECORDS,
    on_routed: Callable[[int], None] = lambda _: None,
) -> int:
    """Route until *stop*; how many records were. *on_routed* is told of each batch. See ``Broker.run_router``.

    Raises:
        ClosedError: *transactions* were closed, with their broker.
    """
    check_stop(stop)
    check_timeout(idle_timeout, "idle_timeout")
    whole_number("max_records", max_records)
    done, busy_s = 0, time.monotonic()
    # A user of the directory of its own: the view must not be closed while the router looks at it.
    directory = directory.one_more_use()
    router = _Router(directory, transactions, max_records)
    try:
        while not stop.is_set():
            transactions.check_open()
            routed = router.turn(stop)
            if routed:
                done += routed
                busy_s = time.monotonic()
                on_routed(routed)
            elif routed is None and idle_timeout is not None and time.monotonic() - busy_s > idle_timeout:
                break
    finally:
        try:
            router.close()
        finally:
            directory.close()
    return done


class _Stall(msgspec.Struct):
    """A paused partition: until when, and how long it is to be the next time."""

    error: str
    since_ms: int
    retry_s: float
    pause_s: float


class _Letters:
    """The dead letters of a batch: a line of the log for each binding that has any, not for each letter."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, tuple[Binding, LogbrokerError]] = {}

    def note(self, binding: Binding, error: LogbrokerError) -> None:
        self._counts[binding.name] = self._counts.get(binding.name, 0) + 1
        self._first.setdefault(binding.name, (binding, error))

    def log(self, place: TopicPartition) -> None:
        for name, (binding, error) in self._first.items():
            logger.warning(
                "binding %r: %d records of %s-%d are in its dead letter %s; the first of them: %s",
                name,
                self._counts[name],
                *place,
                binding.dead_letter,
                error,
            )


class _Refused(Exception):  # noqa: N818  (a turn of the loop, that nobody sees)
    """A record's messages were sent in part when the target refused one: take the batch back."""


class _Router:
    """One member of the router's group. For one thread."""

    def __init__(self, directory: DataDirectory, transactions: Transactions, max_records: int) -> None:
        self._directory = directory
        self._transactions = transactions
        self._max_records = max_records
        self._limit = min(FIRST_RECORDS, max_records)  # of the next batch
        self._version = -1  # of the bindings
        self._topics_version = -1
        self._bindings: list[Binding] = []
        self._sources: list[str] = []  # the topics that they mean
        self._consumer: Consumer | None = None
        self._routes: dict[TopicPartition, tuple[bytes, list[Route]]] = {}  # with the topic's id
        self._stalls: dict[TopicPartition, _Stall] = {}
        # What a target refused after other messages of the record had been sent: it fails as a whole.
        self._refused: dict[tuple[TopicPartition, int, str], LogbrokerError] = {}

    # A turn ---------------------------------------------------------------------------------------------

    def turn(self, stop: Stop) -> int | None:
        """Route what there is, or wait a little for some; how many records were routed, None where there were none.

        0 where some could not be: others may be waiting behind them.
        """
        consumer = self._follow()
        if consumer is None:
            stop.wait(POLL_S)
            return None
        try:
            self._try_stalled(consumer)
            records = consumer.poll(self._limit, POLL_S)
        except CorruptionError as error:
            self._stall(consumer, (error.topic, error.partition), error)
            return 0
        except OffsetOutOfRangeError as error:
            logger.warning("the router's next records are gone: %s", error)
            consumer.return_to_stored()  # where the log does not hold that, it goes on at the log's start
            return 0
        except TopicNotFoundError:
            return 0  # a source was deleted: the next turn follows
        if not records:
            self._commit_passed(consumer)
            return None
        done = 0
        for place, batch in by_partition(records):
            if not self._route(consumer, place, batch):
                break  # the consumer has gone back, in all partitions
            done += len(batch)
        return done

    def _route(self, consumer: Consumer, place: TopicPartition, batch: list[Record]) -> bool:
        """Route *batch* in a transaction; False when it was taken back, and the consumer has gone back."""
        letters = _Letters()

        def write(tx: Transaction) -> None:
            tx.commit_with(PendingCommit.holding(self._check(consumer, place)))
            self._write(tx, place, batch, letters)

        began_s = time.monotonic()
        try:
            committed = commit_once(self._transactions, consumer, ROUTER_GROUP, place, write)
            self._size_batches(len(batch), time.monotonic() - began_s)
            if committed:
                letters.log(place)
                self._went_on(place)
                return True
        except _Refused:
            pass
        except (ClosedError, ForkedError):
            raise  # the broker's own end, and nothing that time would mend
        except LogbrokerError as error:
            if not self._is_refused_alone(place, batch, error):
                self._stall(consumer, place, error)
        consumer.return_to_stored()
        return False

    def _is_refused_alone(self, place: TopicPartition, batch: list[Record], error: LogbrokerError) -> bool:
        """Find the record that is too large for a target that compresses: that shows only when it is appended.

        True when there is something to try: records one by one, and then without the one that it is.
        """
        if not isinstance(error, RecordTooLargeError):
            return False
        names = [
            route.binding.name for route in self._routes_of(place)[1] if route.binding.target == error.topic
        ]
        keys = [(place, record.offset, name) for record in batch[:1] for name in names]
        if not keys or all(key in self._refused for key in keys):
            return False
        self._limit = 1
        if len(batch) == 1:
            self._refused.update(dict.fromkeys(keys, error))
        return True

    def _size_batches(self, records: int, took_s: float) -> None:
        """Batches that end well before their transaction's timeout, however slow a transform is."""
        if took_s > LONG_BATCH_S:
            self._limit = max(1, int(records * LONG_BATCH_S / 2 / took_s))
        elif took_s < LONG_BATCH_S / 4 and records == self._limit:
            self._limit = min(self._max_records, 2 * self._limit)

    def _commit_passed(self, consumer: Consumer) -> None:
        """Commit that there was nothing to see: markers of transactions, records that expired."""
        try:
            passed = consumer.uncommitted_places()
        except LogbrokerError as error:
            logger.info("offsets are committed later: %s", error)
            consumer.return_to_stored()
            return
        for place in passed:
            if not self._route(consumer, place, []):
                break

    def _check(self, consumer: Consumer, place: TopicPartition) -> Callable[[], None]:
        """That a commit begins where the group is, and is of the bindings and the topic that were planned with."""
        directory, version = self._directory, self._version
        topic_id, _ = self._routes_of(place)
        begin = consumer.committed_in(place)

        def check() -> None:
            directory.journal.catch_up()  # a binding that a dead process has journalled counts, too
            stored = directory.groups.committed(ROUTER_GROUP, *place)
            if (
                bindings_version(directory) != version
                or directory.topic(place[0]).topic_id != topic_id
                or (None if stored is None else stored.offset) != begin
            ):
                raise FencedError(
                    "the bindings, the topic or the group's offset have changed; nothing of this batch was written"
                )

        return check

    # Following ------------------------------------------------------------------------------------------

    def _follow(self) -> Consumer | None:
        """The consumer of what the bindings read now; None when that is nothing."""
        directory = self._directory
        topics_version, version = directory.topics_version(), bindings_version(directory)
        if (topics_version, version) == (self._topics_version, self._version):
            return self._consumer
        if version != self._version:
            self._leave()  # what was read, and how far, may be another matter now
            # The version first: what comes in between is then followed once more.
            self._version = version
            self._bindings = [Binding(event, directory.clock) for event in stored_bindings(directory)]
            for binding in self._bindings:
                if binding.error is not None:
                    logger.error("%s", binding.error)
        self._topics_version = topics_version
        self._routes.clear()
        sources = [
            topic
            for topic in directory.topics()
            if any(source_matches(binding.event.source, topic) for binding in self._bindings)
        ]
        if sources != self._sources:
            self._leave()
            self._sources = sources
        if self._consumer is None and sources:
            self._consumer = self._join(sources)
        return self._consumer

    def _join(self, sources: list[str]) -> Consumer | None:
        try:
            consumer = Consumer(self._directory, sources, group=ROUTER_GROUP, delivery="manual")
        except TopicNotFoundError:
            self._topics_version = -1  # deleted a moment ago
            return None
        consumer.keep_ttl_headers()
        logger.info("routing %s by %d bindings", ", ".join(sources), len(self._bindings))
        return consumer

    def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._sources = []
        self._refused.clear()
        self._stalls.clear()  # what is shown of them stays until some router goes on there
        if consumer is not None:
            consumer.close()

    def close(self) -> None:
        """Leave the group: the others go on with our partitions."""
        self._leave()

    def _routes_of(self, place: TopicPartition) -> tuple[bytes, list[Route]]:
        found = self._routes.get(place)
        if found is None:
            topic_id = self._directory.topic(place[0]).topic_id
            found = self._routes[place] = topic_id, routes(self._bindings, place[0], topic_id, place[1])
        return found

    # Writing --------------------------------------------------------------------------------------------

    def _write(self, tx: Transaction, place: TopicPartition, batch: list[Record], letters: _Letters) -> None:
        _, routes = self._routes_of(place)
        for record in batch:
            for verdict in plan(record, routes):
                if verdict.reason is _TAKEN or verdict.reason is _FAILED:
                    self._send(tx, place, verdict, record, letters)

    def _send(
        self,
        tx: Transaction,
        place: TopicPartition,
        verdict: Verdict,
        record: Record,
        letters: _Letters,
    ) -> None:
        """Send what a binding makes of *record*: all of it to the target, or the record to the dead letter."""
        binding = verdict.binding
        refused_key = (place, record.offset, binding.name)
        refused = self._refused.get(refused_key) if self._refused else None
        out = written(verdict, record) if refused is None else dead_letter(binding, record, refused)
        if out.error is not None:
            letters.note(binding, out.error)
        for sent, message in enumerate(out.messages):
            try:
                tx.send_many(out.topic, [message])
            except (RecordTooLargeError, InvalidRequestError, TopicNotFoundError) as error:
                if out.error is not None or not _is_the_records_fault(error):
                    raise
                if sent:
                    self._refused[refused_key] = error
                    raise _Refused from error
                letters.note(binding, error)
                (letter,) = dead_letter(binding, record, error).messages
                tx.send_many(binding.dead_letter, [letter])
                return

    # Stalls ---------------------------------------------------------------------------------------------

    def _stall(self, consumer: Consumer, place: TopicPartition, error: LogbrokerError) -> None:
        """Leave a partition alone for a while; the others go on."""
        before = self._stalls.get(place)
        now_ms = self._directory.clock.now_ms()
        pause_s = FIRST_RETRY_S if before is None else min(2 * before.pause_s, LAST_RETRY_S)
        since_ms = now_ms if before is None else before.since_ms
        self._stalls[place] = _Stall(str(error), since_ms, time.monotonic() + pause_s, pause_s)
        logger.error("the router is held up in %s-%d and tries again in %g s: %s", *place, pause_s, error)
        note_stall(self._directory, *place, str(error), since_ms)
        consumer.pause(place)

    def _try_stalled(self, consumer: Consumer) -> None:
        now_s = time.monotonic()
        if not self._stalls:
            return
        assigned = consumer.assignment()
        for place, stall in list(self._stalls.items()):
            if place not in assigned:
                del self._stalls[place]
            elif stall.retry_s <= now_s:
                consumer.resume(place)

    def _went_on(self, place: TopicPartition) -> None:
        self._stalls.pop(place, None)
        if clear_stall(self._directory, *place):
            logger.info("the router goes on in %s-%d", *place)
        if self._refused:
            self._refused = {key: error for key, error in self._refused.items() if key[0] != place}


def _is_the_records_fault(error: LogbrokerError) -> bool:
    """Whether a target refused this record, and would take others: not that there is no target."""
    return not isinstance(error, TopicNotFoundError) or error.partition is not None
