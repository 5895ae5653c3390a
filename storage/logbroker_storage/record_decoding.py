"""The bytes of a batch to records. The layout is drawn in ``record_encoding``.

Two ways to the same records: a run of records that differ only in their contents (``record_runs``) is read
as a table; what is no such run is read record by record, here.

Invariants: whatever the bytes are, the outcome is exactly ``record_count`` records or ``CorruptBatchError``;
each record's fields fill its length, the records fill the batch, offsets increase and stay within
[base_offset, last_offset].
"""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

from .batch_header import HEADER_BYTES, BatchHeader, StoredBatch
from .compression import decompress
from .record import HeaderPairs, Record
from .record_encoding import HEADER_KEY_ERRORS, NO_HEADERS
from .record_runs import malformed, read_run, record_timestamp
from .varint import VARINT_MAX_BYTES, VARLONG_MAX_BYTES, decode_zigzag

# What one batch may decompress to: far above any max.message.bytes in use, and still a bounded answer to
# a batch that was made to explode.
MAX_DECOMPRESSED_BYTES = 64 * 1024 * 1024

MAX_ALONE = 64  # a look for a run costs 1 to 5 µs; records of mixed lengths pay for it this seldom
MAX_KNOWN_HEADERS = 16  # blocks of headers remembered in a batch: those that all differ are not worth it
NULL = 1  # the length -1 as it is stored

_headers_of = attrgetter("header_pairs")


class Decoded(NamedTuple):
    """The records of a batch."""

    records: list[Record]
    have_headers: bool  # some of them


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
    """As ``decode_records``; tells besides whether there are headers: to look at each record takes 0.02 µs."""
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
    return Decoded(records, have_headers)


def _read_records(
    records: list[Record], data: bytes, header: BatchHeader, topic: str, partition: int
) -> tuple[int, bool]:
    """Append every record of *data*; return the position behind the last, and whether any has headers."""
    position = 0
    have_headers = False
    known_headers: dict[bytes, HeaderPairs] = {}
    alone = 1  # records to read one by one before a run is looked for again
    while len(records) < header.record_count:
        end = read_run(records, data, position, header, topic, partition)
        if end > position:
            position = end
            alone = 1
            have_headers = have_headers or bool(records[-1].header_pairs)  # all of a run have the same
        else:
            count = min(alone, header.record_count - len(records))
            position = _read_each(records, data, position, count, header, topic, partition, known_headers)
            alone = min(2 * alone, MAX_ALONE)
            have_headers = have_headers or any(map(_headers_of, records[-count:]))
    return position, have_headers


def _read_each(
    records: list[Record],
    data: bytes,
    position: int,
    count: int,
    header: BatchHeader,
    topic: str,
    partition: int,
    known_headers: dict[bytes, HeaderPairs],
) -> int:
    """Append *count* records, read one by one from *position*; return the position behind them.

    Integers of one byte (and the larger ones of two) are read in place: a call costs as much as the rest
    of the record. A block of headers that was read before is not parsed again. 0.9 µs a record without
    key, 1.1 µs with a key and headers (`tests/storage/test_record_batch_speed.py`, one shared core).
    """
    limit = len(data)
    base_offset = header.base_offset
    offset_zigzag = 2 * (records[-1].offset - base_offset) if records else -1
    timestamp_zigzag = -1  # of the record before: most records of a batch share it
    timestamp_ms = 0
    append = records.append
    for _ in range(count):
        zigzag = data[position]
        position += 1
        if zigzag >= 0x80:
            second = data[position]
            if second < 0x80:
                zigzag += (second << 7) - 0x80
                position += 1
            else:
                zigzag, position = decode_zigzag(data, position - 1, VARINT_MAX_BYTES)
        end = position + (zigzag >> 1)
        if zigzag & 1 or end > limit:
            raise malformed(len(records), "its length does not fit")

        zigzag = data[position + 1]  # behind the attributes, which mean nothing
        if zigzag < 0x80:
            position += 2
        else:
            zigzag, position = decode_zigzag(data, position + 1, VARLONG_MAX_BYTES)
        if zigzag != timestamp_zigzag:
            timestamp_zigzag = zigzag
            timestamp_ms = record_timestamp(header, zigzag >> 1 ^ -(zigzag & 1))

        zigzag = data[position]
        position += 1
        if zigzag >= 0x80:
            second = data[position]
            if second < 0x80:
                zigzag += (second << 7) - 0x80
                position += 1
            else:
                zigzag, position = decode_zigzag(data, position - 1, VARINT_MAX_BYTES)
        if zigzag & 1 or zigzag <= offset_zigzag:
            raise malformed(len(records), "its offset does not follow the one before")
        offset_zigzag = zigzag

        zigzag = data[position]
        position += 1
        if zigzag == NULL:
            key = None
        else:
            if zigzag >= 0x80:
                zigzag, position = decode_zigzag(data, position - 1, VARINT_MAX_BYTES)
            if zigzag & 1:
                raise malformed(len(records), "its key has a negative length")
            key = data[position : position + (zigzag >> 1)]
            position += zigzag >> 1

        zigzag = data[position]
        position += 1
        if zigzag == NULL:
            value = None
        else:
            if zigzag >= 0x80:
                second = data[position]
                if second < 0x80:
                    zigzag += (second << 7) - 0x80
                    position += 1
                else:
                    zigzag, position = decode_zigzag(data, position - 1, VARINT_MAX_BYTES)
            if zigzag & 1:
                raise malformed(len(records), "its value has a negative length")
            value = data[position : position + (zigzag >> 1)]
            position += zigzag >> 1

        offset = base_offset + (offset_zigzag >> 1)
        block = data[position:end]
        if block == NO_HEADERS:
            append(Record(topic, partition, offset, timestamp_ms, key, value))
        else:
            headers = known_headers.get(block)
            if headers is None:
                headers = _parse_headers(block, len(records))
                if len(known_headers) < MAX_KNOWN_HEADERS:
                    known_headers[block] = headers
            append(Record(topic, partition, offset, timestamp_ms, key, value, headers))
        position = end
    return position


def _parse_headers(block: bytes, index: int) -> HeaderPairs:
    """The headers of record *index*; *block* is all that its length leaves for them."""
    zigzag, position = decode_zigzag(block, 0, VARINT_MAX_BYTES)
    if zigzag & 1:
        raise malformed(index, "its header count is negative")
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(zigzag >> 1):
        zigzag = block[position]
        position += 1
        if zigzag >= 0x80:
            zigzag, position = decode_zigzag(block, position - 1, VARINT_MAX_BYTES)
        if zigzag & 1:
            raise malformed(index, "a header key has a negative length")
        key = block[position : position + (zigzag >> 1)].decode("utf-8", HEADER_KEY_ERRORS)
        position += zigzag >> 1

        zigzag = block[position]
        position += 1
        if zigzag == NULL:
            headers.append((key, None))
            continue
        if zigzag >= 0x80:
            zigzag, position = decode_zigzag(block, position - 1, VARINT_MAX_BYTES)
        if zigzag & 1:
            raise malformed(index, "a header value has a negative length")
        headers.append((key, block[position : position + (zigzag >> 1)]))
        position += zigzag >> 1
    if position != len(block):
        raise malformed(index, "its fields do not fill its length")
    return tuple(headers)
