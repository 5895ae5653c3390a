"""What a sender says of a message's delivery: headers of the record that only the broker sees.

    header                  value            argument of send      meaning
    logbroker.ttl.ms        int64            ttl                   expires so long after its timestamp
    logbroker.deliver-at    int64            deliver_at, delay     due at this time, in milliseconds since 1970 UTC
    logbroker.priority      one byte         priority              0 (normal, and not stored) to 9 (first)
    logbroker.message-id    1 to 200 bytes   message_id            UTF-8; one record of an id in the topic's window
    logbroker.sent-at       int64            -                     see ``message_ids``

Numbers are big-endian. A client of another kind may have written such headers as well: a value of another
size or out of range counts as absent, and of several values the first sound one counts (of times to live the
shortest). A log is read in its order, by anybody at once: only queues go by ``deliver_at`` and ``priority``.
"""

from __future__ import annotations

import struct

from logbroker_storage.message_ids import (
    MAX_MESSAGE_ID_BYTES,
    MESSAGE_ID_HEADER,
    SENT_AT,
    SENT_AT_HEADER,
    message_id_of,
)
from logbroker_storage.record_batch import TTL_HEADER, Record
from logbroker_storage.record_expiry import NO_TTL, TTL, record_ttl_ms

DELIVER_AT_HEADER = "logbroker.deliver-at"
PRIORITY_HEADER = "logbroker.priority"

DELIVER_AT = struct.Struct(">q")
PRIORITY = struct.Struct(">B")

NORMAL_PRIORITY = 0
MAX_PRIORITY = 9

__all__ = ["deliver_at_ms", "encode_delivery_headers", "expires_at_ms", "message_id_of", "priority_of"]
__all__ += ["MAX_MESSAGE_ID_BYTES", "MAX_PRIORITY", "NORMAL_PRIORITY"]


def encode_delivery_headers(
    *,
    ttl_ms: int | None = None,
    deliver_at_ms: int | None = None,
    priority: int = NORMAL_PRIORITY,
    message_id: bytes | None = None,
    sent_ms: int | None = None,
) -> list[tuple[str, bytes]]:
    """The pairs to store; every value is in its range."""
    pairs: list[tuple[str, bytes]] = []
    if ttl_ms is not None:
        pairs.append((TTL_HEADER, TTL.pack(ttl_ms)))
    if deliver_at_ms is not None:
        pairs.append((DELIVER_AT_HEADER, DELIVER_AT.pack(deliver_at_ms)))
    if priority != NORMAL_PRIORITY:
        pairs.append((PRIORITY_HEADER, PRIORITY.pack(priority)))
    if message_id is not None:
        pairs.append((MESSAGE_ID_HEADER, message_id))
    if sent_ms is not None:
        pairs.append((SENT_AT_HEADER, SENT_AT.pack(sent_ms)))
    return pairs


def deliver_at_ms(record: Record) -> int | None:
    """When a queue may deliver *record*, in milliseconds since 1970 UTC; None: at once."""
    for name, value in record.header_pairs:
        if name == DELIVER_AT_HEADER and value is not None and len(value) == DELIVER_AT.size:
            time_ms: int = DELIVER_AT.unpack(value)[0]
            if time_ms >= 0:
                return time_ms
    return None


def priority_of(record: Record) -> int:
    """0 (normal) to 9; a queue delivers higher ones first."""
    for name, value in record.header_pairs:
        if (
            name == PRIORITY_HEADER
            and value is not None
            and len(value) == PRIORITY.size
            and value[0] <= MAX_PRIORITY
        ):
            return value[0]
    return NORMAL_PRIORITY


def expires_at_ms(record: Record, ttl_ms: int = NO_TTL) -> int | None:
    """When *record* expires, in milliseconds since 1970 UTC; *ttl_ms* is its topic's, -1 for none. None: never."""
    lives_ms = record_ttl_ms(record, ttl_ms)
    return None if lives_ms < 0 or record.timestamp_ms < 0 else record.timestamp_ms + lives_ms
