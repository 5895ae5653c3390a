"""Targets: the bytes of a connection, cut into requests and parsed; and requests through the server's handlers."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Coroutine
from typing import Any

from logbroker.server.apis import VERSIONS, limit_of
from logbroker.server.frames import FrameError, FrameReader
from logbroker.server.listener import Connection
from logbroker.server.metrics import Metrics
from logbroker.server.node import Node
from logbroker.server.requests import parse
from logbroker.server.settings import ServerSettings
from logbroker_storage.data_directory import DataDirectory

from ..proof import delete_folder
from .target import Target, scratch_folder

SETTINGS = ServerSettings(router=False)
FRAME_LIMIT_BYTES = 64 << 10
ANSWER_S = 0.3  # an answer that comes later may be one that waits, as those of Fetch and JoinGroup do
CANARY_S = 15.0
INPUTS_A_SERVER = 2000  # then a new one on a new directory: what inputs create does not grow without end
API_VERSIONS = struct.pack(">hhih", 18, 0, 77, -1)


# Frames ---------------------------------------------------------------------------------------------------


def try_frames(data: bytes) -> None:
    """In one piece and in pieces: the same requests, each parsed or refused.

    Those before an error in the same piece are dropped with the connection.
    """
    at_once, ends_in_error = _cut([data])
    piece = 1 + len(data) // 7
    in_pieces, also = _cut([data[at : at + piece] for at in range(0, len(data), piece)])
    assert also == ends_in_error
    assert at_once == (in_pieces[: len(at_once)] if ends_in_error else in_pieces)
    for frame in in_pieces:
        try:
            parse(frame, VERSIONS, None)  # type: ignore[arg-type]  # only kept
        except FrameError:
            pass


def _cut(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """The requests in *pieces*, and whether it ended in an error."""
    reader = FrameReader(lambda api_key: min(limit_of(api_key, SETTINGS), FRAME_LIMIT_BYTES))
    requests: list[bytes] = []
    try:
        for piece in pieces:
            requests += map(bytes, reader.feed(memoryview(piece)))
            assert reader.buffered_bytes <= len(b"".join(pieces))
    except FrameError:
        return requests, True
    return requests, False


# Handlers -------------------------------------------------------------------------------------------------


class _Errors(logging.Handler):
    """Keeps what a handler of requests, a thread or the event loop did not foresee."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.found.append(record)


class _Server:
    """A node with its directory, on an event loop that runs while an input is tried."""

    def __init__(self) -> None:
        self.inputs = 0
        self._folder = scratch_folder()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._unforeseen)
        self.unforeseen: list[dict[str, Any]] = []
        self.node: Node = self.run(self._start())
        self._canary = self.run(self._connect())

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(what)

    def _unforeseen(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.unforeseen.append(context)

    async def _start(self) -> Node:
        directory = DataDirectory.open(str(self._folder / "data"))
        return Node(directory, SETTINGS, Metrics())

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(self.node), theirs)
        return await asyncio.open_connection(sock=ours)

    async def send(self, payload: bytes) -> None:
        """One request on a connection of its own; meanwhile and afterwards the canary's is answered."""
        reader, writer = await self._connect()
        writer.write(struct.pack(">i", len(payload)) + payload)
        try:
            await asyncio.wait_for(reader.read(1), ANSWER_S)
        except (TimeoutError, ConnectionError):
            pass
        try:
            await asyncio.wait_for(self._ask_canary(), CANARY_S)
        finally:
            writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass

    async def _ask_canary(self) -> None:
        reader, writer = self._canary
        writer.write(struct.pack(">i", len(API_VERSIONS)) + API_VERSIONS)
        (length,) = struct.unpack(">i", await reader.readexactly(4))
        answer = await reader.readexactly(length)
        assert answer[:6] == struct.pack(">ih", 77, 0), "somebody else's connection is answered as before"

    def close(self) -> None:
        self.run(self._close())
        self._loop.close()
        delete_folder(self._folder)

    async def _close(self) -> None:
        _, writer = self._canary
        writer.close()
        for connection in list(self.node.connections):
            connection.abort()
        self.node.begin_to_stop()
        await asyncio.sleep(0)
        await self.node.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


_errors = _Errors()
_server: _Server | None = None


def _current_server() -> _Server:
    global _server
    if _server is not None and _server.inputs >= INPUTS_A_SERVER:
        _stop_server()
    if _server is None:
        logging.getLogger("logbroker").addHandler(_errors)
        _server = _Server()
    _server.inputs += 1
    return _server


def _stop_server() -> None:
    global _server
    server, _server = _server, None
    if server is not None:
        logging.getLogger("logbroker").removeHandler(_errors)
        server.close()


def try_request(data: bytes) -> None:
    """A request without its length: what its API's handler makes of it."""
    if len(data) < 8:
        return
    server = _current_server()
    server.run(server.send(data))
    unforeseen, server.unforeseen = server.unforeseen, []
    errors, _errors.found = _errors.found, []
    assert not unforeseen, unforeseen
    if errors:
        raise AssertionError("\n".join(logging.Formatter().format(record) for record in errors))


TARGETS = {
    "frames": Target(try_frames, ()),
    "requests": Target(try_request, (), rss_mib=1024, address_mib=None, close=_stop_server),
}
