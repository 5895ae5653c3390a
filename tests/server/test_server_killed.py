"""A server that is killed under load: nothing acknowledged is lost, and idempotent clients end without duplicates."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import confluent_kafka
import pytest

import logbroker

PARTITIONS = 3
RECORDS = 30_000
LONG_RECORDS = 300_000
DEADLINE_S = 120
CLIENT: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "linger.ms": 2,
    "reconnect.backoff.ms": 10,
    "reconnect.backoff.max.ms": 50,
    "retry.backoff.ms": 10,
    "message.timeout.ms": DEADLINE_S * 1000,
    "log_level": 0,
}


class Writer(threading.Thread):
    """One idempotent producer that writes numbers, and remembers which were acknowledged."""

    def __init__(self, address: str, name: str, records: int) -> None:
        super().__init__()
        self._producer = confluent_kafka.Producer(CLIENT | {"bootstrap.servers": address})
        self._name = name
        self._records = records
        self.acknowledged: list[bytes] = []
        self.failures: list[str] = []

    def _delivered(self, error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
        if error is not None:
            self.failures.append(str(error))
        else:
            value = message.value()
            assert value is not None
            self.acknowledged.append(value)

    def run(self) -> None:
        for number in range(self._records):
            value = b"%s %d" % (self._name.encode(), number)
            self._produce(value, number % PARTITIONS)
            if number % 500 == 0:
                time.sleep(0.02)  # so that the load lasts as long as the kills
        self._producer.flush(DEADLINE_S)

    def _produce(self, value: bytes, partition: int) -> None:
        while True:
            try:
                self._producer.produce("t", value, partition=partition, on_delivery=self._delivered)
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(0.1)


@pytest.mark.slow
def test_what_was_acknowledged_is_there_once_and_in_order(
    server: Any, rng: random.Random, long_run: bool
) -> None:
    with logbroker.open(server.data) as broker:
        broker.create_topic("t", partitions=PARTITIONS)
    records = LONG_RECORDS if long_run else RECORDS
    writers = [Writer(server.address, name, records) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    kills = 0
    while any(writer.is_alive() for writer in writers):
        time.sleep(rng.uniform(0.05, 0.5))
        if kills < (50 if long_run else 6):
            server.kill()
            server.start()
            kills += 1
    for writer in writers:
        writer.join()
        assert writer.failures == []
    assert kills > 2
    with logbroker.open(server.data) as broker, broker.consumer("t") as consumer:
        stored: dict[int, list[bytes]] = {number: [] for number in range(PARTITIONS)}
        while found := consumer.poll(5000, 0.2):
            for record in found:
                assert record.value is not None
                stored[record.partition].append(record.value)
    for writer in writers:
        assert len(writer.acknowledged) == records
    for partition, values in stored.items():
        for name in ("a", "b"):
            own = [value for value in values if value.startswith(name.encode())]
            assert own == [
                b"%s %d" % (name.encode(), number) for number in range(partition, records, PARTITIONS)
            ]


class Worker(threading.Thread):
    """One share consumer that accepts what it gets, and remembers what it was told is accepted."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self.offered: set[bytes] = set()
        self.accepted: list[bytes] = []
        self.stopping = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def _work(self) -> None:
        settings = {name: CLIENT[name] for name in ("reconnect.backoff.ms", "log_level")}
        settings |= {"bootstrap.servers": self._address, "group.id": "g", "max.poll.records": 50}
        consumer = confluent_kafka.ShareConsumer(settings | {"share.acknowledgement.mode": "explicit"})
        consumer.subscribe(["t"])
        while not self.stopping.is_set():
            offered: dict[int, list[bytes]] = {}
            for message in consumer.poll(timeout=0.2):
                assert message.error() is None
                consumer.acknowledge(message)
                offered.setdefault(message.partition(), []).append(message.value())
            self.offered.update(*offered.values())
            if offered:
                for place, error in consumer.commit_sync(timeout=DEADLINE_S).items():
                    self.accepted += offered[place.partition] if error is None else []
        consumer.close()


@pytest.mark.slow
def test_no_message_of_a_share_group_is_lost_and_none_comes_again_that_was_accepted(
    server: Any, rng: random.Random, long_run: bool
) -> None:
    """Whatever was not told to be accepted when the server died may have been, or comes again: nobody knows."""
    records = (LONG_RECORDS if long_run else RECORDS) // 10
    with logbroker.open(server.data) as broker:
        broker.create_topic("t", partitions=PARTITIONS)
        broker.create_subscription("g", topic="t", max_deliveries=1000)
        workers = [Worker(server.address) for _ in range(3)]
        for worker in workers:
            worker.start()
        with broker.producer() as producer:
            for number in range(0, records, 100):
                producer.send_many("t", [b"%d" % one for one in range(number, number + 100)])
                producer.flush()
                if number % (records // 10) == 0:
                    time.sleep(rng.uniform(0.1, 0.5))
                    server.kill()
                    server.start()
        deadline = time.monotonic() + DEADLINE_S
        while broker.subscription("g").lag:
            assert time.monotonic() < deadline, broker.subscription("g")
            assert all(worker.is_alive() for worker in workers)
            time.sleep(0.1)
    for worker in workers:
        worker.stopping.set()
        worker.join()
        assert worker.error is None
    accepted = [value for worker in workers for value in worker.accepted]
    assert len(accepted) == len(set(accepted)), "accepted twice"
    assert set().union(*(worker.offered for worker in workers)) == {b"%d" % one for one in range(records)}
    assert len(accepted) > records // 2


def test_a_server_that_was_killed_comes_back_beside_processes_that_went_on(
    start_server: Callable[..., Any],
) -> None:
    """The directory stays open in this process all the while: nothing is recovered, everything goes on."""
    server = start_server()
    with logbroker.open(server.data) as broker:
        broker.create_topic("t")
        client = confluent_kafka.Producer(CLIENT | {"bootstrap.servers": server.address})
        client.produce("t", b"1")
        assert client.flush(10) == 0
        server.kill()
        with broker.producer() as embedded:
            embedded.send("t", b"2").result()
        client.produce("t", b"3")
        server.start()
        assert client.flush(20) == 0
        with broker.consumer("t") as consumer:
            assert [record.value for record in consumer.poll(10, 5.0)] == [b"1", b"2", b"3"]
