"""The proof: scripts, recoveries that are cut off themselves, and random programs until there are enough states."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..proof import Row, Scope, delete_folder, new_folder
from .exploration import Explorer, Sample, record
from .random_programs import RandomProgram
from .workloads import SCRIPTS, recovery

SCRIPT_STATES = 2_500
SCRIPT_RECOVERIES = 12
RECOVERY_STATES = 120
PROGRAM_STATES = 900
PROGRAM_RECOVERIES = 2
BOUNDED, LONG = 50_000, 2_000_000

REPOSITORY = Path(__file__).parents[3]
DIGEST_BYTES = 16


def run(scope: Scope) -> Iterator[Row]:
    """The long form shares the random programs out among one process for each processor."""
    folder = new_folder(in_memory=True)  # what nobody ever wants back
    try:
        yield from _run(scope, folder)
    finally:
        delete_folder(folder)


def _run(scope: Scope, folder: Path) -> Iterator[Row]:
    explorer = Explorer(folder, scope.seed)
    samples: list[tuple[str, Sample]] = []
    for script in SCRIPTS:
        recording = record(script.__name__, script, folder)
        picked = explorer.explore(recording, SCRIPT_STATES, samples=SCRIPT_RECOVERIES)
        samples += [(recording.name, sample) for sample in picked]
    scripted = len(explorer.digests)
    yield Row("power cuts in scripted programs", scripted, "states", scope.seed)
    for name, sample in samples:
        _explore_recovery(explorer, name, sample)
    recovered = len(explorer.digests) - scripted
    yield Row("power cuts in their recovery", recovered, "states", scope.seed)
    before = len(explorer.digests)
    wanted = scope.count(BOUNDED, LONG) - before
    if scope.is_long:
        explorer.digests |= _in_processes(folder, scope.seed, wanted)
    else:
        explore_random(explorer, wanted)
    count = len(explorer.digests) - before
    yield Row("power cuts in random programs and their recovery", count, "states", scope.seed)


def explore_random(explorer: Explorer, wanted: int) -> None:
    """Random programs until *wanted* more states were opened."""
    goal = len(explorer.digests) + wanted
    number = 0
    while len(explorer.digests) < goal:
        name = f"random program {number}"
        program = RandomProgram(random.Random(f"{explorer.seed} {name}"))
        recording = record(name, program, explorer.folder)
        limit = min(PROGRAM_STATES, goal - len(explorer.digests))
        for sample in explorer.explore(recording, limit, samples=PROGRAM_RECOVERIES):
            _explore_recovery(explorer, name, sample)
        number += 1


def _explore_recovery(explorer: Explorer, name: str, sample: Sample) -> None:
    recording = record(
        f"recovery of {name} at {sample.operation}",
        recovery,
        explorer.folder,
        tree=sample.tree,
        promises=sample.promises,
    )
    explorer.explore(recording, RECOVERY_STATES)


# Several processes --------------------------------------------------------------------------------------


def _in_processes(root: Path, seed: int, wanted: int) -> set[bytes]:
    """The digests of the states that the workers opened."""
    count = os.cpu_count() or 1
    workers: list[tuple[subprocess.Popen[str], Path]] = []
    for number in range(count):
        folder = root / f"worker-{number}"
        folder.mkdir()
        arguments = [str(seed + number), str(wanted // count + 1), str(folder)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.crash_states.worker", *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        workers.append((process, folder / "digests"))
    digests: set[bytes] = set()
    try:
        for process, path in workers:
            output, _ = process.communicate()
            assert process.returncode == 0, output
            content = path.read_bytes()
            digests |= {content[at : at + DIGEST_BYTES] for at in range(0, len(content), DIGEST_BYTES)}
    finally:
        for process, _ in workers:  # of a promise that is broken, the others need not be waited for
            process.kill()
            process.wait()
    return digests
