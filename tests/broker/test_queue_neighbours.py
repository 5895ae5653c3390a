"""What the living do for the dead: their messages come again at once, whether or not there is enough else to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

import logbroker

HOLD_AND_DIE = """
import os, sys, logbroker
queue = logbroker.open(sys.argv[1]).queue(subscription="workers", lease=3600)
queue.receive_many(3, timeout=10)
os._exit(0)
"""
MESSAGES = 60_000


@pytest.fixture
def data(tmp_path):
    """A queue whose first three messages are in the hands of a process that died."""
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("jobs")
        broker.create_subscription("workers", topic="jobs")
        with broker.producer() as producer:
            producer.send_many("jobs", [b"%d" % number for number in range(MESSAGES)])
    subprocess.run([sys.executable, "-c", HOLD_AND_DIE, str(tmp_path / "data")], check=True)
    return tmp_path / "data"


def test_a_dead_process_is_noticed_by_a_consumer_that_has_enough_else_to_do(data):
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        seen = 0
        while (message := queue.receive(timeout=0.0)).offset >= 3:
            seen += 1
        assert message.delivery_count == 2
        assert seen < MESSAGES - 3


def test_what_a_dead_process_held_is_received_without_waiting(data):
    with logbroker.open(data) as broker, broker.queue(subscription="workers") as queue:
        messages = queue.receive_many(3, timeout=0.0)
        assert [(message.offset, message.delivery_count) for message in messages] == [(0, 2), (1, 2), (2, 2)]
