"""The first and last moments of a process: Ctrl-C while it imports, streams that are not there."""

from __future__ import annotations

import signal
import subprocess
import sys

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


def test_a_terminated_process_ends_as_the_shell_expects(cli: Cli) -> None:
    cli.produce("t", b"one\n")
    with cli.start("tail", "t", "-f", "--value-only") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.terminate()
        assert process.wait(timeout=20) == -signal.SIGTERM
