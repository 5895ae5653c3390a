"""Locks that hold across threads and processes, and go with whoever held them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from logbroker_storage.files import OsFiles
from logbroker_storage.locks import ProcessLock

HOLDER = """
    import sys
    from logbroker_storage.files import OsFiles
    from logbroker_storage.locks import ProcessLock
    with ProcessLock(OsFiles(), sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
    print("released", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def lock(tmp_path: Path) -> ProcessLock:
    return ProcessLock(OsFiles(), str(tmp_path / "lock"))


@pytest.fixture
def holder(lock) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), lock.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_one_thread_at_a_time(lock):
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with lock:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    lock.close()


def test_one_process_at_a_time(lock, holder):
    assert not lock.try_acquire()
    holder.stdin.write("go\n")
    holder.stdin.flush()
    with lock:
        assert holder.stdout.readline() == "released\n"
    lock.close()


def test_a_killed_process_holds_nothing(lock, holder):
    taken = threading.Event()

    def take() -> None:
        with lock:
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.02)
    holder.send_signal(signal.SIGKILL)
    assert taken.wait(10)
    thread.join()
    lock.close()


def test_trying_does_not_wait(lock):
    with lock:
        assert not lock.try_acquire()
    assert lock.try_acquire()
    assert not lock.try_acquire()
    lock.release()
    with lock:
        pass
    lock.close()


def test_an_error_inside_gives_the_lock_back(lock):
    with pytest.raises(ValueError), lock:
        raise ValueError
    assert lock.try_acquire()
    lock.release()
    lock.close()


def test_a_lock_that_cannot_be_opened_is_free_for_the_next(tmp_path):
    lock = ProcessLock(OsFiles(), str(tmp_path / "missing" / "lock"))
    for _ in range(2):
        with pytest.raises(FileNotFoundError), lock:
            pass
        with pytest.raises(FileNotFoundError):
            lock.try_acquire()
    (tmp_path / "missing").mkdir()
    with lock:
        pass
    lock.close()


def test_a_closed_lock_opens_again_when_it_is_taken(tmp_path):
    opened: list[str] = []
    lock = ProcessLock(OsFiles(), str(tmp_path / "lock"), opened=lambda: opened.append("opened"))
    for _ in range(2):
        with lock:
            pass
        with lock:
            pass
        lock.close()
    assert opened == ["opened"] * 2


def test_closing_if_idle_does_its_action_only_when_nobody_is_inside(lock):
    actions: list[str] = []
    with lock:
        assert not lock.close_if_idle(lambda: actions.append("never"))
    assert lock.close_if_idle(lambda: actions.append("once"))
    assert actions == ["once"]


def test_the_file_is_there_to_be_watched_before_the_lock_was_ever_taken(lock):
    lock.ensure_file()
    lock.ensure_file()
    assert os.path.exists(lock.path)
