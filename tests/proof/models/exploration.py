"""Runs a state machine for as many examples and steps as are asked for, and counts what it really did.

Hypothesis cuts some examples short (its first ones on purpose), so the machine is run in rounds until both
numbers are reached; the last are as short as what is missing, at the pace so far. Each round has a seed of its own,
drawn from the one that is given: the same seed runs the same examples again. Nothing is kept between runs.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

STEPS = 50
ROUND_EXAMPLES = 250


class Explored(NamedTuple):
    """What was tried: examples begun, and steps after which every invariant held."""

    examples: int
    steps: int


def explore(
    machine: type[RuleBasedStateMachine],
    *,
    examples: int,
    random_seed: int,
    steps: int = STEPS,
    shrinks: bool = True,
) -> Explored:
    """At least *examples* of *machine*, and *examples* times *steps* steps in all.

    Raises:
        AssertionError: the machine and its model differ; it tells the shortest steps that hypothesis found. With
            *shrinks* off, the first that were found.
    """
    name = machine.__name__
    begun = held = 0

    class Counted(machine):  # type: ignore[valid-type,misc]
        def __init__(self) -> None:
            nonlocal begun
            begun += 1
            super().__init__()

        @invariant(check_during_init=True)
        def is_counted(self) -> None:
            nonlocal held
            held += 1

    Counted.__name__ = Counted.__qualname__ = name
    rng = random.Random(random_seed)
    while begun < examples or held - begun < examples * steps:
        round_seed = rng.randrange(1 << 32)
        done = held - begun
        missing = max(examples - begun, (examples * steps - done) * begun // max(done, 1) + 1)
        options = settings(
            max_examples=min(ROUND_EXAMPLES, missing),
            stateful_step_count=steps,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        try:
            with _silence():
                run_state_machine_as_test(seed(round_seed)(Counted), settings=options)
        except Exception as error:
            raise AssertionError(
                f"{name} and its model differ (seed {random_seed}, {begun:,} examples, round {round_seed})"
            ) from error
    return Explored(begun, held - begun)  # the invariants are looked at once before the first step, too


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Recovery tells of every cut, and here there are thousands."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
