"""A server in a thread of this process, whose files and clock are those of the test."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from logbroker.server.node import Node
from logbroker.server.server import Server
from logbroker.server.settings import ServerSettings
from logbroker_storage.clock import Clock
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.files import Files
from tests.server.ports import kept_port

PATIENCE_S = 60.0


class Unforeseen(logging.Handler):
    """Keeps what a handler of requests, a thread or the event loop did not foresee."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.found.append(logging.Formatter().format(record))


class ServerThread:
    """Serves *path* until ``stop``; started again, at the same port."""

    def __init__(self, path: str, files: Files, clock: Clock, **settings: Any) -> None:
        self._path, self._files, self._clock = path, files, clock
        self._settings = {"port": kept_port(), "router": False, "group_heartbeat_ms": 300} | settings
        self._unforeseen = Unforeseen()
        self.directory: DataDirectory = None  # type: ignore[assignment]  # while it serves
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._ended: list[BaseException] = []

    @property
    def port(self) -> int:
        return int(self._settings["port"])

    @property
    def node(self) -> Node:
        """What its requests are worked on with, while it serves."""
        assert self._server is not None
        assert self._server._node is not None
        return self._server._node

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> ServerThread:
        # The process has one object for a directory: the server gets ours, with our files and clock.
        self.directory = DataDirectory.open(self._path, files=self._files, clock=self._clock)
        logging.getLogger("logbroker").addHandler(self._unforeseen)
        logging.getLogger("asyncio").addHandler(self._unforeseen)
        listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        assert listening.wait(PATIENCE_S), "it does not start"
        self.directory.close()  # the server has it open, too
        self.check()
        return self

    def _run(self, listening: threading.Event) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._server = Server(self._path, ServerSettings(**self._settings))
            await self._server.start()
            self._settings["port"] = self._server.port
            listening.set()
            await self._server.run()

        try:
            asyncio.run(serve())
        except BaseException as error:  # told by check()
            self._ended.append(error)
        finally:
            listening.set()

    def check(self) -> None:
        """It is alive, and met nothing that it had not foreseen."""
        assert not self._ended, f"the server died: {self._ended[0]!r}"
        assert not self._unforeseen.found, "\n".join(self._unforeseen.found)

    def stop(self, *, may_tell: tuple[type[BaseException], ...] = ()) -> None:
        """As SIGTERM does; when this returns nobody has the directory open. *may_tell*: how it may fail at its end."""
        self.check()
        assert self._thread is not None
        assert self._server is not None
        self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the server does not end"
        logging.getLogger("logbroker").removeHandler(self._unforeseen)
        logging.getLogger("asyncio").removeHandler(self._unforeseen)
        self._ended = [error for error in self._ended if not isinstance(error, may_tell)]
        self.check()
        assert self.directory.closed
