"""``logbroker-inspect subscriptions`` and ``journal``: rules and progress, told from the files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import logbroker
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.events import QueueEvent
from logbroker_tools import cli


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """2,000 messages of which a queue has done some, and a stream has read ten; nobody has the directory open."""
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("jobs")
        broker.create_subscription("workers", topic="jobs", dead_letter="dead", filter='value != "7"')
        broker.create_subscription("audit", topic="jobs", kind="stream")
        broker.create_subscription("later", topic="none.*", ordered=True)
        with broker.producer() as producer:
            producer.send_many("jobs", [b"%d" % number for number in range(2000)])
        with broker.queue(subscription="workers") as queue:
            batch = queue.receive_many(1500, timeout=5.0)
            queue.accept(batch[:3])
            queue.accept(batch[1100:1200])
            batch[500].reject("no good")
            batch[501].reject("no good either")
            batch[600].release(delay=3600)
            batch[601].release()
            broker.redrive("workers", only=[(0, 0)])
            batch[1499].accept()
            with broker.consumer("jobs", group="audit") as consumer:
                assert len(consumer.poll(10, timeout=5.0)) == 10
                consumer.commit()
            broker.pause_subscription("later")
            shutil.copytree(data, tmp_path / "crashed", ignore=shutil.ignore_patterns("view"))
    return tmp_path / "crashed"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(list(arguments)) == 0
    return capsys.readouterr().out


def test_each_subscription_is_shown_with_where_it_is(data, capsys):
    rows = [line.split("\t") for line in run(capsys, "subscriptions", str(data)).splitlines()]
    assert rows == [
        ["audit", "active", "stream", "jobs", "0", "10", "-", "-", "-"],
        ["later", "paused", "queue", "-", "-", "-", "-", "-", "-"],
        ["workers", "active", "redriven", "dead", "0", "-", "1", "-", "-"],
        ["workers", "active", "queue", "jobs", "0", "3", "104", "2", "0"],
    ]


def test_json_has_the_rules(data, capsys):
    audit, later, workers = json.loads(run(capsys, "subscriptions", str(data), "--json"))
    assert (audit["kind"], audit["topics"], audit["rules"]) == ("stream", ["jobs"], {"lease_ms": 30000})
    assert (later["is_paused"], later["rules"]) == (True, {"lease_ms": 30000, "ordered": True})
    assert workers["rules"] == {"dead_letter": "dead", "filter": 'value != "7"', "lease_ms": 30000}
    assert workers["places"][1]["start_offset"] == 3
    with logbroker.open(data) as broker:
        assert broker.subscription("workers").partitions[0].start_offset == 3


def test_the_journal_shows_blocks_as_offsets(data, capsys):
    events = [json.loads(line)["event"] for line in run(capsys, "journal", str(data), "--json").splitlines()]
    blocks = [event for event in events if event is not None and event["kind"] == "queue-block"]
    last = {(event["topic"], event["block"]): event for event in blocks}
    assert last["jobs", 0]["done"] == [[7, 7], [501, 502]], "the filter passes over 7"
    attempts = {attempt["first"]: attempt for attempt in last["jobs", 0]["attempts"]}
    assert attempts.keys() == {601, 602}
    assert attempts[601]["delivery_count"] == attempts[602]["delivery_count"] == 1
    assert attempts[601]["not_before_ms"] > 0
    assert attempts[602]["not_before_ms"] is None
    assert last["jobs", 1]["done"] == [[1101, 1200], [1500, 1500]]
    assert last["dead", 0]["done"] == [[0, 0]]
    rejected = [attempt for event in blocks for attempt in event["attempts"] if attempt["is_rejected"]]
    assert {attempt["note"] for attempt in rejected} == {"no good", "no good either"}


def test_progress_without_a_subscription_is_told(tmp_path, capsys):
    directory = DataDirectory.open(str(tmp_path / "data"))
    directory.journal.record([QueueEvent("00" * 8, "jobs", 0, 7)])
    directory.close()
    (row,) = run(capsys, "subscriptions", str(tmp_path / "data")).splitlines()
    assert row.split("\t") == ["(deleted: 0000000000000000)", "-", "queue", "jobs", "0", "7", "0", "0", "0"]


def test_a_deleted_subscription_leaves_nothing(data, capsys):
    with logbroker.open(data) as broker:
        broker.delete_subscription("workers")
    names = [one["name"] for one in json.loads(run(capsys, "subscriptions", str(data), "--json"))]
    assert names == ["audit", "later"]


def test_verify_finds_nothing_wrong(data):
    assert cli.run(["verify", str(data)]) == 0
