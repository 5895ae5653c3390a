"""RabbitMQ, as Debian packages it: a stream (through rstream) and a quorum queue (through pika).

A quorum queue syncs its log before it confirms; a stream leaves that to the kernel.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..contender import Contender, Session, Work, free_port, program, running

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # not the wrapper in the path, which changes the user
QUEUE = "t"
LOGIN = "guest"


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """A node of its own, with its own port mapper; the ports of AMQP and of streams, joined by a colon."""
    amqp, stream, distribution, mapper = (free_port() for _ in range(4))
    (folder / "plugins").write_text("[rabbitmq_stream].\n", encoding="utf-8")
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{amqp}\nstream.listeners.tcp.1 = 127.0.0.1:{stream}\n", encoding="utf-8"
    )
    environment = {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_NODENAME": "compare@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    try:
        with running([str(SERVER)], stream, folder / "server.log", environment):
            yield f"{amqp}:{stream}"
    finally:
        _stop_mapper(mapper)


def _stop_mapper(port: int) -> None:
    """It is a daemon, and refuses to end until it has seen that the node is gone."""
    for _ in range(100):
        done = subprocess.run([program("epmd"), "-port", str(port), "-kill"], capture_output=True, text=True)
        if "Killed" in done.stdout or "Cannot connect" in done.stdout + done.stderr:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the port mapper at {port} does not end: {done.stdout}{done.stderr}")


class _Stream(Session):
    """The client is asyncio's."""

    def __init__(self, address: str) -> None:
        self._port = int(address.partition(":")[2])
        self._login = {"host": "127.0.0.1", "port": self._port, "username": LOGIN, "password": LOGIN}
        self._runner = asyncio.Runner()
        self._runner.run(self._connect())

    async def _connect(self) -> None:
        from rstream import Producer

        self._producer = Producer(**self._login)
        await self._producer.start()
        await self._producer.create_stream(QUEUE, exists_ok=True)

    def produce(self, values: Sequence[bytes]) -> None:
        self._runner.run(self._produce(values))

    async def _produce(self, values: Sequence[bytes]) -> None:
        confirmed = asyncio.Event()
        left = len(values)

        async def on_confirm(status: Any) -> None:
            nonlocal left
            left -= len(status.message_ids) if hasattr(status, "message_ids") else 1
            if left <= 0:
                confirmed.set()

        for at in range(0, len(values), 1000):
            await self._producer.send_batch(
                QUEUE, list(values[at : at + 1000]), on_publish_confirm=on_confirm
            )
        await confirmed.wait()

    def consume(self, count: int) -> int:
        return self._runner.run(self._consume(count))

    async def _consume(self, count: int) -> int:
        from rstream import Consumer, ConsumerOffsetSpecification, OffsetType

        consumer = Consumer(**self._login)
        size, left, done = 0, count, asyncio.Event()

        def on_message(message: bytes, context: Any) -> None:
            nonlocal size, left
            size += len(message)
            left -= 1
            if not left:
                done.set()

        await consumer.start()
        await consumer.subscribe(
            QUEUE,
            on_message,
            offset_specification=ConsumerOffsetSpecification(OffsetType.FIRST),
            initial_credit=100,
        )
        await done.wait()
        await consumer.close()
        return size

    def close(self) -> None:
        self._runner.run(self._producer.close())
        self._runner.close()


class _Quorum(Session):
    def __init__(self, address: str) -> None:
        import pika

        self._address = address
        parameters = pika.ConnectionParameters(
            "127.0.0.1", int(address.partition(":")[0]), credentials=pika.PlainCredentials(LOGIN, LOGIN)
        )
        self._connection: Any = pika.BlockingConnection(parameters)
        self._channel: Any = self._connection.channel()
        self._channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        self._channel.confirm_delivery()  # pika's blocking channel then waits for each publish
        self._channel.basic_qos(prefetch_count=1000)
        self._deliveries: Any = None

    def another(self) -> Session:
        return _Quorum(self._address)

    def produce(self, values: Sequence[bytes]) -> None:
        for value in values:
            self.append(value)

    def append(self, value: bytes) -> None:
        self._channel.basic_publish("", QUEUE, value)

    def take(self, count: int) -> int:
        if self._deliveries is None:
            self._deliveries = self._channel.consume(QUEUE, inactivity_timeout=1)
        taken = 0
        for method, _, _ in self._deliveries:
            if method is None:
                break
            taken += 1
            if taken == count:
                self._channel.basic_ack(method.delivery_tag, multiple=True)
                break
        return taken

    def close(self) -> None:
        self._connection.close()


class RabbitMQ(Contender):
    chunk = 1000

    def __init__(
        self, name: str, session: type[_Stream | _Quorum], client: str, works: frozenset[Work]
    ) -> None:
        self.name = f"RabbitMQ {name}"
        self._session = session
        self._client = client
        self.works = works

    def missing(self) -> str:
        if not SERVER.exists():
            return "Debian's package rabbitmq-server is not installed"
        return "" if find_spec(self._client) else f"{self._client} is not installed"

    def server(self, folder: Path) -> Any:
        return _server(folder)

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return self._session(address)


CONTENDERS = [
    RabbitMQ(
        "stream, not synced",
        _Stream,
        "rstream",
        frozenset(
            {
                Work.PRODUCE_100,
                Work.PRODUCE_1K,
                Work.PRODUCE_MIXED,
                Work.CONSUME_100,
                Work.CONSUME_1K,
                Work.CONSUME_MIXED,
            }
        ),
    ),
    RabbitMQ(
        "quorum queue, synced",
        _Quorum,
        "pika",
        frozenset({Work.DURABLE_1, Work.DURABLE_16, Work.QUEUE}),
    ),
]
