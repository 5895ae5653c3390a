"""Transactions: what one costs on the disk, what a record in one costs, and a transform from input to output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import logbroker

from .conftest import VALUE, in_turn, seconds

TRANSACTIONS = 50
ROUNDS = 11


def test_a_transaction_of_one_record(benchmark: Any, tmp_path: Path) -> None:
    """Beside a durable record outside of one, which takes one disk sync where this takes three."""
    with logbroker.open(tmp_path / "data") as broker, broker.producer() as producer:
        broker.create_topic("t")

        def transactions() -> None:
            for _ in range(TRANSACTIONS):
                with broker.transaction("x") as tx:
                    tx.send("t", VALUE)

        def records() -> None:
            for _ in range(TRANSACTIONS):
                producer.send("t", VALUE).result()

        transactions()
        records()
        mine, theirs, ratio = benchmark.pedantic(in_turn, args=(transactions, records, ROUNDS), rounds=1)
    benchmark.extra_info["us_per_transaction"] = round(mine / TRANSACTIONS * 1e6)
    benchmark.extra_info["us_per_durable_record"] = round(theirs / TRANSACTIONS * 1e6)
    benchmark.extra_info["ratio"] = round(ratio, 2)


def test_send_in_a_transaction(benchmark: Any, cached_broker: logbroker.Broker, records: int) -> None:
    def run() -> None:
        with cached_broker.transaction("x") as tx:
            for _ in range(records):
                tx.send("t", VALUE)

    elapsed = benchmark.pedantic(seconds, args=(run,), rounds=3)
    benchmark.extra_info["records_per_s"] = round(records / benchmark.stats.stats.median)
    assert elapsed > 0


def test_transform(benchmark: Any, tmp_path: Path, records: int) -> None:
    """From a topic to another, 500 records a transaction, each of them on the disk before the next."""
    count = records // 10
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("in")
        broker.create_topic("out")
        with broker.producer() as producer:
            producer.send_many("in", [VALUE] * count)

        def run() -> int:
            return broker.transform(
                "in", "out", group="g", function=lambda record: record.value, idle_timeout=0.0
            )

        assert benchmark.pedantic(run, rounds=1) == count
    benchmark.extra_info["records_per_s"] = round(count / benchmark.stats.stats.median)
