"""Sparse offset index: where in the log file to start looking for an offset.

One entry for about every ``index.interval.bytes`` of log. A lookup takes the last entry at or below
the wanted offset and scans forward from there. The file is a cache: a malformed one is rebuilt.

    at  size  field            type   meaning
     0     4  relative_offset  int32  last offset of a batch, minus the segment's base offset
     4     4  position         int32  first byte of that batch in the log file

Invariant: both strictly increase. Kafka allocates the file of its active segment in advance, so a
tail of zero bytes is not an error but unused; (0, 0) is never an entry, because the batch at
position 0 gets none. A batch that lies too far from the segment's base for an int32, as old versions of Kafka
wrote it, gets none either.
"""

from __future__ import annotations

import enum
import struct
import sys
from array import array
from operator import lt
from typing import NamedTuple

ENTRY = struct.Struct(">ii")
ENTRY_BYTES = ENTRY.size
MAX_RELATIVE_OFFSET = (1 << 31) - 1

_unpack = ENTRY.unpack_from


class OffsetIndexEntry(NamedTuple):
    """A batch's last offset relative to the segment's base, and that batch's first byte in the log."""

    relative_offset: int
    position: int


class IndexDefect(enum.Enum):
    """Why an index file cannot be trusted and has to be rebuilt."""

    BAD_SIZE = "the size is no multiple of the entry size"
    NOT_ASCENDING = "the entries do not ascend"
    OUT_OF_BOUNDS = "an entry points outside the segment"
    BAD_VERSION = "an entry has an unknown version"
    MISSING = "the file is missing"


def encode_entry(relative_offset: int, position: int) -> bytes:
    """The 8 bytes of one entry."""
    return ENTRY.pack(relative_offset, position)


def used_bytes(buffer: bytes | memoryview) -> int:
    """How many bytes hold entries: the size without a tail of all-zero entries (allocated in advance)."""
    if len(buffer) < ENTRY_BYTES or _unpack(buffer, len(buffer) - ENTRY_BYTES) != (0, 0):
        return len(buffer)
    used = len(bytes(buffer).rstrip(b"\0"))
    return -(-used // ENTRY_BYTES) * ENTRY_BYTES


def parse(buffer: bytes | memoryview) -> list[OffsetIndexEntry]:
    """Every whole entry, in file order, unchecked; an unused tail of zeros is left out."""
    whole = used_bytes(buffer) // ENTRY_BYTES * ENTRY_BYTES
    return [OffsetIndexEntry(*fields) for fields in ENTRY.iter_unpack(buffer[:whole])]


def check(buffer: bytes | memoryview, *, end_relative_offset: int, end_position: int) -> IndexDefect | None:
    """What makes the index unusable for a log file of *end_position* bytes, or None.

    *end_relative_offset* is the segment's next offset minus its base offset (exclusive, as the position).
    """
    if len(buffer) % ENTRY_BYTES:
        return IndexDefect.BAD_SIZE
    fields = _int32s(buffer[: used_bytes(buffer)])
    relative_offsets, positions = fields[0::2], fields[1::2]
    if not _ascends(relative_offsets) or not _ascends(positions):
        return IndexDefect.NOT_ASCENDING
    if not fields:
        return None
    if relative_offsets[0] < 0 or relative_offsets[-1] >= end_relative_offset:
        return IndexDefect.OUT_OF_BOUNDS
    if positions[0] <= 0 or positions[-1] >= end_position:
        return IndexDefect.OUT_OF_BOUNDS
    return None


def lookup(buffer: bytes | memoryview, relative_offset: int) -> OffsetIndexEntry | None:
    """The last entry at or below *relative_offset*, None when there is none.

    It names a batch whose last offset is at most the wanted one: scan forward from there.
    *buffer* holds a checked index without an unused tail.
    """
    low, high = 0, len(buffer) // ENTRY_BYTES
    while (
        low < high
    ):  # bisect on the bytes: unpacking a whole index for one lookup would cost a thousand times as much
        middle = (low + high) // 2
        if _unpack(buffer, middle * ENTRY_BYTES)[0] <= relative_offset:
            low = middle + 1
        else:
            high = middle
    return OffsetIndexEntry(*_unpack(buffer, (low - 1) * ENTRY_BYTES)) if low else None


def _int32s(buffer: bytes | memoryview) -> array[int]:
    values = array("i", bytes(buffer))
    if sys.byteorder == "little":
        values.byteswap()
    return values


def _ascends(values: array[int]) -> bool:
    return all(map(lt, values, values[1:]))
