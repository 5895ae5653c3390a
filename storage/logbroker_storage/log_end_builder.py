"""``LogEnd`` and the indexes of a segment, from its batches: the fold of recovery and adoption.

    for each segment     begin_segment    where the scan starts, with what may be kept of the indexes
    for each batch       add              in order; or skip_to behind a damaged stretch
    at a segment's end   write_indexes    and cut off what was there beyond

A batch gets an index entry by the same rule as in an append (``active_segment``).

Invariant: an entry that is kept lies below the recovery point, and not behind the last that is left of the other
index; the last of them leads to a batch that says the same offset.
"""

from __future__ import annotations

from . import offset_index, time_index
from .errors import CorruptBatchError
from .files import Files
from .index_files import read_index_file
from .record_batch import HEADER_BYTES, BatchHeader, read_header
from .segment_files import OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, SegmentFiles
from .view import LogEnd


class LogEndBuilder:
    """The LogEnd behind the batches that were added, and the index entries of the last segment.

    *end* is where the first batch follows; *now_ms* the creation time of its segment, -1 if unknown.
    """

    def __init__(
        self, end: LogEnd, index_interval_bytes: int, *, now_ms: int, recovery_point: int = 0
    ) -> None:
        self._end = end
        self._recovery_point = recovery_point
        self._interval_bytes = index_interval_bytes
        self._offsets = bytearray()
        self._times = bytearray()
        self._now_ms = now_ms

    @property
    def log_end_offset(self) -> int:
        return self._end.log_end_offset

    def begin_segment(self, files: Files, segment: SegmentFiles) -> int:
        """Start on a segment; the position to scan from.

        Index entries below the recovery point are kept when they are well-formed, so that a scan does not begin at
        the start of a large segment. They were not synced with it: the last ones of either index may be missing.
        """
        self._offsets.clear()
        self._times.clear()
        base = segment.base_offset
        self._end = self._end._replace(
            log_end_offset=base,
            active_base_offset=base,
            active_bytes=0,
            indexed_bytes=0,
            indexed_timestamp_ms=-1,
            max_timestamp_ms=-1,
            max_timestamp_offset=-1,
        )
        if self._recovery_point <= base:
            return 0
        return self._resume(files, segment)

    def _resume(self, files: Files, segment: SegmentFiles) -> int:
        base, size = segment.base_offset, segment.log_bytes()
        offsets = read_index_file(files, segment.directory, base, OFFSET_INDEX_SUFFIX, is_sealed=False)
        times = read_index_file(files, segment.directory, base, TIME_INDEX_SUFFIX, is_sealed=False)
        if offsets is None or times is None:
            return 0
        room = self._recovery_point - base
        kept = [entry for entry in offset_index.parse(offsets) if entry.relative_offset < room]
        kept_times = [entry for entry in time_index.parse(times) if entry.relative_offset < room]
        # Only below its last entry is the time index known to be whole, and the largest timestamp so far with it.
        known = kept_times[-1].relative_offset if kept_times else -1
        kept = [entry for entry in kept if entry.relative_offset <= known]
        encoded = b"".join(offset_index.encode_entry(*entry) for entry in kept)
        encoded_times = b"".join(time_index.encode_entry(*entry) for entry in kept_times)
        if (
            not kept
            or offset_index.check(encoded, end_relative_offset=room, end_position=size) is not None
            or time_index.check(encoded_times, end_relative_offset=room) is not None
        ):
            return 0
        position = kept[-1].position
        header = _sound_header_at(files, segment, position)
        if header is None or header.last_offset - base != kept[-1].relative_offset:
            return 0
        self._offsets += encoded[: -offset_index.ENTRY_BYTES]
        kept_times = [entry for entry in kept_times if entry.relative_offset < header.base_offset - base]
        self._times += b"".join(time_index.encode_entry(*entry) for entry in kept_times)
        newest = kept_times[-1] if kept_times else time_index.TimeIndexEntry(-1, -1)
        self._end = self._end._replace(
            log_end_offset=header.base_offset,
            active_bytes=position,
            indexed_bytes=kept[-2].position if len(kept) > 1 else 0,
            indexed_timestamp_ms=newest.timestamp_ms,
            max_timestamp_ms=newest.timestamp_ms,
            max_timestamp_offset=base + newest.relative_offset if kept_times else -1,
        )
        return position

    def add(self, position: int, header: BatchHeader) -> None:
        """Take in the batch at *position*, which follows the one before."""
        end = self._end
        grows = header.max_timestamp_ms > end.max_timestamp_ms
        self._end = end = end._replace(
            log_end_offset=header.next_offset,
            active_bytes=position + header.size_bytes,
            max_timestamp_ms=header.max_timestamp_ms if grows else end.max_timestamp_ms,
            max_timestamp_offset=header.last_offset if grows else end.max_timestamp_offset,
            active_created_ms=max(end.active_created_ms, self._now_ms),
        )
        if position - end.indexed_bytes > self._interval_bytes:
            relative_offset = header.last_offset - end.active_base_offset
            if relative_offset <= offset_index.MAX_RELATIVE_OFFSET:
                self._offsets += offset_index.encode_entry(relative_offset, position)
            self._end = end._replace(indexed_bytes=position)
            self._index_time()

    def _index_time(self) -> None:
        end = self._end
        if end.max_timestamp_ms > end.indexed_timestamp_ms:
            relative_offset = end.max_timestamp_offset - end.active_base_offset
            time_index.add_entry(self._times, end.max_timestamp_ms, relative_offset)
            self._end = end._replace(indexed_timestamp_ms=end.max_timestamp_ms)

    def skip_to(self, offset: int, position: int) -> None:
        """Leave out a damaged stretch that ends at *offset* and *position*."""
        self._end = self._end._replace(log_end_offset=offset, active_bytes=position)

    def write_indexes(self, segment: SegmentFiles, *, keep: LogEnd | None) -> None:
        """Write what was gathered: behind the entries that *keep* counts, or as the whole files."""
        offsets_at = keep.offset_index_bytes if keep is not None else 0
        times_at = keep.time_index_bytes if keep is not None else 0
        if keep is None:
            self._index_time()
        segment.write_offset_index(bytes(self._offsets), offsets_at)
        segment.write_time_index(bytes(self._times), times_at)
        self._end = self._end._replace(
            offset_index_bytes=offsets_at + len(self._offsets), time_index_bytes=times_at + len(self._times)
        )
        segment.cut_indexes(
            offset_index_bytes=self._end.offset_index_bytes,
            time_index_bytes=self._end.time_index_bytes,
        )

    def end(self) -> LogEnd:
        return self._end


def _sound_header_at(files: Files, segment: SegmentFiles, position: int) -> BatchHeader | None:
    try:
        return read_header(files.pread(segment.descriptor(), HEADER_BYTES, position))
    except CorruptBatchError:
        return None
