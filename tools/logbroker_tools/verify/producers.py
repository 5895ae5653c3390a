"""Producers as the batch headers tell them: sequences that only grow, snapshots that say the same.

    the batch's epoch        its base sequence                    finding
    below the last batch's   any                                  BAD_SEQUENCE: it should have been fenced
    above it                 any                                  none: a new epoch is a new history
    equal                    follows                              none
    equal                    skips some                           SEQUENCE_GAP, a note: named producers skip,
                                                                  and compaction removes batches (one
                                                                  note a producer, at the first)
    equal                    goes back                            BAD_SEQUENCE

In Kafka's own directories all of them are notes, for its brokers forget idle producers. A snapshot at an
offset is compared with the fold over all batches below it: it may know more, because the log was compacted
or begins later, or a named producer was opened again, but never less, and never something else. Behind
damage the fold is incomplete, and nothing is compared.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import crcmod.predefined
import msgspec

from logbroker_storage import producer_snapshot
from logbroker_storage.files import Files
from logbroker_storage.producer_snapshot import ProducerSnapshotEntry
from logbroker_storage.producer_state import (
    SEQUENCE_LIMIT,
    ProducerEntry,
    advance,
    next_sequence,
)
from logbroker_storage.record_batch import BatchHeader
from logbroker_storage.segment_files import snapshot_name

from ..findings import Code, Finding, Severity
from ..layout import Partition

ADVICE_SNAPSHOT = "derived from the log: recovery takes an earlier one, or folds the headers"
MAX_SNAPSHOT_BYTES = 256 << 20

_crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


class Oddity(msgspec.Struct, frozen=True):
    """What is odd about a batch's sequence or epoch."""

    code: Code
    message: str


class ProducerChecks:
    """The fold over a partition's batches, in order, with what is compared on the way."""

    def __init__(self, partition: Partition, files: Files) -> None:
        self._producers: dict[int, ProducerEntry] = {}
        self._snapshots: list[_Snapshot] = []  # the next to compare is the last
        self._unsound: list[Finding] = []
        self._is_complete = True
        self._is_ours = partition.is_ours
        self._notes: dict[int, Finding] = {}  # the first of each producer
        self._noted: Counter[int] = Counter()
        if partition.is_whole:
            self._load(partition, files)

    def _load(self, partition: Partition, files: Files) -> None:
        for offset in reversed(partition.snapshots):
            path = os.path.join(partition.folder, snapshot_name(offset))
            try:
                entries = read_snapshot(files, path)
            except FileNotFoundError:
                continue  # a writer at work has dropped it since the folder was listed
            except ValueError as error:
                self._unsound.append(_about(path, str(error)))
            except OSError as error:
                message = error.strerror or str(error)
                self._unsound.append(
                    Finding(Severity.ERROR, Code.UNREADABLE, path, message, advice=ADVICE_SNAPSHOT)
                )
            else:
                self._snapshots.append(_Snapshot(path, offset, entries))

    def see(self, path: str, position: int, header: BatchHeader) -> Finding | None:
        """Take in the next batch, which is at *position* of *path*; what is wrong with it."""
        if header.producer_id < 0:
            return None
        known = self._producers.get(header.producer_id)
        self._producers[header.producer_id] = advance(known, header, header.base_offset)
        oddity = None if known is None else _oddity(known, header)
        if oddity is None:
            return None
        is_error = self._is_ours and oddity.code is Code.BAD_SEQUENCE
        finding = Finding(
            Severity.ERROR if is_error else Severity.NOTE,
            oddity.code,
            path,
            oddity.message,
            position=position,
            start_offset=header.base_offset,
            end_offset=header.next_offset,
        )
        if is_error:
            return finding
        self._notes.setdefault(header.producer_id, finding)
        self._noted[header.producer_id] += 1
        return None

    def lose(self) -> None:
        """Batches are damaged: from here on the fold is incomplete."""
        self._is_complete = False

    def due(self, offset: int) -> Iterator[Finding]:
        """Findings about the snapshots at or below *offset*, where the next batch begins."""
        while self._snapshots and self._snapshots[-1].offset <= offset:
            snapshot = self._snapshots.pop()
            if self._is_complete:
                yield from self._compare(snapshot)

    def rest(self, end_offset: int | None) -> Iterator[Finding]:
        """The notes, and findings about all other snapshots; *end_offset* is the log's, None when damage hides it."""
        for producer_id, note in self._notes.items():
            more = self._noted[producer_id] - 1
            message = f"{note.message}, and {more} times more" if more else note.message
            yield msgspec.structs.replace(note, message=message)
        yield from self._unsound
        if end_offset is None:
            return
        yield from self.due(end_offset)
        for snapshot in self._snapshots:
            yield _about(
                snapshot.path, f"it is of offset {snapshot.offset}, the log ends at {end_offset}", end_offset
            )

    def _compare(self, snapshot: _Snapshot) -> Iterator[Finding]:
        last_entries = {entry.producer_id: entry for entry in snapshot.entries}
        for entry in last_entries.values():
            folded = self._producers.get(entry.producer_id)
            if entry.last_offset >= snapshot.offset:
                message = f"producer {entry.producer_id} is said to have written offset {entry.last_offset}"
                yield _about(snapshot.path, message, snapshot.offset)
            elif folded is not None and folded.last_offset >= entry.last_offset:
                said = (entry.producer_epoch, entry.last_sequence, entry.last_offset)
                found = (folded.epoch, folded.last_sequence, folded.last_offset)
                # A holder of a name raises the epoch before its first batch: above is no contradiction.
                is_claimed = entry.producer_epoch > folded.epoch and entry.last_offset < 0
                if entry.producer_epoch < folded.epoch or (said[1:] != found[1:] and not is_claimed):
                    message = (
                        f"producer {entry.producer_id} is said to be at (epoch, sequence, offset) {said}, "
                        f"the batches say {found}"
                    )
                    yield _about(snapshot.path, message, snapshot.offset)


class _Snapshot(msgspec.Struct, frozen=True):
    path: str
    offset: int
    entries: list[ProducerSnapshotEntry]


def read_snapshot(files: Files, path: str) -> list[ProducerSnapshotEntry]:
    """The entries of a snapshot file; ``ValueError`` says why when it is not sound."""
    fd = files.open(path, readonly=True)
    try:
        data = files.pread(fd, min(files.size(fd), MAX_SNAPSHOT_BYTES), 0)
    finally:
        files.close(fd)
    if len(data) >= producer_snapshot.HEADER_BYTES:
        _, crc, _ = producer_snapshot.HEADER.unpack_from(data)
        if crc != _crc32c(data[producer_snapshot.CRC_START :]):
            raise ValueError("producer snapshot: the checksum does not match")
    return producer_snapshot.parse(data)


def _oddity(known: ProducerEntry, header: BatchHeader) -> Oddity | None:
    producer = f"producer {header.producer_id}"
    if header.producer_epoch < known.epoch:
        message = f"{producer} writes with epoch {header.producer_epoch} behind epoch {known.epoch}"
        return Oddity(Code.BAD_SEQUENCE, message)
    if (
        header.base_sequence < 0
        or header.is_control
        or header.producer_epoch > known.epoch
        or known.last_sequence < 0
    ):
        return None
    skipped = (header.base_sequence - next_sequence(known.last_sequence)) % SEQUENCE_LIMIT
    if skipped == 0:
        return None
    message = f"{producer} goes on with sequence {header.base_sequence} behind {known.last_sequence}"
    is_ahead = skipped < SEQUENCE_LIMIT // 2
    return Oddity(Code.SEQUENCE_GAP if is_ahead else Code.BAD_SEQUENCE, message)


def _about(path: str, message: str, offset: int | None = None) -> Finding:
    return Finding(
        Severity.ERROR, Code.BAD_SNAPSHOT, path, message, start_offset=offset, advice=ADVICE_SNAPSHOT
    )
