"""Lines into a topic: which partition and sequence each has, and handing them to a producer.

    ingest       for                                      a line's partition           sequence
    plain        no --producer                            the producer's choice        -
    named        --producer, lines are values             line // 1000 % partitions    line number
    records      more than a value, with or without a     the key's; else as above     line number
                   name; with --message-id without one      or the producer's choice     -

Line numbers count from 0. With a name nothing but the line decides where it goes, so whoever comes after a
crash can tell, from each partition's last sequence alone, which lines are missing. That holds as long as
the number of partitions stays: ``check_placement`` finds out where it did not.

Lines without a key go to a partition a thousand at a time, because a stretch of consecutive sequences is
one bulk call: its first line brings its number, and the producer counts on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from logbroker_storage.errors import InvalidRequestError, RecordTooLargeError

from ..partitioner import partition_for_key
from .exit_codes import CommandFailed

if TYPE_CHECKING:
    from ..producer import Producer
    from ..receipts import Receipt
    from ..records import HeadersArgument, SendOptions

LINES_PER_STRETCH = 1000
NEVER_WROTE = -1
FORMAT_BYTES = 128  # more than the format adds to a line


class Stretch(NamedTuple):
    """Consecutive lines of one partition."""

    first_line: int
    partition: int
    lines: Sequence[bytes]


def partition_of_line(line: int, partitions: Sequence[int]) -> int:
    """Where the line with this number goes, if it has no key."""
    return partitions[line // LINES_PER_STRETCH % len(partitions)]


def stretches(first_line: int, lines: Sequence[bytes], partitions: Sequence[int]) -> Iterator[Stretch]:
    """*lines*, which begin with the number *first_line*, cut where the partition changes."""
    if len(partitions) == 1:
        yield Stretch(first_line, partitions[0], lines)
        return
    begin = 0
    while begin < len(lines):
        line = first_line + begin
        end = begin + LINES_PER_STRETCH - line % LINES_PER_STRETCH
        yield Stretch(line, partition_of_line(line, partitions), lines[begin:end])
        begin = end


class Progress:
    """How far an ingest is, and the receipts that tell early that it fails."""

    def __init__(self) -> None:
        self.lines = 0  # that were read
        self.records = 0  # that were handed over
        self.bytes = 0  # of those
        self.skipped = 0  # that were there already
        self._receipts: deque[tuple[Receipt, int]] = deque()  # with the bytes of a line, or without

    def sent(self, lines: Sequence[bytes], receipt: Receipt) -> None:
        """*lines* were handed over, and *receipt* is one of theirs."""
        self.records += len(lines)
        self.bytes += sum(map(len, lines))
        self._receipts.append((receipt, len(lines[0]) if len(lines) == 1 else 0))

    def check(self) -> None:
        """Raise what made one of the receipts fail, without waiting for any; see which were duplicates."""
        while self._receipts and self._receipts[0][0].done:
            receipt, size_bytes = self._receipts.popleft()
            error = receipt.exception
            if error is not None:
                raise error
            if receipt.result().duplicate:
                self.records -= 1
                self.bytes -= size_bytes
                self.skipped += 1


class Ingest(Protocol):
    """Takes the lines of one file, in order."""

    done: Progress

    def add(self, lines: Sequence[bytes]) -> None:
        """Hand over the next lines.

        Raises:
            CommandFailed: a line cannot be a record; its number is named.
            LogbrokerError: as the producer's ``send``.
        """


class PlainIngest:
    """Values, wherever the producer puts them, or into one partition."""

    def __init__(self, producer: Producer, topic: str, partition: int | None) -> None:
        self.done = Progress()
        self._producer = producer
        self._topic = topic
        self._partition = partition

    def add(self, lines: Sequence[bytes]) -> None:
        self.done.check()
        try:
            receipt = self._producer.send(self._topic, lines[0], partition=self._partition)
            self._producer.send_many(self._topic, lines[1:], partition=self._partition)
        except RecordTooLargeError as error:
            raise _too_large(self.done.lines, lines, error) from error
        self.done.lines += len(lines)
        self.done.sent(lines, receipt)


class NamedIngest:
    """Values under a producer's name: those lines that their partition does not have yet."""

    def __init__(self, producer: Producer, topic: str, partitions: Sequence[int]) -> None:
        """*partitions* are all that lines may go to.

        Raises:
            CommandFailed: see ``check_placement``.
        """
        self.done = Progress()
        self._producer = producer
        self._topic = topic
        self._partitions = partitions
        self._last = last_sequences(producer, topic, partitions)
        check_placement(producer.name, self._last, partitions)

    def add(self, lines: Sequence[bytes]) -> None:
        self.done.check()
        for stretch in stretches(self.done.lines, lines, self._partitions):
            there = self._last[stretch.partition] + 1 - stretch.first_line
            skipped = min(max(0, there), len(stretch.lines))
            self.done.skipped += skipped
            if skipped < len(stretch.lines):
                self._send(stretch.first_line + skipped, stretch.partition, stretch.lines[skipped:])
        self.done.lines += len(lines)

    def _send(self, line: int, partition: int, lines: Sequence[bytes]) -> None:
        try:
            receipt = self._producer.send(self._topic, lines[0], partition=partition, sequence=line)
            self._producer.send_many(self._topic, lines[1:], partition=partition)
        except RecordTooLargeError as error:
            raise _too_large(line, lines, error) from error
        self.done.sent(lines, receipt)


class RecordIngest:
    """Lines with keys, or records of which more is said: headers, a time to live, …"""

    def __init__(
        self,
        producer: Producer,
        topic: str,
        *,
        partition: int | None,
        partitions: Sequence[int],
        key_separator: bytes | None,
        headers: HeadersArgument | None,
        message_id: str | None,
        options: SendOptions,
    ) -> None:
        """*partition*: all go there. *partitions*: of the topic. *headers*, *options*: of every record.

        *message_id*: each record's, with ``{key}``, ``{value}`` and ``{line}``, the number of the line from 1 on.
        """
        self.done = Progress()
        self._producer = producer
        self._topic = topic
        self._partition = partition
        self._partitions = partitions if partition is None else [partition]
        self._key_separator = key_separator
        self._headers = headers
        self._message_id = message_id
        self._options = options
        self._last: dict[int, int] = {}
        if producer.name is not None:
            self._last = last_sequences(producer, topic, self._partitions)
            if key_separator is None:
                check_placement(producer.name, self._last, self._partitions)

    def add(self, lines: Sequence[bytes]) -> None:
        self.done.check()
        receipt: Receipt | None = None
        sent: list[bytes] = []
        for number, line in enumerate(lines, self.done.lines):
            key, value = self._split(line)
            partition, sequence = self._partition, None
            if self._last:
                partition, sequence = self._partition_of(number, key), number
                if sequence <= self._last[partition]:
                    self.done.skipped += 1
                    continue
            message_id = None if self._message_id is None else self._id_of(number, key, value)
            try:
                receipt = self._send(value, key, partition, sequence, message_id)
            except (RecordTooLargeError, InvalidRequestError) as error:
                raise CommandFailed(f"line {number + 1}: {error}") from error
            if message_id is not None:
                self.done.sent([line], receipt)  # each of them may be a duplicate
                receipt = None
            sent.append(line)
        self.done.lines += len(lines)
        if receipt is not None:
            self.done.sent(sent, receipt)

    def _id_of(self, number: int, key: bytes | None, value: bytes) -> str:
        template = self._message_id or ""
        try:
            return (
                template.replace("{line}", str(number + 1))
                .replace("{key}", (key or b"").decode())
                .replace("{value}", value.decode())
            )
        except UnicodeDecodeError as error:
            raise CommandFailed(
                f"line {number + 1} gives no message id: it is not UTF-8 ({error})"
            ) from error

    def _send(
        self,
        value: bytes,
        key: bytes | None,
        partition: int | None,
        sequence: int | None,
        message_id: str | None,
    ) -> Receipt:
        options = self._options
        if partition is not None or message_id is not None:
            options = {**options, "partition": partition, "sequence": sequence, "message_id": message_id}
        return self._producer.send(self._topic, value, key, self._headers, **options)

    def _split(self, line: bytes) -> tuple[bytes | None, bytes]:
        """Key and value; a line without the separator is all value."""
        if self._key_separator is None:
            return None, line
        key, separator, value = line.partition(self._key_separator)
        return (key, value) if separator else (None, line)

    def _partition_of(self, number: int, key: bytes | None) -> int:
        if key is None or len(self._partitions) == 1:
            return partition_of_line(number, self._partitions)
        return partition_for_key(key, len(self._partitions))


def last_sequences(producer: Producer, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """The number of the last line that each partition has of this producer's name."""
    found = {partition: producer.last_sequence(topic, partition) for partition in partitions}
    return {partition: NEVER_WROTE if last is None else last for partition, last in found.items()}


def check_placement(name: str | None, last: Mapping[int, int], partitions: Sequence[int]) -> None:
    """See that lines without keys were placed as they would be now.

    Raises:
        CommandFailed: a partition has a line that belongs to another one.
    """
    for partition, line in last.items():
        if line != NEVER_WROTE and partition_of_line(line, partitions) != partition:
            raise CommandFailed(
                f"producer {name!r} wrote line {line + 1} to partition {partition}, where it would not go now: "
                "it wrote something else, or partitions were added since; another --producer name begins anew"
            )


def _too_large(first_line: int, lines: Sequence[bytes], error: RecordTooLargeError) -> CommandFailed:
    """Name the line; the producer only tells its size."""
    for number, line in enumerate(lines, first_line + 1):
        if len(line) + FORMAT_BYTES >= error.size_bytes:
            return CommandFailed(f"line {number}: {error}")
    return CommandFailed(str(error))
