"""The command line as processes: pipes that close, Ctrl-C, following, the quickstart."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .conftest import Cli

PATIENCE_S = 60


@contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("options", [["--value-only"], ["--json"], ["-f", "--value-only"]])
def test_a_reader_that_has_enough_ends_it_quietly(cli: Cli, options: list[str]) -> None:
    cli.produce("orders", b"some line\n" * 50_000)
    with running(cli.start("tail", "orders", "--from", "earliest", *options)) as process:
        assert process.stdout is not None
        assert b"some line" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_reader_that_leaves_while_nothing_comes_is_noticed(cli: Cli) -> None:
    cli.produce("orders", b"only\n")
    with running(cli.start("tail", "orders", "-f", "--value-only")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"only\n"
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0


def test_each_record_is_there_at_once_when_it_is_followed_and_ctrl_c_is_130(cli: Cli) -> None:
    cli("topic", "create", "orders")
    with (
        running(cli.start("produce", "orders", "-")) as writer,
        running(cli.start("tail", "orders", "-f", "--from", "earliest", "--value-only")) as reader,
    ):
        assert writer.stdin is not None
        assert reader.stdout is not None
        for number in range(5):
            writer.stdin.write(b"%d\n" % number)
            writer.stdin.flush()
            assert reader.stdout.readline() == b"%d\n" % number
        reader.send_signal(signal.SIGINT)
        assert reader.wait(PATIENCE_S) == 130
        assert reader.stderr is not None
        assert reader.stderr.read() == b""


def test_what_was_handed_over_before_ctrl_c_is_kept_and_the_next_run_goes_on(cli: Cli) -> None:
    cli("topic", "create", "orders")
    with running(cli.start("produce", "orders", "--producer", "loader")) as process:
        assert process.stdin is not None
        process.stdin.write(b"a\nb\nhalf a li")
        process.stdin.flush()
        follow = cli(
            "tail", "orders", "-f", "--from", "earliest", "-n", "2", "--timeout", "30", "--value-only"
        )
        assert follow.out == b"a\nb\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        assert "2 records" in errors
        assert "Traceback" not in errors
    assert (
        cli.produce("orders", b"a\nb\nhalf a line\nd\n", "--producer", "loader", "--json").document["skipped"]
        == 2
    )
    assert cli.values("orders") == b"a\nb\nhalf a line\nd\n"


def test_what_was_printed_is_committed_even_when_it_is_killed(cli: Cli) -> None:
    cli.produce("orders", b"1\n2\n3\n")
    with running(cli.start("tail", "orders", "-f", "--group", "g", "--value-only")) as reader:
        assert reader.stdout is not None
        assert [reader.stdout.readline() for _ in range(3)] == [b"1\n", b"2\n", b"3\n"]
        cli.produce("orders", b"4\n")
        assert reader.stdout.readline() == b"4\n", "so the three before are committed"
        reader.kill()
    assert cli("group", "describe", "g", "--json").document["lag"] <= 1


def test_a_full_disk_on_the_other_side_is_an_error(cli: Cli) -> None:
    cli.produce("orders", b"1\n")
    try:
        full = open("/dev/full", "wb")  # noqa: SIM115  (closed below; the test is skipped without it)
    except OSError:
        pytest.skip("no /dev/full here")
    with full, running(cli.start("tail", "orders", stdout=full)) as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert errors == b"logbroker: No space left on device\n"


def test_help_does_not_load_the_engine() -> None:
    program = (
        "import sys, logbroker.cli.app as app; app.run(['--help']); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('logbroker_storage', 'logbroker_tools', 'lmdb', 'rich', 'msgspec')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stderr.split() == [b"['logbroker_storage',", b"'logbroker_storage.standard_streams']"]


def test_the_quickstart_does_what_it_says(cli: Cli) -> None:
    with running(cli.start("quickstart", "--lines", "2000")) as process:
        out, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    assert b"killed with -9" in out
    assert b"everything is as it should be" in out
    again = cli("quickstart", "--lines", "10")
    assert again.code == 2
    assert "already" in again.err
