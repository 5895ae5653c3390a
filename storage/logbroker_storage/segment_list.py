"""The segments of a partition, listed without a lock.

A folder is not listed at one moment. A file that is there all the time may be missing from the list where another
is renamed over it meanwhile: POSIX leaves that open, and tmpfs does it, as ``segment_replacement`` renames. So the
folder is listed twice. One pass of the cleaner, with what another finishes of it, renames over a name once at most,
and is counted in LogEnd before it begins:

    it was renamed over in      it is in
    neither listing             both
    one of them                 the other
    both                        perhaps none, but a pass was counted in between: the list is refused

A segment that takes in others may get an aborted index that it had not: before theirs are removed, so that one or
the other is listed. Who holds the append lock, under which segments are replaced and removed, lists them once
(``LocalLog.segments``).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .local_log import LocalLog
from .segment_files import ABORTED_INDEX_SUFFIX, LOG_SUFFIX, segment_bases

if TYPE_CHECKING:
    from .view import LogEnd, PartitionState

_Found = TypeVar("_Found")


class SegmentList(NamedTuple):
    """The base offsets of a log's segments."""

    bases: list[int]
    """All of them, ascending; the last is the active one."""
    aborted: list[int]
    """Those of the aborted indexes, ascending; one whose log file was lost has its index all the same."""


def list_of(log: LocalLog, end: LogEnd) -> SegmentList:
    """The segments of *end*; some of them may be gone by the time that they are opened.

    Raises:
        FileNotFoundError: the cleaner came since *end* was read, as if a segment were opened too late.
        TopicNotFoundError: the topic was deleted.
    """
    names = {*log.files.listdir(log.directory), *log.files.listdir(log.directory)}
    if log.state().end.cleanings != end.cleanings:
        raise FileNotFoundError(f"{log.directory} was cleaned meanwhile")
    bases = segment_bases(names, LOG_SUFFIX)
    return SegmentList(
        bases[: bisect.bisect_right(bases, end.active_base_offset)],
        segment_bases(names, ABORTED_INDEX_SUFFIX),
    )


def look(log: LocalLog, find: Callable[[PartitionState, SegmentList], _Found]) -> _Found:
    """What *find* makes of the log's state and segments; it is asked again where it met a file that was gone.

    Raises:
        FileNotFoundError: the log's folder is gone.
        TopicNotFoundError: the topic was deleted.
    """
    while True:
        state = log.state()
        try:
            return find(state, list_of(log, state.end))
        except FileNotFoundError:
            if not log.files.exists(log.directory):
                raise
