"""Redis streams through redis-py, pipelined, with an append-only file that is synced always or every second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..contender import LOG_WORKS, Contender, Session, Work, free_port, program, running

STREAM = "t"
GROUP = "workers"
PIPELINE = 1000


class _Session(Session):
    def __init__(self, address: str, work: Work) -> None:
        import redis

        self._address = address
        host, _, port = address.rpartition(":")
        self._redis: Any = redis.Redis(host, int(port))
        self._last: Any = "0"
        if work is Work.QUEUE:
            try:
                self._redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
            except redis.ResponseError:
                pass  # another session made it

    def another(self) -> Session:
        return _Session(self._address, Work.DURABLE_16)

    def produce(self, values: Sequence[bytes]) -> None:
        for at in range(0, len(values), PIPELINE):
            pipeline = self._redis.pipeline(transaction=False)
            for value in values[at : at + PIPELINE]:
                pipeline.xadd(STREAM, {b"v": value})
            pipeline.execute()

    def append(self, value: bytes) -> None:
        self._redis.xadd(STREAM, {b"v": value})

    def consume(self, count: int) -> int:
        size, last = 0, b"0"
        while count > 0:
            ((_, entries),) = self._redis.xread({STREAM: last}, count=min(count, 10_000))
            size += sum(len(fields[b"v"]) for _, fields in entries)
            last = entries[-1][0]
            count -= len(entries)
        return size

    def tail(self) -> None:
        self._last = (
            self._redis.xinfo_stream(STREAM)["last-generated-id"] if self._redis.exists(STREAM) else "0"
        )

    def next(self) -> bytes:
        ((_, ((self._last, fields),)),) = self._redis.xread({STREAM: self._last}, count=1, block=0)
        return bytes(fields[b"v"])

    def take(self, count: int) -> int:
        answer = self._redis.xreadgroup(GROUP, "me", {STREAM: ">"}, count=count)
        if not answer:
            return 0
        ((_, entries),) = answer
        self._redis.xack(STREAM, GROUP, *(number for number, _ in entries))
        return len(entries)

    def close(self) -> None:
        self._redis.close()


class Redis(Contender):
    chunk = 20_000

    def __init__(self, fsync: str) -> None:
        self._fsync = fsync
        self.name = f"Redis streams, AOF {fsync}"
        self.works = LOG_WORKS | {Work.QUEUE}
        if fsync != "always":
            self.works -= {Work.DURABLE_1, Work.DURABLE_16}

    def missing(self) -> str:
        if not find_spec("redis"):
            return "redis is not installed"
        return "" if program("redis-server") else "there is no redis-server"

    @contextmanager
    def server(self, folder: Path) -> Iterator[str]:
        port = free_port()
        arguments = [
            program("redis-server"),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
        ]
        arguments += ["--appendonly", "yes", "--appendfsync", self._fsync, "--save", ""]
        with running(arguments, port, folder / "server.log"):
            yield f"127.0.0.1:{port}"

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return _Session(address, work)


CONTENDERS = [Redis("always"), Redis("everysec")]
