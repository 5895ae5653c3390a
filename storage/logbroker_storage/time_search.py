"""Records by time: the first that is not older than a moment, and the newest.

A segment's largest timestamp says whether it is to be looked into (``SegmentTimes``), its time index where.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, zip_longest

from .local_log import LocalLog
from .log_reader import LogReader
from .record_batch import decode_records
from .segment import TimestampOffset, locate_timestamp
from .segment_files import OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX
from .segment_list import SegmentList, look
from .segment_times import SegmentTimes
from .view import LogEnd, PartitionState


def record_at_time(log: LocalLog, times: SegmentTimes, timestamp_ms: int) -> TimestampOffset | None:
    """The first visible record that is not older than *timestamp_ms*; None when all are."""
    return look(log, lambda state, segments: _search(log, times, state, segments, timestamp_ms))


def newest_record(log: LocalLog, times: SegmentTimes) -> TimestampOffset | None:
    """The first visible record with the largest timestamp; None without one that is in a time index."""
    largest_ms = look(log, lambda state, segments: max(_timestamps(times, state.end, segments), default=-1))
    if largest_ms < 0:
        return None
    return record_at_time(log, times, largest_ms) or _newest_left(log)


def _newest_left(log: LocalLog) -> TimestampOffset | None:
    """``newest_record`` where the one that the indexes know of is not visible: every batch is looked at."""
    newest: TimestampOffset | None = None
    offsets = log.offsets()
    reader = LogReader(log, offsets.log_start_offset)
    try:
        while batches := reader.read():
            for batch in batches:
                if batch.header.is_control or (
                    newest is not None and batch.header.max_timestamp_ms <= newest.timestamp_ms
                ):
                    continue
                for record in decode_records(batch):
                    is_newer = newest is None or record.timestamp_ms > newest.timestamp_ms
                    if is_newer and offsets.log_start_offset <= record.offset < offsets.high_watermark:
                        newest = TimestampOffset(record.offset, record.timestamp_ms)
    finally:
        reader.close()
    return newest


def _timestamps(times: SegmentTimes, end: LogEnd, segments: SegmentList) -> Iterator[int]:
    """The largest timestamp of each segment, -1 where none is known."""
    for base, next_base in pairwise(segments.bases):
        yield times.largest_ms(end, base, next_base)
    yield end.max_timestamp_ms


def _search(
    log: LocalLog, times: SegmentTimes, state: PartitionState, segments: SegmentList, timestamp_ms: int
) -> TimestampOffset | None:
    end = state.end
    for base, next_base in zip_longest(segments.bases, segments.bases[1:]):
        is_active = base == end.active_base_offset
        if is_active:
            largest_ms: int | None = end.max_timestamp_ms
        else:
            largest_ms = times.indexed_ms(end, base, next_base)
        if largest_ms is not None and largest_ms < timestamp_ms:
            continue
        index = log.index(base, TIME_INDEX_SUFFIX, end.time_index_bytes if is_active else None)
        found = _in_segment(log, state, base, index, timestamp_ms)
        if found is not None:
            return found if found.offset < state.high_watermark else None
    return None


def _in_segment(
    log: LocalLog, state: PartitionState, base: int, time_index: bytes, timestamp_ms: int
) -> TimestampOffset | None:
    end = state.end
    is_active = base == end.active_base_offset
    offset_index = log.index(base, OFFSET_INDEX_SUFFIX, end.offset_index_bytes if is_active else None)
    fd = log.files.open(log.segment(base).log_path, readonly=True)
    try:
        end_position = end.active_bytes if is_active else log.files.size(fd)
        return locate_timestamp(
            log.files,
            fd,
            time_index,
            offset_index,
            base,
            timestamp_ms,
            end_position,
            min_offset=end.log_start_offset,
        )
    finally:
        log.files.close(fd)
