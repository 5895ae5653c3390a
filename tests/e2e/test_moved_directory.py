"""A data directory that is moved, removed or replaced while it is open: what is in its place by then is let alone."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import logbroker
from logbroker.errors import FileSystemError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def open_with_records(data: Path) -> logbroker.Broker:
    broker = logbroker.open(data)
    broker.create_topic("t", config={"segment.bytes": 1_000})
    send(broker, 5)
    return broker


def send(broker: logbroker.Broker, number: int) -> None:
    with broker.producer() as producer:
        for _ in range(number):
            producer.send("t", b"v" * 100).result()


def contents(data: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}


def remove(data: Path) -> None:
    shutil.rmtree(data)


def move(data: Path) -> None:
    data.rename(data.with_name("elsewhere"))


def restore(data: Path) -> None:
    """As a backup is put in its place."""
    shutil.copytree(data, data.with_name("backup"))
    move(data)
    data.with_name("backup").rename(data)


def restore_within(data: Path) -> None:
    """The same, where the directory itself cannot be moved: it is a mount, say."""
    shutil.copytree(data, data.with_name("backup"))
    for path in list(data.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(data.with_name("backup"), data, dirs_exist_ok=True)


@pytest.mark.parametrize("change", [remove, move, restore, restore_within])
def test_nothing_is_written_to_what_is_in_its_place(data: Path, change: Callable[[Path], None]) -> None:
    broker = open_with_records(data)
    change(data)
    before = contents(data)
    with pytest.raises(
        logbroker.WriteFailedError, match="moved, removed or replaced while it was open"
    ) as refused:
        send(broker, 30)  # through several segments
    assert isinstance(refused.value.__cause__, OSError)
    assert refused.value.__cause__.errno == errno.ESTALE
    with pytest.raises(logbroker.LogbrokerError, match="moved, removed or replaced"):
        broker.create_topic("another")
    with pytest.raises(logbroker.LogbrokerError, match="moved, removed or replaced"):
        broker.consumer("t", group="g")
    broker.close()
    assert contents(data) == before


def test_nothing_is_written_to_logs_that_are_put_in_the_place_of_its_own(data: Path) -> None:
    """They are enough of a backup."""
    broker = open_with_records(data)
    logs = data / "logs"
    restore(logs)
    before = contents(logs)
    broker._directory.look_at_place()
    with pytest.raises(logbroker.WriteFailedError, match="or its logs, were moved, removed or replaced"):
        send(broker, 1)
    with pytest.raises(FileSystemError):
        broker.close()
    assert contents(logs) == before


@pytest.mark.parametrize("change", [remove, restore])
def test_who_appends_to_open_files_alone_is_told_at_the_next_look_around(
    data: Path, change: Callable[[Path], None]
) -> None:
    broker = open_with_records(data)
    with broker.producer() as producer:
        change(data)
        broker._directory.look_at_place()
        with pytest.raises(logbroker.WriteFailedError, match="moved, removed or replaced"):
            producer.send("t", b"v").result()
    with pytest.raises(FileSystemError, match="moved, removed or replaced"):
        broker.close()  # not cleanly


def test_who_appends_without_a_pause_is_told_at_the_next_look_around_too(data: Path) -> None:
    broker = open_with_records(data)
    with broker.producer() as producer:
        move(data)
        looking = threading.Thread(target=broker._directory.look_at_place)
        with broker._directory.log("t", 0).append_lock:  # as in the middle of an append
            looking.start()
            looking.join(0.2)
        looking.join()
        with pytest.raises(logbroker.WriteFailedError, match="moved, removed or replaced") as told:
            producer.send("t", b"v").result()
    assert str(told.value).endswith("; close the broker and all that uses it, and open it again")
    with pytest.raises(FileSystemError):
        broker.close()


def test_opened_again_it_is_the_directory_that_is_there(data: Path) -> None:
    broker = open_with_records(data)
    restore(data)
    with logbroker.open(data) as there:
        send(there, 20)
        with pytest.raises(logbroker.WriteFailedError):
            send(broker, 30)
        broker.close()
        send(there, 20)
        with there.consumer("t") as consumer:
            offsets = []
            while records := consumer.poll(timeout=0):
                offsets += [record.offset for record in records]
    assert offsets == list(range(45))
