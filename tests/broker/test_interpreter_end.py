"""The interpreter's end, with something of ours left open in a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import logbroker

PROGRAM = """
import sys
import logbroker
from logbroker import ClosedError  # names are found when first used: at the end it would be too late

def uses(path):
    with logbroker.open(path) as broker:
        broker.create_topic("t")
        broker.create_subscription("q", topic="t")
        with {handle}:
            {at_work}

left = uses(sys.argv[1])
next(left)
"""


def run(program: str, *arguments: str | Path) -> None:
    """Raises when it prints an error, does not exit with 0, or does not end."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], timeout=20, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "handle",
    [
        "broker.producer() as producer",
        'broker.consumer("t", group="g")',
        'broker.queue(subscription="q", renew=True)',
        'broker.responder("rpc")(lambda request: request.value)',
        "broker",
    ],
)
def test_a_generator_that_is_left_within_a_with_does_not_keep_the_process(tmp_path: Path, handle: str):
    """It is closed when the interpreter has stopped all daemon threads."""
    run(PROGRAM.format(handle=handle, at_work="yield"), tmp_path / "d")


LATE = """
import atexit, sys

def uses(path):
    import logbroker
    with logbroker.open(path) as broker, broker.producer(linger=60) as producer:
        broker.create_topic("t")
        producer.send("t", b"sent")
        yield

def begin():
    global left
    left = uses(sys.argv[1])
    next(left)

atexit.register(begin)  # before ours: it runs behind ours
import logbroker.producer
"""


def test_a_producer_that_was_made_behind_the_exit_s_own_look_does_not_keep_the_process(tmp_path: Path):
    run(LATE, tmp_path / "d")


SENDS = """
import os, sys, warnings
import logbroker

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads

def send(path):
    logbroker.open(path).producer(linger=60).send("t", b"sent")

send(sys.argv[1])
if sys.argv[2:] == ["fork"] and os.fork() == 0:
    sys.exit()  # the batch is the parent's
"""


@pytest.mark.parametrize("arguments", [[], ["fork"]])
def test_what_a_dropped_producer_was_given_goes_out_once(tmp_path: Path, arguments: list[str]):
    with logbroker.open(tmp_path / "d") as broker:
        broker.create_topic("t")
        run(SENDS, tmp_path / "d", *arguments)
        with broker.consumer("t", start="earliest") as consumer:
            assert [record.value for record in consumer.poll(timeout=5)] == [b"sent"]
            assert consumer.poll(timeout=0.5) == []


def test_what_is_used_at_the_end_is_told_that_it_is_over(tmp_path: Path):
    """And waits for no lock that a stopped thread has."""
    at_work = """
            try:
                yield
            finally:
                for use in (lambda: consumer.commit(), lambda: broker.topics()):
                    try:
                        use()
                    except ClosedError as error:
                        assert "at its end" in str(error)
                    else:
                        raise AssertionError("it was not refused")
"""
    run(PROGRAM.format(handle='broker.consumer("t", group="g") as consumer', at_work=at_work), tmp_path / "d")
