"""Recovery and cutting: what is found again is on the disk, and what is taken off is kept."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from pathlib import Path

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import StorageFailedError
from logbroker_storage.files import Files, OsFiles
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import ControlType, encode_values
from logbroker_storage.testing import Workbench
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_storage.testing.workbench import crash

from .machine import Machine, WatchedFiles, died_at_each_operation

ROLLING = 300
LOG = f"{0:020d}.log"


def _restarted(machine: Machine, bench: Workbench) -> Workbench:
    """The process dies, the view is lost, and another one opens the directory on the same machine."""
    crash(bench.directory)
    shutil.rmtree(f"{machine.path}/view")
    machine.files = WatchedFiles(machine.recorded)
    return machine.bench()


def records_found_again(folder: Path) -> None:
    """What recovery shows of a dead process's unsynced records is on the disk, in whatever segment."""
    machine = Machine(folder)
    bench = machine.bench(segment_bytes=ROLLING)
    bench.put(b"synced")
    for number in range(4):
        bench.put(b"%d" % number * 60, sync=False)
    bench = _restarted(machine, bench)
    seen = bench.values()
    assert len(seen) == 5
    after = machine.cut()
    assert after.values() == seen, "a reader has seen records that are gone"
    after.close()


def a_segment_begun_before_the_death(folder: Path) -> None:
    """Records that go into a segment which a dead process had begun last, though its recovery point is exact."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"a")
    bench.log.roll_now()
    bench.directory.checkpoint()
    bench = _restarted(machine, bench)
    bench.put(b"b")
    after = machine.cut()
    assert after.values() == [b"a", b"b"]
    after.close()


def a_log_without_files(folder: Path) -> None:
    """A log whose files are gone begins anew, and keeps what is acknowledged from then on."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.close()
    for name in machine.files.listdir(bench.folder):
        machine.files.unlink(f"{bench.folder}/{name}")
    machine.files.fsync_directory(bench.folder)
    _begins_anew(machine)


def a_topic_without_a_folder(folder: Path) -> None:
    """A partition whose folder is gone begins anew, and keeps what is acknowledged from then on."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.close()
    for name in machine.files.listdir(bench.folder):
        machine.files.unlink(f"{bench.folder}/{name}")
    machine.files.rmdir(bench.folder)
    machine.files.fsync_directory(bench.directory.layout.logs)
    _begins_anew(machine)


def _begins_anew(machine: Machine) -> None:
    """Without a view, too: what is acknowledged from now on is there after a power cut, and nothing else."""
    shutil.rmtree(f"{machine.path}/view")
    bench = machine.bench()
    bench.put(b"a")
    after = machine.cut()
    assert after.values() == [b"a"]
    after.close()


def a_log_put_there(folder: Path) -> None:
    """A log that somebody put into the directory stays there once its records were seen."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"a")
    bench.close()
    logs = bench.directory.layout.logs
    machine.files.mkdir(f"{logs}/copy-0")
    for name in ("00000000000000000000.log",):
        fd = machine.files.open(f"{logs}/copy-0/{name}", create=True)
        machine.files.pwrite(fd, machine.files.read_file(f"{logs}/t-0/{name}"), 0)
        machine.files.close(fd)
    shutil.rmtree(f"{machine.path}/view")
    directory = DataDirectory.open(machine.path, files=machine.files)
    assert directory.log("copy", 0).offsets().high_watermark == 1
    after = DataDirectory.open(machine.started(machine.state()))
    assert after.log("copy", 0).offsets().high_watermark == 1
    after.close()


def a_torn_tail(folder: Path) -> None:
    """What is cut off a log is in a side file, on the disk, before the log loses it."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"a")
    end = bench.log.state().end
    torn = bytes(bench.batch(b"torn" * 9))[:-5]
    segment = bench.log.segment(0)
    segment.write_log(torn, end.active_bytes)
    segment.close()

    def act() -> None:
        bench.put(b"b")

    for path, _ in machine.states_during(act):
        kept = b"".join(
            file.read_bytes() for file in Path(path, "logs", "t-0").glob("*.log*") if ".tmp" not in file.name
        )
        after = Workbench(path)
        assert after.values()[:1] == [b"a"]
        if after.values() == [b"a", b"b"]:
            assert torn.rstrip(b"\0") in kept, "the log has lost what no side file has"
        crash(after.directory)


def deaths_over_a_torn_tail(folder: Path) -> None:
    """A process that dies while it cuts a log loses no byte of it."""
    torn = b"\1torn off" * 9

    def prepare(path: str) -> None:
        bench = Workbench(path)
        bench.put(b"a")
        bench.crash()
        with open(f"{bench.folder}/00000000000000000000.log", "r+b") as file:
            file.seek(bench_bytes(path))
            file.write(torn)

    for path, _, _ in died_at_each_operation(folder, prepare, lambda bench: bench.put(b"b")):
        found = b"".join(file.read_bytes() for file in Path(path, "logs", "t-0").glob("*.log*"))
        assert torn in found, "bytes are gone"


def bench_bytes(path: str) -> int:
    """Where the log of the topic ends."""
    bench = Workbench(path)
    size = bench.log.state().end.active_bytes
    crash(bench.directory)
    return size


def a_snapshot_of_lost_records(folder: Path) -> None:
    """A producer's sequence that went with its records is not remembered for the records in their place.

    The power is cut twice: recovery finds the snapshot of what is gone, and what it does about that has to last.
    """
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"a", producer_id=7, sequence=0)
    bench.directory.checkpoint()
    bench.put(b"lost", sync=False, producer_id=7, sequence=1)
    bench.log.roll_now()  # the snapshot knows sequence 1
    name = f"{bench.folder}/{bench.log.state().end.log_end_offset:020d}.snapshot"
    snapshot = machine.files.read_file(name)
    crash(bench.directory)

    again = machine.started_again({name: snapshot})
    bench = again.bench()
    assert bench.values() == [b"a"]
    bench.put(b"other", producer_id=8, sequence=0)
    bench.directory.checkpoint()
    after = again.cut()
    assert after.values() == [b"a", b"other"]
    assert not after.put(b"lost", producer_id=7, sequence=1).duplicate, "acknowledged, and not in the log"
    after.close()


def an_aborted_index_found_again(folder: Path) -> None:
    """What recovery shows of an abort that nobody had synced is on the disk: its entry alone hides the records."""
    machine = Machine(folder)
    bench = machine.bench()
    batch = encode_values(
        [b"aborted"], [(0, START_MS)], producer_id=7, producer_epoch=0, base_sequence=0, transactional=True
    )
    bench.log.append(batch)
    bench.log.sync()
    machine.files.fail("fdatasync", path=".txnindex", error=errno.EIO)
    with contextlib.suppress(StorageFailedError):
        bench.log.append_marker(ControlType.ABORT, producer_id=7, marker_epoch=1)
    bench = _restarted(machine, bench)
    bench.directory.checkpoint()
    after = machine.cut()
    reader = after.log.reader(0, Isolation.READ_COMMITTED)
    assert all(found.header.is_control for found in reader.read()), "aborted records are shown"
    reader.close()
    crash(after.directory)


def an_index_built_again(folder: Path) -> None:
    """A sealed segment's indexes that recovery built again are on the disk: whatever is well-formed is believed."""
    machine = Machine(folder)
    bench = machine.bench(index_interval_bytes=0)
    for number in range(3):
        bench.put(b"%d" % number)
    bench.log.roll_now()
    bench.put(b"behind")
    bench.directory.checkpoint()
    for suffix in (".index", ".timeindex"):
        fd = machine.files.open(f"{bench.folder}/{0:020d}{suffix}")
        machine.files.pwrite(fd, b"\xff" * 8, 0)
        machine.files.fsync(fd)
        machine.files.close(fd)
    bench = _restarted(machine, bench)
    unsynced = machine.recorded.mirror.unsynced_paths()
    built = [f"/data/logs/t-0/{0:020d}{suffix}" for suffix in (".index", ".timeindex")]
    assert not set(built) & set(unsynced), "a power cut could take a part of it"
    crash(bench.directory)


def a_rebuild_that_dies(folder: Path) -> None:
    """Whoever dies while he makes the view anew leaves one that is not believed, or that is whole."""
    template = Workbench(str(folder / "prepared"))
    template.put(b"a", b"b")
    template.close()
    shutil.rmtree(f"{template.path}/view")
    for operation in itertools.count(10, 5):
        path = str(folder / f"death-{operation}")
        shutil.copytree(template.path, path)
        died = _opens_and_dies(path, operation)
        bench = Workbench(path)
        assert bench.values() == [b"a", b"b"], f"died at operation {operation}"
        crash(bench.directory)
        if not died:
            return


def _opens_and_dies(path: str, operation: int) -> bool:
    """Open the directory in a process of its own, which dies at this operation; whether it came so far."""
    child = os.fork()
    if child == 0:
        files = WatchedFiles(OsFiles())
        files.before = lambda _operation, _path: None if files.calls.total() < operation else os._exit(9)
        try:
            DataDirectory.open(path, files=files)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def a_log_whose_sync_failed(folder: Path) -> None:
    """Whoever opens the directory after a failed sync finds what the disk holds, not what the page cache does."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"synced")
    position = bench.log.state().end.active_bytes
    bench.put(b"lost", sync=False)
    cached = machine.files.read_file(f"{bench.folder}/{LOG}")
    machine.files.fail("fdatasync", error=errno.EIO)
    with contextlib.suppress(StorageFailedError):
        bench.log.sync()
    crash(bench.directory)
    with open(f"{bench.folder}/{LOG}", "r+b") as file:  # what the disk holds in its place
        file.seek(position)
        file.write(bytes(len(cached) - position))
    bench = Workbench(machine.path, files=CachedFiles(OsFiles(), cached))
    assert not bench.log.state().sync.failed
    assert bench.values() == [b"synced"], "what the disk does not hold is shown"


class CachedFiles(WatchedFiles):
    """The log file of partition 0 is read from the page cache, until that is dropped."""

    def __init__(self, inner: Files, cached: bytes) -> None:
        super().__init__(inner)
        self._cached: bytes | None = cached

    def pread(self, fd: int, size: int, position: int) -> bytes:
        if self._cached is not None and self._path(fd).endswith(f"t-0/{LOG}"):
            return self._cached[position : position + size]
        return super().pread(fd, size, position)

    def drop_cache(self, fd: int) -> None:
        if self._path(fd).endswith(f"t-0/{LOG}"):
            self._cached = None
        super().drop_cache(fd)
