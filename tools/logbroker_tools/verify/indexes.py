"""The three indexes of a segment against its batches, in the one pass over them.

    index       an entry is right when
    .index      a batch begins at its position and ends at its offset
    .timeindex  a batch ends at its offset (in Kafka's: holds it), whose largest timestamp it names, and no
                batch before that has a larger one
    .txnindex   its versions, order and bounds are right, and where its last offset lies there is an abort
                marker of its producer

Entries that lie in damaged bytes or offsets cannot be judged and are passed over. An index that is missing
is a note: readers scan instead. Index files are small (Kafka allows 10 MiB) and read whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from logbroker_storage import aborted_index, offset_index, time_index
from logbroker_storage.aborted_index import AbortedTransaction
from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.files import Files
from logbroker_storage.record_batch import BatchHeader, ControlType, decode_control_record
from logbroker_storage.segment_files import (
    ABORTED_INDEX_SUFFIX,
    LOG_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    TIME_INDEX_SUFFIX,
)

from ..findings import Code, Finding, Severity
from ..layout import CLEANED_SUFFIX, Partition, Segment
from ..walk import Damaged, Sound

ADVICE = "indexes are caches: `repair --write` builds them again"
ADVICE_ABORTED = (
    "readers of committed records may see aborted ones; it is not rebuilt from its own segment alone"
)
ADVICE_UNREADABLE = "look at its permissions and at the disk's own reports; readers do without it"
MAX_INDEX_BYTES = 256 << 20  # far above any segment.index.bytes: what is larger is no index
MAX_NAMED = 20  # wrong entries to name one by one


class _IndexFile(NamedTuple):
    """What a file holds: ``content`` is None where it is missing, or the *error* of reading it is there."""

    path: str
    content: bytes | None
    error: OSError | None


class IndexChecks:
    """All of them; shown each item of a segment in turn, then asked for what is wrong."""

    def __init__(self, partition: Partition, segment: Segment, files: Files) -> None:
        base_offset = segment.base_offset or 0
        offsets, times, aborted = (
            _read(files, segment.beside(suffix))
            for suffix in (OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, ABORTED_INDEX_SUFFIX)
        )
        self._files = (offsets, times, aborted)
        self._offsets = _OffsetIndexCheck(offsets, base_offset)
        self._times = _TimeIndexCheck(times, base_offset, exact=partition.is_ours)
        self._aborted = _AbortedIndexCheck(aborted, base_offset)
        self._needs_indexes = partition.is_whole
        self._has_batches = False

    def see(self, item: Sound | Damaged) -> None:
        self._has_batches = True
        if isinstance(item, Damaged):
            self._offsets.pass_over(item)
            self._times.pass_over(item)
            self._aborted.pass_over(item)
            return
        self._offsets.see(item.position, item.header)
        self._times.see(item.header)
        if item.header.is_control:
            self._aborted.see(item)

    def unreadable(self) -> Iterator[Finding]:
        """The index files that the system does not let us read; nothing else is said of them."""
        for file in self._files:
            if file.error is not None:
                message = file.error.strerror or str(file.error)
                yield Finding(Severity.ERROR, Code.UNREADABLE, file.path, message, advice=ADVICE_UNREADABLE)

    def findings(self, end_offset: int | None) -> Iterator[Finding]:
        """What is wrong; *end_offset* is the segment's, None when damage hides it."""
        for check in (self._offsets, self._times):
            if check.file.error is not None:
                continue
            if check.content is None:
                if self._needs_indexes and self._has_batches:
                    message = "there is no index: readers scan the segment from its start"
                    yield Finding(Severity.NOTE, Code.MISSING_INDEX, check.file.path, message, advice=ADVICE)
            else:
                yield from check.findings()
        if self._aborted.content is not None:
            yield from self._aborted.findings(end_offset)


class _OffsetIndexCheck:
    """Strikes out each entry when the batch that it names comes by; what is left over is wrong."""

    def __init__(self, file: _IndexFile, base_offset: int) -> None:
        self.file = file
        self.content = file.content
        self._base_offset = base_offset
        self._entries = offset_index.parse(self.content or b"")
        self._left = {entry.position: entry.relative_offset for entry in self._entries}
        self._wrong: list[str] = []

    def see(self, position: int, header: BatchHeader) -> None:
        relative_offset = self._left.pop(position, None)
        if relative_offset is not None and relative_offset != header.last_offset - self._base_offset:
            self._wrong.append(
                f"the entry for position {position} names offset {self._base_offset + relative_offset}, "
                f"the batch there ends at {header.last_offset}"
            )

    def pass_over(self, damage: Damaged) -> None:
        for position in [p for p in self._left if damage.position <= p < damage.end_position]:
            del self._left[position]

    def findings(self) -> Iterator[Finding]:
        assert self.content is not None
        yield from _too_large(Code.BAD_OFFSET_INDEX, self.file.path, self.content)
        if len(self.content) % offset_index.ENTRY_BYTES:
            self._wrong.append(f"{len(self.content)} bytes are not whole entries")
        if any(
            later.relative_offset <= earlier.relative_offset or later.position <= earlier.position
            for earlier, later in pairwise(self._entries)
        ):
            self._wrong.append("the entries do not ascend")
        if self._entries and self._entries[0].position <= 0:
            self._wrong.append("the first batch has an entry: it never gets one")
        self._wrong += [f"no batch begins at position {position}" for position in self._left if position]
        yield from _index_findings(Code.BAD_OFFSET_INDEX, self.file.path, self._wrong)


class _TimeIndexCheck:
    """As for the offset index, by the offsets that entries name, which ascend as the batches do."""

    def __init__(self, file: _IndexFile, base_offset: int, *, exact: bool) -> None:
        self.file = file
        self.content = file.content
        self._base_offset = base_offset
        self._exact = exact  # Kafka 3.7 named the record, all others the last offset of its batch
        self._entries = time_index.parse(self.content or b"")
        self._pending = sorted(self._entries, key=lambda entry: entry.relative_offset, reverse=True)
        self._max_timestamp_ms = -1
        self._wrong: list[str] = []

    def see(self, header: BatchHeader) -> None:
        is_largest = header.max_timestamp_ms > self._max_timestamp_ms
        self._max_timestamp_ms = max(header.max_timestamp_ms, self._max_timestamp_ms)
        last_offset = header.last_offset - self._base_offset
        while self._pending and self._pending[-1].relative_offset <= last_offset:
            entry = self._pending.pop()
            offset = self._base_offset + entry.relative_offset
            if offset < header.base_offset or (self._exact and offset != header.last_offset):
                self._wrong.append(f"no batch ends at offset {offset}")
            elif entry.timestamp_ms != header.max_timestamp_ms:
                self._wrong.append(
                    f"the entry for offset {offset} says {entry.timestamp_ms}, "
                    f"the batch's largest timestamp is {header.max_timestamp_ms}"
                )
            elif not is_largest:
                self._wrong.append(
                    f"the entry for offset {offset} names a timestamp that an earlier batch has passed"
                )

    def pass_over(self, damage: Damaged) -> None:
        end_offset = damage.end_offset
        self._pending = [
            entry
            for entry in self._pending
            if entry.relative_offset + self._base_offset < damage.start_offset
            or (end_offset is not None and entry.relative_offset + self._base_offset >= end_offset)
        ]

    def findings(self) -> Iterator[Finding]:
        assert self.content is not None
        yield from _too_large(Code.BAD_TIME_INDEX, self.file.path, self.content)
        if len(self.content) % time_index.ENTRY_BYTES:
            self._wrong.append(f"{len(self.content)} bytes are not whole entries")
        if any(
            later.timestamp_ms <= earlier.timestamp_ms or later.relative_offset <= earlier.relative_offset
            for earlier, later in pairwise(self._entries)
        ):
            self._wrong.append("the entries do not ascend")
        for entry in self._pending:
            self._wrong.append(f"offset {self._base_offset + entry.relative_offset} is behind the last batch")
        yield from _index_findings(Code.BAD_TIME_INDEX, self.file.path, self._wrong)


class _AbortedIndexCheck:
    """Each entry must name an abort marker; a marker may lack one, when its transaction has no records here."""

    def __init__(self, file: _IndexFile, base_offset: int) -> None:
        self.file = file
        self.content = file.content
        self._base_offset = base_offset
        self._left: dict[int, AbortedTransaction] = {
            entry.last_offset: entry for entry in aborted_index.parse(self.content or b"")
        }
        self._wrong: list[str] = []

    def see(self, batch: Sound) -> None:
        header = batch.header
        entry = self._left.pop(header.last_offset, None)
        if entry is None:
            return
        try:
            markers = [decode_control_record(record) for record in batch.records("", 0)]
        except CorruptBatchError:
            return  # a finding of the batch's own
        if header.producer_id != entry.producer_id:
            self._wrong.append(
                f"the entry for offset {entry.last_offset} names producer {entry.producer_id}, "
                f"the marker there is of producer {header.producer_id}"
            )
        elif any(marker.control_type is not ControlType.ABORT for marker in markers):
            self._wrong.append(f"the marker at offset {entry.last_offset} commits, the entry says it aborts")

    def pass_over(self, damage: Damaged) -> None:
        for offset in [
            offset
            for offset in self._left
            if damage.start_offset <= offset and (damage.end_offset is None or offset < damage.end_offset)
        ]:
            del self._left[offset]

    def findings(self, end_offset: int | None) -> Iterator[Finding]:
        assert self.content is not None
        yield from _too_large(Code.BAD_ABORTED_INDEX, self.file.path, self.content)
        defect = aborted_index.check(
            self.content,
            base_offset=self._base_offset,
            end_offset=1 << 63 if end_offset is None else end_offset,
        )
        if defect is not None:
            self._wrong.append(defect.value)
        else:
            self._wrong += [f"there is no marker at offset {offset}" for offset in self._left]
        yield from _index_findings(Code.BAD_ABORTED_INDEX, self.file.path, self._wrong, ADVICE_ABORTED)


def _index_findings(code: Code, path: str, wrong: list[str], advice: str = ADVICE) -> Iterator[Finding]:
    for message in wrong[:MAX_NAMED]:
        yield Finding(Severity.ERROR, code, path, message, advice=advice)
    if len(wrong) > MAX_NAMED:
        yield Finding(
            Severity.ERROR, code, path, f"and {len(wrong) - MAX_NAMED} more wrong entries", advice=advice
        )


def _too_large(code: Code, path: str, content: bytes) -> Iterator[Finding]:
    if len(content) >= MAX_INDEX_BYTES:
        yield Finding(
            Severity.ERROR,
            code,
            path,
            f"more than {MAX_INDEX_BYTES} bytes: looked at no further",
            advice=ADVICE,
        )


def _read(files: Files, path: str) -> _IndexFile:
    try:
        return _IndexFile(path, _read_if_there(files, path), None)
    except OSError as error:
        return _IndexFile(path, None, error)


def _read_if_there(files: Files, path: str) -> bytes | None:
    stem, _ = os.path.splitext(path)
    if files.exists(path + CLEANED_SUFFIX) and not files.exists(stem + LOG_SUFFIX + CLEANED_SUFFIX):
        # A compaction died when it had put its log in place and not yet this: the next open finishes it.
        path += CLEANED_SUFFIX
    try:
        fd = files.open(path, readonly=True)
    except FileNotFoundError:
        return None
    try:
        return files.pread(fd, min(files.size(fd), MAX_INDEX_BYTES), 0)
    finally:
        files.close(fd)
