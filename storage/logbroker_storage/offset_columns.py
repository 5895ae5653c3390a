"""Consecutive offset deltas as columns of bytes, for records of one length that lie end to end.

Where all records of a run have the same length, byte *n* of every record is a column: a slice with a
stride, which Python copies, compares and assigns at C speed. Only the offset delta differs from record to
record, and only in the first two bytes of its varint while the run stays inside 8192 offsets:

    delta         first byte               second byte             further bytes
    0..63         2 * (delta % 64)
    64..8191      2 * (delta % 64) + 128   delta / 64
    from 8192     2 * (delta % 64) + 128   delta / 64 % 128 + 128  the same for 8192 deltas

Invariant: ``run_end`` never lets a run cross a row of this table or a multiple of 8192.
"""

from __future__ import annotations

from .varint import ONE_BYTE_END, TWO_BYTE_END

_ONLY_BYTE = bytes(2 * delta for delta in range(ONE_BYTE_END))
_FIRST_BYTE = bytes(2 * (delta % 64) + 128 for delta in range(TWO_BYTE_END))
_LAST_BYTE = bytes(delta // 64 for delta in range(TWO_BYTE_END))
_SECOND_BYTE = bytes(delta // 64 + 128 for delta in range(TWO_BYTE_END))


def run_end(delta: int, end: int) -> int:
    """The exclusive end, at most *end*, of the run of deltas that starts at *delta*."""
    limit = ONE_BYTE_END if delta < ONE_BYTE_END else (delta // TWO_BYTE_END + 1) * TWO_BYTE_END
    return min(limit, end)


def offset_columns(delta: int, end: int) -> tuple[bytes, ...]:
    """The bytes that differ in the varints of [delta, end), a run, as one column for each."""
    if delta < ONE_BYTE_END:
        return (_ONLY_BYTE[delta:end],)
    first = delta % TWO_BYTE_END
    last = first + end - delta
    second = _LAST_BYTE if delta < TWO_BYTE_END else _SECOND_BYTE
    return _FIRST_BYTE[first:last], second[first:last]
