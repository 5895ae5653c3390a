"""Group commit on the event loop: one sync at a time of each partition, which covers all who wait by then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

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

    async def durable(self, log: PartitionLog, end_offset: int) -> None:
        """Wait until what lies below *end_offset* is as durable as the topic asks.

        Raises:
            StorageFailedError, TopicNotFoundError: as ``PartitionLog.sync``.
        """
        while log.config.durability is Durability.FSYNC:
            # A sync that has begun may have been too early for us; the next one is not.
            if await asyncio.shield(self._sync(log)) >= end_offset:
                return

    def soon(self, log: PartitionLog) -> None:
        """Have the log synced, without waiting: for records that are acknowledged, or not, before that."""
        if log.config.durability is Durability.FSYNC:
            self._sync(log).add_done_callback(_look)

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
        await asyncio.gather(*self._running.values(), return_exceptions=True)


def _look(task: asyncio.Task[int]) -> None:
    """Nobody waits for the outcome; the partition is marked as failed, and the next writer is told."""
    if not task.cancelled():
        task.exception()
