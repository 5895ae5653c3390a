"""What the server looks after every few seconds: connections that do not move, and what is idle."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from logbroker.server import node as node_module
from logbroker.server.listener import MAX_PIPELINED, STALLED_S, Connection
from logbroker.server.metrics import Metrics
from logbroker.server.node import Node
from logbroker.server.settings import ServerSettings
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.log_config import LogConfig

from .raw_client import FETCH, fetch_partition, request_bytes

WAITING_S = 20.0
TOPIC = {"topic": "t", "partitions": [fetch_partition(0)]}
A_FETCH = request_bytes(FETCH, 12, max_wait=60_000, min_bytes=1, max_bytes=1 << 20, topics=[TOPIC])
PART_OF_ONE = A_FETCH[:-1]


@asynccontextmanager
async def connected(path: Path, **settings: int) -> AsyncIterator[tuple[Node, Connection, socket.socket]]:
    directory = DataDirectory.open(str(path / "data"))
    directory.create_topic("t", 1, LogConfig.parse({}))
    node = Node(directory, ServerSettings(router=False, **settings), Metrics())
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    connection = Connection(node)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, theirs)
    try:
        yield node, connection, ours
    finally:
        node.begin_to_stop()
        connection.abort()
        await connection._closing
        await node.close()
        ours.close()


async def is_closed_after_a_stall(connection: Connection, sent: int) -> bool:
    """Whether the connection is closed that had *sent* bytes a while ago."""
    async with asyncio.timeout(WAITING_S):
        while connection._held_bytes < sent:  # noqa: ASYNC110 (nothing tells what was read)
            await asyncio.sleep(0.001)
    connection.look_after(time.monotonic() + STALLED_S + 1)
    assert connection._transport is not None
    return connection._transport.is_closing()


def test_a_message_that_stops_in_the_middle_closes_its_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path) as (_, connection, peer):
            peer.sendall(PART_OF_ONE)
            assert await is_closed_after_a_stall(connection, sent=len(PART_OF_ONE) - 4)

    asyncio.run(main())


@pytest.mark.parametrize(("max_buffered_bytes", "is_closed"), [(1 << 20, False), (100, True)])
def test_what_the_server_does_not_read_for_its_own_work_is_no_stall(
    tmp_path: Path, max_buffered_bytes: int, is_closed: bool
) -> None:
    """Unless the memory for requests is used up."""

    async def main() -> None:
        async with connected(tmp_path, max_buffered_bytes=max_buffered_bytes) as (_, connection, peer):
            sent = A_FETCH * MAX_PIPELINED + PART_OF_ONE
            peer.sendall(sent)
            bytes_read = len(sent) - 4 * (MAX_PIPELINED + 1)
            assert await is_closed_after_a_stall(connection, bytes_read) is is_closed

    asyncio.run(main())


def test_connections_are_looked_after_though_something_idle_cannot_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0

    def fail() -> None:
        nonlocal looks
        looks += 1
        raise ValueError("of a kind that nobody has thought of")

    async def main() -> None:
        async with connected(tmp_path) as (node, _, _):
            monkeypatch.setattr(node.readers, "close_idle", fail)
            looking_after = asyncio.create_task(node.look_after())
            async with asyncio.timeout(WAITING_S):
                while looks < 2 and not looking_after.done():  # noqa: ASYNC110 (it tells nobody)
                    await asyncio.sleep(0.001)
            looking_after.cancel()
            assert looks == 2

    monkeypatch.setattr(node_module, "LOOK_AFTER_S", 0.001)
    asyncio.run(main())
    assert "nobody has thought of" in caplog.text
