"""Disks, limits and clocks that fail, bounded; see ``tests.proof.faults``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import faults
from .proof import Proof, Row


@pytest.mark.slow
def test_no_fault_makes_an_acknowledgement_false_or_stops_writes_for_ever(
    prove: Callable[[Proof], list[Row]],
) -> None:
    prove(faults.run)
