"""A record as readers see it, and one that was not written yet."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import msgspec

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_FIRST_DATETIME = datetime.datetime.min.replace(tzinfo=datetime.UTC)
_LAST_DATETIME = datetime.datetime.max.replace(tzinfo=datetime.UTC)


NO_TIMESTAMP = -1
RESERVED_HEADER_PREFIX = "logbroker."  # of the keys of headers that say something to the broker

HeaderPairs = tuple[tuple[str, bytes | None], ...]


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as it was read: ``headers`` in the producer's order; a ``value`` of None is a tombstone."""

    # No field is a container of the record's own: a list for each record would be counted by the garbage
    # collector, which then runs every few hundred records and takes as long as decoding them.

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    header_pairs: HeaderPairs = ()

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """The headers as a list of the caller's own."""
        return list(self.header_pairs)

    @property
    def timestamp(self) -> datetime.datetime:
        """``timestamp_ms`` as an aware UTC datetime, cut to the years 1 to 9999 that Python knows."""
        try:
            return _EPOCH + datetime.timedelta(milliseconds=self.timestamp_ms)
        except OverflowError:
            return _LAST_DATETIME if self.timestamp_ms > 0 else _FIRST_DATETIME


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that has no offset yet. Timestamp in milliseconds since 1970; header keys are text."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp_ms: int = NO_TIMESTAMP
