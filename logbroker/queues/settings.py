"""What a subscription asks of its queue, and what it may ask."""

from __future__ import annotations

import msgspec

from logbroker_storage.errors import InvalidRequestError

DEFAULT_LEASE_S = 30.0
MIN_LEASE_S = 0.001
MAX_LEASE_S = 86_400.0
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


def lease_ms_of(lease: float) -> int:
    """*lease*, in seconds, as milliseconds.

    Raises:
        InvalidRequestError: it is no number, too short or too long.
    """
    is_number = isinstance(lease, (int, float)) and not isinstance(lease, bool)
    if not is_number or not MIN_LEASE_S <= lease <= MAX_LEASE_S:
        raise InvalidRequestError(
            f"lease={lease!r}: give it seconds, from {MIN_LEASE_S:g} to {MAX_LEASE_S:g} (a day)"
        )
    return int(lease * 1000)
