"""``logbroker tail``: print records, from anywhere to anywhere, once or for as long as they come.

Without ``-f`` it ends where the partitions ended when it began. Records of one partition come in their
order; partitions take turns. Records are printed as they are read: memory does not grow with their number.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .directory import DataOption, open_broker
from .exit_codes import FAILED, NothingMatched
from .output import say
from .positions import FromEnd, Moment, Named, Offset, Position, parse_position
from .record_format import DEFAULT_FORMAT, Formatter, formatter, json_record, values_with_newlines

if TYPE_CHECKING:
    from logbroker_storage.errors import CorruptionError

    from ..broker import Broker
    from ..consumer import Consumer
    from ..records import Record

Place = tuple[str, int]

DEFAULT_RECORDS = 10
RECORDS_PER_POLL = 5000
FROM_NAMES = ("earliest", "latest", "stored")
UNTIL_NAMES = ("latest",)


def tail(
    topics: Annotated[
        list[str], typer.Argument(metavar="TOPIC…", help="Names, or patterns such as 'orders.*'.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new records as they come.")
    ] = False,
    number: Annotated[
        int | None, typer.Option("-n", metavar="N", min=1, help="Stop after N; without --from: the last N.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="POSITION",
            help="earliest, latest, an offset, -N from the end, a time, -1h, or stored (needs --group). "
            f"Default: the last {DEFAULT_RECORDS} of each partition.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="POSITION", help="Stop before this offset, place or time."),
    ] = None,
    partition: Annotated[int | None, typer.Option("--partition", "-p", metavar="P", min=0)] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group", metavar="G", help="Read as a member of this group, and commit what was printed."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="F", help=r"%t %p %o %T %k %v %h (topic … headers), \n \t \\ and %%."
        ),
    ] = None,
    value_only: Annotated[
        bool, typer.Option("--value-only", help="Only values, a newline behind each.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="S", min=0, help="With -f: end after S seconds of silence."),
    ] = None,
    data: DataOption = None,
) -> None:
    """Print records. Exits with 3 when there was none to print, or -f --timeout ran out."""
    now = datetime.datetime.now(datetime.UTC)
    begin = _begin(start, number, group, now)
    end = None if until is None else parse_position(until, option="--until", now=now, names=UNTIL_NAMES)
    print_records = _printer(format, value_only=value_only, json=json)
    with open_broker(data) as broker:
        ends = {} if follow and end is None else _ends(broker, topics, end, bounded=not follow)
        with _consumer(broker, topics, begin, group, partition) as consumer:
            run = _Tail(consumer, print_records, ends, partition, number, follow, timeout)
            if number is not None and start is None and group is None and not follow:
                run.last(number)
            else:
                run.all()
    if run.damaged:
        raise typer.Exit(FAILED)
    if run.timed_out:
        raise NothingMatched(f"no record for {timeout} s")
    if not run.printed:
        raise NothingMatched("no record matched")


def _begin(start: str | None, number: int | None, group: str | None, now: datetime.datetime) -> Position:
    if start is None:
        return Named("stored") if group is not None else FromEnd(number or DEFAULT_RECORDS)
    begin = parse_position(start, option="--from", now=now, names=FROM_NAMES)
    if begin == Named("stored") and group is None:
        raise typer.BadParameter("--from stored needs --group: whose committed offsets?")
    return begin


def _printer(format: str | None, *, value_only: bool, json: bool) -> Formatter:
    if sum((format is not None, value_only, json)) > 1:
        raise typer.BadParameter("choose one of --format, --value-only and --json")
    if value_only:
        return values_with_newlines
    if json:
        return lambda records: b"".join(map(json_record, records))
    return formatter(DEFAULT_FORMAT if format is None else format)


def _places(broker: Broker, topics: Sequence[str]) -> dict[Place, tuple[int, int]]:
    """The start and the end offset of every partition that *topics* mean now."""
    from ..subscription import Subscription

    subscription = Subscription.parse(topics)
    existing = broker.topics()
    subscription.check_names(existing)
    return {
        (name, part.partition): (part.log_start_offset, part.high_watermark)
        for name in subscription.resolve(existing)
        for part in broker.topic(name).partitions
    }


def _ends(broker: Broker, topics: Sequence[str], end: Position | None, *, bounded: bool) -> dict[Place, int]:
    """The offset at which to stop, for each partition; a *bounded* run stops at the ends there are now."""
    places = _places(broker, topics)
    present = {place: high_watermark for place, (_, high_watermark) in places.items()}
    match end:
        case None | Named():
            return present
        case Offset(offset):
            wanted = dict.fromkeys(places, offset)
        case FromEnd(records):
            wanted = {place: high_watermark - records for place, high_watermark in present.items()}
        case Moment(time):
            with broker.consumer(topics, start=time) as consumer:
                wanted = _positions(consumer, topics)
    return {place: min(wanted[place], present[place]) for place in places} if bounded else wanted


def _positions(consumer: Consumer, topics: Sequence[str]) -> dict[Place, int]:
    """``consumer.position()`` with (topic, partition) keys, also where there is one topic."""
    return {
        (topics[0], place) if isinstance(place, int) else place: offset
        for place, offset in consumer.position().items()
    }


def _consumer(
    broker: Broker, topics: Sequence[str], begin: Position, group: str | None, partition: int | None
) -> Consumer:
    places = _places(broker, topics)
    if partition is not None and not any(number == partition for _, number in places):
        raise typer.BadParameter(f"--partition {partition}: no topic here has it")
    match begin:
        case Named("latest"):
            return broker.consumer(topics, group=group, start="latest")
        case Named():
            return broker.consumer(topics, group=group, start="earliest")
        case Moment(time):
            return broker.consumer(topics, group=group, start=time)
        case Offset(offset):
            starts = {place: min(max(offset, first), end) for place, (first, end) in places.items()}
        case FromEnd(records):
            starts = {place: max(first, end - records) for place, (first, end) in places.items()}
    return broker.consumer(topics, group=group, start=starts)


class _Tail:
    """One run: what to print, until where, and what came of it."""

    def __init__(
        self,
        consumer: Consumer,
        print_records: Formatter,
        ends: Mapping[Place, int],
        partition: int | None,
        number: int | None,
        follow: bool,
        timeout: float | None,
    ) -> None:
        self._consumer = consumer
        self._format = print_records
        self._ends = ends
        self._partition = partition
        self._left = number
        self._follow = follow
        self._timeout = timeout
        self.printed = 0
        self.damaged = False
        self.timed_out = False

    def all(self) -> None:
        """Print record after record until there is nothing more to print."""
        write, flush = sys.stdout.buffer.write, sys.stdout.buffer.flush
        while self._left is None or self._left > 0:
            records = self._next()
            if records is None:
                break
            wanted = self._wanted(records)
            if wanted:
                write(self._format(wanted))
                self.printed += len(wanted)
            if self._follow:
                flush()
            if self._left is not None:
                self._left -= len(wanted)
            if self._at_ends(records):
                break
        flush()

    def last(self, number: int) -> None:
        """Print the last *number* records of all partitions together, by timestamp."""
        found: list[Record] = []
        while (records := self._next()) is not None:
            found += self._wanted(records)
            if self._at_ends(records):
                break
        found.sort(key=lambda record: record.timestamp_ms)
        sys.stdout.buffer.write(self._format(found[-number:]))
        sys.stdout.buffer.flush()
        self.printed = len(found)

    def _next(self) -> list[Record] | None:
        """The next records; None when nothing more is coming."""
        from logbroker_storage.errors import CorruptionError

        wanted = RECORDS_PER_POLL if self._left is None else min(self._left, RECORDS_PER_POLL)
        while True:
            try:
                records = self._consumer.poll(wanted, timeout=self._patience())
            except CorruptionError as error:
                say(f"logbroker: {error}")
                self.damaged = True
                self._consumer.seek(_place(self._consumer, error), error.end_offset)
                continue
            if records or not self._follow:
                return records or None
            if self._timeout is not None:
                self.timed_out = True
                return None

    def _patience(self) -> float | None:
        """How long to wait for records; None: for ever."""
        return self._timeout if self._follow else 0.0

    def _wanted(self, records: list[Record]) -> list[Record]:
        if self._partition is not None:
            records = [record for record in records if record.partition == self._partition]
        ends = self._ends
        if ends and any(record.offset >= ends.get((record.topic, record.partition), 0) for record in records):
            records = [r for r in records if r.offset < ends.get((r.topic, r.partition), 0)]
        return records if self._left is None else records[: self._left]

    def _at_ends(self, records: list[Record]) -> bool:
        """Whether every partition has been read to where it is to end."""
        if not self._ends:
            return False
        positions = _positions(self._consumer, [records[-1].topic])
        return all(offset >= self._ends.get(place, offset) for place, offset in positions.items())


def _place(consumer: Consumer, error: CorruptionError) -> int | Place:
    """The key that ``consumer.seek`` takes for the partition of *error*."""
    return error.partition if error.partition in consumer.position() else (error.topic, error.partition)
