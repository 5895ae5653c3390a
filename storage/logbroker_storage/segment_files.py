"""The three files of one segment, opened when first used.

The log file is opened at once by a writer; the indexes only when an entry is due, which for most short
lived writers is never. All writes name their position, so a torn earlier write is overwritten, not
appended to.
"""

from __future__ import annotations

from .files import Buffer, Files

NAME_DIGITS = 20
LOG_SUFFIX = ".log"
OFFSET_INDEX_SUFFIX = ".index"
TIME_INDEX_SUFFIX = ".timeindex"
ABORTED_INDEX_SUFFIX = ".txnindex"
SNAPSHOT_SUFFIX = ".snapshot"
SEGMENT_SUFFIXES = (LOG_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, ABORTED_INDEX_SUFFIX)


def segment_name(base_offset: int) -> str:
    """The file name of a segment without its suffix: the base offset in 20 digits."""
    return f"{base_offset:0{NAME_DIGITS}d}"


def parse_segment_name(name: str, suffix: str = LOG_SUFFIX) -> int | None:
    """The base offset in a file name of this *suffix*; None when the name is something else."""
    stem = name.removesuffix(suffix)
    if stem == name or len(stem) != NAME_DIGITS or not (stem.isascii() and stem.isdigit()):
        return None
    return int(stem)


def list_segments(files: Files, directory: str) -> list[int]:
    """The base offsets of the segments in a partition folder, ascending."""
    return _bases(files.listdir(directory), LOG_SUFFIX)


def list_snapshots(files: Files, directory: str) -> list[int]:
    """The offsets of the producer snapshots in a partition folder, ascending."""
    return _bases(files.listdir(directory), SNAPSHOT_SUFFIX)


def _bases(names: list[str], suffix: str) -> list[int]:
    return sorted(base for name in names if (base := parse_segment_name(name, suffix)) is not None)


class SegmentFiles:
    """Descriptors of one segment's files. Not thread-safe: its user holds the partition's append lock."""

    def __init__(self, files: Files, directory: str, base_offset: int) -> None:
        self.base_offset = base_offset
        self._files = files
        self._stem = f"{directory}/{segment_name(base_offset)}"
        self._descriptors: dict[str, int] = {}

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
        """Create the log file and empty indexes, in place of whatever a dead process left there."""
        for suffix in (LOG_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX):
            fd = self._files.open(self._stem + suffix, create=True)
            self._files.truncate(fd, 0)
            self._descriptors[suffix] = fd

    def log_bytes(self) -> int:
        """The length of the log file; 0 when there is none."""
        try:
            return self._files.size(self.descriptor())
        except FileNotFoundError:
            return 0

    def write_log(self, batch: Buffer, position: int) -> None:
        self._files.pwrite(self.descriptor(), batch, position)

    def write_offset_index(self, entry: bytes, position: int) -> None:
        self._files.pwrite(self.descriptor(OFFSET_INDEX_SUFFIX), entry, position)

    def write_time_index(self, entry: bytes, position: int) -> None:
        self._files.pwrite(self.descriptor(TIME_INDEX_SUFFIX), entry, position)

    def truncate(self, *, log_bytes: int, offset_index_bytes: int, time_index_bytes: int) -> None:
        """Cut the files to these lengths."""
        self._files.truncate(self.descriptor(), log_bytes)
        self._files.truncate(self.descriptor(OFFSET_INDEX_SUFFIX), offset_index_bytes)
        self._files.truncate(self.descriptor(TIME_INDEX_SUFFIX), time_index_bytes)

    def close(self) -> None:
        while self._descriptors:  # forgotten before it is closed: a close that fails must not be done again
            self._files.close(self._descriptors.popitem()[1])
