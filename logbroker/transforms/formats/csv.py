"""CSV, through the standard library's reader and writer.

lines    header     the value is                          and becomes
one      no         one line                              a map, its fields named by ``columns``
one      yes        a line of names, and one line         a map
many     no, yes    any number of lines                   a list of maps
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from logbroker_storage.errors import InvalidRequestError

from ..draft import Draft
from ..errors import StepFailed
from ..options import Form, Step, StepOptions, Surroundings
from ..values import as_text
from .text import check_encoding

Lines = Literal["one", "many"]


class DecodeCsv(StepOptions, frozen=True):
    """Parse the value as CSV: one line as a map of text, many as a list of maps."""

    takes = Form.BYTES

    columns: list[str] = []  # names; with a header they must be those of the header
    header: bool = False  # the first line has the names
    lines: Lines = "one"
    delimiter: str = ","
    quote: str = '"'
    encoding: str = "utf-8"

    def build(self, around: Surroundings) -> Step:
        _check(self.delimiter, self.quote, self.columns)
        check_encoding(self.encoding)
        if not self.columns and not self.header:
            raise InvalidRequestError(
                "give columns = [...], or header = true if the value brings their names"
            )
        columns, encoding = list(self.columns), self.encoding
        has_header, one_line = self.header, self.lines == "one"
        delimiter, quote = self.delimiter, self.quote

        def decode_csv(draft: Draft) -> Draft:
            try:
                text = draft.payload.decode(encoding)
                rows = list(
                    csv.reader(
                        io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quote, strict=True
                    )
                )
            except (csv.Error, UnicodeError) as error:
                raise StepFailed(f"the value is not CSV: {error}") from None
            rows = [row for row in rows if row]
            names = _names(rows, columns) if has_header else columns
            if one_line and len(rows) != 1:
                raise StepFailed(f'the value has {len(rows)} lines, not one; lines = "many" takes them')
            maps = [_map(names, row) for row in rows]
            draft.payload = maps[0] if one_line else maps
            draft.is_decoded = True
            return draft

        return decode_csv


def _names(rows: list[list[str]], columns: list[str]) -> list[str]:
    """Take off the header."""
    if not rows:
        raise StepFailed("the value has no header")
    names = rows.pop(0)
    if columns and names != columns:
        raise StepFailed(f"the header is {names!r:.200}, not {columns!r:.200}")
    if len(set(names)) != len(names):
        raise StepFailed(f"two columns of the header have one name: {names!r:.200}")
    return names


def _map(names: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    if len(names) != len(row):
        raise StepFailed(f"a line has {len(row)} columns, not {len(names)}")
    return dict(zip(names, row, strict=True))


class EncodeCsv(StepOptions, frozen=True):
    """Write a map as a line of CSV, or a list of maps as lines."""

    leaves = Form.BYTES

    columns: list[str] = []  # which fields, and their order; else all of the first map
    header: bool = False  # begin with a line of names
    delimiter: str = ","
    quote: str = '"'
    encoding: str = "utf-8"

    def build(self, around: Surroundings) -> Step:
        _check(self.delimiter, self.quote, self.columns)
        check_encoding(self.encoding)
        columns, has_header, encoding = list(self.columns), self.header, self.encoding
        delimiter, quote = self.delimiter, self.quote

        def encode_csv(draft: Draft) -> Draft:
            maps = draft.payload if type(draft.payload) is list else [draft.payload]
            if not all(type(one) is dict for one in maps):
                raise StepFailed("the value is neither a map nor a list of maps")
            names = columns or (list(maps[0]) if maps else [])
            lines: list[str] = []
            # The writer only quotes what is in the terminator, so that is \r\n and is cut off again.
            writer = csv.writer(_Lines(lines.append), delimiter=delimiter, quotechar=quote)
            try:
                if has_header:
                    writer.writerow(names)
                for one in maps:
                    if not columns and len(one) != len(names):
                        raise StepFailed("the maps have different fields; name them with columns = [...]")
                    writer.writerow([_cell(one, name) for name in names])
                draft.payload = "\n".join(line.removesuffix("\r\n") for line in lines).encode(encoding)
            except (csv.Error, UnicodeError) as error:
                raise StepFailed(f"the value cannot be written as CSV: {error}") from None
            draft.is_decoded = False
            return draft

        return encode_csv


class _Lines(NamedTuple):
    """As much of a file as a CSV writer needs: it writes a line at a time."""

    write: Callable[[str], object]


def _cell(source: dict[Any, Any], name: str) -> str:
    value = source.get(name)
    if type(value) in (dict, list):
        raise StepFailed(
            f"field {name} is a {type(value).__name__}; a step flatten before makes columns of it"
        )
    return as_text(value)


def _check(delimiter: str, quote: str, columns: Sequence[str]) -> None:
    if len(delimiter) != 1 or len(quote) != 1 or delimiter == quote or {delimiter, quote} & set("\r\n\0"):
        raise InvalidRequestError(
            f"delimiter {delimiter!r} and quote {quote!r}: one character each, and different"
        )
    if len(set(columns)) != len(columns):
        raise InvalidRequestError("two columns have one name; give each its own")
