"""Variable-length integers: the documented examples, every boundary, and refusal of what is none."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import varint
from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.varint import decode_varint, decode_varlong, encode_varint

BOUNDARIES = sorted(
    {sign * (1 << bits) + step for bits in range(63) for sign in (1, -1) for step in (-1, 0, 1)}
    | {(1 << 63) - 1, -(1 << 63)}
)


def test_the_table_in_the_docstring_is_what_the_encoder_writes():
    rows = re.findall(r"^ +(-?\d+) +\d+ +((?:[0-9a-f]{2} ?)+)$", varint.__doc__ or "", re.MULTILINE)
    assert len(rows) == 7
    for value, encoded in rows:
        assert encode_varint(int(value)) == bytes.fromhex(encoded)


@pytest.mark.parametrize("value", BOUNDARIES)
def test_every_boundary_comes_back_from_a_varlong(value):
    encoded = encode_varint(value)
    assert decode_varlong(b"\xff" + encoded + b"\xff", 1) == (value, 1 + len(encoded))


@given(st.integers(-(1 << 31), (1 << 31) - 1))
def test_every_32_bit_value_comes_back_from_a_varint(value):
    encoded = encode_varint(value)
    assert len(encoded) <= 5
    assert decode_varint(encoded, 0) == (value, len(encoded))


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1])
def test_a_value_beyond_64_bits_is_not_encoded(value):
    with pytest.raises(ValueError):
        encode_varint(value)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_an_integer_that_is_cut_short_is_corrupt(value):
    encoded = encode_varint(value)
    for size in range(len(encoded)):
        with pytest.raises(CorruptBatchError):
            decode_varlong(encoded[:size], 0)


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, 1 << 40])
def test_a_varint_of_more_than_32_bits_is_corrupt(value):
    with pytest.raises(CorruptBatchError):
        decode_varint(encode_varint(value), 0)


def test_a_varlong_of_more_than_64_bits_is_corrupt():
    with pytest.raises(CorruptBatchError):
        decode_varlong(b"\xff" * 9 + b"\x02", 0)
    with pytest.raises(CorruptBatchError):
        decode_varlong(b"\xff" * 10 + b"\x00", 0)


def test_a_padded_integer_is_read_as_kafka_reads_it():
    assert decode_varint(b"\x82\x80\x00", 0) == (1, 3)
