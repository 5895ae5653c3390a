"""What could be set right in a directory that nobody has open: a plan, and carrying it out.

    what is wrong                          the plan
    the last segment ends unsound,         cut it there; the bytes go to ``<segment>.log.cut-<position>``
      at or above the recovery point
    an index does not match its log,       build it from the log's sound batches; the old one goes to
      or its checksum, or is missing         ``<index>.old``, and so do the segment's checksums
    a snapshot or a derived checkpoint     set it aside as ``<file>.old``: recovery does without it
      is unsound
    a segment cannot be read               nothing: what it and its indexes should hold, nobody can tell
    any other damage                       nothing: readers skip exactly the offsets that are damaged

Every byte that is replaced is kept, and in its side file on the disk before anything changes. A second
repair finds nothing to do. This is the one place of the inspector that writes; so that it does not write
under a broker, it holds the directory's own two locks meanwhile, or Kafka's (``DirectoryInUseError`` when it cannot).
"""

from __future__ import annotations

import enum
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from logbroker_storage.checkpoints import LEADER_EPOCH_CHECKPOINT, RECOVERY_POINT_CHECKPOINT
from logbroker_storage.errors import DirectoryInUseError, LogbrokerError
from logbroker_storage.files import TEMPORARY_SUFFIX, Files, OsFiles
from logbroker_storage.layout import DataLayout
from logbroker_storage.segment import IndexBuilder
from logbroker_storage.segment_files import (
    CHECKSUMS_SUFFIX,
    LOG_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    TIME_INDEX_SUFFIX,
)

from .findings import Code, Finding
from .layout import Partition, Target, find
from .reading import segment_items
from .verify import verify
from .walk import Damaged

INDEX_INTERVAL_BYTES = 4096  # Kafka's default; any interval gives a sound index
COPY_BYTES = 1 << 20
MAX_ROUNDS = 5  # each can only show what the one before uncovered: first the tail, then its indexes

_DERIVED = (LEADER_EPOCH_CHECKPOINT, RECOVERY_POINT_CHECKPOINT)
_INDEX_CODES = (Code.BAD_OFFSET_INDEX, Code.BAD_TIME_INDEX, Code.MISSING_INDEX)


class Action(enum.Enum):
    """What a step does."""

    CUT_TAIL = "cut-tail"
    REBUILD_INDEX = "rebuild-index"
    SET_ASIDE = "set-aside"


class Step(msgspec.Struct, frozen=True):
    """One change; *keeps* is the file that gets what is replaced, None when there is nothing yet."""

    action: Action
    path: str
    keeps: str | None
    position: int | None = None
    message: str = ""


def plan(target: Target) -> list[Step]:
    """The steps that would set *target* right, in the order in which they are taken."""
    steps = [step for partition in target.partitions for step in _tail(partition)]
    seen: set[str] = set()
    unreadable: set[str] = set()
    for finding in verify(target):
        if finding.code is Code.UNREADABLE:
            unreadable.add(finding.path)
        elif finding.path not in seen and _log_of(finding.path) not in unreadable:
            step = _step_for(finding)
            if step is not None:
                seen.add(finding.path)
                steps.append(step)
    return steps


def _tail(partition: Partition) -> Iterator[Step]:
    if not partition.segments or partition.base_behind(partition.segments[-1]) is not None:
        return  # a single segment that others follow: its end is damage in the middle of the log
    last = partition.segments[-1]
    damage: Damaged | None = None
    try:
        for item in segment_items(partition, last):
            damage = item if isinstance(item, Damaged) else None
    except OSError:
        return  # `verify` reports it
    if damage is not None and damage.start_offset >= (partition.recovery_point or 0):
        side_path = _free(f"{last.path}.cut-{damage.position}")
        message = f"{damage.defect.value}; nothing sound follows"
        yield Step(Action.CUT_TAIL, last.path, side_path, damage.position, message)


def _step_for(finding: Finding) -> Step | None:
    if finding.code in _INDEX_CODES:
        keeps = _free(finding.path + ".old") if os.path.exists(finding.path) else None
        return Step(Action.REBUILD_INDEX, finding.path, keeps, message="build it from the log")
    is_derived = os.path.basename(finding.path) in _DERIVED or finding.path.endswith(CHECKSUMS_SUFFIX)
    if finding.code is Code.BAD_SNAPSHOT or (finding.code is Code.BAD_CHECKPOINT and is_derived):
        return Step(Action.SET_ASIDE, finding.path, _free(finding.path + ".old"), message=finding.message)
    return None


def _log_of(path: str) -> str:
    """The log file of the segment that a file belongs to."""
    return os.path.splitext(path)[0] + LOG_SUFFIX


def _free(path: str) -> str:
    candidate, number = path, 1
    while os.path.exists(candidate):
        candidate, number = f"{path}.{number}", number + 1
    return candidate


# Carrying it out ----------------------------------------------------------------------------------------


def repair_all(target: Target, *, files: Files | None = None) -> list[Step]:
    """Plan and carry out until nothing is left to do, on *files* (default: the system's); what was done.

    Raises:
        DirectoryInUseError: a broker has the directory open.
    """
    files = files or OsFiles()
    done: list[Step] = []
    with _nobody_else(target, files):
        for _ in range(MAX_ROUNDS):
            steps = plan(target)
            if not steps:
                return done
            for step in steps:
                carry_out(files, step, is_ours=target.is_ours)
            done += steps
    raise LogbrokerError(f"{target.path} still has damage after {MAX_ROUNDS} rounds of repair; see `verify`")


@contextmanager
def _nobody_else(target: Target, files: Files) -> Iterator[None]:
    """Hold the locks that say whether somebody has the directory open that *target* lies in."""
    with ExitStack() as held:
        for path, directory in _locks(target).items():
            if not os.path.exists(path):
                continue
            fd = files.open(path, readonly=True)
            held.callback(files.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # Java's kind: a Kafka broker's
            except BlockingIOError:
                raise DirectoryInUseError(
                    f"a process has {directory} open; close it, then repair (recovery mends a torn tail by itself)"
                ) from None
        yield


def _locks(target: Target) -> dict[str, str]:
    """The opening lock and the presence lock, by their real paths, each with the directory that it is of.

    Where a link was given, also those of the directory that what it leads to lies in.
    """
    above = 0 if target.log_directory is not None else 1 if target.partitions[0].is_whole else 2
    found: dict[str, str] = {}
    for logs in (os.path.abspath(target.path), os.path.realpath(target.path)):
        for _ in range(above):
            logs = os.path.dirname(logs)
        data = DataLayout(os.path.dirname(logs))
        # Not data.opening_lock itself: Kafka's directory has any name.
        opening_lock = os.path.join(logs, os.path.basename(data.opening_lock))
        for path, directory in ((opening_lock, logs), (data.presence_lock, data.path)):
            found.setdefault(os.path.realpath(path), directory)
    return found


def carry_out(files: Files, step: Step, *, is_ours: bool) -> None:
    """Do one step, durably."""
    if step.action is Action.CUT_TAIL:
        assert step.position is not None
        assert step.keeps is not None
        _copy(files, step.path, step.position, step.keeps)
        fd = files.open(step.path)
        try:
            files.truncate(fd, step.position)
            files.fsync(fd)
        finally:
            files.close(fd)
    elif step.action is Action.SET_ASIDE:
        assert step.keeps is not None
        if not files.exists(step.path):
            return  # checksums: rebuilding an index of their segment has set them aside
        files.rename(step.path, step.keeps)
        files.fsync_directory(os.path.dirname(step.path) or ".")
    else:
        if step.keeps is not None:
            _copy(files, step.path, 0, step.keeps)
        files.replace_file(step.path, _built(step.path, is_ours=is_ours))
        _set_checksums_aside(files, step.path)


def _set_checksums_aside(files: Files, index_path: str) -> None:
    """They vouch for what the index was; without them it is believed as it is.

    Not synced: where a power cut brings them back, the index is not believed, and repaired again.
    """
    checksums = os.path.splitext(index_path)[0] + CHECKSUMS_SUFFIX
    if files.exists(checksums):
        files.rename(checksums, _free(checksums + ".old"))


def _copy(files: Files, path: str, position: int, side_path: str) -> None:
    """The bytes of *path* from *position* on in *side_path*: all of them and synced, or no such file."""
    temporary = side_path + TEMPORARY_SUFFIX
    source = files.open(path, readonly=True)
    try:
        side = files.open(temporary, create=True)
        try:
            files.truncate(side, 0)
            written = 0
            while piece := files.pread(source, COPY_BYTES, position + written):
                files.pwrite(side, piece, written)
                written += len(piece)
            files.fsync(side)
        finally:
            files.close(side)
    finally:
        files.close(source)
    files.rename(temporary, side_path)
    files.fsync_directory(os.path.dirname(side_path) or ".")


def _built(index_path: str, *, is_ours: bool) -> bytes:
    """What the index at *index_path* should hold, from the sound batches of its log."""
    suffix = OFFSET_INDEX_SUFFIX if index_path.endswith(OFFSET_INDEX_SUFFIX) else TIME_INDEX_SUFFIX
    (partition,) = find(index_path.removesuffix(suffix) + LOG_SUFFIX, kafka=not is_ours).partitions
    (segment,) = partition.segments
    builder = IndexBuilder(segment.base_offset or 0, INDEX_INTERVAL_BYTES)
    for item in segment_items(partition, segment):
        if not isinstance(item, Damaged):
            builder.add(item.position, item.header)
    built = builder.seal()
    return built.offset_index if suffix == OFFSET_INDEX_SUFFIX else built.time_index
