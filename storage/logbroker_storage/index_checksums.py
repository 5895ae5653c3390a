"""What a segment's indexes sum to: a file beside them, because their own formats, which are Kafka's, have no room.

    at  size  field               type    meaning
     0     4  crc                 uint32  CRC-32C of everything behind it
     4     4  offset_index_bytes  uint32  so much of the .index is vouched for
     8     4  offset_index_crc    uint32  CRC-32C of that
    12     4  time_index_bytes    uint32  the same of the .timeindex
    16     4  time_index_crc      uint32
    20     4  aborted_index_bytes uint32  the same of the .txnindex; 0 where there is none
    24     4  aborted_index_crc   uint32

A flipped bit in an index is plausible more often than not: a look-up by time would begin too late, a record of an
aborted transaction be read, a segment expire too early. An index that does not bear its sum out is not believed;
what it says is found in the batches. The indexes of the active segment grow, so of these a sum is true of their
beginning; a sealed segment's are summed whole. Where there is no such file, or one that fails its own checksum, the
indexes are believed as far as they are well-formed.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .crc32c import crc32c

LAYOUT = struct.Struct(">IIIIIII")
_CRC = struct.Struct(">I")


class Checksum(NamedTuple):
    """Of the first *size_bytes* of an index."""

    size_bytes: int
    crc: int

    @classmethod
    def of(cls, content: bytes) -> Checksum:
        return cls(len(content), crc32c(content))

    def vouches_for(self, content: bytes, *, may_have_grown: bool) -> bool:
        """Whether *content* is what was summed, or has grown from it where it may."""
        size_bytes = self.size_bytes
        has_size = len(content) >= size_bytes if may_have_grown else len(content) == size_bytes
        return has_size and crc32c(content[:size_bytes]) == self.crc


class IndexChecksums(NamedTuple):
    """Of the three indexes of a segment."""

    offset_index: Checksum
    time_index: Checksum
    aborted_index: Checksum


def encode(checksums: IndexChecksums) -> bytes:
    """The content of the file."""
    body = LAYOUT.pack(0, *checksums.offset_index, *checksums.time_index, *checksums.aborted_index)[
        _CRC.size :
    ]
    return _CRC.pack(crc32c(body)) + body


def parse(data: bytes) -> IndexChecksums:
    """The checksums in *data*; ``ValueError`` when it is not sound."""
    if len(data) != LAYOUT.size:
        raise ValueError(f"index checksums: {len(data)} bytes, not {LAYOUT.size}")
    crc, *fields = LAYOUT.unpack(data)
    if crc32c(data[_CRC.size :]) != crc:
        raise ValueError("index checksums: the checksum of the file itself does not match")
    return IndexChecksums(Checksum(*fields[0:2]), Checksum(*fields[2:4]), Checksum(*fields[4:6]))
