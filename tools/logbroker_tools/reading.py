"""Sound batches and records of partitions, for the commands that show them; damage is handed to the caller.

What keeps from reading a segment, or a part of it, goes to a *report*, and reading goes on behind it. Without one,
damage is passed over, and the ``OSError`` of a segment that the system does not let us read is left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.events import AnyEvent, decode_event
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import Record

from .layout import JOURNAL_TOPIC, Partition, Segment, Target
from .walk import Damaged, Sound, walk

Report = Callable[[Segment, Damaged | OSError], None]


def segment_items(partition: Partition, segment: Segment) -> Iterator[Sound | Damaged]:
    """The batches and the damage of one segment."""
    files = OsFiles()
    fd = files.open(segment.path, readonly=True)
    try:
        yield from walk(
            files,
            fd,
            end_position=files.size(fd),
            base_offset=segment.base_offset,
            ours=partition.is_ours,
            next_base=partition.base_behind(segment),
        )
    finally:
        files.close(fd)


def batches(
    partition: Partition, report: Report | None, *, from_offset: int = 0
) -> Iterator[tuple[Segment, Sound]]:
    """The sound batches of a partition, but for segments that end at or below *from_offset*."""
    for segment in partition.segments:
        next_base = partition.base_behind(segment)
        if next_base is None or next_base > from_offset:
            try:
                for item in segment_items(partition, segment):
                    if isinstance(item, Sound):
                        yield segment, item
                    elif report is not None:
                        report(segment, item)
            except OSError as error:
                if report is None:
                    raise
                report(segment, error)


def records_of(partition: Partition, batch: Sound) -> list[Record]:
    """The records of a batch; none when they do not parse, which `verify` reports."""
    try:
        return batch.records(partition.topic, partition.partition)
    except CorruptBatchError:
        return []


def journal_partition(target: Target) -> Partition | None:
    for partition in target.partitions:
        if partition.topic == JOURNAL_TOPIC:
            return partition
    return None


def journal_records(target: Target, report: Report | None) -> Iterator[tuple[Record, AnyEvent | None]]:
    """Every record of the journal with its event; None for a tombstone. Unreadable ones are left out."""
    partition = journal_partition(target)
    if partition is None:
        return
    for _, batch in batches(partition, report):
        for record in records_of(partition, batch):
            try:
                yield record, None if record.value is None else decode_event(record.value)
            except CorruptBatchError:
                continue  # `verify` reports it


def live_events(target: Target, report: Report | None) -> dict[bytes, AnyEvent]:
    """What the journal says in the end: the latest event of each key."""
    events: dict[bytes, AnyEvent] = {}
    for record, event in journal_records(target, report):
        if event is None:
            events.pop(record.key or b"", None)
        else:
            events[event.key()] = event
    return events
