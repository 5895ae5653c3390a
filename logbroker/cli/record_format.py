r"""How ``tail`` prints a record: a format, only its value, JSON, or for somebody at a terminal.

    %t topic   %p partition   %o offset   %T timestamp (ms since 1970)   %%
    %k key     %v value       %h headers  %K bytes of the key            %V bytes of the value
    \n newline   \t tab   \r   \0   \\

Headers print as ``key=value`` with commas between. Bytes come out as they are; null prints as nothing, and
has -1 bytes. On a terminal a record is one line whatever is in it: control characters and bytes that are not
UTF-8 are escaped.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import typer

from logbroker_storage.record import Record

from .output import json_text

Shown = TypeVar("Shown")  # what is printed: a record, or a message that has one
Formatter = Callable[[Sequence[Record]], bytes]
Piece = Callable[[Record], bytes]

TAB_SEPARATED = r"%t\t%p\t%o\t%T\t%k\t%v\t%h\n"

_json = msgspec.json.Encoder()


def _headers(record: Record) -> bytes:
    return b",".join(_utf8(key) + b"=" + (value or b"") for key, value in record.header_pairs)


def _utf8(text: str) -> bytes:
    """A header's key; where it was not UTF-8, the bytes that it was."""
    return text.encode(errors="surrogateescape")


FIELDS: dict[str, Piece] = {
    "t": lambda record: record.topic.encode(),
    "p": lambda record: b"%d" % record.partition,
    "o": lambda record: b"%d" % record.offset,
    "T": lambda record: b"%d" % record.timestamp_ms,
    "k": lambda record: record.key or b"",
    "v": lambda record: record.value or b"",
    "h": _headers,
    "K": lambda record: b"%d" % (-1 if record.key is None else len(record.key)),
    "V": lambda record: b"%d" % (-1 if record.value is None else len(record.value)),
    "%": lambda _: b"%",
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}


# Formats --------------------------------------------------------------------------------------------------


def formatter(format: str) -> Formatter:
    """What prints records by *format*.

    Raises:
        typer.BadParameter: it has a field or escape that is not in the table.
    """
    return formatter_with(FIELDS, format)


def formatter_with(
    fields: Mapping[str, Callable[[Shown], bytes]], format: str
) -> Callable[[Sequence[Shown]], bytes]:
    """The same, of *fields* of whatever has them."""
    pieces = _pieces(format, fields)

    def print_records(records: Sequence[Shown]) -> bytes:
        return b"".join([piece(record) for record in records for piece in pieces])

    return print_records


def _pieces(format: str, fields: Mapping[str, Callable[[Shown], bytes]]) -> list[Callable[[Shown], bytes]]:
    pieces: list[Callable[[Shown], bytes]] = []
    text = ""
    characters = iter(format)
    for character in characters:
        if character not in "%\\":
            text += character
            continue
        following = next(characters, "")
        known: Mapping[str, object] = fields if character == "%" else _ESCAPES
        if following not in known:
            choices = " ".join(character + name for name in known)
            raise typer.BadParameter(f"--format: {character}{following} is none of {choices}")
        if character == "%":
            pieces += [_constant(text), fields[following]] if text else [fields[following]]
            text = ""
        else:
            text += _ESCAPES[following]
    return [*pieces, _constant(text)] if text else pieces


def _constant(text: str) -> Callable[[object], bytes]:
    encoded = _utf8(text)
    return lambda _: encoded


# Values ---------------------------------------------------------------------------------------------------


def values_with_newlines(records: Sequence[Record]) -> bytes:
    """Each value with a newline behind it; 0.05 µs a record."""
    values = [record.value or b"" for record in records]
    values.append(b"")
    return b"\n".join(values)


# JSON -----------------------------------------------------------------------------------------------------


class _JsonHeader(msgspec.Struct, gc=False):
    key: str
    value: str | None
    encoding: str | msgspec.UnsetType = msgspec.UNSET


class _JsonRecord(msgspec.Struct, gc=False):
    """What JSON says of a record; ``output`` says how bytes are shown."""

    topic: str
    partition: int
    offset: int
    timestamp: str
    timestamp_ms: int
    key: str | None
    value: str | None
    headers: list[_JsonHeader]
    key_encoding: str | msgspec.UnsetType = msgspec.UNSET
    encoding: str | msgspec.UnsetType = msgspec.UNSET


def json_lines(records: Sequence[Record]) -> bytes:
    """One JSON object a line; 2 µs a record."""
    return _json.encode_lines(map(_json_record, records))


def record_document(record: Record) -> dict[str, Any]:
    """The same as a document, to which more can be added."""
    document = msgspec.to_builtins(_json_record(record))
    assert isinstance(document, dict)
    return document


def _json_record(record: Record) -> _JsonRecord:
    key, key_encoding = json_text(record.key)
    value, encoding = json_text(record.value)
    return _JsonRecord(
        record.topic,
        record.partition,
        record.offset,
        _utc_time(record.timestamp_ms),
        record.timestamp_ms,
        key,
        value,
        [_json_header(*header) for header in record.header_pairs],
        key_encoding or msgspec.UNSET,
        encoding or msgspec.UNSET,
    )


def _json_header(key: str, value: bytes | None) -> _JsonHeader:
    text, encoding = json_text(value)
    return _JsonHeader(_utf8(key).decode(errors="replace"), text, encoding or msgspec.UNSET)


@functools.lru_cache(maxsize=64)
def _utc_time(timestamp_ms: int) -> str:
    """Records come in runs of one millisecond, and making this text takes as long as all the rest."""
    moment = Record("", 0, 0, timestamp_ms, None, None).timestamp
    return moment.isoformat(timespec="milliseconds")


# For a terminal -------------------------------------------------------------------------------------------


def terminal_lines(records: Sequence[Record]) -> bytes:
    """One line a record: where, when, key, value, headers."""
    return "".join(map(_terminal_line, records)).encode()


def _terminal_line(record: Record) -> str:
    cells = [f"{record.topic}-{record.partition}", str(record.offset), _local_time(record.timestamp)]
    if record.key is not None:
        cells.append(shown(record.key) + ":")
    cells.append("(null)" if record.value is None else shown(record.value))
    if record.header_pairs:
        cells.append("{" + shown(_headers(record)) + "}")
    return "  ".join(cells) + "\n"


def _local_time(timestamp: datetime.datetime) -> str:
    try:
        timestamp = timestamp.astimezone()
    except (OverflowError, ValueError):
        pass  # at the edge of the years that Python knows: as it is, in UTC
    return timestamp.isoformat(sep=" ", timespec="milliseconds")


def shown(data: bytes) -> str:
    """*data* as text that does nothing to a terminal."""
    text = data.decode(errors="backslashreplace")
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
