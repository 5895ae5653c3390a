"""Group commit of the server: one sync at a time of each partition, which covers all who wait by then.

``durable`` waits on the event loop for a thread that syncs, ``sync`` is for who is in a thread already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from logbroker_storage.errors import StorageFailedError
from logbroker_storage.log_config import Durability
from logbroker_storage.partition_log import PartitionLog

from .metrics import Metrics

RunInThread = Callable[[Callable[[], int]], Awaitable[int]]


class DiskSync:
    """On the event loop, but for ``sync``; the syncs run in threads."""

    def __init__(self, run_in_thread: RunInThread, metrics: Metrics) -> None:
        self._run_in_thread = run_in_thread
        self._metrics = metrics
        self._running: dict[bytes, asyncio.Task[int]] = {}  # by partition key
        self._begun: set[asyncio.Task[None]] = set()

    async def durable(self, log: PartitionLog, end_offset: int) -> None:
        """Wait until what lies below *end_offset* is as durable as the topic asks.

        Raises:
            StorageFailedError, TopicNotFoundError: as ``PartitionLog.sync``.
        """
        if log.config.durability is not Durability.FSYNC:
            return
        # A sync that has begun may have been too early for us; the next one is not.
        if await asyncio.shield(self._running_sync(log)) < end_offset:
            _check_end(log, end_offset, await asyncio.shield(self._running_sync(log)))

    def sync(self, log: PartitionLog, end_offset: int) -> None:
        """As ``durable``, in the thread that calls it, which may be any.

        Raises:
            StorageFailedError, TopicNotFoundError: as ``PartitionLog.sync``.
        """
        if log.config.durability is Durability.FSYNC:
            _check_end(log, end_offset, self._timed_sync(log, end_offset))

    def begin(self, log: PartitionLog, end_offset: int) -> asyncio.Task[None]:
        """``durable``, as a task that goes on whether anybody waits for it or not."""
        task = asyncio.get_running_loop().create_task(self.durable(log, end_offset))
        self._begun.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Where nobody waits for the outcome, the partition is marked as failed all the same."""
        self._begun.discard(task)
        if not task.cancelled():
            task.exception()

    def _running_sync(self, log: PartitionLog) -> asyncio.Task[int]:
        task = self._running.get(log.key)
        if task is None:
            task = self._running[log.key] = asyncio.get_running_loop().create_task(self._run(log))
        return task

    async def _run(self, log: PartitionLog) -> int:
        try:
            return await self._run_in_thread(partial(self._timed_sync, log))
        finally:
            del self._running[log.key]

    def _timed_sync(self, log: PartitionLog, end_offset: int | None = None) -> int:
        """In a thread."""
        began = time.perf_counter()
        try:
            return log.sync(end_offset)
        finally:
            self._metrics.sync_seconds.observe(time.perf_counter() - began)

    async def finish(self) -> None:
        """Wait for the syncs at work."""
        await asyncio.gather(*self._begun, return_exceptions=True)


def _check_end(log: PartitionLog, end_offset: int, synced_offset: int) -> None:
    if synced_offset < end_offset:
        raise StorageFailedError(
            f"{log.topic}-{log.partition} ends below offset {end_offset} that was appended: it was cut meanwhile"
        )
