"""Over the number of consumer groups that have committed, each in the same few partitions."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import logbroker

from ..measuring import Figures
from .steps import TOPIC, VALUE, Runner, median_us, timed_us

PARTITIONS = 4
RECORDS = 40_000
COMMITS = 50
BATCH = 100


def measure(runner: Runner, sizes: list[int]) -> Iterator[tuple[int, Figures]]:
    for size in sizes:
        figures = runner.run(join, size)
        figures |= runner.run(look, size)
        figures |= runner.openings()
        yield size, figures


def _name(number: int) -> str:
    return f"group-{number:04}"


def join(data: str, groups: int) -> Figures:
    """Have so many groups, by the members that each had once."""
    with logbroker.open(data) as broker:
        if not broker.topics():
            broker.create_topic(TOPIC, partitions=PARTITIONS, config={"durability": "os"})
            with broker.producer() as producer:
                for partition in range(PARTITIONS):
                    producer.send_many(TOPIC, [VALUE] * (RECORDS // PARTITIONS), partition=partition)

        def join_once(number: int) -> None:
            with broker.consumer(TOPIC, group=_name(number), delivery="manual") as consumer:
                for _ in range(PARTITIONS):
                    consumer.poll(BATCH)
                consumer.commit()

        known = len(broker.groups())
        took_us = [timed_us(partial(join_once, number)) for number in range(known, groups)]
        last = took_us[-100:]  # at about this number of groups
    return {"join_commit_and_leave_us": statistics.median(last)}


def look(data: str, groups: int) -> Figures:
    with logbroker.open(data) as broker:
        last = _name(groups - 1)
        assert len(broker.groups()) == groups
        figures = {
            "list_ms": median_us(broker.groups, 5) / 1e3,
            "describe_one_us": median_us(lambda: broker.group(last), 5),
            "clean_ms": median_us(broker.clean, 5) / 1e3,
        }
        with broker.consumer(TOPIC, group=last, delivery="manual") as consumer:
            commit_us = []
            for _ in range(COMMITS):
                assert consumer.poll(BATCH)
                commit_us.append(timed_us(consumer.commit))
    return {"commit_us": statistics.median(commit_us), **figures}
