"""``logbroker quickstart``: the main job on this machine in a minute, checked at every step.

Everything runs through the commands that a user would type, in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from .directory import DataOption
from .exit_codes import FAILED

TOPIC = "quickstart"
GROUP = "quickstart-readers"


def quickstart(
    lines: Annotated[int, typer.Option("--lines", metavar="N", min=2, help="Lines to ingest.")] = 200_000,
    data: DataOption = None,
) -> None:
    """Create a topic, ingest lines through a process that is killed, read them back, verify the files.

    In a temporary directory, or with --data in that one (its topic "quickstart" stays there). Exits with 0 only
    when everything that was read equals what was written.
    """
    started = time.monotonic()
    with _folder(data) as folder:
        source = os.path.join(folder, "lines.txt")
        directory = data or os.path.join(folder, "data")
        _say(f"1. write {lines:,} lines to {source}")
        _write_lines(source, lines)
        _say(f"2. create a topic in {directory}")
        _run(directory, "topic", "create", TOPIC, "--config", "segment.bytes=4194304")
        _say("3. produce them as 'loader', kill -9 in the middle, and then produce the whole file again")
        _ingest(directory, source)
        _say("4. tail them back, and compare byte for byte")
        _compare(directory, source)
        _say("5. read half of them as a consumer group, and look at its lag")
        _read_a_part(directory, lines)
        _run(directory, "group", "list")
        _say("6. verify every byte with the offline inspector")
        _run(directory, "inspect", "verify")
    _say(f"everything is as it should be, after {time.monotonic() - started:.1f} s")
    _say("go on with: logbroker produce TOPIC FILE; logbroker tail TOPIC -f; logbroker --help")


def _say(message: str) -> None:
    print(message, flush=True)


@contextmanager
def _folder(data: str | None) -> Iterator[str]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="logbroker-quickstart-") as folder:
        if data is not None and os.path.exists(os.path.join(data, "logs", f"{TOPIC}-0")):
            raise typer.BadParameter(
                f"--data {data}: it has a topic {TOPIC!r} already; give another directory"
            )
        yield folder


def _write_lines(path: str, lines: int) -> None:
    import hashlib

    with open(path, "wb") as file:
        for number in range(lines):
            digest = hashlib.sha256(b"%d" % number).hexdigest().encode()
            file.write(b"line %d %s\n" % (number, digest[: number % 64]))


def _command(directory: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "logbroker.cli.app", "--data", directory, *arguments]


def _run(directory: str, *arguments: str) -> None:
    """Run a command of ours, showing it and what it says; stop when it fails."""
    _say(f"   $ logbroker --data {directory} {' '.join(arguments)}")
    code = subprocess.run(_command(directory, *arguments), check=False).returncode
    if code:
        _fail(f"it failed with exit code {code}")


def _fail(message: str) -> NoReturn:
    _say(f"   FAILED: {message}")
    raise typer.Exit(FAILED)


def _ingest(directory: str, source: str) -> None:
    """Kill a process that has got half of the lines and waits for more; then give all to another."""
    command = _command(directory, "produce", TOPIC, "-", "--producer", "loader")
    folder = os.path.join(directory, "logs", f"{TOPIC}-0")
    with open(source, "rb") as file, subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            process.stdin.write(file.read(os.fstat(file.fileno()).st_size // 2))
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended, which the next lines tell
        while process.poll() is None and not _log_bytes(folder):
            time.sleep(0.001)
        process.kill()
        if process.wait() >= 0:
            _fail(f"it ended by itself, with exit code {process.returncode}")
    _say(f"   killed with -9; the log has {_log_bytes(folder):,} bytes")
    _run(directory, "produce", TOPIC, source, "--producer", "loader")


def _log_bytes(folder: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".log"))


def _compare(directory: str, source: str) -> None:
    started = time.monotonic()
    command = _command(directory, "tail", TOPIC, "--from", "earliest", "--value-only")
    back = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with open(source, "rb") as file:
        if file.read() != back:
            _fail("what came back is not what went in")
    _say(f"   equal: {len(back):,} bytes, in {time.monotonic() - started:.1f} s")


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
        _fail(f"read {read} and lag {lag} are not the {lines} lines")
    _say(f"   read {read:,} and committed, lag {lag:,}")
