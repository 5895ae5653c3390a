"""How the inspector prints: JSON, a table on a terminal, tab-separated lines on a pipe.

In JSON, bytes are text when they are UTF-8; otherwise base64, and a second field says so.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from logbroker_storage.record_batch import Record

TABLE_ROWS = 1000


def print_text(text: str) -> None:
    """Onto stdout as UTF-8, whatever encoding the terminal is said to have; of a file's name the very bytes."""
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    if sys.stdout.line_buffering:  # a terminal
        sys.stdout.buffer.flush()


def print_json(value: Any) -> None:
    """One document."""
    try:
        print_text(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    except UnicodeEncodeError:  # a file's name that is no text: its bytes as escapes, which msgspec knows not
        print_text(json.dumps(msgspec.to_builtins(value), indent=2) + "\n")


def print_json_line(value: Any) -> None:
    """One document on one line, of a stream."""
    try:
        print_text(msgspec.json.encode(value).decode() + "\n")
    except UnicodeEncodeError:
        print_text(json.dumps(msgspec.to_builtins(value)) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows as they come on a pipe; a table on a terminal."""
    if not sys.stdout.isatty():
        for row in rows:
            print_text("\t".join(map(_text, row)) + "\n")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    left = iter(rows)
    # A table must know all its rows to lay them out: a long one is cut, so that memory stays bounded.
    some = list(islice(left, TABLE_ROWS))
    while True:
        table = Table(*(Column(name.replace("_", " "), overflow="fold") for name in columns))
        for row in some:
            table.add_row(*(escape(_text(cell)) for cell in row))
        with console.capture() as drawn:
            console.print(table)
        print_text(drawn.get())
        some = list(islice(left, TABLE_ROWS))
        if not some:
            return


def print_rows(kind: type[msgspec.Struct], rows: Sequence[msgspec.Struct], *, json: bool) -> None:
    """Rows of one *kind*, a column a field: one JSON document, or a table."""
    if json:
        print_json(rows)
    else:
        print_table(kind.__struct_fields__, map(msgspec.structs.astuple, rows))


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bytes):
        return _printable(cell.decode(errors="backslashreplace"))
    return str(cell)


def _printable(text: str) -> str:
    """What a record holds must neither break a line of the table nor command the terminal."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def record_fields(record: Record) -> dict[str, object]:
    """A record for JSON."""
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        **bytes_fields(record.key, "key", "key_encoding"),
        **bytes_fields(record.value, "value", "encoding"),
        "headers": [
            {"key": key.encode(errors="replace").decode(), **bytes_fields(value, "value", "encoding")}
            for key, value in record.header_pairs
        ],
    }


RECORD_COLUMNS = ("topic", "partition", "offset", "timestamp_ms", "key", "value", "headers")


def record_row(record: Record) -> tuple[object, ...]:
    """A record for a table."""
    headers = b",".join(
        key.encode(errors="surrogateescape") + b"=" + (value or b"") for key, value in record.header_pairs
    )
    return (
        record.topic,
        record.partition,
        record.offset,
        record.timestamp_ms,
        record.key,
        record.value,
        headers,
    )


def bytes_fields(data: bytes | None, field: str, encoding_field: str) -> dict[str, str | None]:
    """The fields that say what *data* is."""
    if data is None:
        return {field: None}
    try:
        return {field: data.decode()}
    except UnicodeDecodeError:
        return {field: base64.b64encode(data).decode(), encoding_field: "base64"}
