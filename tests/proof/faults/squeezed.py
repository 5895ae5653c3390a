"""A scripted run where there is not enough of something, until somebody gives it more: for sizes one after the other.

Each size is a process of its own, because what it meets may be its end.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from functools import partial

from logbroker_storage.files import OsFiles
from logbroker_storage.testing import ManualClock

from .account import Account, Told
from .process import Process
from .stories import NOON_MS, SMALL, transacting, working
from .sync_ledger import SyncLedger

ENOUGH = 3  # exit code of a process that was refused nothing
TOPICS = {"plain": SMALL, "other": SMALL, "os": {**SMALL, "durability": "os"}, "jobs": {}, "jobs.dead": {}}


def in_a_child(function: Callable[[], int]) -> int:
    """Run *function* in a forked process; its exit code, negative when it died of a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        status = function()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def go_through(path: str, squeeze: Callable[[], None], ease: Callable[[], None]) -> int:
    """Run the script between *squeeze* and *ease*, and hold the directory to what was told; 0 or ENOUGH."""
    process = Process(path, SyncLedger(OsFiles()), ManualClock(NOON_MS), Account())
    squeeze()
    _fill(process)
    is_enough = not process.failures
    ease()
    if process.broker is None:
        assert process.open(), "it does not open when there is enough"
    for topic, config in TOPICS.items():
        process.broker.create_topic(topic, config=config, exist_ok=True)
    process.broker.create_subscription("workers", topic="jobs", dead_letter="jobs.dead", exist_ok=True)
    process.goes_on(b"with enough")
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
    """The scripted run, as far as it gets."""
    if not process.open():
        return
    for topic, config in TOPICS.items():
        answer = process.attempt(partial(process.broker.create_topic, topic, config=config))
        process.account.topics[topic] = {True} if answer.told is Told.DONE else {True, False}
    there = set(process.broker.topics())
    if "jobs" in there:
        options = {"topic": "jobs", "dead_letter": "jobs.dead", "lease": 1000.0}
        process.attempt(partial(process.broker.create_subscription, "workers", **options))
    producer = process.producer()
    for number in range(12):
        for topic in sorted(there & {"plain", "os", "jobs"}):
            process.send(producer, topic, b"filled %02d " % number * 20)
    if producer is not None:
        process.attempt(producer.close)
    if {"plain", "other", "os"} <= there:
        transacting(process)
    if "workers" in process.broker.subscriptions():
        working(process)
