"""Keeping freed memory in the process.

A batch on its way is a few blocks of up to a megabyte, made and freed within a millisecond. glibc takes blocks of
128 KiB and more from the kernel, and gives a free end of the heap of more than that back to it, until the first
block of another size was freed: then that size is the limit, and twice that for the end of the heap (mallopt(3),
M_MMAP_THRESHOLD). Pages that come from the kernel each time cost as much as encoding and writing the batch:
0.26 µs a record of 100 bytes instead of 0.18. Other allocators have their own ways; to them this is one block.
"""

from __future__ import annotations

from functools import cache

KEPT_BYTES = 2 << 20


@cache  # once a process: the next such block comes from the heap, and would be written with zeros, 0.1 ms
def keep_freed_blocks() -> None:
    """Have blocks up to ``KEPT_BYTES`` come from the heap, and up to twice that stay there when they are free."""
    bytes(KEPT_BYTES)  # not touched, so that its pages never exist; freed at once
