"""Runs scenarios on mutants, each in a process of its own that ends with it.

A process that has imported everything but the product forks for each of them, which saves four fifths of a start.
It is another process than the caller's, for that one may have imported the product.
Requests come on its stdin, answers go to its stdout, a line of JSON each.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from .mutant import REPOSITORY, SOURCES, Mutant, install

PACKAGE = "tests.proof.mutations"
SCENARIOS = f"{PACKAGE}.scenarios"
# Where most scenarios are. What the others import takes longer than it saves.
IMPORTED_ONCE = ("logs", "directories", "recovering", "cleaning", "transactions")
PATIENCE_S = (
    300.0  # a scenario takes a second or so; whoever hangs has noticed, too, but CI should not wait for it
)
HELD, BROKEN, HANGS, UNFIT = "held", "broken", "hangs", "unfit"


@dataclass(frozen=True)
class Outcome:
    """What became of a scenario: ``held``, ``broken`` (it failed), ``hangs``, or ``unfit`` (it cannot be run)."""

    result: str
    output: str
    seconds: float


class Runner:
    """The forking process, as its caller sees it."""

    def __init__(self, folder: Path) -> None:
        """*folder* is an empty directory for the scenarios' files."""
        # By its whole name: pytest imports this module by another one.
        program = f"import sys, pathlib; from {PACKAGE}.runner import main; main(pathlib.Path(sys.argv[1]))"
        command = [sys.executable, "-c", program, str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )

    def run(self, scenario: str, mutant: Mutant | None = None, *, patience_s: float = PATIENCE_S) -> Outcome:
        """Run *scenario*, which is named "module.function"."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "scenario": scenario,
            "mutant": None if mutant is None else asdict(mutant),
            "patience_s": patience_s,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


# The forking process ----------------------------------------------------------------------------------


def main(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed here is no answer
    _import_all_but_the_product()
    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        mutant = None if request["mutant"] is None else Mutant(**request["mutant"])
        place = folder / str(number)
        place.mkdir()
        answers.write(
            json.dumps(asdict(_forked(request["scenario"], mutant, place, request["patience_s"]))) + "\n"
        )
        answers.flush()
        shutil.rmtree(place)


def _import_all_but_the_product() -> None:
    """What the scenarios import, so that no fork has to: a first one imports everything and tells the names."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for name in IMPORTED_ONCE:
            importlib.import_module(f"{SCENARIOS}.{name}")
        os.write(writing, "\n".join(sys.modules).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as names:
        found = names.read().split("\n")
    assert os.waitpid(child, 0)[1] == 0
    for name in found:
        if name.partition(".")[0] not in {*SOURCES, "tests", "__main__"}:
            with contextlib.suppress(ImportError):  # parts of a package that come with it
                importlib.import_module(name)


def _forked(scenario: str, mutant: Mutant | None, place: Path, patience_s: float) -> Outcome:
    output = place / "output"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_child(scenario, mutant, place, output)
    status = _waited(child, began + patience_s)
    seconds = time.monotonic() - began
    told = output.read_text(errors="replace") if output.exists() else ""
    if status is None:
        return Outcome(HANGS, told, seconds)
    code = os.waitstatus_to_exitcode(status)
    return Outcome({0: HELD, 1: BROKEN}.get(code, UNFIT), told or f"exit code {code}", seconds)


def _waited(child: int, deadline: float) -> int | None:
    """How the child ended; None, when it was ended because it would not."""
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be_the_child(scenario: str, mutant: Mutant | None, place: Path, output: Path) -> None:
    code = 2
    try:
        os.setpgid(0, 0)
        fd = os.open(output, os.O_CREAT | os.O_WRONLY)
        for standard in (1, 2):
            os.dup2(fd, standard)
        sys.stdin = io.StringIO()
        if mutant is not None:
            install(mutant)
        code = _run(scenario, place)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(name: str, place: Path) -> int:
    folder = place / "files"
    folder.mkdir()
    module, _, function = name.partition(".")
    scenario = getattr(importlib.import_module(f"{SCENARIOS}.{module}"), function)
    try:
        scenario(folder)
    except Exception:
        traceback.print_exc()
        return 1
    return 0
