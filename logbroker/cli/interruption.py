"""Ctrl-C at a moment of our choosing: between two steps, or at once while we only wait.

An exception in the middle of an append would be sound (a crash there is), but what had been handed over
could not be told from what had not. So Ctrl-C only sets a mark, except inside ``waiting``. A second one
does not wait for anything.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether Ctrl-C was pressed; use it as a context manager, in the main thread."""

    def __init__(self) -> None:
        self.requested = False
        self._waits = False
        self._before: object = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In here Ctrl-C raises KeyboardInterrupt."""
        self._waits = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._waits = False

    def is_set(self) -> bool:
        """As a ``threading.Event``'s, for what takes one to stop by."""
        return self.requested

    def wait(self, timeout: float) -> None:
        """For *timeout* seconds.

        No event behind it: a signal's handler must not take a lock that the thread it interrupts may hold.
        """
        time.sleep(timeout)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (as signal calls it)
        again, self.requested = self.requested, True
        if self._waits or again:
            raise KeyboardInterrupt
