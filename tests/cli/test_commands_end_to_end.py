"""The commands as a user runs them, one after the other: their output and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Cli, Result

COMMAND = [sys.executable, "-m", "logbroker.cli.app"]


class Shell:
    """Runs ``logbroker`` on one data directory, in this process: starting one takes longer than the command."""

    def __init__(self, cli: Cli, scratch: Path) -> None:
        self.cli = cli
        self.data = cli.data
        self._scratch = scratch

    def run(self, *arguments: str, stdin: bytes | None = None, code: int = 0) -> Result:
        """One command; its exit code must be *code*, and there must be no traceback.

        What is given as *stdin* is read from a file: ``test_processes`` has real pipes.
        """
        if stdin is not None:
            self._scratch.write_bytes(stdin)
            arguments = (*arguments, str(self._scratch))
        done = self.cli(*arguments)
        assert done.code == code, (arguments, done)
        assert "Traceback" not in done.err
        return done

    def output(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        return self.run(*arguments, stdin=stdin).out

    def values(self, *arguments: str) -> bytes:
        """What ``tail`` prints of values alone."""
        return self.output("tail", *arguments, "--value-only")

    def json(self, *arguments: str) -> object:
        return json.loads(self.output(*arguments, "--json"))


@pytest.fixture
def shell(cli: Cli, tmp_path: Path) -> Shell:
    return Shell(cli, tmp_path / "stdin")


def test_lines_go_in_and_come_back_byte_for_byte(shell: Shell) -> None:
    content = b"one\n\n\xff\xfe binary\nwith return\r\n" + b"x" * 300_000 + b"\nlast\n"
    shell.run("produce", "t", stdin=content)
    assert shell.output("tail", "t", "--from", "earliest", "--value-only") == content


def test_a_last_line_without_a_newline_is_a_record(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\nb")
    shell.run("produce", "t", str(tmp_path / "file"))
    assert shell.values("t", "--from", "earliest") == b"a\nb\n"


def test_keys_and_headers_come_out_in_json_and_in_a_format(shell: Shell) -> None:
    shell.run("produce", "t", "--key-separator", ":", "--header", "h=1", stdin=b"k:v\nno key\n")
    first, second = map(json.loads, shell.output("tail", "t", "--json").splitlines())
    assert (first["key"], first["value"], first["offset"]) == ("k", "v", 0)
    assert first["headers"][0]["key"] == "h"
    assert (second["key"], second["value"]) == (None, "no key")
    assert shell.output("tail", "t", "--format", r"%t/%p/%o %k=%v%%\n") == b"t/0/0 k=v%\nt/0/1 =no key%\n"


def test_bytes_that_are_no_text_are_base64_in_json(shell: Shell) -> None:
    shell.run("produce", "t", stdin=b"\xff\n")
    (record,) = map(json.loads, shell.output("tail", "t", "--json").splitlines())
    assert record["value"] == "/w=="
    assert "base64" in record.values()


def test_a_named_producer_appends_each_line_once_however_often_it_is_run(
    shell: Shell, tmp_path: Path
) -> None:
    source = tmp_path / "lines"
    source.write_bytes(b"".join(b"%d\n" % number for number in range(1000)))
    shell.run("topic", "create", "many", "--partitions", "3")
    for topic in ("one", "many"):
        for _ in range(3):
            shell.run("produce", topic, str(source), "--producer", "loader")
        back = shell.output("tail", topic, "--from", "earliest", "--value-only")
        assert sorted(map(int, back.split())) == list(range(1000))
    with source.open("ab") as file:
        file.write(b"1000\n")
    shell.run("produce", "one", str(source), "--producer", "loader")
    assert shell.values("one", "-n", "2") == b"999\n1000\n"


def test_tail_begins_and_ends_where_it_is_told(shell: Shell) -> None:
    shell.run("produce", "t", stdin=b"".join(b"%d\n" % number for number in range(20)))
    assert shell.values("t", "--from", "5", "--until", "8").split() == [b"5", b"6", b"7"]
    assert shell.values("t", "--from", "-3").split() == [b"17", b"18", b"19"]
    assert shell.values("t", "--from", "earliest", "-n", "2").split() == [b"0", b"1"]
    assert len(shell.values("t", "--from", "-1h").split()) == 20
    shell.run("tail", "t", "--from", "latest", code=3)


def test_follow_prints_records_as_they_come_and_ends_at_an_interrupt(shell: Shell) -> None:
    shell.run("produce", "t", stdin=b"first\n")
    command = [*COMMAND, "--data", str(shell.data), "tail", "t", "-f", "--from", "earliest", "--value-only"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    shell.run("produce", "t", stdin=b"second\n")
    assert process.stdout.readline() == b"second\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    process.communicate()


def test_a_group_goes_on_where_it_stopped_and_can_be_reset(shell: Shell) -> None:
    shell.run("produce", "t", stdin=b"a\nb\nc\n")
    assert shell.values("t", "--from", "stored", "--group", "g", "-n", "2") == b"a\nb\n"
    assert shell.values("t", "--from", "stored", "--group", "g") == b"c\n"
    groups = shell.json("group", "describe", "g")
    assert isinstance(groups, dict)
    assert groups["offsets"][0]["committed_offset"] == 3
    shell.run("group", "reset", "g", "--to", "1", "--dry-run")
    shell.run("tail", "t", "--from", "stored", "--group", "g", code=3)
    shell.run("group", "reset", "g", "--to", "1")
    assert shell.values("t", "--from", "stored", "--group", "g") == b"b\nc\n"
    shell.run("group", "delete", "g")
    assert shell.json("group", "list") == []


def test_topics_are_made_described_altered_and_deleted(shell: Shell) -> None:
    shell.run("topic", "create", "t", "--partitions", "2", "--config", "retention.ms=1000")
    shell.run("topic", "create", "t", code=1)
    shell.run("topic", "create", "u", "--config", "retention.mss=1000", code=1)
    shell.run("topic", "alter", "t", "--config", "retention.bytes=5", "--partitions", "3")
    described = shell.json("topic", "describe", "t")
    assert isinstance(described, dict)
    assert len(described["partitions"]) == 3
    assert described["overrides"] == {"retention.bytes": "5", "retention.ms": "1000"}
    shell.run("topic", "delete", "t")
    assert shell.json("topic", "list") == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["tail", "nothing"], 1),
        (["topic", "list"], 1),
        (["produce", "t", "/no/such/file"], 1),
        (["nonsense"], 2),
        (["topic", "create"], 2),
        (["tail", "t", "--from", "yesterdayish"], 2),
        (["tail", "t", "--from", "stored"], 2),
        (["produce", "t", "--key-separator", ""], 2),
    ],
)
def test_an_error_is_one_line_on_stderr(shell: Shell, arguments: list[str], code: int) -> None:
    done = shell.run(*arguments, code=code)
    assert done.out == b""
    assert len(done.err.splitlines()) == 1


def test_reading_from_a_directory_that_is_not_there_does_not_make_it(shell: Shell) -> None:
    shell.run("tail", "t", code=1)
    assert not shell.data.exists()


def test_a_reader_that_has_enough_ends_it_quietly(shell: Shell) -> None:
    shell.run("produce", "t", stdin=b"".join(b"%d\n" % number for number in range(200_000)))
    pipeline = f"{' '.join(COMMAND)} --data {shell.data} tail t --from earliest --value-only | head -1"
    done = subprocess.run(["sh", "-c", pipeline], capture_output=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == (b"0\n", b"")


def test_the_directory_may_be_named_by_the_environment_and_behind_the_command(shell: Shell) -> None:
    shell.run("produce", "t", stdin=b"x\n")
    environment = os.environ | {"LOGBROKER_DATA": str(shell.data)}
    done = subprocess.run(
        [*COMMAND, "tail", "t", "--value-only"], env=environment, capture_output=True, check=True
    )
    assert done.stdout == b"x\n"
    behind = [*COMMAND, "tail", "t", "--value-only", "--data", str(shell.data)]
    assert subprocess.run(behind, capture_output=True, check=True).stdout == b"x\n"


def test_the_inspector_is_a_command_too(shell: Shell) -> None:
    shell.run("produce", "t", stdin=b"x\n")
    for arguments in (
        ["inspect", "verify", str(shell.data)],
        ["--data", str(shell.data), "inspect", "verify"],
    ):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, check=True)
        assert b"errors: 0" in done.stdout
