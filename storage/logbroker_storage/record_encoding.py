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
from .varint import NULL_LENGTH, encode_varint

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
    parts: list[bytes] = []
    for record, delta in zip(records, deltas, strict=True):
        key = record.key
        value = record.value
        body = b"".join(
            (
                NO_ATTRIBUTES,
                encode_varint(record.timestamp_ms - base_timestamp_ms),
                encode_varint(delta),
                NULL_LENGTH if key is None else encode_varint(len(key)),
                key or b"",
                NULL_LENGTH if value is None else encode_varint(len(value)),
                value or b"",
                _encode_headers(record.headers) if record.headers else NO_HEADERS,
            )
        )
        parts += (encode_varint(len(body)), body)
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
    records = [
        NewRecord(value, timestamp_ms=timestamp_ms)
        for first, end, timestamp_ms in _runs(timestamps, len(values))
        for value in values[first:end]
    ]
    return encode_batch(records, **fields)


def _runs(timestamps: Sequence[tuple[int, int]], count: int) -> Iterator[tuple[int, int, int]]:
    ends = [first for first, _ in timestamps[1:]] + [count]
    for (first, timestamp_ms), end in zip(timestamps, ends, strict=True):
        yield first, end, timestamp_ms


def encode_empty_batch(
    *, last_offset: int, timestamp_ms: int = NO_TIMESTAMP, **fields: Unpack[BatchFields]
) -> bytearray:
    """A batch without records that stands for offsets [base_offset, last_offset], both inclusive.

    Compaction leaves it where every record went, so that the offsets have no gap; with the producer
    fields it also keeps the last sequence of that producer.
    """
    return _seal(
        b"",
        record_count=0,
        last_offset_delta=last_offset - fields.get("base_offset", 0),
        base_timestamp_ms=timestamp_ms,
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
    write_header(batch, header)
    return batch
