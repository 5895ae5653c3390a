"""How commands print: JSON, a table on a terminal, tab-separated lines on a pipe.

In JSON, bytes are text when they are UTF-8. Otherwise they are base64, and a second field says so:
``{"value": "/w==", "encoding": "base64"}`` for a record's value, ``"key_encoding"`` for its key, and in
a header's object ``"encoding"`` beside its ``"value"``.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

BASE64 = "base64"


def print_json(value: Any) -> None:
    """One document, with a newline behind it."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def json_line(value: Any) -> bytes:
    """One document on one line."""
    return msgspec.json.encode(value) + b"\n"


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> None:
    """A table on a terminal; on a pipe a line of tab-separated cells a row, without a header."""
    texts = [[_text(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in texts:
            sys.stdout.write("\t".join(row) + "\n")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in texts:
        table.add_row(*map(escape, row))
    Console().print(table)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return str(cell)


def json_bytes(data: bytes | None, field: str, encoding_field: str) -> dict[str, str | None]:
    """The fields that say what *data* is."""
    if data is None:
        return {field: None}
    try:
        return {field: data.decode()}
    except UnicodeDecodeError:
        return {field: base64.b64encode(data).decode(), encoding_field: BASE64}


def say(message: str) -> None:
    """A line for the person at the terminal, on stderr: it never mixes with what is printed."""
    print(message, file=sys.stderr)
