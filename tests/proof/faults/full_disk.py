"""A disk that is full at every 4 KiB step: from no room at all up to all that a scripted run needs.

Each step is a process of its own, on a tmpfs of that size: it runs until nothing goes any more, somebody gives the
disk more room, and it goes on. A process that dies of it (a full disk is a SIGBUS where a file is mapped) fails.

The mounts are made in a mount namespace that ends with the process that made it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator

from logbroker_storage.files import OsFiles
from logbroker_storage.testing import ManualClock

from ..proof import Row, Scope
from .account import Account, Told
from .process import Process
from .stories import NOON_MS, SMALL, consuming, transacting, working
from .sync_ledger import SyncLedger

STEP_BYTES = 4096
ROOMY_BYTES = 64 << 20
MAX_STEPS = 2000  # 8 MiB: the run needs a tenth of that
TOPICS = {"plain": SMALL, "other": SMALL, "os": {**SMALL, "durability": "os"}, "jobs": {}, "jobs.dead": {}}


def run(scope: Scope) -> Iterator[Row]:
    """Bounded, every eighth step from one on that the seed chooses."""
    test = "the disk is full, then has room again"
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("unshare") is None:
        yield Row(test, 0, "sizes", skipped="needs Linux, root and unshare(1) to mount a tmpfs")
        return
    step = scope.count(8, 1)
    first = scope.rng("full disk").randint(1, step)
    command = ["unshare", "--mount", sys.executable, "-m", __name__, str(scope.folder), str(first), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot be mounted" in done.stderr:
        yield Row(test, 0, "sizes", skipped=done.stderr.strip().splitlines()[-1])
        return
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    yield Row(test, int(done.stdout.split()[-1]), "sizes", scope.seed if step > 1 else None)


# In the namespace ---------------------------------------------------------------------------------------------


def main(folder: str, first: int, step: int) -> None:
    """Try every *step*-th size from the *first* on until one is enough; prints how many there were."""
    disk = f"{folder}/disk"
    os.mkdir(disk)
    for number in range(first, MAX_STEPS, step):
        _mount(disk, number * STEP_BYTES)
        try:
            status = _in_a_child(disk)
        finally:
            subprocess.run(["umount", disk], check=True)
        if status == ENOUGH:
            print((number - first) // step + 1)
            return
        if status != 0:
            sys.exit(f"a disk of {number} pages: the process ended with {status} (negative: by that signal)")
    sys.exit("the run needs more than was thought")


ENOUGH = 3  # exit code: nothing was refused


def _mount(disk: str, size: int) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        sys.exit("a tmpfs cannot be mounted here")


def _in_a_child(disk: str) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        status = _try(disk)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _try(disk: str) -> int:
    process = Process(f"{disk}/data", SyncLedger(OsFiles()), ManualClock(NOON_MS), Account())
    _fill(process)
    is_enough = not process.failures
    subprocess.run(["mount", "-o", f"remount,size={ROOMY_BYTES}", disk], check=True)
    if process.broker is None:
        assert process.open(), "it does not open when there is room"
    for topic, config in TOPICS.items():
        process.broker.create_topic(topic, config=config, exist_ok=True)
    process.broker.create_subscription("workers", topic="jobs", dead_letter="jobs.dead", exist_ok=True)
    process.goes_on(b"with room")
    assert process.close().error is None
    for without_view in (False, True):
        if without_view:
            shutil.rmtree(f"{process.path}/view")
        assert process.open()
        process.account.check(process.broker)
        process.goes_on(b"without view" if without_view else b"reopened")
        assert process.close().error is None
    return ENOUGH if is_enough else 0


def _fill(process: Process) -> None:
    """The scripted run, as far as there is room for it."""
    if not process.open():
        return
    for topic, config in TOPICS.items():
        answer = process.attempt(lambda topic=topic, config=config: process.broker.create_topic(topic, config=config))
        process.account.topics[topic] = {True} if answer.told is Told.DONE else {True, False}
    process.attempt(
        lambda: process.broker.create_subscription("workers", topic="jobs", dead_letter="jobs.dead", lease=1000.0)
    )
    there = process.broker.topics()
    producer = process.producer()
    for number in range(12):
        for topic in set(there) & {"plain", "os", "jobs"}:
            process.send(producer, topic, b"filled %02d " % number * 20)
    if producer is not None:
        process.attempt(producer.close)
    if {"plain", "other", "os"} <= set(there):
        transacting(process)
    if "workers" in process.broker.subscriptions():
        working(process)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

__all__ = ["consuming", "run"]
