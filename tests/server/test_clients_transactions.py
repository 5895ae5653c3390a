"""Transactions over the network: all of it is seen or nothing, whoever writes, whoever reads, and whatever dies.

A ``Writer`` is a transactional producer: of one of the three client libraries, or of the library itself. All look
the same, so that each sentence is tested for each of them.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, Protocol

import aiokafka
import aiokafka.errors
import confluent_kafka
import kafka
import kafka.errors
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

import logbroker

DEADLINE_S = 20.0
NOWHERE = "0.0.0.0"  # the address of a socket that is not connected; of another family it is no tuple
CLIENT_ERRORS = (
    KafkaException,
    kafka.errors.KafkaError,
    aiokafka.errors.KafkaError,
    logbroker.LogbrokerError,
)


def until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


# Writers --------------------------------------------------------------------------------------------------


class Writer(Protocol):
    """A transactional producer. ``send`` returns when the record is in the log."""

    def begin(self) -> None: ...

    def send(self, value: bytes, topic: str = "t", partition: int = 0) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


class ConfluentWriter:
    """librdkafka."""

    def __init__(self, server: Any, transactional_id: str, timeout_ms: int = 60_000) -> None:
        self.producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": server.address,
                "transactional.id": transactional_id,
                "transaction.timeout.ms": timeout_ms,
                "linger.ms": 0,
            }
        )
        self.producer.init_transactions(DEADLINE_S)

    def begin(self) -> None:
        self.producer.begin_transaction()

    def send(self, value: bytes, topic: str = "t", partition: int = 0) -> None:
        told: list[Any] = []
        self.producer.produce(
            topic, value, partition=partition, on_delivery=lambda error, _: told.append(error)
        )
        assert self.producer.flush(DEADLINE_S) == 0, "the record was not answered in time"
        if told[0] is not None:
            raise KafkaException(told[0])

    def commit(self) -> None:
        self.producer.commit_transaction(DEADLINE_S)

    def abort(self) -> None:
        self.producer.abort_transaction(DEADLINE_S)

    def close(self) -> None:
        self.producer.purge()


class KafkaPythonWriter:
    """kafka-python."""

    def __init__(self, server: Any, transactional_id: str, timeout_ms: int = 60_000) -> None:
        self.producer = kafka.KafkaProducer(
            bootstrap_servers=server.address,
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout_ms,
            max_block_ms=int(DEADLINE_S * 1000),
        )
        self.producer.init_transactions()

    def begin(self) -> None:
        self.producer.begin_transaction()

    def send(self, value: bytes, topic: str = "t", partition: int = 0) -> None:
        self.producer.send(topic, value, partition=partition).get(timeout=DEADLINE_S)

    def commit(self) -> None:
        self.producer.commit_transaction()

    def abort(self) -> None:
        self.producer.abort_transaction()

    def close(self) -> None:
        self.producer.close(timeout=0)


class AioKafkaWriter:
    """aiokafka, on an event loop of its own."""

    def __init__(self, server: Any, transactional_id: str, timeout_ms: int = 60_000) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.producer = self.run(self._start(server.address, transactional_id, timeout_ms))

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE_S)

    async def _start(self, address: str, transactional_id: str, timeout_ms: int) -> aiokafka.AIOKafkaProducer:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=address, transactional_id=transactional_id, transaction_timeout_ms=timeout_ms
        )
        await producer.start()
        return producer

    def begin(self) -> None:
        self.run(self.producer.begin_transaction())

    def send(self, value: bytes, topic: str = "t", partition: int = 0) -> None:
        self.run(self.producer.send_and_wait(topic, value, partition=partition))

    def commit(self) -> None:
        self.run(self.producer.commit_transaction())

    def abort(self) -> None:
        self.run(self.producer.abort_transaction())

    def close(self) -> None:
        try:
            self.run(self.producer.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class LibraryWriter:
    """The library, in this process."""

    def __init__(self, server: Any, transactional_id: str, timeout_ms: int = 60_000) -> None:
        self._broker = logbroker.open(server.data)
        self._transactional_id = transactional_id
        self._timeout_s = timeout_ms / 1000
        self._transaction = self._open()
        self._is_fresh = True  # the id is claimed with the first transaction, as the others do at their start

    def _open(self) -> logbroker.Transaction:
        return self._broker.transaction(self._transactional_id, timeout=self._timeout_s)

    def begin(self) -> None:
        if not self._is_fresh:
            self._transaction = self._open()
        self._is_fresh = False

    def send(self, value: bytes, topic: str = "t", partition: int = 0) -> None:
        self._transaction.send(topic, value, partition=partition).result()

    def commit(self) -> None:
        self._transaction.commit()

    def abort(self) -> None:
        self._transaction.abort()

    def close(self) -> None:
        self._broker.close()


CLIENTS: dict[str, type[Writer]] = {
    "confluent": ConfluentWriter,
    "kafka-python": KafkaPythonWriter,
    "aiokafka": AioKafkaWriter,
}
of_each_client = pytest.mark.parametrize("kind", CLIENTS.values(), ids=CLIENTS)
of_each_writer = pytest.mark.parametrize(
    "kind", [*CLIENTS.values(), LibraryWriter], ids=[*CLIENTS, "library"]
)

Open = Callable[..., Any]


@pytest.fixture
def writer(server: Any, broker: logbroker.Broker) -> Iterator[Open]:
    """Open writers that end with the test: ``writer(kind, "id", timeout_ms=…)``. The topic ``t`` is there."""
    broker.create_topic("t", partitions=2)
    with ExitStack() as writers:
        yield lambda kind, transactional_id="id", **settings: writers.enter_context(
            closing(kind(server, transactional_id, **settings))
        )


@pytest.fixture
def lost_connections() -> Iterator[None]:
    """For tests that kill the server: kafka-python and aiokafka leave a socket open whose connection was refused."""
    yield
    for found in gc.get_objects():
        if type(found) is socket.socket and found.fileno() >= 0 and found.getsockname()[:1] == (NOWHERE,):
            found.close()


# Readers --------------------------------------------------------------------------------------------------

COMMITTED, UNCOMMITTED = "read_committed", "read_uncommitted"


def with_confluent(server: Any, topic: str, isolation: str, partition: int = 0) -> list[bytes]:
    settings = {
        "bootstrap.servers": server.address,
        "group.id": "readers",
        "isolation.level": isolation,
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 10,
    }
    found: list[bytes] = []
    with closing(confluent_kafka.Consumer(settings)) as consumer:
        consumer.assign([TopicPartition(topic, partition, 0)])
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error() is None:
                found.append(message.value())
            elif message.error().code() == KafkaError._PARTITION_EOF:
                return found
            else:
                raise KafkaException(message.error())
    raise AssertionError("the end does not come")


def with_kafka_python(server: Any, topic: str, isolation: str, partition: int = 0) -> list[bytes]:
    place = kafka.TopicPartition(topic, partition)
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=server.address, isolation_level=isolation, fetch_max_wait_ms=10
    )
    found: list[bytes] = []
    with closing(consumer):
        consumer.assign([place])
        consumer.seek(place, 0)
        end = consumer.end_offsets([place])[place]
        deadline = time.monotonic() + DEADLINE_S
        while consumer.position(place) < end:
            assert time.monotonic() < deadline, "the end does not come"
            for records in consumer.poll(timeout_ms=200).values():
                found += [record.value for record in records]
    return found


def with_aiokafka(server: Any, topic: str, isolation: str, partition: int = 0) -> list[bytes]:
    async def read() -> list[bytes]:
        place = aiokafka.TopicPartition(topic, partition)
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=server.address, isolation_level=isolation, fetch_max_wait_ms=10
        )
        found: list[bytes] = []
        async with asyncio.timeout(DEADLINE_S), consumer:
            consumer.assign([place])
            consumer.seek(place, 0)
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [record.value for record in records]
        return found

    return asyncio.run(read())


def with_library(server: Any, topic: str, isolation: str, partition: int = 0) -> list[bytes]:
    found: list[bytes] = []
    with (
        logbroker.open(server.data) as broker,
        broker.consumer(topic, isolation=isolation) as consumer,  # type: ignore[arg-type]
    ):
        while records := consumer.poll():
            found += [record.value or b"" for record in records if record.partition == partition]
    return found


READERS = {
    "confluent": with_confluent,
    "kafka-python": with_kafka_python,
    "aiokafka": with_aiokafka,
    "library": with_library,
}


def seen(server: Any, topic: str = "t", partition: int = 0, isolation: str = COMMITTED) -> list[bytes]:
    """What the partition holds; the readers must be of one mind."""
    by_reader = {name: read(server, topic, isolation, partition) for name, read in READERS.items()}
    assert len({tuple(values) for values in by_reader.values()}) == 1, by_reader
    return by_reader["confluent"]


def last_stable_offset(server: Any, topic: str = "t", partition: int = 0) -> int:
    place = kafka.TopicPartition(topic, partition)
    consumer = kafka.KafkaConsumer(bootstrap_servers=server.address, isolation_level=COMMITTED)
    with closing(consumer):
        return int(consumer.end_offsets([place])[place])


# All or nothing -------------------------------------------------------------------------------------------


@of_each_writer
def test_a_transaction_is_seen_when_it_is_committed(server: Any, writer: Open, kind: type[Writer]) -> None:
    """Before that, only by who asks for everything."""
    w = writer(kind)
    w.begin()
    w.send(b"a")
    w.send(b"b")
    assert seen(server) == []
    assert seen(server, isolation=UNCOMMITTED) == [b"a", b"b"]
    assert last_stable_offset(server) == 0

    w.commit()
    assert seen(server) == [b"a", b"b"]
    assert last_stable_offset(server) == 3  # behind the marker


@of_each_writer
def test_an_aborted_transaction_is_never_seen(server: Any, writer: Open, kind: type[Writer]) -> None:
    """What comes behind it is."""
    w = writer(kind)
    w.begin()
    w.send(b"lost")
    w.abort()
    w.begin()
    w.send(b"kept")
    w.commit()

    assert seen(server) == [b"kept"]
    assert seen(server, isolation=UNCOMMITTED) == [b"lost", b"kept"]


@of_each_writer
def test_a_transaction_spans_partitions_and_topics(
    server: Any, broker: logbroker.Broker, writer: Open, kind: type[Writer]
) -> None:
    """Everywhere or nowhere."""
    broker.create_topic("other")
    places = [("t", 0), ("t", 1), ("other", 0)]
    w = writer(kind)
    for outcome in ("abort", "commit"):
        w.begin()
        for topic, partition in places:
            w.send(outcome.encode(), topic, partition)
        getattr(w, outcome)()

    assert [seen(server, *place) for place in places] == [[b"commit"]] * 3


@of_each_client
def test_many_transactions_follow_each_other(server: Any, writer: Open, kind: type[Writer]) -> None:
    """Each third one is aborted."""
    w = writer(kind)
    for number in range(30):
        w.begin()
        w.send(b"%d" % number)
        if number % 3:
            w.commit()
        else:
            w.abort()

    assert seen(server) == [b"%d" % number for number in range(30) if number % 3]


@of_each_client
def test_an_empty_transaction_is_no_trouble(server: Any, writer: Open, kind: type[Writer]) -> None:
    """Committed or aborted, and the next one works."""
    w = writer(kind)
    w.begin()
    w.commit()
    w.begin()
    w.abort()
    w.begin()
    w.send(b"v")
    w.commit()
    assert seen(server) == [b"v"]


def test_transactions_of_several_writers_are_told_apart_in_one_partition(server: Any, writer: Open) -> None:
    """Their records lie between each other."""
    kinds = [*CLIENTS.values(), LibraryWriter]
    writers = [writer(kind, f"id {number}") for number, kind in enumerate(kinds)]
    for w in writers:
        w.begin()
    for turn in range(3):
        for number, w in enumerate(writers):
            w.send(b"%d %d" % (number, turn))
    for number, w in enumerate(writers):
        if number % 2:
            w.commit()
        else:
            w.abort()

    assert seen(server) == [b"%d %d" % (number, turn) for turn in range(3) for number in (1, 3)]


def test_nothing_behind_an_open_transaction_is_seen(
    server: Any, broker: logbroker.Broker, writer: Open
) -> None:
    """The last stable offset stands still, even for records that are of no transaction."""
    w = writer(ConfluentWriter)
    with broker.producer() as producer:
        producer.send("t", b"before", partition=0).result()
        w.begin()
        w.send(b"inside")
        producer.send("t", b"behind", partition=0).result()
    assert seen(server) == [b"before"]
    assert last_stable_offset(server) == 1

    w.commit()
    assert seen(server) == [b"before", b"inside", b"behind"]


@of_each_writer
def test_a_commit_ends_a_long_poll(server: Any, writer: Open, kind: type[Writer]) -> None:
    """A reader of committed records is woken by the marker."""
    w = writer(kind)
    w.begin()
    w.send(b"v")
    settings = {
        "bootstrap.servers": server.address,
        "group.id": "readers",
        "isolation.level": COMMITTED,
        "fetch.wait.max.ms": 40_000,  # twice as long as we wait
        "enable.auto.commit": False,
    }
    with closing(confluent_kafka.Consumer(settings)) as consumer:
        consumer.assign([TopicPartition("t", 0, confluent_kafka.OFFSET_BEGINNING)])
        assert consumer.poll(0.3) is None  # by now the fetch waits
        w.commit()
        message = consumer.poll(DEADLINE_S)
        assert message is not None
        assert message.value() == b"v"


# Who may write --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer", [ConfluentWriter, LibraryWriter], ids=["by a client", "by the library"])
@of_each_writer
def test_a_newer_holder_fences_the_older_one(
    server: Any, writer: Open, kind: type[Writer], newer: type[Writer]
) -> None:
    """What that left open is aborted, and its commit refused."""
    older = writer(kind)
    older.begin()
    older.send(b"of the older")
    successor = writer(newer)
    assert last_stable_offset(server) == 2  # a record and its marker

    with pytest.raises(CLIENT_ERRORS):
        older.commit()
    successor.begin()
    successor.send(b"of the newer")
    successor.commit()
    assert seen(server) == [b"of the newer"]


def test_a_fenced_producer_knows_that_it_is_over(writer: Open) -> None:
    """The error is fatal: librdkafka asks for no abort, it gives up."""
    older = writer(ConfluentWriter)
    older.begin()
    older.send(b"v")
    writer(ConfluentWriter)
    with pytest.raises(KafkaException) as told:
        older.commit()
    assert told.value.args[0].fatal()


@of_each_client
def test_a_transaction_that_takes_too_long_is_aborted_by_the_broker(
    server: Any, writer: Open, kind: type[Writer]
) -> None:
    """transaction.timeout.ms: the last stable offset moves on, and the commit is refused."""
    w = writer(kind, timeout_ms=1_000)
    w.begin()
    w.send(b"too late")
    assert last_stable_offset(server) == 0
    until(lambda: last_stable_offset(server) == 2, "the transaction is aborted")

    with pytest.raises(CLIENT_ERRORS):
        w.commit()
    assert seen(server) == []
    again = writer(kind)
    again.begin()
    again.send(b"in time")
    again.commit()
    assert seen(server) == [b"in time"]


def test_a_timeout_above_the_brokers_limit_is_refused(writer: Open) -> None:
    """A quarter of an hour, as in Kafka."""
    with pytest.raises(KafkaException) as told:
        writer(ConfluentWriter, timeout_ms=15 * 60_000 + 1)
    assert told.value.args[0].code() == KafkaError.INVALID_TRANSACTION_TIMEOUT


# Offsets in transactions ----------------------------------------------------------------------------------


def committed(broker: logbroker.Broker, group: str = "g") -> dict[int, int]:
    """What the group has committed in ``t``, as the library says."""
    if group not in broker.groups():
        return {}
    offsets = broker.group(group).offsets
    return {row.partition: row.committed_offset for row in offsets if row.committed_offset is not None}


def send_offset(w: Any, offset: int) -> None:
    """Have the open transaction commit an offset of ``t``-0 for the group ``g``, as nobody's member."""
    if isinstance(w, KafkaPythonWriter):
        place = kafka.TopicPartition("t", 0)
        metadata = kafka.ConsumerGroupMetadata("g", -1, "", None)
        w.producer.send_offsets_to_transaction({place: kafka.OffsetAndMetadata(offset, "", -1)}, metadata)
    elif isinstance(w, AioKafkaWriter):
        w.run(w.producer.send_offsets_to_transaction({aiokafka.TopicPartition("t", 0): offset}, "g"))
    else:
        settings = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0}
        with closing(confluent_kafka.Consumer(settings)) as nobody:
            w.producer.send_offsets_to_transaction(
                [TopicPartition("t", 0, offset)], nobody.consumer_group_metadata(), DEADLINE_S
            )


@of_each_client
def test_offsets_count_when_their_transaction_does(
    broker: logbroker.Broker, writer: Open, kind: type[Writer]
) -> None:
    """With the records, or not at all."""
    w = writer(kind)
    for outcome, offset in (("commit", 1), ("abort", 2), ("commit", 3)):
        before = committed(broker)
        w.begin()
        w.send(b"v")
        send_offset(w, offset)
        assert committed(broker) == before
        getattr(w, outcome)()
        assert committed(broker) == ({0: offset} if outcome == "commit" else before)


@of_each_client
def test_offsets_alone_are_a_transaction_too(
    broker: logbroker.Broker, writer: Open, kind: type[Writer]
) -> None:
    """A batch of which nothing is to be written."""
    w = writer(kind)
    w.begin()
    send_offset(w, 7)
    w.commit()
    assert committed(broker) == {0: 7}


def test_a_reader_waits_for_offsets_that_are_being_decided(server: Any, writer: Open) -> None:
    """Else it would begin where the transaction began, and read its records again (KIP-447)."""
    w = writer(ConfluentWriter)
    w.begin()
    send_offset(w, 5)
    settings = {"bootstrap.servers": server.address, "group.id": "g", "isolation.level": COMMITTED}
    with closing(confluent_kafka.Consumer(settings)) as consumer:
        with pytest.raises(KafkaException) as told:
            consumer.committed([TopicPartition("t", 0)], timeout=0.5)
        assert told.value.args[0].code() in (KafkaError._TIMED_OUT, KafkaError.UNSTABLE_OFFSET_COMMIT)
        w.commit()
        (found,) = consumer.committed([TopicPartition("t", 0)], timeout=DEADLINE_S)
    assert found.offset == 5


def test_offsets_of_a_member_that_is_none_any_more_are_refused(server: Any, writer: Open) -> None:
    """Its partitions are others' now; the transaction is to be aborted."""
    settings = {"bootstrap.servers": server.address, "group.id": "g"}
    with closing(confluent_kafka.Consumer(settings)) as member:
        member.subscribe(["t"])
        until(lambda: member.poll(0.05) or member.assignment(), "it is a member")
        metadata = member.consumer_group_metadata()
    with closing(confluent_kafka.Consumer(settings)) as successor:
        successor.subscribe(["t"])
        until(lambda: successor.poll(0.05) or successor.assignment(), "the next one is a member")
        w = writer(ConfluentWriter)
        w.begin()
        with pytest.raises(KafkaException) as told:
            w.producer.send_offsets_to_transaction([TopicPartition("t", 0, 1)], metadata, DEADLINE_S)
        assert told.value.args[0].txn_requires_abort()
        w.abort()


# Exactly once ---------------------------------------------------------------------------------------------

TRANSFORM = """
import sys
from confluent_kafka import Consumer, Producer
address = sys.argv[1]
consumer = Consumer({
    "bootstrap.servers": address, "group.id": "g", "group.instance.id": "worker", "auto.offset.reset": "earliest",
    "isolation.level": "read_committed", "enable.auto.commit": False, "session.timeout.ms": 6000,
})
producer = Producer({"bootstrap.servers": address, "transactional.id": "worker"})
producer.init_transactions(20)
consumer.subscribe(["t"])
while True:
    messages = consumer.consume(15, 0.2)
    if not messages:
        continue
    producer.begin_transaction()
    for message in messages:
        assert message.error() is None, message.error()
        producer.produce("out", message.value(), partition=message.partition())
    places = [place for place in consumer.position(consumer.assignment()) if place.offset >= 0]
    producer.send_offsets_to_transaction(places, consumer.consumer_group_metadata(), 20)
    producer.commit_transaction(20)
    print(len(messages), flush=True)
"""


class Worker:
    """The transform above in a process of its own."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, "-c", TRANSFORM, address]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def commits(self, count: int) -> None:
        """Wait for so many commits."""
        assert self._process.stdout is not None
        for _ in range(count):
            assert self._process.stdout.readline(), "the worker ended by itself"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_records_are_transformed_exactly_once_though_workers_are_killed(
    server: Any, broker: logbroker.Broker, writer: Open
) -> None:
    """Each worker is killed within a transaction, and its successor goes on where it had committed."""
    broker.create_topic("out", partitions=2)
    values = [b"%d" % number for number in range(300)]
    with broker.producer() as producer:
        for number, value in enumerate(values):
            producer.send("t", value, partition=number % 2)
    for commits in (1, 2, 3):
        worker = Worker(server.address)
        worker.commits(commits)
        worker.kill()
    worker = Worker(server.address)
    until(lambda: committed(broker) == {0: 150, 1: 150}, "everything is transformed")
    worker.kill()

    written = [seen(server, "out", partition) for partition in (0, 1)]
    assert written == [values[0::2], values[1::2]]


def test_the_librarys_transform_reads_transactions_of_clients(
    server: Any, broker: logbroker.Broker, writer: Open
) -> None:
    """Exactly what was committed, exactly once, for clients to read."""
    broker.create_topic("out")
    w = writer(KafkaPythonWriter)
    for outcome in ("commit", "abort", "commit"):
        w.begin()
        w.send(b"%s" % outcome.encode())
        getattr(w, outcome)()
    broker.transform("t", "out", group="g", function=lambda record: record.value.upper(), idle_timeout=0.5)

    assert seen(server, "out") == [b"COMMIT", b"COMMIT"]


# The server dies ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lost_connections")
@of_each_client
def test_a_transaction_in_which_the_server_dies_is_committed_whole_or_not_at_all(
    server: Any, writer: Open, kind: type[Writer]
) -> None:
    """The producer hears of it; a new one goes on."""
    w = writer(kind)
    w.begin()
    w.send(b"committed", partition=0)
    w.send(b"committed", partition=1)
    w.commit()
    w.begin()
    w.send(b"open", partition=0)
    w.send(b"open", partition=1)
    server.kill()
    server.start()
    try:
        w.commit()
        is_committed = True
    except CLIENT_ERRORS:
        is_committed = False

    successor = writer(kind)
    expected = [b"committed", b"open"] if is_committed else [b"committed"]
    assert [seen(server, "t", partition) for partition in (0, 1)] == [expected, expected]
    successor.begin()
    successor.send(b"next")
    successor.commit()
    assert seen(server) == [*expected, b"next"]


@pytest.mark.usefixtures("lost_connections")
@of_each_client
def test_a_producer_goes_on_after_the_server_died_between_its_transactions(
    server: Any, writer: Open, kind: type[Writer]
) -> None:
    """Or is told cleanly that it must begin anew."""
    w = writer(kind)
    w.begin()
    w.send(b"before")
    w.commit()
    server.kill()
    server.start()
    expected = [b"before"]
    try:
        w.begin()
        w.send(b"after")
        w.commit()
        expected.append(b"after")
    except CLIENT_ERRORS:
        writer(kind)  # ends what the first one may have left open
    assert seen(server) == expected


@pytest.mark.usefixtures("lost_connections")
def test_an_open_transaction_of_a_client_does_not_outlive_the_server_for_long(
    server: Any, writer: Open
) -> None:
    """Though nobody claims its id: the next server aborts it."""
    w = writer(ConfluentWriter)
    w.begin()
    w.send(b"open")
    server.kill()
    server.start()
    until(lambda: last_stable_offset(server) == 2, "the transaction is aborted")
    assert seen(server) == []


# Looking at them ------------------------------------------------------------------------------------------


@pytest.fixture
def admin(server: Any) -> Iterator[kafka.KafkaAdminClient]:
    """kafka-python's admin client, which knows how to ask."""
    with closing(kafka.KafkaAdminClient(bootstrap_servers=server.address)) as client:
        yield client


@of_each_writer
def test_transactions_are_listed_with_their_state(
    admin: kafka.KafkaAdminClient, writer: Open, kind: type[Writer]
) -> None:
    """The library's too."""

    def state() -> str:
        (listed,) = admin.list_transactions().values()
        (one,) = listed
        assert one.transactional_id == "id"
        return str(one.state.value)

    w = writer(kind)
    assert state() == "Empty"
    w.begin()
    w.send(b"v")
    assert state() == "Ongoing"
    w.commit()
    assert state() == "CompleteCommit"
    w.begin()
    w.send(b"v")
    w.abort()
    assert state() in ("CompleteAbort", "Empty")


def test_transactions_are_listed_by_state_and_duration(admin: kafka.KafkaAdminClient, writer: Open) -> None:
    """What an operator looks for."""
    w = writer(ConfluentWriter, "open")
    writer(ConfluentWriter, "idle")
    w.begin()
    w.send(b"v")

    def ids(**filters: Any) -> set[str]:
        (listed,) = admin.list_transactions(**filters).values()
        return {one.transactional_id for one in listed}

    assert ids() == {"open", "idle"}
    assert ids(state_filters=["Ongoing"]) == {"open"}
    assert ids(duration_filter_ms=60_000) == set()
    assert ids(transactional_id_pattern="id.*") == {"idle"}


def test_a_transaction_is_described_with_its_partitions(admin: kafka.KafkaAdminClient, writer: Open) -> None:
    """And when it began."""
    before_ms = int(time.time() * 1000)
    w = writer(ConfluentWriter, timeout_ms=30_000)
    w.begin()
    w.send(b"v", partition=0)
    w.send(b"v", partition=1)

    described = admin.describe_transactions(["id"])["id"]
    assert described.state.value == "Ongoing"
    assert described.transaction_timeout_ms == 30_000
    assert described.topic_partitions == {kafka.TopicPartition("t", 0), kafka.TopicPartition("t", 1)}
    assert before_ms <= described.transaction_start_time_ms <= time.time() * 1000
    producers = admin.describe_producers([kafka.TopicPartition("t", 0)])[kafka.TopicPartition("t", 0)]
    (producer,) = producers.active_producers
    assert producer.producer_id == described.producer_id
    assert producer.current_transaction_start_offset == 0
    w.commit()
    assert admin.describe_transactions(["id"])["id"].topic_partitions == set()


def test_an_unknown_transaction_cannot_be_described(admin: kafka.KafkaAdminClient) -> None:
    """With its own error."""
    with pytest.raises(kafka.errors.TransactionalIdNotFoundError):
        admin.describe_transactions(["nobody"])


def test_producers_are_of_one_mind_about_how_often_each_value_was_written(server: Any, writer: Open) -> None:
    """Transactions of all libraries at the same time, in threads of their own."""
    kinds = [*CLIENTS.values(), LibraryWriter]
    writers = [writer(kind, f"id {number}") for number, kind in enumerate(kinds)]
    errors: list[BaseException] = []

    def work(number: int, w: Writer) -> None:
        try:
            for turn in range(10):
                w.begin()
                w.send(b"%d %d" % (number, turn), partition=0)
                w.send(b"%d %d" % (number, turn), partition=1)
                if turn % 2:
                    w.commit()
                else:
                    w.abort()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert errors == []
    expected = Counter(b"%d %d" % (number, turn) for number in range(4) for turn in range(1, 10, 2))
    assert Counter(seen(server, "t", 0)) == expected
    assert Counter(seen(server, "t", 1)) == expected
