"""Servers of a test or of a file, and connections to them; see ``server_process`` and ``raw_client``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import logbroker

from .raw_client import RawClient
from .server_process import ServerProcess


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers that end with the test: ``start_server(option, …, data=path)``."""
    servers: list[ServerProcess] = []

    def start(*options: str, data: Path | None = None) -> ServerProcess:
        server = ServerProcess(data or tmp_path / "data", *options)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """One server on a fresh directory."""
    return start_server()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests of a file, which leave it as they found it but for topics and groups of their own."""
    server = ServerProcess(tmp_path_factory.mktemp("shared") / "data").start()
    yield server
    server.kill()


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[RawClient]:
    """A connection to the shared server."""
    with RawClient(shared.port) as client:
        yield client


@pytest.fixture
def broker(server: ServerProcess) -> Iterator[logbroker.Broker]:
    """The server's directory, opened in this process beside it."""
    with logbroker.open(server.data) as broker:
        yield broker
