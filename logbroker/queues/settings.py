"""What a subscription asks of its queue."""

from __future__ import annotations

import msgspec

DEFAULT_LEASE_S = 30.0
DEFAULT_MAX_DELIVERIES = 5
MAX_DELIVERIES = 10_000


class QueueSettings(msgspec.Struct, frozen=True):
    """The rules by which a queue hands out messages.

    Attributes:
        max_deliveries: after so many deliveries without an acceptance a message is rejected.
        has_dead_letter: a rejected message is to be buried; without, it is done with at once.
        looks_ahead: messages are arranged by priority or order key before they are handed out.
    """

    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    has_dead_letter: bool = False
    looks_ahead: bool = False
