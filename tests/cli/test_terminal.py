"""What somebody at a terminal sees: tables, one line a record, a progress bar."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from .conftest import Cli


def on_terminal(cli: Cli, *arguments: str, **variables: str) -> str:
    """What the command draws on a terminal of 100 columns."""
    reading, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LC_ALL": "C.UTF-8"} | variables
    command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(cli.data), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        drawn = b"".join(iter(lambda: _read(reading), b""))
    os.close(reading)
    assert process.returncode == 0, drawn
    return drawn.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""  # EIO: nobody has the other end any more


def test_facts_are_tables_with_headings(cli: Cli) -> None:
    cli("topic", "create", "orders", "--partitions", "2")
    drawn = on_terminal(cli, "topic", "describe", "orders")
    assert "topic orders, id " in drawn
    assert "high watermark" in drawn
    assert "(none)" in drawn  # no configuration of its own


def test_names_are_drawn_whatever_encoding_the_terminal_is_said_to_have(cli: Cli) -> None:
    cli.produce("t", b"one\n")
    cli("tail", "t", "--group", "zürich")
    for command in (["group", "list"], ["group", "describe", "zürich"]):
        assert "zürich" in on_terminal(cli, *command, PYTHONIOENCODING="ascii")


def test_a_record_is_one_line_that_does_nothing_to_the_terminal(cli: Cli) -> None:
    cli.produce("t", b"k:\x1b[31mred\n", "--key-separator", ":")
    (line,) = on_terminal(cli, "tail", "t").splitlines()
    assert line.startswith("t-0  0  ")
    assert line.endswith(r"k:  \x1b[31mred")


def test_a_file_has_a_progress_bar_and_a_pipe_has_none(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "lines"
    source.write_bytes(b"x" * 99 + b"\n" + b"y" * 99 + b"\n")
    drawn = on_terminal(cli, "produce", "t", str(source))
    assert "━" in drawn
    assert "2 records, 198 bytes to t" in drawn
    with cli.start("produce", "t", str(source)) as process:
        assert process.stderr is not None
        assert "━" not in process.stderr.read().decode()


def test_queues_are_tables_and_held_messages_lines_that_begin_with_their_handles(cli: Cli) -> None:
    cli.produce("jobs", b"one\ntwo\n")
    cli("subscription", "create", "workers", "--topic", "jobs", "--dead-letter", "dead")
    described = on_terminal(cli, "subscription", "describe", "workers")
    assert "subscription workers" in described
    assert "max deliveries" in described
    held = on_terminal(cli, "queue", "receive", "workers", "--hold")
    assert held.startswith("jobs:0:0:~")
    assert held.rstrip().endswith("one")
    cli("queue", "reject", "workers", held.split()[0], "--reason", "\x1b[31mred")
    letters = on_terminal(cli, "queue", "dead-letters", "list", "workers")
    assert "\x1b[31mred" not in letters
    shown = on_terminal(cli, "queue", "dead-letters", "show", "workers", "0")
    assert "dead letter of workers" in shown
    assert "\x1b[31mred" not in shown
