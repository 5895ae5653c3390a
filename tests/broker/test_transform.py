"""``broker.transform`` and ``tx.state``: each record's effect exactly once, also on what is remembered."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_overloads, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import logbroker
from logbroker import InvalidRequestError, Message, StorageFailedError
from logbroker.broker import Broker
from logbroker.transaction_state import StateTable, TransactionState, state_topic
from logbroker_storage.log_reader import LogReader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def broker(path: Path) -> Iterator[Broker]:
    with logbroker.open(path) as broker:
        broker.create_topic("raw", partitions=2)
        broker.create_topic("clean")
        yield broker


def fill(broker: Broker, *messages: Message) -> None:
    with broker.producer() as producer:
        producer.send_many("raw", list(messages))


def pairs(broker: Broker, topic: str = "clean") -> list[tuple[bytes | None, bytes | None]]:
    with broker.consumer(topic) as consumer:
        return [(record.key, record.value) for record in consumer.poll(10_000, 0)]


def run(broker: Broker, function, **options) -> int:
    options = {"group": "g", "idle_timeout": 0.3} | options
    return broker.transform("raw", "clean", function=function, **options)


# Functions ----------------------------------------------------------------------------------------------


def test_a_value_keeps_its_key(broker):
    fill(broker, Message(b"a", b"k"), Message(b"b"))
    assert run(broker, lambda record: record.value.upper()) == 2
    assert sorted(pairs(broker), key=str) == [(None, b"B"), (b"k", b"A")]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda record: None, []),
        (lambda record: Message(b"x", b"other"), [(b"other", b"x")]),
        (lambda record: [b"1", Message(b"2")], [(b"k", b"1"), (None, b"2")]),
        (lambda record: (value for value in (b"1", b"2")), [(b"k", b"1"), (b"k", b"2")]),
    ],
)
def test_a_function_returns_none_one_or_several(broker, function, expected):
    fill(broker, Message(b"a", b"k"))
    assert run(broker, function) == 1
    assert pairs(broker) == expected
    assert run(broker, function) == 0


@pytest.mark.parametrize("output", ["text", {b"a": b"b"}, 7, [b"a", "b"]])
def test_anything_else_is_refused_and_the_batch_taken_back(broker, output):
    fill(broker, Message(b"a", b"k"))
    with pytest.raises(InvalidRequestError, match="Message"):
        run(broker, lambda record: output)
    assert pairs(broker) == []
    assert run(broker, lambda record: b"good") == 1


def test_what_the_function_raises_takes_the_batch_back(broker):
    fill(broker, *[Message(b"%d" % number, b"k") for number in range(10)])
    seen = []

    def third_time_lucky(record):
        seen.append(record.offset)
        if record.offset == 5 and len(seen) < 10:
            raise ZeroDivisionError
        return record.value

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run(broker, third_time_lucky, max_records=4)
    assert run(broker, third_time_lucky, max_records=4) == 6
    assert [value for _, value in pairs(broker)] == [b"%d" % number for number in range(10)]


def test_it_stops_after_the_batch_at_hand(broker):
    stop = threading.Event()
    thread = threading.Thread(
        target=run, args=(broker, lambda record: b"x"), kwargs={"stop": stop, "idle_timeout": None}
    )
    thread.start()
    fill(broker, Message(b"a"))
    with broker.consumer("clean") as consumer:
        assert len(consumer.poll(1, 10)) == 1
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


class Closing:
    """A transform in a thread whose broker is closed while it runs."""

    def __init__(self, broker: Broker, function, **options) -> None:
        self._broker = broker
        self._outcome: list[object] = []
        self._thread = threading.Thread(target=self._run, args=(function,), kwargs=options)
        self._thread.start()

    def _run(self, function, **options) -> None:
        try:
            self._outcome.append(run(self._broker, function, idle_timeout=None, **options))
        except BaseException as error:
            self._outcome.append(type(error))

    def outcome(self) -> object:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self._outcome[0]


def test_closing_the_broker_ends_one_that_waits(broker):
    running = Closing(broker, lambda record: record.value)
    fill(broker, Message(b"a"))
    with broker.consumer("clean") as consumer:
        assert len(consumer.poll(1, 10)) == 1  # it has begun, and nothing more comes
    broker.close()
    assert running.outcome() is logbroker.ClosedError


@pytest.mark.parametrize("options", [{}, {"dead_letter": "dead"}])
@pytest.mark.parametrize("uses_state", [False, True])
def test_closing_the_broker_ends_one_at_work_and_takes_the_batch_back(broker, path, options, uses_state):
    """What the closing made of its transaction is neither the record's fault nor the function's."""
    broker.create_topic("dead")
    fill(broker, Message(b"a"))
    at_work, go_on = threading.Event(), threading.Event()

    def slow(record) -> bytes:
        at_work.set()
        go_on.wait(20)
        return b"x"

    def slow_with_state(record, state) -> bytes:
        value = slow(record)
        state.put(b"k", b"v")
        return value

    running = Closing(broker, slow_with_state if uses_state else slow, **options)
    assert at_work.wait(20)
    broker.close()
    go_on.set()
    assert running.outcome() is logbroker.ClosedError
    with logbroker.open(path) as again:
        assert run(again, lambda record: record.value) == 1
        assert (pairs(again), pairs(again, "dead")) == ([(None, b"a")], [])


def test_members_share_the_partitions(broker):
    threads = [
        threading.Thread(target=run, args=(broker, lambda record: record.value), kwargs={"idle_timeout": 2.0})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wanted = [b"%d" % number for number in range(300)]
    for first in range(0, 300, 50):
        fill(broker, *[Message(value, value) for value in wanted[first : first + 50]])
    for thread in threads:
        thread.join(60)
    assert sorted(int(value) for _, value in pairs(broker)) == list(range(300))


def test_a_missing_target_and_a_wrong_function_are_told_at_once(broker):
    with pytest.raises(logbroker.TopicNotFoundError):
        broker.transform("raw", "nowhere", group="g", function=len)
    with pytest.raises(InvalidRequestError, match="function"):
        run(broker, "upper")


def test_the_longest_names_are_no_obstacle(path):
    topic, group = "t" * 249, "g" * 240
    with logbroker.open(path) as broker:
        broker.create_topic(topic)
        broker.create_topic("clean")
        with broker.producer() as producer:
            producer.send(topic, b"a", key=b"k")
        assert broker.transform(topic, "clean", group=group, function=count, idle_timeout=0.3) == 1
        assert pairs(broker) == [(b"k", b"1")]


# State --------------------------------------------------------------------------------------------------


def count(record, state):
    number = int(state.get(record.key, b"0")) + 1
    state.put(record.key, b"%d" % number)
    return b"%d" % number


def test_state_is_remembered_from_batch_to_batch(broker):
    fill(broker, *[Message(b"x", key) for key in (b"a", b"b", b"a", b"a")])
    run(broker, count, max_records=1)
    fill(broker, Message(b"x", b"a"))
    run(broker, count)
    assert [value for key, value in pairs(broker) if key == b"a"] == [b"1", b"2", b"3", b"4"]
    assert broker.topics() == ["clean", "raw"]


def test_an_abort_takes_the_state_back_too(broker):
    with broker.transaction("t") as tx:
        tx.state[b"kept"] = b"1"
    with pytest.raises(ZeroDivisionError), broker.transaction("t") as tx:  # noqa: PT012 (it passes through the block)
        tx.state[b"kept"] = b"2"
        tx.state[b"lost"] = b"3"
        1 / 0  # noqa: B018
    with broker.transaction("t") as tx:
        assert list(tx.state.range()) == [(b"kept", b"1")]
        assert b"lost" not in tx.state
        with pytest.raises(KeyError):
            tx.state[b"lost"]


def test_each_id_has_a_state_of_its_own(broker):
    with broker.transaction("one") as one, broker.transaction("two") as two:
        one.state[b"k"] = b"1"
        two.state[b"k"] = b"2"
    with broker.transaction("one") as one, broker.transaction("two") as two:
        assert (one.state[b"k"], two.state[b"k"]) == (b"1", b"2")


@pytest.mark.parametrize("end", ["closed", "view deleted"])
def test_state_outlives_the_process(path, end):
    with logbroker.open(path) as broker:
        for number in range(3):
            with broker.transaction("t") as tx:
                tx.state[b"n"] = b"%d" % number
                tx.state[b"%d" % number] = b"x" * 5000
                tx.state.delete(b"0")
    if end == "view deleted":
        shutil.rmtree(path / "view")
    with logbroker.open(path) as broker, broker.transaction("t") as tx:
        assert dict(tx.state.range()) == {b"n": b"2", b"1": b"x" * 5000, b"2": b"x" * 5000}


def test_state_outlives_a_sync_of_its_log_that_failed(path):
    """Whoever opens next reads the log back from the disk, and applies it anew."""
    broker = logbroker.open(path)
    with broker.transaction("t") as tx:
        tx.state[b"n"] = b"1"
    with broker.transaction("t") as tx:
        assert tx.state[b"n"] == b"1"
    log = broker._directory.log(state_topic("t"), 0)
    with log.append_lock:
        log.syncing.refused(OSError(errno.EIO, "refused"))
    with pytest.raises(StorageFailedError):
        broker.close()
    with logbroker.open(path) as broker, broker.transaction("t") as tx:
        assert tx.state[b"n"] == b"1"


def test_a_state_is_over_with_its_transaction(broker):
    with broker.transaction("t") as tx:
        state = tx.state
        state[b"a"] = b"b"
    with pytest.raises(InvalidRequestError, match="ended"):
        state.get(b"a")
    with pytest.raises(InvalidRequestError, match="committed"):
        tx.state  # noqa: B018


@pytest.mark.parametrize("key", [b"", b"x" * 481, "text", None])
def test_keys_are_checked(broker, key):
    with broker.transaction("t") as tx, pytest.raises(InvalidRequestError, match="480"):
        tx.state.put(key, b"v")


@pytest.mark.parametrize("value", [None, "text", 7, bytearray(b"x")])
def test_values_are_checked(broker, value):
    with broker.transaction("t") as tx, pytest.raises(InvalidRequestError, match="bytes"):
        tx.state.put(b"k", value)


def test_two_that_bring_the_state_up_to_date_at_once_leave_nothing_out(broker, monkeypatch):
    """The other one, a holder that was fenced say, has applied half of what this one has read."""
    for number in range(6):
        with broker.transaction("t") as tx:
            tx.state[b"%d" % number] = b"%d" % number * 100
    directory = broker._directory
    table = StateTable(directory, "t")
    table.catch_up()
    key = table._log.key
    with directory.view.write() as transaction:  # as before any of it was applied
        directory.view.put_meta_int(transaction, b"state\0" + key, 0)
        for number in range(6):
            transaction.delete(key + b"%d" % number, db=directory.view.tables["state"])
    read, reads = LogReader.read, iter([True])

    def read_while_another_applies(reader, max_bytes=1 << 20):
        batches = read(reader, 600)
        if next(reads, False):
            directory.view.state.apply(key, [(b"0", b"0" * 100)], 0, 2)
        return batches

    monkeypatch.setattr(LogReader, "read", read_while_another_applies)
    table.catch_up()
    assert dict(table.items(b"", None)) == {b"%d" % number: b"%d" % number * 100 for number in range(6)}


def test_a_type_checker_takes_a_value_with_a_default_for_bytes():
    """As ``int(state.get(key, b"0"))`` wants it."""
    returned = [get_type_hints(overload)["return"] for overload in get_overloads(TransactionState.get)]
    assert returned == [bytes | None, bytes]


KEYS = st.binary(min_size=1, max_size=3)
CHANGES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=4)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    transactions=st.lists(st.tuples(CHANGES, st.booleans()), max_size=6),
    start=KEYS,
    end=st.none() | KEYS,
    prefix=KEYS,
)
def test_the_state_is_a_sorted_mapping(tmp_path_factory, transactions, start, end, prefix):
    with logbroker.open(tmp_path_factory.mktemp("state") / "data") as broker:
        model: dict[bytes, bytes] = {}
        for changes, commits in transactions:
            tx = broker.transaction("t")
            seen = dict(model)
            for key, value in changes:
                if value is None:
                    tx.state.delete(key)
                    seen.pop(key, None)
                else:
                    tx.state[key] = value
                    seen[key] = value
                assert tx.state.get(key) == value
            in_range = [
                item for item in sorted(seen.items()) if item[0] >= start and (end is None or item[0] < end)
            ]
            assert list(tx.state.range(start, end)) == in_range
            assert list(tx.state.prefix(prefix)) == [
                item for item in sorted(seen.items()) if item[0].startswith(prefix)
            ]
            if commits:
                tx.commit()
                model = seen
            else:
                tx.abort()
        with broker.transaction("t") as tx:
            assert dict(tx.state.range()) == model


@pytest.mark.parametrize("source", ["raw", "r*"])
def test_a_transform_that_would_read_what_it_writes_is_refused(broker, source):
    fill(broker, Message(b"a"))
    with pytest.raises(InvalidRequestError, match="without end"):
        broker.transform(source, "raw", group="g", function=lambda record: record.value, idle_timeout=0.3)
    assert pairs(broker, "raw") == [(None, b"a")]
