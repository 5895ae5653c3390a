"""What a consumer waits for: records that become visible, changes of the group and of the topics.

Nothing is watched before there is something to wait for: a consumer that only polls without a timeout
costs no inotify instance. Watching begins before the last look, so that nothing falls in between.

A record is visible when it is synced, and its writer's sync wakes us. A writer may also die before it, or
ask for none (``acks="written"``): a waiter looks for such records, 50 ms after it began to wait and then
ever less often (an idle consumer should cost nothing), and syncs them itself after a grace period. In the
same way it ends transactions that hold it up and have nobody any more to end them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError, TopicNotFoundError
from logbroker_storage.log_offsets import LogOffsets
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.wakeup import Waiter

from .groups import TopicPartition
from .transaction_coordinator import TransactionCoordinator

logger = logging.getLogger("logbroker.consumer")

SYNC_GRACE_S = 0.05  # how long a writer is left to sync its records itself
HELD_CHECK_S = 0.2  # how often a waiter looks whether a transaction that holds it up is still at work
LAST_CHECK_S = 2.0  # how often a waiter looks for such records when nothing has happened for long


class Watched(Protocol):
    """One partition as somebody reads it."""

    @property
    def log(self) -> PartitionLog: ...

    @property
    def place(self) -> TopicPartition: ...

    def visible_end(self, offsets: LogOffsets) -> int:
        """Up to where it is read, of the log's *offsets*."""


class Arrivals:
    """One consumer's waiting. ``wait`` from the thread that polls, ``wake`` from any."""

    def __init__(self, directory: DataDirectory, signals: Iterable[str]) -> None:
        self._directory = directory
        self._coordinator = TransactionCoordinator(directory)
        self._signals = tuple(signals)
        self._waiter: Waiter | None = None
        self._behind: dict[TopicPartition, float] = {}  # since when the log end is above the high watermark

    def begin(self, cursors: Iterable[Watched]) -> bool:
        """Watch *cursors* from now on; False when they were watched already.

        After a True the caller looks once more before it waits.
        """
        if self._waiter is not None:
            return False
        self._waiter = Waiter(self._directory)
        for signal in self._signals:
            self._waiter.watch_signal(signal)
        for cursor in cursors:
            self.watch(cursor)
        return True

    def watch(self, cursor: Watched) -> None:
        """One partition more, if anything is watched."""
        if self._waiter is not None:
            try:
                self._waiter.watch_partition(*cursor.place)
            except TopicNotFoundError:
                pass  # deleted a moment ago: the next look at the topics says so

    def unwatch(self, cursor: Watched) -> None:
        if self._waiter is not None:
            self._waiter.unwatch_partition(*cursor.place)

    def wait(self, timeout: float | None, cursors: Sequence[Watched]) -> None:
        """Wait at most *timeout* seconds for news of *cursors*, the signals or ``wake``."""
        assert self._waiter is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = SYNC_GRACE_S
        while True:
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if left < 0 or self._waiter.wait(left):
                return
            longest = HELD_CHECK_S if self._finish_what_nobody_did(cursors) else LAST_CHECK_S
            pause = SYNC_GRACE_S if self._behind else min(2 * pause, longest)

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            waiter.wake()

    def close(self) -> None:
        if self._waiter is not None:
            self._waiter.close()

    def _finish_what_nobody_did(self, cursors: Sequence[Watched]) -> bool:
        """Sync records and end transactions that nobody sees to; whether a transaction holds one of *cursors* up."""
        now = time.monotonic()
        is_held_up = False
        before, self._behind = self._behind, {}
        for cursor in cursors:
            try:
                offsets = cursor.log.offsets()
                is_held_up |= cursor.visible_end(offsets) < offsets.high_watermark
                if offsets.log_end_offset <= offsets.high_watermark:
                    continue
                since = self._behind[cursor.place] = before.get(cursor.place, now)
                if now - since >= SYNC_GRACE_S:
                    cursor.log.sync()
            except TopicNotFoundError:
                pass  # deleted a moment ago: there is nothing to wait for
            except LogbrokerError as error:
                logger.warning("records of %s-%d cannot be synced: %s", *cursor.place, error)
        if is_held_up:
            try:
                self._coordinator.abort_orphans()
            except LogbrokerError as error:
                logger.warning("unfinished transactions cannot be ended: %s", error)
        return is_held_up
