"""A queue for asyncio: the blocking one, a thread that receives, and a thread that settles.

    async with queue.receive(timeout=1.0) as message: ...     accepted on leaving, released on an exception
    message = await queue.receive()                           to be settled by itself
    async for message in queue: ...

    what              how it stays cheap, and safe when cancelled
    receive           any number of tasks may wait: in turns, on the loop, so that each keeps its own timeout. One
                      that is cancelled wakes the thread; a message that it still brings is given back, undelivered
    accept            what many tasks accept at one moment goes to the thread together: one hop, one sync of the disk.
                      Cancelled or not, it is carried out
    the others        carried out, too

All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from logbroker_storage.errors import (
    ClosedError,
    InvalidRequestError,
    LeaseLostError,
    LogbrokerError,
    QueueEmptyError,
    TopicNotFoundError,
)

from .aio_lifetime import Lifetime
from .arguments import several
from .of_record import OfPlacedRecord
from .worker import Begun, Worker, ended, post

if TYPE_CHECKING:
    from .queues.consumer import Queue, QueueMessage

Result = TypeVar("Result")

logger = logging.getLogger("logbroker.queues")


class AsyncQueueMessage(OfPlacedRecord):
    """``QueueMessage``, awaited; use it in an ``async with``, or settle it."""

    __slots__ = ("blocking", "queue", "record")

    def __init__(self, queue: AsyncQueue, blocking: QueueMessage) -> None:
        self.queue = queue
        self.blocking = blocking
        self.record = blocking.record

    @property
    def delivery_count(self) -> int:
        return self.blocking.delivery_count

    @property
    def is_settled(self) -> bool:
        return self.blocking.is_settled

    @property
    def handle(self) -> str:
        """See ``QueueMessage.handle``."""
        return self.blocking.handle

    async def accept(self) -> None:
        """Be done with the message: durable when this returns."""
        await self.queue.accept([self])

    async def release(self, *, delay: float | datetime.timedelta = 0.0) -> None:
        """Give it back, to be delivered again to anybody."""
        await self.queue.release([self], delay=delay)

    async def reject(self, reason: str = "rejected") -> None:
        """Never deliver it again: it goes to the dead letters."""
        await self.queue.reject([self], reason)

    async def extend(self, lease: float | None = None) -> None:
        """Hold it for *lease* seconds from now."""
        await self.queue.extend([self], lease)

    async def __aenter__(self) -> AsyncQueueMessage:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Accept it, or release it when an exception passes; nothing more when it was settled inside."""
        if self.is_settled:
            return
        if error is None:
            await self.accept()
            return
        try:
            await self.release()
        except LogbrokerError as failure:
            logger.warning("%r comes again when its lease ends: %s", self, failure)  # *error* goes on

    def __repr__(self) -> str:
        return repr(self.blocking)


Settled = AsyncQueueMessage | str


class AsyncMessageBatch(list[AsyncQueueMessage]):
    """Messages received together: a list that can be settled with one sync of the disk."""

    def __init__(self, queue: AsyncQueue, messages: Iterable[AsyncQueueMessage] = ()) -> None:
        super().__init__(messages)
        self._queue = queue

    def _open(self) -> list[AsyncQueueMessage]:
        return [message for message in self if not message.is_settled]

    async def accept(self) -> None:
        """Accept all that are not settled yet."""
        await self._queue.accept(self._open())

    async def release(self, *, delay: float | datetime.timedelta = 0.0) -> None:
        """Release all that are not settled yet."""
        await self._queue.release(self._open(), delay=delay)

    async def reject(self, reason: str = "rejected") -> None:
        """Reject all that are not settled yet."""
        await self._queue.reject(self._open(), reason)


class Receiving:
    """What ``AsyncQueue.receive`` returns: to be awaited, or entered with ``async with``."""

    def __init__(self, receive: Callable[[], Awaitable[AsyncQueueMessage]]) -> None:
        self._receive = receive
        self._message: AsyncQueueMessage | None = None

    def __await__(self) -> Generator[object, None, AsyncQueueMessage]:
        return self._receive().__await__()

    async def __aenter__(self) -> AsyncQueueMessage:
        self._message = await self._receive()
        return self._message

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._message is not None:
            await self._message.__aexit__(kind, error, trace)


class _Receive:
    """One receive in the thread, which the loop may call off at any time."""

    def __init__(self, queue: Queue, max_messages: int, timeout_s: float | None) -> None:
        self._queue = queue
        self._max_messages = max_messages
        self._timeout_s = timeout_s
        self._is_called_off = False

    def run(self) -> list[QueueMessage]:
        """In the receiver."""
        # A wake-up that comes before the wait has begun may end the one before it: hence the mark.
        return [] if self._is_called_off else self._queue.receive_many(self._max_messages, self._timeout_s)

    def call_off(self) -> None:
        """Have it return soon."""
        self._is_called_off = True
        self._queue.wakeup()


class _Accepting(NamedTuple):
    """One acceptance on its way to the thread and back."""

    messages: list[QueueMessage | str]
    durable: bool
    future: asyncio.Future[None]


class AsyncQueue:
    """``Queue``, awaited. Any number of tasks may use one; closing it releases what is in its hands."""

    def __init__(self, make: Callable[[], Awaitable[Queue]], *, subscription: str) -> None:
        """Use ``AsyncBroker.queue``."""
        self._subscription = subscription
        self._receiver = Worker("logbroker-aio-queue")  # may wait for messages
        self._settler = Worker("logbroker-aio-settle")  # everything else
        self._lifetime = Lifetime("queue", make, self._receiver, self._settler)
        self._turn = asyncio.Lock()
        self._receive_now: _Receive | None = None  # of the task whose turn it is
        self._woken = False  # by wakeup, and no receive has returned for it yet
        self._giving_back: Begun[None] | None = None  # what the last receive that was cancelled brings
        # Filled by the loop, emptied by the settler; deque operations are atomic.
        self._accepting: deque[_Accepting] = deque()
        # Whether the settler will look at _accepting. It takes this back *before* it looks, so that what
        # comes in later finds it False and asks again.
        self._drain_is_due = False

    @property
    def subscription(self) -> str:
        """The subscription's name, as of when it was last looked at."""
        queue = self._lifetime.blocking
        return self._subscription if queue is None else queue.subscription

    async def __aenter__(self) -> AsyncQueue:
        await self._lifetime.entered(self._close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Receiving ------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Receiving:
        """The next message: ``await queue.receive()``, or ``async with queue.receive() as message``.

        Waits for it at most *timeout* seconds (None: for ever); errors as ``Queue.receive``.
        """
        return Receiving(partial(self._receive, timeout))

    async def _receive(self, timeout: float | None) -> AsyncQueueMessage:  # noqa: ASYNC109 (as Queue.receive)
        messages = await self.receive_many(1, timeout)
        if not messages:
            when = "before wakeup()" if timeout is None else f"within {timeout} seconds"
            raise QueueEmptyError(f"no message of subscription {self.subscription!r} came {when}")
        return messages[0]

    async def receive_many(
        self,
        max_messages: int = 100,
        timeout: float | None = 0.0,  # noqa: ASYNC109 (as Queue.receive_many: [] and no exception)
    ) -> AsyncMessageBatch:
        """Up to *max_messages* messages; waits for the first at most *timeout* seconds. See ``Queue.receive_many``.

        When it is cancelled, nothing stays in these hands that nobody has seen.
        """
        from .deadlines import deadline_after, left_until

        deadline = deadline_after(timeout)
        queue = await self._lifetime.opened()
        async with self._my_turn(left_until(deadline)) as is_mine:
            while is_mine:
                self._lifetime.check_usable()
                left_s = 0.0 if self._woken else left_until(deadline)
                messages = await self._messages(queue, _Receive(queue, max_messages, left_s))
                if messages:
                    return AsyncMessageBatch(self, [AsyncQueueMessage(self, message) for message in messages])
                # It may also have been woken for a receive that was cancelled.
                woken, self._woken = self._woken, False
                if woken or (deadline is not None and time.monotonic() >= deadline):
                    break
        return AsyncMessageBatch(self)

    async def _messages(self, queue: Queue, receive: _Receive) -> list[QueueMessage]:
        """What *receive* brings; when this is cancelled, that is given back."""
        self._receive_now = receive
        receiving = self._receiver.begin(receive.run)
        try:
            await ended(receiving)
        except asyncio.CancelledError:
            receive.call_off()
            # Behind it, in its thread: the loop may be closed by then.
            self._giving_back = self._receiver.begin(partial(_give_back, queue, receiving))
            raise
        finally:
            self._receive_now = None
        return receiving.result()

    @asynccontextmanager
    async def _my_turn(self, timeout: float | None) -> AsyncIterator[bool]:  # noqa: ASYNC109 (as its callers')
        """Be the one task that receives; False when the turn has not come within *timeout* seconds."""
        try:
            # Also where nobody has the turn now: somebody who waited longer may be about to get it.
            async with asyncio.timeout(timeout):
                await self._turn.acquire()
        except TimeoutError:
            yield False
            return
        try:
            yield True
        finally:
            self._turn.release()

    def wakeup(self) -> None:
        """Make a ``receive_many`` that waits (or the next one that would) return at once."""
        self._woken = True
        if self._lifetime.blocking is not None:
            self._lifetime.blocking.wakeup()

    def __aiter__(self) -> AsyncQueue:
        return self

    async def __anext__(self) -> AsyncQueueMessage:
        """The next message, to be settled by whoever takes it; ends when the queue is closed."""
        try:
            while not (messages := await self.receive_many(1, None)):
                pass  # woken
            return messages[0]
        except ClosedError:
            if self._lifetime.is_closed:
                raise StopAsyncIteration from None
            raise

    # Settling -------------------------------------------------------------------------------------

    async def accept(self, messages: Iterable[Settled], *, durable: bool = True) -> None:
        """Be done with *messages*, which are received ones or handles; durable when this returns.

        What several tasks accept at one moment shares one sync, if one of them needs it. *durable* and errors as
        ``Queue.accept``.
        """
        accepted = self._blocking(messages)
        await self._lifetime.opened()
        self._settler.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._accepting.append(_Accepting(accepted, durable, future))
        if not self._drain_is_due:
            self._drain_is_due = True
            # Not at once: the tasks that are ready to run now have something to accept, too.
            loop.call_soon(self._settler.do, self._drain)
        await future

    def _drain(self) -> None:
        """In the settler: accept all there is, with one sync."""
        self._drain_is_due = False
        accepting: list[_Accepting] = []
        while self._accepting:
            accepting.append(self._accepting.popleft())
        if not accepting:
            return
        queue = self._lifetime.blocking
        assert queue is not None
        error = _acceptance(queue, accepting)
        if isinstance(error, (InvalidRequestError, TopicNotFoundError)) and len(accepting) > 1:
            for one in accepting:  # nothing was written: let it concern only whose message it is about
                post(one.future.get_loop(), _tell, [one], _acceptance(queue, [one]))
            return
        # The last's: those before may be of a loop that was closed meanwhile, and nobody waits for them any more.
        post(accepting[-1].future.get_loop(), _tell, accepting, error)

    async def release(self, messages: Iterable[Settled], *, delay: float | datetime.timedelta = 0.0) -> None:
        """Give *messages* back, to be delivered again to anybody; see ``Queue.release``."""
        released = self._blocking(messages)
        await self._call(lambda queue: queue.release(released, delay=delay))

    async def reject(self, messages: Iterable[Settled], reason: str = "rejected") -> None:
        """Never deliver *messages* again, durably; see ``Queue.reject``."""
        rejected = self._blocking(messages)
        await self._call(lambda queue: queue.reject(rejected, reason))

    async def give_back(self, messages: Iterable[Settled]) -> None:
        """Have *messages* as if they had never been received; see ``Queue.give_back``."""
        given = self._blocking(messages)
        await self._call(lambda queue: queue.give_back(given))

    async def extend(self, messages: Iterable[Settled], lease: float | None = None) -> None:
        """Hold *messages* for *lease* seconds from now; see ``Queue.extend``."""
        extended = self._blocking(messages)
        await self._call(lambda queue: queue.extend(extended, lease))

    def _blocking(self, messages: Iterable[Settled]) -> list[QueueMessage | str]:
        """What the blocking queue calls them; whatever is wrong with one of them is told to who gave it."""
        from .queues.handles import ReceiptHandle

        blocking: list[QueueMessage | str] = []
        for message in several("messages", messages):
            if isinstance(message, str):
                ReceiptHandle.parse(message)
                blocking.append(message)
            elif not isinstance(message, AsyncQueueMessage):
                raise InvalidRequestError(f"{message!r:.100} is no message of a queue, and no receipt handle")
            elif message.queue is not self:
                raise InvalidRequestError(f"{message!r} is in the hands of another queue; settle it there")
            else:
                blocking.append(message.blocking)
        return blocking

    async def _call(self, call: Callable[[Queue], Result]) -> Result:
        queue = await self._lifetime.opened()
        return await asyncio.shield(self._settler.submit(lambda: call(queue)))

    # The end --------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Release what is in these hands, as ``Queue.close``; ends iterations. Idempotent.

        Cancelled, it is carried out all the same.
        """
        await self._lifetime.close(self._close)

    async def _close(self, queue: Queue) -> None:
        if self._receive_now is not None:
            self._receive_now.call_off()
        async with self._turn:  # what was cancelled a moment ago has let go of it by then
            if self._giving_back is not None:
                await ended(self._giving_back)
        self._settler.do(self._drain)
        await self._settler.submit(queue.close)


def _give_back(queue: Queue, receiving: Begun[list[QueueMessage]]) -> None:
    """In the receiver: what a cancelled receive, which has ended, brought all the same."""
    if receiving.exception() is not None or not (messages := receiving.result()):
        return
    try:
        queue.give_back(messages)
    except LogbrokerError as error:
        logger.warning("%r come again when their lease ends: %s", messages, error)


def _acceptance(queue: Queue, accepting: list[_Accepting]) -> BaseException | None:
    """In the settler: why *accepting* could not be carried out; None when it was."""
    try:
        queue.accept(
            [message for one in accepting for message in one.messages],
            durable=any(one.durable for one in accepting),
        )
    except BaseException as error:  # noqa: BLE001 (it belongs to who awaits the acceptance)
        return error
    return None


def _tell(accepting: list[_Accepting], error: BaseException | None) -> None:
    """In the loop: settle the futures. What is lost concerns those that it was lost to."""
    for one in accepting:
        if one.future.done():
            continue
        own = _own_part(one, error) if isinstance(error, LeaseLostError) else error
        if own is None:
            one.future.set_result(None)
        else:
            one.future.set_exception(own)


def _own_part(accepting: _Accepting, error: LeaseLostError) -> LeaseLostError | None:
    from .queues.handles import ReceiptHandle

    own: list[tuple[str, int, int, int]] = []
    for message in accepting.messages:
        held = ReceiptHandle.parse(message) if isinstance(message, str) else message
        own += [
            (topic, partition, held.offset, held.offset)
            for topic, partition, first, last in error.lost
            if (topic, partition) == (held.topic, held.partition) and first <= held.offset <= last
        ]
    return LeaseLostError(own) if own else None
