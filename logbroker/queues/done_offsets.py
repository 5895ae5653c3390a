"""Which offsets behind the queue's start are done: a bit each, in blocks of 1024. Pure: over ``Rows``.

Bit 0 is the block's first offset; the bytes are little-endian and end with the last that is not zero.
"""

from __future__ import annotations

from collections.abc import Iterator

from .rows import BLOCK_OFFSETS, DONE, NUMBER, SCAN_ROWS, Range, Rows, block_key


class DoneOffsets:
    """The rows of the blocks."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def stored(self, block: int) -> bytes:
        return self._rows.get(block_key(block)) or b""

    def store(self, block: int, done: bytes) -> None:
        self._rows.put(block_key(block), done)

    def is_known(self, block: int) -> bool:
        return self._rows.get(block_key(block)) is not None

    def mark(self, first: int, last: int) -> range:
        """Mark the offsets [first, last]; the blocks that they are in."""
        blocks = blocks_of(first, last)
        for block in blocks:
            self._store_bits(block, self._bits(block) | _within(block, first, last))
        return blocks

    def unmark(self, first: int, last: int) -> None:
        """Take the marks of the offsets [first, last] away."""
        for block in blocks_of(first, last):
            self._store_bits(block, self._bits(block) & ~_within(block, first, last))

    def undone(self, block: int, first: int, last: int) -> int:
        """Of the block, the bits of those offsets in [first, last] that are not done."""
        return ~self._bits(block) & _within(block, first, last)

    def first_undone(self, first: int, end: int) -> int:
        """The first offset from *first* on that is not done, *end* at most."""
        position = first
        while position < end:
            block, at = divmod(position, BLOCK_OFFSETS)
            ones = _trailing_ones(self._bits(block) >> at)
            if not ones:
                break
            position += ones
        return min(position, end)

    def forget_below(self, offset: int) -> list[int]:
        """Remove the blocks that are all below *offset*; which those were."""
        forgotten: list[int] = []
        while found := self._rows.first(DONE, block_key(offset // BLOCK_OFFSETS), SCAN_ROWS):
            for key, _ in found:
                self._rows.delete(key)
                forgotten.append(NUMBER.unpack_from(key, 1)[0])
        return forgotten

    def _store_bits(self, block: int, bits: int) -> None:
        self.store(block, bits.to_bytes((bits.bit_length() + 7) // 8, "little"))

    def _bits(self, block: int) -> int:
        return int.from_bytes(self.stored(block), "little")


def blocks_of(first: int, last: int) -> range:
    return range(first // BLOCK_OFFSETS, last // BLOCK_OFFSETS + 1)


def bits_between(first: int, last: int) -> int:
    """A number whose bits *first* to *last* are set."""
    return ((1 << (last - first + 1)) - 1) << first


def ranges_of(bits: int) -> Iterator[Range]:
    """The runs of set bits, ascending."""
    position = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        ones = _trailing_ones(bits >> zeros)
        yield position + zeros, position + zeros + ones - 1
        position += zeros + ones
        bits >>= zeros + ones


def _within(block: int, first: int, last: int) -> int:
    """The bits of those offsets in [first, last] that are in the block; some are."""
    base = block * BLOCK_OFFSETS
    return bits_between(max(first - base, 0), min(last - base, BLOCK_OFFSETS - 1))


def _trailing_ones(bits: int) -> int:
    return (~bits & (bits + 1)).bit_length() - 1
