"""``logbroker produce``: one record a line, from a file or stdin, in bounded memory.

With ``--producer NAME`` the line number (from 0) is the record's sequence, and which partition a line goes to
depends on nothing but the line, so running the command again after a crash appends exactly what is missing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Annotated

import typer

from .directory import DataOption, open_broker
from .output import JsonOption, print_json, say

if TYPE_CHECKING:
    from ..broker import Broker
    from ..producer import Producer
    from ..records import Message

READ_BYTES = 1 << 20
LINES_PER_PARTITION = 1000  # keyless lines that go to one partition before the next has its turn


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
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    file: Annotated[
        str, typer.Argument(metavar="[FILE|-]", help="Default: stdin.", show_default=False)
    ] = "-",
    key_separator: Annotated[
        str | None,
        typer.Option("--key-separator", metavar="S", help="What stands before it in a line is the key."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", metavar="K=V", help="A header of every record.")
    ] = None,
    producer: Annotated[
        str | None,
        typer.Option(
            "--producer", metavar="NAME", help="Exactly once: run it again after a crash, and it goes on."
        ),
    ] = None,
    compression: Annotated[
        Compression, typer.Option("--compression", metavar="C", help="gzip, snappy, lz4, zstd.")
    ] = Compression.NONE,
    partition: Annotated[int | None, typer.Option("--partition", metavar="P", min=0)] = None,
    acks: Annotated[Acks, typer.Option("--acks", help="What to wait for.")] = Acks.ALL,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Append each line of FILE to TOPIC (which is created with one partition if it is not there)."""
    lines = _Lines(key_separator, header)
    started = time.monotonic()
    with _source(file) as source, open_broker(data, create=True) as broker:
        _have_topic(broker, topic)
        partitions = len(broker.topic(topic).partitions)
        codec = None if compression is Compression.NONE else compression.value
        with broker.producer(name=producer, acks=acks.value, compression=codec, linger=0.05) as sender:
            chunks = _with_progress(_line_chunks(source), source)
            if producer is None:
                _send(sender, topic, chunks, lines, partition)
            elif partitions == 1 or partition is not None:
                _send_missing(sender, topic, chunks, lines, partition or 0)
            else:
                _send_sequenced(sender, topic, chunks, lines, partitions)
    elapsed = time.monotonic() - started
    if json:
        print_json(
            {"topic": topic, "records": lines.sent, "skipped": lines.skipped, "seconds": round(elapsed, 3)}
        )
    else:
        skipped = f" ({lines.skipped} were there already)" if lines.skipped else ""
        say(f"{lines.sent} records to {topic} in {elapsed:.1f} s{skipped}")


class _Lines:
    """How a line becomes a record, and how many did."""

    def __init__(self, key_separator: str | None, headers: list[str] | None) -> None:
        if key_separator == "":
            raise typer.BadParameter("--key-separator cannot be empty")
        self._separator = key_separator.encode() if key_separator is not None else None
        self._headers = [_header(text) for text in headers or []]
        self.sent = 0
        self.skipped = 0

    @property
    def are_plain(self) -> bool:
        """Whether a line is a value and nothing else."""
        return self._separator is None and not self._headers

    def message(self, line: bytes, partition: int | None = None, sequence: int | None = None) -> Message:
        from ..records import Message

        key, value = None, line
        if self._separator is not None:
            before, separator, after = line.partition(self._separator)
            if separator:
                key, value = before, after
        return Message(value, key, self._headers or None, partition, sequence=sequence)


def _header(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"--header {text!r} is not KEY=VALUE")
    return key, value


def _send(
    sender: Producer, topic: str, chunks: Iterator[list[bytes]], lines: _Lines, partition: int | None
) -> None:
    for chunk in chunks:
        items = chunk if lines.are_plain else list(map(lines.message, chunk))
        lines.sent += sender.send_many(topic, items, partition=partition)


def _send_missing(
    sender: Producer, topic: str, chunks: Iterator[list[bytes]], lines: _Lines, partition: int
) -> None:
    """All lines go to one partition: it has those up to its last sequence, and the rest follows on them."""
    last = sender.last_sequence(topic, partition=partition)
    to_skip = 0 if last is None else last + 1
    for chunk in chunks:
        skipped = min(to_skip, len(chunk))
        to_skip -= skipped
        lines.skipped += skipped
        rest = chunk[skipped:] if skipped else chunk
        items = rest if lines.are_plain else list(map(lines.message, rest))
        lines.sent += sender.send_many(topic, items, partition=partition)


def _send_sequenced(
    sender: Producer, topic: str, chunks: Iterator[list[bytes]], lines: _Lines, partitions: int
) -> None:
    """Each line with its number as its sequence, in the partition that its key or its number gives."""
    from ..partitioner import partition_for_key

    last = [sender.last_sequence(topic, partition=number) for number in range(partitions)]
    following = [0 if sequence is None else sequence + 1 for sequence in last]
    sequence = 0
    for chunk in chunks:
        messages = []
        for line in chunk:
            message = lines.message(line)
            if message.key is None:
                partition = sequence // LINES_PER_PARTITION % partitions
            else:
                partition = partition_for_key(message.key, partitions)
            if sequence >= following[partition]:
                messages.append(lines.message(line, partition, sequence))
            else:
                lines.skipped += 1
            sequence += 1
        lines.sent += sender.send_many(topic, messages)


def _have_topic(broker: Broker, topic: str) -> None:
    if topic not in broker.topics():
        broker.create_topic(topic, exist_ok=True)
        say(f"created topic {topic} with 1 partition")


@contextmanager
def _source(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with open(file, "rb", buffering=0) as source:
        yield source


def _line_chunks(source: IO[bytes]) -> Iterator[list[bytes]]:
    """The lines of *source* without their newlines, many at a time; a last line without one counts."""
    rest = b""
    # read1 gives what a pipe holds now: its lines are not kept back until the buffer is full.
    read = getattr(source, "read1", source.read)
    while block := read(READ_BYTES):
        *lines, rest = (rest + block).split(b"\n") if rest else block.split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


def _with_progress(chunks: Iterator[list[bytes]], source: IO[bytes]) -> Iterator[list[bytes]]:
    """The same chunks, with a progress bar where somebody looks at a terminal."""
    if not sys.stderr.isatty():
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    status = os.fstat(source.fileno())
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=status.st_size or None)
        for chunk in chunks:
            yield chunk
            progress.advance(task, sum(map(len, chunk)) + len(chunk))
