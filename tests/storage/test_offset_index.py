"""The offset index: lookups give the last entry at or below, and a file that is not one is noticed."""

from __future__ import annotations

import bisect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import offset_index
from logbroker_storage.offset_index import IndexDefect, OffsetIndexEntry

entries = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1)),
    unique_by=(lambda e: e[0], lambda e: e[1]),
).map(lambda pairs: list(zip(sorted(p[0] for p in pairs), sorted(p[1] for p in pairs), strict=True)))


def encoded(pairs) -> bytes:
    return b"".join(offset_index.encode_entry(*pair) for pair in pairs)


def check(buffer: bytes, end_relative_offset: int = 2**31, end_position: int = 2**31):
    return offset_index.check(buffer, end_relative_offset=end_relative_offset, end_position=end_position)


def test_the_documented_table_is_the_struct():
    assert offset_index.__doc__ is not None
    rows = re.findall(r"^ +(\d+) +(\d+)  \w+ +int(\d+)", offset_index.__doc__, re.MULTILINE)
    assert [(int(at), int(size)) for at, size, _ in rows] == [(0, 4), (4, 4)]
    assert offset_index.ENTRY_BYTES == 8


@given(entries)
def test_what_is_encoded_parses_back(pairs):
    buffer = encoded(pairs)
    assert offset_index.parse(buffer) == [OffsetIndexEntry(*pair) for pair in pairs]
    assert check(buffer) is None


@given(entries, st.integers(0, 2**31 - 1))
def test_a_lookup_gives_the_last_entry_at_or_below(pairs, wanted):
    count = bisect.bisect_right([relative for relative, _ in pairs], wanted)
    assert offset_index.lookup(encoded(pairs), wanted) == (pairs[count - 1] if count else None)


@given(entries, st.integers(0, 40))
def test_space_allocated_in_advance_is_not_taken_for_entries(pairs, spare):
    buffer = encoded(pairs)
    allocated = buffer + bytes(8 * spare)
    assert offset_index.used_bytes(allocated) == len(buffer)
    assert offset_index.parse(allocated) == offset_index.parse(buffer)
    assert check(allocated) is None


@pytest.mark.parametrize(
    ("buffer", "defect"),
    [
        (encoded([(1, 10)]) + b"\0\0\0", IndexDefect.BAD_SIZE),
        (encoded([(5, 10), (5, 20)]), IndexDefect.NOT_ASCENDING),
        (encoded([(5, 20), (6, 20)]), IndexDefect.NOT_ASCENDING),
        (encoded([(5, 20), (0, 0), (7, 30)]), IndexDefect.NOT_ASCENDING),
        (encoded([(-1, 10)]), IndexDefect.OUT_OF_BOUNDS),
        (encoded([(5, 0)]), IndexDefect.OUT_OF_BOUNDS),
        (encoded([(5, 100)]), IndexDefect.OUT_OF_BOUNDS),
        (encoded([(50, 10)]), IndexDefect.OUT_OF_BOUNDS),
        (encoded([(49, 99)]), None),
        (b"", None),
    ],
)
def test_a_file_that_cannot_be_the_index_of_its_segment_is_noticed(buffer, defect):
    assert check(buffer, end_relative_offset=50, end_position=100) is defect
