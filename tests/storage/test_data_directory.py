"""A data directory in one process, in many, and on both sides of a fork."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    DirectoryInUseError,
    FencedError,
    LogbrokerError,
    StorageFailedError,
    TopicNotFoundError,
)
from logbroker_storage.events import GroupEvent, OffsetEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.testing import FaultyFiles, Workbench
from logbroker_storage.testing.workbench import crash


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def directory(path: str) -> Iterator[DataDirectory]:
    directory = DataDirectory.open(path)
    yield directory
    directory.close()


def start_python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(script: str, *arguments: str) -> str:
    """What *script* prints in a process of its own."""
    process = start_python(script, *arguments)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output.strip()


# One process ------------------------------------------------------------------------------------------


def test_one_process_has_one_object_for_a_directory_however_it_is_named(path, directory, tmp_path):
    (tmp_path / "link").symlink_to(path)
    again = DataDirectory.open(path + "/../data")
    linked = DataDirectory.open(str(tmp_path / "link"))
    assert again is linked is directory
    again.close()
    linked.close()
    assert not directory.closed


def test_the_last_user_closes_it_and_closing_again_does_nothing(path):
    first, second = DataDirectory.open(path), DataDirectory.open(path)
    first.close()
    assert not second.closed
    second.close()
    second.close()
    assert second.closed
    third = DataDirectory.open(path)
    assert third is not second
    third.close()


def test_a_directory_that_cannot_be_made_is_an_error_that_says_why(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LogbrokerError, match="cannot be made"):
        DataDirectory.open(str(tmp_path / "file"))
    with pytest.raises(LogbrokerError, match="cannot be made"):
        DataDirectory.open(str(tmp_path / "file" / "data"))


def test_a_directory_in_the_place_of_its_properties_is_named(path):
    Workbench(path).close()
    properties = Path(path, "logs", "meta.properties")
    properties.unlink()
    properties.mkdir()
    with pytest.raises(LogbrokerError, match=f"cannot be made: .*{properties}"):
        DataDirectory.open(path)


@pytest.mark.parametrize("failing", range(1, 12))
def test_an_opening_that_fails_leaves_nothing_behind(path, failing):
    """Whatever fails to open, another opening of this process, and then another process, get in."""
    Workbench(path).close()
    files = FaultyFiles(OsFiles()).fail("open", error=errno.EMFILE, at=failing)
    before = len(os.listdir("/dev/fd"))
    try:
        DataDirectory.open(path, files=files).close()
    except (LogbrokerError, OSError):
        assert len(os.listdir("/dev/fd")) == before
    bench = Workbench(path)
    bench.put(b"a")
    bench.close()
    assert (
        run_python(f"from logbroker_storage.testing import Workbench; print(Workbench({path!r}).values())")
        == "[b'a']"
    )


def test_closing_lets_go_of_the_directory_even_if_its_last_sync_fails(path):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    bench.put(b"a", sync=False)
    files.fail("fdatasync", path=".log", error=errno.EIO)
    with pytest.raises(StorageFailedError):
        bench.close()
    assert bench.directory.closed
    assert bench.open().values() == [b"a"]
    bench.close()


@pytest.mark.parametrize("operation", ["open", "pwrite", "fsync", "rename"])
def test_closing_lets_go_of_the_directory_even_if_its_recovery_points_cannot_be_written(path, operation):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    bench.put(b"a")
    files.fail(operation, path=".snapshot.tmp", error=errno.EIO, forever=True)
    files.fail(operation, path=".tmp", error=errno.ENOSPC, forever=True)
    files.fail(operation, path="recovery-point-offset-checkpoint", error=errno.ENOSPC, forever=True)
    bench.close()
    assert bench.directory.closed
    assert bench.open().values() == [b"a"]
    assert bench.reopen(without_view=True).values() == [b"a"]
    bench.close()


def test_a_log_is_the_same_object_until_its_topic_is_another(directory):
    directory.create_topic("t", 1, LogConfig.parse({}))
    log = directory.log("t", 0)
    assert directory.log("t", 0) is log
    directory.delete_topic("t")
    with pytest.raises(TopicNotFoundError):
        directory.log("t", 0)
    directory.create_topic("t", 1, LogConfig.parse({}))
    assert directory.log("t", 0) is not log
    for number in (1, -1):
        with pytest.raises(TopicNotFoundError):
            directory.log("t", number)


# Groups and producers ---------------------------------------------------------------------------------


def test_committed_offsets_are_kept_by_group(directory):
    commits = [OffsetEvent("g", "t", n, 10 + n, "m", 0) for n in (2, 10, 1)] + [
        OffsetEvent("g2", "t", 1, 5, "", 0)
    ]
    directory.journal.record(commits)
    assert [event.partition for event in directory.groups.committed_offsets("g")] == [1, 2, 10]
    assert directory.groups.committed("g2", "t", 1) == commits[3]
    assert directory.groups.committed("g", "t", 3) is None
    directory.journal.record([GroupEvent("g3", ["t"], 0)])
    assert directory.groups.names() == ["g", "g2", "g3"]


def test_producer_ids_are_never_given_twice(path, directory):
    ours = [directory.producer_ids.allocate() for _ in range(1500)]
    theirs = run_python(
        f"""
        from logbroker_storage.data_directory import DataDirectory
        directory = DataDirectory.open({path!r})
        print(*[directory.producer_ids.allocate() for _ in range(1500)])
        """
    ).split()
    crash(directory)
    again = DataDirectory.open(path)
    later = [again.producer_ids.allocate() for _ in range(10)]
    again.close()
    everybodys = [*ours, *map(int, theirs), *later]
    assert len(set(everybodys)) == len(everybodys)


def test_who_waits_for_the_journal_to_reserve_producer_ids_keeps_no_logs_from_its_holder(directory):
    directory.create_topic("t", 1, LogConfig())
    with directory.journal.exclusive():
        allocating = threading.Thread(target=directory.producer_ids.allocate)
        allocating.start()
        allocating.join(0.2)
        assert allocating.is_alive()
        asking = threading.Thread(target=directory.log, args=("t", 0))
        asking.start()
        asking.join(10)
        assert not asking.is_alive()
    allocating.join(10)
    assert not allocating.is_alive()


def test_each_holder_of_a_name_has_a_higher_epoch_and_keeps_its_producer_ids(path, directory):
    assert directory.producer_ids.named("p") is None
    first = directory.producer_ids.open_named("p")
    producer_id = directory.producer_ids.add_block("p", first.epoch, 0)
    assert directory.producer_ids.add_block("p", first.epoch, 0) == producer_id
    second = directory.producer_ids.open_named("p")
    assert (second.epoch, second.producer_ids) == (first.epoch + 1, {0: producer_id})
    with pytest.raises(FencedError):
        directory.producer_ids.add_block("p", first.epoch, 1)
    directory.close()
    shutil.rmtree(directory.layout.view)
    again = DataDirectory.open(path)
    assert again.producer_ids.named("p") == second
    again.close()


def test_volatile_values_live_as_long_as_somebody_has_the_directory_open(path, directory):
    directory.view.volatile.update(b"member", lambda _: b"here")
    script = f"""
        from logbroker_storage.data_directory import DataDirectory
        print(DataDirectory.open({path!r}).view.volatile.value(b"member"))
    """
    assert run_python(script) == "b'here'"
    directory.close()
    assert run_python(script) == "None"


# Many processes ---------------------------------------------------------------------------------------

OPEN_TOGETHER = """
    import sys
    from logbroker_storage.errors import TopicExistsError
    from logbroker_storage.log_config import LogConfig
    from logbroker_storage.data_directory import DataDirectory
    from logbroker_storage.testing import Workbench
    path, name = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    directory = DataDirectory.open(path)
    try:
        directory.create_topic("t", 2, LogConfig.parse({}))
    except TopicExistsError:
        pass
    bench = Workbench(path)
    for number in range(5):
        bench.put(name.encode(), producer_id=int(name), sequence=number, partition=number % 2, gaps=True)
    bench.close()
    directory.close()
    print("done", flush=True)
"""


@pytest.mark.parametrize("existing", ["nothing", "no view", "a directory"])
def test_eight_processes_open_a_directory_at_once(path, existing):
    if existing != "nothing":
        bench = Workbench(path, partitions=2)
        bench.close()
        if existing == "no view":
            shutil.rmtree(bench.directory.layout.view)
    processes = [start_python(OPEN_TOGETHER, path, str(name)) for name in range(8)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [output for output, _ in outputs] == ["done\n"] * 8, outputs
    bench = Workbench(path)
    assert bench.directory.topics() == ["t"]
    values = bench.values(partition=0) + bench.values(partition=1)
    assert sorted(values) == sorted([b"%d" % name for name in range(8)] * 5)
    bench.close()


def test_a_process_sees_at_once_what_another_does(path, directory):
    directory.create_topic("ours", 1, LogConfig.parse({}))
    seen = run_python(
        f"""
        from logbroker_storage.data_directory import DataDirectory
        from logbroker_storage.events import OffsetEvent
        from logbroker_storage.log_config import LogConfig
        directory = DataDirectory.open({path!r})
        print(*directory.topics())
        directory.create_topic("theirs", 1, LogConfig.parse({{}}))
        directory.delete_topic("ours")
        directory.journal.record([OffsetEvent("g", "theirs", 0, 7, "", 0)])
        directory.close()
        """
    )
    assert seen == "ours"
    assert directory.topics() == ["theirs"]
    committed = directory.groups.committed("g", "theirs", 0)
    assert committed is not None
    assert committed.offset == 7


def test_with_the_view_deleted_under_an_open_directory_nobody_else_gets_in(path):
    bench = Workbench(path)
    bench.put(b"a")
    shutil.rmtree(bench.directory.layout.view)
    script = f"""
        from logbroker_storage.data_directory import DataDirectory
        from logbroker_storage.errors import DirectoryInUseError
        try:
            DataDirectory.open({path!r})
        except DirectoryInUseError as error:
            print("in use" if "view" in str(error) else error)
    """
    assert run_python(script) == "in use"
    assert bench.values() == [b"a"]
    bench.close()
    assert bench.open().values() == [b"a"]
    bench.close()
    assert issubclass(DirectoryInUseError, LogbrokerError)


def test_opening_after_a_clean_close_reads_no_log(path):
    """Whatever is in it, and however many there are."""
    bench = Workbench(path, partitions=100)
    for number in range(0, 100, 5):
        bench.put(*[bytes(1000)] * 100, partition=number)
    bench.close()
    files = FaultyFiles(OsFiles())
    bench.open(files=files)
    print(files.calls)
    reads, every_call = files.calls["pread"], files.calls.total()
    bench.close()
    assert reads < 20
    assert every_call < 100 * 10


def test_an_interrupt_in_the_middle_of_closing_leaves_the_directory_to_be_opened_again(path, monkeypatch):
    bench = Workbench(path)
    bench.put(b"v")
    close = bench.directory.maintenance.close

    def interrupted() -> None:
        close()
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.directory.maintenance, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.close()
    assert bench.open().values() == [b"v"]
    bench.close()


# Fork -------------------------------------------------------------------------------------------------

FORK = """
    import os, sys, threading, signal, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # that this process has threads is the point
    from logbroker_storage.data_directory import DataDirectory
    from logbroker_storage.errors import ForkedError
    from logbroker_storage.events import OffsetEvent
    from logbroker_storage.locks import ProcessLock
    from logbroker_storage.log_config import LogConfig
    from logbroker_storage.testing import Workbench
    from logbroker_storage.wakeup import Waiter
    path = sys.argv[1]

    def in_child(work):
        child = os.fork()
        if not child:
            signal.alarm(20)  # a child that hangs dies of it
            try:
                work()
                os._exit(0)
            except BaseException:
                import traceback
                os.write(1, traceback.format_exc().encode())
                os._exit(1)
        return child

    def succeeded(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def run_forking(script: str, path: str) -> str:
    return run_python(textwrap.dedent(FORK) + textwrap.dedent(script), path)


def test_in_a_forked_child_every_use_of_what_was_inherited_is_an_error_and_none_hangs(path):
    """The parent's other threads hold every lock at the moment of the fork."""
    script = """
        bench = Workbench(path)
        bench.put(b"a", producer_id=1, sequence=0)
        directory, log, journal, view = bench.directory, bench.log, bench.directory.journal, bench.directory.view
        reader, waiter, batch = log.reader(0), Waiter(directory), bench.batch(b"b")
        waiter.watch_partition("t", 0)
        uses = [
            lambda: directory.log("t", 0), lambda: directory.topic("t"), directory.topics, directory.topics_version,
            lambda: directory.create_topic("u", 1, LogConfig.parse({})), lambda: directory.delete_topic("t"),
            lambda: directory.alter_topic("t", {}), lambda: directory.add_partitions("t", 2), directory.open_logs,
            lambda: directory.delete_records("t", 0, 1),
            lambda: directory.groups.committed("g", "t", 0), lambda: directory.groups.committed_offsets("g"),
            lambda: directory.groups.names(), lambda: directory.groups.all(),
            lambda: directory.producer_ids.allocate(), lambda: directory.producer_ids.named("p"),
            lambda: directory.producer_ids.open_named("p"), lambda: directory.producer_ids.add_block("p", 0, 0),
            lambda: directory.process_alive("1-x"), lambda: directory.signal("s"), lambda: directory.signal_path("s"),
            lambda: directory.view.volatile.value(b"k"), lambda: directory.view.volatile.update(b"k", lambda v: v),
            lambda: directory.view.volatile.items(b""), directory.checkpoint, lambda: directory.journal.record([]),
            lambda: log.append(batch), log.sync, log.offsets, lambda: log.last_sequence(1), log.size_bytes,
            lambda: log.take_over(1, 1), log.roll_now, lambda: log.delete_before(0),
            lambda: log.offset_for_timestamp(0), log.release_files, log.adopt, log.signal_paths,
            reader.read, lambda: waiter.wait(0.01), lambda: waiter.watch_partition("t", 0),
            lambda: waiter.watch_signal("s"), lambda: waiter.watch_process("1-x"),
        ]

        def child():
            for number, use in enumerate(uses):
                try:
                    use()
                except ForkedError:
                    continue
                raise AssertionError(f"use {number} did not raise")
            reader.close()
            waiter.close()
            waiter.wake()
            directory.close()

        locks = [log.append_lock, log.sync_lock, journal.lock, journal.log.append_lock, journal.log.sync_lock,
                 directory._presence.opening_lock, directory._logs_lock]
        held, forked = threading.Barrier(len(locks) + 1), threading.Event()

        def hold(lock):
            with lock:
                held.wait()
                forked.wait()

        threads = [threading.Thread(target=hold, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        held.wait()
        pid = in_child(child)
        forked.set()
        for thread in threads:
            thread.join()
        print(succeeded(pid))
        bench.put(b"b", producer_id=1, sequence=1)
        print(bench.values(), waiter.wait(0))
        waiter.close()
        bench.close()
    """
    assert run_forking(script, path) == "True\n[b'a', b'b'] True"


def test_a_forked_child_that_opens_the_directory_anew_and_its_parent_both_go_on(path):
    script = """
        bench = Workbench(path)
        stop = threading.Event()
        count = 0

        def append():
            global count
            while not stop.is_set():
                bench.put(b"parent", producer_id=1, sequence=count)
                count += 1

        thread = threading.Thread(target=append)
        thread.start()

        def child(number):
            mine = Workbench(path)
            assert mine.directory is not bench.directory
            assert mine.directory.process_id != bench.directory.process_id
            assert mine.directory.process_alive(bench.directory.process_id)
            for sequence in range(20):
                mine.put(b"child", producer_id=10 + number, sequence=sequence)
            mine.close()

        results = [succeeded(in_child(lambda: child(number))) for number in range(5)]
        stop.set()
        thread.join()
        values = bench.values()
        print(results == [True] * 5, values.count(b"child"), values.count(b"parent") == count)
        bench.close()
    """
    assert run_forking(script, path) == "True 100 True"


def test_a_forked_child_opens_directories_though_one_that_it_inherited_was_deleted(path):
    script = """
        import shutil
        gone = Workbench(path + "-gone")
        shutil.rmtree(path + "-gone")

        def child():
            mine = Workbench(path)
            mine.put(b"child")
            mine.close()

        print(succeeded(in_child(child)), Workbench(path).values())
    """
    assert run_forking(script, path) == "True [b'child']"


def test_a_forked_child_keeps_no_lock_of_a_parent_that_is_killed(path):
    script = """
        bench = Workbench(path, retention_ms=-1)
        bench.put(b"a")
        directory, log = bench.directory, bench.log
        stop = threading.Event()
        cleaner = directory.maintenance._cleaner._lock
        held = threading.Barrier(5)

        def hold(lock):
            with lock:
                held.wait()
                stop.wait()

        for lock in (log.append_lock, log.sync_lock, directory.journal.lock, cleaner):
            threading.Thread(target=hold, args=(lock,), daemon=True).start()
        held.wait()
        read_end, write_end = os.pipe()

        def child():
            os.write(write_end, b"x")
            signal.alarm(0)
            time.sleep(600)

        pid = in_child(child)
        os.read(read_end, 1)
        print(pid, directory.process_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = start_python(textwrap.dedent(FORK) + textwrap.dedent(script), path)
    assert process.stdout is not None
    child, parents_id = process.stdout.readline().split()
    process.wait(timeout=20)
    try:
        done = []

        def use() -> None:
            bench = Workbench(path)  # alone, or the child would keep the parent's presence
            done.append(bench.directory.process_alive(parents_id))
            bench.put(b"b")
            bench.directory.journal.record([OffsetEvent("g", "t", 0, 1, "", 0)])
            done.append(bench.directory.maintenance.clean())
            done.append(bench.values())
            bench.close()

        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(20)
        assert done == [False, True, [b"a", b"b"]]
    finally:
        os.kill(int(child), 9)
        process.communicate()


def test_nothing_is_remembered_of_topics_that_another_process_has_deleted(path, directory):
    """A process that lives for long sees any number of them come and go."""
    change = """
        import sys
        from logbroker_storage.data_directory import DataDirectory
        from logbroker_storage.log_config import LogConfig
        directory = DataDirectory.open(sys.argv[1])
        if sys.argv[2] == "create":
            directory.create_topic("passing", 3, LogConfig())
        else:
            directory.delete_topic("passing")
        directory.close()
    """
    directory.open_logs()
    before = set(directory.view.partitions._known_ends), set(directory.view.partitions._known_syncs)
    run_python(change, path, "create")
    for partition in range(3):
        directory.log("passing", partition).state()
    assert len(directory.view.partitions._known_ends) == len(before[0]) + 3
    run_python(change, path, "delete")
    directory.open_logs()
    assert (set(directory.view.partitions._known_ends), set(directory.view.partitions._known_syncs)) == before
