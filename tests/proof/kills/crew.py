"""The workers, seen from outside: started, stopped, killed at a moment of their own life, and buried.

A moment is a number of milliseconds of the worker's own processor time, not of the clock: on a busy machine
all of a worker's life happens later, and the kills hit the same instructions as on an idle one. A worker that
waits for something does not get older, so there is a moment of the clock besides.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from .diary import DiaryReader
from .roles import Life

ROOT = Path(__file__).parents[3]
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.0005, 0.02


class Worker:
    """A process that lives a ``Life``, from its start to its burial."""

    def __init__(self, life: Life, pid: int, *, dies_at_cpu_s: float, dies_at: float) -> None:
        self.life = life
        self.pid = pid
        self.started = time.monotonic()
        self.dies_at_cpu_s = dies_at_cpu_s
        self.dies_at = dies_at
        self.killed: float | None = None
        """Just before the kill: what it does from then on may or may not come to be."""
        self.notes = DiaryReader(life.diary)
        self._fd = os.pidfd_open(pid) if sys.platform == "linux" else -1

    def __repr__(self) -> str:
        return f"<{self.life.role} {self.life.slot}, worker {self.life.number}>"

    def cpu_s(self) -> float:
        """The processor time it has had."""
        try:
            return time.clock_gettime(
                ~self.pid << 3 | 2
            )  # clock_getcpuclockid(3): CPUCLOCK_SCHED of the process
        except OSError:
            return 0.0  # it has ended

    def fileno(self) -> int:
        """A descriptor that is readable when it has ended."""
        return self._fd

    def send(self, number: signal.Signals) -> None:
        if number is signal.SIGKILL and self.killed is None:
            self.killed = time.monotonic()
        signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        os.close(self._fd)


def ended_of(workers: Collection[Worker], timeout_s: float) -> list[Worker]:
    """Those of *workers* that have ended; waits at most *timeout_s* for the first.

    By poll(2): select(2) knows descriptors below 1024 only, and this process may have more open.
    """
    by_fd = {worker.fileno(): worker for worker in workers}
    poll = select.poll()
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _ in poll.poll(timeout_s * 1000)]


class Ending(msgspec.Struct):
    """How a worker ended."""

    worker: Worker
    status: int
    errors: str

    @property
    def was_killed(self) -> bool:
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL

    def check(self) -> None:
        """Nobody dies of anything but our kill, and nothing in it fails unseen."""
        assert self.was_killed or self.status == 0, (
            f"{self.worker} ended with {self.status} by itself:\n{self.errors}"
        )
        assert "Traceback" not in self.errors, f"{self.worker}:\n{self.errors}"


class Crew:
    """All workers of one data directory. ``close`` leaves nobody alive."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self._data = data
        self._started = 0
        self.working: list[Worker] = []
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.kills.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        for worker in self.working:
            worker.send(signal.SIGKILL)
            worker.close()
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.close()
        self._nursery.wait()
        self._nursery.stdout.close()

    def _ask(self, command: str) -> int:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(command + "\n")
        self._nursery.stdin.flush()
        answer = self._nursery.stdout.readline()
        assert answer, "the nursery has died"
        return int(answer)

    def start(
        self,
        role: str,
        slot: int,
        *,
        seed: int,
        dies_at_cpu_s: float = 1e9,
        dies_within_s: float = 1e9,
        rounds: int | None = None,
    ) -> Worker:
        """A new worker, which somebody kills once it has had so much processor time, or after so many seconds."""
        self._started += 1
        stem = f"{self._folder}/{self._started}-{role}"
        life = Life(
            role=role,
            slot=slot,
            number=self._started,
            seed=seed,
            data=str(self._data),
            diary=f"{stem}.diary",
            errors=f"{stem}.errors",
            rounds=rounds,
        )
        pid = self._ask(f"start {msgspec.json.encode(life).decode()}")
        now = time.monotonic()
        worker = Worker(life, pid, dies_at_cpu_s=dies_at_cpu_s, dies_at=now + dies_within_s)
        self.working.append(worker)
        return worker

    def bury(self, worker: Worker) -> Ending:
        """What became of a worker that was killed or leaves; its errors are kept no longer than here."""
        status = self._ask(f"reap {worker.pid}")
        self.working.remove(worker)
        worker.close()
        errors = ""
        with contextlib.suppress(FileNotFoundError):  # killed before it had made it
            errors = Path(worker.life.errors).read_text()
            os.unlink(worker.life.errors)
        return Ending(worker, status, errors)

    def wait_for_a_moment(self, but: Collection[Worker] = ()) -> list[Worker]:
        """Sleep until some have come to the moment of their death, or have ended; never *but*."""
        watched = [worker for worker in self.working if worker not in but]
        while True:
            now = time.monotonic()
            left_s = [worker.dies_at_cpu_s - worker.cpu_s() for worker in watched]
            due = [
                worker
                for worker, left in zip(watched, left_s, strict=True)
                if left <= 0 or worker.dies_at <= now
            ]
            if due:
                return due
            pause_s = min(max(min(left_s, default=0.0), SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
            ended = ended_of(watched, pause_s)
            if ended:
                return ended
