"""Headers as users write them: ``--header KEY=VALUE``, again for each."""

from __future__ import annotations

import os
from typing import Annotated

import typer

HeaderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--header", "-H", metavar="KEY=VALUE", help="A header; may be given again.", show_default=False
    ),
]


def parse_headers(settings: list[str] | None) -> list[tuple[str, bytes]]:
    """What the option was given, in order; values as the bytes that were typed.

    Raises:
        typer.BadParameter: one of them is not KEY=VALUE.
    """
    return [_header(setting) for setting in settings or []]


def _header(setting: str) -> tuple[str, bytes]:
    key, separator, value = setting.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"--header {setting!r} is not KEY=VALUE")
    return key, os.fsencode(value)
