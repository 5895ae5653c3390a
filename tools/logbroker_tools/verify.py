"""Every check of a directory: batches, then what is derived from them, then the files beside them.

    family        checks
    batches       header, length, CRC, place in the offset space, leader epoch, records, timestamps, sequences
    indexes       each entry names a real batch, ascending; every entry is accounted for
    side          snapshots, checkpoints, metadata; files that do not belong
    journal       every event can be read

Findings are yielded as they are found: a check goes on behind what it finds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise

from logbroker_storage import aborted_index, offset_index, time_index
from logbroker_storage.checkpoints import (
    LEADER_EPOCH_CHECKPOINT,
    LOG_START_OFFSET_CHECKPOINT,
    META_PROPERTIES,
    PARTITION_METADATA,
    RECOVERY_POINT_CHECKPOINT,
    parse_leader_epochs,
    parse_meta_properties,
    parse_partition_metadata,
    parse_partition_offsets,
)
from logbroker_storage.errors import BatchDefect, CorruptBatchError
from logbroker_storage.events import decode_event
from logbroker_storage.files import Files, OsFiles
from logbroker_storage.producer_snapshot import parse as parse_snapshot
from logbroker_storage.record_batch import BatchHeader, Record, decode_records
from logbroker_storage.segment_files import (
    ABORTED_INDEX_SUFFIX,
    LOG_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    SNAPSHOT_SUFFIX,
    TIME_INDEX_SUFFIX,
    parse_segment_name,
)

from .findings import Code, Finding, Severity
from .layout import Partition, Segment, Target
from .walk import Damaged, Sound, walk

JOURNAL_TOPIC = "__journal"

_CODE_OF = {defect: Code[defect.name] for defect in BatchDefect}
_ADVICE_BATCH = "these offsets cannot be read; consumers skip them by seeking to the end of the range"
_ADVICE_TAIL = "an append that was cut short, or a writer at work: the next open cuts it into a side file"
_ADVICE_INDEX = "indexes are caches: `repair --write` builds them again"
_ADVICE_SIDE = "derived from the log: recovery passes over it"


def verify(target: Target, files: Files | None = None) -> Iterator[Finding]:
    """Every finding about what is at *target*."""
    files = files or OsFiles()
    for partition in target.partitions:
        yield from verify_partition(partition, files)
    if target.log_directory is not None:
        yield from _verify_directory(target.log_directory, files)


def verify_partition(partition: Partition, files: Files) -> Iterator[Finding]:
    """Every finding about one partition."""
    sequences = _Sequences()
    due_offset: int | None = None
    for number, segment in enumerate(partition.segments):
        is_last = number == len(partition.segments) - 1
        if partition.is_ours and due_offset is not None and segment.base_offset != due_offset:
            yield _missing(segment, due_offset)
        checker = _SegmentChecker(partition, segment, files, sequences, is_last=is_last)
        yield from checker.run()
        due_offset = checker.next_offset
    if partition.is_whole:
        yield from _verify_side_files(partition, files)


def _missing(segment: Segment, due_offset: int) -> Finding:
    return Finding(
        Severity.ERROR,
        Code.MISSING_OFFSETS,
        segment.path,
        f"the segment before it ends at offset {due_offset}, this one begins at {segment.base_offset}",
        position=0,
        start_offset=due_offset,
        end_offset=segment.base_offset,
        advice=_ADVICE_BATCH,
    )


class _SegmentChecker:
    """The batches of one segment, and the indexes that describe them, in one pass."""

    def __init__(
        self, partition: Partition, segment: Segment, files: Files, sequences: _Sequences, *, is_last: bool
    ) -> None:
        self._partition = partition
        self._segment = segment
        self._files = files
        self._sequences = sequences
        self._is_last = is_last
        self._max_timestamp_ms = -1
        self._base_offset = segment.base_offset or 0
        self.next_offset: int | None = segment.base_offset

    def run(self) -> Iterator[Finding]:
        offsets = _OffsetIndexCheck(self._segment, self._files)
        times = _TimeIndexCheck(self._segment, self._files)
        size = self._segment.size_bytes
        fd = self._files.open(self._segment.path, readonly=True)
        has_damage = False
        try:
            for item in walk(
                self._files,
                fd,
                end_position=size,
                base_offset=self._segment.base_offset,
                ours=self._partition.is_ours,
            ):
                if isinstance(item, Damaged):
                    has_damage = True
                    self.next_offset = None
                    yield self._damage(item, size)
                    continue
                self.next_offset = item.header.next_offset
                offsets.see(item.position, item.header, self._base_offset)
                times.see(item.header, self._base_offset)
                yield from self._records(item)
        finally:
            self._files.close(fd)
        if not has_damage:  # else entries may name what could not be read
            yield from offsets.leftovers()
            yield from times.leftovers()
        yield from _verify_aborted_index(self._segment, self._files, self._base_offset, self.next_offset)

    def _damage(self, damage: Damaged, size: int) -> Finding:
        at_end = self._is_last and damage.end_position == size
        torn = at_end and damage.defect in (BatchDefect.TRUNCATED, BatchDefect.ZEROS)
        until = f" to {damage.end_offset - 1}" if damage.end_offset is not None else " and what follows"
        return Finding(
            Severity.ERROR,
            _CODE_OF[damage.defect],
            self._segment.path,
            f"{damage.defect.value}: bytes {damage.position} to {damage.end_position - 1}, "
            f"offset {damage.start_offset}{until}",
            position=damage.position,
            start_offset=damage.start_offset,
            end_offset=damage.end_offset,
            advice=_ADVICE_TAIL if torn else _ADVICE_BATCH,
        )

    def _records(self, batch: Sound) -> Iterator[Finding]:
        header = batch.header
        try:
            records = decode_records(batch.stored(), self._partition.topic, self._partition.partition)
        except CorruptBatchError as error:
            yield self._about(batch, _CODE_OF[error.defect], str(error))
            return
        stamps = [record.timestamp_ms for record in records]
        if stamps and not header.uses_log_append_time and max(stamps) != header.max_timestamp_ms:
            yield self._about(
                batch,
                Code.BAD_TIMESTAMP,
                f"the header's largest timestamp is {header.max_timestamp_ms}, the records' is {max(stamps)}",
            )
        if self._partition.topic == JOURNAL_TOPIC and self._partition.is_ours:
            yield from self._events(batch, records)
        gap = self._sequences.see(header)
        if gap is not None:
            yield self._about(batch, Code.SEQUENCE_GAP, gap, severity=Severity.NOTE)

    def _events(self, batch: Sound, records: list[Record]) -> Iterator[Finding]:
        for record in records:
            if record.value is None:
                continue
            try:
                decode_event(record.value)
            except CorruptBatchError as error:
                yield self._about(batch, Code.BAD_EVENT, f"offset {record.offset}: {error}")

    def _about(self, batch: Sound, code: Code, message: str, severity: Severity = Severity.ERROR) -> Finding:
        return Finding(
            severity,
            code,
            self._segment.path,
            message,
            position=batch.position,
            start_offset=batch.header.base_offset,
            end_offset=batch.header.next_offset,
        )


class _Sequences:
    """The last sequence of each producer id, to see whether the next batch follows."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, int]] = {}

    def see(self, header: BatchHeader) -> str | None:
        """What is odd about the batch's sequence. Named producers may skip; compaction may have removed."""
        if header.producer_id < 0 or header.base_sequence < 0 or header.is_control:
            return None
        known = self._last.get(header.producer_id)
        self._last[header.producer_id] = (header.producer_epoch, header.last_sequence)
        if known is None or known[0] != header.producer_epoch:
            return None
        due = (known[1] + 1) % (1 << 31)
        if header.base_sequence == due:
            return None
        return f"producer {header.producer_id} goes on with sequence {header.base_sequence} behind {known[1]}"


# Indexes ------------------------------------------------------------------------------------------------


class _OffsetIndexCheck:
    """Strikes out each entry when the batch that it names comes by; what is left over is wrong."""

    def __init__(self, segment: Segment, files: Files) -> None:
        self._path = segment.beside(OFFSET_INDEX_SUFFIX)
        self._content = _read_if_there(files, self._path)
        self._left = {
            entry.position: entry.relative_offset for entry in offset_index.parse(self._content or b"")
        }
        self._wrong: list[str] = []

    def see(self, position: int, header: BatchHeader, base_offset: int) -> None:
        relative_offset = self._left.pop(position, None)
        if relative_offset is not None and relative_offset != header.last_offset - base_offset:
            self._wrong.append(
                f"the entry for position {position} names offset {base_offset + relative_offset}, "
                f"the batch there ends at {header.last_offset}"
            )

    def leftovers(self) -> Iterator[Finding]:
        if self._content is None:
            return
        if len(self._content) % offset_index.ENTRY_BYTES:
            self._wrong.append(f"{len(self._content)} bytes are not whole entries")
        entries = offset_index.parse(self._content)
        if any(
            later.relative_offset <= earlier.relative_offset or later.position <= earlier.position
            for earlier, later in pairwise(entries)
        ):
            self._wrong.append("the entries do not ascend")
        self._wrong += [f"no batch begins at position {position}" for position in self._left]
        for message in self._wrong:
            yield _index_finding(Code.BAD_OFFSET_INDEX, self._path, message)


class _TimeIndexCheck:
    """As for the offset index, by the last offset of the batch that an entry names."""

    def __init__(self, segment: Segment, files: Files) -> None:
        self._path = segment.beside(TIME_INDEX_SUFFIX)
        self._content = _read_if_there(files, self._path)
        self._left = {
            entry.relative_offset: entry.timestamp_ms for entry in time_index.parse(self._content or b"")
        }
        self._wrong: list[str] = []

    def see(self, header: BatchHeader, base_offset: int) -> None:
        timestamp_ms = self._left.pop(header.last_offset - base_offset, None)
        if timestamp_ms is not None and timestamp_ms != header.max_timestamp_ms:
            self._wrong.append(
                f"the entry for offset {header.last_offset} says {timestamp_ms}, "
                f"the batch's largest timestamp is {header.max_timestamp_ms}"
            )

    def leftovers(self) -> Iterator[Finding]:
        if self._content is None:
            return
        if len(self._content) % time_index.ENTRY_BYTES:
            self._wrong.append(f"{len(self._content)} bytes are not whole entries")
        entries = time_index.parse(self._content)
        if any(
            later.timestamp_ms <= earlier.timestamp_ms or later.relative_offset <= earlier.relative_offset
            for earlier, later in pairwise(entries)
        ):
            self._wrong.append("the entries do not ascend")
        self._wrong += [f"no batch ends at relative offset {offset}" for offset in self._left]
        for message in self._wrong:
            yield _index_finding(Code.BAD_TIME_INDEX, self._path, message)


def _verify_aborted_index(
    segment: Segment, files: Files, base_offset: int, next_offset: int | None
) -> Iterator[Finding]:
    path = segment.beside(ABORTED_INDEX_SUFFIX)
    content = _read_if_there(files, path)
    if content is None:
        return
    end_offset = (1 << 63) - 1 if next_offset is None else next_offset
    defect = aborted_index.check(content, base_offset=base_offset, end_offset=end_offset)
    if defect is not None:
        yield _index_finding(Code.BAD_ABORTED_INDEX, path, defect.value)


def _index_finding(code: Code, path: str, message: str) -> Finding:
    return Finding(Severity.ERROR, code, path, message, advice=_ADVICE_INDEX)


# Side files -----------------------------------------------------------------------------------------------


def _verify_side_files(partition: Partition, files: Files) -> Iterator[Finding]:
    parsers: dict[str, tuple[Code, Callable[[bytes], object]]] = {
        LEADER_EPOCH_CHECKPOINT: (Code.BAD_CHECKPOINT, parse_leader_epochs),
        PARTITION_METADATA: (Code.BAD_CHECKPOINT, parse_partition_metadata),
    }
    bases = {segment.base_offset for segment in partition.segments}
    for name in sorted(os.listdir(partition.folder)):
        path = os.path.join(partition.folder, name)
        if name.endswith(SNAPSHOT_SUFFIX):
            yield from _parsed(path, files, Code.BAD_SNAPSHOT, parse_snapshot)
        elif name in parsers:
            yield from _parsed(path, files, *parsers[name])
        elif not _belongs(name, bases):
            yield _stray(path, name)


def _belongs(name: str, bases: set[int | None]) -> bool:
    return any(
        parse_segment_name(name, suffix) in bases
        for suffix in (LOG_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, ABORTED_INDEX_SUFFIX)
        if parse_segment_name(name, suffix) is not None
    )


def _stray(path: str, name: str) -> Finding:
    if ".log.cut-" in name or ".log.unpublished-" in name:
        message = "bytes that recovery took off the log because they were never acknowledged"
        return Finding(
            Severity.NOTE, Code.SIDE_FILE, path, message, advice="delete it when you do not need them"
        )
    if name.endswith((".cleaned", ".replaces", ".tmp", ".swap", ".deleted")):
        message = "left by work that was cut short"
        return Finding(
            Severity.NOTE, Code.SIDE_FILE, path, message, advice="the next open or cleaning removes it"
        )
    return Finding(Severity.NOTE, Code.UNKNOWN_FILE, path, "not a file of a partition")


def _parsed(path: str, files: Files, code: Code, parse: Callable[[bytes], object]) -> Iterator[Finding]:
    try:
        parse(files.read_file(path))
    except (ValueError, CorruptBatchError) as error:
        yield Finding(Severity.ERROR, code, path, str(error), advice=_ADVICE_SIDE)


def _verify_directory(log_directory: str, files: Files) -> Iterator[Finding]:
    for name, parse in (
        (META_PROPERTIES, parse_meta_properties),
        (RECOVERY_POINT_CHECKPOINT, parse_partition_offsets),
        (LOG_START_OFFSET_CHECKPOINT, parse_partition_offsets),
    ):
        path = os.path.join(log_directory, name)
        if os.path.exists(path):
            yield from _parsed(path, files, Code.BAD_CHECKPOINT, parse)


def _read_if_there(files: Files, path: str) -> bytes | None:
    try:
        return files.read_file(path)
    except FileNotFoundError:
        return None
