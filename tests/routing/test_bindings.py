"""Bindings as they are made, kept and removed; and where exactly each begins and ends."""

from __future__ import annotations

import shutil
import threading

import pytest

import logbroker
from logbroker import (
    BindingExistsError,
    BindingNotFoundError,
    InvalidRequestError,
    InvalidTopicError,
    RoutingLoopError,
    TopicNotFoundError,
)
from logbroker.routing.bindings import ROUTER_GROUP, bindings_version

PIPELINE = '[[step]]\nkind = "decode"\nformat = "json"\n[[step]]\nkind = "encode"\nformat = "json"\n'


# Made ---------------------------------------------------------------------------------------------------


def test_a_binding_is_described_as_it_was_made(routing):
    made = routing.broker.bind(
        "orders", "out", when="json.a == 1", headers={"type": b"created", "eu": None}, headers_match="any"
    )
    assert (made.name, made.source, made.target, made.dead_letter) == (
        "orders->out",
        "orders",
        "out",
        "out.dead",
    )
    assert (made.when, made.headers, made.headers_match) == (
        "json.a == 1",
        {"type": "created", "eu": None},
        "any",
    )
    assert (made.unrouted, made.transform, made.topics, made.lag, made.stalled) == (
        False,
        None,
        ["orders"],
        0,
        [],
    )
    assert routing.broker.bindings() == [made]


def test_the_default_dead_letter_is_made_and_one_that_is_named_must_exist(routing):
    routing.broker.bind("orders", "out")
    assert "out.dead" in routing.broker.topics()
    with pytest.raises(TopicNotFoundError, match="nowhere"):
        routing.broker.bind("orders", "out", name="b", dead_letter="nowhere")
    assert "nowhere" not in routing.broker.topics()


def test_a_name_is_taken_once(routing):
    routing.broker.bind("orders", "out", name="b")
    with pytest.raises(BindingExistsError, match="'b'") as raised:
        routing.broker.bind("orders", "out", name="b")
    assert raised.value.binding == "b"
    routing.broker.bind("orders", "out", name="c")
    assert routing.broker.bind("orders", "out", name="b", when="false", exist_ok=True).when is None


@pytest.mark.parametrize(
    ("source", "target"), [("nowhere", "out"), ("orders", "nowhere"), ("x.*", "nowhere")]
)
def test_unknown_topics_are_refused_and_nothing_is_made(routing, source, target):
    with pytest.raises(TopicNotFoundError, match="nowhere"):
        routing.broker.bind(source, target)
    assert routing.broker.bindings() == []
    assert routing.broker.topics() == ["orders", "out"]


def test_a_loop_is_refused_and_nothing_is_made(routing):
    routing.broker.bind("orders", "out")
    with pytest.raises(RoutingLoopError) as raised:
        routing.broker.bind("out", "orders")
    assert raised.value.cycle == ["out", "orders", "out"]
    assert [binding.name for binding in routing.broker.bindings()] == ["orders->out"]
    assert "orders.dead" not in routing.broker.topics()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"when": "json."}, InvalidRequestError, "json"),
        ({"when": 7}, InvalidRequestError, "text"),
        ({"headers": {"a": 7}}, InvalidRequestError, "header 'a'"),
        ({"headers": [("a", "b")]}, InvalidRequestError, "maps header keys"),
        ({"when": ""}, InvalidRequestError, "expression"),
        ({"headers": {7: "a"}}, InvalidRequestError, "key is text"),
        ({"headers": {"a": b"\xff"}}, InvalidRequestError, "UTF-8"),
        ({"headers_match": "some"}, InvalidRequestError, "'all' or 'any'"),
        ({"start": "now"}, InvalidRequestError, "'earliest' or 'latest'"),
        ({"unrouted": True, "when": "true"}, InvalidRequestError, "neither"),
        ({"unrouted": True, "headers": {"a": "b"}}, InvalidRequestError, "neither"),
        ({"transform": lambda record: record.value}, InvalidRequestError, "callable"),
        ({"transform": "kind = 1"}, InvalidRequestError, "'kind'"),
        ({"name": ""}, InvalidRequestError, "binding's name"),
        ({"name": "x" * 241}, InvalidRequestError, "240"),
        ({"dead_letter": "out"}, InvalidRequestError, "itself"),
        ({"dead_letter": "a b"}, InvalidTopicError, "a b"),
        ({"source": "a.>.b"}, InvalidTopicError, "source"),
        ({"target": "out.*"}, InvalidTopicError, "name"),
        ({"target": "__journal"}, InvalidTopicError, "internal"),
    ],
)
def test_arguments_that_cannot_be_used_are_told_and_nothing_is_made(routing, arguments, error, words):
    with pytest.raises(error, match=words):
        routing.broker.bind(**{"source": "orders", "target": "out"} | arguments)
    assert routing.broker.bindings() == []
    assert routing.broker.topics() == ["orders", "out"]


def test_of_many_that_would_close_a_loop_together_one_is_refused(routing):
    """Two bindings that are sound alone, made at the same time: the journal's lock lets one be first."""
    outcomes = []

    def bind(source: str, target: str) -> None:
        try:
            outcomes.append(routing.broker.bind(source, target).name)
        except RoutingLoopError as error:
            outcomes.append(type(error).__name__)

    for _ in range(10):
        threads = [
            threading.Thread(target=bind, args=pair) for pair in (("orders", "out"), ("out", "orders"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (made,) = routing.broker.bindings()
        assert sorted(outcomes) == sorted([made.name, "RoutingLoopError"])
        routing.broker.unbind(made.name)
        outcomes.clear()


# Kept and removed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["kept", "deleted"])
def test_bindings_outlive_the_process_and_the_view(path, view):
    with logbroker.open(path) as broker:
        broker.create_topic("orders")
        broker.create_topic("out")
        made = broker.bind("orders", "out", when="key == 'a'", transform=PIPELINE, name="b")
        broker.bind("orders", "out", name="gone")
        broker.unbind("gone")
    if view == "deleted":
        shutil.rmtree(path / "view")
    with logbroker.open(path) as broker:
        assert broker.bindings() == [made]
        assert made.transform is not None


def test_every_change_is_seen_by_its_version(routing):
    directory = routing.broker._directory
    versions = [bindings_version(directory)]
    routing.broker.bind("orders", "out", name="b")
    versions.append(bindings_version(directory))
    routing.broker.create_topic("another")
    assert bindings_version(directory) == versions[-1]
    routing.broker.unbind("b")
    versions.append(bindings_version(directory))
    assert versions[0] < versions[1] < versions[2]


def test_what_is_not_bound_cannot_be_unbound(routing):
    routing.broker.bind("orders", "out", name="b")
    with pytest.raises(BindingNotFoundError, match="bindings here: b"):
        routing.broker.unbind("c")
    routing.broker.unbind("b")
    with pytest.raises(BindingNotFoundError) as raised:
        routing.broker.unbind("b")
    assert raised.value.binding == "b"


def test_the_router_s_group_forgets_topics_that_no_binding_reads(routing):
    routing.topics("payments")
    routing.broker.bind("orders", "out")
    routing.broker.bind("payments", "out")
    routing.route()
    group = routing.broker.group(ROUTER_GROUP)
    assert [row.topic for row in group.offsets] == ["orders", "payments"]
    routing.broker.unbind("orders->out")
    assert [row.topic for row in routing.broker.group(ROUTER_GROUP).offsets] == ["payments"]
    routing.broker.unbind("payments->out")
    assert ROUTER_GROUP not in routing.broker.groups()


# Where it begins ----------------------------------------------------------------------------------------


def test_latest_takes_what_comes_after_the_binding_and_earliest_what_is_there(routing):
    routing.topics("all")
    routing.send("orders", b"before")
    routing.broker.bind("orders", "out")
    routing.broker.bind("orders", "all", start="earliest")
    routing.send("orders", b"after")
    assert routing.route() == 2
    assert routing.values("out") == [b"after"]
    assert routing.values("all") == [b"before", b"after"]


def test_an_earliest_binding_takes_the_router_back_and_the_others_are_not_written_again(routing):
    routing.topics("late", "rest")
    routing.broker.bind("orders", "out", when="key == 'x'")
    routing.broker.bind("orders", "rest", unrouted=True)
    routing.send("orders", b"1", key=b"x")
    routing.send("orders", b"2", key=b"y")
    assert routing.route() == 2
    routing.broker.bind("orders", "late", start="earliest")
    routing.send("orders", b"3", key=b"x")
    assert {row.offset for row in routing.broker._directory.groups.committed_offsets(ROUTER_GROUP)} == {0}
    assert routing.route() == 3
    assert routing.values("out") == [b"1", b"3"]
    assert routing.values("rest") == [b"2"]
    assert routing.values("late") == [b"1", b"2", b"3"]


def test_what_was_taken_in_the_past_is_not_unrouted_when_that_is_bound_from_the_earliest(routing):
    routing.topics("rest")
    routing.broker.bind("orders", "out", when="key == 'x'")
    routing.send("orders", b"1", key=b"x")
    routing.send("orders", b"2", key=b"y")
    routing.route()
    routing.broker.bind("orders", "rest", unrouted=True, start="earliest")
    routing.route()
    assert routing.values("rest") == [b"2"]
    assert routing.values("out") == [b"1"]


def test_taken_back_again_and_again_each_binding_is_still_written_once(routing):
    targets = [f"t{number}" for number in range(5)]
    routing.topics(*targets)
    for number, target in enumerate(targets):
        routing.send("orders", b"%d" % number)
        routing.broker.bind("orders", target, start="earliest" if number % 2 else "latest")
        routing.send("orders", b"and %d" % number)
        routing.route()
    everything = routing.values("orders")
    assert routing.values("t0") == everything[1:]
    assert routing.values("t1") == everything
    assert routing.values("t2") == everything[5:]
    assert routing.values("t3") == everything
    assert routing.values("t4") == everything[9:]


def test_a_binding_behind_a_router_that_lags_begins_where_it_was_made(routing):
    routing.topics("late")
    routing.broker.bind("orders", "out")
    routing.send("orders", b"1")
    routing.broker.bind("orders", "late")  # the router has not come to 1 yet
    routing.send("orders", b"2")
    assert [(binding.name, binding.lag) for binding in routing.broker.bindings()] == [
        ("orders->late", 1),
        ("orders->out", 2),
    ]
    routing.route()
    assert routing.values("out") == [b"1", b"2"]
    assert routing.values("late") == [b"2"]


def test_a_topic_bound_again_begins_at_the_new_binding(routing):
    routing.broker.bind("orders", "out")
    routing.send("orders", b"1")
    routing.route()
    routing.broker.unbind("orders->out")
    routing.send("orders", b"2")
    routing.broker.bind("orders", "out")
    routing.send("orders", b"3")
    routing.route()
    assert routing.values("out") == [b"1", b"3"]


def test_records_of_a_transaction_that_was_open_at_the_binding_count(routing):
    """As for a consumer's "latest": a reader sees them after the binding."""
    with routing.broker.transaction("t") as tx:
        tx.send("orders", b"1").result(5)
        routing.broker.bind("orders", "out")
    routing.route()
    assert routing.values("out") == [b"1"]


def test_a_topic_created_after_a_wildcard_counts_from_its_beginning_and_made_anew_likewise(routing):
    routing.topics("eu.orders")
    routing.send("eu.orders", b"before")
    routing.broker.bind("*.orders", "out")
    routing.topics("us.orders")
    routing.send("us.orders", b"us")
    routing.route()
    assert routing.values("out") == [b"us"]
    routing.broker.delete_topic("eu.orders")
    routing.topics("eu.orders")
    routing.send("eu.orders", b"eu")
    routing.route()
    assert routing.values("out") == [b"us", b"eu"]


def test_partitions_that_are_added_count_from_their_beginning(routing):
    routing.send("orders", b"before")
    routing.broker.bind("orders", "out")
    routing.broker.alter_topic("orders", partitions=2)
    routing.send("orders", b"after", partition=1)
    routing.broker.bind("orders", "out", name="again", start="earliest")
    routing.route()
    assert sorted(routing.values("out")) == [b"after", b"after", b"before"]
