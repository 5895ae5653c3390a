"""The models of the log, groups, transactions and queues: 25,000 random steps each, by hypothesis."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .models import MODELS, proof_of
from .proof import Proof, Row

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # as much on a machine that has other work


@pytest.mark.parametrize("name", MODELS)
def test_whatever_happens_the_model_and_the_real_one_agree(
    prove: Callable[[Proof], list[Row]], name: str
) -> None:
    prove(proof_of(name))
