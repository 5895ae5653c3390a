"""Records to the bytes of a batch.

    field            type      meaning
    length           varint    bytes after this field
    attributes       int8      0, unused
    timestamp_delta  varlong   timestamp minus the batch's base_timestamp_ms
    offset_delta     varint    offset minus the batch's base_offset
    key length       varint    -1 for null
    key              bytes
    value length     varint    -1 for null (a tombstone)
    value            bytes
    header count     varint
    headers                    each: varint length, key (UTF-8), varint length (-1 for null), value

Two ways to the same bytes: ``encode_batch`` takes whole records; ``encode_values`` takes values alone, and
lays values of one length down as a table whose columns are filled at C speed.

Invariants: the first record's timestamp is the base timestamp; offset deltas increase; a batch is laid down
in the codec that was asked for even where compressing gains nothing, as Kafka's own clients do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TypedDict, Unpack

import msgspec

from .batch_header import (
    CONTROL,
    HEADER_BYTES,
    LENGTH_PREFIX_BYTES,
    LOG_APPEND_TIME,
    MAGIC,
    MAX_BATCH_LENGTH,
    TRANSACTIONAL,
    BatchHeader,
    write_header,
)
from .compression import Buffer, Compression, compress
from .errors import InvalidRequestError
from .offset_columns import offset_columns, run_end
from .varint import NULL_LENGTH, SMALL_VARINTS, TWO_BYTE_END, encode_varint

NO_TIMESTAMP = -1
NO_ATTRIBUTES = b"\x00"
NO_HEADERS = b"\x00"
HEADER_KEY_ERRORS = "surrogateescape"  # header keys that are not UTF-8 survive decoding and encoding


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that has no offset yet. Timestamp in milliseconds since 1970; header keys are text."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp_ms: int = NO_TIMESTAMP


class BatchFields(TypedDict, total=False):
    """What a caller may say of a batch beside its records; ``_seal`` has the defaults."""

    compression: Compression
    compression_level: int | None
    base_offset: int
    partition_leader_epoch: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    transactional: bool
    control: bool
    log_append_time: bool


def encode_batch(
    records: Sequence[NewRecord],
    *,
    offset_deltas: Sequence[int] | None = None,
    last_offset_delta: int | None = None,
    **fields: Unpack[BatchFields],
) -> bytearray:
    """One batch of *records*, ready to be written.

    Offsets are consecutive, unless *offset_deltas* (increasing, one for each record) and
    *last_offset_delta* say which ones compaction left. Raises ``InvalidRequestError`` for no record, and
    for timestamps or sizes that the format cannot hold.
    """
    if not records:
        raise InvalidRequestError("a batch needs at least one record; use encode_empty_batch to keep offsets")
    count = len(records)
    deltas = range(count) if offset_deltas is None else offset_deltas
    last = deltas[-1] if last_offset_delta is None else last_offset_delta
    base_timestamp_ms = records[0].timestamp_ms
    try:
        body = _encode_records(records, deltas, base_timestamp_ms)
    except ValueError as error:
        raise InvalidRequestError(f"a timestamp is too far from the batch's first: {error}") from error
    return _seal(
        body,
        record_count=count,
        last_offset_delta=last,
        base_timestamp_ms=base_timestamp_ms,
        max_timestamp_ms=max(record.timestamp_ms for record in records),
        **fields,
    )


def _encode_records(records: Sequence[NewRecord], deltas: Sequence[int], base_timestamp_ms: int) -> bytes:
    """The records one after the other. MEASURED"""
    small = SMALL_VARINTS
    end = TWO_BYTE_END
    timestamp_ms = base_timestamp_ms
    timestamp_delta = encode_varint(0)
    parts: list[bytes] = []
    for record, delta in zip(records, deltas, strict=True):
        if record.timestamp_ms != timestamp_ms:
            timestamp_ms = record.timestamp_ms
            timestamp_delta = encode_varint(timestamp_ms - base_timestamp_ms)
        key = record.key
        key_size = -1 if key is None else len(key)
        value = record.value
        value_size = -1 if value is None else len(value)
        headers = record.headers
        body = b"".join(
            (
                NO_ATTRIBUTES,
                timestamp_delta,
                small[delta] if 0 <= delta < end else encode_varint(delta),
                small[key_size] if 0 <= key_size < end else encode_varint(key_size),
                key or b"",
                small[value_size] if 0 <= value_size < end else encode_varint(value_size),
                value or b"",
                _encode_headers(headers) if headers else NO_HEADERS,
            )
        )
        size = len(body)
        parts += (small[size] if size < end else encode_varint(size), body)
    return b"".join(parts)


def _encode_headers(headers: Sequence[tuple[str, bytes | None]]) -> bytes:
    parts = [encode_varint(len(headers))]
    for key, value in headers:
        encoded_key = key.encode("utf-8", HEADER_KEY_ERRORS)
        parts += (encode_varint(len(encoded_key)), encoded_key)
        if value is None:
            parts.append(NULL_LENGTH)
        else:
            parts += (encode_varint(len(value)), value)
    return b"".join(parts)


def encode_values(
    values: Sequence[bytes | None], timestamps: Sequence[tuple[int, int]], **fields: Unpack[BatchFields]
) -> bytearray:
    """One batch of *values* with null keys and no headers: the bytes that ``encode_batch`` would give.

    *timestamps* are runs ``(first_index, timestamp_ms)``, first_index ascending from 0: that record and
    those behind it, up to the next run, have this timestamp. Errors as ``encode_batch``.
    """
    if not values:
        raise InvalidRequestError("a batch needs at least one record; use encode_empty_batch to keep offsets")
    base_timestamp_ms = timestamps[0][1]
    try:
        body = _encode_values(values, timestamps, base_timestamp_ms)
    except ValueError as error:
        raise InvalidRequestError(f"a timestamp is too far from the batch's first: {error}") from error
    return _seal(
        body,
        record_count=len(values),
        last_offset_delta=len(values) - 1,
        base_timestamp_ms=base_timestamp_ms,
        max_timestamp_ms=max(timestamp_ms for _, timestamp_ms in timestamps),
        **fields,
    )


def _encode_values(
    values: Sequence[bytes | None], timestamps: Sequence[tuple[int, int]], base_timestamp_ms: int
) -> bytearray:
    # Between two values lies only framing: the header count 0 that ends the one record, and all that
    # precedes the value of the next. Both ways below write it as one piece for each value. So there is a
    # header count too many at the start, and one too few at the end.
    pieces: list[Buffer] = []
    for first, end, timestamp_ms in _runs(timestamps, len(values)):
        timestamp_delta = encode_varint(timestamp_ms - base_timestamp_ms)
        while first < end:
            stop = run_end(first, end)
            run = values[first:stop]
            size = _common_size(run)
            if size is None:
                pieces += _mixed_pieces(run, first, timestamp_delta)
            else:
                pieces.append(_uniform_piece(run, first, timestamp_delta, size))
            first = stop
    body = bytearray().join(pieces)
    del body[0]
    body += NO_HEADERS
    return body


def _common_size(values: Sequence[bytes | None]) -> int | None:
    """The size that all *values* have; None if they differ or one is null."""
    try:
        sizes = set(map(len, values))  # type: ignore[arg-type]
    except TypeError:
        return None
    return sizes.pop() if len(sizes) == 1 else None


def _uniform_piece(
    values: Sequence[bytes | None], first: int, timestamp_delta: bytes, size: int
) -> bytearray:
    """Values of one *size*: joined by the framing of the first, then the offsets put in as columns.

    MEASURED
    """
    before, after = _framing(size, timestamp_delta, len(encode_varint(first)))
    framing = before + encode_varint(first) + after
    piece = bytearray(framing).join((b"", *values))  # type: ignore[arg-type]
    stride = len(framing) + size
    for at, column in enumerate(offset_columns(first, first + len(values)), len(before)):
        piece[at::stride] = column
    return piece


def _mixed_pieces(values: Sequence[bytes | None], first: int, timestamp_delta: bytes) -> list[bytes]:
    """Values of any size, or null, in pieces to be joined. MEASURED"""
    offset_size = len(encode_varint(first))
    end = first + len(values)
    offsets = SMALL_VARINTS[first:end] if end <= TWO_BYTE_END else map(encode_varint, range(first, end))
    framings: dict[int, tuple[bytes, bytes]] = {}
    pieces: list[bytes] = []
    for value, offset in zip(values, offsets, strict=True):
        size = -1 if value is None else len(value)
        if size not in framings:
            framings[size] = _framing(size, timestamp_delta, offset_size)
        before, after = framings[size]
        pieces += (before, offset, after, value or b"")
    return pieces


def _framing(value_size: int, timestamp_delta: bytes, offset_size: int) -> tuple[bytes, bytes]:
    """What lies before and behind the offset delta, from the record before up to the value."""
    value_length = encode_varint(value_size)
    key_length = NULL_LENGTH
    fields_size = len(NO_ATTRIBUTES + timestamp_delta + key_length + value_length + NO_HEADERS) + offset_size
    length = encode_varint(fields_size + max(value_size, 0))
    return NO_HEADERS + length + NO_ATTRIBUTES + timestamp_delta, key_length + value_length


def _runs(timestamps: Sequence[tuple[int, int]], count: int) -> Iterator[tuple[int, int, int]]:
    ends = [first for first, _ in timestamps[1:]] + [count]
    for (first, timestamp_ms), end in zip(timestamps, ends, strict=True):
        yield first, end, timestamp_ms


def encode_empty_batch(
    *, last_offset: int, timestamp_ms: int = NO_TIMESTAMP, **fields: Unpack[BatchFields]
) -> bytearray:
    """A batch without records that stands for offsets [base_offset, last_offset], both inclusive.

    Compaction leaves it where every record went, so that the offsets have no gap; *timestamp_ms* is the
    largest they had. With the producer fields it also keeps the last sequence of that producer.
    """
    return _seal(
        b"",
        record_count=0,
        last_offset_delta=last_offset - fields.get("base_offset", 0),
        base_timestamp_ms=NO_TIMESTAMP,  # as Kafka has it
        max_timestamp_ms=timestamp_ms,
        **fields,
    )


def _seal(
    records: Buffer,
    *,
    record_count: int,
    last_offset_delta: int,
    base_timestamp_ms: int,
    max_timestamp_ms: int,
    compression: Compression = Compression.NONE,
    compression_level: int | None = None,
    base_offset: int = 0,
    partition_leader_epoch: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    transactional: bool = False,
    control: bool = False,
    log_append_time: bool = False,
) -> bytearray:
    """Compress *records* and put the header before them."""
    batch = bytearray(HEADER_BYTES)
    batch += records if compression is Compression.NONE else compress(compression, records, compression_level)
    batch_length = len(batch) - LENGTH_PREFIX_BYTES
    if batch_length > MAX_BATCH_LENGTH:
        raise InvalidRequestError(
            f"a batch of {batch_length} bytes does not fit its 31-bit length; send less at once"
        )
    attributes = (
        compression
        | (LOG_APPEND_TIME if log_append_time else 0)
        | (TRANSACTIONAL if transactional else 0)
        | (CONTROL if control else 0)
    )
    header = BatchHeader(
        base_offset=base_offset,
        batch_length=batch_length,
        partition_leader_epoch=partition_leader_epoch,
        magic=MAGIC,
        crc=0,
        attributes=attributes,
        last_offset_delta=last_offset_delta,
        base_timestamp_ms=base_timestamp_ms,
        max_timestamp_ms=max_timestamp_ms,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=base_sequence,
        record_count=record_count,
    )
    try:
        write_header(batch, header)
    except struct.error as error:
        raise InvalidRequestError(f"a field does not fit the batch header: {error} ({header})") from error
    return batch
