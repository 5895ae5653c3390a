"""What the view knows of one partition, as two values with two writers.

    value      guard            written                    fields
    LogEnd     the append lock  with every append          where the log ends, and its active segment
    SyncPoint  the sync lock    after every disk sync      what is on the disk, and whether a sync failed

Two values, because an append and a disk sync of the same partition run at the same time and neither
may overwrite what the other says. Both are read in one LMDB transaction.

    LogEnd, 16 int64 big-endian                    SyncPoint, 3 int64 big-endian
     0  log_start_offset                            0  synced_offset      below it all is on the disk
     8  log_end_offset                              8  synced_segment     base of the newest segment
    16  visible_offset  (see high_watermark)           whose directory entry is on the disk
    24  active_base_offset                         16  failed             1: a sync failed, take no writes
    32  active_bytes    (length of its .log)
    40  indexed_bytes   (log position of the last index entry)
    48  offset_index_bytes
    56  time_index_bytes
    64  indexed_timestamp_ms   (largest in the time index, -1 none)
    72  max_timestamp_ms       (of the active segment, -1 none)
    80  max_timestamp_offset   (last offset of the batch that holds it)
    88  active_created_ms      (wall clock of the first append to the segment)
    96  segments_version       (grows when the list of segments changes, or is about to)
   104  first_unstable_offset  (of the oldest open transaction, -1 none)
   112  aborted_index_bytes    (length of the active segment's .txnindex)
   120  cleanings              (see ``segment_list``)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

LOG_END = struct.Struct(">16q")
SYNC_POINT = struct.Struct(">3q")

_KEY = struct.Struct(">16si")
PARTITION_KEY_BYTES = _KEY.size
TOPIC_ID_BYTES = 16


def partition_key(topic_id: bytes, partition: int) -> bytes:
    """The key of a partition: 16 bytes of topic id, 4 of partition number. A recreated topic has another."""
    return _KEY.pack(topic_id, partition)


class LogEnd(NamedTuple):
    """Where the log of a partition starts and ends; guarded by its append lock."""

    log_start_offset: int
    log_end_offset: int
    visible_offset: int
    active_base_offset: int
    active_bytes: int
    indexed_bytes: int
    offset_index_bytes: int
    time_index_bytes: int
    indexed_timestamp_ms: int
    max_timestamp_ms: int
    max_timestamp_offset: int
    active_created_ms: int
    segments_version: int
    first_unstable_offset: int
    aborted_index_bytes: int
    cleanings: int

    def with_cleaning(self) -> LogEnd:
        """The same log, one cleaning more: nobody may go by a list of its segments from before."""
        return self._replace(segments_version=self.segments_version + 1, cleanings=self.cleanings + 1)


class SyncPoint(NamedTuple):
    """How much of a partition is on the disk; guarded by its sync lock."""

    synced_offset: int
    synced_segment: int
    failed: int


class PartitionState(NamedTuple):
    """Both values, as one reader saw them."""

    end: LogEnd
    sync: SyncPoint

    @property
    def high_watermark(self) -> int:
        """Readers stop here: what is synced, or what a topic with weaker durability has made visible.

        After a failed sync only what is synced counts, as the rest may be gone from the disk.
        """
        synced_offset = self.sync.synced_offset
        return synced_offset if self.sync.failed else max(self.end.visible_offset, synced_offset)

    @property
    def decided_offset(self) -> int:
        """Below it every transaction is decided.

        A marker counts as soon as it is in the log, because what it says was made to last before it.
        """
        first_unstable_offset = self.end.first_unstable_offset
        high_watermark = self.high_watermark
        return high_watermark if first_unstable_offset < 0 else min(first_unstable_offset, high_watermark)

    @property
    def last_stable_offset(self) -> int:
        """Read-committed readers stop here: it is never below the log's start.

        Records may be deleted of a transaction that is not decided yet.
        """
        return max(self.decided_offset, min(self.end.log_start_offset, self.high_watermark))


class OpenTransaction(NamedTuple):
    """A transaction without a marker in one partition, which *partition_key* names."""

    partition_key: bytes
    first_offset: int
    producer_id: int


def empty_log_end(base_offset: int = 0) -> LogEnd:
    """The state of a log that holds nothing and goes on at *base_offset*."""
    return LogEnd(
        log_start_offset=base_offset,
        log_end_offset=base_offset,
        visible_offset=base_offset,
        active_base_offset=base_offset,
        active_bytes=0,
        indexed_bytes=0,
        offset_index_bytes=0,
        time_index_bytes=0,
        indexed_timestamp_ms=-1,
        max_timestamp_ms=-1,
        max_timestamp_offset=-1,
        active_created_ms=-1,
        segments_version=0,
        first_unstable_offset=-1,
        aborted_index_bytes=0,
        cleanings=0,
    )
