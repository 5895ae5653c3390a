"""Recovery: what a log's files say when the view cannot be asked, or falls short of the files.

    what happened                    what is known               what is done
    a process died in mid-append     LogEnd in the view          adopt whole batches behind it, cut the rest
    the machine stopped, or the      the recovery point, a       scan from the last index entry below it:
      view is gone                     lower bound of what         damage below the point is quarantined,
                                       was synced                  the first unsound batch above it is the end
    a disk sync failed               the synced offset           drop the page cache, read back from the disk,
                                                                   end at the first unsound batch

Nothing is destroyed: bytes that are cut go to a side file first, ``<segment>.log.cut-<position>`` (or
``.log.unpublished-0`` for a whole file). A damaged batch below the point stays where it is; readers report
its range and go on behind it. What survives the scan is synced before it is published as synced.

Recovering twice changes nothing the second time: the first leaves only sound batches above the point.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from . import aborted_index, offset_index, time_index
from .errors import BatchDefect, CorruptBatchError
from .files import TEMPORARY_SUFFIX, Files
from .log_config import Durability
from .message_ids import identified_in
from .producer_fold import ProducerFold
from .producer_recovery import aborted_index_is_sound, fold_producers, marker_type
from .producer_state import ProducerEntry
from .record_batch import HEADER_BYTES, BatchHeader, read_batch, read_header
from .segment import SCAN_BLOCK_BYTES, ScanStop, next_sound_batch, rebuild_indexes, scan
from .segment_files import (
    LOG_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    SEGMENT_SUFFIXES,
    SNAPSHOT_SUFFIX,
    TIME_INDEX_SUFFIX,
    SegmentFiles,
    list_segments,
    list_snapshots,
)
from .segment_replacement import finish_replacements
from .view import LogEnd, SyncPoint
from .view.message_ids import IdUpdate
from .view.partitions import empty_log_end

if TYPE_CHECKING:
    from .partition_log import PartitionLog

logger = logging.getLogger("logbroker.recovery")


class Damage(NamedTuple):
    """Offsets [start_offset, end_offset) of a log that cannot be read."""

    path: str
    position: int
    start_offset: int
    end_offset: int
    defect: BatchDefect


class Cut(NamedTuple):
    """Bytes that recovery took off the end of a log, and the side file that keeps them."""

    path: str
    position: int
    size_bytes: int
    defect: BatchDefect
    side_path: str


class Recovered(NamedTuple):
    """What recovery found and did; ``end`` and ``producers`` are what the view is given."""

    end: LogEnd
    producers: dict[int, ProducerEntry]
    damages: list[Damage]
    cuts: list[Cut]


# A process died in mid-append -------------------------------------------------------------------------


def adopt_tail(log: PartitionLog, end: LogEnd) -> LogEnd:
    """Bring LogEnd and the file together after another process died between write and publish.

    Whole batches behind LogEnd are adopted (their outcome was unknown to whoever sent them), the rest is
    cut into a side file. Under the append lock; publishes the result.
    """
    active = log.active.files(end)
    size = active.log_bytes()
    if size < end.active_bytes:
        return _recover_shrunken(log)
    builder = _EndBuilder(end, log.config.index_interval_bytes, now_ms=end.active_created_ms)
    fold = ProducerFold(load=lambda producer_id: log.view.producer(log.key, producer_id))
    for unfinished in log.view.open_transactions(log.key):
        fold.open(unfinished.producer_id, unfinished.first_offset)
    aborted = bytearray()
    id_updates: list[IdUpdate] = []
    stop = ScanStop(end.active_bytes, end.log_end_offset, None)
    for item in scan(
        log.files,
        active.descriptor(),
        start_position=end.active_bytes,
        end_position=size,
        expected_offset=end.log_end_offset,
    ):
        if isinstance(item, ScanStop):
            stop = item
            break
        position, header = item
        builder.add(position, header)
        ids = _ids_at(log, active, position, header)
        if ids is not None:
            id_updates.append(ids)
        ended = fold.add(header, marker_type(log.files, active.descriptor(), position, header))
        if ended is not None:
            aborted += aborted_index.encode_entry(ended)
    if _is_blank(log.files, active, stop.position, size):
        size = stop.position
    else:
        _cut_file(log.files, active, stop.position, stop.defect or BatchDefect.TRUNCATED)
    builder.write_indexes(active, keep=end)
    if aborted:
        active.write_aborted_index(bytes(aborted), end.aborted_index_bytes)
    adopted = builder.end()._replace(
        first_unstable_offset=fold.first_unstable_offset,
        aborted_index_bytes=end.aborted_index_bytes + len(aborted),
    )
    active.cut_aborted_index(adopted.aborted_index_bytes)
    if log.config.durability is not Durability.FSYNC:
        adopted = adopted._replace(visible_offset=adopted.log_end_offset)
    with log.view.write() as transaction:
        log.view.put_log_end(transaction, log.key, adopted)
        for producer_id, entry in fold.producers.items():
            log.view.put_producer(transaction, log.key, producer_id, entry)
        for ids in id_updates:
            log.view.message_ids.apply(transaction, ids)
    logger.info(
        "%s-%d: a process died in mid-append; adopted offsets %d to %d, cut %d bytes",
        log.topic,
        log.partition,
        end.log_end_offset,
        adopted.log_end_offset - 1,
        size - stop.position,
    )
    return adopted


def _ids_at(log: PartitionLog, segment: SegmentFiles, position: int, header: BatchHeader) -> IdUpdate | None:
    """The message ids of the batch at *position*, whose header was read."""
    try:
        batch = read_batch(log.files.pread(segment.descriptor(), header.size_bytes, position))
        return log.id_update(header, identified_in(batch), base_offset=0)
    except CorruptBatchError:
        return None  # as no reader can read it, no sender can have meant anything by it


def _recover_shrunken(log: PartitionLog) -> LogEnd:
    """The file is shorter than the view says: files were replaced behind our back. The files are the truth."""
    logger.error("%s-%d: the log is shorter than the view says; recovering it", log.topic, log.partition)
    end, sync = log.state()
    recovered = recover_log(log, recovery_point=sync.synced_offset, log_start_offset=end.log_start_offset)
    publish(log, recovered)
    return recovered.end


# The machine stopped, or the view is gone -------------------------------------------------------------


def recover_log(log: PartitionLog, *, recovery_point: int, log_start_offset: int = 0) -> Recovered:
    """Rebuild what the view must know of a partition from its files alone, cutting an unsound end.

    Everything below *recovery_point* is known to have been on the disk. Nobody else may use the log.
    What is left is synced; the caller publishes it.
    """
    files, directory = log.files, log.directory
    # What was deleted on request was acknowledged once: nothing below it makes the log end there.
    floor = max(recovery_point, log_start_offset)
    sweep_leftovers(files, directory)
    bases = list_segments(files, directory)
    if not bases:
        return _begin_empty(log, floor)
    first_scanned = _first_to_scan(log, bases, recovery_point)
    damages: list[Damage] = []
    cuts: list[Cut] = []
    builder = _EndBuilder(
        empty_log_end(bases[0]), log.config.index_interval_bytes, now_ms=-1, recovery_point=recovery_point
    )
    for index, base in enumerate(bases):
        segment = log.segment(base)
        try:
            if base < first_scanned:
                _check_sealed_indexes(log, segment)
                continue
            if base > first_scanned and base < builder.log_end_offset:
                # The log has gone on in the segment before: nobody has used this one (``remove_unpublished``).
                cuts += _remove_overlapping(log, segment)
                continue
            next_base = bases[index + 1] if index + 1 < len(bases) else None
            ends_here = _recover_segment(log, segment, builder, floor, next_base, damages, cuts)
        finally:
            segment.close()
        if ends_here:
            cuts.extend(_drop_segment(log, later) for later in bases[index + 1 :])
            break
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
    _drop_snapshots_above(log, end.log_end_offset)
    is_as_synced = end.log_end_offset == recovery_point and not cuts and not damages
    bases = log.segments(end)
    behind = [*bases[1:], end.log_end_offset]
    doubtful = [
        base
        for base, next_base in zip(bases, behind, strict=True)
        if not (is_as_synced or base < first_scanned) or not aborted_index_is_sound(log, base, next_base)
    ]
    fold = fold_producers(log, end.log_end_offset, doubtful)
    if not is_as_synced:
        _sync_recovered(log, [base for base in bases if base >= first_scanned])
    end = end._replace(
        first_unstable_offset=fold.first_unstable_offset,
        aborted_index_bytes=len(log.segment(end.active_base_offset).aborted_index()),
    )
    told = [
        damage for damage in damages if damage.end_offset > log_start_offset
    ]  # the rest was deleted anyway
    return Recovered(end, fold.producers, told, cuts)


def _first_to_scan(log: PartitionLog, bases: list[int], recovery_point: int) -> int:
    """The newest segment that is known to have been in use when the recovery point was noted.

    Not an empty one: the process that created it may have died before it used it.
    """
    below = [base for base in bases if base <= recovery_point and log.segment_bytes(base) > 0]
    return max(below, default=bases[0])


def _remove_overlapping(log: PartitionLog, segment: SegmentFiles) -> list[Cut]:
    if segment.log_bytes() > 0:
        return [_drop_segment(log, segment.base_offset)]
    _remove_segment(log.files, segment)
    return []


def remove_unpublished(log: PartitionLog, end: LogEnd) -> None:
    """Remove what a process left that died while it rolled: a segment above the active one.

    A roll is published before the first write, so it is empty; one that is not is set aside all the same.
    """
    for base in list_segments(log.files, log.directory):
        if base > end.active_base_offset:
            segment = log.segment(base)
            try:
                _remove_overlapping(log, segment)
            finally:
                segment.close()


def _ends_in_damage(end: LogEnd, damages: list[Damage]) -> bool:
    """Whether nothing sound follows the last damage of the active segment.

    Nothing may be appended there: the first bytes of the next batch could make a torn one whole, as they
    are zeros like the last byte of most batches, and the next one would be torn instead.
    """
    return end.active_bytes > 0 and bool(damages) and damages[-1].end_offset == end.log_end_offset


def _begun_behind(log: PartitionLog, offset: int) -> LogEnd:
    """The log goes on at *offset* in a new segment, behind what was in it and cannot be read.

    Offsets that consumers have seen must not come to name other records.
    """
    segment = log.segment(offset)
    try:
        segment.create()
    finally:
        segment.close()
    return empty_log_end(offset)


def _drop_snapshots_above(log: PartitionLog, end_offset: int) -> None:
    """A snapshot of records that were cut must not be taken for one of those that come in their place."""
    for offset in list_snapshots(log.files, log.directory):
        if offset > end_offset:
            log.files.unlink(log.segment(offset).path(SNAPSHOT_SUFFIX))


def publish(log: PartitionLog, recovered: Recovered) -> None:
    """Put what recovery found into the view: all of it is synced."""
    end = recovered.end
    state = log.view.partition(log.key)
    if state is not None:
        end = end._replace(segments_version=state.end.segments_version + 1)
    with log.view.write() as transaction:
        log.view.put_log_end(transaction, log.key, end)
        log.view.put_sync_point(
            transaction, log.key, SyncPoint(end.log_end_offset, end.active_base_offset, 0)
        )
        log.view.replace_producers(transaction, log.key, recovered.producers)
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


def _begin_empty(log: PartitionLog, base_offset: int) -> Recovered:
    segment = log.segment(base_offset)
    segment.create()
    segment.close()
    log.files.fsync_directory(log.directory)
    return Recovered(empty_log_end(base_offset)._replace(segments_version=1), {}, [], [])


def _recover_segment(
    log: PartitionLog,
    segment: SegmentFiles,
    builder: _EndBuilder,
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
            cuts.append(_cut_file(log.files, segment, stop.position, stop.defect))
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


def _scan_into(files: Files, segment: SegmentFiles, builder: _EndBuilder, start: int, size: int) -> ScanStop:
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


def _check_sealed_indexes(log: PartitionLog, segment: SegmentFiles) -> None:
    """A sealed segment below the recovery point keeps its indexes when they are well-formed, else they go.

    A missing index costs a longer scan, never an answer; the cleaner builds it again.
    """
    size = segment.log_bytes()
    offsets = log.files.pread(segment.descriptor(OFFSET_INDEX_SUFFIX), 1 << 31, 0)
    times = log.files.pread(segment.descriptor(TIME_INDEX_SUFFIX), 1 << 31, 0)
    if (
        offset_index.check(offsets, end_relative_offset=1 << 31, end_position=size) is None
        and time_index.check(times, end_relative_offset=1 << 31) is None
        # Zeros at the end are space that Kafka allocated in advance, or writes that a power cut took.
        and offset_index.used_bytes(offsets) == len(offsets)
        and time_index.used_bytes(times) == len(times)
        and (times or not size)
        and (offsets or size <= log.config.index_interval_bytes)
    ):
        return
    logger.warning("%s: malformed index, built again", segment.log_path)
    rebuild_indexes(log.files, log.directory, segment.base_offset, size, log.config.index_interval_bytes)


def _sync_recovered(log: PartitionLog, bases: list[int]) -> None:
    for base in bases:
        segment = log.segment(base)
        try:
            for suffix in (LOG_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX):
                log.files.fsync(segment.descriptor(suffix))
        finally:
            segment.close()
    log.files.fsync_directory(log.directory)


# A disk sync failed -----------------------------------------------------------------------------------


def reopen_failed(log: PartitionLog) -> None:
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


# Cutting ----------------------------------------------------------------------------------------------


def cut_log(log: PartitionLog, offset: int) -> int:
    """Remove every batch that ends at or behind *offset*; the new log end. Under both locks."""
    end, sync = log.state()
    if offset >= end.log_end_offset:
        return end.log_end_offset
    # First, so that readers do not take what is cut for damage, nor whoever finds our work half done for lost.
    log.view.publish_sync(log.key, sync._replace(synced_offset=min(sync.synced_offset, offset)))
    log.publish_end(
        end._replace(
            visible_offset=min(end.visible_offset, offset), segments_version=end.segments_version + 1
        )
    )
    bases = log.segments(end)
    holding = max([base for base in bases if base <= offset], default=bases[0])
    for base in bases:
        if base > holding:
            _drop_segment(log, base)
    segment = log.segment(holding)
    try:
        position = _position_of(log, segment, offset)
        _cut_file(log.files, segment, position, BatchDefect.TRUNCATED)
    finally:
        segment.close()
    recovered = recover_log(log, recovery_point=0, log_start_offset=min(end.log_start_offset, offset))
    publish(log, recovered)
    return recovered.end.log_end_offset


def _position_of(log: PartitionLog, segment: SegmentFiles, offset: int) -> int:
    size = segment.log_bytes()
    for item in scan(
        log.files,
        segment.descriptor(),
        start_position=0,
        end_position=size,
        expected_offset=segment.base_offset,
    ):
        if isinstance(item, ScanStop):
            return item.position
        position, header = item
        if header.last_offset >= offset:
            return position
    return size


def cut_room(files: Files, segment: SegmentFiles, position: int) -> bool:
    """Let a log file end at *position* if nothing but zeros follows; whether that is so."""
    if not _is_blank(files, segment, position, segment.log_bytes()):
        return False
    segment.cut_room(position)
    return True


def _is_blank(files: Files, segment: SegmentFiles, position: int, size: int) -> bool:
    """Whether nothing but zeros lies behind *position*: room, or what a power cut left of a write."""
    while position < size:
        block = files.pread(segment.descriptor(), min(SCAN_BLOCK_BYTES, size - position), position)
        if block.strip(b"\0"):
            return False
        position += len(block) or size  # the file ends before *size*
    return True


def _cut_file(files: Files, segment: SegmentFiles, position: int, defect: BatchDefect) -> Cut:
    """Cut a log file at *position*; the bytes behind it go to a side file first."""
    size = segment.log_bytes()
    side_path = _free_side_path(files, f"{segment.log_path}.cut-{position}")
    files.replace_file(side_path, files.pread(segment.descriptor(), size - position, position))
    files.truncate(segment.descriptor(), position)
    return Cut(segment.log_path, position, size - position, defect, side_path)


def _drop_segment(log: PartitionLog, base_offset: int) -> Cut:
    segment = log.segment(base_offset)
    try:
        size = segment.log_bytes()
        side_path = set_aside(log.files, segment, "cut")
    finally:
        segment.close()
    return Cut(segment.log_path, 0, size, BatchDefect.BAD_OFFSET, side_path)


def set_aside(files: Files, segment: SegmentFiles, why: str) -> str:
    """Move a whole log file to a side file and remove its indexes; the side file's path."""
    side_path = _free_side_path(files, f"{segment.log_path}.{why}-0")
    files.rename(segment.log_path, side_path)
    _remove_segment(files, segment)
    return side_path


def _remove_segment(files: Files, segment: SegmentFiles) -> None:
    segment.close()
    for suffix in SEGMENT_SUFFIXES:
        if files.exists(segment.path(suffix)):
            files.unlink(segment.path(suffix))


def _free_side_path(files: Files, path: str) -> str:
    candidate, number = path, 1
    while files.exists(candidate):
        candidate, number = f"{path}.{number}", number + 1
    return candidate


def sweep_leftovers(files: Files, directory: str) -> None:
    """Finish or remove what a dead process left half-done in a partition folder."""
    finish_replacements(files, directory)
    for name in files.listdir(directory):
        if name.endswith(TEMPORARY_SUFFIX):
            files.unlink(f"{directory}/{name}")


# Rebuilding -------------------------------------------------------------------------------------------


class _EndBuilder:
    """Folds scanned batches into a LogEnd and the index entries of the segment being scanned."""

    def __init__(
        self, end: LogEnd, index_interval_bytes: int, *, now_ms: int, recovery_point: int = 0
    ) -> None:
        self._end = end
        self._recovery_point = recovery_point
        self._interval_bytes = index_interval_bytes
        self._offsets = bytearray()
        self._times = bytearray()
        self._now_ms = now_ms

    @property
    def log_end_offset(self) -> int:
        return self._end.log_end_offset

    def begin_segment(self, files: Files, segment: SegmentFiles) -> int:
        """Start on a segment; the position to scan from.

        Index entries below the recovery point were synced with it and are kept when they are well-formed,
        so that a scan does not begin at the start of a large segment.
        """
        self._offsets.clear()
        self._times.clear()
        base = segment.base_offset
        self._end = self._end._replace(
            log_end_offset=base,
            active_base_offset=base,
            active_bytes=0,
            indexed_bytes=0,
            indexed_timestamp_ms=-1,
            max_timestamp_ms=-1,
            max_timestamp_offset=-1,
        )
        if self._recovery_point <= base:
            return 0
        return self._resume(files, segment)

    def _resume(self, files: Files, segment: SegmentFiles) -> int:
        base, size = segment.base_offset, segment.log_bytes()
        offsets = files.pread(segment.descriptor(OFFSET_INDEX_SUFFIX), 1 << 31, 0)
        times = files.pread(segment.descriptor(TIME_INDEX_SUFFIX), 1 << 31, 0)
        room = self._recovery_point - base
        kept = [entry for entry in offset_index.parse(offsets) if entry.relative_offset < room]
        kept_times = [entry for entry in time_index.parse(times) if entry.relative_offset < room]
        encoded = b"".join(offset_index.encode_entry(*entry) for entry in kept)
        encoded_times = b"".join(time_index.encode_entry(*entry) for entry in kept_times)
        if (
            not kept
            or offset_index.check(encoded, end_relative_offset=room, end_position=size) is not None
            or time_index.check(encoded_times, end_relative_offset=room) is not None
        ):
            return 0
        position = kept[-1].position
        header = _sound_header_at(files, segment, position)
        if header is None or header.last_offset - base != kept[-1].relative_offset:
            return 0
        self._offsets += encoded[: -offset_index.ENTRY_BYTES]
        kept_times = [entry for entry in kept_times if entry.relative_offset < header.base_offset - base]
        self._times += b"".join(time_index.encode_entry(*entry) for entry in kept_times)
        newest = kept_times[-1] if kept_times else time_index.TimeIndexEntry(-1, -1)
        self._end = self._end._replace(
            log_end_offset=header.base_offset,
            active_bytes=position,
            indexed_bytes=kept[-2].position if len(kept) > 1 else 0,
            indexed_timestamp_ms=newest.timestamp_ms,
            max_timestamp_ms=newest.timestamp_ms,
            max_timestamp_offset=base + newest.relative_offset if kept_times else -1,
        )
        return position

    def add(self, position: int, header: BatchHeader) -> None:
        """Take in the batch at *position*, which follows the one before."""
        end = self._end
        grows = header.max_timestamp_ms > end.max_timestamp_ms
        self._end = end = end._replace(
            log_end_offset=header.next_offset,
            active_bytes=position + header.size_bytes,
            max_timestamp_ms=header.max_timestamp_ms if grows else end.max_timestamp_ms,
            max_timestamp_offset=header.last_offset if grows else end.max_timestamp_offset,
            active_created_ms=max(end.active_created_ms, self._now_ms),
        )
        if position - end.indexed_bytes > self._interval_bytes:
            relative_offset = header.last_offset - end.active_base_offset
            self._offsets += offset_index.encode_entry(relative_offset, position)
            self._end = end._replace(indexed_bytes=position)
            self._index_time()

    def _index_time(self) -> None:
        end = self._end
        if end.max_timestamp_ms > end.indexed_timestamp_ms:
            self._times += time_index.encode_entry(
                end.max_timestamp_ms, end.max_timestamp_offset - end.active_base_offset
            )
            self._end = end._replace(indexed_timestamp_ms=end.max_timestamp_ms)

    def skip_to(self, offset: int, position: int) -> None:
        """Leave out a damaged stretch that ends at *offset* and *position*."""
        self._end = self._end._replace(log_end_offset=offset, active_bytes=position)

    def write_indexes(self, segment: SegmentFiles, *, keep: LogEnd | None) -> None:
        """Write what was gathered: behind the entries that *keep* counts, or as the whole files."""
        offsets_at = keep.offset_index_bytes if keep is not None else 0
        times_at = keep.time_index_bytes if keep is not None else 0
        if keep is None:
            self._index_time()
        segment.write_offset_index(bytes(self._offsets), offsets_at)
        segment.write_time_index(bytes(self._times), times_at)
        self._end = self._end._replace(
            offset_index_bytes=offsets_at + len(self._offsets), time_index_bytes=times_at + len(self._times)
        )
        segment.truncate(
            log_bytes=segment.log_bytes(),
            offset_index_bytes=self._end.offset_index_bytes,
            time_index_bytes=self._end.time_index_bytes,
        )

    def end(self) -> LogEnd:
        return self._end


def _sound_header_at(files: Files, segment: SegmentFiles, position: int) -> BatchHeader | None:
    try:
        return read_header(files.pread(segment.descriptor(), HEADER_BYTES, position))
    except CorruptBatchError:
        return None
