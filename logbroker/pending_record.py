"""A record that ``send`` was given, checked, on its way to a batch."""

from __future__ import annotations

from collections.abc import Callable

from logbroker_storage.errors import InvalidRequestError

from .accumulator import RECORD_OVERHEAD_BYTES, VALUE_OVERHEAD_BYTES, headers_bytes
from .records import Message, due_ms, message_id_bytes, stored_headers, timestamp_ms_of


class PendingRecord:
    """A record on the long way: checked, and not yet in a batch."""

    __slots__ = (
        "deadline_s",
        "has_ttl",
        "headers",
        "is_forgotten",
        "key",
        "message_id",
        "partition",
        "sequence",
        "size_bytes",
        "timestamp_ms",
        "value",
    )

    def __init__(self, message: Message, now_ms: Callable[[], int]) -> None:
        value, key = message.value, message.key
        if type(value) is not bytes and value is not None:
            raise not_bytes("value", value)
        if type(key) is not bytes and key is not None:
            raise not_bytes("key", key)
        self.value = value
        self.key = key
        self.has_ttl = message.ttl is not None
        self.message_id = None if message.message_id is None else message_id_bytes(message.message_id)
        self.is_forgotten = message.acks == "none"
        self.headers = stored_headers(
            message.headers,
            message.ttl,
            deliver_at_ms=None
            if message.deliver_at is None and message.delay is None
            else due_ms(message.deliver_at, message.delay, now_ms),
            priority=message.priority,
            message_id=self.message_id,
            sent_ms=None if message.timestamp is None or self.message_id is None else now_ms(),
        )
        self.partition = message.partition
        self.timestamp_ms = None if message.timestamp is None else timestamp_ms_of(message.timestamp)
        self.sequence = message.sequence
        self.size_bytes = self._size_bytes()
        self.deadline_s: float | None = None  # of waiting for space; monotonic

    def _size_bytes(self) -> int:
        """An upper bound of what it takes in a batch."""
        size_bytes = 0 if self.value is None else len(self.value)
        if self.key is None and not self.headers and self.timestamp_ms is None:
            return size_bytes + VALUE_OVERHEAD_BYTES
        size_bytes += RECORD_OVERHEAD_BYTES + (0 if self.key is None else len(self.key))
        return size_bytes + headers_bytes(self.headers)


def not_bytes(what: str, value: object) -> InvalidRequestError:
    """The error of a record's key or value (*what*) that is no bytes."""
    hint = "; encode it first: text.encode()" if isinstance(value, str) else ""
    return InvalidRequestError(f"a record's {what} is bytes or None, not {type(value).__name__}{hint}")
