"""The asking side: one reply topic, one thread that reads it, and the table of who waits for what.

    begin   issue an id ─► send the request, with ttl ─► a future
    thread  wait for replies ─► read ─► claim by correlation id ─► settle the future
    end     the future's result, or give up at the deadline: what comes later is dropped

    field            guard    written by
    _table           _lock    whoever begins or ends a request; the thread
    _failure         _lock    the thread, once: it reads no more
    _read_bytes      (thread)
    everything else  (constant)

User code never runs here: futures have no callbacks but an event loop's own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from difflib import get_close_matches
from itertools import count
from typing import Literal

import msgspec

from logbroker_storage.catalog import SIGNAL as TOPICS_SIGNAL
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    ClosedError,
    CorruptionError,
    InvalidRequestError,
    LogbrokerError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
)
from logbroker_storage.log_config import LogConfig
from logbroker_storage.log_offsets import Isolation, LogOffsets
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import Record, decode_records
from logbroker_storage.segment_removal import delete_segments_below

from ..arrivals import Arrivals
from ..exception_text import named
from ..groups import TopicPartition
from ..producer import Producer
from ..records import HeadersArgument, StoredHeaders, stored_headers
from ..topic_names import REPLY_PREFIX, check_topic_name, is_internal
from .correlation import CorrelationTable, RequestCounts
from .errors import NoRespondersError, RequestTimeoutError, ResponderError
from .headers import REQUEST_HEADERS, RequestHeaders, decode_reply, encode_request
from .live_responders import is_anybody_there
from .messages import Reply, read_reply
from .topics import (
    REPLY_CONFIG,
    REPLY_SEGMENT_BYTES,
    have_request_topic,
    reply_topic_name,
    sweep_reply_topics,
)

logger = logging.getLogger("logbroker.requests")

DEFAULT_TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 86_400.0

IfNobody = Literal["raise", "wait"]

_numbers = count(1)


class PendingRequest(msgspec.Struct, frozen=True):
    """A request that was sent; ``future`` gets the reply, or a ``ResponderError``."""

    topic: str
    timeout: float
    deadline: float  # by time.monotonic()
    future: Future[Reply]
    give_up: Callable[[], None]  # what comes from now on is dropped

    def result(self) -> Reply:
        """Wait for the reply until the deadline.

        Raises:
            RequestTimeoutError: none came.
            ResponderError: the responder failed.
            ClosedError: the broker was closed meanwhile.
        """
        try:
            return self.future.result(max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            raise self.timed_out() from None
        finally:
            self.give_up()

    def timed_out(self) -> RequestTimeoutError:
        return RequestTimeoutError(self.topic, self.timeout)


class Requester:
    """Sends requests and hands out replies. Safe across threads; close it before the process ends."""

    def __init__(self, directory: DataDirectory) -> None:
        # A user of the directory of its own: the view must not be closed under the thread.
        self._directory = directory = directory.one_more_use()
        try:
            sweep_reply_topics(directory)
            self.reply_topic = reply_topic_name(directory.process_id, next(_numbers))
            directory.create_topic(self.reply_topic, 1, LogConfig.parse(REPLY_CONFIG))
            self._producer = Producer(directory, linger=0)
        except BaseException:
            directory.close()
            raise
        self.place: TopicPartition = (self.reply_topic, 0)
        self.log: PartitionLog = directory.log(*self.place)
        self._lock = threading.Lock()
        self._table: CorrelationTable[tuple[str, Future[Reply]]] = CorrelationTable(
            self.reply_topic.removeprefix(REPLY_PREFIX)
        )
        self._failure: LogbrokerError | None = None
        self._read_bytes = 0
        self._reader = self.log.reader(0, Isolation.READ_COMMITTED)
        self._arrivals = Arrivals(directory, [TOPICS_SIGNAL])  # somebody may delete the reply topic
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logbroker-replies", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._give_back()
            raise

    def visible_end(self, offsets: LogOffsets) -> int:
        return offsets.visible_end(Isolation.READ_COMMITTED)

    @property
    def counts(self) -> RequestCounts:
        """What became of the requests so far."""
        with self._lock:
            return self._table.counts

    @property
    def has_failed(self) -> bool:
        """Whether it can read no more replies, so that another has to be made."""
        return self._failure is not None

    # Asking ---------------------------------------------------------------------------------------

    def begin(
        self,
        topic: str,
        value: bytes | None,
        *,
        timeout: float,
        key: bytes | None,
        headers: HeadersArgument | None,
        if_nobody: IfNobody,
    ) -> PendingRequest:
        """Send a request; see ``Broker.request``. Whoever takes it calls ``result`` or ``give_up``."""
        timeout = checked_timeout(timeout)
        deadline = time.monotonic() + timeout
        own_headers = _checked_headers(headers)
        self._check_responders(topic, if_nobody)
        future: Future[Reply] = Future()
        future.set_running_or_notify_cancel()  # so that nobody can cancel it under the thread that settles it
        with self._lock:
            if self._failure is not None:
                raise self._failure
            correlation_id = self._table.issue((topic, future))
        ttl = max(timedelta(seconds=timeout), timedelta(milliseconds=1))
        asks = RequestHeaders(
            correlation_id=correlation_id,
            reply_to=self.reply_topic,
            reply_by_ms=self._directory.clock.now_ms() + int(timeout * 1000),
        )
        try:
            receipt = self._producer.send(
                topic, value, key=key, headers=[*own_headers, *encode_request(asks)], ttl=ttl
            )
            receipt.result()
        except BaseException:
            self._give_up(correlation_id)
            raise
        return PendingRequest(topic, timeout, deadline, future, lambda: self._give_up(correlation_id))

    def _give_up(self, correlation_id: bytes) -> None:
        with self._lock:
            self._table.give_up(correlation_id)

    def _check_responders(self, topic: str, if_nobody: IfNobody) -> None:
        if if_nobody == "wait":
            have_request_topic(self._directory, topic)
        elif if_nobody != "raise":
            raise InvalidRequestError(f"if_nobody={if_nobody!r}: use 'raise' or 'wait'")
        elif not is_anybody_there(self._directory, check_topic_name(topic)):
            topics = [name for name in self._directory.topics() if not is_internal(name)]
            near = [] if topic in topics else get_close_matches(topic, topics, 1)
            raise NoRespondersError(topic, near=near[0] if near else None)

    # The thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._arrivals.begin([self])
            while not self._closing.is_set():
                if not self._settle_some():
                    self._arrivals.wait(None, [self])
        except LogbrokerError as error:
            if not self._closing.is_set():
                logger.error("replies can no longer be read from %s: %s", self.reply_topic, error)
            self._fail_all(error)
        except BaseException as error:
            self._fail_all(LogbrokerError(f"replies can no longer be read: {named(error)}"))
            raise

    def _settle_some(self) -> bool:
        """Hand out the replies that have come; False when there was none."""
        before = self._reader.position
        for record in self._read():
            self._settle(record)
        if self._read_bytes >= REPLY_SEGMENT_BYTES:
            self._read_bytes = 0
            delete_segments_below(self.log, self._reader.position)
        return self._reader.position > before

    def _read(self) -> list[Record]:
        try:
            batches = [batch for batch in self._reader.read() if not batch.header.is_control]
        except OffsetOutOfRangeError as error:  # retention was faster
            self._reader.seek(error.start_offset)
            return []
        except CorruptionError as error:
            logger.error("replies are lost: %s", error)
            self._reader.seek(error.end_offset)
            return []
        self._read_bytes += sum(batch.header.size_bytes for batch in batches)
        return [record for batch in batches for record in decode_records(batch, *self.place)]

    def _settle(self, record: Record) -> None:
        headers = decode_reply(record.header_pairs)
        with self._lock:
            waiting = self._table.claim(headers.correlation_id)
        if waiting is None:
            logger.info(
                "a reply is dropped, because nobody waits for it: correlation id %r", headers.correlation_id
            )
            return
        topic, future = waiting
        if headers.failure is not None:
            future.set_exception(ResponderError(topic, headers.failure))
        else:
            future.set_result(read_reply(record))

    def _fail_all(self, error: LogbrokerError) -> None:
        with self._lock:
            self._failure = error
            waiting = self._table.give_up_all()
        for _, future in waiting:
            future.set_exception(error)

    # Closing --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Delete the reply topic; whoever still waits gets a ``ClosedError``. Idempotent."""
        if self._closing.is_set() or self._directory.closed:
            return  # a forked child's copy has nothing that is its own
        self._closing.set()
        self._arrivals.wake()
        self._thread.join()
        self._fail_all(ClosedError("the broker was closed while a reply was awaited"))
        self._give_back()

    def _give_back(self) -> None:
        try:
            self._producer.close()
        finally:
            self._reader.close()
            self._arrivals.close()
            try:
                self._directory.delete_topic(self.reply_topic)
            except TopicNotFoundError:
                pass  # somebody deleted it already
            finally:
                self._directory.close()


def checked_timeout(timeout: float) -> float:
    """*timeout*, in seconds.

    Raises:
        InvalidRequestError: it is none.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= MAX_TIMEOUT_S:
        raise InvalidRequestError(f"timeout={timeout!r}: give it seconds, up to {MAX_TIMEOUT_S:g} (a day)")
    return float(timeout)


def _checked_headers(headers: HeadersArgument | None) -> StoredHeaders:
    pairs = stored_headers(headers)
    for name, _ in pairs:
        if name in REQUEST_HEADERS:
            raise InvalidRequestError(
                f"header {name!r} of a request is set by request() itself; use another name"
            )
    return pairs
