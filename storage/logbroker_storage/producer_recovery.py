"""The producers of a log, and its aborted indexes, as its batches tell after the view was lost.

The fold begins at the newest sound snapshot that lies before everything that has to be found out: the
producers' last batches (any snapshot will do) and the entries of each aborted index that cannot be believed
(a snapshot at or before its segment's base, for the transaction may have begun in an earlier one). Newer
snapshots then add what no batch tells any more: producers whose last batch was removed.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from . import aborted_index
from .errors import CorruptBatchError
from .files import Files, put_file
from .index_files import read_index_file
from .local_log import LocalLog
from .producer_fold import ProducerFold
from .producer_state import NO_TRANSACTION, ProducerEntry
from .record_batch import BatchHeader, ControlType, control_type_of, read_batch
from .segment import Located, locate, sound_headers
from .segment_files import (
    ABORTED_INDEX_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    SegmentFiles,
    list_segments,
    list_snapshots,
)
from .snapshot_files import read_snapshot

logger = logging.getLogger("logbroker.recovery")


class _Found(NamedTuple):
    """A sound batch, and the segment that it lies in."""

    segment: SegmentFiles
    position: int
    header: BatchHeader


def aborted_index_is_sound(log: LocalLog, base_offset: int, end_offset: int, *, is_sealed: bool) -> bool:
    """Whether the aborted index of the segment [base_offset, end_offset) may be believed, or is rightly missing."""
    content = read_index_file(
        log.files, log.directory, base_offset, ABORTED_INDEX_SUFFIX, is_sealed=is_sealed
    )
    if content is None:
        return False
    return aborted_index.check(content, base_offset=base_offset, end_offset=end_offset) is None


def fold_producers(log: LocalLog, end_offset: int, doubtful: Collection[int]) -> ProducerFold:
    """The producers below *end_offset*; writes the aborted indexes of the *doubtful* segments anew.

    *doubtful* holds base offsets. The caller syncs them.
    """
    newest_useful = min([end_offset, *doubtful])
    fold, indexes = _fold(log, newest_useful, doubtful, list_segments(log.files, log.directory))
    for base, content in indexes.items():
        _write_aborted_index(log, base, bytes(content))
    for offset in reversed(list_snapshots(log.files, log.directory)):
        if newest_useful < offset <= end_offset:
            _add_removed(fold, read_snapshot(log.files, log.directory, offset) or {})
    return fold


def aborted_index_of(log: LocalLog, base_offset: int, bases: Sequence[int]) -> bytes:
    """What the aborted index of a segment must hold, from the batches. Nothing is written.

    *bases* are those of the log's segments, ascending.

    Raises:
        FileNotFoundError: the segment, or one before it, was removed.
    """
    read = bases[: bisect.bisect_right(bases, base_offset)]
    _, indexes = _fold(log, base_offset, [base_offset], read)
    return bytes(indexes[base_offset])


def _fold(
    log: LocalLog, from_offset: int, wanted: Collection[int], bases: Sequence[int]
) -> tuple[ProducerFold, dict[int, bytearray]]:
    """The producers, from the newest sound snapshot at or below *from_offset* on, and the *wanted* aborted indexes.

    *bases* are those of the segments that may be read, from the log's first on.
    """
    known: dict[int, ProducerEntry] = {}
    start_offset = 0
    for offset in reversed(list_snapshots(log.files, log.directory)):
        snapshot = read_snapshot(log.files, log.directory, offset) if offset <= from_offset else None
        if snapshot is not None:
            known, start_offset = _still_true(snapshot, offset, bases), offset
            break
    fold = ProducerFold(known)
    indexes = {base: bytearray() for base in wanted}
    for segment, position, header in _batches_from(log, start_offset, bases):
        ended = fold.add(header, marker_type(log.files, segment.descriptor(), position, header))
        if ended is not None and segment.base_offset in indexes:
            indexes[segment.base_offset] += aborted_index.encode_entry(ended)
    return fold, indexes


def _add_removed(fold: ProducerFold, snapshot: Mapping[int, ProducerEntry]) -> None:
    """Producers in *snapshot* whose last batch the fold did not meet: it was removed, in no open transaction.

    Of some it met a marker that came behind that, which tells no sequence.
    """
    for producer_id, entry in snapshot.items():
        found = fold.producers.get(producer_id)
        met_markers = (
            found is not None
            and found.epoch == entry.epoch
            and found.last_sequence < 0 <= entry.last_sequence
        )
        if found is None or met_markers or found.last_offset < entry.last_offset:
            fold.producers[producer_id] = entry._replace(txn_first_offset=NO_TRANSACTION)


def _still_true(
    snapshot: dict[int, ProducerEntry], offset: int, bases: Sequence[int]
) -> dict[int, ProducerEntry]:
    """The producers of the *snapshot* at *offset*, without transactions whose end was in segments that are gone.

    Retention removes decided records only: where it has removed what comes behind the snapshot, it has removed
    decisions that the snapshot does not know (newer ones did, which are damaged or missing). A
    transaction that is open all the same is found again by its records.
    """
    start_offset = min(bases, default=0)
    if start_offset < offset:
        return snapshot
    return {
        producer_id: entry._replace(txn_first_offset=NO_TRANSACTION)
        if entry.txn_first_offset < start_offset
        else entry
        for producer_id, entry in snapshot.items()
    }


def _write_aborted_index(log: LocalLog, base_offset: int, content: bytes) -> None:
    segment = log.segment(base_offset)
    if segment.aborted_index() == content:
        return
    logger.info("%s: aborted index built again, %d bytes", segment.log_path, len(content))
    if content:
        put_file(log.files, segment.path(ABORTED_INDEX_SUFFIX), content)  # readers find one or the other
    else:
        segment.cut_aborted_index(0)


def marker_type(files: Files, fd: int, position: int, header: BatchHeader) -> ControlType | None:
    """What the marker at *position* says, whose header was read; None where no transaction's marker is."""
    if not header.is_control:
        return None
    try:
        return control_type_of(read_batch(files.pread(fd, header.size_bytes, position)))
    except CorruptBatchError:
        return None


def _batches_from(log: LocalLog, offset: int, bases: Sequence[int]) -> Iterator[_Found]:
    """Every sound batch of the segments *bases* that begins at or behind *offset*."""
    for base in bases[max(0, bisect.bisect_right(bases, offset) - 1) :]:
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
    index = read_index_file(
        files, segment.directory, segment.base_offset, OFFSET_INDEX_SUFFIX, is_sealed=False
    )
    return locate(files, segment.descriptor(), index or b"", segment.base_offset, offset, size)
