"""A consumer for asyncio: the blocking one, a thread that polls, and a thread for everything else.

    what         how it stays cheap, and safe when cancelled
    poll         a cancelled one wakes the thread; the records that it still brings go to the next poll
    iteration    a slice of records a hop; a cancelled wait is taken up again by the next
    the others   carried out; what a cancelled poll brought, and nobody has seen, is first put back

What a task may leave behind has a future of no loop: another may go on with the consumer.

Putting back is a seek, which the second thread does. Nothing is read before it is done: a seek back that
came behind a new poll would hand the same records out twice.

All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from logbroker_storage.errors import ClosedError, InvalidRequestError, OffsetOutOfRangeError

from .aio_lifetime import Lifetime
from .arguments import whole_number
from .worker import Begun, Worker, ended

if TYPE_CHECKING:
    from .consumer import Consumer, Place
    from .cursor import Handout
    from .groups import TopicPartition
    from .records import Record

Result = TypeVar("Result")


class AsyncConsumer:
    """``Consumer``, awaited. One task reads at a time; a cancelled ``poll`` or iteration loses no record."""

    def __init__(self, make: Callable[[], Awaitable[Consumer]], *, group: str | None) -> None:
        """Use ``AsyncBroker.consumer``."""
        self.group = group
        self._reader = Worker("logbroker-aio-consumer")  # polls; may wait for records
        self._control = Worker("logbroker-aio-commit")  # everything else
        self._lifetime = Lifetime("consumer", make, self._reader, self._control)
        self._reading = False  # a task is in poll or in an iteration's wait
        self._polling: Begun[list[Record]] | None = None  # of a poll that was cancelled
        self._returned: list[Record] = []  # by such a poll, and not handed out yet
        self._seeking: Begun[None] | None = None  # the last seek back; it may be done
        self._next: Begun[_Slice | None] | None = None  # what an iteration waits for
        self._slice: _Slice | None = None  # what an iteration is handing out
        self._woken = False

    async def __aenter__(self) -> AsyncConsumer:
        await self._lifetime.entered(self._close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lifetime.close(partial(self._close, leave=lambda it: it.__exit__(kind, error, trace)))

    # Reading --------------------------------------------------------------------------------------

    async def poll(self, max_records: int | None = None, timeout: float | None = 0.0) -> list[Record]:  # noqa: ASYNC109 (as Consumer.poll: [] and no exception)
        """The next records, up to *max_records*; waits up to *timeout* seconds (None: for ever) for some.

        As ``Consumer.poll``. When it is cancelled, the records that it would have brought come next time.
        """
        from .deadlines import deadline_after

        if max_records is not None:
            whole_number("max_records", max_records)
        deadline = deadline_after(timeout)
        consumer = await self._lifetime.opened()
        with self._turn():
            self._slice = None  # the blocking poll takes back what an iteration left of it
            while True:
                await self._receive(consumer, max_records, deadline)
                if self._returned:
                    return await self._take_returned(consumer, max_records)
                woken, self._woken = self._woken, False
                is_late = deadline is not None and time.monotonic() >= deadline
                if woken or is_late or self._lifetime.is_closed:
                    return []

    async def _receive(self, consumer: Consumer, max_records: int | None, deadline: float | None) -> None:
        """Have some records in ``_returned``, if there are any before *deadline*."""
        from .deadlines import left_until

        if self._returned:
            return
        if self._next is not None:
            # An iteration was cancelled here: its wait goes on in the thread, and brings the next records.
            if await ended(self._next, left_until(deadline)):
                next_, self._next = self._next, None
                slice_ = next_.result()
                if slice_ is not None:
                    self._returned += list(iter(slice_.next_live, None))
            return
        if self._polling is None:
            await self._finish_seeking()
            if self._lifetime.is_closed:
                return
            self._polling = self._reader.begin(partial(consumer.poll, max_records, left_until(deadline)))
        await self._finish_polling(consumer)

    async def _finish_polling(self, consumer: Consumer) -> None:
        polling = self._polling
        if polling is None:
            return
        try:
            await ended(polling)
        except asyncio.CancelledError:
            consumer.wakeup()
            raise
        if self._polling is polling:  # not when another task, which waited for it too, was faster
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

        seeking = self._seeking = self._control.begin(seek_back)
        await ended(seeking)
        seeking.result()

    async def _finish_seeking(self) -> None:
        if self._seeking is not None and not self._seeking.done():
            await ended(self._seeking)  # how it went is told to the task that put back

    async def _put_all_back(self, consumer: Consumer) -> None:
        """After a cancelled poll: nothing counts as handed out that was not.

        While a task reads, it is that task's to hand out what there is; it may have begun during the wait here.
        """
        while not self._reading and (self._polling is not None or self._returned):
            await self._finish_polling(consumer)
            if not self._reading:
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
            self._slice = await self._next_slice()
            if self._slice is None:
                raise StopAsyncIteration

    async def _next_slice(self) -> _Slice | None:
        """None when the consumer is closed."""
        try:
            consumer = await self._lifetime.opened()
        except ClosedError:
            if self._lifetime.is_closed:
                return None
            raise  # the broker was
        if self._polling is not None or self._returned:
            await self._put_all_back(consumer)
        with self._turn():
            if self._next is None:
                await self._finish_seeking()
                if self._lifetime.is_closed:
                    return None
                self._next = self._reader.begin(partial(_next_slice, consumer))
            await ended(self._next)  # cancelled, it is taken up again by the next call
            next_, self._next = self._next, None
        return next_.result()

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
        if self._lifetime.blocking is not None:
            self._lifetime.blocking.wakeup()

    # Places and commits ---------------------------------------------------------------------------

    async def _call(self, call: Callable[[Consumer], Result]) -> Result:
        consumer = await self._settled()
        return await asyncio.shield(self._control.submit(lambda: call(consumer)))

    async def _settled(self) -> Consumer:
        """The blocking consumer, to which nothing counts as handed out that was not."""
        consumer = await self._lifetime.opened()
        await self._put_all_back(consumer)
        return consumer

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

    async def pause(self, place: TopicPartition) -> None:
        """Hand out nothing of a partition until ``resume``; see ``Consumer.pause``."""
        await self._call(lambda consumer: consumer.pause(place))

    async def resume(self, place: TopicPartition) -> None:
        """Hand out records of a partition again."""
        await self._call(lambda consumer: consumer.resume(place))

    async def close(self) -> None:
        """Leave the group and close, as ``Consumer.close``; ends an iteration. Idempotent.

        Cancelled, it is carried out all the same.
        """
        await self._lifetime.close(self._close)

    async def _close(
        self, consumer: Consumer, leave: Callable[[Consumer], None] = lambda consumer: consumer.close()
    ) -> None:
        try:
            if self._polling is not None:
                consumer.wakeup()
            await self._put_all_back(consumer)
        finally:
            await self._control.submit(partial(leave, consumer))


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
