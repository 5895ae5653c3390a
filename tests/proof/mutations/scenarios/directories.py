"""A data directory, its journal and its topics: made, changed, deleted, opened again."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logbroker_storage import journal as journal_module
from logbroker_storage.checkpoints import parse_meta_properties, parse_partition_metadata
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError
from logbroker_storage.events import OffsetEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.record_batch import encode_values
from logbroker_storage.startup import BOOT_ID
from logbroker_storage.testing import ProcessKilled, Workbench
from logbroker_storage.testing.workbench import crash

from .machine import Machine, WatchedFiles, died_at_each_operation

DEFAULTS = LogConfig.parse({})


def the_first_event(folder: Path) -> None:
    """The very first thing that a new directory is asked to remember is remembered."""
    machine = Machine(folder)
    directory = DataDirectory.open(machine.path, files=machine.files)
    directory.producer_ids.open_named("loader")
    after = DataDirectory.open(machine.started(machine.state()))
    event = after.producer_ids.named("loader")
    assert event is not None
    assert event.epoch == 0
    after.close()


def what_a_log_directory_says_of_itself(folder: Path) -> None:
    """The file by which Kafka knows a log directory is whole after a power cut."""
    machine = Machine(folder)
    directory = DataDirectory.open(machine.path, files=machine.files)
    written = directory.files.read_file(directory.layout.meta_properties)
    assert machine.state().read_file("/data/logs/meta.properties") == written
    assert parse_meta_properties(written)["version"] == "1"


def a_first_opening_that_dies(folder: Path) -> None:
    """Whoever dies while he makes a directory leaves one in which an acknowledgement is worth something."""
    for operation in range(1, 12):
        place = folder / str(operation)
        place.mkdir()
        machine = Machine(place)
        machine.files.kill(at=operation)
        try:
            DataDirectory.open(machine.path, files=machine.files)
        except ProcessKilled:
            pass
        machine.files = WatchedFiles(machine.recorded)
        bench = machine.bench()
        bench.put(b"a")
        after = machine.cut()
        assert after.values() == [b"a"], f"died at operation {operation}"
        crash(after.directory)
        crash(bench.directory)


def the_files_of_a_new_topic(folder: Path) -> None:
    """A partition's folder says whose it is, also after a power cut: Kafka refuses one that does not."""
    machine = Machine(folder)
    bench = machine.bench(partitions=2)
    for number in range(2):
        left = machine.state().read_file(f"/data/logs/t-{number}/partition.metadata")
        assert parse_partition_metadata(left) == bench.log.topic_id
        assert machine.state().read_file(f"/data/logs/t-{number}/leader-epoch-checkpoint") == b"0\n1\n0 0\n"


def a_topic_created(folder: Path) -> None:
    """A topic, and a partition that was added to it, are there after a power cut, and take records that last."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.directory.add_partitions("t", 2)
    bench.put(b"a", partition=1)
    after = machine.cut()
    assert after.directory.topic("t").partitions == 2
    assert after.values(partition=1) == [b"a"]
    after.close()


def a_topic_deleted(folder: Path) -> None:
    """A deleted topic does not come back with the power."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"a")
    bench.directory.delete_topic("t")
    after = DataDirectory.open(machine.started(machine.state()))
    assert after.topics() == []
    after.close()


def a_topic_made_anew(folder: Path) -> None:
    """A topic of an old name begins at its own beginning, whatever was noted of the one before."""
    machine = Machine(folder)
    bench = machine.bench()
    for number in range(5):
        bench.put(b"%d" % number)
    bench.directory.checkpoint()
    bench.directory.delete_topic("t")
    bench.directory.create_topic("t", 1, DEFAULTS)
    bench.put(b"new")
    after = machine.cut()
    assert after.values() == [b"new"]
    assert after.log.offsets().log_end_offset == 1
    after.close()


def deaths_in_creating_a_topic(folder: Path) -> None:
    """A process that dies while it creates a topic, or adds to it, leaves nothing half done that is in the way."""

    def prepare(path: str) -> None:
        Workbench(path).close()

    def act(bench: Workbench) -> None:
        bench.directory.create_topic("new", 1, DEFAULTS)
        bench.directory.add_partitions("new", 2)

    for path, _, died in died_at_each_operation(folder, prepare, act):
        directory = DataDirectory.open(path)
        assert died or directory.topic("new").partitions == 2
        if "new" not in directory.topics():
            directory.create_topic("new", 1, DEFAULTS)
        if directory.topic("new").partitions == 1:
            directory.add_partitions("new", 2)
        for number in range(2):
            log = directory.log("new", number)
            log.append(encode_values([b"a"], [(0, 1_000_000)]))
            log.sync()
            assert log.offsets().high_watermark == 1
        crash(directory)


def deaths_in_deleting_a_topic(folder: Path) -> None:
    """A process that dies while it deletes a topic leaves it whole, or leads the next one to delete it."""

    def prepare(path: str) -> None:
        bench = Workbench(path)
        bench.put(b"a")
        bench.close()

    for path, _, died in died_at_each_operation(
        folder, prepare, lambda bench: bench.directory.delete_topic("t")
    ):
        directory = DataDirectory.open(path)
        if "t" in directory.topics():
            assert died
            assert directory.log("t", 0).offsets().high_watermark == 1
        else:
            directory.create_topic("t", 1, DEFAULTS)
            assert directory.log("t", 0).offsets().log_end_offset == 0
        crash(directory)


def journaled_events(folder: Path) -> None:
    """Whatever event the view shows, at any moment, is in the journal after a power cut at that moment."""
    machine = Machine(folder)
    directory = DataDirectory.open(machine.path, files=machine.files)

    def act() -> None:
        directory.journal.record([OffsetEvent("g", "t", 0, 1, "", 0)])
        with directory.journal.exclusive() as turn:
            turn.record([OffsetEvent("g", "t", 0, 2, "", 0)])
        directory.journal.decide(lambda: [(OffsetEvent.key_of("g", "t", 0), None)], is_lasting=False)
        directory.journal.record([OffsetEvent("g", "t", 0, 3, "", 0)])

    for path, shown in machine.states_during(act, lambda: _committed(directory)):
        after = DataDirectory.open(path)
        assert _committed(after) >= shown, "an event was shown that is gone"
        crash(after)


def _committed(directory: DataDirectory) -> int:
    event = directory.groups.committed("g", "t", 0)
    return 0 if event is None else event.offset


def events_of_the_dead(folder: Path) -> None:
    """What a dead process had journaled is shown to others only when it is on the disk."""
    machine = Machine(folder)
    directory = DataDirectory.open(machine.path, files=machine.files)

    def die(operation: str, path: str) -> None:
        if operation == "fdatasync":
            raise ProcessKilled

    machine.files.before = die
    try:
        directory.journal.record([OffsetEvent("g", "t", 0, 7, "", 0)])
    except ProcessKilled:
        machine.files.before = None
        crash(directory)
    machine.files = WatchedFiles(machine.recorded)
    directory = DataDirectory.open(machine.path, files=machine.files)
    shown = _committed(directory)
    assert shown == 7
    after = DataDirectory.open(machine.started(machine.state()))
    assert _committed(after) == shown
    after.close()


def a_compacted_journal(folder: Path) -> None:
    """Compaction of the journal forgets nothing, whenever the power is cut."""
    journal_module.COMPACT_FROM_BYTES = journal_module.COMPACT_GROWTH = 0
    machine = Machine(folder)
    directory = DataDirectory.open(machine.path, files=machine.files)
    for number in range(3):
        directory.journal.record([OffsetEvent(f"g{number}", "t", 0, number + 1, "", 0)])

    def act() -> None:
        with directory.journal.exclusive() as turn:
            turn.compact()

    for path, _ in machine.states_during(act, seeds=2):
        after = DataDirectory.open(path)
        found = [after.groups.committed(f"g{number}", "t", 0) for number in range(3)]
        assert [event and event.offset for event in found] == [1, 2, 3]
        crash(after)


def records_deleted_on_request(folder: Path) -> None:
    """Records are deleted when that was journaled, and not when it could not be."""
    machine = Machine(folder)
    bench = machine.bench()
    for number in range(4):
        bench.put(b"%d" % number)
    machine.files.fail("pwrite", path=".log", error=28)
    try:
        bench.directory.delete_records("t", 0, 2)
    except LogbrokerError:
        assert bench.values() == [b"0", b"1", b"2", b"3"], "it was refused, and done"
    bench.directory.delete_records("t", 0, 2)
    after = machine.cut()
    assert after.values() == [b"2", b"3"]
    after.close()


def a_file_replaced(folder: Path) -> None:
    """A file that is replaced holds the old content or the new, and the new once that was done."""
    machine = Machine(folder)
    path = f"{machine.root}/file"
    machine.files.replace_file(path, b"old")
    assert machine.state().read_file("/file") == b"old"
    for state_path, _ in machine.states_during(lambda: machine.files.replace_file(path, b"new"), seeds=6):
        content = OsFiles().read_file(f"{Path(state_path).parent}/file")
        assert content in (b"old", b"new")
    assert machine.state().read_file("/file") == b"new"


def producer_ids(folder: Path) -> None:
    """A producer id that was given out is never given out again."""
    machine = Machine(folder)
    directory = DataDirectory.open(machine.path, files=machine.files)
    given = directory.producer_ids.allocate()
    after = DataDirectory.open(machine.started(machine.state()))
    assert after.producer_ids.allocate() > given
    after.close()


def a_view_of_another_boot(folder: Path) -> None:
    """A view that was there when the machine stopped is not believed: it may show what is gone."""
    machine = Machine(folder)
    bench = machine.bench(durability="os")
    bench.put(b"synced")
    bench.put(b"lost", sync=False)
    with bench.directory.view.write() as transaction:
        bench.directory.view.put_meta_bytes(transaction, BOOT_ID, b"another boot")
    crash(bench.directory)
    path = machine.started(machine.state())
    shutil.copytree(f"{machine.path}/view", f"{path}/view", dirs_exist_ok=True)
    after = Workbench(path)
    assert after.log.offsets().log_end_offset == 1
    assert after.values() == [b"synced"]
    after.close()


def system_calls(folder: Path) -> None:
    """A sync is the system call: of what cannot be synced the system says so."""
    files = OsFiles()
    reading, writing = os.pipe()
    for sync in (files.fsync, files.fdatasync):
        assert _is_refused(sync, writing), f"{sync.__name__} does not reach the system"
    os.close(reading)
    os.close(writing)
    if sys.platform == "linux":
        assert _is_refused(files.fsync_directory, "/proc"), "fsync_directory does not reach the system"


def _is_refused(sync: Callable[[Any], None], what: object) -> bool:
    try:
        sync(what)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False
