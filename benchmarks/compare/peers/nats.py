"""NATS JetStream through nats-py: publishes in flight together, fetches by the hundred, file storage."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..contender import LOG_WORKS, Contender, Session, Work, free_port, program, running

STREAM = "t"
SUBJECT = "t.x"
DURABLE = "workers"
IN_FLIGHT = 1000
FETCH = 1000


class _Session(Session):
    """The client is asyncio's; each session has a loop of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._runner = asyncio.Runner()
        self._runner.run(self._connect())

    async def _connect(self) -> None:
        import nats

        self._connection = await nats.connect(f"nats://{self._address}", pending_size=64 << 20)
        self._stream = self._connection.jetstream(publish_async_max_pending=2 * IN_FLIGHT)
        await self._stream.add_stream(name=STREAM, subjects=[SUBJECT])
        self._pull: Any = None
        self._push: Any = None

    def another(self) -> Session:
        return _Session(self._address)

    def produce(self, values: Sequence[bytes]) -> None:
        self._runner.run(self._produce(values))

    async def _produce(self, values: Sequence[bytes]) -> None:
        for at in range(0, len(values), IN_FLIGHT):
            pending = [
                await self._stream.publish_async(SUBJECT, value) for value in values[at : at + IN_FLIGHT]
            ]
            await asyncio.gather(*pending)

    def append(self, value: bytes) -> None:
        self._runner.run(self._stream.publish(SUBJECT, value))

    def consume(self, count: int) -> int:
        return self._runner.run(self._consume(count))

    async def _consume(self, count: int) -> int:
        subscription = await self._stream.subscribe(
            SUBJECT, ordered_consumer=True, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        size = 0
        for _ in range(count):
            size += len((await subscription.next_msg(timeout=30)).data)
        await subscription.unsubscribe()
        return size

    def tail(self) -> None:
        self._runner.run(self._tail())

    async def _tail(self) -> None:
        from nats.js.api import DeliverPolicy

        self._push = await self._stream.subscribe(
            SUBJECT, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
        )

    def next(self) -> bytes:
        message = self._runner.run(self._push.next_msg(timeout=30))
        return bytes(message.data)

    def take(self, count: int) -> int:
        return self._runner.run(self._take(count))

    async def _take(self, count: int) -> int:
        from nats.errors import TimeoutError as NothingLeft

        if self._pull is None:
            self._pull = await self._stream.pull_subscribe(SUBJECT, durable=DURABLE)
        try:
            messages = await self._pull.fetch(count, timeout=1)
        except NothingLeft:
            return 0
        for message in messages:
            await message.ack()
        await self._connection.flush()
        return len(messages)

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


class Nats(Contender):
    chunk = 10_000

    def __init__(self, *, is_synced: bool) -> None:
        self._is_synced = is_synced
        self.name = f"NATS JetStream, {'synced' if is_synced else 'not synced'}"
        self.works = LOG_WORKS | {Work.QUEUE}
        if not is_synced:
            self.works -= {Work.DURABLE_1, Work.DURABLE_16}

    def missing(self) -> str:
        if not find_spec("nats"):
            return "nats-py is not installed"
        return "" if program("nats-server") else "there is no nats-server"

    @contextmanager
    def server(self, folder: Path) -> Iterator[str]:
        port = free_port()
        settings = folder / "nats.conf"
        sync = "sync_interval: always" if self._is_synced else ""
        settings.write_text(
            f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/nats"\n {sync} }}\n',
            encoding="utf-8",
        )
        with running([program("nats-server"), "-c", str(settings)], port, folder / "server.log"):
            yield f"127.0.0.1:{port}"

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return _Session(address)


CONTENDERS = [Nats(is_synced=True), Nats(is_synced=False)]
