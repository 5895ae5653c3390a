"""``logbroker route``: bind, unbind, list, explain, run."""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Annotated

import typer

from logbroker_storage.standard_streams import say

from .command_group import command_group
from .directory import DataOption, open_broker
from .exit_codes import CommandFailed, NothingMatched
from .headers import HeaderOption, parse_headers
from .interruption import Interruption
from .output import JsonOption, Table, as_json, content_as_json, print_json, print_tables

if TYPE_CHECKING:
    from ..routing.descriptions import BindingDescription, RoutedMessage, RouteExplanation, RouteVerdict

app = command_group("Bind topics to topics, explain where messages go, and run the router.")


class Start(enum.Enum):
    """Which records of its source a binding takes."""

    EARLIEST = "earliest"
    LATEST = "latest"


class Match(enum.Enum):
    """How many of the headers must match."""

    ALL = "all"
    ANY = "any"


@app.command("bind")
def bind(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A topic, or a wildcard: * is one token between dots, > one or more at the end.",
            show_default=False,
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An existing topic.", show_default=False)],
    when: Annotated[
        str | None,
        typer.Option(
            "--when",
            metavar="CEL",
            help="Only records that match, such as 'json.total > 100'.",
            show_default=False,
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            "-H",
            metavar="KEY[=VALUE]",
            help="Only records with this header; may be given again.",
            show_default=False,
        ),
    ] = None,
    headers_match: Annotated[
        Match, typer.Option("--headers-match", help="Whether all headers must match, or any.")
    ] = Match.ALL,
    transform: Annotated[
        str | None,
        typer.Option(
            "--transform",
            metavar="FILE",
            help="A pipeline in TOML; it is stored with the binding.",
            show_default=False,
        ),
    ] = None,
    unrouted: Annotated[bool, typer.Option("--unrouted", help="Take what no other binding takes.")] = False,
    dead_letter: Annotated[
        str | None,
        typer.Option(
            "--dead-letter",
            metavar="TOPIC",
            help="Gets what cannot be evaluated or transformed; default: TARGET.dead, which is created.",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        Start, typer.Option("--start", help="earliest: also what is in the topics already.")
    ] = Start.LATEST,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Default: SOURCE->TARGET.", show_default=False),
    ] = None,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Have the router write what comes into a topic to another, too."""
    with open_broker(data) as broker:
        binding = broker.bind(
            source,
            target,
            when=when,
            headers=_conditions(header),
            headers_match=headers_match.value,
            transform=transform,
            unrouted=unrouted,
            dead_letter=dead_letter,
            start=start.value,
            name=name,
        )
    if json:
        print_json(as_json(binding))
        return
    say(f"bound {source} to {target} as {binding.name}; what fails goes to {binding.dead_letter}")


def _conditions(headers: list[str] | None) -> dict[str, str | None]:
    conditions: dict[str, str | None] = {}
    for header in headers or []:
        key, separator, value = header.partition("=")
        if not key:
            raise typer.BadParameter(f"--header {header!r} is not KEY or KEY=VALUE")
        conditions[key] = value if separator else None
    return conditions


@app.command("unbind")
def unbind(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Remove a binding: nothing more comes of it."""
    with open_broker(data) as broker:
        broker.unbind(name)
    if json:
        print_json({"unbound": [name]})
        return
    say(f"unbound {name}")


@app.command("list")
def list_bindings(json: JsonOption = False, data: DataOption = None) -> None:
    """List the bindings, how far behind the router is, and what holds it up.

    On a pipe the lines begin with "binding" or "stalled".
    """
    with open_broker(data) as broker:
        bindings = broker.bindings()
    if json:
        print_json([as_json(binding) for binding in bindings])
        return
    columns = ("name", "source", "target", "takes", "transform", "dead letter", "lag", "state")
    rows = [
        (
            binding.name,
            binding.source,
            binding.target,
            _takes(binding),
            "yes" if binding.transform is not None else "no",
            binding.dead_letter,
            binding.lag,
            "stalled" if binding.stalled else "ok",
        )
        for binding in bindings
    ]
    stalls = {
        (stall.topic, stall.partition): stall.error for binding in bindings for stall in binding.stalled
    }
    tables = [Table("binding", columns, rows)]
    if stalls:
        held_up = [(*place, error) for place, error in sorted(stalls.items())]
        tables.append(
            Table("stalled", ("topic", "partition", "error"), held_up, title="where the router cannot go on")
        )
    print_tables(*tables, labelled=True)


def _takes(binding: BindingDescription) -> str:
    """The binding's conditions, for a person."""
    if binding.unrouted:
        return "unrouted"
    headers = [key if value is None else f"{key}={value}" for key, value in binding.headers.items()]
    joined = (" or " if binding.headers_match == "any" else " and ").join(headers)
    parts = [f"headers {joined}"] if headers else []
    if binding.when is not None:
        parts.append(" ".join(binding.when.split()))
    return "; ".join(parts) or "all"


# Explaining -----------------------------------------------------------------------------------------------


@app.command("explain")
def explain(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    value: Annotated[
        str | None, typer.Option("--value", metavar="TEXT", help="Of the message.", show_default=False)
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", "-k", metavar="KEY", help="Of the message.", show_default=False)
    ] = None,
    header: HeaderOption = None,
    offset: Annotated[
        str | None,
        typer.Option(
            "--offset",
            metavar="PARTITION:OFFSET",
            help="Explain this record of the topic instead.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Show where a message would go, and why each binding takes it or not. Writes nothing.

    On a pipe the lines begin with "binding" or "message". Exit code 3 when no binding takes it.
    """
    with open_broker(data) as broker:
        explanation = broker.explain_route(
            topic,
            None if value is None else os.fsencode(value),
            key=None if key is None else os.fsencode(key),
            headers=parse_headers(header),
            at=None if offset is None else _place(offset),
        )
    if json:
        print_json(_as_document(explanation))
    else:
        _print(explanation)
    if not explanation.is_routed:
        raise NothingMatched(f"no binding takes it: it stays in {topic} alone")


def _place(text: str) -> tuple[int, int]:
    partition, separator, offset = text.partition(":")
    if not separator or not all(part.isascii() and part.isdigit() for part in (partition, offset)):
        raise typer.BadParameter(f"--offset {text!r} is not PARTITION:OFFSET, such as 0:42")
    return int(partition), int(offset)


def _print(explanation: RouteExplanation) -> None:
    verdicts = [
        (verdict.binding, verdict.target, verdict.reason, verdict.error or verdict.because)
        for verdict in explanation.verdicts
    ]
    messages = [
        (message.topic, _text(message.key), _text(message.value), ",".join(_header_texts(message)))
        for verdict in explanation.verdicts
        for message in verdict.messages
    ]
    print_tables(
        Table(
            "binding",
            ("binding", "target", "verdict", "because"),
            verdicts,
            title=f"bindings, for a message of {explanation.topic}",
        ),
        Table(
            "message", ("topic", "key", "value", "headers"), messages, title="messages that would be written"
        ),
        labelled=True,
    )


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="surrogateescape")


def _header_texts(message: RoutedMessage) -> list[str]:
    return [f"{key}={_text(value) or ''}" for key, value in message.headers]


def _as_document(explanation: RouteExplanation) -> dict[str, object]:
    return {
        "topic": explanation.topic,
        "targets": explanation.targets,
        "verdicts": [_verdict_document(verdict) for verdict in explanation.verdicts],
    }


def _verdict_document(verdict: RouteVerdict) -> dict[str, object]:
    return {
        "binding": verdict.binding,
        "target": verdict.target,
        "taken": verdict.taken,
        "reason": verdict.reason,
        "because": verdict.because,
        "error": verdict.error,
        "messages": [_message_document(message) for message in verdict.messages],
    }


def _message_document(message: RoutedMessage) -> dict[str, object]:
    return {
        "topic": message.topic,
        "partition": message.partition,
        "timestamp_ms": message.timestamp_ms,
        **content_as_json(message.key, message.value, message.headers),
    }


# Running --------------------------------------------------------------------------------------------------


@app.command("run")
def run(
    until_idle: Annotated[
        float | None,
        typer.Option(
            "--until-idle",
            metavar="S",
            min=0,
            help="End after S seconds without a record.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Route by the bindings, exactly once. Several may run, and share the partitions."""
    with open_broker(data) as broker:
        with Interruption() as interruption:
            routed = broker.run_router(stop=interruption, idle_timeout=until_idle)
            interrupted = interruption.requested
        stalls = {
            (stall.topic, stall.partition): stall
            for binding in broker.bindings()
            for stall in binding.stalled
        }
    if json:
        stalled = [as_json(stalls[place]) for place in sorted(stalls)]
        print_json({"routed": routed, "interrupted": interrupted, "stalled": stalled})
    else:
        say(f"routed {routed} record{'s' * (routed != 1)}")
    if interrupted:
        raise KeyboardInterrupt
    if stalls:
        (topic, partition), stall = min(stalls.items())
        raise CommandFailed(f"the router is held up in {topic}-{partition}: {stall.error}")
