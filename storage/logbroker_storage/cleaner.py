"""The cleaner: takes out of every log what its topic's configuration no longer wants kept.

One process at a time (a lock that dies with its holder), every log in turn:

    1. finish what a cleaner that died had begun
    2. roll the active segment when all of it is due
    3. remove whole segments from the front (``retention`` decides, and says why)
    4. compact (``compaction`` decides), where cleanup.policy asks for it
    5. forget producers that have been silent for a day (``producer_expiry``)

Behind the last log come the chores of layers above.

What is due is decided by pure functions; this module gathers what they must know and does what they say.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import msgspec

from .aborted_index import by_producer
from .background import going_on
from .compaction import (
    CleanedPoint,
    CompactionRules,
    Fate,
    OffsetMap,
    cleaned_points_key,
    compact,
    compactable,
    due,
    grouped,
    map_offsets,
    remembered,
    tombstones_end,
)
from .deduplication import free_aborted
from .errors import CorruptBatchError
from .events import NamedProducerEvent
from .index_files import read_index_file
from .locks import ProcessLock
from .log_config import LogConfig, RetentionPolicy
from .partition_log import PartitionLog
from .producer_expiry import expire_producers
from .producer_recovery import aborted_index_of
from .record_batch import HEADER_BYTES, StoredBatch, read_batch, read_header
from .retention import RetentionPlan, SegmentInfo, plan
from .segment_files import ABORTED_INDEX_SUFFIX, list_segments, list_snapshots
from .segment_removal import delete_segments_below
from .segment_replacement import (
    begin_pass,
    discard_replacement,
    finish_replacements,
    is_unfinished,
    replace_segments,
    write_replacement,
)
from .snapshot_files import open_in_snapshots
from .view import LogEnd

if TYPE_CHECKING:
    from .data_directory import DataDirectory

logger = logging.getLogger("logbroker.cleaner")

OFFSET_MAP_BYTES = 64 << 20
READ_BYTES = 1 << 20

_POINTS = msgspec.msgpack.Decoder(list[CleanedPoint])


class Cleaner:
    """The cleaner of one process; ``run`` from any thread."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._lock = ProcessLock(directory.files, directory.layout.lock("cleaner"))
        # Of layers above: how far readers of a (topic, partition) are that are no consumer groups. Replaced whole.
        self.readers: dict[str, Callable[[str, int], Iterable[int]]] = {}
        self.chores: dict[str, Callable[[], object]] = {}  # of layers above, by name. Replaced whole

    def close(self) -> None:
        self._lock.close()

    def abandon(self) -> None:
        """In a forked child: drop our copy of the lock."""
        self._lock.abandon()

    def run(self) -> bool:
        """One pass over every log. False when another process (or thread) is cleaning now."""
        if not self._lock.try_acquire():
            return False
        try:
            self._finish_journal()
            named = self._named_producer_ids()
            for topic in self._directory.catalog.live():  # any of them may be deleted before its turn comes
                for number in range(topic.partitions):
                    self._clean_in_peace(topic.name, number, named)
            for name, chore in self.chores.items():
                with going_on(logger, f"{name} could not be cleaned"):
                    chore()
        finally:
            self._lock.release()
        return True

    def _finish_journal(self) -> None:
        """Have everything that was journaled without waiting for it on the disk: readers may be further than known."""
        with going_on(logger, "the journal could not be synced"):
            self._directory.journal.finish()

    def _clean_in_peace(self, topic: str, partition: int, named: set[int]) -> None:
        """Clean one log; what goes wrong there (a damaged or deleted topic) does not stop the others."""
        with going_on(logger, f"{topic}-{partition} could not be cleaned"):
            self._clean(self._directory.log(topic, partition), named)

    def _clean(self, log: PartitionLog, named: set[int]) -> None:
        if is_unfinished(log.files.listdir(log.directory)):
            with log.append_lock:  # whoever verifies a failed partition lists its files under it
                finish_replacements(log.files, log.directory)
        retention = self._plan(log)
        if retention.rolls_active:
            log.roll_now()
            retention = self._plan(log)
        self._remove(log, retention)
        if log.config.cleanup_policy.compacts:
            self._compact(log)
        expire_producers(log, named=named, now_ms=self._directory.clock.now_ms())

    # Retention ------------------------------------------------------------------------------------

    def _plan(self, log: PartitionLog) -> RetentionPlan:
        offsets = log.offsets()
        is_consumed = log.config.retention_policy is RetentionPolicy.CONSUMED
        consumed_offset = self._consumed_offset(log) if is_consumed else None
        decided = plan(
            segment_infos(log),
            config=_with_time_limit(log.config),
            now_ms=self._directory.clock.now_ms(),
            log_start_offset=offsets.log_start_offset,
            stable_offset=log.state().decided_offset,
            consumed_offset=consumed_offset,
        )
        everything_consumed = (
            consumed_offset is not None
            and consumed_offset >= offsets.log_end_offset
            and log.state().end.active_bytes > 0
        )
        return RetentionPlan(decided.removals, decided.rolls_active or everything_consumed)

    def _consumed_offset(self, log: PartitionLog) -> int | None:
        """The lowest offset that a group or other reader of the topic is at; None when nobody reads it."""
        groups = [event.group for event in self._directory.groups.all() if log.topic in event.topics]
        committed = [self._directory.groups.committed(group, log.topic, log.partition) for group in groups]
        offsets = [event.offset if event is not None else 0 for event in committed]
        for offsets_of in self.readers.values():
            offsets += offsets_of(log.topic, log.partition)
        return min(offsets, default=None)

    def _remove(self, log: PartitionLog, retention: RetentionPlan) -> None:
        if not retention.removals:
            return
        end_offset = retention.removals[-1].segment.next_offset
        free_aborted(log, end_offset)
        delete_segments_below(log, end_offset)
        for removal in retention.removals:
            logger.info(
                "%s-%d: removed offsets %d to %d (%d bytes): %s",
                log.topic,
                log.partition,
                removal.segment.base_offset,
                removal.segment.next_offset - 1,
                removal.segment.size_bytes,
                removal.reason.value,
            )

    # Compaction -----------------------------------------------------------------------------------

    def _compact(self, log: PartitionLog) -> None:
        now_ms = self._directory.clock.now_ms()
        config = log.config
        points = self._cleaned_points(log)
        cleaned_offset = max((point.offset for point in points), default=0)
        segments = compactable(
            segment_infos(log),
            stable_offset=log.state().decided_offset,
            now_ms=now_ms,
            min_compaction_lag_ms=config.min_compaction_lag_ms,
        )
        reason = due(
            segments,
            cleaned_offset=cleaned_offset,
            now_ms=now_ms,
            min_cleanable_dirty_ratio=config.min_cleanable_dirty_ratio,
            max_compaction_lag_ms=config.max_compaction_lag_ms,
        )
        if reason is None:
            return
        # What makes a record or a producer's batch dispensable comes behind it, and must be on the disk before it goes.
        producers = log.view.partitions.producers(log.key)
        log.sync()
        with log.append_lock:  # they are written, perhaps over others of the same name, under it
            snapshots = list_snapshots(log.files, log.directory)
        latest = OffsetMap(OFFSET_MAP_BYTES)
        sound = _sound_prefix(log, segments)
        all_batches = chain.from_iterable(segment_batches(log, segment.base_offset) for segment in sound)
        aborted = by_producer(log.aborted_transactions(0, segments[-1].next_offset))
        covered_offset = map_offsets(all_batches, latest, dirty_offset=cleaned_offset, aborted=aborted)
        rules = CompactionRules(
            latest=latest,
            covered_offset=covered_offset,
            now_ms=now_ms,
            ttl_ms=config.message_ttl_ms,
            tombstones_end=tombstones_end(
                points, now_ms=now_ms, delete_retention_ms=config.delete_retention_ms
            ),
            producer_last_offsets={
                producer_id: entry.last_offset for producer_id, entry in producers.items()
            },
            aborted=aborted,
            # What was removed of them before is gone for good by the time that a marker goes: a replacement's name
            # is synced with all others. None that is written from now on knows one of these transactions as open.
            snapshots_open=open_in_snapshots(log.files, log.directory, snapshots),
        )
        fates: Counter[Fate] = Counter()
        unfinished: set[int] = set()
        begin_pass(log)
        for group in grouped(sound, segment_bytes=config.segment_bytes):
            self._rewrite(log, group, rules, unfinished, fates)
        self._remember(log, [*points, CleanedPoint(covered_offset, now_ms)], now_ms)
        logger.info(
            "%s-%d: compacted up to offset %d (%s): %s",
            log.topic,
            log.partition,
            covered_offset,
            reason.value,
            ", ".join(f"{count} {fate.value}" for fate, count in fates.items()),
        )

    def _rewrite(
        self,
        log: PartitionLog,
        group: list[SegmentInfo],
        rules: CompactionRules,
        unfinished: set[int],
        fates: Counter[Fate],
    ) -> None:
        base = group[0].base_offset
        batches = chain.from_iterable(segment_batches(log, segment.base_offset) for segment in group)
        aborted_index = b"".join(_aborted_index(log, segment.base_offset) for segment in group)
        fates_here: Counter[Fate] = Counter()
        rewritten = write_replacement(
            log,
            base,
            compact(batches, rules, unfinished=unfinished, fates=fates_here),
            aborted_index=aborted_index,
        )
        fates.update(fates_here)
        # What is left may be as large as it was: compressed again without some of its records, say.
        is_same_size = len(group) == 1 and rewritten.size_bytes == group[0].size_bytes
        if is_same_size and not fates_here.keys() - {Fate.KEPT}:
            discard_replacement(log, base)
        else:
            replace_segments(log, [segment.base_offset for segment in group])

    def _cleaned_points(self, log: PartitionLog) -> list[CleanedPoint]:
        stored = log.view.meta_bytes(cleaned_points_key(log.key))
        return _POINTS.decode(stored) if stored is not None else []

    def _remember(self, log: PartitionLog, points: list[CleanedPoint], now_ms: int) -> None:
        kept = remembered(points, now_ms=now_ms, delete_retention_ms=log.config.delete_retention_ms)
        with log.view.write() as transaction:
            log.view.put_meta_bytes(transaction, cleaned_points_key(log.key), msgspec.msgpack.encode(kept))

    # Producers ------------------------------------------------------------------------------------

    def _named_producer_ids(self) -> set[int]:
        events = self._directory.view.events.all(NamedProducerEvent, NamedProducerEvent.ALL)
        return {producer_id for event in events for producer_id in event.producer_ids.values()}


def _with_time_limit(config: LogConfig) -> LogConfig:
    """With retention.policy=consumed a time limit applies only where retention.ms was set."""
    if config.retention_policy is RetentionPolicy.CONSUMED and "retention.ms" not in config.overrides:
        return dataclasses.replace(config, retention_ms=-1)
    return config


def segment_infos(log: PartitionLog) -> list[SegmentInfo]:
    """The segments of a log, oldest first, the active one last. For the cleaner: nobody else replaces them."""
    end = log.state().end
    bases = [base for base in list_segments(log.files, log.directory) if base <= end.active_base_offset]
    sealed = [_sealed_info(log, end, base, next_base) for base, next_base in pairwise(bases)]
    active = SegmentInfo(
        base_offset=end.active_base_offset,
        next_offset=end.log_end_offset,
        size_bytes=end.active_bytes,
        max_timestamp_ms=end.max_timestamp_ms,
        is_active=True,
    )
    return [*sealed, active]


def _sealed_info(log: PartitionLog, end: LogEnd, base_offset: int, next_offset: int) -> SegmentInfo:
    segment = log.segment(base_offset)
    try:
        return SegmentInfo(
            base_offset=base_offset,
            next_offset=next_offset,
            size_bytes=segment.log_bytes(),
            max_timestamp_ms=log.segment_times.largest_ms(end, base_offset, next_offset),
        )
    finally:
        segment.close()


def _aborted_index(log: PartitionLog, base_offset: int) -> bytes:
    content = read_index_file(log.files, log.directory, base_offset, ABORTED_INDEX_SUFFIX, is_sealed=True)
    if content is not None:
        return content
    return aborted_index_of(log, base_offset, list_segments(log.files, log.directory))


def segment_batches(log: PartitionLog, base_offset: int) -> Iterator[StoredBatch]:
    """Every batch of a sealed segment, checked.

    Raises:
        CorruptBatchError: the segment is damaged.
    """
    fd = log.files.open(log.segment(base_offset).log_path, readonly=True)
    try:
        size = log.files.size(fd)
        position = 0
        while position < size:
            data = log.files.pread(fd, READ_BYTES, position)
            header = read_header(data)
            if header.size_bytes > len(data):
                data = log.files.pread(fd, header.size_bytes, position)
            consumed = 0
            for batch in _whole_batches(data, at_end=position + len(data) >= size):
                consumed += batch.header.size_bytes
                yield batch
            position += consumed
    finally:
        log.files.close(fd)


def _whole_batches(data: bytes, *, at_end: bool) -> Iterator[StoredBatch]:
    """The batches in *data*; one that is cut off at its end is left for the next read, or an error there."""
    view = memoryview(data)
    position = 0
    while position < len(data):
        if not at_end and (
            position + HEADER_BYTES > len(data)
            or position + read_header(view, position).size_bytes > len(data)
        ):
            return
        batch = read_batch(view, position)
        yield batch
        position += batch.header.size_bytes


def _sound_prefix(log: PartitionLog, segments: list[SegmentInfo]) -> list[SegmentInfo]:
    """The segments before the first damaged one: a key's later record may hide in the damage."""
    sound: list[SegmentInfo] = []
    for segment in segments:
        try:
            expected = segment.base_offset
            for batch in segment_batches(log, segment.base_offset):
                if batch.header.base_offset != expected:
                    return sound
                expected = batch.header.next_offset
        except CorruptBatchError as error:
            logger.warning("%s-%d: compaction stops at damage: %s", log.topic, log.partition, error)
            return sound
        if expected != segment.next_offset:
            return sound
        sound.append(segment)
    return sound
