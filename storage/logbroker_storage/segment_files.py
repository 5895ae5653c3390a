"""The files of one segment, opened when first used.

The log file is opened at once by a writer; the indexes only when an entry is due, which for most short
lived writers is never. All writes name their position, so a torn earlier write is overwritten, not
appended to.

The active log file may go on behind the log's end with *room*: zeros written in advance, because a sync that has
no new length or block to record takes 40 to 75 % of the time. A roll and a clean close cut it off; zeros are
not a batch, so whoever reads a file with room finds the end of the log where they begin.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterable, Sequence

from .files import Buffer, Files
from .record_batch import HEADER_BYTES

logger = logging.getLogger("logbroker.storage")

NAME_DIGITS = 20
MAX_OFFSET = (1 << 63) - 1  # an int64; twenty digits may say more
LOG_SUFFIX = ".log"
OFFSET_INDEX_SUFFIX = ".index"
TIME_INDEX_SUFFIX = ".timeindex"
ABORTED_INDEX_SUFFIX = ".txnindex"
CHECKSUMS_SUFFIX = ".checksums"  # of the three indexes
SNAPSHOT_SUFFIX = ".snapshot"
SYNCED_SUFFIXES = (LOG_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, ABORTED_INDEX_SUFFIX)
SEGMENT_SUFFIXES = (*SYNCED_SUFFIXES, CHECKSUMS_SUFFIX)
_KEPT_OF_LOST = (ABORTED_INDEX_SUFFIX, CHECKSUMS_SUFFIX)
ROOM_BYTES = 64 << 10  # written at a time
_BLANK_HEADER = bytes(HEADER_BYTES)


def segment_name(base_offset: int) -> str:
    """The file name of a segment without its suffix: the base offset in 20 digits."""
    return f"{base_offset:0{NAME_DIGITS}d}"


def parse_segment_name(name: str, suffix: str = LOG_SUFFIX) -> int | None:
    """The base offset in a file name of this *suffix*; None when the name is something else."""
    stem = name.removesuffix(suffix)
    if stem == name or len(stem) != NAME_DIGITS or not (stem.isascii() and stem.isdigit()):
        return None
    offset = int(stem)
    return offset if offset <= MAX_OFFSET else None


def list_segments(files: Files, directory: str, suffix: str = LOG_SUFFIX) -> list[int]:
    """The base offsets of the segments in a partition folder that have a file of *suffix*, ascending."""
    return segment_bases(files.listdir(directory), suffix)


def remove_orphans(files: Files, directory: str, names: list[str]) -> None:
    """Remove the indexes of segments whose log file is gone: who removed it died before it came to them.

    *names* are those of the files in *directory*. For who knows that nobody is removing or making segments now.
    """
    bases = segment_bases(names, LOG_SUFFIX)
    for name in names:
        if is_orphan(name, bases):
            files.unlink(f"{directory}/{name}")


def is_orphan(name: str, bases: Sequence[int]) -> bool:
    """Whether a file's name is that of an index without a log file, in a folder with those of *bases*, ascending.

    Not of an aborted one between two log files, nor of its checksums: none of us removes a log file there and leaves
    them, so it was lost, with the markers of transactions that have records in the segments before it.
    """
    for suffix in SEGMENT_SUFFIXES[1:]:
        base = parse_segment_name(name, suffix)
        if base is not None:
            at = bisect.bisect_left(bases, base)
            is_kept = suffix in _KEPT_OF_LOST and 0 < at < len(bases)
            return base not in bases[at : at + 1] and not is_kept
    return False


def snapshot_name(offset: int) -> str:
    """The file name of the producer snapshot at *offset*: the state after all offsets below it."""
    return segment_name(offset) + SNAPSHOT_SUFFIX


def list_snapshots(files: Files, directory: str) -> list[int]:
    """The offsets of the producer snapshots in a partition folder, ascending."""
    return segment_bases(files.listdir(directory), SNAPSHOT_SUFFIX)


def segment_bases(names: Iterable[str], suffix: str) -> list[int]:
    """The base offsets in those of the *names* that are of *suffix*, ascending."""
    return sorted(base for name in names if (base := parse_segment_name(name, suffix)) is not None)


class SegmentFiles:
    """Descriptors of one segment's files. Not thread-safe: its user holds the partition's append lock."""

    def __init__(self, files: Files, directory: str, base_offset: int) -> None:
        self.base_offset = base_offset
        self._files = files
        self.directory = directory
        self._stem = f"{directory}/{segment_name(base_offset)}"
        self._descriptors: dict[str, int] = {}
        self._room_end = 0  # the file reached so far when it was last looked at

    @property
    def log_path(self) -> str:
        return self._stem + LOG_SUFFIX

    def path(self, suffix: str) -> str:
        return self._stem + suffix

    def descriptor(self, suffix: str = LOG_SUFFIX) -> int:
        """The open descriptor of one of the files; a missing index is created, a missing log is an error."""
        fd = self._descriptors.get(suffix)
        if fd is None:
            fd = self._files.open(self._stem + suffix, create=suffix != LOG_SUFFIX)
            self._descriptors[suffix] = fd
        return fd

    def create(self) -> None:
        """Create the log file and empty indexes, in place of whatever a dead process left there.

        Where that fails nothing is left open.
        """
        try:
            for suffix in (LOG_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX):
                self._descriptors[suffix] = fd = self._files.open(self._stem + suffix, create=True)
                self._files.truncate(fd, 0)
            self.cut_aborted_index(0)
            if self._files.exists(self.path(CHECKSUMS_SUFFIX)):
                self._files.unlink(self.path(CHECKSUMS_SUFFIX))
        except BaseException:
            self.close()
            raise

    def log_bytes(self) -> int:
        """The length of the log file, room included; 0 when there is none."""
        try:
            return self._files.size(self.descriptor())
        except FileNotFoundError:
            return 0

    def ends_at(self, position: int) -> bool:
        """Whether the log ends at *position*: the file does, or nothing but room seems to follow.

        Looks no further than a batch's header would reach: nothing begins there that could be adopted.
        """
        try:
            head = self._files.pread(self.descriptor(), HEADER_BYTES, position)
        except FileNotFoundError:
            return position == 0
        if head == _BLANK_HEADER:
            return True
        self._room_end = 0  # it was cut off, or used up by another process
        return self.log_bytes() == position if not head else not head.strip(b"\0")

    def make_room(self, position: int, limit: int) -> None:
        """Room behind a batch that ends at *position*, up to *limit*, where it has reached the end of the file."""
        if position <= self._room_end:
            return
        fd = self.descriptor()
        try:
            self._room_end = self._files.size(fd)
            if self._room_end <= position < limit:
                end = min(position + ROOM_BYTES, limit)
                self._files.write_zeros(fd, position, end - position)
                self._room_end = end
        except OSError as error:  # the next write needs less, and tells what is wrong if it must
            logger.debug("%s: no room in advance: %s", self.log_path, error)
            self._leave_space(position)

    def _leave_space(self, position: int) -> None:
        """Give back what room that was made in part has taken."""
        try:
            self.cut_room(position)
        except OSError as error:  # what stays is room all the same
            logger.debug("%s: room stays: %s", self.log_path, error)

    def cut_room(self, position: int) -> None:
        """Let the log file end at *position*, where the log does."""
        if self.log_bytes() > position:
            self._files.truncate(self.descriptor(), position)
        self._room_end = 0

    def write_log(self, batch: Buffer, position: int) -> None:
        self._files.pwrite(self.descriptor(), batch, position)

    def start_writeback(self, position: int, size_bytes: int) -> None:
        self._files.start_writeback(self.descriptor(), position, size_bytes)

    def write_offset_index(self, entry: bytes, position: int) -> None:
        self._files.pwrite(self.descriptor(OFFSET_INDEX_SUFFIX), entry, position)

    def write_time_index(self, entry: bytes, position: int) -> None:
        self._files.pwrite(self.descriptor(TIME_INDEX_SUFFIX), entry, position)

    def aborted_index(self) -> bytes:
        """The aborted index's content; b"" where no transaction was aborted."""
        path = self.path(ABORTED_INDEX_SUFFIX)
        return self._files.read_file(path) if self._files.exists(path) else b""

    def write_aborted_index(self, entries: bytes, position: int) -> None:
        self._files.pwrite(self.descriptor(ABORTED_INDEX_SUFFIX), entries, position)

    def sync_aborted_index(self, *, is_new: bool) -> None:
        """Have it on the disk: unlike the other two indexes nobody could do without it."""
        self._files.fdatasync(self.descriptor(ABORTED_INDEX_SUFFIX))
        if is_new:
            self._files.fsync_directory(self.directory)

    def cut_log(self, position: int) -> None:
        """Cut the log file at *position*, whatever is behind it."""
        self._files.truncate(self.descriptor(), position)
        self._room_end = 0

    def cut_indexes(self, *, offset_index_bytes: int, time_index_bytes: int) -> None:
        """Cut the two indexes to these lengths."""
        self._files.truncate(self.descriptor(OFFSET_INDEX_SUFFIX), offset_index_bytes)
        self._files.truncate(self.descriptor(TIME_INDEX_SUFFIX), time_index_bytes)

    def cut_aborted_index(self, size_bytes: int) -> None:
        """Cut the aborted index; one that would be empty is not left there."""
        if size_bytes:
            self._files.truncate(self.descriptor(ABORTED_INDEX_SUFFIX), size_bytes)
            return
        fd = self._descriptors.pop(ABORTED_INDEX_SUFFIX, None)
        if fd is not None:
            self._files.close(fd)
        if self._files.exists(self.path(ABORTED_INDEX_SUFFIX)):
            self._files.unlink(self.path(ABORTED_INDEX_SUFFIX))

    def close(self) -> None:
        while self._descriptors:  # forgotten before it is closed: a close that fails must not be done again
            self._files.close(self._descriptors.popitem()[1])
