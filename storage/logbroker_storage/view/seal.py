"""What the view's tables store for a value: its checksum, then the value.

LMDB does not notice flipped bits. The checksum is over the key too, so that a value cannot pass for another's.
"""

from __future__ import annotations

import struct

from ..crc32c import crc32c

CRC = struct.Struct(">I")


def seal(key: bytes, payload: bytes) -> bytes:
    """What is stored for *payload* under *key*."""
    return CRC.pack(crc32c(payload, crc32c(key))) + payload


def unsealed(key: bytes, stored: bytes) -> bytes | None:
    """The payload in *stored*; None when it fails its checksum."""
    payload = stored[CRC.size :]
    if len(stored) < CRC.size or CRC.unpack_from(stored)[0] != crc32c(payload, crc32c(key)):
        return None
    return payload
