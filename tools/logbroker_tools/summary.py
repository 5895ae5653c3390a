"""Sizes and offsets at a glance; batches are read whole, so that damage is counted."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .layout import Partition, Target
from .reading import Report, segment_items
from .walk import Damaged


class SegmentSummary(msgspec.Struct, frozen=True):
    """One segment; offsets are half-open, ``max_timestamp_ms`` is -1 without records."""

    topic: str
    partition: int
    path: str
    start_offset: int
    end_offset: int
    size_bytes: int
    batches: int
    records: int
    max_timestamp_ms: int
    damaged_places: int


class PartitionSummary(msgspec.Struct, frozen=True):
    """The sum of a partition's segments."""

    topic: str
    partition: int
    segments: int
    start_offset: int
    end_offset: int
    size_bytes: int
    batches: int
    records: int
    damaged_places: int


def segments(target: Target, report: Report) -> Iterator[SegmentSummary]:
    """Every segment of every partition, in order; one that cannot be read is also told to *report*."""
    for partition in target.partitions:
        yield from partition_segments(partition, report)


def partition_segments(partition: Partition, report: Report) -> Iterator[SegmentSummary]:
    for segment in partition.segments:
        start_offset = end_offset = segment.base_offset or 0
        batches = records = damaged = 0
        max_timestamp_ms = -1
        size_bytes = 0
        try:
            size_bytes = segment.size_bytes
            for item in segment_items(partition, segment):
                if isinstance(item, Damaged):
                    damaged += 1
                    continue
                if not batches and segment.base_offset is None:
                    start_offset = item.header.base_offset
                batches += 1
                records += item.header.record_count
                end_offset = item.header.next_offset
                max_timestamp_ms = max(max_timestamp_ms, item.header.max_timestamp_ms)
        except OSError as error:
            report(segment, error)
            damaged += 1
        yield SegmentSummary(
            topic=partition.topic,
            partition=partition.partition,
            path=segment.path,
            start_offset=start_offset,
            end_offset=end_offset,
            size_bytes=size_bytes,
            batches=batches,
            records=records,
            max_timestamp_ms=max_timestamp_ms,
            damaged_places=damaged,
        )


def summary(target: Target, report: Report) -> Iterator[PartitionSummary]:
    """Every partition; a segment that cannot be read counts as damaged, and is told to *report*."""
    for partition in target.partitions:
        parts = list(partition_segments(partition, report))
        yield PartitionSummary(
            topic=partition.topic,
            partition=partition.partition,
            segments=len(parts),
            start_offset=parts[0].start_offset if parts else 0,
            end_offset=parts[-1].end_offset if parts else 0,
            size_bytes=sum(part.size_bytes for part in parts),
            batches=sum(part.batches for part in parts),
            records=sum(part.records for part in parts),
            damaged_places=sum(part.damaged_places for part in parts),
        )
