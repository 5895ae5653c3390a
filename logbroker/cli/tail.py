"""``logbroker tail``: print records, from anywhere to anywhere, once or for as long as they come."""

from __future__ import annotations

import datetime
import gc
import os
import select
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from .directory import DataOption, open_broker
from .exit_codes import FAILED, NothingMatched
from .positions import MOST_RECORDS, Named, Position, parse_position

if TYPE_CHECKING:
    from ..broker import Broker
    from .reading import Reading, Wanted
    from .record_format import Formatter

DEFAULT_RECORDS = 10
MOST_HELD = 100_000  # records; of one partition more are printed as they are read
GC_THRESHOLD = 100_000  # twice as many records a second: each has a list, which the collector counts


def tail(
    topics: Annotated[
        list[str],
        typer.Argument(metavar="TOPIC…", help="Names, or patterns such as 'orders.*'.", show_default=False),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new records as they come.")
    ] = False,
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            metavar="N",
            min=0,
            max=MOST_RECORDS,
            help=f"Without --from: the last N records ({DEFAULT_RECORDS}), as tail(1). "
            "With --from or --group: stop after N.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="POSITION",
            help="earliest, latest, an offset, -100 (so many before the end of each partition), a time, "
            "-1h, or stored (the group's).",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="POSITION", help="Stop before it: an offset, a time, -1h, +10s, latest …"
        ),
    ] = None,
    partition: Annotated[
        int | None, typer.Option("--partition", "-p", metavar="P", min=0, help="Only this one.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", "-g", metavar="GROUP", help="Read as a member of this group.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help=r"%t topic, %p partition, %o offset, %T timestamp (ms), %k key, %v value, %h headers, "
            r"%K and %V bytes of key and value; \n \t \r \0 \\ %%.",
        ),
    ] = None,
    value_only: Annotated[
        bool, typer.Option("--value-only", help="Only the values, a newline behind each.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="S", min=0, help="With -f: end after S seconds of silence."),
    ] = None,
    data: DataOption = None,
) -> None:
    """Print records.

    Without -f it ends where the partitions ended when it began. Records of one partition come in their order;
    partitions take turns, but for the last N, which are ordered by timestamp.

    On a terminal a record is one line of text; on a pipe its fields are separated by tabs: topic, partition,
    offset, timestamp in ms, key, value, headers.

    With --group it begins at the group's committed offsets (--from counts where there is none), and commits what
    it has printed.

    Exits with 3 when it printed nothing (but for -n 0, which asks for that), or when --timeout ended it; so it does
    without -f where GROUP is a subscription that is paused.
    """
    print_records = _formatter(format, value_only=value_only, json=json)
    if group is not None and partition is not None:
        raise typer.BadParameter("--partition and --group exclude each other: a group shares the partitions")
    now = datetime.datetime.now(datetime.UTC)
    begin = _begin(start, group, now)
    names = (Named.EARLIEST, Named.LATEST)
    end = (
        None if until is None else parse_position(until, now=now, names=names, option="--until", forward=True)
    )
    gc.set_threshold(GC_THRESHOLD)
    with open_broker(data) as broker:
        from .reading import Wanted

        wanted = Wanted(
            topics=topics,
            partition=partition,
            start=begin or Named.EARLIEST,
            until=end,
            limit=number,
            follow=follow,
            timeout_s=timeout,
            group=group,
        )
        count = number if number is not None else DEFAULT_RECORDS
        _Tail(broker, print_records).run(wanted, None if begin is not None else count)


def _begin(start: str | None, group: str | None, now: datetime.datetime) -> Position | None:
    """What --from says; None for the last records."""
    if start is None:
        return None if group is None else Named.STORED
    begin = parse_position(start, now=now, names=tuple(Named), option="--from")
    if begin is Named.STORED and group is None:
        raise typer.BadParameter("--from stored needs --group: whose committed offsets?")
    return begin


def _formatter(format: str | None, *, value_only: bool, json: bool) -> Formatter:
    if sum((format is not None, value_only, json)) > 1:
        raise typer.BadParameter("choose one of --format, --value-only and --json")
    from .record_format import TAB_SEPARATED, formatter, json_lines, terminal_lines, values_with_newlines

    if value_only:
        return values_with_newlines
    if json:
        return json_lines
    if format is None and sys.stdout.isatty():
        return terminal_lines
    return formatter(TAB_SEPARATED if format is None else format)


class _Tail:
    """Prints what readings give."""

    def __init__(self, broker: Broker, print_records: Formatter) -> None:
        self._broker = broker
        self._format = print_records
        self._has_reader = reader_check(sys.stdout.fileno)
        self._printed = 0
        self._damaged = False

    def run(self, wanted: Wanted, last: int | None) -> None:
        """Print what is *wanted*, or the *last* so many records (and what follows).

        Raises:
            NothingMatched: nothing was printed, --timeout passed, or the group's subscription is paused.
            typer.Exit: some records were damaged.
        """
        from .reading import Reading

        if last is None:
            reading = Reading(self._broker, wanted, is_wanted=self._has_reader)
            self._print(reading)
        else:
            reading = self._print_last(wanted, last)
        if reading.timed_out:
            raise NothingMatched(f"no record for {wanted.timeout_s:g} seconds")
        if reading.was_paused:
            raise NothingMatched(
                f"subscription {wanted.group!r} is paused; `logbroker subscription resume` has it go on"
            )
        if self._damaged:
            raise typer.Exit(FAILED)
        if not self._printed and wanted.limit != 0 and self._has_reader():
            raise NothingMatched("no record matched")

    def _print(self, reading: Reading) -> None:
        for records in reading.batches():
            self._write(self._format(records))
        self._printed += reading.records
        self._damaged |= reading.damaged

    def _print_last(self, wanted: Wanted, count: int) -> Reading:
        """The last *count* records there are; with -f then those that come."""
        from dataclasses import replace

        from .reading import Reading, last_records

        bounded = replace(wanted, follow=False, limit=None)
        reading = Reading(self._broker, bounded, is_wanted=self._has_reader)
        if count > MOST_HELD and len(reading.found) == 1:
            reading.begin_before_stops(count)
            self._print(reading)
        else:
            records, reading = last_records(self._broker, bounded, count)
            self._write(self._format(records))
            self._printed += len(records)
            self._damaged |= reading.damaged
        if wanted.follow:
            following = replace(wanted, limit=None)
            reading = Reading(self._broker, following, starts=reading.ends(), is_wanted=self._has_reader)
            self._print(reading)
        return reading

    def _write(self, text: bytes) -> None:
        """To stdout, and on to whoever reads it: with -f that is each record as it comes."""
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()


def reader_check(descriptor: Callable[[], int]) -> Callable[[], bool]:
    """What tells whether a pipe still has a reader; of anything else it always says so.

    A write would tell as well, but there may be nothing to write for a long time.
    """
    try:
        number = descriptor()
        is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
    except (OSError, ValueError):
        return lambda: True
    if not is_pipe:
        return lambda: True
    poll = select.poll()
    poll.register(number, 0)
    return lambda: not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
