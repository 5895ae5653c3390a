"""What a power cut may leave, at every operation of a program, keeps what was promised by then."""

from __future__ import annotations

from collections.abc import Callable

from .crash_states import run
from .proof import Proof, Row


def test_whatever_a_power_cut_leaves_keeps_the_promises(prove: Callable[[Proof], list[Row]]) -> None:
    prove(run)
