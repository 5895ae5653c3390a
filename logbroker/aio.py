"""The broker for asyncio: the same objects, awaited. Nothing here blocks the event loop.

The twins hold a broker, producer, consumer, queue or transaction of the blocking kind, and threads that make its calls
(``worker``). They are made by a thread too, so ``broker.producer()`` returns at once; ``async with``, or the first
call, is what opens them (``aio_lifetime``).

    what                      where
    topics, groups, routes    here: a thread of the broker's, one call after the other
    transform, run_router     here: a thread each, until they are cancelled
    producer, consumer        ``aio_producer``, ``aio_consumer``
    queue, subscriptions      ``aio_queue``, ``aio_subscriptions``
    transaction               ``aio_transaction``
    request, responder        ``aio_requests``

All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar

from logbroker_storage.files import absolute_path

from .aio_consumer import AsyncConsumer as AsyncConsumer
from .aio_lifetime import Lifetime
from .aio_producer import AsyncProducer as AsyncProducer
from .aio_requests import AsyncExchange, AsyncFunction, AsyncResponder
from .aio_subscriptions import AsyncSubscriptions
from .aio_transaction import AsyncTransaction
from .arguments import path as checked_path
from .worker import Worker

# The engine is imported by the worker: that takes a tenth of a second, which the loop should not wait for.
if TYPE_CHECKING:
    from logbroker_storage.clock import Clock
    from logbroker_storage.files import Files
    from logbroker_storage.log_config import ConfigValue

    from .broker import Broker
    from .consumer import IsolationName
    from .consumer_commits import Delivery
    from .descriptions import GroupDescription, TopicDescription
    from .expressions import Predicate
    from .records import AcksName, HeadersArgument
    from .request_reply.correlation import RequestCounts
    from .request_reply.messages import Reply
    from .request_reply.requester import IfNobody
    from .routing.bindings import BindingStart, HeadersMatch
    from .routing.descriptions import BindingDescription, RouteExplanation
    from .start import Start
    from .transform import Transformation, TransformProgress
    from .transforms.loading import Source

Result = TypeVar("Result")


def open_async(
    path: str | os.PathLike[str], *, files: Files | None = None, clock: Clock | None = None
) -> AsyncBroker:
    """The data directory at *path*, for ``async with``; see ``logbroker.open``."""
    absolute = absolute_path(checked_path(path))  # a relative one leads from here, wherever it is opened

    def make() -> Broker:
        from .broker import open as open_blocking

        return open_blocking(absolute, files=files, **({} if clock is None else {"clock": clock}))

    return AsyncBroker(absolute, make)


class AsyncBroker(AsyncSubscriptions):
    """``Broker``, awaited: each method means what its namesake there means, and raises the same."""

    def __init__(self, path: str, make: Callable[[], Broker]) -> None:
        """Use ``logbroker.open_async``."""
        self.path = path
        self._worker = Worker("logbroker-aio-broker")
        self._lifetime = Lifetime(
            "broker", lambda: self._worker.submit(make), self._worker, again="logbroker.open_async()"
        )
        self._exchange = AsyncExchange(self._lifetime.opened)

    async def __aenter__(self) -> AsyncBroker:
        await self._lifetime.entered(self._close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the directory; responders stop first. Idempotent. Close producers and consumers first."""
        if not self._lifetime.is_ours:
            return
        try:
            await self._exchange.close()
        finally:
            await self._lifetime.close(self._close)

    async def _close(self, broker: Broker) -> None:
        await self._worker.submit(broker.close)

    async def _call(self, call: Callable[[Broker], Result]) -> Result:
        broker = await self._lifetime.opened()
        # Shielded: a change of a topic or a group is not broken off in the middle.
        return await asyncio.shield(self._worker.submit(lambda: call(broker)))

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

    def producer(
        self,
        *,
        name: str | None = None,
        acks: AcksName = "all",
        linger: float = 0.005,
        batch_bytes: int = 524_288,
        compression: str | None = None,
        buffer_bytes: int = 64 << 20,
        max_block: float = 60.0,
    ) -> AsyncProducer:
        """A producer; the arguments are those of ``Broker.producer``, checked when it is opened."""
        return AsyncProducer(
            lambda: self._call(
                lambda broker: broker.producer(
                    name=name,
                    acks=acks,
                    linger=linger,
                    batch_bytes=batch_bytes,
                    compression=compression,
                    buffer_bytes=buffer_bytes,
                    max_block=max_block,
                )
            ),
            name=name,
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
    ) -> AsyncConsumer:
        """A consumer; the arguments are those of ``Broker.consumer``, checked when it is opened."""
        return AsyncConsumer(
            lambda: self._call(
                lambda broker: broker.consumer(
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
            ),
            group=group,
        )

    def transaction(self, transactional_id: str, *, timeout: float = 60.0) -> AsyncTransaction:
        """A transaction, for ``async with``; see ``Broker.transaction``."""
        return AsyncTransaction(
            lambda: self._call(lambda broker: broker.transaction(transactional_id, timeout=timeout)),
            transactional_id=transactional_id,
        )

    async def transform(
        self,
        source: str,
        target: str,
        *,
        group: str,
        function: Transformation,
        max_records: int = 500,
        idle_timeout: float | None = None,
        dead_letter: str | None = None,
        progress: TransformProgress | None = None,
    ) -> int:
        """Run ``Broker.transform`` in a thread of its own until it ends or this is cancelled.

        *function* is called in that thread. A cancellation waits for the batch at hand.
        """
        return await self._run_until_cancelled(
            "transform",
            lambda broker, stop: broker.transform(
                source,
                target,
                group=group,
                function=function,
                stop=stop,
                max_records=max_records,
                idle_timeout=idle_timeout,
                dead_letter=dead_letter,
                progress=progress,
            ),
        )

    async def _run_until_cancelled(
        self, what: str, run: Callable[[Broker, threading.Event], Result]
    ) -> Result:
        """Call *run* in a thread of its own; a cancellation stops it, and waits for it."""
        stop = threading.Event()
        broker = await self._lifetime.opened()
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

    async def request(
        self,
        topic: str,
        value: bytes | None,
        *,
        timeout: float = 5.0,  # noqa: ASYNC109 (as Broker.request, with its error)
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        if_nobody: IfNobody = "raise",
    ) -> Reply:
        """Ask those who respond to *topic*; see ``Broker.request``. When it is cancelled, the reply is dropped."""
        return await self._exchange.request(
            topic, value, timeout=timeout, key=key, headers=headers, if_nobody=if_nobody
        )

    @property
    def request_counts(self) -> RequestCounts:
        """What became of this object's requests; see ``Broker.request_counts``."""
        from .request_reply.correlation import RequestCounts

        broker = self._lifetime.blocking
        return RequestCounts() if broker is None else broker.request_counts

    def responder(
        self, topic: str, *, concurrency: int = 1, lease: float = 10.0, tracebacks: bool = False
    ) -> Callable[[AsyncFunction], AsyncResponder]:
        """Decorate a coroutine function that answers the requests on *topic*; see ``Broker.responder``.

        It starts at once; ``await`` the decorated name to know that it takes requests. ``concurrency`` bounds
        how many requests are answered at a time.
        """
        return self._exchange.responder(topic, concurrency=concurrency, lease=lease, tracebacks=tracebacks)

    # Routing --------------------------------------------------------------------------------------

    async def bind(
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
        """Have the router write what comes into *source* to *target*, too; see ``Broker.bind``."""
        return await self._call(
            lambda broker: broker.bind(
                source,
                target,
                when=when,
                headers=headers,
                headers_match=headers_match,
                transform=transform,
                unrouted=unrouted,
                dead_letter=dead_letter,
                start=start,
                name=name,
                exist_ok=exist_ok,
            )
        )

    async def unbind(self, name: str) -> None:
        """Remove a binding, durably."""
        await self._call(lambda broker: broker.unbind(name))

    async def bindings(self) -> list[BindingDescription]:
        """Every binding by name, with how far the router is and what holds it up."""
        return await self._call(lambda broker: broker.bindings())

    async def explain_route(
        self,
        topic: str,
        value: bytes | None = None,
        *,
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        at: tuple[int, int] | None = None,
    ) -> RouteExplanation:
        """Where a message to *topic* would go, and why; see ``Broker.explain_route``."""
        return await self._call(
            lambda broker: broker.explain_route(topic, value, key=key, headers=headers, at=at)
        )

    async def run_router(self, *, idle_timeout: float | None = None, max_records: int = 5000) -> int:
        """Run ``Broker.run_router`` in a thread of its own until it ends or this is cancelled.

        A cancellation waits for the batch at hand.
        """
        return await self._run_until_cancelled(
            "router",
            lambda broker, stop: broker.run_router(
                stop=stop, idle_timeout=idle_timeout, max_records=max_records
            ),
        )

    # Groups ---------------------------------------------------------------------------------------

    async def groups(self) -> list[str]:
        """Every consumer group that has subscribed or committed, ascending."""
        return await self._call(lambda broker: broker.groups())

    async def group(self, name: str) -> GroupDescription:
        """A group's live members, committed offsets and lag."""
        return await self._call(lambda broker: broker.group(name))

    async def reset_group(
        self,
        name: str,
        to: Literal["earliest", "latest"] | int | datetime.datetime | datetime.timedelta,
        *,
        topics: Iterable[str] | None = None,
        shift: bool = False,
        dry_run: bool = False,
    ) -> dict[tuple[str, int], int]:
        """Move a group's committed offsets, durably; see ``Broker.reset_group``."""
        return await self._call(
            lambda broker: broker.reset_group(name, to, topics=topics, shift=shift, dry_run=dry_run)
        )

    async def delete_group(self, name: str) -> None:
        """Forget a group: its committed offsets and subscriptions."""
        await self._call(lambda broker: broker.delete_group(name))

    async def clean(self) -> bool:
        """Run the cleaner now; False when another process is at it."""
        return await self._call(lambda broker: broker.clean())
