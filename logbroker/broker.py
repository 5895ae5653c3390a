"""The broker: what ``logbroker.open`` gives. Topics, producers, consumers, transactions, routes and groups.

Subscriptions, queues and requests are in ``messaging``, which this extends.
"""

from __future__ import annotations

import datetime
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Literal

from logbroker_storage.catalog import check_growth
from logbroker_storage.checkpoints import encode_topic_id
from logbroker_storage.clock import SYSTEM_CLOCK, Clock
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    BindingExistsError,
    InvalidRequestError,
    LogbrokerError,
    TopicExistsError,
)
from logbroker_storage.files import Files
from logbroker_storage.log_config import ConfigValue, LogConfig

from .arguments import path as checked_path
from .arguments import whole_number
from .consumer import Consumer, IsolationName
from .consumer_commits import Delivery
from .descriptions import (
    GroupDescription,
    PartitionDescription,
    TopicDescription,
)
from .exactly_once import Stop
from .expressions import Predicate
from .group_admin import delete_group, describe_group, reset_group
from .messaging import Messaging
from .producer import Producer
from .records import HeadersArgument
from .routing.bindings import (
    BindingStart,
    HeadersMatch,
    describe_binding,
    describe_bindings,
    make_binding,
    remove_binding,
    router_offsets,
)
from .routing.descriptions import BindingDescription, RouteExplanation
from .routing.explanation import explain_message, explain_record
from .routing.router import MAX_RECORDS, run_router
from .start import Start
from .topic_names import check_topic_name, check_transactional_id, is_internal
from .transaction import Transaction
from .transactional_id_expiry import TransactionalIdExpiry
from .transform import Transformation, TransformProgress, run_transform
from .transforms.loading import Source

logger = logging.getLogger("logbroker")


def open(  # noqa: A001  (logbroker.open)
    path: str | os.PathLike[str],
    *,
    files: Files | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Broker:
    """Open the data directory at *path*, creating it when it is not there.

    Any number of processes and threads may have it open at the same time. A first process to come after
    a crash recovers it: what was acknowledged is there, what a dead process left half-written is cut.

    Args:
        path: the directory; it must be on a local file system (locks and memory maps are used).
        files: every disk access goes through this object; for tests that inject faults.
        clock: where wall time comes from; for tests that move it.

    Raises:
        LogbrokerError: the directory cannot be made or opened.

    """
    return Broker(DataDirectory.open(checked_path(path), files=files, clock=clock))


class Broker(Messaging):
    """A handle on a data directory. Safe across threads; after a fork, the child opens its own.

    Closing it closes the directory but not the producers and consumers made from it: close those first,
    or use ``with`` for each.
    """

    def __init__(self, directory: DataDirectory) -> None:
        super().__init__(directory)
        directory.maintenance.add_task("transactions", self._coordinator.abort_orphans)
        directory.maintenance.add_chore("transactional ids", TransactionalIdExpiry(directory).run)
        directory.maintenance.add_readers("queues", self._subscriptions.queue_offsets)
        directory.maintenance.add_readers("routes", partial(router_offsets, directory))
        try:
            self._coordinator.abort_orphans()
        except (LogbrokerError, OSError) as error:
            logger.warning("unfinished transactions are ended later: %s", error)

    def close(self) -> None:
        """Leave the directory; the last handle of the process syncs and checkpoints it. Idempotent.

        Responders stop first, behind the requests at hand.
        """
        directory = self._directory_or_none
        if directory is None:
            return
        try:
            if not directory.closed:
                self._exchange.close()
        finally:
            directory_now, self._directory_or_none = self._directory_or_none, None
            if directory_now is not None:  # else another thread closed it meanwhile
                try:
                    if not directory.closed:
                        self._transactions.close()
                finally:
                    directory.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Topics ---------------------------------------------------------------------------------------

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        *,
        config: Mapping[str, ConfigValue] | None = None,
        exist_ok: bool = False,
    ) -> None:
        """Create a topic, durably.

        Args:
            name: 1 to 249 of the characters a-z A-Z 0-9 . _ -
            partitions: 1 to 10,000; it can grow later, never shrink.
            config: Kafka's topic keys and ours (see docs/config.md); values as numbers, bools or text.
            exist_ok: an existing topic is accepted as it is, whatever its partitions and configuration.

        Raises:
            TopicExistsError, InvalidTopicError, InvalidConfigError: nothing was created.
            WriteFailedError: the file system refused; nothing was created.

        """
        check_topic_name(name)
        parsed = LogConfig.parse({} if config is None else config)
        try:
            self._directory.create_topic(name, partitions, parsed)
        except TopicExistsError:
            if not exist_ok:
                raise

    def topics(self) -> list[str]:
        """The names of all topics, ascending; not those that the broker keeps for itself (``__…``)."""
        return [name for name in self._directory.topics() if not is_internal(name)]

    def topic(self, name: str) -> TopicDescription:
        """A topic's partitions with offsets and sizes, and its configuration.

        Raises:
            TopicNotFoundError: there is no such topic.
        """
        directory = self._directory
        event = directory.topic(name)
        config = LogConfig.parse(event.config)
        return TopicDescription(
            name=name,
            topic_id=encode_topic_id(event.topic_id),
            partitions=[_describe_partition(directory, name, number) for number in range(event.partitions)],
            config=config.as_dict(),
            overrides=config.overrides,
        )

    def alter_topic(
        self,
        name: str,
        *,
        config: Mapping[str, ConfigValue | None] | None = None,
        partitions: int | None = None,
    ) -> None:
        """Change configuration keys (None: back to the default) or add partitions, durably.

        Keys that are not named keep their values. With more partitions, keys may map to other ones.

        Raises:
            TopicNotFoundError, InvalidConfigError, InvalidTopicError: nothing was changed.
        """
        known = self._directory.topic(name)
        if partitions is not None:
            check_growth(known, partitions)
        if config is not None and config != {}:
            self._directory.alter_topic(name, config)
        if partitions is not None:
            self._directory.add_partitions(name, partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic, its records, and what groups have committed in it.

        Raises:
            TopicNotFoundError: there is no such topic.
        """
        self._directory.delete_topic(name)

    def delete_records(self, topic: str, before: Mapping[int, int]) -> dict[int, int]:
        """Delete the records below an offset, for each partition in *before*, durably.

        Returns the new log start offset of each; an offset above the high watermark means that one.
        """
        self._directory.topic(topic)
        if not isinstance(before, Mapping):
            raise InvalidRequestError(f"before= is a mapping of partitions to offsets, not {before!r:.100}")
        for partition, offset in before.items():
            whole_number(f"before[{partition!r}]", offset, least=0)
        return {
            partition: self._directory.delete_records(topic, partition, offset)
            for partition, offset in before.items()
        }

    # Producers and consumers ----------------------------------------------------------------------

    def producer(
        self,
        *,
        name: str | None = None,
        acks: Literal["all", "written", "none"] = "all",
        linger: float = 0.005,
        batch_bytes: int = 524_288,
        compression: str | None = None,
        buffer_bytes: int = 64 << 20,
        max_block: float = 60.0,
    ) -> Producer:
        """A producer; see ``Producer`` for what the arguments mean."""
        return Producer(
            self._directory,
            name=name,
            acks=acks,
            linger=linger,
            batch_bytes=batch_bytes,
            compression=compression,
            buffer_bytes=buffer_bytes,
            max_block=max_block,
        )

    def consumer(
        self,
        topics: str | Iterable[str],
        *,
        group: str | None = None,
        start: Start = "earliest",
        delivery: Delivery = "at-least-once",
        session_timeout: float = 10.0,
        max_poll_interval: float = 300.0,
        max_poll_records: int = 500,
        isolation: IsolationName = "read_committed",
        filter: str | Predicate | None = None,  # noqa: A002  (as the option is called)
    ) -> Consumer:
        """A consumer; see ``Consumer`` for what the arguments mean."""
        return Consumer(
            self._directory,
            topics,
            group=group,
            start=start,
            delivery=delivery,
            session_timeout=session_timeout,
            max_poll_interval=max_poll_interval,
            max_poll_records=max_poll_records,
            isolation=isolation,
            filter=filter,
        )

    # Transactions ---------------------------------------------------------------------------------

    def transaction(self, transactional_id: str, *, timeout: float = 60.0) -> Transaction:
        """Begin a transaction; use it in a ``with``: leaving it commits, an exception aborts.

        Args:
            transactional_id: who writes. A new holder of the id fences the one before: what that left is
                finished or aborted first, and its next call raises ``FencedError``. Ids may be used once only: one
                that had no transaction for a week is forgotten, all but its ``state``.
            timeout: seconds, up to 24 days, from the first record on after which others may abort it; at once when this
                process dies.

        Raises:
            InvalidRequestError: the id or the timeout cannot be used.
            StorageFailedError, WriteFailedError: the id could not be claimed.
        """
        self._check_open()
        return self._transactions.begin(check_transactional_id(transactional_id), timeout)

    def transform(
        self,
        source: str,
        target: str,
        *,
        group: str,
        function: Transformation,
        stop: Stop | None = None,
        max_records: int = 500,
        idle_timeout: float | None = None,
        dead_letter: str | None = None,
        progress: TransformProgress | None = None,
    ) -> int:
        """Read *source*, write what *function* makes of each record to *target*, exactly once.

        Runs until it is stopped; after any death it goes on where the last committed batch ended. Any number of
        threads and processes may run the same transform and share its partitions.

        Args:
            group: the consumer group that remembers how far it got.
            function: takes a record and returns a value (which keeps the record's key), a ``Message``, an iterable
                of them, or None for nothing. With a second parameter it is given the partition's state, as
                ``tx.state``. It may be called again for a record whose batch was not committed. Or a pipeline, as
                ``load_pipeline`` takes it: a TOML file, a mapping, the name of an entry point.
            stop: a ``threading.Event``; ends it after the batch at hand.
            max_records: most that one transaction takes in.
            idle_timeout: ends it when nothing has come for so many seconds; None: never.
            dead_letter: a topic for the records that cannot be transformed (see ``logbroker.dead_letters``), in the
                same transaction; it goes on then. Without one, what *function* raises ends it, and the batch is
                taken back.
            progress: its counts are kept up to date, for who wants to look on.

        Returns how many records it has committed, those that became dead letters among them.

        Raises:
            ClosedError: the broker was closed meanwhile; what was not committed is taken back.
        """
        self._check_open()
        return run_transform(
            self._directory,
            self._transactions,
            source,
            target,
            group=group,
            function=function,
            stop=stop,
            max_records=max_records,
            idle_timeout=idle_timeout,
            dead_letter=dead_letter,
            progress=progress,
        )

    # Routing --------------------------------------------------------------------------------------

    def bind(
        self,
        source: str,
        target: str,
        *,
        when: str | None = None,
        headers: Mapping[str, str | bytes | None] | None = None,
        headers_match: HeadersMatch = "all",
        transform: Source | None = None,
        unrouted: bool = False,
        dead_letter: str | None = None,
        start: BindingStart = "latest",
        name: str | None = None,
        exist_ok: bool = False,
    ) -> BindingDescription:
        """Have the router write what comes into *source* to *target*, too; durable when it returns.

        Routers do the work: ``logbroker serve`` has one, ``logbroker route run`` and ``run_router`` are others.
        Each record is written exactly once for each binding that takes it.

        Args:
            source: a topic, or a wildcard over topics as in NATS: ``"orders.*"`` (exactly one token in place of
                the star), ``"orders.>"`` (one or more). It takes up topics that are created later, from their
                beginning, and never internal ones.
            target: an existing topic. Key, headers and timestamp of a record stay.
            when: a CEL expression over the record that must be true, such as ``'json.total > 100'``.
            headers: keys and the text that they must have; None: any value.
            headers_match: ``"all"`` of *headers*, or ``"any"``.
            transform: a pipeline that makes messages of each record: whatever ``load_pipeline`` takes, but no
                Python callable, because the binding outlives this process.
            unrouted: take what no other binding takes whose source matches the topic.
            dead_letter: an existing topic for what *when* or *transform* fails for, or what the target refuses,
                with headers that say where it came from and why. Default: the target's name with ``.dead``
                behind it, which is created if need be: a failing record must neither be lost nor stop the rest.
            start: ``"latest"``: records that come after the binding, as with queues of other brokers;
                ``"earliest"``: whatever the topics still hold, too.
            name: default: ``"source->target"``.
            exist_ok: a binding of this name is accepted as it is.

        Raises:
            BindingExistsError: a binding has this name.
            TopicNotFoundError: source (unless it is a wildcard), target or dead letter does not exist.
            RoutingLoopError: records could come back to where they came from, by topics there are or may be.
            InvalidRequestError, InvalidTopicError: an argument that cannot be used; the message says why.
        """
        try:
            event = make_binding(
                self._directory,
                source,
                target,
                name=name,
                when=when,
                headers=headers,
                headers_match=headers_match,
                transform=transform,
                unrouted=unrouted,
                dead_letter=dead_letter,
                start=start,
            )
        except BindingExistsError as error:
            known = [binding for binding in self.bindings() if binding.name == error.binding]
            if not exist_ok or not known:
                raise
            return known[0]
        return describe_binding(self._directory, event)

    def unbind(self, name: str) -> None:
        """Remove a binding, durably: nothing more comes of it once this has returned.

        Raises:
            BindingNotFoundError: there is none of this name.
        """
        remove_binding(self._directory, name)

    def bindings(self) -> list[BindingDescription]:
        """Every binding by name, with how far the router is and what holds it up."""
        return describe_bindings(self._directory)

    def explain_route(
        self,
        topic: str,
        value: bytes | None = None,
        *,
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        at: tuple[int, int] | None = None,
    ) -> RouteExplanation:
        """Where a message to *topic* would go, and what each binding says of it; nothing is written.

        Args:
            topic: it need not exist: wildcards take up topics that are created later.
            value, key, headers: the message, as if it were sent now.
            at: instead of these, (partition, offset) of a record that is there.

        Raises:
            TopicNotFoundError, OffsetOutOfRangeError: there is no record *at* that place.
            InvalidRequestError: both a message and *at*.
        """
        if at is None:
            return explain_message(self._directory, topic, value, key=key, headers=headers)
        return explain_record(
            self._directory, topic, at, is_alone=value is None and key is None and not headers
        )

    def run_router(
        self,
        *,
        stop: Stop | None = None,
        idle_timeout: float | None = None,
        max_records: int = MAX_RECORDS,
    ) -> int:
        """Route by the bindings, exactly once, until it is stopped.

        Any number of threads and processes may, and share the partitions as members of the group ``__router``.

        Args:
            stop: a ``threading.Event``; ends it after the batch at hand.
            idle_timeout: ends it when nothing has come for so many seconds; None: never.
            max_records: most that one transaction takes in.

        Returns how many records it has routed, whether a binding took them or not. Where something holds it up,
        a missing target say, the partition waits and is tried again; ``bindings()`` shows it.

        Raises:
            ClosedError: the broker was closed meanwhile; what was not committed is taken back.
        """
        return run_router(
            self._directory,
            self._transactions,
            stop=threading.Event() if stop is None else stop,
            idle_timeout=idle_timeout,
            max_records=max_records,
        )

    # Groups ---------------------------------------------------------------------------------------

    def groups(self) -> list[str]:
        """Every consumer group that has subscribed or committed, ascending."""
        return self._directory.groups.names()

    def group(self, name: str) -> GroupDescription:
        """A group's live members, committed offsets and lag.

        Raises:
            InvalidRequestError: there is no such group.
        """
        return describe_group(self._directory, name)

    def reset_group(
        self,
        name: str,
        to: Literal["earliest", "latest"] | int | datetime.datetime | datetime.timedelta,
        *,
        topics: Iterable[str] | None = None,
        shift: bool = False,
        dry_run: bool = False,
    ) -> dict[tuple[str, int], int]:
        """Move a group's committed offsets, durably; the new offset of each (topic, partition).

        Args:
            name: the group; it need not exist yet when *topics* are given.
            to: the ends of each partition, an offset, a moment, or (timedelta) a moment that long ago.
            topics: which topics; default: all in which the group has committed.
            shift: *to* is a number added to each committed offset.
            dry_run: only say what would be committed.

        An offset outside a partition becomes the nearer end.

        Raises:
            InvalidRequestError: the group has live members, or nothing to reset.

        """
        return reset_group(self._directory, name, to, topics=topics, shift=shift, dry_run=dry_run)

    def delete_group(self, name: str) -> None:
        """Forget a group: its committed offsets and subscriptions.

        Raises:
            InvalidRequestError: it has live members, or there is no such group.
        """
        delete_group(self._directory, name)

    # Housekeeping ---------------------------------------------------------------------------------

    def clean(self) -> bool:
        """Run the cleaner now (retention, compaction) instead of within 30 seconds.

        Returns False when another process is at it.
        """
        return self._directory.maintenance.clean()


def _describe_partition(directory: DataDirectory, topic: str, number: int) -> PartitionDescription:
    log = directory.log(topic, number)
    state = log.state()
    return PartitionDescription(
        partition=number,
        log_start_offset=state.end.log_start_offset,
        high_watermark=state.high_watermark,
        last_stable_offset=state.last_stable_offset,
        log_end_offset=state.end.log_end_offset,
        synced_offset=state.sync.synced_offset,
        size_bytes=log.size_bytes(),
        failed=bool(state.sync.failed),
    )
