"""A connection that is lost at the moment at which what its request waits for happens."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import weakref
from pathlib import Path

import pytest

from logbroker.server.listener import Connection
from logbroker.server.metrics import Metrics
from logbroker.server.node import Node
from logbroker.server.settings import ServerSettings
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.log_config import LogConfig

from .raw_client import FETCH, fetch_partition, request_bytes

WAITING_S = 20.0
TOPIC = {"topic": "t", "partitions": [fetch_partition(0)]}
A_FETCH = request_bytes(FETCH, 12, max_wait=60_000, min_bytes=1, max_bytes=1 << 20, topics=[TOPIC])


@pytest.mark.parametrize("turns", range(6))
def test_a_fetch_ends_with_its_connection_although_news_come_at_once(tmp_path: Path, turns: int) -> None:
    """asyncio.wait_for() would go on, before Python 3.12; *turns* of the event loop are between the two."""
    asyncio.run(_lose_one_that_is_woken(str(tmp_path / "data"), turns))


async def _lose_one_that_is_woken(path: str, turns: int) -> None:
    directory = DataDirectory.open(path)
    directory.create_topic("t", 1, LogConfig.parse({}))
    node = Node(directory, ServerSettings(router=False), Metrics())
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    connection = Connection(node)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, theirs)
    ours.sendall(A_FETCH)
    async with asyncio.timeout(WAITING_S):
        while not node.watch._waiting:  # noqa: ASYNC110 (nothing tells that a fetch begins to wait)
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)  # by now it waits
    node.begin_to_stop()
    for _ in range(turns):
        await asyncio.sleep(0)
    connection.abort()
    tasks = connection._tasks
    await asyncio.wait(tasks)
    await node.close()
    ours.close()
    assert all(task.cancelled() or task.exception() is None for task in tasks), tasks


def test_a_connection_that_comes_while_the_server_stops_is_closed_at_once(tmp_path: Path) -> None:
    asyncio.run(_connect_too_late(str(tmp_path / "data")))


async def _connect_too_late(path: str) -> None:
    node = Node(DataDirectory.open(path), ServerSettings(router=False), Metrics())
    node.begin_to_stop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    connection = Connection(node)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, theirs)
    async with asyncio.timeout(WAITING_S):
        await connection._closing
    assert ours.recv(1) == b""
    assert not node.connections
    assert not connection._tasks
    await node.close()
    ours.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the names of the options")
def test_a_peer_that_is_gone_without_a_word_is_noticed_within_minutes(tmp_path: Path) -> None:
    """No packet tells of a machine that was switched off: only the kernel's question does."""
    asyncio.run(_look_at_the_socket(str(tmp_path / "data")))


async def _look_at_the_socket(path: str) -> None:
    node = Node(DataDirectory.open(path), ServerSettings(router=False), Metrics())
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(node), "127.0.0.1", 0)
    ours = socket.create_connection(listening.sockets[0].getsockname())
    async with asyncio.timeout(WAITING_S):
        while not node.connections:  # noqa: ASYNC110 (nothing tells that it was accepted)
            await asyncio.sleep(0.001)
    (connection,) = node.connections
    assert connection._transport is not None
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, interval, count = (
        sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option))
        for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    )
    assert idle + interval * count <= 120
    connection.abort()
    await connection._closing
    listening.close()
    await node.close()
    ours.close()


def test_a_lost_connection_is_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    """Which comes seldom in a large process: clients that come and go would be megabytes by then."""
    gc.collect()
    gc.disable()
    try:
        asyncio.run(_lose_one_that_waits(str(tmp_path / "data")))
    finally:
        gc.enable()


async def _lose_one_that_waits(path: str) -> None:
    directory = DataDirectory.open(path)
    directory.create_topic("t", 1, LogConfig.parse({}))
    node = Node(directory, ServerSettings(router=False), Metrics())
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, connection = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Connection(node), theirs
    )
    is_there = weakref.ref(connection)
    ours.sendall(A_FETCH)
    async with asyncio.timeout(WAITING_S):
        while not node.watch._waiting:  # noqa: ASYNC110 (nothing tells that a fetch begins to wait)
            await asyncio.sleep(0.001)
        ours.close()
        del transport, connection
        while is_there() is not None:  # noqa: ASYNC110 (nor when the last reference goes)
            await asyncio.sleep(0.001)
    await node.close()
