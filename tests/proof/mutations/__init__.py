"""Whether the proofs would notice: each sync and each rule of order is switched off, and something must break.

A mutant (``mutant``) is the product with a few lines of one module changed. ``syncs`` switches off every call that
waits for the disk, ``rules`` breaks what must come before what. Each names the scenarios that notice it:

    scenario of                        plays
    a power cut                        the moment of an acknowledgement, or every operation of a workload
    a death                            every operation of a workload
    a failed sync, a changed disk      just that

Every scenario has to hold on the product as it is. The long form also asks how many of the mutants of storage the
crash-state proof notices by itself, which takes minutes for each.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..proof import Row, Scope, delete_folder, new_folder
from .mutant import Mutant
from .rules import MUTANTS as RULES
from .runner import BROKEN, HANGS, HELD, Runner
from .syncs import FILE_SYNCS, WAITS

MUTANTS: list[Mutant] = [*FILE_SYNCS, *WAITS, *RULES]
CRASH_STATES = "states.crash_states"
CRASH_STATES_PATIENCE_S = 1800.0
NOTICED = (BROKEN, HANGS)


def run(scope: Scope) -> Iterator[Row]:
    """The proof."""
    folder = new_folder(in_memory=True)
    try:
        with Runner(folder) as runner:
            yield _held_by_the_product(runner)
            yield noticed(runner, "syncs switched off", [*FILE_SYNCS, *WAITS])
            yield noticed(runner, "rules of order broken", RULES)
            if scope.is_long:
                yield _noticed_by_crash_states(runner)
    finally:
        delete_folder(folder)


def _held_by_the_product(runner: Runner) -> Row:
    scenarios = list(dict.fromkeys(name for mutant in MUTANTS for name in mutant.scenarios))
    for name in scenarios:
        outcome = runner.run(name)
        assert outcome.result == HELD, f"{name} {outcome.result} on the product itself:\n{outcome.output}"
    return Row("scenarios on the product", len(scenarios), "scenarios")


def noticed(runner: Runner, test: str, mutants: list[Mutant]) -> Row:
    """Every mutant is noticed, by every scenario that it names."""
    unnoticed = []
    for mutant in mutants:
        for name in mutant.scenarios:
            outcome = runner.run(name, mutant)
            if outcome.result not in NOTICED:
                unnoticed.append(
                    f"{mutant.rule} ({mutant.module}): {name} {outcome.result}\n{outcome.output}"
                )
    count = len(mutants) - len(unnoticed)
    assert not unnoticed, f"{count} of {len(mutants)} noticed; not these:\n" + "\n".join(unnoticed)
    return Row(test, len(mutants), f"of {len(mutants)} noticed")


def _noticed_by_crash_states(runner: Runner) -> Row:
    """How many the crash states tell alone. That it is not all of them is no fault: some are not about power cuts."""
    mutants = [mutant for mutant in MUTANTS if mutant.module.startswith("logbroker_storage.")]
    count = 0
    for mutant in mutants:
        outcome = runner.run(CRASH_STATES, mutant, patience_s=CRASH_STATES_PATIENCE_S)
        assert outcome.result in (*NOTICED, HELD), outcome.output
        print(f"crash states: {mutant.rule}: {'noticed' if outcome.result in NOTICED else 'not noticed'}")
        count += outcome.result in NOTICED
    return Row("by the crash states alone", count, f"of {len(mutants)} noticed")
