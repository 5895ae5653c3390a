"""The offsets that bound a partition, and which of them a reader stops at."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Isolation(enum.Enum):
    """Whether a reader sees records whose transaction is undecided or was aborted."""

    READ_UNCOMMITTED = "read_uncommitted"
    READ_COMMITTED = "read_committed"


class LogOffsets(NamedTuple):
    """The offsets that bound a partition, as of one moment; all exclusive ends but the start."""

    log_start_offset: int
    high_watermark: int
    last_stable_offset: int
    log_end_offset: int
    synced_offset: int

    def visible_end(self, isolation: Isolation) -> int:
        """The offset that a reader of this isolation stops at."""
        return self.last_stable_offset if isolation is Isolation.READ_COMMITTED else self.high_watermark
