"""``logbroker-inspect transactions``: what became of each, told from the files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import logbroker
from logbroker_tools import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert cli.run(["transactions", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def states(rows: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [
        (row["topic"], row["partition"], row["transactional_id"], row["state"], row["records"])
        for row in rows
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One committed over two partitions, one aborted, one left open by a process that died."""
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("out", partitions=2)
        with broker.transaction("good") as tx:
            tx.send_many("out", [b"a", b"b"], partition=0)
            tx.send("out", b"c", partition=1)
        with broker.transaction("bad") as tx:
            tx.send("out", b"d", partition=0).result(5)
            tx.abort()
    leave_open = f"""
import os, logbroker
broker = logbroker.open({str(data)!r})
broker.transaction("left").send("out", b"e", partition=1).result(5)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", leave_open], check=True)
    return data


def test_open_committed_and_aborted_transactions_are_shown(data, capsys):
    rows = run(capsys, str(data), "--topic", "out")
    assert states(rows) == [
        ("out", 0, "good", "committed", 2),
        ("out", 0, "bad", "aborted", 1),
        ("out", 1, "good", "committed", 1),
        ("out", 1, "left", "open", 1),
    ]
    assert (rows[0]["first_offset"], rows[0]["last_offset"]) == (0, 2)
    assert rows[0]["producer_id"] == rows[2]["producer_id"]
    assert rows[3]["ended_ms"] is None
    assert rows[0]["began_ms"] <= rows[0]["ended_ms"]


def test_a_decision_whose_marker_is_missing_is_told(data, capsys):
    die_behind_the_decision = f"""
import os, logbroker
from logbroker_storage.partition_log import PartitionLog
broker = logbroker.open({str(data)!r})
tx = broker.transaction("half")
tx.send("out", b"f", partition=0).result(5)
PartitionLog.append_marker = lambda *_, **__: os._exit(0)
tx.commit()
"""
    subprocess.run([sys.executable, "-c", die_behind_the_decision], check=True)
    rows = run(capsys, str(data), "--topic", "out", "--partition", "0")
    assert states(rows)[-1] == ("out", 0, "half", "commit decided", 1)
    with logbroker.open(data):
        pass
    rows = run(capsys, str(data), "--topic", "out", "--partition", "0")
    assert states(rows)[-1] == ("out", 0, "half", "committed", 1)


def test_one_segment_is_enough(data, capsys):
    folder = data / "logs" / "out-0"
    (segment,) = [name for name in os.listdir(folder) if name.endswith(".log")]
    rows = run(capsys, str(folder / segment))
    assert [(row["transactional_id"], row["state"]) for row in rows] == [
        (None, "committed"),
        (None, "aborted"),
    ]


def test_verify_finds_nothing_wrong_with_transactions(data):
    assert cli.run(["verify", str(data)]) == 0
