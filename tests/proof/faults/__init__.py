"""Disks, limits and clocks that fail: typed errors, no acknowledgement that is false, and writes go on afterwards.

every_call    EIO and ENOSPC at every single call to the file system that a scripted run makes
"""

from __future__ import annotations

from collections.abc import Iterator

from ..proof import Row, Scope
from . import every_call


def run(scope: Scope) -> Iterator[Row]:
    yield from every_call.run(scope)
