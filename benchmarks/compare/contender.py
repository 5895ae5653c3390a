"""What every product is driven through: a ``Contender`` opens ``Session``s on a folder or a server's address.

A session has only what its product can do; ``Contender.works`` says which works that is.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from pathlib import Path

READY_S = 60.0


class Work(Enum):
    """What is measured."""

    PRODUCE_100 = "produce 100 B"
    PRODUCE_1K = "produce 1 KiB"
    PRODUCE_MIXED = "produce 50 to 150 B"
    DURABLE_1 = "one durable record at a time, 1 thread"
    DURABLE_16 = "one durable record at a time, 16 threads"
    CONSUME_100 = "consume 100 B"
    CONSUME_1K = "consume 1 KiB"
    CONSUME_MIXED = "consume 50 to 150 B"
    TAIL_SAME = "tail latency, same process"
    TAIL_OTHER = "tail latency, other process"
    QUEUE = "queue: receive and accept in batches of 100"
    TRANSFORM = "transform, exactly once"
    RANDOM_OFFSET = "one record by offset, at random"
    RANDOM_TIME = "one record by time, at random"
    OPEN_CLEAN = "open after a clean close"
    OPEN_KILLED = "open after kill -9"

    @property
    def is_one_by_one(self) -> bool:
        """Whether each record is waited for before the next: nobody should linger."""
        return self in (Work.DURABLE_1, Work.DURABLE_16, Work.TAIL_SAME, Work.TAIL_OTHER)


LOG_WORKS = frozenset(
    {
        Work.PRODUCE_100,
        Work.PRODUCE_1K,
        Work.PRODUCE_MIXED,
        Work.DURABLE_1,
        Work.DURABLE_16,
        Work.CONSUME_100,
        Work.CONSUME_1K,
        Work.CONSUME_MIXED,
        Work.TAIL_OTHER,
    }
)


class Session:
    """One user's hold of a product. What is not overridden it cannot do."""

    def produce(self, values: Sequence[bytes]) -> None:
        """Store all of them, in the fastest way there is; as durable as the setting says when it returns."""
        raise NotImplementedError

    def append(self, value: bytes) -> None:
        """Store one; as durable as the setting says when it returns. Called by several threads, each with its own."""
        raise NotImplementedError

    def another(self) -> Session:
        """A session for another thread of this process."""
        return self

    def consume(self, count: int) -> int:
        """Read from the start, each value as bytes, until *count* were read; how many bytes they had."""
        raise NotImplementedError

    def tail(self) -> None:
        """From now on ``next`` gives what is stored from here on."""
        raise NotImplementedError

    def next(self) -> bytes:
        """The next value, waited for."""
        raise NotImplementedError

    def take(self, count: int) -> int:
        """Receive up to *count* messages of the queue and acknowledge them; how many there were."""
        raise NotImplementedError

    def transform(self, count: int) -> None:
        """Read *count* records, and write each, upper-cased, elsewhere, exactly once."""
        raise NotImplementedError

    def read_offset(self, offset: int) -> bytes:
        """The record with this number, counted from 0."""
        raise NotImplementedError

    def read_time(self, timestamp_ms: int) -> bytes:
        """The first record that is not older."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""


class Contender(ABC):
    """A product in one setting."""

    name: str
    works: frozenset[Work]
    chunk = 100_000
    """How many small values ``produce`` is given at once: many for who makes batches, few for who is slow."""

    def missing(self) -> str:
        """Why it cannot be run here; empty when it can."""
        return ""

    def server(self, folder: Path) -> AbstractContextManager[str]:
        """Run the product's server on *folder*; its address. Nothing for a library."""
        return nullcontext("")

    def open(self, folder: Path, address: str, work: Work) -> Session:
        raise NotImplementedError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """The path of a program: beside this interpreter, or wherever the shell would find it; empty if nowhere."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or ""


@contextmanager
def running(
    arguments: Sequence[str], port: int, log: Path, environment: dict[str, str] | None = None
) -> Iterator[int]:
    """A server process in a process group of its own, waited for until it accepts connections; its process id.

    The whole group is killed at the end: these are measurements, nobody needs the data.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
    try:
        _wait_until_it_listens(process, port, log)
        yield process.pid
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself
        process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(
        f"{process.args!r} does not listen on port {port}:\n{log.read_text(errors='replace')[-2000:]}"
    )
