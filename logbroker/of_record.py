"""What users see of a record through something that is about it: a queue's message, a request, a reply."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from logbroker_storage.record import Record


class OfRecord:
    """The content of ``record``, which the class that extends this has, and when it was sent."""

    __slots__ = ()

    if TYPE_CHECKING:  # else the extending class could not have it as a slot or field
        record: Record

    @property
    def value(self) -> bytes | None:
        return self.record.value

    @property
    def key(self) -> bytes | None:
        return self.record.key

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """The sender's own headers, in order, as a list of the caller's own."""
        return self.record.headers

    @property
    def timestamp_ms(self) -> int:
        """When it was sent, in milliseconds since 1970 UTC."""
        return self.record.timestamp_ms

    @property
    def timestamp(self) -> datetime.datetime:
        """``timestamp_ms`` as an aware UTC datetime."""
        return self.record.timestamp


class OfPlacedRecord(OfRecord):
    """And where it is."""

    __slots__ = ()

    @property
    def topic(self) -> str:
        return self.record.topic

    @property
    def partition(self) -> int:
        return self.record.partition

    @property
    def offset(self) -> int:
        return self.record.offset
