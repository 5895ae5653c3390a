"""A transactional id is forgotten under a server at work: its client is told so, and goes on or begins anew."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import confluent_kafka
import kafka.errors
import pytest
from kio.schema.errors import ErrorCode

import logbroker
from logbroker.server.metrics import Metrics
from logbroker.server.network_transactions import NetworkTransactions
from logbroker.server.node import Node
from logbroker.server.settings import ServerSettings
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker.transactional_id_expiry import expire_transactional_ids
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.log_config import LogConfig
from logbroker_storage.testing import ManualClock

from .raw_client import ADD_PARTITIONS, END_TXN, INIT_PRODUCER_ID, RawClient, batch
from .server_process import ServerProcess
from .test_clients_transactions import ConfluentWriter, KafkaPythonWriter, Writer

ADD_OFFSETS = 25
OK, UNKNOWN = ErrorCode.none, ErrorCode.invalid_producer_id_mapping
CLIENT_ERRORS = (
    confluent_kafka.KafkaException,
    kafka.errors.KafkaError,
)

# What a cleaner in another process does, by whose clock it is 8 days later.
FORGET = """
import sys
from logbroker.transactional_id_expiry import expire_transactional_ids
from logbroker_storage.clock import SystemClock
from logbroker_storage.data_directory import DataDirectory

class Later(SystemClock):
    def now_ms(self):
        return super().now_ms() + 8 * 86_400_000

    def monotonic_ms(self):
        return super().monotonic_ms() + 8 * 86_400_000

directory = DataDirectory.open(sys.argv[1], clock=Later())
print(expire_transactional_ids(directory))
directory.close()
"""


def forget(server: ServerProcess) -> int:
    """Have ids forgotten that had no transaction for a week in 8 days; how many."""
    done = subprocess.run(
        [sys.executable, "-c", FORGET, str(server.data)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def seen(server: ServerProcess) -> list[bytes | None]:
    with logbroker.open(server.data) as broker, broker.consumer("t") as consumer:
        return [record.value for record in consumer.poll(100, 0.2)]


@pytest.fixture
def server(start_server: Callable[..., ServerProcess], tmp_path: Path) -> ServerProcess:
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t")
    return start_server()


@pytest.fixture
def writer(server: ServerProcess) -> Iterator[Callable[..., Any]]:
    with ExitStack() as writers:
        yield lambda kind: writers.enter_context(closing(kind(server, "id")))


def write(w: Writer, value: bytes) -> None:
    w.begin()
    w.send(value)
    w.commit()


@pytest.mark.parametrize("kind", [ConfluentWriter, KafkaPythonWriter])
def test_a_client_whose_id_was_forgotten_is_told_so_and_another_of_the_id_begins_anew(
    server: ServerProcess, writer: Callable[..., Any], kind: type[Writer]
) -> None:
    first = writer(kind)
    write(first, b"before")
    assert forget(server) == 1
    with pytest.raises(CLIENT_ERRORS):
        write(first, b"refused")
    write(writer(kind), b"after")
    assert seen(server) == [b"before", b"after"]


def test_a_client_whose_id_was_forgotten_aborts_and_goes_on(
    server: ServerProcess, writer: Callable[..., Any]
) -> None:
    """As Kafka's own client; others begin anew."""
    w = writer(ConfluentWriter)
    write(w, b"before")
    assert forget(server) == 1
    with pytest.raises(CLIENT_ERRORS):
        write(w, b"refused")
    w.abort()
    write(w, b"after")
    assert seen(server) == [b"before", b"after"]


def test_each_request_of_a_forgotten_id_is_answered_as_by_kafka(server: ServerProcess) -> None:
    with RawClient(server.port) as client:
        producer_id, epoch = client.new_producer("id")
        assert forget(server) == 1
        who = {"transactional_id": "id", "producer_id": producer_id, "producer_epoch": epoch}
        added = client.send(
            ADD_PARTITIONS,
            3,
            v3_and_below_topics=[{"name": "t", "partitions": [0]}],
            **{f"v3_and_below_{name}": value for name, value in who.items()},
        )
        ((partition,),) = [topic.results_by_partition for topic in added.results_by_topic_v3_and_below]
        assert partition.partition_error_code is UNKNOWN
        records = batch(
            b"1", producer_id=producer_id, producer_epoch=epoch, base_sequence=0, transactional=True
        )
        for version in (11, 12):  # transactions of version 1 and 2
            answer = client.produce("t", records, version=version, transactional_id="id")
            assert answer.error_code is UNKNOWN
        assert client.send(ADD_OFFSETS, 3, group_id="g", **who).error_code is UNKNOWN
        for version in (3, 5):
            assert client.send(END_TXN, version, committed=True, **who).error_code is UNKNOWN
        anew = client.send(INIT_PRODUCER_ID, 4, transaction_timeout=60_000, **who)
        assert (anew.error_code, anew.producer_epoch) == (OK, 0)
        assert anew.producer_id != producer_id
    assert seen(server) == []


def test_the_servers_own_cleaner_forgets_ids(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        directory = DataDirectory.open(str(tmp_path / "data"), clock=clock)
        node = Node(directory, ServerSettings(router=False), Metrics())
        node.transactions.claim("id", timeout_ms=1000)
        clock.advance(ms=8 * 86_400_000)
        assert directory.maintenance.clean()
        assert node.transactions.events() == []
        node.begin_to_stop()
        await node.close()

    asyncio.run(main())


def test_a_client_that_was_heard_of_this_week_keeps_its_id(tmp_path: Path) -> None:
    """Else it could be forgotten between the look at its request and the first record."""
    clock = ManualClock()
    directory = DataDirectory.open(str(tmp_path / "data"), clock=clock)
    with closing(directory):
        directory.create_topic("t", 1, LogConfig.parse({}))
        transactions = NetworkTransactions(directory, TransactionCoordinator(directory))
        claim = transactions.begin_holding(
            "id", timeout_ms=1000, producer_id=-1, producer_epoch=-1, fenced=ErrorCode.producer_fenced
        )
        clock.advance(ms=8 * 86_400_000)
        transactions.check_holder(*claim, fenced=ErrorCode.producer_fenced)
        assert expire_transactional_ids(directory) == 0
        transactions.add_partitions(*claim, [("t", 0)], fenced=ErrorCode.producer_fenced)
        transactions.end(claim, commit=True, keeps_epoch=False, fenced=ErrorCode.producer_fenced)
