"""Which syncs a produce request waits for, on a disk whose syncs last as long as the test wants."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kio.schema.errors import ErrorCode

from logbroker_storage.clock import SYSTEM_CLOCK
from logbroker_storage.testing import GatedFiles

from ..proof.faults.server_thread import ServerThread
from .raw_client import PRODUCE, RawClient, batch, request_bytes, response_of

PATIENCE_S = 30.0


@pytest.fixture
def disk() -> GatedFiles:
    return GatedFiles()


@pytest.fixture
def server(tmp_path: Path, disk: GatedFiles) -> Iterator[ServerThread]:
    server = ServerThread(str(tmp_path / "data"), disk, SYSTEM_CLOCK).start()
    with RawClient(server.port) as client:
        client.create("t")
        assert client.produce("t", batch(b"the first syncs the folder, too")).error_code is ErrorCode.none
    yield server
    disk.gate.set()
    server.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def produce_request(correlation_id: int, value: bytes) -> bytes:
    data = [{"name": "t", "partition_data": [{"index": 0, "records": batch(value)}]}]
    return request_bytes(PRODUCE, 9, correlation_id, acks=-1, timeout=5000, topic_data=data)


def test_what_a_connection_has_sent_already_is_appended_while_the_disk_works(
    server: ServerThread, disk: GatedFiles
) -> None:
    log = server.directory.log("t", 0)
    with RawClient(server.port) as client:
        disk.gate.clear()
        client.send_bytes(b"".join(produce_request(number, b"%d" % number) for number in range(5)))
        wait_until(lambda: log.offsets().log_end_offset == 6)
        assert log.offsets().synced_offset == 1
        disk.gate.set()
        answers = [response_of(client.read_frame(), PRODUCE, 9) for _ in range(5)]
    assert [number for number, _ in answers] == list(range(5))
    offsets = [answer.responses[0].partition_responses[0].base_offset for _, answer in answers]
    assert offsets == [1, 2, 3, 4, 5]
    assert log.offsets().synced_offset == 6


def test_connections_that_come_while_the_disk_works_share_the_next_sync(
    server: ServerThread, disk: GatedFiles
) -> None:
    log = server.directory.log("t", 0)
    appends = server.node.appends
    appends._go_s = PATIENCE_S  # not 2 ms, in which a slow machine may not get through eight appends
    with ExitStack() as stack:
        first, *others = [stack.enter_context(RawClient(server.port)) for _ in range(9)]
        before = disk.begun
        disk.gate.clear()
        first.begin_produce("t", batch(b"first"))
        wait_until(lambda: disk.begun == before + 1)
        for client in others:
            client.begin_produce("t", batch(b"other"))
        wait_until(lambda: sum(map(len, appends._waiting.values())) == 9)
        assert log.offsets().synced_offset == 1
        disk.gate.set()
        for client in (first, *others):
            (answer,) = client.receive().responses[0].partition_responses
            assert answer.error_code is ErrorCode.none
        assert log.offsets().synced_offset == 10
        assert disk.begun - before == 2
