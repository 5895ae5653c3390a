"""A cursor over one partition: whole, checked batches below the high watermark, without a lock.

Each read takes the bounds from the view (one LMDB read), then file bytes. The rules, in order:

    the wanted offset is                            the read
    below the log start offset, above the log end   raises OffsetOutOfRangeError
    at or above the high watermark                  returns [] (nothing yet)
    in a sound batch                                returns it and what follows, up to max_bytes
    in a damaged batch                              raises CorruptionError with the range to skip

With ``READ_COMMITTED`` the last stable offset takes the high watermark's place, and batches of aborted
transactions are left out (``aborted_lookup``). Markers are returned like other batches.

A segment may be deleted or replaced by compaction at any time. An open descriptor goes on reading the
old file, which is whole; a file that is gone by the time it is opened leads back to rule one with
fresh bounds. So a reader gets records or a clean error, never garbage.
"""

from __future__ import annotations

import bisect

from .aborted_index import by_producer, is_aborted
from .aborted_lookup import AbortedLookup
from .errors import BatchDefect, CorruptBatchError, CorruptionError, OffsetOutOfRangeError
from .local_log import LocalLog
from .log_offsets import Isolation
from .record_batch import HEADER_BYTES, StoredBatch, read_batch, read_header
from .segment import (
    Located,
    locate,
    next_sound_batch,
)
from .segment_files import OFFSET_INDEX_SUFFIX
from .segment_list import SegmentList, list_of, look
from .view import PartitionState

DEFAULT_READ_BYTES = 1 << 20
LARGE_BATCH_BYTES = 16 << 10
NO_SEGMENTS = SegmentList([], [])


class LogReader:
    """One reader's place in a partition. Not thread-safe: one reader a thread.

    One that is dropped without ``close`` gives its descriptor back, as a file does.
    """

    def __init__(self, log: LocalLog, offset: int, isolation: Isolation = Isolation.READ_UNCOMMITTED) -> None:
        self._log = log
        self._committed_only = isolation is Isolation.READ_COMMITTED
        self._aborted = AbortedLookup(log)
        self.position = offset  # the next offset to read
        self._version = -1  # LogEnd.segments_version of what follows
        self._segments = NO_SEGMENTS
        self._base = -1  # the open segment's base offset, -1 without one
        self._fd = -1
        self._keeps_open = True  # False: too many readers are open, so close after each read
        self._file_position = -1  # where the batch that holds self.position begins, -1 unknown
        self._due_offset = -1  # the base offset that this batch must have
        self._batch_bytes = 0  # the size of a batch, on the average of the last read

    def seek(self, offset: int) -> None:
        """Read on from *offset*; whether it can be read shows at the next read."""
        if offset != self.position:
            self.position = offset
            self._file_position = -1

    def close(self) -> None:
        fd = self._fd
        self._fd = self._base = self._file_position = -1
        if fd >= 0:  # forgotten before it is closed: an interrupt in between must not have it done again
            self._log.descriptors.reader_closes(fd)
            self._log.files.close(fd)

    def __del__(self) -> None:
        self.close()

    def is_at_hand(self, max_bytes: int) -> bool:
        """Whether reading so much will probably neither wait for the disk nor take longer than copying it.

        So it is where the file is open, its bytes are cached, and batches are large.
        """
        return (
            self._file_position >= 0
            and self._batch_bytes >= LARGE_BATCH_BYTES
            and self._log.files.is_cached(self._fd, self._file_position, max_bytes)
        )

    def read(self, max_bytes: int = DEFAULT_READ_BYTES) -> list[StoredBatch]:
        """Batches from the one that holds ``position`` on, and move ``position`` behind them.

        At least one whole batch, however large, else as many as fit in *max_bytes*; [] when nothing is
        visible yet. The first batch may begin before the wanted offset.

        Raises:
            OffsetOutOfRangeError: the offset was deleted, or lies above the log's end.
            CorruptionError: the bytes there are damaged.
            TopicNotFoundError: the topic was deleted.
        """
        missed: tuple[int, list[int]] | None = None
        while True:
            state = self._log.state()
            visible_end = state.last_stable_offset if self._committed_only else state.high_watermark
            if self.position >= visible_end:
                check_bounds(self._log, self.position, state)
                return []
            if self.position < state.end.log_start_offset:
                check_bounds(self._log, self.position, state)
            wanted = self.position
            try:
                batches = self._read_visible(state, visible_end, max_bytes)
                if self._committed_only and any(batch.header.is_transactional for batch in batches):
                    batches = self._without_aborted(batches, state)
            except FileNotFoundError as error:
                # Removed between the view's answer and our open, or look-up: ask the view again.
                self._forget()
                self.position = wanted
                known = (state.end.segments_version, self._segments.bases)
                if missed == known:
                    raise self._missing(state) from error
                missed = known
                continue
            except CorruptionError:
                if not self._is_stale(state):
                    raise
                self._forget()  # truncated under our hands: what we read may be what was cut
                continue
            finally:
                if not self._keeps_open:
                    self.close()
            if batches:
                return batches

    def read_below(self, end_offset: int, max_bytes: int) -> list[StoredBatch]:
        """As ``read``, those batches that begin below *end_offset*; ``position`` stays before the others.

        Raises:
            as ``read``.
        """
        wanted = self.position
        batches = self.read(max_bytes)
        below = [batch for batch in batches if batch.header.base_offset < end_offset]
        if len(below) < len(batches):
            self.seek(below[-1].header.next_offset if below else wanted)
        return below

    def read_bytes_below(self, end_offset: int, max_bytes: int) -> memoryview:
        """As ``read_below``, the batches as they are stored, one behind the other, without a copy.

        Raises:
            as ``read``.
        """
        below = self.read_below(end_offset, max_bytes)
        if not below:
            return memoryview(b"")
        # They were cut out of one buffer, from its start on: see _whole_batches.
        size_bytes = sum(batch.header.size_bytes for batch in below)
        return memoryview(below[0].data.obj)[:size_bytes]

    def _without_aborted(self, batches: list[StoredBatch], state: PartitionState) -> list[StoredBatch]:
        begin = batches[0].header.base_offset
        found = self._aborted.between(state.end, self._segments, begin, self.position)
        aborted = by_producer(found)
        if not aborted:
            return batches
        return [batch for batch in batches if not is_aborted(batch.header, aborted)]

    def _is_stale(self, state: PartitionState) -> bool:
        now = self._log.state()
        return (
            now.end.segments_version != state.end.segments_version
            or now.high_watermark < state.high_watermark
        )

    def _forget(self) -> None:
        self.close()
        self._version = -1

    def _read_visible(self, state: PartitionState, visible_end: int, max_bytes: int) -> list[StoredBatch]:
        self._open_segment(state)
        if self._file_position < 0:
            self._file_position, self._due_offset = self._locate(state)
        data = self._log.files.pread(self._fd, max(max_bytes, HEADER_BYTES), self._file_position)
        batches = self._whole_batches(data, visible_end)
        if batches:
            return batches
        return self._read_hard(state, data, visible_end)

    def _open_segment(self, state: PartitionState) -> None:
        """Have the segment that holds ``position`` open."""
        if self._version != state.end.segments_version:
            self._segments = list_of(self._log, state.end)
            self._version = state.end.segments_version
            self.close()
        bases = self._segments.bases
        index = bisect.bisect_right(bases, self.position) - 1
        if index < 0:
            raise FileNotFoundError(f"no segment of {self._log.directory} holds offset {self.position}")
        base = bases[index]
        if base != self._base:
            self.close()
            self._fd = self._log.files.open(self._log.segment(base).log_path, readonly=True)
            self._keeps_open = self._log.descriptors.reader_opened(self._fd)
            self._base = base

    def _locate(self, state: PartitionState) -> Located:
        if self.position == self._base:
            return Located(0, self._base)  # as a reader comes to most segments: no index need be read
        index = self._index_bytes(state)
        end_position = self._segment_bytes(state)
        return locate(self._log.files, self._fd, index, self._base, self.position, end_position)

    def _index_bytes(self, state: PartitionState) -> bytes:
        used = state.end.offset_index_bytes if self._base == state.end.active_base_offset else None
        return self._log.index(self._base, OFFSET_INDEX_SUFFIX, used)

    def _segment_bytes(self, state: PartitionState) -> int:
        if self._base == state.end.active_base_offset:
            return state.end.active_bytes
        return self._log.files.size(self._fd)

    def _whole_batches(self, data: bytes, visible_end: int) -> list[StoredBatch]:
        """The sound batches at the start of *data*; stops at damage, at the end, at *visible_end*."""
        batches: list[StoredBatch] = []
        position, size, due_offset = 0, len(data), self._due_offset
        view = memoryview(data)
        while position + HEADER_BYTES <= size and due_offset < visible_end:
            try:
                batch = read_batch(view, position)
            except CorruptBatchError:
                break
            header = batch.header
            if header.base_offset != due_offset or header.partition_leader_epoch:
                break  # batches tile the offset space: each begins where the one before ended
            batches.append(batch)
            due_offset = header.next_offset
            position += header.size_bytes
        if batches:
            self.position = self._due_offset = due_offset
            self._file_position += position
            self._batch_bytes = position // len(batches)
        return batches

    # The rare cases: a batch larger than the read, the end of a segment, damage -----------------------

    def _read_hard(self, state: PartitionState, data: bytes, visible_end: int) -> list[StoredBatch]:
        segment_bytes = self._segment_bytes(state)
        if self._file_position >= segment_bytes and self._base != state.end.active_base_offset:
            return self._next_segment(state)
        try:
            header = read_header(data)
        except CorruptBatchError as error:
            raise self._corruption(state, error.defect) from error
        if header.base_offset != self._due_offset:
            raise self._corruption(state, BatchDefect.BAD_OFFSET)
        if header.partition_leader_epoch:
            raise self._corruption(state, BatchDefect.BAD_EPOCH)
        if self._file_position + header.size_bytes > segment_bytes:
            raise self._corruption(state, BatchDefect.TRUNCATED)
        if header.size_bytes <= len(data):
            raise self._corruption(state, BatchDefect.BAD_CRC)
        whole = self._log.files.pread(self._fd, header.size_bytes, self._file_position)
        batches = self._whole_batches(whole, visible_end)
        if not batches:
            raise self._corruption(state, BatchDefect.BAD_CRC)
        return batches

    def _next_segment(self, state: PartitionState) -> list[StoredBatch]:
        """Go on in the segment behind; offsets missing between the two are damage."""
        bases = self._segments.bases
        behind = bisect.bisect_right(bases, self._base)
        if behind >= len(bases):
            raise FileNotFoundError(f"no segment of {self._log.directory} follows {self._base}")
        if bases[behind] > self.position:
            raise self._corruption(state, BatchDefect.TRUNCATED)
        self.close()
        return []

    def _corruption(self, state: PartitionState, defect: BatchDefect) -> CorruptionError:
        """The damage at the reader's place, with the first offset behind it that can be read again."""
        path = self._log.segment(self._base).log_path
        return CorruptionError(
            self._log.topic,
            self._log.partition,
            start_offset=self._due_offset,
            end_offset=self._next_sound_offset(state),
            path=path,
            position=self._file_position,
            reason=defect.value,
        )

    def _missing(self, state: PartitionState) -> CorruptionError:
        """The segment that holds ``position`` is not there, and nobody has removed it on purpose."""
        bases = look(self._log, lambda _, segments: segments.bases)
        behind = [base for base in bases if base > self.position]
        return CorruptionError(
            self._log.topic,
            self._log.partition,
            start_offset=self.position,
            end_offset=min(behind, default=state.high_watermark),
            path=self._log.directory,
            position=0,
            reason="the segment's file is missing",
        )

    def _next_sound_offset(self, state: PartitionState) -> int:
        end_position = self._segment_bytes(state)
        found = next_sound_batch(
            self._log.files,
            self._fd,
            self._file_position,
            end_position=end_position,
            min_offset=self.position + 1,
        )
        if found is not None:
            return found.base_offset
        bases = self._segments.bases
        behind = bisect.bisect_right(bases, self._base)
        return bases[behind] if behind < len(bases) else state.high_watermark


def check_bounds(log: LocalLog, offset: int, state: PartitionState) -> None:
    """Whether *offset* is one that a reader may stand at.

    Raises:
        OffsetOutOfRangeError: it was deleted, or lies above the log's end.
    """
    end = state.end
    if not end.log_start_offset <= offset <= end.log_end_offset:
        raise OffsetOutOfRangeError(
            log.topic,
            log.partition,
            offset=offset,
            start_offset=end.log_start_offset,
            end_offset=state.high_watermark,
        )
