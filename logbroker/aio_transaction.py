"""A transaction for asyncio: the blocking one, and a thread that makes its calls in order.

A call that is cancelled is made all the same. If it fails, nobody was told, and nothing is committed without it: the
commit takes all back, and raises its failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from logbroker_storage.errors import InvalidRequestError

from .aio_consumer import AsyncConsumer
from .aio_lifetime import Lifetime
from .aio_queue import AsyncQueueMessage
from .arguments import several
from .worker import Worker, ended

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .groups import TopicPartition
    from .queues.message import QueueMessage
    from .records import HeadersArgument, Message, RecordMetadata, SendOptions
    from .transaction import Transaction

Result = TypeVar("Result")


class AsyncTransaction:
    """``Transaction``, awaited: ``async with broker.transaction(id) as tx``.

    Leaving the block commits; an exception, a cancellation too, aborts. An end that was begun is carried out.
    A send, or anything else, that is cancelled is part of it all the same; if it fails, the commit raises that.
    """

    def __init__(self, make: Callable[[], Awaitable[Transaction]], *, transactional_id: str) -> None:
        """Use ``AsyncBroker.transaction``."""
        self.transactional_id = transactional_id
        self._worker = Worker("logbroker-aio-transaction")
        self._lifetime = Lifetime("transaction", make, self._worker)
        self._untold: BaseException | None = None  # the first failure of a call that was cancelled

    @property
    def is_open(self) -> bool:
        """Whether it was begun, and neither committed nor aborted."""
        transaction = self._lifetime.blocking
        return transaction is not None and transaction.is_open

    async def __aenter__(self) -> AsyncTransaction:
        await self._lifetime.entered(lambda tx: self._worker.submit(tx.abort))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lifetime.close(
            lambda tx: self._worker.submit(partial(self._commit, tx, tx.leave) if error is None else tx.abort)
        )

    async def _call(self, call: Callable[[Transaction], Result]) -> Result:
        transaction = self._lifetime.blocking
        if transaction is None:
            raise InvalidRequestError("begin the transaction first: async with broker.transaction(…) as tx")
        if not transaction.is_open:
            return call(
                transaction
            )  # refuses, or has nothing to do: it needs no thread, which may have ended
        calling = self._worker.begin(lambda: call(transaction))
        try:
            await ended(calling)
        except asyncio.CancelledError:
            calling.add_done_callback(self._keep_untold)
            raise
        return calling.result()

    def _keep_untold(self, calling: Future[Any]) -> None:
        """In the worker, before the next call, unless the call had ended when it was cancelled."""
        self._untold = self._untold or calling.exception()

    def _commit(self, transaction: Transaction, commit: Callable[[], None]) -> None:
        """In the worker: *commit*, unless a call before it was cancelled and has failed."""
        untold, self._untold = self._untold, None
        if untold is not None:
            transaction.abort()
            raise untold
        commit()

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        **options: Unpack[SendOptions],
    ) -> RecordMetadata:
        """Write one record and wait until it is in its log; the arguments are those of ``Transaction.send``."""

        def call(transaction: Transaction) -> RecordMetadata:
            return transaction.send(topic, value, key, headers, **options).result()

        return await self._call(call)

    async def send_many(
        self,
        topic: str,
        values: Iterable[bytes | Message | None],
        *,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> int:
        """Write many records, which are in their logs when the commit is; returns how many."""
        return await self._call(lambda tx: tx.send_many(topic, values, key=key, partition=partition))

    async def commit_offsets(self, consumer: AsyncConsumer, *, only: TopicPartition | None = None) -> None:
        """Commit what *consumer* has handed out so far with the records; see ``Transaction.commit_offsets``."""
        if not isinstance(consumer, AsyncConsumer):
            raise InvalidRequestError(
                f"commit_offsets takes a consumer of the async broker, not {consumer!r:.100}"
            )
        blocking = await consumer._settled()
        await self._call(lambda tx: tx.commit_offsets(blocking, only=only))

    async def accept(self, messages: Iterable[AsyncQueueMessage]) -> None:
        """Accept *messages* of queues together with the records; see ``Transaction.accept``."""
        accepted = [_blocking(message) for message in several("messages", messages)]
        await self._call(lambda tx: tx.accept(accepted))

    async def get(self, key: bytes) -> bytes | None:
        """The value of *key* in ``tx.state``; None when it has none."""
        return await self._call(lambda tx: tx.state.get(key))

    async def put(self, key: bytes, value: bytes | None) -> None:
        """Set the value of *key* in ``tx.state``; None removes it."""
        await self._call(lambda tx: tx.state.delete(key) if value is None else tx.state.put(key, value))

    async def items(self, start: bytes = b"", end: bytes | None = None) -> list[tuple[bytes, bytes]]:
        """The items of ``tx.state`` from *start* to below *end*, by ascending key."""
        return await self._call(lambda tx: list(tx.state.range(start, end)))

    async def commit(self) -> None:
        """Make it all visible, durably; see ``Transaction.commit``."""
        await self._call(lambda tx: self._commit(tx, tx.commit))

    async def abort(self) -> None:
        """Take it all back; nothing happens when it has ended already."""
        await self._call(lambda tx: tx.abort())


def _blocking(message: AsyncQueueMessage) -> QueueMessage:
    if not isinstance(message, AsyncQueueMessage):
        raise InvalidRequestError(
            f"a transaction accepts messages that a queue of the async broker has handed out, not {message!r:.100}"
        )
    return message.blocking
