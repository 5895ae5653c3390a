"""Options of the whole suite: ``--long`` runs the long form of the end-to-end proofs, ``--seed`` repeats one."""

from __future__ import annotations

import os
import random
import sys

import hypothesis
import pytest

# Hundreds of tests start processes. Where no bytecode is kept, each of these compiles the product anew: most of a
# second of processor time, three times what it takes to load it.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes is no property of ours: a busy machine would fail the suite.
hypothesis.settings.register_profile("logbroker", deadline=None)
hypothesis.settings.load_profile("logbroker")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long form of the end-to-end tests")
    parser.addoption("--seed", type=int, default=None, help="the seed of random tests (default: a new one)")


@pytest.fixture
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A source of randomness whose seed is printed when the test fails."""
    seed = request.config.getoption("--seed")
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed: {seed} (repeat with --seed {seed})")
    return random.Random(seed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The proofs first: they are the longest files, and the one that begins last decides when a run ends."""
    items.sort(key=lambda item: item.path.parent.name != "proof")
