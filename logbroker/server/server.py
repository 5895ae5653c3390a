"""A server from its start to its end: what ``logbroker serve`` does, and tests do in a thread or a process."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError

from ..routing.thread import RouterThread
from .listener import Connection
from .metrics import Metrics
from .node import Node
from .settings import ServerSettings

logger = logging.getLogger("logbroker.server")


class Server:
    """Listens for Kafka clients. On the event loop; ``stop`` from a signal handler too."""

    def __init__(self, path: str, settings: ServerSettings, metrics: Metrics | None = None) -> None:
        """*path* is the data directory."""
        self.path = path
        self.settings = settings
        self._metrics = metrics or Metrics()
        self._stopping = asyncio.Event()
        self._node: Node | None = None
        self._listening: asyncio.Server | None = None
        self.port = settings.port
        self._looking_after: asyncio.Task[None] | None = None
        self._router: RouterThread | None = None

    async def start(self) -> None:
        """Open the directory and listen.

        Raises:
            LogbrokerError: the directory cannot be opened; the address is in use, or is not ours.
        """
        loop = asyncio.get_running_loop()
        directory = await loop.run_in_executor(None, DataDirectory.open, self.path)
        node = self._node = Node(directory, self.settings, self._metrics)
        try:
            self._listening = await loop.create_server(
                lambda: Connection(node), self.settings.host, self.settings.port, backlog=1024
            )
        except OSError as error:
            await node.close()
            raise LogbrokerError(
                f"{self.settings.host}:{self.settings.port} cannot be listened on: {error.strerror or error}; "
                "name another address"
            ) from error
        except BaseException:
            await node.close()
            raise
        self.port = self._listening.sockets[0].getsockname()[1]
        if self.settings.advertised_port is None:
            node.port = self.port
        try:
            self._metrics.watch(directory)
        except BaseException:
            self._listening.close()
            await node.close()
            raise
        self._looking_after = loop.create_task(node.look_after())
        if self.settings.router:
            router = RouterThread(
                directory,
                node.transactions,
                on_routed=self._metrics.routed_records.inc,
                on_failure=self._metrics.router_failures.inc,
            )
            try:
                router.start()
            except BaseException:
                await self.close()
                raise
            self._router = router
        logger.info("serving %s on %s:%d", self.path, self.settings.host, self.port)

    def stop(self) -> None:
        """Take no more connections and requests, answer those at work, and end ``run``."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until ``stop``."""
        await self._stopping.wait()
        await self.close()

    async def close(self) -> None:
        """Drain the connections and leave the directory."""
        node, listening = self._node, self._listening
        if node is None or listening is None:
            return
        listening.close()
        node.begin_to_stop()
        router, self._router = self._router, None
        stopping_router = None
        if router is not None:
            stopping_router = asyncio.get_running_loop().run_in_executor(None, router.stop)
        draining = [asyncio.ensure_future(connection.drain()) for connection in node.connections]
        if draining:
            _, late = await asyncio.wait(draining, timeout=self.settings.drain_timeout_s)
            for task in late:
                task.cancel()
        for connection in list(node.connections):
            connection.abort()
        with suppress(TimeoutError):
            await asyncio.wait_for(listening.wait_closed(), 1)
        if self._looking_after is not None:
            self._looking_after.cancel()
        self._node = None
        if stopping_router is not None:
            await stopping_router
        await node.close()
        logger.info("stopped serving %s", self.path)


async def serve(
    path: str, settings: ServerSettings, metrics: Metrics, started: Callable[[Server], None]
) -> None:
    """Serve until SIGTERM or SIGINT; *started* is called when the server listens."""
    server = Server(path, settings, metrics)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.start()
    try:
        started(server)
    except BaseException:
        await server.close()
        raise
    await server.run()
