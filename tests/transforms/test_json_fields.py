"""An expression finds the same in the fields that it names as in the whole document."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from logbroker.expressions import ExpressionError, compile_expression
from logbroker_storage.record import Record

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
