"""Which data directory a command works on: the nearest ``--data``, ``$LOGBROKER_DATA``, the default.

``--data`` may stand behind the command or before it; the one that stands last holds. Only commands that write
make a directory: reading from one that is not there is an error, and leaves nothing behind.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Annotated

import typer

from .exit_codes import CommandFailed

if TYPE_CHECKING:
    from ..broker import Broker

DEFAULT_DIRECTORY = "logbroker-data"
VARIABLE = "LOGBROKER_DATA"


def nearest_data(context: typer.Context, value: str | None) -> str | None:
    """The ``--data`` of this command or of the nearest one around it."""
    if value == "":
        raise typer.BadParameter("a directory's name cannot be empty")
    around = context.parent
    while value is None and around is not None:
        value = around.params.get("data")
        around = around.parent
    return value


DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help=f"The data directory; default: ${VARIABLE}, else ./{DEFAULT_DIRECTORY}.",
        show_default=False,
        callback=nearest_data,
    ),
]


def data_directory(data: str | None) -> str:
    """The directory to use, given the nearest ``--data``."""
    return data or os.environ.get(VARIABLE) or DEFAULT_DIRECTORY


def open_broker(data: str | None, *, create: bool = False) -> Broker:
    """Open the directory; only a command that writes may *create* it.

    Raises:
        CommandFailed: it is not there, or no data directory.
        OSError: nobody can say, as where we may not look into it.
        LogbrokerError: it cannot be opened.
    """
    import logbroker

    path = data_directory(data)
    if not create and not _has_logs(path):
        what = "is not a data directory" if os.path.exists(path) else "does not exist"
        raise CommandFailed(f"{path} {what}; name another with --data, or create a topic there first")
    return logbroker.open(path)


def _has_logs(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(os.path.join(path, "logs")).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
