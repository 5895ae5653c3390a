"""A full disk: typed errors that say what to do, nothing lost, and writes go on when there is space again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import StorageFailedError, WriteFailedError
from logbroker_storage.events import GroupEvent
from logbroker_storage.log_config import LogConfig
from logbroker_storage.record_batch import decode_records, encode_values

SIZE_BYTES = 4 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB; only root can mount one."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs root and tmpfs to mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def fill(path: Path) -> None:
    """Take what space there is, to the last block."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass  # that is the point


def values(directory: DataDirectory) -> list[bytes | None]:
    reader = directory.log("t", 0).reader(0)
    found = []
    while batches := reader.read():
        found += [record.value for batch in batches for record in decode_records(batch)]
    reader.close()
    return found


def record_groups(directory: DataDirectory, count: int) -> None:
    for number in range(count):
        directory.journal.record([GroupEvent(f"group-{number}", ["t"], 0)])


def test_nothing_is_lost_or_invented_on_a_full_disk_and_writes_go_on_afterwards(small_disk: Path) -> None:
    path = str(small_disk / "data")
    directory = DataDirectory.open(path)
    directory.create_topic("t", 1, LogConfig.parse({}))
    log = directory.log("t", 0)
    acknowledged: list[bytes | None] = []

    def send(number: int) -> None:
        value = b"%06d" % number * 100
        result = log.append(encode_values([value], [(0, 1)]))
        log.sync(result.last_offset + 1)
        acknowledged.append(value)

    for number in range(100):
        send(number)
    fill(small_disk / "filler")
    refused = 0
    for number in range(100, 400):  # more than the room that is there
        try:
            send(number)
        except WriteFailedError:
            refused += 1
    assert refused > 0
    with pytest.raises(
        (WriteFailedError, StorageFailedError)
    ):  # the log has no room, or the view for what is in it
        record_groups(directory, 1000)
    assert values(directory) == acknowledged
    (small_disk / "filler").unlink()
    for number in range(400, 410):
        send(number)
    assert values(directory) == acknowledged
    directory.close()
    directory = DataDirectory.open(path)
    assert values(directory) == acknowledged
    directory.close()


@pytest.mark.parametrize("free_pages", range(16, 25))
def test_room_takes_no_space_that_a_batch_needs(small_disk: Path, free_pages: int) -> None:
    directory = DataDirectory.open(str(small_disk / "data"))
    directory.create_topic("t", 1, LogConfig.parse({}))
    log = directory.log("t", 0)
    batch = encode_values([b"v" * 5000], [(0, 1)])
    for _ in range(50):  # the view has the pages that it needs
        log.sync(log.append(bytearray(batch)).last_offset + 1)
    log.roll_now()
    filler = small_disk / "filler"
    fill(filler)
    os.truncate(filler, filler.stat().st_size - free_pages * 4096)
    taken = 0
    for _ in range(60):
        try:
            log.sync(log.append(bytearray(batch)).last_offset + 1)
            taken += 1
        except WriteFailedError:
            pass  # room gives its space back
    assert taken >= free_pages * 4096 // len(batch) - 3, "the indexes take a page each"
    filler.unlink()
    directory.close()
