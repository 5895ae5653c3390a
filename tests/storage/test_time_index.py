"""The time index: lookups give the last entry at or below, and a file that is not one is noticed."""

from __future__ import annotations

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import time_index
from logbroker_storage.offset_index import IndexDefect
from logbroker_storage.time_index import TimeIndexEntry

entries = st.lists(
    st.tuples(st.integers(1, 2**63 - 1), st.integers(0, 2**31 - 1)),
    unique_by=(lambda e: e[0], lambda e: e[1]),
).map(lambda pairs: list(zip(sorted(p[0] for p in pairs), sorted(p[1] for p in pairs), strict=True)))


def encoded(pairs) -> bytes:
    return b"".join(time_index.encode_entry(*pair) for pair in pairs)


@given(entries, st.integers(0, 9))
def test_what_is_encoded_parses_back_without_space_allocated_in_advance(pairs, spare):
    buffer = encoded(pairs)
    allocated = buffer + bytes(time_index.ENTRY_BYTES * spare)
    assert time_index.parse(allocated) == [TimeIndexEntry(*pair) for pair in pairs]
    assert time_index.used_bytes(allocated) == len(buffer)
    assert time_index.check(allocated, end_relative_offset=2**31) is None


@given(entries, st.integers(0, 2**63 - 1))
def test_a_lookup_gives_the_offset_of_the_last_entry_at_or_below(pairs, wanted_ms):
    count = bisect.bisect_right([timestamp_ms for timestamp_ms, _ in pairs], wanted_ms)
    assert time_index.lookup(encoded(pairs), wanted_ms) == (pairs[count - 1][1] if count else 0)


@given(entries)
def test_the_last_timestamp_is_the_last_entrys(pairs):
    assert time_index.last_timestamp_ms(encoded(pairs)) == (pairs[-1][0] if pairs else -1)


@pytest.mark.parametrize(
    ("buffer", "defect"),
    [
        (encoded([(1, 10)]) + b"\0", IndexDefect.BAD_SIZE),
        (encoded([(5, 10), (5, 20)]), IndexDefect.NOT_ASCENDING),
        (encoded([(5, 20), (6, 20)]), IndexDefect.NOT_ASCENDING),
        (encoded([(-5, 20)]), IndexDefect.NOT_ASCENDING),
        (encoded([(5, -2)]), IndexDefect.NOT_ASCENDING),
        (encoded([(5, 50)]), IndexDefect.OUT_OF_BOUNDS),
        (encoded([(0, 0), (5, 49)]), None),
        (b"", None),
    ],
)
def test_a_file_that_cannot_be_the_index_of_its_segment_is_noticed(buffer, defect):
    assert time_index.check(buffer, end_relative_offset=50) is defect


def test_offsets_that_are_too_far_from_the_base_have_one_entry_with_the_newest_timestamp():
    entries = bytearray()
    for timestamp_ms, relative_offset in ((1, 5), (2, (1 << 31) - 2), (3, 1 << 31), (4, 1 << 40)):
        time_index.add_entry(entries, timestamp_ms, relative_offset)
    assert time_index.parse(entries) == [(1, 5), (2, (1 << 31) - 2), (4, (1 << 31) - 1)]
    assert time_index.check(entries, end_relative_offset=1 << 31) is None
