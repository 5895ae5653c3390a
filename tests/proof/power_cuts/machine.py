"""A machine whose power is cut: ``python -m tests.proof.power_cuts.machine …``.

    FILE_SYSTEM FOLDER CUTS SEED [--without-syncs]    "trial" in place of CUTS: only find out whether it could

It runs in name spaces of its own (mounts, processes), so that whatever happens to it, the kernel unmounts its disk and
ends its processes with it; and so that it can have a boot id of its own, which is another one after each start: this
is how the product is told that the machine was restarted.

    start    another boot id; mount; look at what the disk says
    check    recover, and compare with what was promised; sometimes the power goes in the middle of it
    load     fork the workers, wait until each has something acknowledged, and a random while longer
    cut      the ioctl, while they work; what they were told until they died is what is promised
    stop     end them, unmount

Each disk takes a number of cuts one after the other. It prints a line of JSON for each, and ends with exit code 1
behind the first that broke a promise. The processes that it forks are workers and checkers; it never opens a
data directory itself.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.files import Buffer, Files, OsFiles, replace_file

from . import load
from .check import Broken, Outcome, check, damage_below_recovery_points, errors_of
from .disk import MOUNT_OPTIONS, Cut, Disk, call
from .promises import Promises

BOOT_ID = "/proc/sys/kernel/random/boot_id"
LEAST_CUTS_OF_A_DISK, DISKS = 3, 25
LONGEST_LOAD_S = 0.5
LONGEST_RECOVERY_S = 0.15
DEATH_S = 1.0  # after which a worker that waits for something is killed: nobody will call it

T = TypeVar("T")


class WithoutSyncs(OsFiles):
    """A file system layer that forgot every sync: the checks must find out."""

    def start_writeback(self, fd: int, position: int, size: int) -> None: ...

    def fsync(self, fd: int) -> None: ...

    def fdatasync(self, fd: int) -> None: ...

    def fsync_directory(self, path: str) -> None: ...

    def replace_file(self, path: str, data: Buffer) -> None:
        replace_file(self, path, data)


class Machine:
    """One disk, and the promises made on it. The process that has it is single-threaded, because it forks."""

    def __init__(self, disk: Disk, folder: Path, rng: random.Random, files: Files) -> None:
        self._disk = disk
        self._folder = folder
        self._rng = rng
        self._files = files
        self._data = str(disk.mount_point / "data")
        self._promises = Promises()
        self._lives = 0
        self._has_boot_id = False

    def install(self, options: str) -> None:
        """A new file system with an empty directory on it, all of it synced."""
        self._promises = Promises()
        self._disk.make(options)
        self._start()
        in_a_child(lambda: load.prepare(self._data))
        self._disk.unmount()

    def _start(self) -> None:
        boot_id = self._folder / "boot_id"
        if self._has_boot_id:
            call("umount", BOOT_ID)
        boot_id.write_text(f"{uuid.UUID(int=self._rng.getrandbits(128))}\n")
        call("mount", "--bind", str(boot_id), BOOT_ID)
        self._has_boot_id = True
        self._disk.mount()

    def try_out(self) -> None:
        """Mount and cut, and nothing else: can this machine do it?"""
        self._disk.make("defaults")
        self._start()
        self._disk.cut(Cut.NO_LOG_FLUSH)
        self._disk.unmount()

    def live(self) -> dict[str, object]:
        """One life: load, the cut, and the check behind it; what happened."""
        self._lives += 1
        how = self._rng.choices(list(Cut), [1, 2, 7])[0]
        self._start()
        before = self._promises.count
        endings = self._load(how)
        self._disk.unmount()
        view = self._rng.choice(["stale", "stale", "deleted", "scrambled"])
        broken, outcome = self._recover(view)
        self._promises.settled |= outcome.settled
        self._promises.produced |= outcome.produced
        self._promises.settling.clear()
        return {
            "life": self._lives,
            "cut": how.name,
            "view": view,
            "acknowledgements": self._promises.count - before,
            "lost": outcome.lost,
            "endings": endings,
            "broken": [str(one) for one in broken],
        }

    # Load ---------------------------------------------------------------------------------------------

    def _load(self, how: Cut) -> dict[str, str]:
        """Work until the power goes; how each worker ended."""
        workers: dict[int, tuple[str, str]] = {}
        for role in load.ROLES:
            diary = str(self._folder / f"{role}.diary")
            if os.path.exists(diary):
                os.unlink(diary)
            rng = random.Random(self._rng.getrandbits(64))
            pid = fork(
                lambda role=role, diary=diary, rng=rng: load.work_until_the_cut(  # type: ignore[misc]
                    role, self._data, diary, rng, self._lives, self._files
                ),
                self._log_path(role),
            )
            workers[pid] = (role, diary)
        ended: dict[int, int] = {}
        try:
            load.wait_for_diaries([diary for _, diary in workers.values()], lambda: self._all_alive(workers))
            time.sleep(self._rng.uniform(0, LONGEST_LOAD_S))
            self._disk.cut(how)
            deadline = time.monotonic() + DEATH_S
            while len(ended) < len(workers) and time.monotonic() < deadline:
                reap(workers, ended)
                time.sleep(0.005)
        finally:
            for pid in workers.keys() - ended.keys():
                os.kill(pid, signal.SIGKILL)
                ended[pid] = os.waitpid(pid, 0)[1]
        endings = {}
        for pid, (role, diary) in workers.items():
            self._promises.take(Path(diary).read_text().splitlines())
            endings[role] = self._ending(role, ended[pid])
        return endings

    def _log_path(self, name: str) -> str:
        return str(self._folder / f"{name}.log")

    def _all_alive(self, workers: dict[int, tuple[str, str]]) -> None:
        ended: dict[int, int] = {}
        reap(workers, ended)
        for pid in ended:
            role = workers.pop(pid)[0]
            raise AssertionError(f"{role} ended before the cut: {Path(self._log_path(role)).read_text()}")

    def _ending(self, role: str, status: int) -> str:
        """What became of a worker: an error of ours, a mapped page of the disk that is gone, or it just waited."""
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number in (signal.SIGKILL, signal.SIGBUS):
                return signal.Signals(number).name
        elif os.WEXITSTATUS(status) == load.TYPED_ERROR:
            return "typed error"
        raise AssertionError(f"{role} ended with status {status}: {Path(self._log_path(role)).read_text()}")

    # Recovery -----------------------------------------------------------------------------------------

    def _recover(self, view: str) -> tuple[Sequence[Broken], Outcome]:
        """Start again; the promises that were broken, and what the check says."""
        self._start()
        try:
            broken = in_a_child(lambda: list(damage_below_recovery_points(self._data)))
            self._spoil_view(view)
            if self._rng.random() < 0.3:
                self._cut_recovery()
            outcome = in_a_child(self._check)
            broken += outcome.broken
            broken += in_a_child(lambda: list(errors_of(self._data)))
        finally:
            self._disk.unmount()
        return broken, outcome

    def _check(self) -> Outcome:
        """What the check finds; that it could not even be carried out is a finding, too."""
        try:
            return check(self._data, self._promises)
        except (LogbrokerError, AssertionError, KeyError) as error:
            traceback.print_exc()
            return Outcome([Broken("failed", f"{type(error).__name__}: {error}")])

    def _spoil_view(self, view: str) -> None:
        """It is disposable, so whatever the cut left of it may be there."""
        path = Path(self._data) / "view"
        if view == "deleted" and path.exists():
            shutil.rmtree(path)
        content = path / "data.mdb"
        if view == "scrambled" and content.exists() and content.stat().st_size:
            with content.open("r+b") as file:
                for _ in range(8):
                    file.seek(self._rng.randrange(content.stat().st_size))
                    file.write(self._rng.randbytes(64))

    def _cut_recovery(self) -> None:
        """Cut the power while the first process to come is recovering."""
        pid = fork(lambda: open_and_wait(self._data), self._log_path("recovery"))
        time.sleep(self._rng.uniform(0, LONGEST_RECOVERY_S))
        self._disk.cut(Cut.NO_LOG_FLUSH)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self._disk.unmount()
        self._start()


def open_and_wait(data: str) -> None:
    import logbroker

    logbroker.open(data)
    signal.pause()


def reap(workers: dict[int, tuple[str, str]], ended: dict[int, int]) -> None:
    """Note who has ended by itself."""
    for pid in workers.keys() - ended.keys():
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = status


def fork(work: Callable[[], object], log_path: str) -> int:
    """A child that runs *work*, with its standard error in a file; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 2)
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def in_a_child(work: Callable[[], T]) -> T:
    """What *work* returns, run in a process of its own: LMDB and locks leave nothing behind here."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            with open(write_end, "wb") as answer:
                pickle.dump(work(), answer)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"a check ended with status {status}"
    result: T = pickle.loads(said)
    return result


def main() -> None:
    file_system, folder, cuts, seed, *options = sys.argv[1:]
    rng = random.Random(seed)
    files = WithoutSyncs() if "--without-syncs" in options else OsFiles()
    disk = Disk(Path(folder), file_system)
    machine = Machine(disk, Path(folder), rng, files)
    try:
        if cuts == "trial":
            machine.try_out()
            return
        options_in_turn = itertools.cycle(MOUNT_OPTIONS[file_system])
        cuts_of_a_disk = max(LEAST_CUTS_OF_A_DISK, int(cuts) // DISKS)
        for number in range(int(cuts)):
            if number % cuts_of_a_disk == 0:
                mounted_with = next(options_in_turn)
                machine.install(mounted_with)
            story = {"cut": number, "options": mounted_with} | machine.live()
            print(json.dumps(story), flush=True)
            if story["broken"]:
                sys.exit(1)
    finally:
        disk.let_go()


if __name__ == "__main__":
    main()
