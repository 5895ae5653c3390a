"""``logbroker subscription``: create, list, describe, pause, resume, reset, rename, delete."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from logbroker_storage.standard_streams import say

from .command_group import command_group
from .directory import DataOption, open_broker
from .exit_codes import CommandFailed
from .output import JsonOption, Table, as_json, print_json, print_tables
from .positions import Moment, Named, Offset, Position, Shift, duration_of, parse_position
from .resetting import ToOption, TopicsOption, parse_target, print_moves

if TYPE_CHECKING:
    from ..broker import Broker
    from ..descriptions import SubscriptionDescription
    from ..groups import TopicPartition
    from ..start import Start

app = command_group("Create, describe and change subscriptions: queues, and streams (consumer groups).")

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]

PARTITION_COLUMNS = (
    "topic",
    "partition",
    "start offset",
    "high watermark",
    "lag",
    "ready",
    "in flight",
    "delayed",
    "waiting",
    "rejected",
    "oldest age (ms)",
    "consumers",
)


@app.command("create")
def create(
    name: Name,
    topic: Annotated[
        list[str],
        typer.Option(
            "--topic",
            "-t",
            metavar="TOPIC",
            help="A topic, or a pattern such as 'orders.*'; may be given again.",
            show_default=False,
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", metavar="KIND", help="queue: each message to one consumer; stream: a consumer group."
        ),
    ] = "queue",
    start: Annotated[
        str,
        typer.Option(
            "--start",
            metavar="POSITION",
            help="Where it begins: earliest, latest, an offset, a time, or -1h.",
        ),
    ] = "earliest",
    lease: Annotated[
        str | None,
        typer.Option(
            "--lease",
            metavar="DURATION",
            help="How long a message stays in one hand (30s).",
            show_default=False,
        ),
    ] = None,
    max_deliveries: Annotated[
        int | None,
        typer.Option("--max-deliveries", metavar="N", help="Deliveries in vain (5).", show_default=False),
    ] = None,
    dead_letter: Annotated[
        str | None,
        typer.Option(
            "--dead-letter",
            metavar="TOPIC",
            help="Where messages go that were rejected, or delivered in vain too often. It is made if need be.",
            show_default=False,
        ),
    ] = None,
    expired: Annotated[
        str | None,
        typer.Option(
            "--expired",
            metavar="drop|dead-letter",
            help="What becomes of messages that outlived their time to live.",
            show_default=False,
        ),
    ] = None,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Messages of one key are never in two hands at once.")
    ] = False,
    priorities: Annotated[
        bool, typer.Option("--priorities", help="Messages of higher priority are delivered first.")
    ] = False,
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="CEL",
            help="Only messages that match, such as 'json.amount > 100' or 'headers.type == \"paid\"'.",
            show_default=False,
        ),
    ] = None,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="Accept a subscription that is there already, as it is.")
    ] = False,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Make a named subscription: it gets every message from its start on, connected or not."""
    given: dict[str, Any] = {
        "lease": None if lease is None else duration_of("--lease", lease).total_seconds(),
        "max_deliveries": max_deliveries,
        "dead_letter": dead_letter,
        "expired": expired,
        "ordered": ordered or None,
        "priorities": priorities or None,
    }
    options = {option: value for option, value in given.items() if value is not None}
    known_kind = _kind(kind)
    now = datetime.datetime.now(datetime.UTC)
    position = parse_position(start, now=now, names=(Named.EARLIEST, Named.LATEST), option="--start")
    with open_broker(data) as broker:
        existed = name in broker.subscriptions()
        if existed and not exist_ok:
            raise CommandFailed(f"subscription {name!r} already exists; --exist-ok accepts it as it is")
        broker.create_subscription(
            name,
            topic=topic,
            kind=known_kind,
            start=_start(broker, topic, position),
            exist_ok=exist_ok,
            filter=filter,
            **options,
        )
        if json:
            print_json(_facts(broker.subscription(name)))
        elif existed:
            say(f"subscription {name} was there already")
        else:
            say(f"created {known_kind} {name} on {', '.join(topic)}")


def _kind(kind: str) -> Literal["queue", "stream"]:
    if kind == "queue":
        return "queue"
    if kind == "stream":
        return "stream"
    raise typer.BadParameter(f"--kind {kind!r}: use queue or stream")


def _start(broker: Broker, topics: list[str], position: Position) -> Start:
    from .places import offsets_at, ranges_of

    match position:
        case Moment(time):
            return time
        case Offset() | Shift():
            return offsets_at(broker, ranges_of(broker, topics), position)
    return "latest" if position is Named.LATEST else "earliest"


@app.command("list")
def list_subscriptions(json: JsonOption = False, data: DataOption = None) -> None:
    """List the subscriptions with their topics, lag and dead letters."""
    with open_broker(data) as broker:
        found = [broker.subscription(name) for name in broker.subscriptions()]
    if json:
        print_json(
            [
                {
                    "name": one.name,
                    "kind": one.kind,
                    "topics": one.topics,
                    "is_paused": one.is_paused,
                    "lag": one.lag,
                    "in_flight": one.in_flight,
                    "dead_letters": one.dead_letters,
                }
                for one in found
            ]
        )
        return
    rows = [
        (
            one.name,
            one.kind,
            ",".join(one.topics),
            "paused" if one.is_paused else "active",
            one.lag,
            one.in_flight,
            one.dead_letters,
        )
        for one in found
    ]
    columns = ("name", "kind", "topics", "state", "lag", "in flight", "dead letters")
    print_tables(Table("subscription", columns, rows))


@app.command("describe")
def describe(name: Name, json: JsonOption = False, data: DataOption = None) -> None:
    """Show a subscription's rules, and how far it is in each partition.

    On a pipe the lines begin with "rule" or "partition".
    """
    with open_broker(data) as broker:
        found = broker.subscription(name)
    if json:
        print_json(_facts(found))
        return
    rules: list[tuple[str, object]] = [
        ("kind", found.kind),
        ("topics", ",".join(found.topics)),
        ("state", "paused" if found.is_paused else "active"),
        ("filter", found.filter),
    ]
    if found.kind == "queue":
        rules += [
            ("lease (ms)", found.lease_ms),
            ("max deliveries", found.max_deliveries),
            ("dead letter", found.dead_letter),
            ("expired", found.expired),
            ("ordered", "yes" if found.ordered else "no"),
            ("priorities", "yes" if found.priorities else "no"),
            ("dead letters", found.dead_letters),
        ]
    rows = [
        (
            part.topic,
            part.partition,
            part.start_offset,
            part.high_watermark,
            part.lag,
            part.ready,
            part.in_flight,
            part.delayed,
            part.waiting,
            part.rejected,
            part.oldest_age_ms,
            ",".join(part.consumers) or None,
        )
        for part in found.partitions
    ]
    print_tables(
        Table("rule", ("rule", "value"), rules, title=f"subscription {name}"),
        Table("partition", PARTITION_COLUMNS, rows, title=f"lag {found.lag}, in flight {found.in_flight}"),
        labelled=True,
    )


def _facts(found: SubscriptionDescription) -> dict[str, object]:
    partitions = [{**as_json(part), "ready": part.ready} for part in found.partitions]
    return {
        **as_json(found),
        "partitions": partitions,
        "lag": found.lag,
        "in_flight": found.in_flight,
        "oldest_age_ms": found.oldest_age_ms,
    }


@app.command("pause")
def pause(name: Name, json: JsonOption = False, data: DataOption = None) -> None:
    """Deliver nothing more until it is resumed. What consumers hold can still be settled."""
    with open_broker(data) as broker:
        broker.pause_subscription(name)
    _tell({"paused": name}, f"paused subscription {name}", json)


@app.command("resume")
def resume(name: Name, json: JsonOption = False, data: DataOption = None) -> None:
    """Deliver again."""
    with open_broker(data) as broker:
        broker.resume_subscription(name)
    _tell({"resumed": name}, f"resumed subscription {name}", json)


def _tell(document: dict[str, object], remark: str, json: bool) -> None:
    if json:
        print_json(document)
    else:
        say(remark)


@app.command("reset")
def reset(
    name: Name,
    to: ToOption,
    topic: TopicsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show where it would go on.")] = False,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Go on at another place.

    Of a queue everything below is done, everything else is delivered (again), and what consumers hold can no
    longer be settled. A stream may have no live members. An offset outside of a partition becomes the nearer end.
    """
    target, shift = parse_target(to)
    with open_broker(data) as broker:
        before: dict[TopicPartition, int | None] = {
            (part.topic, part.partition): part.start_offset for part in broker.subscription(name).partitions
        }
        offsets = broker.reset_subscription(name, target, topics=topic, shift=shift, dry_run=dry_run)
    print_moves("subscription", name, before, offsets, dry_run=dry_run, json=json)


@app.command("rename")
def rename(
    name: Name,
    new_name: Annotated[str, typer.Argument(metavar="NEW-NAME", show_default=False)],
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Give it another name. It keeps its progress; consumers of a queue go on, a stream may have no live members."""
    with open_broker(data) as broker:
        broker.rename_subscription(name, new_name)
    _tell({"renamed": name, "name": new_name}, f"renamed subscription {name} to {new_name}", json)


@app.command("delete")
def delete(name: Name, json: JsonOption = False, data: DataOption = None) -> None:
    """Forget a subscription, and how far it is. Topics keep their records, dead letters included."""
    with open_broker(data) as broker:
        broker.delete_subscription(name)
    _tell({"deleted": [name]}, f"deleted subscription {name}", json)
