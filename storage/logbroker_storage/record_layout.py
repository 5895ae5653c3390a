"""One record's bytes, as they lie in a batch behind its header.

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

This module has what its writers and its readers share:

    record_encoding    batches of records and of values         record_runs     records alike, as tables
    record_decoding    batches to records                       record_loops    any record, one by one
"""

from __future__ import annotations

from .batch_header import BatchHeader
from .errors import BatchDefect, CorruptBatchError
from .varint import NULL_LENGTH, VARLONG_MAX, VARLONG_MIN, encode_varint

NO_ATTRIBUTES = b"\x00"
NO_HEADERS = b"\x00"
HEADER_KEY_ERRORS = "surrogateescape"  # header keys that are not UTF-8 survive decoding and encoding


def value_framing(value_size: int, timestamp_delta: bytes, offset_size: int) -> tuple[bytes, bytes]:
    """What lies before and behind the offset delta of a record without key and headers that has one before it.

    From the end of that one up to the value, whose length is *value_size*, -1 for null.
    """
    value_length = encode_varint(value_size)
    fields_size = len(NO_ATTRIBUTES + timestamp_delta + NULL_LENGTH + value_length + NO_HEADERS) + offset_size
    length = encode_varint(fields_size + max(value_size, 0))
    return NO_HEADERS + length + NO_ATTRIBUTES + timestamp_delta, NULL_LENGTH + value_length


def malformed(index: int, reason: str) -> CorruptBatchError:
    """The error for record *index* of a batch."""
    return CorruptBatchError(BatchDefect.BAD_RECORDS, detail=f"record {index}: {reason}")


def record_timestamp(header: BatchHeader, delta: int) -> int:
    """The timestamp in milliseconds that *delta* means in the batch of *header*."""
    if header.uses_log_append_time:
        return header.max_timestamp_ms
    timestamp_ms = header.base_timestamp_ms + delta
    if not VARLONG_MIN <= timestamp_ms <= VARLONG_MAX:
        raise CorruptBatchError(BatchDefect.BAD_RECORDS, detail="a timestamp does not fit 64 bits")
    return timestamp_ms
