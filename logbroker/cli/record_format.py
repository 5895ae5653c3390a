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
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import typer

from logbroker_storage.record import Record

from .output import json_text

Shown = TypeVar("Shown")  # what is printed: a record, or a message that has one
Formatter = Callable[[Sequence[Record]], bytes]
Column = Callable[[Sequence[Shown]], list[bytes] | list[int]]


class Field(NamedTuple, Generic[Shown]):
    """One field of many records at once: a call for each of each record would take most of the time."""

    conversion: bytes
    """As in a bytes template."""
    column: Column[Shown]


TAB_SEPARATED = r"%t\t%p\t%o\t%T\t%k\t%v\t%h\n"

_json = msgspec.json.Encoder()


def _headers(record: Record) -> bytes:
    return b",".join([_utf8(key) + b"=" + (value or b"") for key, value in record.header_pairs])


def _utf8(text: str) -> bytes:
    """A header's key; where it was not UTF-8, the bytes that it was."""
    return text.encode(errors="surrogateescape")


def _header_cells(records: Sequence[Record]) -> list[bytes]:
    return [_headers(record) if record.header_pairs else b"" for record in records]


FIELDS: dict[str, Field[Record]] = {
    "t": Field(b"%b", lambda records: [record.topic.encode() for record in records]),
    "p": Field(b"%d", lambda records: [record.partition for record in records]),
    "o": Field(b"%d", lambda records: [record.offset for record in records]),
    "T": Field(b"%d", lambda records: [record.timestamp_ms for record in records]),
    "k": Field(b"%b", lambda records: [record.key or b"" for record in records]),
    "v": Field(b"%b", lambda records: [record.value or b"" for record in records]),
    "h": Field(b"%b", _header_cells),
    "K": Field(b"%d", lambda records: [-1 if record.key is None else len(record.key) for record in records]),
    "V": Field(
        b"%d", lambda records: [-1 if record.value is None else len(record.value) for record in records]
    ),
}
_PERCENT = "%"
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}


# Formats --------------------------------------------------------------------------------------------------


def formatter(format: str) -> Formatter:
    """What prints records by *format*.

    Raises:
        typer.BadParameter: it has a field or escape that is not in the table.
    """
    return formatter_with(FIELDS, format)


def formatter_with(fields: Mapping[str, Field[Shown]], format: str) -> Callable[[Sequence[Shown]], bytes]:
    """The same, of *fields* of whatever has them; 0.3 µs a record with seven fields."""
    template, columns = _template(format, fields)

    def print_records(records: Sequence[Shown]) -> bytes:
        if not columns:
            return (template % ()) * len(records)
        return b"".join(map(template.__mod__, zip(*[column(records) for column in columns], strict=True)))

    return print_records


def _template(format: str, fields: Mapping[str, Field[Shown]]) -> tuple[bytes, list[Column[Shown]]]:
    """A template for the bytes of one record, and what fills it in."""
    template = b""
    columns: list[Column[Shown]] = []
    characters = iter(format)
    for character in characters:
        if character not in "%\\":
            template += _utf8(character)
            continue
        following = next(characters, "")
        known: Collection[str] = [*fields, _PERCENT] if character == "%" else _ESCAPES
        if following not in known:
            choices = " ".join(character + name for name in known)
            raise typer.BadParameter(f"--format: {character}{following} is none of {choices}")
        if character == "\\":
            template += _utf8(_ESCAPES[following])
        elif following == _PERCENT:
            template += b"%%"
        else:
            template += fields[following].conversion
            columns.append(fields[following].column)
    return template, columns


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
