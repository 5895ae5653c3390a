"""Locks that hold across threads and processes, and go with whoever held them."""

from __future__ import annotations

import contextlib
import dis
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.events import OffsetEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.locks import ProcessLock
from logbroker_storage.log_config import LogConfig
from logbroker_storage.testing import UnsyncedFiles, Workbench
from logbroker_storage.view import View

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


# Interrupts ---------------------------------------------------------------------------------------------------


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupted(action: Callable[[], object], step: int) -> bool:
    """Do *action*, with an exception at the *step*-th place in ``locks`` where CPython looks for signals.

    These are the start of a function and what comes behind a call. False when there are fewer places.
    """
    left = step

    def at_a_place() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Interrupt

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith("/locks.py"):
            return None
        frame.f_trace_opcodes = True
        code = frame.f_code.co_code
        at = frame.f_lasti
        if event == "call" or (event == "opcode" and at >= 2 and is_behind_a_call(code, at)):
            at_a_place()
        return trace

    sys.settrace(trace)
    try:
        action()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def is_behind_a_call(code: bytes, at: int) -> bool:
    before = at - 2
    while before >= 0 and dis.opname[code[before]] == "CACHE":
        before -= 2
    return dis.opname[code[before]].startswith("CALL")


def take(lock: ProcessLock) -> None:
    with lock:
        pass


def try_to_take(lock: ProcessLock) -> None:
    if lock.try_acquire():
        lock.release()


def is_free_for_other_processes(lock: ProcessLock) -> bool:
    fd = os.open(lock.path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logbroker_storage.locks.LOOK_S", 0.01)


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("way", [take, try_to_take, ProcessLock.close])
def test_wherever_an_interrupt_comes_the_lock_is_free_for_others(tmp_path, way):
    places = 0
    while True:
        lock = ProcessLock(OsFiles(), str(tmp_path / f"lock-{places}"))
        take(lock)
        if not interrupted(partial(way, lock), places + 1):
            break
        places += 1
        other = threading.Thread(target=take, args=(lock,), daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive(), f"another thread waits for ever after place {places}"
        assert is_free_for_other_processes(lock), f"other processes wait after place {places}"
        take(lock)
        lock.close()
    assert places >= 5


def test_wherever_an_interrupt_comes_who_tries_gets_the_lock(tmp_path):
    """Of a lock that nobody waits for, this is the only way to be freed."""
    lock = ProcessLock(OsFiles(), str(tmp_path / "lock"))
    place = 1
    while interrupted(partial(try_to_take, lock), place):
        place += 1
        got: list[bool] = []
        other = threading.Thread(target=lambda: got.append(lock.try_acquire()))  # noqa: B023 (it is joined here)
        other.start()
        other.join()
        assert got == [True]
        lock.release()
    assert place > 5
    lock.close()


def test_an_idle_process_frees_what_an_interrupt_left(tmp_path):
    lock = ProcessLock(OsFiles(), str(tmp_path / "lock"))
    take(lock)
    left = 0
    place = 1
    while interrupted(partial(take, lock), place):
        left += not is_free_for_other_processes(lock)
        thread = threading.Thread(target=lock.free_if_left)  # as the maintenance thread does
        thread.start()
        thread.join()
        assert is_free_for_other_processes(lock)
        place += 1
    assert left >= 1
    lock.close()


def test_what_is_held_is_not_taken_for_left(lock):
    with lock:
        thread = threading.Thread(target=lock.free_if_left)
        thread.start()
        thread.join()
        assert not is_free_for_other_processes(lock)
    lock.close()


@contextlib.contextmanager
def by_way_of_a_generator(lock: ProcessLock) -> Iterator[None]:
    with lock:
        yield


def test_a_generator_that_waits_holds_it_all_the_same(lock):
    with contextlib.ExitStack() as stack:
        stack.enter_context(by_way_of_a_generator(lock))
        thread = threading.Thread(target=lock.free_if_left)
        thread.start()
        thread.join()
        assert not is_free_for_other_processes(lock)
    with by_way_of_a_generator(lock):
        thread = threading.Thread(target=lock.free_if_left)
        thread.start()
        thread.join()
        assert not is_free_for_other_processes(lock)
    assert is_free_for_other_processes(lock)
    lock.close()


def test_what_is_held_by_a_thread_that_goes_on_meanwhile_is_not_taken_for_left(lock, monkeypatch):
    """A generator that yields while the thread is looked at no longer tells who called it."""
    is_in_generator, may_yield, has_yielded, may_leave = (threading.Event() for _ in range(4))

    def generator() -> Iterator[None]:
        is_in_generator.set()
        may_yield.wait(10)
        yield

    def hold() -> None:
        with lock:
            next(generator())
            has_yielded.set()
            may_leave.wait(10)

    current_frames = sys._current_frames

    def slowly() -> dict[int, FrameType]:
        frames = current_frames()
        may_yield.set()
        has_yielded.wait(10)
        return frames

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_in_generator.wait(10)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "_current_frames", slowly)
        lock.free_if_left()
    assert not is_free_for_other_processes(lock)
    may_leave.set()
    thread.join()
    assert is_free_for_other_processes(lock)
    lock.close()


def test_a_signal_handler_inside_is_refused_and_does_not_wait_for_itself(lock):
    with lock:
        with pytest.raises(InvalidRequestError, match="signal handler"):
            take(lock)
        assert not is_free_for_other_processes(lock)
    take(lock)
    lock.close()


def test_the_locks_of_a_directory_are_freed_for_others(tmp_path):
    with contextlib.closing(DataDirectory.open(str(tmp_path / "data"))) as directory:
        directory.create_topic("t", 1, LogConfig())
        log = directory.log("t", 0)
        for lock in (log.append_lock, log.sync_lock, directory.journal.lock, directory.view.writing):
            take(lock)
            place = 1
            while interrupted(partial(take, lock), place) and is_free_for_other_processes(lock):
                lock.free_if_left()  # so that the next one goes the same way
                place += 1
            assert not is_free_for_other_processes(lock)
            directory.free_left_locks()
            assert is_free_for_other_processes(lock)


def use(path: str) -> DataDirectory:
    bench = Workbench(path, files=UnsyncedFiles())
    bench.put(b"value")
    bench.directory.journal.record([OffsetEvent("g", "t", 0, 1, "", 0)])
    return bench.directory


@pytest.mark.slow
def test_wherever_an_interrupt_comes_what_is_closed_can_be_opened_again(tmp_path):
    """Nobody is there any more who would look for locks that were left."""
    path = str(tmp_path / "data")
    place, was_interrupted = 1, True
    while was_interrupted:
        was_interrupted = interrupted(use(path).close, place)
        again = threading.Thread(target=lambda: use(path).close(), daemon=True)
        again.start()
        again.join(10)
        assert not again.is_alive(), f"who opens it again waits for ever after place {place}"
        place += 1
    assert place > 100


def test_wherever_an_interrupt_comes_a_view_that_was_not_opened_can_be(tmp_path):
    """LMDB takes each file once a process."""
    path = str(tmp_path)
    View(path).close()
    place = 1
    while interrupted(partial(View, path), place):
        View(path).close()
        place += 1
    assert place > 5
