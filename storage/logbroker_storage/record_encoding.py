"""Records to the bytes of a batch; a record's layout is drawn in ``record_layout``.

Two ways to the same bytes: ``encode_batch`` takes whole records, one by one (``record_loops``); ``encode_values``
takes values alone, and lays those of one length down as a table whose columns are filled at C speed. The times
beside the loops are for one record of about 100 bytes, on one shared core, by
`tests/storage/test_record_batch_speed.py`.

Invariants: a new batch's base timestamp is that of its first record; offset deltas increase; a batch is laid down
in the codec that was asked for even where compressing gains nothing, as Kafka's own clients do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TypedDict, Unpack, cast

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
from .record import NO_TIMESTAMP, NewRecord
from .record_layout import NO_ATTRIBUTES, NO_HEADERS, value_framing
from .record_loops import MIXED
from .record_twin import encode_each, frame_each, one_length
from .varint import NULL_LENGTH, encode_varint

ROOM_FOR_HEADER = bytes(HEADER_BYTES)
SHORT_RUN = 8  # values of one timestamp; below it a table of its own for each timestamp does not pay
NO_DELTAS = b"\x00\x00"  # of a batch's first record: timestamp and offset


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
    base_timestamp_ms: int | None = None,
    **fields: Unpack[BatchFields],
) -> bytearray:
    """One batch of *records*, ready to be written.

    Offsets are consecutive, unless *offset_deltas* (increasing, one for each record) and
    *last_offset_delta* say which ones compaction left, of a batch of that *base_timestamp_ms* (the first record's
    by default). Raises ``InvalidRequestError`` for no record, and
    for timestamps or sizes that the format cannot hold.
    """
    if not records:
        raise InvalidRequestError("a batch needs at least one record; use encode_empty_batch to keep offsets")
    count = len(records)
    deltas = range(count) if offset_deltas is None else offset_deltas
    last = deltas[-1] if last_offset_delta is None else last_offset_delta
    if base_timestamp_ms is None:
        base_timestamp_ms = records[0].timestamp_ms
    try:
        parts, max_timestamp_ms = encode_each(records, deltas, base_timestamp_ms)
    except ValueError as error:
        raise InvalidRequestError(f"a timestamp is too far from the batch's first: {error}") from error
    return _seal(
        parts,
        record_count=count,
        last_offset_delta=last,
        base_timestamp_ms=base_timestamp_ms,
        max_timestamp_ms=max_timestamp_ms,
        **fields,
    )


def values_bytes(values: Sequence[bytes | None]) -> int:
    """How many bytes *values* are together."""
    length = one_length(values)
    return sum(map(len, filter(None, values))) if length == MIXED else length * len(values)


def encode_values(
    values: Sequence[bytes | None], timestamps: Sequence[tuple[int, int]], **fields: Unpack[BatchFields]
) -> bytearray:
    """One batch of *values* with null keys and no headers: the bytes that ``encode_batch`` would give.

    *timestamps* are runs ``(first_index, timestamp_ms)``, first_index ascending from 0: that record and
    those behind it, up to the next run, have this timestamp. Errors as ``encode_batch``.
    """
    if not values:
        raise InvalidRequestError("a batch needs at least one record; use encode_empty_batch to keep offsets")
    if 1 < len(timestamps) > len(values) // SHORT_RUN:
        records = [
            NewRecord(value, timestamp_ms=timestamp_ms)
            for first, end, timestamp_ms in _runs(timestamps, len(values))
            for value in values[first:end]
        ]
        return encode_batch(records, **fields)
    base_timestamp_ms = timestamps[0][1]
    try:
        parts = _encode_values(values, timestamps, base_timestamp_ms)
    except ValueError as error:
        raise InvalidRequestError(f"a timestamp is too far from the batch's first: {error}") from error
    return _seal(
        parts,
        record_count=len(values),
        last_offset_delta=len(values) - 1,
        base_timestamp_ms=base_timestamp_ms,
        max_timestamp_ms=max(timestamp_ms for _, timestamp_ms in timestamps),
        **fields,
    )


def _encode_values(
    values: Sequence[bytes | None], timestamps: Sequence[tuple[int, int]], base_timestamp_ms: int
) -> list[Buffer]:
    # Between two values lies only framing: the header count 0 that ends the one record, and all that
    # precedes the value of the next. Both ways below write it as one with the value behind it. So there
    # is a header count too many at the start, and one too few at the end.
    if len(values) == 1:
        return _encode_one(values[0])
    runs: list[bytearray] = []
    for first, end, timestamp_ms in _runs(timestamps, len(values)):
        timestamp_delta = encode_varint(timestamp_ms - base_timestamp_ms)
        while first < end:
            stop = run_end(first, end)
            runs.append(_encode_run(values[first:stop], first, timestamp_delta))
            first = stop
    del runs[0][0]
    return [*runs, NO_HEADERS]


def _encode_one(value: bytes | None) -> list[Buffer]:
    """The only record of a batch: its deltas are 0. The shortest way for one durable record at a time."""
    fields = NO_ATTRIBUTES + NO_DELTAS + NULL_LENGTH
    if value is None:
        fields += NULL_LENGTH + NO_HEADERS
        return [encode_varint(len(fields)), fields]
    fields += encode_varint(len(value))
    return [encode_varint(len(fields) + len(value) + 1), fields, value, NO_HEADERS]


def _encode_run(values: Sequence[bytes | None], first: int, timestamp_delta: bytes) -> bytearray:
    """Values whose offsets, from *first* on, have varints of one size (``offset_columns.run_end``)."""
    length = one_length(values)
    if length == MIXED:
        return bytearray().join(frame_each(values, first, timestamp_delta))
    offset = encode_varint(first)
    before, after = value_framing(length, timestamp_delta, len(offset))
    return _join_uniform(cast("Sequence[bytes]", values), first, before + offset + after, len(before))


def _join_uniform(values: Sequence[bytes], first: int, framing: bytes, offset_at: int) -> bytearray:
    """Values of one size: joined by the framing of the first, then the offsets put in as columns.

    0.03 µs a value.
    """
    joined = bytearray(framing).join((b"", *values))
    stride = len(framing) + len(values[0])
    for at, column in enumerate(offset_columns(first, first + len(values)), offset_at):
        joined[at::stride] = column
    return joined


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
        (),
        record_count=0,
        last_offset_delta=last_offset - fields.get("base_offset", 0),
        base_timestamp_ms=NO_TIMESTAMP,  # as Kafka has it
        max_timestamp_ms=timestamp_ms,
        **fields,
    )


def _seal(
    records: Sequence[Buffer],
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
    """Join the parts of the *records*, compress them and put the header before them."""
    if compression is not Compression.NONE:
        records = (compress(compression, b"".join(records), compression_level),)
    batch = bytearray().join((ROOM_FOR_HEADER, *records))  # the only copy of a batch as a whole
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
