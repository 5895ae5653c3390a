"""A connection, as those see it who did not open it: handlers, and who looks after all of them."""

from __future__ import annotations

from typing import Protocol


class OpenConnection(Protocol):
    """One client's; see ``listener``."""

    peer: str
    """Its address and port, for the log."""
    host: str
    """Its address."""

    @property
    def has_more(self) -> bool:
        """Whether a request is here, or on its way, that was not begun yet. May be asked in any thread."""
        ...

    def look_after(self, now_s: float) -> None:
        """Close it if it does not move, read on where there is room again; called every few seconds."""

    async def drain(self) -> None:
        """Read no more, answer what was begun, close."""

    def abort(self) -> None:
        """Close it at once."""
