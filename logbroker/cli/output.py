"""How commands print: JSON, tables on a terminal, tab-separated lines on a pipe.

Facts go to stdout. Remarks for the person in front of it go to stderr, and never mix with them.

In JSON, bytes are text where they are UTF-8. Where not they are base64, and a field beside says so:

    a record's value, a header's value   "value": "/w==", "encoding": "base64"
    a record's key                       "key": "/w==", "key_encoding": "base64"
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

BASE64 = "base64"


# JSON -----------------------------------------------------------------------------------------------------


def print_json(value: object) -> None:
    """One document."""
    import msgspec

    write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def as_json(description: object) -> dict[str, Any]:
    """One of the library's descriptions, as a document."""
    import msgspec

    document = msgspec.to_builtins(description)
    assert isinstance(document, dict)
    return document


def json_text(data: bytes | None) -> tuple[str | None, str | None]:
    """*data* as text, and the encoding that it is in if it is no text."""
    if data is None:
        return None, None
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), BASE64


def content_as_json(
    key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]
) -> dict[str, Any]:
    """What a message holds, as fields of a document: key, value and headers."""
    return {
        **_field("key", key, "key_encoding"),
        **_field("value", value, "encoding"),
        "headers": [
            {
                "key": name.encode(errors="surrogateescape").decode(errors="replace"),
                **_field("value", content, "encoding"),
            }
            for name, content in headers
        ],
    }


def _field(name: str, data: bytes | None, encoding_name: str) -> dict[str, str | None]:
    text, encoding = json_text(data)
    return {name: text} if encoding is None else {name: text, encoding_name: encoding}


def write(text: bytes) -> None:
    """Onto stdout, as it is, whatever encoding the terminal is said to have."""
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


# Tables ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows of facts; *label* is the first cell of its lines on a pipe where several tables share one."""

    label: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str | None = None


def print_tables(*tables: Table, labelled: bool = False) -> None:
    """Tables on a terminal; on a pipe a line a row, without a header, its cells separated by tabs."""
    if sys.stdout.isatty():
        _draw(tables)
        return
    lines = [
        "\t".join([table.label] * labelled + list(map(_text, row))) + "\n"
        for table in tables
        for row in table.rows
    ]
    write("".join(lines).encode(errors="surrogateescape"))


def _draw(tables: Sequence[Table]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console()
    for table in tables:
        drawn = RichTable(box=SIMPLE)
        numbers = [
            bool(table.rows) and all(_is_number(row[i]) for row in table.rows)
            for i in range(len(table.columns))
        ]
        for column, is_number in zip(table.columns, numbers, strict=True):
            drawn.add_column(column, justify="right" if is_number else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(escape(_text(cell)) for cell in row))
        with console.capture() as text:
            if table.title is not None:
                console.print(table.title, style="bold", markup=False, highlight=False)
            console.print(drawn if table.rows else "  (none)\n", highlight=False)
        write(text.get().encode(errors="surrogateescape"))


def _is_number(cell: object) -> bool:
    return cell is None or isinstance(cell, int)


def _text(cell: object) -> str:
    return "-" if cell is None else str(cell)
