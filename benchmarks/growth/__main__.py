"""The command line; see the package."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..measuring import machine
from . import groups, history, partitions, report
from .steps import Runner

WORKS = {"history": history, "partitions": partitions, "groups": groups}
STORED_BYTES = 120  # of a record of 100 B, at most
ELSE_BYTES = 2 << 30  # views, journals, and what a file system wants to keep free


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Up to a million records.")] = False,
    work: Annotated[list[str] | None, typer.Option(help="Only works with this in their name.")] = None,
    records: Annotated[int, typer.Option(min=10_000, help="Of the longest history.")] = 100_000_000,
    widest: Annotated[int, typer.Option(min=1, help="Most partitions, and most groups.")] = 1000,
    openings: Annotated[int, typer.Option(min=1, help="How often each way of opening is measured.")] = 5,
    output: Annotated[Path, typer.Option(help="Where growth.md, .json and .svg are written.")] = Path(
        "growth"
    ),
    folder: Annotated[Path | None, typer.Option(help="On the disk to measure (default: TMPDIR).")] = None,
) -> None:
    """Measure the same operations on ever larger directories, and write tables and plots."""
    works = [name for name in WORKS if not work or any(part in name for part in work)]
    records = min(records, 1_000_000) if quick else records
    sizes = {
        "history": _decades(10_000, records),
        "partitions": _decades(1, widest),
        "groups": _decades(1, widest),
    }
    _check_space(folder, records if "history" in works else 0)
    output.mkdir(parents=True, exist_ok=True)
    results = report.Results(machine=machine())
    for name in works:
        begun = time.monotonic()
        scratch = Path(tempfile.mkdtemp(prefix="growth-", dir=folder))
        runner = Runner(scratch, quick=quick, openings_each=openings)
        try:
            for size, figures in WORKS[name].measure(runner, sizes[name]):
                results.works.setdefault(name, {})[size] = figures
                report.write(results, output)  # after each size, so that a run that is stopped has something
                shown = ", ".join(f"{key} {value:,.3g}" for key, value in figures.items())
                print(f"{name} {size:,}: {shown}", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(scratch)
        results.seconds[name] = round(time.monotonic() - begun)
    report.write(results, output)
    print(report.markdown(results))


def _decades(first: int, last: int) -> list[int]:
    sizes = [first]
    while sizes[-1] * 10 <= last:
        sizes.append(sizes[-1] * 10)
    return sizes


def _check_space(folder: Path | None, records: int) -> None:
    where = folder or Path(tempfile.gettempdir())
    if not where.is_dir():
        _refuse(f"{where} is not a directory; name another with --folder")
    free, needed = shutil.disk_usage(where).free, records * STORED_BYTES + ELSE_BYTES
    if free < needed:
        _refuse(
            f"{where} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; "
            "name another with --folder, or ask for fewer --records"
        )


def _refuse(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
