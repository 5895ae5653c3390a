"""What an operator sees of a server: metrics for Prometheus, and log lines that programs can read."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from prometheus_client.parser import text_string_to_metric_families

import logbroker

DEADLINE_S = 20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Metrics:
    """The samples at one moment, by name and labels."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S) as answer:
            text = answer.read().decode()
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self._samples[f"logbroker_{name}", frozenset(labels.items())]


def produce(server: Any, topic: str, count: int, size_bytes: int = 100) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": server.address, "acks": "all"})
    for _ in range(count):
        producer.produce(topic, b"x" * size_bytes)
    assert producer.flush(DEADLINE_S) == 0


def consume(server: Any, topic: str, group: str, count: int) -> None:
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": server.address, "group.id": group, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    left, deadline = count, time.monotonic() + DEADLINE_S
    while left and time.monotonic() < deadline:
        left -= len([message for message in consumer.consume(left, 0.5) if not message.error()])
    assert left == 0
    consumer.commit(asynchronous=False)
    consumer.close()


def test_the_metrics_tell_what_the_server_does(start_server: Callable[..., Any]) -> None:
    port = free_port()
    server = start_server("--metrics", f"127.0.0.1:{port}")
    with logbroker.open(server.data) as broker:
        broker.create_topic("t")
    before = Metrics(port)
    produce(server, "t", 1000)
    consume(server, "t", "g", 600)
    after = Metrics(port)
    assert before.value("produced_records_total") == 0
    assert after.value("produced_records_total") == 1000
    assert after.value("produced_batch_bytes_total") > 100_000
    assert after.value("fetched_batch_bytes_total") > 60_000
    assert after.value("received_bytes_total") > after.value("produced_batch_bytes_total")
    assert after.value("sent_bytes_total") > after.value("fetched_batch_bytes_total")
    assert after.value("request_seconds_count", api="Produce") >= 1
    assert after.value("request_seconds_sum", api="Fetch") > 0
    assert after.value("sync_seconds_count") >= 1
    assert 400 >= after.value("group_lag", group="g", topic="t", partition="0") >= 0
    assert after.value("connections_closed_for_error_total") == 0


def test_lag_counts_what_embedded_consumers_commit_too(start_server: Callable[..., Any]) -> None:
    port = free_port()
    server = start_server("--metrics", f"127.0.0.1:{port}")
    with logbroker.open(server.data) as broker:
        broker.create_topic("t")
        with broker.producer() as producer:
            producer.send_many("t", [b"x"] * 10)
        with broker.consumer("t", group="embedded") as consumer:
            consumer.poll(4, 1.0)
            consumer.commit()
        assert Metrics(port).value("group_lag", group="embedded", topic="t", partition="0") == 6


def test_the_lag_of_a_queue_is_told_whoever_receives_from_it(start_server: Callable[..., Any]) -> None:
    port = free_port()
    server = start_server("--metrics", f"127.0.0.1:{port}")
    with logbroker.open(server.data) as broker:
        broker.create_topic("t")
        broker.create_subscription("workers", topic="t")
        with broker.producer() as producer:
            producer.send_many("t", [b"x"] * 10)
        with broker.queue("t", subscription="workers") as queue:
            queue.receive_many(4).accept()
            queue.receive_many(3)
            assert Metrics(port).value("group_lag", group="workers", topic="t", partition="0") == 6


def test_members_of_share_groups_are_logged(start_server: Callable[..., Any]) -> None:
    server = start_server()
    with logbroker.open(server.data) as broker:
        broker.create_topic("t")
    consumer = confluent_kafka.ShareConsumer({"bootstrap.servers": server.address, "group.id": "g"})
    consumer.subscribe(["t"])
    consumer.poll(timeout=1.0)
    consumer.close()
    assert server.stop() == 0
    lines = [line for line in server.log().splitlines() if "share group 'g'" in line]
    assert [line.rpartition(" ")[2] for line in lines] == ["t", "joins", "leaves"]


def test_open_connections_are_counted(start_server: Callable[..., Any]) -> None:
    port = free_port()
    server = start_server("--metrics", f"127.0.0.1:{port}")
    with (
        socket.create_connection(("127.0.0.1", server.port)) as one,
        socket.create_connection(("127.0.0.1", server.port)),
    ):
        deadline = time.monotonic() + DEADLINE_S
        while Metrics(port).value("connections") != 2:
            assert time.monotonic() < deadline
        one.sendall(b"\xff\xff\xff\xff" * 4)
        while Metrics(port).value("connections_closed_for_error_total") != 1:
            assert time.monotonic() < deadline


def test_log_lines_are_objects_when_asked_for(start_server: Callable[..., Any]) -> None:
    server = start_server("--log-format", "json")
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert peer.recv(1) == b""
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    (refused,) = [line for line in lines if line["level"] == "warning"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", refused["peer"])


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_directory_whose_name_is_no_text_is_served_and_logged(
    start_server: Callable[..., Any], tmp_path: Path, log_format: str
) -> None:
    data = tmp_path / os.fsdecode(b"data-\xff")
    try:
        data.mkdir()
    except OSError:
        pytest.skip("the file system has no such names")
    server = start_server("--log-format", log_format, data=data)
    produce(server, "t", 1)
    assert server.stop() == 0
    lines = server.log().splitlines()
    assert [line for line in lines if "data-\\udcff on 127.0.0.1" in line] == lines[:1]
    if log_format == "json":
        assert json.loads(lines[0])["message"].startswith(f"serving {data} on ")


def test_text_lines_have_a_time_and_a_level(start_server: Callable[..., Any]) -> None:
    server = start_server()
    assert server.stop() == 0
    for line in server.log().splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO logbroker\.server: ", line), line


@pytest.mark.parametrize("level", ["warning", "error"])
def test_quieter_levels_say_nothing_of_an_ordinary_day(start_server: Callable[..., Any], level: str) -> None:
    server = start_server("--log-level", level)
    produce(server, "t", 10)
    assert server.stop() == 0
    assert server.log() == ""
