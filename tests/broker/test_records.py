"""Messages, headers, time to live; names and patterns of topics."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from logbroker.errors import InvalidRequestError, InvalidTopicError, TopicNotFoundError
from logbroker.records import (
    Record,
    RecordMetadata,
    stored_headers,
    timestamp_ms_of,
    without_reserved_headers,
)
from logbroker.topic_names import check_group_name, check_topic_name, matches
from logbroker.topic_selection import TopicSelection
from logbroker_storage.record_batch import Compression, NewRecord, decode_batch, encode_batch, read_batch
from logbroker_storage.record_expiry import is_expired, record_ttl_ms

# Headers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (None, ()),
        ({}, ()),
        ({"type": b"created"}, (("type", b"created"),)),
        ([("a", "ä"), ("a", None), ("b", bytearray(b"x"))], (("a", "ä".encode()), ("a", None), ("b", b"x"))),
        ((pair for pair in [("a", b"1")]), (("a", b"1"),)),
        ([["a", memoryview(b"1")]], (("a", b"1"),)),
    ],
)
def test_headers_are_stored_as_pairs_in_order(given, stored):
    assert stored_headers(given) == stored


@pytest.mark.parametrize("given", [{"a": b"1"}, [("a", b"1")], (("a", b"1"),)])
def test_no_abstract_class_is_asked_about_headers_of_the_usual_types(given):
    """It takes as long as storing one; a list is what ``Record.headers`` gives, a tuple ``header_pairs``."""
    called = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        stored_headers(given)
    finally:
        sys.setprofile(None)
    assert "stored_headers" in called
    assert "__instancecheck__" not in called


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({b"type": b"x"}, "key is text"),
        ({"type": 5}, "bytes, text or None, not int"),
        ("type", "a mapping or a list"),
        (7, "a mapping or a list"),
        (["ab"], "pair"),
        ([("a",)], "pair"),
        ({"logbroker.ttl.ms": b"x"}, "reserved"),
    ],
)
def test_headers_of_another_shape_are_refused_with_the_reason(given, message):
    with pytest.raises(InvalidRequestError, match=message):
        stored_headers(given)


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), 5, 1.5])
def test_a_time_to_live_is_a_positive_timedelta(ttl):
    with pytest.raises(InvalidRequestError, match="ttl"):
        stored_headers(None, ttl)


# Time to live ---------------------------------------------------------------------------------------------


def record(timestamp_ms=1000, headers=()):
    return Record("t", 0, 5, timestamp_ms, None, b"v", tuple(headers))


@pytest.mark.parametrize(
    ("topic_ttl_ms", "own", "now_ms", "expired"),
    [
        (-1, None, 10**15, False),
        (500, None, 1499, False),
        (500, None, 1500, True),
        (0, None, 1000, True),
        (-1, timedelta(milliseconds=300), 1299, False),
        (-1, timedelta(milliseconds=300), 1300, True),
        (500, timedelta(milliseconds=300), 1400, True),
        (300, timedelta(hours=1), 1400, True),
    ],
)
def test_a_record_expires_when_the_shorter_time_to_live_has_passed(topic_ttl_ms, own, now_ms, expired):
    sent = record(headers=stored_headers(None, own))
    assert is_expired(sent, ttl_ms=topic_ttl_ms, now_ms=now_ms) is expired


def test_the_brokers_headers_are_hidden_on_delivery():
    sent = record(headers=stored_headers({"a": b"1"}, timedelta(seconds=1)))
    assert record_ttl_ms(sent) == 1000
    assert without_reserved_headers(sent).headers == [("a", b"1")]
    plain = record(headers=[("a", b"1")])
    assert without_reserved_headers(plain) is plain


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.LZ4])
@pytest.mark.parametrize("ttl", [None, timedelta(seconds=1)])
def test_a_batch_with_reserved_headers_is_found_compressed_or_not(compression, ttl):
    headers = stored_headers({} if ttl is None else {"a": b"1"}, ttl)
    encoded = encode_batch([NewRecord(b"v", None, headers, 1000)], compression=compression)
    batch = read_batch(bytes(encoded))
    assert decode_batch(batch, "t", 0).have_reserved is (ttl is not None)


# Timestamps -----------------------------------------------------------------------------------------------


def test_timestamps_are_aware_datetimes_or_milliseconds():
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    assert timestamp_ms_of(moment) == timestamp_ms_of(moment.astimezone(timezone(timedelta(hours=5))))
    assert RecordMetadata("t", 0, 7, timestamp_ms_of(moment)).timestamp == moment
    assert timestamp_ms_of(12) == 12


@pytest.mark.parametrize("given", [datetime(2026, 1, 1), -1, 1.5, "now", True, 1 << 63])  # noqa: DTZ001
def test_other_timestamps_are_refused(given):
    with pytest.raises(InvalidRequestError, match="timestamp"):
        timestamp_ms_of(given)


# Names, patterns, selections ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["orders", "a", "A.b_c-1", "x" * 249, "..."])
def test_kafkas_topic_names_are_taken(name):
    assert check_topic_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "ä", "a/b", "x" * 250, "__journal", "a*", "a\n", 5])
def test_other_topic_names_are_refused(name):
    with pytest.raises(InvalidTopicError, match="topic's name"):
        check_topic_name(name)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 250, 5])
def test_a_group_name_is_printable_text(name):
    assert check_group_name("billing") == "billing"
    with pytest.raises(InvalidRequestError, match="group's name"):
        check_group_name(name)


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("orders.*", "orders.eu", True),
        ("orders.*", "orders.eu.de", True),
        ("orders.*", "orders.", True),
        ("orders.*", "orders", False),
        ("orders.*", "ordersXeu", False),
        ("*", "anything", True),
        ("*", "__journal", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
    ],
)
def test_a_pattern_is_a_glob_that_never_finds_internal_topics(pattern, name, found):
    assert matches(pattern, name) is found


def test_a_selection_takes_names_and_patterns_together():
    selection = TopicSelection.parse(["b", "a.*", "b"])
    assert selection == TopicSelection(("b",), ("a.*",))
    assert selection.resolve({"c", "b", "a.2", "a.1"}) == ["a.1", "a.2", "b"]
    assert selection.single_topic is None
    assert TopicSelection.parse("b").single_topic == "b"


def test_a_name_that_does_not_exist_is_an_error_and_a_pattern_that_matches_nothing_is_not():
    TopicSelection.parse("a.*").check_names([])
    with pytest.raises(TopicNotFoundError, match=r"'b' does not exist \(topics here: a\)"):
        TopicSelection.parse("b").check_names(["a"])


@pytest.mark.parametrize("topics", [[], "", "a[b]*", ["a", "."]])
def test_an_unusable_selection_is_refused(topics):
    with pytest.raises((InvalidRequestError, InvalidTopicError)):
        TopicSelection.parse(topics)
