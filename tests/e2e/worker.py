"""The processes that the end-to-end tests start and kill: ``python worker.py ROLE DATA NAME …``.

A producer prints ``partition sequence`` for each acknowledged record, a consumer what it read. All print
whole lines only, so that what a killed one printed is true.
"""

from __future__ import annotations

import os
import random
import select
import sys

import logbroker

LAST_ID = 1_000_000  # is never reached by those that are killed


def say(*lines: str) -> None:
    """Whole lines in each write, which is done wholly or not at all: pipes take PIPE_BUF bytes at once."""
    chunk = b""
    for line in lines:
        encoded = line.encode() + b"\n"
        if len(chunk) + len(encoded) > select.PIPE_BUF:
            os.write(1, chunk)
            chunk = b""
        chunk += encoded
    os.write(1, chunk)


def produce(path: str, name: str) -> None:
    """Append ``name:sequence`` to every partition in turn until killed, from where the log says it stopped."""
    with logbroker.open(path) as broker, broker.producer(name=name) as producer:
        partitions = len(broker.topic("t").partitions)
        last = [producer.last_sequence("t", partition=number) for number in range(partitions)]
        following = [0 if sequence is None else sequence + 1 for sequence in last]
        say("ready")
        while True:
            receipts = []
            for partition in range(partitions):
                for _ in range(20):
                    sequence = following[partition]
                    value = f"{name}:{sequence}".encode()
                    receipts.append(
                        (
                            partition,
                            sequence,
                            producer.send("t", value, partition=partition, sequence=sequence),
                        )
                    )
                    following[partition] += 1
            for _, _, receipt in receipts:
                receipt.result(timeout=30)
            say(*(f"{partition} {sequence}" for partition, sequence, _ in receipts))


def consume(path: str, group: str) -> None:
    """Print ``partition offset value`` of everything that the group gives us, until killed."""
    with logbroker.open(path) as broker, broker.consumer("t", group=group, start="earliest") as consumer:
        say("ready")
        while True:
            records = consumer.poll(max_records=500, timeout=0.5)
            if records:
                say(*(f"{r.partition} {r.offset} {(r.value or b'').decode()}" for r in records))


def identify(path: str, name: str) -> None:
    """Send the ids 0, 1, 2, … that others send at the same time, until killed; print ``id 0|1`` (a duplicate)."""
    rng = random.Random(name)
    with logbroker.open(path) as broker, broker.producer(linger=0.001) as producer:
        partitions = broker.topic("t").partitions
        number = max(0, sum(partition.log_end_offset for partition in partitions) - 200)
        say("ready")
        while number < LAST_ID:
            receipts = []
            for _ in range(rng.randrange(1, 30)):
                partition = rng.choice([None, *range(len(partitions))])
                receipt = producer.send("t", b"%d" % number, partition=partition, message_id=f"id-{number}")
                receipts.append((number, receipt))
                number += 1
            say(*(f"{sent} {receipt.result(timeout=30).duplicate:d}" for sent, receipt in receipts))
        say("done")


if __name__ == "__main__":
    role, data, who = sys.argv[1:]
    {"produce": produce, "consume": consume, "identify": identify}[role](data, who)
