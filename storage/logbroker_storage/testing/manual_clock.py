"""A clock that stands still until it is advanced."""

from __future__ import annotations

START_MS = 1_700_000_000_000  # an arbitrary moment in November 2023


class ManualClock:
    """A ``Clock`` for tests: wall time and monotonic time move together, and only by ``advance``."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self._now_ms = now_ms
        self._monotonic_ms = 0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._monotonic_ms / 1000

    def monotonic_ms(self) -> int:
        return self._monotonic_ms

    def advance(self, *, ms: int) -> None:
        """Let *ms* milliseconds pass."""
        self._now_ms += ms
        self._monotonic_ms += ms

    def set_back(self, *, ms: int) -> None:
        """Move the wall clock back, as an operator or NTP does; monotonic time goes on unmoved."""
        self._now_ms -= ms
