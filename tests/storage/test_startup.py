"""Opening: whether the view can be believed, and a rebuild that may be cut short anywhere."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from logbroker_storage import startup
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    CorruptionError,
    FileSystemError,
    InvalidRequestError,
    LogbrokerError,
    WriteFailedError,
)
from logbroker_storage.events import OffsetEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.journal import JOURNAL_TOPIC
from logbroker_storage.record_batch import NewRecord, encode_batch
from logbroker_storage.segment_files import segment_name
from logbroker_storage.startup import BOOT_ID, COMPLETE, FORMAT, META_PROPERTIES, boot_id
from logbroker_storage.testing import FaultyFiles, ManualClock, Workbench
from logbroker_storage.testing.faulty_files import WRITES
from logbroker_storage.view import View


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def closed(tmp_path: Path) -> Workbench:
    """A directory with records, commits and a second topic, that nobody has open."""
    bench = Workbench(str(tmp_path / "data"), partitions=2, segment_bytes=100)
    for number in range(4):
        bench.put(b"%d" % number * 40, partition=number % 2, producer_id=1, sequence=number, gaps=True)
    bench.directory.journal.record([OffsetEvent("g", "t", 0, 1, "", 0)])
    bench.directory.view.volatile.update(b"member", lambda _: b"here")
    bench.close()
    return bench


def answers(bench: Workbench) -> tuple[object, ...]:
    return (
        bench.directory.topics(),
        bench.values(partition=0),
        bench.values(partition=1),
        bench.directory.groups.committed("g", "t", 0),
        [bench.partition(number).last_sequence(1) for number in range(2)],
        bench.log.offsets(),
    )


@pytest.fixture
def was_rebuilt(caplog) -> Callable[[], bool]:
    caplog.set_level(logging.INFO, "logbroker.recovery")
    return lambda: any(
        says in caplog.text for says in ("rebuilt from the logs", "rebuilding it from the logs")
    )


def test_a_sound_view_is_used_and_its_volatile_facts_are_forgotten(closed, was_rebuilt):
    closed.open()
    assert not was_rebuilt()
    assert closed.directory.view.volatile.items(b"") == []
    closed.close()


@pytest.mark.parametrize("name", [BOOT_ID, FORMAT, COMPLETE])
@pytest.mark.parametrize("value", [b"\0" * 8, b"", None])
def test_a_view_of_another_boot_or_format_or_that_was_not_finished_is_rebuilt(
    closed, was_rebuilt, name, value
):
    closed.open()
    expected = answers(closed)
    with closed.directory.view.write() as transaction:
        if value is None:
            transaction.delete(name, db=closed.directory.view.tables["meta"])
        else:
            closed.directory.view.put_meta_bytes(transaction, name, value or b"\1" * 8)
    closed.reopen()
    assert was_rebuilt()
    assert answers(closed) == expected
    closed.close()


def test_a_view_that_lies_elsewhere_is_rebuilt_there(closed, tmp_path):
    """Behind a link, or mounted: its folder cannot be removed, and the next boot asks for a rebuild."""
    closed.open()
    expected = answers(closed)
    closed.close()
    elsewhere = tmp_path / "elsewhere"
    os.rename(closed.directory.layout.view, elsewhere)
    os.symlink(elsewhere, closed.directory.layout.view)
    (elsewhere / "data.mdb").write_bytes(b"what an older boot left")
    closed.open()
    assert answers(closed) == expected
    assert os.path.islink(closed.directory.layout.view)
    closed.close()


def test_an_opener_without_address_space_is_told_and_leaves_the_view_to_the_next(closed, was_rebuilt):
    script = """
        import resource, sys
        from logbroker_storage.data_directory import DataDirectory
        from logbroker_storage.errors import WriteFailedError
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        try:
            DataDirectory.open(sys.argv[1])
        except WriteFailedError as error:
            print(error)
    """
    done = run_python(script, closed.path)
    assert "16 GiB of address space" in done.stdout, done.stderr
    assert "ulimit -v" in done.stdout
    closed.open()
    assert not was_rebuilt()
    closed.close()


@pytest.mark.parametrize("beside_others", [True, False])
def test_a_process_of_another_container_that_has_our_id_is_told_of(closed, was_rebuilt, beside_others):
    """LMDB locks the byte of lock.mdb that its process id says."""
    script = """
        import fcntl, os, signal, sys
        from logbroker_storage.data_directory import DataDirectory
        from logbroker_storage.errors import DirectoryInUseError
        our_id, (reading, writing) = os.getpid(), os.pipe()
        other = os.fork()
        if not other:
            fd = os.open(f"{sys.argv[1]}/view/lock.mdb", os.O_RDWR)
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, our_id)
            os.write(writing, b"x")
            signal.pause()
        os.read(reading, 1)
        try:
            DataDirectory.open(sys.argv[1])
        except DirectoryInUseError as error:
            print(error, our_id)
        finally:
            os.kill(other, signal.SIGKILL)
    """
    if beside_others:
        closed.open()
    done = run_python(script, closed.path)
    assert "share one PID namespace" in done.stdout, done.stderr
    assert done.stdout.count(done.stdout.split()[-1]) == 2
    if not beside_others:
        closed.open()
    assert not was_rebuilt()
    closed.close()


def test_an_opener_that_is_interrupted_leaves_the_view_to_the_next(closed, was_rebuilt):
    class Interrupting(OsFiles):
        def allocate(self, fd: int, position: int, size: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        closed.open(files=Interrupting())
    closed.open()
    assert not was_rebuilt()
    closed.close()


def test_a_second_opener_takes_the_view_as_it_is(closed):
    """Whoever finds others there believes them: what they do not believe would have been rebuilt."""
    closed.open()
    with closed.directory.view.write() as transaction:
        closed.directory.view.put_meta_bytes(transaction, BOOT_ID, b"another")
    script = """
        import logging, sys
        logging.basicConfig(level=logging.INFO)
        from logbroker_storage.testing import Workbench
        print(Workbench(sys.argv[1]).values())
    """
    done = run_python(script, closed.path)
    assert (done.returncode, done.stdout) == (0, f"{closed.values()}\n"), done.stderr
    assert "rebuilt" not in done.stderr
    closed.close()


@pytest.mark.parametrize("half_made", [False, True])
def test_who_comes_after_an_opener_that_died_over_the_view_waits_for_the_last_of_its_locks(closed, half_made):
    """The kernel frees a dead process's locks one by one: the presence lock, still exclusive, may be the last."""
    closed.open()
    expected = answers(closed)
    view = closed.directory.layout.view
    closed.close()
    shutil.rmtree(view)
    if half_made:
        os.mkdir(view)
        View(view).close()
    dead = os.open(closed.directory.layout.presence_lock, os.O_RDWR)
    fcntl.flock(dead, fcntl.LOCK_EX)
    freed = threading.Timer(0.2, os.close, [dead])
    freed.start()
    assert answers(closed.open()) == expected
    freed.join()
    closed.close()


def test_the_boot_id_is_the_same_all_along():
    assert boot_id() == boot_id() != b""


@pytest.mark.skipif(sys.platform == "darwin", reason="there is no /proc, and none is needed")
def test_without_proc_opening_says_what_is_missing(closed, monkeypatch):
    monkeypatch.setattr(startup, "KERNELS_BOOT_ID", "/no/proc")
    with pytest.raises(FileSystemError, match="without /proc"):
        closed.open()
    monkeypatch.undo()
    closed.open().close()


def test_the_log_directory_says_what_it_is(closed):
    text = Path(closed.directory.layout.meta_properties).read_text()
    for key, value in META_PROPERTIES.items():
        assert f"{key}={value}" in text


@pytest.mark.parametrize("without_view", [False, True])
def test_a_directory_of_a_newer_version_is_refused_and_stays_as_it_is(closed, without_view):
    closed.open()
    expected = answers(closed)
    closed.close()
    if without_view:
        shutil.rmtree(closed.directory.layout.view)
    properties = Path(closed.directory.layout.meta_properties)
    known = properties.read_text()
    properties.write_text(known.replace("logbroker.format=1", "logbroker.format=2"))
    with pytest.raises(InvalidRequestError, match=r"logbroker\.format=2, and this version knows 1"):
        closed.open()
    properties.write_text(known)
    assert answers(closed.open()) == expected
    closed.close()


def test_records_of_a_topic_that_the_journal_has_lost_are_kept(tmp_path, caplog):
    """What is adopted has no configuration: by the defaults, the cleaner would remove all that is a week old."""
    clock = ManualClock()
    bench = Workbench(str(tmp_path / "data"), clock=clock, retention_ms=-1, segment_bytes=100)
    for _ in range(5):
        bench.put(bytes(90))
    bench.close()
    layout = bench.directory.layout
    for folder in (layout.view, layout.partition(JOURNAL_TOPIC, 0)):
        shutil.rmtree(folder)
    clock.advance(ms=30 * 86_400_000)
    bench.open()
    assert "to be kept for ever until the topic is configured anew" in caplog.text
    bench.directory.maintenance.clean()
    assert bench.values() == [bytes(90)] * 5
    bench.close()


@pytest.mark.parametrize("was_killed", [False, True])
def test_a_view_that_is_older_than_the_logs_takes_no_segment_off_them(closed, was_killed):
    """Put back from a copy, say. Offsets that consumers have seen must not come to name other records."""
    view = closed.directory.layout.view
    shutil.copytree(view, f"{view}.old")
    closed.open()
    for number in range(4, 8):
        closed.put(b"%d" % number * 40, partition=number % 2, producer_id=1, sequence=number, gaps=True)
    closed.directory.journal.record([OffsetEvent("g", "t", 0, 2, "", 0)])
    expected = answers(closed)
    if was_killed:
        closed.crash()
    else:
        closed.close()
    shutil.rmtree(view)
    os.rename(f"{view}.old", view)
    assert answers(closed.open()) == expected
    closed.close()
    assert not [name for name in os.listdir(closed.folder) if "cut" in name]


def test_a_view_that_is_older_than_the_journal_is_not_believed_either(closed):
    """It has no rows for a topic that was made since, and those of another for one that was made again."""
    view = closed.directory.layout.view
    closed.open().directory.create_topic("again", 1, closed.log.config)
    closed.close()
    shutil.copytree(view, f"{view}.old")
    directory = closed.open().directory
    directory.delete_topic("again")
    for name in ("again", "new"):
        directory.create_topic(name, 1, closed.log.config)
        log = directory.log(name, 0)
        log.append(encode_batch([NewRecord(b"a", timestamp_ms=0)]))
        log.sync()
    closed.close()
    shutil.rmtree(view)
    os.rename(f"{view}.old", view)
    directory = closed.open().directory
    assert [end_of(directory, name) for name in ("again", "new")] == [1, 1]
    closed.close()


def end_of(directory: DataDirectory, topic: str) -> int:
    return directory.log(topic, 0).offsets().log_end_offset


def test_a_copy_of_a_partitions_folder_becomes_a_topic_of_its_own(closed):
    """It says the id of the topic that it was copied from: of one id, each would write the other's end."""
    layout = closed.directory.layout
    for copy in ("copy", "copy-of-copy"):
        shutil.copytree(layout.partition("t", 0), layout.partition(copy, 0))
    shutil.rmtree(layout.view)
    directory = closed.open().directory
    assert directory.topics() == ["copy", "copy-of-copy", "t"]
    before = end_of(directory, "copy")
    assert before == end_of(directory, "t")
    closed.put(b"more")
    assert (end_of(directory, "t"), end_of(directory, "copy")) == (before + 1, before)
    directory.delete_topic("copy")
    assert end_of(directory, "t") == before + 1
    assert end_of(directory, "copy-of-copy") == before
    closed.close()
    directory = closed.reopen(without_view=True).directory
    assert (end_of(directory, "t"), end_of(directory, "copy-of-copy")) == (before + 1, before)
    closed.close()


def test_topics_that_are_adopted_without_metadata_have_ids_of_their_own(closed):
    layout = closed.directory.layout
    names = ["one-and-the-same-beginning-1", "one-and-the-same-beginning-2"]
    for name in names:
        shutil.copytree(layout.partition("t", 0), layout.partition(name, 0))
        os.unlink(f"{layout.partition(name, 0)}/partition.metadata")
    shutil.rmtree(layout.view)
    directory = closed.open().directory
    assert len({directory.topic(name).topic_id for name in ("t", *names)}) == 3
    closed.close()


def test_a_folder_behind_a_topic_that_was_being_deleted_does_not_bring_it_back(closed):
    layout = closed.directory.layout
    stranger = layout.partition("t", 2)
    shutil.copytree(layout.partition("t", 0), stranger)
    directory = closed.open().directory
    directory.journal.record([msgspec.structs.replace(directory.topic("t"), state="deleting")])
    closed.crash()
    shutil.rmtree(layout.view)
    assert "t" not in closed.open().directory.topics()
    assert [name for name in os.listdir(layout.logs) if name.startswith("t-")] == ["t-2"]
    directory = closed.reopen(without_view=True).directory
    assert directory.log("t", 2).offsets().log_end_offset == 2
    closed.close()


@pytest.mark.parametrize("copy", [(JOURNAL_TOPIC, 1), ("notes", 0)])
def test_a_copy_of_the_journal_is_not_taken_for_it(closed, copy):
    layout = closed.directory.layout
    shutil.copytree(layout.partition(JOURNAL_TOPIC, 0), layout.partition(*copy))
    for offset in range(1, 4):
        shutil.rmtree(layout.view)
        closed.open()
        assert JOURNAL_TOPIC not in closed.directory.topics()
        assert closed.directory.groups.committed("g", "t", 0).offset == offset
        closed.directory.journal.record([OffsetEvent("g", "t", 0, offset + 1, "", 0)])
        closed.close()


@pytest.mark.parametrize("lost", ["the log", "half of the log", "the folder"])
def test_a_journal_that_was_lost_is_written_again_from_the_view(closed, lost):
    closed.open()
    expected = answers(closed)
    closed.close()
    folder = Path(closed.directory.layout.partition(JOURNAL_TOPIC, 0))
    (log,) = folder.glob("*.log")
    if lost == "the folder":
        shutil.rmtree(folder)
    elif lost == "the log":
        log.unlink()
    else:
        os.truncate(log, log.stat().st_size // 2)
    assert answers(closed.open()) == expected
    closed.close()
    shutil.rmtree(closed.directory.layout.view)
    assert answers(closed.open()) == expected
    closed.close()


def test_a_journal_that_could_not_be_written_again_is_by_the_next_open(closed):
    """The first one has made the log as long as the view says, so it no longer tells that something is lost."""
    closed.open()
    expected = answers(closed)
    closed.close()
    (log,) = Path(closed.directory.layout.partition(JOURNAL_TOPIC, 0)).glob("*.log")
    os.truncate(log, log.stat().st_size // 2)
    refusing = FaultyFiles(OsFiles()).fail(WRITES, path=".log", error=errno.ENOSPC, forever=True)
    with pytest.raises(WriteFailedError):
        Workbench(closed.path, files=refusing)
    assert answers(closed.open()) == expected
    closed.close()
    shutil.rmtree(closed.directory.layout.view)
    assert answers(closed.open()) == expected
    closed.close()


def test_a_partition_whose_folder_is_gone_leaves_the_others_readable(closed):
    shutil.rmtree(closed.directory.layout.partition("t", 1))
    closed.open()
    assert closed.directory.topics()
    assert closed.values(partition=0) == [b"0" * 40, b"2" * 40]
    with pytest.raises(CorruptionError):
        closed.values(partition=1)
    closed.put(b"new", partition=1)
    assert closed.values(2, partition=1) == [b"new"]
    closed.close()


def test_a_partition_s_folder_and_the_journal_may_be_gone_together(closed):
    """The view is rebuilt because of the folder, and was the last to know what the journal said."""
    layout = closed.directory.layout
    for folder in (layout.partition("t", 1), layout.partition(JOURNAL_TOPIC, 0)):
        shutil.rmtree(folder)
    closed.open()
    assert closed.directory.groups.committed("g", "t", 0).offset == 1
    assert closed.directory.topic("t").config == {"segment.bytes": "100"}
    assert closed.values(partition=0) == [b"0" * 40, b"2" * 40]
    closed.close()


DIE_WHILE_OPENING = """
    import os, shutil, sys
    from logbroker_storage.files import OsFiles
    from logbroker_storage.testing import FaultyFiles, Workbench
    from logbroker_storage.testing.faulty_files import ProcessKilled
    path = sys.argv[1]

    def open_and_die(operation):
        try:
            Workbench(path, files=FaultyFiles(OsFiles()).kill(at=operation))
        except ProcessKilled:
            os._exit(9)
        os._exit(0)

    def open_and_look():
        bench = Workbench(path)
        found = [bench.values(partition=number) for number in range(2)], bench.directory.topics()
        os._exit(0 if repr(found) == sys.argv[2] else 1)

    def in_child(work, *arguments):
        child = os.fork()
        if not child:
            work(*arguments)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    operation, died = 1, 9
    while died == 9:
        died = in_child(open_and_die, operation)
        if died == 9 and operation % 3 == 0:  # else the next one dies on its way, too
            assert in_child(open_and_look) == 0, operation
            shutil.rmtree(path + "/view")
        operation += 1
    assert died == 0
    print(operation)
"""


def test_a_rebuild_may_die_at_any_operation(closed):
    closed.open()
    expected = answers(closed)
    values = [closed.values(partition=number) for number in range(2)], closed.directory.topics()
    closed.close()
    logs = closed.contents()
    shutil.rmtree(closed.directory.layout.view)
    done = run_python(DIE_WHILE_OPENING, closed.path, repr(values))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
    assert answers(closed.open()) == expected
    assert closed.contents() == logs
    closed.close()


@pytest.mark.parametrize("operation", ["open", "pread", "fsync", "listdir", "pwrite"])
def test_a_rebuild_that_fails_can_be_tried_again_in_the_same_process(closed, operation):
    closed.open()
    expected = answers(closed)
    closed.close()
    for at in range(1, 60, 4):
        shutil.rmtree(closed.directory.layout.view, ignore_errors=True)
        before = len(os.listdir("/dev/fd"))
        files = FaultyFiles(OsFiles()).fail(operation, error=errno.EIO, at=at)
        try:
            closed.open(files=files)
        except (LogbrokerError, OSError):
            assert len(os.listdir("/dev/fd")) <= before + 3, at
        else:
            files.heal()
            closed.close()
        closed.open()
        assert answers(closed) == expected, at
        closed.close()


def test_locks_and_signals_of_what_is_gone_are_removed_by_the_first_who_opens(closed: Workbench) -> None:
    closed.open()
    layout = closed.directory.layout
    closed.directory.create_topic("gone", 2, closed.log.config)
    closed.directory.log("gone", 1).sync()
    with closed.directory.log("gone", 1).append_lock:
        pass
    closed.directory.signal_path("group-gone")
    closed.put(b"x")
    closed.directory.delete_topic("gone")
    assert any(name.startswith("gone-") for name in os.listdir(layout.locks))
    closed.close()
    inode = os.stat(f"{layout.locks}/t-0.append").st_ino
    closed.open()
    assert not any(name.startswith("gone-") for name in os.listdir(layout.locks))
    assert os.listdir(layout.signals) == []
    assert os.stat(f"{layout.locks}/t-0.append").st_ino == inode
    closed.put(b"y")
    closed.close()


def test_a_segment_that_a_killed_roll_left_above_the_last_one_goes_with_the_next_open(
    closed: Workbench, was_rebuilt: Callable[[], bool]
) -> None:
    files = FaultyFiles(OsFiles())
    closed.open(files=files)
    folder = Path(closed.folder)
    expected, had = closed.values(), sorted(folder.glob("*.log"))
    above = segment_name(closed.log.offsets().log_end_offset)
    files.fail("open", path=f"{above}.index", error=errno.EIO)  # the roll has made the log file, no more
    with pytest.raises(LogbrokerError):
        closed.put(b"x" * 60)
    closed.crash()
    assert sorted(folder.glob("*.log")) == [*had, folder / f"{above}.log"]
    closed.open()
    assert not was_rebuilt()
    assert sorted(folder.glob("*.log")) == had
    assert closed.values() == expected
    closed.put(b"x" * 60)
    assert closed.values() == [*expected, b"x" * 60]
    closed.close()
