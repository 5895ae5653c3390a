"""A server as users start it: ``logbroker serve`` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import logbroker

START_S = 20
STOP_S = 20


class ServerProcess:
    """``logbroker serve`` on *data*; killed and started again as the test wants, at the same port."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self._options = options
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log = data.parent / f"{data.name}-server.log"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> ServerProcess:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(self.data), "serve"]
        command += ["--listen", f"127.0.0.1:{self.port}", "--group-heartbeat", "0.3", *self._options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert line.startswith("listening on "), self.log()
        self.port = int(line.rpartition(":")[2])
        return self

    def log(self) -> str:
        """What it has logged so far, of all its starts."""
        return self._log.read_text()

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        os.kill(process.pid, number)
        code = process.wait(STOP_S)
        assert process.stdout is not None
        process.stdout.close()
        return code


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


@pytest.fixture
def broker(server: ServerProcess) -> Iterator[logbroker.Broker]:
    """The server's directory, opened in this process beside it."""
    with logbroker.open(server.data) as broker:
        yield broker
