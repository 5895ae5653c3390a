"""Producer snapshot: the state of every producer id just before an offset, to save reading the log.

The file is named after that offset, ``00000000000000000042.snapshot``. It holds the last batches of each producer
id, an entry for each, oldest first: what a client has in flight is known after a restart too. Kafka, which writes
the last one only, takes the last that it reads of a producer id. A snapshot is an accelerator: one that does not
parse is kept aside, and the state is folded from the batch headers.

    at  size  field    type    meaning
     0     2  version  int16   1
     2     4  crc      uint32  CRC-32C from byte 6 to the end
     6     4  count    int32   how many entries follow

    at  size  field                     type   meaning, within an entry
     0     8  producer_id               int64
     8     2  producer_epoch            int16
    10     4  last_sequence             int32  of the last batch; -1 when there is none
    14     8  last_offset               int64  of the last batch; -1 when there is none
    22     4  offset_delta              int32  last_offset minus the batch's first
    26     8  timestamp_ms              int64  largest timestamp of that batch
    34     4  coordinator_epoch         int32  of the last transaction marker; -1 when there is none
    38     8  current_txn_first_offset  int64  of the open transaction; -1 when there is none
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from .crc32c import crc32c

HEADER = struct.Struct(">hIi")
ENTRY = struct.Struct(">qhiqiqiq")
HEADER_BYTES = HEADER.size
ENTRY_BYTES = ENTRY.size
CRC_START = 6  # the CRC covers everything behind itself
VERSION = 1
_COUNT = struct.Struct(">i")


class ProducerSnapshotEntry(msgspec.Struct, frozen=True, gc=False):
    """One producer id as a snapshot knows it; -1 stands for "none" as in the table above."""

    producer_id: int
    producer_epoch: int
    last_sequence: int
    last_offset: int
    offset_delta: int
    timestamp_ms: int
    coordinator_epoch: int = -1
    current_txn_first_offset: int = -1


def encode(entries: Sequence[ProducerSnapshotEntry]) -> bytes:
    """The content of a snapshot file."""
    body = _COUNT.pack(len(entries)) + b"".join(map(_encode_entry, entries))
    return HEADER.pack(VERSION, crc32c(body), len(entries)) + body[_COUNT.size :]


def parse(data: bytes) -> list[ProducerSnapshotEntry]:
    """The entries of a snapshot file; ``ValueError`` says why when it is not a sound one."""
    if len(data) < HEADER_BYTES:
        raise ValueError(f"producer snapshot: {len(data)} bytes, the header alone has {HEADER_BYTES}")
    version, crc, count = HEADER.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"producer snapshot: version {version}, only {VERSION} is known")
    if crc32c(memoryview(data)[CRC_START:]) != crc:
        raise ValueError("producer snapshot: the checksum does not match")
    if len(data) != HEADER_BYTES + count * ENTRY_BYTES:
        raise ValueError(f"producer snapshot: {len(data)} bytes do not hold {count} entries")
    return [ProducerSnapshotEntry(*fields) for fields in ENTRY.iter_unpack(data[HEADER_BYTES:])]


def _encode_entry(entry: ProducerSnapshotEntry) -> bytes:
    return ENTRY.pack(
        entry.producer_id,
        entry.producer_epoch,
        entry.last_sequence,
        entry.last_offset,
        entry.offset_delta,
        entry.timestamp_ms,
        entry.coordinator_epoch,
        entry.current_txn_first_offset,
    )
