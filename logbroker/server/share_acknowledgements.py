"""Acknowledgements of KIP-932 as what is to become of ranges of offsets.

    type        the message
    0 gap       is not there: done
    1 accept    done
    2 release   to be delivered again
    3 reject    never to be delivered again
    4 renew     stays in the member's hands for another lease; from version 2 on, in requests that say so

A batch names a range, and either one type for all of it or one for each offset. All batches of a partition count or
none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Protocol

from kio.schema.errors import ErrorCode

from ..queues.settlement import Settlement
from ..queues.state import Range
from .error_codes import RefusedError

GAP, ACCEPT, RELEASE, REJECT, RENEW = range(5)
MAX_RANGES = 10_000  # of one partition: they are settled in one transaction


class AcknowledgementBatch(Protocol):
    """As kio has it."""

    @property
    def first_offset(self) -> int: ...

    @property
    def last_offset(self) -> int: ...

    @property
    def acknowledge_types(self) -> Sequence[int]: ...


def settlement_of(batches: Iterable[AcknowledgementBatch], *, may_renew: bool) -> Settlement:
    """What *batches*, of one partition, ask for.

    Raises:
        RefusedError: they are no acknowledgements.
    """
    ranges: dict[int, list[Range]] = {kind: [] for kind in range(RENEW + 1)}
    position = count = 0
    for batch in batches:
        first, last, types = batch.first_offset, batch.last_offset, batch.acknowledge_types
        if first < position or last < first:
            raise RefusedError(ErrorCode.invalid_request, f"[{first}, {last}] does not follow {position - 1}")
        if len(types) not in (1, last - first + 1):
            raise RefusedError(
                ErrorCode.invalid_request, f"{len(types)} types for the offsets [{first}, {last}]"
            )
        position = last + 1
        for kind, begin, end in _runs(first, last, types):
            if kind not in ranges or (kind == RENEW and not may_renew):
                raise RefusedError(ErrorCode.invalid_request, f"{kind} is no type of acknowledgement here")
            ranges[kind].append((begin, end))
            count += 1
            if count > MAX_RANGES:
                raise RefusedError(ErrorCode.invalid_request, f"more than {MAX_RANGES} ranges")
    return Settlement(
        finished=ranges[ACCEPT] + ranges[GAP],
        released=ranges[RELEASE],
        rejected=ranges[REJECT],
        renewed=ranges[RENEW],
    )


def _runs(first: int, last: int, types: Sequence[int]) -> Iterable[tuple[int, int, int]]:
    """The type, first and last offset of each stretch of equal types."""
    if len(types) == 1:
        yield types[0], first, last
        return
    position = first
    for kind, stretch in groupby(types):
        size = sum(1 for _ in stretch)
        yield kind, position, position + size - 1
        position += size
