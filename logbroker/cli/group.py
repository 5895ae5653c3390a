"""``logbroker group``: list, describe, reset, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from logbroker_storage.standard_streams import say

from .command_group import command_group
from .directory import DataOption, open_broker
from .output import JsonOption, Table, as_json, print_json, print_tables
from .resetting import ToOption, TopicsOption, parse_target, print_moves

if TYPE_CHECKING:
    from ..broker import Broker
    from ..groups import TopicPartition

app = command_group("List, describe, reset and delete consumer groups.")

Group = Annotated[str, typer.Argument(metavar="GROUP", show_default=False)]


@app.command("list")
def list_groups(json: JsonOption = False, data: DataOption = None) -> None:
    """List the groups with their live members and lag."""
    with open_broker(data) as broker:
        groups = [broker.group(name) for name in broker.groups()]
    if json:
        print_json(
            [{"name": group.name, "members": len(group.members), "lag": group.lag} for group in groups]
        )
        return
    rows = [(group.name, len(group.members), group.lag) for group in groups]
    print_tables(Table("group", ("name", "members", "lag"), rows))


@app.command("describe")
def describe(group: Group, json: JsonOption = False, data: DataOption = None) -> None:
    """Show a group's members, and its offset and lag in each partition.

    On a pipe the lines begin with "member" or "offset".
    """
    with open_broker(data) as broker:
        description = broker.group(group)
    if json:
        print_json({**as_json(description), "lag": description.lag})
        return
    members = [
        (
            member.member_id,
            member.process_id.split("-")[0],
            ",".join(member.topics),
            ",".join(f"{topic}-{partition}" for topic, partition in member.assignment),
        )
        for member in description.members
    ]
    offsets = [
        (row.topic, row.partition, row.committed_offset, row.high_watermark, row.lag, row.member_id)
        for row in description.offsets
    ]
    columns = ("topic", "partition", "committed", "high watermark", "lag", "member")
    print_tables(
        Table(
            "member", ("member", "pid", "subscribed to", "partitions"), members, title=f"members of {group}"
        ),
        Table("offset", columns, offsets, title=f"offsets of {group}, lag {description.lag}"),
        labelled=True,
    )


@app.command("reset")
def reset(
    group: Group,
    to: ToOption,
    topic: TopicsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be committed.")] = False,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Move a group's committed offsets; it may have no live members.

    An offset outside of a partition becomes the nearer end.
    """
    target, shift = parse_target(to)
    with open_broker(data) as broker:
        before = _committed(broker, group)
        offsets = broker.reset_group(group, target, topics=topic, shift=shift, dry_run=dry_run)
    print_moves("group", group, before, offsets, dry_run=dry_run, json=json)


def _committed(broker: Broker, group: str) -> dict[TopicPartition, int | None]:
    if group not in broker.groups():
        return {}
    return {(row.topic, row.partition): row.committed_offset for row in broker.group(group).offsets}


@app.command("delete")
def delete(group: Group, json: JsonOption = False, data: DataOption = None) -> None:
    """Forget a group: its committed offsets and subscriptions. It may have no live members."""
    with open_broker(data) as broker:
        broker.delete_group(group)
    if json:
        print_json({"deleted": [group]})
        return
    say(f"deleted group {group}")
