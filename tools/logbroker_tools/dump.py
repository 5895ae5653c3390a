"""Batches and records for people and scripts: what lies where, in the order of the log.

Damage does not stop it: each place goes to the caller's *report*, and reading goes on behind it; so does the
error of a segment that the system does not let us read. Filters on
batches keep those that may hold a wanted record; filters on records are exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.record_batch import BatchHeader, Record, decode_control_record

from .layout import Partition, Segment, Target
from .reading import Report, batches
from .walk import Damaged, Sound


class Selection(msgspec.Struct, frozen=True):
    """Which offsets and times are wanted; both ranges are half-open, None is unbounded."""

    from_offset: int | None = None
    to_offset: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def takes_batch(self, header: BatchHeader) -> bool:
        """Whether the batch may hold a record that is wanted."""
        return (
            (self.from_offset is None or header.last_offset >= self.from_offset)
            and (self.to_offset is None or header.base_offset < self.to_offset)
            and (self.since_ms is None or header.max_timestamp_ms >= self.since_ms)
        )

    def takes_any_record(self, batch: Sound) -> bool:
        """Whether the batch may hold a record that is older than *until_ms*: of some no field of the header tells."""
        header = batch.header
        if self.until_ms is None or (header.record_count and header.max_timestamp_ms < self.until_ms):
            return True
        try:
            return any(record.timestamp_ms < self.until_ms for record in batch.records("", 0))
        except CorruptBatchError:
            return True

    def takes_record(self, record: Record) -> bool:
        return (
            (self.from_offset is None or record.offset >= self.from_offset)
            and (self.to_offset is None or record.offset < self.to_offset)
            and (self.since_ms is None or record.timestamp_ms >= self.since_ms)
            and (self.until_ms is None or record.timestamp_ms < self.until_ms)
        )


class BatchRow(msgspec.Struct, frozen=True):
    """One batch; ``flags`` are control with its kind, transactional, append-time."""

    topic: str
    partition: int
    position: int
    size_bytes: int
    base_offset: int
    last_offset: int
    records: int
    codec: str
    timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    leader_epoch: int
    flags: str
    path: str


def batch_rows(target: Target, selection: Selection, report: Report) -> Iterator[BatchRow]:
    """The batches that are wanted."""
    for partition, segment, batch in _batches(target, selection, report):
        if not selection.takes_any_record(batch):
            continue
        header = batch.header
        yield BatchRow(
            topic=partition.topic,
            partition=partition.partition,
            position=batch.position,
            size_bytes=header.size_bytes,
            base_offset=header.base_offset,
            last_offset=header.last_offset,
            records=header.record_count,
            codec=header.compression.name.lower(),
            timestamp_ms=header.base_timestamp_ms,
            max_timestamp_ms=header.max_timestamp_ms,
            producer_id=header.producer_id,
            producer_epoch=header.producer_epoch,
            base_sequence=header.base_sequence,
            leader_epoch=header.partition_leader_epoch,
            flags=",".join(_flags(batch)),
            path=segment.path,
        )


def records(target: Target, selection: Selection, report: Report) -> Iterator[Record]:
    """The records that are wanted; transaction markers are none."""
    for partition, segment, batch in _batches(target, selection, report):
        if batch.header.is_control:
            continue
        try:
            found = batch.records(partition.topic, partition.partition)
        except CorruptBatchError as error:
            header = batch.header
            end_position = batch.position + header.size_bytes
            report(
                segment,
                Damaged(batch.position, end_position, header.base_offset, header.next_offset, error.defect),
            )
            continue
        yield from filter(selection.takes_record, found)


def _batches(
    target: Target, selection: Selection, report: Report
) -> Iterator[tuple[Partition, Segment, Sound]]:
    for partition in target.partitions:
        for segment, batch in batches(partition, report, from_offset=selection.from_offset or 0):
            if selection.to_offset is not None and batch.header.base_offset >= selection.to_offset:
                break
            if selection.takes_batch(batch.header):
                yield partition, segment, batch


def _flags(batch: Sound) -> Iterator[str]:
    if batch.header.is_control:
        yield "control"
        yield from _markers(batch)
    if batch.header.is_transactional:
        yield "transactional"
    if batch.header.uses_log_append_time:
        yield "append-time"


def _markers(batch: Sound) -> Iterator[str]:
    try:
        for record in batch.records("", 0):
            yield decode_control_record(record).control_type.name.lower()
    except CorruptBatchError:
        yield "unknown"
