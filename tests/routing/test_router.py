"""The router at work: what it writes, what it never loses, and what holds it up."""

from __future__ import annotations

import datetime
import logging
import random
import threading
import time

import pytest

import logbroker
from logbroker import InvalidRequestError, Message
from logbroker.routing.bindings import ROUTER_GROUP, note_stall, stalled_partitions
from logbroker.routing.router import _Router, run_router
from logbroker.routing.thread import RouterThread
from logbroker.transaction import Transaction, Transactions
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker_storage.record_expiry import NO_TTL, record_ttl_ms

DOUBLE = """
[[step]]
kind = "decode"
format = "json"

[[step]]
kind = "split"
field = "items"

[[step]]
kind = "encode"
format = "json"
"""


def wait_until(condition, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)


class Running:
    """A router in a thread, for tests of what changes while it runs."""

    def __init__(self, routing) -> None:
        self._stop = threading.Event()
        self._outcome: list[object] = []
        self._thread = threading.Thread(target=self._run, args=(routing.broker,))

    def _run(self, broker) -> None:
        try:
            self._outcome.append(broker.run_router(stop=self._stop))
        except BaseException as error:
            self._outcome.append(error)

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert isinstance(self._outcome[0], int), self._outcome


# What is written ----------------------------------------------------------------------------------------


def test_a_routed_record_keeps_its_key_headers_timestamp_and_place_in_its_key_s_order(routing):
    routing.topics("two", partitions=3)
    routing.broker.bind("orders", "two")
    moment = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    routing.send("orders", Message(b"v", b"k", [("h", b"1"), ("h", None)], timestamp=moment))
    routing.send("orders", None, key=b"k")
    routing.route()
    first, second = routing.records("two")
    assert (first.key, first.value, first.headers, first.timestamp) == (
        b"k",
        b"v",
        [("h", b"1"), ("h", None)],
        moment,
    )
    assert (second.key, second.value, second.partition) == (b"k", None, first.partition)


def test_fan_out_content_headers_and_the_rest(routing):
    routing.topics("big", "created", "all", "rest")
    routing.broker.bind("orders", "big", when="json.total > 100")
    routing.broker.bind("orders", "created", headers={"type": "created"})
    routing.broker.bind("orders", "rest", unrouted=True)
    routing.send("orders", Message(b'{"total": 500}', headers={"type": "created"}))
    routing.send("orders", Message(b'{"total": 5}', headers={"type": "created"}))
    routing.send("orders", b'{"total": 500}')
    routing.send("orders", b'{"total": 5}')
    assert routing.route() == 4
    assert len(routing.values("big")) == 2
    assert len(routing.values("created")) == 2
    assert routing.values("rest") == [b'{"total": 5}']


def test_a_chain_of_bindings_is_routed_to_its_end(routing):
    routing.topics("next", "last")
    routing.broker.bind("orders", "next")
    routing.broker.bind("next", "last")
    routing.send("orders", b"1", b"2")
    routing.route(idle_timeout=0.5)
    assert routing.values("last") == [b"1", b"2"]


def test_the_group_shows_no_lag_when_all_is_routed_not_even_for_the_markers_of_transactions(routing):
    routing.topics("next")
    routing.broker.bind("orders", "out")
    routing.broker.bind("out", "next")
    routing.send("orders", b"1")
    assert routing.broker.group(ROUTER_GROUP).lag == 1
    routing.route(idle_timeout=0.5)
    group = routing.broker.group(ROUTER_GROUP)
    assert {row.topic: row.lag for row in group.offsets} == {"orders": 0, "out": 0}
    assert [binding.lag for binding in routing.broker.bindings()] == [0, 0]


def test_what_an_aborted_transaction_wrote_is_not_routed(routing):
    routing.broker.bind("orders", "out")
    with routing.broker.transaction("t") as tx:
        tx.send("orders", b"never")
        tx.abort()
    routing.send("orders", b"1")
    routing.route()
    assert routing.values("out") == [b"1"]


def test_a_time_to_live_goes_on_running(routing):
    routing.broker.bind("orders", "out")
    routing.send("orders", b"1", ttl=datetime.timedelta(seconds=60))
    routing.send("orders", b"2")
    routing.route()
    with routing.broker.consumer("out") as consumer:
        consumer.keep_ttl_headers()
        first, second = consumer.poll(10)
    source, _ = routing.records("orders")
    assert (first.value, second.value) == (b"1", b"2")
    assert (first.timestamp_ms, record_ttl_ms(first), record_ttl_ms(second)) == (
        source.timestamp_ms,
        60_000,
        NO_TTL,
    )


def test_conditions_do_not_see_the_broker_s_own_headers(routing):
    routing.broker.bind("orders", "out", when="size(headers) == 1")
    routing.send("orders", Message(b"1", headers={"h": "1"}, ttl=datetime.timedelta(seconds=60)))
    routing.route()
    assert routing.values("out") == [b"1"]


def test_a_transform_may_make_none_or_several_of_a_record(routing):
    routing.broker.bind("orders", "out", transform=DOUBLE)
    routing.send("orders", b'{"items": [{"a": 1}, {"a": 2}]}', b'{"items": []}')
    assert routing.route() == 2
    assert routing.values("out") == [b'{"a":1}', b'{"a":2}']
    assert routing.values("out.dead") == []


# Dead letters -------------------------------------------------------------------------------------------


def test_what_cannot_be_evaluated_or_transformed_goes_to_the_dead_letter_and_the_rest_goes_on(
    routing, caplog
):
    routing.topics("letters", "other")
    routing.broker.bind("orders", "out", when="json.total > 1", dead_letter="letters", name="picky")
    routing.broker.bind("orders", "other", transform=DOUBLE)
    routing.send("orders", Message(b"no json", b"k", {"h": "1"}), Message(b'{"total": 2, "items": [{}]}'))
    assert routing.route() == 2
    assert routing.values("out") == [b'{"total": 2, "items": [{}]}']
    assert routing.values("other") == [b"{}"]
    (letter,) = routing.records("letters")
    assert (letter.key, letter.value) == (b"k", b"no json")
    assert caplog.text.count("1 records of orders-0 are in its dead letter") == 2
    headers = dict(letter.headers)
    assert b"JSON" in headers.pop("x-dead-letter-error")
    assert int(headers.pop("x-dead-letter-timestamp")) > 0
    assert headers == {
        "h": b"1",
        "x-dead-letter-topic": b"orders",
        "x-dead-letter-partition": b"0",
        "x-dead-letter-offset": b"0",
        "x-dead-letter-by": b"binding picky",
        "x-dead-letter-reason": b"condition-failed",
    }
    assert routing.values("other.dead") == [b"no json"]


def test_the_default_dead_letter_takes_what_is_too_large_for_the_target(routing):
    routing.broker.alter_topic("orders", config={"max.message.bytes": 3 << 20})
    routing.broker.bind("orders", "out")
    routing.send("orders", b"x" * (2 << 20), b"next")
    assert routing.route() == 2
    assert routing.values("out") == [b"next"]
    assert routing.values("out.dead") == [b"x" * (2 << 20)]


def test_what_a_target_refuses_goes_to_the_dead_letter(routing):
    routing.broker.create_topic("small", config={"max.message.bytes": 200})
    routing.broker.bind("orders", "small")
    routing.send("orders", b"1", b"x" * 300, b"2")
    assert routing.route() == 3
    assert routing.values("small") == [b"1", b"2"]
    assert routing.values("small.dead") == [b"x" * 300]


def test_what_a_target_that_compresses_refuses_goes_to_the_dead_letter_too(routing):
    """How large a record is shows only when its batch was compressed and is appended."""
    config = {"max.message.bytes": 20_000, "compression.type": "zstd"}
    routing.broker.create_topic("small", config=config)
    routing.broker.bind("orders", "small")
    noise = random.Random(1).randbytes(40_000)
    routing.send("orders", *[b"%d" % number for number in range(20)], noise, b"x" * 40_000, b"last")
    assert routing.route(idle_timeout=1) == 23
    assert routing.values("small") == [b"%d" % number for number in range(20)] + [b"x" * 40_000, b"last"]
    assert routing.values("small.dead") == [noise]


def test_a_dead_letter_that_refuses_a_record_too_stalls_its_partition(routing):
    config = {"max.message.bytes": 20_000, "compression.type": "zstd"}
    for topic in ("small", "small.dead"):
        routing.broker.create_topic(topic, config=config)
    routing.broker.bind("orders", "small")
    routing.send("orders", b"1", random.Random(1).randbytes(40_000), b"2")
    routing.route(idle_timeout=0.5)
    (stall,) = routing.broker.bindings()[0].stalled
    assert "small.dead" in stall.error
    assert routing.values("small") == [b"1"]
    routing.broker.alter_topic("small.dead", config={"max.message.bytes": 100_000})
    routing.route(idle_timeout=5)
    assert routing.values("small") == [b"1", b"2"]


def test_a_record_of_which_the_target_refuses_a_part_goes_to_the_dead_letter_as_a_whole(routing):
    routing.broker.create_topic("small", config={"max.message.bytes": 200})
    routing.broker.bind("orders", "small", transform=DOUBLE)
    parts = b'{"items": [{"a": 1}, {"a": "%s"}, {"a": 3}]}' % (b"x" * 300)
    routing.send("orders", b'{"items": [{"a": 0}]}', parts, b'{"items": [{"a": 4}]}')
    assert routing.route() == 3
    assert routing.values("small") == [b'{"a":0}', b'{"a":4}']
    assert routing.values("small.dead") == [parts]


# Stalls -------------------------------------------------------------------------------------------------


def test_a_missing_target_stalls_its_source_alone_shows_and_loses_nothing(routing, caplog):
    routing.topics("payments", "paid")
    routing.broker.bind("orders", "out")
    routing.broker.bind("payments", "paid")
    routing.send("orders", b"1", b"2")
    routing.send("payments", b"3")
    routing.broker.delete_topic("out")
    with caplog.at_level(logging.ERROR, "logbroker.router"):
        assert routing.route(idle_timeout=0) == 1, "what is held up is not all that there is"
    assert "held up in orders-0" in caplog.text
    assert routing.values("paid") == [b"3"]
    orders, payments = routing.broker.bindings()
    (stall,) = orders.stalled
    assert (stall.topic, stall.partition) == ("orders", 0)
    assert "'out' does not exist" in stall.error
    assert orders.lag == 2
    assert payments.stalled == []

    routing.topics("out")
    assert routing.route(idle_timeout=2) == 2
    assert routing.values("out") == [b"1", b"2"]
    assert routing.broker.bindings()[0].stalled == []


def test_a_running_router_goes_on_when_the_cause_is_mended(routing):
    routing.broker.bind("orders", "out")
    routing.broker.delete_topic("out")
    with Running(routing):
        routing.send("orders", b"1")
        wait_until(lambda: routing.broker.bindings()[0].stalled)
        since_ms = routing.broker.bindings()[0].stalled[0].since_ms
        routing.topics("out")
        wait_until(lambda: routing.values("out") == [b"1"])
        wait_until(lambda: not routing.broker.bindings()[0].stalled)
        assert since_ms > 0


def test_a_binding_that_is_unbound_holds_nothing_up_any_more(routing):
    routing.topics("other")
    routing.broker.bind("orders", "out")
    routing.broker.bind("orders", "other")
    routing.broker.delete_topic("out")
    with Running(routing):
        routing.send("orders", b"1")
        wait_until(lambda: stalled_partitions(routing.broker._directory))
        routing.broker.unbind("orders->out")
        wait_until(lambda: routing.values("other") == [b"1"])


def test_damage_in_a_source_stalls_its_partition_and_is_not_skipped(routing):
    routing.topics("wide", partitions=2)
    routing.broker.bind("wide", "out")
    with routing.broker.producer(linger=0) as producer:
        for value in (b"first", b"second", b"third"):
            producer.send("wide", value, partition=0)
        producer.send("wide", b"other", partition=1)
    path = f"{routing.broker._directory.log('wide', 0).directory}/{0:020}.log"
    with open(path, "r+b") as file:
        file.seek(file.read().index(b"second"))
        file.write(b"SECOND")
    routing.route(idle_timeout=0.5)
    assert sorted(routing.values("out")) == [b"first", b"other"]
    (stall,) = routing.broker.bindings()[0].stalled
    assert (stall.topic, stall.partition) == ("wide", 0)
    assert "is damaged" in stall.error


def test_a_stall_of_a_topic_that_no_binding_reads_any_more_is_forgotten(routing):
    routing.broker.bind("orders", "out")
    note_stall(routing.broker._directory, "orders", 0, "because", 1)
    assert [stall.error for stall in routing.broker.bindings()[0].stalled] == ["because"]
    routing.broker.unbind("orders->out")
    assert stalled_partitions(routing.broker._directory) == []


# While it runs ------------------------------------------------------------------------------------------


def test_bindings_that_come_and_go_are_followed(routing):
    routing.topics("other")
    with Running(routing):
        routing.broker.bind("orders", "out")
        routing.send("orders", b"1")
        wait_until(lambda: routing.values("out") == [b"1"])
        routing.broker.bind("orders", "other", start="earliest")
        wait_until(lambda: routing.values("other") == [b"1"])
        routing.broker.unbind("orders->out")
        routing.send("orders", b"2")
        wait_until(lambda: routing.values("other") == [b"1", b"2"])
    assert routing.values("out") == [b"1"]


def test_topics_and_partitions_that_a_wildcard_means_are_taken_up(routing):
    with Running(routing):
        routing.broker.bind("eu.>", "out")
        routing.topics("eu.a", "us.a", "eu")
        for topic in ("eu.a", "us.a", "eu"):
            routing.send(topic, topic.encode())
        wait_until(lambda: routing.values("out") == [b"eu.a"])
        routing.broker.alter_topic("eu.a", partitions=3)
        routing.send("eu.a", b"third", partition=2)
        wait_until(lambda: routing.values("out") == [b"eu.a", b"third"])
        routing.broker.delete_topic("eu.a")
        routing.topics("eu.a.b")
        routing.send("eu.a.b", b"deep")
        wait_until(lambda: routing.values("out") == [b"eu.a", b"third", b"deep"])


def test_changes_of_bindings_under_load_lose_and_double_nothing(routing):
    """Bindings to one topic come, take the router back, and go; another, which stays, gets everything once."""
    routing.topics("moving")
    routing.broker.bind("orders", "out")
    with Running(routing), routing.broker.producer(linger=0) as producer:
        for number in range(300):
            producer.send("orders", b"%d" % number)
            if number % 20 == 10:
                routing.broker.bind("orders", "moving", name="moving", start="earliest")
            if number % 20 == 19:
                routing.broker.unbind("moving")
        producer.flush()
        wait_until(lambda: len(routing.values("out")) >= 300)
    assert routing.values("out") == [b"%d" % number for number in range(300)]


def test_routers_share_the_partitions_of_their_sources(routing):
    routing.topics("wide", partitions=4)
    routing.broker.bind("wide", "out")
    wanted = [b"%d" % number for number in range(400)]
    with Running(routing), Running(routing):
        wait_until(lambda: len(routing.broker.group(ROUTER_GROUP).members) == 2)
        wait_until(
            lambda: (
                sorted(len(member.assignment) for member in routing.broker.group(ROUTER_GROUP).members)
                == [2, 2]
            )
        )
        for first in range(0, 400, 50):
            routing.send("wide", *[Message(value, value) for value in wanted[first : first + 50]])
        wait_until(lambda: len(routing.values("out")) >= 400)
    assert sorted(routing.values("out")) == sorted(wanted)


def test_a_router_that_lost_its_place_goes_on_where_the_group_is(routing):
    """The commit looks at the stored offset, so that nothing is routed twice whatever a router remembers."""
    routing.broker.bind("orders", "out")
    with Running(routing):
        routing.send("orders", b"1")
        wait_until(lambda: routing.values("out") == [b"1"])
        directory = routing.broker._directory
        event = directory.groups.committed(ROUTER_GROUP, "orders", 0)
        routing.send("orders", b"2")
        wait_until(lambda: routing.values("out") == [b"1", b"2"])
        directory.journal.record([event])  # taken back behind the router's back
        routing.send("orders", b"3")
        wait_until(lambda: len(routing.values("out")) >= 4)
    assert routing.values("out") == [b"1", b"2", b"2", b"3"]


def test_it_waits_for_a_first_binding_and_stops_when_told(routing):
    with Running(routing):
        time.sleep(0.05)
    assert routing.route(idle_timeout=0.1) == 0
    assert ROUTER_GROUP not in routing.broker.groups()


def test_closing_the_broker_ends_its_router(routing, path):
    """Idle as it is: nothing that comes later ends it."""
    routing.broker.bind("orders", "out")
    outcome: list[BaseException] = []
    with logbroker.open(path) as other:

        def run() -> None:
            try:
                other.run_router()
            except logbroker.LogbrokerError as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: routing.broker.groups() and routing.broker.group(ROUTER_GROUP).members)
    thread.join(20)
    assert [type(error) for error in outcome] == [logbroker.ClosedError]
    routing.send("orders", b"1")
    assert routing.route() == 1


def test_closing_the_broker_ends_its_router_in_the_middle_of_a_batch(routing):
    """What the closing made of the transaction holds nothing up: nobody would mend it."""

    class ClosedMeanwhile(Transactions):
        def begin(self, transactional_id: str, timeout: float) -> Transaction:
            transaction = super().begin(transactional_id, timeout)
            self.close()
            return transaction

    routing.broker.bind("orders", "out", start="earliest")
    routing.send("orders", b"1")
    directory = routing.broker._directory
    transactions = ClosedMeanwhile(directory, TransactionCoordinator(directory))
    with pytest.raises(logbroker.ClosedError):
        run_router(directory, transactions, stop=threading.Event())
    assert stalled_partitions(directory) == []
    assert routing.route() == 1
    assert routing.values("out") == [b"1"]


def test_batches_become_smaller_where_they_take_long_and_larger_where_they_do_not(routing):
    """Else a slow transform would never commit: a transaction has a minute."""
    directory = routing.broker._directory
    router = _Router(directory, routing.broker._transactions, max_records=1000)
    sizes = []
    for took_s, batch in ((0.1, 500), (0.1, 1000), (50.0, 1000), (2.0, 50), (0.1, 49), (0.1, 50), (1e6, 100)):
        router._size_batches(batch, took_s)
        sizes.append(router._limit)
    assert sizes == [1000, 1000, 50, 50, 50, 100, 1]


# In a thread of a server --------------------------------------------------------------------------------


def test_a_router_thread_outlives_whatever_its_router_fails_of(routing, caplog):
    """A fault of ours or of an installed step; a server must not go down with it."""
    failures: list[int] = []
    routed: list[int] = []
    errors = iter([ZeroDivisionError("a fault"), logbroker.WriteFailedError("the disk is full")])

    def route(*arguments, **options) -> int:
        for error in errors:
            raise error
        return run_router(*arguments, **options)

    directory = routing.broker._directory
    thread = RouterThread(
        directory,
        TransactionCoordinator(directory),
        on_routed=routed.append,
        on_failure=lambda: failures.append(1),
        route=route,
        first_pause_s=0.01,
    )
    routing.broker.bind("orders", "out")
    with caplog.at_level(logging.ERROR, "logbroker.router"):
        thread.start()
        routing.send("orders", b"1")
        wait_until(lambda: routing.values("out") == [b"1"])
        thread.stop()
    assert (failures, sum(routed)) == ([1, 1], 1)
    assert caplog.text.count("the router failed and begins again") == 2
    assert caplog.text.count("Traceback") == 1  # of the one that is no error of the broker's


# Explaining ---------------------------------------------------------------------------------------------


def verdicts(explanation):
    return {verdict.binding: verdict.reason for verdict in explanation.verdicts}


def test_it_explains_where_a_message_would_go_and_why_and_writes_nothing(routing):
    routing.topics("other", "rest")
    routing.broker.bind("orders", "out", when="json.a == 1", name="content")
    routing.broker.bind("orders", "out", headers={"type": "created"}, name="headers")
    routing.broker.bind("eu.*", "other", name="elsewhere")
    routing.broker.bind("orders", "rest", unrouted=True, name="rest")
    before = {topic: routing.broker.topic(topic).records for topic in routing.broker.topics()}
    explanation = routing.broker.explain_route("orders", b'{"a": 1}', key=b"k", headers={"h": "x"})
    assert verdicts(explanation) == {
        "content": "taken",
        "headers": "headers",
        "elsewhere": "other topic",
        "rest": "routed elsewhere",
    }
    assert (explanation.targets, explanation.is_routed) == (["out"], True)
    (message,) = explanation.verdicts[0].messages
    assert (message.topic, message.key, message.value, message.headers) == (
        "out",
        b"k",
        b'{"a": 1}',
        [("h", b"x")],
    )
    assert verdicts(routing.broker.explain_route("orders", b'{"a": 2}'))["content"] == "when"
    failed = routing.broker.explain_route("orders", b"no json").verdicts[0]
    assert (failed.reason, failed.taken, failed.messages[0].topic) == ("failed", True, "out.dead")
    assert "JSON" in failed.error
    assert {topic: routing.broker.topic(topic).records for topic in routing.broker.topics()} == before


def test_it_explains_for_topics_that_are_still_to_come(routing):
    routing.broker.bind("eu.*", "out")
    assert routing.broker.explain_route("eu.later", b"x").targets == ["out"]
    assert not routing.broker.explain_route("us.later", b"x").is_routed


def test_it_shows_what_a_transform_makes_and_where_it_fails(routing):
    routing.broker.bind("orders", "out", transform=DOUBLE)
    made = routing.broker.explain_route("orders", b'{"items": [1, 2]}').verdicts[0]
    assert [message.value for message in made.messages] == [b"1", b"2"]
    failed = routing.broker.explain_route("orders", b"no json").verdicts[0]
    assert (failed.reason, failed.because) == ("failed", "the record goes to its dead letter")


def test_it_explains_a_record_that_is_there(routing):
    routing.send("orders", b"before")
    routing.broker.bind("orders", "out")
    routing.send("orders", b"after", key=b"k")
    assert verdicts(routing.broker.explain_route("orders", at=(0, 0))) == {"orders->out": "before start"}
    explanation = routing.broker.explain_route("orders", at=(0, 1))
    assert explanation.verdicts[0].messages[0].key == b"k"


def test_a_place_without_a_record_cannot_be_explained(routing):
    with routing.broker.transaction("t") as tx:
        tx.send("orders", b"1")
    with pytest.raises(logbroker.OffsetOutOfRangeError):
        routing.broker.explain_route("orders", at=(0, 9))
    with pytest.raises(logbroker.TopicNotFoundError):
        routing.broker.explain_route("orders", at=(3, 0))
    with pytest.raises(InvalidRequestError, match="not both"):
        routing.broker.explain_route("orders", b"x", at=(0, 0))
    routing.send("orders", b"2")
    with pytest.raises(InvalidRequestError, match="no record at offset 1"):
        routing.broker.explain_route("orders", at=(0, 1))


def test_what_is_still_to_be_routed_is_not_deleted_as_consumed(routing):
    """Also before a router has run for the first time."""
    broker = routing.broker
    config = {"retention.policy": "consumed", "retention.ms": -1, "segment.bytes": 500}
    broker.create_topic("in", config=config)
    broker.bind("in", "out")
    with broker.producer(batch_bytes=200) as producer:
        producer.send_many("in", [b"value %d" % number for number in range(100)])
    with broker.consumer("in", group="g") as consumer:
        while consumer.poll(timeout=0.2):
            pass
    broker.clean()
    assert broker.run_router(idle_timeout=0.5) == 100
    broker.clean()
    assert broker.topic("in").partitions[0].log_start_offset == 100
