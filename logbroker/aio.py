"""The broker for asyncio: the same objects, awaited. Nothing here blocks the event loop.

The twins hold a broker, producer or consumer of the blocking kind, and a thread that makes their calls
(``worker``). They are made by a thread too, so ``broker.producer()`` returns at once; ``async with``, or
the first call, is what opens them.

    what                      how it stays cheap, and safe when cancelled
    producer.send             sends of one moment go to the thread together: one hop and one sync for all
    consumer.poll             a cancelled poll is woken; the records it still brings go to the next poll
    async for                 a slice of records a hop; a cancelled wait is taken up again by the next
    commit, seek, lag, …      a second thread, because the first may be waiting for records
    transaction, transform    a thread each
    queue                     see ``aio_queue``

All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from logbroker_storage.errors import ClosedError, InvalidRequestError, LogbrokerError, OffsetOutOfRangeError

from .aio_requests import AsyncExchange, AsyncFunction, AsyncResponder
from .aio_subscriptions import AsyncSubscriptions
from .aio_transaction import AsyncTransaction
from .worker import Worker, post

# The engine is imported by the worker: that takes a tenth of a second, which the loop should not wait for.
if TYPE_CHECKING:
    from logbroker_storage.clock import Clock
    from logbroker_storage.files import Files
    from logbroker_storage.log_config import ConfigValue

    from .broker import Broker
    from .consumer import Consumer, Place
    from .cursor import Handout
    from .descriptions import GroupDescription, TopicDescription
    from .groups import TopicPartition
    from .producer import Producer
    from .receipts import Receipt
    from .records import HeadersArgument, Message, Record, RecordMetadata, SendOptions
    from .request_reply.messages import Reply
    from .routing.descriptions import BindingDescription, RouteExplanation

Result = TypeVar("Result")


def open_async(
    path: str | os.PathLike[str], *, files: Files | None = None, clock: Clock | None = None
) -> AsyncBroker:
    """The data directory at *path*, for ``async with``; see ``logbroker.open``."""

    def make() -> Broker:
        from .broker import open as open_blocking

        return open_blocking(path, files=files, **({} if clock is None else {"clock": clock}))

    return AsyncBroker(make)


class AsyncBroker(AsyncSubscriptions):
    """``Broker``, awaited: each method means what its namesake there means, and raises the same."""

    def __init__(self, make: Callable[[], Broker]) -> None:
        """Use ``logbroker.open_async``."""
        self._make = make
        self._worker = Worker("logbroker-aio-broker")
        self._broker: Broker | None = None  # made and used by the worker only
        self._closed = False
        self._exchange = AsyncExchange(lambda: self._call(lambda broker: broker))

    async def __aenter__(self) -> AsyncBroker:
        await self._call(lambda _: None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the directory; responders stop first. Idempotent. Close producers and consumers first."""
        try:
            await self._exchange.close()
        finally:
            await self._leave()

    async def _leave(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.shield(self._worker.submit(self._close))
        finally:
            self._worker.stop()

    def _close(self) -> None:
        if self._broker is not None:
            self._broker.close()

    def _opened(self) -> Broker:
        """In the worker."""
        if self._broker is None:
            self._broker = self._make()
        return self._broker

    async def _call(self, call: Callable[[Broker], Result]) -> Result:
        if self._closed:
            raise ClosedError("the broker was closed; call logbroker.open_async() again")
        # Shielded: a change of a topic or a group is not broken off in the middle.
        return await asyncio.shield(self._worker.submit(lambda: call(self._opened())))

    # Topics ---------------------------------------------------------------------------------------

    async def create_topic(
        self,
        name: str,
        partitions: int = 1,
        *,
        config: Mapping[str, ConfigValue] | None = None,
        exist_ok: bool = False,
    ) -> None:
        """Create a topic, durably; see ``Broker.create_topic``."""
        await self._call(
            lambda broker: broker.create_topic(name, partitions, config=config, exist_ok=exist_ok)
        )

    async def topics(self) -> list[str]:
        """The names of all topics, ascending."""
        return await self._call(lambda broker: broker.topics())

    async def topic(self, name: str) -> TopicDescription:
        """A topic's partitions with offsets and sizes, and its configuration."""
        return await self._call(lambda broker: broker.topic(name))

    async def alter_topic(
        self,
        name: str,
        *,
        config: Mapping[str, ConfigValue | None] | None = None,
        partitions: int | None = None,
    ) -> None:
        """Change configuration keys or add partitions, durably; see ``Broker.alter_topic``."""
        await self._call(lambda broker: broker.alter_topic(name, config=config, partitions=partitions))

    async def delete_topic(self, name: str) -> None:
        """Delete a topic, its records, and what groups have committed in it."""
        await self._call(lambda broker: broker.delete_topic(name))

    async def delete_records(self, topic: str, before: Mapping[int, int]) -> dict[int, int]:
        """Delete the records below an offset of each partition; see ``Broker.delete_records``."""
        return await self._call(lambda broker: broker.delete_records(topic, before))

    # Producers and consumers ----------------------------------------------------------------------

    def producer(self, **options: Any) -> AsyncProducer:
        """A producer; the options are those of ``Broker.producer``, checked when it is opened."""
        return AsyncProducer(lambda: self._call(lambda broker: broker.producer(**options)))

    def consumer(self, topics: str | Iterable[str], **options: Any) -> AsyncConsumer:
        """A consumer; the options are those of ``Broker.consumer``, checked when it is opened."""
        return AsyncConsumer(lambda: self._call(lambda broker: broker.consumer(topics, **options)))

    def transaction(self, transactional_id: str, *, timeout: float = 60.0) -> AsyncTransaction:
        """A transaction, for ``async with``; see ``Broker.transaction``."""
        return AsyncTransaction(
            lambda: self._call(lambda broker: broker.transaction(transactional_id, timeout=timeout))
        )

    async def transform(self, source: str, target: str, **options: Any) -> int:
        """Run ``Broker.transform`` in a thread of its own until it ends or this is cancelled.

        The options are its own but ``stop``; *function* is called in that thread. A cancellation waits for the
        batch at hand.
        """
        return await self._run_until_cancelled(
            "transform", lambda broker, stop: broker.transform(source, target, stop=stop, **options)
        )

    async def _run_until_cancelled(
        self, what: str, run: Callable[[Broker, threading.Event], Result]
    ) -> Result:
        """Call *run* in a thread of its own; a cancellation stops it, and waits for it."""
        stop = threading.Event()
        broker = await self._call(lambda broker: broker)
        worker = Worker(f"logbroker-aio-{what}")
        running = worker.submit(lambda: run(broker, stop))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([running])
            raise
        finally:
            worker.stop()

    # Request and reply ----------------------------------------------------------------------------

    async def request(self, topic: str, value: bytes | None, **options: Any) -> Reply:
        """Ask those who respond to *topic*; see ``Broker.request``. When it is cancelled, the reply is dropped."""
        return await self._exchange.request(topic, value, **options)

    def responder(self, topic: str, **options: Any) -> Callable[[AsyncFunction], AsyncResponder]:
        """Decorate a coroutine function that answers the requests on *topic*; see ``Broker.responder``.

        It starts at once; ``await`` the decorated name to know that it takes requests. ``concurrency`` bounds
        how many requests are answered at a time.
        """
        return self._exchange.responder(topic, **options)

    # Routing --------------------------------------------------------------------------------------

    async def bind(self, source: str, target: str, **options: Any) -> BindingDescription:
        """Have the router write what comes into *source* to *target*, too; see ``Broker.bind``."""
        return await self._call(lambda broker: broker.bind(source, target, **options))

    async def unbind(self, name: str) -> None:
        """Remove a binding, durably."""
        await self._call(lambda broker: broker.unbind(name))

    async def bindings(self) -> list[BindingDescription]:
        """Every binding by name, with how far the router is and what holds it up."""
        return await self._call(lambda broker: broker.bindings())

    async def explain_route(self, topic: str, value: bytes | None = None, **options: Any) -> RouteExplanation:
        """Where a message to *topic* would go, and why; see ``Broker.explain_route``."""
        return await self._call(lambda broker: broker.explain_route(topic, value, **options))

    async def run_router(self, **options: Any) -> int:
        """Run ``Broker.run_router`` in a thread of its own until it ends or this is cancelled.

        The options are its own but ``stop``. A cancellation waits for the batch at hand.
        """
        return await self._run_until_cancelled(
            "router", lambda broker, stop: broker.run_router(stop=stop, **options)
        )

    # Groups ---------------------------------------------------------------------------------------

    async def groups(self) -> list[str]:
        """Every consumer group that has subscribed or committed, ascending."""
        return await self._call(lambda broker: broker.groups())

    async def group(self, name: str) -> GroupDescription:
        """A group's live members, committed offsets and lag."""
        return await self._call(lambda broker: broker.group(name))

    async def reset_group(self, name: str, to: Any, **options: Any) -> dict[tuple[str, int], int]:
        """Move a group's committed offsets, durably; see ``Broker.reset_group``."""
        return await self._call(lambda broker: broker.reset_group(name, to, **options))

    async def delete_group(self, name: str) -> None:
        """Forget a group: its committed offsets and subscriptions."""
        await self._call(lambda broker: broker.delete_group(name))

    async def clean(self) -> bool:
        """Run the cleaner now; False when another process is at it."""
        return await self._call(lambda broker: broker.clean())


class _Sending:
    """One send on its way to the thread and back."""

    __slots__ = ("arguments", "error", "future", "metadata", "options", "receipt")

    def __init__(
        self,
        arguments: tuple[str, bytes | None, bytes | None, HeadersArgument | None],
        options: SendOptions,
        future: asyncio.Future[RecordMetadata],
    ) -> None:
        self.arguments = arguments
        self.options = options
        self.future = future
        self.receipt: Receipt | None = None
        self.metadata: RecordMetadata | None = None
        self.error: BaseException | None = None


class AsyncProducer:
    """``Producer``, awaited: ``send`` returns when the record is acknowledged.

    Many sends at a time (``asyncio.gather``, many tasks) share batches and disk syncs. A send that is
    cancelled may or may not be appended; if it fails, closing raises.
    """

    def __init__(self, make: Callable[[], Awaitable[Producer]]) -> None:
        """Use ``AsyncBroker.producer``."""
        self._make = make
        self._opening = asyncio.Lock()
        self._producer: Producer | None = None
        self._worker = Worker("logbroker-aio-producer")
        self._closed = False
        self._closing: asyncio.Future[None] | None = None  # kept from being collected
        self._untold: BaseException | None = None  # the first failure of a cancelled send
        # Filled by the loop, emptied by the worker; deque operations are atomic.
        self._sendings: deque[_Sending] = deque()
        # Whether the worker will look at _sendings. It takes this back *before* it looks, so that what
        # comes in later finds it False and asks again.
        self._drain_is_due = False

    async def __aenter__(self) -> AsyncProducer:
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except LogbrokerError as failure:
            if error is None:
                raise
            error.add_note(f"and the producer could not deliver everything: {failure}")

    async def _opened(self) -> Producer:
        if self._closed:
            raise ClosedError("the producer is closed; open another with broker.producer()")
        if self._producer is None:
            async with self._opening:
                if self._producer is None:
                    self._producer = await self._make()
        return self._producer

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        **options: Unpack[SendOptions],
    ) -> RecordMetadata:
        """Send one record and wait until it is acknowledged; see ``Producer.send`` and ``Receipt.result``."""
        if self._producer is None or self._closed:
            await self._opened()
        self._worker.check_process()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RecordMetadata] = loop.create_future()
        self._sendings.append(_Sending((topic, value, key, headers), options, future))
        if not self._drain_is_due:
            self._drain_is_due = True
            # Not at once: the tasks that are ready to run now have something to send, too.
            loop.call_soon(self._worker.do, self._drain)
        return await future

    def _drain(self) -> None:
        """In the worker: send all there is, then wait for all of it."""
        self._drain_is_due = False
        sendings: list[_Sending] = []
        while self._sendings:
            sendings.append(self._sendings.popleft())
        if not sendings:
            return
        producer = self._producer
        assert producer is not None
        for sending in sendings:
            try:
                sending.receipt = producer.send(*sending.arguments, **sending.options)
            except BaseException as error:  # noqa: BLE001 (it belongs to who awaits the send)
                sending.error = error
        for sending in sendings:
            if sending.receipt is not None:
                try:
                    sending.metadata = sending.receipt.result()
                except BaseException as error:  # noqa: BLE001 (as above)
                    sending.error = error
        post(sendings[0].future.get_loop(), self._tell, sendings)

    def _tell(self, sendings: list[_Sending]) -> None:
        """In the loop: settle the futures."""
        for sending in sendings:
            future = sending.future
            if not future.done():
                if sending.error is not None:
                    future.set_exception(sending.error)
                elif sending.metadata is not None:
                    future.set_result(sending.metadata)
            elif sending.error is not None:
                self._untold = self._untold or sending.error

    async def _call(self, call: Callable[[Producer], Result]) -> Result:
        """Have *call* done behind the sends before it."""
        producer = await self._opened()
        self._worker.do(self._drain)
        return await asyncio.shield(self._worker.submit(lambda: call(producer)))

    async def send_many(
        self,
        topic: str,
        values: Iterable[bytes | Message | None],
        *,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> int:
        """Send many records and wait until all are acknowledged; returns how many.

        *values* is iterated in another thread. See ``Producer.send_many``.
        """

        def call(producer: Producer) -> int:
            count = producer.send_many(topic, values, key=key, partition=partition)
            producer.flush()
            return count

        return await self._call(call)

    async def flush(self) -> None:
        """Wait until every record that was handed over is acknowledged; see ``Producer.flush``."""
        await self._call(lambda producer: producer.flush())

    async def last_sequence(self, topic: str, partition: int = 0) -> int | None:
        """The last sequence of this producer's name in the partition; see ``Producer.last_sequence``."""
        return await self._call(lambda producer: producer.last_sequence(topic, partition))

    async def close(self) -> None:
        """Flush and close; raises the first failure that nobody was told. Idempotent.

        Cancelled, it is carried out all the same.
        """
        if self._closed:
            return
        self._closed = True
        self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        async with self._opening:  # somebody may be opening it
            pass
        if self._producer is None:
            return
        self._worker.do(self._drain)
        try:
            await self._worker.submit(self._producer.close)
        finally:
            self._worker.stop()
        if self._untold is not None:
            raise self._untold


class AsyncConsumer:
    """``Consumer``, awaited. One task reads at a time; a cancelled ``poll`` or iteration loses no record."""

    def __init__(self, make: Callable[[], Awaitable[Consumer]]) -> None:
        """Use ``AsyncBroker.consumer``."""
        self._make = make
        self._opening = asyncio.Lock()
        self._consumer: Consumer | None = None
        self._reader = Worker("logbroker-aio-consumer")  # polls; may wait for records
        self._control = Worker("logbroker-aio-commit")  # everything else
        self._closed = False
        self._closing: asyncio.Future[None] | None = None  # kept from being collected
        self._reading = False  # a task is in poll or in an iteration's wait
        self._polling: asyncio.Future[list[Record]] | None = None  # of a poll that was cancelled
        self._returned: list[Record] = []  # by such a poll, and not handed out yet
        self._next: asyncio.Future[_Slice | None] | None = None  # what an iteration waits for
        self._slice: _Slice | None = None  # what an iteration is handing out
        self._woken = False

    async def __aenter__(self) -> AsyncConsumer:
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end(lambda consumer: consumer.__exit__(kind, error, trace))

    async def _opened(self) -> Consumer:
        if self._closed:
            raise ClosedError("the consumer was closed; make another with broker.consumer()")
        if self._consumer is None:
            async with self._opening:
                if self._consumer is None:
                    self._consumer = await self._make()
        return self._consumer

    # Reading --------------------------------------------------------------------------------------

    async def poll(self, max_records: int | None = None, timeout: float | None = 0.0) -> list[Record]:  # noqa: ASYNC109 (as Consumer.poll: [] and no exception)
        """The next records, up to *max_records*; waits up to *timeout* seconds (None: for ever) for some.

        As ``Consumer.poll``. When it is cancelled, the records that it would have brought come next time.
        """
        from .deadlines import deadline_after

        consumer = await self._opened()
        deadline = deadline_after(timeout)
        with self._turn():
            self._slice = None  # the blocking poll takes back what an iteration left of it
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                await self._receive(consumer, max_records, left)
                if self._returned:
                    return await self._take_returned(consumer, max_records)
                woken, self._woken = self._woken, False
                if woken or self._closed or (deadline is not None and time.monotonic() >= deadline):
                    return []

    async def _receive(self, consumer: Consumer, max_records: int | None, left: float | None) -> None:
        """Have some records in ``_returned``, if there are any within *left* seconds."""
        if self._returned:
            return
        if self._next is not None:
            # An iteration was cancelled here: its wait goes on in the thread, and brings the next records.
            await asyncio.wait([self._next], timeout=left)
            if self._next.done():
                ended, self._next = self._next, None
                slice_ = ended.result()
                if slice_ is not None:
                    self._returned += list(iter(slice_.next_live, None))
            return
        if self._polling is None:
            self._polling = self._reader.submit(partial(consumer.poll, max_records, left))
        await self._finish_polling(consumer)

    async def _finish_polling(self, consumer: Consumer) -> None:
        polling = self._polling
        if polling is None:
            return
        try:
            await asyncio.wait([polling])
        except asyncio.CancelledError:
            consumer.wakeup()
            raise
        self._polling = None
        self._returned += polling.result()

    async def _take_returned(self, consumer: Consumer, max_records: int | None) -> list[Record]:
        taken = self._returned[:max_records]
        rest = self._returned[max_records:] if max_records is not None else []
        self._returned = taken  # still there if the next line is cancelled
        await self._put_back(consumer, rest)
        self._returned = []
        return taken

    async def _put_back(self, consumer: Consumer, records: list[Record]) -> None:
        """Records that were not handed out are read again, and no commit includes them."""
        if not records:
            return
        firsts: dict[TopicPartition, int] = {}
        for record in records:
            firsts.setdefault((record.topic, record.partition), record.offset)

        def seek_back() -> None:
            for place, offset in firsts.items():
                try:
                    consumer.seek(place, offset)
                except (InvalidRequestError, OffsetOutOfRangeError):
                    pass  # no longer ours: its new owner reads from the committed offset

        await asyncio.shield(self._control.submit(seek_back))

    async def _put_all_back(self, consumer: Consumer) -> None:
        """After a cancelled poll: nothing counts as handed out that was not."""
        if self._reading:
            return
        await self._finish_polling(consumer)
        records, self._returned = self._returned, []
        await self._put_back(consumer, records)

    def __aiter__(self) -> AsyncConsumer:
        return self

    async def __anext__(self) -> Record:
        """The next record; waits for it, and ends the iteration when the consumer is closed."""
        while True:
            if self._slice is not None:
                record = self._slice.next_live()
                if record is not None:
                    return record
            if self._closed:
                raise StopAsyncIteration
            self._slice = await self._next_slice(await self._opened())
            if self._slice is None:
                raise StopAsyncIteration

    async def _next_slice(self, consumer: Consumer) -> _Slice | None:
        if self._polling is not None or self._returned:
            await self._put_all_back(consumer)
        with self._turn():
            if self._next is None:
                self._next = self._reader.submit(partial(_next_slice, consumer))
            await asyncio.wait([self._next])  # cancelled, it is taken up again by the next call
            ended, self._next = self._next, None
        return ended.result()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the one task that reads."""
        if self._reading:
            raise InvalidRequestError(
                "another task is reading from this consumer; give each task one of its own"
            )
        self._reading = True
        try:
            yield
        finally:
            self._reading = False

    def wakeup(self) -> None:
        """Make a poll that waits (or the next one) return at once."""
        self._woken = True
        if self._consumer is not None:
            self._consumer.wakeup()

    # Places and commits ---------------------------------------------------------------------------

    async def _call(self, call: Callable[[Consumer], Result]) -> Result:
        consumer = await self._opened()
        await self._put_all_back(consumer)
        return await asyncio.shield(self._control.submit(lambda: call(consumer)))

    async def commit(self) -> None:
        """Commit everything that was handed out; durable when it returns. See ``Consumer.commit``."""
        await self._call(lambda consumer: consumer.commit())

    async def assignment(self) -> list[TopicPartition]:
        """The partitions that this consumer reads now, as (topic, partition), ascending."""
        return await self._call(lambda consumer: consumer.assignment())

    async def position(self) -> dict[Place, int]:
        """The next offset that will be handed out, for each assigned partition."""
        return await self._call(lambda consumer: consumer.position())

    async def committed(self) -> dict[Place, int | None]:
        """What the group has committed in each assigned partition, or None."""
        return await self._call(lambda consumer: consumer.committed())

    async def lag(self) -> dict[Place, int]:
        """How many offsets each assigned partition has from ``position`` on."""
        return await self._call(lambda consumer: consumer.lag())

    async def seek(self, partition: Place, offset: int, *, topic: str | None = None) -> None:
        """Go on at *offset* in an assigned partition; see ``Consumer.seek``."""
        await self._call(lambda consumer: consumer.seek(partition, offset, topic=topic))

    async def seek_to(self, moment: datetime.datetime) -> None:
        """Go on, everywhere, at the first record that is not older than *moment*; see ``Consumer.seek_to``."""
        await self._call(lambda consumer: consumer.seek_to(moment))

    async def close(self) -> None:
        """Leave the group and close, as ``Consumer.close``; ends an iteration. Idempotent.

        Cancelled, it is carried out all the same.
        """
        await self._end(lambda consumer: consumer.close())

    async def _end(self, close: Callable[[Consumer], None]) -> None:
        if self._closed:
            return
        self._closed = True
        self._closing = asyncio.ensure_future(self._close(close))
        await asyncio.shield(self._closing)

    async def _close(self, close: Callable[[Consumer], None]) -> None:
        async with self._opening:  # somebody may be opening it
            pass
        consumer = self._consumer
        if consumer is None:
            return
        try:
            if self._polling is not None:
                consumer.wakeup()
            await self._put_all_back(consumer)
        finally:
            try:
                await self._control.submit(lambda: close(consumer))
            finally:
                self._reader.stop()
                self._control.stop()


class _Slice:
    """Records of one partition for an iteration; the consumer knows from the handout how many were taken."""

    __slots__ = ("_expire", "_handout")

    def __init__(self, handout: Handout, *, expire: bool) -> None:
        """*expire*: whether records of the partition have a time to live."""
        self._handout = handout
        self._expire = expire

    def next_live(self) -> Record | None:
        """The next record that has not expired; None at the end."""
        for record in self._handout.iterator:
            if not self._expire or not self._handout.cursor.is_expired(record):
                return record
        return None


def _next_slice(consumer: Consumer) -> _Slice | None:
    """In the worker: wait for records; None when the consumer is closed."""
    from .cursor import NEVER_MS

    handout = consumer._next_handout()
    return None if handout is None else _Slice(handout, expire=handout.cursor.expires_ms != NEVER_MS)
