"""The producer snapshots of a partition folder: written at roll and close, the newest sound one read back.

They save reading old batch headers, and they alone remember producers whose segments retention has removed: a
producer that comes back must not be able to append again what was acknowledged long ago. They are written without a
sync: a torn one fails its checksum and the one before it serves. Before retention removes segments the snapshots
are synced, and the one that knows the most of what was removed stays.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from .files import Files, put_file
from .producer_snapshot import ProducerSnapshotEntry, encode, parse
from .producer_state import NO_TRANSACTION, SEQUENCE_LIMIT, BatchSpan, ProducerEntry
from .segment_files import list_segments, list_snapshots, snapshot_name

logger = logging.getLogger("logbroker.recovery")

KEPT_SNAPSHOTS = 3
NO_PRODUCER = ProducerEntry(-1)


def write_snapshot(files: Files, directory: str, offset: int, producers: Mapping[int, ProducerEntry]) -> None:
    """Write the state of *producers* just before *offset*, and remove all but the newest snapshots.

    Of a log that retention has taken segments off, the first one behind those stays, too: that one was synced then,
    and no newer one is sure to be on the disk.
    """
    entries: list[ProducerSnapshotEntry] = []
    for producer_id, entry in sorted(producers.items()):
        entries += _snapshot_entries(producer_id, entry)
    put_file(files, f"{directory}/{snapshot_name(offset)}", encode(entries))
    start_offset = min(list_segments(files, directory), default=0)
    snapshots = list_snapshots(files, directory)
    first = next((known for known in snapshots if start_offset and known >= start_offset), None)
    for old in snapshots[:-KEPT_SNAPSHOTS]:
        if old != first:
            files.unlink(f"{directory}/{snapshot_name(old)}")


def sync_snapshots(files: Files, directory: str) -> None:
    """Have the snapshots, and their names, on the disk."""
    for offset in list_snapshots(files, directory):
        fd = files.open(f"{directory}/{snapshot_name(offset)}")
        try:
            files.fsync(fd)
        finally:
            files.close(fd)
    files.fsync_directory(directory)


def read_snapshot(files: Files, directory: str, offset: int) -> dict[int, ProducerEntry] | None:
    """The producers in the snapshot at *offset*; None when it is not sound, or removed since it was listed."""
    try:
        entries = parse(files.read_file(f"{directory}/{snapshot_name(offset)}"))
    except FileNotFoundError:
        return None  # the writer has rolled meanwhile, and keeps the newest ones
    except ValueError as error:
        logger.warning("%s/%s is not sound, passed over: %s", directory, snapshot_name(offset), error)
        return None
    producers: dict[int, ProducerEntry] = {}
    for entry in entries:
        earlier = producers.get(entry.producer_id, NO_PRODUCER).batches
        last = _producer_entry(entry)
        producers[entry.producer_id] = last._replace(batches=(*earlier, *last.batches))
    return producers


def open_in_snapshots(files: Files, directory: str, offsets: Iterable[int]) -> frozenset[int]:
    """The producers that a sound snapshot of those at *offsets* knows in a transaction."""
    snapshots = [read_snapshot(files, directory, offset) or {} for offset in offsets]
    return frozenset(
        producer_id
        for snapshot in snapshots
        for producer_id, entry in snapshot.items()
        if entry.txn_first_offset >= 0
    )


def _snapshot_entries(producer_id: int, entry: ProducerEntry) -> list[ProducerSnapshotEntry]:
    """One for each batch that is remembered, oldest first; the last one says the rest."""
    *earlier, last = entry.batches or (None,)
    before = entry._replace(txn_first_offset=NO_TRANSACTION)
    return [
        *(_snapshot_entry(producer_id, before, batch) for batch in earlier),
        _snapshot_entry(producer_id, entry, last),
    ]


def _snapshot_entry(producer_id: int, entry: ProducerEntry, last: BatchSpan | None) -> ProducerSnapshotEntry:
    return ProducerSnapshotEntry(
        producer_id=producer_id,
        producer_epoch=entry.epoch,
        last_sequence=last.last_sequence if last else -1,
        last_offset=last.last_offset if last else -1,
        offset_delta=last.last_offset - last.base_offset if last else 0,
        timestamp_ms=last.timestamp_ms if last else -1,
        coordinator_epoch=entry.coordinator_epoch,
        current_txn_first_offset=entry.txn_first_offset,
    )


def _producer_entry(entry: ProducerSnapshotEntry) -> ProducerEntry:
    spans: tuple[BatchSpan, ...] = ()
    if entry.last_offset >= 0:
        base_sequence = (
            (entry.last_sequence - entry.offset_delta) % SEQUENCE_LIMIT if entry.last_sequence >= 0 else -1
        )
        spans = (
            BatchSpan(
                base_sequence,
                entry.last_sequence,
                entry.last_offset - entry.offset_delta,
                entry.last_offset,
                entry.timestamp_ms,
            ),
        )
    return ProducerEntry(entry.producer_epoch, spans, entry.coordinator_epoch, entry.current_txn_first_offset)
