"""The producer snapshot's bytes: Kafka's, and any damage is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import producer_snapshot
from logbroker_storage.files import OsFiles
from logbroker_storage.producer_snapshot import ProducerSnapshotEntry
from logbroker_storage.segment_files import list_snapshots, snapshot_name
from logbroker_storage.snapshot_files import open_in_snapshots

INT16 = st.integers(-(2**15), 2**15 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
ENTRY = st.builds(ProducerSnapshotEntry, INT64, INT16, INT32, INT64, INT32, INT64, INT32, INT64)


def test_the_sizes_are_those_of_kafka():
    assert producer_snapshot.HEADER_BYTES == 10
    assert producer_snapshot.ENTRY_BYTES == 46


def test_an_empty_snapshot_has_a_header_only():
    data = producer_snapshot.encode([])
    assert len(data) == 10
    assert data[:2] == b"\0\1"
    assert producer_snapshot.parse(data) == []


@given(st.lists(ENTRY, max_size=20))
def test_what_is_encoded_parses_back(entries):
    assert producer_snapshot.parse(producer_snapshot.encode(entries)) == entries


@given(st.lists(ENTRY, max_size=3), st.data())
def test_every_flipped_bit_and_every_cut_is_noticed(entries, data):
    whole = bytearray(producer_snapshot.encode(entries))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError):
        producer_snapshot.parse(bytes(whole[:cut]))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError):
        producer_snapshot.parse(bytes(whole))


def test_the_file_is_named_after_its_offset(tmp_path):
    name = snapshot_name(42)
    assert name == "00000000000000000042.snapshot"
    for other in ("42.snapshot", "00000000000000000042.log", "0000000000000000004x.snapshot", name[:20]):
        (tmp_path / other).touch()
    assert list_snapshots(OsFiles(), str(tmp_path)) == []
    (tmp_path / name).touch()
    assert list_snapshots(OsFiles(), str(tmp_path)) == [42]


def test_a_snapshot_that_is_removed_while_others_are_read_is_not_called_damaged(tmp_path, caplog):
    """A compaction lists them while a writer goes on, who removes an older one with each roll."""
    assert open_in_snapshots(OsFiles(), str(tmp_path), [5]) == frozenset()
    assert caplog.text == ""
    (tmp_path / snapshot_name(6)).write_bytes(b"no snapshot")
    assert open_in_snapshots(OsFiles(), str(tmp_path), [5, 6]) == frozenset()
    assert "not sound" in caplog.text
