"""``logbroker serve`` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from tests.server.ports import kept_port

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "logbroker.cli.app")
STOP_S = 20
ANSWER_BYTES = 64


class Process(Protocol):
    """What is used of a process: of ``subprocess.Popen``, too."""

    pid: int
    stdout: IO[bytes] | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...


class Forked:
    """A server that the nursery has forked."""

    def __init__(self, pid: int, stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = stdout
        self._code: int | None = None
        self._fd = os.pidfd_open(pid)  # its process id is its own until it is reaped

    def poll(self) -> int | None:
        return self._code if self._code is not None or not self._has_ended(0) else self._reap()

    def wait(self, timeout: float | None = None) -> int:
        if self._code is not None:
            return self._code
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired("serve", timeout or 0)
        return self._reap()

    def _has_ended(self, timeout_s: float | None) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def _reap(self) -> int:
        self._code = os.waitstatus_to_exitcode(nursery().ask(self.pid))
        os.close(self._fd)
        return self._code


class Nursery:
    """The process that servers are forked from; see its module. Safe across threads."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.server.nursery"], cwd=ROOT, stdin=theirs
            )
        self._lock = threading.Lock()  # held from a question to its answer

    def ask(self, request: Sequence[str] | int, *descriptors: int) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            return int(self._socket.recv(ANSWER_BYTES))

    def start(self, arguments: Sequence[str], log: IO[bytes]) -> Forked:
        reading, writing = os.pipe()
        try:
            pid = self.ask(arguments, writing, log.fileno())
        finally:
            os.close(writing)
        return Forked(pid, os.fdopen(reading, "rb"))

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def nursery() -> Nursery:
    """The one of this process, which ends with it."""
    made = Nursery()
    atexit.register(made.close)
    return made


class ServerProcess:
    """``logbroker serve`` on *data*; killed and started again as the test wants, at the same port."""

    def __init__(self, data: Path, *options: str, program: Sequence[str] = ()) -> None:
        """*program* is another that takes the same arguments; without one, the command is forked (``nursery``)."""
        self.data = data
        self._options = options
        self._program = program
        self.port = kept_port()
        self._process: Process | None = None
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
        arguments = ["--data", str(self.data), "serve"]
        arguments += ["--listen", f"127.0.0.1:{self.port}", "--group-heartbeat", "0.3", *self._options]
        with self._log.open("ab") as log:
            if self._program or sys.platform != "linux":
                command = [*(self._program or PROGRAM), *arguments]
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
            else:
                self._process = nursery().start(arguments, log)
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert line.startswith("listening on "), self.log()
        self.port = int(line.rpartition(":")[2])
        return self

    def try_to_start(self) -> bool:
        """Start it; whether it listens. One that does not has ended, or will when it is told to stop."""
        try:
            self.start()
        except AssertionError:
            return False
        return True

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

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
