"""The correlation table: which request a reply belongs to, and what became of every one.

    event                      from      to
    issue                      -         waiting
    a reply with its id        waiting   answered      whoever waits gets the reply
    whoever waited gives up    waiting   given up
    a reply with its id        the rest  the same      dropped: it is late, a second one, or nobody's

Ids are a prefix that no other table has and a number, so a reply meant for an earlier table finds nobody here. Only
what waits is kept: the table is as large as what is under way.
"""

from __future__ import annotations

from itertools import count
from typing import Generic, TypeVar

import msgspec

Waiting = TypeVar("Waiting")


class RequestCounts(msgspec.Struct, frozen=True):
    """What became of the requests of one broker object.

    Attributes:
        sent: requests that were issued.
        answered: those that got a reply, an error of the responder's included.
        given_up: those that nobody waits for any more: timed out, cancelled, or not sent after all.
        dropped: replies that nobody waited for (any more).
    """

    sent: int = 0
    answered: int = 0
    given_up: int = 0
    dropped: int = 0


class CorrelationTable(Generic[Waiting]):
    """Requests under way by correlation id. Not safe across threads: its owner has a lock."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._numbers = count(1)
        self._waiting: dict[bytes, Waiting] = {}
        self._sent = self._answered = self._given_up = self._dropped = 0

    def issue(self, waiting: Waiting) -> bytes:
        """Have *waiting* wait for a reply; the id that the request is to carry."""
        correlation_id = f"{self._prefix}.{next(self._numbers)}".encode()
        self._waiting[correlation_id] = waiting
        self._sent += 1
        return correlation_id

    def claim(self, correlation_id: bytes | None) -> Waiting | None:
        """Who waits for the reply with this id, and now no longer does; None: it is to be dropped."""
        waiting = None if correlation_id is None else self._waiting.pop(correlation_id, None)
        if waiting is None:
            self._dropped += 1
        else:
            self._answered += 1
        return waiting

    def give_up(self, correlation_id: bytes) -> bool:
        """Wait no longer; False when the reply has come already."""
        if self._waiting.pop(correlation_id, None) is None:
            return False
        self._given_up += 1
        return True

    def give_up_all(self) -> list[Waiting]:
        """Wait for nothing any more; who waited."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._given_up += len(waiting)
        return waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def counts(self) -> RequestCounts:
        return RequestCounts(self._sent, self._answered, self._given_up, self._dropped)
