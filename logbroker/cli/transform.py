"""``logbroker transform``: steps, check, preview, run."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logbroker_storage.standard_streams import say

from .command_group import command_group
from .directory import DataOption, open_broker
from .exit_codes import CommandFailed, NothingMatched
from .interruption import Interruption
from .output import JsonOption, Table, as_json, content_as_json, print_json, print_tables, write
from .positions import MOST_RECORDS, Named, parse_position

if TYPE_CHECKING:
    from ..broker import Broker
    from ..records import Message, Record, StoredHeaders
    from ..transforms import Pipeline, TransformError
    from .reading import Reading

DEFAULT_RECORDS = 10

app = command_group("Make messages of records: list the steps, check and preview a pipeline, run one.")

PipelineArgument = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE", help="A TOML file, or the name of an installed pipeline.", show_default=False
    ),
]


# steps and check ------------------------------------------------------------------------------------------


@app.command("steps")
def steps(json: JsonOption = False) -> None:
    """List every kind of step with its options.

    On a pipe: kind, what it does, options; a required one has a * behind it.
    """
    from ..transforms.catalog import describe_kinds

    kinds = describe_kinds()
    if json:
        print_json([as_json(kind) for kind in kinds])
        return
    rows = [
        (kind.kind, kind.summary, ", ".join(option.name + "*" * option.required for option in kind.options))
        for kind in kinds
    ]
    print_tables(Table("step", ("kind", "does", "options"), rows))


@app.command("check")
def check(pipeline: PipelineArgument, json: JsonOption = False) -> None:
    """See whether a pipeline can be used; exits with 1, and says at which step, if it cannot."""
    from ..transforms import PipelineError

    try:
        description = _load(pipeline).describe()
    except PipelineError as error:
        if json:
            print_json({"ok": False, "step": error.step, "error": str(error)})
        raise
    if json:
        print_json({"ok": True, **description})
        return
    rows = [(step["step"], step["kind"], _options(step["options"])) for step in description["steps"]]
    print_tables(Table("step", ("step", "kind", "options"), rows, title=f"pipeline {description['name']}"))


def _load(source: str) -> Pipeline:
    from ..transforms import load_pipeline

    if os.path.isfile(source):
        return load_pipeline(Path(source))
    if "\n" in source or "=" in source:
        raise CommandFailed(f"{source[:60]!r} is no file; write the pipeline into one that ends with .toml")
    return load_pipeline(source)


def _options(options: dict[str, Any]) -> str:
    import msgspec

    text = ", ".join(f"{name}={msgspec.json.encode(value).decode()}" for name, value in options.items())
    return text if len(text) <= 200 else text[:199] + "…"


# preview --------------------------------------------------------------------------------------------------


@app.command("preview")
def preview(
    pipeline: PipelineArgument,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    number: Annotated[
        int, typer.Option("-n", metavar="N", min=1, max=MOST_RECORDS, help="How many records.")
    ] = DEFAULT_RECORDS,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="POSITION",
            help="earliest, an offset, -100, a time, or -1h; without it the last N records.",
        ),
    ] = None,
    partition: Annotated[
        int | None, typer.Option("--partition", "-p", metavar="P", min=0, help="Only this one.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    data: DataOption = None,
) -> None:
    """Show what a pipeline would make of records of a topic. Nothing is written.

    A record that cannot be transformed is shown with the error.

    On a pipe a line is: "in", "out" or "error", topic, partition, offset, and timestamp in ms, key, value,
    headers; or behind the offset step and reason of the error. Exits with 3 when there is no record.
    """
    loaded = _load(pipeline)
    with open_broker(data) as broker:
        shown = _show_json if json else _show_on_terminal if sys.stdout.isatty() else _show_on_pipe
        count = 0
        for record in _records(broker, topic, number, start, partition):
            count += 1
            messages, error = _attempt(loaded, record)
            write(shown(record, messages, error))
    if not count:
        raise NothingMatched("no record matched")


def _attempt(pipeline: Pipeline, record: Record) -> tuple[Sequence[Message], TransformError | None]:
    from ..transforms import TransformError

    try:
        return pipeline.apply(record), None
    except TransformError as error:
        return (), error


def _records(
    broker: Broker, topic: str, number: int, start: str | None, partition: int | None
) -> Iterable[Record]:
    from .reading import Reading, Wanted, last_records

    if start is None:
        wanted = Wanted(topics=[topic], partition=partition)
        records, _ = last_records(broker, wanted, number)
        return records
    now = datetime.datetime.now(datetime.UTC)
    position = parse_position(start, now=now, names=(Named.EARLIEST, Named.LATEST), option="--from")
    return _each(Reading(broker, Wanted(topics=[topic], partition=partition, start=position, limit=number)))


def _each(reading: Reading) -> Iterator[Record]:
    for batch in reading.batches():
        yield from batch


def _show_json(record: Record, messages: Sequence[Message], error: TransformError | None) -> bytes:
    import msgspec

    from .record_format import json_lines

    document = {
        "record": msgspec.Raw(json_lines([record]).rstrip()),
        "messages": [_message_document(message) for message in messages],
        "error": None if error is None else {"step": error.step, "reason": error.reason},
    }
    return msgspec.json.encode(document) + b"\n"


def _message_document(message: Message) -> dict[str, Any]:
    return {
        "timestamp_ms": message.timestamp,
        **content_as_json(message.key, message.value, _pairs(message)),
    }


def _pairs(message: Message) -> StoredHeaders:
    from ..records import stored_headers

    return stored_headers(message.headers)


def _as_record(message: Message, source: Record) -> Record:
    """A message as the record that it would be, at the place of the one it is made of."""
    from ..records import Record, timestamp_ms_of

    timestamp_ms = source.timestamp_ms if message.timestamp is None else timestamp_ms_of(message.timestamp)
    return Record(
        source.topic,
        source.partition,
        source.offset,
        timestamp_ms,
        message.key,
        message.value,
        _pairs(message),
    )


def _show_on_pipe(record: Record, messages: Sequence[Message], error: TransformError | None) -> bytes:
    from .record_format import TAB_SEPARATED, formatter

    line = formatter(TAB_SEPARATED)
    text = b"in\t" + line([record])
    for message in messages:
        text += b"out\t" + line([_as_record(message, record)])
    if error is not None:
        place = f"error\t{record.topic}\t{record.partition}\t{record.offset}"
        text += f"{place}\t{error.step}\t{' '.join(error.reason.split())}\n".encode(errors="replace")
    return text


def _show_on_terminal(record: Record, messages: Sequence[Message], error: TransformError | None) -> bytes:
    from .record_format import shown, terminal_lines

    text = terminal_lines([record])
    for message in messages:
        text += b"  -> " + terminal_lines([_as_record(message, record)])
    if error is not None:
        text += f"  !! step {error.step}: {shown(error.reason.encode(errors='replace'))}\n".encode()
    elif not messages:
        text += b"  -> (nothing)\n"
    return text


# run ------------------------------------------------------------------------------------------------------


@app.command("run")
def run(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The topic to read.", show_default=False)],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The topic to write to.", show_default=False)
    ],
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            metavar="PIPELINE",
            help="A TOML file, or the name of an installed pipeline.",
            show_default=False,
        ),
    ],
    group: Annotated[
        str,
        typer.Option(
            "--group",
            "-g",
            metavar="GROUP",
            help="The group that remembers how far it got.",
            show_default=False,
        ),
    ],
    dead_letter: Annotated[
        str | None,
        typer.Option("--dead-letter", metavar="TOPIC", help="Where records go that cannot be transformed."),
    ] = None,
    until_idle: Annotated[
        float | None,
        typer.Option("--until-idle", metavar="S", min=0, help="End after S seconds without a record."),
    ] = None,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Transform the records of a topic into another one, exactly once, until it is stopped.

    Any number of processes may run the same. Ctrl-C ends it behind the batch at hand. Without --dead-letter a record
    that cannot be transformed ends it, and is the first when it is run again.
    """
    loaded = _load(pipeline)
    with open_broker(data) as broker, Interruption() as interruption:
        from ..transform import TransformProgress

        progress = TransformProgress()
        try:
            broker.transform(
                source,
                target,
                group=group,
                function=loaded,
                stop=interruption,
                idle_timeout=until_idle,
                dead_letter=dead_letter,
                progress=progress,
            )
        finally:
            _tell(progress.records, progress.dead_letters, json=json)
    if interruption.requested:
        raise KeyboardInterrupt


def _tell(records: int, dead_letters: int, *, json: bool) -> None:
    if json:
        print_json({"records": records, "dead_letters": dead_letters})
    else:
        say(f"transformed {records} records, {dead_letters} of them became dead letters")
