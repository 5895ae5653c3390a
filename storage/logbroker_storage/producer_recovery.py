"""The producers of a log, and its aborted indexes, as its batches tell after the view was lost.

The fold begins at the newest sound snapshot that lies before everything that has to be found out: the
producers' last batches (any snapshot will do) and the entries of each aborted index that cannot be believed
(a snapshot at or before its segment's base, for the transaction may have begun in an earlier one).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from . import aborted_index
from .errors import CorruptBatchError
from .files import Files
from .producer_fold import ProducerFold
from .producer_state import NO_TRANSACTION, ProducerEntry
from .record_batch import BatchHeader, ControlType, control_type_of, read_batch
from .segment import Located, locate, sound_headers
from .segment_files import OFFSET_INDEX_SUFFIX, SegmentFiles, list_segments, list_snapshots
from .snapshot_files import read_snapshot

if TYPE_CHECKING:
    from .partition_log import PartitionLog

logger = logging.getLogger("logbroker.recovery")


class _Found(NamedTuple):
    """A sound batch, and the segment that it lies in."""

    segment: SegmentFiles
    position: int
    header: BatchHeader


def aborted_index_is_sound(log: PartitionLog, base_offset: int, end_offset: int) -> bool:
    """Whether the aborted index of the segment [base_offset, end_offset) is well-formed, or rightly missing."""
    content = log.segment(base_offset).aborted_index()
    return aborted_index.check(content, base_offset=base_offset, end_offset=end_offset) is None


def fold_producers(log: PartitionLog, end_offset: int, doubtful: Collection[int]) -> ProducerFold:
    """The producers below *end_offset*; writes the aborted indexes of the *doubtful* segments anew, synced.

    *doubtful* holds base offsets.
    """
    known: dict[int, ProducerEntry] = {}
    start_offset = 0
    newest_useful = min([end_offset, *doubtful])
    for offset in reversed(list_snapshots(log.files, log.directory)):
        snapshot = read_snapshot(log.files, log.directory, offset) if offset <= newest_useful else None
        if snapshot is not None:
            known, start_offset = _still_true(log, snapshot, offset), offset
            break
    fold = ProducerFold(known)
    indexes = {base: bytearray() for base in doubtful}
    for segment, position, header in _batches_from(log, start_offset):
        ended = fold.add(header, marker_type(log.files, segment.descriptor(), position, header))
        if ended is not None and segment.base_offset in indexes:
            indexes[segment.base_offset] += aborted_index.encode_entry(ended)
    for base, content in indexes.items():
        _write_aborted_index(log, base, bytes(content))
    _recall_removed(log, fold, end_offset)
    return fold


def _recall_removed(log: PartitionLog, fold: ProducerFold, end_offset: int) -> None:
    """Add what only a snapshot knows: of producers whose last batch was in a segment that is gone.

    The fold may have begun before that snapshot, for the sake of the aborted indexes.
    """
    if min(list_segments(log.files, log.directory), default=0) == 0:
        return  # nothing is gone
    for offset in reversed(list_snapshots(log.files, log.directory)):
        snapshot = read_snapshot(log.files, log.directory, offset) if offset <= end_offset else None
        if snapshot is None:
            continue
        for producer_id, entry in snapshot.items():
            known = fold.producers.get(producer_id)
            if known is None or known.last_offset < entry.last_offset:
                fold.producers[producer_id] = entry._replace(txn_first_offset=NO_TRANSACTION)
        return


def _still_true(
    log: PartitionLog, snapshot: dict[int, ProducerEntry], offset: int
) -> dict[int, ProducerEntry]:
    """The producers of the *snapshot* at *offset*, without transactions whose end was in segments that are gone.

    Retention removes decided records only: where it has removed what comes behind the snapshot, it has removed
    decisions that the snapshot does not know. (Newer snapshots know them, but a power cut may have taken those.) A
    transaction that is open all the same is found again by its records.
    """
    start_offset = min(list_segments(log.files, log.directory), default=0)
    if start_offset < offset:
        return snapshot
    return {
        producer_id: entry._replace(txn_first_offset=NO_TRANSACTION)
        if entry.txn_first_offset < start_offset
        else entry
        for producer_id, entry in snapshot.items()
    }


def _write_aborted_index(log: PartitionLog, base_offset: int, content: bytes) -> None:
    segment = log.segment(base_offset)
    try:
        if segment.aborted_index() == content:
            return
        logger.info("%s: aborted index built again, %d bytes", segment.log_path, len(content))
        segment.cut_aborted_index(0)
        if content:
            segment.write_aborted_index(content, 0)
    finally:
        segment.close()


def marker_type(files: Files, fd: int, position: int, header: BatchHeader) -> ControlType | None:
    """What the marker at *position* says, whose header was read; None where no transaction's marker is."""
    if not header.is_control:
        return None
    try:
        return control_type_of(read_batch(files.pread(fd, header.size_bytes, position)))
    except CorruptBatchError:
        return None


def _batches_from(log: PartitionLog, offset: int) -> Iterator[_Found]:
    """Every sound batch that begins at or behind *offset*."""
    bases = list_segments(log.files, log.directory)
    first = max([base for base in bases if base <= offset], default=0)
    for base in bases:
        if base < first:
            continue
        segment = log.segment(base)
        try:
            size = segment.log_bytes()
            start = _locate_in(log.files, segment, offset, size) if offset > base else Located(0, base)
            for position, header in sound_headers(
                log.files,
                segment.descriptor(),
                start_position=start.position,
                end_position=size,
                expected_offset=start.base_offset,
            ):
                if header.base_offset >= offset:
                    yield _Found(segment, position, header)
        finally:
            segment.close()


def _locate_in(files: Files, segment: SegmentFiles, offset: int, size: int) -> Located:
    index = files.pread(segment.descriptor(OFFSET_INDEX_SUFFIX), 1 << 31, 0)
    return locate(files, segment.descriptor(), index, segment.base_offset, offset, size)
