"""Compaction: the latest value of each key survives at its offset, and nothing else changes."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker_storage import compaction
from logbroker_storage.aborted_index import AbortedTransaction
from logbroker_storage.compaction import (
    CleanedPoint,
    CompactionReason,
    CompactionRules,
    Fate,
    OffsetMap,
    compact,
    map_offsets,
)
from logbroker_storage.record_batch import (
    TTL_HEADER,
    Compression,
    ControlType,
    NewRecord,
    Record,
    StoredBatch,
    assign,
    decode_records,
    read_batch,
)
from logbroker_storage.retention import SegmentInfo
from logbroker_storage.testing import LogBuilder, MemoryFiles
from logbroker_storage.testing.manual_clock import START_MS
from tests.storage.memory import peak_bytes

PLENTY = 1 << 20
FAR = 1 << 62


@pytest.fixture
def log() -> LogBuilder:
    return LogBuilder("/log", files=MemoryFiles())


def stored(log: LogBuilder) -> list[StoredBatch]:
    content = log.content()
    return [read_batch(content, position) for position, _ in log.scan()[0]]


def compacted(
    batches: Iterable[StoredBatch], *, memory_bytes: int = PLENTY, dirty_offset: int = 0, **rules
) -> list[StoredBatch]:
    batches = list(batches)
    latest = OffsetMap(memory_bytes)
    aborted = rules.get("aborted", {})
    covered = map_offsets(batches, latest, dirty_offset=dirty_offset, aborted=aborted)
    applied = CompactionRules(latest=latest, covered_offset=covered, **{"now_ms": START_MS, **rules})
    return [read_batch(bytes(data)) for data in compact(batches, applied)]


def records(batches: Iterable[StoredBatch]) -> list[Record]:
    return [record for batch in batches if not batch.header.is_control for record in decode_records(batch)]


def facts(batches: Iterable[StoredBatch]) -> list[tuple[int, bytes | None, bytes | None]]:
    return [(record.offset, record.key, record.value) for record in records(batches)]


def spans(batches: Iterable[StoredBatch]) -> list[tuple[int, int, int]]:
    """(base offset, last offset, record count) of each batch."""
    return [(b.header.base_offset, b.header.last_offset, b.header.record_count) for b in batches]


# What stays ---------------------------------------------------------------------------------------------


def test_only_the_latest_record_of_a_key_stays_at_its_own_offset(log):
    log.keyed((b"a", b"1"), (b"b", b"1"), (b"a", b"2")).keyed((b"c", b"1"), (b"a", b"3"))
    after = compacted(stored(log))
    assert facts(after) == [(1, b"b", b"1"), (3, b"c", b"1"), (4, b"a", b"3")]
    assert spans(after) == [(0, 2, 1), (3, 4, 2)]


def test_a_batch_that_loses_nothing_is_passed_on_byte_for_byte(log):
    log.keyed((b"a", b"1"), compression=Compression.ZSTD).batch(b"no key")
    assert [batch.data for batch in compacted(stored(log))] == [batch.data for batch in stored(log)]


def test_batches_without_a_record_left_become_one_empty_batch(log):
    for number in range(4):
        log.keyed((b"a", b"%d" % number), (b"b", b"%d" % number))
    log.keyed((b"a", b"4")).keyed((b"b", b"4"))
    assert spans(compacted(stored(log))) == [(0, 7, 0), (8, 8, 1), (9, 9, 1)]


def test_a_run_of_emptied_batches_takes_no_memory_for_each(log):
    log.keyed((b"k", b"1"))
    (batch,) = stored(log)
    count = 5000

    def superseded() -> Iterator[StoredBatch]:
        for offset in range(count):
            data = bytearray(batch.data)
            assign(data, offset, 0)
            yield read_batch(data)

    latest = OffsetMap(PLENTY)
    latest.put(b"k", count)
    rules = CompactionRules(latest=latest, covered_offset=count, now_ms=START_MS)
    left = []
    assert peak_bytes(lambda: left.extend(compact(superseded(), rules))) < 10 * count
    assert {span for data in left for span in spans([read_batch(bytes(data))])} == {(0, count - 1, 0)}


def test_the_empty_batch_is_as_young_as_the_youngest_it_replaces(log):
    log.records(NewRecord(b"1", b"a", (), 500)).records(NewRecord(b"2", b"a", (), 400)).keyed((b"a", b"3"))
    assert compacted(stored(log))[0].header.max_timestamp_ms == 500


@pytest.mark.parametrize("codec", list(Compression))
def test_what_is_left_of_a_batch_keeps_codec_producer_timestamps_and_headers(log, codec):
    log.records(
        NewRecord(b"1", b"a", (), 1000),
        NewRecord(b"2", b"b", [("h", b"x"), ("h", None)], 900),
        NewRecord(b"3", b"c", (), 2000),
        producer_id=7,
        producer_epoch=2,
        base_sequence=40,
        compression=codec,
    ).keyed((b"a", b"4"), (b"c", b"4"))
    before, after = stored(log)[0].header, compacted(stored(log))[0]
    kept = decode_records(after)
    assert [(r.offset, r.timestamp_ms, r.headers) for r in kept] == [(1, 900, [("h", b"x"), ("h", None)])]
    for field in (
        "base_offset",
        "last_offset",
        "producer_id",
        "producer_epoch",
        "base_sequence",
        "last_sequence",
    ):
        assert getattr(after.header, field) == getattr(before, field), field
    assert after.header.compression is codec


def test_log_append_time_is_kept(log):
    log.keyed((b"a", b"1"), (b"b", b"1"), log_append_time=True).keyed((b"a", b"2"))
    before, after = stored(log)[0], compacted(stored(log))[0]
    assert after.header.uses_log_append_time
    assert decode_records(after)[0].timestamp_ms == before.header.max_timestamp_ms


def test_a_producers_last_batch_stays_as_an_empty_one(log):
    log.keyed((b"a", b"1"), (b"a", b"2"), producer_id=7, producer_epoch=1, base_sequence=5)
    log.keyed((b"a", b"3"), producer_id=8, producer_epoch=0, base_sequence=0).keyed((b"a", b"4"))
    after = compacted(stored(log), producer_last_offsets={7: 1, 8: 90})
    assert spans(after) == [(0, 1, 0), (2, 2, 0), (3, 3, 1)]
    header = after[0].header
    assert (header.producer_id, header.producer_epoch, header.last_sequence) == (7, 1, 6)
    assert after[1].header.producer_id == -1
    # Once the producer has written elsewhere, its empty batch goes the way of the others.
    again = compacted(after, producer_last_offsets={7: 95, 8: 90})
    assert spans(again) == [(0, 2, 0), (3, 3, 1)]


# Tombstones ---------------------------------------------------------------------------------------------


def test_a_tombstone_goes_only_when_every_reader_has_had_time(log):
    log.keyed((b"a", b"1"), (b"a", None), (b"b", b"1"))
    early = compacted(stored(log))
    assert facts(early) == [(1, b"a", None), (2, b"b", b"1")]
    late = compacted(early, dirty_offset=3, tombstones_end=2)
    assert facts(late) == [(2, b"b", b"1")]


def test_tombstones_end_is_what_was_cleaned_long_enough_ago():
    points = [CleanedPoint(100, 10), CleanedPoint(200, 20), CleanedPoint(300, 30)]
    for now_ms, end in ((10, 0), (15, 100), (24, 100), (25, 200), (1000, 300)):
        assert compaction.tombstones_end(points, now_ms=now_ms, delete_retention_ms=5) == end
    assert compaction.remembered(points, now_ms=26, delete_retention_ms=5) == points[1:]


# Time to live -------------------------------------------------------------------------------------------


def test_outlived_records_go_and_bring_no_older_value_back(log):
    ttl = [(TTL_HEADER, struct.pack(">q", 10))]
    log.records(
        NewRecord(b"old", b"a", (), 100), NewRecord(b"brief", b"a", ttl, 200), NewRecord(b"x", None, ttl, 200)
    )
    log.records(NewRecord(b"y", b"b", (), 205))
    assert facts(compacted(stored(log), now_ms=209)) == [
        (1, b"a", b"brief"),
        (2, None, b"x"),
        (3, b"b", b"y"),
    ]
    assert facts(compacted(stored(log), now_ms=210)) == [(3, b"b", b"y")]
    assert facts(compacted(stored(log), now_ms=250, ttl_ms=45)) == []


def test_an_outlived_record_above_the_covered_offset_stays(log):
    ttl = [(TTL_HEADER, struct.pack(">q", 10))]
    log.records(NewRecord(b"old", b"a", (), 100), NewRecord(b"z", b"z", (), 100))
    log.records(NewRecord(b"brief", b"a", ttl, 200))
    tiny = compaction.ENTRY_BYTES  # room for one key: the second record is not covered
    assert facts(compacted(stored(log), now_ms=10**6, memory_bytes=tiny)) == [
        (0, b"a", b"old"),
        (1, b"z", b"z"),
        (2, b"a", b"brief"),
    ]


# Transactions -------------------------------------------------------------------------------------------


COMMITTED = {"producer_id": 5, "producer_epoch": 0, "transactional": True}
ABORTED_FIRST = {5: [AbortedTransaction(5, 1, 2, 3)]}


def test_aborted_records_go_and_supersede_nothing(log):
    log.keyed((b"a", b"1")).keyed((b"a", b"2"), base_sequence=0, **COMMITTED)
    log.control(ControlType.ABORT, producer_id=5)
    after = compacted(stored(log), aborted=ABORTED_FIRST)
    assert facts(after) == [(0, b"a", b"1")]
    assert spans(after) == [(0, 0, 1), (1, 1, 0), (2, 2, 1)]
    assert after[2].data == stored(log)[2].data  # as long as the index has the entry, a client needs it


def test_committed_records_are_like_any_others(log):
    log.keyed((b"a", b"1")).keyed((b"a", b"2"), (b"b", b"1"), base_sequence=0, **COMMITTED)
    log.control(ControlType.COMMIT, producer_id=5).keyed((b"b", b"2"))
    after = compacted(stored(log))
    assert facts(after) == [(1, b"a", b"2"), (4, b"b", b"2")]
    assert after[1].header.is_transactional


def test_a_commit_marker_goes_with_the_last_of_its_transaction(log):
    log.keyed((b"a", b"1"), base_sequence=0, **COMMITTED).control(ControlType.COMMIT, producer_id=5)
    log.keyed((b"b", b"1"), base_sequence=1, **COMMITTED).control(ControlType.COMMIT, producer_id=5)
    log.keyed((b"a", b"2"))
    assert spans(compacted(stored(log))) == [(0, 1, 0), (2, 2, 1), (3, 3, 1), (4, 4, 1)]
    last = {"producer_last_offsets": {5: 1}}
    assert spans(compacted(stored(log), **last))[:2] == [(0, 0, 0), (1, 1, 1)]


def test_a_tombstone_deletes_what_a_transaction_has_committed(log):
    log.keyed((b"a", b"1"), base_sequence=0, **COMMITTED)
    log.control(ControlType.COMMIT, producer_id=5).keyed((b"a", None), (b"b", None))
    assert facts(compacted(stored(log), tombstones_end=FAR)) == []


# Memory -------------------------------------------------------------------------------------------------


def test_a_full_map_covers_the_log_up_to_what_did_not_fit(log):
    log.keyed((b"a", b"1"), (b"b", b"1")).keyed((b"a", b"2"), (b"c", b"1"), (b"b", b"2"))
    latest = OffsetMap(2 * compaction.ENTRY_BYTES)
    assert map_offsets(stored(log), latest) == 3
    assert (latest.latest(b"a"), latest.latest(b"b"), latest.latest(b"c")) == (2, 1, -1)


def test_long_keys_are_told_apart_from_their_digests():
    offsets = OffsetMap(PLENTY)
    long_key = b"k" * 1000
    assert offsets.put(long_key, 5)
    assert offsets.latest(long_key) == 5
    assert offsets.latest(b"k" * 999) == offsets.latest(b"") == -1


def test_the_memory_of_a_key_is_what_is_reckoned():
    keys = [random.Random(index).randbytes(30) for index in range(30_000)]

    def remember_all() -> None:
        offsets = OffsetMap(PLENTY * 100)
        for offset, key in enumerate(keys, start=1 << 40):
            offsets.put(key, offset)

    assert peak_bytes(remember_all) <= len(keys) * compaction.ENTRY_BYTES


# The model ----------------------------------------------------------------------------------------------

KEYS = st.sampled_from([b"a", b"b", b"c", b"d", None])
VALUES = st.sampled_from([None, b"1", b"22"])
PRODUCERS = st.sampled_from([-1, 7, 8])
BATCHES = st.lists(
    st.tuples(PRODUCERS, st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=5)), min_size=1, max_size=15
)


def built(batches) -> tuple[list[StoredBatch], dict[int, int]]:
    """The batches of a log, and the last offset of each producer's last batch."""
    log = LogBuilder("/log", files=MemoryFiles(), base_offset=1000)
    sequences: Counter[int] = Counter()
    last_offsets: dict[int, int] = {}
    for producer_id, pairs in batches:
        if producer_id < 0:
            log.keyed(*pairs)
            continue
        log.keyed(*pairs, producer_id=producer_id, producer_epoch=0, base_sequence=sequences[producer_id])
        sequences[producer_id] += len(pairs)
        last_offsets[producer_id] = log.next_offset - 1
    return stored(log), last_offsets


def latest_facts(
    found: list[tuple[int, bytes | None, bytes | None]],
) -> list[tuple[int, bytes | None, bytes | None]]:
    newest = {key: offset for offset, key, _ in found}
    return [fact for fact in found if fact[1] is None or newest[fact[1]] == fact[0]]


@settings(max_examples=300, deadline=None)
@given(BATCHES, st.integers(1, 6), st.booleans())
def test_passes_end_with_exactly_the_latest_record_of_each_key(batches, capacity, drop_tombstones):
    before, last_offsets = built(batches)
    expected = latest_facts(facts(before))
    after, covered = before, 0
    for _ in range(50):
        latest = OffsetMap(capacity * compaction.ENTRY_BYTES)
        previous, covered = covered, map_offsets(after, latest, dirty_offset=covered)
        rules = CompactionRules(
            latest=latest,
            covered_offset=covered,
            now_ms=START_MS,
            tombstones_end=previous if drop_tombstones else 0,
            producer_last_offsets=last_offsets,
        )
        visible = {key: value for _, key, value in facts(after) if key is not None}
        after = [read_batch(bytes(data)) for data in compact(after, rules)]
        # Whatever the pass did, a reader from the start ends with the same values (a deletion may be gone).
        now_visible = {key: value for _, key, value in facts(after) if key is not None}
        assert {k: v for k, v in visible.items() if v} == {k: v for k, v in now_visible.items() if v}
        if covered == previous == before[-1].header.next_offset:
            break
    if drop_tombstones:
        expected = [fact for fact in expected if fact[1] is None or fact[2] is not None]
    assert facts(after) == expected


@settings(max_examples=200, deadline=None)
@given(BATCHES)
def test_the_output_tiles_the_same_offsets_and_compacting_again_changes_nothing(batches):
    before, last_offsets = built(batches)
    rules = {"producer_last_offsets": last_offsets}
    after = compacted(before, **rules)
    expected_offset = before[0].header.base_offset
    for batch in after:
        assert batch.header.base_offset == expected_offset
        expected_offset = batch.header.next_offset
    assert expected_offset == before[-1].header.next_offset
    assert [bytes(batch.data) for batch in compacted(after, **rules)] == [
        bytes(batch.data) for batch in after
    ]
    assert {r.offset: r for r in records(before)}.items() >= {r.offset: r for r in records(after)}.items()


@settings(max_examples=200, deadline=None)
@given(BATCHES)
def test_no_producers_last_sequence_is_lost(batches):
    def last_sequences(found):
        return {b.header.producer_id: b.header.last_sequence for b in found if b.header.producer_id >= 0}

    before, last_offsets = built(batches)
    assert last_sequences(compacted(before, producer_last_offsets=last_offsets)) == last_sequences(before)


def test_fates_are_counted(log):
    log.keyed((b"a", b"1"), (b"a", b"2"), (b"b", None))
    latest = OffsetMap(PLENTY)
    covered = map_offsets(stored(log), latest)
    fates: Counter[Fate] = Counter()
    rules = CompactionRules(latest=latest, covered_offset=covered, now_ms=START_MS, tombstones_end=covered)
    list(compact(stored(log), rules, fates=fates))
    assert fates == {Fate.SUPERSEDED: 1, Fate.KEPT: 1, Fate.TOMBSTONE_EXPIRED: 1}


# What there is to compact -------------------------------------------------------------------------------


def segment(base_offset: int, *, size_bytes=100, max_timestamp_ms=1000, is_active=False) -> SegmentInfo:
    return SegmentInfo(
        base_offset=base_offset,
        next_offset=base_offset + 10,
        size_bytes=size_bytes,
        max_timestamp_ms=max_timestamp_ms,
        is_active=is_active,
    )


def test_sealed_durable_segments_past_the_lag_are_compactable():
    log = [segment(0), segment(10), segment(20, max_timestamp_ms=5000), segment(30, is_active=True)]

    def found(**rules):
        rules = {"stable_offset": 40, "now_ms": 6000, "min_compaction_lag_ms": 0, **rules}
        return [each.base_offset for each in compaction.compactable(log, **rules)]

    assert found() == [0, 10, 20]
    assert found(stable_offset=19) == [0]
    assert found(min_compaction_lag_ms=2000) == [0, 10]


def test_a_log_is_due_when_enough_of_it_is_dirty_or_waits_too_long():
    log = [segment(0), segment(10), segment(20)]

    def reason(cleaned_offset, now_ms=1500, ratio=0.5, lag_ms=1000):
        return compaction.due(
            log,
            cleaned_offset=cleaned_offset,
            now_ms=now_ms,
            min_cleanable_dirty_ratio=ratio,
            max_compaction_lag_ms=lag_ms,
        )

    assert reason(0) is reason(10) is CompactionReason.DIRTY_RATIO
    assert reason(20) is None
    assert reason(20, now_ms=2000) is CompactionReason.MAX_LAG
    assert reason(30, now_ms=2000, ratio=0.0) is None


def test_small_neighbours_are_rewritten_into_one_segment():
    log = [
        segment(0),
        segment(10),
        segment(20, size_bytes=1000),
        segment(30),
        segment(40),
        segment(2**31 + 45),
    ]
    bases = [[each.base_offset for each in group] for group in compaction.grouped(log, segment_bytes=300)]
    assert bases == [[0, 10], [20], [30, 40], [2**31 + 45]]
