"""What messages say of their own delivery, and what of those that were looked at leaves the hands. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from msgspec.structs import replace

from .rows import MAX_PRIORITY, NO_KEY, Run, State, as_undelivered

_offset_of = attrgetter("offset")


class Arranged(NamedTuple):
    """What a message says of its own delivery."""

    offset: int
    priority: int = 0
    order_key: bytes = NO_KEY
    not_before_ms: int = 0


def arranged(held: Run, message: Arranged) -> Run:
    """Messages of *held* with what they say; where others stay in the owner's hands, there is no order to keep."""
    if held.state is State.ACQUIRED:
        return as_undelivered(held)
    return replace(
        held, is_arranged=True, priority=min(message.priority, MAX_PRIORITY), order_key=message.order_key
    )


def leaving(
    held: Run, messages: Sequence[Arranged], now_wall_ms: int
) -> Iterator[tuple[int, int, Arranged | None]]:
    """What of *held* leaves the owner's hands: (first, last, message), or None for those that are done with.

    Several in a row that ask for the same, and have no order key, are one: *message* is the first of them.
    """
    position = held.first
    first, like = position, None  # those of [first, position) leave, and ask for what this one does
    begin = bisect_left(messages, held.first, key=_offset_of)
    for message in messages[begin : bisect_right(messages, held.last, key=_offset_of)]:
        leaves = held.state is State.ARRANGING or message.not_before_ms > now_wall_ms
        if like is not None and not (leaves and message.offset == position and _are_alike(like, message)):
            yield first, position - 1, like
            like = None
        if message.offset > position:
            yield position, message.offset - 1, None
        if leaves and like is None:
            first, like = message.offset, message
        position = message.offset + 1
    if like is not None:
        yield first, position - 1, like
    if position <= held.last:
        yield position, held.last, None


def _are_alike(one: Arranged, other: Arranged) -> bool:
    return one.order_key == NO_KEY and one[1:] == other[1:]
