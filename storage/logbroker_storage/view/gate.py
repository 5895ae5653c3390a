"""Waiting, before a fork, until no thread of the process is inside LMDB.

A forked child that opens the directory anew must first close the environment it inherited (LMDB refuses
to open a file twice in a process), and closing waits for every call that was in it, also for those of
threads that did not come along. So a fork shuts the gate, waits for whoever is inside, and forks then.

    caller   enter(): note itself in ``inside``, then look whether the gate is shut
    fork     shut(): shut the gate, then look whether anybody is inside

Each writes before it looks, so at least one of them sees the other. A list's append and pop are atomic and
cost 50 ns together; a lock would make readers wait for each other.
"""

from __future__ import annotations

import threading
import time

LONGEST_WAIT_S = 5.0  # a write transaction of a stopped process blocks ours: then fork all the same
LOOK_AGAIN_S = 0.00005


class Gate:
    """Counts the calls that are inside."""

    def __init__(self) -> None:
        self._inside: list[None] = []
        self._is_shut = False
        self._opened = threading.Event()
        self.leave = self._inside.pop  # ends what ``enter`` began

    def enter(self) -> None:
        """Come in, as soon as the gate is open. Not again by a thread that is inside."""
        self._inside.append(None)
        while self._is_shut:
            self._inside.pop()
            self._opened.wait()
            self._inside.append(None)

    def shut(self) -> bool:
        """Let nobody in any more; whether everybody has left, waiting for that if need be."""
        self._opened.clear()
        self._is_shut = True
        deadline = time.monotonic() + LONGEST_WAIT_S
        while self._inside:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_AGAIN_S)
        return True

    def open(self) -> None:
        self._is_shut = False
        self._opened.set()
