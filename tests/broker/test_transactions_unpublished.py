"""A transaction whose process died between writing a batch and publishing it, with nobody else there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import logbroker

DIE_BEHIND_THE_WRITE = """
import os, sys, logbroker
from logbroker_storage.files import OsFiles

class Dying(OsFiles):
    def __init__(self):
        super().__init__()
        self.fds = set()
    def open(self, path, **options):
        fd = super().open(path, **options)
        if "/out-0/" in path and path.endswith(".log"):
            self.fds.add(fd)
        return fd
    def pwrite(self, fd, data, position):
        super().pwrite(fd, data, position)
        if fd in self.fds:
            os._exit(9)
    def pwritev(self, fd, buffers, position):
        super().pwritev(fd, buffers, position)
        if fd in self.fds:
            os._exit(9)

broker = logbroker.open(sys.argv[1], files=Dying())
with broker.transaction("writer") as tx:
    tx.send("out", b"of the dead")
"""


@pytest.fixture
def data(tmp_path):
    """The id has committed once; its next holder dies with a batch in the file that nobody knows of."""
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("out")
        with broker.transaction("writer") as tx:
            tx.send("out", b"first")
    command = [sys.executable, "-c", DIE_BEHIND_THE_WRITE, str(tmp_path / "data")]
    assert subprocess.run(command, check=False).returncode == 9
    return tmp_path / "data"


def values(broker) -> list[bytes]:
    with broker.consumer("out") as consumer:
        return [record.value for record in consumer.poll(timeout=1.0)]


def test_its_successor_does_not_commit_what_the_dead_wrote(data):
    with logbroker.open(data) as broker:
        with broker.transaction("writer") as tx:
            tx.send("out", b"second")
        assert values(broker) == [b"first", b"second"]


def test_another_writer_is_not_held_up_by_it(data):
    with logbroker.open(data) as broker:
        with broker.producer() as producer:
            producer.send("out", b"other").result(5)
        with broker.transaction("writer") as tx:
            tx.send("out", b"second")
        assert values(broker) == [b"first", b"other", b"second"]
