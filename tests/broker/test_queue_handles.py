"""Detached queues: leases that outlive the process, settled by receipt handles."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logbroker
from logbroker.errors import InvalidRequestError, LeaseLostError, TopicNotFoundError
from logbroker.queues.handles import ReceiptHandle

RECEIVE_AND_DIE = """
import os, sys, logbroker
queue = logbroker.open(sys.argv[1]).queue(subscription="workers", lease=float(sys.argv[2]), detached=True)
print(queue.receive(timeout=10).handle, flush=True)
os._exit(0)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five jobs, and a queue with dead letters that reads them."""
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("jobs")
        broker.create_subscription("workers", topic="jobs", dead_letter="jobs.dead", max_deliveries=2)
        with broker.producer() as producer:
            producer.send_many("jobs", [b"%d" % number for number in range(5)])
    return tmp_path / "data"


def received_by_a_dead_process(data: Path, *, lease: float = 60.0) -> str:
    command = [sys.executable, "-c", RECEIVE_AND_DIE, str(data), str(lease)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def offsets(batch) -> list[int]:
    return [message.offset for message in batch]


def test_what_a_detached_queue_received_stays_leased_when_its_process_is_dead(data):
    handle = received_by_a_dead_process(data)
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        assert offsets(queue.receive_many(10, timeout=1.0)) == [1, 2, 3, 4]
        assert queue.receive_many(timeout=0.6) == [], "others look for the dead meanwhile"
        partition = broker.subscription("workers").partitions[0]
        assert partition.in_flight == 5
        assert ReceiptHandle.parse(handle).owner in partition.consumers
        queue.accept([handle])
        assert broker.subscription("workers").in_flight == 4
        with pytest.raises(LeaseLostError):
            queue.accept([handle])


def test_closing_a_detached_queue_releases_nothing(data):
    with logbroker.open(data) as broker:
        with broker.queue(subscription="workers", detached=True) as queue:
            handles = [message.handle for message in queue.receive_many(3, timeout=1.0)]
        assert broker.subscription("workers").in_flight == 3
        with broker.queue(subscription="workers") as queue:
            queue.accept(handles)
            assert offsets(queue.receive_many(10, timeout=1.0)) == [3, 4]


def test_the_lease_of_a_dead_process_ends_by_itself(data):
    handle = received_by_a_dead_process(data, lease=0.05)
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        with queue.receive(timeout=5.0) as message:
            while message.offset:
                message = queue.receive(timeout=5.0)
            assert message.delivery_count == 2
        with pytest.raises(LeaseLostError):
            queue.accept([handle])


def test_a_handle_releases_rejects_and_extends(data):
    with logbroker.open(data) as broker:
        with broker.queue(subscription="workers", detached=True) as queue:
            first, second, third = (message.handle for message in queue.receive_many(3, timeout=1.0))
        with broker.queue(subscription="workers", lease=0.2) as queue:
            queue.extend([third], 3600.0)
            queue.release([first])
            queue.reject([second], "no good")
            again = queue.receive(timeout=1.0)
            assert (again.offset, again.delivery_count) == (0, 2)
        with broker.consumer("jobs.dead") as consumer:
            assert [letter.value for letter in consumer.poll(timeout=1.0)] == [b"1", b"0"]
        assert broker.subscription("workers").in_flight == 1


def test_handles_of_several_owners_and_messages_are_accepted_together(data):
    with logbroker.open(data) as broker:
        handles = []
        for _ in range(2):
            with broker.queue(subscription="workers", detached=True) as queue:
                handles.append(queue.receive(timeout=1.0).handle)
        with broker.queue(subscription="workers") as queue:
            message = queue.receive(timeout=1.0)
            queue.accept([*handles, message])
            assert message.is_settled
        assert broker.subscription("workers").partitions[0].start_offset == 3


def test_the_same_message_twice_is_one(data):
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        message = queue.receive(timeout=1.0)
        queue.accept([message, message, message.handle])
        assert broker.subscription("workers").partitions[0].start_offset == 1


def test_a_handle_does_not_outlive_the_view(data):
    handle = received_by_a_dead_process(data)
    shutil.rmtree(data / "view")
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        with pytest.raises(LeaseLostError):
            queue.accept([handle])
        assert queue.receive(timeout=1.0).offset == 0


@pytest.mark.parametrize(
    "text",
    ["", "jobs", "jobs:0:1", "jobs:x:1:~a", "jobs:0:1:~a b", "a/b:0:1:~a", "jobs:0:9999999999999999999:~a"],
)
def test_what_is_no_handle_is_refused(data, text):
    with logbroker.open(data) as broker:
        queue = broker.queue(subscription="workers")
        with queue, pytest.raises(InvalidRequestError, match="receipt handle"):
            queue.accept([text])


@given(
    st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True),
    st.integers(0, 9_999),
    st.integers(0, (1 << 63) - 1),
    st.from_regex(r"(~[0-9a-f]{16}|[0-9]{1,7}-[0-9a-f]{12}/queue-[0-9]{1,5})", fullmatch=True),
)
def test_a_handle_says_what_it_was_made_of(topic, partition, offset, owner):
    handle = ReceiptHandle(topic, partition, offset, owner)
    assert ReceiptHandle.parse(str(handle)) == handle


def test_a_handle_of_an_offset_that_is_not_there_yet_is_lost(data):
    with logbroker.open(data) as broker:
        queue = broker.queue(subscription="workers")
        with queue, pytest.raises(LeaseLostError):
            queue.accept([f"jobs:0:{(1 << 63) - 1}:~a", "jobs:0:77:~a"])


def test_a_handle_of_something_that_the_subscription_does_not_read_is_refused(data):
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        with pytest.raises(InvalidRequestError, match="does not read"):
            queue.accept(["jobs.dead:0:0:~a"])
        with pytest.raises(TopicNotFoundError):
            queue.accept(["nowhere:0:0:~a"])
        with pytest.raises(TopicNotFoundError):
            queue.accept(["jobs:7:0:~a"])


def test_messages_that_are_given_back_were_never_delivered(data):
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        for _ in range(5):
            messages = queue.receive_many(3, timeout=1.0)
            assert [(message.offset, message.delivery_count) for message in messages] == [
                (0, 1),
                (1, 1),
                (2, 1),
            ]
            queue.give_back(messages)
            queue.give_back(messages)


def test_a_woken_receive_returns_nothing(data):
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        queue.receive_many(10, timeout=1.0).accept()
        queue.wakeup()
        assert queue.receive_many(10, timeout=None) == []


def test_what_is_lost_with_its_topic_does_not_keep_the_rest_from_being_accepted(tmp_path):
    with logbroker.open(tmp_path / "data") as broker:
        for topic in ("jobs.a", "jobs.b"):
            broker.create_topic(topic)
            with broker.producer() as producer:
                producer.send(topic, b"x")
        broker.create_subscription("workers", topic="jobs.*")
        with broker.queue(subscription="workers") as queue:
            messages = queue.receive_many(1, timeout=1.0) + queue.receive_many(1, timeout=1.0)
            gone, left = sorted(messages, key=lambda message: message.topic)
            broker.delete_topic(gone.topic)
            assert queue.receive_many(timeout=0.0) == []
            with pytest.raises(LeaseLostError) as caught:
                queue.accept([gone, left])
            assert caught.value.lost == [("jobs.a", 0, 0, 0)]
        assert [part.lag for part in broker.subscription("workers").partitions] == [0]
