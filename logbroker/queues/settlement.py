"""What an owner asks to become of the messages in its hands, all of a partition at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .state import QueueState, Range


class Settlement(NamedTuple):
    """Ranges of offsets, by what is to become of them; none is named twice."""

    finished: Sequence[Range] = ()
    released: Sequence[Range] = ()
    rejected: Sequence[Range] = ()
    renewed: Sequence[Range] = ()

    @property
    def is_lasting(self) -> bool:
        """Whether something of it has to be on the disk before it is acknowledged."""
        return bool(self.finished or self.rejected)

    def settle(
        self, state: QueueState, owner: str, *, now_ms: int, lease_end_ms: int, note: str
    ) -> list[Range]:
        """Do it; the ranges that *owner* does not hold. *note* is why messages are rejected."""
        return [
            *state.finish(owner, self.finished, now_ms=now_ms),
            *state.release(owner, self.released, now_ms=now_ms),
            *state.reject(owner, self.rejected, note=note, now_ms=now_ms),
            *state.extend(owner, self.renewed, lease_end_ms=lease_end_ms, now_ms=now_ms),
        ]
