"""A message on its way through a pipeline.

    record ──► draft ──step──► draft ──step──► … ──► message

A draft belongs to the pipeline that made it: a step may change it, and the containers in its payload, and
passes on the same draft, none, or several. What it must not change is what another draft also holds.
"""

from __future__ import annotations

from typing import Any

import msgspec

from logbroker_storage.record import HeaderPairs, Record


class Draft(msgspec.Struct):
    """What will be a message.

    Attributes:
        payload: the value: bytes (or None, a tombstone) before a decoding and after an encoding step, between
            them the decoded object.
        is_decoded: which of the two it is.
        key: of the message; None for none.
        headers: pairs of text and bytes or None, in order.
        timestamp_ms: milliseconds since 1970 UTC.
        record: the record that the pipeline was given.
    """

    payload: Any
    is_decoded: bool
    key: bytes | None
    headers: HeaderPairs
    timestamp_ms: int
    record: Record

    @property
    def is_tombstone(self) -> bool:
        """Whether it has no value at all, which is something else than a decoded null."""
        return self.payload is None and not self.is_decoded

    def with_payload(self, payload: object) -> Draft:
        """Another draft that differs only in its decoded payload."""
        return Draft(payload, True, self.key, self.headers, self.timestamp_ms, self.record)
