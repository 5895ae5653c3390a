"""EIO and ENOSPC at every single call to the file system that a scripted run makes, one run for each call.

    the fault                                            what it is like
    the call fails once (ENOSPC: where it takes space)   a glitch, a limit
    a write fails when half of it has reached the file   a full disk
    all calls from this one on fail, until later         a disk that is gone for a while
    all that take space fail from this one on            a full disk, and somebody makes room

Afterwards the process goes on, then closes or dies; the directory is opened again, with its view or without.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from logbroker_storage.files import Files, OsFiles
from logbroker_storage.testing import ManualClock, crash
from logbroker_storage.testing.faulty_files import CALLS_THAT_TAKE_SPACE, EVERY_CALL, WRITES

from ..proof import Row, Scope, delete_folder, new_folder
from .account import Account
from .process import Process
from .stories import NOON_MS, STORIES, Story, prepare
from .sync_ledger import SyncLedger

PATIENCE_S = 60.0  # a case takes a fiftieth of a second


@dataclass(frozen=True)
class Fault:
    """What happens at the call of some number."""

    name: str
    error: int
    forever: bool = False
    written: float = 0.0

    @property
    def operations(self) -> frozenset[str]:
        if self.written:
            return WRITES
        return CALLS_THAT_TAKE_SPACE if self.error == errno.ENOSPC else EVERY_CALL


FAULTS = [
    Fault("EIO at each call", errno.EIO),
    Fault("ENOSPC at each call that takes space", errno.ENOSPC),
    Fault("ENOSPC after half of each write", errno.ENOSPC, written=0.5),
    Fault("EIO from a call on, then healed", errno.EIO, forever=True),
    Fault("ENOSPC from a call on, then room again", errno.ENOSPC, forever=True),
]


# One call in so many, where each would take too long for CI.
BOUNDED_STEPS = {FAULTS[0].name: 2, FAULTS[3].name: 16, FAULTS[4].name: 4}


def run(scope: Scope) -> Iterator[Row]:
    """Bounded, only a part of the calls of ``BOUNDED_STEPS``, which the seed chooses."""
    folder = new_folder(in_memory=True)
    try:
        for fault in FAULTS:
            step = scope.count(BOUNDED_STEPS.get(fault.name, 1), 1)
            first = scope.rng("every call").randint(1, step)
            cases = sum(
                Tries(str(folder), story, fault, is_thorough=scope.is_long).run(first, step)
                for story in STORIES
            )
            yield Row(fault.name, cases, "calls", scope.seed if step > 1 else None)
    finally:
        delete_folder(folder)


class Tries:
    """One story under one fault, at each of its calls in turn."""

    def __init__(
        self,
        folder: str,
        story: Story,
        fault: Fault,
        *,
        is_thorough: bool = True,
        make_files: Callable[[Files], SyncLedger] = SyncLedger,
    ) -> None:
        """*is_thorough*: each case is opened both with its view and without; else those that die without.

        *make_files*: a ledger, or one that stands for a mistake of the product.
        """
        self._make_files = make_files
        self.is_thorough = is_thorough
        self.story = story
        self.fault = fault
        self.template = f"{folder}/template"
        self.path = f"{folder}/data"
        shutil.rmtree(self.template, ignore_errors=True)
        self.prepared = prepare(self.template)

    def run(self, first: int, step: int) -> int:
        """Every *step*-th call from the *first* on; how many there were."""
        tried = 0
        while self.try_at(first + tried * step):
            tried += 1
        return tried

    def try_at(self, at: int) -> bool:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.template, self.path, copy_function=shutil.copyfile)  # times tell nothing here
        account = copy.deepcopy(self.prepared)
        files = self._make_files(OsFiles())
        try:
            return guarded(lambda: self.case(at, files, account))
        except Exception as error:
            raise AssertionError(
                f"{self.story.name}, {self.fault.name} at call {at} ({files.hits[:3]}): {error}"
            ) from error

    def case(self, at: int, files: SyncLedger, account: Account) -> bool:
        descriptors = open_descriptors()
        process = Process(self.path, files, ManualClock(NOON_MS), account)
        if self.story.without_view:
            shutil.rmtree(f"{self.path}/view")
        if self.story.begins_open:
            process.open()
        fault = self.fault
        files.fail(fault.operations, error=fault.error, at=at, forever=fault.forever, written=fault.written)
        self.story.tell(process)
        was_hit = bool(files.hits)
        files.heal()
        if process.broker is None:
            assert process.open(), "it does not open when the fault is gone"
        process.goes_on(b"healed")
        if at % 2:
            answer = process.close()
            assert answer.error is None or files.failed, f"closing: {answer.error!r}"
        else:
            crash(process.directory())
        assert not files.repeated, f"syncs were repeated after they had failed: {files.repeated}"
        files.forget()
        deadline = time.monotonic() + 5.0  # a thread of a process that crashed ends when it next wakes up
        while (left := open_descriptors() - descriptors) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left, f"descriptors are left open: {left}"
        for without_view in (False, True) if self.is_thorough else [at % 2 == 0]:
            self.afterwards(account, without_view=without_view)
        return was_hit

    def afterwards(self, account: Account, *, without_view: bool) -> None:
        if without_view:
            shutil.rmtree(f"{self.path}/view")
        process = Process(self.path, SyncLedger(OsFiles()), ManualClock(NOON_MS), account)
        assert process.open()
        account.check(process.broker)
        process.goes_on(b"reopened without its view" if without_view else b"reopened", topics={"plain", "os"})
        if without_view or not self.is_thorough:
            account.check_queue(process.broker)
        assert process.close().error is None


def open_descriptors() -> set[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
        except FileNotFoundError:
            pass  # the one of the listing itself
    return found


def guarded(case: Callable[[], bool]) -> bool:
    """*case*, in a thread that is watched: one that hangs is a failure, too."""
    outcome: list[bool | BaseException] = []

    def target() -> None:
        try:
            outcome.append(case())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if thread.is_alive():
        frame = sys._current_frames()[thread.ident or 0]
        raise AssertionError("it hangs:\n" + "".join(traceback.format_stack(frame)))
    [result] = outcome
    if isinstance(result, BaseException):
        raise result
    return result
