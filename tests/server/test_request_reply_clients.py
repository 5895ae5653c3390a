"""Request and reply across the protocol: an unmodified Kafka client asks or answers, the library is the other side."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import confluent_kafka
import pytest

import logbroker

from .server_process import ServerProcess

DEADLINE_S = 20.0


def read_one(address: str, topic: str) -> confluent_kafka.Message:
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": address, "group.id": f"{topic}-readers", "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe([topic])
        message = consumer.poll(DEADLINE_S)
        assert message is not None
        assert message.error() is None, message.error()
        return message
    finally:
        consumer.close()


def send(
    address: str, topic: str, value: bytes, headers: list[tuple[str, bytes]]
) -> confluent_kafka.KafkaError | None:
    """Send a record; what went wrong."""
    outcomes: list[confluent_kafka.KafkaError | None] = []
    producer = confluent_kafka.Producer({"bootstrap.servers": address})
    producer.produce(topic, value, headers=headers, on_delivery=lambda error, _: outcomes.append(error))
    assert producer.flush(DEADLINE_S) == 0
    (outcome,) = outcomes
    return outcome


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_server()


def test_a_client_answers_on_the_reply_topic_that_the_request_names(server: ServerProcess, tmp_path: Path):
    with logbroker.open(server.data) as broker:
        replies: list[logbroker.Reply] = []

        def ask() -> None:
            replies.append(broker.request("rpc", b"hello", if_nobody="wait", timeout=DEADLINE_S))

        broker.create_topic("rpc")
        asking = threading.Thread(target=ask)
        asking.start()
        request = read_one(server.address, "rpc")
        headers = dict(request.headers())
        reply_headers = [("correlation-id", headers["correlation-id"]), ("by", b"a client")]
        reply_to = headers["reply-to"].decode()
        assert send(server.address, reply_to, request.value().upper(), reply_headers) is None
        asking.join(DEADLINE_S)
    assert [(reply.value, reply.headers) for reply in replies] == [(b"HELLO", [("by", b"a client")])]


def test_a_client_asks_and_reads_the_reply_from_a_topic_of_its_own(server: ServerProcess):
    with logbroker.open(server.data) as broker:
        broker.create_topic("answers")
        broker.responder("rpc")(lambda request: (request.value or b"").upper())
        headers = [("correlation-id", b"7"), ("reply-to", b"answers")]
        assert send(server.address, "rpc", b"hello", headers) is None
        reply = read_one(server.address, "answers")
    assert (reply.value(), reply.headers()) == (b"HELLO", [("correlation-id", b"7")])


def test_clients_write_to_no_other_internal_topic(server: ServerProcess):
    with logbroker.open(server.data) as broker:
        broker._directory.create_topic("__state", 1, broker._directory.journal.log.config)
        error = send(server.address, "__state", b"x", [])
        assert error is not None
        assert error.code() == confluent_kafka.KafkaError.TOPIC_EXCEPTION
        assert broker._directory.log("__state", 0).offsets().log_end_offset == 0


def test_a_server_alone_sweeps_the_reply_topic_of_a_killed_process(server: ServerProcess):
    logs = server.data / "logs"
    command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(server.data)]
    asking = subprocess.Popen([*command, "request", "rpc", "x", "--wait", "--timeout", "60"])
    try:
        wait_until(lambda: any(path.stat().st_size for path in logs.glob("rpc-0/*.log")))
        assert list(logs.glob("__reply-*"))
    finally:
        asking.kill()
        asking.wait()
    wait_until(lambda: not list(logs.glob("__reply-*")))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
