"""Deleting ``view/`` while nobody has the directory open changes no answer."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import logbroker

WORKER = Path(__file__).with_name("worker.py")


def answers(data: Path, *producers: str) -> dict[str, object]:
    """Everything that a user can ask a directory; the named producers first, for they see to what dead ones left."""
    with logbroker.open(data) as broker:
        topics = broker.topics()
        sequences = {name: last_sequences(broker, name) for name in producers}
        with broker.consumer(topics, start="earliest") as consumer:
            records = []
            while found := consumer.poll(max_records=10_000, timeout=0.2):
                records += [
                    (r.topic, r.partition, r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in found
                ]
        return {
            "topics": {name: broker.topic(name) for name in topics},
            "records": sorted(records),
            "groups": {name: broker.group(name).offsets for name in broker.groups()},
            "sequences": sequences,
        }


def last_sequences(broker: logbroker.Broker, name: str) -> dict[tuple[str, int], int | None]:
    with broker.producer(name=name) as producer:
        return {
            (topic, part.partition): producer.last_sequence(topic, partition=part.partition)
            for topic in broker.topics()
            for part in broker.topic(topic).partitions
        }


def work(data: Path, round_number: int) -> None:
    with logbroker.open(data) as broker:
        broker.create_topic(
            "a", partitions=3, config={"retention.ms": 10**9, "segment.bytes": 2000}, exist_ok=True
        )
        broker.create_topic("b.1", config={"cleanup.policy": "compact"}, exist_ok=True)
        broker.create_topic(f"gone-{round_number}")
        broker.delete_topic(f"gone-{round_number}")
        with broker.producer(name="loader") as producer:
            last = producer.last_sequence("a", partition=0)
            first = 0 if last is None else last + 1
            for sequence in range(first, first + 50):
                producer.send("a", b"%d" % sequence * 10, partition=0, sequence=sequence)
            producer.send("b.1", b"far", sequence=(round_number + 1) << 33)
        with broker.producer(compression="zstd") as anonymous:
            anonymous.send_many("a", [b"value %d" % number for number in range(200)])
            anonymous.send("b.1", b"v%d" % round_number, key=b"k", headers={"round": b"%d" % round_number})
        broker.alter_topic("a", config={"retention.bytes": 10**9 + round_number})
        with broker.consumer("a", group="readers", start="earliest") as consumer:
            consumer.poll(max_records=70, timeout=1.0)
            consumer.commit()
        broker.delete_records("a", {1: 5 * (round_number + 1)})


def test_deleting_the_view_between_runs_changes_no_answer(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for round_number in range(4):
        work(data, round_number)
        before = answers(data, "loader")
        assert answers(data, "loader") == before
        shutil.rmtree(data / "view")
        assert answers(data, "loader") == before


def run_and_kill(data: Path, rng: random.Random, roles: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Start workers, kill them all -9 after a while; what each of them said, by name."""
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), role, str(data), name], stdout=subprocess.PIPE, text=True
        )
        for role, name in roles
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.05, 0.3))  # their pipes hold what they say in so short a time, or they wait
    finally:
        for process in started:
            process.kill()
    said = [process.communicate()[0] for process in started]
    return {
        name: text[: text.rfind("\n") + 1].split("\n")[:-1]
        for (_, name), text in zip(roles, said, strict=True)
    }


@pytest.mark.slow
def test_deleting_the_view_after_everybody_was_killed_changes_no_answer(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    data, without_view = tmp_path / "data", tmp_path / "without-view"
    with logbroker.open(data) as broker:
        broker.create_topic("t", partitions=3, config={"segment.bytes": 50_000})
    acknowledged: set[tuple[str, str]] = set()
    for _ in range(20 if long_run else 4):
        roles = [("produce", "p0"), ("produce", "p1"), ("consume", "readers")]
        said = run_and_kill(data, rng, roles)
        for name in ("p0", "p1"):
            acknowledged |= {(line.split()[0], f"{name}:{line.split()[1]}") for line in said[name]}
        shutil.copytree(data / "logs", without_view / "logs")  # all that a backup needs
        kept, rebuilt = answers(data, "p0", "p1"), answers(without_view, "p0", "p1")
        assert rebuilt == kept
        records = rebuilt["records"]
        assert isinstance(records, list)
        assert acknowledged <= {
            (str(partition), value.decode()) for _, partition, _, _, _, value, _ in records
        }
        shutil.rmtree(without_view)
    print(f"{len(acknowledged)} acknowledged")
    assert acknowledged
