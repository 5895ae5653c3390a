"""``logbroker topic``: create, list, describe, alter, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from .directory import DataOption, open_broker
from .output import JsonOption, print_json, print_table, say

app = typer.Typer(
    help="Create, list, describe, alter and delete topics.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(metavar="NAME")]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="KEY=VALUE", help="A configuration key; may be given again."),
]


def parse_config(settings: list[str] | None) -> dict[str, str]:
    """KEY=VALUE arguments as a mapping."""
    config = {}
    for setting in settings or []:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"--config {setting!r} is not KEY=VALUE")
        config[key.strip()] = value.strip()
    return config


@app.command("create")
def create(
    name: Name,
    partitions: Annotated[int, typer.Option("--partitions", "-p", metavar="N", min=1)] = 1,
    config: ConfigOption = None,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="Accept a topic that is there already.")
    ] = False,
    data: DataOption = None,
) -> None:
    """Create a topic, and the data directory if need be."""
    with open_broker(data, create=True) as broker:
        broker.create_topic(name, partitions, config=parse_config(config), exist_ok=exist_ok)
    say(f"created topic {name} with {partitions} partition{'s' * (partitions != 1)}")


@app.command("list")
def list_topics(json: JsonOption = False, data: DataOption = None) -> None:
    """List the topics with their partitions, records and bytes."""
    with open_broker(data) as broker:
        topics = [broker.topic(name) for name in broker.topics()]
    if json:
        print_json(
            [
                {"name": t.name, "partitions": len(t.partitions), "records": t.records, "bytes": t.size_bytes}
                for t in topics
            ]
        )
        return
    rows = [(t.name, len(t.partitions), t.records, t.size_bytes) for t in topics]
    print_table(("topic", "partitions", "records", "bytes"), rows)


@app.command("describe")
def describe(name: Name, json: JsonOption = False, data: DataOption = None) -> None:
    """Show a topic's partitions, offsets, sizes and configuration."""
    with open_broker(data) as broker:
        topic = broker.topic(name)
    if json:
        print_json(topic)
        return
    rows = [
        (
            part.partition,
            part.log_start_offset,
            part.high_watermark,
            part.log_end_offset,
            part.size_bytes,
            "failed" if part.failed else "ok",
        )
        for part in topic.partitions
    ]
    columns = ("partition", "start offset", "high watermark", "end offset", "bytes", "state")
    print_table(columns, rows, title=f"topic {name} ({topic.topic_id})")
    print_table(
        ("key", "value"), topic.overrides.items(), title="configuration that differs from the defaults"
    )


@app.command("alter")
def alter(
    name: Name,
    config: ConfigOption = None,
    reset: Annotated[
        list[str] | None, typer.Option("--reset", metavar="KEY", help="Take a key back to its default.")
    ] = None,
    partitions: Annotated[
        int | None, typer.Option("--partitions", "-p", metavar="N", help="The new, larger number.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Change configuration keys, or add partitions."""
    changes: dict[str, str | None] = {**parse_config(config), **dict.fromkeys(reset or [])}
    if not changes and partitions is None:
        raise typer.BadParameter("nothing to change: give --config, --reset or --partitions")
    with open_broker(data) as broker:
        broker.alter_topic(name, config=dict(changes), partitions=partitions)
    say(f"altered topic {name}")


@app.command("delete")
def delete(name: Name, data: DataOption = None) -> None:
    """Delete a topic, its records, and the offsets that groups committed in it."""
    with open_broker(data) as broker:
        broker.delete_topic(name)
    say(f"deleted topic {name}")
