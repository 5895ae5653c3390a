"""Who has the directory open: exact at once, however a process ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.processes import ProcessRegistry
from logbroker_storage.testing import Workbench
from logbroker_storage.view import View
from logbroker_storage.wakeup import Waiter


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "processes")


@pytest.fixture
def registry(folder: str) -> Iterator[ProcessRegistry]:
    registry = ProcessRegistry(OsFiles(), folder)
    yield registry
    registry.close()


MEMBER = """
    import sys
    from logbroker_storage.files import OsFiles
    from logbroker_storage.processes import ProcessRegistry
    registry = ProcessRegistry(OsFiles(), sys.argv[1])
    print(registry.process_id, flush=True)
    sys.stdin.readline()
    registry.close()
    print("left", flush=True)
    sys.stdin.readline()
"""


def start(script: str, argument: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_we_are_alive_and_nobody_else_is(registry):
    assert registry.alive(registry.process_id)
    assert not registry.alive("1-00")


def test_ids_are_unique_even_within_one_process(folder, registry):
    other = ProcessRegistry(OsFiles(), folder)
    assert other.process_id != registry.process_id
    assert registry.alive(other.process_id)
    other.close()
    assert not registry.alive(other.process_id)


def test_a_killed_process_is_dead_at_once(folder, registry):
    process, process_id = start(MEMBER, folder)
    assert registry.alive(process_id)
    process.send_signal(signal.SIGSTOP)
    assert registry.alive(process_id)  # stopped is not dead
    process.kill()
    process.wait()
    assert not registry.alive(process_id)
    end(process)


def test_a_process_that_left_is_not_alive(folder, registry):
    process, process_id = start(MEMBER, folder)
    print("go", file=process.stdin, flush=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "left\n"
    assert not registry.alive(process_id)
    end(process)


def test_sweeping_removes_the_dead_and_only_them(folder, registry):
    living, living_id = start(MEMBER, folder)
    dead, dead_id = start(MEMBER, folder)
    end(dead)
    registry.sweep()
    assert sorted(os.listdir(folder)) == sorted([registry.process_id, living_id])
    assert not registry.alive(dead_id)
    assert registry.alive(living_id)
    end(living)


def test_probes_by_many_do_not_make_a_dead_process_look_alive(folder, registry):
    """A probe takes the lock for a moment; another one must not take that for life."""
    dead, dead_id = start(MEMBER, folder)
    end(dead)
    prober = f"""
        import sys
        from logbroker_storage.files import OsFiles
        from logbroker_storage.processes import ProcessRegistry
        registry = ProcessRegistry(OsFiles(), sys.argv[1])
        print("ready", flush=True)
        print(any(registry.alive({dead_id!r}) for _ in range(5000)), flush=True)
    """
    process, _ = start(prober, folder)
    assert not any(registry.alive(dead_id) for _ in range(5000))
    assert process.communicate()[0] == "False\n"


def test_a_probe_is_quick(folder, registry):
    process, process_id = start(MEMBER, folder)
    began = time.thread_time()  # which is this test's alone, however busy the machine
    for _ in range(1000):
        registry.alive(process_id)
    assert (time.thread_time() - began) / 1000 < 0.0005
    end(process)


def test_closing_when_somebody_deleted_the_folder_is_fine(folder):
    registry = ProcessRegistry(OsFiles(), folder)
    os.unlink(f"{folder}/{registry.process_id}")
    os.rmdir(folder)
    registry.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs inotify")
def test_a_waiter_learns_of_a_process_s_death(tmp_path):
    bench = Workbench(str(tmp_path / "data"))
    script = """
        import sys
        from logbroker_storage.testing import Workbench
        bench = Workbench(sys.argv[1])
        print(bench.directory.process_id, flush=True)
        sys.stdin.readline()
    """
    process, process_id = start(script, bench.path)
    waiter = Waiter(bench.directory)
    assert waiter.watch_process(process_id)
    assert not waiter.wait(0.02)
    process.kill()
    assert waiter.wait(10)
    end(process)  # the kernel tells of the file a moment before it gives back its lock
    assert not bench.directory.process_alive(process_id)
    waiter.close()
    bench.close()


HOLDS = """
import fcntl, sys, time
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_SH)
print("held", flush=True)
time.sleep(0.3)
"""


def test_who_died_over_making_the_view_is_waited_for(tmp_path):
    """The kernel frees a dead process's locks one by one: the presence lock may be held for a moment yet."""
    path = str(tmp_path / "data")
    directory = DataDirectory.open(path)
    directory.create_topic("t", 1, LogConfig.parse({}))
    directory.close()
    shutil.rmtree(f"{path}/view")
    View(f"{path}/view").close()  # made, but nothing is in it yet
    with subprocess.Popen([sys.executable, "-c", HOLDS, f"{path}/lock"], stdout=subprocess.PIPE) as dying:
        assert dying.stdout is not None
        assert dying.stdout.readline() == b"held\n"
        directory = DataDirectory.open(path)
    assert directory.topics() == ["t"]
    directory.close()
