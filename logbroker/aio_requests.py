"""Request and reply for asyncio: what ``AsyncBroker.request`` and ``AsyncBroker.responder`` do.

    request     a thread sends it; the reply comes straight from the thread that reads replies into the loop
    responder   the responder's threads take requests, and each waits for a task of the loop

A request that is cancelled is given up: its reply is dropped. A coroutine that answers is not cancelled by ``stop``,
which waits for it. All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from logbroker_storage.errors import InvalidRequestError

from .aio_lifetime import carried_out
from .worker import Worker

if TYPE_CHECKING:
    from .broker import Broker
    from .request_reply.messages import Answer, Reply, Request
    from .request_reply.requester import PendingRequest
    from .request_reply.responder import Responder, ResponderCounts

AsyncFunction = Callable[["Request"], Coroutine[Any, Any, "Answer"]]


class AsyncExchange:
    """What one ``AsyncBroker`` asks and answers."""

    def __init__(self, opened: Callable[[], Awaitable[Broker]]) -> None:
        """*opened* gives the blocking broker."""
        self._opened = opened
        self._worker = Worker("logbroker-aio-requests")
        self._responders: list[AsyncResponder] = []

    async def request(self, topic: str, value: bytes | None, **options: Any) -> Reply:
        """As ``Broker.request``."""
        broker = await self._opened()
        beginning = self._worker.submit(partial(broker._begin_request, topic, value, **options))
        try:
            pending: PendingRequest = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_give_up)
            raise
        left_s = max(0.0, pending.deadline - time.monotonic())
        try:
            # Not wait_for(): Python 3.11's swallows a cancellation that comes together with the reply.
            async with asyncio.timeout(left_s):
                return await asyncio.wrap_future(pending.future)
        except TimeoutError:
            raise pending.timed_out() from None
        finally:
            pending.give_up()

    def responder(self, topic: str, **options: Any) -> Callable[[AsyncFunction], AsyncResponder]:
        """As ``Broker.responder``, of a coroutine function."""

        def decorate(function: AsyncFunction) -> AsyncResponder:
            if not inspect.iscoroutinefunction(function):
                raise InvalidRequestError(
                    f"a responder of an async broker is a coroutine function (async def), not {function!r}"
                )
            responder = AsyncResponder(self._opened, topic, function, options)
            self._responders.append(responder)
            return responder

        return decorate

    async def close(self) -> None:
        """Stop the responders, behind the requests at hand."""
        responders, self._responders = self._responders, []
        for responder in responders:
            await responder.stop()
        self._worker.stop()


class AsyncResponder:
    """Answers the requests of a topic with a coroutine function; see ``Responder``.

    It starts when it is decorated; ``await`` it to know that it takes requests.
    """

    def __init__(
        self,
        opened: Callable[[], Awaitable[Broker]],
        topic: str,
        function: AsyncFunction,
        options: dict[str, Any],
    ) -> None:
        """Use ``AsyncBroker.responder``."""
        self.topic = topic
        self._function = function
        self._worker = Worker("logbroker-aio-responder")
        self._loop = asyncio.get_running_loop()
        self._is_stopped = False
        self._starting = carried_out(self._start(opened, options))

    async def _start(self, opened: Callable[[], Awaitable[Broker]], options: dict[str, Any]) -> Responder:
        broker = await opened()
        return await self._worker.submit(
            lambda: broker.responder(self.topic, **options)(self._answer_in_loop)
        )

    def _answer_in_loop(self, request: Request) -> Answer:
        """In one of the responder's threads."""
        return asyncio.run_coroutine_threadsafe(self._function(request), self._loop).result()

    async def __call__(self, request: Request) -> Answer:
        return await self._function(request)

    def __await__(self) -> Generator[Any, None, AsyncResponder]:
        """Wait until it takes requests; raises what keeps it from that."""
        yield from asyncio.shield(self._starting).__await__()
        return self

    @property
    def is_running(self) -> bool:
        """Whether it takes requests."""
        return self._has_started and self._starting.result().is_running

    @property
    def counts(self) -> ResponderCounts:
        """What it did so far."""
        from .request_reply.responder import ResponderCounts

        return self._starting.result().counts if self._has_started else ResponderCounts()

    @property
    def _has_started(self) -> bool:
        starting = self._starting
        return starting.done() and not starting.cancelled() and starting.exception() is None

    async def run(self) -> None:
        """Answer until it is stopped or the broker is closed; see ``Responder.run``. A cancellation stops it."""
        responder = await asyncio.shield(self._starting)
        running = Worker("logbroker-aio-responder-run")
        ending = running.submit(responder.run)
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await self.stop()
            await asyncio.wait([ending])
            raise
        finally:
            running.stop()

    async def stop(self) -> None:
        """Take no more requests, and wait until those at hand are answered. Idempotent."""
        if self._is_stopped:
            return
        await asyncio.wait([self._starting])
        if not self._has_started:
            self._worker.stop()
            return  # whoever awaits it is told why
        await asyncio.shield(self._worker.submit(self._starting.result().stop))
        self._is_stopped = True
        self._worker.stop()

    async def __aenter__(self) -> AsyncResponder:
        return await self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _give_up(beginning: asyncio.Future[PendingRequest]) -> None:
    """Of a request that was cancelled while it was being sent."""
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().give_up()
