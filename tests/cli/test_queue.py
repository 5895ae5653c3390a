"""logbroker queue: messages taken out on the command line, held, settled by another process, and redriven."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import logbroker

from .conftest import Cli


@pytest.fixture
def jobs(cli: Cli) -> Cli:
    """Five messages and a queue with dead letters."""
    cli.produce("jobs", b"".join(b"%d\n" % number for number in range(5)))
    made = cli("subscription", "create", "workers", "--topic", "jobs", "--dead-letter", "jobs.dead")
    assert made.code == 0, made.err
    return cli


def stats(cli: Cli) -> dict[str, int]:
    document: dict[str, int] = cli("queue", "stats", "workers", "--json").document
    return document


def hold(cli: Cli, *options: str) -> list[str]:
    """The handles of messages that are received and held."""
    result = cli("queue", "receive", "workers", "--hold", "--format", r"%r\n", *options)
    assert result.code == 0, result.err
    return result.out.decode().split()


def reject_all(cli: Cli, reason: str = "no good") -> None:
    assert cli("queue", "reject", "workers", *hold(cli, "-n", "100"), "--reason", reason).code == 0


def wait_for(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Receiving ------------------------------------------------------------------------------------------------


def test_receive_prints_a_message_and_is_done_with_it(jobs: Cli) -> None:
    row = jobs("queue", "receive", "workers").rows[0]
    assert (row[:3], row[4:]) == (["jobs", "0", "0"], ["", "0", ""])
    assert jobs("queue", "receive", "workers", "-n", "2", "--value-only").out == b"1\n2\n"
    assert jobs("queue", "receive", "workers", "-n", "100", "--value-only").out == b"3\n4\n", "all there is"
    counts = stats(jobs)
    assert (counts["lag"], counts["in_flight"], counts["ready"]) == (0, 0, 0)


def test_json_is_an_object_a_line_with_the_delivery_count(jobs: Cli) -> None:
    (first,) = jobs("queue", "receive", "workers", "--json").objects
    assert (first["topic"], first["offset"], first["value"], first["delivery_count"]) == ("jobs", 0, "0", 1)
    assert "handle" not in first, "it is settled"


def test_the_format_has_the_fields_of_tail_and_two_more(jobs: Cli) -> None:
    result = jobs("queue", "receive", "workers", "--format", r"%o %v %d%%\n")
    assert result.out == b"0 0 1%\n"
    assert jobs("queue", "receive", "workers", "--format", "%x").code == 2


def test_nothing_in_time_is_exit_code_3(jobs: Cli) -> None:
    jobs("queue", "receive", "workers", "-n", "5")
    began = time.monotonic()
    result = jobs("queue", "receive", "workers", "--timeout", "0.3")
    assert time.monotonic() - began >= 0.3
    assert (result.code, result.out) == (3, b"")
    assert result.err == "logbroker: no message of subscription 'workers' came in time\n"


def test_a_receive_that_waits_gets_what_is_sent_meanwhile(jobs: Cli) -> None:
    jobs("queue", "receive", "workers", "-n", "5")
    with jobs.start("queue", "receive", "workers", "--timeout", "30", "--value-only") as process:
        time.sleep(0.5)
        jobs.produce("jobs", b"late\n")
        assert process.stdout is not None
        assert process.stdout.read() == b"late\n"
    assert process.returncode == 0


def test_follow_goes_on_until_it_is_silent_or_has_enough(jobs: Cli) -> None:
    result = jobs("queue", "receive", "workers", "-f", "--timeout", "0.2", "--value-only")
    assert (result.code, result.out) == (3, b"0\n1\n2\n3\n4\n")
    jobs.produce("jobs", b"a\nb\nc\n")
    result = jobs("queue", "receive", "workers", "-f", "-n", "2", "--value-only")
    assert (result.code, result.out) == (0, b"a\nb\n")


def test_follow_ends_when_nobody_reads_any_more(jobs: Cli) -> None:
    with jobs.start("queue", "receive", "workers", "-f", "--value-only") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_what_cannot_be_printed_is_not_accepted(jobs: Cli) -> None:
    with open("/dev/full", "wb") as full, jobs.start("queue", "receive", "workers", stdout=full) as process:
        assert process.wait(timeout=20) == 1
    (message,) = jobs("queue", "receive", "workers", "--json").objects
    assert (message["value"], message["delivery_count"]) == ("0", 1), "as if it had not been received"


def test_killed_before_it_accepts_the_message_comes_again(jobs: Cli, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    big = b"x" * 900_000
    jobs.produce("big", big + b"\n")
    jobs("subscription", "create", "slow", "--topic", "big")
    with open(fifo, "r+b", buffering=0) as pipe, open(fifo, "wb", buffering=0) as output:
        process = jobs.start("queue", "receive", "slow", "--value-only", stdout=output)
        wait_for(lambda: jobs("queue", "stats", "slow", "--json").document["in_flight"] == 1)
        assert pipe.read(10) == b"x" * 10, "it is in the middle of writing"
        process.kill()
        process.wait()
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.close()
    process.stderr.close()
    (message,) = jobs("queue", "receive", "slow", "--timeout", "10", "--json").objects
    assert (len(message["value"]), message["delivery_count"]) == (len(big), 2)


# Holding and settling -------------------------------------------------------------------------------------


def test_a_held_message_is_settled_by_its_handle_in_another_process(jobs: Cli) -> None:
    with jobs.start("queue", "receive", "workers", "--hold", "--json") as process:
        assert process.stdout is not None
        message = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert stats(jobs)["in_flight"] == 1
    assert jobs("queue", "receive", "workers", "--value-only").out == b"1\n", "it is in other hands"
    done = jobs("queue", "ack", "workers", message["handle"], "--json")
    assert done.document == {"subscription": "workers", "accepted": [message["handle"]]}
    assert stats(jobs)["in_flight"] == 0


def test_the_handle_stands_first_on_a_pipe(jobs: Cli) -> None:
    held = jobs("queue", "receive", "workers", "--ack", "hold", "-n", "2").rows
    assert [row[1:4] for row in held] == [["jobs", "0", "0"], ["jobs", "0", "1"]]
    settled = jobs("queue", "ack", "workers", *(row[0] for row in held))
    assert (settled.code, settled.err) == (0, "accepted 2 messages\n")


def test_a_released_message_comes_again_at_once_or_later(jobs: Cli) -> None:
    first, second = hold(jobs, "-n", "2")
    assert jobs("queue", "release", "workers", first).code == 0
    assert jobs("queue", "release", "workers", second, "--delay", "1h").code == 0
    counts = stats(jobs)
    assert (counts["ready"], counts["delayed"], counts["lag"]) == (4, 1, 5)
    (message,) = jobs("queue", "receive", "workers", "--json").objects
    assert (message["value"], message["delivery_count"]) == ("0", 2)


def test_an_extended_lease_lasts(jobs: Cli) -> None:
    (handle,) = hold(jobs, "--lease", "3s")  # the next command may start slowly
    ends = time.monotonic() + 3.0
    assert jobs("queue", "extend", "workers", handle, "--lease", "1h").code == 0
    time.sleep(max(0.0, ends - time.monotonic()))
    assert jobs("queue", "ack", "workers", handle).code == 0


def test_a_lease_that_has_ended_cannot_be_settled(jobs: Cli) -> None:
    (handle,) = hold(jobs, "--lease", "50ms")
    time.sleep(0.1)
    for command in ("ack", "release", "reject", "extend"):
        result = jobs("queue", command, "workers", handle)
        assert result.code == 1
        assert "jobs-0 0 to 0" in result.err
        assert result.err.count("\n") == 1
    assert jobs("queue", "receive", "workers", "--value-only").out == b"0\n"


def test_of_several_handles_the_good_ones_are_accepted(jobs: Cli) -> None:
    first, second = hold(jobs, "-n", "2")
    assert jobs("queue", "ack", "workers", first).code == 0
    assert jobs("queue", "ack", "workers", first, second).code == 1
    assert stats(jobs)["in_flight"] == 0


def test_stats_count_by_state(jobs: Cli) -> None:
    jobs("queue", "reject", "workers", *hold(jobs))
    hold(jobs)
    document = stats(jobs)
    age = document.pop("oldest_age_ms")
    assert age >= 0
    assert document == {
        "name": "workers", "is_paused": False, "lag": 4, "ready": 3, "in_flight": 1, "delayed": 0, "waiting": 0,
        "rejected": 0, "dead_letters": 1, "consumers": 1,
    }  # fmt: skip
    assert ["in flight", "1"] in jobs("queue", "stats", "workers").rows


# Dead letters ---------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_with_where_they_came_from_and_why(jobs: Cli) -> None:
    jobs("queue", "reject", "workers", *hold(jobs), "--reason", "bad\tinput")
    ((place, topic, partition, offset, reason, deliveries, age, redriven),) = jobs(
        "queue", "dead-letters", "list", "workers"
    ).rows
    assert (place, topic, partition, offset, reason, deliveries, redriven) == (
        "0:0", "jobs", "0", "0", r"bad\tinput", "1", "no"
    )  # fmt: skip
    assert 0 <= int(age) < 60_000
    (letter,) = jobs("queue", "dead-letters", "list", "workers", "--json").objects
    assert letter["place"] == "0:0"
    assert letter["death"]["reason"] == "bad\tinput"
    assert not letter["is_redriven"]


def test_a_dead_letter_is_shown_with_its_value_and_headers(cli: Cli) -> None:
    cli.produce("jobs", b"alice:\xff\x00\n", "--key-separator", ":", "--header", "type=job")
    cli("subscription", "create", "workers", "--topic", "jobs", "--dead-letter", "jobs.dead")
    reject_all(cli, "no good")
    rows = cli("queue", "dead-letters", "show", "workers", "0:0").rows
    facts = {row[1]: row[2] for row in rows if row[0] == "letter"}
    assert (facts["came from"], facts["reason"]) == ("jobs-0 at offset 0", "no good")
    assert (facts["key"], facts["value"]) == ("alice", r"\xff\x00")
    assert ["header", "type", "job"] in rows
    document = cli("queue", "dead-letters", "show", "workers", "0", "--json").document
    assert (document["record"]["value"], document["record"]["encoding"]) == ("/wA=", "base64")
    assert document["record"]["headers"] == [{"key": "type", "value": "job"}]
    assert document["death"]["deliveries"] == 1


def test_redrive_sends_all_back_once(jobs: Cli) -> None:
    reject_all(jobs)
    tried = jobs("queue", "dead-letters", "redrive", "workers", "--dry-run", "--json")
    assert tried.document == {
        "subscription": "workers",
        "dry_run": True,
        "sent": {"jobs": 5},
        "left_out": [],
    }
    assert jobs("queue", "dead-letters", "redrive", "workers").rows == [["jobs", "5"]]
    assert jobs("queue", "dead-letters", "redrive", "workers").code == 3, "there is nothing left"
    assert jobs("queue", "dead-letters", "list", "workers").code == 3
    assert [row[-1] for row in jobs("queue", "dead-letters", "list", "workers", "--all").rows] == ["yes"] * 5
    assert jobs("queue", "receive", "workers", "-n", "9", "--value-only").out == b"0\n1\n2\n3\n4\n"


def test_redrive_sends_some_elsewhere(jobs: Cli) -> None:
    reject_all(jobs)
    jobs("topic", "create", "repaired")
    redriven = jobs("queue", "dead-letters", "redrive", "workers", "1", "0:3", "--to", "repaired", "--json")
    assert redriven.document["sent"] == {"repaired": 2}
    assert jobs.values("repaired") == b"1\n3\n"
    assert [row[0] for row in jobs("queue", "dead-letters", "list", "workers", "-n", "2").rows] == [
        "0:0",
        "0:2",
    ]


def test_a_letter_that_cannot_go_back_is_told(jobs: Cli) -> None:
    reject_all(jobs)
    jobs("topic", "delete", "jobs")
    result = jobs("queue", "dead-letters", "redrive", "workers", "2")
    assert result.code == 3
    assert "left out 0:2: topic 'jobs' is not there any more" in result.err


def test_the_limit_of_deliveries_ends_in_a_dead_letter(cli: Cli) -> None:
    cli.produce("jobs", b"x\n")
    cli(
        "subscription",
        "create",
        "workers",
        "--topic",
        "jobs",
        "--dead-letter",
        "dead",
        "--max-deliveries",
        "2",
    )
    for _ in range(2):
        cli("queue", "release", "workers", *hold(cli))
    assert cli("queue", "dead-letters", "list", "workers").rows[0][4:6] == ["delivery limit reached", "2"]


# Errors ---------------------------------------------------------------------------------------------------


def test_wrong_usage(jobs: Cli) -> None:
    for arguments in (
        (), ("receive",), ("receive", "workers", "-n", "0"), ("receive", "workers", "--ack", "maybe"),
        ("receive", "workers", "--hold", "--value-only"), ("receive", "workers", "--json", "--value-only"),
        ("receive", "workers", "--lease", "long"), ("ack", "workers"), ("release", "workers", "x", "--delay", "x"),
        ("dead-letters",), ("dead-letters", "show", "workers", "first"), ("dead-letters", "redrive", "workers", "-"),
    ):  # fmt: skip
        result = jobs("queue", *arguments)
        assert result.code == 2, arguments


def test_what_is_not_there_is_one_line_and_exit_code_1(jobs: Cli) -> None:
    jobs("subscription", "create", "audit", "--topic", "jobs", "--kind", "stream")
    for arguments in (
        ("receive", "nobody"), ("receive", "audit"), ("ack", "workers", "nonsense"), ("stats", "audit"),
        ("ack", "workers", "other:0:0:~a"), ("dead-letters", "redrive", "workers", "99"), ("stats", "nobody"),
        ("dead-letters", "list", "nobody"), ("dead-letters", "redrive", "workers", "--to", "nowhere"),
        ("receive", "workers", "--lease", "9d"), ("dead-letters", "redrive", "audit"),
    ):  # fmt: skip
        result = jobs("queue", *arguments)
        assert result.code == 1, arguments
        assert result.err.count("\n") == 1


def test_a_command_is_a_consumer_beside_those_of_the_library(jobs: Cli) -> None:
    with logbroker.open(jobs.data) as broker, broker.queue(subscription="workers") as queue:
        message = queue.receive(timeout=1.0)
        assert jobs("queue", "receive", "workers", "--value-only").out == b"1\n"
        message.accept()
    assert stats(jobs)["lag"] == 3
