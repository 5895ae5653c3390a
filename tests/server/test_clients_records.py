"""Records over the network: unmodified clients write and read the same log as the library in its process.

Each client is one object with two verbs, ``write`` and ``read``, so that the tests can say "whatever one writes,
every other reads".
"""

from __future__ import annotations

import asyncio
import datetime
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import aiokafka
import aiokafka.errors
import confluent_kafka
import kafka
import kafka.codec
import kafka.errors
import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

import logbroker

DEADLINE_S = 20.0
LONG_POLL_MS = 15_000
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
TIME_MS = 1_700_000_000_000
HOUR_MS = 3_600_000

Headers = tuple[tuple[str, bytes | None], ...]


class Wire(NamedTuple):
    """A record as clients give and get it; of what is read, with its offset."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int = TIME_MS
    offset: int = -1


EVERY_KIND = [
    Wire(b"plain"),
    Wire(b"keyed", key=b"k"),
    Wire(None, key=b"tombstone"),
    Wire(b"", key=b""),
    Wire(b"headers", headers=(("a", b"1"), ("b", b"\x00\xff"), ("empty", b""))),
    Wire(b"null header", key=b"k", headers=(("none", None),)),
    Wire(b"doubled", headers=(("twice", b"1"), ("other", b"x"), ("twice", b"2"), ("twice", None))),
    Wire(b"umlaut", headers=(("schlüssel", "wört".encode()),)),
    Wire(b"later", timestamp_ms=TIME_MS + 5_000),
    Wire(b"earlier", timestamp_ms=TIME_MS - 5_000),
    Wire(bytes(range(256)) * 40, key=bytes(range(256))),
    Wire(b"a" * 20_000),
]


def kinds_for(client: str) -> list[Wire]:
    """What the client lets through: kafka-python writes no null header, though it reads them."""
    if client != "kafka-python":
        return EVERY_KIND
    return [record for record in EVERY_KIND if all(value is not None for _, value in record.headers)]


def numbered(records: Iterable[Wire], first: int = 0) -> list[Wire]:
    """*records* as they are read back: at the offsets from *first* on."""
    return [record._replace(offset=offset) for offset, record in enumerate(records, first)]


# The clients ----------------------------------------------------------------------------------------------


class Client(Protocol):
    """A client library: writes records to partition 0 of a topic, and reads so many from an offset on."""

    def write(self, address: str, topic: str, records: Sequence[Wire], codec: str = "none") -> list[int]: ...

    def read(self, address: str, topic: str, count: int, start: int = 0) -> list[Wire]: ...


class Confluent:
    """librdkafka."""

    def write(
        self, address: str, topic: str, records: Sequence[Wire], codec: str = "none", **settings: Any
    ) -> list[int]:
        offsets = []
        for outcome in self.outcomes(address, topic, records, codec, **settings):
            if isinstance(outcome, KafkaError):
                raise KafkaException(outcome)
            offsets.append(outcome)
        return offsets

    def outcomes(
        self, address: str, topic: str, records: Sequence[Wire], codec: str = "none", **settings: Any
    ) -> list[int | KafkaError]:
        """For each record its offset, or why it has none: settled by ``linger_ms``, since a flush would not wait."""
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": address, "compression.type": codec, "linger.ms": 20}
            | {name.replace("_", "."): value for name, value in settings.items()}
        )
        told: dict[int, int | KafkaError] = {}
        for number, record in enumerate(records):
            producer.produce(
                topic,
                record.value,
                record.key,
                partition=0,
                timestamp=record.timestamp_ms,
                headers=list(record.headers),
                on_delivery=lambda error, message, number=number: told.update(
                    {number: error or message.offset()}
                ),
            )
        deadline = time.monotonic() + DEADLINE_S
        while len(told) < len(records):
            assert time.monotonic() < deadline, "not everything was answered in time"
            producer.poll(0.1)
        return [told[number] for number in range(len(records))]

    def consumer(self, address: str, **settings: Any) -> confluent_kafka.Consumer:
        return confluent_kafka.Consumer(
            {"bootstrap.servers": address, "group.id": "readers", "enable.auto.commit": False}
            | {name.replace("_", "."): value for name, value in settings.items()}
        )

    def read(self, address: str, topic: str, count: int, start: int = 0, **settings: Any) -> list[Wire]:
        with closing(self.consumer(address, **settings)) as consumer:
            consumer.assign([confluent_kafka.TopicPartition(topic, 0, start)])
            return [self.wire(message) for message in take(consumer, count)]

    @staticmethod
    def wire(message: confluent_kafka.Message) -> Wire:
        headers = tuple(message.headers() or ())
        return Wire(message.value(), message.key(), headers, message.timestamp()[1], message.offset())


def take(consumer: confluent_kafka.Consumer, count: int) -> list[confluent_kafka.Message]:
    """The next *count* messages; raises the error that comes instead of one."""
    messages: list[confluent_kafka.Message] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(messages) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"only {len(messages)} of {count} came"
        for message in consumer.consume(count - len(messages), min(left, 1.0)):
            if message.error():
                raise KafkaException(message.error())
            messages.append(message)
    return messages


class KafkaPython:
    """kafka-python."""

    def write(self, address: str, topic: str, records: Sequence[Wire], codec: str = "none") -> list[int]:
        compression = None if codec == "none" else codec
        with closing(
            kafka.KafkaProducer(bootstrap_servers=address, compression_type=compression, linger_ms=20)
        ) as producer:
            futures = [
                producer.send(
                    topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    partition=0,
                    timestamp_ms=record.timestamp_ms,
                )
                for record in records
            ]
            return [future.get(timeout=DEADLINE_S).offset for future in futures]

    def read(self, address: str, topic: str, count: int, start: int = 0) -> list[Wire]:
        place = kafka.TopicPartition(topic, 0)
        with closing(kafka.KafkaConsumer(bootstrap_servers=address, group_id=None)) as consumer:
            consumer.assign([place])
            consumer.seek(place, start)
            found: list[Wire] = []
            deadline = time.monotonic() + DEADLINE_S
            while len(found) < count:
                assert time.monotonic() < deadline, f"only {len(found)} of {count} came"
                for records in consumer.poll(timeout_ms=1000).values():
                    found += map(wire_of, records)
            return found


class AioKafka:
    """aiokafka."""

    def write(self, address: str, topic: str, records: Sequence[Wire], codec: str = "none") -> list[int]:
        return asyncio.run(self._write(address, topic, records, codec))

    async def _write(self, address: str, topic: str, records: Sequence[Wire], codec: str) -> list[int]:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=address, compression_type=None if codec == "none" else codec, linger_ms=20
        )
        async with producer:
            waiting = [
                await producer.send(
                    topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    partition=0,
                    timestamp_ms=record.timestamp_ms,
                )
                for record in records
            ]
            return [(await future).offset for future in waiting]

    def read(self, address: str, topic: str, count: int, start: int = 0) -> list[Wire]:
        return asyncio.run(self._read(address, topic, count, start))

    async def _read(self, address: str, topic: str, count: int, start: int) -> list[Wire]:
        consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=address, group_id=None)
        async with asyncio.timeout(DEADLINE_S), consumer:
            place = aiokafka.TopicPartition(topic, 0)
            consumer.assign([place])
            consumer.seek(place, start)
            return [wire_of(await consumer.getone()) for _ in range(count)]


def wire_of(record: Any) -> Wire:
    """A record of kafka-python or aiokafka."""
    return Wire(record.value, record.key, tuple(record.headers), record.timestamp, record.offset)


CONFLUENT = Confluent()
CLIENTS: dict[str, Client] = {"confluent": CONFLUENT, "kafka-python": KafkaPython(), "aiokafka": AioKafka()}


def speaks(client: str, codec: str) -> bool:
    """kafka-python takes its snappy from a library that need not be there."""
    return (client, codec) != ("kafka-python", "snappy") or bool(kafka.codec.has_snappy())


def codecs_of(client: str) -> list[str]:
    return [codec for codec in CODECS if speaks(client, codec)]


def read_by_each(address: str, topic: str, count: int, codec: str = "none") -> dict[str, list[Wire]]:
    """What each client reads."""
    return {
        name: client.read(address, topic, count) for name, client in CLIENTS.items() if speaks(name, codec)
    }


def by_each(records: list[Wire], codec: str = "none") -> dict[str, list[Wire]]:
    """That each client reads *records*."""
    return {name: records for name in CLIENTS if speaks(name, codec)}


def embedded_read(
    broker: logbroker.Broker, topic: str, count: int, within_s: float = DEADLINE_S
) -> list[Wire]:
    """What the library reads until it has *count* records, or its time is over."""
    with broker.consumer(topic) as consumer:
        found: list[Wire] = []
        deadline = time.monotonic() + within_s
        while len(found) < count and time.monotonic() < deadline:
            found += [
                Wire(record.value, record.key, record.header_pairs, record.timestamp_ms, record.offset)
                for record in consumer.poll(timeout=1.0)
            ]
        return found


def embedded_write(
    broker: logbroker.Broker, topic: str, records: Iterable[Wire], codec: str = "none"
) -> list[int]:
    with broker.producer(compression=None if codec == "none" else codec) as producer:
        receipts = [
            producer.send(
                topic, record.value, record.key, record.headers, partition=0, timestamp=record.timestamp_ms
            )
            for record in records
        ]
        return [receipt.result().offset for receipt in receipts]


# Byte for byte --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", CLIENTS)
def test_what_a_client_writes_every_client_and_the_library_read(
    broker: logbroker.Broker, server: Any, writer: str
) -> None:
    """Keys, nulls, headers, timestamps and offsets, in every codec."""
    written = numbered(kinds_for(writer))
    for codec in codecs_of(writer):
        broker.create_topic(codec)
        offsets = CLIENTS[writer].write(server.address, codec, written, codec)

        assert offsets == list(range(len(written)))
        assert embedded_read(broker, codec, len(written)) == written
        assert read_by_each(server.address, codec, len(written), codec) == by_each(written, codec)


def test_what_the_library_writes_every_client_reads(broker: logbroker.Broker, server: Any) -> None:
    """The other way round."""
    written = numbered(EVERY_KIND)
    for codec in CODECS:
        broker.create_topic(codec)
        embedded_write(broker, codec, EVERY_KIND, codec)
        assert read_by_each(server.address, codec, len(EVERY_KIND), codec) == by_each(written, codec)


def test_a_record_may_have_neither_key_nor_value(broker: logbroker.Broker, server: Any) -> None:
    """Only librdkafka and the library write such records; everybody reads them."""
    broker.create_topic("t")
    nothing = Wire(None)
    CONFLUENT.write(server.address, "t", [nothing])
    embedded_write(broker, "t", [nothing])

    assert embedded_read(broker, "t", 2) == numbered([nothing, nothing])
    assert read_by_each(server.address, "t", 2) == by_each(numbered([nothing, nothing]))


def test_writers_of_every_kind_share_one_log(broker: logbroker.Broker, server: Any) -> None:
    """Offsets are those of the log, whoever wrote and whoever reads."""
    broker.create_topic("t")
    written: list[Wire] = []
    for turn in range(3):
        for name, client in CLIENTS.items():
            records = [Wire(f"{name} {turn}".encode()), Wire(b"second")]
            assert client.write(server.address, "t", records)[0] == len(written)
            written += records
        embedded_write(broker, "t", [Wire(b"library %d" % turn)])
        written.append(Wire(b"library %d" % turn))

    assert embedded_read(broker, "t", len(written)) == numbered(written)
    assert read_by_each(server.address, "t", len(written)) == by_each(numbered(written))


def test_a_reader_can_begin_in_the_middle_of_a_batch(broker: logbroker.Broker, server: Any) -> None:
    """The batch comes whole, and clients leave out what is below their offset."""
    records = [Wire(b"%d" % number) for number in range(10)]
    for codec in CODECS:
        broker.create_topic(codec)
        embedded_write(broker, codec, records, codec)
        for name, client in CLIENTS.items():
            if speaks(name, codec):
                assert client.read(server.address, codec, 3, start=7) == numbered(records)[7:], name


def test_a_batch_above_the_readers_limit_comes_all_the_same(broker: logbroker.Broker, server: Any) -> None:
    """A limit must not keep a reader from getting on."""
    broker.create_topic("t")
    records = [Wire(b"x" * 50_000), Wire(b"y" * 200_000), Wire(b"z")]
    for record in records:
        embedded_write(broker, "t", [record])

    limits = {"max_partition_fetch_bytes": 1_000, "fetch_max_bytes": 1_000, "message_max_bytes": 1_000}
    assert CONFLUENT.read(server.address, "t", 3, **limits) == numbered(records)


def test_a_log_of_many_megabytes_is_read_on_whole_and_in_order(broker: logbroker.Broker, server: Any) -> None:
    """Large batches that are read one after the other do not go through a thread; small ones behind them do."""
    broker.create_topic("t", config={"segment.bytes": 3 << 20})
    large = [Wire(b"%06d" % number * 300) for number in range(4_000)]
    with broker.producer(batch_bytes=200_000) as producer:
        producer.send_many("t", [record.value for record in large])
    small = [Wire(b"%d" % number) for number in range(50)]
    for record in small:
        embedded_write(broker, "t", [record])

    values = [record.value for record in large + small]
    for name, client in CLIENTS.items():
        found = client.read(server.address, "t", len(values))
        assert [(record.offset, record.value) for record in found] == list(enumerate(values)), name


def test_a_topic_can_have_the_logs_own_timestamps(broker: logbroker.Broker, server: Any) -> None:
    """LogAppendTime: writers are told it, and every reader sees the same one."""
    broker.create_topic("t", config={"message.timestamp.type": "LogAppendTime"})
    before_ms = int(time.time() * 1000)
    for client in CLIENTS.values():
        client.write(server.address, "t", [Wire(b"v", timestamp_ms=TIME_MS)])
    after_ms = int(time.time() * 1000)

    records = embedded_read(broker, "t", 3)
    assert all(before_ms <= record.timestamp_ms <= after_ms for record in records)
    assert read_by_each(server.address, "t", 3) == by_each(records)

    with closing(CONFLUENT.consumer(server.address)) as consumer:
        consumer.assign([confluent_kafka.TopicPartition("t", 0, 0)])
        kinds = {message.timestamp()[0] for message in take(consumer, 3)}
    assert kinds == {confluent_kafka.TIMESTAMP_LOG_APPEND_TIME}


def test_the_answer_to_a_producer_has_the_logs_own_timestamp(broker: logbroker.Broker, server: Any) -> None:
    """What a producer is told is what readers get."""
    broker.create_topic("t", config={"message.timestamp.type": "LogAppendTime"})
    with closing(kafka.KafkaProducer(bootstrap_servers=server.address)) as producer:
        told = producer.send("t", b"v", timestamp_ms=TIME_MS).get(timeout=DEADLINE_S)

    assert told.timestamp == embedded_read(broker, "t", 1)[0].timestamp_ms


# What is asked of an acknowledgement ----------------------------------------------------------------------


@pytest.mark.parametrize("acks", [0, 1, "all"])
def test_every_kind_of_acknowledgement_is_served(
    broker: logbroker.Broker, server: Any, acks: int | str
) -> None:
    """Without one, records arrive too, even those that were still on their way when the client closed."""
    broker.create_topic("t")
    records = [Wire(b"%d" % number) for number in range(20)]
    CONFLUENT.write(server.address, "t", records, acks=acks, batch_num_messages=3)
    with closing(
        kafka.KafkaProducer(bootstrap_servers=server.address, acks=acks, enable_idempotence=acks == "all")
    ) as producer:
        producer.send("t", b"20", partition=0, timestamp_ms=TIME_MS)
        producer.flush(DEADLINE_S)
    asyncio.run(_write_with_aiokafka(server.address, "t", b"21", acks))

    expected = numbered([*records, Wire(b"20"), Wire(b"21")])
    assert embedded_read(broker, "t", 22, within_s=3) == expected


async def _write_with_aiokafka(address: str, topic: str, value: bytes, acks: int | str) -> None:
    async with aiokafka.AIOKafkaProducer(bootstrap_servers=address, acks=acks) as producer:
        await producer.send(topic, value, partition=0, timestamp_ms=TIME_MS)


def test_an_idempotent_producer_keeps_the_order_of_many_batches(
    broker: logbroker.Broker, server: Any
) -> None:
    """Five requests at once on one connection."""
    broker.create_topic("t")
    records = [Wire(b"%d" % number) for number in range(2_000)]
    CONFLUENT.write(server.address, "t", records, enable_idempotence=True, batch_num_messages=7, linger_ms=0)

    assert embedded_read(broker, "t", 2_000) == numbered(records)


# What is refused --------------------------------------------------------------------------------------------

BATCH_AND_RECORD_FIELDS_BYTES = 61 + 3 + 5 + 3  # batch header; lengths of record and value; its other fields


def test_a_batch_as_large_as_the_limit_is_taken_and_one_byte_more_is_not(
    broker: logbroker.Broker, server: Any
) -> None:
    """max.message.bytes is about the whole batch."""
    broker.create_topic("t", config={"max.message.bytes": 10_000})
    fits = Wire(b"x" * (10_000 - BATCH_AND_RECORD_FIELDS_BYTES))
    too_large = Wire(b"x" * (10_001 - BATCH_AND_RECORD_FIELDS_BYTES))

    assert CONFLUENT.write(server.address, "t", [fits]) == [0]
    (error,) = CONFLUENT.outcomes(server.address, "t", [too_large])
    assert isinstance(error, KafkaError)
    assert error.code() == KafkaError.MSG_SIZE_TOO_LARGE
    assert embedded_read(broker, "t", 1) == numbered([fits])


def test_a_record_above_the_default_limit_is_refused_to_every_client(
    broker: logbroker.Broker, server: Any
) -> None:
    """One mebibyte, as in Kafka; the producers are told to send it anyway."""
    broker.create_topic("t")
    value = b"x" * 1_100_000

    (error,) = CONFLUENT.outcomes(server.address, "t", [Wire(value)], message_max_bytes=2_000_000)
    assert isinstance(error, KafkaError)
    assert error.code() == KafkaError.MSG_SIZE_TOO_LARGE
    with closing(
        kafka.KafkaProducer(bootstrap_servers=server.address, max_request_size=2_000_000)
    ) as producer:
        refused = producer.send("t", value)
        with pytest.raises(kafka.errors.MessageSizeTooLargeError):
            refused.get(timeout=DEADLINE_S)
    with pytest.raises(aiokafka.errors.MessageSizeTooLargeError):
        asyncio.run(_write_large_with_aiokafka(server.address, value))
    assert broker.topic("t").records == 0


async def _write_large_with_aiokafka(address: str, value: bytes) -> None:
    async with aiokafka.AIOKafkaProducer(bootstrap_servers=address, max_request_size=2_000_000) as producer:
        await producer.send_and_wait("t", value)


def test_a_compacted_topic_takes_no_record_without_a_key(broker: logbroker.Broker, server: Any) -> None:
    """Nothing of the batch is written, in any codec; with keys it is."""
    one_batch: dict[str, Any] = {"batch_num_messages": 2, "linger_ms": 1000}
    with_key, without = Wire(b"v", key=b"k"), Wire(b"v")
    for codec in CODECS:
        broker.create_topic(codec, config={"cleanup.policy": "compact"})
        for error in CONFLUENT.outcomes(server.address, codec, [with_key, without], codec, **one_batch):
            assert isinstance(error, KafkaError)
            assert error.code() == KafkaError.INVALID_RECORD
        assert CONFLUENT.write(server.address, codec, [with_key], codec) == [0]


def test_a_record_of_the_future_is_refused(broker: logbroker.Broker, server: Any) -> None:
    """message.timestamp.after.max.ms, an hour by default."""
    broker.create_topic("t")
    tomorrow_ms = int(time.time() * 1000) + 24 * HOUR_MS

    (error,) = CONFLUENT.outcomes(server.address, "t", [Wire(b"v", timestamp_ms=tomorrow_ms)])
    assert isinstance(error, KafkaError)
    assert error.code() == KafkaError.INVALID_TIMESTAMP


# Topics that nobody made ----------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", CLIENTS)
def test_a_topic_is_made_for_who_writes_to_it(start_server: Callable[..., Any], writer: str) -> None:
    """With as many partitions as the server was told."""
    server = start_server("--partitions", "3")
    CLIENTS[writer].write(server.address, "new", [Wire(b"v")])

    with logbroker.open(server.data) as broker:
        assert len(broker.topic("new").partitions) == 3
        assert embedded_read(broker, "new", 1) == numbered([Wire(b"v")])


def test_without_auto_create_a_writer_is_told_that_there_is_no_topic(
    start_server: Callable[..., Any],
) -> None:
    """And none is made."""
    server = start_server("--no-auto-create")

    (error,) = CONFLUENT.outcomes(server.address, "new", [Wire(b"v")], topic_metadata_propagation_max_ms=500)
    assert isinstance(error, KafkaError)
    assert error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
    with (
        closing(kafka.KafkaProducer(bootstrap_servers=server.address, max_block_ms=500)) as producer,
        pytest.raises((kafka.errors.UnknownTopicOrPartitionError, kafka.errors.KafkaTimeoutError)),
    ):
        producer.send("new", b"v").get(timeout=DEADLINE_S)
    with logbroker.open(server.data) as broker:
        assert broker.topics() == []


def test_without_auto_create_a_reader_is_told_that_there_is_no_topic(
    start_server: Callable[..., Any],
) -> None:
    """As an error of the consumer, not as silence."""
    server = start_server("--no-auto-create")

    with closing(CONFLUENT.consumer(server.address)) as consumer:
        consumer.subscribe(["new"])
        with pytest.raises(KafkaException) as told:
            take(consumer, 1)
    assert told.value.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def test_a_name_that_no_topic_can_have_is_refused(server: Any) -> None:
    """Clients check little of it themselves."""
    (error,) = CONFLUENT.outcomes(server.address, "no topic/name", [Wire(b"v")])
    assert isinstance(error, KafkaError)
    assert error.code() in (KafkaError.TOPIC_EXCEPTION, KafkaError._UNKNOWN_TOPIC)


# Waiting for records --------------------------------------------------------------------------------------


def test_a_long_poll_ends_when_the_library_writes_in_another_process(
    broker: logbroker.Broker, server: Any
) -> None:
    """The fetch may wait 15 s; a record that comes meanwhile is there at once."""
    broker.create_topic("t")
    settings = {"fetch_wait_max_ms": LONG_POLL_MS, "fetch_min_bytes": 1}
    with closing(CONFLUENT.consumer(server.address, **settings)) as consumer, broker.producer() as producer:
        consumer.assign([confluent_kafka.TopicPartition("t", 0, OFFSET_BEGINNING)])
        for number in range(5):
            assert consumer.poll(0.1) is None  # by now the next fetch waits
            sent_s = time.monotonic()
            producer.send("t", b"%d" % number).result()
            (message,) = take(consumer, 1)
            assert message.value() == b"%d" % number
            assert time.monotonic() - sent_s < LONG_POLL_MS / 1000 / 3


def test_the_library_is_woken_by_a_client_over_the_network(broker: logbroker.Broker, server: Any) -> None:
    """The other way round: a poll of 15 s ends with the record."""
    broker.create_topic("t")
    found: list[logbroker.Record] = []
    with broker.consumer("t") as consumer:
        waiting = threading.Thread(target=lambda: found.extend(consumer.poll(timeout=LONG_POLL_MS / 1000)))
        waiting.start()
        sent_s = time.monotonic()
        CONFLUENT.write(server.address, "t", [Wire(b"v")])
        waiting.join(LONG_POLL_MS / 1000 / 3)
        waited_s = time.monotonic() - sent_s
        consumer.wakeup()
        waiting.join()
    assert [record.value for record in found] == [b"v"]
    assert waited_s < LONG_POLL_MS / 1000 / 3


def test_a_fetch_of_nothing_ends_when_its_time_is_over(broker: logbroker.Broker, server: Any) -> None:
    """Neither at once nor much later."""
    broker.create_topic("t")
    place = kafka.TopicPartition("t", 0)
    with closing(kafka.KafkaConsumer(bootstrap_servers=server.address, fetch_max_wait_ms=300)) as consumer:
        consumer.assign([place])
        consumer.seek(place, 0)
        started_s = time.monotonic()
        assert consumer.poll(timeout_ms=1_000) == {}
        assert 0.9 < time.monotonic() - started_s < 15


# Where in the log -----------------------------------------------------------------------------------------


@pytest.fixture
def timed(broker: logbroker.Broker) -> str:
    """A topic with a record each second, five to a batch; compressed, so that the server must look inside."""
    broker.create_topic("timed")
    for first in (0, 5):
        records = [Wire(b"v", timestamp_ms=TIME_MS + 1_000 * number) for number in range(first, first + 5)]
        embedded_write(broker, "timed", records, "zstd")
    return "timed"


TIMES = {
    "before the first record": (TIME_MS - 1, 0),
    "at the first": (TIME_MS, 0),
    "at one inside of a batch": (TIME_MS + 3_000, 3),
    "between two": (TIME_MS + 3_001, 4),
    "between two batches": (TIME_MS + 4_500, 5),
    "at the last": (TIME_MS + 9_000, 9),
    "after the last": (TIME_MS + 9_001, None),
}


@pytest.mark.parametrize(("timestamp_ms", "offset"), TIMES.values(), ids=TIMES)
def test_a_time_leads_to_the_first_record_that_is_not_older(
    server: Any, timed: str, timestamp_ms: int, offset: int | None
) -> None:
    """For each client, and none where every record is older."""
    with closing(CONFLUENT.consumer(server.address)) as consumer:
        asked = [confluent_kafka.TopicPartition(timed, 0, timestamp_ms)]
        (found,) = consumer.offsets_for_times(asked, timeout=DEADLINE_S)
        assert found.offset == (OFFSET_END if offset is None else offset)
    place = kafka.TopicPartition(timed, 0)
    with closing(kafka.KafkaConsumer(bootstrap_servers=server.address)) as reader:
        answer = reader.offsets_for_times({place: timestamp_ms})[place]
        assert (answer and answer.offset) == offset
    assert asyncio.run(_aiokafka_offset_at(server.address, timed, timestamp_ms)) == offset


async def _aiokafka_offset_at(address: str, topic: str, timestamp_ms: int) -> int | None:
    place = aiokafka.TopicPartition(topic, 0)
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=address)
    async with asyncio.timeout(DEADLINE_S), consumer:
        answer = (await consumer.offsets_for_times({place: timestamp_ms}))[place]
        return None if answer is None else int(answer.offset)


def test_the_ends_of_a_log_are_the_same_for_clients_and_library(
    broker: logbroker.Broker, server: Any, timed: str
) -> None:
    """Beginning, end and what lies between."""
    broker.delete_records(timed, {0: 4})
    (described,) = broker.topic(timed).partitions
    ends = (described.log_start_offset, described.high_watermark)
    assert ends == (4, 10)

    with closing(CONFLUENT.consumer(server.address)) as consumer:
        place = confluent_kafka.TopicPartition(timed, 0)
        assert consumer.get_watermark_offsets(place, timeout=DEADLINE_S) == ends
    with closing(kafka.KafkaConsumer(bootstrap_servers=server.address)) as reader:
        place = kafka.TopicPartition(timed, 0)
        assert (reader.beginning_offsets([place])[place], reader.end_offsets([place])[place]) == ends


@pytest.mark.parametrize("start", [99, 2], ids=["above the end", "below the start"])
def test_an_offset_outside_of_the_log_is_reset_as_the_consumer_wants(
    broker: logbroker.Broker, server: Any, timed: str, start: int
) -> None:
    """earliest, latest, or an error."""
    broker.delete_records(timed, {0: 4})

    earliest = CONFLUENT.read(server.address, timed, 1, start, auto_offset_reset="earliest")
    assert [record.offset for record in earliest] == [4]
    with pytest.raises(KafkaException) as told:
        CONFLUENT.read(server.address, timed, 1, start, auto_offset_reset="error")
    assert told.value.args[0].code() == KafkaError._AUTO_OFFSET_RESET
    with closing(CONFLUENT.consumer(server.address, auto_offset_reset="latest")) as consumer:
        consumer.assign([confluent_kafka.TopicPartition(timed, 0, start)])
        assert consumer.poll(0.3) is None
        deadline = time.monotonic() + DEADLINE_S
        found = None
        while found is None and time.monotonic() < deadline:  # until one comes after the reset
            embedded_write(broker, timed, [Wire(b"new")])
            found = consumer.poll(0.2)
        assert found is not None
        assert found.value() == b"new"


def test_deleted_records_are_gone_for_every_reader(broker: logbroker.Broker, server: Any, timed: str) -> None:
    """Also those that share a batch with records that stay."""
    admin = AdminClient({"bootstrap.servers": server.address})
    asked = [confluent_kafka.TopicPartition(timed, 0, 7)]
    (deleted,) = admin.delete_records(asked).values()
    assert deleted.result(DEADLINE_S).low_watermark == 7

    rest = [record.offset for record in embedded_read(broker, timed, 3)]
    assert rest == [7, 8, 9]
    for name, client in CLIENTS.items():
        offsets = [record.offset for record in client.read(server.address, timed, 3, start=7)]
        assert offsets == rest, name


# Time to live ---------------------------------------------------------------------------------------------


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.mark.parametrize("writer", CLIENTS)
def test_a_record_older_than_its_topics_ttl_is_never_delivered(
    broker: logbroker.Broker, server: Any, writer: str
) -> None:
    """Whatever it shares a batch with, in every codec; offsets stay."""
    fresh_ms = now_ms()
    fresh = Wire(b"fresh", key=b"k", headers=(("a", b"1"),), timestamp_ms=fresh_ms)
    stale = Wire(b"stale", key=b"k", timestamp_ms=fresh_ms - 2 * HOUR_MS)
    left = numbered([stale, fresh, stale, fresh, stale, fresh])[1::2]
    for codec in codecs_of(writer):
        broker.create_topic(codec, config={"message.ttl.ms": HOUR_MS})
        CLIENTS[writer].write(server.address, codec, [stale, fresh, stale, fresh, stale, fresh], codec)
        assert embedded_read(broker, codec, 3) == left
        assert read_by_each(server.address, codec, 3, codec) == by_each(left, codec)


def test_a_record_whose_own_ttl_is_over_is_never_delivered(broker: logbroker.Broker, server: Any) -> None:
    """As the library's ``send(ttl=)`` gave it, in every codec."""
    hour = datetime.timedelta(hours=1)
    left = [(1, b"fresh 0"), (3, b"fresh 1"), (5, b"fresh 2")]
    for codec in CODECS:
        broker.create_topic(codec)
        with broker.producer(compression=None if codec == "none" else codec) as producer:
            for number in range(3):
                producer.send(codec, b"stale %d" % number, timestamp=now_ms() - 2 * HOUR_MS, ttl=hour)
                producer.send(codec, b"fresh %d" % number, ttl=hour)

        assert [(record.offset, record.value) for record in embedded_read(broker, codec, 3)] == left
        for name, records in read_by_each(server.address, codec, 3, codec).items():
            assert [(record.offset, record.value) for record in records] == left, (name, codec)


def test_a_log_in_which_everything_is_expired_does_not_hold_a_reader_up(
    broker: logbroker.Broker, server: Any
) -> None:
    """The next record behind it comes, for every client."""
    broker.create_topic("t", config={"message.ttl.ms": 1_000})
    stale = [Wire(b"x" * 100_000, timestamp_ms=TIME_MS)] * 5
    for record in stale:  # a batch each
        embedded_write(broker, "t", [record])
    broker.alter_topic("t", config={"message.ttl.ms": HOUR_MS})
    embedded_write(broker, "t", [Wire(b"fresh", timestamp_ms=now_ms())])

    for name, records in read_by_each(server.address, "t", 1).items():
        assert [(record.offset, record.value) for record in records] == [(5, b"fresh")], name


def test_a_client_that_writes_an_id_header_is_never_refused_but_takes_the_id(
    broker: logbroker.Broker, server: Any
) -> None:
    """A client's batch is appended as it is; the library's senders meet the id in it."""
    broker.create_topic("ids")
    now_ms = int(time.time() * 1000)
    sent = Wire(b"v", headers=(("logbroker.message-id", b"a"),), timestamp_ms=now_ms)
    assert CONFLUENT.write(server.address, "ids", [sent, sent], "none") == [0, 1]
    with broker.producer() as producer:
        found = producer.send("ids", b"again", message_id="a").result()
    assert (found.offset, found.duplicate) == (1, True)
