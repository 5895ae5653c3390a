"""``logbroker-inspect``: the commands of the offline inspector.

code  when
0     done; nothing wrong
1     ``verify`` found errors; or nothing could be read
2     wrong usage
3     nothing matched
130   interrupted
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

app = typer.Typer(
    name="logbroker-inspect",
    help="Explain, verify and repair a log directory that nobody has open, damaged or not: a .log file, a partition "
    "folder, a data directory, or Kafka's own log directory. Reads only, but for `repair --write`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FAILED, USAGE, NOTHING, INTERRUPTED = 1, 2, 3, 130

Directory = Annotated[
    str, typer.Argument(metavar="DIR", help="A .log file, a partition folder or a directory.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kafka = Annotated[
    bool, typer.Option("--kafka", help="Take it for Kafka's: gaps and leader epochs are no damage.")
]
Topic = Annotated[str | None, typer.Option("--topic", metavar="T", help="Only this topic.")]
PartitionNumber = Annotated[int | None, typer.Option("--partition", metavar="P", help="Only this partition.")]
FromOffset = Annotated[int | None, typer.Option("--from-offset", metavar="N", help="From this offset on.")]
ToOffset = Annotated[int | None, typer.Option("--to-offset", metavar="N", help="Below this offset.")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="ISO 8601; not older than this.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="ISO 8601; older than this.")]


def _find(path: str, kafka: bool = False, topic: str | None = None, partition: int | None = None) -> Any:
    from .layout import find

    target = find(path, kafka=kafka)
    wanted = [
        part
        for part in target.partitions
        if topic in (None, part.topic) and partition in (None, part.partition)
    ]
    if not wanted and target.partitions:
        _stop("no partition matched", NOTHING)
    return msgspec.structs.replace(target, partitions=wanted)


def _stop(message: str, code: int) -> None:
    sys.stderr.write(f"logbroker-inspect: {' '.join(message.split())}\n")
    raise typer.Exit(code)


def _milliseconds(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{option} {text!r} is not an ISO 8601 time, such as 2026-11-23T10:00"
        ) from None
    return int(moment.astimezone().timestamp() * 1000)


@app.command()
def summary(directory: Directory, json: Json = False, kafka: Kafka = False) -> None:
    """Partitions with their segments, offsets, sizes, batches and damage."""
    from .output import print_json, print_table
    from .summary import PartitionSummary
    from .summary import summary as summarise

    rows = list(summarise(_find(directory, kafka)))
    if json:
        print_json(rows)
    else:
        print_table(PartitionSummary.__struct_fields__, map(msgspec.structs.astuple, rows))


@app.command()
def segments(directory: Directory, json: Json = False, kafka: Kafka = False) -> None:
    """Every segment file with its offsets, sizes, batches and damage."""
    from .output import print_json, print_table
    from .summary import SegmentSummary
    from .summary import segments as summarise

    rows = list(summarise(_find(directory, kafka)))
    if json:
        print_json(rows)
    else:
        print_table(SegmentSummary.__struct_fields__, map(msgspec.structs.astuple, rows))


BATCH_COLUMNS = (
    "topic",
    "partition",
    "position",
    "size_bytes",
    "base_offset",
    "last_offset",
    "records",
    "codec",
    "timestamp_ms",
    "max_timestamp_ms",
    "producer_id",
    "producer_epoch",
    "base_sequence",
    "flags",
)


@app.command()
def dump(
    directory: Directory,
    records: Annotated[bool, typer.Option("--records", help="Records instead of batches.")] = False,
    topic: Topic = None,
    partition: PartitionNumber = None,
    from_offset: FromOffset = None,
    to_offset: ToOffset = None,
    since: Since = None,
    until: Until = None,
    json: Json = False,
    kafka: Kafka = False,
) -> None:
    """Batches, or with --records the records in them; damage goes to stderr."""
    from .output import print_json_line, print_table, record_fields

    since_ms, until_ms = _milliseconds("--since", since), _milliseconds("--until", until)
    target = _find(directory, kafka, topic, partition)
    if records:
        wanted = _records(target, from_offset, to_offset, since_ms, until_ms)
        if json:
            for record in wanted:
                print_json_line(record_fields(record))
        else:
            columns = ("topic", "partition", "offset", "timestamp_ms", "key", "value", "headers")
            print_table(columns, (_record_row(record) for record in wanted))
        return
    rows = _batch_rows(target, from_offset, to_offset, since_ms, until_ms)
    if json:
        for row in rows:
            print_json_line(dict(zip(BATCH_COLUMNS, row, strict=True)))
    else:
        print_table(BATCH_COLUMNS, rows)


@app.command()
def export(
    directory: Directory,
    topic: Topic = None,
    partition: PartitionNumber = None,
    from_offset: FromOffset = None,
    to_offset: ToOffset = None,
    since: Since = None,
    until: Until = None,
    kafka: Kafka = False,
) -> None:
    """Every readable record as a JSON object on a line; damage goes to stderr."""
    from .output import print_json_line, record_fields

    since_ms, until_ms = _milliseconds("--since", since), _milliseconds("--until", until)
    target = _find(directory, kafka, topic, partition)
    for record in _records(target, from_offset, to_offset, since_ms, until_ms):
        print_json_line(record_fields(record))


def _batches(
    target: Any, from_offset: int | None, to_offset: int | None, since_ms: int | None, until_ms: int | None
) -> Iterator[tuple[Any, Any]]:
    from .reading import items
    from .walk import Damaged

    for part in target.partitions:
        for segment, item in items(part, from_offset=from_offset or 0):
            if isinstance(item, Damaged):
                sys.stderr.write(
                    f"logbroker-inspect: {segment.path} is damaged at byte {item.position}: {item.defect.value}\n"
                )
                continue
            header = item.header
            if to_offset is not None and header.base_offset >= to_offset:
                break
            if from_offset is not None and header.last_offset < from_offset:
                continue
            if since_ms is not None and header.max_timestamp_ms < since_ms:
                continue
            if until_ms is not None and header.base_timestamp_ms >= until_ms > header.max_timestamp_ms:
                continue
            yield part, item


def _batch_rows(target: Any, *limits: int | None) -> Iterator[tuple[object, ...]]:
    for part, item in _batches(target, *limits):
        header = item.header
        flags = [
            name
            for name, is_set in (
                ("control", header.is_control),
                ("transactional", header.is_transactional),
                ("append-time", header.uses_log_append_time),
            )
            if is_set
        ]
        yield (
            part.topic,
            part.partition,
            item.position,
            header.size_bytes,
            header.base_offset,
            header.last_offset,
            header.record_count,
            header.compression.name.lower(),
            header.base_timestamp_ms,
            header.max_timestamp_ms,
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
            ",".join(flags),
        )


def _records(
    target: Any, from_offset: int | None, to_offset: int | None, since_ms: int | None, until_ms: int | None
) -> Iterator[Any]:
    from .reading import records_of

    for part, item in _batches(target, from_offset, to_offset, since_ms, until_ms):
        if item.header.is_control:
            continue
        for record in records_of(part, item):
            if (
                (from_offset is None or record.offset >= from_offset)
                and (to_offset is None or record.offset < to_offset)
                and (since_ms is None or record.timestamp_ms >= since_ms)
                and (until_ms is None or record.timestamp_ms < until_ms)
            ):
                yield record


def _record_row(record: Any) -> tuple[object, ...]:
    headers = b",".join(
        key.encode(errors="surrogateescape") + b"=" + (value or b"") for key, value in record.headers
    )
    return (
        record.topic,
        record.partition,
        record.offset,
        record.timestamp_ms,
        record.key,
        record.value,
        headers,
    )


@app.command()
def verify(directory: Directory, json: Json = False, kafka: Kafka = False) -> None:
    """Every check; exits with 1 and the exact places when something is wrong."""
    from .findings import Severity
    from .output import print_json_line
    from .verify import verify as run_checks

    target = _find(directory, kafka)
    errors = notes = 0
    for finding in run_checks(target):
        is_error = finding.severity is Severity.ERROR
        errors += is_error
        notes += not is_error
        if json:
            print_json_line(finding)
            continue
        place = finding.path if finding.position is None else f"{finding.path}, byte {finding.position}"
        advice = f" ({finding.advice})" if finding.advice else ""
        sys.stdout.write(
            f"{finding.severity.value}: {place}: {finding.code.value}: {finding.message}{advice}\n"
        )
    if not json:
        partitions = len(target.partitions)
        sys.stdout.write(f"{partitions} partitions checked: {errors} errors, {notes} notes\n")
    if errors:
        raise typer.Exit(FAILED)


@app.command()
def producers(directory: Directory, json: Json = False, kafka: Kafka = False) -> None:
    """What each producer wrote last in each partition, beside the newest snapshot."""
    from .output import print_json, print_table
    from .producers import ProducerRow
    from .producers import producers as fold

    rows = list(fold(_find(directory, kafka)))
    if json:
        print_json(rows)
    else:
        print_table(ProducerRow.__struct_fields__, map(msgspec.structs.astuple, rows))


@app.command()
def offsets(directory: Directory, json: Json = False) -> None:
    """What each group has committed, from the journal."""
    from logbroker_storage.events import OffsetEvent

    from .output import print_json, print_table
    from .reading import live_events

    events = [event for event in live_events(_find(directory)).values() if isinstance(event, OffsetEvent)]
    events.sort(key=lambda event: (event.group, event.topic, event.partition))
    if json:
        print_json([_plain(event) for event in events])
    else:
        rows = ((e.group, e.topic, e.partition, e.offset, e.committed_ms) for e in events)
        print_table(("group", "topic", "partition", "offset", "committed_ms"), rows)


@app.command()
def journal(directory: Directory, json: Json = False) -> None:
    """Every event of the journal, oldest first; a deleted key is a tombstone."""
    from .output import print_json_line, print_table
    from .reading import journal_records

    events = journal_records(_find(directory))
    if json:
        for record, event in events:
            what = (
                {"tombstone": (record.key or b"").decode(errors="replace")}
                if event is None
                else _plain(event)
            )
            print_json_line({"offset": record.offset, "timestamp_ms": record.timestamp_ms, **what})
        return
    rows = (
        (
            record.offset,
            record.timestamp_ms,
            (record.key or b"").replace(b"\0", b" ").decode(errors="replace"),
            "tombstone" if event is None else msgspec.json.encode(_plain(event)).decode(),
        )
        for record, event in events
    )
    print_table(("offset", "timestamp_ms", "key", "event"), rows)


def _plain(event: Any) -> dict[str, object]:
    built = msgspec.to_builtins(event)
    assert isinstance(built, dict)
    return built


@app.command()
def repair(
    directory: Directory,
    write: Annotated[
        bool, typer.Option("--write", help="Carry the plan out; nobody may have it open.")
    ] = False,
    json: Json = False,
    kafka: Kafka = False,
) -> None:
    """Show what could be set right; with --write do it, keeping every byte that is replaced."""
    from .output import print_json
    from .repair import plan, repair_all

    target = _find(directory, kafka)
    steps = repair_all(target) if write else plan(target)
    if json:
        print_json({"written": write, "steps": steps})
        return
    for step in steps:
        where = "" if step.position is None else f" at byte {step.position}"
        sys.stdout.write(f"{step.action.value}: {step.path}{where}: {step.message} (kept in {step.keeps})\n")
    if not steps:
        sys.stdout.write("nothing to repair\n")
    elif not write:
        sys.stdout.write("nothing was changed; give --write to carry this out while nobody has it open\n")


def run(arguments: list[str] | None = None) -> int:
    """Run one command line (default: the process's); the exit code."""
    from logbroker_storage.errors import LogbrokerError

    usage_error = typer.BadParameter.__base__  # typer has moved click's exceptions; this one is in both
    assert usage_error is not None
    try:
        code = app(args=arguments, standalone_mode=False)  # the code of a typer.Exit, which ends up here
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has what it wanted. Point stdout elsewhere, or Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LogbrokerError, OSError) as error:
        sys.stderr.write(f"logbroker-inspect: {' '.join(str(error).split())}\n")
        return FAILED
    except usage_error as error:  # type: ignore[misc]
        sys.stderr.write(f"logbroker-inspect: {error.format_message()} (see --help)\n")
        return USAGE
    return code if isinstance(code, int) else 0


def main() -> None:
    """The entry point."""
    sys.exit(run())


if __name__ == "__main__":
    main()
