"""The index of aborted transactions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import aborted_index
from logbroker_storage.aborted_index import AbortedTransaction
from logbroker_storage.offset_index import IndexDefect

FIRST = AbortedTransaction(producer_id=7, first_offset=10, last_offset=20, last_stable_offset=15)
SECOND = AbortedTransaction(producer_id=8, first_offset=15, last_offset=30, last_stable_offset=31)
INT64 = st.integers(-(2**63), 2**63 - 1)


def encoded(*transactions: AbortedTransaction) -> bytes:
    return b"".join(map(aborted_index.encode_entry, transactions))


def test_an_entry_is_the_34_bytes_of_kafka():
    assert encoded(FIRST) == bytes.fromhex(
        "00000000000000000007000000000000000a0000000000000014000000000000000f"
    )


@given(st.lists(st.builds(AbortedTransaction, INT64, INT64, INT64, INT64)))
def test_what_is_encoded_parses_back(transactions):
    assert aborted_index.parse(encoded(*transactions)) == transactions


@pytest.mark.parametrize(
    ("start_offset", "end_offset", "found"),
    [
        (0, 10, []),
        (0, 11, [FIRST]),
        (20, 21, [FIRST, SECOND]),
        (21, 40, [SECOND]),
        (31, 40, []),
    ],
)
def test_the_transactions_that_touch_a_range_are_found(start_offset, end_offset, found):
    found_here = aborted_index.overlapping([FIRST, SECOND], start_offset=start_offset, end_offset=end_offset)
    assert found_here == found


def test_reading_on_ends_where_no_later_transaction_can_begin_in_the_range():
    def entries():
        yield SECOND
        raise AssertionError("read too far")

    assert aborted_index.overlapping(entries(), start_offset=0, end_offset=31) == [SECOND]


@pytest.mark.parametrize(
    ("buffer", "defect"),
    [
        (encoded(FIRST)[:-1], IndexDefect.BAD_SIZE),
        (b"\0\1" + encoded(FIRST)[2:], IndexDefect.BAD_VERSION),
        (encoded(SECOND, FIRST), IndexDefect.NOT_ASCENDING),
        (encoded(AbortedTransaction(1, 5, 4, 4)), IndexDefect.OUT_OF_BOUNDS),
        (encoded(AbortedTransaction(1, 90, 100, 101)), IndexDefect.OUT_OF_BOUNDS),
        (encoded(FIRST, SECOND), None),
        (b"", None),
    ],
)
def test_a_file_that_cannot_be_the_index_of_its_segment_is_noticed(buffer, defect):
    assert aborted_index.check(buffer, base_offset=4, end_offset=100) is defect
