"""``logbroker group``: list, describe, reset, delete."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

import typer

from .directory import DataOption, open_broker
from .output import JsonOption, print_json, print_table, say
from .positions import FromEnd, Moment, Named, Offset, parse_position

app = typer.Typer(
    help="List, describe, reset and delete consumer groups.", no_args_is_help=True, rich_markup_mode=None
)

Group = Annotated[str, typer.Argument(metavar="GROUP")]


@app.command("list")
def list_groups(json: JsonOption = False, data: DataOption = None) -> None:
    """List the groups with their live members and lag."""
    with open_broker(data) as broker:
        groups = [broker.group(name) for name in broker.groups()]
    if json:
        print_json([{"name": g.name, "members": len(g.members), "lag": g.lag} for g in groups])
        return
    print_table(("group", "members", "lag"), [(g.name, len(g.members), g.lag) for g in groups])


@app.command("describe")
def describe(group: Group, json: JsonOption = False, data: DataOption = None) -> None:
    """Show a group's members, and its offset and lag in each partition."""
    with open_broker(data) as broker:
        description = broker.group(group)
    if json:
        print_json({**_as_dict(description), "lag": description.lag})
        return
    members = [
        (m.member_id, m.process_id.split("-")[0], ",".join(m.topics), _places(m.assignment))
        for m in description.members
    ]
    print_table(("member", "pid", "subscribed to", "partitions"), members, title=f"group {group}: members")
    offsets = [
        (o.topic, o.partition, o.committed_offset, o.high_watermark, o.lag, o.member_id)
        for o in description.offsets
    ]
    columns = ("topic", "partition", "committed", "high watermark", "lag", "member")
    print_table(columns, offsets, title=f"group {group}: offsets")


def _as_dict(value: object) -> dict[str, object]:
    import msgspec

    built = msgspec.to_builtins(value)
    assert isinstance(built, dict)
    return built


def _places(places: list[tuple[str, int]]) -> str:
    return ",".join(f"{topic}-{partition}" for topic, partition in places)


@app.command("reset")
def reset(
    group: Group,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="POSITION", help="earliest, latest, an offset, +N or -N, -1h, or a time."
        ),
    ],
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic", help="A topic to reset; may be given again. Default: all it has committed in."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be committed.")] = False,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Move a group's committed offsets. -N and +N count from where the group is. It may have no live members."""
    target, shift = _target(to)
    with open_broker(data) as broker:
        offsets = broker.reset_group(group, target, topics=topic, shift=shift, dry_run=dry_run)
    if json:
        rows = [{"topic": t, "partition": p, "offset": offset} for (t, p), offset in sorted(offsets.items())]
        print_json({"group": group, "dry_run": dry_run, "offsets": rows})
        return
    print_table(
        ("topic", "partition", "offset"), [(t, p, offset) for (t, p), offset in sorted(offsets.items())]
    )
    if dry_run:
        say("nothing was changed (--dry-run)")


def _target(to: str) -> tuple[Literal["earliest", "latest"] | int | datetime.datetime, bool]:
    """What to reset to, and whether it is a number to add."""
    if to.startswith("+") and to[1:].isdigit():
        return int(to), True
    position = parse_position(
        to, option="--to", now=datetime.datetime.now(datetime.UTC), names=("earliest", "latest")
    )
    match position:
        case Named(name):
            return ("earliest" if name == "earliest" else "latest"), False
        case Offset(offset):
            return offset, False
        case FromEnd(records):
            return -records, True
        case Moment(time):
            return time, False


@app.command("delete")
def delete(group: Group, data: DataOption = None) -> None:
    """Forget a group: its committed offsets and subscriptions. It may have no live members."""
    with open_broker(data) as broker:
        broker.delete_group(group)
    say(f"deleted group {group}")
