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
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.record_batch import decode_records, encode_values
from logbroker_storage.segment_files import ROOM_BYTES, SegmentFiles

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


@pytest.mark.parametrize("free_pages", [1, 3, 15, 16, 17, 18, 19, 33, 50])
def test_room_takes_no_space_that_a_batch_could_have(small_disk: Path, free_pages: int) -> None:
    segment = SegmentFiles(OsFiles(), str(small_disk), 0)
    segment.create()
    filler = small_disk / "filler"
    fill(filler)
    free_bytes = free_pages * 4096
    os.truncate(filler, filler.stat().st_size - free_bytes)
    batch = b"b" * 5000
    written_bytes = 0
    while True:
        try:
            segment.write_log(batch, written_bytes)
        except OSError:
            break
        written_bytes += len(batch)
        segment.make_room(written_bytes, limit=2 * free_bytes + ROOM_BYTES)
    segment.close()
    assert free_bytes - len(batch) < written_bytes <= free_bytes
