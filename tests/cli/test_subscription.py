"""logbroker subscription."""

from __future__ import annotations

import pytest

import logbroker

from .conftest import Cli


@pytest.fixture
def jobs(cli: Cli) -> Cli:
    """Ten messages in a topic of one partition, and a queue of which three are done and two in somebody's hands."""
    cli.produce("jobs", b"".join(b"%d\n" % number for number in range(10)))
    created = cli("subscription", "create", "workers", "--topic", "jobs", "--dead-letter", "jobs.dead")
    assert created.code == 0, created.err
    assert cli("queue", "receive", "workers", "-n", "3").code == 0
    assert cli("queue", "receive", "workers", "-n", "2", "--hold").code == 0
    return cli


def start_of(cli: Cli, name: str) -> list[int]:
    partitions = cli("subscription", "describe", name, "--json").document["partitions"]
    return [partition["start_offset"] for partition in partitions]


def test_create_says_what_it_made_and_json_gives_the_rules(cli: Cli) -> None:
    cli("topic", "create", "jobs", "--partitions", "2")
    made = cli("subscription", "create", "workers", "-t", "jobs")
    assert (made.code, made.out, made.err) == (0, b"", "created queue workers on jobs\n")
    document = cli(
        "subscription", "create", "strict", "--topic", "jobs", "--lease", "1m30s", "--max-deliveries", "7",
        "--dead-letter", "jobs.dead", "--expired", "dead-letter", "--ordered", "--priorities",
        "--filter", "json.amount > 100", "--json",
    ).document  # fmt: skip
    assert {key: document[key] for key in (
        "name", "kind", "topics", "is_paused", "filter", "lease_ms", "max_deliveries", "dead_letter", "expired",
        "ordered", "priorities", "lag", "dead_letters",
    )} == {
        "name": "strict", "kind": "queue", "topics": ["jobs"], "is_paused": False, "filter": "json.amount > 100",
        "lease_ms": 90_000, "max_deliveries": 7, "dead_letter": "jobs.dead", "expired": "dead-letter",
        "ordered": True, "priorities": True, "lag": 0, "dead_letters": 0,
    }  # fmt: skip
    assert [partition["partition"] for partition in document["partitions"]] == [0, 1]
    assert "jobs.dead" in cli("topic", "list").out.decode(), "it is made if need be"


def test_a_name_is_taken_once_unless_exist_ok(jobs: Cli) -> None:
    again = jobs("subscription", "create", "workers", "--topic", "jobs")
    assert again.code == 1
    assert again.err == "logbroker: subscription 'workers' already exists; --exist-ok accepts it as it is\n"
    accepted = jobs("subscription", "create", "workers", "--topic", "jobs", "--exist-ok")
    assert (accepted.code, accepted.err) == (0, "subscription workers was there already\n")


@pytest.mark.parametrize(
    ("start", "offset"),
    [("earliest", 0), ("latest", 10), ("4", 4), ("99", 10), ("-3", 7), ("-1h", 0), ("2100-01-01", 10)],
)
def test_it_begins_where_it_was_told_to(jobs: Cli, start: str, offset: int) -> None:
    assert jobs("subscription", "create", "new", "--topic", "jobs", "--start", start).code == 0
    assert start_of(jobs, "new") == [offset]


def test_a_stream_is_a_consumer_group(jobs: Cli) -> None:
    assert jobs("subscription", "create", "audit", "--topic", "jobs", "--kind", "stream").code == 0
    assert jobs("tail", "jobs", "--group", "audit", "-n", "4").code == 0
    assert start_of(jobs, "audit") == [4]
    assert jobs("queue", "receive", "audit").code == 1
    assert jobs("subscription", "create", "x", "--topic", "jobs", "--kind", "stream", "--ordered").code == 1


def test_list_has_a_line_a_subscription(jobs: Cli) -> None:
    assert jobs("subscription", "list").rows == [["workers", "queue", "jobs", "active", "7", "2", "0"]]
    assert jobs("subscription", "list", "--json").document == [
        {
            "name": "workers",
            "kind": "queue",
            "topics": ["jobs"],
            "is_paused": False,
            "lag": 7,
            "in_flight": 2,
            "dead_letters": 0,
        }
    ]


def test_describe_shows_rules_and_partitions(jobs: Cli) -> None:
    jobs("queue", "receive", "workers", "--hold")
    rows = jobs("subscription", "describe", "workers").rows
    rules = {row[1]: row[2] for row in rows if row[0] == "rule"}
    assert rules == {
        "kind": "queue", "topics": "jobs", "state": "active", "filter": "-", "lease (ms)": "30000",
        "max deliveries": "5", "dead letter": "jobs.dead", "expired": "drop", "ordered": "no", "priorities": "no",
        "dead letters": "0",
    }  # fmt: skip
    (partition,) = (row[1:] for row in rows if row[0] == "partition")
    assert partition[:10] == ["jobs", "0", "3", "10", "7", "4", "3", "0", "0", "0"]
    assert int(partition[10]) >= 0
    assert len(partition[11].split(",")) == 2
    document = jobs("subscription", "describe", "workers", "--json").document
    assert (document["lag"], document["in_flight"]) == (7, 3)
    assert document["partitions"][0]["ready"] == 4


def test_a_paused_queue_delivers_nothing_and_what_is_held_can_be_settled(jobs: Cli) -> None:
    handle = jobs("queue", "receive", "workers", "--hold", "--json").objects[0]["handle"]
    assert jobs("subscription", "pause", "workers", "--json").document == {"paused": "workers"}
    nothing = jobs("queue", "receive", "workers", "--timeout", "0.1")
    assert nothing.code == 3
    assert "it is paused" in nothing.err
    assert jobs("subscription", "list").rows[0][3] == "paused"
    assert jobs("queue", "ack", "workers", handle).code == 0
    assert jobs("subscription", "resume", "workers").err == "resumed subscription workers\n"
    assert jobs("queue", "receive", "workers", "--value-only").out == b"6\n"


@pytest.mark.parametrize(
    ("to", "offset"),
    [("earliest", 0), ("latest", 10), ("7", 7), ("99", 10), ("-2", 1), ("+2", 5), ("-100", 0), ("-1h", 0),
     ("2100-01-01", 10)],
)  # fmt: skip
def test_reset_goes_on_elsewhere_in_the_words_of_group_reset(jobs: Cli, to: str, offset: int) -> None:
    tried = jobs("subscription", "reset", "workers", "--to", to, "--dry-run", "--json")
    assert tried.document == {
        "subscription": "workers",
        "dry_run": True,
        "offsets": [{"topic": "jobs", "partition": 0, "before": 3, "offset": offset}],
    }
    assert start_of(jobs, "workers") == [3]
    assert jobs("subscription", "reset", "workers", "--to", to).rows == [["jobs", "0", "3", str(offset)]]
    assert start_of(jobs, "workers") == [offset]
    left = jobs("queue", "receive", "workers", "-n", "100", "--timeout", "0", "--value-only").out.split()
    assert left == [b"%d" % number for number in range(offset, 10)]


def test_a_stream_is_reset_from_where_it_is_too(jobs: Cli) -> None:
    jobs("subscription", "create", "audit", "--topic", "jobs", "--kind", "stream")
    jobs("tail", "jobs", "--group", "audit", "-n", "4")
    assert jobs("subscription", "reset", "audit", "--to", "+2").rows == [["jobs", "0", "4", "6"]]


def test_a_renamed_queue_keeps_its_progress(jobs: Cli) -> None:
    renamed = jobs("subscription", "rename", "workers", "crew", "--json")
    assert renamed.document == {"renamed": "workers", "name": "crew"}
    assert start_of(jobs, "crew") == [3]
    assert jobs("queue", "receive", "crew", "--value-only").out == b"5\n"
    assert jobs("subscription", "describe", "workers").code == 1


def test_a_deleted_subscription_is_gone_and_its_topics_are_not(jobs: Cli) -> None:
    assert jobs("subscription", "delete", "workers", "--json").document == {"deleted": ["workers"]}
    assert jobs("subscription", "list", "--json").document == []
    assert len(jobs.values("jobs").splitlines()) == 10
    gone = jobs("subscription", "delete", "workers")
    assert gone.code == 1
    assert "logbroker subscription create" in gone.err


def test_a_filter_decides_what_is_delivered(cli: Cli) -> None:
    cli.produce("jobs", b'{"amount": 5}\n{"amount": 500}\nnone\n')
    made = cli("subscription", "create", "big", "--topic", "jobs", "--filter", "json.amount > 100")
    assert made.code == 0, made.err
    assert cli("queue", "receive", "big", "-n", "9", "--value-only").out == b'{"amount": 500}\n'
    broken = cli("subscription", "create", "broken", "--topic", "jobs", "--filter", "json.amount >")
    assert broken.code == 1
    assert broken.err.count("\n") == 1


def test_a_pattern_takes_up_topics_that_are_created_later(cli: Cli) -> None:
    cli("topic", "create", "orders.eu")
    cli("subscription", "create", "all", "--topic", "orders.*")
    cli.produce("orders.us", b"late\n")
    assert cli("queue", "receive", "all", "--value-only").out == b"late\n"


def test_wrong_usage(jobs: Cli) -> None:
    for arguments in (
        (), ("create", "x"), ("create", "x", "--topic", "jobs", "--kind", "heap"), ("reset", "workers"),
        ("create", "x", "--topic", "jobs", "--lease", "soon"), ("reset", "workers", "--to", "stored"),
        ("create", "x", "--topic", "jobs", "--start", "sometime"), ("describe",), ("rename", "workers"),
    ):  # fmt: skip
        result = jobs("subscription", *arguments)
        assert result.code == 2, arguments
    for arguments in (
        ("create", "x", "--topic", "nowhere"), ("create", "x", "--topic", "jobs", "--max-deliveries", "0"),
        ("create", "x", "--topic", "jobs", "--expired", "later"), ("describe", "nobody"), ("pause", "nobody"),
        ("create", "x", "--topic", "jobs", "--dead-letter", "jobs"), ("reset", "nobody", "--to", "latest"),
    ):  # fmt: skip
        result = jobs("subscription", *arguments)
        assert result.code == 1, arguments
        assert result.err.count("\n") == 1


def test_a_subscription_of_the_command_line_is_one_of_the_library(jobs: Cli) -> None:
    with logbroker.open(jobs.data) as broker, broker.queue(subscription="workers") as queue:
        assert queue.receive(timeout=1.0).value == b"5"
