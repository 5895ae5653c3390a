"""Named subscriptions: made once, kept in the journal, with a filter, a pause and a place of their own."""

from __future__ import annotations

import datetime

import pytest

import logbroker
from logbroker import (
    InvalidRequestError,
    SubscriptionExistsError,
    SubscriptionNotFoundError,
    TopicNotFoundError,
)


@pytest.fixture
def broker(tmp_path):
    with logbroker.open(tmp_path / "data") as opened:
        opened.create_topic("orders")
        yield opened


def send(broker, topic, *values):
    with broker.producer() as producer:
        for value in values:
            producer.send(topic, value)


def drain(broker, name):
    with broker.queue(subscription=name) as queue:
        batch = queue.receive_many(1000)
        batch.accept()
        return [message.value for message in batch]


def read(broker, name, topic="orders"):
    with broker.consumer(topic, group=name, delivery="manual") as consumer:
        records = consumer.poll(1000, 0)
        consumer.commit()
        return [record.value for record in records]


def test_subscriptions_of_both_kinds_each_get_every_message(broker):
    broker.create_subscription("workers", topic="orders")
    broker.create_subscription("mailers", topic="orders")
    broker.create_subscription("audit", topic="orders", kind="stream")
    send(broker, "orders", b"a", b"b")
    assert drain(broker, "workers") == drain(broker, "mailers") == read(broker, "audit") == [b"a", b"b"]
    assert drain(broker, "workers") == read(broker, "audit") == []


def test_a_subscription_begins_where_it_was_made_to_connected_or_not(broker):
    send(broker, "orders", b"old")
    for kind in ("queue", "stream"):
        broker.create_subscription(f"all-{kind}", topic="orders", kind=kind)
        broker.create_subscription(f"new-{kind}", topic="orders", kind=kind, start="latest")
    send(broker, "orders", b"new")
    assert drain(broker, "all-queue") == read(broker, "all-stream") == [b"old", b"new"]
    assert drain(broker, "new-queue") == read(broker, "new-stream") == [b"new"]


def test_a_moment_to_begin_at(broker):
    with broker.producer() as producer:
        for second in (10, 20, 30):
            producer.send("orders", b"%d" % second, timestamp=second * 1000)
    moment = datetime.datetime.fromtimestamp(15, datetime.UTC)
    broker.create_subscription("late", topic="orders", start=moment)
    assert drain(broker, "late") == [b"20", b"30"]


def test_a_pattern_takes_up_topics_made_later_from_their_beginning(broker):
    broker.create_subscription("every", topic="orders*", start="latest")
    broker.create_topic("orders.eu")
    send(broker, "orders.eu", b"a")
    assert drain(broker, "every") == [b"a"]


def test_partitions_added_later_are_read_from_their_beginning(broker):
    broker.create_subscription("workers", topic="orders", start="latest")
    broker.alter_topic("orders", partitions=2)
    with broker.producer() as producer:
        producer.send("orders", b"in the new one", partition=1)
    assert drain(broker, "workers") == [b"in the new one"]


@pytest.mark.parametrize("kind", ["queue", "stream"])
def test_a_stored_filter_lets_only_matching_messages_through(broker, kind):
    broker.create_subscription("big", topic="orders", kind=kind, filter="json.total > 100")
    send(broker, "orders", b'{"total": 5}', b"no json", b'{"total": 500}')
    receive = drain if kind == "queue" else read
    assert receive(broker, "big") == [b'{"total": 500}']
    assert broker.subscription("big").lag == 0


@pytest.mark.parametrize("kind", ["queue", "stream"])
def test_a_paused_subscription_delivers_nothing_until_it_is_resumed(broker, kind):
    broker.create_subscription("s", topic="orders", kind=kind)
    send(broker, "orders", b"a")
    receive = drain if kind == "queue" else read
    broker.pause_subscription("s")
    assert broker.subscription("s").is_paused
    assert receive(broker, "s") == []
    broker.resume_subscription("s")
    assert receive(broker, "s") == [b"a"]


def test_a_pause_reaches_consumers_that_are_open(broker):
    broker.create_subscription("s", topic="orders", kind="stream")
    broker.create_subscription("q", topic="orders")
    with broker.consumer("orders", group="s") as consumer, broker.queue(subscription="q") as queue:
        assert consumer.poll(1, 0) == queue.receive_many(1) == []
        for name in ("s", "q"):
            broker.pause_subscription(name)
        send(broker, "orders", b"a")
        assert consumer.poll(1, 0.05) == queue.receive_many(1, 0.05) == []
        for name in ("s", "q"):
            broker.resume_subscription(name)
        assert [record.value for record in consumer.poll(1, 5)] == [b"a"]
        assert [message.value for message in queue.receive_many(1, 5)] == [b"a"]


@pytest.mark.parametrize("kind", ["queue", "stream"])
def test_a_reset_delivers_again_from_another_place(broker, kind):
    broker.create_subscription("s", topic="orders", kind=kind)
    receive = drain if kind == "queue" else read
    send(broker, "orders", b"a", b"b", b"c")
    assert len(receive(broker, "s")) == 3
    assert broker.reset_subscription("s", 1, dry_run=True) == {("orders", 0): 1}
    assert receive(broker, "s") == []
    assert broker.reset_subscription("s", 1) == {("orders", 0): 1}
    assert receive(broker, "s") == [b"b", b"c"]
    broker.reset_subscription("s", "earliest")
    assert receive(broker, "s") == [b"a", b"b", b"c"]


@pytest.mark.parametrize("kind", ["queue", "stream"])
def test_a_renamed_subscription_goes_on_where_it_was(broker, kind):
    broker.create_subscription("before", topic="orders", kind=kind)
    receive = drain if kind == "queue" else read
    send(broker, "orders", b"a")
    assert receive(broker, "before") == [b"a"]
    broker.rename_subscription("before", "after")
    send(broker, "orders", b"b")
    assert broker.subscriptions() == ["after"]
    assert receive(broker, "after") == [b"b"]
    with pytest.raises(SubscriptionNotFoundError, match="after"):
        broker.subscription("before")


@pytest.mark.parametrize("kind", ["queue", "stream"])
def test_a_deleted_subscription_leaves_nothing_to_the_next_of_its_name(broker, kind):
    broker.create_subscription("s", topic="orders", kind=kind)
    receive = drain if kind == "queue" else read
    send(broker, "orders", b"a")
    receive(broker, "s")
    broker.delete_subscription("s")
    assert broker.subscriptions() == broker.groups() == []
    broker.create_subscription("s", topic="orders", kind=kind)
    assert receive(broker, "s") == [b"a"]


def test_a_consumer_whose_subscription_was_deleted_is_told(broker):
    broker.create_subscription("s", topic="orders")
    with broker.queue(subscription="s") as queue:
        broker.delete_subscription("s")
        with pytest.raises(SubscriptionNotFoundError):
            queue.receive_many(1, timeout=5)


def test_another_opening_of_the_directory_finds_it(tmp_path):
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("orders")
        broker.create_subscription(
            "s", topic="orders", lease=7, max_deliveries=3, dead_letter="dead", ordered=True
        )
        send(broker, "orders", b"a", b"b")
        with broker.queue(subscription="s") as queue:
            queue.receive_many(1)[0].accept()
    with logbroker.open(tmp_path / "data") as broker:
        found = broker.subscription("s")
        assert (found.lease_ms, found.max_deliveries, found.dead_letter, found.ordered) == (
            7000,
            3,
            "dead",
            True,
        )
        assert "dead" in broker.topics()
        assert drain(broker, "s") == [b"b"]


def test_names_are_one_space_with_those_of_groups(broker):
    broker.create_subscription("q", topic="orders")
    with pytest.raises(InvalidRequestError, match="queue"):
        broker.consumer("orders", group="q")
    with broker.consumer("orders", group="g"):
        pass
    with pytest.raises(SubscriptionExistsError, match="consumer group"):
        broker.create_subscription("g", topic="orders")
    broker.create_subscription("g", topic="orders", kind="stream")  # its progress is the group's
    with pytest.raises(InvalidRequestError, match="delete_subscription"):
        broker.delete_group("g")
    with pytest.raises(InvalidRequestError, match="stream"):
        broker.queue(subscription="g")


def test_a_subscription_made_twice(broker):
    broker.create_subscription("s", topic="orders", max_deliveries=3)
    with pytest.raises(SubscriptionExistsError):
        broker.create_subscription("s", topic="orders")
    broker.create_subscription("s", topic="orders", exist_ok=True)
    assert broker.subscription("s").max_deliveries == 3


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"topic": "order"}, TopicNotFoundError, "orders"),
        ({"topic": "orders", "kind": "topic"}, InvalidRequestError, "'queue' or 'stream'"),
        ({"topic": "orders", "lease": 0}, InvalidRequestError, "lease"),
        ({"topic": "orders", "max_deliveries": 0}, InvalidRequestError, "max_deliveries"),
        ({"topic": "orders", "max_delivery": 2}, InvalidRequestError, "max_deliveries"),
        ({"topic": "orders", "dead_letter": "orders"}, InvalidRequestError, "round"),
        ({"topic": "orders", "expired": "dead-letter"}, InvalidRequestError, "dead_letter="),
        ({"topic": "orders", "filter": "json.total >"}, InvalidRequestError, "json.total"),
        ({"topic": "orders", "filter": lambda record: True}, InvalidRequestError, "CEL"),
        ({"topic": "orders", "kind": "stream", "lease": 5}, InvalidRequestError, "queues"),
        ({"topic": []}, InvalidRequestError, "topic"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_made(broker, arguments, error, says):
    with pytest.raises(error, match=says):
        broker.create_subscription("s", **arguments)
    assert broker.subscriptions() == []


def test_a_name_that_is_not_there_names_the_nearest(broker):
    broker.create_subscription("workers", topic="orders")
    with pytest.raises(SubscriptionNotFoundError, match="'workers'"):
        broker.queue("orders", subscription="worker")
    broker.create_topic("other")
    with pytest.raises(InvalidRequestError, match="does not read"):
        broker.queue("other", subscription="workers")


def test_the_description_counts_by_state(broker):
    broker.create_subscription("s", topic="orders", dead_letter="dead", max_deliveries=1)
    send(broker, "orders", *[b"%d" % number for number in range(10)])
    with broker.queue(subscription="s") as queue:
        batch = queue.receive_many(6)
        batch[0].accept()
        batch[1].release()  # the last delivery that it has
        found = broker.subscription("s")
        assert (found.lag, found.in_flight, found.dead_letters) == (8, 4, 1)
        assert found.partitions[0].consumers == [queue.owner]
        assert found.oldest_age_ms is not None
        assert found.oldest_age_ms >= 0


def test_a_dead_letter_topic_that_is_made_by_itself_takes_whatever_the_topic_took(broker):
    broker.alter_topic("orders", config={"max.message.bytes": 3 << 20})
    broker.create_subscription("s", topic="orders", dead_letter="dead")
    send(broker, "orders", b"x" * (2 << 20))
    with broker.queue(subscription="s") as queue:
        queue.receive(timeout=1).reject()
    found = broker.subscription("s")
    assert (found.lag, found.dead_letters) == (0, 1)


def test_a_consumer_may_bring_a_filter_of_its_own(broker):
    send(broker, "orders", b"1", b"22", b"333")
    broker.create_subscription("s", topic="orders", kind="stream", filter="size(value) > 1")
    with broker.consumer("orders", group="s", filter=lambda record: len(record.value) < 3) as consumer:
        assert [record.value for record in consumer.poll(10, 0)] == [b"22"]
        consumer.commit()
    assert broker.group("s").lag == 0
    with broker.consumer("orders", filter="value == '1'") as consumer:
        assert [record.value for record in consumer.poll(10, 0)] == [b"1"]


def test_what_a_consumers_filter_raises_comes_out_of_poll(broker):
    send(broker, "orders", b"1")
    with broker.consumer("orders", filter=lambda record: 1 / 0) as consumer, pytest.raises(ZeroDivisionError):
        consumer.poll(10, 0)
