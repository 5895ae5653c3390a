"""A producer for asyncio: the blocking one, and a thread that sends and waits.

    send ──► _sendings ──► drain, in the thread: send all there is, wait for all of it ──► the futures

The sends of one moment go together: one hop, one sync of the disk. What else is asked for has its turn behind the sends
before it. All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, Unpack

from logbroker_storage.errors import DeliveryTimeoutError, LogbrokerError

from .aio_lifetime import Lifetime
from .worker import Worker, fail, post

if TYPE_CHECKING:
    from .producer import Producer
    from .receipts import Receipt
    from .records import HeadersArgument, Message, RecordMetadata, SendOptions

Result = TypeVar("Result")


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
    cancelled may or may not be appended; if it fails, ``flush`` or closing raises.
    """

    def __init__(self, make: Callable[[], Awaitable[Producer]], *, name: str | None) -> None:
        """Use ``AsyncBroker.producer``."""
        self.name = name
        self._worker = Worker("logbroker-aio-producer")
        self._lifetime = Lifetime("producer", make, self._worker)
        self._untold: BaseException | None = None  # the first failure of a send that was cancelled
        self._at_work = 0  # calls that the worker has not done with
        # Filled by the loop, emptied by the worker; deque operations are atomic.
        self._sendings: deque[_Sending] = deque()
        # Whether the worker will look at _sendings. It takes this back *before* it looks, so that what
        # comes in later finds it False and asks again.
        self._drain_is_due = False

    @property
    def closed(self) -> bool:
        """Whether it takes no more records."""
        return self._lifetime.is_closed

    @property
    def lost_records(self) -> int:
        """How many records sent with ``acks="none"`` failed so far; see ``Producer.lost_records``."""
        producer = self._lifetime.blocking
        return 0 if producer is None else producer.lost_records

    async def __aenter__(self) -> AsyncProducer:
        await self._lifetime.entered(self._close)
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

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        **options: Unpack[SendOptions],
    ) -> RecordMetadata:
        """Send one record and wait until it is acknowledged; see ``Producer.send`` and ``Receipt.result``."""
        await self._lifetime.opened()
        self._worker.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RecordMetadata] = loop.create_future()
        self._sendings.append(_Sending((topic, value, key, headers), options, future))
        self._at_work += 1
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
        producer = self._lifetime.blocking
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
        # The last's: those before may be of a loop that was closed meanwhile, and nobody waits for them any more.
        post(sendings[-1].future.get_loop(), self._tell, sendings)

    def _tell(self, sendings: list[_Sending]) -> None:
        """In the loop: settle the futures."""
        self._at_work -= len(sendings)
        for sending in sendings:
            future = sending.future
            if not future.done():
                if sending.error is not None:
                    fail(future, sending.error)
                elif sending.metadata is not None:
                    future.set_result(sending.metadata)
            elif sending.error is not None:
                self._untold = self._untold or sending.error

    # Behind the sends ------------------------------------------------------------------------------

    async def _call(self, call: Callable[[Producer], Result]) -> Result:
        """Have *call* done behind the sends before it."""
        calling = self._submit(partial(call, await self._lifetime.opened()))
        await self._wait(calling)
        return calling.result()

    def _submit(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        self._worker.do(self._drain)
        calling = self._worker.submit(call)
        self._at_work += 1
        calling.add_done_callback(self._note_done)
        return calling

    def _note_done(self, _: object) -> None:
        self._at_work -= 1

    async def _wait(self, calling: asyncio.Future[Result], timeout: float | None = None) -> None:  # noqa: ASYNC109 (some give up behind it, some do not)
        """Wait for a call to end. When this is cancelled the call goes on, and if it fails, nobody was told."""
        try:
            await asyncio.wait([calling], timeout=timeout)
        except asyncio.CancelledError:
            calling.add_done_callback(self._keep_untold)
            raise

    def _keep_untold(self, calling: asyncio.Future[Result]) -> None:
        error = calling.exception()
        if not isinstance(error, DeliveryTimeoutError):
            self._untold = self._untold or error

    def _raise_untold(self) -> None:
        untold, self._untold = self._untold, None
        if untold is not None:
            raise untold

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

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 (as Producer.flush, with its error)
        """Wait until every record that was handed over is acknowledged; *timeout* in seconds.

        Raises as ``Producer.flush``; also the first failure of a send that was cancelled.
        """
        from .deadlines import deadline_after, left_until

        deadline = deadline_after(timeout)
        producer = await self._lifetime.opened()
        flush = _OnceAtMost(lambda: producer.flush(left_until(deadline)))
        has_its_turn = not self._at_work  # nothing is before it: it keeps to its time by itself
        flushing = self._submit(flush.run)
        await self._wait(flushing, None if has_its_turn else left_until(deadline))
        if not flushing.done() and flush.call_off():
            raise DeliveryTimeoutError(f"not everything was acknowledged within {timeout} seconds; ask again")
        await self._wait(flushing)
        flushing.result()
        self._raise_untold()

    async def last_sequence(self, topic: str, partition: int = 0) -> int | None:
        """The last sequence of this producer's name in the partition; see ``Producer.last_sequence``."""
        producer = await self._lifetime.opened()
        return await asyncio.shield(self._submit(lambda: producer.last_sequence(topic, partition)))

    async def close(self) -> None:
        """Flush and close; raises the first failure that nobody was told. Idempotent.

        Cancelled, it is carried out all the same.
        """
        await self._lifetime.close(self._close)

    async def _close(self, producer: Producer) -> None:
        self._worker.do(self._drain)
        await self._worker.submit(producer.close)
        self._raise_untold()


class _OnceAtMost:
    """A call in the thread, which the loop may call off as long as the thread has not come to it."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._first = threading.Lock()  # taken by whoever comes first, and kept

    def run(self) -> None:
        """In the worker."""
        if self._first.acquire(blocking=False):
            self._call()

    def call_off(self) -> bool:
        """Whether it has not begun; then it will not."""
        return self._first.acquire(blocking=False)
