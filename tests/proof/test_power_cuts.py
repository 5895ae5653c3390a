"""Real power cuts on real file systems, and that the checks would notice a broker that does not sync."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from .power_cuts import FILE_SYSTEMS, lives, run, why_not
from .proof import Proof


@pytest.mark.slow
def test_what_was_acknowledged_is_there_after_the_power_was_cut(prove: Callable[[Proof], object]) -> None:
    prove(run)


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_a_broker_that_does_not_sync_is_caught(file_system: str, rng: random.Random) -> None:
    """The checker can fail: every fsync is left out, and acknowledged records, commits or whole topics are missing."""
    reason = why_not(file_system)
    if reason:
        pytest.skip(reason)
    *_, last = lives(file_system, 4, rng.randrange(1 << 32), "--without-syncs")
    kinds = {text.partition(":")[0] for text in last["broken"]}
    print(kinds)
    assert kinds & {"record", "commit", "topic", "failed"}, last
