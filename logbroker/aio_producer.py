"""A producer for asyncio: the blocking one, and a thread that sends and waits.

    send ──► _sendings ──► drain, in the thread: send all there is, wait for all of it ──► the futures

The sends of one moment go together: one hop, one sync of the disk. What else is asked for has its turn behind the sends
before it. All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, Unpack

from logbroker_storage.errors import LogbrokerError

from .aio_lifetime import Lifetime
from .worker import Worker, post

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
    cancelled may or may not be appended; if it fails, closing raises.
    """

    def __init__(self, make: Callable[[], Awaitable[Producer]]) -> None:
        """Use ``AsyncBroker.producer``."""
        self._worker = Worker("logbroker-aio-producer")
        self._lifetime = Lifetime("producer", make, self._worker)
        self._untold: BaseException | None = None  # the first failure of a cancelled send
        # Filled by the loop, emptied by the worker; deque operations are atomic.
        self._sendings: deque[_Sending] = deque()
        # Whether the worker will look at _sendings. It takes this back *before* it looks, so that what
        # comes in later finds it False and asks again.
        self._drain_is_due = False

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
        producer = await self._lifetime.opened()
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
        await self._lifetime.close(self._close)

    async def _close(self, producer: Producer) -> None:
        self._worker.do(self._drain)
        await self._worker.submit(producer.close)
        if self._untold is not None:
            raise self._untold
