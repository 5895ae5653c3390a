"""The command line; see the package."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from ..measuring import Figures, figures_of, machine
from . import report
from .contender import Contender, Work
from .contenders import CONTENDERS
from .works import child

LONGEST_S = 900.0  # of one measurement, its server and filling included


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the time, and rougher figures.")] = False,
    work: Annotated[list[str] | None, typer.Option(help="Only works with this in their name.")] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help="Only contenders with this in their name.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How often each is measured (default: 5; quick: 3).")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where compare.md, .json and .svg are written.")] = Path(
        "compare"
    ),
    folder: Annotated[Path | None, typer.Option(help="On the disk to measure (default: TMPDIR).")] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="How many the contenders, and their servers, share (Linux).")
    ] = None,
) -> None:
    """Measure logbroker beside its peers, in turn, and write tables and plots."""
    works = [each for each in Work if not work or any(part in each.value for part in work)]
    contenders = [
        each for each in CONTENDERS.values() if not contender or any(part in each.name for part in contender)
    ]
    if cores is not None:
        if not hasattr(os, "sched_setaffinity"):
            raise typer.BadParameter("this system does not bind processes to cores", param_hint="--cores")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # children inherit it
    budget_s = 0.5 if quick else 5.0
    rounds = rounds or (3 if quick else 5)
    output.mkdir(parents=True, exist_ok=True)
    skipped = {each.name: reason for each in contenders if (reason := each.missing())}
    for name, reason in skipped.items():
        print(f"SKIPPED {name}: {reason}", file=sys.stderr, flush=True)
    results = report.Results(machine=machine(), budget_s=budget_s, rounds=rounds, skipped=skipped)
    for each_work in works:
        able = [each for each in contenders if each_work in each.works and each.name not in skipped]
        _compare(each_work, able, budget_s, rounds, folder, results)
        report.write(results, output)  # after each work, so that a run that is stopped has something
    print(report.markdown(results))


def _compare(
    work: Work,
    contenders: list[Contender],
    budget_s: float,
    rounds: int,
    folder: Path | None,
    results: report.Results,
) -> None:
    found: dict[str, list[Figures]] = {}
    for number in range(rounds):
        for contender in contenders:
            if contender.name in results.failed.get(work.value, {}):
                continue
            begun = time.monotonic()
            try:
                figures = _measured(contender, work, budget_s, folder)
            except (RuntimeError, subprocess.SubprocessError) as error:
                # One peer that breaks must not end an hour's run; the table says that it failed, and why.
                results.failed.setdefault(work.value, {})[contender.name] = str(error)[-2000:]
                print(f"FAILED {contender.name}: {work.value}: {error}", file=sys.stderr, flush=True)
                continue
            found.setdefault(contender.name, []).append(figures)
            shown = ", ".join(f"{key} {value:,.3g}" for key, value in figures.items())
            took = time.monotonic() - begun
            print(
                f"{work.value} {number + 1}/{rounds}: {contender.name}: {shown} ({took:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    results.works[work.value] = {
        name: {key: statistics.median(each[key] for each in rounds_) for key in rounds_[0]}
        for name, rounds_ in found.items()
    }


def _measured(contender: Contender, work: Work, budget_s: float, parent: Path | None) -> Figures:
    folder = Path(tempfile.mkdtemp(prefix="compare-", dir=parent))
    try:
        with contender.server(folder) as address:
            command = child("measure", contender, work, folder, address, budget_s)
            return figures_of(command, LONGEST_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()  # what one contender left unwritten is not the next one's to write


if __name__ == "__main__":
    typer.run(main)
