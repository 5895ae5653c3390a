"""Sockets: requests in, answers out in the order of the requests.

A connection handles its requests one after the other, as far as their order matters: a handler returns either
the answer, or (for what takes its time after that point: disk syncs, long polls) something to wait for, and the
next request begins meanwhile. Answers are sent in the order of the requests all the same.

    what could grow                               bound
    a request                                     its API's limit, checked before it is kept (``frames``)
    requests of a connection not answered yet     MAX_PIPELINED, then nothing more is read from it
    their bytes, of all connections together      ``max_buffered_bytes``, then nothing is read from anyone
                                                  who has something in work
    answers that a peer does not take             the transport's buffer, then no further answer is made
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, cast

from logbroker_storage.errors import LogbrokerError

from .apis import API_VERSIONS_KEY, APIS, VERSIONS, Answer, limit_of
from .frames import LENGTH, FrameError, FrameReader
from .handlers.api_versions import unsupported
from .requests import Request, UnsupportedVersionError, parse

if TYPE_CHECKING:
    from .node import Node

logger = logging.getLogger("logbroker.server")

MAX_PIPELINED = 64
READ_BYTES = 256 << 10
WRITE_HIGH_WATER_BYTES = 8 << 20
SMALL_BYTES = (
    64 << 10
)  # pieces of an answer below it are copied together, larger ones are written as they are

_Outgoing = tuple[Request, Answer | Awaitable[Answer], float]

# One for all connections: between get_buffer and buffer_updated nothing else runs on the loop.
_scratch = memoryview(bytearray(READ_BYTES))


class Connection(asyncio.BufferedProtocol):
    """One client. All on the event loop."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._reader = FrameReader(lambda api_key: limit_of(api_key, node.settings))
        self._requests: deque[bytes | bytearray] = deque()  # whole, not begun
        self._outgoing: deque[_Outgoing] = deque()  # begun, not answered
        self._work = asyncio.Event()
        self._answers = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._held_bytes = 0
        self._paused = False
        self._transport: asyncio.Transport | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = asyncio.get_running_loop().create_future()
        self.peer = ""
        self.host = ""

    # What asyncio calls -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        name = transport.get_extra_info("peername")
        self.host = str(name[0]) if name else ""
        self.peer = f"{name[0]}:{name[1]}" if name else "a local client"
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._node.connections.add(self)
        self._node.metrics.connections.inc()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._handle_requests()), loop.create_task(self._send_answers())]
        logger.debug("%s connected", self.peer)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (asyncio's)
        return _scratch

    def buffer_updated(self, nbytes: int) -> None:
        before = self._reader.buffered_bytes
        try:
            requests = self._reader.feed(_scratch[:nbytes])
        except FrameError as error:
            self._fail(error)
            return
        self._requests += requests
        self._hold(self._reader.buffered_bytes - before + sum(map(len, requests)))
        if requests:
            self._work.set()
        self._pace()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 (asyncio's)
        for task in self._tasks:
            task.cancel()
        for _, answer, _ in self._outgoing:
            if isinstance(answer, asyncio.Future):
                answer.cancel()
        self._outgoing.clear()
        self._requests.clear()
        self._hold(-self._held_bytes)
        self._node.connections.discard(self)
        self._node.metrics.connections.dec()
        self._node.connection_lost(self)
        if not self._closing.done():
            self._closing.set_result(None)
        logger.debug("%s disconnected", self.peer)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    # Backpressure -------------------------------------------------------------------------------------

    def _hold(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        self._node.buffered_bytes += size_bytes

    def _pace(self) -> None:
        """Read no more while too much is in work; go on when it is not."""
        assert self._transport is not None
        waiting = len(self._requests) + len(self._outgoing)
        is_full = waiting >= MAX_PIPELINED or (waiting > 0 and self._node.is_full)
        if is_full != self._paused and not self._transport.is_closing():
            self._paused = is_full
            if is_full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # Requests -----------------------------------------------------------------------------------------

    async def _handle_requests(self) -> None:
        while True:
            while not self._requests:
                self._work.clear()
                await self._work.wait()
            frame = self._requests.popleft()
            try:
                await self._begin(frame)
            except FrameError as error:
                self._fail(error)
                return

    async def _begin(self, frame: bytes | bytearray) -> None:
        began = time.perf_counter()
        try:
            request = parse(frame, VERSIONS, self)
        except UnsupportedVersionError as error:
            if error.api_key != API_VERSIONS_KEY:
                raise
            self._put(_stand_in(self, error, len(frame)), unsupported(error.correlation_id), began)
            return
        self._node.metrics.bytes_in.inc(len(frame))
        answer = await self._answer(request)
        if answer is None:
            self._hold(-request.size_bytes)
            self._node.metrics.took(request, time.perf_counter() - began)
            self._pace()
            return
        self._put(request, answer, began)

    async def _answer(self, request: Request) -> Answer | Awaitable[Answer]:
        try:
            return await APIS[request.api_key].handler(self._node, request)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise _broken(request, error) from error

    def _put(self, request: Request, answer: Answer | Awaitable[Answer], began: float) -> None:
        if answer is not None and not isinstance(answer, (bytes, list)):
            answer = asyncio.ensure_future(answer)
        self._outgoing.append((request, answer, began))
        self._answers.set()

    async def _send_answers(self) -> None:
        while True:
            while not self._outgoing:
                self._answers.clear()
                await self._answers.wait()
            request, answer, began = self._outgoing[0]
            try:
                ready = await answer if isinstance(answer, asyncio.Future) else answer
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 (the peer's connection is closed, and the reason logged)
                self._fail(_broken(request, error))
                return
            await self._can_write.wait()
            self._write(ready)  # type: ignore[arg-type]
            self._outgoing.popleft()
            self._hold(-request.size_bytes)
            self._node.metrics.took(request, time.perf_counter() - began)
            self._pace()

    def _write(self, answer: Answer) -> None:
        assert self._transport is not None
        if answer is None or self._transport.is_closing():
            return
        pieces: Sequence[Any] = answer if isinstance(answer, list) else [answer]
        size_bytes = sum(map(len, pieces))
        self._node.metrics.bytes_out.inc(size_bytes + LENGTH.size)
        small = [LENGTH.pack(size_bytes)]
        for piece in pieces:
            if len(piece) < SMALL_BYTES:
                small.append(piece)
                continue
            self._transport.write(b"".join(small))
            self._transport.write(piece)
            small = []
        if small:
            self._transport.write(b"".join(small))

    # Ending -------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        """Close this connection for what its peer sent, or for what went wrong with it; no other is concerned."""
        logger.warning("%s: connection closed: %s", self.peer, error, extra={"peer": self.peer})
        self._node.metrics.closed_for_error.inc()
        assert self._transport is not None
        self._transport.abort()

    async def drain(self) -> None:
        """Read no more, answer what was begun, close."""
        if self._transport is None:
            return
        self._paused = True
        if not self._transport.is_closing():
            self._transport.pause_reading()
        while self._requests or self._outgoing:
            await asyncio.sleep(0.005)
            if self._closing.done():
                return
        self._transport.close()
        await self._closing

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _broken(request: Request, error: Exception) -> Exception:
    """What is told of an error that a handler did not foresee."""
    name = APIS[request.api_key].name
    if not isinstance(error, LogbrokerError):
        about = {"peer": request.connection.peer, "api": name, "version": request.version}
        logger.error("%s v%d: %r", name, request.version, error, exc_info=error, extra=about)
    return FrameError(f"{name} v{request.version} failed: {error!r}")


def _stand_in(connection: Connection, error: UnsupportedVersionError, size_bytes: int) -> Request:
    """An ApiVersions request of a version that is not known, as far as anything is known of it."""
    return Request(error.api_key, 0, error.correlation_id, "", None, size_bytes, connection)
