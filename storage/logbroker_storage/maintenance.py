"""The background work of one process: syncs that are due, recovery points, and the cleaner's turn.

    task            when                                             for
    interval sync   durability.interval.ms after the first append    logs this process appended to
    checkpoint      every 3 s in which this process appended         the recovery points of all partitions
    cleaning        every 30 s, by one process at a time             retention, compaction, consumed segments, chores
    dead readers    every 3 s                                        pages of the view that killed processes pin
    left locks      every 3 s                                        other processes (see ``locks``)
    the place       every 3 s                                        a directory that was moved or removed
    added tasks     every 3 s                                        what a layer above has to look after

One daemon thread, asleep most of the time. It logs what fails and goes on with the next, so that a full disk, which
refuses the recovery points, does not keep the cleaner from making room: a failed sync has marked its partition, so that
everybody who cares is told, and everything else is tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from .background import going_on
from .cleaner import Cleaner
from .log_config import Durability

if TYPE_CHECKING:
    from .data_directory import DataDirectory

logger = logging.getLogger("logbroker.maintenance")

CHECKPOINT_INTERVAL_S = 3.0
CLEANING_INTERVAL_S = 30.0
IDLE_INTERVAL_S = 3.0  # each look of an idle process costs 0.1 to 0.4 ms of processor time


class Maintenance:
    """The thread and what it remembers; every field belongs to the thread but ``_news`` and ``_stopping``."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._cleaner = Cleaner(directory)
        self._news = threading.Event()  # something may be due earlier than was thought, or the end
        self._stopping = False
        now = directory.clock.monotonic()
        self._next_checkpoint = now + CHECKPOINT_INTERVAL_S
        self._next_cleaning = now + CLEANING_INTERVAL_S
        # Of other layers, by name; any thread changes it, in one step.
        self._tasks: dict[str, Callable[[], object]] = {}
        self._appended = 0  # appends of this process, as of the last checkpoint
        self._thread = threading.Thread(target=self._run, name="logbroker-maintenance", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and wait for what it is doing."""
        self._stopping = True
        self._news.set()
        self._thread.join()
        self._cleaner.close()

    def add_task(self, name: str, task: Callable[[], object]) -> None:
        """Have *task* called whenever the thread looks around; a task of the same name is replaced."""
        self._tasks[name] = task

    def remove_task(self, name: str) -> None:
        """Have the task of this name called no more."""
        self._tasks.pop(name, None)

    def add_readers(self, name: str, offsets_of: Callable[[str, int], Iterable[int]]) -> None:
        """Have the cleaner ask *offsets_of* how far readers are that it knows nothing of (see ``Cleaner``)."""
        self._cleaner.readers = {**self._cleaner.readers, name: offsets_of}

    def add_chore(self, name: str, chore: Callable[[], object]) -> None:
        """Have the cleaner call *chore* at the end of each pass; a chore of the same name is replaced."""
        self._cleaner.chores = {**self._cleaner.chores, name: chore}

    def look_again(self) -> None:
        """A log was opened whose syncs may be due sooner than the thread would wake."""
        self._news.set()

    def abandon(self) -> None:
        """In a forked child, where the thread is not: drop our copy of its lock."""
        self._cleaner.abandon()

    def clean(self) -> bool:
        """One pass of the cleaner now; False when another process is at it."""
        return self._cleaner.run()

    def _run(self) -> None:
        pause = IDLE_INTERVAL_S
        while True:
            self._news.wait(pause)
            self._news.clear()
            if self._stopping:
                return
            pause = self._step(self._directory.clock.monotonic())

    def _step(self, now: float) -> float:
        """Do what is due; seconds until something may be due again."""
        pause = IDLE_INTERVAL_S
        with _going_on("syncs that are due"):
            pause = self._sync_intervals(now)
        if now >= self._next_checkpoint:
            self._next_checkpoint = now + CHECKPOINT_INTERVAL_S
            with _going_on("the recovery points"):
                self._checkpoint()
        if now >= self._next_cleaning:
            self._next_cleaning = now + CLEANING_INTERVAL_S
            with _going_on("the cleaner"):
                self._cleaner.run()
        with _going_on("dead readers"):
            self._directory.view.forget_dead_readers()
        with _going_on("left locks"):
            self._directory.free_left_locks()
        with _going_on("the place of the directory"):
            self._directory.look_at_place()
        for name, task in list(self._tasks.items()):
            with _going_on(name):
                task()
        return pause

    def _sync_intervals(self, now: float) -> float:
        pause = IDLE_INTERVAL_S
        for log in self._directory.open_logs():
            if log.config.durability is not Durability.INTERVAL:
                continue
            interval = log.config.durability_interval_ms / 1000
            if log.dirty_since is not None and now - log.dirty_since >= interval:
                with _going_on(f"the sync of {log.topic}-{log.partition}"):
                    log.sync()
            pause = min(pause, interval)
        return pause

    def _checkpoint(self) -> None:
        appended = sum(log.appends for log in [self._directory.journal.log, *self._directory.open_logs()])
        if appended != self._appended:
            self._directory.checkpoint()
            self._appended = appended


def _going_on(name: str) -> AbstractContextManager[None]:
    """Nothing else waits for the work *name* when that fails."""
    return going_on(logger, f"background work failed and is tried again: {name}")
