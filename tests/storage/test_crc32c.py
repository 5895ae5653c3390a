"""CRC-32C against the published check values and against an implementation that shares no code with ours."""

from __future__ import annotations

import crcmod.predefined
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage.crc32c import crc32c

# "123456789" is the check value of every CRC catalogue; the others are from RFC 3720, appendix B.4.
PUBLISHED = [
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
]

independent_crc32c = crcmod.predefined.mkCrcFun("crc-32c")


@pytest.mark.parametrize(("data", "checksum"), PUBLISHED)
def test_the_published_values_come_out(data, checksum):
    assert crc32c(data) == checksum


@given(st.binary(max_size=300))
def test_an_independent_implementation_agrees(data):
    assert crc32c(data) == independent_crc32c(data)


@given(st.binary(), st.binary())
def test_a_checksum_can_be_continued_and_takes_any_buffer(first, second):
    whole = crc32c(first + second)
    assert crc32c(bytearray(second), crc32c(memoryview(first))) == whole
