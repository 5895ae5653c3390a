"""What every command has in common: the directory, exit codes, one line for an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import logbroker

from .conftest import Cli


def test_version_and_help(cli: Cli) -> None:
    assert cli.bare("--version").out == f"logbroker {logbroker.__version__}\n".encode()
    for command in (
        [],
        ["topic"],
        ["topic", "create"],
        ["produce"],
        ["tail"],
        ["group", "reset"],
        ["subscription", "create"],
        ["queue", "receive"],
        ["queue", "dead-letters", "redrive"],
        ["quickstart"],
    ):
        result = cli.bare(*command, "--help")
        assert result.code == 0
        assert b"--data" in result.out


def test_alone_it_shows_its_help_as_wrong_usage(cli: Cli) -> None:
    for command in ([], ["topic"], ["group"], ["subscription"], ["queue"], ["queue", "dead-letters"]):
        result = cli.bare(*command)
        assert (result.code, result.out) == (2, b"")
        assert "Commands:" in result.err
    assert cli.bare("nonsense").code == 2


def test_where_the_directory_is_said_to_be(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.bare("topic", "create", "default").code == 0
    assert (tmp_path / "logbroker-data" / "logs").is_dir()
    monkeypatch.setenv("LOGBROKER_DATA", str(tmp_path / "variable"))
    assert cli.bare("topic", "create", "variable").code == 0
    for arguments in (
        ("--data", "a", "topic", "create", "x"),
        ("topic", "--data", "b", "create", "x"),
        ("topic", "create", "x", "--data", "c"),
        ("--data", "no", "topic", "create", "--data", "d", "x"),
    ):
        assert cli.bare(*arguments).code == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"logbroker-data", "variable", "a", "b", "c", "d"}
    assert cli.bare("topic", "list", "--data", "").code == 2


@pytest.mark.parametrize(
    "command",
    [["tail", "x"], ["topic", "list"], ["topic", "describe", "x"], ["topic", "alter", "x", "-p", "2"],
     ["topic", "delete", "x"], ["group", "list"], ["group", "describe", "x"], ["group", "delete", "x"],
     ["group", "reset", "x", "--to", "latest"], ["subscription", "list"], ["subscription", "pause", "x"],
     ["subscription", "create", "x", "--topic", "t"], ["queue", "receive", "x"], ["queue", "ack", "x", "h"],
     ["queue", "dead-letters", "list", "x"], ["queue", "dead-letters", "redrive", "x"]],
)  # fmt: skip
def test_only_commands_that_write_make_a_directory(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    result = cli(*command)
    assert result.code == 1
    assert result.err == (
        f"logbroker: {cli.data} does not exist; name another with --data, or create a topic there first\n"
    )
    assert not cli.data.exists()
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        result = cli.bare("--data", str(tmp_path / name), *command)
        assert result.code == 1
        assert "is not a data directory" in result.err
    assert not list((tmp_path / "folder").iterdir())


def test_a_directory_that_cannot_be_looked_into_is_not_said_to_be_missing(cli: Cli, tmp_path: Path) -> None:
    """Whoever may not read it would make another one, and wonder where the records are."""
    (tmp_path / "round").symlink_to(tmp_path / "round")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    for path, why in (
        (tmp_path / "round", "Too many levels of symbolic links"),
        (closed, "Permission denied"),
    ):
        if path is closed and os.access(closed, os.R_OK):
            continue  # root may look into everything
        result = cli.bare("--data", str(path), "topic", "list")
        assert (result.code, result.err) == (1, f"logbroker: {path}/logs: {why}\n")


@pytest.mark.parametrize(
    "command",
    [["tail", "t"], ["queue", "receive", "s"], ["queue", "dead-letters", "list", "s"],
     ["transform", "preview", "p.toml", "t"]],
)  # fmt: skip
def test_more_records_than_a_log_can_have_are_wrong_usage(cli: Cli, command: list[str]) -> None:
    cli.produce("t", b"a\n")
    assert cli("subscription", "create", "s", "--topic", "t", "--dead-letter", "t.dead").code == 0
    result = cli(*command, "-n", str(1 << 63))
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_the_inspector_is_mounted_and_finds_the_directory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.produce("orders", b"a\n")
    monkeypatch.setenv("LOGBROKER_DATA", "elsewhere")  # what the command sets is taken back behind the test
    assert cli("inspect", "verify").code == 0
    assert cli.bare("inspect", "verify", str(cli.data)).code == 0
    assert cli.bare("inspect").code == 2
    log = cli.data / "logs" / "orders-0" / "00000000000000000000.log"
    log.write_bytes(log.read_bytes().replace(b"a", b"b"))
    assert cli("inspect", "verify").code == 1


def test_names_that_are_not_utf_8_are_errors_of_one_line(cli: Cli) -> None:
    cli.produce("orders", b"a\n")
    for arguments in (
        ("topic", "create", "\udcff"),
        ("topic", "alter", "orders", "--config", "\udcff=1"),
        ("topic", "alter", "orders", "--config", "durability=\udcff"),
        ("tail", "\udcff"),
        ("tail", "orders", "--group", "\udcff"),
        ("group", "reset", "\udcff", "--to", "latest"),
        ("produce", "orders", "/dev/null", "--producer", "\udcff"),
    ):
        result = cli(*arguments)
        assert result.code == 1, arguments
        assert result.err.count("\n") == 1
        assert "internal" not in result.err, result.err


def test_an_error_of_ours_is_a_line_as_well(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise RuntimeError("two\nlines")

    cli("topic", "create", "orders")
    monkeypatch.setattr(logbroker, "open", broken, raising=False)
    result = cli("topic", "list")
    assert result.code == 1
    assert result.err.startswith("logbroker: internal error: RuntimeError: two lines")
    assert result.err.count("\n") == 1
