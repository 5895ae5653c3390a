"""Sockets: requests in, answers out in the order of the requests.

A connection handles its requests one after the other, as far as their order matters, and sends the answers in
that order:

    a handler returns   for                     and then
    the answer          most                    it is sent in its turn
    a task              syncs, groups           the next request begins while the task runs
    a coroutine         fetches                 the next request begins; the coroutine does when its turn to be
                                                  answered has come, so one answer is made at a time

    what could grow                               bound
    a request                                     its API's limit, checked before it is kept (``frames``)
    requests of a connection not answered yet     MAX_PIPELINED, then nothing more is read from it
    their bytes, of all connections together      ``max_buffered_bytes``, then nothing is read from anyone
                                                  who has something in work, or much of a request
    answers that a peer does not take             the transport's buffer, then no further answer is made
    a message that does not go on                 ``STALLED_S``, then the connection is closed
    peers that are gone without a word            ``KEEPALIVE``: the kernel asks, and ends the connection
    answers of all connections on their way        ``max_unsent_bytes``, then fetches get single batches
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Awaitable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from logbroker_storage.errors import LogbrokerError

from .apis import ADVERTISED, API_VERSIONS_KEY, APIS, PRODUCE_KEY, VERSIONS, Answer, limit_of
from .frames import API_VERSION, LENGTH, FrameError, FrameReader
from .handlers.api_versions import unsupported
from .replies import Buffer
from .requests import Request, UnsupportedVersionError, parse

if TYPE_CHECKING:
    from .node import Node

logger = logging.getLogger("logbroker.server")

MAX_PIPELINED = 64
READ_BYTES = 256 << 10
QUICK_PEER_MS = 2
MUCH_BYTES = 1 << 20  # a request that is coming in may have kept so much, however full the server is
STALLED_S = 60.0
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, times
LARGE_BYTES = 128 << 10  # pieces of an answer below it are copied together
WRITE_HIGH_WATER_BYTES = 8 << 20

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
        self._is_beginning = False  # a request that is in neither
        self._is_sending = False
        self._peer_has_gone = False
        self._paused = False
        self._draining = False
        self._room = asyncio.Event()  # something was answered
        self._progress_s = time.monotonic()  # when bytes last came or went
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
            _keep_alive(sock)
        self._node.connections.add(self)
        self._node.metrics.connections.inc()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._handle_requests()), loop.create_task(self._send_answers())]
        logger.debug("%s connected", self.peer)
        if self._node.is_stopping:
            transport.abort()  # accepted a moment before the end: nobody would drain it

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (asyncio's)
        return _scratch

    def buffer_updated(self, nbytes: int) -> None:
        before = self._reader.buffered_bytes
        self._progress_s = time.monotonic()
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
        """The peer has gone, and wants no more answers. What it produced before still counts (acks=0)."""
        self._peer_has_gone = True
        self._work.set()
        return True  # the transport stays until _handle_requests is through

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 (asyncio's)
        for task in self._tasks:
            task.cancel()
        self._tasks = []  # a cancelled task holds this connection: together only the garbage collector would free them
        for _, answer, _ in self._outgoing:
            if isinstance(answer, asyncio.Future):
                answer.cancel()
            elif isinstance(answer, Coroutine) and inspect.getcoroutinestate(answer) == inspect.CORO_CREATED:
                answer.close()  # one that has begun ends with the task that awaits it
        self._outgoing.clear()
        self._requests.clear()
        self._hold(-self._held_bytes)
        self._node.connections.discard(self)
        self._node.share.disconnected(self)
        self._node.metrics.connections.dec()
        if not self._closing.done():
            self._closing.set_result(None)
        logger.debug("%s disconnected", self.peer)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    @property
    def has_more(self) -> bool:
        """Whether a request is here, or on its way, that was not begun yet. May be asked in any thread."""
        return bool(self._requests) or self._reader.buffered_bytes > 0

    # Backpressure -------------------------------------------------------------------------------------

    def _hold(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        self._node.buffered_bytes += size_bytes

    def _pace(self) -> None:
        """Read no more while too much is in work; go on when it is not."""
        assert self._transport is not None
        if self._draining or self._transport.is_closing():
            return
        waiting = len(self._requests) + len(self._outgoing)
        has_much = waiting > 0 or self._reader.buffered_bytes > MUCH_BYTES
        is_full = waiting >= MAX_PIPELINED or (has_much and self._node.is_full)
        if is_full != self._paused:
            self._paused = is_full
            if is_full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def look_after(self, now_s: float) -> None:
        """Now and then: close a connection that holds memory and has not moved; read on where there is room again."""
        if self._paused and not self._node.is_full and not self._is_sending and self._can_write.is_set():
            # It is we who do not read, as many requests are in work. Where memory is short this does not count:
            # peers in the middle of their messages would keep each other waiting for ever.
            self._progress_s = now_s
        holds = self._reader.buffered_bytes > 0 or self._is_sending
        if holds and now_s - self._progress_s > STALLED_S:
            self._fail(FrameError(f"nothing came or went for {STALLED_S:.0f} s in the middle of a message"))
        else:
            self._pace()

    # Requests -----------------------------------------------------------------------------------------

    async def _handle_requests(self) -> None:
        while True:
            while not self._requests:
                if self._peer_has_gone:
                    self.abort()
                    return
                self._work.clear()
                await self._work.wait()
            while len(self._outgoing) >= MAX_PIPELINED:
                self._room.clear()
                await self._room.wait()
            frame = self._requests.popleft()
            if self._peer_has_gone and API_VERSION.unpack_from(frame)[0] != PRODUCE_KEY:
                continue
            self._is_beginning = True
            try:
                await self._begin(frame)
            except FrameError as error:
                self._fail(error)
                return
            except Exception as error:  # noqa: BLE001 (nobody awaits this task: the peer would wait for ever)
                self._fail(_not_begun(self.peer, error))
                return
            finally:
                self._is_beginning = False
            if self._requests:
                await asyncio.sleep(0)  # the others' turn

    async def _begin(self, frame: bytes | bytearray) -> None:
        began = time.perf_counter()
        try:
            request = parse(frame, VERSIONS, self)
        except UnsupportedVersionError as error:
            if error.api_key != API_VERSIONS_KEY:
                raise
            self._put(
                _stand_in(self, error, len(frame)), unsupported(error.correlation_id, ADVERTISED), began
            )
            return
        self._node.metrics.bytes_in.inc(len(frame))
        answer = await self._answer(request)
        if answer is None:
            self._hold(-request.size_bytes)
            self._node.metrics.took(APIS[request.api_key].name, time.perf_counter() - began)
            self._pace()
            return
        self._put(request, answer, began)

    async def _answer(self, request: Request) -> Answer | Awaitable[Answer]:
        try:
            return await APIS[request.api_key].handler(self._node, request)
        except (asyncio.CancelledError, FrameError):
            raise
        except Exception as error:
            raise _broken(request, error) from error

    def _put(self, request: Request, answer: Answer | Awaitable[Answer], began: float) -> None:
        self._outgoing.append((request, answer, began))
        self._answers.set()

    async def _send_answers(self) -> None:
        while True:
            while not self._outgoing:
                self._answers.clear()
                await self._answers.wait()
            request, answer, began = self._outgoing[0]
            await self._can_write.wait()
            try:
                ready = await answer if isinstance(answer, Awaitable) else answer
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 (the peer's connection is closed, and the reason logged)
                self._fail(_broken(request, error))
                return
            try:
                await self._send(ready)
            except OSError as error:
                logger.debug("%s: %s", self.peer, error)
                self.abort()
                return
            self._outgoing.popleft()
            self._room.set()
            self._hold(-request.size_bytes)
            self._node.metrics.took(APIS[request.api_key].name, time.perf_counter() - began)
            self._pace()

    async def _send(self, answer: Answer) -> None:
        """Hand the answer to the transport, but for what is large, which goes out from where it is.

        Raises:
            OSError: the peer is gone.
        """
        assert self._transport is not None
        if answer is None or self._transport.is_closing():
            return
        pieces: Sequence[Buffer] = answer if isinstance(answer, list) else [answer]
        size_bytes = sum(map(len, pieces))
        self._node.unsent_bytes += size_bytes
        self._is_sending = True
        self._progress_s = time.monotonic()
        try:
            await self._can_write.wait()
            self._node.metrics.bytes_out.inc(size_bytes + LENGTH.size)
            await self._send_pieces(size_bytes, pieces)
        finally:
            self._is_sending = False
            self._node.unsent_bytes -= size_bytes

    async def _send_pieces(self, size_bytes: int, pieces: Sequence[Buffer]) -> None:
        assert self._transport is not None
        small: list[Buffer] = [LENGTH.pack(size_bytes)]
        for piece in pieces:
            if len(piece) < LARGE_BYTES:
                small.append(piece)
                continue
            self._transport.write(b"".join(small))
            small = []
            await self._send_large(memoryview(piece))
        if small:
            self._transport.write(b"".join(small))

    async def _send_large(self, data: memoryview) -> None:
        """Send *data* behind what was written: what the socket takes at once, and the rest in a thread.

        Not through the transport, which would copy what the socket does not take.
        """
        transport = self._transport
        assert transport is not None
        transport.set_write_buffer_limits(high=0)
        await self._can_write.wait()
        if transport.is_closing():
            return
        # A descriptor of our own: the event loop has its own way with the transport's.
        out = os.dup(transport.get_extra_info("socket").fileno())
        sending: asyncio.Future[int] | None = None
        try:
            data = data[_sent_at_once(out, data) :]
            while data and not transport.is_closing():
                sending = asyncio.ensure_future(self._node.send_in_thread(_send_some, out, data))
                sent = await asyncio.shield(sending)
                self._progress_s = time.monotonic() if sent else self._progress_s
                data = data[sent:]
                if data:
                    await _writable(out)
        finally:
            if sending is None or sending.done():
                os.close(out)
            else:  # the thread is still at it, and must not find another file under the number
                sending.add_done_callback(partial(_close_behind, out))
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)

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
        self._draining = True
        if not self._transport.is_closing() and not self._paused:
            self._transport.pause_reading()
        while self._requests or self._is_beginning or self._outgoing:
            await asyncio.sleep(0.005)
            if self._closing.done():
                return
        self._transport.close()
        await self._closing

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask a silent peer whether it is there, and end the connection when nobody answers.

    Without it a client whose machine was switched off keeps its descriptor as long as the server runs. Two minutes in
    all; by default Linux takes more than two hours.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):  # macOS before Python 3.12 has no name for the first
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _sent_at_once(out: int, data: memoryview) -> int:
    try:
        return os.write(out, data)
    except BlockingIOError:
        return 0


def _send_some(out: int, data: memoryview) -> int:
    """In a thread: send *data* as long as the peer keeps taking it; how much that was.

    A peer that is quick is waited for here, because to go back to the loop for each of its breaths costs as much
    as the sending. One that is not must not keep a thread.
    """
    is_writable = select.poll()
    is_writable.register(out, select.POLLOUT)
    sent = 0
    while sent < len(data):
        try:
            sent += os.write(out, data[sent:])
        except BlockingIOError:
            if not is_writable.poll(QUICK_PEER_MS):
                break
    return sent


def _close_behind(out: int, sending: asyncio.Future[int]) -> None:
    """Close what a thread was sending to. Whether it could no longer matters."""
    os.close(out)
    if not sending.cancelled():
        sending.exception()


async def _writable(fd: int) -> None:
    """Wait until the socket takes bytes again."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_writer(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_writer(fd)


def _broken(request: Request, error: Exception) -> Exception:
    """What is told of an error that a handler did not foresee."""
    name = APIS[request.api_key].name
    if not isinstance(error, LogbrokerError):
        about = {"peer": request.connection.peer, "api": name, "version": request.version}
        logger.error("%s v%d: %r", name, request.version, error, exc_info=error, extra=about)
    return FrameError(f"{name} v{request.version} failed: {error!r}")


def _not_begun(peer: str, error: Exception) -> Exception:
    """What is told where a request could not be taken up for a reason that is not its own.

    A schema is imported when its version is first asked for, which takes descriptors and memory.
    """
    logger.error("a request was not taken up: %r", error, exc_info=error, extra={"peer": peer})
    return FrameError(f"a request could not be taken up: {error!r}; mend the cause (limits, memory)")


def _stand_in(connection: Connection, error: UnsupportedVersionError, size_bytes: int) -> Request:
    """An ApiVersions request of a version that is not known, as far as anything is known of it."""
    return Request(error.api_key, 0, error.correlation_id, "", None, size_bytes, connection)
