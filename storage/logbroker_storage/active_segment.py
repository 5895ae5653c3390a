"""The files of the active segment: what an append writes into them, and takes back when a write fails.

    batch              at LogEnd's position, in one write; with durability fsync into room, which is made behind a
                       batch of less than 64 KiB where there is none (``segment_files``)
    offset index       an entry for a batch that starts more than index.interval.bytes behind the last such
    time index         an entry along with it if the largest timestamp has grown, and one when the segment is left
    aborted index      an entry for each marker that aborts

Every method takes the LogEnd to write behind and returns the one that says what was written. Nothing is
published here: bytes behind the published LogEnd are not in the log.

Invariants: the append lock is held; the bytes that a LogEnd counts are never written again; a write that fails
leaves nothing behind LogEnd that counts as a batch, or ``StorageFailedError`` says that it may.
"""

from __future__ import annotations

import logging

from . import aborted_index, offset_index, time_index
from .aborted_index import AbortedTransaction
from .batch_header import BatchHeader
from .errors import StorageFailedError, reason_of
from .local_log import LocalLog
from .log_config import Durability
from .log_growth import behind_batch
from .log_sync import LogSync
from .segment_files import ROOM_BYTES, SegmentFiles
from .view import LogEnd

logger = logging.getLogger("logbroker.storage")


class ActiveSegment:
    """Writes to one partition; every field is guarded by its ``append_lock``."""

    def __init__(self, log: LocalLog, syncing: LogSync) -> None:
        self._log = log
        self._syncing = syncing
        self._files: SegmentFiles | None = None
        self._version = -1  # LogEnd.segments_version that they belong to

    @property
    def is_open(self) -> bool:
        """Whether the log's end was looked at since the descriptors were closed."""
        return self._files is not None

    def files(self, end: LogEnd) -> SegmentFiles:
        """The active segment's files.

        They are opened anew whenever the list of segments changed, because another process may have
        removed and created a file of the same name.
        """
        if self._files is None or self._version != end.segments_version:
            self.go_on_in(self._log.segment(end.active_base_offset), end)
        self._log.used = True
        assert self._files is not None
        return self._files

    def go_on_in(self, files: SegmentFiles, end: LogEnd) -> None:
        """Take *files* for those of the active segment of *end*; the ones before are closed."""
        self.close()
        self._files = files
        self._version = end.segments_version

    def close(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            files.close()

    def write(self, end: LogEnd, batch: bytearray, header: BatchHeader) -> LogEnd:
        """Write *batch* behind *end*, and the index entries that it makes due.

        Raises:
            OSError: it could not be written, and was taken back.
            StorageFailedError: it could not be taken back.
        """
        config = self._log.config
        files = self.files(end)
        position = end.active_bytes
        is_synced = config.durability is Durability.FSYNC
        try:
            files.write_log(batch, position)
            if is_synced:
                files.start_writeback(position, header.size_bytes)
            created_ms = end.active_created_ms if end.active_created_ms >= 0 else self._log.clock.now_ms()
            behind = behind_batch(end, header, created_ms=created_ms, visible_at_once=not is_synced)
            if position - end.indexed_bytes > config.index_interval_bytes:
                behind = self._write_index_entries(files, behind, position)
            if is_synced and header.size_bytes < ROOM_BYTES:  # last, so that it takes no space that they need
                files.make_room(position + header.size_bytes, config.segment_bytes)
        except OSError as error:
            self.take_back(end, error)
            raise
        return behind

    def _write_index_entries(self, files: SegmentFiles, end: LogEnd, position: int) -> LogEnd:
        """Index entries for the batch that starts at *position* and ends the log."""
        relative_offset = end.log_end_offset - 1 - end.active_base_offset
        files.write_offset_index(offset_index.encode_entry(relative_offset, position), end.offset_index_bytes)
        end = end._replace(
            indexed_bytes=position, offset_index_bytes=end.offset_index_bytes + offset_index.ENTRY_BYTES
        )
        return self.seal(end)

    def seal(self, end: LogEnd) -> LogEnd:
        """Write the time index's last entry, as a segment has when it is rolled or closed."""
        if end.max_timestamp_ms <= end.indexed_timestamp_ms:
            return end
        entry = time_index.encode_entry(
            end.max_timestamp_ms, end.max_timestamp_offset - end.active_base_offset
        )
        self.files(end).write_time_index(entry, end.time_index_bytes)
        return end._replace(
            time_index_bytes=end.time_index_bytes + len(entry), indexed_timestamp_ms=end.max_timestamp_ms
        )

    def write_aborted_entry(self, end: LogEnd, aborted: AbortedTransaction) -> LogEnd:
        """Write the aborted index's entry for the marker that *end* is behind.

        Raises:
            OSError: it could not be written; the marker is to be taken back.
            StorageFailedError: it could not be synced, and the partition takes no more writes.
        """
        self.append_to_aborted_index(end, aborted_index.encode_entry(aborted))
        return end._replace(aborted_index_bytes=end.aborted_index_bytes + aborted_index.ENTRY_BYTES)

    def append_to_aborted_index(self, end: LogEnd, entries: bytes) -> None:
        """Write *entries* behind those that *end* counts, durably.

        Raises:
            as ``write_aborted_entry``.
        """
        files = self.files(end)
        files.write_aborted_index(entries, end.aborted_index_bytes)
        try:
            files.sync_aborted_index(is_new=not end.aborted_index_bytes)
        except OSError as error:
            raise self._syncing.refused(error) from error

    def take_back(self, end: LogEnd, cause: Exception) -> None:
        """Cut what a failed write, or one that could not be published, left behind *end*.

        Raises:
            StorageFailedError: it is still there.
        """
        files = self.files(end)
        try:
            files.cut_log(end.active_bytes)
        except OSError:
            # The next append adopts the batch if it is whole, and else cuts it.
            reason = reason_of(cause) if isinstance(cause, OSError) else cause
            raise StorageFailedError(
                f"a write to {self._log.topic}-{self._log.partition} failed ({reason}) and could not be taken back: "
                "whether the records are in the log shows with the next append"
            ) from cause
        try:
            files.cut_indexes(
                offset_index_bytes=end.offset_index_bytes, time_index_bytes=end.time_index_bytes
            )
            files.cut_aborted_index(end.aborted_index_bytes)
        except OSError as error:  # what lies behind the end of an index is not looked at
            logger.debug("%s: an index stays too long: %s", files.log_path, error)
