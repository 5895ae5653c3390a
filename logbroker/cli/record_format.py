r"""How ``tail`` prints a record: a format, only its value, or JSON.

    %t topic   %p partition   %o offset   %T timestamp (ms since 1970)   %k key   %v value   %h headers   %%
    \n newline   \t tab   \r   \0   \\

Headers print as ``key=value`` with commas between; null prints as nothing. Bytes come out as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from .output import json_bytes, json_line

if TYPE_CHECKING:
    from ..records import Record

Formatter = Callable[[Sequence["Record"]], bytes]
Piece = Callable[["Record"], bytes]

DEFAULT_FORMAT = "%v\\n"

_FIELDS: dict[str, Piece] = {
    "t": lambda record: record.topic.encode(),
    "p": lambda record: b"%d" % record.partition,
    "o": lambda record: b"%d" % record.offset,
    "T": lambda record: b"%d" % record.timestamp_ms,
    "k": lambda record: record.key or b"",
    "v": lambda record: record.value or b"",
    "h": lambda record: b",".join(
        key.encode(errors="surrogateescape") + b"=" + (value or b"") for key, value in record.headers
    ),
    "%": lambda _: b"%",
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}


def formatter(format: str) -> Formatter:
    """What prints records by *format*.

    Raises:
        typer.BadParameter: it has a field or escape that is not in the table.
    """
    pieces = _pieces(format)

    def print_records(records: Sequence[Record]) -> bytes:
        return b"".join([piece(record) for record in records for piece in pieces])

    return print_records


def _pieces(format: str) -> list[Piece]:
    pieces: list[Piece] = []
    text = ""
    characters = iter(format)
    for character in characters:
        following = next(characters, "") if character in "%\\" else ""
        if character == "%":
            if following not in _FIELDS or not following:
                raise typer.BadParameter(f"--format: %{following} is none of %{' %'.join(_FIELDS)}")
            pieces += [_constant(text), _FIELDS[following]]
            text = ""
        elif character == "\\":
            if following not in _ESCAPES or not following:
                raise typer.BadParameter(rf"--format: \{following} is none of \n \t \r \0 \\")
            text += _ESCAPES[following]
        else:
            text += character
    return [*pieces, _constant(text)]


def _constant(text: str) -> Piece:
    encoded = text.encode()
    return lambda _: encoded


def values_with_newlines(records: Sequence[Record]) -> bytes:
    """Each value with a newline behind it."""
    values = [record.value or b"" for record in records]
    values.append(b"")
    return b"\n".join(values)


def json_record(record: Record) -> bytes:
    """One record as a JSON object on one line."""
    return json_line(
        {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp.isoformat(),
            "timestamp_ms": record.timestamp_ms,
            **json_bytes(record.key, "key", "key_encoding"),
            **json_bytes(record.value, "value", "encoding"),
            "headers": [
                {"key": key.encode(errors="replace").decode(), **json_bytes(value, "value", "encoding")}
                for key, value in record.headers
            ],
        }
    )
