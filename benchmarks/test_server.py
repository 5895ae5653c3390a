"""``logbroker serve`` beside its clients' own ceilings, in one run.

benchmark   client                                             its ceiling
produce     one confluent-kafka producer, acks=all             the same against librdkafka's mock broker, which
                                                               keeps nothing
fetch       a loop of Fetch requests over a plain socket       the same loop against a process that reads the
                                                               file and sends it, and does nothing else
"""

from __future__ import annotations

import datetime
import io
import os
import socket
import statistics
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Producer
from kio.schema.fetch.v12.request import FetchPartition, FetchRequest, FetchTopic
from kio.serial import entity_writer

from logbroker_storage.record_batch import HEADER_BYTES, MAGIC, read_header

from .conftest import seconds

ROUNDS = 5
FETCH_BYTES = 1 << 20
STORED_BYTES = 200 << 20
FETCHED_BYTES = 512 << 20  # a round
BUFFER_BYTES = 16 << 20
LENGTH = struct.Struct(">i")
QUEUE: dict[str, str | int] = {
    "queue.buffering.max.messages": 10_000_000,
    "queue.buffering.max.kbytes": 2_000_000,
    "acks": "all",
    "linger.ms": 5,
}


class Served(NamedTuple):
    """A server in a process of its own."""

    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """What it has used until now, in user space and in the kernel. Linux only."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_server(data: Path) -> Iterator[Served]:
    """A server on *data*."""
    command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(data), "serve"]
    command += ["--listen", "127.0.0.1:0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().removeprefix("listening on ").strip()
        yield Served(address, process.pid)
        process.terminate()


def produced(settings: dict[str, str | int], topic: str, value: bytes, records: int) -> float:
    """Records a second, from the first ``produce`` to the last acknowledgement."""
    producer = Producer(QUEUE | settings)
    producer.list_topics(topic, timeout=10)

    def work() -> None:
        for _ in range(records):
            producer.produce(topic, value)
        assert producer.flush(60) == 0

    return records / seconds(work)


@pytest.mark.parametrize("value_bytes", [100, 1024])
def test_produce_over_the_network(benchmark: Any, tmp_path: Path, records: int, value_bytes: int) -> None:
    value = b"x" * value_bytes
    count = min(records, 500_000 * 100 // value_bytes)
    mine: list[float] = []
    ceiling: list[float] = []
    with running_server(tmp_path / "data") as server:

        def in_turn() -> None:
            mine.append(produced({"bootstrap.servers": server.address}, "t", value, count))
            mock: dict[str, str | int] = {"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 2}
            ceiling.append(produced(mock, "t", value, count))

        benchmark.pedantic(in_turn, rounds=ROUNDS)
    benchmark.extra_info["records_per_s"] = round(statistics.median(mine))
    benchmark.extra_info["clients_ceiling_records_per_s"] = round(statistics.median(ceiling))
    ratios = [ours / client for ours, client in zip(mine, ceiling, strict=True)]
    benchmark.extra_info["ratio_to_clients_ceiling"] = round(statistics.median(ratios), 2)


# Fetching ---------------------------------------------------------------------------------------------------


class Fetcher:
    """Asks for the partition over and over, and takes the bytes without a look at them."""

    def __init__(self, address: str, request_of: Callable[[int], bytes]) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._request_of = request_of

    def take(self, offset: int) -> int:
        """Ask for what begins at *offset*; the bytes of the answer."""
        self._socket.sendall(self._request_of(offset))
        self._receive(LENGTH.size)
        (size,) = LENGTH.unpack_from(self._buffer)
        self._receive(size)
        return int(size)

    def _receive(self, size: int) -> None:
        done = 0
        while done < size:
            received = self._socket.recv_into(self._buffer[done:size])
            assert received, "the connection was closed"
            done += received

    def take_all(self, offsets: list[int]) -> float:
        """Gigabytes a second."""
        taken = 0

        def work() -> None:
            nonlocal taken
            while taken < FETCHED_BYTES:
                for offset in offsets:
                    taken += self.take(offset)

        elapsed = seconds(work)
        return taken / elapsed / 1e9

    def close(self) -> None:
        self._socket.close()


def fetch_request(offset: int) -> bytes:
    partition = FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=FETCH_BYTES)  # type: ignore[arg-type]
    body = FetchRequest(
        max_wait=datetime.timedelta(0),  # type: ignore[arg-type]
        min_bytes=1,  # type: ignore[arg-type]
        max_bytes=FETCH_BYTES,  # type: ignore[arg-type]
        topics=(FetchTopic(topic="t", partitions=(partition,)),),  # type: ignore[arg-type]
        forgotten_topics_data=(),
    )
    kind = FetchRequest.__header_schema__
    header = kind(request_api_key=1, request_api_version=12, correlation_id=1, client_id="bench")  # type: ignore[arg-type]
    buffer = io.BytesIO()
    entity_writer(kind)(buffer, header)
    entity_writer(FetchRequest)(buffer, body)
    return LENGTH.pack(buffer.tell()) + buffer.getvalue()


def places(log: bytes) -> list[int]:
    """The offsets that a client asks for one after the other, who reads *log* in pieces of ``FETCH_BYTES``."""
    offsets: list[int] = []
    position, end = 0, -1
    while position + HEADER_BYTES <= len(log) and log[position + 16] == MAGIC:
        header = read_header(memoryview(log)[position : position + HEADER_BYTES])
        if position + header.size_bytes > end:
            offsets.append(header.base_offset)
            end = position + FETCH_BYTES
        position += header.size_bytes
    return offsets


@contextmanager
def plain_sender(path: Path) -> Iterator[str]:
    """A process that answers each 4 bytes with so many bytes of the file, behind their length."""
    listening = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = os.open(path, os.O_RDONLY)
        while asked := connection.recv(LENGTH.size):
            (size,) = LENGTH.unpack(asked)
            connection.sendall(asked + os.pread(fd, size, 0))
        os._exit(0)
    host, port = listening.getsockname()
    listening.close()
    yield f"{host}:{port}"
    os.waitpid(child, 0)


@pytest.mark.parametrize("value_bytes", [100, 1024, 10 * 1024])
def test_fetch_over_the_network(benchmark: Any, tmp_path: Path, value_bytes: int) -> None:
    """What a fetched byte costs the server does not depend on how small the records are: it goes by batches."""
    mine: list[float] = []
    ceiling: list[float] = []
    cpu_s: list[float] = []
    count = STORED_BYTES // value_bytes
    with running_server(tmp_path / "data") as server:
        settings: dict[str, str | int] = {"bootstrap.servers": server.address, "linger.ms": 50}
        produced(settings, "t", b"x" * value_bytes, count)
        (segment,) = (tmp_path / "data" / "logs" / "t-0").glob("*.log")
        with plain_sender(segment) as sender:
            served = Fetcher(server.address, fetch_request)
            plain = Fetcher(sender, LENGTH.pack)
            offsets = places(segment.read_bytes())[:-2]
            whole = [FETCH_BYTES] * len(offsets)

            def in_turn() -> None:
                before = server.cpu_seconds()
                mine.append(served.take_all(offsets))
                cpu_s.append(server.cpu_seconds() - before)
                ceiling.append(plain.take_all(whole))

            benchmark.pedantic(in_turn, rounds=ROUNDS, warmup_rounds=1)
            served.close()
            plain.close()
    benchmark.extra_info["gigabytes_per_s"] = round(statistics.median(mine), 2)
    benchmark.extra_info["clients_ceiling_gigabytes_per_s"] = round(statistics.median(ceiling), 2)
    benchmark.extra_info["cpu_ms_per_gigabyte"] = round(statistics.median(cpu_s) / FETCHED_BYTES * 1e12)
