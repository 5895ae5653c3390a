"""A partition's log as everything that works on it sees it: what it is called, and where its bytes and rows are.

    what                      where
    segments and snapshots    files in its folder
    ends, producers           rows of the view, by its key
    append lock, sync lock    files in ``view/``, for every process

Readers, recovery, retention and compaction need no more than this. What adds to it is ``PartitionLog``, which is one.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .clock import Clock
from .descriptors import Descriptors
from .errors import TopicNotFoundError
from .files import Files
from .index_files import read_index_file
from .locks import ProcessLock
from .log_config import LogConfig, TimestampType
from .log_offsets import LogOffsets
from .message_ids import IdentifiedRecord
from .producer_state import NO_TRANSACTION, ProducerEntry
from .record_batch import BatchHeader
from .segment_files import SegmentFiles, list_segments
from .touching import signal_paths
from .view import LogEnd, PartitionState, View, partition_key
from .view.message_ids import NO_PRODUCER, IdUpdate, id_update

if TYPE_CHECKING:
    from .view.environment import Transaction


class LogPlace(NamedTuple):
    """What a log is called, and where it is."""

    topic: str
    partition: int
    topic_id: bytes
    directory: str
    """Holds the segments."""
    lock_path: str
    """``.append`` and ``.sync`` are added to it."""


class Shared(NamedTuple):
    """What all logs of a data directory have in common."""

    view: View
    files: Files
    clock: Clock
    descriptors: Descriptors


class LocalLog:
    """The log of one partition, before anything is done with it. Safe across threads and processes."""

    def __init__(self, place: LogPlace, config: LogConfig, shared: Shared) -> None:
        self.topic = place.topic
        self.partition = place.partition
        self.topic_id = place.topic_id
        self.key = partition_key(place.topic_id, place.partition)
        self.directory = place.directory
        self.config = config
        self.view, self.files, self.clock, self.descriptors = shared
        append_path, sync_path = self._signal_paths = signal_paths(place.lock_path)
        self.append_lock = ProcessLock(self.files, append_path, opened=self._opened)
        self.sync_lock = ProcessLock(self.files, sync_path, opened=self._opened)
        self.used = False  # since the last look of descriptors; written by any user, no guard needed
        # Monotonic time of this process's first append since its last sync.
        self.dirty_since: float | None = None

    def _opened(self) -> None:
        """A lock, with which every use begins, has opened its file."""

    # Its rows -------------------------------------------------------------------------------------

    def state(self, transaction: Transaction | None = None) -> PartitionState:
        """The partition's two values in the view, as of one moment: now, or as *transaction* sees it.

        Raises:
            TopicNotFoundError: the topic was deleted.
        """
        rows = self.view.partitions
        state = rows.state(self.key) if transaction is None else rows.state_in(transaction, self.key)
        if state is None:
            raise TopicNotFoundError(self.topic, partition=self.partition)
        return state

    def offsets(self) -> LogOffsets:
        end, sync = state = self.state()
        high_watermark = state.high_watermark
        return LogOffsets(
            log_start_offset=end.log_start_offset,
            high_watermark=high_watermark,
            last_stable_offset=state.last_stable_offset,
            log_end_offset=end.log_end_offset,
            synced_offset=sync.synced_offset,
        )

    def publish_end(
        self,
        end: LogEnd,
        producer_id: int = -1,
        entry: ProducerEntry | None = None,
        closed_offset: int = NO_TRANSACTION,
        ids: IdUpdate | None = None,
    ) -> None:
        """Put LogEnd into the view, and what else an append changes there. Under the append lock.

        Raises:
            TopicNotFoundError: the topic was deleted.
        """
        if not self.view.partitions.publish_append(self.key, end, producer_id, entry, closed_offset, ids):
            raise TopicNotFoundError(self.topic, partition=self.partition)

    def id_update(
        self, header: BatchHeader, records: Sequence[IdentifiedRecord], base_offset: int
    ) -> IdUpdate | None:
        """What the ids of a batch, whose offsets are relative to *base_offset*, put into the view."""
        if self.config.message_timestamp_type is TimestampType.LOG_APPEND_TIME:
            records = [record._replace(timestamp_ms=header.max_timestamp_ms) for record in records]
        return id_update(
            self.topic_id,
            self.partition,
            records,
            base_offset=base_offset,
            producer_id=header.producer_id if header.is_transactional else NO_PRODUCER,
            window_ms=self.config.deduplication_window_ms,
            now_ms=self.clock.now_ms(),
        )

    # Its files ------------------------------------------------------------------------------------

    def segment(self, base_offset: int) -> SegmentFiles:
        return SegmentFiles(self.files, self.directory, base_offset)

    def segments(self, end: LogEnd) -> list[int]:
        """The base offsets of the segments, ascending; the last is the active one of *end*.

        A file above that is what a process left that died while it rolled. For who holds the append lock; others
        may miss one that is being replaced (see ``segment_list``).
        """
        bases = list_segments(self.files, self.directory)
        return bases[: bisect.bisect_right(bases, end.active_base_offset)]

    def segment_bytes(self, base_offset: int) -> int:
        """The bytes of one segment's log file; 0 when it is not there."""
        segment = self.segment(base_offset)
        try:
            return segment.log_bytes()
        finally:
            segment.close()

    def index(self, base_offset: int, suffix: str, size_bytes: int | None) -> bytes:
        """An index's content: *size_bytes* of it (the active segment's), or all; b"" when it is missing or damaged.

        An index is a cache: without it a scan begins at the segment's start.
        """
        is_sealed = size_bytes is None
        content = read_index_file(self.files, self.directory, base_offset, suffix, is_sealed=is_sealed)
        return (content or b"")[:size_bytes]

    def signal_paths(self) -> tuple[str, str]:
        """The files whose touch says that records became visible; they exist when this returns."""
        self.append_lock.ensure_file()
        self.sync_lock.ensure_file()
        return self._signal_paths
