"""When a record is no longer delivered: its topic's time to live or its own, whichever is shorter.

A topic's is ``message.ttl.ms``; a record's own is its header ``logbroker.ttl.ms``, an int64 in big-endian
bytes. Both count in milliseconds from the record's timestamp. A header of another size is no time to live.
"""

from __future__ import annotations

import struct

from .record_batch import TTL_HEADER, Record

TTL = struct.Struct(">q")
NO_TTL = -1


def is_expired(record: Record, *, now_ms: int, ttl_ms: int = NO_TTL) -> bool:
    """Whether *record* has outlived its time; *ttl_ms* is the topic's, -1 for none."""
    limit_ms = record_ttl_ms(record, ttl_ms) if record.header_pairs else ttl_ms
    return 0 <= limit_ms <= now_ms - record.timestamp_ms and record.timestamp_ms >= 0


def record_ttl_ms(record: Record, ttl_ms: int = NO_TTL) -> int:
    """How long *record* lives, in milliseconds from its timestamp; -1 for ever."""
    for name, value in record.header_pairs:
        if name == TTL_HEADER and value is not None and len(value) == TTL.size:
            own_ms: int = TTL.unpack(value)[0]
            if own_ms >= 0 and (ttl_ms < 0 or own_ms < ttl_ms):
                ttl_ms = own_ms
    return ttl_ms
