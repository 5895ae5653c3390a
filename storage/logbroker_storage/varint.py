"""Kafka's variable-length integers: zigzag, then seven bits a byte, the lowest first.

    value   zigzag   bytes
        0        0   00
       -1        1   01
        1        2   02
       63      126   7e
       64      128   80 01
    -8192    16383   ff 7f
     8192    16384   80 80 01

A *varint* holds 32 bits (at most 5 bytes), a *varlong* 64 bits (at most 10 bytes). The high bit of a byte
says that another one follows.

Invariant: every encoder here writes the shortest form; decoders accept padded forms, as Kafka's do, but
no value outside the type.
"""

from __future__ import annotations

from .errors import BatchDefect, CorruptBatchError

VARLONG_MIN, VARLONG_MAX = -(1 << 63), (1 << 63) - 1
VARINT_MAX_BYTES = 5
VARLONG_MAX_BYTES = 10
_BITS = {VARINT_MAX_BYTES: 32, VARLONG_MAX_BYTES: 64}

ONE_BYTE_END = 64  # values [0, 64) take one byte,
TWO_BYTE_END = 8192  # [64, 8192) take two


def _encode(value: int) -> bytes:
    rest = value << 1 if value >= 0 else ~(value << 1)
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


# Almost every integer of a record is a small length or offset delta. A list index costs 15 ns, the
# loop above 250 ns.
SMALL_VARINTS: list[bytes] = [_encode(value) for value in range(TWO_BYTE_END)]
NULL_LENGTH = _encode(-1)  # the length of a null key or value


def encode_varint(value: int) -> bytes:
    """The bytes of *value*, which must fit 64 bits (``ValueError`` otherwise)."""
    if 0 <= value < TWO_BYTE_END:
        return SMALL_VARINTS[value]
    if not VARLONG_MIN <= value <= VARLONG_MAX:
        raise ValueError(f"{value} does not fit a varlong of 64 bits")
    return _encode(value)


def decode_varint(data: bytes, position: int) -> tuple[int, int]:
    """The 32-bit value at *position* and the position behind it; ``CorruptBatchError`` when there is none."""
    zigzag, position = decode_zigzag(data, position, VARINT_MAX_BYTES)
    return zigzag >> 1 ^ -(zigzag & 1), position


def decode_varlong(data: bytes, position: int) -> tuple[int, int]:
    """The 64-bit value at *position* and the position behind it; ``CorruptBatchError`` when there is none."""
    zigzag, position = decode_zigzag(data, position, VARLONG_MAX_BYTES)
    return zigzag >> 1 ^ -(zigzag & 1), position


def decode_zigzag(data: bytes, position: int, max_bytes: int) -> tuple[int, int]:
    """The value at *position* as it is stored (odd means negative) and the position behind it.

    *max_bytes* is the type: ``VARINT_MAX_BYTES`` or ``VARLONG_MAX_BYTES``.
    """
    zigzag = shift = 0
    for index, byte in enumerate(data[position : position + max_bytes]):
        zigzag |= (byte & 0x7F) << shift
        if byte < 0x80:
            if zigzag >> _BITS[max_bytes]:
                break
            return zigzag, position + index + 1
        shift += 7
    raise CorruptBatchError(
        BatchDefect.BAD_RECORDS, detail=f"no whole integer at byte {position} of the records"
    )
