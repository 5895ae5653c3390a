"""Who appends and syncs a partition's batches, of the threads that wait for them.

    a turn's   nobody leads   another leads     it leads
    ask        it leads       it gets in line
    pass_on                   it leaves the     the first in line leads: of those who are served, then of those
                              line              who wait; where nobody is, it leads still

The lead goes from thread to thread: from who has it through all whose batches are settled, each of which wakes the
next, to one that waits still and leads in its turn. By then most of the others are back, with their next records.
Woken at once they would fight for the interpreter: with 16 threads five switches of the processor a record instead
of two, and half as many records a batch.

Guard: the producer's lock, for every field and every method.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .accumulator import Batch


class Turn:
    """Of a thread that wants *batch* settled: to lead, or to pass the lead on if others have settled it."""

    __slots__ = ("batch", "has_come")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.has_come = threading.Lock()  # released by who gives it the lead
        self.has_come.acquire()


class Lead:
    """The lead of one partition's queue, and the line for it."""

    __slots__ = ("_served", "_waiting", "holder")

    def __init__(self) -> None:
        self.holder: Turn | None = None
        self._waiting: list[Turn] = []
        self._served: list[Turn] = []  # their batches are settled: they get the lead first, to pass it on

    @property
    def is_idle(self) -> bool:
        """Whether nobody leads, or waits to."""
        return self.holder is None and not self._waiting and not self._served

    def ask(self, turn: Turn) -> None:
        """Let *turn* lead if nobody does; else it waits until ``has_come`` is released."""
        if self.holder is None:
            self.holder = turn
        else:
            self._waiting.append(turn)

    def pass_on(self, turn: Turn) -> bool:
        """*turn* is over: the lead, if it has it, goes to the next in line. Doing it again does nothing.

        False when it has the lead still, because nobody waits: then it is for the caller to lay it down.
        """
        if self.holder is not turn:
            for line in (self._served, self._waiting):
                if turn in line:
                    line.remove(turn)
            return True
        if self._waiting and not self._served:
            served = [one for one in self._waiting if one.batch.is_over]
            waiting = [one for one in self._waiting if not one.batch.is_over]
            self._served, self._waiting = served, waiting
        line = self._served or self._waiting
        if not line:
            return False
        # No call from here to release: an exception out of a signal handler may come behind any call, and whoever
        # has the lead must be told of it.
        self.holder = line[0]
        del line[0]
        self.holder.has_come.release()
        return True
