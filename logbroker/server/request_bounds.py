"""Whether a request's counts and lengths fit into its bytes, before anything is made of them.

kio's reader takes room for as many items as a count says before it has seen one, and a count of 2³² ends the
process. So each request is gone through first, by the same classes, field by field:

    what                        bound                                              else
    a string, bytes             the bytes left                                     BoundsError
    an array's count            the bytes left, as each item takes at least one    BoundsError
    a number of tagged fields   the bytes left, likewise                           BoundsError
    items and tagged fields     ``MAX_ITEMS`` of both in the whole request         BoundsError
    a tagged field              as long as it says, and there once                 BoundsError
    null                        where the schema has it                            BoundsError

A tagged field that the schema does not have comes from a client of a later release, and means nothing here (KIP-482).
kio refuses it, so it is taken out.

Invariant: what is passed here is what kio reads next. It does not look at the length of a tagged field that it
knows, nor mind which bytes but -1 say that a struct is there. Where this check went by another rule, kio would
find counts in bytes that were never looked at.
"""

from __future__ import annotations

import dataclasses
import struct
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from kio.static.constants import EntityType

MAX_ITEMS = 100_000
MAX_VARINT_BYTES = 5

_FIXED_BYTES = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "timedelta_i32": 4,
    "int64": 8,
    "timedelta_i64": 8,
    "float64": 8,
    "uuid": 16,
}
_INT16 = struct.Struct(">h")
_INT32 = struct.Struct(">i")
NULL = -1
NULL_BYTE = 0xFF
# In every version of the header, for those who read it before they know which it is.
LEGACY_OF_HEADER = ("client_id",)


class BoundsError(Exception):
    """The bytes cannot be such a request."""


class _Replacement(NamedTuple):
    """Bytes of a request that kio gets others for."""

    start: int
    end: int
    data: bytes = b""


class _Walk:
    """A request's bytes, and how far they have been gone through."""

    __slots__ = ("data", "items_left", "position", "replacements")

    def __init__(self, data: memoryview, position: int) -> None:
        self.data = data
        self.position = position
        self.items_left = MAX_ITEMS
        self.replacements: list[_Replacement] = []

    def skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self.data):
            raise BoundsError("it ends too early")

    def take_items(self, count: int) -> None:
        bytes_left = len(self.data) - self.position
        if count > bytes_left:
            raise BoundsError(f"{count} items in the {bytes_left} bytes left")
        self.items_left -= count
        if self.items_left < 0:
            raise BoundsError(f"more than {MAX_ITEMS} items")

    def varint(self) -> int:
        value = shift = 0
        for _ in range(MAX_VARINT_BYTES):
            if self.position >= len(self.data):
                raise BoundsError("it ends too early")
            byte = self.data[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise BoundsError("a length has too many bytes")

    def fixed(self, layout: struct.Struct) -> int:
        at = self.position
        self.skip(layout.size)
        (value,) = layout.unpack_from(self.data, at)
        return int(value)

    def known(self) -> memoryview:
        """The bytes without the tagged fields that the schema does not have."""
        if not self.replacements:
            return self.data
        pieces: list[memoryview | bytes] = []
        position = 0
        for start, end, data in sorted(self.replacements):
            pieces += self.data[position:start], data
            position = end
        return memoryview(b"".join((*pieces, self.data[position:])))


_Step = Callable[[_Walk], None]


def check_bounds(message: type[Any], data: memoryview, position: int) -> memoryview:
    """Hold that *data* from *position* on may be a *message* of kio's; the bytes for kio to read from there.

    Raises:
        BoundsError: a count or length does not fit, or there are more items than any client sends.
    """
    walk = _Walk(data, position)
    _walker(message)(walk)  # type: ignore[arg-type]  # a class is hashable
    return walk.known()


@cache
def _walker(message: type[Any]) -> _Step:
    hints = typing.get_type_hints(message)
    is_flexible = message.__flexible__
    legacy = LEGACY_OF_HEADER if message.__type__ is EntityType.header else ()
    steps: list[_Step] = []
    tagged: dict[int, _Step] = {}
    for field in dataclasses.fields(message):
        step = _step(hints[field.name], field, is_flexible=is_flexible and field.name not in legacy)
        if "tag" in field.metadata:
            tagged[field.metadata["tag"]] = step
        else:
            steps.append(step)
    if is_flexible:
        steps.append(_tags(tagged))
    return _all(steps)


def _all(steps: list[_Step]) -> _Step:
    def walk(walk: _Walk) -> None:
        for step in steps:
            step(walk)

    return walk


def _step(hint: Any, field: dataclasses.Field[Any], *, is_flexible: bool) -> _Step:
    is_nullable = isinstance(hint, types.UnionType)
    if is_nullable:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is not tuple:
        return _one(hint, field, is_flexible=is_flexible, is_nullable=is_nullable)
    item = typing.get_args(hint)[0]
    each = _one(item, field, is_flexible=is_flexible, is_nullable=isinstance(item, types.UnionType))
    return _array(each, is_flexible=is_flexible, is_nullable=is_nullable)


def _one(hint: Any, field: dataclasses.Field[Any], *, is_flexible: bool, is_nullable: bool) -> _Step:
    if dataclasses.is_dataclass(hint):
        if not is_nullable:
            return _walker(hint)  # type: ignore[arg-type]
        return _optional(_walker(hint))  # type: ignore[arg-type]
    kind = field.metadata["kafka_type"]
    if kind in _FIXED_BYTES:
        size = _FIXED_BYTES[kind]
        return lambda walk: walk.skip(size)
    length = _length_reader(_INT16 if kind == "string" else _INT32, is_flexible=is_flexible)

    def pass_bytes(walk: _Walk) -> None:
        size = length(walk)
        if size < 0:
            if size != NULL or not is_nullable:
                raise BoundsError("it is null where it cannot be")
            return
        walk.skip(size)

    return pass_bytes


def _length_reader(legacy: struct.Struct, *, is_flexible: bool) -> Callable[[_Walk], int]:
    """A length or count; -1 for null."""
    if is_flexible:
        return lambda walk: walk.varint() - 1
    return lambda walk: walk.fixed(legacy)


def _array(each: _Step, *, is_flexible: bool, is_nullable: bool) -> _Step:
    length = _length_reader(_INT32, is_flexible=is_flexible)

    def pass_items(walk: _Walk) -> None:
        count = length(walk)
        if count < 0:
            if count != NULL or not is_nullable:
                raise BoundsError("an array is null where it cannot be")
            return
        walk.take_items(count)
        for _ in range(count):
            each(walk)

    return pass_items


def _optional(step: _Step) -> _Step:
    """A struct behind a byte that says whether it is there."""

    def walk(walk: _Walk) -> None:
        at = walk.position
        walk.skip(1)
        if walk.data[at] != NULL_BYTE:
            step(walk)

    return walk


def _tags(tagged: dict[int, _Step]) -> _Step:
    """Tagged fields, of which the schema has those in *tagged*; what the others hold is nobody's to read."""

    def pass_tags(walk: _Walk) -> None:
        number_at = walk.position
        count = walk.varint()
        if not count:
            return
        fields_at = walk.position
        walk.take_items(count)
        seen = set()
        for _ in range(count):
            start = walk.position
            tag = walk.varint()
            size = walk.varint()
            end = walk.position + size
            if tag not in tagged:
                walk.skip(size)
                walk.replacements.append(_Replacement(start, end))
                continue
            tagged[tag](walk)
            if walk.position != end:
                raise BoundsError("a tagged field is not as long as it says")
            if tag in seen:
                raise BoundsError("a tagged field is there twice")
            seen.add(tag)
        if len(seen) < count:
            walk.replacements.append(_Replacement(number_at, fields_at, bytes([len(seen)])))

    return pass_tags
