"""Recovery: what a log's files say when the view cannot be asked, or falls short of the files.

    what happened                    what is known               what is done
    the machine stopped, or the      the recovery point, a       scan from the last index entry below it:
      view is gone                     lower bound of what         damage below the point is reported,
                                       was synced                  the first unsound batch above it is the end
    a disk sync failed               the synced offset           the same; the page cache is dropped first, as
                                                                   it may hold what the disk does not

Damage below the point stays where it is; readers report its range and go on behind it. What is cut above it
goes to side files (``side_files``). What survives the scan is synced before it is published as synced, unless it is
just what the recovery point says, and nothing was changed.

Nobody else appends or syncs meanwhile; where a sync had failed, others read, and compact what was sealed. A process
that died while others go on is dealt with in ``adoption``.

Recovering twice changes nothing the second time: the first leaves only sound batches above the point.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from . import offset_index, time_index
from .errors import BatchDefect
from .files import Files, remove_temporaries
from .index_files import read_index_file, write_checksums
from .local_log import LocalLog
from .log_end_builder import LogEndBuilder
from .producer_recovery import aborted_index_is_sound, fold_producers
from .producer_state import ProducerEntry
from .segment import ScanStop, next_sound_batch, rebuild_indexes, scan
from .segment_files import (
    OFFSET_INDEX_SUFFIX,
    SNAPSHOT_SUFFIX,
    SYNCED_SUFFIXES,
    TIME_INDEX_SUFFIX,
    SegmentFiles,
    list_segments,
    list_snapshots,
    remove_orphans,
)
from .segment_replacement import finish_replacements, is_unfinished
from .side_files import Cut, cut_file, cut_room, keep_aside, remove_unused, set_aside
from .snapshot_files import read_snapshot
from .view import LogEnd, SyncPoint
from .view.partitions import empty_log_end

logger = logging.getLogger("logbroker.recovery")


class Damage(NamedTuple):
    """Offsets [start_offset, end_offset) of a log that cannot be read."""

    path: str
    position: int
    start_offset: int
    end_offset: int
    defect: BatchDefect


class Recovered(NamedTuple):
    """What recovery found and did; ``end`` and ``producers`` are what the view is given."""

    end: LogEnd
    producers: dict[int, ProducerEntry]
    damages: list[Damage]
    cuts: list[Cut]


def recover_log(log: LocalLog, *, recovery_point: int, log_start_offset: int = 0) -> Recovered:
    """Rebuild what the view must know of a partition from its files alone, cutting an unsound end.

    Everything below *recovery_point* is known to have been on the disk. Nobody else may append or sync.
    What is left is synced; the caller publishes it.
    """
    files, directory = log.files, log.directory
    # What was deleted on request was acknowledged once: nothing below it makes the log end there.
    floor = max(recovery_point, log_start_offset)
    _set_unsound_snapshots_aside(log)
    bases = list_segments(files, directory)
    if not bases:
        return _begin_empty(log, floor)
    first_scanned = _first_to_scan(log, bases, recovery_point)
    damages: list[Damage] = []
    cuts: list[Cut] = []
    rebuilt = [base for base in bases if base < first_scanned and _mended_indexes(log, base)]
    builder = LogEndBuilder(
        empty_log_end(bases[0]), log.config.index_interval_bytes, now_ms=-1, recovery_point=recovery_point
    )
    _scan_segments(log, bases[bases.index(first_scanned) :], builder, floor, damages, cuts)
    end = builder.end()
    if end.log_end_offset < recovery_point:
        path = log.segment(end.active_base_offset).log_path
        lost = Damage(path, end.active_bytes, end.log_end_offset, recovery_point, BatchDefect.TRUNCATED)
        damages.append(lost)
    if end.log_end_offset < floor or _ends_in_damage(end, damages):
        end = _begun_behind(log, max(end.log_end_offset, floor))
    end = end._replace(
        log_start_offset=max(bases[0], log_start_offset),
        visible_offset=end.log_end_offset,
        segments_version=len(bases) + 1,
    )
    dropped = _drop_snapshots_above(log, end.log_end_offset)
    is_as_synced = (
        end.log_end_offset == recovery_point
        and not (cuts or damages or dropped)
        # A segment that begins at the point may have been begun after it. The first one was made to last.
        and (end.active_base_offset < recovery_point or end.active_base_offset == 0)
    )
    bases = log.segments(end)
    behind = [*bases[1:], end.log_end_offset]
    doubtful = [
        base
        for base, next_base in zip(bases, behind, strict=True)
        if not (is_as_synced or base < first_scanned)
        or not aborted_index_is_sound(log, base, next_base, is_sealed=base != bases[-1])
    ]
    fold = fold_producers(log, end.log_end_offset, doubtful)
    for base in bases:
        write_checksums(files, directory, base)
    unsynced = {*rebuilt, *doubtful}
    if unsynced:
        _sync_recovered(log, [base for base in bases if base in unsynced])
    end = end._replace(
        first_unstable_offset=fold.first_unstable_offset,
        aborted_index_bytes=len(log.segment(end.active_base_offset).aborted_index()),
    )
    told = [
        damage for damage in damages if damage.end_offset > log_start_offset
    ]  # the rest was deleted anyway
    return Recovered(end, fold.producers, told, cuts)


def publish(log: LocalLog, recovered: Recovered) -> LogEnd:
    """Put what recovery found into the view: all of it is synced. LogEnd as it is there."""
    end = recovered.end
    state = log.view.partitions.state(log.key)
    if state is not None:
        before = state.end.with_cleaning()
        end = end._replace(segments_version=before.segments_version, cleanings=before.cleanings)
    with log.view.write() as transaction:
        log.view.partitions.put_log_end(transaction, log.key, end)
        log.view.partitions.put_sync_point(
            transaction, log.key, SyncPoint(end.log_end_offset, end.active_base_offset, 0)
        )
        log.view.partitions.replace_producers(transaction, log.key, recovered.producers)
        log.view.state.drop(transaction, log.key)  # records of it may be gone: it is applied anew
        if state is not None:
            log.view.message_ids.drop_from(transaction, log.topic_id, log.partition, end.log_end_offset)
    for damage in recovered.damages:
        logger.error(
            "%s-%d: offsets %d to %d are damaged (%s at byte %d of %s); readers skip them by seeking to %d",
            log.topic,
            log.partition,
            damage.start_offset,
            damage.end_offset - 1,
            damage.defect.value,
            damage.position,
            damage.path,
            damage.end_offset,
        )
    for cut in recovered.cuts:
        logger.warning(
            "%s-%d: %d bytes that were never acknowledged were cut off %s at byte %d (%s) and kept in %s",
            log.topic,
            log.partition,
            cut.size_bytes,
            cut.path,
            cut.position,
            cut.defect.value,
            cut.side_path,
        )
    return end


def reopen_failed(log: LocalLog) -> None:
    """Verify a partition that was marked failed from the disk, and let it take writes again.

    After a failed sync the page cache may hold what the disk does not, so the cache is dropped first and
    only what reads back sound is kept.
    """
    with log.append_lock, log.sync_lock:
        state = log.state()
        if not state.sync.failed:
            return
        start = state.end.log_start_offset
        recovered = recover_log(log, recovery_point=state.sync.synced_offset, log_start_offset=start)
        publish(log, recovered)
    logger.warning("%s-%d: verified after a failed sync", log.topic, log.partition)


def sweep_leftovers(files: Files, directory: str) -> None:
    """Finish or remove what a dead process left half-done in a partition folder.

    For the only process: the replacement of a segment is made outside the locks of the log.
    """
    names = files.listdir(directory)
    if is_unfinished(names):
        finish_replacements(files, directory)
        names = files.listdir(directory)
    remove_temporaries(files, directory, names)
    remove_orphans(files, directory, names)


def _begin_empty(log: LocalLog, base_offset: int) -> Recovered:
    _drop_snapshots_above(log, base_offset)
    segment = log.segment(base_offset)
    segment.create()
    segment.close()
    log.files.fsync_directory(log.directory)
    return Recovered(empty_log_end(base_offset)._replace(segments_version=1), {}, [], [])


def _first_to_scan(log: LocalLog, bases: list[int], recovery_point: int) -> int:
    """The newest segment that is known to have been in use when the recovery point was noted.

    Not an empty one: the process that created it may have died before it used it.
    """
    below = [base for base in bases if base <= recovery_point and log.segment_bytes(base) > 0]
    return max(below, default=bases[0])


def _mended_indexes(log: LocalLog, base: int) -> bool:
    """Build the indexes of a sealed segment below the recovery point again, if they are unsound; whether they were."""
    segment = log.segment(base)
    try:
        if _sealed_indexes_are_sound(log, segment):
            return False
        logger.warning("%s: malformed index, built again", segment.log_path)
        rebuild_indexes(log.files, log.directory, base, segment.log_bytes(), log.config.index_interval_bytes)
        return True
    finally:
        segment.close()


def _scan_segments(
    log: LocalLog,
    bases: list[int],
    builder: LogEndBuilder,
    floor: int,
    damages: list[Damage],
    cuts: list[Cut],
) -> None:
    """Scan the segments *bases* into *builder*, up to where the log ends; those behind that are set aside."""
    for index, base in enumerate(bases):
        segment = log.segment(base)
        try:
            if index and base < builder.log_end_offset:
                # The log has gone on in the segment before: nobody has used this one (``rolling``).
                cuts += remove_unused(log.files, segment)
                continue
            next_base = bases[index + 1] if index + 1 < len(bases) else None
            ends_here = _recover_segment(log, segment, builder, floor, next_base, damages, cuts)
        finally:
            segment.close()
        if ends_here:
            cuts += [set_aside(log.files, log.segment(later)) for later in bases[index + 1 :]]
            return


def _recover_segment(
    log: LocalLog,
    segment: SegmentFiles,
    builder: LogEndBuilder,
    floor: int,
    next_base: int | None,
    damages: list[Damage],
    cuts: list[Cut],
) -> bool:
    """Scan one segment into *builder*; whether the log ends in it, unsound at or above *floor*."""
    start = builder.begin_segment(log.files, segment)
    size = segment.log_bytes()
    log.files.drop_cache(segment.descriptor())
    ends_here = False
    while True:
        stop = _scan_into(log.files, segment, builder, start, size)
        if stop.defect is not None and cut_room(log.files, segment, stop.position):
            size, stop = stop.position, stop._replace(defect=None)
        if stop.defect is None:
            if next_base is not None and next_base > stop.offset:
                # The file ends too early, at the end of a batch: the next segment does not follow.
                ends_here = stop.offset >= floor
                if not ends_here:
                    damages.append(
                        Damage(segment.log_path, size, stop.offset, next_base, BatchDefect.TRUNCATED)
                    )
            break
        if stop.offset >= floor:
            cuts.append(cut_file(log.files, segment, stop.position, stop.defect))
            ends_here = True
            break
        sound = next_sound_batch(
            log.files, segment.descriptor(), stop.position, end_position=size, min_offset=stop.offset + 1
        )
        end_offset = sound.base_offset if sound is not None else (next_base or floor)
        damages.append(Damage(segment.log_path, stop.position, stop.offset, end_offset, stop.defect))
        builder.skip_to(end_offset, size if sound is None else sound.position)
        if sound is None:
            break
        start = sound.position
    builder.write_indexes(segment, keep=None)
    return ends_here


def _scan_into(
    files: Files, segment: SegmentFiles, builder: LogEndBuilder, start: int, size: int
) -> ScanStop:
    for item in scan(
        files,
        segment.descriptor(),
        start_position=start,
        end_position=size,
        expected_offset=builder.log_end_offset,
    ):
        if isinstance(item, ScanStop):
            return item
        builder.add(*item)
    return ScanStop(size, builder.log_end_offset, None)


def _sealed_indexes_are_sound(log: LocalLog, segment: SegmentFiles) -> bool:
    """Whether a sealed segment below the recovery point keeps its indexes of offsets and of times."""
    size = segment.log_bytes()
    base = segment.base_offset
    offsets = read_index_file(log.files, log.directory, base, OFFSET_INDEX_SUFFIX, is_sealed=True)
    times = read_index_file(log.files, log.directory, base, TIME_INDEX_SUFFIX, is_sealed=True)
    return (
        offsets is not None
        and times is not None
        and offset_index.check(offsets, end_relative_offset=1 << 31, end_position=size) is None
        and time_index.check(times, end_relative_offset=1 << 31) is None
        # Zeros at the end are space that Kafka allocated in advance, or writes that a power cut took.
        and offset_index.used_bytes(offsets) == len(offsets)
        and time_index.used_bytes(times) == len(times)
        and bool(times or not size)
        and bool(offsets or size <= log.config.index_interval_bytes)
    )


def _ends_in_damage(end: LogEnd, damages: list[Damage]) -> bool:
    """Whether nothing sound follows the last damage of the active segment.

    Nothing may be appended there: the first bytes of the next batch could make a torn one whole, as they
    are zeros like the last byte of most batches, and the next one would be torn instead.
    """
    return end.active_bytes > 0 and bool(damages) and damages[-1].end_offset == end.log_end_offset


def _begun_behind(log: LocalLog, offset: int) -> LogEnd:
    """The log goes on at *offset* in a new segment, behind what was in it and cannot be read.

    Offsets that consumers have seen must not come to name other records.
    """
    segment = log.segment(offset)
    try:
        segment.create()
    finally:
        segment.close()
    return empty_log_end(offset)


def _drop_snapshots_above(log: LocalLog, end_offset: int) -> bool:
    """A snapshot of records that were cut must not be taken for one of those that come in their place.

    Whether there was one; then the directory must be synced, or it may come back when those are there.
    """
    above = [offset for offset in list_snapshots(log.files, log.directory) if offset > end_offset]
    for offset in above:
        log.files.unlink(log.segment(offset).path(SNAPSHOT_SUFFIX))
    return bool(above)


def _set_unsound_snapshots_aside(log: LocalLog) -> None:
    """Snapshots are written without a sync, so that a power cut leaves torn ones."""
    for offset in list_snapshots(log.files, log.directory):
        if read_snapshot(log.files, log.directory, offset) is None:
            path = log.segment(offset).path(SNAPSHOT_SUFFIX)
            logger.warning("%s is kept as %s", path, keep_aside(log.files, path))


def _sync_recovered(log: LocalLog, bases: list[int]) -> None:
    """The indexes too: below the recovery point they are believed where no checksum says that they are torn."""
    for base in bases:
        segment = log.segment(base)
        try:
            for suffix in SYNCED_SUFFIXES:
                if log.files.exists(segment.path(suffix)):
                    log.files.fsync(segment.descriptor(suffix))
        finally:
            segment.close()
    log.files.fsync_directory(log.directory)
