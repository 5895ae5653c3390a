"""How an append moves ``LogEnd``: behind a batch, or into a new segment first.

A segment that holds anything is followed by a new one when, with the next batch,

    its log file           would pass segment.bytes
    its offset index       would pass segment.index.bytes, if the batch got an entry
    its largest offset     would be too far above its base offset for an index entry, an int32
    its first append       is segment.ms old

The bytes are written by ``active_segment``, the result is published by ``partition_log``.
"""

from __future__ import annotations

from . import offset_index
from .batch_header import BatchHeader
from .log_config import LogConfig
from .view.partitions import LogEnd

INDEX_ROOM_OFFSETS = (1 << 31) - 1  # an index entry's relative offset is an int32


def roll_is_due(end: LogEnd, header: BatchHeader, config: LogConfig, now_ms: int) -> bool:
    """Whether the batch with *header*, which is to follow *end*, goes into a new segment."""
    if end.active_bytes == 0:
        return False
    next_relative_offset = end.log_end_offset + header.last_offset_delta - end.active_base_offset
    return (
        end.active_bytes + header.size_bytes > config.segment_bytes
        or end.offset_index_bytes + offset_index.ENTRY_BYTES > config.segment_index_bytes
        or next_relative_offset > INDEX_ROOM_OFFSETS
        or (end.active_created_ms >= 0 and now_ms - end.active_created_ms >= config.segment_ms)
    )


def in_new_segment(end: LogEnd) -> LogEnd:
    """LogEnd of a log that goes on at the same offset in a new, empty segment."""
    return end._replace(
        active_base_offset=end.log_end_offset,
        active_bytes=0,
        indexed_bytes=0,
        offset_index_bytes=0,
        time_index_bytes=0,
        indexed_timestamp_ms=-1,
        max_timestamp_ms=-1,
        max_timestamp_offset=-1,
        active_created_ms=-1,
        segments_version=end.segments_version + 1,
        aborted_index_bytes=0,
    )


def behind_batch(end: LogEnd, header: BatchHeader, *, created_ms: int, visible_at_once: bool) -> LogEnd:
    """LogEnd moved behind a batch, without index entries; *created_ms* is when its segment got its first batch.

    *visible_at_once*: readers need not wait until the batch is synced. Built by position, because ``_replace``
    takes three times as long.
    """
    log_end_offset = end.log_end_offset + header.last_offset_delta + 1
    grows = header.max_timestamp_ms > end.max_timestamp_ms
    first_unstable_offset = end.first_unstable_offset
    if first_unstable_offset < 0 and header.is_transactional and not header.is_control:
        first_unstable_offset = end.log_end_offset
    return LogEnd(
        end.log_start_offset,
        log_end_offset,
        log_end_offset if visible_at_once else end.visible_offset,
        end.active_base_offset,
        end.active_bytes + header.size_bytes,
        end.indexed_bytes,
        end.offset_index_bytes,
        end.time_index_bytes,
        end.indexed_timestamp_ms,
        header.max_timestamp_ms if grows else end.max_timestamp_ms,
        log_end_offset - 1 if grows else end.max_timestamp_offset,
        created_ms,
        end.segments_version,
        first_unstable_offset,
        end.aborted_index_bytes,
        end.cleanings,
    )
