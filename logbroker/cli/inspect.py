"""``logbroker inspect``: the offline inspector, ``logbroker-inspect``, under the broker's own name.

What stands behind ``inspect`` is the inspector's, as it is. Only where no path is given the data directory is
added: with ``--data`` before ``inspect``, and where nothing but options follow the inspector's command.
"""

from __future__ import annotations

import typer

from .directory import data_directory, nearest_data

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def inspect(context: typer.Context) -> None:
    """Explain, verify and repair a log directory offline (the same as logbroker-inspect)."""
    from logbroker_tools.cli import run

    arguments = with_directory(context.args, nearest_data(context, None))
    raise typer.Exit(run(arguments or ["--help"]))


def with_directory(arguments: list[str], data: str | None) -> list[str]:
    """The inspector's arguments, with the directory behind its command where it is missing."""
    command, following = arguments[:1], arguments[1:]
    if not command or command[0].startswith("-") or {"--help", "-h"} & set(following):
        return arguments
    if data is not None or all(argument.startswith("-") for argument in following):
        return [*command, data_directory(data), *following]
    return arguments
