"""``logbroker bench``: how fast this disk and this machine are, and what logbroker makes of them.

Each line stands beside the least that any program would have to do for the same promise: a bare write, with or
without ``fdatasync``. The two run in turn, in slices, so that a disk that is busy for a moment is busy for both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from logbroker_storage.standard_streams import say

from .directory import DataOption, data_directory
from .output import JsonOption, Table, print_json, print_tables

if TYPE_CHECKING:
    from ..broker import Broker
    from ..producer import Producer

RECORD_BYTES = 100
LARGE_BYTES = 1024
BATCH_BYTES = 177  # of one record of 100 bytes as the log holds it
SYNCED = "synced"
CACHED = "cached"
THREADS = 16
SLICES = 5
CHUNK = 20_000
BLOCK_BYTES = 1 << 20

Round = Callable[[], int]
"""Does some of a work; how many records that were."""


@dataclass(frozen=True)
class Figure:
    """One line of the table: rates in records per second."""

    work: str
    records_per_s: int
    bare_records_per_s: int
    """Of the same bytes in bare writes, with as many syncs where the work is synced; of one thread."""

    @property
    def share(self) -> str:
        return f"{self.records_per_s / self.bare_records_per_s:.2f}"


def bench(
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, metavar="S", help="For each line.")] = 2.0,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Measure this machine's disk, and logbroker on it.

    In a temporary directory beside the data directory, on the same disk; the data itself is not touched.
    """
    import tempfile

    import logbroker
    from logbroker_storage.record_twin import IS_COMPILED

    codec = "compiled" if IS_COMPILED else "plain Python"
    parent = os.path.dirname(os.path.abspath(data_directory(data)))
    with tempfile.TemporaryDirectory(prefix="logbroker-bench-", dir=parent) as folder:
        say(f"measuring in {folder}, about {4 * seconds:.0f} s; the record codec is {codec}")
        with logbroker.open(os.path.join(folder, "data")) as broker:
            broker.create_topic(SYNCED)
            broker.create_topic(CACHED, config={"durability": "os"})
            figures = _measure(broker, os.path.join(folder, "bare"), seconds)
    if as_json:
        print_json([asdict(figure) for figure in figures])
        return
    rows = [(f.work, f.records_per_s, f.bare_records_per_s, f.share) for f in figures]
    print_tables(Table("bench", ("work", "records/s", "bare writes: records/s", "ratio"), rows))


def _measure(broker: Broker, bare_path: str, seconds: float) -> list[Figure]:
    fd = os.open(bare_path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with broker.producer(linger=0) as producer:
            bare = _Bare(fd)
            one = _one_by_one(producer)
            return [
                _in_turn("one durable record at a time", one, bare.synced_record, seconds),
                _in_turn(
                    f"the same, {THREADS} threads", lambda: _by_threads(producer), bare.synced_record, seconds
                ),
                *_bulk(producer, bare, seconds),
            ]
    finally:
        os.close(fd)


def _bulk(producer: Producer, bare: _Bare, seconds: float) -> list[Figure]:
    def send_many(size: int) -> Round:
        values = [b"x" * size] * CHUNK

        def send() -> int:
            producer.send_many(CACHED, values)
            producer.flush()
            return CHUNK

        return send

    return [
        _in_turn("send_many 100 B, page cache", send_many(RECORD_BYTES), bare.writes(RECORD_BYTES), seconds),
        _in_turn("send_many 1 KiB, page cache", send_many(LARGE_BYTES), bare.writes(LARGE_BYTES), seconds),
    ]


def _one_by_one(producer: Producer) -> Round:
    value = b"x" * RECORD_BYTES

    def send() -> int:
        producer.send(SYNCED, value).result()
        return 1

    return send


def _by_threads(producer: Producer) -> int:
    send = _one_by_one(producer)

    def some() -> None:
        for _ in range(THREADS):
            send()

    # What fails in a thread is raised here, and Ctrl-C waits for them all: they need the producer open.
    with ThreadPoolExecutor(THREADS) as threads:
        for sending in [threads.submit(some) for _ in range(THREADS)]:
            sending.result()
    return THREADS * THREADS


class _Bare:
    """Writes to a plain file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = 0

    def synced_record(self) -> int:
        self._write(b"x" * BATCH_BYTES)
        # macOS has no fdatasync; its fsync stops at the drive's cache, so there the bare rate flatters the disk
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._fd)
        return 1

    def writes(self, size: int) -> Round:
        block = b"x" * BLOCK_BYTES

        def write() -> int:
            self._write(block)
            return BLOCK_BYTES // size

        return write

    def _write(self, data: bytes) -> None:
        self._position += os.pwrite(self._fd, data, self._position)


def _in_turn(work: str, ours: Round, bare: Round, seconds: float) -> Figure:
    ours()
    bare()
    counts, times = [0, 0], [0.0, 0.0]
    for number in range(2 * SLICES):
        which = number % 2
        began = time.perf_counter()
        deadline = began + seconds / (2 * SLICES)
        while time.perf_counter() < deadline:
            counts[which] += (ours, bare)[which]()
        times[which] += time.perf_counter() - began
    return Figure(work, *(round(count / elapsed) for count, elapsed in zip(counts, times, strict=True)))
