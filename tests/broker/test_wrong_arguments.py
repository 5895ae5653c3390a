"""What is no argument of a call is refused with a typed error that says what to give, by both kinds of broker."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
from collections.abc import Iterator
from typing import Any

import pytest

import logbroker
from logbroker.errors import (
    FileSystemError,
    InvalidConfigError,
    InvalidRequestError,
    InvalidTopicError,
    LogbrokerError,
)

NAN = math.nan

# Whose method, its arguments, the error, and what the message says.
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], type[LogbrokerError], str]] = [
    ("broker.create_topic", (5,), {}, InvalidTopicError, "a topic's name is text, not int: 5"),
    ("broker.create_topic", ("n",), {"config": ["x"]}, InvalidRequestError, "a mapping of keys to values"),
    ("broker.create_topic", ("n",), {"config": []}, InvalidRequestError, "a mapping of keys to values"),
    ("broker.create_topic", ("n",), {"config": {5: 1}}, InvalidConfigError, "key is text, not int: 5"),
    ("broker.create_topic", ("n", 2.5), {}, InvalidTopicError, "partitions, not 2.5"),
    ("broker.alter_topic", ("t",), {"config": "x"}, InvalidRequestError, "a mapping of keys to values"),
    ("broker.topic", (None,), {}, InvalidTopicError, "a topic's name is text, not NoneType"),
    ("broker.topic", (["t"],), {}, InvalidTopicError, r"a topic's name is text, not list: \['t'\]"),
    ("broker.delete_topic", (5,), {}, InvalidTopicError, "a topic's name is text, not int: 5"),
    ("broker.delete_records", (5, {}), {}, InvalidTopicError, "a topic's name is text, not int: 5"),
    ("broker.delete_records", ("t", 5), {}, InvalidRequestError, "a mapping of partitions to offsets"),
    ("broker.delete_records", ("t", {"0": 1}), {}, InvalidRequestError, "a partition is an integer, not '0'"),
    ("broker.delete_records", ("t", {0: 2.5}), {}, InvalidRequestError, r"before\[0\]=2.5: give it a whole"),
    ("broker.reset_group", ("g", 0), {"topics": 5}, InvalidRequestError, "give topics in a list"),
    ("broker.reset_group", ("g", 0), {"topics": [5]}, InvalidTopicError, "text, not int: 5"),
    ("broker.reset_group", ("g", True), {"topics": "t", "shift": True}, InvalidRequestError, "not True"),
    ("broker.subscription", (5,), {}, InvalidRequestError, "a subscription's name is text, not int: 5"),
    ("broker.reset_subscription", ("s", 0), {"topics": 5}, InvalidRequestError, "give topics in a list"),
    ("broker.create_subscription", ("n",), {"topic": 5}, InvalidRequestError, "give topics in a list"),
    ("broker.unbind", (5,), {}, InvalidRequestError, "a binding's name is text, not int: 5"),
    ("broker.unbind", ("\ud800",), {}, InvalidRequestError, "cannot be a binding's name"),
    ("broker.bind", ("t", "u"), {"headers": {"\ud800": "x"}}, InvalidRequestError, "no UTF-8 form"),
    (
        "broker.bind",
        ("t", "u"),
        {"headers": {"x": "\ud800"}},
        InvalidRequestError,
        "'x' .* has no UTF-8 form",
    ),
    ("broker.explain_route", ("t",), {"at": 5}, InvalidRequestError, r"at= is a \(partition, offset\)"),
    ("broker.explain_route", ("t",), {"at": (0, "x")}, InvalidRequestError, "offset='x': give it a whole"),
    (
        "broker.run_router",
        (),
        {"idle_timeout": NAN},
        InvalidRequestError,
        "idle_timeout=nan: give it seconds",
    ),
    ("broker.run_router", (), {"max_records": 2.5}, InvalidRequestError, "max_records=2.5: give it a whole"),
    ("producer.send", (5, b""), {}, InvalidTopicError, "a topic's name is text, not int: 5"),
    ("producer.send", (["t"], b"v"), {}, InvalidTopicError, "a topic's name is text, not list"),
    ("producer.send", (["t"], b"v"), {"key": b"k"}, InvalidTopicError, "a topic's name is text, not list"),
    ("producer.send", (["t"], b"v"), {"headers": []}, InvalidTopicError, "a topic's name is text, not list"),
    ("producer.send", ({}, b"v"), {"partition": 0}, InvalidTopicError, "a topic's name is text, not dict"),
    ("producer.send", ("t", "v"), {}, InvalidRequestError, "bytes or None, not str; encode it first"),
    ("producer.send", ("t", b"v"), {"partition": [0]}, InvalidRequestError, r"an integer, not \[0\]"),
    ("producer.send", ("t", b"v"), {"partition": True}, InvalidRequestError, "an integer, not True"),
    ("producer.send_many", (5, []), {}, InvalidTopicError, "a topic's name is text, not int: 5"),
    ("producer.send_many", ("t", 5), {}, InvalidRequestError, "give values in a list"),
    ("producer.send_many", ("t", [b"v"]), {"partition": 0.0}, InvalidRequestError, "an integer, not 0.0"),
    ("producer.flush", (), {"timeout": NAN}, InvalidRequestError, "timeout=nan: give it seconds"),
    ("named.last_sequence", ("t", None), {}, InvalidRequestError, "partition=None: give it a whole number"),
    ("consumer.poll", (2.5,), {}, InvalidRequestError, "max_records=2.5: give it a whole number from 1 on"),
    ("consumer.poll", (True,), {}, InvalidRequestError, "max_records=True: give it a whole number"),
    ("consumer.seek", ((), 0), {}, InvalidRequestError, r"a \(topic, number\), not \(\)"),
    ("consumer.seek", (False, 0), {}, InvalidRequestError, r"a number, or a \(topic, number\), not False"),
    ("consumer.pause", (("t", "0"),), {}, InvalidRequestError, r"a \(topic, number\)"),
    ("consumer.resume", (0,), {}, InvalidRequestError, r"a \(topic, number\), not 0"),
    ("queue.receive_many", (2.5,), {}, InvalidRequestError, "max_messages=2.5: give it a whole number"),
    ("queue.accept", (5,), {}, InvalidRequestError, "give messages in a list, or another iterable, not 5"),
    ("queue.accept", ("handle",), {}, InvalidRequestError, "give messages in a list"),
    ("queue.accept", ([5],), {}, InvalidRequestError, "5 is no message of a queue"),
    ("queue.reject", ([], "caf\udce9"), {}, InvalidRequestError, "reason .* has no UTF-8 form"),
    ("queue.release", (None,), {}, InvalidRequestError, "give messages in a list"),
    ("tx.accept", (5,), {}, InvalidRequestError, "give messages in a list"),
    ("tx.accept", (["x"],), {}, InvalidRequestError, "that a queue.* has handed out, not 'x'"),
    ("tx.commit_offsets", (5,), {}, InvalidRequestError, "commit_offsets takes a consumer.*, not 5"),
]

# How the objects are made: what is wrong is told when they are, or when they are entered.
WRONG_TO_MAKE: list[tuple[str, tuple[Any, ...], dict[str, Any], type[LogbrokerError], str]] = [
    ("consumer", (5,), {}, InvalidRequestError, "give topics in a list, or another iterable, not 5"),
    ("consumer", ([5],), {}, InvalidTopicError, "a topic's name is text, not int: 5"),
    ("consumer", (b"t",), {}, InvalidRequestError, "give topics in a list"),
    ("consumer", ("t",), {"max_poll_records": 2.5}, InvalidRequestError, "max_poll_records=2.5"),
    ("consumer", ("t",), {"max_poll_records": NAN}, InvalidRequestError, "max_poll_records=nan"),
    ("consumer", ("t",), {"start": {"0": 1}}, InvalidRequestError, r"a partition's number, or \(topic,"),
    (
        "consumer",
        ("t",),
        {"start": {0: 1 << 63}},
        InvalidRequestError,
        "an integer from 0 to 9223372036854775807",
    ),
    ("consumer", ("t",), {"start": {0: -1}, "group": "g"}, InvalidRequestError, "an integer from 0 to"),
    ("consumer", ("t",), {"group": 5}, InvalidRequestError, "a group's name is text, not int: 5"),
    ("producer", (), {"name": 5}, InvalidRequestError, "a producer's name is text, not int: 5"),
    ("producer", (), {"linger": NAN}, InvalidRequestError, "linger=nan: give it seconds, 0 or more"),
    ("producer", (), {"linger": -0.1}, InvalidRequestError, "linger=-0.1: give it seconds"),
    ("producer", (), {"max_block": NAN}, InvalidRequestError, "max_block=nan: give it seconds"),
    ("producer", (), {"batch_bytes": NAN}, InvalidRequestError, "batch_bytes=nan: give it a whole number"),
    ("producer", (), {"buffer_bytes": math.inf}, InvalidRequestError, "buffer_bytes=inf: give it a whole"),
    ("producer", (), {"acks": 5}, InvalidRequestError, "acks=5 is not allowed"),
    ("queue", (), {"subscription": 5}, InvalidRequestError, "a subscription's name is text, not int: 5"),
    ("queue", (5,), {"subscription": "s"}, InvalidRequestError, "give topics in a list"),
    ("transaction", (5,), {}, InvalidRequestError, "a transactional id's name is text, not int: 5"),
    ("transaction", ("x",), {"timeout": NAN}, InvalidRequestError, "timeout=nan: give it a positive number"),
]


def make_topics(broker: logbroker.Broker) -> None:
    broker.create_topic("t", 2, exist_ok=True)
    broker.create_topic("u", exist_ok=True)
    broker.create_subscription("s", topic="t", exist_ok=True)


@pytest.fixture(scope="module")
def blocking(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """One of each, by name."""
    with logbroker.open(tmp_path_factory.mktemp("wrong") / "data") as broker:
        make_topics(broker)
        with (
            broker.producer() as producer,
            broker.producer(name="named") as named,
            broker.consumer("t", group="members", delivery="manual") as consumer,
            broker.queue(subscription="s") as queue,
        ):
            yield {
                "broker": broker,
                "producer": producer,
                "named": named,
                "consumer": consumer,
                "queue": queue,
            }


@pytest.mark.parametrize(("call", "given", "options", "error", "says"), WRONG)
def test_the_blocking_one_says_what_to_give(blocking, call, given, options, error, says):
    name, method = call.split(".")
    tx = blocking["broker"].transaction("tx")
    with tx, pytest.raises(error, match=says):
        getattr(blocking.get(name, tx), method)(*given, **options)


@pytest.mark.parametrize(("call", "given", "options", "error", "says"), WRONG_TO_MAKE)
def test_making_a_blocking_one_says_what_to_give(blocking, call, given, options, error, says):
    with pytest.raises(error, match=says):
        getattr(blocking["broker"], call)(*given, **options)


def test_the_asyncio_twins_say_the_same(tmp_path):
    with logbroker.open(tmp_path / "data") as broker:
        make_topics(broker)

    async def main():
        async with (
            logbroker.open_async(tmp_path / "data") as broker,
            broker.producer() as producer,
            broker.producer(name="named") as named,
            broker.consumer("t", group="members", delivery="manual") as consumer,
            broker.queue(subscription="s") as queue,
        ):
            twins = {
                "broker": broker,
                "producer": producer,
                "named": named,
                "consumer": consumer,
                "queue": queue,
            }
            for call, given, options, error, says in WRONG:
                name, method = call.split(".")
                async with broker.transaction("tx") as tx:
                    with pytest.raises(error, match=says):
                        await getattr(twins.get(name, tx), method)(*given, **options)
            for call, given, options, error, says in WRONG_TO_MAKE:
                with pytest.raises(error, match=says):
                    async with getattr(broker, call)(*given, **options):
                        pass

    asyncio.run(main())


@pytest.mark.parametrize("given", [5, None, b"data", ["data"]])
def test_a_directory_is_named_by_a_path(given):
    for opening in (logbroker.open, logbroker.open_async):
        with pytest.raises(InvalidRequestError, match=r"a path is text or a pathlib\.Path, not"):
            opening(given)


def test_a_path_has_no_nul_character():
    for opening in (logbroker.open, logbroker.open_async):
        with pytest.raises(InvalidRequestError, match="no NUL character"):
            opening("data\0")


def test_an_empty_path_is_not_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for opening in (logbroker.open, logbroker.open_async):
        with pytest.raises(InvalidRequestError, match="an empty path names no directory"):
            opening("")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_told_that_the_current_directory_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for opening in (logbroker.open, logbroker.open_async):
        with pytest.raises(FileSystemError, match=r"the current directory.* is gone") as told:
            opening("data")
        assert told.value.filename == "data"
    logbroker.open(tmp_path / "data").close()


def test_a_poll_that_was_refused_leaves_the_consumer_as_it_was(blocking):
    broker = blocking["broker"]
    with broker.producer() as producer, broker.consumer("u") as consumer:
        producer.send_many("u", [b"a", b"b", b"c"])
        producer.flush()
        for wrong in (2.5, NAN, "x"):
            with pytest.raises(InvalidRequestError):
                consumer.poll(wrong)
        assert [record.value for record in consumer.poll(2) + consumer.poll(2)] == [b"a", b"b", b"c"]


def test_a_send_that_was_refused_leaves_the_producer_as_it_was(blocking):
    producer = blocking["producer"]
    first = producer.send("u", b"a").result()
    for wrong in (5, None, ["u"], {}):
        for key in (None, b"k"):
            with pytest.raises(InvalidTopicError):
                producer.send(wrong, b"b", key=key)
    assert producer.send("u", b"c").result().offset == first.offset + 1


# Everything, with everything ------------------------------------------------------------------------------

# The arguments with which each method does nothing much. Any other value in place of one of them does something
# sensible, or is refused: it is never a TypeError from somewhere inside.
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("broker.create_topic", {"name": "t", "partitions": 1, "config": None, "exist_ok": True}),
    ("broker.topic", {"name": "t"}),
    ("broker.alter_topic", {"name": "t", "config": {}, "partitions": None}),
    ("broker.delete_topic", {"name": "nowhere"}),
    ("broker.delete_records", {"topic": "t", "before": {}}),
    ("broker.transform", {
        "source": "t", "target": "u", "group": "g", "function": len, "stop": None, "max_records": 1,
        "idle_timeout": -1, "dead_letter": None, "progress": None,
    }),
    ("broker.bind", {
        "source": "t", "target": "nowhere", "when": None, "headers": None, "headers_match": "all",
        "transform": None, "dead_letter": None, "start": "latest", "name": "b",
    }),
    ("broker.unbind", {"name": "b"}),
    ("broker.explain_route", {"topic": "t", "value": b"", "key": None, "headers": None}),
    ("broker.explain_route", {"topic": "t", "at": (0, 0)}),
    ("broker.run_router", {"stop": None, "idle_timeout": -1, "max_records": 1}),
    ("broker.group", {"name": "g"}),
    ("broker.reset_group", {"name": "g", "to": "earliest", "topics": ["t"], "dry_run": True}),
    ("broker.delete_group", {"name": "g"}),
    ("broker.create_subscription", {
        "name": "s", "topic": "t", "kind": "queue", "start": "earliest", "filter": None, "lease": 1,
        "max_deliveries": 1, "dead_letter": None, "expired": "drop",
    }),
    ("broker.subscription", {"name": "s"}),
    ("broker.pause_subscription", {"name": "none"}),
    ("broker.reset_subscription", {"name": "s", "to": "earliest", "topics": None, "dry_run": True}),
    ("broker.rename_subscription", {"name": "none", "new_name": "nobody"}),
    ("broker.delete_subscription", {"name": "none"}),
    ("broker.dead_letters", {"subscription": "s"}),
    ("broker.redrive", {"subscription": "s", "only": None, "to": None, "dry_run": True}),
    ("broker.request", {"topic": "t", "value": b"", "timeout": 0.001, "key": None, "if_nobody": "raise"}),
    ("producer.send", {"topic": "t", "value": b""}),
    ("producer.send", {"topic": "t", "value": b"", "key": b"k"}),
    ("producer.send", {"topic": "u", "value": b"", "headers": {}}),
    ("producer.send", {
        "topic": "t", "value": b"", "key": None, "headers": None, "partition": 0, "timestamp": None, "ttl": None,
        "deliver_at": None, "delay": None, "priority": 0, "message_id": None, "acks": None, "sequence": None,
    }),
    ("producer.send_many", {"topic": "t", "values": [b""], "key": None, "partition": None}),
    ("producer.send_many", {"topic": "t", "values": iter([]), "key": b"", "partition": 0}),
    ("named.last_sequence", {"topic": "t", "partition": 0}),
    ("consumer.poll", {"max_records": 1, "timeout": 0}),
    ("consumer.seek", {"partition": 0, "offset": 0, "topic": None}),
    ("consumer.seek_to", {"moment": 5}),
    ("consumer.pause", {"place": ("t", 0)}),
    ("queue.receive_many", {"max_messages": 1, "timeout": 0}),
    ("queue.accept", {"messages": []}),
    ("queue.reject", {"messages": [], "reason": "x"}),
    ("queue.release", {"messages": [], "delay": 0}),
    ("queue.give_back", {"messages": []}),
    ("queue.extend", {"messages": [], "lease": 1}),
]  # fmt: skip

ANYTHING = [
    5, -1, 2.5, NAN, 10**400, -(10**400), True, "", "x", "\ud800", b"", b"x", None, [], ["x"], [5], [None], {},
    {"x": 5}, {5: "x"}, (), ("x", "y"), ("t", 0), {1}, object(), object,
    datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1), len,
]  # fmt: skip

# With these it would wait, as asked for.
LONG = {5, 2.5, 10**400, None}
WAITS = {"timeout": LONG, "idle_timeout": LONG}


@pytest.mark.parametrize(
    ("call", "parameter"),
    [(number, parameter) for number, (_, plain) in enumerate(PLAIN) for parameter in plain],
    ids=[f"{name}-{parameter}" for name, plain in PLAIN for parameter in plain],
)
def test_nothing_is_a_bare_error_from_inside(blocking, call, parameter):
    (name, method), plain = PLAIN[call][0].split("."), PLAIN[call][1]
    for value in ANYTHING:
        if any(value is wait or value == wait for wait in WAITS.get(parameter, ())):
            continue
        with contextlib.suppress(LogbrokerError):
            getattr(blocking[name], method)(**(plain | {parameter: value}))
