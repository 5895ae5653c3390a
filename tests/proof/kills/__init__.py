"""Processes that share a data directory are killed (-9) at thousands of moments of their work.

One cycle is one kill of one process. Writers, readers, workers of queues, transactions, a transform, the cleaner
and whoever makes and deletes topics are at work all the time (``roles``); whoever was killed is replaced at once,
and carries on what it had begun.

    kind of death   how
    alone           at a random moment of its processor time: while it starts, or at work
    stopped         SIGSTOP at such a moment, the others go on, then the kill: mostly soon, sometimes 5 s later;
                    sometimes it may go on instead
    all at once     every process; the view is kept, deleted, or of a machine that was restarted since
    recovering      after that: who opens the directory is killed at a random moment of it, some times over
    none            some leave cleanly after a few rounds, so that closing meets kills, too

What the workers were promised is in their diaries. The witness holds them against the log every 100 cycles and
at the end, when everything that was begun has to be done, once (``witness``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ..proof import Row, Scope, delete_folder, new_folder

CYCLES, LONG_CYCLES = 2_000, 50_000
ON_DISK = 5  # one in so many is on a disk, where processes die while they, and others, wait for its syncs


def run(scope: Scope) -> Iterator[Row]:
    """Most cycles in memory: the death of a process takes nothing out of the page cache, and nothing waits there."""
    if sys.platform != "linux":
        yield Row("kill -9", 0, "kills", skipped="needs pidfd_open(2) and clock_getcpuclockid(3)")
        return
    cycles = scope.count(CYCLES, LONG_CYCLES)
    memory = new_folder(in_memory=True)
    try:
        yield from _storm(scope, memory, "in memory", cycles - cycles // ON_DISK)
        yield from _storm(scope, scope.folder, "on the disk", cycles // ON_DISK)
    finally:
        delete_folder(memory)


def _storm(scope: Scope, folder: Path, where: str, kills: int) -> Iterator[Row]:
    from .storm import Storm

    with Storm(folder, scope.rng(f"kills {where}")) as storm:
        try:
            storm.run(kills)
        except AssertionError as error:
            error.add_note(f"kills {where}, --seed {scope.seed}, after {storm.kills} of {kills} kills")
            raise
    for kind, count in storm.deaths.items():
        yield Row(f"{kind}, {where}", count, "kills", scope.seed)
