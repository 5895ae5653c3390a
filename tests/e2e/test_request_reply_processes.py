"""Requests between processes: they compete, they are killed, and what they leave behind is swept."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import logbroker
from logbroker.request_reply.responder import MAX_DELIVERIES

DEADLINE_S = 30.0
TOPIC = "rpc"


class RpcProcess:
    """A process of ``rpc_worker.py`` that has said that it is ready."""

    def __init__(self, role: str, data: Path, *arguments: str) -> None:
        command = [
            sys.executable,
            str(Path(__file__).with_name("rpc_worker.py")),
            role,
            str(data),
            *arguments,
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip("\n")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def go_on(self) -> None:
        """The answer to ``wait`` is made now."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()


Start = Callable[..., RpcProcess]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(data: Path) -> Iterator[Callable[..., RpcProcess]]:
    """Start processes that end with the test: ``start("respond")``."""
    processes: list[RpcProcess] = []

    def start(role: str, *arguments: str) -> RpcProcess:
        processes.append(RpcProcess(role, data, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def broker(data: Path) -> Iterator[logbroker.Broker]:
    with logbroker.open(data) as broker:
        yield broker


def answer(reply: logbroker.Reply) -> tuple[int, int, bytes]:
    """The process that answered, which delivery that was, and the value."""
    pid, count, value = (reply.value or b"").split(b" ", 2)
    return int(pid), int(count), value


def reply_topics(broker: logbroker.Broker) -> list[str]:
    return [name for name in broker._directory.topics() if name.startswith("__reply-")]


def eventually(holds: Callable[[], bool], *, seconds: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_compete_and_each_request_is_worked_on_once(broker: logbroker.Broker, start: Start) -> None:
    pids = {start("respond").pid for _ in range(3)}
    values = [b"%d" % number for number in range(300)]
    with ThreadPoolExecutor(6) as pool:
        answers = [
            answer(reply)
            for reply in pool.map(lambda v: broker.request(TOPIC, v, timeout=DEADLINE_S), values)
        ]
    assert [value for _, _, value in answers] == values
    assert {count for _, count, _ in answers} == {1}
    shares = Counter(pid for pid, _, _ in answers)
    assert set(shares) == pids, shares


def test_when_a_responder_is_killed_at_work_another_answers_in_time(
    broker: logbroker.Broker, start: Start
) -> None:
    """Its lease would last for longer than the request."""
    first = start("respond", str(2 * DEADLINE_S))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(broker.request, TOPIC, b"sleep 60", timeout=DEADLINE_S)
        assert first.line() == "working"
        second = start("respond")
        first.kill()
        assert answer(asking.result()) == (second.pid, 2, b"sleep 60")


def test_when_a_responder_is_stopped_at_work_another_answers_behind_the_lease(
    broker: logbroker.Broker, start: Start
) -> None:
    first = start("respond", "1")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(broker.request, TOPIC, b"sleep 2", timeout=DEADLINE_S)
        assert first.line() == "working"
        os.kill(first.pid, signal.SIGSTOP)
        second = start("respond", "1")
        assert answer(asking.result()) == (second.pid, 2, b"sleep 2")
    second.kill()
    os.kill(first.pid, signal.SIGCONT)  # it answers, too late, and goes on
    eventually(lambda: broker.request_counts.dropped == 1)
    assert answer(broker.request(TOPIC, b"x", timeout=DEADLINE_S)) == (first.pid, 1, b"x")


def test_without_live_responders_a_request_fails_at_once(broker: logbroker.Broker, start: Start) -> None:
    responders = [start("respond") for _ in range(2)]
    broker.request(TOPIC, b"x")
    for responder in responders:
        responder.kill()
    began = time.monotonic()
    with pytest.raises(logbroker.NoRespondersError):
        broker.request(TOPIC, b"x", timeout=3600)
    assert time.monotonic() - began < 10


def test_a_late_reply_of_another_process_is_dropped(broker: logbroker.Broker, start: Start) -> None:
    responder = start("respond")
    with pytest.raises(logbroker.RequestTimeoutError):
        broker.request(TOPIC, b"wait", timeout=3)  # in which it is taken up, or nobody would work on it
    assert responder.line() == "working"
    responder.go_on()
    eventually(lambda: broker.request_counts.dropped == 1)
    assert answer(broker.request(TOPIC, b"x"))[2] == b"x"


def test_a_request_that_kills_whoever_works_on_it_is_given_up(broker: logbroker.Broker, start: Start) -> None:
    responders = [start("respond") for _ in range(MAX_DELIVERIES + 1)]
    pending = broker._begin_request(TOPIC, b"poison", timeout=10 * DEADLINE_S)
    eventually(lambda: broker.subscription(f"responders:{TOPIC}").lag == 0)
    survivors = [responder for responder in responders if responder.process.poll() is None]
    assert len(survivors) == 1
    assert not pending.future.done(), "nobody answers it"
    pending.give_up()
    assert answer(broker.request(TOPIC, b"x")) == (survivors[0].pid, 1, b"x")


def test_the_reply_topic_of_a_killed_process_is_swept_by_another(
    broker: logbroker.Broker, start: Start
) -> None:
    responder = start("respond")
    asking = start("ask", "sleep 60")
    assert responder.line() == "working"
    assert len(reply_topics(broker)) == 1
    asking.kill()
    eventually(lambda: reply_topics(broker) == [], seconds=10)
    eventually(lambda: not list(Path(broker.path, "logs").glob("__reply*")))


def test_a_forked_child_asks_nothing_and_leaves_its_parents_replies_alone(
    broker: logbroker.Broker, start: Start, data: Path
) -> None:
    start("respond")
    command = [sys.executable, str(Path(__file__).with_name("rpc_worker.py")), "fork", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stdout.splitlines() == ["child: forked", "parent: after"], done.stderr


@pytest.mark.slow
def test_every_request_is_answered_while_responders_are_killed(
    broker: logbroker.Broker, data: Path, rng: random.Random, long_run: bool
) -> None:
    """One of three is killed every 0.7 s; no request waits longer than its timeout, none gets another's reply."""
    responders = [RpcProcess("respond", data) for _ in range(3)]
    done = threading.Event()
    asked = Counter[str]()

    def ask(name: str) -> None:
        while not done.is_set():
            value = b"%s %d" % (name.encode(), asked[name])
            assert answer(broker.request(TOPIC, value, timeout=DEADLINE_S))[2] == value
            asked[name] += 1

    try:
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, name) for name in "abcd"]
            for _ in range(40 if long_run else 10):
                time.sleep(0.7)
                number = rng.randrange(3)
                responders[number].kill()
                responders[number] = RpcProcess("respond", data)
            done.set()
            for future in asking:
                future.result(DEADLINE_S)
    finally:
        done.set()
        for responder in responders:
            responder.kill()
    print(f"{sum(asked.values())} requests")
    counts = broker.request_counts
    assert (counts.sent, counts.given_up) == (counts.answered, 0)
