"""Truncation: records are taken off a log's end on request.

1. forget up to where the log was compacted: of the records that come in place of the cut ones none was
2. publish the offset as the synced and the visible end: readers must not take what is cut for damage, nor
   whoever finds this half done for lost
3. set aside the segments behind the one that holds the offset, and cut that one (``side_files``)
4. recover what is left: the indexes, the producers and LogEnd follow from it
5. put a snapshot of these producers in the place of those from within the log: they may know transactions as open
   whose first records retention has removed since, and whose markers were cut now, so that nothing would end them
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .compaction import cleaned_points_key
from .errors import BatchDefect
from .recovery import publish, recover_log
from .segment import ScanStop, scan
from .segment_files import SegmentFiles
from .side_files import cut_file, set_aside
from .snapshot_files import replace_snapshots

if TYPE_CHECKING:
    from .partition_log import PartitionLog


def cut_log(log: PartitionLog, offset: int) -> int:
    """Remove every batch that ends at or behind *offset*; the new log end. Under both locks."""
    end, sync = log.state()
    # What was deleted stays deleted, and the journal says up to where: a log that went on below that would lose
    # its next records with the view.
    offset = max(offset, end.log_start_offset)
    if offset >= end.log_end_offset:
        return end.log_end_offset
    if log.view.meta_bytes(cleaned_points_key(log.key)) is not None:
        with log.view.write() as transaction:
            log.view.delete_meta(transaction, cleaned_points_key(log.key))
    log.view.publish_sync(log.key, sync._replace(synced_offset=min(sync.synced_offset, offset)))
    log.publish_end(
        end._replace(
            visible_offset=min(end.visible_offset, offset), segments_version=end.segments_version + 1
        )
    )
    bases = log.segments(end)
    holding = max([base for base in bases if base <= offset], default=bases[0])
    for base in bases:
        if base > holding:
            set_aside(log.files, log.segment(base))
    segment = log.segment(holding)
    try:
        position = _position_of(log, segment, offset)
        cut_file(log.files, segment, position, BatchDefect.TRUNCATED)
    finally:
        segment.close()
    recovered = recover_log(log, recovery_point=0, log_start_offset=end.log_start_offset)
    replace_snapshots(log.files, log.directory, recovered.end.log_end_offset, recovered.producers)
    publish(log, recovered)
    return recovered.end.log_end_offset


def _position_of(log: PartitionLog, segment: SegmentFiles, offset: int) -> int:
    size = segment.log_bytes()
    for item in scan(
        log.files,
        segment.descriptor(),
        start_position=0,
        end_position=size,
        expected_offset=segment.base_offset,
    ):
        if isinstance(item, ScanStop):
            return item.position
        position, header = item
        if header.last_offset >= offset:
            return position
    return size
