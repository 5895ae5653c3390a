"""Transactions through the library: all of it or nothing, one holder an id, whoever dies at whatever moment."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import logbroker
import logbroker.transaction as transaction_module
from logbroker import (
    FencedError,
    InvalidRequestError,
    RecordTooLargeError,
    StorageFailedError,
    WriteFailedError,
)
from logbroker.broker import Broker
from logbroker.commits import PendingCommit
from logbroker.transaction_coordinator import LAST_EPOCH, TransactionCoordinator
from logbroker_storage.events import TransactionEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import encode_values
from logbroker_storage.testing import FaultyFiles, ManualClock
from logbroker_storage.view.event_rows import EventRows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def broker(path: Path) -> Iterator[Broker]:
    with logbroker.open(path) as broker:
        broker.create_topic("in")
        broker.create_topic("out", partitions=2)
        broker.create_topic("audit")
        yield broker


def values(broker: Broker, topic: str = "out", *, isolation: str = "read_committed") -> list[bytes]:
    """Everything visible of a topic, by partition and offset."""
    with broker.consumer(topic, isolation=isolation) as consumer:
        found = []
        while records := consumer.poll(1000, 0):
            found += records
    return [record.value for record in sorted(found, key=lambda record: (record.partition, record.offset))]


def fill(broker: Broker, *contents: bytes) -> None:
    with broker.producer() as producer:
        producer.send_many("in", list(contents))


# All or nothing -----------------------------------------------------------------------------------------


def test_leaving_the_block_shows_everything_at_once(broker):
    with broker.transaction("t") as tx:
        for number in range(2):
            tx.send("out", b"%d" % number, partition=number).result(5)
        tx.send("audit", b"two records").result(5)
        assert values(broker) == values(broker, "audit") == []
        assert values(broker, isolation="read_uncommitted") == [b"0", b"1"]
    assert values(broker) == [b"0", b"1"]
    assert values(broker, "audit") == [b"two records"]


def test_an_exception_takes_everything_back_and_goes_on(broker):
    with pytest.raises(ZeroDivisionError), broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
        tx.send("out", b"a", partition=0).result(5)
        tx.send("out", b"b", partition=1)
        1 / 0  # noqa: B018
    assert values(broker) == []
    with broker.transaction("t") as tx:
        tx.send("out", b"c", partition=0)
    assert values(broker) == [b"c"]


def test_commit_and_abort_end_it_before_the_block_does(broker):
    with broker.transaction("t") as tx:
        tx.send("out", b"yes", partition=0)
        tx.commit()
        assert values(broker) == [b"yes"]
        with pytest.raises(InvalidRequestError, match="committed"):
            tx.send("out", b"late")
    with broker.transaction("t") as tx:
        tx.send("out", b"no", partition=0)
        tx.abort()
        tx.abort()
        with pytest.raises(InvalidRequestError, match="aborted"):
            tx.commit()
    assert values(broker) == [b"yes"]


def test_an_empty_transaction_leaves_no_trace(broker):
    with broker.transaction("t"):
        pass
    before = broker._directory.journal.log.offsets().log_end_offset
    with broker.transaction("t"):
        pass
    assert broker._directory.journal.log.offsets().log_end_offset == before
    assert broker.topic("out").partitions[0].log_end_offset == 0


def test_each_transaction_costs_one_event(broker):
    with broker.transaction("t") as tx:
        tx.send("out", b"first", partition=0)
    before = broker._directory.journal.log.offsets().log_end_offset
    for number in range(5):
        with broker.transaction("t") as tx:
            tx.send("out", b"%d" % number, partition=0)
    assert broker._directory.journal.log.offsets().log_end_offset == before + 5


def test_a_record_that_fails_takes_the_transaction_along(broker):
    broker.create_topic("tiny", config={"max.message.bytes": 200})
    with pytest.raises(RecordTooLargeError), broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
        tx.send("out", b"a", partition=0).result(5)
        tx.send("tiny", os.urandom(150))
        tx.send("tiny", os.urandom(300))
    assert values(broker) == values(broker, "tiny") == []


def test_a_full_disk_aborts_and_the_next_transaction_goes_on(path):
    files = FaultyFiles(OsFiles())
    with logbroker.open(path, files=files) as broker:
        broker.create_topic("out")
        with pytest.raises(logbroker.WriteFailedError), broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
            tx.send("out", b"a").result(5)
            files.fail("pwrite", error=28, path=".log")
            tx.send("out", b"b")
        files.heal()
        with broker.transaction("t") as tx:
            tx.send("out", b"c")
        assert values(broker) == [b"c"]


def test_transactions_of_many_ids_run_side_by_side(broker):
    transactions = [broker.transaction(f"t{number}") for number in range(5)]
    for number, tx in enumerate(transactions):
        tx.send("out", b"%d" % number, partition=0).result(5)
    for number, tx in enumerate(transactions):
        tx.commit() if number % 2 else tx.abort()
    assert values(broker) == [b"1", b"3"]


def test_holders_of_many_ids_do_not_pile_up(broker, monkeypatch):
    """A process that has an id for each job would keep a producer for each; one that comes again is claimed anew."""
    monkeypatch.setattr(transaction_module, "IDLE_HOLDERS", 2)
    for round_number in range(2):
        for number in range(4):
            with broker.transaction(f"t{number}") as tx:
                tx.send("out", b"%d%d" % (round_number, number), partition=0)
    assert list(broker._transactions._idle) == ["t2", "t3"]
    assert values(broker) == [b"00", b"01", b"02", b"03", b"10", b"11", b"12", b"13"]


def test_send_many_and_large_transactions(broker):
    wanted = [b"%d" % number for number in range(50_000)]
    with broker.transaction("t") as tx:
        assert tx.send_many("out", wanted, partition=1) == 50_000
    assert values(broker) == wanted


# Offsets ------------------------------------------------------------------------------------------------


def test_offsets_are_committed_with_the_records(broker):
    fill(broker, b"a", b"b", b"c")
    with broker.consumer("in", group="g", delivery="manual") as consumer:
        with broker.transaction("t") as tx:
            for record in consumer.poll(2, 5):
                tx.send("out", record.value.upper(), partition=0)
            tx.commit_offsets(consumer)
            assert broker.group("g").offsets[0].committed_offset is None
        assert broker.group("g").offsets[0].committed_offset == 2
        assert [record.value for record in consumer.poll(10, 5)] == [b"c"]
    assert values(broker) == [b"A", b"B"]


@pytest.mark.parametrize("delivery", ["manual", "at-least-once"])
def test_after_an_abort_the_records_come_again(broker, delivery):
    fill(broker, b"a", b"b", b"c")
    with broker.consumer("in", group="g", delivery=delivery) as consumer:
        for attempt in range(2):
            with pytest.raises(ZeroDivisionError), broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
                assert [record.value for record in consumer.poll(2, 5)] == [b"a", b"b"]
                tx.commit_offsets(consumer)
                assert attempt / 0
        with broker.transaction("t") as tx:
            assert [record.value for record in consumer.poll(2, 5)] == [b"a", b"b"]
            tx.commit_offsets(consumer)
        assert [record.value for record in consumer.poll(2, 5)] == [b"c"]
    assert broker.group("g").offsets[0].committed_offset == 2


def test_offsets_alone_are_a_transaction_too(broker):
    fill(broker, b"a")
    with broker.consumer("in", group="g", delivery="manual") as consumer, broker.transaction("t") as tx:
        consumer.poll(1, 5)
        tx.commit_offsets(consumer)
    assert broker.group("g").offsets[0].committed_offset == 1


def test_a_check_at_the_commit_may_refuse_it(broker):
    def refuse() -> None:
        raise FencedError("not now")

    with pytest.raises(FencedError, match="not now"), broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
        tx.commit_with(PendingCommit.holding(lambda: None))
        tx.commit_with(PendingCommit.holding(refuse))
        tx.send("out", b"refused")
    with broker.transaction("t") as tx:
        tx.commit_with(PendingCommit.holding(lambda: None))
        tx.send("out", b"x")
    assert values(broker) == [b"x"]


def test_consumers_that_cannot_take_part_are_refused(broker):
    fill(broker, b"a")
    with (
        broker.transaction("t") as tx,
        broker.consumer("in") as alone,
        broker.consumer("in", group="g", delivery="at-most-once") as hasty,
    ):
        with pytest.raises(InvalidRequestError, match="without a group"):
            tx.commit_offsets(alone)
        with pytest.raises(InvalidRequestError, match="at-most-once"):
            tx.commit_offsets(hasty)
    with pytest.raises(InvalidRequestError, match=r"transform.*transaction"):
        broker.consumer("in", group="g", delivery="exactly-once")


def test_what_another_directory_holds_is_refused(tmp_path, broker):
    fill(broker, b"a", b"b")
    broker.create_subscription("s", topic="in")
    with (
        logbroker.open(tmp_path / "other") as other,
        broker.consumer("in", group="g") as consumer,
        broker.queue(subscription="s") as queue,
    ):
        other.create_topic("in")
        other.create_subscription("s", topic="in")
        with other.producer() as producer:
            producer.send("in", b"c").result(5)
        consumer.poll()
        with other.queue(subscription="s") as its_own, other.transaction("t") as tx:
            with pytest.raises(
                InvalidRequestError, match=r"consumer uses .*data, and the transaction .*other"
            ):
                tx.commit_offsets(consumer)
            with pytest.raises(InvalidRequestError, match="broker of the queue's directory"):
                tx.accept([*its_own.receive_many(), *queue.receive_many()])
        assert other.groups() == []
        assert other.subscription("s").lag == 1  # of several messages none is accepted
        consumer.commit()  # it still commits by itself
    assert broker.group("g").offsets[0].committed_offset == 2


def test_another_handle_on_the_same_directory_takes_part(path, broker):
    fill(broker, b"a")
    with logbroker.open(path) as second, broker.consumer("in", group="g", delivery="manual") as consumer:
        consumer.poll()
        with second.transaction("t") as tx:
            tx.commit_offsets(consumer)
    assert broker.group("g").offsets[0].committed_offset == 1


def test_a_partition_that_moved_away_takes_the_transaction_along(broker):
    fill(broker, b"a")
    slow = broker.consumer("in", group="g", delivery="manual", session_timeout=0.3)
    tx = broker.transaction("t")
    assert slow.poll(1, 5)
    tx.send("out", b"A", partition=0).result(5)
    tx.commit_offsets(slow)
    directory = broker._directory
    slow._assigned.membership.leave()  # as the group does with one that was silent for too long
    with pytest.raises(FencedError):
        tx.commit()
    assert values(broker) == []
    assert directory.groups.committed("g", "in", 0) is None
    slow.close()


# Commits that are broken off ----------------------------------------------------------------------------


class Interruption(BaseException):
    """As a KeyboardInterrupt, which no handler of errors catches."""


@pytest.mark.parametrize("moment", ["before the event", "behind the event", "behind the markers"])
def test_an_interrupted_commit_is_one_thing_or_the_other_and_never_half(broker, monkeypatch, moment):
    fill(broker, b"input")
    directory = broker._directory
    decide, finish = directory.journal.decide, TransactionCoordinator._finish

    def interrupted_decide(decision, *, take_back=None):
        if moment == "behind the event":
            decide(decision, take_back=take_back)
        else:
            decision()
        raise Interruption

    def interrupted_finish(self, *arguments):
        finish(self, *arguments)
        raise Interruption

    with broker.consumer("in", group="g", delivery="manual") as consumer:
        tx = broker.transaction("t")
        tx.send("out", consumer.poll(1, 5)[0].value, partition=0)
        tx.commit_offsets(consumer)
        with monkeypatch.context() as patch:
            if moment == "behind the markers":
                patch.setattr(TransactionCoordinator, "_finish", interrupted_finish)
            else:
                patch.setattr(directory.journal, "decide", interrupted_decide)
            with pytest.raises(Interruption):
                tx.commit()
        is_committed = moment != "before the event"
        assert values(broker) == ([b"input"] if is_committed else [])
        assert broker.group("g").offsets[0].committed_offset == (1 if is_committed else None)
        assert [record.value for record in consumer.poll(1, 0)] == ([] if is_committed else [b"input"])
    with broker.transaction("t") as again:
        again.send("out", b"next", partition=0)
    assert values(broker)[-1] == b"next"
    assert directory.view.partitions.open_transactions() == []


def test_a_commit_whose_event_cannot_be_shown_stands(broker, monkeypatch):
    """The event is on the disk; the view has no space for it at first."""
    view = broker._directory.view
    apply_events = EventRows.apply
    refusals = iter([True])

    def refused_once(self, transaction, items):
        if next(refusals, False):
            raise WriteFailedError("no space left for the view")
        return apply_events(self, transaction, items)

    tx = broker.transaction("t")
    tx.send("out", b"a", partition=0).result(5)
    monkeypatch.setattr(EventRows, "apply", refused_once)
    tx.commit()
    assert values(broker) == [b"a"]
    assert view.partitions.open_transactions() == []


def test_a_decision_is_finished_though_its_holder_lives_and_could_not(broker, monkeypatch):
    def refused(self, *arguments, **fields):
        raise WriteFailedError("no space left for markers")

    with monkeypatch.context() as patch, broker.transaction("t") as tx:
        tx.send("out", b"a", partition=0)
        patch.setattr(PartitionLog, "append_marker", refused)
        tx.commit()
    with broker.consumer("out") as consumer:
        assert [record.value for record in consumer.poll(1, 5)] == [b"a"]


def test_a_full_disk_at_any_write_of_a_commit_loses_and_doubles_nothing(path):
    number, writes = 1, 1  # the write that fails, and how many there were
    while number <= writes:
        files = FaultyFiles(OsFiles())
        with logbroker.open(f"{path}-{number}", files=files) as broker:
            broker.create_topic("in")
            broker.create_topic("out", partitions=2)
            fill(broker, b"input")
            with broker.consumer("in", group="g", delivery="manual") as consumer:
                tx = broker.transaction("t")
                tx.send("out", b"0", partition=0)
                tx.send("out", b"1", partition=1)
                consumer.poll(1, 5)
                tx.commit_offsets(consumer)
                files.fail("pwrite", error=28, at=number)
                before = files.calls["pwrite"]
                try:
                    tx.commit()
                    is_committed = True
                except (WriteFailedError, logbroker.StorageFailedError):
                    is_committed = False
                writes = files.calls["pwrite"] - before
                files.heal()
                with broker.transaction("t") as next_one:
                    next_one.send("out", b"2", partition=0)
                assert values(broker) == ([b"0", b"2", b"1"] if is_committed else [b"2"])
                committed = broker.group("g").offsets[0].committed_offset
                assert committed == (1 if is_committed else None)
        number += 1
    assert number > 5


# What readers see ---------------------------------------------------------------------------------------


def test_a_waiting_reader_is_woken_by_the_commit(broker):
    with broker.consumer("out") as consumer, broker.transaction("t") as tx:
        tx.send("out", b"a", partition=0).result(5)
        assert consumer.poll(1, 0.1) == []
        assert consumer.lag()[0] == 0
        tx.commit()
        assert [record.value for record in consumer.poll(1, 5)] == [b"a"]


def test_latest_is_the_stable_end(broker):
    with broker.transaction("t") as tx:
        tx.send("out", b"a", partition=0).result(5)
        with broker.consumer("out", start="latest") as consumer:
            assert consumer.position() == {0: 0, 1: 0}
            tx.commit()
            assert [record.value for record in consumer.poll(1, 5)] == [b"a"]


def test_isolation_takes_two_values(broker):
    with pytest.raises(InvalidRequestError, match="read_committed"):
        broker.consumer("in", isolation="serializable")


# One holder an id ---------------------------------------------------------------------------------------


def test_a_new_holder_fences_the_one_before_and_aborts_what_it_left(path, broker):
    old = broker.transaction("t")
    old.send("out", b"old", partition=0).result(5)
    with logbroker.open(path) as other, other.transaction("t") as new:
        assert broker._directory.view.partitions.open_transactions() == []
        new.send("out", b"new", partition=0)
    with pytest.raises(FencedError):
        old.send("out", b"old again", partition=0)
    with pytest.raises(FencedError):
        old.commit()
    assert values(broker) == [b"new"]
    with broker.transaction("t") as again:
        again.send("out", b"again", partition=0)
    assert values(broker) == [b"new", b"again"]


def test_a_fenced_holder_cannot_slip_records_into_a_partition_it_had_only_announced(broker):
    """The batch is on its way when the new holder comes: the partition was added, nothing written yet."""
    old = broker.transaction("t")
    coordinator = old._holder.coordinator
    coordinator.holdings.add_partitions(old._claim, [("out", 1)])
    with broker.transaction("t") as new:
        new.send("out", b"new", partition=0)
    old._holder.sequences._next[("out", 1)] = 0
    receipt = old._holder.producer.send("out", b"old", partition=1)
    with pytest.raises(FencedError):
        receipt.result(5)
    assert values(broker, isolation="read_uncommitted") == [b"new"]


def test_an_old_end_cannot_hit_a_later_transaction(broker):
    with broker.transaction("t") as tx:
        tx.send("out", b"first", partition=0)
    stale = tx._claim
    with broker.transaction("t") as tx:
        tx.send("out", b"second", partition=0).result(5)
        with pytest.raises(FencedError):
            tx._holder.coordinator.abort(stale)
        with pytest.raises(FencedError):
            tx._holder.coordinator.commit(stale)
    assert values(broker) == [b"first", b"second"]


def test_epochs_that_are_used_up_make_room_for_a_new_producer_id(broker):
    with broker.transaction("t") as tx:
        tx.send("out", b"a", partition=0)
    event = tx._holder.coordinator.event("t")
    broker._directory.journal.record([TransactionEvent("t", event.producer_id, 32764, "empty", [], 60000, 0)])
    tx._holder.coordinator.holdings.take(tx._claim._replace(epoch=32764), None, 60000)
    for number in range(3):
        with broker.transaction("t") as tx:
            tx.send("out", b"%d" % number, partition=0)
    newest = tx._holder.coordinator.event("t")
    assert (newest.producer_id != event.producer_id, newest.epoch < 3) == (True, True)
    assert values(broker) == [b"a", b"0", b"1", b"2"]


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 241, None, 7])
def test_ids_are_checked(broker, name):
    with pytest.raises(InvalidRequestError):
        broker.transaction(name)


@pytest.mark.parametrize("timeout", [0, -1, "soon", None, True])
def test_timeouts_are_checked(broker, timeout):
    with pytest.raises(InvalidRequestError):
        broker.transaction("t", timeout=timeout)


# Time-outs and deaths -----------------------------------------------------------------------------------


def test_a_transaction_that_takes_too_long_is_aborted_by_whoever_waits(path):
    clock = ManualClock()
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("out")
        slow = broker.transaction("t", timeout=5)
        slow.send("out", b"slow").result(5)
        with broker.producer() as producer:
            producer.send("out", b"plain").result(5)
        with broker.consumer("out") as consumer:
            assert consumer.poll(1, 0.3) == []
            clock.advance(ms=5001)
            assert [record.value for record in consumer.poll(1, 5)] == [b"plain"]
        with pytest.raises(FencedError, match="timeout"):
            slow.commit()


def test_whoever_asks_for_the_abort_of_a_hanging_transaction_does_not_end_one_in_time(path):
    clock = ManualClock()
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("out")
        kept, slow = broker.transaction("kept", timeout=60), broker.transaction("slow", timeout=5)
        for tx in (kept, slow):
            tx.send("out", b"v").result(5)
        clock.advance(ms=5001)
        coordinator = TransactionCoordinator(broker._directory)
        ids = {event.transactional_id: event.producer_id for event in coordinator.events()}
        assert [coordinator.abort_hanging(ids[name]) for name in ("kept", "slow", "slow")] == [
            False,
            True,
            True,
        ]
        kept.commit()
        with pytest.raises(FencedError, match="timeout"):
            slow.commit()
        assert values(broker) == [b"v"]


def test_a_timeout_is_not_measured_by_the_wall_clock(path):
    """A clock that is set an hour ahead ends no transaction, and one that is set back lets none go on for an hour."""
    clock = ManualClock()
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("out")
        kept = broker.transaction("kept", timeout=5)
        kept.send("out", b"kept").result(5)
        clock.set_back(ms=-3_600_000)
        assert TransactionCoordinator(broker._directory).abort_orphans() == 0
        kept.commit()
        slow = broker.transaction("slow", timeout=5)
        slow.send("out", b"slow").result(5)
        clock.set_back(ms=3_600_000)
        clock.advance(ms=5001)
        with broker.producer() as producer:
            producer.send("out", b"plain").result(5)
        with broker.consumer("out") as consumer:
            found = []
            while len(found) < 2 and (records := consumer.poll(10, 5)):
                found += [record.value for record in records]
        assert found == [b"kept", b"plain"]
        with pytest.raises(FencedError, match="timeout"):
            slow.commit()


def in_another_process(path: Path, program: str) -> subprocess.Popen[str]:
    prelude = f"""
        import logbroker, os, sys, time
        broker = logbroker.open({str(path)!r})
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(program)
    return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)


def killed(process: subprocess.Popen[str]) -> None:
    """Wait for its first line, then kill it."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


LEFT_OPEN = """
    tx = broker.transaction("t")
    tx.send("out", b"lost", partition=0).result(5)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_transaction_of_a_killed_process_is_aborted_while_a_reader_waits(path, broker):
    process = in_another_process(path, LEFT_OPEN)
    killed(process)
    with broker.producer() as producer:
        producer.send("out", b"plain", partition=0).result(5)
    with broker.consumer("out") as consumer:
        assert [record.value for record in consumer.poll(1, 30)] == [b"plain"], "its timeout is 60 s"


def test_the_transaction_of_a_killed_process_is_aborted_by_the_next_to_open(path):
    with logbroker.open(path) as broker:
        broker.create_topic("out", partitions=2)
    killed(in_another_process(path, LEFT_OPEN))
    with logbroker.open(path) as broker:
        assert broker._directory.view.partitions.open_transactions() == []
        assert values(broker) == []
        assert values(broker, isolation="read_uncommitted") == [b"lost"]


DECIDED = """
    from logbroker_storage.partition_log import PartitionLog
    with broker.consumer("in", group="g", delivery="manual") as consumer:
        tx = broker.transaction("t")
        tx.send("out", b"0", partition=0)
        tx.send("out", b"1", partition=1)
        assert consumer.poll(1, 5)
        tx.commit_offsets(consumer)
        markers = 0
        append_marker = PartitionLog.append_marker
        def die_behind_the_first(log, *arguments, **fields):
            global markers
            if markers == {markers}:
                os._exit(9)
            markers += 1
            return append_marker(log, *arguments, **fields)
        PartitionLog.append_marker = die_behind_the_first
        tx.commit()
"""


@pytest.mark.parametrize("markers", [0, 1])
@pytest.mark.parametrize("finisher", ["open", "waiting reader", "claim", "rebuilt view"])
def test_what_was_decided_is_finished_by_others(path, markers, finisher):
    with logbroker.open(path) as broker:
        broker.create_topic("in")
        broker.create_topic("out", partitions=2)
        fill(broker, b"input")
        if finisher in ("open", "rebuilt view"):
            broker.close()
        process = in_another_process(path, DECIDED.format(markers=markers))
        assert process.wait(30) == 9
        process.stdout.close()
        if finisher == "rebuilt view":
            subprocess.run(["rm", "-r", str(path / "view")], check=True)
        with logbroker.open(path) as again:
            if finisher == "claim":
                with again.transaction("t") as tx:
                    tx.send("out", b"2", partition=1)
                assert values(again) == [b"0", b"1", b"2"]
            elif finisher == "waiting reader":
                with again.consumer("out") as consumer:
                    found = consumer.poll(2, 5) + consumer.poll(2, 1)
                assert sorted(record.value for record in found) == [b"0", b"1"]
            else:
                assert values(again) == [b"0", b"1"]
            assert again._directory.view.partitions.open_transactions() == []
            assert again.group("g").offsets[0].committed_offset == 1
            ends = [partition.log_end_offset for partition in again.topic("out").partitions]
            assert ends == ([2, 4] if finisher == "claim" else [2, 2])  # one marker each


# Handles ------------------------------------------------------------------------------------------------


def test_closing_the_broker_aborts_what_is_open(path):
    broker = logbroker.open(path)
    broker.create_topic("out")
    tx = broker.transaction("t")
    tx.send("out", b"a").result(5)
    broker.close()
    with pytest.raises(InvalidRequestError, match="aborted"):
        tx.commit()
    with pytest.raises(logbroker.ClosedError):
        broker.transaction("t")
    with logbroker.open(path) as broker:
        assert values(broker) == []
        assert broker._directory.view.partitions.open_transactions() == []


def test_a_forked_child_has_no_part_in_it(broker):
    tx = broker.transaction("t")
    tx.send("out", b"a", partition=0).result(5)
    child = os.fork()
    if not child:
        try:
            tx.send("out", b"b", partition=0)
        except logbroker.ForkedError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    tx.commit()
    assert values(broker) == [b"a"]


def test_closing_the_broker_inside_the_block_is_no_commit(path):
    broker = logbroker.open(path)
    broker.create_topic("out")
    with pytest.raises(logbroker.ClosedError, match="aborted"), broker.transaction("t") as tx:  # noqa: PT012 (in the block)
        tx.send("out", b"a").result(5)
        broker.close()
    with logbroker.open(path) as broker:
        assert values(broker) == []


def test_the_offsets_of_partitions_one_by_one_are_all_part_of_it(broker):
    with broker.producer() as producer:
        for number in range(4):
            producer.send("out", b"", partition=number % 2)
    with broker.consumer("out", group="g", delivery="manual") as consumer:
        assert len(consumer.poll(10, 5)) == 4
        with broker.transaction("t") as tx:
            tx.commit_offsets(consumer, only=("out", 0))
            tx.commit_offsets(consumer, only=("out", 1))
        assert consumer.committed() == {0: 2, 1: 2}


def test_a_transaction_whose_marker_and_decision_are_gone_holds_no_reader_up(path):
    """As a power cut leaves it where durability=os: its marker is lost, and the next decision was about elsewhere."""
    with logbroker.open(path) as broker:
        broker.create_topic("a")
        broker.create_topic("b")
        claim = TransactionCoordinator(broker._directory).claim("t", timeout_ms=60_000)
        lost = encode_values(
            [b"lost"],
            [(0, 0)],
            producer_id=claim.producer_id,
            producer_epoch=claim.epoch,
            base_sequence=0,
            transactional=True,
        )
        broker._directory.log("a", 0).append(lost)
        following = TransactionEvent("t", claim.producer_id, claim.epoch + 1, "commit", [("b", 0)], 60_000, 0)
        broker._directory.journal.record([following])
        with broker.producer() as producer:
            producer.send("a", b"plain")
    with logbroker.open(path) as broker:
        assert values(broker, "a") == [b"plain"]
        with broker.transaction("t") as tx:
            tx.send("a", b"next")
        assert values(broker, "a") == [b"plain", b"next"]


# What stands in the way -------------------------------------------------------------------------------------------


def test_a_partition_that_takes_no_marker_does_not_keep_the_orphans_of_others_open(path):
    clock = ManualClock()
    closing = pytest.raises(StorageFailedError, match="two-0")
    with closing, logbroker.open(path, clock=clock) as broker:
        for name in ("one", "two", "three"):
            broker.create_topic(name)
        logs = [broker._directory.log(name, 0) for name in ("one", "two", "three")]
        for name in ("one", "two", "three"):
            broker.transaction(f"of {name}", timeout=1).send(name, b"v").result()
        both = broker.transaction("of all", timeout=1)
        for name in ("one", "two", "three"):
            both.send(name, b"v").result()
        logs[1].syncing.refused(OSError(errno.EIO, "refused"))
        clock.advance(ms=2000)
        aborted = TransactionCoordinator(broker._directory).abort_orphans()
        ends = [log.offsets() for log in logs]
    assert aborted >= 2
    assert [end.last_stable_offset == end.log_end_offset for end in ends] == [True, False, True]


def test_claims_that_were_refused_at_the_last_epoch_leave_the_id_usable(path):
    with logbroker.open(path) as broker:
        broker.create_topic("t")
        coordinator = TransactionCoordinator(broker._directory)
        first = coordinator.claim("id", timeout_ms=60_000)
        coordinator.holdings.take(first._replace(epoch=LAST_EPOCH - 1), broker._directory.process_id, 60_000)
        tx = broker.transaction("id")
        tx.send("t", b"open").result()
        for _ in range(5):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(broker._directory.journal.log, "append", refuse)
                with pytest.raises(WriteFailedError):
                    coordinator.claim("id", timeout_ms=60_000)
        assert coordinator.claim("id", timeout_ms=60_000).epoch == 0
        assert values(broker, "t") == []
        offsets = broker._directory.log("t", 0).offsets()
        assert offsets.last_stable_offset == offsets.log_end_offset


def refuse(*_: object, **__: object) -> None:
    raise WriteFailedError("nothing was appended: the disk is full")
