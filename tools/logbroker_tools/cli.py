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
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import msgspec
import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .layout import Segment, Target
    from .reading import Report
    from .walk import Damaged

app = typer.Typer(
    name="logbroker-inspect",
    help="Explain, verify and repair a log directory that nobody has open, damaged or not: a .log file, a partition "
    "folder, a data directory, or Kafka's own log directory. Reads only, but for `repair --write`.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Row = TypeVar("Row")

FAILED, USAGE, NOTHING, INTERRUPTED = 1, 2, 3, 130


def _named(path: str) -> str:
    """An empty name is that of a variable which is not set: never the root of the file system."""
    if not path:
        raise typer.BadParameter("a directory's name cannot be empty")
    return path


Directory = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        envvar="LOGBROKER_DATA",
        show_envvar=False,
        help="A .log file, a partition folder or a directory (default: $LOGBROKER_DATA).",
        callback=_named,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kafka = Annotated[
    bool | None,
    typer.Option(
        "--kafka/--logbroker",
        show_default=False,
        help="Take it for Kafka's (gaps and leader epochs are no damage), or for ours; default: what it says itself.",
    ),
]
Topic = Annotated[str | None, typer.Option("--topic", metavar="T", help="Only this topic.")]
PartitionNumber = Annotated[int | None, typer.Option("--partition", metavar="P", help="Only this partition.")]
FromOffset = Annotated[int | None, typer.Option("--from-offset", metavar="N", help="From this offset on.")]
ToOffset = Annotated[int | None, typer.Option("--to-offset", metavar="N", help="Below this offset.")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="ISO 8601; not older than this.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="ISO 8601; older than this.")]


def _find(
    path: str, kafka: bool | None = None, topic: str | None = None, partition: int | None = None
) -> Target:
    from .layout import find

    target = find(path, kafka=kafka)
    wanted = target.only(topic, partition)
    if target.partitions and not wanted.partitions:
        _stop("no partition matched", NOTHING)
    return wanted


def _find_journal(path: str) -> Target:
    from .layout import JOURNAL_TOPIC

    target = _find(path)
    if not target.only(JOURNAL_TOPIC, None).partitions:
        _stop(f"there is no journal at {path}: give a data directory, or its logs/{JOURNAL_TOPIC}-0", FAILED)
    return target


def _say(message: str) -> None:
    from logbroker_storage.standard_streams import say

    say(f"logbroker-inspect: {message}")


def _stop(message: str, code: int) -> NoReturn:
    _say(" ".join(message.split()))
    raise typer.Exit(code)


def _report(segment: Segment, damage: Damaged | OSError) -> None:
    """What keeps from reading a segment, or a part of it, on stderr: the command goes on behind it."""
    if isinstance(damage, OSError):
        what = f"cannot be read: {damage.strerror or damage}"
    else:
        what = f"is damaged at byte {damage.position}: {damage.defect.value}"
    _say(f"{segment.path} {what}")


def _reporting_once() -> Report:
    """``_report`` for a command that reads the journal twice: for what it says, and as one of the partitions."""
    told: set[tuple[str, int | None]] = set()

    def report(segment: Segment, damage: Damaged | OSError) -> None:
        place = segment.path, None if isinstance(damage, OSError) else damage.position
        if place not in told:
            told.add(place)
            _report(segment, damage)

    return report


def _matched(rows: Iterable[Row], what: str) -> Iterator[Row]:
    """*rows* as they come; without any, the command ends with that code."""
    has_any = False
    for row in rows:
        has_any = True
        yield row
    if not has_any:
        _stop(f"no {what} matched", NOTHING)


def _milliseconds(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):  # also of a local time at the edge of the years 1 to 9999
        raise typer.BadParameter(
            f"{option} {text!r} is not an ISO 8601 time, such as 2026-11-23T10:00"
        ) from None
    return int(moment.timestamp() * 1000)


@app.command()
def summary(
    directory: Directory,
    topic: Topic = None,
    partition: PartitionNumber = None,
    json: Json = False,
    kafka: Kafka = None,
) -> None:
    """Partitions with their segments, offsets, sizes, batches and damage."""
    from .output import print_rows
    from .summary import PartitionSummary
    from .summary import summary as summarise

    rows = list(summarise(_find(directory, kafka, topic, partition), _report))
    print_rows(PartitionSummary, rows, json=json)


@app.command()
def segments(
    directory: Directory,
    topic: Topic = None,
    partition: PartitionNumber = None,
    json: Json = False,
    kafka: Kafka = None,
) -> None:
    """Every segment file with its offsets, sizes, batches and damage."""
    from .output import print_rows
    from .summary import SegmentSummary
    from .summary import segments as summarise

    rows = list(summarise(_find(directory, kafka, topic, partition), _report))
    print_rows(SegmentSummary, rows, json=json)


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
    kafka: Kafka = None,
) -> None:
    """Batches, or with --records the records in them; damage goes to stderr. Exits with 3 when nothing matched."""
    from .dump import BatchRow, Selection, batch_rows
    from .dump import records as wanted_records
    from .output import RECORD_COLUMNS, print_json_line, print_table, record_fields, record_row

    selection = Selection(
        from_offset, to_offset, _milliseconds("--since", since), _milliseconds("--until", until)
    )
    target = _find(directory, kafka, topic, partition)
    if records and json:
        for record in _matched(wanted_records(target, selection, _report), "record"):
            print_json_line(record_fields(record))
    elif records:
        found = _matched(wanted_records(target, selection, _report), "record")
        print_table(RECORD_COLUMNS, map(record_row, found))
    elif json:
        for row in _matched(batch_rows(target, selection, _report), "batch"):
            print_json_line(row)
    else:
        rows = _matched(batch_rows(target, selection, _report), "batch")
        print_table(BatchRow.__struct_fields__, map(msgspec.structs.astuple, rows))


@app.command()
def export(
    directory: Directory,
    topic: Topic = None,
    partition: PartitionNumber = None,
    from_offset: FromOffset = None,
    to_offset: ToOffset = None,
    since: Since = None,
    until: Until = None,
    json: Json = True,  # noqa: ARG001  (accepted for likeness with the others: it prints nothing else)
    kafka: Kafka = None,
) -> None:
    """Every readable record as a JSON object on a line; damage goes to stderr. The journal only with --topic.

    Exits with 3 when nothing matched.
    """
    from .dump import Selection
    from .dump import records as wanted_records
    from .output import print_json_line, record_fields

    selection = Selection(
        from_offset, to_offset, _milliseconds("--since", since), _milliseconds("--until", until)
    )
    target = _find(directory, kafka, topic, partition)
    if topic is None and target.log_directory is not None:
        target = target.without_journal()
    for record in _matched(wanted_records(target, selection, _report), "record"):
        print_json_line(record_fields(record))


@app.command()
def verify(
    directory: Directory,
    topic: Topic = None,
    partition: PartitionNumber = None,
    json: Json = False,
    kafka: Kafka = None,
) -> None:
    """Every check; exits with 1 and the exact places when something is wrong."""
    from .findings import Severity
    from .output import print_json_line, print_text
    from .verify import verify as run_checks

    target = _find(directory, kafka, topic, partition)
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
        print_text(f"{finding.severity.value}: {place}: {finding.code.value}: {finding.message}{advice}\n")
    if not json:
        print_text(f"partitions checked: {len(target.partitions)}, errors: {errors}, notes: {notes}\n")
    if errors:
        raise typer.Exit(FAILED)


@app.command()
def producers(
    directory: Directory,
    topic: Topic = None,
    partition: PartitionNumber = None,
    json: Json = False,
    kafka: Kafka = None,
) -> None:
    """What each producer wrote last in each partition, beside the newest snapshot."""
    from .output import print_rows
    from .producers import ProducerRow, producer_names
    from .producers import producers as fold

    target = _find(directory, kafka, topic, partition)
    report = _reporting_once()
    names = producer_names(_find(directory, kafka), report)
    rows = list(fold(target, names, report))
    print_rows(ProducerRow, rows, json=json)


@app.command()
def transactions(
    directory: Directory,
    topic: Topic = None,
    partition: PartitionNumber = None,
    json: Json = False,
    kafka: Kafka = None,
) -> None:
    """Every transaction in each partition: open, committed, aborted, or decided and not marked yet."""
    from .output import print_rows
    from .transactions import TransactionRow, decisions
    from .transactions import transactions as walk_through

    target = _find(directory, kafka, topic, partition)
    report = _reporting_once()
    decided = decisions(_find(directory, kafka), report)
    rows = list(walk_through(target, decided, report))
    print_rows(TransactionRow, rows, json=json)


@app.command()
def offsets(directory: Directory, json: Json = False) -> None:
    """What each group has committed, from the journal."""
    from logbroker_storage.events import OffsetEvent

    from .event_fields import event_fields
    from .output import print_json, print_table
    from .reading import live_events

    live = live_events(_find_journal(directory), _report)
    events = [event for event in live.values() if isinstance(event, OffsetEvent)]
    events.sort(key=lambda event: (event.group, event.topic, event.partition))
    if json:
        print_json([event_fields(event) for event in events])
    else:
        rows = ((e.group, e.topic, e.partition, e.offset, e.committed_ms) for e in events)
        print_table(("group", "topic", "partition", "offset", "committed_ms"), rows)


@app.command()
def subscriptions(directory: Directory, json: Json = False) -> None:
    """Every subscription with its rules, and where it is in each partition, from the journal."""
    from .output import print_json, print_table
    from .subscriptions import subscriptions as summarise

    found = summarise(_find_journal(directory), _report)
    if json:
        print_json(found)
        return
    columns = ("name", "state", "what", "topic", "partition", "start_offset", "done", "attempted", "rejected")
    rows: list[tuple[object, ...]] = []
    for one in found:
        state = None if one.is_paused is None else "paused" if one.is_paused else "active"
        name = one.name or f"(deleted: {one.subscription_id})"
        rows += [
            (
                name, state, place.what, place.topic, place.partition, place.start_offset, place.done,
                place.attempted, place.rejected,
            )
            for place in one.places
        ] or [(name, state, one.kind, None, None, None, None, None, None)]  # fmt: skip
    print_table(columns, rows)


@app.command()
def journal(directory: Directory, json: Json = False) -> None:
    """Every event of the journal, oldest first; a deleted key is a tombstone."""
    from .event_fields import event_fields
    from .output import bytes_fields, print_json_line, print_table
    from .reading import journal_records

    events = journal_records(_find_journal(directory), _report)
    if json:
        for record, event in events:
            print_json_line(
                {
                    "offset": record.offset,
                    "timestamp_ms": record.timestamp_ms,
                    **bytes_fields(record.key, "key", "key_encoding"),
                    "event": None if event is None else event_fields(event),
                }
            )
        return
    rows = (
        (
            record.offset,
            record.timestamp_ms,
            (record.key or b"").replace(b"\0", b" ").decode(errors="replace"),
            "tombstone" if event is None else msgspec.json.encode(event_fields(event)).decode(),
        )
        for record, event in events
    )
    print_table(("offset", "timestamp_ms", "key", "event"), rows)


@app.command()
def repair(
    directory: Directory,
    write: Annotated[
        bool, typer.Option("--write", help="Carry the plan out; nobody may have it open.")
    ] = False,
    json: Json = False,
    kafka: Kafka = None,
) -> None:
    """Show what could be set right; with --write do it, keeping every byte that is replaced."""
    from .output import print_json, print_text
    from .repair import plan, repair_all

    target = _find(directory, kafka)
    steps = repair_all(target) if write else plan(target)
    if json:
        print_json({"written": write, "steps": steps})
        return
    for step in steps:
        where = "" if step.position is None else f" at byte {step.position}"
        kept = "" if step.keeps is None else f" (what it replaces is kept in {step.keeps})"
        print_text(f"{step.action.value}: {step.path}{where}: {step.message}{kept}\n")
    if not steps:
        print_text("nothing to repair\n")
    elif not write:
        print_text("nothing was changed; give --write to carry this out while nobody has it open\n")


def _in_order(arguments: list[str] | None) -> list[str]:
    """``DIR COMMAND …`` and ``--data DIR COMMAND …`` as ``COMMAND DIR …``."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--data"]:
        given = given[1:]
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    if len(given) > 1 and given[0] not in commands and given[1] in commands and not given[0].startswith("-"):
        given[:2] = [given[1], given[0]]
    return given


def run(arguments: list[str] | None = None, *, name: str = "logbroker-inspect") -> int:
    """Run one command line (default: the process's), which its help calls *name*; the exit code."""
    from logbroker_storage.errors import LogbrokerError

    usage_error = typer.BadParameter.__base__  # typer has moved click's exceptions; this one is in both
    assert usage_error is not None
    given = _in_order(arguments)
    try:
        if not given:
            app(args=["--help"], prog_name=name, standalone_mode=False)
            return USAGE
        # The code of a typer.Exit ends up here.
        code = app(args=given, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has what it wanted. Point stdout elsewhere, or Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit:
        return 0  # typer's own answer to a closed pipe, the only case in which it exits by itself here
    except (LogbrokerError, OSError) as error:
        _say(" ".join(str(error).split()))
        return FAILED
    except usage_error as error:  # type: ignore[misc]
        _say(f"{error.format_message()} (see --help)")
        return USAGE
    return code if isinstance(code, int) else 0


def main() -> None:
    """The entry point."""
    from logbroker_storage.standard_streams import open_closed_streams

    open_closed_streams()
    sys.exit(run())


if __name__ == "__main__":
    main()
