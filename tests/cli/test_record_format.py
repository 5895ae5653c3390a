"""How tail prints a record."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest
import typer

from logbroker.cli.record_format import (
    TAB_SEPARATED,
    formatter,
    json_lines,
    shown,
    terminal_lines,
    values_with_newlines,
)
from logbroker.records import Record


def record(value: bytes | None = b"v", key: bytes | None = b"k", **fields: object) -> Record:
    fields = {"header_pairs": (("a", b"1"), ("b", None)), "timestamp_ms": 1_500} | fields
    return Record("orders", 2, 42, key=key, value=value, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (r"%t %p %o %T %k %v %h\n", b"orders 2 42 1500 k v a=1,b=\n"),
        (r"%K %V", b"1 1"),
        (r"100%% \t\r\0\\", b"100% \t\r\0\\"),
        ("é%v", "év".encode()),
        ("", b""),
    ],
)
def test_a_format_is_filled_in(template: str, expected: bytes) -> None:
    assert formatter(template)([record()]) == expected


@pytest.mark.parametrize("template", ["%x", "%", "\\", r"\q"])
def test_an_unknown_field_or_escape_is_wrong_usage(template: str) -> None:
    with pytest.raises(typer.BadParameter, match="is none of"):
        formatter(template)


def test_a_format_without_fields_is_printed_for_each_record() -> None:
    assert formatter(r"a%%\n")([record(), record()]) == b"a%\na%\n"
    assert formatter("a")([]) == b""


def test_a_record_without_headers_is_printed_without_a_call_of_python() -> None:
    """With one for each of its fields a million records took a second more."""
    records = [record(header_pairs=())] * 1000
    calls = Counter[str]()
    print_records = formatter(TAB_SEPARATED + r"%K %V")
    sys.setprofile(lambda _frame, event, _argument: calls.update([event]))
    try:
        print_records(records)
    finally:
        sys.setprofile(None)
    assert calls["call"] < 100


def test_null_prints_as_nothing_and_bytes_as_they_are() -> None:
    assert formatter(r"[%k|%v|%K|%V]")([record(b"\xff\n\0", None)]) == b"[|\xff\n\0|-1|3]"
    assert values_with_newlines([record(b"a"), record(None), record(b"")]) == b"a\n\n\n"
    assert values_with_newlines([]) == b""


def test_json_says_which_bytes_are_base64() -> None:
    lines = json_lines([record(b"\xff", b"\xfe", header_pairs=(("h", b"\xfd"), ("n", None)))])
    assert lines.endswith(b"}\n")
    assert json.loads(lines) == {
        "topic": "orders",
        "partition": 2,
        "offset": 42,
        "timestamp": "1970-01-01T00:00:01.500+00:00",
        "timestamp_ms": 1500,
        "key": "/g==",
        "key_encoding": "base64",
        "value": "/w==",
        "encoding": "base64",
        "headers": [{"key": "h", "value": "/Q==", "encoding": "base64"}, {"key": "n", "value": None}],
    }


def test_json_of_text_has_no_encoding() -> None:
    document = json.loads(json_lines([record("zoë".encode(), None, header_pairs=())]))
    assert (document["value"], document["key"], document["headers"]) == ("zoë", None, [])
    assert not {"encoding", "key_encoding"} & set(document)


def test_a_record_cannot_write_to_the_terminal_what_it_likes() -> None:
    printed = terminal_lines([record(b"\x1b[2J\nsecond\xff")]).decode()
    assert "\x1b" not in printed
    assert printed.count("\n") == 1
    assert r"\x1b[2J\nsecond\xff" in printed
    assert shown("zoë 漢".encode()) == "zoë 漢"


def test_timestamps_beyond_the_calendar_still_print() -> None:
    odd = [record(timestamp_ms=-(2**62)), record(timestamp_ms=2**62)]
    assert len(terminal_lines(odd).splitlines()) == 2
    assert len(json_lines(odd).splitlines()) == 2
