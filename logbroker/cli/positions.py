"""Places in a topic as users write them.

    written               is
    earliest, latest      the ends of each partition
    stored                the group's committed offset
    1500                  an offset
    -100                  100 records before the end of each partition; `group reset`: 100 back
    +100                  only `group reset`: 100 further
    -90s -5m -1h30m -7d   that long ago (ms s m h d w)
    +10s                  that long from now, for --until and --deliver-at
    2026-11-23T10:00      a moment: ISO 8601, in local time unless it has a zone
    @1795480000           seconds since 1970; from 12 digits on, milliseconds

Which of them an option takes, it says itself.
"""

from __future__ import annotations

import datetime
import enum
import re
from collections.abc import Collection
from dataclasses import dataclass

import typer

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
MILLISECONDS_DIGITS = 12
MAX_OFFSET = (1 << 63) - 1
MOST_RECORDS = MAX_OFFSET  # of a number of them that can be asked for

_INTEGER = re.compile(r"([+-]?)(\d+)", re.ASCII)
_PART = r"(\d+(?:\.\d+)?)(ms|[smhdw])"
_DURATION = re.compile(rf"(?:{_PART})+", re.ASCII)
_PARTS = re.compile(_PART, re.ASCII)
_SINCE_1970 = re.compile(r"@(\d+)(\.\d+)?", re.ASCII)


class Named(enum.Enum):
    """A place with a name."""

    EARLIEST = "earliest"
    LATEST = "latest"
    STORED = "stored"


_NAMES = {name.value for name in Named}


@dataclass(frozen=True)
class Offset:
    """An offset, of each partition."""

    offset: int


@dataclass(frozen=True)
class Shift:
    """So many records from a place that the command knows; negative: before it."""

    records: int


@dataclass(frozen=True)
class Moment:
    """The first record that is not older."""

    time: datetime.datetime


Position = Named | Offset | Shift | Moment


def parse_position(
    text: str, *, now: datetime.datetime, names: Collection[Named], option: str, forward: bool = False
) -> Position:
    """The place that *text* means; *now* is an aware datetime.

    Args:
        text: as in the table above.
        now: what durations count from.
        names: the named places that *option* takes.
        option: what the user wrote it behind, for the message.
        forward: whether ``+100`` and ``+10s`` are allowed.

    Raises:
        typer.BadParameter: it means none.
    """
    try:
        position = _parse(text.strip(), now, forward)
    except (OverflowError, OSError, ValueError):
        position = None
    if position is None or (isinstance(position, Named) and position not in names):
        choices = ", ".join(name.value for name in names)
        raise typer.BadParameter(
            f"{option} {text!r} is not understood; use {choices}, an offset, -100, -1h, "
            "or a time like 2026-11-23T10:00"
        )
    return position


def parse_moment(text: str, *, now: datetime.datetime, option: str) -> datetime.datetime:
    """The moment that *text* means: ``+10s``, ``2026-11-23T10:00`` or ``@1795480000``; the rest as above.

    Raises:
        typer.BadParameter: it means none.
    """
    try:
        position = _parse(text.strip(), now, forward=True)
    except (OverflowError, OSError, ValueError):
        position = None
    if not isinstance(position, Moment):
        raise typer.BadParameter(
            f"{option} {text!r} is not understood; use +10s, @1795480000 or a time like 2026-11-23T10:00"
        )
    return position.time


def _parse(text: str, now: datetime.datetime, forward: bool) -> Position | None:
    if found := _INTEGER.fullmatch(text):
        return _integer(found[1], int(found[2]), forward)
    sign, rest = text[:1], text[1:]
    if sign in ("-", "+") and _DURATION.fullmatch(rest):
        if sign == "+" and not forward:
            return None
        duration = parse_duration(rest)
        return Moment(now - duration if sign == "-" else now + duration)
    if found := _SINCE_1970.fullmatch(text):
        digits, fraction = found[1], found[2] or ""
        seconds = int(digits) / 1000 if len(digits) >= MILLISECONDS_DIGITS else float(digits + fraction)
        return Moment(datetime.datetime.fromtimestamp(seconds, datetime.UTC))
    if text in _NAMES:
        return Named(text)
    moment = datetime.datetime.fromisoformat(text)
    return Moment(moment.astimezone() if moment.tzinfo is None else moment)


def _integer(sign: str, number: int, forward: bool) -> Position | None:
    if number > MAX_OFFSET or (sign == "+" and not forward):
        return None
    if sign:
        return Shift(-number if sign == "-" else number)
    return Offset(number)


def parse_duration(text: str) -> datetime.timedelta:
    """``90s``, ``1h30m``, ``0.5d``.

    Raises:
        ValueError: it is none, or too long.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration; use for example 500ms, 90s, 5m, 1h30m or 7d")
    try:
        seconds = sum(float(number) * UNITS_S[unit] for number, unit in _PARTS.findall(text))
        return datetime.timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None


def duration_of(option: str, text: str) -> datetime.timedelta:
    """*text*, which was written behind *option*, as a duration.

    Raises:
        typer.BadParameter: it is none.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {error}") from None
