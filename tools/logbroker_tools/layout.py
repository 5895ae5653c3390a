"""What a path is: one ``.log`` file, a partition's folder, a log directory (ours or Kafka's), a data directory.

    given                       has                          gives
    a file ``….log``                                         that segment
    a partition folder          ``….log`` files              its segments
    a log directory             partition folders            all of them
    a data directory            ``logs/``                    what is in there

Ours are told from Kafka's by ``logbroker.format`` in ``meta.properties`` of the log directory: in ours,
batches tile the offset space and the leader epoch is 0; in Kafka's, compaction leaves gaps. Where there is
no such file, a directory is taken for ours unless the caller says otherwise.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator

import msgspec

from logbroker_storage.checkpoints import (
    META_PROPERTIES,
    RECOVERY_POINT_CHECKPOINT,
    parse_meta_properties,
    parse_partition_offsets,
)
from logbroker_storage.errors import LogbrokerError
from logbroker_storage.files import OsFiles
from logbroker_storage.layout import parse_partition_folder
from logbroker_storage.segment_files import LOG_SUFFIX, list_snapshots, parse_segment_name, segment_name

JOURNAL_TOPIC = "__journal"
FORMAT_KEY = "logbroker.format"
CLEANED_SUFFIX = ".cleaned"  # as in storage's ``segment_replacement``, which is no pure module
REPLACES_SUFFIX = ".replaces"


class Segment(msgspec.Struct, frozen=True):
    """One ``.log`` file; *base_offset* is None when its name is no segment's."""

    path: str
    base_offset: int | None

    def beside(self, suffix: str) -> str:
        """The path of one of its other files."""
        return self.path.removesuffix(LOG_SUFFIX) + suffix

    @property
    def size_bytes(self) -> int:
        return os.stat(self.path).st_size


class Partition(msgspec.Struct, frozen=True):
    """A folder of segments, oldest first; of a single file, just that one.

    Attributes:
        bases: the base offsets of every segment in the folder, ascending.
        snapshots: the offsets of the producer snapshots, ascending; listed before the segments.
        recovery_point: what lies below it had reached the disk; None when no checkpoint says.
        is_whole: the folder was given, not only one file of it.
    """

    topic: str
    partition: int
    folder: str
    segments: list[Segment]
    bases: list[int]
    snapshots: list[int]
    recovery_point: int | None
    is_ours: bool
    is_whole: bool

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.partition}"

    def base_behind(self, segment: Segment) -> int | None:
        """The base offset of the segment that follows; None behind the last one."""
        if segment.base_offset is None:
            return None
        at = bisect.bisect_right(self.bases, segment.base_offset)
        return self.bases[at] if at < len(self.bases) else None


class Target(msgspec.Struct, frozen=True):
    """Everything that a path leads to, but for what ``only`` has left out."""

    path: str
    log_directory: str | None
    partitions: list[Partition]
    is_ours: bool
    topic: str | None = None
    partition: int | None = None

    def only(self, topic: str | None, partition: int | None) -> Target:
        """The partitions of this topic and number; None takes all."""
        only = msgspec.structs.replace(self, topic=topic, partition=partition)
        wanted = [found for found in self.partitions if only.wants(found.topic, found.partition)]
        return msgspec.structs.replace(only, partitions=wanted)

    def wants(self, topic: str, partition: int) -> bool:
        """Whether ``only`` has left this partition in."""
        return self.topic in (None, topic) and self.partition in (None, partition)

    def without_journal(self) -> Target:
        return msgspec.structs.replace(
            self, partitions=[p for p in self.partitions if not (p.is_ours and p.topic == JOURNAL_TOPIC)]
        )


def find(path: str, *, kafka: bool | None = None) -> Target:
    """What is at *path*; *kafka* takes it for Kafka's, or ours, whatever it says itself.

    Raises:
        LogbrokerError: nothing that could be inspected is there.
    """
    path = path.rstrip("/") or path[:1]
    if os.path.isfile(path):
        return _single_file(path, kafka)
    if not os.path.isdir(path):
        raise LogbrokerError(f"there is nothing at {path}")
    if os.path.isdir(os.path.join(path, "logs")):
        path = os.path.join(path, "logs")
    if _bases(path):
        partition = _partition(path, _Parent.of(os.path.dirname(os.path.abspath(path)), kafka))
        return Target(path, None, [partition], partition.is_ours)
    parent = _Parent.of(path, kafka)
    partitions = list(_partitions(path, parent))
    if not partitions and not os.path.exists(os.path.join(path, META_PROPERTIES)):
        raise LogbrokerError(f"{path} holds no partition folders and no segments")
    return Target(path, path, partitions, parent.is_ours)


class _Parent(msgspec.Struct, frozen=True):
    """What a log directory says about its partitions."""

    is_ours: bool
    recovery_points: dict[tuple[str, int], int]

    @classmethod
    def of(cls, log_directory: str, kafka: bool | None) -> _Parent:
        is_ours = _is_ours(log_directory) if kafka is None else not kafka
        return cls(is_ours, recovery_points(log_directory))


def _single_file(path: str, kafka: bool | None) -> Target:
    if not path.endswith(LOG_SUFFIX):
        raise LogbrokerError(
            f"{path} is not a segment: give a .log file, a partition folder or a data directory"
        )
    folder = os.path.dirname(os.path.abspath(path))
    whole = _partition(folder, _Parent.of(os.path.dirname(folder), kafka))
    segment = Segment(path, parse_segment_name(os.path.basename(path)))
    partition = msgspec.structs.replace(whole, segments=[segment], is_whole=False)
    return Target(path, None, [partition], partition.is_ours)


def _partition(folder: str, parent: _Parent) -> Partition:
    name = os.path.basename(os.path.abspath(folder))
    topic, number = parse_partition_folder(name) or (name, 0)
    # Before the segments: a writer that rolls meanwhile must not leave us a snapshot above the log we know.
    snapshots = list_snapshots(OsFiles(), folder)
    bases = _bases(folder)
    return Partition(
        topic=topic,
        partition=number,
        folder=folder,
        segments=[Segment(os.path.join(folder, segment_name(base) + LOG_SUFFIX), base) for base in bases],
        bases=bases,
        snapshots=snapshots,
        recovery_point=parent.recovery_points.get((topic, number)),
        is_ours=parent.is_ours,
        is_whole=True,
    )


def _bases(folder: str) -> list[int]:
    names = os.listdir(folder)
    bases = {base for name in names if (base := parse_segment_name(name)) is not None}
    return sorted(bases - _superseded(folder, names))


def _superseded(folder: str, names: list[str]) -> set[int]:
    """Segments that a compaction has replaced and had no time to remove: the steps of ``segment_replacement``."""
    found: set[int] = set()
    for name in names:
        base = parse_segment_name(name, REPLACES_SUFFIX)
        if base is None or segment_name(base) + LOG_SUFFIX + CLEANED_SUFFIX in names:
            continue
        try:
            content = OsFiles().read_file(os.path.join(folder, name))
            found |= {int(line) for line in content.split()}
        except (OSError, ValueError):
            continue  # then nothing was replaced, as far as one can tell
    return found


def _partitions(log_directory: str, parent: _Parent) -> Iterator[Partition]:
    for folder in _partition_folders(log_directory):
        try:
            yield _partition(folder, parent)
        except FileNotFoundError:
            continue  # its topic has been deleted since the names were listed


def _partition_folders(log_directory: str) -> Iterator[str]:
    for name in sorted(os.listdir(log_directory)):
        folder = os.path.join(log_directory, name)
        if parse_partition_folder(name) is not None and os.path.isdir(folder):
            yield folder


def _is_ours(log_directory: str) -> bool:
    try:
        content = OsFiles().read_file(os.path.join(log_directory, META_PROPERTIES))
        return FORMAT_KEY in parse_meta_properties(content)
    except (OSError, ValueError):
        return True


def recovery_points(log_directory: str) -> dict[tuple[str, int], int]:
    """Of each partition that the checkpoint names, by topic and number; none where it cannot be read."""
    try:
        content = OsFiles().read_file(os.path.join(log_directory, RECOVERY_POINT_CHECKPOINT))
        entries = parse_partition_offsets(content)
    except (OSError, ValueError):
        return {}
    return {(entry.topic, entry.partition): entry.offset for entry in entries}
