"""Share groups with librdkafka's ShareConsumer, alone and beside embedded consumers of the same queue.

A ``Sharer`` is a share consumer in a thread of its own: it keeps what it was given, and says what is to become of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import AcknowledgeType, KafkaException, ShareConsumer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

import logbroker

from .raw_client import RawClient
from .server_process import ServerProcess

DEADLINE_S = 20.0
POLL_S = 0.2
WAIT_MS = 40_000  # of a fetch, where nothing comes: twice as long as we wait
SHORT_LEASE_MS = 1_000


def until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def configure(server: ServerProcess, group: str, **config: str) -> None:
    """Keys have ``_`` for ``.``, and begin with ``share.``."""
    entries = [
        ConfigEntry(f"share.{name.replace('_', '.')}", value, incremental_operation=AlterConfigOpType.SET)
        for name, value in config.items()
    ]
    resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": server.address})
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(DEADLINE_S)


def produce(server: ServerProcess, values: Iterable[bytes], topic: str = "t", **options: Any) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": server.address, **options})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(DEADLINE_S) == 0


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def consumer(
    server: ServerProcess, group: str = "g", topics: Iterable[str] = ("t",), **options: Any
) -> ShareConsumer:
    settings = {"bootstrap.servers": server.address, "group.id": group}
    made = ShareConsumer(settings | {name.replace("_", "."): value for name, value in options.items()})
    made.subscribe(list(topics))
    return made


def take(consumer: ShareConsumer, count: int, within_s: float = DEADLINE_S) -> list[Any]:
    """At least *count* messages, of as many polls as that takes; fewer when the time is over."""
    found: list[Any] = []
    deadline = time.monotonic() + within_s
    while len(found) < count and time.monotonic() < deadline:
        for message in consumer.poll(timeout=POLL_S):
            assert message.error() is None, message.error()
            found.append(message)
    return found


def values(messages: Iterable[Any]) -> list[bytes]:
    return [message.value() for message in messages]


@pytest.fixture
def group(server: ServerProcess, broker: logbroker.Broker) -> str:
    """The group g, which reads topics from their beginning; the topic t with one partition."""
    broker.create_topic("t")
    configure(server, "g", auto_offset_reset="earliest")
    return "g"


class Sharer:
    """A share consumer at work in a thread, until ``stop``."""

    def __init__(self, server: ServerProcess, group: str, **options: Any) -> None:
        self.values: list[bytes] = []
        self.error: BaseException | None = None
        self._stopping = threading.Event()
        self._consumer = consumer(server, group, **options)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.values += values(self._consumer.poll(timeout=POLL_S))
                self._consumer.commit_sync(timeout=DEADLINE_S)
            self._consumer.close()
        except BaseException as error:
            self.error = error

    def stop(self) -> list[bytes]:
        self._stopping.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the consumer does not come to an end"
        if self.error is not None:
            raise self.error
        return self.values


# One consumer -----------------------------------------------------------------------------------------------------


def test_what_is_polled_is_accepted_with_the_next_poll(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    produce(server, numbers(100))
    sharer = consumer(server, group)
    found = take(sharer, 100)
    assert sorted(values(found), key=int) == numbers(100)
    assert {message.delivery_count() for message in found} == {1}
    sharer.poll(timeout=POLL_S)
    until(lambda: broker.subscription(group).lag == 0, "all are accepted")
    sharer.close()
    again = consumer(server, group)
    assert take(again, 1, within_s=1.0) == []
    again.close()


def test_a_group_is_a_queue_subscription_which_stays_when_its_members_leave(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    assert broker.subscriptions() == []
    sharer = consumer(server, group)
    sharer.poll(timeout=POLL_S)
    until(lambda: broker.subscriptions() == [group], "the group is there")
    sharer.close()
    found = broker.subscription(group)
    assert (found.kind, found.topics, found.lease_ms, found.max_deliveries) == ("queue", ["t"], 30_000, 5)


def test_a_group_begins_at_the_end_where_nothing_else_is_configured(
    server: ServerProcess, broker: logbroker.Broker
) -> None:
    broker.create_topic("t")
    produce(server, [b"before"])
    sharer = consumer(server, "fresh")
    sharer.poll(timeout=POLL_S)
    until(lambda: broker.subscriptions() == ["fresh"], "the group is there")
    produce(server, [b"after"])
    assert values(take(sharer, 1)) == [b"after"]
    sharer.close()


def test_a_member_that_subscribes_to_more_topics_widens_the_subscription(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    broker.create_topic("u", partitions=2)
    produce(server, [b"in t"])
    produce(server, [b"in u"], topic="u")
    sharer = consumer(server, group)
    assert values(take(sharer, 1)) == [b"in t"]
    sharer.subscribe(["t", "u"])
    assert values(take(sharer, 1)) == [b"in u"]
    sharer.close()
    assert broker.subscription(group).topics == ["t", "u"]


def test_a_topic_that_is_made_after_the_subscription_is_read_from_its_beginning(
    server: ServerProcess, broker: logbroker.Broker
) -> None:
    broker.create_topic("t")
    sharer = consumer(server, "g", topics=["t", "later"], topic_metadata_refresh_interval_ms=200)
    sharer.poll(timeout=POLL_S)
    until(lambda: broker.subscriptions() == ["g"], "the group is there")
    broker.create_topic("later")
    produce(server, [b"first"], topic="later")
    assert values(take(sharer, 1)) == [b"first"]
    sharer.close()


def test_messages_are_waited_for_and_come_at_once(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    sharer = consumer(server, group, fetch_wait_max_ms=WAIT_MS)
    sharer.poll(timeout=POLL_S)
    until(lambda: broker.subscriptions() == [group], "the group is there")
    with broker.producer(linger=0) as producer:
        for number in range(5):
            producer.send("t", b"%d" % number)
            assert values(take(sharer, 1)) == [b"%d" % number]
    sharer.close()


def test_all_partitions_of_a_topic_are_read(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    broker.create_topic("wide", partitions=4)
    produce(server, numbers(400), topic="wide", **{"sticky.partitioning.linger.ms": 0})
    sharer = consumer(server, group, topics=["wide"])
    found = take(sharer, 400)
    assert sorted(values(found), key=int) == numbers(400)
    sharer.close()


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_batches_go_out_as_they_are_stored(
    server: ServerProcess, broker: logbroker.Broker, group: str, compression: str
) -> None:
    produce(server, numbers(1000), **{"compression.type": compression, "linger.ms": 50})
    sharer = consumer(server, group)
    found = take(sharer, 1000)
    assert values(found) == numbers(1000)
    assert [message.offset() for message in found] == list(range(1000))
    sharer.close()


# What becomes of messages -----------------------------------------------------------------------------------------


def explicit(server: ServerProcess, group: str, **options: Any) -> ShareConsumer:
    return consumer(server, group, share_acknowledgement_mode="explicit", **options)


def acknowledge(sharer: ShareConsumer, messages: Iterable[Any], kind: AcknowledgeType) -> None:
    for message in messages:
        sharer.acknowledge(message, kind)
    for error in sharer.commit_sync(timeout=DEADLINE_S).values():
        assert error is None, error


def test_each_message_becomes_what_is_said_of_it(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    produce(server, numbers(9))
    sharer = explicit(server, group)
    kinds = [AcknowledgeType.ACCEPT, AcknowledgeType.RELEASE, AcknowledgeType.REJECT]
    found = take(sharer, 9)
    for message in found:
        sharer.acknowledge(message, kinds[message.offset() % 3])
    assert set(sharer.commit_sync(timeout=DEADLINE_S).values()) == {None}
    again = take(sharer, 3)
    assert [(message.offset(), message.delivery_count()) for message in again] == [(1, 2), (4, 2), (7, 2)]
    acknowledge(sharer, again, AcknowledgeType.ACCEPT)
    assert broker.subscription(group).lag == 0
    sharer.close()


def test_acknowledgements_last_when_the_server_is_killed_right_behind_them(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    produce(server, numbers(10))
    sharer = explicit(server, group)
    found = take(sharer, 10)
    for message in found:
        kind = AcknowledgeType.ACCEPT if message.offset() != 4 else AcknowledgeType.RELEASE
        sharer.acknowledge(message, kind)
    assert set(sharer.commit_sync(timeout=DEADLINE_S).values()) == {None}
    server.kill()
    server.start()
    (again,) = take(sharer, 1)
    assert (again.offset(), again.delivery_count()) == (4, 2)
    acknowledge(sharer, [again], AcknowledgeType.ACCEPT)
    sharer.close()


def test_a_message_that_nobody_accepts_is_delivered_so_often_and_then_is_a_dead_letter(
    server: ServerProcess, broker: logbroker.Broker
) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t", max_deliveries=3, dead_letter="t.dead")
    produce(server, [b"poison", b"food"])
    sharer = explicit(server, "g")
    for delivery in (1, 2, 3):
        for message in take(sharer, 2 if delivery == 1 else 1):
            is_food = message.value() == b"food"
            assert is_food or message.delivery_count() == delivery
            sharer.acknowledge(message, AcknowledgeType.ACCEPT if is_food else AcknowledgeType.RELEASE)
        sharer.commit_sync(timeout=DEADLINE_S)
    assert take(sharer, 1, within_s=1.0) == []
    sharer.close()
    with broker.consumer("t.dead", start="earliest") as dead:
        (letter,) = dead.poll(10, DEADLINE_S)
    assert letter.value == b"poison"
    assert broker.subscription("g").dead_letters == 1


def test_a_rejected_message_is_buried_at_once(server: ServerProcess, broker: logbroker.Broker) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t", dead_letter="t.dead")
    produce(server, [b"no"])
    sharer = explicit(server, "g")
    acknowledge(sharer, take(sharer, 1), AcknowledgeType.REJECT)
    assert broker.subscription("g").dead_letters == 1
    sharer.close()


def test_what_is_not_acknowledged_in_time_goes_to_somebody_else(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    configure(server, group, record_lock_duration_ms=str(SHORT_LEASE_MS))
    produce(server, [b"slow"])
    slow = explicit(server, group)
    (held,) = take(slow, 1)
    other = explicit(server, group)
    (taken,) = take(other, 1)
    assert (taken.value(), taken.delivery_count()) == (b"slow", 2)
    slow.acknowledge(held, AcknowledgeType.ACCEPT)
    (error,) = slow.commit_sync(timeout=DEADLINE_S).values()
    assert error is not None
    assert error.args[0].code() == confluent_kafka.KafkaError.INVALID_RECORD_STATE
    acknowledge(other, [taken], AcknowledgeType.ACCEPT)
    assert broker.subscription(group).lag == 0
    slow.close()
    other.close()


# Several consumers ------------------------------------------------------------------------------------------------


def test_several_consumers_share_one_partition_and_each_message_is_with_one_of_them(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    sharers = [Sharer(server, group, max_poll_records=20) for _ in range(3)]
    count = 0
    deadline = time.monotonic() + DEADLINE_S
    while count < 3000 or not all(sharer.values for sharer in sharers):
        assert time.monotonic() < deadline, (
            "every consumer gets some, also one that a busy machine keeps waiting"
        )
        produce(server, numbers(100, count))
        count += 100
    until(lambda: sum(len(sharer.values) for sharer in sharers) >= count, "all are delivered")
    found = [sharer.stop() for sharer in sharers]
    assert Counter(chain.from_iterable(found)) == Counter(numbers(count))
    assert broker.subscription(group).lag == 0


def test_a_message_is_either_with_a_share_consumer_or_with_an_embedded_one(
    server: ServerProcess, broker: logbroker.Broker
) -> None:
    broker.create_topic("t", partitions=2)
    broker.create_subscription("g", topic="t")
    sharers = [Sharer(server, "g", max_poll_records=20) for _ in range(2)]
    embedded: list[bytes] = []
    stopping = threading.Event()

    def receive() -> None:
        with broker.queue("t", subscription="g") as queue:
            while not stopping.is_set():
                batch = queue.receive_many(20, timeout=POLL_S)
                embedded.extend(message.value or b"" for message in batch)
                batch.accept()

    thread = threading.Thread(target=receive)
    thread.start()
    for first in range(0, 4000, 100):
        produce(server, numbers(100, first))
    until(lambda: len(embedded) + sum(len(sharer.values) for sharer in sharers) >= 4000, "all are delivered")
    stopping.set()
    thread.join(DEADLINE_S)
    shared = [sharer.stop() for sharer in sharers]
    assert Counter(chain(embedded, *shared)) == Counter(numbers(4000))
    assert embedded
    assert all(shared)
    assert broker.subscription("g").lag == 0


def test_what_an_embedded_consumer_releases_wakes_a_share_consumer_that_waits(
    server: ServerProcess, broker: logbroker.Broker
) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t")
    with broker.queue("t", subscription="g") as queue, broker.producer() as producer:
        producer.send("t", b"x").result(DEADLINE_S)
        message = queue.receive(timeout=DEADLINE_S)
        sharer = consumer(server, "g")
        assert take(sharer, 1, within_s=1.0) == []
        message.release()
        (found,) = take(sharer, 1)
        assert (found.value(), found.delivery_count()) == (b"x", 2)
        sharer.close()


def test_what_a_share_consumer_closes_with_goes_to_an_embedded_one(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    produce(server, [b"x"])
    sharer = explicit(server, group)
    assert values(take(sharer, 1)) == [b"x"]
    sharer.close()
    with broker.queue("t", subscription=group) as queue:
        message = queue.receive(timeout=5.0)
        assert (message.value, message.delivery_count) == (b"x", 2)
        message.accept()


CHILD = """
import sys, json
from confluent_kafka import ShareConsumer
consumer = ShareConsumer({"bootstrap.servers": sys.argv[1], "group.id": "g", "share.acknowledgement.mode": "explicit"})
consumer.subscribe(["t"])
while True:
    for message in consumer.poll(timeout=1.0):
        print(json.dumps(message.value().decode()), flush=True)
"""


def test_what_a_killed_consumer_holds_goes_to_others_at_once(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    """Long before its lease of 30 seconds ends."""
    produce(server, numbers(5))
    command = [sys.executable, "-c", CHILD, server.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        held = [json.loads(child.stdout.readline()).encode() for _ in range(5)]
        child.kill()
    killed = time.monotonic()
    sharer = consumer(server, group)
    found = take(sharer, 5)
    assert time.monotonic() - killed < 10.0
    assert sorted(values(found)) == sorted(held)
    assert {message.delivery_count() for message in found} == {2}
    sharer.close()


WORKER = """
import sys
from confluent_kafka import ShareConsumer
settings = {"bootstrap.servers": sys.argv[1], "group.id": "g", "max.poll.records": 20}
consumer = ShareConsumer(settings | {"share.acknowledgement.mode": "explicit"})
consumer.subscribe(["t"])
while True:
    messages = list(consumer.poll(timeout=1.0))
    for message in messages:
        consumer.acknowledge(message)
    failed = {place.partition for place, error in consumer.commit_sync(timeout=20.0).items() if error}
    for message in messages:
        if message.partition() not in failed:
            print(message.value().decode(), flush=True)
"""


@pytest.mark.slow
def test_workers_that_are_killed_all_the_time_accept_every_message_and_none_twice(
    server: ServerProcess, broker: logbroker.Broker, tmp_path: Path
) -> None:
    """What a worker had accepted and died before it said so is in no list: so many are missing at most."""
    broker.create_topic("t", partitions=2)
    broker.create_subscription("g", topic="t", max_deliveries=1000)
    workers: list[tuple[subprocess.Popen[bytes], Path]] = []
    kills = 0

    def start() -> None:
        out = tmp_path / f"worker-{len(workers)}"
        with out.open("wb") as stdout:
            command = [sys.executable, "-c", WORKER, server.address]
            child = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)
        workers.append((child, out))

    for _ in range(3):
        start()
    try:
        for first in range(0, 6000, 200):
            produce(server, numbers(200, first))
            time.sleep(0.1)
            if first % 1000 == 800:
                workers[-3][0].kill()
                kills += 1
                start()
        until(lambda: broker.subscription("g").lag == 0, "all are accepted", within_s=60.0)
        time.sleep(0.2)  # until the last have said so
    finally:
        for child, _ in workers:
            child.kill()
            child.wait()
    said = [line.encode() for _, out in workers for line in out.read_text().split("\n")[:-1]]
    assert len(said) == len(set(said)), "accepted twice"
    assert set(said) <= set(numbers(6000))
    assert len(said) >= 6000 - 200 * kills  # a poll may give a whole batch, and those are of 200
    assert kills == 6


def test_a_killed_embedded_consumer_leaves_its_messages_to_share_consumers(
    server: ServerProcess, broker: logbroker.Broker, tmp_path: Path
) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t")
    produce(server, [b"x"])
    code = (
        "import logbroker, sys, time\n"
        "broker = logbroker.open(sys.argv[1])\n"
        "message = broker.queue('t', subscription='g').receive(timeout=10)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(server.data)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        sharer = consumer(server, "g")
        assert take(sharer, 1, within_s=0.5) == []
        child.kill()
    (found,) = take(sharer, 1, within_s=10.0)
    assert (found.value(), found.delivery_count()) == (b"x", 2)
    sharer.close()


# What is kept from delivery ---------------------------------------------------------------------------------------


def test_what_the_filter_refuses_is_not_delivered_and_is_done(
    server: ServerProcess, broker: logbroker.Broker
) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t", filter="int(string(value)) % 3 == 0")
    produce(server, numbers(30), **{"linger.ms": 50})
    sharer = consumer(server, "g")
    assert values(take(sharer, 10)) == numbers(30)[::3]
    sharer.poll(timeout=POLL_S)
    sharer.close()
    assert broker.subscription("g").lag == 0


def test_what_has_expired_or_is_to_be_delivered_later_is_not_delivered_now(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    before = time.monotonic()
    with broker.producer() as producer:
        producer.send("t", b"late", delay=timedelta(seconds=2))
        producer.send("t", b"gone", ttl=timedelta(milliseconds=1))
        producer.send("t", b"now")
    time.sleep(0.01)
    sharer = consumer(server, group)
    found = values(take(sharer, 1))
    assert b"now" in found
    found += values(take(sharer, 2 - len(found)))
    assert sorted(found) == [b"late", b"now"]
    assert time.monotonic() - before > 1.9
    sharer.close()


def test_messages_of_one_key_are_never_in_two_hands(server: ServerProcess, broker: logbroker.Broker) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t", ordered=True)
    with broker.producer() as producer:
        producer.send("t", b"a1", key=b"a")
        producer.send("t", b"a2", key=b"a")
        producer.send("t", b"b1", key=b"b")
    with broker.queue("t", subscription="g") as queue:
        first = queue.receive(timeout=DEADLINE_S)
        assert first.value == b"a1"
        sharer = consumer(server, "g")
        assert values(take(sharer, 1)) == [b"b1"]
        assert take(sharer, 1, within_s=1.0) == []
        first.accept()
        assert values(take(sharer, 1)) == [b"a2"]
        sharer.close()


def test_only_what_a_transaction_has_committed_is_delivered(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": server.address, "transactional.id": "x"})
    producer.init_transactions(DEADLINE_S)
    for number in range(6):
        producer.begin_transaction()
        producer.produce("t", b"%d" % number)
        producer.flush(DEADLINE_S)
        if number % 2:
            producer.abort_transaction(DEADLINE_S)
        else:
            producer.commit_transaction(DEADLINE_S)
    sharer = consumer(server, group)
    assert values(take(sharer, 3)) == [b"0", b"2", b"4"]
    assert take(sharer, 1, within_s=0.5) == []
    until(lambda: broker.subscription(group).lag == 0, "all are accepted, and the markers passed over")
    sharer.close()


def test_a_paused_subscription_delivers_nothing_until_it_is_resumed(
    server: ServerProcess, broker: logbroker.Broker
) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t")
    broker.pause_subscription("g")
    produce(server, [b"x"])
    sharer = consumer(server, "g")
    assert take(sharer, 1, within_s=1.0) == []
    broker.resume_subscription("g")
    assert values(take(sharer, 1)) == [b"x"]
    sharer.close()


# Beside other groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "refusal"), [("classic", "protocol"), ("consumer", "group id does not exist")]
)
def test_a_consumer_group_cannot_have_the_name_of_a_share_group(
    server: ServerProcess, broker: logbroker.Broker, protocol: str, refusal: str
) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t")
    settings = {"bootstrap.servers": server.address, "group.id": "g", "group.protocol": protocol}
    other = confluent_kafka.Consumer(settings)
    other.subscribe(["t"])
    message = None
    deadline = time.monotonic() + DEADLINE_S
    while message is None and time.monotonic() < deadline:
        message = other.poll(POLL_S)
    other.close()
    assert message is not None
    assert message.error() is not None
    assert refusal in message.error().str().lower()
    assert broker.groups() == []


def test_an_embedded_consumer_cannot_join_a_queue(broker: logbroker.Broker) -> None:
    broker.create_topic("t")
    broker.create_subscription("g", topic="t")
    with pytest.raises(logbroker.LogbrokerError, match=r"broker\.queue"):
        broker.consumer("t", group="g").poll(1, 0)


def test_groups_are_listed_with_their_types_and_deleted_when_nobody_is_in_them(
    server: ServerProcess, broker: logbroker.Broker, group: str
) -> None:
    """librdkafka lists only consumer groups, so the list is asked for by hand."""

    def deleted() -> BaseException | None:
        admin = AdminClient({"bootstrap.servers": server.address})
        (done,) = admin.delete_consumer_groups([group]).values()
        return done.exception(DEADLINE_S)

    def listed(*types: str) -> dict[str, str]:
        with RawClient(server.port) as client:
            found = client.send(16, 5, types_filter=types).groups
        assert {one.group_type for one in found} | {one.protocol_type for one in found} <= {"share"}
        return {one.group_id: one.group_state for one in found}

    sharer = consumer(server, group)
    sharer.poll(timeout=POLL_S)
    until(lambda: listed() == {group: "Stable"}, "the group has a member")
    assert listed("share") == {group: "Stable"}
    assert listed("classic", "consumer") == {}
    refusal = deleted()
    assert isinstance(refusal, KafkaException)
    assert refusal.args[0].code() == confluent_kafka.KafkaError.NON_EMPTY_GROUP
    sharer.close()
    assert listed() == {group: "Empty"}
    assert deleted() is None
    assert listed() == {}
    assert broker.subscriptions() == []


def test_configuration_is_shown_and_lasts(server: ServerProcess, broker: logbroker.Broker) -> None:
    configure(server, "g", auto_offset_reset="earliest", record_lock_duration_ms="5000")
    server.stop()
    server.start()
    admin = AdminClient({"bootstrap.servers": server.address})
    (described,) = admin.describe_configs([ConfigResource(ResourceType.GROUP, "g")]).values()
    shown = {name: entry.value for name, entry in described.result(DEADLINE_S).items()}
    assert shown == {
        "share.auto.offset.reset": "earliest",
        "share.record.lock.duration.ms": "5000",
        "share.delivery.count.limit": "5",
        "share.isolation.level": "read_committed",
    }
    broker.create_topic("t")
    sharer = consumer(server, "g")
    sharer.poll(timeout=POLL_S)
    until(lambda: broker.subscriptions() == ["g"], "the group is there")
    assert broker.subscription("g").lease_ms == 5000
    configure(server, "g", delivery_count_limit="2")
    found = broker.subscription("g")
    assert (found.lease_ms, found.max_deliveries) == (5000, 2)
    sharer.close()


def test_other_isolation_levels_are_refused(server: ServerProcess) -> None:
    with pytest.raises(KafkaException, match="read_committed"):
        configure(server, "g", isolation_level="read_uncommitted")
