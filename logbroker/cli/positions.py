"""Places in a topic as users write them: ``earliest``, ``1500``, ``-100``, ``-1h``, ``2026-11-23T10:00``.

written            is
earliest, latest   the ends of each partition
stored             the group's committed offset
1500               an offset
-100               100 records before the end (of each partition)
-90s -5m -1h -7d   that long ago
2026-11-23         a moment: ISO 8601, in local time unless it has a zone
@1795480000        seconds since 1970; milliseconds from 13 digits on
"""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

import typer

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

_AGO = re.compile(r"-(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_NUMBER = re.compile(r"-?\d+")
_SECONDS = re.compile(r"@(\d+(?:\.\d+)?)")
MILLISECONDS_FROM = 10**12


class Offset(NamedTuple):
    """An offset of each partition."""

    offset: int


class FromEnd(NamedTuple):
    """So many records before the end of each partition."""

    records: int


class Moment(NamedTuple):
    """The first record that is not older."""

    time: datetime.datetime


class Named(NamedTuple):
    """``earliest``, ``latest`` or ``stored``."""

    name: str


Position = Offset | FromEnd | Moment | Named


def parse_position(text: str, *, option: str, now: datetime.datetime, names: tuple[str, ...]) -> Position:
    """The place that *text* means.

    Raises:
        typer.BadParameter: it means none.
    """
    if text in names:
        return Named(text)
    if _NUMBER.fullmatch(text):
        number = int(text)
        return FromEnd(-number) if text.startswith("-") else Offset(number)
    if found := _AGO.fullmatch(text):
        return Moment(now - datetime.timedelta(seconds=float(found[1]) * UNITS[found[2]]))
    if found := _SECONDS.fullmatch(text):
        seconds = float(found[1])
        if seconds >= MILLISECONDS_FROM:
            seconds /= 1000
        return Moment(datetime.datetime.fromtimestamp(seconds, datetime.UTC))
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        choices = ", ".join(names)
        raise typer.BadParameter(
            f"{option} {text!r}: use {choices}, an offset, -N from the end, -1h, or a time like 2026-11-23T10:00"
        ) from None
    return Moment(moment.astimezone() if moment.tzinfo is None else moment)
