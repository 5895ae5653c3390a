"""Disks, limits and clocks that fail: typed errors, no acknowledgement that is false, and writes go on afterwards.

every_call         EIO and ENOSPC at every single call to the file system that a scripted run makes
full_disk          a tmpfs of every size from nothing to what a scripted run needs, and room again
limits             RLIMIT_FSIZE and RLIMIT_NOFILE of every size up to that, and raised again
stopped            a process that is stopped, then goes on or is killed, inside a write to the view
clock_jumps        a wall clock that is an hour early or late
served             the faults of every_call in a server, as its Kafka clients meet them
full_disk_served   the full disk of a server, which goes on, is stopped, or is killed
"""

from __future__ import annotations

from collections.abc import Iterator

from ..proof import Row, Scope
from . import clock_jumps, every_call, full_disk, full_disk_served, limits, served, stopped


def run(scope: Scope) -> Iterator[Row]:
    yield from run_embedded(scope)
    yield from run_served(scope)


def run_embedded(scope: Scope) -> Iterator[Row]:
    for part in (every_call, full_disk, limits, stopped, clock_jumps):
        yield from part.run(scope)


def run_served(scope: Scope) -> Iterator[Row]:
    for part in (served, full_disk_served):
        yield from part.run(scope)
