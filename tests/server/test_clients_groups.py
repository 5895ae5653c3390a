"""Consumer groups over the network: members come, go and die; the partitions move; commits are everybody's.

A ``Member`` is a consumer of one client library in a thread of its own: it keeps what it read, and commits what it
was given before it asks for more. All three libraries look the same through it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar

import aiokafka
import aiokafka.errors
import confluent_kafka
import kafka
import kafka.errors
import pytest
from confluent_kafka import KafkaError, KafkaException
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

import logbroker

DEADLINE_S = 20.0
NOWHERE = "0.0.0.0"  # the address of a socket that is not connected; of another family it is no tuple
SHORTEST_SESSION_MS = 6_000  # that a server takes of the classic protocol
POLL_S = 0.1


def until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


# Members --------------------------------------------------------------------------------------------------


class Member:
    """A consumer of a group, at work in a thread from the start on, until ``leave``."""

    def __init__(
        self, address: str, topics: Sequence[str] = ("t",), group: str = "g", **settings: Any
    ) -> None:
        self.address = address
        self.topics = list(topics)
        self.group = group
        self.settings = settings
        self.values: list[bytes] = []
        self.assigned: set[tuple[str, int]] = set()
        self.error: BaseException | None = None
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.read(self._leaving)
        except BaseException as error:
            self.error = error

    def read(self, leaving: threading.Event) -> None:
        raise NotImplementedError

    def leave(self) -> list[bytes]:
        """Close it; what it has read."""
        self._leaving.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the consumer does not come to an end"
        if self.error is not None:
            raise self.error
        return self.values


class ConfluentMember(Member):
    """librdkafka with the classic protocol."""

    protocol: ClassVar[dict[str, Any]] = {
        "session.timeout.ms": SHORTEST_SESSION_MS,
        "heartbeat.interval.ms": 200,
    }

    def read(self, leaving: threading.Event) -> None:
        settings = {name.replace("_", "."): value for name, value in self.settings.items()}
        consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": self.group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                **self.protocol,
                **settings,
            }
        )
        with closing(consumer):
            consumer.subscribe(self.topics)
            while not leaving.is_set():
                messages = consumer.consume(50, POLL_S)
                self.assigned = {(place.topic, place.partition) for place in consumer.assignment()}
                for message in messages:
                    if message.error():
                        raise KafkaException(message.error())
                    self.values.append(message.value())
                if messages:
                    commit_or_lose(consumer)


def commit_or_lose(consumer: confluent_kafka.Consumer) -> None:
    """Commit; a generation that is over meanwhile means that others read it again."""
    over = (
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError._NO_OFFSET,
    )
    try:
        consumer.commit(asynchronous=False)
    except KafkaException as error:
        if error.args[0].code() not in over:
            raise


class Kip848Member(ConfluentMember):
    """librdkafka with the protocol in which the server assigns."""

    protocol: ClassVar[dict[str, Any]] = {"group.protocol": "consumer"}


class CooperativeMember(ConfluentMember):
    """librdkafka, keeping what it need not give away."""

    protocol: ClassVar[dict[str, Any]] = {
        **ConfluentMember.protocol,
        "partition.assignment.strategy": "cooperative-sticky",
    }


KAFKA_PYTHON_COMMIT_LOST = (
    kafka.errors.CommitFailedError,
    kafka.errors.RebalanceInProgressError,
    kafka.errors.KafkaConnectionError,
)


class KafkaPythonMember(Member):
    """kafka-python. Its polls are long: it loses an assignment that comes in behind the end of one."""

    def read(self, leaving: threading.Event) -> None:
        consumer = kafka.KafkaConsumer(
            *self.topics,
            bootstrap_servers=self.address,
            group_id=self.group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SHORTEST_SESSION_MS,
            heartbeat_interval_ms=200,
            **self.settings,
        )
        with closing(consumer):
            while not leaving.is_set():
                try:
                    found = consumer.poll(timeout_ms=1_500)
                except kafka.errors.KafkaConnectionError:
                    continue  # the server is away
                self.assigned = {(place.topic, place.partition) for place in consumer.assignment()}
                for records in found.values():
                    self.values += [record.value for record in records]
                if found:
                    try:
                        consumer.commit()
                    except KAFKA_PYTHON_COMMIT_LOST:
                        pass  # others read it again


class AioKafkaMember(Member):
    """aiokafka."""

    def read(self, leaving: threading.Event) -> None:
        asyncio.run(self._read(leaving))

    async def _read(self, leaving: threading.Event) -> None:
        consumer = aiokafka.AIOKafkaConsumer(
            *self.topics,
            bootstrap_servers=self.address,
            group_id=self.group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SHORTEST_SESSION_MS,
            heartbeat_interval_ms=200,
            **self.settings,
        )
        async with consumer:
            while not leaving.is_set():
                found = await consumer.getmany(timeout_ms=int(POLL_S * 1000))
                self.assigned = {(place.topic, place.partition) for place in consumer.assignment()}
                for records in found.values():
                    self.values += [record.value for record in records]
                if found:
                    try:
                        await consumer.commit()
                    except (aiokafka.errors.CommitFailedError, aiokafka.errors.IllegalStateError):
                        pass  # others read it again


MEMBERS: dict[str, type[Member]] = {
    "confluent": ConfluentMember,
    "confluent cooperative": CooperativeMember,
    "confluent KIP-848": Kip848Member,
    "kafka-python": KafkaPythonMember,
    "aiokafka": AioKafkaMember,
}
of_each_kind = pytest.mark.parametrize("kind", MEMBERS.values(), ids=MEMBERS)
of_each_protocol = pytest.mark.parametrize(
    "kind", [ConfluentMember, Kip848Member], ids=["classic", "KIP-848"]
)


@pytest.fixture
def join(server: Any) -> Iterator[Callable[..., Any]]:
    """Have members join: ``join(kind, group=…)``. Who has not left at the end does then."""
    members: list[Member] = []

    def joined(kind: type[Member], **settings: Any) -> Member:
        members.append(kind(server.address, **settings))
        return members[-1]

    yield joined
    for member in members:
        member._leaving.set()
    for member in members:
        member._thread.join(DEADLINE_S)


@pytest.fixture
def lost_connections() -> Iterator[None]:
    """For tests that kill the server: kafka-python and aiokafka leave a socket open whose connection was refused."""
    yield
    for found in gc.get_objects():
        if type(found) is socket.socket and found.fileno() >= 0 and found.getsockname()[:1] == (NOWHERE,):
            found.close()


def shared(members: Sequence[Member], partitions: int = 4) -> Callable[[], bool]:
    """Whether every partition has one owner, and every member some."""

    def is_shared() -> bool:
        for member in members:
            if member.error is not None:
                raise member.error
        owned = Counter(place for member in members for place in member.assigned)
        return len(owned) == partitions == owned.total() and all(member.assigned for member in members)

    return is_shared


def everything(members: Sequence[Member]) -> Counter[bytes]:
    """How often each value was read."""
    for member in members:
        if member.error is not None:
            raise member.error
    return Counter(value for member in members for value in member.values)


class Load:
    """Numbered records from the library, on and on, spread over the partitions."""

    def __init__(self, broker: logbroker.Broker, topic: str = "t") -> None:
        self._broker = broker
        self._topic = topic
        self._next = 0
        self.sent: list[bytes] = []

    def send(self, count: int) -> None:
        values = [b"%d" % number for number in range(self._next, self._next + count)]
        self._next += count
        partitions = len(self._broker.topic(self._topic).partitions)
        with self._broker.producer() as producer:
            for number, value in enumerate(values):
                producer.send(self._topic, value, partition=number % partitions)
        self.sent += values


@pytest.fixture
def load(broker: logbroker.Broker) -> Load:
    """The topic ``t`` of four partitions, and what is sent to it."""
    broker.create_topic("t", partitions=4)
    return Load(broker)


def committed(broker: logbroker.Broker, group: str = "g") -> dict[int, int | None]:
    """What the library says that the group has committed in ``t``."""
    try:
        offsets = broker.group(group).offsets
    except logbroker.InvalidRequestError:
        return {}
    return {place.partition: place.committed_offset for place in offsets if place.topic == "t"}


# Members come and go --------------------------------------------------------------------------------------


@of_each_kind
def test_members_share_the_partitions_and_read_each_record_once(
    broker: logbroker.Broker, load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """With nobody coming or going meanwhile."""
    members = [join(kind), join(kind)]
    until(shared(members), "two members share four partitions")
    load.send(400)
    until(lambda: everything(members).total() >= 400, "all records are read")
    for member in members:
        member.leave()

    assert everything(members) == Counter(load.sent)
    assert committed(broker) == dict.fromkeys(range(4), 100)
    assert all(member.values for member in members)


@of_each_kind
def test_nothing_is_lost_while_members_come_and_go(
    broker: logbroker.Broker, load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """A second one joins under load, the first one leaves under load."""
    first = join(kind)
    load.send(200)
    until(lambda: len(first.values) >= 100, "the first member reads")
    second = join(kind)
    load.send(200)
    until(shared([first, second]), "the second member gets its share")
    load.send(200)
    first.leave()
    load.send(200)
    until(lambda: set(everything([first, second])) >= set(load.sent), "all records are read")
    until(lambda: len(second.assigned) == 4, "the second member has everything")
    second.leave()

    assert set(everything([first, second])) == set(load.sent)
    assert committed(broker) == dict.fromkeys(range(4), 200)


def test_a_cooperative_member_keeps_what_it_need_not_give_away(
    load: Load, join: Callable[..., Member]
) -> None:
    """It is never without partitions while another one joins."""
    first = join(CooperativeMember)
    until(lambda: len(first.assigned) == 4, "the first member has everything")
    before = set(first.assigned)
    second = join(CooperativeMember)
    fewest = 4

    def is_shared() -> bool:
        nonlocal fewest
        fewest = min(fewest, len(first.assigned))
        return shared([first, second])()

    until(is_shared, "the second member gets its share")
    assert fewest == 2
    assert first.assigned < before


def test_clients_of_different_libraries_share_one_group(load: Load, join: Callable[..., Member]) -> None:
    """They agree on the round-robin assignor."""
    members = [
        join(ConfluentMember, partition_assignment_strategy="roundrobin"),
        join(
            KafkaPythonMember,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
        ),
        join(AioKafkaMember),
    ]
    until(shared(members), "three libraries share four partitions")
    load.send(200)
    until(lambda: everything(members).total() >= 200, "all records are read")
    assert everything(members) == Counter(load.sent)


@of_each_kind
def test_new_partitions_are_read_too(
    broker: logbroker.Broker, load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """Members hear of them without joining again."""
    settings = {"topic_metadata_refresh_interval_ms": 200} if issubclass(kind, ConfluentMember) else {}
    member = join(kind, **(settings or {"metadata_max_age_ms": 200}))
    until(lambda: len(member.assigned) == 4, "the member has everything")
    broker.alter_topic("t", partitions=6)
    until(lambda: len(member.assigned) == 6, "the member has the new partitions")
    load.send(60)
    until(lambda: len(member.values) == 60, "all records are read")


def test_a_subscription_by_pattern_takes_in_topics_that_come_later(
    broker: logbroker.Broker, load: Load, join: Callable[..., Member]
) -> None:
    """librdkafka looks at the names itself with the classic protocol."""
    member = join(ConfluentMember, topics=["^t.*"], topic_metadata_refresh_interval_ms=200)
    until(lambda: len(member.assigned) == 4, "the member has the topic there is")
    broker.create_topic("two")
    until(lambda: ("two", 0) in member.assigned, "the member has the new topic")


# Members that stay known, members that die ----------------------------------------------------------------


@of_each_protocol
def test_a_static_member_that_comes_back_finds_its_partitions(
    load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """group.instance.id: leaving for a moment moves nothing."""
    first = join(kind, group_instance_id="one")
    second = join(kind, group_instance_id="two")
    until(shared([first, second]), "two members share four partitions")
    before, others = set(first.assigned), set(second.assigned)
    first.leave()
    again = join(kind, group_instance_id="one")
    until(lambda: again.assigned, "the member is back")

    assert again.assigned == before
    assert second.assigned == others


def test_of_two_static_members_of_one_name_the_older_one_is_fenced(
    load: Load, join: Callable[..., Member]
) -> None:
    """A name is one member's."""
    older = join(ConfluentMember, group_instance_id="one")
    until(lambda: len(older.assigned) == 4, "the first has everything")
    newer = join(ConfluentMember, group_instance_id="one")
    until(lambda: older.error is not None, "the older one hears of it")
    until(lambda: len(newer.assigned) == 4, "the newer one has everything")

    assert isinstance(older.error, KafkaException)
    assert older.error.args[0].code() in (KafkaError.FENCED_INSTANCE_ID, KafkaError._FATAL)


WORKER = """
import sys, confluent_kafka
settings = dict(pair.split("=") for pair in sys.argv[2:])
consumer = confluent_kafka.Consumer({"bootstrap.servers": sys.argv[1], "group.id": "g", **settings})
consumer.subscribe(["t"])
had = 0
while True:
    consumer.poll(0.1)
    if len(consumer.assignment()) != had:
        had = len(consumer.assignment())
        print(had, flush=True)
"""


@pytest.fixture
def worker(server: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A member in a process of its own: ``worker("name=value", …)``; it prints how many partitions it has."""
    started: list[subprocess.Popen[str]] = []

    def start(*settings: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, server.address, *settings]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def has(process: subprocess.Popen[str], partitions: int) -> None:
    """Wait until the worker says that it has so many partitions."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == partitions:
            return
    raise AssertionError("the worker ended")


def test_a_killed_member_loses_its_partitions_after_its_session_timeout(
    load: Load, join: Callable[..., Member], worker: Callable[..., subprocess.Popen[str]]
) -> None:
    """Not before: it could be back."""
    process = worker(f"session.timeout.ms={SHORTEST_SESSION_MS}", "heartbeat.interval.ms=200")
    has(process, 4)
    member = join(ConfluentMember)
    has(process, 2)
    until(lambda: len(member.assigned) == 2, "two members share four partitions")
    before_s = time.monotonic()
    process.kill()
    until(lambda: len(member.assigned) == 4, "the dead member's partitions move on")

    # Its session runs from its last heartbeat, which is older where it had no processor.
    assert time.monotonic() - before_s > SHORTEST_SESSION_MS / 1000 / 2


def test_a_killed_static_member_that_comes_back_in_time_reads_on(
    load: Load, join: Callable[..., Member], worker: Callable[..., subprocess.Popen[str]]
) -> None:
    """The others do not notice."""
    settings = (
        "group.instance.id=w",
        f"session.timeout.ms={SHORTEST_SESSION_MS}",
        "heartbeat.interval.ms=200",
    )
    process = worker(*settings)
    has(process, 4)
    member = join(ConfluentMember, group_instance_id="m")
    has(process, 2)
    until(lambda: len(member.assigned) == 2, "two members share four partitions")
    before = set(member.assigned)
    process.kill()
    has(worker(*settings), 2)

    assert member.assigned == before


# Commits are everybody's ----------------------------------------------------------------------------------


@of_each_kind
def test_what_members_commit_the_library_and_the_command_line_show(
    server: Any, broker: logbroker.Broker, load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """The same offsets everywhere, and no lag."""
    load.send(40)
    member = join(kind)
    until(lambda: set(committed(broker).values()) == {10}, "everything is committed")
    member.leave()

    description = broker.group("g")
    assert description.lag == 0
    shown = json.loads(_command_line(server, "group", "describe", "g", "--json"))
    assert {row["partition"]: row["committed_offset"] for row in shown["offsets"]} == committed(broker)


def _command_line(server: Any, *arguments: str) -> str:
    command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(server.data), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout


@of_each_kind
def test_a_member_begins_where_the_librarys_consumers_ended(
    broker: logbroker.Broker, load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """And the library's begin where it ended."""
    load.send(40)
    assert _read_embedded(broker, 40) == Counter(load.sent)
    load.send(40)
    member = join(kind)
    until(lambda: len(member.values) >= 40, "the rest is read")
    assert Counter(member.leave()) == Counter(load.sent[40:])

    load.send(40)
    assert _read_embedded(broker, 40) == Counter(load.sent[80:])


def _read_embedded(broker: logbroker.Broker, count: int) -> Counter[bytes]:
    found: Counter[bytes] = Counter()
    with broker.consumer("t", group="g") as consumer:
        deadline = time.monotonic() + DEADLINE_S
        while found.total() < count and time.monotonic() < deadline:
            found.update(record.value or b"" for record in consumer.poll(timeout=1.0))
    return found


def test_a_group_that_the_library_reset_is_read_again(
    broker: logbroker.Broker, load: Load, join: Callable[..., Member]
) -> None:
    """``reset_group`` needs the members gone, and is what they find when they are back."""
    load.send(40)
    member = join(ConfluentMember)
    until(lambda: set(committed(broker).values()) == {10}, "everything is committed")
    member.leave()
    until(lambda: _may_join(broker), "the group is free")
    broker.reset_group("g", "earliest")

    again = join(ConfluentMember)
    until(lambda: len(again.values) == 40, "everything is read again")


def test_what_a_member_notes_with_its_commit_is_there_later(server: Any, load: Load) -> None:
    """The metadata of an offset."""
    settings = {"bootstrap.servers": server.address, "group.id": "g", "enable.auto.commit": False}
    place = confluent_kafka.TopicPartition("t", 0, 3, metadata="as far as line 7")
    with closing(confluent_kafka.Consumer(settings)) as consumer:
        consumer.commit(offsets=[place], asynchronous=False)
    with closing(confluent_kafka.Consumer(settings)) as consumer:
        (found,) = consumer.committed([confluent_kafka.TopicPartition("t", 0)], timeout=DEADLINE_S)
    assert (found.offset, found.metadata) == (3, "as far as line 7")


# Both protocols ------------------------------------------------------------------------------------------


def test_an_empty_group_may_change_its_protocol_and_back(load: Load, join: Callable[..., Member]) -> None:
    """Classic, KIP-848, classic: each goes on where the one before ended."""
    for kind in (ConfluentMember, Kip848Member, KafkaPythonMember, Kip848Member, AioKafkaMember):
        load.send(40)
        member = join(kind)
        until(lambda member=member: len(member.values) >= 40, f"{kind.__name__} reads")
        assert Counter(member.leave()) == Counter(load.sent[-40:]), kind.__name__


@pytest.mark.parametrize("first", ["classic", "KIP-848"])
@pytest.mark.parametrize(
    "classic",
    [ConfluentMember, CooperativeMember, KafkaPythonMember, AioKafkaMember],
    ids=["confluent", "confluent cooperative", "kafka-python", "aiokafka"],
)
def test_members_of_both_protocols_share_one_group(
    load: Load, join: Callable[..., Member], classic: type[Member], first: str
) -> None:
    """Whoever was there first: an upgrade that nobody has to stop for, and a way back."""
    kinds = [classic, Kip848Member] if first == "classic" else [Kip848Member, classic]
    one = join(kinds[0])
    until(lambda: len(one.assigned) == 4, "the first has everything")
    load.send(40)
    until(lambda: len(one.values) == 40, "the first reads")
    other = join(kinds[1])
    until(lambda: len(one.assigned) == len(other.assigned) == 2, "they share")
    assert set(one.assigned).isdisjoint(other.assigned)
    load.send(40)
    until(lambda: len({*one.values, *other.values}) == 80, "everything is read by one of them")
    one.leave()
    until(lambda: len(other.assigned) == 4, "the second has everything")
    load.send(40)
    until(lambda: set(load.sent[80:]) <= set(other.values), "the second reads on")


@of_each_protocol
def test_the_librarys_consumers_are_refused_while_members_are_on_the_network(
    broker: logbroker.Broker, load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """The error says why; when the members are gone they may join."""
    member = join(kind)
    until(lambda: len(member.assigned) == 4, "the member has everything")
    with pytest.raises(logbroker.InvalidRequestError, match="connected to a server"):
        _read_embedded(broker, 1)
    member.leave()
    load.send(40)
    until(lambda: _may_join(broker), "the group is free")
    assert _read_embedded(broker, 40).total() == 40


def _may_join(broker: logbroker.Broker) -> bool:
    """Whether the server has let go of the group, which it does a moment after its last member left."""
    try:
        broker.consumer("t", group="g").close()
    except logbroker.InvalidRequestError:
        return False
    return True


@of_each_protocol
def test_a_member_over_the_network_is_refused_while_the_librarys_consumers_are_in_the_group(
    broker: logbroker.Broker, load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """Each side shares the partitions in its own way."""
    with broker.consumer("t", group="g") as consumer:
        consumer.poll()
        stranger = join(kind)
        until(lambda: stranger.error is not None, "the stranger hears of it")
        assert isinstance(stranger.error, KafkaException)
        load.send(40)
        until(lambda: consumer.poll(timeout=0.1), "the library reads on")


def test_a_commit_over_the_network_is_refused_while_the_librarys_consumers_are_in_the_group(
    server: Any, broker: logbroker.Broker, load: Load
) -> None:
    """Nobody moves the group's place under its members."""
    settings = {"bootstrap.servers": server.address, "group.id": "g", "enable.auto.commit": False}
    with broker.consumer("t", group="g") as member, closing(confluent_kafka.Consumer(settings)) as stranger:
        member.poll()
        with pytest.raises(KafkaException):
            stranger.commit(offsets=[confluent_kafka.TopicPartition("t", 0, 0)], asynchronous=False)


# The server dies ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lost_connections")
@of_each_kind
def test_a_group_goes_on_after_the_server_was_killed(
    server: Any, broker: logbroker.Broker, load: Load, join: Callable[..., Member], kind: type[Member]
) -> None:
    """At the same address: members join again by themselves, and read on behind their commits."""
    members = [join(kind), join(kind)]
    until(shared(members), "two members share four partitions")
    load.send(200)
    until(lambda: set(committed(broker).values()) == {50}, "everything is committed")
    server.kill()
    load.send(200)
    server.start()
    until(lambda: set(everything(members)) >= set(load.sent), "the members read on")
    until(lambda: set(committed(broker).values()) == {100}, "everything is committed")

    assert max(everything(members).values()) <= 2
    assert all(count == 1 for value, count in everything(members).items() if value in load.sent[:200])
