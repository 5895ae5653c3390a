"""A consumer's process dies at each of its calls to the file system, one after the other.

Whatever it was at: no message is lost, none that was accepted comes again, a rejected one has one dead letter, and
what a transaction accepted and wrote is there together or not at all.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles
from logbroker_storage.testing.faulty_files import ProcessKilled

from .desk import QueueDesk, values

SENT = ["a", "b", "c", "d", "e", "f"]


class Workday:
    """What the consumer does, and what it was told is done."""

    def __init__(self, desk: QueueDesk) -> None:
        self.desk = desk
        self.accepted: list[str] = []
        self.rejected: list[str] = []
        self.is_committed = False

    def run(self) -> None:
        hands = self.desk.hands()
        first, second, third, fourth, fifth = hands.receive_many(5)
        first.accept()
        self.accepted.append("a")
        second.reject("bad")
        self.rejected.append("b")
        fifth.release(delay=5)
        with self.desk.broker.transaction("t") as tx:
            tx.send("out", b"C")
            tx.accept([third])
        self.is_committed = True
        self.accepted.append("c")
        hands.accept([fourth, *hands.receive_many()])
        self.accepted += ["d", "f"]


def calls_of_a_workday(path: Path) -> int:
    files = FaultyFiles(OsFiles())
    desk = prepared(path, files)
    before = files.calls.total()
    Workday(desk).run()
    made = files.calls.total() - before
    desk.close()
    return made


def prepared(path: Path, files: FaultyFiles) -> QueueDesk:
    desk = QueueDesk(path, files=files)
    desk.topic("out").queue_of(dead_letter="jobs.dead", lease=1000.0, max_deliveries=10)
    return desk.put(*SENT)


# The death may find the thread of a producer at work: that it dies of it is no fault.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("without_view", [False, True])
def test_whenever_the_process_dies_nothing_is_lost_or_doubled(
    tmp_path: Path, rng: random.Random, long_run: bool, without_view: bool
) -> None:
    calls = calls_of_a_workday(tmp_path / "whole")
    moments = range(1, calls + 1)
    for moment in moments if long_run else sorted(rng.sample(moments, min(30, calls))):
        files = FaultyFiles(OsFiles())
        desk = prepared(tmp_path / f"at-{moment}", files)
        day = Workday(desk)
        files.kill(at=moment)
        with contextlib.suppress(ProcessKilled):
            day.run()
        desk.crash()
        desk.reopen(without_view=without_view)
        check(day, f"at call {moment} of {calls}")


def check(day: Workday, moment: str) -> None:
    desk = day.desk
    desk.advance(10)
    hands = desk.hands()
    last = hands.receive_many()
    last.accept()
    left = values(last) + desk.left()
    hands.receive_many()
    with desk.broker.consumer("out") as consumer:
        written = [record.value for record in consumer.poll()]
    dead = desk.deaths()
    assert len(left) == len(set(left)), moment
    assert not set(left) & set(day.accepted), (moment, left)
    assert set(left) >= {"e"}, (moment, left)
    assert dead in ([], [("b", "bad")]), moment
    if day.rejected:
        assert dead == [("b", "bad")], moment
    assert ("b" in left) != bool(dead), (moment, left, dead)
    assert written == ([] if "c" in left else [b"C"]), (moment, left, written)
    assert not day.is_committed or written == [b"C"], moment
    assert desk.lag() == 0, moment
    desk.close()
