"""The bytes of a batch to records. The layout is drawn in ``record_encoding``.

Invariants: whatever the bytes are, the outcome is exactly ``record_count`` records or ``CorruptBatchError``;
each record's fields fill its length, the records fill the batch, offsets increase and stay within
[base_offset, last_offset].
"""

from __future__ import annotations

import datetime

import msgspec

from .batch_header import HEADER_BYTES, BatchHeader, StoredBatch
from .compression import decompress
from .errors import BatchDefect, CorruptBatchError
from .record_encoding import HEADER_KEY_ERRORS
from .varint import VARLONG_MAX, VARLONG_MIN, decode_varint, decode_varlong

# What one batch may decompress to: far above any max.message.bytes in use, and still a bounded answer to
# a batch that was made to explode.
MAX_DECOMPRESSED_BYTES = 64 * 1024 * 1024

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_FIRST_DATETIME = datetime.datetime.min.replace(tzinfo=datetime.UTC)
_LAST_DATETIME = datetime.datetime.max.replace(tzinfo=datetime.UTC)


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as it was read: ``headers`` in the producer's order; a ``value`` of None is a tombstone."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] = []

    @property
    def timestamp(self) -> datetime.datetime:
        """``timestamp_ms`` as an aware UTC datetime, cut to the years 1 to 9999 that Python knows."""
        try:
            return _EPOCH + datetime.timedelta(milliseconds=self.timestamp_ms)
        except OverflowError:
            return _LAST_DATETIME if self.timestamp_ms > 0 else _FIRST_DATETIME


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
    header = batch.header
    data = decompress(header.compression, batch.data[HEADER_BYTES:], max_decompressed_bytes)
    records: list[Record] = []
    try:
        position = _read_each(records, data, 0, header.record_count, header, topic, partition)
    except IndexError:
        raise _malformed(len(records), "the batch ends inside it") from None
    if position != len(data):
        raise _malformed(len(records), f"{len(data) - position} bytes follow the last record")
    if records and records[-1].offset > header.last_offset:
        raise _malformed(len(records) - 1, "its offset is behind the batch's last")
    return records


def _malformed(index: int, reason: str) -> CorruptBatchError:
    return CorruptBatchError(BatchDefect.BAD_RECORDS, detail=f"record {index}: {reason}")


def _read_each(
    records: list[Record],
    data: bytes,
    position: int,
    count: int,
    header: BatchHeader,
    topic: str,
    partition: int,
) -> int:
    """Append *count* records that start at *position*; return the position behind them."""
    last_delta = records[-1].offset - header.base_offset if records else -1
    for _ in range(count):
        length, start = decode_varint(data, position)
        end = start + length
        if length < 0 or end > len(data):
            raise _malformed(len(records), f"its length {length} does not fit")
        timestamp_delta, position = decode_varlong(data, start + 1)
        delta, position = decode_varint(data, position)
        if delta <= last_delta:
            raise _malformed(len(records), "its offset does not follow the one before")
        last_delta = delta
        key, position = _read_bytes(data, position)
        value, position = _read_bytes(data, position)
        header_count, position = decode_varint(data, position)
        headers = []
        for _ in range(header_count):
            name, position = _read_bytes(data, position)
            if name is None:
                raise _malformed(len(records), "a header has no key")
            header_value, position = _read_bytes(data, position)
            headers.append((name.decode("utf-8", HEADER_KEY_ERRORS), header_value))
        if position != end or header_count < 0:
            raise _malformed(len(records), "its fields do not fill its length")
        timestamp_ms = (
            header.max_timestamp_ms
            if header.uses_log_append_time
            else header.base_timestamp_ms + timestamp_delta
        )
        if not VARLONG_MIN <= timestamp_ms <= VARLONG_MAX:
            raise _malformed(len(records), "its timestamp does not fit 64 bits")
        records.append(
            Record(topic, partition, header.base_offset + delta, timestamp_ms, key, value, headers)
        )
    return position


def _read_bytes(data: bytes, position: int) -> tuple[bytes | None, int]:
    size, position = decode_varint(data, position)
    if size < -1:
        raise CorruptBatchError(BatchDefect.BAD_RECORDS, detail=f"a size of {size} at byte {position}")
    if size == -1:
        return None, position
    return data[position : position + size], position + size
