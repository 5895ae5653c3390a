"""Which data directory a command works on: ``--data`` behind it, before it, ``$LOGBROKER_DATA``, the default."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..broker import Broker

DEFAULT_DIRECTORY = "logbroker-data"
VARIABLE = "LOGBROKER_DATA"

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help=f"The data directory; default: ${VARIABLE}, else ./{DEFAULT_DIRECTORY}.",
        show_default=False,
    ),
]

_before_command: str | None = None


def remember_directory(data: str | None) -> None:
    """Take note of a ``--data`` that stands before the command."""
    global _before_command
    _before_command = data


def data_directory(data: str | None) -> str:
    """The directory to use, given what stands behind the command."""
    return data or _before_command or os.environ.get(VARIABLE) or DEFAULT_DIRECTORY


def open_broker(data: str | None, *, create: bool = False) -> Broker:
    """Open the directory; only a command that writes may *create* it.

    Raises:
        LogbrokerError: it is not there, or cannot be opened.
    """
    import logbroker

    path = data_directory(data)
    if not create and not os.path.isdir(os.path.join(path, "logs")):
        raise logbroker.LogbrokerError(
            f"there is no data directory at {path}; name another with --data, or create a topic first"
        )
    return logbroker.open(path)
