"""Steps: what the examples in the document do not show, above all what goes wrong."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker.transforms import PipelineError, TransformError, load_pipeline
from logbroker.transforms.paths import EACH, MISSING, Removals, change_each, find, parse_path, put, shown
from logbroker_storage.testing.manual_clock import ManualClock

from .conftest import JSON_OUT, a_record, on_json, steps


def become(document: Any, *tables: dict[str, Any]) -> Any:
    """What *document* is behind these steps."""
    (message,) = on_json(*tables).apply(a_record(json.dumps(document).encode()))
    assert message.value is not None
    return json.loads(message.value)


# Each step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "step", "result"),
    [
        ({"a": 1}, {"kind": "select", "fields": ["b"]}, {}),
        ({"a": [{"b": 1, "c": 2}]}, {"kind": "select", "fields": ["a.0.b"]}, {"a": {"0": {"b": 1}}}),
        ({"a.b": 1}, {"kind": "rename", "fields": {r"a\.b": "c"}}, {"c": 1}),
        ({"a": {"b": 1}, "c": 2}, {"kind": "rename", "fields": {"a.b": "b", "x": "y"}}, {"a": {}, "c": 2, "b": 1}),
        ({"a": {"x": 1, "y": 2}, "b": [1, 2, 3]}, {"kind": "drop", "fields": ["a.*", "b.0"]}, {"a": {}, "b": [2, 3]}),
        ({"a": [1, 2, 3]}, {"kind": "drop", "fields": ["a.*"]}, {"a": []}),
        ({"a": [1, 2, 3, 4]}, {"kind": "drop", "fields": ["a.0", "a.1", "a.3"]}, {"a": [3]}),
        ({"a": [{"b": 1, "c": 2}, 3]}, {"kind": "drop", "fields": ["a.1", "a.*.b"]}, {"a": [{"c": 2}]}),
        ({"a": [1, 2, 3]}, {"kind": "rename", "fields": {"a.0": "x", "a.1": "y"}}, {"a": [3], "x": 1, "y": 2}),
        ({"a": [1, 2, 3]}, {"kind": "rename", "fields": {"a.0": "a.2", "a.2": "a.0"}}, {"a": [3, 2, 1]}),
        (
            {"a": [{"pin": "123"}, {"pin": "12345678"}]},
            {"kind": "mask", "fields": ["a.*.pin"], "method": "last", "keep": 3},
            {"a": [{"pin": "***"}, {"pin": "*****678"}]},
        ),
        ({"a": "x"}, {"kind": "mask", "fields": ["a"], "method": "hash"}, {"a": hashlib.sha256(b"x").hexdigest()}),
        ({}, {"kind": "insert", "field": "b.c.d", "value": [1, {"x": 2}]}, {"b": {"c": {"d": [1, {"x": 2}]}}}),
        ({"a": [1]}, {"kind": "insert", "field": "a.0", "value": 2}, {"a": [2]}),
        ({"a": None}, {"kind": "cast", "fields": {"a": "integer"}}, {"a": None}),
        ({"a": 2.0, "b": " 7 "}, {"kind": "cast", "fields": {"a": "integer", "b": "integer"}}, {"a": 2, "b": 7}),
        ({"a": [1, "2"]}, {"kind": "cast", "fields": {"a.*": "number"}}, {"a": [1.0, 2.0]}),
        ([True, {"c": 1}], {"kind": "cast", "fields": {"*": "text"}}, ["true", '{"c":1}']),
        ({"a": "2026-01-01"}, {"kind": "cast", "fields": {"a": "timestamp"}}, {"a": "2026-01-01T00:00:00Z"}),
        ({"a": {}, "b": {"c": []}}, {"kind": "flatten"}, {"a": {}, "b.c": []}),
        ({"a": [1, {"b": 2}]}, {"kind": "flatten", "lists": True}, {"a.0": 1, "a.1.b": 2}),
        ({"a": 1}, {"kind": "cel", "expression": "json.a + 1", "field": "b"}, {"a": 1, "b": 2}),
        ({"a": 1}, {"kind": "cel", "expression": "timestamp"}, "2023-11-14T22:13:20Z"),
        ({"a": [3, 1]}, {"kind": "jsonata", "expression": "$sort(a)"}, [1, 3]),
        ({"a": 1}, {"kind": "jsonata", "expression": "{'b': null}"}, {"b": None}),
    ],
)  # fmt: skip
def test_what_a_step_makes_of_a_value(document: Any, step: dict[str, Any], result: Any) -> None:
    assert become(document, step) == result


@pytest.mark.parametrize(
    ("document", "step", "says"),
    [
        ([1], {"kind": "select", "fields": ["a"]}, "list, not a map"),
        ({}, {"kind": "select", "fields": ["a"], "missing": "error"}, "no field a"),
        ({}, {"kind": "rename", "fields": {"a": "b"}, "missing": "error"}, "no field a"),
        ({"a": 1, "b": 2}, {"kind": "rename", "fields": {"a": "b.c"}}, "in a int, not in a map"),
        ({}, {"kind": "drop", "fields": ["a.*"], "missing": "error"}, r"no field a\.\*"),
        ({}, {"kind": "mask", "fields": ["a"], "missing": "error"}, "no field a"),
        ([], {"kind": "insert", "field": "0", "value": 1}, "0 elements"),
        ({"a": 1}, {"kind": "insert", "field": "b", "expression": "json.c"}, "no field 'c'"),
        ({"a": "x"}, {"kind": "cast", "fields": {"a": "integer"}}, "field a: 'x'"),
        ({"a": 1.5}, {"kind": "cast", "fields": {"a": "integer"}}, "fraction"),
        ({"a": "9" * 5000}, {"kind": "cast", "fields": {"a": "integer"}}, "1000 characters"),
        ({"a": 1e308}, {"kind": "cast", "fields": {"a": "timestamp"}}, "field a"),
        ({"a": "maybe"}, {"kind": "cast", "fields": {"a": "boolean"}}, "yes"),
        ({"a": [1]}, {"kind": "cast", "fields": {"a": "number"}}, "list"),
        ({"a": "NaNo"}, {"kind": "cast", "fields": {"a": "decimal"}}, "decimal"),
        ({"a": "1e999999999"}, {"kind": "cast", "fields": {"a": "decimal"}}, "1000 digits"),
        ({"a": "1e-1001"}, {"kind": "cast", "fields": {"a": "decimal"}}, "1000 digits"),
        ({}, {"kind": "cast", "fields": {"a": "text"}, "missing": "error"}, "no field a"),
        ({"a": {"b": 1}, "a.b": 2}, {"kind": "flatten"}, "two fields"),
        ({"a": 1, "a.b": 2}, {"kind": "unflatten"}, "no map"),
        ({"a.b": 2, "a": 1}, {"kind": "unflatten"}, "twice"),
        ({".".join("a" * 200): 1}, {"kind": "unflatten"}, "deeper"),
        ({"a": 1}, {"kind": "split", "field": "a"}, "not a list"),
        ({"a": 1}, {"kind": "split", "field": "b"}, "no field b"),
        ({"a": 1}, {"kind": "split"}, "not a list"),
        ({"a": [1], "b": 2}, {"kind": "split", "field": "a", "keep": ["b"]}, "not a map"),
        ({"a": [{}], "b": {}}, {"kind": "split", "field": "a", "keep": ["b"]}, "not one value"),
        ([0] * 100_001, {"kind": "split"}, "100001 elements"),
        ({"a": 1}, {"kind": "set_key", "field": "b"}, "no field b"),
        ({"a": 1}, {"kind": "set_key", "expression": "json.b"}, "no field 'b'"),
        ({"a": "x"}, {"kind": "timestamp", "field": "a"}, "'x' is no time"),
        ({"a": -1}, {"kind": "timestamp", "field": "a"}, "before 1970"),
        ({"a": 1e300}, {"kind": "timestamp", "field": "a"}, "after the year 9999"),
        ({"a": True}, {"kind": "timestamp", "field": "a"}, "a number"),
        ({"a": 7}, {"kind": "timestamp", "field": "a", "format": "iso8601"}, "no time"),
        ({"a": "7"}, {"kind": "timestamp", "field": "a", "format": "%Y-%m-%d"}, "no time"),
        ({"a": 1}, {"kind": "filter", "keep": "json.a"}, "true or false"),
        ({"a": 1}, {"kind": "jsonata", "expression": "$sum('x')"}, "JSONata"),
        ({"a": 1}, {"kind": "jsonata", "expression": "($f := function($x) { $f($x) }; $f(1))", "timeout_ms": 50}, "50"),
        ({"a": 1}, {"kind": "jsonata", "expression": "($f := function($x) { 1 + $f($x) }; $f(1))"}, "flow|deep"),
        ({"a": 1}, {"kind": "jsonata", "expression": "function($x) { $x }"}, "JSONata"),
    ],
)  # fmt: skip
def test_what_a_step_cannot_do_is_an_error_that_names_it(
    document: Any, step: dict[str, Any], says: str
) -> None:
    with pytest.raises(TransformError, match=says) as raised:
        become(document, step)
    assert raised.value.step == f"2 {step['kind']}"
    assert (raised.value.topic, raised.value.partition, raised.value.offset) == ("orders", 1, 7)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"kind": "select", "fields": []}, "at least one"),
        ({"kind": "select"}, "missing required field `fields`"),
        ({"kind": "select", "fields": ["a..b"]}, "empty part"),
        ({"kind": "select", "fields": ["a.*"]}, "one field is meant"),
        ({"kind": "select", "fields": [".".join("a" * 40)]}, "32 parts"),
        ({"kind": "rename", "fields": {}}, "renames nothing"),
        ({"kind": "mask", "fields": ["a"], "method": "last", "keep": 0}, "redact"),
        ({"kind": "mask", "fields": ["a"], "method": "rot13"}, "rot13"),
        ({"kind": "insert", "field": "a"}, "value and expression"),
        ({"kind": "insert", "field": "a", "expression": "jsn.a"}, "did you mean 'json'"),
        ({"kind": "cast", "fields": {"a": "int"}}, "Invalid enum value 'int'"),
        ({"kind": "unflatten", "separator": ""}, "empty"),
        ({"kind": "split", "keep": ["a"]}, "field has to name the list"),
        ({"kind": "filter"}, "keep and drop"),
        ({"kind": "filter", "keep": "true", "drop": "true"}, "keep and drop"),
        ({"kind": "filter", "keep": "1 +"}, "column 4"),
        ({"kind": "set_key"}, "value, field and expression"),
        ({"kind": "set_headers"}, "values, fields or expressions"),
        ({"kind": "set_headers", "values": {"logbroker.ttl.ms": "1"}}, "broker's own"),
        ({"kind": "set_headers", "values": {"a": "1"}, "fields": {"a": "a"}}, "twice"),
        ({"kind": "remove_headers", "names": []}, "at least one"),
        ({"kind": "timestamp"}, "field and now"),
        ({"kind": "timestamp", "field": "a", "format": "millis"}, "strptime"),
        ({"kind": "jsonata", "expression": "("}, "JSONata expression is wrong"),
        ({"kind": "jsonata", "expression": "a", "timeout_ms": 0}, "at least 1"),
        ({"kind": "python", "function": "nothing"}, "module:function"),
        ({"kind": "python", "function": "no_such_module:f"}, "cannot be imported"),
        ({"kind": "python", "function": "os:sep"}, "cannot be called"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_when_the_pipeline_is_made(
    step: dict[str, Any], says: str
) -> None:
    with pytest.raises(PipelineError, match=f"step 2: .*{says}") as raised:
        on_json(step)
    assert raised.value.step == 2


# Keys, headers, times -----------------------------------------------------------------------------------


def test_a_key_is_text_or_json_and_null_takes_it_away() -> None:
    def key(expression: str) -> bytes | None:
        (message,) = steps({"kind": "set_key", "expression": expression}).apply(a_record(b'{"a": [1]}'))
        return message.key

    assert key("'é'") == "é".encode()
    assert key("json.a") == b"[1]"
    assert key("b'\\xff'") == b"\xff"
    assert key("timestamp") == b"2023-11-14T22:13:20+00:00"
    assert key("null") is None


@pytest.mark.parametrize(
    ("format", "value", "expected_ms"),
    [
        ("s", 1.5, 1500),
        ("s", "2", 2000),
        ("ms", 7, 7),
        ("us", 1_999, 1),
        ("ns", 1_700_000_000_123_456_789, 1_700_000_000_123),
        ("iso8601", "1970-01-01T01:00:00+01:00", 0),
        ("iso8601", "1970-01-02", 86_400_000),
        ("%d.%m.%Y %z", "01.01.1970 -0100", 3_600_000),
    ],
)
def test_timestamps_come_in_many_forms(format: str, value: Any, expected_ms: int) -> None:
    pipeline = on_json({"kind": "timestamp", "field": "at", "format": format})
    (message,) = pipeline.apply(a_record(json.dumps({"at": value}).encode()))
    assert message.timestamp == expected_ms


def test_now_is_the_clocks() -> None:
    clock = ManualClock()
    pipeline = load_pipeline('[[step]]\nkind = "timestamp"\nnow = true', clock=clock)
    (message,) = pipeline.apply(a_record(b"x"))
    assert message.timestamp == clock.now_ms()


def test_headers_keep_their_order_and_each_of_a_name_is_replaced() -> None:
    record = a_record(b"x", header_pairs=(("a", b"1"), ("b", None), ("a", b"2"), ("c", b"3")))
    (message,) = steps({"kind": "set_headers", "values": {"a": "new"}}).apply(record)
    assert message.headers == (("b", None), ("c", b"3"), ("a", b"new"))
    (message,) = steps({"kind": "remove_headers", "names": ["a", "?"]}).apply(record)
    assert message.headers is None


# CloudEvents --------------------------------------------------------------------------------------------

WRAP = {"kind": "cloudevents_wrap", "type": "order", "source": "/shop"}


@settings(deadline=None)
@given(
    data=st.binary(max_size=20),
    content_type=st.sampled_from(["text/plain", "application/octet-stream", "image/png"]),
)
def test_an_event_goes_from_mode_to_mode_and_comes_out_as_it_was(data: bytes, content_type: str) -> None:
    wrap = WRAP | {"datacontenttype": content_type, "extensions": {"partitionkey": "k"}}
    modes = [{"kind": "cloudevents_convert", "to": mode} for mode in ("structured", "binary", "structured")]
    (message,) = steps(wrap, *modes, {"kind": "cloudevents_unwrap"}).apply(a_record(data, key=None))
    assert (message.value, message.key) == (data, b"k")
    assert message.headers == (("content-type", content_type.encode()),)


def test_json_data_is_part_of_a_structured_event_and_other_data_base64() -> None:
    structured = WRAP | {"mode": "structured"}
    (message,) = steps(structured).apply(a_record(b'{"a": [1]}'))
    assert json.loads(message.value or b"")["data"] == {"a": [1]}
    (message,) = steps(structured | {"datacontenttype": "image/png"}).apply(a_record(b"\xff"))
    assert json.loads(message.value or b"")["data_base64"] == "/w=="
    with pytest.raises(TransformError, match="said to be JSON"):
        steps(structured).apply(a_record(b"\xff"))


def test_the_content_type_of_a_message_is_that_of_the_data() -> None:
    record = a_record(b"x", header_pairs=(("Content-Type", b"text/plain"), ("ce_old", b"1"), ("other", b"2")))
    (message,) = steps(WRAP).apply(record)
    headers = dict(message.headers or ())
    assert headers["content-type"] == b"text/plain"  # type: ignore[index]
    assert "ce_old" not in headers
    assert headers["other"] == b"2"  # type: ignore[index]


@pytest.mark.parametrize(
    ("headers", "value", "says"),
    [
        ((), b"x", "no CloudEvent: it has no specversion"),
        ((("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"s")), b"x", "no type"),
        ((("ce_specversion", b"0.3"), ("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t")), b"x", "version '0.3'"),
        ((("ce_specversion", b"\xff"),), b"x", "not UTF-8"),
        ((("content-type", b"application/cloudevents+json"),), b"{", "not JSON"),
        ((("content-type", b"application/cloudevents+json"),), b"[]", "no JSON object"),
        ((("content-type", b"application/cloudevents+json"),), b'{"data": 1, "data_base64": "eA=="}', "both"),
        ((("content-type", b"application/cloudevents+json"),), b'{"data_base64": "%"}', "data_base64"),
        ((("content-type", b"application/cloudevents+json"),), b"[" * 100_000, "deep"),
        ((("content-type", b"application/cloudevents+json"),), None, "not JSON"),
        ((("content-type", b"application/cloudevents-batch+json"),), b"[]", "not read"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_an_error(headers: Any, value: Any, says: str) -> None:
    with pytest.raises(TransformError, match=says):
        steps({"kind": "cloudevents_unwrap"}).apply(a_record(value, header_pairs=headers))


# Paths --------------------------------------------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=4).filter(lambda name: name != EACH and not name.isdigit())


@settings(deadline=None)
@given(path=st.lists(NAMES, min_size=1, max_size=5))
def test_a_path_reads_as_it_is_written(path: list[str]) -> None:
    assert parse_path(shown(tuple(path))) == tuple(path)


@settings(deadline=None)
@given(path=st.lists(NAMES, min_size=1, max_size=4).map(tuple), value=st.integers())
def test_what_is_put_is_found_changed_and_removed(path: tuple[str, ...], value: int) -> None:
    document: dict[str, Any] = {}
    put(document, path, value)
    assert find(document, path) == value
    assert change_each(document, path, lambda found: found + 1) == 1
    assert Removals().take(document, path) == value + 1
    assert find(document, path) is MISSING
    assert Removals().take(document, path) is MISSING


def test_decoded_times_are_times_to_later_steps() -> None:
    schema = {"type": "long", "logicalType": "timestamp-millis"}
    pipeline = steps(
        {"kind": "decode", "format": "avro", "schema": schema},
        {"kind": "cel", "expression": "{'year': json.getFullYear()}"},
        JSON_OUT,
    )
    (message,) = pipeline.apply(a_record(b"\x00"))
    assert message.value == b'{"year":1970}'
