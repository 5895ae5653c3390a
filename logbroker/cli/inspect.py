"""``logbroker inspect``: the offline inspector, ``logbroker-inspect``, under the broker's own name."""

from __future__ import annotations

import typer

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def inspect(context: typer.Context) -> None:
    """Explain, verify and repair a log directory offline (the same as logbroker-inspect)."""
    from logbroker_tools.cli import run

    raise typer.Exit(run(context.args or ["--help"]))
