"""Taking bytes off the end of a log: they go to a side file first.

    what is taken                                 where it is kept
    the bytes behind a position of a log file     <segment>.log.cut-<position>
    a whole log file                              <segment>.log.cut-0; its indexes are derived, and removed
    zeros behind the last batch                   nowhere: room (``segment_files``), or a write that a power
                                                  cut took

    a file that is derived from the log           <name>.old; as a repair does it

Where that name is taken, ``.1``, ``.2`` and so on are added to it. Nothing reads side files; they are for people.

Invariant: whatever is not zero was written to its side file, or renamed to it, before it left the log.
"""

from __future__ import annotations

from typing import NamedTuple

from .errors import BatchDefect
from .files import Files
from .segment import SCAN_BLOCK_BYTES
from .segment_files import SEGMENT_SUFFIXES, SegmentFiles, list_segments


class Cut(NamedTuple):
    """Bytes that were taken off the end of a log, and the side file that keeps them."""

    path: str
    position: int
    size_bytes: int
    defect: BatchDefect
    side_path: str


def cut_room(files: Files, segment: SegmentFiles, position: int) -> bool:
    """Let a log file end at *position* if nothing but zeros follows; whether that is so."""
    if not is_blank(files, segment, position, segment.log_bytes()):
        return False
    segment.cut_room(position)
    return True


def is_blank(files: Files, segment: SegmentFiles, position: int, size: int) -> bool:
    """Whether nothing but zeros lies behind *position*: room, or what a power cut left of a write."""
    while position < size:
        block = files.pread(segment.descriptor(), min(SCAN_BLOCK_BYTES, size - position), position)
        if block.strip(b"\0"):
            return False
        position += len(block) or size  # the file ends before *size*
    return True


def cut_file(files: Files, segment: SegmentFiles, position: int, defect: BatchDefect) -> Cut:
    """Cut a log file at *position*; the bytes behind it go to a side file first."""
    size = segment.log_bytes()
    side_path = _free_side_path(files, f"{segment.log_path}.cut-{position}")
    files.replace_file(side_path, files.pread(segment.descriptor(), size - position, position))
    files.truncate(segment.descriptor(), position)
    return Cut(segment.log_path, position, size - position, defect, side_path)


def set_aside(files: Files, segment: SegmentFiles) -> Cut:
    """Move a whole log file to a side file and remove its indexes; *segment* is closed."""
    try:
        size = segment.log_bytes()
        side_path = _free_side_path(files, f"{segment.log_path}.cut-0")
        files.rename(segment.log_path, side_path)
        _remove_files(files, segment)
    finally:
        segment.close()
    return Cut(segment.log_path, 0, size, BatchDefect.BAD_OFFSET, side_path)


def keep_aside(files: Files, path: str) -> str:
    """Rename a file that cannot be believed; its name from now on. Not synced: it may come back, and goes again."""
    side_path = _free_side_path(files, f"{path}.old")
    files.rename(path, side_path)
    return side_path


def remove_unused(files: Files, segment: SegmentFiles) -> list[Cut]:
    """Remove a segment that nobody can have used, so that it is empty; one that is not is set aside all the same."""
    if segment.log_bytes() > 0:
        return [set_aside(files, segment)]
    _remove_files(files, segment)
    return []


def remove_unpublished(files: Files, directory: str, active_base_offset: int) -> None:
    """Remove the segments above the active one: who made them died before the log went on in them (``rolling``).

    Under the append lock, or for the only process.
    """
    for base in list_segments(files, directory):
        if base > active_base_offset:
            segment = SegmentFiles(files, directory, base)
            try:
                remove_unused(files, segment)
            finally:
                segment.close()


def _remove_files(files: Files, segment: SegmentFiles) -> None:
    segment.close()
    for suffix in SEGMENT_SUFFIXES:
        if files.exists(segment.path(suffix)):
            files.unlink(segment.path(suffix))


def _free_side_path(files: Files, path: str) -> str:
    candidate, number = path, 1
    while files.exists(candidate):
        candidate, number = f"{path}.{number}", number + 1
    return candidate
