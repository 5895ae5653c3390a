"""Clients, a server and a network that all go wrong: nothing acknowledged is lost, doubled, reordered or skipped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .history import run
from .proof import Proof, Row


@pytest.mark.slow
@pytest.mark.timeout(0)  # whatever it waits for has a limit of its own; the long form takes hours
def test_histories_of_real_clients_hold(prove: Callable[[Proof], list[Row]]) -> None:
    prove(run)
