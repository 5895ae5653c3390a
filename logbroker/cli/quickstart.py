"""``logbroker quickstart``: the main job on this machine in a minute, checked at every step."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from .directory import DataOption

TOPIC = "quickstart"
GROUP = "quickstart-readers"
KILL_AFTER_BYTES = 1 << 20  # of log: the first run is killed somewhere behind this


def quickstart(
    lines: Annotated[int, typer.Option("--lines", metavar="N", min=1000, help="Lines to ingest.")] = 200_000,
    data: DataOption = None,
) -> None:
    """Create a topic, ingest lines through a process that is killed, read them back, verify the files."""
    with _folder(data) as folder:
        source = os.path.join(folder, "lines.txt")
        directory = data or os.path.join(folder, "data")
        _say(f"1. {lines} lines in {source}")
        _write_lines(source, lines)
        _say(f"2. a topic in {directory}")
        _run(directory, "topic", "create", TOPIC, "--config", "segment.bytes=4194304")
        _say(
            "3. ingest them as the named producer 'loader', kill -9 in the middle, run the same command again"
        )
        _ingest(directory, source)
        _say("4. read them back and compare byte for byte")
        _compare(directory, source)
        _say("5. a consumer group reads a part; its lag")
        _read_a_part(directory, lines)
        _say("6. verify every byte offline")
        _run(directory, "inspect", "verify", directory, own_data=False)
    _say("everything compared equal")


def _say(message: str) -> None:
    print(message, flush=True)


@contextmanager
def _folder(data: str | None) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="logbroker-quickstart-") as folder:
        if data is not None and os.path.exists(os.path.join(data, "logs", f"{TOPIC}-0")):
            raise typer.BadParameter(
                f"--data {data}: it has a topic {TOPIC!r} already; give another directory"
            )
        yield folder


def _write_lines(path: str, lines: int) -> None:
    with open(path, "wb") as file:
        for number in range(lines):
            digest = hashlib.sha256(b"%d" % number).hexdigest().encode()
            file.write(b"line %d %s\n" % (number, digest[: number % 64]))


def _command(directory: str | None, *arguments: str) -> list[str]:
    before = [] if directory is None else ["--data", directory]
    return [sys.executable, "-m", "logbroker.cli.app", *before, *arguments]


def _run(directory: str, *arguments: str, own_data: bool = True) -> None:
    """Run a command of ours, showing what it says; stop when it fails."""
    command = _command(directory if own_data else None, *arguments)
    code = subprocess.run(command, check=False).returncode
    if code:
        _say(f"   failed with exit code {code}: logbroker {' '.join(arguments)}")
        raise typer.Exit(1)


def _ingest(directory: str, source: str) -> None:
    command = _command(directory, "produce", TOPIC, source, "--producer", "loader")
    process = subprocess.Popen(command)
    folder = os.path.join(directory, "logs", f"{TOPIC}-0")
    while process.poll() is None and _log_bytes(folder) < KILL_AFTER_BYTES:
        time.sleep(0.001)
    process.kill()
    killed = process.wait() != 0
    _say(
        "   killed with -9 after " + f"{_log_bytes(folder):,} bytes"
        if killed
        else "   it was done before the kill"
    )
    started = time.monotonic()
    _run(directory, "produce", TOPIC, source, "--producer", "loader")
    _say(f"   the second run took {time.monotonic() - started:.1f} s")


def _log_bytes(folder: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".log"))


def _compare(directory: str, source: str) -> None:
    started = time.monotonic()
    command = _command(directory, "tail", TOPIC, "--from", "earliest", "--value-only")
    back = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with open(source, "rb") as file:
        if file.read() != back:
            _say("   DIFFERENT: what came back is not what went in")
            raise typer.Exit(1)
    _say(f"   equal: {len(back):,} bytes in {time.monotonic() - started:.1f} s")


def _read_a_part(directory: str, lines: int) -> None:
    import logbroker

    with logbroker.open(directory) as broker:
        with broker.consumer(TOPIC, group=GROUP, start="earliest") as consumer:
            read = 0
            while read < lines // 2:
                read += len(consumer.poll(lines // 2 - read, timeout=5.0))
            consumer.commit()
        lag = broker.group(GROUP).lag
    if read + lag != lines:
        _say(f"   read {read} and lag {lag} are not the {lines} lines")
        raise typer.Exit(1)
    _say(f"   read {read}, committed, lag {lag}")
