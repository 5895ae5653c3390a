"""A survey tells of a batch what its decoded records tell, whichever way it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import record_survey
from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.record_batch import Compression, NewRecord, encode_batch, read_batch
from logbroker_storage.record_survey import Survey, survey, survey_decoded, survey_without_headers

T0 = 1_700_000_000_000
RECORDS = st.builds(
    NewRecord,
    value=st.one_of(st.none(), st.binary(max_size=200)),
    key=st.one_of(st.none(), st.binary(max_size=9)),
    timestamp_ms=st.integers(T0 - 9, T0 + 9),
)


@given(records=st.lists(RECORDS, min_size=1, max_size=30), codec=st.sampled_from(Compression))
def test_both_ways_tell_the_same(records: list[NewRecord], codec: Compression) -> None:
    batch = read_batch(encode_batch(records, compression=codec))
    times = [record.timestamp_ms for record in records]
    expected = Survey(min(times), max(times), all(record.key is not None for record in records), True, [])
    assert survey_without_headers(batch) == survey_decoded(batch, "t", 0) == survey(batch, "t", 0) == expected


@pytest.mark.parametrize(
    ("name", "is_given"), [("logbroker.ttl.ms", True), ("logbroker", False), ("h", False)]
)
def test_records_with_headers_of_the_broker_s_own_are_given_themselves(name: str, is_given: bool) -> None:
    batch = read_batch(
        encode_batch([NewRecord(b"v", b"k", [(name, b"1")], T0), NewRecord(b"w", b"k", (), T0)])
    )
    assert survey_without_headers(batch) is None
    found = survey(batch, "t", 0)
    assert [record.headers for record in found.records] == ([[(name, b"1")], []] if is_given else [])
    assert (found.oldest_ms, found.newest_ms, found.have_keys, found.follow) == (T0, T0, True, True)


def test_the_log_s_own_time_is_that_of_all_records() -> None:
    records = [NewRecord(b"v", timestamp_ms=T0 + n) for n in range(3)]
    batch = read_batch(encode_batch(records, log_append_time=True))
    assert survey_without_headers(batch) == survey_decoded(batch, "t", 0)


def test_offsets_that_do_not_follow_are_told() -> None:
    records = [NewRecord(b"v", timestamp_ms=T0)] * 2
    batch = read_batch(encode_batch(records, offset_deltas=[0, 2], last_offset_delta=2))
    assert survey_without_headers(batch) is None
    assert not survey(batch, "t", 0).follow


@pytest.mark.parametrize("is_compiled", [False, True])
def test_what_does_not_parse_is_refused(monkeypatch: pytest.MonkeyPatch, is_compiled: bool) -> None:
    monkeypatch.setattr(record_survey, "IS_COMPILED", is_compiled)
    sound = encode_batch([NewRecord(b"v", timestamp_ms=T0)])
    stored = read_batch(sound)
    for cut in range(1, 8):
        shorter = type(stored)(stored.header, stored.data[:-cut])
        with pytest.raises(CorruptBatchError):
            survey(shorter, "t", 0)
