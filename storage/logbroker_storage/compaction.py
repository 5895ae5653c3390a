"""Compaction: of the records with one key, only the latest stays, at its own offset.

Two passes over the sealed segments' batches, both pure: ``map_offsets`` remembers the latest offset of
each key, as far as memory allows; ``compact`` rewrites the batches. The fate of a record, first match:

    the record                                                         fate
    belongs to an aborted transaction                                  ABORTED
    has no key, and has outlived its time to live                      TTL_EXPIRED
    has no key (produced before the topic was compacted)               KEPT
    has a later record of its key in the map                           SUPERSEDED
    lies above what the map covers                                     KEPT
    has outlived its time to live                                      TTL_EXPIRED
    is a tombstone below ``tombstones_end``                            TOMBSTONE_EXPIRED
    anything else                                                      KEPT

Invariants of the output:
- Batches still tile the offset space. What is left of a batch keeps its base offset, last offset delta,
  producer fields and codec. A run of batches without a record left becomes one empty batch.
- A producer's last batch is never merged into such a run: as an empty batch it keeps the last sequence.
- A batch that loses nothing is passed on byte for byte, so compacting twice changes nothing.

No older value may come back. The latest record of a key is dropped only where the map, together with the
passes before, covers its offset, so that nothing older of the key is left. For that the caller sees to it
that (1) the batches begin at the log's start, without a gap (end before a damaged segment), and (2)
segments are replaced oldest first, each durable before the next.

Tombstones must outlive the slowest reader, who may have read the old value and not yet the deletion. Kafka
stamps a delete horizon into each batch (KIP-534). Here the caller remembers instead when compaction first
reached an offset (``CleanedPoint``), as older versions of Kafka did by file times: a tombstone may go when
it has been below a cleaned offset for delete.retention.ms. Losing that memory only keeps tombstones longer.

Only what lies below the last stable offset is compacted, so every transaction with a record here is decided. A
commit marker goes once nothing of its transaction is left before it; an abort marker stays, because the entry
of the aborted index does, and a Kafka client takes the one for the end of the other. A marker that is its
producer's last batch stays in any case: it holds the newest epoch. So does one of a producer that a snapshot knows
in a transaction: recovery may begin with that snapshot, and would wait for the marker for ever.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from .aborted_index import AbortedByProducer, is_aborted
from .compression import Buffer
from .errors import CorruptBatchError
from .record_batch import (
    BatchFields,
    BatchHeader,
    ControlType,
    NewRecord,
    Record,
    StoredBatch,
    control_type_of,
    decode_records,
    encode_batch,
    encode_empty_batch,
)
from .record_expiry import NO_TTL, is_expired
from .retention import SegmentInfo

# What a key costs in an OffsetMap: its bytes object, the offset's int and the slot in a dict that has just
# grown; measured with tracemalloc for 100,000 to 700,000 keys: 142 to 183 bytes.
ENTRY_BYTES = 192
DIGEST_BYTES = 24
MAX_RELATIVE_OFFSET = (1 << 31) - 1
NOTHING_ABORTED: AbortedByProducer = {}


class Fate(enum.Enum):
    """What compaction does with a record, and why."""

    KEPT = "kept"
    ABORTED = "aborted with its transaction"
    SUPERSEDED = "superseded by a later record of its key"
    TOMBSTONE_EXPIRED = "a deletion that every reader has had time to see"
    TTL_EXPIRED = "outlived its time to live"


# What there is to compact ---------------------------------------------------------------------------------


class CleanedPoint(msgspec.Struct, frozen=True, gc=False):
    """At *cleaned_ms* a pass was complete whose map covered all offsets below *offset*."""

    offset: int
    cleaned_ms: int


def cleaned_points_key(log_key: bytes) -> bytes:
    """Where the view keeps the ``CleanedPoint`` values of a log."""
    return b"cleaned\0" + log_key


class CompactionReason(enum.Enum):
    """Why a log is compacted now."""

    DIRTY_RATIO = "min.cleanable.dirty.ratio is reached"
    MAX_LAG = "max.compaction.lag.ms is reached"


def compactable(
    segments: Sequence[SegmentInfo], *, stable_offset: int, now_ms: int, min_compaction_lag_ms: int
) -> list[SegmentInfo]:
    """The sealed segments, oldest first, that are decided, durable, and older than min.compaction.lag.ms."""
    found: list[SegmentInfo] = []
    for segment in segments:
        is_young = min_compaction_lag_ms > 0 and now_ms - segment.max_timestamp_ms < min_compaction_lag_ms
        if segment.is_active or segment.next_offset > stable_offset or is_young:
            break
        found.append(segment)
    return found


def due(
    segments: Sequence[SegmentInfo],
    *,
    cleaned_offset: int,
    now_ms: int,
    min_cleanable_dirty_ratio: float,
    max_compaction_lag_ms: int,
) -> CompactionReason | None:
    """Why *segments* (the ``compactable`` ones) should be compacted now; None when they need not be.

    Segments that end above *cleaned_offset* are dirty.
    """
    dirty = [segment for segment in segments if segment.next_offset > cleaned_offset]
    dirty_bytes = sum(segment.size_bytes for segment in dirty)
    if not dirty_bytes:
        return None
    if any(0 <= segment.max_timestamp_ms <= now_ms - max_compaction_lag_ms for segment in dirty):
        return CompactionReason.MAX_LAG
    total_bytes = sum(segment.size_bytes for segment in segments)
    return CompactionReason.DIRTY_RATIO if dirty_bytes / total_bytes >= min_cleanable_dirty_ratio else None


def grouped(segments: Sequence[SegmentInfo], *, segment_bytes: int) -> list[list[SegmentInfo]]:
    """Neighbours that are rewritten into one segment, because together they fit in *segment_bytes*.

    Without this, compaction leaves ever more tiny files. A group's offsets fit an index entry's int32.
    """
    groups: list[list[SegmentInfo]] = []
    group_bytes = 0
    for segment in segments:
        fits = groups and group_bytes + segment.size_bytes <= segment_bytes
        if fits and segment.next_offset - groups[-1][0].base_offset <= MAX_RELATIVE_OFFSET:
            groups[-1].append(segment)
            group_bytes += segment.size_bytes
        else:
            groups.append([segment])
            group_bytes = segment.size_bytes
    return groups


def tombstones_end(points: Iterable[CleanedPoint], *, now_ms: int, delete_retention_ms: int) -> int:
    """Tombstones below this offset may go: it was cleaned delete.retention.ms ago or earlier; 0 at first."""
    return max(
        (point.offset for point in points if point.cleaned_ms <= now_ms - delete_retention_ms), default=0
    )


def remembered(
    points: Sequence[CleanedPoint], *, now_ms: int, delete_retention_ms: int
) -> list[CleanedPoint]:
    """The points that ``tombstones_end`` can still need, ascending: those behind the one it gives now."""
    end = tombstones_end(points, now_ms=now_ms, delete_retention_ms=delete_retention_ms)
    return sorted((point for point in points if point.offset >= end), key=lambda point: point.cleaned_ms)


# First pass: the latest offset of each key ------------------------------------------------------------------


class OffsetMap:
    """The latest offset of each key seen, for as many keys as *memory_bytes* hold.

    Exact: short keys are held themselves, longer ones by a 24-byte BLAKE2b digest, which no short key can
    equal because those have fewer than 24 bytes.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._capacity = max(1, memory_bytes // ENTRY_BYTES)
        self._offsets: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def put(self, key: bytes, offset: int) -> bool:
        """Remember *offset* as the latest of *key*; False, and nothing done, when the map is full."""
        name = _name(key)
        if name not in self._offsets and len(self) >= self._capacity:
            return False
        self._offsets[name] = offset
        return True

    def latest(self, key: bytes) -> int:
        """The latest offset of *key*, -1 when it was not seen."""
        return self._offsets.get(_name(key), -1)


def _name(key: bytes) -> bytes:
    if len(key) < DIGEST_BYTES:
        return key
    return hashlib.blake2b(key, digest_size=DIGEST_BYTES).digest()


def map_offsets(
    batches: Iterable[StoredBatch],
    offsets: OffsetMap,
    *,
    dirty_offset: int = 0,
    aborted: AbortedByProducer = NOTHING_ABORTED,
) -> int:
    """Fill *offsets* from *batches* in order; every offset below the returned one is then covered.

    Batches below *dirty_offset* were covered by an earlier pass; those of *aborted* transactions do not count.
    When the map is full the answer is the first offset that did not fit: compacting with this map is right
    all the same, and the next pass goes on from there. So it is at a batch whose records do not parse.
    """
    covered_offset = 0
    for batch in batches:
        header = batch.header
        if header.next_offset > dirty_offset and not is_aborted(header, aborted):
            unmapped_offset = _map_batch(batch, offsets, dirty_offset)
            if unmapped_offset is not None:
                return unmapped_offset
        covered_offset = header.next_offset
    return covered_offset


def _map_batch(batch: StoredBatch, offsets: OffsetMap, dirty_offset: int) -> int | None:
    """Put the keys of one batch into the map; the first offset that did not go in, if any."""
    if batch.header.is_control or not batch.header.record_count:
        return None
    try:
        records = decode_records(batch)
    except CorruptBatchError:
        return batch.header.base_offset
    for record in records:
        key = record.key
        if key is None or record.offset < dirty_offset:
            continue
        if not offsets.put(key, record.offset):
            return record.offset
    return None


# Second pass: the rewrite -----------------------------------------------------------------------------------


class CompactionRules(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides the fate of a record.

    Attributes:
        latest: the latest offset of each key.
        covered_offset: what ``map_offsets`` returned for it.
        ttl_ms: the topic's message.ttl.ms, -1 for none; a record's own applies in any case.
        tombstones_end: the answer of the function of that name.
        producer_last_offsets: by producer id, the last offset of its last batch in the whole log.
        aborted: the aborted transactions of what is compacted, by producer id.
        snapshots_open: the producers that some snapshot knows in a transaction.
    """

    latest: OffsetMap
    covered_offset: int
    now_ms: int
    ttl_ms: int = NO_TTL
    tombstones_end: int = 0
    producer_last_offsets: Mapping[int, int] = {}
    aborted: AbortedByProducer = NOTHING_ABORTED
    snapshots_open: frozenset[int] = frozenset()


def compact(
    batches: Iterable[StoredBatch],
    rules: CompactionRules,
    *,
    unfinished: set[int] | None = None,
    fates: Counter[Fate] | None = None,
) -> Iterator[Buffer]:
    """The batches that take the place of *batches*: one group of segments, oldest batch first.

    *unfinished* holds the producers of whom something transactional is left and no marker came yet; give the
    same set to each group of a pass. *fates* counts what became of the records.
    """
    unfinished = set() if unfinished is None else unfinished
    run: _EmptiedRun | None = None
    for batch in batches:
        header = batch.header
        rewritten = _rewritten(batch, rules, Counter() if fates is None else fates)
        if header.is_control:
            rewritten = _left_of_marker(batch, rules, unfinished)
        elif header.is_transactional and rewritten is not None:
            unfinished.add(header.producer_id)
        if run is not None and (rewritten is not None or not run.has_room_for(header)):
            yield run.merged()
            run = None
        if rewritten is not None:
            yield rewritten
        elif run is None:
            run = _EmptiedRun(header)
        else:
            run.add(header)
    if run is not None:
        yield run.merged()


def fate_of(record: Record, rules: CompactionRules) -> Fate:
    """What becomes of a record whose transaction, if any, was committed; the table above, row by row."""
    key = record.key
    is_covered = record.offset < rules.covered_offset
    if key is None:
        is_expired_now = is_expired(record, now_ms=rules.now_ms, ttl_ms=rules.ttl_ms)
        return Fate.TTL_EXPIRED if is_expired_now else Fate.KEPT
    if rules.latest.latest(key) > record.offset:
        return Fate.SUPERSEDED
    # From here on the record is the latest that is known. Dropping it must not bring back an older one.
    if not is_covered:
        return Fate.KEPT
    if is_expired(record, now_ms=rules.now_ms, ttl_ms=rules.ttl_ms):
        return Fate.TTL_EXPIRED
    if record.value is None and record.offset < rules.tombstones_end:
        return Fate.TOMBSTONE_EXPIRED
    return Fate.KEPT


def _rewritten(batch: StoredBatch, rules: CompactionRules, fates: Counter[Fate]) -> Buffer | None:
    """What is left of one batch; None when nothing is and its offsets can go into a run."""
    header = batch.header
    if header.is_control:
        return batch.data
    if is_aborted(header, rules.aborted):
        fates[Fate.ABORTED] += header.record_count
        return _emptied(header) if _is_producers_last(header, rules) else None
    if header.record_count == 0:
        return batch.data if _is_producers_last(header, rules) else None
    try:
        records = decode_records(batch)
    except CorruptBatchError:
        return batch.data  # its checksum is right, so it was written like this: not ours to judge
    decided = [fate_of(record, rules) for record in records]
    fates.update(decided)
    kept = [record for record, fate in zip(records, decided, strict=True) if fate is Fate.KEPT]
    if len(kept) == len(records):
        return batch.data
    if kept:
        return with_records(header, kept)
    return _emptied(header) if _is_producers_last(header, rules) else None


def _left_of_marker(batch: StoredBatch, rules: CompactionRules, unfinished: set[int]) -> Buffer | None:
    """The marker, unless it says nothing any more; see the module."""
    header = batch.header
    ends_something = header.producer_id in unfinished
    unfinished.discard(header.producer_id)
    is_waited_for = ends_something or header.producer_id in rules.snapshots_open
    if is_waited_for or _is_producers_last(header, rules) or not _is_commit(batch):
        return batch.data
    return None


def _is_commit(batch: StoredBatch) -> bool:
    try:
        return control_type_of(batch) is ControlType.COMMIT
    except CorruptBatchError:
        return False  # its checksum is right, so it was written like this: not ours to judge


def _is_producers_last(header: BatchHeader, rules: CompactionRules) -> bool:
    return (
        header.producer_id >= 0 and rules.producer_last_offsets.get(header.producer_id) == header.last_offset
    )


def with_records(header: BatchHeader, kept: Sequence[Record]) -> Buffer:
    """The batch of *header* with only the records *kept*, each at its offset."""
    if not kept:
        return _emptied(header)
    fields = _place_and_producer(header)
    fields["compression"] = header.compression
    fields["log_append_time"] = header.uses_log_append_time
    return encode_batch(
        [NewRecord(record.value, record.key, record.header_pairs, record.timestamp_ms) for record in kept],
        offset_deltas=[record.offset - header.base_offset for record in kept],
        base_timestamp_ms=header.base_timestamp_ms,  # to which all distances are known to fit
        last_offset_delta=header.last_offset_delta,
        **fields,
    )


def _emptied(header: BatchHeader) -> Buffer:
    """The batch of *header* without a record; uncompressed, for there is nothing to compress."""
    return encode_empty_batch(
        last_offset=header.last_offset, timestamp_ms=header.max_timestamp_ms, **_place_and_producer(header)
    )


def _place_and_producer(header: BatchHeader) -> BatchFields:
    return {
        "base_offset": header.base_offset,
        "partition_leader_epoch": header.partition_leader_epoch,
        "producer_id": header.producer_id,
        "producer_epoch": header.producer_epoch,
        "base_sequence": header.base_sequence,
        "transactional": header.is_transactional,
    }


class _EmptiedRun:
    """Neighbours without a record left, which become one batch; a segment may hold millions of them."""

    def __init__(self, first: BatchHeader) -> None:
        self._first = first
        self._last_offset = first.last_offset
        self._max_timestamp_ms = first.max_timestamp_ms  # kept for retention

    def has_room_for(self, header: BatchHeader) -> bool:
        return header.last_offset - self._first.base_offset <= MAX_RELATIVE_OFFSET

    def add(self, header: BatchHeader) -> None:
        self._last_offset = header.last_offset
        self._max_timestamp_ms = max(self._max_timestamp_ms, header.max_timestamp_ms)

    def merged(self) -> Buffer:
        return encode_empty_batch(
            base_offset=self._first.base_offset,
            last_offset=self._last_offset,
            timestamp_ms=self._max_timestamp_ms,
            partition_leader_epoch=self._first.partition_leader_epoch,
        )
