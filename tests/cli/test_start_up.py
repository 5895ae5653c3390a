"""The first and last moments of a process: Ctrl-C while it imports, streams that are not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .conftest import Cli

INTERRUPTED_IMPORT = """
import signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "logbroker.cli.commands":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from logbroker.cli.app import main
main()
"""


def test_ctrl_c_while_the_commands_are_imported_is_130_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, "topic", "list"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_from_the_start_is_nowhere_and_no_error(cli: Cli, closed: str) -> None:
    """Nor does what is printed end in a log file that got its number."""
    cli.produce("t", b"one\ntwo\n")
    command = f'exec "{sys.executable}" -m logbroker.cli.app --data "{cli.data}" produce t --json {closed}'
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert cli("inspect", "verify", str(cli.data)).code == 0
    assert cli.values("t") == b"one\ntwo\n"


def unheard() -> Iterator[tuple[str, int]]:
    """Streams that take nothing, and what each is."""
    reader, writer = os.pipe()
    os.close(reader)
    yield "a pipe that nobody reads", writer
    if os.path.exists("/dev/full"):
        yield "a full disk", os.open("/dev/full", os.O_WRONLY)


def test_a_remark_that_nobody_can_read_ends_no_work_and_changes_no_exit_code(cli: Cli) -> None:
    """Such as "created topic": behind it the lines were not appended, and the exit code was 0."""
    for number, (what, stream) in enumerate(unheard()):
        for arguments, code in (
            (("produce", f"new{number}"), 0),
            (("tail", f"new{number}", "--from", "99"), 3),
            (("tail", "nothing"), 1),
            (("tail",), 2),
        ):
            command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(cli.data), *arguments]
            done = subprocess.run(
                command, input=b"one\ntwo\n", stdout=subprocess.PIPE, stderr=stream, check=False
            )
            assert (done.returncode, done.stdout) == (code, b""), (what, arguments)
        os.close(stream)
        assert cli.values(f"new{number}") == b"one\ntwo\n"


def test_a_terminated_process_ends_as_the_shell_expects(cli: Cli) -> None:
    cli.produce("t", b"one\n")
    with cli.start("tail", "t", "-f", "--value-only") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.terminate()
        assert process.wait(timeout=20) == -signal.SIGTERM
