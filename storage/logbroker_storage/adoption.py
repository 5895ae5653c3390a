"""Adoption: LogEnd and the file are brought together after a process died between writing and publishing.

    behind LogEnd                     what is done
    whole batches                     adopted: whoever sent them was told nothing, so either outcome is true
    a torn one, and what follows it   cut into a side file
    zeros                             nothing: that is room (``segment_files``)
    less than LogEnd says             the files were replaced behind our back: they are recovered

Whoever comes to append next does it, under the append lock. Readers go on meanwhile. What is adopted becomes
visible as what is appended does: with durability fsync, once it is synced.
"""

from __future__ import annotations

import logging

from . import aborted_index
from .active_segment import ActiveSegment
from .errors import BatchDefect, CorruptBatchError, StorageFailedError
from .local_log import LocalLog
from .log_config import Durability
from .log_end_builder import LogEndBuilder
from .message_ids import identified_in
from .producer_fold import ProducerFold
from .producer_recovery import marker_type
from .record_batch import BatchHeader, read_batch
from .recovery import publish, recover_log
from .segment import ScanStop, scan
from .segment_files import SegmentFiles
from .side_files import cut_file, is_blank
from .view import LogEnd, PartitionState
from .view.message_ids import IdUpdate

logger = logging.getLogger("logbroker.recovery")


def writable_end(log: LocalLog, active: ActiveSegment, state: PartitionState) -> LogEnd:
    """LogEnd, after what a dead process left behind was adopted or cut. Under the append lock.

    *state* is the log's, as it was read under the lock; the same LogEnd is returned if it holds.

    Raises:
        StorageFailedError: a sync of the log failed earlier.
    """
    end, sync = state
    if sync.failed:
        raise StorageFailedError(
            f"{log.topic}-{log.partition} takes no writes since a disk sync failed; "
            "open the directory again to verify it from the disk"
        )
    if active.files(end).ends_at(end.active_bytes):
        return end
    return _adopt_tail(log, active, end)


def _adopt_tail(log: LocalLog, active: ActiveSegment, end: LogEnd) -> LogEnd:
    """Adopt whole batches behind LogEnd, cut the rest into a side file, and publish the result."""
    files = active.files(end)
    size = files.log_bytes()
    if size < end.active_bytes:
        return _recover_shrunken(log, active)
    builder = LogEndBuilder(end, log.config.index_interval_bytes, now_ms=end.active_created_ms)
    fold = ProducerFold(load=lambda producer_id: log.view.partitions.producer(log.key, producer_id))
    for unfinished in log.view.partitions.open_transactions(log.key):
        fold.open(unfinished.producer_id, unfinished.first_offset)
    aborted = bytearray()
    id_updates: list[IdUpdate] = []
    stop = ScanStop(end.active_bytes, end.log_end_offset, None)
    for item in scan(
        log.files,
        files.descriptor(),
        start_position=end.active_bytes,
        end_position=size,
        expected_offset=end.log_end_offset,
    ):
        if isinstance(item, ScanStop):
            stop = item
            break
        position, header = item
        builder.add(position, header)
        ids = _ids_at(log, files, position, header)
        if ids is not None:
            id_updates.append(ids)
        ended = fold.add(header, marker_type(log.files, files.descriptor(), position, header))
        if ended is not None:
            aborted += aborted_index.encode_entry(ended)
    if is_blank(log.files, files, stop.position, size):
        size = stop.position
    else:
        cut_file(log.files, files, stop.position, stop.defect or BatchDefect.TRUNCATED)
    builder.write_indexes(files, keep=end)
    if aborted:
        active.append_to_aborted_index(end, bytes(aborted))
    adopted = builder.end()._replace(
        first_unstable_offset=fold.first_unstable_offset,
        aborted_index_bytes=end.aborted_index_bytes + len(aborted),
    )
    files.cut_aborted_index(adopted.aborted_index_bytes)
    if log.config.durability is not Durability.FSYNC:
        adopted = adopted._replace(visible_offset=adopted.log_end_offset)
    with log.view.write() as transaction:
        log.view.partitions.put_log_end(transaction, log.key, adopted)
        for producer_id, entry in fold.producers.items():
            log.view.partitions.put_producer(transaction, log.key, producer_id, entry)
        for ids in id_updates:
            log.view.message_ids.apply(transaction, ids)
    logger.info(
        "%s-%d: a process died in mid-append; adopted offsets %d to %d, cut %d bytes",
        log.topic,
        log.partition,
        end.log_end_offset,
        adopted.log_end_offset - 1,
        size - stop.position,
    )
    return adopted


def _ids_at(log: LocalLog, segment: SegmentFiles, position: int, header: BatchHeader) -> IdUpdate | None:
    """The message ids of the batch at *position*, whose header was read."""
    try:
        batch = read_batch(log.files.pread(segment.descriptor(), header.size_bytes, position))
        return log.id_update(header, identified_in(batch), base_offset=0)
    except CorruptBatchError:
        return None  # as no reader can read it, no sender can have meant anything by it


def _recover_shrunken(log: LocalLog, active: ActiveSegment) -> LogEnd:
    """The file is shorter than the view says: files were replaced behind our back. The files are the truth."""
    logger.error("%s-%d: the log is shorter than the view says; recovering it", log.topic, log.partition)
    end, sync = log.state()
    # The log may go on in another segment: what is open must not be written to, whatever its version.
    active.close()
    recovered = recover_log(log, recovery_point=sync.synced_offset, log_start_offset=end.log_start_offset)
    return publish(log, recovered)
