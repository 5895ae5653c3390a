"""Records find their partition as with Kafka's Java client."""

from __future__ import annotations

import random
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker.partitioner import (
    StickyPartitioner,
    murmur2,
    partition_for_id,
    partition_for_key,
    positive_hash,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kafka-python reads its schemas through a deprecated function
    from kafka.partitioner.default import murmur2 as kafka_murmur2

# From Kafka's own UtilsTest, where they are signed.
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), JAVA_VECTORS.items())
def test_the_hash_is_the_java_clients(key, signed):
    assert murmur2(key) == signed & 0xFFFFFFFF


@given(st.binary(max_size=300))
def test_the_hash_is_kafka_pythons_for_any_key(key):
    assert murmur2(key) == kafka_murmur2(key) & 0xFFFFFFFF
    assert positive_hash(key) == kafka_murmur2(key) & 0x7FFFFFFF


@given(st.binary(max_size=20), st.integers(1, 100))
def test_a_key_always_goes_to_the_same_existing_partition(key, partitions):
    assert partition_for_key(key, partitions) == partition_for_key(key, partitions) in range(partitions)


@given(st.binary(max_size=20), st.integers(1, 100))
def test_a_message_id_goes_where_a_key_would_and_pushes_no_key_out(message_id, partitions):
    known = positive_hash.cache_info().currsize
    found = partition_for_id(message_id, partitions)
    assert positive_hash.cache_info().currsize == known
    assert found == partition_for_key(message_id, partitions)


def test_records_without_a_key_stay_in_one_partition_until_the_batch_is_complete():
    sticky = StickyPartitioner(random.Random(7))
    first = sticky.partition(4)
    assert [sticky.partition(4) for _ in range(10)] == [first] * 10
    sticky.batch_completed(4)
    assert sticky.partition(4) != first


def test_records_without_a_key_come_to_all_partitions_in_time():
    sticky = StickyPartitioner(random.Random(7))
    used = set()
    for _ in range(100):
        used.add(sticky.partition(4))
        sticky.batch_completed(4)
    assert used == {0, 1, 2, 3}


def test_a_single_partition_is_never_left():
    sticky = StickyPartitioner()
    sticky.batch_completed(1)
    assert sticky.partition(1) == 0
