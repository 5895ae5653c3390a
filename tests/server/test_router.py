"""The router inside ``logbroker serve``."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

import logbroker
from logbroker.server.server import Server
from logbroker.server.settings import ServerSettings

from .test_observed import DEADLINE_S, Metrics, free_port


def produce(server: Any, topic: str, *values: bytes) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": server.address, "acks": "all"})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(DEADLINE_S) == 0


def wait_for(broker: logbroker.Broker, topic: str, count: int) -> list[bytes | None]:
    found: list[bytes | None] = []
    deadline = time.monotonic() + DEADLINE_S
    with broker.consumer(topic) as consumer:
        while len(found) < count and time.monotonic() < deadline:
            found += [record.value for record in consumer.poll(count, 0.5)]
    return found


def test_a_server_routes_what_kafka_clients_send(server: Any, broker: logbroker.Broker) -> None:
    for topic in ("orders", "big"):
        broker.create_topic(topic)
    broker.bind("orders", "big", when="json.total > 100")
    produce(server, "orders", b'{"total": 500}', b'{"total": 5}')
    assert wait_for(broker, "big", 1) == [b'{"total": 500}']
    assert server.stop() == 0
    assert broker.group("__router").members == []
    assert broker.group("__router").lag == 0
    assert "ERROR" not in server.log()


def test_a_server_is_told_not_to_route(start_server: Callable[..., Any]) -> None:
    server = start_server("--no-router")
    with logbroker.open(server.data) as broker:
        for topic in ("orders", "out"):
            broker.create_topic(topic)
        broker.bind("orders", "out")
        produce(server, "orders", b"1")
        assert broker.group("__router").members == []
        # Another router comes first, and gets it.
        assert broker.run_router(idle_timeout=0.3) == 1


def test_a_router_that_is_held_up_does_not_hold_the_server_up_and_shows_in_the_metrics(
    start_server: Callable[..., Any],
) -> None:
    port = free_port()
    server = start_server("--metrics", f"127.0.0.1:{port}")
    with logbroker.open(server.data) as broker:
        for topic in ("orders", "out"):
            broker.create_topic(topic)
        broker.bind("orders", "out")
        broker.delete_topic("out")
        produce(server, "orders", b"1")
        deadline = time.monotonic() + DEADLINE_S
        while not broker.bindings()[0].stalled:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert Metrics(port).value("router_stalled", topic="orders", partition="0") == 1
        produce(server, "orders", b"2")
        broker.create_topic("out")
        assert wait_for(broker, "out", 2) == [b"1", b"2"]
        while Metrics(port).value("group_lag", group="__router", topic="orders", partition="0"):
            assert time.monotonic() < deadline
        assert Metrics(port).value("routed_records_total") == 2
        assert Metrics(port).value("router_failures_total") == 0
    assert "held up in orders-0" in server.log()


def test_a_server_whose_router_cannot_begin_does_not_serve(
    tmp_path: Path, refuse_thread: Callable[[str], None]
) -> None:
    async def main() -> None:
        server = Server(str(tmp_path / "data"), ServerSettings(port=0))
        refuse_thread("logbroker-router")
        with pytest.raises(RuntimeError, match="new thread"):
            await server.start()
        with logbroker.open(tmp_path / "data") as broker:
            assert broker._directory.users == 1
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port)).close()

    asyncio.run(main())
