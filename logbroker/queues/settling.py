"""What is to be settled, and what turns out to be in other hands by now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from logbroker_storage.errors import LeaseLostError

from ..groups import TopicPartition
from .message import QueueMessage
from .partition import QueuePartition
from .state import Range


class InHand(NamedTuple):
    """What one owner is to be done with in one partition."""

    partition: QueuePartition
    owner: str
    ranges: list[Range]
    messages: list[QueueMessage]  # those that were not given as handles


class Losses:
    """What is no longer in the hands that it is to be settled by."""

    def __init__(self) -> None:
        self._lost: list[tuple[str, int, int, int]] = []

    def note(self, place: TopicPartition, ranges: Iterable[Range]) -> None:
        """Add *ranges* of the partition at *place*."""
        self._lost.extend((*place, *one) for one in ranges)

    def check(self) -> None:
        """Raise ``LeaseLostError`` when there is any."""
        if self._lost:
            raise LeaseLostError(self._lost)


def refuse(place: TopicPartition, ranges: Iterable[Range]) -> None:
    """Of a commit that is all or nothing: raise ``LeaseLostError`` for the first losses."""
    losses = Losses()
    losses.note(place, ranges)
    losses.check()
