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

import os
from collections.abc import Iterator

import msgspec

from logbroker_storage.checkpoints import META_PROPERTIES, parse_meta_properties
from logbroker_storage.errors import LogbrokerError
from logbroker_storage.layout import parse_partition_folder
from logbroker_storage.segment_files import LOG_SUFFIX, parse_segment_name

FORMAT_KEY = "logbroker.format"


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
    """A folder of segments, oldest first; of a single file, just that one."""

    topic: str
    partition: int
    folder: str
    segments: list[Segment]
    is_ours: bool
    is_whole: bool  # the folder was given, not only one file of it

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.partition}"


class Target(msgspec.Struct, frozen=True):
    """Everything that a path leads to."""

    path: str
    log_directory: str | None
    partitions: list[Partition]
    is_ours: bool


def find(path: str, *, kafka: bool = False) -> Target:
    """What is at *path*; *kafka* takes it for Kafka's whatever it says itself.

    Raises:
        LogbrokerError: nothing that could be inspected is there.
    """
    path = path.rstrip("/") or "/"
    if os.path.isfile(path):
        return _single_file(path, kafka)
    if not os.path.isdir(path):
        raise LogbrokerError(f"there is nothing at {path}")
    if os.path.isdir(os.path.join(path, "logs")):
        path = os.path.join(path, "logs")
    ours = not kafka and _is_ours(path)
    if _segments(path):
        ours = not kafka and _is_ours(os.path.dirname(path) or ".")
        return Target(path, None, [_partition(path, ours)], ours)
    partitions = [_partition(folder, ours) for folder in _partition_folders(path)]
    if not partitions and not os.path.exists(os.path.join(path, META_PROPERTIES)):
        raise LogbrokerError(f"{path} holds no partition folders and no segments")
    return Target(path, path, partitions, ours)


def _single_file(path: str, kafka: bool) -> Target:
    if not path.endswith(LOG_SUFFIX):
        raise LogbrokerError(
            f"{path} is not a segment: give a .log file, a partition folder or a data directory"
        )
    folder = os.path.dirname(os.path.abspath(path))
    ours = not kafka and _is_ours(os.path.dirname(folder))
    topic, number = parse_partition_folder(os.path.basename(folder)) or (os.path.basename(folder), 0)
    segment = Segment(path, parse_segment_name(os.path.basename(path)))
    return Target(path, None, [Partition(topic, number, folder, [segment], ours, False)], ours)


def _partition(folder: str, ours: bool) -> Partition:
    name = os.path.basename(os.path.abspath(folder))
    topic, number = parse_partition_folder(name) or (name, 0)
    return Partition(topic, number, folder, _segments(folder), ours, True)


def _segments(folder: str) -> list[Segment]:
    bases = sorted(base for name in os.listdir(folder) if (base := parse_segment_name(name)) is not None)
    return [Segment(os.path.join(folder, f"{base:020d}{LOG_SUFFIX}"), base) for base in bases]


def _partition_folders(log_directory: str) -> Iterator[str]:
    for name in sorted(os.listdir(log_directory)):
        folder = os.path.join(log_directory, name)
        if parse_partition_folder(name) is not None and os.path.isdir(folder):
            yield folder


def _is_ours(log_directory: str) -> bool:
    try:
        with open(os.path.join(log_directory, META_PROPERTIES), "rb") as file:
            return FORMAT_KEY in parse_meta_properties(file.read())
    except (OSError, ValueError):
        return True
