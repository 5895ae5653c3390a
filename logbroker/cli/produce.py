r"""``logbroker produce``: one record a line, from a file or stdin, in bounded memory.

The file is read in blocks; the producer holds back at most its buffer. A line is everything before its
newline, a carriage return included, and the last one counts without a newline too. With ``--producer NAME``
the line number is the record's sequence, so running the command again after a crash appends exactly what is
missing; see ``ingest``.
"""

from __future__ import annotations

import datetime
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from logbroker_storage.standard_streams import say

from .directory import DataOption, open_broker
from .exit_codes import CommandFailed
from .headers import HeaderOption, parse_headers
from .interruption import Interruption
from .lines import LineTooLong, lines_of
from .output import JsonOption, print_json
from .positions import duration_of, parse_moment

if TYPE_CHECKING:
    from ..broker import Broker
    from ..producer import Producer
    from ..records import SendOptions
    from .ingest import Ingest

READ_BYTES = 1 << 20
BATCH_BYTES = 256 * 1024  # 2.3 M lines/s of 100 bytes; with 64 KiB 1.4 M/s
COMPRESSED_LINE_BYTES = 256 << 20  # a longer line is not tried, however well it might compress
GC_THRESHOLD = 100_000  # nothing here makes cycles; looking for them takes a tenth of the time
STDIN = "-"


class Compression(StrEnum):
    """The codecs by their names on the command line."""

    NONE = "none"
    GZIP = "gzip"
    SNAPPY = "snappy"
    LZ4 = "lz4"
    ZSTD = "zstd"


class Acks(StrEnum):
    """What a record is acknowledged after."""

    ALL = "all"
    WRITTEN = "written"
    NONE = "none"


def produce(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    file: Annotated[
        str, typer.Argument(metavar="[FILE|-]", help="Default: stdin.", show_default=False)
    ] = STDIN,
    key_separator: Annotated[
        str | None,
        typer.Option(
            "--key-separator",
            "-K",
            metavar="S",
            help=r"What stands before the first S in a line is the key; \t is a tab.",
        ),
    ] = None,
    header: HeaderOption = None,
    producer: Annotated[
        str | None,
        typer.Option(
            "--producer",
            metavar="NAME",
            help="Exactly once: the line number is the sequence, so that running it again after a crash "
            "appends what is missing. One name for one file, and no partitions added in between.",
        ),
    ] = None,
    compression: Annotated[
        Compression, typer.Option("--compression", "-z", metavar="C", help="gzip, snappy, lz4 or zstd.")
    ] = Compression.NONE,
    partition: Annotated[
        int | None, typer.Option("--partition", "-p", metavar="P", min=0, help="All records go there.")
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl", metavar="DURATION", help="Never deliver the records after it: 90s, 5m, 1h30m …"
        ),
    ] = None,
    deliver_at: Annotated[
        str | None,
        typer.Option(
            "--deliver-at",
            metavar="TIME",
            help="Queues deliver the records then: +10s, 2026-11-23T10:00, @1795480000.",
        ),
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option(
            "--delay", metavar="DURATION", help="Queues deliver each record so long after it was sent."
        ),
    ] = None,
    priority: Annotated[
        int,
        typer.Option("--priority", metavar="N", min=0, max=9, help="Queues deliver higher ones first."),
    ] = 0,
    message_id: Annotated[
        str | None,
        typer.Option(
            "--message-id",
            metavar="TEXT",
            help="Of the records with one id within the topic's deduplication.window.ms the first is appended. "
            "{key}, {value} and {line}, the line's number, are replaced.",
        ),
    ] = None,
    acks: Annotated[
        Acks, typer.Option("--acks", metavar="A", help="all (on the disk), written or none.")
    ] = Acks.ALL,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Append each line of FILE to TOPIC, which is created with one partition if it is not there.

    Ends with a summary on stderr, or with --json on stdout.
    """
    options = _options(ttl=ttl, deliver_at=deliver_at, delay=delay, priority=priority)
    if message_id is not None and producer is not None:
        raise typer.BadParameter("choose one of --producer, which has sequences, and --message-id")
    form = _Form(_key_separator(key_separator), parse_headers(header), message_id, options)
    gc.set_threshold(GC_THRESHOLD)
    started = time.monotonic()
    with _source(file) as source, Interruption() as interruption, open_broker(data, create=True) as broker:
        _have_topic(broker, topic, partition)
        with broker.producer(
            name=producer,
            acks=acks.value,
            compression=None if compression is Compression.NONE else compression.value,
            batch_bytes=BATCH_BYTES,
        ) as sender:
            ingest = form.ingest(broker, sender, topic, partition)
            limit = _line_limit(broker, topic, compression)
            _run(ingest, source, interruption, limit)
        ingest.done.check()  # which of the last lines were duplicates
        seconds = time.monotonic() - started
    _summarise(
        ingest, topic, seconds, json=json, interrupted=interruption.requested, named=producer is not None
    )
    if interruption.requested:
        raise KeyboardInterrupt


# Arguments ------------------------------------------------------------------------------------------------


class _Form:
    """How a line becomes a record."""

    def __init__(
        self,
        key_separator: bytes | None,
        headers: list[tuple[str, bytes]],
        message_id: str | None,
        options: SendOptions,
    ) -> None:
        self.key_separator = key_separator
        self.message_id = message_id
        self.headers = headers or None
        self.options = options

    def ingest(self, broker: Broker, sender: Producer, topic: str, partition: int | None) -> Ingest:
        from .ingest import NamedIngest, PlainIngest, RecordIngest

        partitions = range(len(broker.topic(topic).partitions))
        is_plain = self.key_separator is None and self.headers is None and self.message_id is None
        if not is_plain or self.options:
            return RecordIngest(
                sender,
                topic,
                partition=partition,
                partitions=partitions,
                key_separator=self.key_separator,
                headers=self.headers,
                message_id=self.message_id,
                options=self.options,
            )
        if sender.name is not None:
            return NamedIngest(sender, topic, partitions if partition is None else [partition])
        return PlainIngest(sender, topic, partition)


def _key_separator(text: str | None) -> bytes | None:
    if text == "":
        raise typer.BadParameter("--key-separator cannot be empty")
    return None if text is None else os.fsencode(text.replace("\\t", "\t"))


def _options(*, ttl: str | None, deliver_at: str | None, delay: str | None, priority: int) -> SendOptions:
    """What is said of every record; nothing that was not asked for."""
    options: SendOptions = {}
    if ttl is not None:
        options["ttl"] = duration_of("--ttl", ttl)
    if deliver_at is not None and delay is not None:
        raise typer.BadParameter("choose one of --deliver-at and --delay")
    if deliver_at is not None:
        now = datetime.datetime.now(datetime.UTC)
        options["deliver_at"] = parse_moment(deliver_at, now=now, option="--deliver-at")
    if delay is not None:
        options["delay"] = duration_of("--delay", delay)
    if priority:
        options["priority"] = priority
    return options


def _have_topic(broker: Broker, topic: str, partition: int | None) -> None:
    """See that there are the topic, which is created, and the partition, which is not."""
    from logbroker_storage.errors import TopicNotFoundError

    is_new = topic not in broker.topics()
    count = 1 if is_new else len(broker.topic(topic).partitions)
    if partition is not None and partition >= count:
        raise TopicNotFoundError(topic, partition=partition, partitions=count)
    if is_new:
        broker.create_topic(topic, exist_ok=True)
        say(f"created topic {topic} with 1 partition")


def _line_limit(broker: Broker, topic: str, compression: Compression) -> int:
    """The bytes of a line that could still be a record; a longer one need not be read to its end."""
    description = broker.topic(topic)
    if compression is not Compression.NONE or description.config["compression.type"] not in (
        "producer",
        "uncompressed",
    ):
        return COMPRESSED_LINE_BYTES
    return int(description.config["max.message.bytes"])


# Reading --------------------------------------------------------------------------------------------------


@contextmanager
def _source(file: str) -> Iterator[int]:
    """The file's descriptor."""
    if file == STDIN:
        if sys.stdin.isatty():
            say("one record a line; Ctrl-D ends")
        yield sys.stdin.fileno()
        return
    with open(file, "rb", buffering=0) as source:
        yield source.fileno()


def _run(ingest: Ingest, source: int, interruption: Interruption, line_limit: int) -> None:
    """Hand everything over, until the source ends or Ctrl-C is pressed."""

    def read() -> bytes:
        # Not through a buffer: what a pipe holds now is handed on now.
        with interruption.waiting():
            return os.read(source, READ_BYTES)

    try:
        with _shown_progress(source) as show:
            for lines in lines_of(read, max_line_bytes=line_limit):
                ingest.add(lines)
                show(sum(map(len, lines)) + len(lines))
    except LineTooLong as error:
        raise CommandFailed(
            f"line {ingest.done.lines + 1} has more than {error.max_bytes} bytes, which no record of the topic "
            "may have; see max.message.bytes"
        ) from None
    except KeyboardInterrupt:
        interruption.requested = True


@contextmanager
def _shown_progress(source: int) -> Iterator[Callable[[int], object]]:
    """A bar for somebody who looks at a terminal; call it with the bytes that were done."""
    if not sys.stderr.isatty() or os.isatty(source):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    size_bytes = os.fstat(source).st_size
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=size_bytes or None)
        yield lambda done_bytes: progress.advance(task, done_bytes)


def _summarise(
    ingest: Ingest, topic: str, seconds: float, *, json: bool, interrupted: bool, named: bool
) -> None:
    done = ingest.done
    if json:
        print_json(
            {
                "topic": topic,
                "records": done.records,
                "bytes": done.bytes,
                "skipped": done.skipped,
                "seconds": round(seconds, 3),
                "interrupted": interrupted,
            }
        )
        return
    rate = done.records / max(seconds, 0.001)
    there = f"; {done.skipped:,} lines were there already" if done.skipped else ""
    say(
        f"{done.records:,} records, {done.bytes:,} bytes to {topic} in {seconds:.1f} s ({rate:,.0f}/s){there}"
    )
    if interrupted:
        hint = "the same command goes on from here" if named else "the rest was not sent"
        say(f"interrupted; {hint}")
