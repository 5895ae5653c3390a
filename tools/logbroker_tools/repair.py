"""What could be set right in a directory that nobody has open: a plan, and carrying it out.

    what is wrong                       the plan
    the last segment ends unsound       cut it there; the bytes go to ``<segment>.log.cut-<position>``
    an index does not match its log     build it again; the old one goes to ``<index>.old``
    a snapshot or checkpoint is broken  set it aside as ``<file>.old``: it is derived from the log
    damage with sound batches behind    nothing: readers skip exactly the offsets that are damaged

Every byte that is replaced is kept. A second repair finds nothing to do.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator

import msgspec

from logbroker_storage.files import OsFiles
from logbroker_storage.segment_files import (
    LOG_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    TIME_INDEX_SUFFIX,
    parse_segment_name,
)

from .findings import Code, Finding
from .layout import Partition, Target
from .reading import segment_items
from .verify import verify
from .walk import Damaged

INDEX_INTERVAL_BYTES = 4096


class Action(enum.Enum):
    """What a step does."""

    CUT_TAIL = "cut-tail"
    REBUILD_INDEXES = "rebuild-indexes"
    SET_ASIDE = "set-aside"


class Step(msgspec.Struct, frozen=True):
    """One change; *keeps* is the file that gets what is replaced."""

    action: Action
    path: str
    keeps: str
    position: int | None = None
    message: str = ""


def plan(target: Target) -> list[Step]:
    """The steps that would set *target* right, in the order in which they are taken."""
    steps = [step for partition in target.partitions if partition.segments for step in _tail(partition)]
    seen: set[str] = set()
    for finding in verify(target):
        step = _step_for(finding)
        if step is not None and step.path not in seen:
            seen.add(step.path)
            steps.append(step)
    return steps


def _tail(partition: Partition) -> Iterator[Step]:
    last = partition.segments[-1]
    damage: Damaged | None = None
    for item in segment_items(partition, last):
        damage = item if isinstance(item, Damaged) else None
    if damage is not None and damage.end_position == last.size_bytes:
        yield Step(
            Action.CUT_TAIL,
            last.path,
            _free(f"{last.path}.cut-{damage.position}"),
            damage.position,
            f"{damage.defect.value}; nothing sound follows",
        )


def _step_for(finding: Finding) -> Step | None:
    if finding.code in (Code.BAD_OFFSET_INDEX, Code.BAD_TIME_INDEX):
        message = "build both indexes again from the log"
        return Step(Action.REBUILD_INDEXES, finding.path, _free(finding.path + ".old"), message=message)
    if finding.code in (Code.BAD_SNAPSHOT, Code.BAD_CHECKPOINT):
        return Step(Action.SET_ASIDE, finding.path, _free(finding.path + ".old"), message=finding.message)
    return None


def _free(path: str) -> str:
    candidate, number = path, 1
    while os.path.exists(candidate):
        candidate, number = f"{path}.{number}", number + 1
    return candidate


def repair_all(target: Target) -> list[Step]:
    """Plan and carry out until nothing is left to do; what was done. Nobody may have the directory open.

    More than once, because an index can be judged only when its log is sound.
    """
    done: list[Step] = []
    while steps := plan(target):
        for step in steps:
            carry_out(step)
        done += steps
    return done


def carry_out(step: Step) -> None:
    """Do one step, durably: what is replaced is in its side file before anything changes."""
    files = OsFiles()
    folder = os.path.dirname(step.path) or "."
    if step.action is Action.CUT_TAIL:
        assert step.position is not None
        fd = files.open(step.path)
        try:
            files.replace_file(step.keeps, files.pread(fd, files.size(fd) - step.position, step.position))
            files.truncate(fd, step.position)
            files.fsync(fd)
        finally:
            files.close(fd)
    elif step.action is Action.SET_ASIDE:
        files.rename(step.path, step.keeps)
        files.fsync_directory(folder)
    else:
        _rebuild(files, step, folder)


def _rebuild(files: OsFiles, step: Step, folder: str) -> None:
    from logbroker_storage.segment import rebuild_indexes

    name = os.path.basename(step.path)
    suffix = OFFSET_INDEX_SUFFIX if name.endswith(OFFSET_INDEX_SUFFIX) else TIME_INDEX_SUFFIX
    base_offset = parse_segment_name(name, suffix)
    assert base_offset is not None
    files.replace_file(step.keeps, files.read_file(step.path))
    log_path = step.path.removesuffix(suffix) + LOG_SUFFIX
    rebuild_indexes(files, folder, base_offset, os.stat(log_path).st_size, INDEX_INTERVAL_BYTES)
    files.fsync_directory(folder)
