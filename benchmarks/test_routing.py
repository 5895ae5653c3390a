"""The router: records a second from a topic through two bindings, and what a condition costs."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

import logbroker
from logbroker.routing.bindings import ROUTER_GROUP
from logbroker.routing.router import run_router

from .conftest import seconds

CITIES = ["Berlin", "Paris", "Rome", "Austin"]
BINDINGS: dict[str, list[dict[str, Any]]] = {
    "content": [
        {"when": "json.total > 500"},
        {"when": 'json.type == "paid" && json.customer.city != "Rome"'},
    ],
    "headers": [{"headers": {"type": "paid"}}, {"headers": {"type": "created"}}],
    "everything": [{}, {}],
}


def orders(count: int) -> list[tuple[bytes, str]]:
    """Nested documents of about 250 bytes, and their type."""
    rng = random.Random(1)
    found = []
    for number in range(count):
        kind = rng.choice(["created", "paid", "shipped"])
        document = {
            "id": number,
            "type": kind,
            "customer": {"id": rng.randrange(5000), "name": f"Customer {number}", "city": rng.choice(CITIES)},
            "lines": [
                {"sku": f"sku-{rng.randrange(1000)}", "quantity": rng.randrange(1, 9), "price": 12.5}
                for _ in range(rng.randrange(1, 5))
            ],
            "total": rng.randrange(1000),
        }
        found.append((msgspec.json.encode(document), kind))
    return found


def route(broker: logbroker.Broker, count: int) -> None:
    """Until *count* records are routed, without a wait in the end."""
    stop = threading.Event()
    left = count

    def count_down(routed: int) -> None:
        nonlocal left
        left -= routed
        if left <= 0:
            stop.set()

    run_router(broker._directory, broker._transactions, stop=stop, on_routed=count_down)


@pytest.mark.parametrize("kind", BINDINGS)
def test_two_bindings(benchmark: Any, tmp_path: Path, records: int, kind: str) -> None:
    """One router, each transaction on the disk before the next."""
    count = records // 5
    with logbroker.open(tmp_path / "data") as broker:
        for topic in ("orders", "one", "two"):
            broker.create_topic(topic, 2)
        for target, conditions in zip(("one", "two"), BINDINGS[kind], strict=True):
            broker.bind("orders", target, **conditions)
        with broker.producer() as producer:
            for number, (value, type_) in enumerate(orders(count)):
                headers = {"type": type_} if kind == "headers" else None
                producer.send("orders", value, key=b"%d" % (number % 997), headers=headers)
        took = benchmark.pedantic(seconds, args=(lambda: route(broker, count),), rounds=1)
        assert broker.group(ROUTER_GROUP).lag == 0
    benchmark.extra_info["records_per_s"] = round(count / took)
