"""A record as readers see it."""

from __future__ import annotations

import datetime

import msgspec

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
