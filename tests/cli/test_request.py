"""logbroker request and logbroker respond."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import logbroker

from .conftest import Cli

DEADLINE_S = 20.0


@pytest.fixture
def respond(cli: Cli) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start ``logbroker respond`` and wait until it takes requests."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(topic: str, command: str, *options: str) -> subprocess.Popen[bytes]:
        process = cli.start("respond", topic, "--exec", command, *options)
        processes.append(process)
        assert process.stderr is not None
        assert process.stderr.readline() == f"responding to {topic}\n".encode()
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_command_answers_and_the_reply_is_printed_as_it_is(cli: Cli, respond) -> None:
    respond("rpc.upper", "tr a-z A-Z")
    result = cli("request", "rpc.upper", "hello")
    assert (result.code, result.out, result.err) == (0, b"HELLO", "")


def test_the_request_may_come_from_stdin_in_any_bytes(cli: Cli, respond) -> None:
    respond("t", "cat")
    asking = cli.start("request", "t")
    out, err = asking.communicate(b"\x00\xff\n", DEADLINE_S)
    assert (asking.returncode, out, err) == (0, b"\x00\xff\n", b"")


def test_json_shows_value_key_headers_and_time_of_the_reply(cli: Cli) -> None:
    with logbroker.open(cli.data) as broker:
        broker.responder("t")(
            lambda request: logbroker.Message(b"\xff", key=request.key, headers=request.headers)
        )
        document = cli("request", "t", "x", "--json", "--key", "k", "-H", "a=1", "--header", "b=").document
    assert document.pop("timestamp").endswith("+00:00")
    assert document == {
        "key": "k",
        "value": "/w==",
        "encoding": "base64",
        "headers": [{"key": "a", "value": "1"}, {"key": "b", "value": ""}],
    }


def test_a_command_sees_topic_and_key(cli: Cli, respond) -> None:
    respond("t", 'printf "%s %s" "$LOGBROKER_TOPIC" "${LOGBROKER_KEY-none}"')
    assert cli("request", "t", "", "--key", "alice").out == b"t alice"
    assert cli("request", "t", "").out == b"t none"


def test_a_command_that_fails_is_an_error_with_its_last_words(cli: Cli, respond) -> None:
    respond("t", "echo first >&2; echo there is no such order >&2; exit 4")
    result = cli("request", "t", "x")
    assert (result.code, result.out) == (1, b"")
    assert result.err == (
        "logbroker: the responder of 't' failed: CommandFailed: exit code 4: there is no such order\n"
    )


def is_running(pid: int) -> bool:
    """Whether a process is there, and more than what its parent has not taken note of yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_timing_out_is_exit_code_3_and_the_command_is_killed_with_what_it_started(
    cli: Cli, respond, tmp_path
) -> None:
    child_file = tmp_path / "child"
    child_file.touch()
    respond("t", f"sleep 600 & echo $! > {child_file}; wait")
    for timeout in ("0.5", "2", "8", "32"):  # as long as it takes the command to start
        began = time.monotonic()
        result = cli("request", "t", "x", "--timeout", timeout)
        assert time.monotonic() - began < float(timeout) + DEADLINE_S
        assert (result.code, result.out) == (3, b"")
        assert f"no reply to a request on 't' within {timeout} seconds" in result.err
        if child_file.read_text():
            break
    child = int(child_file.read_text())
    deadline = time.monotonic() + DEADLINE_S
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_a_responder_it_fails_at_once_or_waits_for_one(cli: Cli, respond) -> None:
    with logbroker.open(cli.data) as broker:
        broker.create_topic("t")
    result = cli("request", "t", "x")
    assert result.code == 1
    assert "nobody responds to 't'" in result.err
    assert "give --wait" in result.err
    assert "if_nobody" not in result.err
    silent = cli("request", "t", "x", "--wait", "--timeout", "0.1")
    assert (silent.code, "a longer --timeout," in silent.err) == (3, True)
    waiting = cli.start("request", "t", "late", "--wait", "--timeout", str(DEADLINE_S))
    respond("t", "cat")
    out, err = waiting.communicate(timeout=DEADLINE_S)
    assert (waiting.returncode, out, err) == (0, b"late", b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_behind_the_request_at_hand(cli: Cli, respond, number: int, code: int) -> None:
    process = respond("t", "sleep 0.7; echo done")
    asking = cli.start("request", "t", "x")
    with logbroker.open(cli.data) as broker:
        deadline = time.monotonic() + DEADLINE_S
        while not broker.subscription("responders:t").partitions[0].in_flight:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    process.send_signal(number)
    out, err = asking.communicate(timeout=DEADLINE_S)
    assert (asking.returncode, out, err) == (0, b"done\n", b"")
    assert process.wait(DEADLINE_S) == code


def test_wrong_usage(cli: Cli) -> None:
    assert cli("respond", "t").code == 2
    assert cli("request").code == 2
    with logbroker.open(cli.data):
        assert cli("request", "t", "x", "--header", "novalue").code == 2
        assert cli("request", "t", "x", "--timeout", "0").code == 1
