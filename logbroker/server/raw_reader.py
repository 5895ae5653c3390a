"""Stored batches for the wire: bytes of the log as they are, from any offset on.

Batches are checked as every reader checks them (header, place, CRC) but not decoded. Records that have expired
are the exception: a topic with a time to live has its batches rewritten without them, at the same offsets.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from logbroker_storage.compaction import with_records
from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.log_reader import LogReader
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import TTL_HEADER, Compression, StoredBatch, decode_records
from logbroker_storage.record_expiry import is_expired

KEPT_READERS = 1000
_TTL_HEADER = TTL_HEADER.encode()

Piece = bytes | bytearray | memoryview


class RawBatches(NamedTuple):
    """Whole batches, in pieces that follow each other."""

    pieces: list[Piece]
    next_offset: int

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.pieces))


class ReaderPool:
    """Readers that stand where some client will probably read on. Safe across threads."""

    def __init__(self, kept: int = KEPT_READERS) -> None:
        self._kept = kept
        self._readers: OrderedDict[tuple[bytes, int], LogReader] = OrderedDict()
        self._lock = threading.Lock()  # guards _readers

    def read(
        self, log: PartitionLog, offset: int, *, end_offset: int, max_bytes: int, now_ms: int
    ) -> RawBatches:
        """The batches from the one that holds *offset* on that begin below *end_offset*.

        At least one, however large, else as many as fit in *max_bytes*; none where *offset* is the end.

        Raises:
            OffsetOutOfRangeError, CorruptionError, TopicNotFoundError: as ``LogReader.read``.
        """
        with self._lock:
            reader = self._readers.pop((log.key, offset), None)
        if reader is None:
            reader = log.reader(offset)
        try:
            batches = reader.read(max_bytes)
        except BaseException:
            reader.close()
            raise
        kept = [batch for batch in batches if batch.header.base_offset < end_offset]
        if len(kept) < len(batches):
            reader.seek(kept[-1].header.next_offset if kept else offset)
        self._keep(log, reader)
        next_offset = kept[-1].header.next_offset if kept else offset
        return RawBatches(_pieces(kept, ttl_ms=log.config.message_ttl_ms, now_ms=now_ms), next_offset)

    def _keep(self, log: PartitionLog, reader: LogReader) -> None:
        with self._lock:
            replaced = self._readers.pop((log.key, reader.position), None)
            self._readers[log.key, reader.position] = reader
            oldest = self._readers.popitem(last=False)[1] if len(self._readers) > self._kept else None
        for unwanted in (replaced, oldest):
            if unwanted is not None:
                unwanted.close()

    def close(self) -> None:
        with self._lock:
            readers = list(self._readers.values())
            self._readers.clear()
        for reader in readers:
            reader.close()


def _pieces(batches: list[StoredBatch], *, ttl_ms: int, now_ms: int) -> list[Piece]:
    return [
        _without_expired(batch, ttl_ms=ttl_ms, now_ms=now_ms)
        if ttl_ms >= 0 or _may_hold_ttl(batch)
        else batch.data
        for batch in batches
    ]


def _may_hold_ttl(batch: StoredBatch) -> bool:
    """Whether a record may have a time to live of its own; in a compressed batch that cannot be seen."""
    return batch.header.compression is Compression.NONE and _TTL_HEADER in bytes(batch.data)


def _without_expired(batch: StoredBatch, *, ttl_ms: int, now_ms: int) -> Piece:
    if batch.header.is_control:
        return batch.data
    try:
        records = decode_records(batch)
    except CorruptBatchError:
        return batch.data  # as it is: the client finds out
    kept = [record for record in records if not is_expired(record, now_ms=now_ms, ttl_ms=ttl_ms)]
    return batch.data if len(kept) == len(records) else with_records(batch.header, kept)
