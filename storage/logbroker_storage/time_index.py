"""Sparse time index: from which offset on to look for a timestamp.

An entry says: no record up to and including this offset is newer than this timestamp. It is written
together with an offset index entry, but only when the largest timestamp has grown since the last one,
and once more when the segment is rolled or closed. The file is a cache: a malformed one is rebuilt.

    at  size  field            type   meaning
     0     8  timestamp_ms     int64  largest timestamp in the segment so far
     8     4  relative_offset  int32  last offset of the batch that holds it, minus the segment's base

Invariant: timestamp_ms strictly increases, relative_offset strictly increases (each new maximum lies in
a later batch). As in the offset index, a tail of zero bytes is unused space. An offset that lies too far from the
segment's base, as old versions of Kafka wrote it, is put as the largest int32: a lookup begins there.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .offset_index import MAX_RELATIVE_OFFSET, IndexDefect

ENTRY = struct.Struct(">qi")
ENTRY_BYTES = ENTRY.size

_unpack = ENTRY.unpack_from


class TimeIndexEntry(NamedTuple):
    """The largest timestamp so far, and the relative last offset of the batch that holds it."""

    timestamp_ms: int
    relative_offset: int


def encode_entry(timestamp_ms: int, relative_offset: int) -> bytes:
    """The 12 bytes of one entry."""
    return ENTRY.pack(timestamp_ms, relative_offset)


def add_entry(entries: bytearray, timestamp_ms: int, relative_offset: int) -> None:
    """Put an entry with a larger timestamp behind *entries*; of offsets too large for one only the last has one."""
    if relative_offset > MAX_RELATIVE_OFFSET:
        relative_offset = MAX_RELATIVE_OFFSET
        if len(entries) >= ENTRY_BYTES and _unpack(entries, len(entries) - ENTRY_BYTES)[1] == relative_offset:
            del entries[-ENTRY_BYTES:]
    entries += encode_entry(timestamp_ms, relative_offset)


def used_bytes(buffer: bytes | memoryview) -> int:
    """How many bytes hold entries: the size without a tail of all-zero entries (allocated in advance).

    One entry (0, 0) can be real: a first batch of offset 0 at timestamp 0. As Kafka cannot tell them
    apart either, it is taken for unused; the index is then merely a little sparser.
    """
    if len(buffer) < ENTRY_BYTES or _unpack(buffer, len(buffer) - ENTRY_BYTES) != (0, 0):
        return len(buffer)
    used = len(bytes(buffer).rstrip(b"\0"))
    return -(-used // ENTRY_BYTES) * ENTRY_BYTES


def parse(buffer: bytes | memoryview) -> list[TimeIndexEntry]:
    """Every whole entry, in file order, unchecked; an unused tail of zeros is left out."""
    whole = used_bytes(buffer) // ENTRY_BYTES * ENTRY_BYTES
    return [TimeIndexEntry(*fields) for fields in ENTRY.iter_unpack(buffer[:whole])]


def check(buffer: bytes | memoryview, *, end_relative_offset: int) -> IndexDefect | None:
    """What makes the index unusable, or None; *end_relative_offset* is exclusive."""
    if len(buffer) % ENTRY_BYTES:
        return IndexDefect.BAD_SIZE
    previous_timestamp_ms, previous_offset = -1, -1
    for timestamp_ms, relative_offset in ENTRY.iter_unpack(buffer[: used_bytes(buffer)]):
        if timestamp_ms <= previous_timestamp_ms or relative_offset <= previous_offset:
            return IndexDefect.NOT_ASCENDING
        previous_timestamp_ms, previous_offset = timestamp_ms, relative_offset
    if previous_offset >= end_relative_offset and previous_offset >= 0:
        return IndexDefect.OUT_OF_BOUNDS
    return None


def lookup(buffer: bytes | memoryview, timestamp_ms: int) -> int:
    """The relative offset of the last entry at or below *timestamp_ms*, 0 when there is none.

    Records before the batch of that offset are all older than *timestamp_ms*; the batch itself may hold
    the first that is not. *buffer* holds a checked index without an unused tail.
    """
    low, high = 0, len(buffer) // ENTRY_BYTES
    while low < high:
        middle = (low + high) // 2
        if _unpack(buffer, middle * ENTRY_BYTES)[0] <= timestamp_ms:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return 0
    relative_offset: int = _unpack(buffer, (low - 1) * ENTRY_BYTES)[1]
    return relative_offset


def last_timestamp_ms(buffer: bytes | memoryview) -> int:
    """The largest timestamp that the index knows, -1 when empty; the log's end may hold a larger one."""
    if len(buffer) < ENTRY_BYTES:
        return -1
    timestamp_ms: int = _unpack(buffer, len(buffer) - ENTRY_BYTES)[0]
    return timestamp_ms
