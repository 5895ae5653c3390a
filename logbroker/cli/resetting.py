"""Where a group or a subscription is reset to, and how the moves are shown."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from logbroker_storage.standard_streams import say

from .output import Table, print_json, print_tables
from .positions import Moment, Named, Offset, Shift, parse_position

if TYPE_CHECKING:
    from ..groups import TopicPartition

ToOption = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="POSITION",
        help="earliest, latest, an offset, -100 or +100 (from where it is), a time, or -1h.",
        show_default=False,
    ),
]
TopicsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--topic",
        "-t",
        metavar="TOPIC",
        help="A topic to reset; may be given again. Default: all that it reads.",
        show_default=False,
    ),
]


def parse_target(to: str) -> tuple[Literal["earliest", "latest"] | int | datetime.datetime, bool]:
    """What to reset to, and whether it is a number to add.

    Raises:
        typer.BadParameter: it is no position.
    """
    now = datetime.datetime.now(datetime.UTC)
    names = (Named.EARLIEST, Named.LATEST)
    match parse_position(to, now=now, names=names, option="--to", forward=True):
        case Shift(records):
            return records, True
        case Offset(offset):
            return offset, False
        case Moment(time):
            return time, False
        case name:
            return ("latest" if name is Named.LATEST else "earliest"), False


def print_moves(
    kind: Literal["group", "subscription"],
    name: str,
    before: Mapping[TopicPartition, int | None],
    after: Mapping[TopicPartition, int],
    *,
    dry_run: bool,
    json: bool,
) -> None:
    """From where to where in each partition."""
    moves = [(*place, before.get(place), offset) for place, offset in sorted(after.items())]
    if json:
        fields = ("topic", "partition", "before", "offset")
        rows = [dict(zip(fields, move, strict=True)) for move in moves]
        print_json({kind: name, "dry_run": dry_run, "offsets": rows})
        return
    print_tables(Table("offset", ("topic", "partition", "before", "after"), moves))
    if dry_run:
        say("nothing was changed (--dry-run)")
