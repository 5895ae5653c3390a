"""What a sender says of a delivery: deliver_at, delay, priority, message_id and ttl, as hidden headers."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logbroker
from logbroker import Broker, Message
from logbroker.delivery_headers import (
    DELIVER_AT_HEADER,
    PRIORITY_HEADER,
    deliver_at_ms,
    expires_at_ms,
    message_id_of,
    priority_of,
)
from logbroker.errors import InvalidRequestError
from logbroker_storage.message_ids import MESSAGE_ID_HEADER
from logbroker_storage.record_batch import Record, decode_records
from logbroker_storage.testing import ManualClock

DUE = datetime(2026, 11, 23, 10, tzinfo=UTC)
DUE_MS = int(DUE.timestamp() * 1000)


@pytest.fixture
def broker(tmp_path, clock):
    with logbroker.open(tmp_path / "data", clock=clock) as broker:
        broker.create_topic("jobs")
        yield broker


@pytest.fixture
def clock():
    return ManualClock()


def stored(broker: Broker) -> list[Record]:
    """The records of the topic as they lie in the log, the broker's headers included."""
    reader = broker._directory.log("jobs", 0).reader(0)
    return [record for batch in reader.read() for record in decode_records(batch)]


def record(*headers: tuple[str, bytes | None], timestamp_ms: int = 1000) -> Record:
    return Record("jobs", 0, 0, timestamp_ms, None, b"v", headers)


# What is stored -------------------------------------------------------------------------------------------


def test_everything_that_was_said_is_in_the_log_and_nothing_of_it_is_delivered(broker):
    with broker.producer() as producer:
        producer.send(
            "jobs",
            b"v",
            headers={"a": b"1"},
            ttl=timedelta(seconds=9),
            deliver_at=DUE,
            priority=7,
            message_id="ä-1",
        )
    [inside] = stored(broker)
    assert inside.headers == [
        ("a", b"1"),
        ("logbroker.ttl.ms", struct.pack(">q", 9000)),
        ("logbroker.deliver-at", struct.pack(">q", DUE_MS)),
        ("logbroker.priority", b"\7"),
        ("logbroker.message-id", "ä-1".encode()),
    ]
    assert (deliver_at_ms(inside), priority_of(inside), message_id_of(inside)) == (DUE_MS, 7, "ä-1")
    assert expires_at_ms(inside) == inside.timestamp_ms + 9000
    with broker.consumer("jobs", start="earliest") as consumer:
        [seen] = consumer.poll(timeout=1)
    assert seen.headers == [("a", b"1")]


def test_a_delay_counts_from_now_whatever_the_timestamp_says(broker, clock):
    with broker.producer() as producer:
        producer.send("jobs", b"v", delay=timedelta(seconds=10), timestamp=clock.now_ms() - 5000)
    assert deliver_at_ms(stored(broker)[0]) == clock.now_ms() + 10_000


def test_a_reader_of_the_stream_gets_a_record_at_once_and_in_its_place(broker):
    with broker.producer() as producer:
        producer.send("jobs", b"late", delay=timedelta(days=1))
        producer.send("jobs", b"first", priority=9)
    with broker.consumer("jobs", start="earliest") as consumer:
        assert [one.value for one in consumer.poll(timeout=1)] == [b"late", b"first"]


def test_normal_priority_stores_nothing(broker):
    with broker.producer() as producer:
        producer.send("jobs", b"v", priority=0)
    assert stored(broker)[0].header_pairs == ()
    assert priority_of(record()) == 0


def test_send_many_and_transactions_take_the_same(broker):
    message = Message(b"v", deliver_at=DUE_MS, priority=3, message_id="m")
    with broker.producer() as producer:
        producer.send_many("jobs", [b"plain", message])
    with broker.transaction("t") as tx:
        tx.send("jobs", b"v", deliver_at=DUE, priority=3, message_id="n")
        tx.send_many("jobs", [Message(b"v", delay=timedelta(0))])
    said = [
        (deliver_at_ms(one), priority_of(one), message_id_of(one))
        for one in stored(broker)
        if one.value == b"v"
    ]
    assert said[0] == (DUE_MS, 3, "m")
    assert said[1] == (DUE_MS, 3, "n")
    assert said[2][0] is not None


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deliver_at": DUE, "delay": timedelta(0)}, "not both"),
        ({"deliver_at": datetime(2026, 1, 1)}, "deliver_at .* has no time zone"),  # noqa: DTZ001
        ({"deliver_at": -1}, "deliver_at -1 is before 1970"),
        ({"deliver_at": 1.5}, "deliver_at is an aware datetime or milliseconds"),
        ({"delay": 5}, "delay is a datetime.timedelta, not int"),
        ({"delay": timedelta(seconds=-1)}, "delay cannot be negative"),
        ({"priority": 10}, "from 0 .* to 9, not 10"),
        ({"priority": -1}, "from 0"),
        ({"priority": True}, "from 0"),
        ({"priority": None}, "from 0"),
        ({"message_id": ""}, "1 to 200 bytes in UTF-8, not 0"),
        ({"message_id": "ä" * 101}, "1 to 200 bytes in UTF-8, not 202"),
        ({"message_id": b"x"}, "message_id is text, not bytes"),
        ({"message_id": "\ud800"}, "no UTF-8 form"),
        ({"headers": {"logbroker.priority": b"\1"}}, "reserved"),
    ],
)
def test_what_cannot_be_said_is_refused_and_nothing_is_sent(broker, options, message):
    with broker.producer() as producer, pytest.raises(InvalidRequestError, match=message):
        producer.send("jobs", b"v", **options)
    assert broker.topic("jobs").partitions[0].log_end_offset == 0


def test_an_argument_that_does_not_exist_is_named(broker):
    with broker.producer() as producer, pytest.raises(TypeError, match="prority"):
        producer.send("jobs", b"v", prority=3)


# Headers of other clients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, b"", b"\0" * 7, b"\0" * 9, struct.pack(">q", -1)])
def test_a_time_of_another_shape_is_none(value):
    assert deliver_at_ms(record((DELIVER_AT_HEADER, value))) is None


@pytest.mark.parametrize("value", [None, b"", b"\1\0", b"\x0a", b"5"])
def test_a_priority_of_another_shape_is_normal(value):
    assert priority_of(record((PRIORITY_HEADER, value))) == 0


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"x" * 201])
def test_an_id_of_another_shape_is_none(value):
    assert message_id_of(record((MESSAGE_ID_HEADER, value))) is None


def test_of_several_values_the_first_sound_one_counts():
    assert (
        priority_of(record((PRIORITY_HEADER, b"\xff"), (PRIORITY_HEADER, b"\2"), (PRIORITY_HEADER, b"\3")))
        == 2
    )
    assert (
        message_id_of(record((MESSAGE_ID_HEADER, b""), (MESSAGE_ID_HEADER, b"a"), (MESSAGE_ID_HEADER, b"b")))
        == "a"
    )


@given(st.binary(max_size=210), st.sampled_from([DELIVER_AT_HEADER, PRIORITY_HEADER, MESSAGE_ID_HEADER]))
def test_no_bytes_at_all_make_a_reader_fail(value, name):
    given = record((name, value))
    time_ms, priority, message_id = deliver_at_ms(given), priority_of(given), message_id_of(given)
    assert time_ms is None or time_ms >= 0
    assert 0 <= priority <= 9
    assert message_id is None or message_id.encode() == value


def test_a_record_expires_at_its_timestamp_and_the_shorter_time_to_live():
    own = ("logbroker.ttl.ms", struct.pack(">q", 50))
    assert expires_at_ms(record()) is None
    assert expires_at_ms(record(), ttl_ms=10) == 1010
    assert expires_at_ms(record(own)) == 1050
    assert expires_at_ms(record(own), ttl_ms=10) == 1010
    assert expires_at_ms(record(own, timestamp_ms=-1)) is None
