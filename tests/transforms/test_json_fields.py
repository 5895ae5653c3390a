"""An expression finds the same in the fields that it names as in the whole document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker.expression_text import parts_of
from logbroker.expressions import ExpressionError, compile_expression
from logbroker.json_fields import MAX_NAMES, JsonFields, fields_in
from logbroker_storage.record import Record


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("json.a == 1", [("a",)]),
        ("json.a.b > json.c", [("a", "b"), ("c",)]),
        ("json.name.startsWith('x')", [("name",)]),
        ("has(json.a.b) && json.a.b == 1", [("a", "b")]),
        ("json.items[0].price > 1", [("items",)]),
        ("json.items.exists(i, i.price > 1)", [("items",)]),
        ("key == 'json.a'", []),
        ("{'json': 1}.json == json.b", [("b",)]),
        ("json.a == 1 ? json.b : json.c", [("a",), ("b",), ("c",)]),
        ("json . a . b", [("a", "b")]),
        ("json" + ".a" * 50, [("a",) * MAX_NAMES]),
    ],
)
def test_names_behind_json_are_the_fields(text, fields):
    assert fields_in(parts_of(text)) == fields


@pytest.mark.parametrize(
    "text",
    [
        "json",
        "json == null",
        "json['a'] == 1",
        "size(json)",
        "json.size() > 1",
        "'a' in json",
        "json.exists(k, k == 'a')",
        "[1].exists(json, json > 0)",
        "json.a == 1 && json != null",
        ".json.a == 1",
        "json.?a.hasValue()",
    ],
)
def test_where_more_may_be_seen_the_document_is_decoded_whole(text):
    assert fields_in(parts_of(text)) is None


def test_only_the_named_fields_are_decoded_and_missing_ones_stay_missing():
    fields = JsonFields([("a",), ("b", "c"), ("b", "d"), ("class", "f0")])
    document = {"x": [1, {"y": 2}], "a": [1, {"z": None}], "b": {"c": 1, "e": 2}, "class": {"f0": 1, "f1": 2}}
    assert fields.decode(json.dumps(document).encode()) == {
        "a": [1, {"z": None}],
        "b": {"c": 1},
        "class": {"f0": 1},
    }


@pytest.mark.parametrize("paths", [[("a",), ("a", "b", "c")], [("a", "b", "c"), ("a",)]])
def test_a_field_of_which_all_is_wanted_comes_whole(paths):
    assert JsonFields(paths).decode(b'{"a": {"b": {"c": 1}, "d": 2}}') == {"a": {"b": {"c": 1}, "d": 2}}


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[1]", b'"text"', b'{"a": 1}', b'{"a": null}', b"\xff", b'{"a": []}']
)
def test_another_form_than_the_names_ask_for_is_refused(value):
    with pytest.raises(ValueError):
        JsonFields([("a", "b")]).decode(value)


LEAF = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "json"]) | st.floats(-2, 2)
DOCUMENT = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
EXPRESSION = st.sampled_from(
    [
        "json.a == 1",
        "json.a.b == json.c",
        "has(json.a) && has(json.b.c)",
        "has(json.a.b) || json.c == 'x'",
        "json.a.exists(k, k == 1)",
        "json.b[0] == 1",
        "json.a.b.c.d == null",
        "size(json.a) > 1 && json.d",
    ]
)


def outcome(text: str, value: bytes) -> Any:
    try:
        return compile_expression(text).evaluate(Record("t", 0, 0, 0, None, value))
    except ExpressionError as error:
        return error.reason


@given(EXPRESSION, DOCUMENT, st.booleans())
def test_an_expression_finds_the_same_as_in_the_whole_document(text, document, cut):
    value = json.dumps(document).encode()[: -1 if cut else None]
    # The same, but for a part that has to see the whole document.
    assert outcome(text, value) == outcome(f"[{text}, json][0]", value)
