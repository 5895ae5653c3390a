"""``broker.transform`` with pipelines: exactly once, and dead letters in the same transaction."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logbroker
from logbroker import InvalidRequestError, Message, TransformError
from logbroker.broker import Broker
from logbroker.dead_letters import DEAD_LETTER_HEADERS, dead_letter_message, without_dead_letter_headers
from logbroker.records import Record
from logbroker.transform import TransformProgress
from logbroker_storage.record_expiry import record_ttl_ms

from .conftest import JSON_IN, JSON_OUT, a_record

PIPELINE = {"step": [JSON_IN, {"kind": "rename", "fields": {"a": "b"}}, JSON_OUT]}
Fill = Callable[..., None]
Read = Callable[[str], list[Record]]


def run(broker: Broker, function: Any, **options: Any) -> int:
    return broker.transform(
        "raw", "clean", function=function, **({"group": "g", "idle_timeout": 0.3} | options)
    )


def numbers(count: int) -> list[Message]:
    return [Message(b'{"a":%d}' % number, b"k") for number in range(count)]


# Pipelines ----------------------------------------------------------------------------------------------


def test_a_pipeline_is_run_from_a_file_a_mapping_or_as_it_is(
    broker: Broker, fill: Fill, read: Read, tmp_path: Path
) -> None:
    path = tmp_path / "p.toml"
    path.write_text(logbroker.load_pipeline(PIPELINE).source or "")
    for group, function in enumerate((str(path), path, PIPELINE, logbroker.load_pipeline(PIPELINE))):
        if not group:
            fill(Message(b'{"a":1}', b"k", {"h": b"1"}))
        assert run(broker, function, group=f"g{group}") == 1
    records = read("clean")
    assert [(record.key, record.value, record.headers) for record in records] == [
        (b"k", b'{"b":1}', [("h", b"1")])
    ] * 4
    assert len({record.timestamp_ms for record in records}) == 1, "the record's own"


def test_what_cannot_be_loaded_is_told_at_once(broker: Broker) -> None:
    for wrong in ("nothing.toml", {"step": []}, 7):
        with pytest.raises(InvalidRequestError, match="function="):
            run(broker, wrong)


def test_without_a_dead_letter_the_error_ends_it_and_it_begins_there_again(
    broker: Broker, fill: Fill, read: Read
) -> None:
    fill(*numbers(3), Message(b"{", b"k"), *numbers(2))
    for _ in range(2):
        with pytest.raises(TransformError, match=r"step 1 decode json .* at offset 3: the value is not JSON"):
            run(broker, PIPELINE, max_records=3)
    assert [record.value for record in read("clean")] == [b'{"b":0}', b'{"b":1}', b'{"b":2}']


def test_a_time_to_live_goes_on_in_the_target(broker: Broker, fill: Fill, read: Read) -> None:
    fill(Message(b'{"a":1}', b"k", ttl=datetime.timedelta(hours=1)), Message(b'{"a":2}', b"k"))
    seen: list[Any] = []
    assert run(broker, PIPELINE) == 2
    assert run(broker, lambda record: seen.append(record.headers), group="other") == 2
    assert seen == [[], []], "the broker's own header is not for functions"
    with broker.consumer("clean") as consumer:
        consumer.keep_ttl_headers()
        assert [record_ttl_ms(record) for record in consumer.poll(10, 0)] == [3_600_000, -1]
    assert [record.headers for record in read("clean")] == [[], []]


# Dead letters -------------------------------------------------------------------------------------------


def letters(read: Read) -> list[tuple[bytes | None, dict[str, bytes | None]]]:
    return [(record.value, dict(record.headers)) for record in read("dead")]


def test_a_record_that_cannot_be_transformed_is_buried_and_the_pipeline_goes_on(
    broker: Broker, fill: Fill, read: Read
) -> None:
    fill(*numbers(2), Message(b"{", b"k", {"h": b"1"}), *numbers(1), Message(b"]", b"k"))
    progress = TransformProgress()
    assert run(broker, PIPELINE, dead_letter="dead", progress=progress) == 5
    assert progress == TransformProgress(records=5, dead_letters=2)
    assert [record.value for record in read("clean")] == [b'{"b":0}', b'{"b":1}', b'{"b":0}']
    first, second = letters(read)
    assert [first[0], second[0]] == [b"{", b"]"]
    source = next(record for record in read("raw") if record.value == b"{")
    assert first[1] == {
        "h": b"1",
        "x-dead-letter-topic": b"raw",
        "x-dead-letter-partition": b"%d" % source.partition,
        "x-dead-letter-offset": b"2",
        "x-dead-letter-timestamp": b"%d" % source.timestamp_ms,
        "x-dead-letter-by": b"g",
        "x-dead-letter-reason": b"transform-failed",
        "x-dead-letter-error": first[1]["x-dead-letter-error"],
    }
    assert b"step 1 decode json" in (first[1]["x-dead-letter-error"] or b"")
    assert [record.key for record in read("dead")] == [b"k", b"k"]
    assert run(broker, PIPELINE, dead_letter="dead") == 0


def test_what_a_function_raises_is_about_the_record(broker: Broker, fill: Fill, read: Read) -> None:
    fill(*numbers(4))
    assert run(broker, lambda record: b"%d" % (1 // record.offset), dead_letter="dead") == 4
    assert [record.value for record in read("clean")] == [b"1", b"0", b"0"]
    ((value, headers),) = letters(read)
    assert value == b'{"a":0}'
    assert (headers["x-dead-letter-error"] or b"").startswith(b"ZeroDivisionError")


def test_what_a_function_returns_in_error_is_buried_too(broker: Broker, fill: Fill, read: Read) -> None:
    fill(*numbers(2))
    assert run(broker, lambda record: "text" if record.offset else b"x", dead_letter="dead") == 2
    assert len(read("clean")) == len(read("dead")) == 1


@pytest.mark.parametrize("position", [0, 1])
def test_what_the_target_refuses_is_buried_without_a_part_of_it(
    broker: Broker, fill: Fill, read: Read, position: int
) -> None:
    """Also where another message of the record was taken before."""
    fill(*numbers(3))

    def too_large(record: Record) -> list[bytes]:
        outputs = [b"small", b"small"]
        if record.offset == 1:
            outputs[position] = b"x" * (2 << 20)
        return outputs

    progress = TransformProgress()
    assert run(broker, too_large, dead_letter="dead", progress=progress) == 3
    assert progress == TransformProgress(records=3, dead_letters=1)
    assert [record.value for record in read("clean")] == [b"small"] * 4
    ((value, headers),) = letters(read)
    assert value == b'{"a":1}'
    assert b"max.message.bytes" in (headers["x-dead-letter-error"] or b"")


def test_a_message_with_a_header_of_the_brokers_is_refused_and_buried(
    broker: Broker, fill: Fill, read: Read
) -> None:
    fill(*numbers(1))
    assert run(broker, lambda record: Message(b"x", headers={"logbroker.x": b""}), dead_letter="dead") == 1
    assert (read("clean"), len(read("dead"))) == ([], 1)


def test_what_a_failed_function_did_to_the_state_is_taken_back(
    broker: Broker, fill: Fill, read: Read
) -> None:
    fill(*numbers(6))

    def count(record: Record, state: Any) -> bytes:
        number = int(state.get(b"n", b"0")) + 1
        state.put(b"n", b"%d" % number)
        if record.offset in (2, 3):
            raise ValueError("after the state was changed")
        return b"%d" % number

    assert run(broker, count, dead_letter="dead") == 6
    assert [record.value for record in read("clean")] == [b"1", b"2", b"3", b"4"]
    assert [value for value, _ in letters(read)] == [b'{"a":2}', b'{"a":3}']


def test_what_is_about_no_record_ends_it(broker: Broker, fill: Fill, read: Read) -> None:
    fill(*numbers(1))

    def failing(record: Record) -> bytes:
        raise logbroker.StorageFailedError("the disk is gone")

    with pytest.raises(logbroker.StorageFailedError):
        run(broker, failing, dead_letter="dead")
    assert read("dead") == []


def test_dead_letters_have_a_topic_of_their_own_that_exists(broker: Broker) -> None:
    with pytest.raises(logbroker.TopicNotFoundError):
        run(broker, PIPELINE, dead_letter="nowhere")
    with pytest.raises(InvalidRequestError, match="another topic"):
        run(broker, PIPELINE, dead_letter="raw")
    with pytest.raises(InvalidRequestError, match="another topic"):
        broker.transform("d*", "clean", group="g", function=PIPELINE, dead_letter="dead")


def test_members_bury_each_record_once(broker: Broker, fill: Fill, read: Read) -> None:
    messages = [
        Message(b"{" if number % 5 == 0 else b'{"a":%d}' % number, b"%d" % number) for number in range(200)
    ]
    fill(*messages)
    options = {"dead_letter": "dead", "max_records": 7, "idle_timeout": 1.5}
    threads = [threading.Thread(target=run, args=(broker, PIPELINE), kwargs=options) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(int(record.key or b"") for record in read("dead")) == list(range(0, 200, 5))
    assert len(read("clean")) == 160


def test_asyncio_runs_the_same(tmp_path: Path) -> None:
    async def main() -> tuple[int, list[bytes | None], list[bytes | None]]:
        async with logbroker.open_async(tmp_path / "async") as broker:
            for topic in ("raw", "clean", "dead"):
                await broker.create_topic(topic)
            async with broker.producer() as producer:
                await producer.send("raw", b'{"a":1}')
                await producer.send("raw", b"{")
            done = await broker.transform(
                "raw", "clean", group="g", function=PIPELINE, dead_letter="dead", idle_timeout=0.3
            )
            values = []
            for topic in ("clean", "dead"):
                async with broker.consumer(topic) as consumer:
                    values.append([record.value for record in await consumer.poll(10, 1.0)])
            return done, values[0], values[1]

    assert asyncio.run(main()) == (2, [b'{"b":1}'], [b"{"])


# The letter itself --------------------------------------------------------------------------------------


def test_a_letter_keeps_key_value_and_headers_and_can_be_sent_again() -> None:
    record = a_record(b"v", header_pairs=(("h", b"1"), ("logbroker.ttl.ms", b"\0" * 8), ("h", None)))
    letter = dead_letter_message(record, reason="limit", error=None, by="workers")
    assert (letter.value, letter.key, letter.ttl, letter.timestamp) == (b"v", b"alice", None, None)
    pairs = list(letter.headers or ())
    assert pairs[:2] == [("h", b"1"), ("h", None)]
    assert [name for name, _ in pairs[2:]] == list(DEAD_LETTER_HEADERS[:6])
    died_again = a_record(b"v", offset=9, header_pairs=tuple(pairs))
    again = dict(
        dead_letter_message(died_again, reason="rejected", error="x" * 9000, by="é\udcff").headers or ()
    )
    assert again["x-dead-letter-offset"] == b"9"  # type: ignore[index]
    assert len(again["x-dead-letter-error"] or b"") == 2000  # type: ignore[index]
    assert again["x-dead-letter-by"] == "é?".encode()  # type: ignore[index]
    assert without_dead_letter_headers(died_again) == [("h", b"1"), ("h", None)]
