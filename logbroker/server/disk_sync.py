"""Group commit on the event loop: one sync at a time of each partition, which covers all who wait by then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from logbroker_storage.errors import StorageFailedError
from logbroker_storage.log_config import Durability
from logbroker_storage.partition_log import PartitionLog

from .metrics import Metrics

RunInThread = Callable[[Callable[[], int]], Awaitable[int]]


class DiskSync:
    """On the event loop; the syncs run in threads."""

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
        for _ in range(2):
            if await asyncio.shield(self._sync(log)) >= end_offset:
                return
        raise StorageFailedError(
            f"{log.topic}-{log.partition} ends below offset {end_offset} that was appended: it was cut meanwhile"
        )

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

    def _sync(self, log: PartitionLog) -> asyncio.Task[int]:
        task = self._running.get(log.key)
        if task is None:
            task = self._running[log.key] = asyncio.get_running_loop().create_task(self._run(log))
        return task

    async def _run(self, log: PartitionLog) -> int:
        began = time.perf_counter()
        try:
            return await self._run_in_thread(log.sync)
        finally:
            self._metrics.sync_seconds.observe(time.perf_counter() - began)
            del self._running[log.key]

    async def finish(self) -> None:
        """Wait for the syncs at work."""
        await asyncio.gather(*self._begun, return_exceptions=True)
