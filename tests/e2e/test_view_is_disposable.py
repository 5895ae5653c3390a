"""Deleting ``view/`` while nobody has the directory open changes no answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import logbroker


def answers(data: Path) -> dict[str, object]:
    """Everything that a user can ask a directory."""
    with logbroker.open(data) as broker:
        with broker.consumer(["a", "b.1"], start="earliest") as consumer:
            records = []
            while found := consumer.poll(max_records=1000, timeout=0.2):
                records += [(r.topic, r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in found]
        with broker.producer(name="loader") as producer:
            sequences = [producer.last_sequence(topic, partition=0) for topic in ("a", "b.1")]
        groups = {name: broker.group(name).offsets for name in broker.groups()}
        return {
            "topics": {name: broker.topic(name) for name in broker.topics()},
            "records": sorted(records),
            "groups": groups,
            "sequences": sequences,
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
        before = answers(data)
        assert answers(data) == before
        shutil.rmtree(data / "view")
        assert answers(data) == before
