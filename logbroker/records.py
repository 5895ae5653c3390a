"""What goes in and out of the broker: messages, their headers and time to live, and where they landed.

On the way in, headers may be a mapping or pairs, their values bytes, text (stored as UTF-8) or None; they
are stored as pairs, in order, a key as often as it was given. Header keys that begin with ``logbroker.``
belong to the broker: users cannot send them, and never see them on delivery.

A time to live is such a header, ``logbroker.ttl.ms``: int64 big-endian, milliseconds after the record's
timestamp at which it expires. The batch header does not know of it, so a reader first asks whether any
record of a batch has headers at all (``may_have_reserved_headers``).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

import msgspec

from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.record_batch import (
    RESERVED_HEADER_PREFIX,
    TTL_HEADER,
    Record,
)
from logbroker_storage.record_expiry import TTL

HeaderValue = bytes | str | None
HeadersArgument = Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]]
StoredHeaders = tuple[tuple[str, bytes | None], ...]
TimestampArgument = datetime.datetime | int

NO_HEADERS: StoredHeaders = ()
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MILLISECOND = datetime.timedelta(milliseconds=1)
INT64_MAX = (1 << 63) - 1

_headers_of = attrgetter("header_pairs")

__all__ = ["Message", "Record", "RecordMetadata"]


class Message(msgspec.Struct, frozen=True, kw_only=False):
    """A record to be sent, for ``producer.send_many``; the fields are the arguments of ``send``.

    Attributes:
        value: the payload; None is a tombstone in a compacted topic.
        key: records of one key go to one partition and stay in order.
        headers: a mapping or pairs of text and bytes, text or None.
        partition: where to put it, instead of where the key belongs.
        timestamp: an aware datetime or milliseconds since 1970 UTC; None is now.
        ttl: after this time the record is never delivered.
        sequence: with a named producer only; see ``broker.producer``.
    """

    value: bytes | None
    key: bytes | None = None
    headers: HeadersArgument | None = None
    partition: int | None = None
    timestamp: TimestampArgument | None = None
    ttl: datetime.timedelta | None = None
    sequence: int | None = None


class RecordMetadata(msgspec.Struct, frozen=True, gc=False):
    """Where an acknowledged record is. ``offset`` is -1 when nobody asked the log (``acks="none"``)."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int

    @property
    def timestamp(self) -> datetime.datetime:
        """``timestamp_ms`` as an aware UTC datetime."""
        return EPOCH + datetime.timedelta(milliseconds=self.timestamp_ms)


# On the way in ------------------------------------------------------------------------------------------


def stored_headers(headers: HeadersArgument | None, ttl: datetime.timedelta | None = None) -> StoredHeaders:
    """The pairs to store for *headers* and *ttl*.

    Raises:
        InvalidRequestError: a key is reserved or no text, a value of another type, a ttl below 1 ms.
    """
    if not headers and ttl is None:
        return NO_HEADERS
    pairs = [_stored_header(pair) for pair in _pairs(headers)] if headers else []
    if ttl is not None:
        pairs.append((TTL_HEADER, TTL.pack(_ttl_ms(ttl))))
    return tuple(pairs)


def _pairs(headers: object) -> Iterable[object]:
    if isinstance(headers, Mapping):
        return headers.items()
    if isinstance(headers, Iterable) and not isinstance(headers, (str, bytes)):
        return headers
    raise InvalidRequestError(
        f"headers are a mapping or a list of (key, value) pairs, not {type(headers).__name__}"
    )


def _stored_header(pair: object) -> tuple[str, bytes | None]:
    if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)) or len(pair) != 2:
        raise InvalidRequestError(f"a header is a (key, value) pair, not {pair!r}")
    key, value = pair
    if not isinstance(key, str):
        raise InvalidRequestError(f"a header's key is text, not {type(key).__name__}: {key!r}")
    if key.startswith(RESERVED_HEADER_PREFIX):
        raise InvalidRequestError(
            f"header {key!r} is reserved: keys that begin with {RESERVED_HEADER_PREFIX!r} are the broker's; "
            "use another key (and ttl= for a time to live)"
        )
    if value is None or type(value) is bytes:
        return key, value
    if isinstance(value, str):
        return key, value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return key, bytes(value)
    raise InvalidRequestError(
        f"the value of header {key!r} is bytes, text or None, not {type(value).__name__}"
    )


def _ttl_ms(ttl: datetime.timedelta) -> int:
    if not isinstance(ttl, datetime.timedelta):
        raise InvalidRequestError(f"ttl is a datetime.timedelta, not {type(ttl).__name__}: {ttl!r}")
    ttl_ms = ttl // MILLISECOND
    if ttl_ms <= 0:
        raise InvalidRequestError(f"ttl must be at least one millisecond, not {ttl}")
    return ttl_ms


def timestamp_ms_of(timestamp: TimestampArgument) -> int:
    """Milliseconds since 1970 UTC of an aware datetime, or of milliseconds.

    Raises:
        InvalidRequestError: a naive datetime, a negative number, or another type.
    """
    if isinstance(timestamp, datetime.datetime):
        if timestamp.tzinfo is None:
            raise InvalidRequestError(
                f"timestamp {timestamp!r} has no time zone; give it one, for example tzinfo=datetime.UTC"
            )
        timestamp_ms = (timestamp - EPOCH) // MILLISECOND
    elif isinstance(timestamp, int) and not isinstance(timestamp, bool):
        timestamp_ms = timestamp
    else:
        raise InvalidRequestError(
            f"a timestamp is an aware datetime or milliseconds since 1970, not {type(timestamp).__name__}"
        )
    if not 0 <= timestamp_ms <= INT64_MAX:
        raise InvalidRequestError(f"timestamp {timestamp!r} is before 1970 or too large")
    return timestamp_ms


# On the way out -----------------------------------------------------------------------------------------


def may_have_reserved_headers(records: Sequence[Record]) -> bool:
    """Whether any of *records* can have a header of the broker's; False is certain.

    0.03 µs a record; searching the batch's bytes for the prefix takes 0.05 µs.
    """
    return any(map(_headers_of, records))


def without_reserved_headers(record: Record) -> Record:
    """*record* as the user may see it."""
    visible = tuple(pair for pair in record.header_pairs if not pair[0].startswith(RESERVED_HEADER_PREFIX))
    if len(visible) == len(record.header_pairs):
        return record
    return msgspec.structs.replace(record, header_pairs=visible)
