"""Processes are killed at thousands of moments, and nothing that was promised is lost or doubled; see ``kills``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .kills import run
from .proof import Proof, Row


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_was_promised_holds_however_often_processes_are_killed(
    prove: Callable[[Proof], list[Row]],
) -> None:
    prove(run)
