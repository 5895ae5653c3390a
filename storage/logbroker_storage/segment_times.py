"""The largest timestamp of each sealed segment, looked up once: it decides on expiry and leads a search by time.

Known for as long as ``LogEnd.segments_version`` stays, by a segment's base offset and the next one's: what a killed
compaction left is put in place without a new version, and makes one segment of several.
"""

from __future__ import annotations

from .local_log import LocalLog
from .segment import build_indexes
from .segment_files import TIME_INDEX_SUFFIX
from .time_index import last_timestamp_ms, used_bytes
from .view import LogEnd


class SegmentTimes:
    """Of one log. Safe across threads: what two of them look up at once is the same."""

    def __init__(self, log: LocalLog) -> None:
        self._log = log
        self._known: tuple[int, dict[tuple[int, int], int]] = (-1, {})  # of a version; replaced whole

    def indexed_ms(self, end: LogEnd, base_offset: int, next_base: int) -> int | None:
        """By its time index; None where that is missing, damaged or empty."""
        known = self._of(end)
        found = known.get((base_offset, next_base))
        if found is None:
            index = self._log.index(base_offset, TIME_INDEX_SUFFIX, None)
            times = index[: used_bytes(index)]
            if not times:
                return None
            found = known[base_offset, next_base] = last_timestamp_ms(times)
        return found

    def largest_ms(self, end: LogEnd, base_offset: int, next_base: int) -> int:
        """The same, from the batches where the time index does not say; -1 without any."""
        found = self.indexed_ms(end, base_offset, next_base)
        if found is None:
            found = self._of(end)[base_offset, next_base] = self._in_batches_ms(base_offset)
        return found

    def _of(self, end: LogEnd) -> dict[tuple[int, int], int]:
        version, known = self._known
        if version != end.segments_version:
            known = {}
            self._known = (end.segments_version, known)
        return known

    def _in_batches_ms(self, base_offset: int) -> int:
        log = self._log
        fd = log.files.open(log.segment(base_offset).log_path, readonly=True)
        try:
            size = log.files.size(fd)
            built = build_indexes(log.files, fd, base_offset, size, log.config.index_interval_bytes)
        finally:
            log.files.close(fd)
        return last_timestamp_ms(built.time_index)
