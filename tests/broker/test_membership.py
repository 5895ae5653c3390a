"""Consumers of one group in threads and processes: sharing, moving, dying, fencing."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

import logbroker
from logbroker import group_coordinator
from logbroker.consumer import Consumer
from logbroker.errors import FencedError, ForkedError, InvalidRequestError
from logbroker.group_store import group_state
from logbroker.membership import join_group
from logbroker.topic_selection import TopicSelection
from logbroker_storage.journal import Journal
from logbroker_storage.record_batch import encode_values

DEADLINE_S = 20


class Group:
    """A broker with a topic "t", and the members of the group "g" in this process."""

    def __init__(self, path, partitions) -> None:
        self.path = str(path)
        self.broker = logbroker.open(path)
        self.broker.create_topic("t", partitions)
        self.directory = self.broker._directory
        self.partitions = partitions

    def join(self, topics="t", **arguments):
        return Consumer(self.directory, topics, group="g", **arguments)

    def put(self, partition, *values) -> None:
        log = self.directory.log("t", partition)
        now_ms = self.directory.clock.now_ms()
        result = log.append(encode_values([value.encode() for value in values], [(0, now_ms)]))
        log.wait_durable(result.last_offset + 1)

    def committed(self, partition):
        event = self.directory.groups.committed("g", "t", partition)
        return None if event is None else event.offset

    def owners(self) -> dict[int, str]:
        return {place[1]: slot.owner for place, slot in group_state(self.directory, "g").slots()}


@pytest.fixture
def make_group(tmp_path):
    groups = []

    def make(partitions=4) -> Group:
        groups.append(Group(tmp_path / "data", partitions))
        return groups[-1]

    yield make
    for group in groups:
        group.broker.close()


def eventually(condition, *, within_s=DEADLINE_S):
    """Poll *condition* until it is true; its value. Fails when it is not in time."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
    return value


def loads(*consumers) -> list[int]:
    return sorted(len(consumer.assignment()) for consumer in consumers)


def values(records) -> list[str]:
    return [record.value.decode() for record in records]


# Sharing ----------------------------------------------------------------------------------------------------


def test_two_members_share_the_partitions_evenly_and_read_everything_once(make_group):
    group = make_group(partitions=4)
    for partition in range(4):
        group.put(partition, *(f"{partition}-{number}" for number in range(5)))
    with group.join() as one, group.join() as other:
        eventually(lambda: loads(one, other) == [2, 2])
        assert not set(one.assignment()) & set(other.assignment())
        read = Counter(values(one.poll()) + values(other.poll()))
        assert read == {f"{partition}-{number}": 1 for partition in range(4) for number in range(5)}


def test_an_idle_member_gives_up_partitions_at_once(make_group):
    group = make_group()
    with group.join(session_timeout=3600.0) as one:  # before which nobody takes a partition from it
        assert one.poll() == []
        with group.join(session_timeout=3600.0) as other:
            # A call of the first would have it look at its group.
            eventually(lambda: len(other.assignment()) == 2)
            assert len(one.assignment()) == 2


def test_a_member_that_holds_records_gives_up_their_partition_at_its_next_poll(make_group):
    group = make_group(partitions=2)
    group.put(0, "a")
    group.put(1, "b")
    with group.join() as one:
        assert sorted(values(one.poll())) == ["a", "b"]
        with group.join() as other:
            assert other.poll(timeout=0.3) == []  # still owned by the first
            assert loads(one, other) == [0, 2]
            one.poll()
            assert loads(one, other) == [1, 1]
            assert other.poll(timeout=0.1) == []  # and what was handed out was committed first


def test_a_manual_member_gives_up_a_partition_when_it_has_committed(make_group):
    group = make_group(partitions=2)
    group.put(0, "a")
    group.put(1, "b")
    with group.join(delivery="manual") as one:
        one.poll()
        with group.join(delivery="manual") as other:
            one.poll()
            assert loads(one, other) == [0, 2]
            one.commit()
            assert loads(one, other) == [1, 1]
            assert other.poll() == []


@contextlib.contextmanager
def lost_one_of_two(group):
    """A member that has "a" of one partition and "b" of the other, who took one of them in the end, and which."""
    group.put(0, "a")
    group.put(1, "b")
    with group.join(delivery="manual", session_timeout=1.5) as one:
        assert sorted(values(one.poll())) == ["a", "b"]
        with group.join() as other:
            eventually(lambda: len(other.assignment()) == 1)
            yield one, other, other.assignment()[0][1]


def test_a_partition_that_is_not_released_in_time_is_taken_and_the_late_commit_fenced(make_group, caplog):
    group = make_group(partitions=2)
    with lost_one_of_two(group) as (one, other, lost):
        with pytest.raises(FencedError, match=f"t-{lost}") as caught:
            one.commit()
        assert "nothing of this commit was written" in str(caught.value)
        assert group.committed(0) is group.committed(1) is None
        assert values(other.poll()) == [{0: "a", 1: "b"}[lost]]
        one.poll()
        one.commit()
        assert group.committed(1 - lost) == 1
        assert "delivered again" in caplog.text


def test_a_loss_is_told_once_also_to_who_had_not_noticed_it_yet(make_group, monkeypatch):
    # Only calls of its own have a member look at its group.
    monkeypatch.setattr(Consumer, "_tend", lambda consumer, now: True)
    group = make_group(partitions=2)
    with lost_one_of_two(group) as (one, _, lost):
        with pytest.raises(FencedError):
            one.commit()
        one.poll()
        one.commit()
        assert group.committed(1 - lost) == 1


def test_a_member_that_leaves_hands_its_partitions_over_at_once(make_group):
    group = make_group()
    with group.join() as one:
        other = group.join()
        eventually(lambda: loads(one, other) == [2, 2])
        other.close()
        assert loads(one) == [4]


def test_more_members_than_partitions_leaves_some_waiting_their_turn(make_group):
    group = make_group(partitions=1)
    group.put(0, "a")
    with group.join() as one, group.join() as other:
        assert loads(one, other) == [0, 1]
        assert one.poll() + other.poll()
        assert sorted(group.owners().values()) == sorted(
            consumer._assigned.membership.member_id for consumer in (one, other) if consumer.assignment()
        )


def test_a_waiting_member_reads_a_partition_that_comes_to_it_at_once(make_group):
    group = make_group(partitions=1)
    one = group.join()
    with group.join() as other:
        group.put(0, "a")
        timer = threading.Timer(0.05, one.close)
        timer.start()
        assert values(other.poll(timeout=DEADLINE_S)) == ["a"]
        timer.join()


def test_a_member_dropped_without_close_is_missed(make_group):
    group = make_group()
    with group.join() as one:
        dropped = [group.join()]
        eventually(lambda: loads(one, *dropped) == [2, 2])
        dropped.clear()
        eventually(lambda: loads(one) == [4])
    group.directory.close()  # the use that the dropped one never gave back
    group.broker.close()
    assert group.directory.closed


def test_a_topic_that_comes_while_a_member_waits_to_join_stays_in_the_group(make_group, monkeypatch):
    group = make_group()
    exclusive = Journal.exclusive

    def topics_of_the_group() -> set[str]:
        return {topic for (topic, _), _ in group_state(group.directory, "g").slots()}

    def behind_a_topic(journal):
        """The lock, which another has before the one who joins: he makes a topic, of which the members hear."""
        if threading.current_thread() is threading.main_thread():
            monkeypatch.undo()
            group.broker.create_topic("u", 1)
            eventually(lambda: "u" in topics_of_the_group())
        return exclusive(journal)

    with group.join("*"):
        monkeypatch.setattr(Journal, "exclusive", behind_a_topic)
        with group.join("*"):
            assert topics_of_the_group() == {"t", "u"}


def test_members_with_different_topics_get_only_their_own(make_group):
    group = make_group(partitions=2)
    group.broker.create_topic("u", 2)
    with group.join("t") as one, group.join(["t", "u"]) as other:
        eventually(lambda: loads(one, other) == [2, 2])
        assert one.assignment() == [("t", 0), ("t", 1)]
        assert other.assignment() == [("u", 0), ("u", 1)]


def test_a_member_that_holds_records_for_too_long_leaves_and_joins_again(make_group, caplog):
    group = make_group(partitions=1)
    group.put(0, "a")
    with group.join(max_poll_interval=0.1) as one:
        assert values(one.poll()) == ["a"]
        with group.join() as other:
            assert values(other.poll(timeout=DEADLINE_S)) == ["a"]
            one.poll()
            assert "did not poll for too long" in caplog.text
            assert "it joins again" in caplog.text
            other.poll()
            assert loads(one, other) == [0, 1]


def test_an_iterating_member_gives_up_partitions_in_the_middle_of_its_records(make_group):
    """Slices are cut when the group wants a partition, however slow the loop has become."""
    group = make_group(partitions=2)
    for partition in range(2):
        group.put(partition, *(f"{partition}-{number}" for number in range(3000)))
    seen = []
    with group.join() as one:
        other = None
        for record in one:
            seen.append(record.value)
            if len(seen) == 2500:
                other = group.join()
            if other is not None:
                time.sleep(0.01)
                if other.assignment():
                    break
        with other:
            rest = other.poll(5000)
            place = other.assignment()[0][1]
            mine = [value for value in seen if value.startswith(b"%d" % place)]
            theirs = [record.value for record in rest]
            assert mine + theirs == [b"%d-%d" % (place, number) for number in range(3000)]


def test_group_changes_are_logged(make_group, caplog):
    caplog.set_level(logging.INFO, "logbroker")
    group = make_group(partitions=2)
    group.join().close()
    assert "group 'g', generation 1: 1 members (+consumer-" in caplog.text
    assert "+t-0, +t-1" in caplog.text


def test_the_topics_of_a_group_are_journaled_when_it_first_joins(make_group):
    group = make_group()
    group.broker.create_topic("t2", 1)
    group.join().close()
    assert [(event.group, event.topics) for event in group.directory.groups.all()] == [("g", ["t"])]
    group.join("t*").close()
    assert [event.topics for event in group.directory.groups.all()] == [["t", "t2"]]


class FailingOnce:
    """Who reads for a member, and fails in a way that nobody has thought of."""

    looks = 0

    def tend(self) -> bool:
        self.looks += 1
        if self.looks == 1:
            raise ValueError("of a kind that is not ours")
        return True


def test_members_are_looked_after_behind_an_error_of_any_kind(make_group, caplog):
    group, holder = make_group(), FailingOnce()
    selection = TopicSelection.parse("t")
    membership = join_group(group.directory, "g", selection, session_timeout_ms=60_000, holder=holder)
    eventually(lambda: membership.look() or holder.looks > 1)
    assert "ValueError" in caplog.text
    membership.leave()


def test_no_thread_is_left_when_the_last_member_has_left(make_group):
    group = make_group()
    with group.join(), group.join():
        assert "logbroker-coordinator" in {thread.name for thread in threading.enumerate()}
    assert "logbroker-coordinator" not in {thread.name for thread in threading.enumerate()}


def test_who_was_refused_holds_the_directory_open_no_longer_than_it_takes_to_leave(make_group, monkeypatch):
    monkeypatch.setattr(
        group_coordinator, "IDLE_TICK_S", 3600.0
    )  # until something else would have it look again
    group = make_group()
    group.broker.create_subscription("workers", topic="t")
    directory = group.directory
    with pytest.raises(InvalidRequestError, match="name of a queue"):
        Consumer(directory, "t", group="workers", session_timeout=20_000.0)
    group.broker.close()
    eventually(lambda: directory.closed)


def watched_files() -> int:
    """How many files this process watches, in all its inotify instances but those that are garbage."""
    gc.collect()
    watched = 0
    for descriptor in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{descriptor}") as lines:
            watched += sum(line.startswith("inotify") for line in lines)
    return watched


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify")
def test_a_group_without_members_here_is_watched_no_longer(make_group):
    """A process that stays in one group may come to thousands of others; inotify allows a user so many files."""
    group = make_group()
    with group.join():
        before = watched_files()
        for number in range(5):
            with Consumer(group.directory, "t", group=f"passing-{number}"):
                assert watched_files() == before + 1
        assert watched_files() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify")
def test_a_group_is_watched_as_long_as_it_has_a_member_here(make_group):
    group = make_group()
    with group.join():
        before = watched_files()
        group.join().close()
        assert watched_files() == before


# Processes --------------------------------------------------------------------------------------------------

MEMBER = """
import sys, logbroker
path, session_timeout = sys.argv[1], float(sys.argv[2])
broker = logbroker.open(path)
consumer = broker.consumer("t", group="g", delivery="manual", session_timeout=session_timeout)
print("ready", flush=True)
while True:
    for record in consumer.poll(timeout=60):
        print(record.partition, record.offset, record.value.decode(), flush=True)
"""


class Process:
    """A member in another process; it prints what it reads and never commits."""

    def __init__(self, group, session_timeout=10.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEMBER, group.path, str(session_timeout)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def start_process():
    started = []

    def start(group, **arguments) -> Process:
        started.append(Process(group, **arguments))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def test_members_in_two_processes_share_the_partitions(make_group, start_process):
    group = make_group(partitions=4)
    with group.join() as consumer:
        process = start_process(group)
        eventually(lambda: loads(consumer) == [2])
        theirs = sorted(set(range(4)) - {partition for _, partition in consumer.assignment()})
        group.put(theirs[0], "a")
        assert process.line() == f"{theirs[0]} 0 a"
        assert consumer.poll() == []


def test_the_partitions_of_a_killed_process_move_at_once_with_all_it_did_not_commit(
    make_group, start_process
):
    group = make_group(partitions=1)
    process = start_process(group)
    group.put(0, "a", "b")
    assert process.line() == "0 0 a"
    with group.join() as consumer:
        assert consumer.poll(timeout=0.2) == []
        killed = time.monotonic()
        process.process.send_signal(signal.SIGKILL)
        assert values(consumer.poll(timeout=DEADLINE_S)) == ["a", "b"]
        assert time.monotonic() - killed < 10.0


def test_a_process_that_starts_again_after_a_kill_has_its_partitions_at_once(make_group, start_process):
    group = make_group(partitions=2)
    process = start_process(group)
    process.stop()
    with group.join() as consumer:
        assert loads(consumer) == [2]


def test_a_stopped_process_loses_its_partitions_when_its_session_times_out(make_group, start_process):
    group = make_group(partitions=1)
    process = start_process(group, session_timeout=0.5)
    group.put(0, "a")
    assert process.line() == "0 0 a"
    with group.join() as consumer:
        process.process.send_signal(signal.SIGSTOP)
        try:
            assert values(consumer.poll(timeout=DEADLINE_S)) == ["a"]
        finally:
            process.process.send_signal(signal.SIGCONT)
        group.put(0, "b")
        assert values(consumer.poll(timeout=DEADLINE_S)) == ["b"]


def consume_in_child(path, start, results) -> None:
    with (
        logbroker.open(path) as broker,
        broker.consumer("t", group="g", delivery="at-least-once") as consumer,
    ):
        start.wait()
        while records := consumer.poll(timeout=1.5):
            results.put([(record.partition, record.offset) for record in records])
    results.put(None)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_members_in_spawned_and_forked_processes_read_everything_once(tmp_path, method):
    with logbroker.open(tmp_path) as broker:
        broker.create_topic("t", 4)
        with broker.producer() as producer:
            for number in range(400):
                producer.send("t", b"%d" % number, partition=number % 4)
        context = multiprocessing.get_context(method)
        start, results = context.Barrier(2), context.Queue()
        children = [
            context.Process(target=consume_in_child, args=(str(tmp_path), start, results)) for _ in range(2)
        ]
        for child in children:
            child.start()
        read = Counter()
        running = len(children)
        while running:
            got = results.get(timeout=DEADLINE_S)
            running -= got is None
            read.update(got or ())
        for child in children:
            child.join()
        assert read == {(partition, offset): 1 for partition in range(4) for offset in range(100)}
        assert [event.offset for event in broker._directory.groups.committed_offsets("g")] == [100] * 4


def test_a_forked_childs_copy_of_a_consumer_says_so_and_hurts_nobody(make_group):
    group = make_group(partitions=1)
    group.put(0, "a")
    with group.join() as consumer:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                consumer.poll()
                answer = b"polled"
            except ForkedError:
                answer = b"forked"
            except BaseException as error:
                answer = repr(error).encode()
            consumer.close()
            os.write(write_end, answer)
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(read_end, 1000) == b"forked"
        os.close(read_end)
        os.close(write_end)
        assert values(consumer.poll()) == ["a"]
        assert loads(consumer) == [1]
