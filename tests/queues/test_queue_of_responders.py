"""What responders need of a queue beside what its consumers do: to be woken, and to accept without the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

import logbroker
from logbroker.errors import QueueEmptyError
from logbroker.queues.consumer import Queue
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles

DEADLINE_S = 20.0


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(OsFiles())


@pytest.fixture
def broker(tmp_path, files: FaultyFiles) -> Iterator[logbroker.Broker]:
    with logbroker.open(tmp_path / "data", files=files) as broker:
        broker.create_topic("jobs", config={"durability": "os"})
        broker.create_subscription("workers", topic="jobs", lease=3600)
        yield broker


@pytest.fixture
def queue(broker: logbroker.Broker) -> Iterator[Queue]:
    with broker.queue(subscription="workers") as queue:
        yield queue


def put(broker: logbroker.Broker, *values: bytes) -> None:
    with broker.producer() as producer:
        producer.send_many("jobs", values)


def test_wakeup_ends_a_receive_that_waits_with_nothing(queue):
    received = []
    waiting = threading.Thread(target=lambda: received.append(queue.receive_many(timeout=None)))
    waiting.start()
    time.sleep(0.05)
    queue.wakeup()
    waiting.join(DEADLINE_S)
    assert received == [[]]


def test_wakeup_before_a_receive_ends_the_one_that_would_wait(queue):
    queue.wakeup()
    with pytest.raises(QueueEmptyError, match=r"came before wakeup\(\)"):
        queue.receive(timeout=None)
    began = time.monotonic()
    assert queue.receive_many(timeout=0.1) == []
    assert time.monotonic() - began >= 0.1


def test_wakeup_takes_no_message_from_anybody(broker, queue):
    put(broker, b"a", b"b")
    queue.wakeup()
    assert queue.receive(timeout=0).value == b"a"
    assert next(iter(queue)).value == b"b"


def test_an_acceptance_that_is_not_durable_costs_no_sync_and_holds_for_everybody(broker, queue, files):
    put(broker, b"a", b"b")
    messages = queue.receive_many()
    syncs = files.calls["fdatasync"] + files.calls["fsync"]
    queue.accept(messages[:1], durable=False)
    assert files.calls["fdatasync"] + files.calls["fsync"] == syncs
    assert broker.subscription("workers").lag == 1
    messages[1].accept()
    assert files.calls["fdatasync"] + files.calls["fsync"] > syncs
    assert broker.subscription("workers").lag == 0
    with broker.queue(subscription="workers") as other:
        assert other.receive_many() == []
