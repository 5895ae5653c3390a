"""What the handlers of one server share: the directory, threads for what blocks, groups, sessions, wake-ups."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from kio.schema.errors import ErrorCode

from logbroker_storage.background import going_on
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError, TopicExistsError, TopicNotFoundError
from logbroker_storage.events import TopicEvent
from logbroker_storage.log_config import LogConfig

from ..groups import TopicPartition
from ..request_reply.topics import sweep_reply_topics
from ..routing.bindings import router_offsets
from ..topic_names import check_any_topic_name, check_topic_name, is_internal
from ..transaction import Transactions
from ..transaction_coordinator import TransactionCoordinator
from ..transactional_id_expiry import TransactionalIdExpiry
from .connections import OpenConnection
from .disk_sync import DiskSync
from .error_codes import RefusedError
from .fetch_sessions import FetchSessions
from .group_registry import GroupRegistry
from .in_turn import InTurn
from .log_watch import LogWatch, News, signal_files
from .metrics import Metrics
from .network_transactions import NetworkTransactions
from .raw_reader import ReaderPool
from .settings import ServerSettings
from .share_groups import ShareGroups
from .share_partitions import SharePartitions

logger = logging.getLogger("logbroker.server")

NODE_ID = 0
LEADER_EPOCH = 0
LOOK_AFTER_S = 5.0
THREADS = 8  # for each of: what blocks briefly (reads, the journal), appends, large answers, disk syncs

Result = TypeVar("Result")


class Node:
    """On the event loop, but for what its comments say."""

    def __init__(self, directory: DataDirectory, settings: ServerSettings, metrics: Metrics) -> None:
        self.directory = directory
        self.settings = settings
        self.metrics = metrics
        self.host = settings.advertised_host or settings.host
        self.port = settings.advertised_port or settings.port
        self.cluster_id = _cluster_id(directory)
        self.transactions = TransactionCoordinator(directory)
        self.connections: set[OpenConnection] = set()
        self.buffered_bytes = 0  # of requests of all connections
        self.is_stopping = False
        self.unsent_bytes = 0  # of answers that were made
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="logbroker-server")
        self._append_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="logbroker-append")
        self._send_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="logbroker-send")
        self._sync_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="logbroker-sync")
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.sync = DiskSync(lambda sync: loop.run_in_executor(self._sync_threads, sync), metrics)
        self.appends = InTurn(lambda go: loop.run_in_executor(self._append_threads, go))  # and their syncs
        self.watch = LogWatch(directory)
        self.readers = ReaderPool()  # used in threads too
        self.sessions = FetchSessions()
        self.kept_metadata: dict[Hashable, bytes] = {}  # answers by what was asked: see handlers/metadata
        self.groups = GroupRegistry(directory, settings, self.run, self._run_in_background)
        self._embedded_transactions = Transactions(directory, self.transactions)  # of dead letters
        share_partitions = SharePartitions(directory, self._embedded_transactions, self.readers)
        self.share = ShareGroups(directory, settings, share_partitions, self.run, self._run_in_background)
        self.network_transactions = NetworkTransactions(directory, self.transactions)  # used in threads too
        directory.maintenance.add_task("transactions", self.transactions.abort_orphans)
        directory.maintenance.add_task("reply topics", lambda: sweep_reply_topics(directory))
        directory.maintenance.add_task("network transactions", self.network_transactions.abort_expired)
        directory.maintenance.add_chore("transactional ids", TransactionalIdExpiry(directory).run)
        # The cleaner asks before it deletes what was consumed.
        directory.maintenance.add_readers("queues", self.share.subscriptions.queue_offsets)
        directory.maintenance.add_readers("routes", partial(router_offsets, directory))
        self._topics_by_id: tuple[int, dict[bytes, TopicEvent]] = (-1, {})

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """What *function* returns, called in a thread."""
        return await self._loop.run_in_executor(self._threads, function, *arguments)

    async def send_in_thread(self, function: Callable[..., Result], *arguments: object) -> Result:
        """As ``run``, in threads that wait for nothing but peers, and not for long."""
        return await self._loop.run_in_executor(self._send_threads, function, *arguments)

    def _run_in_background(self, function: Callable[..., object], *arguments: object) -> None:
        future = self._loop.run_in_executor(self._threads, function, *arguments)
        future.add_done_callback(lambda done: _log_failure(function, done))

    @property
    def is_full(self) -> bool:
        return self.buffered_bytes > self.settings.max_buffered_bytes

    async def look_after(self) -> None:
        """Every few seconds: connections that do not move, readers that nobody comes back to."""
        while True:
            await asyncio.sleep(LOOK_AFTER_S)
            now_s = time.monotonic()
            for connection in list(self.connections):
                connection.look_after(now_s)
            for close_idle in (self.readers.close_idle, self.share.partitions.close_idle):
                # Nobody else would find those that do not move.
                with going_on(logger, "what is idle is closed later"):
                    await self.run(close_idle)

    @contextmanager
    def answer_room(self, wanted_bytes: int) -> Iterator[int]:
        """How many bytes a fetch may read of the *wanted_bytes*; they are taken until it is known how much it is."""
        room = max(1, self.settings.max_unsent_bytes - self.unsent_bytes)
        max_bytes = max(1, min(wanted_bytes, self.settings.max_fetch_bytes, room))
        self.unsent_bytes += max_bytes
        try:
            yield max_bytes
        finally:
            self.unsent_bytes -= max_bytes

    async def subscribe(self, places: Iterable[TopicPartition], news: News) -> list[TopicPartition]:
        """Tell *news* of what comes to *places*, until ``watch.unsubscribe``; those of them that are there."""
        places = list(places)
        unwatched = self.watch.unwatched(places)
        if unwatched:
            await self.run(signal_files, self.directory, unwatched)
        watched: list[TopicPartition] = []
        for place in places:
            try:
                self.watch.subscribe(place, news)
            except LogbrokerError:
                continue  # deleted a moment ago: the next look says so
            watched.append(place)
        return watched

    def begin_to_stop(self) -> None:
        """Answer who waits for something to happen: it will not happen here."""
        self.is_stopping = True
        self.watch.wake_all()
        self.groups.refuse_waiting()

    # Topics -------------------------------------------------------------------------------------------

    def topic_by_id(self, topic_id: uuid.UUID | None) -> TopicEvent:
        """The live topic of an id.

        Raises:
            RefusedError: there is none.
        """
        version = self.directory.topics_version()
        known = self._topics_by_id
        if known[0] != version:
            topics = {event.topic_id: event for event in self.directory.catalog.live()}
            known = self._topics_by_id = (version, topics)
        event = None if topic_id is None else known[1].get(topic_id.bytes)
        if event is None:
            raise RefusedError(ErrorCode.unknown_topic_id, f"there is no topic with id {topic_id}")
        return event

    def topics(self) -> list[TopicEvent]:
        """The live topics that are not the broker's own, by name."""
        return [event for event in self.directory.catalog.live() if not is_internal(event.name)]

    def topic_uuid(self, name: str) -> uuid.UUID | None:
        event = self.directory.catalog.all().get(name)
        return None if event is None else topic_uuid(event)

    async def topic(self, name: str, *, create: bool) -> TopicEvent:
        """The live topic *name*, made if need be when *create* and the settings say so.

        Raises:
            InvalidTopicError: there never can be one, so that it makes no sense to ask again.
            LogbrokerError: there is none, and it cannot be made.
        """
        try:
            return self.directory.topic(name)
        except TopicNotFoundError:
            check_any_topic_name(name)
            if not create or not self.settings.auto_create_topics:
                raise
        check_topic_name(name)
        try:
            event = await self.run(
                self.directory.create_topic, name, self.settings.default_partitions, LogConfig.parse({})
            )
            logger.info("topic %r was made, because a client asked for it", name)
            return event
        except TopicExistsError:
            return self.directory.topic(name)

    # Ending -------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Finish what is at work in threads, and leave the directory."""
        self.groups.close()
        await self.share.close()
        await self.appends.finish()
        await self.sync.finish()
        self.watch.close()
        await self._loop.run_in_executor(None, self._threads.shutdown)
        await self._loop.run_in_executor(None, self._append_threads.shutdown)
        await self._loop.run_in_executor(None, self._send_threads.shutdown)
        await self._loop.run_in_executor(None, self._sync_threads.shutdown)
        self.readers.close()
        self._embedded_transactions.close()
        await self._loop.run_in_executor(None, self.directory.close)


def topic_uuid(event: TopicEvent) -> uuid.UUID:
    return uuid.UUID(bytes=event.topic_id)


def _cluster_id(directory: DataDirectory) -> str:
    """The same for every server of a directory, as long as it is not moved; Kafka's have 22 characters too."""
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(directory.path)), digest_size=16).digest()
    return uuid.UUID(bytes=digest).hex[:22]


def _log_failure(function: Callable[..., object], done: asyncio.Future[object]) -> None:
    if not done.cancelled() and done.exception() is not None:
        logger.warning("%s: %s", function.__name__, done.exception())
