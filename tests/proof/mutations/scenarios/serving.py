"""The server: what it answers is on the disk, also for clients that speak Kafka's protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import logbroker
from logbroker.server.server import Server
from logbroker.server.settings import ServerSettings
from logbroker_storage.record_batch import NewRecord, encode_batch, encode_values
from tests.server.raw_client import (
    ADD_PARTITIONS,
    OFFSET_COMMIT,
    PRODUCE,
    RawClient,
    batch,
    codes,
    request_bytes,
)

from .machine import Machine

ADD_OFFSETS, TXN_OFFSET_COMMIT = 25, 28
DEADLINE_S = 20.0


@contextmanager
def _served(machine: Machine) -> Iterator[tuple[RawClient, logbroker.Broker]]:
    """A server in a thread, a client of it, and its directory in the same process."""
    broker = logbroker.open(machine.path, files=machine.files)  # first, for the server to take the same files
    loop = asyncio.new_event_loop()
    listening = threading.Event()
    servers: list[Server] = []

    async def run() -> None:
        server = Server(machine.path, ServerSettings(port=0, router=False))
        await server.start()
        servers.append(server)
        listening.set()
        await server.run()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert listening.wait(DEADLINE_S)
        with RawClient(servers[0].port) as client:
            yield client, broker
    finally:
        loop.call_soon_threadsafe(servers[0].stop)
        thread.join()
        loop.close()
        broker.close()


def produced_records(folder: Path) -> None:
    """A Produce request with acks=all is answered when its records are on the disk."""
    machine = Machine(folder)
    with _served(machine) as (client, _):
        client.create("t")
        client.produce("t", batch(b"one"))
        state = machine.state()
    after = logbroker.open(machine.started(state))
    assert after._directory.log("t", 0).offsets().log_end_offset == 1
    after.close()


def produced_records_of_which_more_come(folder: Path) -> None:
    """So is one that another request follows at once, for which nobody waits."""
    machine = Machine(folder)
    with _served(machine) as (client, _):
        client.create("t")
        data = [{"name": "t", "partition_data": [{"index": 0, "records": batch(b"one")}]}]
        both = [request_bytes(PRODUCE, 9, acks=acks, timeout=5000, topic_data=data) for acks in (-1, 0)]
        client.send_bytes(b"".join(both))
        client.read_frame()
        state = machine.state()
    after = logbroker.open(machine.started(state))
    assert after._directory.log("t", 0).offsets().log_end_offset >= 1
    after.close()


def offsets_committed_by_clients(folder: Path) -> None:
    """A client's group is never ahead of the log."""
    machine = Machine(folder)
    with _served(machine) as (client, broker):
        client.create("t", durability="os")
        broker._directory.log("t", 0).append(encode_values([b"0", b"1"], [(0, 1_000_000)]))
        part = {"partition_index": 0, "committed_offset": 2, "committed_leader_epoch": -1}
        topics = [{"name": "t", "partitions": [part]}]
        answer = client.send(OFFSET_COMMIT, 8, group_id="g", generation_id_or_member_epoch=-1, topics=topics)
        assert {code.name for code in codes(answer)} == {"none"}
        state = machine.state()
    _group_is_not_ahead(machine.started(state), 2)


def _group_is_not_ahead(path: str, offset: int) -> None:
    after = logbroker.open(path)
    event = after._directory.groups.committed("g", "t", 0)
    assert event is not None
    assert event.offset == offset
    assert after._directory.log("t", 0).offsets().log_end_offset >= offset
    after.close()


def transactions_of_clients(folder: Path) -> None:
    """Of a client's transaction there is all or nothing, whenever the power is cut while it ends."""
    machine = Machine(folder)
    with _served(machine) as (client, broker):
        for topic in ("a", "b"):
            client.create(topic)
        producer = _begun(client, [("a", 0), ("b", 0)])
        for topic in ("a", "b"):
            written = encode_batch(
                [NewRecord(b"v")],
                producer_id=producer[0],
                producer_epoch=producer[1],
                base_sequence=0,
                transactional=True,
            )
            broker._directory.log(topic, 0).append(written)  # as with acks=1: written, and not synced yet
        states = list(
            machine.states_during(
                lambda: client.end_transaction("tx", producer, commit=True), any_thread=True
            )
        )
    for path, _ in states:
        after = logbroker.open(path)
        found = [_committed(after, topic) for topic in ("a", "b")]
        assert found in ([[], []], [[b"v"], [b"v"]]), found
        after.close()


def _begun(client: RawClient, places: list[tuple[str, int]]) -> tuple[int, int]:
    producer = client.new_producer("tx")
    names = "transactional_id", "producer_id", "producer_epoch"
    fields = dict(zip(names, ("tx", *producer), strict=True))
    topics = [{"name": topic, "partitions": [partition]} for topic, partition in places]
    fields["topics"] = topics
    answer = client.send(ADD_PARTITIONS, 3, **{f"v3_and_below_{name}": fields[name] for name in fields})
    assert {code.name for code in codes(answer)} == {"none"}
    return producer


def _committed(broker: logbroker.Broker, topic: str) -> list[bytes | None]:
    with broker.consumer(topic) as consumer:
        return [record.value for record in consumer.poll()]


def offsets_in_transactions_of_clients(folder: Path) -> None:
    """Offsets that a client commits with its transaction are never ahead of the log either."""
    machine = Machine(folder)
    with _served(machine) as (client, broker):
        client.create("t", durability="os")
        broker._directory.log("t", 0).append(encode_values([b"0", b"1"], [(0, 1_000_000)]))
        producer = client.new_producer("tx")
        names = "transactional_id", "producer_id", "producer_epoch"
        claim = dict(zip(names, ("tx", *producer), strict=True))
        assert {code.name for code in codes(client.send(ADD_OFFSETS, 3, group_id="g", **claim))} == {"none"}
        part = {"partition_index": 0, "committed_offset": 2, "committed_leader_epoch": -1}
        topics = [{"name": "t", "partitions": [part]}]
        answer = client.send(TXN_OFFSET_COMMIT, 3, group_id="g", generation_id=-1, topics=topics, **claim)
        assert {code.name for code in codes(answer)} == {"none"}
        client.end_transaction("tx", producer, commit=True)
        state = machine.state()
    _group_is_not_ahead(machine.started(state), 2)
