"""``logbroker inspect``: the offline inspector, ``logbroker-inspect``, under the broker's own name.

What stands behind ``inspect`` is the inspector's, as it is. Where that names no directory, it takes the one that
every other command would: the inspector looks into the variable.
"""

from __future__ import annotations

import os

import typer

from .directory import VARIABLE, data_directory, nearest_data

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def inspect(context: typer.Context) -> None:
    """Explain, verify and repair a log directory offline (the same as logbroker-inspect)."""
    from logbroker_tools.cli import run

    os.environ[VARIABLE] = data_directory(nearest_data(context, None))
    raise typer.Exit(run(context.args))
