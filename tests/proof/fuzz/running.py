"""Runs the targets: what is in the corpora, and each target under libFuzzer in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..proof import Row, Scope, delete_folder, new_folder
from .target import SCRATCH, Target
from .targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
ONCE_FAILED = Path(__file__).parent / "once_failed"
ROOT = Path(__file__).parents[3]

SECONDS, LONG_SECONDS = 1, 600  # of each target
_UNITS = re.compile(r"stat::number_of_executed_units: (\d+)")


def corpus_of(name: str) -> list[Path]:
    """The inputs of a target that are kept: those that reached new lines, and those that once failed."""
    folders = [CORPUS / name, ONCE_FAILED / name]
    return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())


def replay(name: str, target: Target) -> int:
    """Try every input that is kept; how many."""
    inputs = corpus_of(name)
    try:
        for path in inputs:
            try:
                target.run(path.read_bytes())
            except BaseException as error:
                raise AssertionError(f"fuzz target {name}: {path}: {error!r}") from error
    finally:
        target.close()
    return len(inputs)


def run(scope: Scope) -> Iterator[Row]:
    """Every target: its corpus, then new inputs. ``python -m tests.proof.fuzz.child TARGET FILE`` repeats a failure."""
    for name, target in TARGETS.items():
        yield Row(f"{name}: corpus", replay(name, target), "inputs")
    if importlib.util.find_spec("atheris") is None:
        yield Row(
            "new inputs", 0, "inputs", skipped="atheris is not installed (it has no wheel for this Python)"
        )
        return
    seconds = scope.count(SECONDS, LONG_SECONDS)
    for name in TARGETS:
        seed = scope.rng(f"fuzz {name}").randrange(1, 1 << 32)
        yield Row(name, fuzz(name, scope.folder, seed=seed, seconds=seconds), "inputs", seed)


def fuzz(name: str, folder: Path, *, seed: int, seconds: int, child: str | None = None) -> int:
    """Try new inputs for so long; how many. Raises AssertionError with the input that is a fault.

    Inputs that reach new lines are written to *folder*. *child* is a script in place of the module ``child``.
    """
    found = folder / name
    found.mkdir(parents=True, exist_ok=True)
    # Outside of the folder, which is deleted: a failure is to be repeated.
    failures = Path(tempfile.gettempdir()) / "logbroker-fuzz-failures" / name
    failures.mkdir(parents=True, exist_ok=True)
    arguments = [str(found), str(CORPUS / name), f"-seed={seed}", f"-max_total_time={seconds}"]
    program = [child] if child else ["-m", "tests.proof.fuzz.child"]
    command = [sys.executable, *program, name, *arguments, f"-artifact_prefix={failures}/"]
    scratch = new_folder(in_memory=True)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), SCRATCH: str(scratch)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds * 2 + 300,
        )
    finally:
        delete_folder(scratch)
    units = _UNITS.search(done.stderr)
    assert not done.returncode, (
        f"fuzz target {name}, seed {seed}: exit code {done.returncode}; the input is in {failures}\n"
        f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    )
    assert units, done.stderr[-6000:]
    return int(units[1])
