"""A network that can be made bad: it stands between clients and the server, and cuts, delays, stalls and repeats.

Requests are forwarded frame by frame (an int32 length and so many bytes), so that it is known what is harmed; answers
as they come. What is on is a ``Weather``, looked at for every frame and every piece of an answer:

    cut        the connection ends: reset or closed, before or in the middle of a frame, one side or both
    delay      it comes later
    stall      one direction stands still for a while
    garble     some bytes of a Produce request are sent twice: what follows is no request
    repeat     a whole request is sent twice, one right behind the other
    late       a Produce request of a while ago is sent once more, on a connection of its own

Bytes are garbled only where a checksum tells: Kafka's protocol has none for other requests, and a commit of another
offset is a commit. For the same reason only requests are repeated that mean the same the second time.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

LENGTH = struct.Struct(">i")
API = struct.Struct(">h")
PRODUCE, FETCH, OFFSET_COMMIT, ADD_PARTITIONS, ADD_OFFSETS, END_TXN, TXN_OFFSET_COMMIT = (
    0,
    1,
    8,
    24,
    25,
    26,
    28,
)
REPEATABLE = {PRODUCE, FETCH, OFFSET_COMMIT, ADD_PARTITIONS, ADD_OFFSETS, END_TXN, TXN_OFFSET_COMMIT}
NOT_LINGERING = struct.pack("ii", 1, 0)  # a close is a reset
KEPT_FRAMES = 300
READ_BYTES = 64 << 10
START_S = 10


@dataclass(frozen=True)
class Weather:
    """How likely each is for one frame (or piece of an answer)."""

    cut: float = 0
    delay: float = 0
    stall: float = 0
    garble: float = 0
    repeat: float = 0
    late: float = 0
    longest_s: float = 0.05
    """Of a delay."""
    stalled_s: float = 3
    """Of a stall; longer than clients wait for an answer."""


FAIR = Weather()


class CutError(Exception):
    """The connection ends here."""


class Proxy:
    """Listens on a free port of loopback, in a thread of its own."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.weather = FAIR  # set by the test's thread; read by ours
        self.done: Counter[str] = Counter()  # what was done to frames; ours
        self.upstream_port = 0
        self.port = 0
        self._kept: deque[bytes] = deque(maxlen=KEPT_FRAMES)
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._listening.wait(START_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=256)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stopping.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _chance(self, name: str) -> bool:
        if self._rng.random() >= getattr(self.weather, name):
            return False
        self.done[name] += 1
        return True

    # One connection -------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        except OSError:
            _reset(writer)  # no server there now
        except asyncio.CancelledError:
            _reset(writer)
        else:
            await self._forward(reader, writer, *upstream)
        finally:
            self._connections.discard(task)

    async def _forward(
        self,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        """Until one side ends it, or we do."""
        ways: list[Coroutine[Any, Any, None]] = [
            self._requests(client_reader, server_writer),
            self._answers(server_reader, client_writer),
        ]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # we are to end
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._rng.random() < 0.5:  # the other side hears of it by a reset, or by an end
                for writer in (client_writer, server_writer):
                    _reset(writer)
            client_writer.close()
            server_writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(LENGTH.size)
            frame = head + await reader.readexactly(LENGTH.unpack(head)[0])
            (api_key,) = API.unpack_from(frame, LENGTH.size)
            if api_key == PRODUCE:
                self._kept.append(frame)
                if self._chance("late"):
                    await self._send_late(self._rng.choice(self._kept))
            if self._chance("stall"):
                await asyncio.sleep(self._rng.uniform(0.1, self.weather.stalled_s))
            if self._chance("delay"):
                await asyncio.sleep(self._rng.uniform(0, self.weather.longest_s))
            if self._chance("cut"):
                await self._cut(writer, frame)
            if api_key == PRODUCE and self._chance("garble"):
                begin, end = sorted(self._rng.choices(range(len(frame) + 1), k=2))
                frame = frame[:end] + frame[begin:]
            writer.write(frame)
            if api_key in REPEATABLE and self._chance("repeat"):
                writer.write(frame)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(READ_BYTES):
            if self._chance("stall"):
                await asyncio.sleep(self._rng.uniform(0.1, self.weather.stalled_s))
            if self._chance("delay"):
                await asyncio.sleep(self._rng.uniform(0, self.weather.longest_s))
            if self._chance("cut"):
                await self._cut(writer, piece)
            writer.write(piece)
            await writer.drain()

    async def _cut(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """A part of *data*, or nothing, and then the end; or one side ends and the other may still speak."""
        writer.write(data[: self._rng.choice([0, self._rng.randrange(len(data))])])
        await writer.drain()
        if self._rng.random() < 0.3:
            writer.write_eof()
            await asyncio.sleep(self._rng.uniform(0, 1))
        raise CutError

    async def _send_late(self, frame: bytes) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        except OSError:
            return  # no server there now
        try:
            writer.write(frame)
            head = await reader.readexactly(LENGTH.size)
            await reader.readexactly(LENGTH.unpack(head)[0])
        except (OSError, asyncio.IncompleteReadError):
            pass  # the server was killed meanwhile
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOT_LINGERING)
    writer.transport.abort()
