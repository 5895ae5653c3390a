"""The bytes of a batch to records; a record's layout is drawn in ``record_layout``.

Two ways to the same records: a run of records that differ only in their contents (``record_runs``) is read
as a table; what is no such run is read record by record (``record_loops``).

Invariants: whatever the bytes are, the outcome is exactly ``record_count`` records or ``CorruptBatchError``;
each record's fields fill its length, the records fill the batch, offsets increase and stay within
[base_offset, last_offset].
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import NamedTuple

from .batch_header import HEADER_BYTES, BatchHeader, StoredBatch
from .compression import decompress
from .errors import CorruptBatchError
from .record import RESERVED_HEADER_PREFIX, HeaderPairs, Record
from .record_layout import malformed
from .record_runs import read_run
from .record_twin import IS_COMPILED, read_each, skip_each

# What one batch may decompress to: far above any max.message.bytes in use, and still a bounded answer to
# a batch that was made to explode.
MAX_DECOMPRESSED_BYTES = 64 * 1024 * 1024

# Records that are read one by one before a run is looked for, which costs 1 to 8 µs: at first, and where none is found.
FEW_ALONE = 64 if IS_COMPILED else 1
MOST_ALONE = 256

_offset_of = attrgetter("offset")


class Decoded(NamedTuple):
    """The records of a batch."""

    records: list[Record]
    have_reserved: bool  # some of them have reserved headers


def decode_records(
    batch: StoredBatch,
    topic: str = "",
    partition: int = -1,
    *,
    max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> list[Record]:
    """Every record of *batch*, with its absolute offset and timestamp.

    *topic* and *partition* are only copied into the records. Raises ``CorruptBatchError`` when any record
    is malformed, or when they decompress to more than *max_decompressed_bytes*.
    """
    return decode_batch(batch, topic, partition, max_decompressed_bytes=max_decompressed_bytes).records


def decode_batch(
    batch: StoredBatch,
    topic: str,
    partition: int,
    *,
    max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> Decoded:
    """As ``decode_records``; tells besides whether any has a header of the broker's own."""
    header = batch.header
    data = decompress(header.compression, batch.data[HEADER_BYTES:], max_decompressed_bytes)
    records: list[Record] = []
    try:
        position, have_headers = _read_records(records, data, header, topic, partition)
    except IndexError:
        raise malformed(len(records), "the batch ends inside it") from None
    if position != len(data):
        raise malformed(len(records), f"{len(data) - position} bytes follow the last record")
    if records and records[-1].offset > header.last_offset:
        raise malformed(len(records) - 1, "its offset is behind the batch's last")
    return Decoded(records, have_headers and _have_reserved(records))


def decode_range(batch: StoredBatch, begin: int, end: int, topic: str, partition: int) -> Decoded:
    """As ``decode_batch``, of the records with offsets in [begin, end) alone: for a few of them it takes a tenth.

    Not so where compaction left gaps: they are found by decoding all. Those that are left out may be malformed.
    """
    header = batch.header
    begin, end = max(begin, header.base_offset), min(end, header.next_offset)
    if begin < end and header.is_whole:
        found = _dense_range(batch, begin, end, topic, partition)
        if found is not None:
            return found
    records, have_reserved = decode_batch(batch, topic, partition)
    first = bisect_left(records, begin, key=_offset_of)
    return Decoded(records[first : bisect_left(records, end, key=_offset_of)], have_reserved)


def _dense_range(batch: StoredBatch, begin: int, end: int, topic: str, partition: int) -> Decoded | None:
    """The records of a batch that has all of its offsets; None where something about them is not as it should be."""
    header = batch.header
    data = decompress(header.compression, batch.data[HEADER_BYTES:], MAX_DECOMPRESSED_BYTES)
    records: list[Record] = []
    known_headers: dict[bytes, HeaderPairs] = {}
    try:
        position = skip_each(data, begin - header.base_offset)
        read_each(records, data, position, end - begin, header, topic, partition, known_headers)
    except (CorruptBatchError, IndexError):
        return None  # decode_batch tells what it is
    if records[0].offset != begin or records[-1].offset != end - 1:
        return None
    return Decoded(records, any(known_headers.values()) and _have_reserved(records))


def _have_reserved(records: list[Record]) -> bool:
    """0.08 µs a record: its keys are few, and most often the same."""
    keys = {key for record in records for key, _ in record.header_pairs}
    return any(key.startswith(RESERVED_HEADER_PREFIX) for key in keys)


def _read_records(
    records: list[Record], data: bytes, header: BatchHeader, topic: str, partition: int
) -> tuple[int, bool]:
    """Append every record of *data*; return the position behind the last, and whether any has headers."""
    position = 0
    have_headers = False
    known_headers: dict[bytes, HeaderPairs] = {}
    alone = FEW_ALONE
    while (left := header.record_count - len(records)) > 0:
        count = min(alone, left)
        position = read_each(records, data, position, count, header, topic, partition, known_headers)
        alone = min(2 * alone, MOST_ALONE)
        if count < left and (end := read_run(records, data, position, header, topic, partition)) > position:
            position = end
            alone = FEW_ALONE
            have_headers = have_headers or bool(records[-1].header_pairs)  # all of a run have the same
    return position, have_headers or any(known_headers.values())
