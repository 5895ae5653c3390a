"""A command that only has sub-commands, such as ``logbroker topic``."""

from __future__ import annotations

import typer

from .directory import DataOption
from .exit_codes import USAGE


def command_group(help: str) -> typer.Typer:
    """A group that takes ``--data``, and shows its help when no command follows."""
    group = typer.Typer(
        help=help, rich_markup_mode=None, invoke_without_command=True, context_settings=HELP_NAMES
    )

    @group.callback()
    def _options(context: typer.Context, data: DataOption = None) -> None:  # noqa: ARG001  (read by nearest_data)
        help_if_alone(context)

    return group


HELP_NAMES = {"help_option_names": ["-h", "--help"]}


def help_if_alone(context: typer.Context) -> None:
    """Show the help, as wrong usage, when no command follows."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(USAGE)
