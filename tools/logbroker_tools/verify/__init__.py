"""Every check of a directory: batches, then what is derived from them, then the files beside them.

    module      checks
    batches     header, length, CRC, place in the offset space, leader epoch, records, timestamps, markers,
                journal events; that segments follow each other
    indexes     order and bounds; each entry names a real batch, and says of it what the batch says
    missing     partitions that are known, but have no folder, or no segment in it
    producers   sequences only grow; snapshots say what the batches before them say
    side_files  snapshots, checkpoints and metadata can be read; files that do not belong

Findings are yielded as they are found: a check goes on behind what it finds. Nothing here raises for what
is in a file, nor for a segment, index or side file that the system does not let us read: UNREADABLE. Only
an ``OSError`` of listing a folder is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator

from logbroker_storage.files import Files, OsFiles

from ..findings import Finding
from ..layout import Partition, Target
from .batches import verify_batches
from .missing import verify_nothing_is_missing
from .side_files import verify_log_directory, verify_side_files

__all__ = ["verify", "verify_partition"]


def verify(target: Target, files: Files | None = None) -> Iterator[Finding]:
    """Every finding about what is at *target*."""
    files = files or OsFiles()
    for partition in target.partitions:
        yield from verify_partition(partition, files)
    if target.log_directory is not None:
        if target.is_ours:
            yield from verify_nothing_is_missing(target.log_directory, files, target.wants)
        yield from verify_log_directory(target.log_directory, files)


def verify_partition(partition: Partition, files: Files) -> Iterator[Finding]:
    """Every finding about one partition."""
    yield from verify_batches(partition, files)
    if partition.is_whole:
        yield from verify_side_files(partition, files)
