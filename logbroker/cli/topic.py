"""``logbroker topic``: create, list, describe, alter, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from logbroker_storage.standard_streams import say

from .command_group import command_group
from .directory import DataOption, open_broker
from .exit_codes import CommandFailed
from .output import JsonOption, Table, as_json, print_json, print_tables

if TYPE_CHECKING:
    from ..descriptions import TopicDescription

app = command_group("Create, list, describe, alter and delete topics.")

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="KEY=VALUE",
        help="A configuration key; may be given again.",
        show_default=False,
    ),
]


def parse_config(settings: list[str] | None) -> dict[str, str]:
    """KEY=VALUE arguments as a mapping."""
    config = {}
    for setting in settings or []:
        key, separator, value = setting.partition("=")
        if not separator or not key.strip():
            raise typer.BadParameter(f"--config {setting!r} is not KEY=VALUE")
        config[key.strip()] = value.strip()
    return config


@app.command("create")
def create(
    name: Name,
    partitions: Annotated[
        int, typer.Option("--partitions", "-p", metavar="N", min=1, help="They can grow later.")
    ] = 1,
    config: ConfigOption = None,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="Accept a topic that is there already, as it is.")
    ] = False,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Create a topic, and the data directory if need be."""
    from logbroker_storage.errors import TopicExistsError

    settings = parse_config(config)
    with open_broker(data, create=True) as broker:
        existed = name in broker.topics()
        try:
            broker.create_topic(name, partitions, config=settings, exist_ok=exist_ok)
        except TopicExistsError:
            raise CommandFailed(f"topic {name!r} already exists; --exist-ok accepts it as it is") from None
        if json:
            print_json(_facts(broker.topic(name)))
        elif existed:
            say(f"topic {name} was there already")
        else:
            say(f"created topic {name} with {_counted(partitions, 'partition')}")


@app.command("list")
def list_topics(json: JsonOption = False, data: DataOption = None) -> None:
    """List the topics with their partitions, records and bytes."""
    with open_broker(data) as broker:
        topics = [broker.topic(name) for name in broker.topics()]
    if json:
        print_json(
            [
                {
                    "name": topic.name,
                    "partitions": len(topic.partitions),
                    "records": topic.records,
                    "size_bytes": topic.size_bytes,
                }
                for topic in topics
            ]
        )
        return
    rows = [(topic.name, len(topic.partitions), topic.records, topic.size_bytes) for topic in topics]
    print_tables(Table("topic", ("name", "partitions", "records", "bytes"), rows))


@app.command("describe")
def describe(
    name: Name,
    all_config: Annotated[
        bool, typer.Option("--all", help="Also the configuration keys that have their defaults.")
    ] = False,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Show a topic's partitions, with offsets and sizes, and its configuration.

    On a pipe the lines begin with "partition" or "config".
    """
    with open_broker(data) as broker:
        topic = broker.topic(name)
    if json:
        print_json(_facts(topic))
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
    config = topic.config if all_config else topic.overrides
    title = "configuration" if all_config else "configuration that is not the default"
    print_tables(
        Table("partition", columns, rows, title=f"topic {name}, id {topic.topic_id}"),
        Table("config", ("key", "value"), list(config.items()), title=title),
        labelled=True,
    )


def _facts(topic: TopicDescription) -> dict[str, object]:
    return {**as_json(topic), "records": topic.records, "size_bytes": topic.size_bytes}


@app.command("alter")
def alter(
    name: Name,
    config: ConfigOption = None,
    reset: Annotated[
        list[str] | None,
        typer.Option("--reset", metavar="KEY", help="Take a key back to its default.", show_default=False),
    ] = None,
    partitions: Annotated[
        int | None, typer.Option("--partitions", "-p", metavar="N", min=1, help="The new, larger number.")
    ] = None,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Change configuration keys, or add partitions (keys may then map to other ones)."""
    changes: dict[str, str | None] = {**parse_config(config), **dict.fromkeys(reset or [])}
    if not changes and partitions is None:
        raise typer.BadParameter("nothing to change: give --config, --reset or --partitions")
    with open_broker(data) as broker:
        broker.alter_topic(name, config=dict(changes), partitions=partitions)
        topic = broker.topic(name)
    if json:
        print_json(_facts(topic))
        return
    say(f"altered topic {name}")


@app.command("delete")
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", show_default=False)],
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Delete topics, their records, and the offsets that groups committed in them."""
    from logbroker_storage.errors import TopicNotFoundError

    with open_broker(data) as broker:
        existing = broker.topics()
        for name in names:
            if name not in existing:
                raise TopicNotFoundError(name)
        for name in dict.fromkeys(names):
            broker.delete_topic(name)
    if json:
        print_json({"deleted": names})
        return
    say(f"deleted topic{'s' * (len(names) > 1)} {', '.join(names)}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
