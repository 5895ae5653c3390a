"""The id that a sender gave a message, by which a second one is known.

    header                 value                       meaning
    logbroker.message-id   1 to 200 bytes of UTF-8     the id
    logbroker.sent-at      int64 big-endian            when it was sent, in milliseconds since 1970 UTC; stored
                                                       where the record's timestamp says something else

Anything else, as a client of another kind may have written, is no id; of several the first sound one counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .record import Record
from .record_batch import Compression, StoredBatch, decode_records

MESSAGE_ID_HEADER = "logbroker.message-id"
MAX_MESSAGE_ID_BYTES = 200
SENT_AT_HEADER = "logbroker.sent-at"
SENT_AT = struct.Struct(">q")

Headers = Sequence[tuple[str, bytes | None]]


class IdentifiedRecord(NamedTuple):
    """A record with a message id; ``sent_ms`` is when its window began."""

    message_id: bytes
    offset: int  # of a batch without one yet: relative to its base offset
    timestamp_ms: int
    sent_ms: int


def identified(records: Iterable[tuple[int, Headers, int]]) -> list[IdentifiedRecord]:
    """Those of *records* (offset, headers, timestamp in milliseconds) that have an id."""
    return [
        IdentifiedRecord(message_id, offset, timestamp_ms, sent_ms_in(headers, timestamp_ms))
        for offset, headers, timestamp_ms in records
        if headers and (message_id := message_id_in(headers)) is not None
    ]


def identified_in(batch: StoredBatch) -> list[IdentifiedRecord]:
    """The records of *batch* that have an id.

    Raises:
        CorruptBatchError: its records do not parse.
    """
    if batch.header.is_control or not batch.header.record_count:
        return []
    is_plain = batch.header.compression is Compression.NONE
    if is_plain and MESSAGE_ID_HEADER.encode() not in bytes(batch.data):
        return []  # found out much faster than by decoding
    return identified(
        (record.offset, record.header_pairs, record.timestamp_ms) for record in decode_records(batch)
    )


def message_id_in(headers: Headers) -> bytes | None:
    """The id among *headers* as its UTF-8 bytes; None without one."""
    for name, value in headers:
        if name == MESSAGE_ID_HEADER and value is not None and 0 < len(value) <= MAX_MESSAGE_ID_BYTES:
            try:
                value.decode()
            except UnicodeDecodeError:
                continue
            return value
    return None


def message_id_of(record: Record) -> str | None:
    """The id of *record*; None without one."""
    found = message_id_in(record.header_pairs)
    return None if found is None else found.decode()


def sent_ms_in(headers: Headers, timestamp_ms: int) -> int:
    """When a record with these headers and this timestamp was sent."""
    for name, value in headers:
        if name == SENT_AT_HEADER and value is not None and len(value) == SENT_AT.size:
            return int(SENT_AT.unpack(value)[0])
    return timestamp_ms
