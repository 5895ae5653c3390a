"""Until when a wait goes on: any number of seconds that a user gives, also more than a lock can be asked to wait."""

from __future__ import annotations

import threading
import time

from logbroker_storage.errors import InvalidRequestError

LONGEST_WAIT_S = threading.TIMEOUT_MAX - 1.0  # with what a sum of floats may add; 292 years on Linux


def deadline_after(timeout: float | None) -> float | None:
    """The monotonic time at which *timeout* seconds are over; None: never.

    Raises:
        InvalidRequestError: it is no number of seconds.
    """
    check_timeout(timeout)
    return None if timeout is None else time.monotonic() + max(0.0, min(timeout, LONGEST_WAIT_S))


def seconds_to_wait(name: str, seconds: float) -> float:
    """*seconds*, the argument *name*, if it is a number from 0 on; at most what a lock can be asked to wait.

    Raises:
        InvalidRequestError: it is not.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise InvalidRequestError(f"{name}={seconds!r}: give it seconds, 0 or more")
    return min(seconds, LONGEST_WAIT_S)


def left_until(deadline: float | None) -> float | None:
    """How many seconds there are until *deadline*, at least 0; None: it never comes."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def check_timeout(timeout: float | None, name: str = "timeout") -> None:
    """Raises InvalidRequestError when the argument *name* is no number of seconds, nor None."""
    if timeout is None:
        return
    # Not isnan(), which fails for an integer that no float comes near to.
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout != timeout:
        raise InvalidRequestError(f"{name}={timeout!r}: give it seconds, or None to wait for ever")
