"""A server as users start it: ``logbroker serve`` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = (sys.executable, "-m", "logbroker.cli.app")
STOP_S = 20


class ServerProcess:
    """``logbroker serve`` on *data*; killed and started again as the test wants, at the same port."""

    def __init__(self, data: Path, *options: str, program: Sequence[str] = PROGRAM) -> None:
        """*program* is another that takes the same arguments."""
        self.data = data
        self._options = options
        self._program = program
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
        command = [*self._program, "--data", str(self.data), "serve"]
        command += ["--listen", f"127.0.0.1:{self.port}", "--group-heartbeat", "0.3", *self._options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
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
