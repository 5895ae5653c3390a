"""Which transactions were aborted in a range of offsets, from the ``.txnindex`` files of a partition.

A transaction's entry lies in the segment of its marker, which may be any from that of its first record on. So
a lookup reads the index files from the first segment of the range on, up to the entry that says that no later
transaction reaches back to it (``last_stable_offset``). What an index that fails its checksum should say is found in
the batches. An index whose log file was lost is believed: it may be all that is left to tell of the marker.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import aborted_index
from .aborted_index import AbortedTransaction
from .index_files import read_index_file
from .local_log import LocalLog
from .producer_recovery import aborted_index_of
from .segment_files import ABORTED_INDEX_SUFFIX

if TYPE_CHECKING:
    from .segment_list import SegmentList
    from .view import LogEnd


class AbortedLookup:
    """Looks up aborted transactions of one partition. Not thread-safe."""

    def __init__(self, log: LocalLog) -> None:
        self._log = log
        self._segments: SegmentList | None = None  # that were looked at last
        self._found: dict[int, list[AbortedTransaction]] = {}  # in the batches of sealed ones, see _read

    def between(
        self, end: LogEnd, segments: SegmentList, start_offset: int, end_offset: int
    ) -> list[AbortedTransaction]:
        """The aborted transactions with a record or their marker in [start_offset, end_offset).

        *segments* is the list of *end*.

        Raises:
            FileNotFoundError: one of them is gone: look again.
        """
        if segments is not self._segments:
            self._segments = segments
            self._found.clear()
        return aborted_index.overlapping(
            self._from(end, segments, start_offset), start_offset=start_offset, end_offset=end_offset
        )

    def _from(self, end: LogEnd, segments: SegmentList, offset: int) -> Iterator[AbortedTransaction]:
        """The entries of the segment that holds *offset* and of those behind it, in the order of the log."""
        at = bisect.bisect_right(segments.bases, offset)
        first = segments.bases[at - 1] if at else 0
        for base in segments.aborted[bisect.bisect_left(segments.aborted, first) :]:
            if base < end.active_base_offset:
                yield from self._read(base, segments, None)
        if end.aborted_index_bytes:
            yield from self._read(end.active_base_offset, segments, end.aborted_index_bytes)

    def _read(
        self, base_offset: int, segments: SegmentList, size_bytes: int | None
    ) -> list[AbortedTransaction]:
        """The entries of one segment, as far as *size_bytes*. FileNotFoundError: the segment was removed."""
        if base_offset in self._found:
            return self._found[base_offset]
        log = self._log
        content = read_index_file(
            log.files, log.directory, base_offset, ABORTED_INDEX_SUFFIX, is_sealed=size_bytes is None
        )
        # One that is there is not empty.
        if content and (size_bytes is None or len(content) >= size_bytes):
            return aborted_index.parse(content[:size_bytes])
        found = aborted_index.parse(aborted_index_of(log, base_offset, segments.bases))
        if size_bytes is None:  # the active segment's grow
            self._found[base_offset] = found
        return found
