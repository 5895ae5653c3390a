"""Taking segments off the front of a log.

First the log start offset is published, then files go: a process that dies in between leaves files that
no reader asks for. The next pass removes segments that are whole; of one whose log file is gone already, the next
process that comes alone removes the indexes. A reader that has a file open reads it to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .segment_files import SEGMENT_SUFFIXES

if TYPE_CHECKING:
    from .partition_log import PartitionLog


def delete_segments_below(log: PartitionLog, offset: int) -> list[int]:
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
        log.publish_end(end._replace(log_start_offset=start, segments_version=end.segments_version + 1))
        for base in removed:
            segment = log.segment(base)
            for suffix in SEGMENT_SUFFIXES:
                if log.files.exists(segment.path(suffix)):
                    log.files.unlink(segment.path(suffix))
    return removed
