"""logbroker route."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

import logbroker

from .conftest import Cli

CLEAN = """
[[step]]
kind = "decode"
format = "json"

[[step]]
kind = "encode"
format = "json"
"""
PATIENCE_S = 20


@pytest.fixture
def topics(cli: Cli) -> Cli:
    for name in ("orders", "big", "rest"):
        assert cli("topic", "create", name).code == 0
    return cli


@pytest.fixture
def bound(topics: Cli) -> Cli:
    """Large orders to one topic, what is left to another."""
    assert topics("route", "bind", "orders", "big", "--when", "json.total > 100", "--name", "b").code == 0
    assert topics("route", "bind", "orders", "rest", "--unrouted").code == 0
    return topics


def test_bind_says_what_it_has_made(topics: Cli, tmp_path: Path) -> None:
    pipeline = tmp_path / "clean.toml"
    pipeline.write_text(CLEAN)
    said = topics("route", "bind", "orders", "big")
    assert (said.code, said.out) == (0, b"")
    assert "bound orders to big as orders->big; what fails goes to big.dead" in said.err
    options = [
        "--transform",
        str(pipeline),
        "--header",
        "type=created",
        "--header",
        "eu",
        "--headers-match",
        "any",
    ]
    options += ["--dead-letter", "rest", "--start", "earliest", "--name", "n", "--when", "key == 'a'"]
    pipeline_is_stored = topics("route", "bind", "orders", "big", *options, "--json").document
    pipeline.unlink()
    assert 'kind = "decode"' in pipeline_is_stored.pop("transform")
    assert pipeline_is_stored.pop("created_ms") > 0
    assert pipeline_is_stored == {
        "name": "n",
        "source": "orders",
        "target": "big",
        "dead_letter": "rest",
        "when": "key == 'a'",
        "headers": {"type": "created", "eu": None},
        "headers_match": "any",
        "unrouted": False,
        "topics": ["orders"],
        "lag": 0,
        "stalled": [],
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bind", "nowhere", "big"], 1, "'nowhere' does not exist"),
        (["bind", "orders", "orders"], 1, "would close a loop: orders -> orders"),
        (["bind", "orders", "big", "--when", "json."], 1, "expression"),
        (["bind", "orders", "big", "--transform", "nowhere.toml"], 1, "nowhere.toml"),
        (["bind", "orders", "big", "--header", "=x"], 2, "KEY=VALUE"),
        (["bind", "orders", "big", "--start", "now"], 2, "earliest"),
        (["bind", "orders", "big", "--name", "b"], 1, "'b' already exists"),
        (["unbind", "nothing"], 1, "no binding 'nothing'"),
        (["explain", "orders", "--offset", "1"], 2, "PARTITION:OFFSET"),
        (["explain", "orders", "--header", "x"], 2, "KEY=VALUE"),
        (["explain", "orders", "--offset", "0:7"], 1, "offset 7"),
        (["explain", "orders", "--offset", "0:0", "--value", "x"], 1, "not both"),
        (["explain", "a b"], 1, "a b"),
    ],
)
def test_what_cannot_be_done_is_one_line_on_stderr(
    bound: Cli, arguments: list[str], code: int, words: str
) -> None:
    refused = bound("route", *arguments)
    assert refused.code == code
    assert words in refused.err
    assert refused.err.count("\n") == 1


def test_the_inspector_shows_what_the_journal_says_of_a_binding(bound: Cli) -> None:
    events = bound("inspect", "journal", "--json", str(bound.data)).objects
    (event,) = [one["event"] for one in events if one["key"] == "binding\0b"]
    assert (event["kind"], event["source"], event["target"]) == ("binding", "orders", "big")
    assert [(reach["topic"], reach["starts"], reach["routed"]) for reach in event["reach"]] == [
        ("orders", [0], [0])
    ]
    assert "binding b" in bound("inspect", "journal", str(bound.data)).out.decode()


def test_list_shows_conditions_and_lag(bound: Cli) -> None:
    bound.produce("orders", b'{"total": 500}\n{"total": 5}\n')
    assert bound("route", "list").rows == [
        ["binding", "b", "orders", "big", "json.total > 100", "no", "big.dead", "2", "ok"],
        ["binding", "orders->rest", "orders", "rest", "unrouted", "no", "rest.dead", "2", "ok"],
    ]
    documents = bound("route", "list", "--json").document
    assert [(one["name"], one["when"], one["unrouted"], one["lag"]) for one in documents] == [
        ("b", "json.total > 100", False, 2),
        ("orders->rest", None, True, 2),
    ]


def test_run_routes_until_it_is_idle(bound: Cli) -> None:
    bound.produce("orders", b'{"total": 500}\n{"total": 5}\nno json\n')
    ran = bound("route", "run", "--until-idle", "0.3", "--json")
    assert (ran.code, ran.document) == (0, {"routed": 3, "interrupted": False, "stalled": []})
    assert bound.values("big") == b'{"total": 500}\n'
    assert bound.values("rest") == b'{"total": 5}\n'
    assert bound.values("big.dead") == b"no json\n"
    again = bound("route", "run", "--until-idle", "0.3")
    assert (again.code, again.err) == (0, "routed 0 records\n")
    rows = bound("group", "list").rows
    assert rows == [["__router", "0", "0"]]


def test_a_router_that_is_held_up_is_an_error(bound: Cli) -> None:
    bound.produce("orders", b'{"total": 500}\n')
    assert bound("topic", "delete", "big").code == 0
    ran = bound("route", "run", "--until-idle", "0.3", "--json")
    assert ran.code == 1
    assert "held up in orders-0: topic 'big' does not exist" in ran.err
    (stall,) = ran.document["stalled"]
    assert (stall["topic"], stall["partition"]) == ("orders", 0)


def test_list_shows_where_a_router_is_held_up(bound: Cli) -> None:
    bound.produce("orders", b'{"total": 500}\n')
    assert bound("topic", "delete", "big").code == 0
    process = bound.start("route", "run")
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (rows := [row for row in bound("route", "list").rows if row[0] == "stalled"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()
    assert rows[0][1:3] == ["orders", "0"]
    assert "'big' does not exist" in rows[0][3]
    # Only a router that is alive can be held up.
    assert [row for row in bound("route", "list").rows if row[0] == "stalled"] == []


def test_ctrl_c_ends_a_router_after_its_batch(bound: Cli) -> None:
    process = bound.start("route", "run", "--json")
    try:
        with logbroker.open(bound.data) as broker, broker.producer() as producer:
            producer.send("orders", b'{"total": 500}').result(10)
            with broker.consumer("big") as consumer:
                assert len(consumer.poll(1, PATIENCE_S)) == 1
            deadline = time.monotonic() + PATIENCE_S
            while broker.group("__router").lag:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert json.loads(out) == {"routed": 1, "interrupted": True, "stalled": []}
    assert b"Traceback" not in err
    assert bound("group", "list").rows == [["__router", "0", "0"]]  # it has left


def test_unbind(bound: Cli) -> None:
    assert bound("route", "unbind", "b", "--json").document == {"unbound": ["b"]}
    assert bound("route", "unbind", "orders->rest").err == "unbound orders->rest\n"
    assert bound("route", "list").rows == []


def test_explain_shows_where_a_message_would_go_and_why(bound: Cli) -> None:
    big = bound("route", "explain", "orders", "--value", '{"total": 500}', "--key", "k", "--header", "h=x")
    assert big.code == 0
    assert big.rows == [
        ["binding", "b", "big", "taken", "it takes the record"],
        ["binding", "orders->rest", "rest", "routed elsewhere", "another binding took the record"],
        ["message", "big", "k", '{"total": 500}', "h=x"],
    ]
    failed = bound("route", "explain", "orders", "--value", "no json", "--json").document
    assert failed["targets"] == ["big.dead"]
    verdict = failed["verdicts"][0]
    assert (verdict["reason"], verdict["taken"], verdict["messages"][0]["value"]) == (
        "failed",
        True,
        "no json",
    )
    assert "JSON" in verdict["error"]
    assert bound("tail", "big.dead", "--from", "earliest").code == 3  # nothing was written


def test_explain_of_a_record_that_is_there(bound: Cli) -> None:
    bound.produce("orders", b'{"total": 500}\n\xff\n')
    assert bound("route", "explain", "orders", "--offset", "0:0").rows[0][:4] == [
        "binding",
        "b",
        "big",
        "taken",
    ]
    document = bound("route", "explain", "orders", "--offset", "0:1", "--json").document
    message = document["verdicts"][0]["messages"][0]
    assert (message["value"], message["encoding"]) == ("/w==", "base64")


def test_explain_of_a_message_that_nothing_takes_is_3(bound: Cli) -> None:
    nothing = bound("route", "explain", "elsewhere", "--value", "x", "--json")
    assert nothing.code == 3
    assert "no binding takes it" in nothing.err
    assert {verdict["reason"] for verdict in nothing.document["verdicts"]} == {"other topic"}
