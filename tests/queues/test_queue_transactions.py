"""Messages accepted together with records, or not at all; and records of transactions as messages."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from logbroker.commits import PendingCommit
from logbroker.errors import FencedError, InvalidRequestError, LeaseLostError
from logbroker_storage.files import Buffer, OsFiles
from logbroker_storage.record_batch import ControlType, encode_control_batch

from .desk import QueueDesk, counts, values

# Accepting in a transaction -----------------------------------------------------------------------------------


def sent(desk: QueueDesk, topic: str = "out") -> list[bytes | None]:
    with desk.broker.consumer(topic) as consumer:
        return [record.value for record in consumer.poll()]


def test_a_commit_accepts_the_messages_with_the_records(desk: QueueDesk) -> None:
    desk.queue_of(partitions=2).topic("out").put("a", partition=0).put("b", partition=1)
    batch = desk.hands().receive_many()
    with desk.broker.transaction("t") as tx:
        for message in batch:
            tx.send("out", message.value.upper())
        tx.accept(batch)
        assert not batch[0].is_settled
    assert all(message.is_settled for message in batch)
    assert sorted(sent(desk)) == [b"A", b"B"]
    assert desk.lag() == 0


def test_an_abort_leaves_them_in_hand(desk: QueueDesk) -> None:
    desk.queue_of().topic("out").put("a")
    message = desk.hands().receive(0)
    with pytest.raises(ZeroDivisionError), desk.broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
        tx.send("out", b"A")
        tx.accept([message])
        raise ZeroDivisionError
    assert sent(desk) == []
    assert desk.partition().in_flight == 1
    message.accept()


def test_a_transaction_may_accept_nothing_but_messages(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    message = desk.hands().receive(0)
    with desk.broker.transaction("t") as tx:
        tx.accept([message])
    assert desk.lag() == 0
    with pytest.raises(InvalidRequestError):
        tx.accept([message])


def test_messages_of_several_queues_are_accepted_together(desk: QueueDesk) -> None:
    desk.topic().subscription("one", lease=5.0).subscription("other", lease=50.0).put("a")
    mine = desk.hands(subscription="one").receive(0)
    theirs = desk.hands(subscription="other").receive(0)
    desk.advance(10)
    with pytest.raises(LeaseLostError), desk.broker.transaction("t") as tx:
        tx.accept([theirs, mine])
    assert desk.partition(subscription="other").in_flight == 1  # what was settled first is taken back
    theirs.accept()
    assert (desk.lag("one"), desk.lag("other")) == (1, 0)


def test_a_lost_lease_aborts_the_transaction(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).topic("out").put("a", "b")
    hands = desk.hands()
    lost = hands.receive(0)
    desk.advance(5)
    held = hands.receive(0)
    desk.advance(5)
    with pytest.raises(LeaseLostError) as caught, desk.broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
        tx.send("out", b"AB")
        tx.accept([held, lost])
    assert caught.value.lost == [("jobs", 0, 0, 0)]
    assert sent(desk) == []
    held.accept()
    assert desk.left() == ["a"]


def test_a_fenced_transaction_accepts_nothing(desk: QueueDesk) -> None:
    desk.queue_of().topic("out").put("a")
    message = desk.hands().receive(0)
    tx = desk.broker.transaction("t")
    tx.send("out", b"A").result()
    tx.accept([message])
    with desk.broker.transaction("t") as newer:
        newer.send("out", b"newer")
    with pytest.raises(FencedError):
        tx.commit()
    assert sent(desk) == [b"newer"]
    assert desk.partition().in_flight == 1
    message.accept()


DIES = """
import os, sys, logbroker
from logbroker.commits import PendingCommit

path, moment = sys.argv[1:]
broker = logbroker.open(path)
messages = broker.queue(subscription="workers").receive_many(2)
tx = broker.transaction("t")
tx.send("out", b"A")
die = lambda: os._exit(9)
if moment == "behind the decision":
    tx.commit_with(PendingCommit(lambda: [], settle=die))
tx.accept(messages)
if moment == "before the decision":
    tx.commit_with(PendingCommit(die))
tx.commit()
"""


@pytest.mark.parametrize("moment", ["before the decision", "behind the decision"])
@pytest.mark.parametrize("others_go_on", [False, True])
@pytest.mark.parametrize("opened_again", [False, True])
def test_a_process_that_dies_in_a_commit_has_accepted_and_written_or_neither(
    desk: QueueDesk, moment: str, others_go_on: bool, opened_again: bool
) -> None:
    """The view shows the acceptance a moment before the journal decides: nobody may take that for the truth."""
    desk.queue_of().topic("out").put(*"abcd")
    if opened_again:
        desk.close()
    died = subprocess.run([sys.executable, "-c", DIES, desk.path, moment], check=False)
    assert died.returncode == 9
    if opened_again:
        desk.open()
    if others_go_on:  # and journal the block that the messages are in
        last = desk.hands().receive_many(4)[-1]
        assert last.value == b"d"
        last.accept()
        desk.queues.pop().close()
    rest = [] if others_go_on else ["d"]
    if moment == "before the decision":
        assert sorted(desk.left()) == ["a", "b", "c", *rest]
        assert sent(desk) == []
    else:
        assert sorted(desk.left()) == ["c", *rest]
        assert sent(desk) == [b"A"]
    desk.close()
    desk.reopen(without_view=True)
    assert desk.left() == []


DIES_SLOWLY = """
import fcntl, sys, time, logbroker
from logbroker.commits import PendingCommit

broker = logbroker.open(sys.argv[1])
messages = broker.queue(subscription="workers").receive_many(2)
tx = broker.transaction("t")
tx.send("out", b"A")
tx.accept(messages)

def die():
    fcntl.flock(broker._directory.journal.lock._fd, fcntl.LOCK_UN)
    print("dying", flush=True)
    time.sleep(60)

tx.commit_with(PendingCommit(die))
tx.commit()
"""


def test_a_dying_process_whose_journal_lock_is_free_already_has_accepted_nothing(desk: QueueDesk) -> None:
    """The kernel frees a dead process's locks one by one: for some milliseconds this one looks alive."""
    desk.queue_of().topic("out").put(*"abcd")
    with subprocess.Popen(
        [sys.executable, "-c", DIES_SLOWLY, desk.path], stdout=subprocess.PIPE, text=True
    ) as dying:
        assert dying.stdout is not None
        assert dying.stdout.readline() == "dying\n"
        rest = desk.hands().receive_many(4)
        rest.accept()  # and journal where the queue begins now
        desk.queues.pop().close()
        dying.kill()
    assert values(rest) == ["c", "d"]
    assert sorted(desk.left()) == ["a", "b"]
    assert sent(desk) == []


def test_what_a_broken_off_commit_may_have_accepted_is_not_asked_for_while_its_process_lives(
    desk: QueueDesk,
) -> None:
    desk.queue_of().put("a")
    message = desk.hands().receive(0)

    def refuse() -> list[object]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), desk.broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
        tx.accept([message])
        tx.commit_with(PendingCommit(refuse))
    assert desk.partition().in_flight == 1
    message.accept()
    assert desk.lag() == 0


class Interrupted(OsFiles):
    """Ctrl-C comes in the middle of the next write to the journal, once it is armed."""

    is_armed = False
    writes_first = False

    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        if not self.is_armed or b"transaction" not in bytes(data):
            super().pwrite(fd, data, position)
            return
        self.is_armed = False
        if self.writes_first:
            super().pwrite(fd, data, position)
        raise KeyboardInterrupt


@pytest.mark.parametrize("writes_first", [False, True])
def test_an_interrupted_commit_has_accepted_and_written_or_neither(
    tmp_path: Path, writes_first: bool
) -> None:
    files = Interrupted()
    files.writes_first = writes_first
    desk = QueueDesk(tmp_path / "data", files=files)
    desk.queue_of(lease=1000.0).topic("out").put("a", "b")
    hands = desk.hands()
    first, second = hands.receive_many()
    tx = desk.broker.transaction("t")
    tx.send("out", b"A").result()
    tx.accept([first])
    files.is_armed = True
    with contextlib.suppress(KeyboardInterrupt):
        tx.commit()
    assert not files.is_armed
    second.accept()  # journals the block that both are in
    hands.close()
    assert (desk.left(), sent(desk)) == (([], [b"A"]) if writes_first else (["a"], []))
    desk.close()
    desk.reopen(without_view=True)
    assert desk.left() == []
    desk.close()


# Records of transactions as messages --------------------------------------------------------------------------


def test_messages_of_an_open_transaction_are_not_delivered(desk: QueueDesk) -> None:
    desk.queue_of()
    hands = desk.hands()
    with desk.broker.transaction("t") as tx:
        tx.send("jobs", b"a").result()
        assert hands.receive_many() == []
    assert values(hands.receive_many()) == ["a"]


def test_messages_of_aborted_transactions_and_markers_are_passed_over(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    for ends in ("commit", "abort", "commit"):
        tx = desk.broker.transaction("t")
        tx.send("jobs", ends.encode()).result()
        getattr(tx, ends)()
    desk.put("z")
    desk.directory.log("jobs", 0).append(
        encode_control_batch(ControlType.COMMIT, producer_id=5, producer_epoch=0, timestamp_ms=1)
    )
    hands = desk.hands()
    batch = hands.receive_many()
    assert (values(batch), counts(batch)) == (["a", "commit", "commit", "z"], [1] * 4)
    batch.accept()
    hands.receive_many()
    assert desk.lag() <= 1  # the marker that nobody has waited for
    hands.close()
    assert desk.left() == []


def test_nothing_but_aborted_messages_is_nothing(desk: QueueDesk) -> None:
    desk.queue_of()
    for _ in range(5):
        tx = desk.broker.transaction("t")
        tx.send_many("jobs", [b"x"] * 100)
        tx.abort()
    hands = desk.hands()
    assert hands.receive_many(1) == []
    assert desk.lag() == 0


def test_dead_letters_are_read_only_when_their_originals_are_done(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").subscription("grave", topic="jobs.dead").put("a")
    graves = desk.hands(subscription="grave")
    desk.hands().receive(0).reject("bad")
    assert values(graves.receive_many()) == ["a"]
    assert desk.lag() == 0
