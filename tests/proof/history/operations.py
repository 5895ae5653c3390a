"""What clients did, and what they were told: lines that they write as they go, and the operations these make.

A client appends a line to a file of its own before it does something and another when it knows the outcome, so that
what a killed one did not live to tell is told by what is missing:

    line                    written             without the line behind it
    Sending · Sent          before · after      the record was written, or is yet to be, or is not
    Ending · Ended          before · after      the transaction is committed, or is not (an abort: it is not)
    Committing · Committed  before · after      the offsets are committed, or not
    Opened, Placed, Dropped, Polled             (what a consumer reads from, and got)
    Looked                                      (the committed offsets that it was told)

Times are of the machine's monotonic clock, the same in all processes: an operation was going on somewhere between
its two. A value is ``client number`` and is sent once.
"""

from __future__ import annotations

import enum
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

Place = str  # "topic-partition"
NEVER_NS = 1 << 62  # an operation whose end nobody saw
NO_OFFSET = -1


class Outcome(enum.Enum):
    OK = "ok"
    FAILED = "failed"  # it has no effect, now or later
    UNKNOWN = "unknown"  # it has had its effect, or will have it, or not


class Isolation(enum.Enum):
    COMMITTED = "read_committed"
    UNCOMMITTED = "read_uncommitted"


# Lines ----------------------------------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True, tag=True, array_like=True):
    at_ns: int


class Sending(Line, frozen=True):
    number: int
    place: Place
    transaction: int | None = None
    source: tuple[Place, int] | None = None
    """The record that this one was made from."""
    is_once: bool = True
    """Whether its producer is idempotent: it may not be in the log twice, nor out of order."""


class Sent(Line, frozen=True):
    number: int
    outcome: Outcome
    offset: int | None = None
    error: str = ""


class Ending(Line, frozen=True):
    transaction: int
    is_commit: bool
    group: str = ""
    offsets: dict[Place, int] = {}
    """What the transaction commits for *group*."""


class Ended(Line, frozen=True):
    transaction: int
    outcome: Outcome
    error: str = ""


class Opened(Line, frozen=True):
    isolation: Isolation
    group: str = ""


class Placed(Line, frozen=True):
    """The consumer reads on from these offsets."""

    offsets: dict[Place, int]


class Dropped(Line, frozen=True):
    places: list[Place]


class Polled(Line, frozen=True):
    records: dict[Place, list[tuple[int, str]]]


class Committing(Line, frozen=True):
    number: int
    offsets: dict[Place, int]


class Committed(Line, frozen=True):
    number: int
    outcome: Outcome
    error: str = ""


class Looked(Line, frozen=True):
    begun_ns: int
    offsets: dict[Place, int]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(
    Sending | Sent | Ending | Ended | Opened | Placed | Dropped | Polled | Committing | Committed | Looked
)


class Recorder:
    """Writes one client's lines. What was written stays, however the process ends."""

    def __init__(self, folder: Path, client: str) -> None:
        self.client = client
        self._file = os.open(
            folder / f"{client}.lines", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600
        )

    @classmethod
    def of_new_client(cls, folder: Path, name: str) -> Recorder:
        """Of the next client that a process called *name* has."""
        for number in itertools.count():
            try:
                return cls(folder, f"{name}.{number}")
            except FileExistsError:
                continue
        raise AssertionError("numbers do not end")

    def write(self, *lines: Line) -> None:
        encoded = _encoder.encode_lines(lines)
        while encoded:
            encoded = encoded[os.write(self._file, encoded) :]

    def value(self, number: int) -> str:
        return f"{self.client} {number}"

    def close(self) -> None:
        os.close(self._file)


now_ns = time.monotonic_ns


# Operations -----------------------------------------------------------------------------------------------


class Send(NamedTuple):
    client: str
    number: int
    place: Place
    begun_ns: int
    ended_ns: int = NEVER_NS
    outcome: Outcome = Outcome.UNKNOWN
    offset: int | None = None
    error: str = ""
    transaction: str | None = None
    source: tuple[Place, int] | None = None
    is_once: bool = True

    @property
    def value(self) -> str:
        return f"{self.client} {self.number}"


class Transaction(NamedTuple):
    """One that was begun; what is committed is decided by its end."""

    name: str
    begun_ns: int = NEVER_NS
    """When its end was asked for."""
    ended_ns: int = NEVER_NS
    is_commit: bool = False
    outcome: Outcome = Outcome.UNKNOWN
    error: str = ""

    @property
    def is_committed(self) -> bool:
        return self.is_commit and self.outcome is Outcome.OK

    @property
    def may_be_committed(self) -> bool:
        return self.is_commit and self.outcome is not Outcome.FAILED


class Commit(NamedTuple):
    """Offsets that a group goes on from."""

    client: str
    group: str
    offsets: Mapping[Place, int]
    begun_ns: int
    ended_ns: int = NEVER_NS
    outcome: Outcome = Outcome.UNKNOWN


class Look(NamedTuple):
    client: str
    group: str
    offsets: Mapping[Place, int]
    begun_ns: int
    ended_ns: int


class Reader(NamedTuple):
    """One consumer, and what happened to it, in order."""

    client: str
    isolation: Isolation
    group: str
    steps: Sequence[Placed | Dropped | Polled]


class History(NamedTuple):
    sends: Mapping[str, Send] = {}
    """By value."""
    transactions: Mapping[str, Transaction] = {}
    readers: Sequence[Reader] = ()
    commits: Sequence[Commit] = ()
    looks: Sequence[Look] = ()

    @property
    def size(self) -> int:
        """How many operations there are."""
        steps = sum(len(reader.steps) for reader in self.readers)
        return len(self.sends) + len(self.transactions) + steps + len(self.commits) + len(self.looks)


class FinalRead(NamedTuple):
    """A whole log, as somebody read it when all was over."""

    reader: str
    isolation: Isolation
    records: Mapping[Place, Sequence[tuple[int, str]]]


# From lines to operations ---------------------------------------------------------------------------------


def read_history(folder: Path) -> History:
    """The operations of all clients that wrote to *folder*."""
    clients = [_Client(path.stem, _lines(path.read_bytes())) for path in sorted(folder.glob("*.lines"))]
    return History(
        {send.value: send for client in clients for send in client.sends.values()},
        {found.name: found for client in clients for found in client.transactions.values()},
        [client.reader for client in clients if client.reader is not None],
        [commit for client in clients for commit in client.commits.values()],
        [look for client in clients for look in client.looks],
    )


def _lines(written: bytes) -> Iterator[Line]:
    whole, _, _ = written.rpartition(b"\n")  # the last line of one that was killed may be torn
    return (_decoder.decode(line) for line in whole.splitlines())


class _Client:
    """What one client's lines come to."""

    def __init__(self, name: str, lines: Iterator[Line]) -> None:
        self.name = name
        self.sends: dict[int, Send] = {}
        self.transactions: dict[int, Transaction] = {}
        self.commits: dict[tuple[str, int], Commit] = {}
        self.looks: list[Look] = []
        self.reader: Reader | None = None
        self._steps: list[Any] = []
        for line in lines:
            self._take(line)

    def _take(self, line: Line) -> None:
        match line:
            case Sending():
                transaction = None
                if line.transaction is not None:
                    transaction = f"{self.name}/{line.transaction}"
                    self.transactions.setdefault(line.transaction, Transaction(transaction))
                self.sends[line.number] = Send(
                    self.name,
                    line.number,
                    line.place,
                    line.at_ns,
                    transaction=transaction,
                    source=line.source,
                    is_once=line.is_once,
                )
            case Sent():
                self.sends[line.number] = self.sends[line.number]._replace(
                    ended_ns=line.at_ns, outcome=line.outcome, offset=line.offset, error=line.error
                )
            case Ending():
                self._end(line)
            case Ended():
                self._ended(line)
            case Opened():
                self.reader = Reader(self.name, line.isolation, line.group, self._steps)
            case Placed() | Dropped() | Polled():
                self._steps.append(line)
            case Committing():
                assert self.reader is not None
                self.commits["", line.number] = Commit(self.name, self.reader.group, line.offsets, line.at_ns)
            case Committed():
                before = self.commits["", line.number]
                self.commits["", line.number] = before._replace(ended_ns=line.at_ns, outcome=line.outcome)
            case Looked():
                assert self.reader is not None
                self.looks.append(Look(self.name, self.reader.group, line.offsets, line.begun_ns, line.at_ns))

    def _end(self, line: Ending) -> None:
        before = self.transactions.get(line.transaction, Transaction(f"{self.name}/{line.transaction}"))
        self.transactions[line.transaction] = before._replace(begun_ns=line.at_ns, is_commit=line.is_commit)
        if line.is_commit and line.offsets:
            commit = Commit(self.name, line.group, line.offsets, line.at_ns)
            self.commits["transaction", line.transaction] = commit

    def _ended(self, line: Ended) -> None:
        before = self.transactions.get(line.transaction, Transaction(f"{self.name}/{line.transaction}"))
        self.transactions[line.transaction] = before._replace(
            ended_ns=line.at_ns, outcome=line.outcome, error=line.error
        )
        key = ("transaction", line.transaction)
        if before.is_commit and key in self.commits:
            self.commits[key] = self.commits[key]._replace(ended_ns=line.at_ns, outcome=line.outcome)
