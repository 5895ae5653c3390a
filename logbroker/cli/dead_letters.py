"""``logbroker queue dead-letters``: list, show, redrive.

A letter is named by its place in the dead letter topic: ``partition:offset``, or the offset alone in partition 0.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from logbroker_storage.standard_streams import say

from .command_group import command_group
from .directory import DataOption, open_broker
from .exit_codes import NothingMatched
from .output import JsonOption, Table, as_json, print_json, print_tables, write
from .positions import MOST_RECORDS

if TYPE_CHECKING:
    from ..redrive import DeadLetter

app = command_group("List, show and redrive the messages that a queue gave up.")

COLUMNS = ("place", "topic", "partition", "offset", "reason", "deliveries", "age (ms)", "redriven")
SubscriptionName = Annotated[str, typer.Argument(metavar="SUBSCRIPTION", show_default=False)]
PlaceText = Annotated[
    str,
    typer.Argument(
        metavar="PLACE", help="partition:offset, as `list` shows it, or an offset.", show_default=False
    ),
]

_PLACE = re.compile(r"(?:(\d{1,10}):)?(\d{1,19})", re.ASCII)


def _place(text: str) -> tuple[int, int]:
    found = _PLACE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is no place; use partition:offset, as `queue dead-letters list` shows it, or an offset"
        )
    return int(found[1] or 0), int(found[2])


@app.command("list")
def list_letters(
    subscription: SubscriptionName,
    number: Annotated[
        int | None,
        typer.Option("-n", metavar="N", min=1, max=MOST_RECORDS, help="At most N.", show_default=False),
    ] = None,
    redriven: Annotated[
        bool, typer.Option("--all", help="Also those that were redriven, while the topic keeps them.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    data: DataOption = None,
) -> None:
    """List the dead letters of a subscription: place, where each came from, why, deliveries, and its age.

    Exits with 3 when there are none.
    """
    from itertools import islice

    rows: list[tuple[object, ...]] = []
    count = 0
    with open_broker(data) as broker:
        for letter in islice(broker.dead_letters(subscription, redriven=redriven), number):
            count += 1
            if json:
                write(_encoded(_facts(letter)) + b"\n")
            else:
                rows.append(_row(letter))
    if not count:
        raise NothingMatched(f"subscription {subscription!r} has no dead letters")
    if not json:
        print_tables(Table("letter", COLUMNS, rows, title=f"dead letters of {subscription}"))


def _row(letter: DeadLetter) -> tuple[object, ...]:
    death = letter.death
    return (
        _place_text(letter),
        _shown(death.topic),
        death.partition,
        death.offset,
        _shown(death.reason),
        death.deliveries,
        _age_ms(letter),
        "yes" if letter.is_redriven else "no",
    )


def _shown(text: str | None) -> str | None:
    """What a header says, such that it does nothing to a terminal or a table."""
    from .record_format import shown

    return None if text is None else shown(text.encode(errors="replace"))


def _place_text(letter: DeadLetter) -> str:
    return "{}:{}".format(*letter.place)


def _age_ms(letter: DeadLetter) -> int:
    return max(0, int(time.time() * 1000) - letter.record.timestamp_ms)


def _facts(letter: DeadLetter) -> dict[str, object]:
    """All but what the message itself says."""
    return {
        "place": _place_text(letter),
        "death": as_json(letter.death),
        "age_ms": _age_ms(letter),
        "is_redriven": letter.is_redriven,
    }


def _encoded(document: object) -> bytes:
    import msgspec

    return msgspec.json.encode(document)


@app.command("show")
def show(
    subscription: SubscriptionName, place: PlaceText, json: JsonOption = False, data: DataOption = None
) -> None:
    """Show a dead letter with its key, value and headers.

    On a pipe the lines begin with "letter" or "header". Exits with 3 when there is none at the place.
    """
    from .record_format import record_document, shown

    wanted = _place(place)
    with open_broker(data) as broker:
        letters = broker.dead_letters(subscription, redriven=True)
        letter = next((letter for letter in letters if letter.place == wanted), None)
    if letter is None:
        raise NothingMatched(f"subscription {subscription!r} has no dead letter at {place}")
    record, death = letter.record, letter.death
    if json:
        print_json({**_facts(letter), "record": record_document(record)})
        return
    facts = [
        ("place", _place_text(letter)),
        ("came from", _shown(f"{death.topic}-{death.partition} at offset {death.offset}")),
        ("given up by", _shown(death.by)),
        ("reason", _shown(death.reason)),
        ("error", _shown(death.error)),
        ("deliveries", death.deliveries),
        ("age (ms)", _age_ms(letter)),
        ("redriven", "yes" if letter.is_redriven else "no"),
        ("key", None if record.key is None else shown(record.key)),
        ("value", None if record.value is None else shown(record.value)),
    ]
    headers = [
        (shown(name.encode(errors="surrogateescape")), None if value is None else shown(value))
        for name, value in record.header_pairs
    ]
    print_tables(
        Table("letter", ("what", "value"), facts, title=f"dead letter of {subscription}"),
        Table("header", ("header", "value"), headers, title="headers"),
        labelled=True,
    )


@app.command("redrive")
def redrive(
    subscription: SubscriptionName,
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PLACE]…",
            help="Which ones: partition:offset, as `list` shows it, or an offset. Default: all.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TOPIC", help="Another topic than they came from.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be sent.")] = False,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Send dead letters back to where they came from, each exactly once, even if this is killed and run again.

    They go as new messages, which every subscription of that topic gets. Exits with 3 when there was nothing to send.
    """
    only = None if not places else [_place(place) for place in places]
    with open_broker(data) as broker:
        result = broker.redrive(subscription, only=only, to=to, dry_run=dry_run)
    if json:
        print_json({"subscription": subscription, "dry_run": dry_run, **as_json(result)})
    else:
        print_tables(Table("topic", ("topic", "messages"), sorted(result.sent.items())))
        for partition, offset, why in result.left_out:
            say(f"left out {partition}:{offset}: {why}")
        if dry_run:
            say("nothing was sent (--dry-run)")
    if not result.count:
        raise NothingMatched("there was no dead letter to send")
