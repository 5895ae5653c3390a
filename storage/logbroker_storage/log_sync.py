"""The disk side of one partition: group commit, and what a refused sync means.

Durability is a step of its own with a lock of its own, so that appends go on while the disk syncs: whoever gets
the sync lock syncs everything appended so far, and those who waited for the lock meanwhile find their batch
covered. That is the whole of group commit, across threads and processes.

A failed sync is never tried again (the kernel reports success the second time, the data being gone).
The partition is marked failed for every process; ``reopen_failed`` in recovery verifies it from the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import StorageFailedError, TopicNotFoundError, WriteFailedError, advice_on, reason_of
from .local_log import LocalLog
from .segment_files import LOG_SUFFIX, SYNCED_SUFFIXES, SegmentFiles
from .view import LogEnd, PartitionState, SyncPoint

if TYPE_CHECKING:
    from .view.environment import Transaction

    _Also = Callable[[Transaction], object]

logger = logging.getLogger("logbroker.storage")


class _SyncRefusedError(Exception):
    """The disk refused a sync: what was to be synced must be taken for lost."""


class LogSync:
    """Syncs one partition; every field is guarded by its ``sync_lock``."""

    def __init__(self, log: LocalLog) -> None:
        self._log = log
        self._fd = -1  # a descriptor of the active segment
        self._version = -1  # LogEnd.segments_version that it belongs to
        self._refusal: str | None = None  # of a sync, by the disk, where the view does not say so yet

    def sync(self, end_offset: int, also: _Also | None = None) -> int:
        """As ``PartitionLog.sync``."""
        try:
            return self._lead(end_offset, also)
        except OSError as error:  # no sync was tried: nothing is lost yet
            raise StorageFailedError(
                f"{self._log.topic}-{self._log.partition} could not be synced ({reason_of(error)}): whether the last "
                f"records are on the disk is unknown; {advice_on(error, again='sync again')}"
            ) from error

    def _lead(self, end_offset: int, also: _Also | None) -> int:
        log = self._log
        with log.sync_lock:
            state = log.state()
            if state.sync.failed:
                raise self._failed("an earlier sync failed")
            if self._refusal is not None:
                raise self._fail(self._refusal)
            if state.sync.synced_offset >= end_offset:
                return state.sync.synced_offset
            dirty_since = log.dirty_since
            try:
                if dirty_since is not None:
                    log.dirty_since = None  # before the state is read: an append behind it sets this again
                    state = log.state()
                self._sync_segments(state)
                synced_offset = state.end.log_end_offset
                self._publish(SyncPoint(synced_offset, state.end.active_base_offset, 0), also)
            except _SyncRefusedError as refused:
                raise self._fail(str(refused)) from refused.__cause__
            except BaseException:
                if dirty_since is not None:
                    log.dirty_since = dirty_since  # still owed, for as long as before
                raise
            log.sync_lock.signal()
        return synced_offset

    def refused(self, error: OSError) -> StorageFailedError:
        """A sync of another of the log's files has failed: no process writes to it any more. The error to raise.

        Not under the sync lock; under the append lock.
        """
        with self._log.sync_lock:
            return self._fail(reason_of(error))

    def _fail(self, reason: str) -> StorageFailedError:
        """Mark the partition as failed for every process; the error to raise. Under the sync lock."""
        self._refusal = reason  # where it cannot be published, whoever syncs next must not try that again
        try:
            self._publish(self._log.state().sync._replace(failed=1))
        except StorageFailedError as error:
            logger.error("%s; other processes are not told yet: %s", self._failed(reason), error.__cause__)
        else:
            self._refusal = None
        return self._failed(reason)

    def _publish(self, sync: SyncPoint, also: _Also | None = None) -> None:
        try:
            is_there = self._log.view.partitions.publish_sync(self._log.key, sync, also)
        except WriteFailedError as error:
            raise StorageFailedError(
                f"{self._log.topic}-{self._log.partition} was synced but that could not be published ({error}): "
                "the records are acknowledged by the next sync that can be"
            ) from error
        if not is_there:
            raise TopicNotFoundError(self._log.topic, partition=self._log.partition)  # deleted meanwhile

    def _sync_segments(self, state: PartitionState) -> None:
        """Sync what was written since the last sync. A segment sealed since then owes its indexes too."""
        end, sync = state
        if sync.synced_segment == end.active_base_offset:
            self._sync_file(self._descriptor(end))
            return
        for base in self._log.segments(end):  # one that is missed is being replaced, and that was synced
            if base >= sync.synced_segment:
                self._sync_segment(self._log.segment(base), is_sealed=base != end.active_base_offset)
        # Sync the files before their directory entries: a name that survives a crash must never point
        # at bytes that did not.
        try:
            self._log.files.fsync_directory(self._log.directory)
        except OSError as error:
            raise _SyncRefusedError(reason_of(error)) from error

    def _sync_segment(self, segment: SegmentFiles, *, is_sealed: bool) -> None:
        for suffix in SYNCED_SUFFIXES if is_sealed else (LOG_SUFFIX,):
            try:
                fd = self._log.files.open(segment.path(suffix))
            except FileNotFoundError:
                continue  # no transaction was aborted, or removed by retention or compaction meanwhile
            try:
                self._sync_file(fd)
            finally:
                self._log.files.close(fd)

    def _sync_file(self, fd: int) -> None:
        try:
            self._log.files.fdatasync(fd)
        except OSError as error:
            raise _SyncRefusedError(reason_of(error)) from error

    def _descriptor(self, end: LogEnd) -> int:
        """A descriptor of its own, because the append side closes its descriptor when it rolls."""
        if self._fd < 0 or self._version != end.segments_version:
            self.close_descriptor()
            self._fd = self._log.files.open(self._log.segment(end.active_base_offset).log_path)
            self._version = end.segments_version
        self._log.used = True
        return self._fd

    def _failed(self, reason: str) -> StorageFailedError:
        return StorageFailedError(
            f"disk sync of {self._log.topic}-{self._log.partition} failed ({reason}): whether the last records are on "
            "the disk is unknown. The partition takes no writes until the directory is opened again and verified"
        )

    def close_descriptor(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._log.files.close(fd)
