"""What goes in and out of the broker: messages, their headers and time to live, and where they landed.

On the way in, headers may be a mapping or pairs, their values bytes, text (stored as UTF-8) or None; they
are stored as pairs, in order, a key as often as it was given. Header keys that begin with ``logbroker.``
belong to the broker: users cannot send them, and never see them on delivery.

A time to live is such a header, and so is everything else that a sender says of a delivery
(``delivery_headers``). The batch header does not know of them, so a reader first asks whether any record of a
batch has any (``decode_batch``).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypedDict

import msgspec

from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.record_batch import RESERVED_HEADER_PREFIX, Record

from .arguments import utf8
from .delivery_headers import MAX_MESSAGE_ID_BYTES, MAX_PRIORITY, NORMAL_PRIORITY, encode_delivery_headers

HeaderValue = bytes | str | None
HeadersArgument = Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]]
StoredHeaders = tuple[tuple[str, bytes | None], ...]
TimestampArgument = datetime.datetime | int
AcksName = Literal["all", "written", "none"]

NO_HEADERS: StoredHeaders = ()
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MILLISECOND = datetime.timedelta(milliseconds=1)
NO_DELAY = datetime.timedelta(0)
INT64_MAX = (1 << 63) - 1


__all__ = ["Message", "Record", "RecordMetadata"]


class SendOptions(TypedDict, total=False):
    """What may be said of a message besides what it holds: ``send``'s keywords and ``Message``'s fields.

    Attributes:
        partition: where to put it, instead of where the key belongs.
        timestamp: an aware datetime or milliseconds since 1970 UTC; default: now.
        ttl: how long after its timestamp it may be delivered.
        sequence: with a named producer only; see ``Producer.send``.
        deliver_at: an aware datetime or milliseconds since 1970 UTC, before which no queue delivers it.
        delay: the same as a time from now; not together with ``deliver_at``.
        priority: 0 (normal) to 9; a queue delivers higher ones first.
        message_id: text of 1 to 200 bytes in UTF-8: of the records with one id that a topic is sent within its
            ``deduplication.window.ms``, one is appended.
        acks: ``"none"``: nobody will ask what became of it; default: as the producer was opened.
    """

    partition: int | None
    timestamp: TimestampArgument | None
    ttl: datetime.timedelta | None
    sequence: int | None
    deliver_at: TimestampArgument | None
    delay: datetime.timedelta | None
    priority: int
    message_id: str | None
    acks: AcksName | None


class Message(msgspec.Struct, frozen=True, kw_only=False):
    """A record to be sent, for ``producer.send_many``; the fields are the arguments of ``send``.

    Attributes:
        value: the payload; None is a tombstone in a compacted topic.
        key: records of one key go to one partition and stay in order.
        headers: a mapping or pairs; values are bytes, text (stored as UTF-8) or None.

    The others are those of ``SendOptions``. Checked when it is sent.
    """

    value: bytes | None
    key: bytes | None = None
    headers: HeadersArgument | None = None
    partition: int | None = None
    timestamp: TimestampArgument | None = None
    ttl: datetime.timedelta | None = None
    sequence: int | None = None
    deliver_at: TimestampArgument | None = None
    delay: datetime.timedelta | None = None
    priority: int = NORMAL_PRIORITY
    message_id: str | None = None
    acks: AcksName | None = None


class RecordMetadata(msgspec.Struct, frozen=True, gc=False):
    """Where an acknowledged record is. ``offset`` is -1 when nobody asked the log (``acks="none"``).

    ``duplicate``: a record with the same ``message_id`` had been sent before; this is where that one is.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    duplicate: bool = False

    @property
    def timestamp(self) -> datetime.datetime:
        """``timestamp_ms`` as an aware UTC datetime."""
        return EPOCH + datetime.timedelta(milliseconds=self.timestamp_ms)


# On the way in ------------------------------------------------------------------------------------------


def stored_headers(
    headers: HeadersArgument | None,
    ttl: datetime.timedelta | None = None,
    *,
    deliver_at_ms: int | None = None,
    priority: int = NORMAL_PRIORITY,
    message_id: bytes | None = None,
    sent_ms: int | None = None,
) -> StoredHeaders:
    """The pairs to store for *headers* and what else is said of the delivery.

    *message_id* is checked (``message_id_bytes``); *sent_ms* is for a record with an id whose timestamp is not the
    time when it is sent.

    Raises:
        InvalidRequestError: a key is reserved or no text, a value of another type, a ttl below 1 ms, a
            priority out of its range.
    """
    pairs = [_stored_header(pair) for pair in _pairs(headers)] if headers else []
    if ttl is None and deliver_at_ms is None and priority == NORMAL_PRIORITY and message_id is None:
        return tuple(pairs)
    pairs += encode_delivery_headers(
        ttl_ms=None if ttl is None else _ttl_ms(ttl),
        deliver_at_ms=deliver_at_ms,
        priority=_checked_priority(priority),
        message_id=message_id,
        sent_ms=sent_ms,
    )
    return tuple(pairs)


def due_ms(
    deliver_at: TimestampArgument | None, delay: datetime.timedelta | None, now_ms: Callable[[], int]
) -> int | None:
    """When the message is due, in milliseconds since 1970 UTC; None when nothing is said.

    Raises:
        InvalidRequestError: both are given, a naive datetime, a negative delay, or another type.
    """
    if delay is None:
        return None if deliver_at is None else timestamp_ms_of(deliver_at, "deliver_at")
    if deliver_at is not None:
        raise InvalidRequestError("give deliver_at= or delay=, not both")
    if not isinstance(delay, datetime.timedelta):
        raise InvalidRequestError(f"delay is a datetime.timedelta, not {type(delay).__name__}: {delay!r}")
    if delay < NO_DELAY:
        raise InvalidRequestError(f"delay cannot be negative: {delay}")
    return now_ms() + delay // MILLISECOND


def _pairs(headers: object) -> Iterable[object]:
    # The usual types first: to ask an abstract one takes 0.3 µs.
    if isinstance(headers, dict):
        return headers.items()
    if isinstance(headers, (list, tuple)):
        return headers
    if isinstance(headers, Mapping):
        return headers.items()
    if isinstance(headers, Iterable) and not isinstance(headers, (str, bytes)):
        return headers
    raise InvalidRequestError(
        f"headers are a mapping or a list of (key, value) pairs, not {type(headers).__name__}"
    )


def _stored_header(pair: object) -> tuple[str, bytes | None]:
    if not isinstance(pair, (tuple, Sequence)) or isinstance(pair, (str, bytes)) or len(pair) != 2:
        raise InvalidRequestError(f"a header is a (key, value) pair, not {pair!r}")
    key, value = pair
    if not isinstance(key, str):
        raise InvalidRequestError(f"a header's key is text, not {type(key).__name__}: {key!r}")
    if key.startswith(RESERVED_HEADER_PREFIX):
        raise InvalidRequestError(
            f"header {key!r} is reserved: keys that begin with {RESERVED_HEADER_PREFIX!r} are the broker's; "
            "use another key (ttl=, deliver_at=, priority= and message_id= are arguments of their own)"
        )
    try:
        key.encode(errors="surrogateescape")  # as it is stored
        if isinstance(value, str):
            return key, value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"header {key!r} has no UTF-8 form: {value!r}") from None
    if value is None or type(value) is bytes:
        return key, value
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


def _checked_priority(priority: int) -> int:
    if type(priority) is not int or not NORMAL_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidRequestError(
            f"priority is an integer from {NORMAL_PRIORITY} (normal) to {MAX_PRIORITY}, not {priority!r}"
        )
    return priority


def message_id_bytes(message_id: str) -> bytes:
    """The id as it is stored.

    Raises:
        InvalidRequestError: it is no text, or not of 1 to 200 bytes in UTF-8.
    """
    encoded = utf8("message_id", message_id)
    if not 0 < len(encoded) <= MAX_MESSAGE_ID_BYTES:
        raise InvalidRequestError(
            f"a message_id takes 1 to {MAX_MESSAGE_ID_BYTES} bytes in UTF-8, not {len(encoded)}; "
            "use a hash of a longer one"
        )
    return encoded


def timestamp_ms_of(timestamp: TimestampArgument, name: str = "timestamp") -> int:
    """Milliseconds since 1970 UTC of an aware datetime, or of milliseconds; *name* is the argument's.

    Raises:
        InvalidRequestError: a naive datetime, a negative number, or another type.
    """
    if isinstance(timestamp, datetime.datetime):
        if timestamp.tzinfo is None:
            raise InvalidRequestError(
                f"{name} {timestamp!r} has no time zone; give it one, for example tzinfo=datetime.UTC"
            )
        timestamp_ms = (timestamp - EPOCH) // MILLISECOND
    elif isinstance(timestamp, int) and not isinstance(timestamp, bool):
        timestamp_ms = timestamp
    else:
        raise InvalidRequestError(
            f"{name} is an aware datetime or milliseconds since 1970, not {type(timestamp).__name__}"
        )
    if not 0 <= timestamp_ms <= INT64_MAX:
        raise InvalidRequestError(f"{name} {timestamp!r} is before 1970 or too large")
    return timestamp_ms


# On the way out -----------------------------------------------------------------------------------------


def without_reserved_headers(record: Record) -> Record:
    """*record* as the user may see it."""
    visible = tuple(pair for pair in record.header_pairs if not pair[0].startswith(RESERVED_HEADER_PREFIX))
    if len(visible) == len(record.header_pairs):
        return record
    return msgspec.structs.replace(record, header_pairs=visible)
