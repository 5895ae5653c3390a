"""When a record has outlived its time to live."""

from __future__ import annotations

import struct

import pytest

from logbroker_storage.record_batch import TTL_HEADER, Record
from logbroker_storage.record_expiry import is_expired, record_ttl_ms


def record(*ttls: bytes | None, timestamp_ms: int = 1000) -> Record:
    return Record(
        "t", 0, 0, timestamp_ms, None, b"v", (("other", b"x"), *[(TTL_HEADER, ttl) for ttl in ttls])
    )


def ms(value: int) -> bytes:
    return struct.pack(">q", value)


@pytest.mark.parametrize(
    ("own", "topic_ttl_ms", "lives_ms"),
    [
        ((), -1, -1),
        ((), 50, 50),
        ((ms(20),), -1, 20),
        ((ms(20),), 50, 20),
        ((ms(90),), 50, 50),
        ((ms(-5),), 50, 50),
        ((b"short",), 50, 50),
        ((None,), -1, -1),
    ],
)
def test_the_shorter_time_counts_and_a_malformed_one_does_not(own, topic_ttl_ms, lives_ms):
    assert record_ttl_ms(record(*own), topic_ttl_ms) == lives_ms


def test_a_record_expires_when_its_time_has_passed():
    assert not is_expired(record(), now_ms=1049, ttl_ms=50)
    assert is_expired(record(), now_ms=1050, ttl_ms=50)
    assert not is_expired(record(), now_ms=10**15)
    assert not is_expired(record(timestamp_ms=-1), now_ms=1050, ttl_ms=50)
