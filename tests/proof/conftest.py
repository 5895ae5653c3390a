"""``prove(proof)``: run a proof's bounded form (with ``--long`` the long one) as a test, and print its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .proof import Proof, Row, Scope, delete_folder, new_folder

SEED = 2026
"""Of the bounded form, unless ``--seed`` gives another: a change of the code that breaks a promise is told from luck.
New seeds are for ``python -m tests.proof``, which takes one at random."""


@pytest.fixture
def prove(request: pytest.FixtureRequest, long_run: bool) -> Iterator[Callable[[Proof], list[Row]]]:
    """Fails with what the proof raises. Rows that were skipped skip the test, loudly, when the others are through."""
    folder = new_folder()
    seed = request.config.getoption("--seed")

    def run(proof: Proof) -> list[Row]:
        scope = Scope(seed=SEED if seed is None else seed, is_long=long_run, folder=folder)
        print(f"python -m tests.proof … --seed {scope.seed}")
        rows = []
        for row in proof(scope):
            print(f"{row.test}: {row.cases:,} {row.unit}: {row.result}")
            rows.append(row)
        skipped = [f"{row.test}: {row.skipped}" for row in rows if row.skipped]
        if skipped:
            pytest.skip("; ".join(skipped))
        return rows

    yield run
    delete_folder(folder)
