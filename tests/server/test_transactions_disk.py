"""Transactions of clients over the network, on a disk that fails while one is being ended."""

from __future__ import annotations

import errno
from pathlib import Path

from kio.schema.errors import ErrorCode

import logbroker
from logbroker_storage.clock import SYSTEM_CLOCK
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles

from ..proof.faults.server_thread import ServerThread
from .raw_client import END_TXN, RawClient, batch


def test_an_end_that_may_be_decided_is_asked_for_again_and_not_given_up(tmp_path: Path) -> None:
    """The decision is written whole, but the disk says that it is not, and says nothing else any more.

    A client that is told of an error of storage aborts, and cannot go on when it hears of the commit then.
    """
    files = FaultyFiles(OsFiles())
    server = ServerThread(str(tmp_path / "data"), files, SYSTEM_CLOCK).start()
    try:
        with RawClient(int(server.address.rpartition(":")[2])) as client:
            client.create("t")
            producer_id, producer_epoch = client.new_producer("id")
            who = {"producer_id": producer_id, "producer_epoch": producer_epoch}
            records = batch(b"paid", base_sequence=0, transactional=True, **who)
            assert client.produce("t", records, transactional_id="id").error_code is ErrorCode.none
            journal = "__journal-0/00000000000000000000.log"
            files.fail("pwrite", path=journal, error=errno.EIO, written=1.0)
            files.fail("truncate", path=journal, error=errno.EIO, forever=True)
            files.fail(
                "pread", path=journal, error=errno.EIO, at=2, forever=True
            )  # the first looks for the end
            end = {"transactional_id": "id", **who, "committed": True}
            code = client.send(END_TXN, 3, **end).error_code
            assert code is ErrorCode.coordinator_not_available
            files.heal()
            assert client.send(END_TXN, 3, **end).error_code is ErrorCode.none
    finally:
        files.heal()
        server.stop()
    with logbroker.open(tmp_path / "data") as broker, broker.consumer("t") as consumer:
        assert [record.value for record in consumer.poll()] == [b"paid"]
