"""Stored batches for the wire: bytes of the log as they are, from any offset on.

the topic                                       what is passed on
has no records with a time to live              one piece: the segment file's bytes, checked as for every reader
has                                             a piece a batch: without what has expired, at the same offsets

The bytes are read and sent, and not handed from file to socket by ``sendfile``: over loopback that was
slower in all measurements but one, and damage would go out unnoticed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import NamedTuple

from logbroker_storage.compaction import with_records
from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.log_reader import LogReader
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import StoredBatch, decode_records
from logbroker_storage.record_expiry import is_expired

from .replies import Buffer

KEPT_READERS = 1000
IDLE_S = 60.0  # a reader that nobody came back to may hold a file that was deleted


class RawBatches(NamedTuple):
    """Whole batches, in pieces that follow each other."""

    pieces: list[Buffer]
    next_offset: int

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.pieces))


class ReaderPool:
    """Readers that stand where some client will probably read on. Safe across threads."""

    def __init__(self, kept: int = KEPT_READERS) -> None:
        self._kept = kept
        # By partition key and position, with the monotonic time of their last use, oldest first.
        self._readers: OrderedDict[tuple[bytes, int], tuple[LogReader, float]] = OrderedDict()
        self._lock = threading.Lock()  # guards _readers

    def is_at_hand(self, log: PartitionLog, offset: int, max_bytes: int) -> bool:
        """Whether ``read`` there will probably neither wait for the disk nor take long: see ``LogReader``."""
        with self._lock:  # whoever uses a reader has taken it out
            known = self._readers.get((log.key, offset))
            return known is not None and known[0].is_at_hand(max_bytes)

    def read(
        self, log: PartitionLog, offset: int, *, end_offset: int, max_bytes: int, expire_at_ms: int | None
    ) -> RawBatches:
        """The batches from the one that holds *offset* on that begin below *end_offset*.

        At least one, however large, else as many as fit in *max_bytes*; none where *offset* is the end. With
        *expire_at_ms*, a time in ms since 1970, without the records that have expired by then.

        Raises:
            OffsetOutOfRangeError, CorruptionError, TopicNotFoundError: as ``LogReader.read``.
        """
        with self._lock:
            known = self._readers.pop((log.key, offset), None)
        reader = log.reader(offset) if known is None else known[0]
        try:
            if expire_at_ms is None:
                pieces: list[Buffer] = [reader.read_bytes_below(end_offset, max_bytes)]
            else:
                ttl_ms = log.config.message_ttl_ms
                pieces = [
                    _without_expired(batch, ttl_ms=ttl_ms, now_ms=expire_at_ms)
                    for batch in reader.read_below(end_offset, max_bytes)
                ]
            found = RawBatches(pieces, reader.position)
        except BaseException:
            reader.close()
            raise
        self._keep(log, reader)
        return found

    def _keep(self, log: PartitionLog, reader: LogReader) -> None:
        unwanted = []
        with self._lock:
            replaced = self._readers.pop((log.key, reader.position), None)
            if replaced is not None:
                unwanted.append(replaced[0])
            self._readers[log.key, reader.position] = (reader, time.monotonic())
            if len(self._readers) > self._kept:
                unwanted.append(self._readers.popitem(last=False)[1][0])
        for other in unwanted:
            other.close()

    def close_idle(self) -> None:
        """Close those that nobody has used for ``IDLE_S``."""
        self._close_used_before(time.monotonic() - IDLE_S)

    def close(self) -> None:
        self._close_used_before(float("inf"))

    def _close_used_before(self, moment: float) -> None:
        unwanted = []
        with self._lock:
            while self._readers and next(iter(self._readers.values()))[1] < moment:
                unwanted.append(self._readers.popitem(last=False)[1][0])
        for reader in unwanted:
            reader.close()


def _without_expired(batch: StoredBatch, *, ttl_ms: int, now_ms: int) -> Buffer:
    if batch.header.is_control or not batch.header.record_count:
        return batch.data
    try:
        records = decode_records(batch)
    except CorruptBatchError:
        return batch.data  # as it is: the client finds out
    kept = [record for record in records if not is_expired(record, now_ms=now_ms, ttl_ms=ttl_ms)]
    return batch.data if len(kept) == len(records) else with_records(batch.header, kept)
