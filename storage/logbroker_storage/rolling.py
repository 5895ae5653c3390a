"""Rolling: a log goes on in a new, empty segment.

    1. seal the active segment: the last entry of its time index, its room cut off, its indexes summed
    2. write a snapshot of the producers, which says what they were where the new segment begins
    3. remove what a process left that died in 4
    4. create the new segment's files
    5. publish LogEnd: now the new segment is the active one

Dying before 5 leaves a snapshot that is true whatever becomes of the log behind it, and an empty segment above
the active one, which nobody looks at (``LocalLog.segments``). No batch is written into a segment before it
is published.

What the old segment still owes the disk is paid by the next sync, which covers every segment from the synced
one on.
"""

from __future__ import annotations

from .active_segment import ActiveSegment
from .index_files import write_checksums
from .local_log import LocalLog
from .log_growth import in_new_segment
from .side_files import remove_unpublished
from .snapshot_files import write_snapshot
from .view import LogEnd


def roll(log: LocalLog, active: ActiveSegment, end: LogEnd) -> LogEnd:
    """Seal the active segment of *end* and go on in a new one; its LogEnd. Under the append lock."""
    active.seal(end)
    active.files(end).cut_room(end.active_bytes)
    write_checksums(log.files, log.directory, end.active_base_offset)
    write_snapshot(log.files, log.directory, end.log_end_offset, log.view.partitions.producers(log.key))
    remove_unpublished(log.files, log.directory, end.active_base_offset)
    fresh = log.segment(end.log_end_offset)
    fresh.create()
    rolled = in_new_segment(end)
    try:
        log.publish_end(rolled)
    except BaseException:
        fresh.close()
        raise
    active.go_on_in(fresh, rolled)
    return rolled
