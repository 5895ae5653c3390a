"""The files beside the segments: checkpoints and metadata that can be read, and files that do not belong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise

from logbroker_storage import index_checksums
from logbroker_storage.checkpoints import (
    LEADER_EPOCH_CHECKPOINT,
    LOG_START_OFFSET_CHECKPOINT,
    META_PROPERTIES,
    PARTITION_METADATA,
    RECOVERY_POINT_CHECKPOINT,
    EpochStart,
    parse_leader_epochs,
    parse_meta_properties,
    parse_partition_metadata,
    parse_partition_offsets,
)
from logbroker_storage.files import Files
from logbroker_storage.layout import parse_partition_folder
from logbroker_storage.segment_files import (
    ABORTED_INDEX_SUFFIX,
    CHECKSUMS_SUFFIX,
    LOG_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    SEGMENT_SUFFIXES,
    SNAPSHOT_SUFFIX,
    TIME_INDEX_SUFFIX,
    is_orphan,
    parse_segment_name,
    segment_name,
)

from ..findings import Code, Finding, Severity
from ..layout import Partition

ADVICE_DERIVED = "derived from the log: recovery does without it"
ADVICE_IDENTITY = "not derived from the log: restore it from a backup, or write it anew"
ADVICE_SIDE_FILE = "delete it when you do not need these bytes"
ADVICE_LEFTOVER = "the next open or cleaning removes it"

_SUMMED = {
    OFFSET_INDEX_SUFFIX: Code.BAD_OFFSET_INDEX,
    TIME_INDEX_SUFFIX: Code.BAD_TIME_INDEX,
    ABORTED_INDEX_SUFFIX: Code.BAD_ABORTED_INDEX,
}
_LEFTOVER_SUFFIXES = (".cleaned", ".replaces", ".tmp", ".swap", ".deleted")
_KEPT_MARKS = (".log.cut-", ".log.unpublished-", ".old")
_KNOWN_IN_LOG_DIRECTORY = {
    META_PROPERTIES, RECOVERY_POINT_CHECKPOINT, LOG_START_OFFSET_CHECKPOINT, ".lock",
    "replication-offset-checkpoint", "cleaner-offset-checkpoint", "bootstrap.checkpoint", ".kafka_cleanshutdown",
}  # fmt: skip


def verify_side_files(partition: Partition, files: Files) -> Iterator[Finding]:
    """Findings about a partition folder, but for its segments, indexes and snapshots."""
    try:
        names = set(files.listdir(partition.folder))
    except FileNotFoundError:
        return  # its topic is being deleted; where it should be there, that is a finding of ``missing``
    for name in sorted(names):
        path = os.path.join(partition.folder, name)
        if name == LEADER_EPOCH_CHECKPOINT:
            yield from _parsed(path, files, lambda data: _check_epochs(data, partition), ADVICE_DERIVED)
        elif name == PARTITION_METADATA:
            yield from _parsed(path, files, parse_partition_metadata, ADVICE_IDENTITY)
        elif parse_segment_name(name, CHECKSUMS_SUFFIX) in partition.bases:
            yield from _checksums(
                path, files, name.removesuffix(CHECKSUMS_SUFFIX), is_last=_is_last(name, partition)
            )
        elif not _belongs(name, names, partition.bases):
            yield _stray(path, name)


def verify_log_directory(log_directory: str, files: Files) -> Iterator[Finding]:
    """Findings about the files of a log directory, and folders in it that are no partition's."""
    checks: list[tuple[str, Callable[[bytes], object], str]] = [
        (META_PROPERTIES, parse_meta_properties, ADVICE_IDENTITY),
        (RECOVERY_POINT_CHECKPOINT, parse_partition_offsets, ADVICE_DERIVED),
        (LOG_START_OFFSET_CHECKPOINT, parse_partition_offsets, ADVICE_DERIVED),
    ]
    for name, parse, advice in checks:
        yield from _parsed(os.path.join(log_directory, name), files, parse, advice)
    for name in files.listdir(log_directory):
        path = os.path.join(log_directory, name)
        if os.path.isdir(path):
            if parse_partition_folder(name) is None:
                message = "not a partition's folder: nothing in it was looked at"
                yield Finding(Severity.NOTE, Code.UNKNOWN_FILE, path, message)
        elif name not in _KNOWN_IN_LOG_DIRECTORY:
            yield _stray(path, name)


def _is_last(name: str, partition: Partition) -> bool:
    return bool(partition.bases) and name == segment_name(partition.bases[-1]) + CHECKSUMS_SUFFIX


def _checksums(path: str, files: Files, stem: str, *, is_last: bool) -> Iterator[Finding]:
    """A file of checksums, and the indexes that do not bear theirs out."""
    yield from _parsed(path, files, index_checksums.parse, ADVICE_DERIVED)
    try:
        checksums = index_checksums.parse(files.read_file(path))
    except (ValueError, OSError):
        return
    folder = os.path.dirname(path)
    for (suffix, code), checksum in zip(_SUMMED.items(), checksums, strict=True):
        index_path = os.path.join(folder, stem + suffix)
        try:
            content = files.read_file(index_path)
        except FileNotFoundError:
            content = b""
        except OSError:
            continue  # a finding of the index's own (``indexes``)
        if not files.exists(os.path.join(folder, stem + LOG_SUFFIX)):
            return  # the cleaner has removed the segment meanwhile, the log first
        if not checksum.vouches_for(content, may_have_grown=is_last):
            yield Finding(
                Severity.ERROR,
                code,
                index_path,
                f"not what {os.path.basename(path)} vouches for",
                advice="readers look into the batches instead",
            )


def _check_epochs(data: bytes, partition: Partition) -> None:
    epochs = parse_leader_epochs(data)
    if partition.is_ours and epochs != [EpochStart(0, 0)]:
        raise ValueError(f"leader epochs: {len(epochs)} entries, only epoch 0 from offset 0 was expected")
    for earlier, later in pairwise(epochs):
        if later.leader_epoch <= earlier.leader_epoch or later.start_offset < earlier.start_offset:
            raise ValueError("leader epochs: the entries do not ascend")


def _belongs(name: str, names: set[str], bases: list[int]) -> bool:
    if parse_segment_name(name, SNAPSHOT_SUFFIX) is not None:
        return True
    for suffix in SEGMENT_SUFFIXES:
        base = parse_segment_name(name, suffix)
        if base is not None:
            # Above the last one known: a writer at work has rolled since the folder was first looked at.
            is_new = bool(bases) and base > bases[-1] and segment_name(base) + LOG_SUFFIX in names
            return is_new or (base in bases if suffix == LOG_SUFFIX else not is_orphan(name, bases))
    return False


def _stray(path: str, name: str) -> Finding:
    if name.endswith(_LEFTOVER_SUFFIXES):
        message = "left by work that was cut short"
        return Finding(Severity.NOTE, Code.SIDE_FILE, path, message, advice=ADVICE_LEFTOVER)
    if any(mark in name for mark in _KEPT_MARKS):
        message = "bytes that recovery or a repair took away and kept"
        return Finding(Severity.NOTE, Code.SIDE_FILE, path, message, advice=ADVICE_SIDE_FILE)
    if any(parse_segment_name(name, suffix) is not None for suffix in SEGMENT_SUFFIXES):
        message = "of a segment that is not there, or that a finished compaction has replaced"
        return Finding(Severity.NOTE, Code.SIDE_FILE, path, message, advice=ADVICE_LEFTOVER)
    return Finding(Severity.NOTE, Code.UNKNOWN_FILE, path, "not a file of a log")


def _parsed(path: str, files: Files, parse: Callable[[bytes], object], advice: str) -> Iterator[Finding]:
    try:
        parse(files.read_file(path))
    except ValueError as error:
        yield Finding(Severity.ERROR, Code.BAD_CHECKPOINT, path, str(error), advice=advice)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
            return  # it was listed, and has gone meanwhile: somebody is at work
        yield Finding(Severity.ERROR, Code.UNREADABLE, path, error.strerror or str(error), advice=advice)
