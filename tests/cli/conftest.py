"""Commands as a user types them, in this process: ``cli("tail", "orders")`` gives exit code, output, errors."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from logbroker.cli.app import run


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: bytes
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.decode().splitlines()]


class Cli:
    """Commands on one data directory."""

    def __init__(self, data: Path, files: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.data = data
        self._files = files
        self._capture = capture

    def __call__(self, *arguments: str) -> Result:
        return self.bare("--data", str(self.data), *arguments)

    def bare(self, *arguments: str) -> Result:
        """Without ``--data``."""
        self._capture.readouterr()
        code = run(list(arguments))
        out, err = self._capture.readouterr()
        return Result(code, out, err.decode())

    def produce(self, topic: str, content: bytes, *options: str) -> Result:
        """``produce`` from a file with *content*."""
        path = self._files / "input"
        path.write_bytes(content)
        return self("produce", topic, str(path), *options)

    def values(self, topic: str, *options: str) -> bytes:
        """All values of *topic*, a newline behind each."""
        result = self("tail", topic, "--from", "earliest", "--value-only", *options)
        assert result.code == 0, result.err
        return result.out

    def start(self, *arguments: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
        """The same in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "logbroker.cli.app", "--data", str(self.data), *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
def cli(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Cli]:
    threshold = gc.get_threshold()
    yield Cli(tmp_path / "data", tmp_path, capfdbinary)
    gc.set_threshold(*threshold)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGBROKER_DATA", raising=False)
