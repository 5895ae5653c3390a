"""What each producer id wrote last, as the batch headers tell, beside what the newest snapshot says."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from logbroker_storage.events import NamedProducerEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.producer_snapshot import ProducerSnapshotEntry
from logbroker_storage.producer_state import ProducerEntry, advance
from logbroker_storage.segment_files import list_snapshots, snapshot_name

from .layout import Partition, Target
from .reading import Report, batches, live_events
from .verify.producers import read_snapshot


class ProducerRow(msgspec.Struct, frozen=True):
    """One producer id in one partition; the ``snapshot_`` fields are None where no snapshot knows it."""

    topic: str
    partition: int
    producer_id: int
    name: str | None
    epoch: int | None
    last_sequence: int | None
    last_offset: int | None
    snapshot_last_sequence: int | None
    snapshot_last_offset: int | None


def producer_names(target: Target, report: Report) -> dict[int, str]:
    """The names of named producers by their producer ids, from the journal if there is one."""
    return {
        producer_id: event.name
        for event in live_events(target, report).values()
        if isinstance(event, NamedProducerEvent)
        for producer_id in event.producer_ids.values()
    }


def producers(target: Target, names: dict[int, str], report: Report) -> Iterator[ProducerRow]:
    """Every producer of every partition."""
    for partition in target.partitions:
        folded = _fold(partition, report)
        snapshot = _newest_snapshot(partition)
        for producer_id in sorted(folded.keys() | snapshot.keys()):
            entry, saved = folded.get(producer_id), snapshot.get(producer_id)
            yield ProducerRow(
                topic=partition.topic,
                partition=partition.partition,
                producer_id=producer_id,
                name=names.get(producer_id),
                epoch=entry.epoch if entry else None,
                last_sequence=entry.last_sequence if entry else None,
                last_offset=entry.last_offset if entry else None,
                snapshot_last_sequence=saved.last_sequence if saved else None,
                snapshot_last_offset=saved.last_offset if saved else None,
            )


def _fold(partition: Partition, report: Report) -> dict[int, ProducerEntry]:
    entries: dict[int, ProducerEntry] = {}
    for _, batch in batches(partition, report):
        producer_id = batch.header.producer_id
        if producer_id >= 0:
            entries[producer_id] = advance(entries.get(producer_id), batch.header, batch.header.base_offset)
    return entries


def _newest_snapshot(partition: Partition) -> dict[int, ProducerSnapshotEntry]:
    files = OsFiles()
    for offset in reversed(list_snapshots(files, partition.folder)):
        path = os.path.join(partition.folder, snapshot_name(offset))
        try:
            return {entry.producer_id: entry for entry in read_snapshot(files, path)}
        except (ValueError, OSError):
            continue  # `verify` reports it; the one before serves
    return {}
