"""The batches of a partition, one pass over its segments; what describes them is checked on the way.

    a segment's base offset      finding
    is where the last one ended  none
    is behind that               MISSING_OFFSETS (Kafka's own may: compaction empties segments)
    is before that               OVERLAP; a note when the file is empty (its process died before using it)

Where a log ends below its recovery point, records that had reached the disk are gone: MISSING_OFFSETS.
Zeros behind the last batch of the last segment are a note: a writer leaves room in advance.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from logbroker_storage.errors import BatchDefect, CorruptBatchError
from logbroker_storage.events import decode_event
from logbroker_storage.files import Files
from logbroker_storage.record_batch import Record, decode_control_record

from ..findings import Code, Finding, Severity
from ..layout import JOURNAL_TOPIC, Partition, Segment
from ..reading import segment_items
from ..walk import Damaged, Sound
from .indexes import IndexChecks
from .producers import ProducerChecks

_CODE_OF = {defect: Code[defect.name] for defect in BatchDefect}
_NOTHING_THERE = (BatchDefect.TRUNCATED, BatchDefect.ZEROS)

ADVICE_DAMAGE = "these offsets cannot be read; consumers skip them by seeking to the end of the range"
ADVICE_TORN = (
    "an append cut short, or a writer at work: recovery moves it to a side file before the next append"
)
ADVICE_UNSOUND_END = "nothing sound follows: recovery, or `repair --write`, cuts it into a side file"
ADVICE_ABOVE_RECOVERY_POINT = (
    "above the recovery point: copy the file first, for a recovery ends the log here and moves what follows "
    "into side files"
)
ADVICE_KAFKA = "a Kafka broker truncates here when it recovers the log: copy the file first"
ADVICE_FOREIGN = "if this is the log of a Kafka broker, give --kafka; otherwise " + ADVICE_DAMAGE
ADVICE_UNREADABLE = "it cannot be read: look at its permissions and at the disk's own reports"
ADVICE_LOST = "restore the segment from a backup if there is one; until then consumers skip the range"


def verify_batches(partition: Partition, files: Files) -> Iterator[Finding]:
    """Every finding about the batches of *partition* and the indexes and snapshots that describe them."""
    producers = ProducerChecks(partition, files)
    due_offset: int | None = None
    for segment in partition.segments:
        try:
            follows = _follows(partition, segment, due_offset)
            if follows is not None:
                yield follows
                if follows.severity is Severity.NOTE:
                    continue
            checks = _SegmentChecks(partition, segment, files, producers)
            yield from checks.run()
            due_offset = checks.next_offset
        except OSError as error:
            yield _unreadable(partition, segment, error)
            producers.lose()
            due_offset = None
    yield from producers.rest(due_offset)
    yield from _recovery_point(partition, due_offset)


def _follows(partition: Partition, segment: Segment, due_offset: int | None) -> Finding | None:
    base_offset = segment.base_offset
    if due_offset is None or base_offset is None or base_offset == due_offset:
        return None
    place = f"the segment before it ends at offset {due_offset}, this one begins at {base_offset}"
    if base_offset > due_offset:
        if not partition.is_ours:
            return None
        return Finding(
            Severity.ERROR,
            Code.MISSING_OFFSETS,
            segment.path,
            place,
            position=0,
            start_offset=due_offset,
            end_offset=base_offset,
            advice=ADVICE_LOST,
        )
    is_empty = segment.size_bytes == 0
    return Finding(
        Severity.NOTE if is_empty else Severity.ERROR,
        Code.OVERLAP,
        segment.path,
        place,
        position=0,
        start_offset=base_offset,
        end_offset=due_offset,
        advice="empty and unused: the next open removes it" if is_empty else ADVICE_DAMAGE,
    )


def _unreadable(partition: Partition, segment: Segment, error: OSError) -> Finding:
    has_gone = isinstance(error, FileNotFoundError) and not os.path.lexists(segment.path)
    return Finding(
        Severity.NOTE if has_gone else Severity.ERROR,
        Code.UNREADABLE,
        segment.path,
        "it has gone meanwhile: a cleaner is at work" if has_gone else f"{error.strerror or error}",
        start_offset=segment.base_offset,
        end_offset=partition.base_behind(segment),
        advice="run verify again when nobody has the directory open" if has_gone else ADVICE_UNREADABLE,
    )


def _recovery_point(partition: Partition, end_offset: int | None) -> Iterator[Finding]:
    point = partition.recovery_point
    if point is None or end_offset is None or end_offset >= point or not partition.is_whole:
        return
    yield Finding(
        Severity.ERROR,
        Code.MISSING_OFFSETS,
        partition.segments[-1].path,
        f"the log ends at offset {end_offset}, but offsets below {point} had reached the disk",
        position=partition.segments[-1].size_bytes,
        start_offset=end_offset,
        end_offset=point,
        advice=ADVICE_LOST,
    )


class _SegmentChecks:
    """One segment; ``next_offset`` is then where the next one must begin, None when damage hides it."""

    def __init__(
        self, partition: Partition, segment: Segment, files: Files, producers: ProducerChecks
    ) -> None:
        self._partition = partition
        self._segment = segment
        self._producers = producers
        self._indexes = IndexChecks(partition, segment, files)
        self._is_journal = partition.is_ours and partition.topic == JOURNAL_TOPIC
        self.next_offset: int | None = segment.base_offset
        self._end_position = 0

    def run(self) -> Iterator[Finding]:
        yield from self._indexes.unreadable()
        # Before the batches are read: what a writer at work appends meanwhile is not looked at, and no room.
        size_bytes = self._segment.size_bytes
        for item in segment_items(self._partition, self._segment):
            self._indexes.see(item)
            if isinstance(item, Damaged):
                self.next_offset = item.end_offset
                self._end_position = item.end_position
                self._producers.lose()
                yield self._damage(item)
            else:
                self.next_offset = item.header.next_offset
                self._end_position = item.position + item.header.size_bytes
                yield from self._batch(item)
        if self._end_position < size_bytes:
            yield self._room(size_bytes)
        yield from self._indexes.findings(self.next_offset)

    def _room(self, size_bytes: int) -> Finding:
        return Finding(
            Severity.NOTE,
            Code.ZEROS,
            self._segment.path,
            f"bytes {self._end_position} to {size_bytes - 1} are zeros: room for what comes next",
            position=self._end_position,
            start_offset=self.next_offset,
            advice="nothing to do: a writer leaves it in advance, and cuts it off when it closes the log",
        )

    def _damage(self, damage: Damaged) -> Finding:
        if damage.end_offset is None:
            until = " and what follows"
        else:
            until = f" to {damage.end_offset - 1}" if damage.end_offset - 1 > damage.start_offset else ""
        return Finding(
            Severity.ERROR,
            _CODE_OF[damage.defect],
            self._segment.path,
            f"{damage.defect.value}: bytes {damage.position} to {damage.end_position - 1}, "
            f"offset {damage.start_offset}{until}",
            position=damage.position,
            start_offset=damage.start_offset,
            end_offset=damage.end_offset,
            advice=self._advice(damage),
        )

    def _advice(self, damage: Damaged) -> str:
        """What will become of it: see the table of storage's ``recovery``."""
        if not self._partition.is_ours:
            return ADVICE_KAFKA
        if damage.defect is BatchDefect.BAD_EPOCH:
            return ADVICE_FOREIGN
        point = self._partition.recovery_point
        if point is not None and damage.start_offset < point:
            return ADVICE_DAMAGE
        if damage.end_offset is None:  # the end of the last segment
            return ADVICE_TORN if damage.defect in _NOTHING_THERE else ADVICE_UNSOUND_END
        return ADVICE_DAMAGE if point is None else ADVICE_ABOVE_RECOVERY_POINT

    def _batch(self, batch: Sound) -> Iterator[Finding]:
        header = batch.header
        yield from self._producers.due(header.base_offset)
        finding = self._producers.see(self._segment.path, batch.position, header)
        if finding is not None:
            yield finding
        try:
            records = batch.records(self._partition.topic, self._partition.partition)
            if header.is_control and (header.is_transactional or self._partition.is_ours):
                for record in records:  # else it is one of Raft's, in the log of Kafka's own metadata
                    decode_control_record(record)
        except CorruptBatchError as error:
            reason = str(error).partition(": ")[2]  # without the position, which is one in a buffer
            yield self._about(batch, _CODE_OF[error.defect], reason)
            return
        yield from self._timestamps(batch, records)
        if self._is_journal:
            yield from self._events(batch, records)

    def _timestamps(self, batch: Sound, records: list[Record]) -> Iterator[Finding]:
        header = batch.header
        if not records or header.uses_log_append_time:
            return
        newest = max(record.timestamp_ms for record in records)
        if newest != header.max_timestamp_ms:
            message = f"the header's largest timestamp is {header.max_timestamp_ms}, the records' is {newest}"
            yield self._about(batch, Code.BAD_TIMESTAMP, message)

    def _events(self, batch: Sound, records: list[Record]) -> Iterator[Finding]:
        for record in records:
            if record.value is None:
                continue
            try:
                key = decode_event(record.value).key()
            except CorruptBatchError as error:
                yield self._about(batch, Code.BAD_EVENT, f"offset {record.offset}: {error}")
                continue
            if key != record.key:
                message = f"offset {record.offset}: the event's key is {key!r}, the record's {record.key!r}"
                yield self._about(batch, Code.BAD_EVENT, message)

    def _about(self, batch: Sound, code: Code, message: str) -> Finding:
        return Finding(
            Severity.ERROR,
            code,
            self._segment.path,
            message,
            position=batch.position,
            start_offset=batch.header.base_offset,
            end_offset=batch.header.next_offset,
        )
