"""Taking segments off the front of a log.

First the log start offset is published, then files go: a process that dies in between leaves files that
no reader asks for. The next pass removes segments that are whole; of one whose log file is gone already, the next
process that comes alone removes the indexes. A reader that has a file open reads it to its end.

A power cut forgets where the log starts, so what it leaves of the files must be a log all the same. A directory's
names may come back in any combination, hence, with steps 2 to 4 for each segment, the oldest first:

    step                                    without it, a power cut could leave
    1. sync the snapshots of the producers  nothing that remembers producers who wrote only what was removed
    2. remove the log file
    3. sync the directory                   an older segment before a gap, which would pass for the log's end; or
                                              a log file without its aborted index
    4. remove the indexes                   (rubbish)
"""

from __future__ import annotations

from .local_log import LocalLog
from .segment_files import LOG_SUFFIX, SEGMENT_SUFFIXES, SegmentFiles
from .snapshot_files import sync_snapshots


def delete_segments_below(log: LocalLog, offset: int) -> list[int]:
    """Remove every sealed segment that lies wholly below *offset*, and let the log start behind them.

    Returns the base offsets of what was removed.
    """
    with log.append_lock:
        end = log.state().end
        bases = log.segments(end)
        behind = bases[1:]
        removed = [base for base, next_base in zip(bases, behind, strict=False) if next_base <= offset]
        if not removed:
            return []
        start = max(end.log_start_offset, behind[len(removed) - 1])
        log.publish_end(end.with_cleaning()._replace(log_start_offset=start))
        sync_snapshots(log.files, log.directory)
        for base in removed:
            _remove(log, log.segment(base))
    return removed


def _remove(log: LocalLog, segment: SegmentFiles) -> None:
    log.files.unlink(segment.path(LOG_SUFFIX))
    log.files.fsync_directory(log.directory)
    for suffix in SEGMENT_SUFFIXES:
        if log.files.exists(segment.path(suffix)):
            log.files.unlink(segment.path(suffix))
