"""Values to response messages of whatever version was asked for.

Kafka adds fields to its messages from version to version. A handler gives the values of all fields that it
knows, as mappings; ``build`` takes those that the version has, and leaves the others out. A field that is not
given has the version's default; without one, no throttling and no error.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from kio.schema.errors import ErrorCode
from kio.serial import entity_writer

Values = Mapping[str, Any]
Buffer = bytes | bytearray | memoryview
_Convert = Callable[[Any], Any]

_FALLBACKS = {"throttle_time": datetime.timedelta(0), "error_code": ErrorCode.none}


class _Plan(typing.NamedTuple):
    """The fields of a message class, with what makes their values of ours, and values for those not given."""

    fields: tuple[tuple[str, _Convert | None], ...]
    fallbacks: dict[str, Any]


def build(message: type[Any], values: Values) -> Any:
    """A message of class *message*; nested messages are mappings, arrays of them sequences of mappings."""
    plan = _plan(message)  # type: ignore[arg-type]  # a class is hashable
    given = dict(plan.fallbacks)
    for name, convert in plan.fields:
        if name in values:
            given[name] = values[name] if convert is None else convert(values[name])
    return message(**given)


@cache
def _plan(message: type[Any]) -> _Plan:
    hints = typing.get_type_hints(message)
    fields = dataclasses.fields(message)
    return _Plan(
        tuple((field.name, _converter(hints[field.name])) for field in fields),
        {
            field.name: _FALLBACKS[field.name]
            for field in fields
            if field.default is dataclasses.MISSING and field.name in _FALLBACKS
        },
    )


def _converter(hint: Any) -> _Convert | None:
    if dataclasses.is_dataclass(hint):
        return lambda values: build(hint, values)  # type: ignore[arg-type]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (inner,) = [part for part in typing.get_args(hint) if part is not type(None)]
        convert = _converter(inner)
        return None if convert is None else lambda value: None if value is None else convert(value)
    if typing.get_origin(hint) is tuple:
        each = _converter(typing.get_args(hint)[0])
        return tuple if each is None else lambda items: _all(each, items)
    return None


def _all(convert: _Convert, items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple([convert(item) for item in items])


def encode(message: Any) -> bytes:
    """The bytes of a message."""
    buffer = io.BytesIO()
    entity_writer(type(message))(buffer, message)
    return buffer.getvalue()


class Pieces:
    """Bytes in several buffers, for a field of records: they go out without being copied together."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = buffers
        self._size_bytes = sum(map(len, buffers))

    def __len__(self) -> int:
        return self._size_bytes


class _PieceWriter:
    """What kio's writers write to: gathers small fields, and passes ``Pieces`` on."""

    def __init__(self, begin: bytes) -> None:
        self.pieces: list[Buffer] = []
        self._small = bytearray(begin)

    def write(self, data: bytes | Pieces) -> None:
        if isinstance(data, Pieces):
            self.finish()
            self.pieces += data.buffers
        else:
            self._small += data

    def finish(self) -> list[Buffer]:
        if self._small:
            self.pieces.append(self._small)
            self._small = bytearray()
        return self.pieces


def encode_pieces(header: bytes, message: Any) -> list[Buffer]:
    """*header* and a message with ``Pieces`` in it, as buffers that follow each other."""
    writer = _PieceWriter(header)
    entity_writer(type(message))(writer, message)  # type: ignore[arg-type]
    return writer.finish()
