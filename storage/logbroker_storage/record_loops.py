"""Records one by one: the loops that do something for each record of mixed lengths.

They exist twice. ``record_loops.pxd`` says which variables are C integers, and with it Cython compiles this file
to ``_record_loops`` where there is a compiler when the package is built (``storage/hatch_build.py``). Which of the
two is used is the matter of ``record_twin``; both do the same, bit for bit, errors included. For one record with a
key and about 100 bytes (`tests/storage/test_record_batch_speed.py`, one shared core):

                    plain      compiled
    encode          0.27 µs    0.14 µs
    decode          0.60 µs    0.15 µs
    survey          0.38 µs    0.011 µs
    frame (values)  0.09 µs    0.035 µs
    one length?     0.025 µs   0.002 µs

In return the code is plain: no C types, nothing of Cython's, integers that fit 64 bits (timestamps do not: they
stay Python's), and no index below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .batch_header import BatchHeader
from .record import HeaderPairs, Record
from .record_layout import (
    HEADER_KEY_ERRORS,
    NO_ATTRIBUTES,
    NO_HEADERS,
    malformed,
    record_timestamp,
    value_framing,
)
from .varint import (
    NULL_LENGTH,
    SMALL_VARINTS,
    TWO_BYTE_END,
    VARINT_MAX_BYTES,
    VARLONG_MAX_BYTES,
    decode_zigzag,
    encode_varint,
)

if TYPE_CHECKING:
    from .record import NewRecord

NULL = -1  # the length of a null, which is stored as
NULL_ZIGZAG = 1
MIXED = -1  # in place of a length
MAX_KNOWN_HEADERS = 16  # blocks of headers remembered in a batch: those that all differ are not worth it


def one_length(values: Sequence[bytes | None]) -> int:
    """The length of each of *values*; ``MIXED`` where they differ, or one is null."""
    length = MIXED
    for value in values:
        if value is None:
            return MIXED
        if len(value) != length:
            if length != MIXED:
                return MIXED
            length = len(value)
    return length


def frame_each(values: Sequence[bytes | None], first: int, timestamp_delta: bytes) -> list[bytes]:
    """The bytes of records that are *values* and nothing else, in parts; *first* is the first one's offset delta.

    The last byte of each, a header count of 0, is written as one with what follows it: so the parts begin with that of
    the record before them, and end before the last's own. The varints of all offset deltas have one size.
    """
    small = SMALL_VARINTS
    end = TWO_BYTE_END
    delta = first
    offset_size = len(encode_varint(first))
    framings: dict[int, tuple[bytes, bytes]] = {}
    parts: list[bytes] = []
    append = parts.append
    for value in values:
        length = NULL if value is None else len(value)
        framing = framings.get(length)
        if framing is None:
            framing = framings[length] = value_framing(length, timestamp_delta, offset_size)
        append(framing[0])
        append(small[delta] if delta < end else encode_varint(delta))
        append(framing[1])
        if value is not None:
            append(value)
        delta += 1
    return parts


def encode_each(
    records: Sequence[NewRecord], deltas: Sequence[int], base_timestamp_ms: int
) -> tuple[list[bytes], int]:
    """The records' bytes, in parts, and their largest timestamp. *deltas* are their offsets' distances from the base.

    Raises:
        ValueError: a timestamp, or a delta, does not fit 64 bits.
    """
    small = SMALL_VARINTS
    end = TWO_BYTE_END
    timestamp_ms = base_timestamp_ms
    max_timestamp_ms = records[0].timestamp_ms
    before_delta = NO_ATTRIBUTES + encode_varint(0)
    known_keys: dict[str, bytes] = {}
    parts: list[bytes] = []
    for record, delta in zip(records, deltas, strict=True):
        if record.timestamp_ms != timestamp_ms:
            timestamp_ms = record.timestamp_ms
            max_timestamp_ms = max(max_timestamp_ms, timestamp_ms)
            before_delta = NO_ATTRIBUTES + encode_varint(timestamp_ms - base_timestamp_ms)
        offset = small[delta] if 0 <= delta < end else encode_varint(delta)
        headers = _encode_headers(record.headers, known_keys) if record.headers else NO_HEADERS
        size = len(before_delta) + len(offset) + len(headers)
        key = record.key
        if key is None:
            key = b""
            key_length = NULL_LENGTH
        else:
            key_length = small[len(key)] if len(key) < end else encode_varint(len(key))
        value = record.value
        if value is None:
            value = b""
            value_length = NULL_LENGTH
        else:
            value_length = small[len(value)] if len(value) < end else encode_varint(len(value))
        size += len(key_length) + len(key) + len(value_length) + len(value)
        length = small[size] if size < end else encode_varint(size)
        parts += (length, before_delta, offset, key_length, key, value_length, value, headers)
    return parts, max_timestamp_ms


def _encode_headers(headers: Sequence[tuple[str, bytes | None]], known_keys: dict[str, bytes]) -> bytes:
    """The headers of a record; *known_keys* has those keys that the batch had before, behind their lengths."""
    small = SMALL_VARINTS
    end = TWO_BYTE_END
    count = len(headers)
    parts = [small[count] if count < end else encode_varint(count)]
    for key, value in headers:
        known = known_keys.get(key)
        if known is None:
            encoded = key.encode("utf-8", HEADER_KEY_ERRORS)
            known = known_keys[key] = encode_varint(len(encoded)) + encoded
        if value is None:
            parts += (known, NULL_LENGTH)
        else:
            size = len(value)
            parts += (known, small[size] if size < end else encode_varint(size), value)
    return b"".join(parts)


def read_each(
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
    of the record. A block of headers that was read before is not parsed again.

    Raises:
        CorruptBatchError: a record is malformed.
        IndexError: *data* ends in a record.
    """
    limit = len(data)
    base_offset = header.base_offset
    offset_zigzag = 2 * (records[-1].offset - base_offset) if records else -1
    timestamp_zigzag: int | None = None  # of the record before: most records of a batch share it
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

        delta = data[position + 1]  # behind the attributes, which mean nothing
        if delta < 0x80:
            position += 2
        else:
            delta, position = decode_zigzag(data, position + 1, VARLONG_MAX_BYTES)
        if delta != timestamp_zigzag:
            timestamp_zigzag = delta
            timestamp_ms = record_timestamp(header, delta >> 1 ^ -(delta & 1))

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
        if zigzag == NULL_ZIGZAG:
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
        if zigzag == NULL_ZIGZAG:
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
        if position + 1 == end and data[position] == 0:
            append(Record(topic, partition, offset, timestamp_ms, key, value))
        else:
            block = data[position:end]
            headers = known_headers.get(block)
            if headers is None:
                headers = _parse_headers(block, len(records))
                if len(known_headers) < MAX_KNOWN_HEADERS:
                    known_headers[block] = headers
            append(Record(topic, partition, offset, timestamp_ms, key, value, headers))
        position = end
    return position


def skip_each(data: bytes, count: int) -> int:
    """The position behind the first *count* records; where they are malformed, any.

    Raises:
        CorruptBatchError, IndexError: they are malformed.
    """
    position = 0
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
        position += zigzag >> 1
    return position


def survey_each(data: bytes, count: int) -> tuple[int, int, bool] | None:
    """Whether *data* is *count* records without headers, with the offset deltas 0, 1, 2, …, and nothing else.

    Then their smallest and their largest timestamp delta, and whether all have keys; None where it is not. Sound is
    what ``read_each`` takes.

    Raises:
        CorruptBatchError, IndexError: it is not, either.
    """
    limit = len(data)
    position = 0
    timestamp_zigzag: int | None = None
    oldest: int | None = None
    newest = 0
    have_keys = True
    for index in range(count):
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
            return None

        delta = data[position + 1]
        if delta < 0x80:
            position += 2
        else:
            delta, position = decode_zigzag(data, position + 1, VARLONG_MAX_BYTES)
        if delta != timestamp_zigzag:
            timestamp_zigzag = delta
            delta = delta >> 1 ^ -(delta & 1)
            if oldest is None:
                oldest = newest = delta
            oldest = min(oldest, delta)
            newest = max(newest, delta)

        zigzag = data[position]
        position += 1
        if zigzag >= 0x80:
            second = data[position]
            if second < 0x80:
                zigzag += (second << 7) - 0x80
                position += 1
            else:
                zigzag, position = decode_zigzag(data, position - 1, VARINT_MAX_BYTES)
        if zigzag != 2 * index:
            return None

        zigzag = data[position]
        position += 1
        if zigzag == NULL_ZIGZAG:
            have_keys = False
        else:
            if zigzag >= 0x80:
                zigzag, position = decode_zigzag(data, position - 1, VARINT_MAX_BYTES)
            if zigzag & 1:
                return None
            position += zigzag >> 1

        zigzag = data[position]
        position += 1
        if zigzag != NULL_ZIGZAG:
            if zigzag >= 0x80:
                second = data[position]
                if second < 0x80:
                    zigzag += (second << 7) - 0x80
                    position += 1
                else:
                    zigzag, position = decode_zigzag(data, position - 1, VARINT_MAX_BYTES)
            if zigzag & 1:
                return None
            position += zigzag >> 1

        if position + 1 != end or data[position] != 0:
            return None
        position = end
    if position != limit or oldest is None:
        return None
    return oldest, newest, have_keys


def _parse_headers(block: bytes, index: int) -> HeaderPairs:
    """The headers of record *index*; *block* is all that its length leaves for them."""
    zigzag = block[0]
    position = 1
    if zigzag >= 0x80:
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
        if zigzag == NULL_ZIGZAG:
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
