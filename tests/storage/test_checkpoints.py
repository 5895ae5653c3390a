"""Kafka's text files: written as Kafka writes them, and anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import checkpoints
from logbroker_storage.checkpoints import EpochStart, PartitionOffset

TOPIC = st.text("abcdefghijklmnopqrstuvwxyz._-0123456789", min_size=1)
NATURAL = st.integers(0, 2**63 - 1)


def test_the_files_look_as_kafka_writes_them():
    assert checkpoints.encode_leader_epochs([EpochStart(0, 0), EpochStart(3, 42)]) == b"0\n2\n0 0\n3 42\n"
    offsets = [PartitionOffset("orders", 1, 17)]
    encoded = checkpoints.encode_partition_offsets(offsets)
    assert encoded.startswith(b"0\n2\norders 1 17\n__checksum 0 ")
    assert checkpoints.parse_partition_offsets(b"0\n1\norders 1 17\n") == offsets  # as Kafka writes it
    assert checkpoints.encode_partition_metadata(bytes(range(16))) == (
        b"version: 0\ntopic_id: AAECAwQFBgcICQoLDA0ODw"
    )
    assert checkpoints.encode_meta_properties({"version": "1", "node.id": "0"}) == b"version=1\nnode.id=0\n"


@pytest.mark.parametrize("bit", range(8))
def test_a_changed_byte_in_an_entry_is_refused_or_leaves_what_is_known_as_it_was(bit):
    """A larger recovery point would be taken for records that were lost."""
    offsets = [PartitionOffset("orders", 1, 17), PartitionOffset("t", 0, 123456)]
    encoded = checkpoints.encode_partition_offsets(offsets)
    for position in range(len(encoded)):
        changed = bytearray(encoded)
        changed[position] ^= 1 << bit
        try:
            parsed = checkpoints.parse_partition_offsets(bytes(changed))
        except ValueError:
            continue
        assert parsed[:2] == offsets, position


@given(st.lists(st.builds(EpochStart, st.integers(0, 2**31 - 1), NATURAL)))
def test_leader_epochs_parse_back(epochs):
    assert checkpoints.parse_leader_epochs(checkpoints.encode_leader_epochs(epochs)) == epochs


@given(st.lists(st.builds(PartitionOffset, TOPIC, st.integers(0, 2**31 - 1), NATURAL)))
def test_partition_offsets_parse_back(offsets):
    assert checkpoints.parse_partition_offsets(checkpoints.encode_partition_offsets(offsets)) == offsets


@given(st.lists(st.builds(PartitionOffset, TOPIC, st.integers(0, 9), NATURAL), min_size=1), st.data())
def test_a_cut_checkpoint_is_refused(offsets, data):
    whole = checkpoints.encode_partition_offsets(offsets)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError):
        checkpoints.parse_partition_offsets(whole[:cut])


@given(st.binary(min_size=16, max_size=16))
def test_topic_ids_parse_back(topic_id):
    assert checkpoints.parse_partition_metadata(checkpoints.encode_partition_metadata(topic_id)) == topic_id


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0\n1\n",
        b"1\n0\n",
        b"0\nx\n",
        b"0\n1\n5\n",
        b"0\n1\n5 x\n",
        b"0\n0\n\n",
        b"0\n1\n1 2 3\n",
        b"\xff\n0\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(data):
    with pytest.raises(ValueError):
        checkpoints.parse_leader_epochs(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"version: 0",
        b"version: 1\ntopic_id: AAECAwQFBgcICQoLDA0ODw",
        b"version: 0\ntopic_id: AAEC",
        b"version: 0\ntopic_id: AAECAwQFBgcICQoLDA0O*w",
        b"version 0\ntopic_id: AAECAwQFBgcICQoLDA0ODw",
    ],
)
def test_what_is_no_partition_metadata_is_refused(data):
    with pytest.raises(ValueError):
        checkpoints.parse_partition_metadata(data)


def test_meta_properties_of_kafka_are_read():
    text = b"#\n#Mon Jan 01 00:00:00 UTC 2024\nnode.id=1\nversion=1\ncluster.id=MkU3OEVBNTcw\nx=a\\:b\n"
    assert checkpoints.parse_meta_properties(text) == {
        "node.id": "1",
        "version": "1",
        "cluster.id": "MkU3OEVBNTcw",
        "x": "a:b",
    }
    with pytest.raises(ValueError):
        checkpoints.parse_meta_properties(b"what is this\n")
    with pytest.raises(ValueError):
        checkpoints.encode_meta_properties({"a=b": "c"})
