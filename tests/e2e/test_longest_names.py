"""Names as long as they may be work everywhere, and longer ones are refused before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import logbroker

TOPIC = "T" * 249
NAMES = ["n" * 240, "ü" * 120, "/" * 240]
TOO_LONG = ["n" * 241, "ü" * 121, "n" * 10_000]


@pytest.mark.parametrize("name", NAMES, ids=["ascii", "two bytes", "quoted"])
def test_the_longest_names_of_a_topic_group_and_producer_work(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    for round_number in range(2):
        with logbroker.open(data) as broker:
            broker.create_topic(TOPIC, partitions=2, exist_ok=True)
            with broker.producer(name=name) as producer:
                producer.send(TOPIC, b"value", partition=1, sequence=round_number).result()
            with broker.consumer(TOPIC, group=name, start="earliest") as consumer:
                while not (records := consumer.poll(timeout=1.0)):
                    pass
                assert [record.offset for record in records] == [round_number]
                consumer.commit()
            assert broker.groups() == [name]
            assert broker.group(name).lag == 0
        shutil.rmtree(data / "view")
    with logbroker.open(data) as broker:
        broker.delete_topic(TOPIC)
        assert broker.topics() == []
    assert [path.name for path in (data / "logs").iterdir() if path.is_dir()] == ["__journal-0"]


@pytest.mark.parametrize("name", TOO_LONG, ids=["ascii", "two bytes", "very long"])
def test_a_name_that_is_too_long_is_refused_and_harms_nothing(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t")
        with pytest.raises(logbroker.InvalidRequestError):
            broker.producer(name=name)
        with pytest.raises(logbroker.InvalidRequestError):
            broker.consumer("t", group=name)
    shutil.rmtree(data / "view")
    with logbroker.open(data) as broker:
        assert broker.topics() == ["t"]
        assert broker.groups() == []
