"""Transformations: what an expression and a pipeline take for a record, and a run from topic to topic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

import logbroker
from logbroker import Message
from logbroker.records import Record

from .conftest import seconds

PIPELINE = {
    "step": [
        {"kind": "decode", "format": "json"},
        {"kind": "rename", "fields": {"actor": "who", "type": "kind"}},
        {"kind": "encode", "format": "json"},
    ]
}

pytestmark = pytest.mark.usefixtures("one_core")


def event(number: int) -> bytes:
    """320 bytes of JSON, as a hosting service tells of a push."""
    return msgspec.json.encode(
        {
            "id": str(number),
            "type": "PushEvent",
            "actor": {"id": number, "login": f"alice{number}", "url": "https://example.org/users/alice"},
            "repo": {"id": number, "name": "alice/tools"},
            "payload": {
                "push_id": number,
                "size": 1,
                "ref": "refs/heads/main",
                "commits": [{"sha": "ab" * 20, "message": "Mend it"}],
            },
            "public": True,
            "created_at": "2026-01-01T00:00:00Z",
        }
    )


def events(count: int) -> list[Record]:
    return [
        Record("raw", 0, number, 1_700_000_000_000, b"%d" % number, event(number)) for number in range(count)
    ]


@pytest.mark.parametrize(
    "text",
    ["key == 'alice'", "json.actor.login.startsWith('alice')", "size(json) > 3"],
    ids=["key", "field", "json"],
)
def test_expression(benchmark: Any, records: int, text: str) -> None:
    """``field`` builds one field of the JSON, ``json`` all of it."""
    matches = logbroker.compile_expression(text).matches
    given = events(records // 10)
    benchmark.pedantic(seconds, args=(lambda: [matches(record) for record in given],), rounds=3)
    benchmark.extra_info["us_per_record"] = round(benchmark.stats.stats.median / len(given) * 1e6, 2)


def test_pipeline(benchmark: Any, records: int) -> None:
    """JSON, decoded, two fields renamed, encoded."""
    apply = logbroker.load_pipeline(PIPELINE).apply
    given = events(records // 10)
    benchmark.pedantic(seconds, args=(lambda: [apply(record) for record in given],), rounds=3)
    benchmark.extra_info["records_per_s"] = round(len(given) / benchmark.stats.stats.median)


def test_transform_by_a_pipeline(benchmark: Any, tmp_path: Path, records: int) -> None:
    """The same from a topic to another, 500 records a transaction, each of them on the disk before the next."""
    count = records // 10
    with logbroker.open(tmp_path / "data") as broker:
        for topic in ("raw", "clean", "dead"):
            broker.create_topic(topic)
        with broker.producer() as producer:
            producer.send_many("raw", [Message(event(number), b"%d" % number) for number in range(count)])

        def run() -> int:
            return broker.transform(
                "raw", "clean", group="g", function=PIPELINE, dead_letter="dead", idle_timeout=0.0
            )

        assert benchmark.pedantic(run, rounds=1) == count
    benchmark.extra_info["records_per_s"] = round(count / benchmark.stats.stats.median)
