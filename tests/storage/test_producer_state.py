"""The producer table, row by row: what may follow what a producer wrote last."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import producer_state
from logbroker_storage.producer_state import (
    ENTRY_BATCH,
    ENTRY_HEAD,
    REMEMBERED_BATCHES,
    SEQUENCE_LIMIT,
    BatchSpan,
    MarkerVerdict,
    ProducerEntry,
    Verdict,
    advance,
    decide,
    decide_marker,
    decode_entry,
    encode_entry,
    next_sequence,
)
from logbroker_storage.record_batch import BatchHeader, ControlType, encode_control_batch, read_header
from logbroker_storage.record_encoding import encode_values

LAST_SEQUENCE = SEQUENCE_LIMIT - 1


def header(sequence: int, count: int = 1, *, epoch: int = 0, timestamp_ms: int = 0) -> BatchHeader:
    """Of a batch with *count* records from *sequence* on."""
    return read_header(
        encode_values(
            [b"v"] * count,
            [(0, timestamp_ms)],
            producer_id=7,
            producer_epoch=epoch,
            base_sequence=sequence,
        )
    )


def wrote(*batches: tuple[int, int], epoch: int = 0) -> ProducerEntry:
    """A producer after batches of (base sequence, count), appended one behind the other from offset 0."""
    entry: ProducerEntry | None = None
    offset = 0
    for sequence, count in batches:
        entry = advance(entry, header(sequence, count, epoch=epoch), offset)
        offset += count
    assert entry is not None
    return entry


MARKED = ProducerEntry(1, (BatchSpan(-1, -1, 7, 7, 0),))  # a marker was the first of its epoch

TABLE = [
    # what the producer wrote          the batch                     gaps   verdict
    ("no entry, any sequence", None, header(41), False, Verdict.APPEND),
    ("no entry, any epoch", None, header(41, epoch=9), False, Verdict.APPEND),
    ("epoch below the entry's", wrote((0, 1), epoch=2), header(1, epoch=1), False, Verdict.FENCED),
    (
        "epoch below, though a gap is allowed",
        wrote((0, 1), epoch=2),
        header(9, epoch=1),
        True,
        Verdict.FENCED,
    ),
    ("epoch below, though a duplicate", wrote((0, 1), epoch=2), header(0, epoch=1), False, Verdict.FENCED),
    ("epoch above, from 0", wrote((0, 3)), header(0, epoch=1), False, Verdict.APPEND),
    ("epoch above, its first batch missing", wrote((0, 3)), header(2, epoch=1), False, Verdict.OUT_OF_ORDER),
    ("epoch above, gaps allowed", wrote((0, 3)), header(500, epoch=1), True, Verdict.APPEND),
    ("behind a marker, from 0", MARKED, header(0, epoch=1), False, Verdict.APPEND),
    ("behind a marker, its first batch missing", MARKED, header(2, epoch=1), False, Verdict.OUT_OF_ORDER),
    ("the last batch again", wrote((0, 3), (3, 2)), header(3, 2), False, Verdict.DUPLICATE),
    ("the last batch again, gaps allowed", wrote((0, 3), (3, 2)), header(3, 2), True, Verdict.DUPLICATE),
    ("an earlier one of the five", wrote((0, 3), (3, 2)), header(0, 3), False, Verdict.DUPLICATE),
    ("the same start, another length", wrote((0, 3), (3, 2)), header(3, 1), False, Verdict.OUT_OF_ORDER),
    ("the next", wrote((0, 3)), header(3), False, Verdict.APPEND),
    ("the next, gaps allowed", wrote((0, 3)), header(3), True, Verdict.APPEND),
    ("a gap", wrote((0, 3)), header(4), False, Verdict.OUT_OF_ORDER),
    ("a gap, gaps allowed", wrote((0, 3)), header(4), True, Verdict.APPEND),
    ("backwards", wrote((10, 3)), header(2), False, Verdict.OUT_OF_ORDER),
    ("backwards, gaps allowed", wrote((10, 3)), header(2), True, Verdict.OUT_OF_ORDER),
    ("the wrap to 0", wrote((LAST_SEQUENCE, 1)), header(0), False, Verdict.APPEND),
    (
        "a batch across the wrap",
        wrote((LAST_SEQUENCE - 1, 1)),
        header(LAST_SEQUENCE, 3),
        False,
        Verdict.APPEND,
    ),
    ("behind a batch across the wrap", wrote((LAST_SEQUENCE, 3)), header(2), False, Verdict.APPEND),
    ("a gap behind the wrap", wrote((LAST_SEQUENCE, 1)), header(1), False, Verdict.OUT_OF_ORDER),
]


@pytest.mark.parametrize(
    ("entry", "batch", "gaps", "verdict"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_every_row_of_the_table(entry, batch, gaps, verdict):
    assert decide(entry, batch, allow_gaps=gaps).verdict is verdict


def test_a_duplicate_is_answered_with_where_the_first_copy_went():
    entry = wrote((0, 3), (3, 2), (5, 1))
    assert decide(entry, header(3, 2)).duplicate_of == BatchSpan(3, 4, 3, 4, 0)


def test_the_sequence_that_was_due_is_told():
    assert decide(wrote((0, 3)), header(7)).expected_sequence == 3
    assert decide(wrote((LAST_SEQUENCE, 1)), header(7)).expected_sequence == 0


def test_the_last_five_batches_are_remembered_and_no_more():
    entry = wrote(*[(sequence, 1) for sequence in range(7)])
    verdicts = [decide(entry, header(sequence)).verdict for sequence in range(8)]
    forgotten = [Verdict.OUT_OF_ORDER] * 2
    assert verdicts == [*forgotten, *[Verdict.DUPLICATE] * REMEMBERED_BATCHES, Verdict.APPEND]


def test_a_new_epoch_starts_a_new_history():
    entry = advance(wrote((0, 3)), header(0, 2, epoch=1), 3)
    assert entry == ProducerEntry(1, (BatchSpan(0, 1, 3, 4, 0),))


def test_an_entry_remembers_offsets_and_the_largest_timestamp():
    entry = advance(None, header(10, 3, timestamp_ms=99), 1000)
    assert entry.batches == (BatchSpan(10, 12, 1000, 1002, 99),)
    assert (entry.last_sequence, entry.last_offset, entry.timestamp_ms) == (12, 1002, 99)


def test_a_producer_that_was_taken_over_goes_on_behind_its_last_sequence():
    taken_over = wrote((0, 3))._replace(epoch=5)
    assert decide(taken_over, header(3, epoch=4)).verdict is Verdict.FENCED
    assert decide(taken_over, header(3, epoch=5)).verdict is Verdict.APPEND
    assert decide(taken_over, header(9, epoch=5), allow_gaps=True).verdict is Verdict.APPEND


def marker(epoch: int) -> BatchHeader:
    return read_header(
        encode_control_batch(ControlType.COMMIT, producer_id=7, producer_epoch=epoch, timestamp_ms=0)
    )


def test_a_marker_changes_no_sequence():
    entry = wrote((0, 3))
    assert advance(entry, marker(0), 3) == entry


def test_a_marker_of_a_newer_epoch_fences_the_older():
    entry = advance(wrote((0, 3)), marker(1), 3)
    assert decide(entry, header(3)).verdict is Verdict.FENCED
    assert decide(entry, header(0, epoch=1)).verdict is Verdict.APPEND


IDLE = ProducerEntry(3)
OPEN_FROM_10 = ProducerEntry(3, txn_first_offset=10)

MARKERS = [
    # what of the producer is known     the marker's epoch and offset    verdict
    ("no entry", None, 3, None, MarkerVerdict.FENCE),
    ("no entry, of one that keeps its epoch", None, 3, 20, MarkerVerdict.FENCE),
    ("the entry's epoch above", OPEN_FROM_10, 2, None, MarkerVerdict.PAST),
    ("the entry's epoch above, of one that keeps its epoch", OPEN_FROM_10, 2, 20, MarkerVerdict.PAST),
    ("equal, no offset given", OPEN_FROM_10, 3, None, MarkerVerdict.PAST),
    ("equal, began below the offset", OPEN_FROM_10, 3, 11, MarkerVerdict.END),
    ("equal, the next transaction", OPEN_FROM_10, 3, 10, MarkerVerdict.PAST),
    ("equal, nothing open", IDLE, 3, 20, MarkerVerdict.PAST),
    ("below, one open", OPEN_FROM_10, 4, None, MarkerVerdict.END),
    ("below, whichever is open", OPEN_FROM_10, 4, 5, MarkerVerdict.END),
    ("below, nothing open", IDLE, 4, None, MarkerVerdict.FENCE),
]


@pytest.mark.parametrize(
    ("entry", "marker_epoch", "before_offset", "verdict"),
    [row[1:] for row in MARKERS],
    ids=[row[0] for row in MARKERS],
)
def test_every_row_of_the_table_of_markers(entry, marker_epoch, before_offset, verdict):
    assert decide_marker(entry, marker_epoch, before_offset) is verdict


@given(st.integers(0, LAST_SEQUENCE), st.integers(0, LAST_SEQUENCE))
def test_sequences_have_31_bits_and_wrap(sequence, count):
    assert 0 <= next_sequence(sequence, count) < SEQUENCE_LIMIT
    assert (next_sequence(sequence, count) - sequence - count) % SEQUENCE_LIMIT == 0


INT16 = st.integers(-(2**15), 2**15 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
SPAN = st.builds(BatchSpan, INT32, INT32, INT64, INT64, INT64)
ENTRY = st.builds(ProducerEntry, INT16, st.lists(SPAN, max_size=REMEMBERED_BATCHES).map(tuple), INT32, INT64)


@given(ENTRY)
def test_what_is_encoded_decodes_back(entry):
    assert decode_entry(encode_entry(entry)) == entry


def test_the_documented_layout_is_that_of_the_structs():
    rows = re.findall(r"^ +(\d+) +(\d+) +(\w+) +int(\d+)", producer_state.__doc__ or "", re.MULTILINE)
    assert [int(bits) // 8 for *_, bits in rows] == [int(size) for _, size, *_ in rows]
    head, batch = rows[:3], rows[3:]
    assert sum(int(size) for _, size, *_ in head) == ENTRY_HEAD.size
    assert sum(int(size) for _, size, *_ in batch) == ENTRY_BATCH.size
    assert [name for _, _, name, _ in batch] == list(BatchSpan._fields)


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.sampled_from(["next", "again", "gap", "old epoch"])), max_size=30
    )
)
def test_whatever_is_sent_the_log_holds_each_sequence_once_and_in_order(steps):
    """A client that repeats, skips and comes back from an older epoch cannot put the log out of order."""
    entry: ProducerEntry | None = None
    log: list[int] = []
    due = LAST_SEQUENCE - 20
    sent: list[BatchHeader] = []
    for count, kind in steps:
        batch = header(next_sequence(due), count, epoch=3)
        if kind == "again" and sent:
            batch = sent[-min(len(sent), count)]
        elif kind == "gap" and entry is not None:
            batch = header(next_sequence(due, count + 1), count, epoch=3)
        elif kind == "old epoch":
            batch = header(next_sequence(due), count, epoch=2)
            if entry is None:
                continue  # nobody has been here before: it would be the newest
        if decide(entry, batch).verdict is Verdict.APPEND:
            entry = advance(entry, batch, len(log))
            log += [next_sequence(batch.base_sequence, index) for index in range(batch.record_count)]
            due = log[-1]
            sent.append(batch)
    assert all(behind == next_sequence(before) for before, behind in itertools.pairwise(log))
