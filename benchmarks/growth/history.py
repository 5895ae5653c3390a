"""Over the number of records that one partition holds."""

from __future__ import annotations

import datetime
import os
import random
import statistics
import time
from collections.abc import Iterator

import logbroker

from ..measuring import Figures
from .steps import TOPIC, VALUE, Runner, median_us, timed_us

SUBSCRIPTION = "workers"
CHUNK = 20_000
PROBE = 100_000
PASSES = 5
READS = 1000
COMMITS = 50
BATCHES = 20
BATCH = 100


def measure(runner: Runner, sizes: list[int]) -> Iterator[tuple[int, Figures]]:
    """Figures by the number of records when they were measured: the size, and what was appended to measure."""
    for size in sizes:
        records = int(runner.run(fill, size)["records"])
        figures = runner.run(use, records)
        figures |= runner.openings()
        figures |= runner.run(append)
        yield records, figures


def fill(data: str, records: int) -> Figures:
    """Have the topic hold at least so many records."""
    with logbroker.open(data) as broker:
        if not broker.topics():
            broker.create_topic(TOPIC, config={"durability": "os"})
            broker.create_subscription(SUBSCRIPTION, topic=TOPIC, start="earliest")
        end = broker.topic(TOPIC).partitions[0].log_end_offset
        values = [VALUE] * min(records, PROBE)
        with broker.producer() as producer:
            while end < records:
                end += producer.send_many(TOPIC, values[: records - end])
    os.sync()  # what is unwritten would be written while others are measured
    return {"records": end}


def append(data: str, _: int) -> Figures:
    values = [VALUE] * CHUNK
    with logbroker.open(data) as broker, broker.producer() as producer:

        def produce() -> None:
            producer.send_many(TOPIC, values)
            producer.flush()

        produce()  # the first finds its way
        return {"append_us_per_record": median_us(produce, PROBE // CHUNK - 1) / CHUNK}


def use(data: str, records: int) -> Figures:
    with logbroker.open(data) as broker:
        return read(broker, records) | commit(broker, records) | work_off(broker) | tend(broker)


def read(broker: logbroker.Broker, records: int) -> Figures:
    rng = random.Random(1)
    with broker.consumer(TOPIC) as consumer:
        consume_us: list[float] = []
        for _ in range(PASSES):
            left = min(PROBE, records)
            consumer.seek(0, records - left)
            while left > 0:
                began = time.perf_counter()
                count = len(consumer.poll(CHUNK))
                consume_us.append((time.perf_counter() - began) * 1e6 / count)
                left -= count

        offset_us, time_us = [], []
        for _ in range(READS):
            offset = rng.randrange(records)
            began = time.perf_counter()
            consumer.seek(0, offset)
            (record,) = consumer.poll(1)
            offset_us.append((time.perf_counter() - began) * 1e6)
            moment = datetime.datetime.fromtimestamp(record.timestamp_ms / 1000, datetime.UTC)
            began = time.perf_counter()
            consumer.seek_to(moment)
            (found,) = consumer.poll(1)
            time_us.append((time.perf_counter() - began) * 1e6)
            assert found.timestamp_ms == record.timestamp_ms
    return {
        "consume_us_per_record": statistics.median(consume_us),
        "read_by_offset_us": statistics.median(offset_us),
        "read_by_time_us": statistics.median(time_us),
    }


def commit(broker: logbroker.Broker, records: int) -> Figures:
    with broker.consumer(TOPIC, group="g", delivery="manual") as consumer:
        consumer.seek(0, max(0, records - COMMITS * BATCH))
        took_us = []
        for _ in range(COMMITS):
            assert consumer.poll(BATCH)
            took_us.append(timed_us(consumer.commit))
    return {"commit_us": statistics.median(took_us)}


def work_off(broker: logbroker.Broker) -> Figures:
    """Messages of a queue whose backlog is all that was not worked off before."""
    with broker.queue(subscription=SUBSCRIPTION) as queue:

        def batch() -> None:
            received = queue.receive_many(BATCH, timeout=0)
            assert len(received) == BATCH
            received.accept()

        batch()
        return {"queue_us_per_message": median_us(batch, BATCHES) / BATCH}


def tend(broker: logbroker.Broker) -> Figures:
    """What is done in the background, and what a look at everything takes."""
    broker.clean()
    return {
        "clean_ms": median_us(broker.clean, 5) / 1e3,
        "describe_topic_ms": median_us(lambda: broker.topic(TOPIC), 5) / 1e3,
        "describe_subscription_ms": median_us(lambda: broker.subscription(SUBSCRIPTION), 5) / 1e3,
    }
