"""The answering side: threads that take requests from a queue, call a function, and send what it makes of them.

    a request comes             what happens                                        done with the request
    in time                     the function is called, its answer is sent          after the reply was written
    and the function raises     the exception is sent, as text                      the same: it is an answer
    behind its deadline         nothing: nobody waits any more                      at once
    whose reply-to is gone      the function was called; the answer is dropped      the same
    and the process dies        another responder gets it, while it is in time      at most MAX_DELIVERIES times
    and the disk refuses        it goes back                                        it comes again

Being done with a request need not last through a power cut: it would come again, and would have expired. All
threads share one queue consumer: one of them waits, the others stand in line or are at work.

    field            guard     written by
    _counts          _lock     each thread, after each request
    _failure         _lock     the first thread that cannot go on
    everything else  (constant)
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    BufferFullError,
    ClosedError,
    CorruptionError,
    InvalidRequestError,
    InvalidTopicError,
    LeaseLostError,
    LogbrokerError,
    RecordTooLargeError,
    StorageFailedError,
    SubscriptionExistsError,
    TopicNotFoundError,
    WriteFailedError,
)

from ..exception_text import named
from ..producer import Producer
from ..queues.consumer import Queue, QueueMessage
from ..records import Message, stored_headers
from ..subscriptions import Subscriptions, check_rules
from ..topic_names import check_reply_to
from .headers import REPLY_HEADERS, HeaderPair, ReplyHeaders, encode_reply, without
from .live_responders import announce, withdraw
from .messages import Answer, Request, as_message, failure_of, read_request
from .topics import have_request_topic

if TYPE_CHECKING:
    from ..transaction import Transactions

logger = logging.getLogger("logbroker.requests")

DEFAULT_LEASE_S = 10.0
MAX_DELIVERIES = 3
MAX_CONCURRENCY = 1_000
LOOK_S = 0.5  # for a signal
PAUSE_AFTER_FAILURE_S = 1.0

# What is wrong with a reply, or with the headers of the request that it has to repeat.
_REPLYS_FAULT = (RecordTooLargeError, InvalidRequestError)
# What may be over in a moment: the disk is full, a part of the log is damaged.
_PASSING = (WriteFailedError, StorageFailedError, BufferFullError, CorruptionError)

Function = Callable[[Request], Answer]

_numbers = count(1)


class ResponderCounts(msgspec.Struct, frozen=True):
    """What a responder did so far.

    Attributes:
        answered: requests that the function answered.
        failed: requests that it raised an exception for, or gave no answer that can be sent.
        expired: requests that came too late to be worked on.
        unwanted: of the first two, those whose reply topic was gone, or that asked for no reply.
    """

    answered: int = 0
    failed: int = 0
    expired: int = 0
    unwanted: int = 0


def responder_subscription(topic: str) -> str:
    """The name of the queue subscription that the responders of *topic* compete for."""
    return f"responders:{topic}"


class Responder:
    """Answers the requests of a topic until ``stop``, or until its broker is closed. Use ``broker.responder``.

    Calling it calls the function, as if it had not been decorated.
    """

    def __init__(
        self,
        directory: DataDirectory,
        transactions: Transactions,
        topic: str,
        function: Function,
        *,
        concurrency: int = 1,
        lease: float = DEFAULT_LEASE_S,
        tracebacks: bool = False,
    ) -> None:
        if not callable(function):
            raise InvalidRequestError(f"a responder is something to call with a request, not {function!r}")
        if isinstance(concurrency, bool) or not isinstance(concurrency, int):
            raise InvalidRequestError(f"concurrency={concurrency!r}: give it a whole number of threads")
        if not 1 <= concurrency <= MAX_CONCURRENCY:
            raise InvalidRequestError(f"concurrency={concurrency}: give it 1 to {MAX_CONCURRENCY} threads")
        self.topic = topic
        self.subscription = responder_subscription(topic)
        self._function = function
        self._trace = _trace if tracebacks else None
        self._directory = directory = directory.one_more_use()
        try:
            have_request_topic(directory, topic)
            _have_subscription(directory, self.subscription, topic)
            self._queue = Queue(
                directory, transactions, topic, subscription=self.subscription, lease=lease, renew=True
            )
            self._producer = Producer(directory, linger=0)
        except BaseException:
            directory.close()
            raise
        self._member = f"{directory.process_id}/{next(_numbers)}"
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held by the thread that waits for the next request
        self._counts = ResponderCounts()
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._closing = threading.Lock()  # guards is_closed
        self.is_closed = False  # all that it used was given back
        self._at_work = concurrency  # threads; guarded by _lock
        self._ended = threading.Lock()  # held until none is
        self._ended.acquire()
        self._threads = [
            threading.Thread(target=self._run, name=f"logbroker-responder-{topic}", daemon=True)
            for _ in range(concurrency)
        ]
        try:
            for thread in self._threads:
                thread.start()
            announce(directory, topic, self._member)
        except BaseException:
            # Those that have begun are waited for; the others never will.
            self._threads = [thread for thread in self._threads if thread.ident is not None]
            self.stop()
            raise

    def __call__(self, request: Request) -> Answer:
        return self._function(request)

    @property
    def counts(self) -> ResponderCounts:
        """What it did so far."""
        return self._counts

    @property
    def is_running(self) -> bool:
        """Whether it takes requests."""
        return not self._stopping.is_set()

    # The threads ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._answer_all()
        finally:
            with self._lock:
                self._at_work -= 1
                if not self._at_work:
                    self._ended.release()

    def _answer_all(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._answer_next()
                except _PASSING as error:
                    logger.error("responder of %r waits and tries again: %s", self.topic, error)
                    self._stopping.wait(PAUSE_AFTER_FAILURE_S)
        except BaseException as error:
            if isinstance(error, ClosedError) and self._stopping.is_set():
                return
            with self._lock:
                self._failure = self._failure or error
            logger.error("responder of %r ends: %s: %s", self.topic, type(error).__name__, error)
            self._tell_to_stop()
            if not isinstance(error, LogbrokerError):
                raise

    def _answer_next(self) -> None:
        with self._turn:
            if self._stopping.is_set():
                return
            messages = self._queue.receive_many(1, timeout=None)
        for message in messages:
            with message:  # goes back when an exception passes
                self._answer(message)

    def _answer(self, message: QueueMessage) -> None:
        request = read_request(message.record, message.delivery_count)
        if request.reply_by_ms is not None and request.reply_by_ms <= self._directory.clock.now_ms():
            done = {"expired": 1}
        else:
            reply, has_failed = self._outcome(request)
            is_wanted = self._send(request, reply)
            done = {"answered": not has_failed, "failed": has_failed, "unwanted": not is_wanted}
        try:
            self._queue.accept([message], durable=False)
        except LeaseLostError as error:
            message.is_settled = True
            logger.warning("a request of %r may have been answered twice: %s", self.topic, error)
        self._count(done)

    def _outcome(self, request: Request) -> tuple[Message, bool]:
        """The reply, and whether it says that the function failed."""
        try:
            answer = as_message(self._function(request))
            headers = without(stored_headers(answer.headers), REPLY_HEADERS)
            return _reply(request, answer.value, answer.key, headers), False
        except Exception as error:
            logger.warning("a request of %r failed: %s", self.topic, named(error), exc_info=error)
            return self._failed(request, error), True

    def _failed(self, request: Request, error: Exception) -> Message:
        reply = ReplyHeaders(
            correlation_id=request.correlation_id, failure=failure_of(error, trace=self._trace)
        )
        return Message(None, headers=encode_reply(reply))

    def _send(self, request: Request, reply: Message) -> bool:
        """Send *reply* to where it is wanted; False when that is nowhere."""
        if request.reply_to is None:
            return False
        try:
            topic = check_reply_to(request.reply_to)
            try:
                self._send_to(topic, reply)
            except _REPLYS_FAULT as error:
                logger.warning("a reply of %r cannot be sent: %s", self.topic, error)
                self._send_to(topic, self._failed(request, error))
        except (TopicNotFoundError, InvalidTopicError, *_REPLYS_FAULT) as error:
            # Of the topic or the correlation id, which are the asker's.
            logger.info("a reply of %r is dropped: %s", self.topic, error)
            return False
        return True

    def _send_to(self, topic: str, reply: Message) -> None:
        self._producer.send(topic, reply.value, key=reply.key, headers=reply.headers).result()

    def _count(self, done: Mapping[str, int]) -> None:
        with self._lock:
            counts = self._counts
            grown = {name: getattr(counts, name) + number for name, number in done.items()}
            self._counts = msgspec.structs.replace(counts, **grown)

    # Its end --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Answer until somebody calls ``stop`` or closes the broker, for a script that does nothing else.

        An exception of the caller's thread, such as Ctrl-C, stops it.

        Raises:
            What ended it: for example SubscriptionNotFoundError, when the subscription was deleted.
        """
        try:
            # A bare lock: an exception out of a signal handler can leave that of an event locked, for who sets it, and
            # ``Thread.join`` would take the thread for ended from then on (Python 3.11). And not for ever: the system
            # may give a signal to another thread, one that starts a process, say, and its handler waits for this one.
            while not self._ended.acquire(timeout=LOOK_S):
                pass
            self._ended.release()
        finally:
            self.stop()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no more requests, and wait until those at hand are answered. Idempotent.

        Called by the function itself, it returns at once, and the responder stops behind that request.
        """
        if self._directory.closed:
            return  # stopped before, or a forked child's copy, or the interpreter ends: its threads are not there
        self._tell_to_stop()
        if threading.current_thread() in self._threads:
            return
        for thread in self._threads:
            thread.join()
        with self._closing:
            if not self.is_closed and not self._directory.closed:
                self.is_closed = True
                self._close()

    def _tell_to_stop(self) -> None:
        self._stopping.set()
        with self._closing:
            if not self.is_closed and not self._directory.closed:
                withdraw(self._directory, self.topic, self._member)
                self._queue.wakeup()

    def _close(self) -> None:
        try:
            self._producer.close()
        finally:
            try:
                self._queue.close()
            finally:
                self._directory.close()

    def __enter__(self) -> Responder:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<Responder of {self.topic!r} {state}>"


def _reply(request: Request, value: bytes | None, key: bytes | None, headers: list[HeaderPair]) -> Message:
    own = encode_reply(ReplyHeaders(correlation_id=request.correlation_id))
    return Message(value, key=key, headers=[*headers, *own])


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _have_subscription(directory: DataDirectory, name: str, topic: str) -> None:
    """Have the queue that responders compete for, unless the user made it with other rules."""
    subscriptions = Subscriptions(directory)
    if subscriptions.find(name) is not None:
        return
    rules = check_rules(kind="queue", max_deliveries=MAX_DELIVERIES)
    try:
        subscriptions.create(name, topic, kind="queue", start="earliest", rules=rules)
    except SubscriptionExistsError:
        if subscriptions.find(name) is None:  # another process was first, or a consumer group has the name
            raise
