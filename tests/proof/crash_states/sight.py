"""What there is in an open data directory: topics, records, committed offsets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from logbroker.topic_names import is_internal
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.events import OffsetEvent
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import StoredBatch, decode_records

REMEMBERED = 50_000  # decoded batches


class Record(NamedTuple):
    """A record of a log."""

    offset: int
    key: bytes | None
    value: bytes | None


class Seen(NamedTuple):
    """One log."""

    log_start_offset: int
    high_watermark: int
    last_stable_offset: int
    log_end_offset: int
    records: tuple[Record, ...]
    """Of every batch, whatever became of its transaction."""
    committed: frozenset[int]
    """The offsets of those that a reader of committed records is given."""
    producers: tuple[object, ...]
    """Of each its id, epoch, last batch and open transaction."""
    sequences: tuple[tuple[int, int], ...]
    """Of each producer id the last sequence."""
    last_batches: tuple[tuple[int, bytes], ...]
    """The last batch of each idempotent producer, and its base offset."""


@dataclass
class Sight:
    """Everything."""

    topics: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """Id and number of partitions, by name."""
    logs: dict[tuple[str, int], Seen] = field(default_factory=dict)
    commits: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """By group, topic and partition."""
    half_deleted: list[str] = field(default_factory=list)
    """Topics of which something is left."""

    def differences(self, other: Sight) -> Iterator[str]:
        """What *other* has not, or otherwise."""
        for what in ("topics", "logs", "commits"):
            mine, others = getattr(self, what), getattr(other, what)
            for key in {*mine, *others}:
                if mine.get(key) != others.get(key):
                    yield f"{what} of {key}: {mine.get(key)} became {others.get(key)}"


class Eye:
    """Looks at directories; remembers batches that it has decoded. For one thread."""

    def __init__(self) -> None:
        self._decoded: dict[bytes, tuple[Record, ...]] = {}

    def look(self, directory: DataDirectory) -> Sight:
        sight = Sight()
        if len(self._decoded) > REMEMBERED:
            self._decoded.clear()
        for name, event in directory.catalog.all().items():
            if is_internal(name):
                continue
            if event.state != "live":
                sight.half_deleted.append(name)
                continue
            sight.topics[name] = (event.topic_id, event.partitions)
            for number in range(event.partitions):
                sight.logs[name, number] = self._seen(directory.log(name, number))
        for offset in directory.view.events.all(OffsetEvent, OffsetEvent.ALL):
            sight.commits[offset.group, offset.topic, offset.partition] = offset.offset
        return sight

    def _seen(self, log: PartitionLog) -> Seen:
        offsets = log.offsets()
        start = offsets.log_start_offset
        records: list[Record] = []
        is_transactional = False
        last: dict[int, tuple[int, bytes]] = {}
        for batch in batches_of(log):
            data = bytes(batch.data)
            header = batch.header
            records += self._decode(batch, data)
            if header.is_transactional:
                is_transactional = True
            elif header.base_sequence >= 0:
                last[header.producer_id] = (header.base_offset, data)
                if not header.record_count:  # compacted: nobody could send it again
                    del last[header.producer_id]
        committed = records
        if is_transactional:
            committed = []
            for batch in batches_of(log, Isolation.READ_COMMITTED):
                committed += self.records(batch)
        if records and records[0].offset < start:  # a batch may begin before the log does
            records = [record for record in records if record.offset >= start]
        producers = sorted(log.view.partitions.producers(log.key).items())
        return Seen(
            log_start_offset=start,
            high_watermark=offsets.high_watermark,
            last_stable_offset=offsets.last_stable_offset,
            log_end_offset=offsets.log_end_offset,
            records=tuple(records),
            committed=frozenset(record.offset for record in committed if record.offset >= start),
            # How many batches before the last are remembered depends on the snapshots.
            producers=tuple(
                (producer_id, entry.epoch, entry.batches[-1:], entry.txn_first_offset)
                for producer_id, entry in producers
            ),
            sequences=tuple((producer_id, entry.last_sequence) for producer_id, entry in producers),
            last_batches=tuple(last.values()),
        )

    def records(self, batch: StoredBatch) -> tuple[Record, ...]:
        """The records of a batch; of a marker none."""
        return self._decode(batch, bytes(batch.data))

    def _decode(self, batch: StoredBatch, data: bytes) -> tuple[Record, ...]:
        if batch.header.is_control:
            return ()
        known = self._decoded.get(data)
        if known is None:
            known = self._decoded[data] = tuple(
                Record(record.offset, record.key, record.value) for record in decode_records(batch, "", 0)
            )
        return known


def batches_of(log: PartitionLog, isolation: Isolation = Isolation.READ_UNCOMMITTED) -> Iterator[StoredBatch]:
    """Every batch that a reader of this *isolation* is given.

    Raises:
        CorruptionError: a part of the log cannot be read.
    """
    reader = log.reader(log.offsets().log_start_offset, isolation)
    try:
        while batches := reader.read():
            yield from batches
    finally:
        reader.close()
