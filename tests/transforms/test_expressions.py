"""CEL over records: what an expression sees, what is refused when it is made, and what a record can do to it."""

from __future__ import annotations

import datetime
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker.errors import InvalidRequestError, LogbrokerError
from logbroker.expressions import Expression, ExpressionError, as_predicate, compile_expression
from logbroker.expressions.text import MAX_CHARACTERS, MAX_NESTING, MAX_PARTS, shape_of
from logbroker.nesting import MAX_DEPTH, is_too_deep
from logbroker.records import Record


def record(value: bytes | None = b'{"amount": 12, "items": [{"sku": "x"}]}', **fields: object) -> Record:
    base = {
        "topic": "orders",
        "partition": 1,
        "offset": 7,
        "timestamp_ms": 1_700_000_000_000,
        "key": b"alice",
        "value": value,
        "header_pairs": (("type", b"old"), ("type", b"created"), ("raw", b"\xff"), ("none", None)),
    }
    return Record(**(base | fields))  # type: ignore[arg-type]


# What it sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("key", "alice"),
        ("value", '{"amount": 12, "items": [{"sku": "x"}]}'),
        ("json.amount", 12),
        ("json.items[0].sku", "x"),
        ("json.items.exists(item, item.sku == 'x')", True),
        ("has(json.nothing)", False),
        ("headers", {"type": "created", "raw": b"\xff", "none": None}),
        ("headers['type']", "created"),
        ("'other' in headers", False),
        ("topic", "orders"),
        ("partition", 1),
        ("offset", 7),
        ("timestamp", datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)),
        ("timestamp > timestamp('2020-01-01T00:00:00Z')", True),
        ("timestamp.getFullYear()", 2023),
        ("upperAscii(key) + '!'", "ALICE!"),
        ("key.upperAscii()", "ALICE"),
        ("math.greatest(1, 2)", 2),
        ("base64.encode(b'hi')", "aGk="),
        ("key.replace('l', 'L')", "aLice"),
        ("type(json) == map", True),
        ("{'who': key, 'list': [1, 2.5, true, null]}", {"who": "alice", "list": [1, 2.5, True, None]}),
        ("'a{b(c' == key // (a comment{", False),
        ("1 == 1 ? 'yes' : 'no'", "yes"),
        ("'(((((' + '\\'' + \"'\" + r'\\' + '''a\n'b'''", "((((('" + "'" + "\\" + "a\n'b"),
        ("b'\\xff' + br'('", b"\xff("),
    ],
)
def test_an_expression_has_the_fields_of_a_record(text, value):
    assert compile_expression(text).evaluate(record()) == value


def test_what_is_not_utf_8_is_bytes_and_what_is_not_there_is_null():
    raw = record(b"\xff\x00", key=None)
    assert compile_expression("value").evaluate(raw) == b"\xff\x00"
    assert compile_expression("key == null").matches(raw)
    assert compile_expression("json == null && value == null").matches(record(None))


def test_the_size_of_a_text_is_in_bytes_as_the_document_says_and_all_else_in_characters():
    word = record("aé名".encode())
    assert compile_expression("size(value)").evaluate(word) == 6
    assert compile_expression("value.split('').size()").evaluate(word) == 3
    assert compile_expression("value.substring(1, 2)").evaluate(word) == "é"
    assert compile_expression("value.indexOf('名')").evaluate(word) == 2


def test_a_header_key_that_is_not_utf_8_does_not_hide_the_others():
    odd = record(header_pairs=(("k\udcff", b"1"), ("type", b"2")))
    assert compile_expression("headers['type'] == '2'").matches(odd)
    assert compile_expression("size(headers)").evaluate(odd) == 2


def test_only_the_variables_that_are_used_are_named():
    assert compile_expression("headers.a == 'x' && json.list.all(key2, key2 > 0)").names == {
        "headers",
        "json",
    }
    assert compile_expression("1 + 1").names == frozenset()


def test_a_value_that_is_no_json_matters_only_where_json_decides():
    broken = record(b"{")
    assert compile_expression("key == 'alice' || json.amount > 3").matches(broken)
    assert not compile_expression("key == 'bob' && json.amount > 3").matches(broken)
    with pytest.raises(ExpressionError, match=r"orders-1 at offset 7: the value is not JSON"):
        compile_expression("json.amount > 3").matches(broken)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("json.a.b == 1 && json.c", {("a", "b"), ("c",)}),
        ("json.a.size() > json.b.c.d[0].e", {("a",), ("b", "c", "d")}),
        ("json.list.exists(x, x.json.y == 1)", {("list",)}),
        ("has(json.a.b) || json . a == null", {("a", "b"), ("a",)}),
        ("'json.a' == key", set()),
        ("json == 1 || json.a == 2", None),
        ("json['a'] == 1", None),
        ("'a' in json", None),
        (".json.a == 1", None),
        ("[1].map(json, json.a)", None),
        ("size(json)", None),
        ("json.a.b.c.d.e.f.g.h.i.j", {tuple("abcdefgh")}),
        ("json.size()", None),
        ("{'json': json.a}['json']", {("a",)}),
    ],
)
def test_which_fields_of_json_an_expression_uses_can_be_told_from_its_text(text, paths):
    assert shape_of(text).json_paths == paths


NAME = st.sampled_from("abc")
DOCUMENTS = st.recursive(
    st.none() | st.sampled_from([0, 1, 2.5, 10**30, -(2**63)]) | st.text("xy", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(
    document=DOCUMENTS,
    path=st.lists(NAME, min_size=1, max_size=3),
    other=st.lists(NAME, min_size=1, max_size=3),
)
def test_an_expression_sees_the_same_in_a_part_of_json_as_in_all_of_it(document, path, other):
    """``json`` itself in the expression makes it read the whole."""
    fields = f"[has(json.{'.'.join(path)}), json.{'.'.join(other)} == 1]"
    part = compile_expression(f"{fields}[0] || {fields}[1]")
    whole = compile_expression(f"({fields}[0] || {fields}[1]) && json == json")
    value = msgspec.json.encode(document)
    outcomes = []
    for expression in (part, whole):
        try:
            outcomes.append(str(expression.matches(record(value))))
        except ExpressionError as error:
            outcomes.append(error.reason)
    assert outcomes[0] == outcomes[1]


# What is refused when it is made ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 +", "column 4"),
        ("key ==\n  'a' &", "line 2, column 7"),
        ("", "the end"),
        ("kee == 'a'", "did you mean 'key'.*headers.*json.*timestamp"),
        ("json.a == 1 && foo", "no name 'foo'"),
        ("key.upper()", "did you mean 'upperAscii'"),
        ("math.pow(2, 3)", "no function 'math.pow'"),
        ("lists.range(1000000000)", "no name 'lists'"),
        ("Order{id: 1}", "no message type 'Order'"),
        ("has(key)", "column"),
        ("x" * (MAX_CHARACTERS + 1), f"{MAX_CHARACTERS} are allowed"),
        ("1" + "+1" * MAX_PARTS, f"{MAX_PARTS} are allowed"),
        ("(" * 40 + "1" + ")" * 40, f"deeper than {MAX_NESTING}"),
        ("'" + "(" * 40, f"deeper than {MAX_NESTING}"),
        ("'\\xzz" + "(" * 40 + "'", f"deeper than {MAX_NESTING}"),
        ("true ? 1 : " * 40 + "1", "conditionals"),
        ("json.map(a, json.map(b, json.map(c, 1)))", "more than 2"),
    ],
)
def test_an_expression_that_cannot_work_is_refused_at_once(text, says):
    with pytest.raises(InvalidRequestError, match=f"(?s){says}"):
        compile_expression(text)


def test_an_expression_is_text():
    with pytest.raises(InvalidRequestError, match="text"):
        compile_expression(7)  # type: ignore[arg-type]


# What a record can do to it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("json.nothing == 1", "no field 'nothing'"),
        ("json.amount.deep == 1", "overload"),
        ("int(json)", "int cannot be used"),
        ("json.amount / 0", "division by zero"),
        ("9223372036854775807 + json.amount", "overflow"),
        ("json.items[5]", "index"),
        ("key.matches('(')", "regex"),
        ("timestamp(key)", "timestamp"),
        ("charAt(key, 99)", "charAt"),
    ],
)
def test_what_a_record_does_not_have_is_a_typed_error_that_names_it(text, says):
    with pytest.raises(ExpressionError) as raised:
        compile_expression(text).evaluate(record())
    error = raised.value
    assert isinstance(error, LogbrokerError)
    assert (error.expression, error.topic, error.partition, error.offset) == (text, "orders", 1, 7)
    assert says in error.reason


def test_a_replacement_is_bounded():
    big = record(b"a" * 20_000)
    with pytest.raises(ExpressionError, match="replace"):
        compile_expression("value.replace('a', value)").evaluate(big)


@pytest.mark.parametrize("text", ["key", "json.amount", "null", "[true]"])
def test_a_condition_is_a_bool_and_nothing_else(text):
    with pytest.raises(ExpressionError, match="true or false"):
        compile_expression(text).matches(record())


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_that_is_nested_too_deep_is_an_error_and_not_the_end_of_the_process(opening):
    closing = "]" if opening == "[" else "}"
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        value = (opening * depth + "1" + closing * depth).encode()
        with pytest.raises(ExpressionError, match=r"JSON|deeper"):
            compile_expression("json == json").evaluate(record(value))
    value = (opening * MAX_DEPTH + "1" + closing * MAX_DEPTH).encode()
    assert compile_expression("json == json").matches(record(value))


SMALL_STACK = """
import threading
from logbroker.errors import LogbrokerError
from logbroker.expressions import compile_expression
from logbroker.expressions.text import MAX_NESTING, MAX_PARTS
from logbroker.nesting import MAX_DEPTH
from logbroker.records import Record
threading.stack_size(512 << 10)
texts = [
    "(" * MAX_NESTING + "1" + ")" * MAX_NESTING,
    "[" * MAX_NESTING + "]" * MAX_NESTING,
    "1" + "+1" * (MAX_PARTS // 2 - 1),
    "json" + ".a" * (MAX_PARTS // 2 - 1),
    "key" + ".size()" * (MAX_PARTS // 4 - 1),
    "true ? 1 : " * MAX_NESTING + "1",
    "!" * (MAX_PARTS - 1) + "true",
    "json == json && [json, json].exists(x, x == json)",
]
deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
def run():
    for text in texts:
        try:
            compile_expression(text).evaluate(Record("t", 0, 0, 0, b"k", deep))
        except LogbrokerError:
            pass
    print("alive")
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def test_the_bounds_leave_room_on_the_stack_of_a_small_thread():
    """A native engine that runs out of stack ends the process; 512 KiB is what a thread has at the least."""
    done = subprocess.run([sys.executable, "-c", SMALL_STACK], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    value=st.none() | st.binary(max_size=40), key=st.none() | st.binary(max_size=10), name=st.text(max_size=5)
)
@pytest.mark.parametrize(
    "text",
    [
        "json.a > 3 && headers['type'] == 'x'",
        "string(value).matches(string(key))",
        "int(key) + int(value) > 0",
        "timestamp(key) < timestamp && duration(value) > duration('1s')",
        "json.map(x, x).filter(x, x > 1).size() > 0",
        "value[0] == key",
        "key.substring(1, 3) == value.split('')[0]",
        "double(value) * double(key) == 0.0",
        "math.sqrt(double(key)) > 1.0",
    ],
)
def test_no_record_gets_anything_but_a_value_or_the_typed_error_out_of_it(text, value, key, name):
    try:
        compile_expression(text).matches(record(value, key=key, header_pairs=((name, value),)))
    except ExpressionError:
        pass


@settings(deadline=None)
@given(text=st.text(alphabet="keyjsonvalu.()[]{}'\"\\!&|=<>+-*/%?:,0123456789 \n", max_size=40))
def test_no_text_gets_anything_but_an_expression_or_the_typed_error_out_of_the_compiler(text):
    try:
        assert isinstance(compile_expression(text), Expression)
    except InvalidRequestError:
        pass


@settings(deadline=None)
@given(value=VALUES, limit=st.integers(0, 5))
def test_depth_is_the_number_of_containers_in_each_other(value, limit):
    def depth(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        if isinstance(value, list):
            return 1 + max(map(depth, value), default=0)
        return 0

    assert is_too_deep(value, limit) == (depth(value) > limit)


# Filters ------------------------------------------------------------------------------------------------


def test_a_filter_is_text_an_expression_or_a_function():
    for choice in (
        "key == 'alice'",
        compile_expression("key == 'alice'"),
        lambda record: record.key == b"alice",
    ):
        predicate = as_predicate(choice)
        assert predicate(record())
        assert not predicate(record(key=b"bob"))
    with pytest.raises(InvalidRequestError, match="no name"):
        as_predicate("nothing == 1")
    with pytest.raises(InvalidRequestError, match="filter"):
        as_predicate(7)  # type: ignore[arg-type]
