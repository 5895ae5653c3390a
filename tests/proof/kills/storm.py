"""The loop: who dies next, and how. See the package."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from logbroker_storage.startup import BOOT_ID
from logbroker_storage.view import View

from .crew import Crew, Worker, ended_of
from .witness import LONGEST_S, Witness, prepare

SLOTS = [
    *(("write", slot) for slot in range(3)),
    ("key", 0),
    *(("read", slot) for slot in range(2)),
    *(("work", slot) for slot in range(2)),
    *(("pay", slot) for slot in range(2)),
    *(("enrich", slot) for slot in range(2)),
    ("clean", 0),
    ("make", 0),
    ("visit", 0),
]
WRITING = ("write", "key", "make", "visit")

ALONE, STOPPED, TOGETHER, RECOVERING = (
    "killed alone",
    "stopped, then killed",
    "all killed at once",
    "killed while recovering",
)

START_CPU_S = 0.015  # a worker is at work after that
WORK_CPU_S = 0.090  # within that most die
RESIDENT = 0.01  # the share that lives until everybody dies
LEAVING = 0.05  # the share that leaves after a few rounds, if it lives as long
LOOK_EVERY = 100  # kills
STOPPING = 0.06  # the share that is stopped first
SHORT_STOP_S = 1.0  # two leases
LONG_STOP_S = 5.0
ENOUGH_STOPS = 15  # to tell chance from fault
LONG_STOP_EVERY = 80  # kills
MOST_RECOVERIES = 20  # that are cut short, in a row


class Stop(NamedTuple):
    """A worker that was stopped."""

    until: float
    notes: int | None
    """Of a long stop: how many notes there were of all workers."""


class Storm:
    """One data directory, the crew that works on it, and what comes over them."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._rng = rng
        self._data = folder / "data"
        prepare(self._data)
        self._crew = Crew(folder, self._data)
        self.witness = Witness(self._data, self._crew)
        self.deaths: Counter[str] = Counter()
        self._stopped: dict[Worker, Stop] = {}
        self.long_stops = 0
        self.went_on = 0
        """In how many of the long stops the others got on meanwhile."""
        self._recovery_cpu_s = 0.02
        self._last_progress: Counter[str] = Counter()

    def __enter__(self) -> Storm:
        return self

    def __exit__(self, *_: object) -> None:
        self._crew.close()

    @property
    def kills(self) -> int:
        return sum(self.deaths.values())

    def run(self, kills: int) -> None:
        """So many kills, then let those who are left finish, and hold everything against everything."""
        rng = self._rng
        for slot in SLOTS:
            self._start(*slot)
        next_look, next_long_stop = LOOK_EVERY, LONG_STOP_EVERY // 2
        while self.kills < kills:
            long_stop = self.kills >= next_long_stop
            self._let_one_die(long_stop=long_stop)
            if long_stop:
                next_long_stop += LONG_STOP_EVERY
            if self.kills >= next_look and not self._stopped:
                next_look = self.kills + LOOK_EVERY
                self.witness.look()
                self._check_progress()
                if rng.random() < 0.7:
                    self._kill_all()
                    self._recover()
                    for slot in SLOTS:
                        self._start(*slot)
        self._drain()

    # One death ----------------------------------------------------------------------------------------

    def _start(self, role: str, slot: int) -> None:
        rng = self._rng
        seed = rng.randrange(1 << 32)
        chance = rng.random()
        if chance < RESIDENT:
            self._crew.start(role, slot, seed=seed)
            return
        self._crew.start(
            role,
            slot,
            seed=seed,
            dies_at_cpu_s=rng.uniform(0, START_CPU_S if rng.random() < 0.25 else WORK_CPU_S),
            dies_within_s=rng.uniform(0.2, 3.0),
            rounds=rng.randint(1, 10) if chance > 1 - LEAVING else None,
        )

    def _let_one_die(self, *, long_stop: bool) -> None:
        self._go_on_with_stopped()
        due = self._crew.wait_for_a_moment(but=self._stopped)
        for worker in due:
            chance = self._rng.random()
            if long_stop or chance < STOPPING:
                self._stop(worker, LONG_STOP_S if long_stop else self._rng.uniform(0, SHORT_STOP_S))
                return
            self._kill(worker, ALONE)
            self._replace(worker)

    def _stop(self, worker: Worker, seconds: float) -> None:
        self.witness.read_diaries()
        worker.send(signal.SIGSTOP)
        is_long = seconds == LONG_STOP_S
        notes = self.witness.progress.total() if is_long else None
        self._stopped[worker] = Stop(time.monotonic() + seconds, notes)

    def _go_on_with_stopped(self) -> None:
        now = time.monotonic()
        for worker, stop in list(self._stopped.items()):
            if now < stop.until:
                continue
            del self._stopped[worker]
            if stop.notes is not None:
                self.long_stops += 1
                self.witness.read_diaries()
                self.went_on += self.witness.progress.total() > stop.notes
            if self._rng.random() < 0.5:
                worker.dies_at_cpu_s = worker.cpu_s() + self._rng.uniform(0, WORK_CPU_S)
                worker.dies_at = now + 3.0
                worker.send(signal.SIGCONT)
            else:
                self._kill(worker, STOPPED)
                self._replace(worker)

    def _kill(self, worker: Worker, kind: str) -> None:
        worker.send(signal.SIGKILL)
        self._bury(worker, kind)

    def _bury(self, worker: Worker, kind: str) -> None:
        if self.witness.bury(worker).was_killed:
            self.deaths[kind] += 1

    def _replace(self, worker: Worker) -> None:
        self._start(worker.life.role, worker.life.slot)

    # Everybody's death --------------------------------------------------------------------------------

    def _kill_all(self) -> None:
        workers = self._rng.sample(self._crew.working, len(self._crew.working))
        for worker in workers:
            worker.send(signal.SIGKILL)
        for worker in workers:
            self._bury(worker, TOGETHER)
        self._stopped.clear()

    def _recover(self) -> None:
        """Nobody is alive: let processes die over opening the directory, then let one succeed."""
        rng = self._rng
        self._lose_view()
        for _ in range(rng.randint(0, MOST_RECOVERIES)):
            openers = [
                self._crew.start(
                    "open",
                    number,
                    seed=0,
                    dies_at_cpu_s=rng.uniform(0, 1.2 * self._recovery_cpu_s),
                    dies_within_s=LONGEST_S,
                )
                for number in range(rng.choice((1, 1, 2)))
            ]
            while alive := [opener for opener in openers if opener in self._crew.working]:
                for opener in self._crew.wait_for_a_moment():
                    assert opener in alive
                    self._kill(opener, RECOVERING)
        opener = self._crew.start("open", 0, seed=0)
        assert ended_of([opener], LONGEST_S), f"{opener} does not get on"
        self._recovery_cpu_s = opener.cpu_s() or self._recovery_cpu_s
        self._wait_for(opener)
        self.witness.inspect(notes=False)

    def _lose_view(self) -> None:
        view = self._data / "view"
        chance = self._rng.random()
        if chance < 0.4:
            shutil.rmtree(view)
        elif chance < 0.6:
            restarted = View(str(view))
            with restarted.write() as transaction:
                restarted.put_meta_bytes(transaction, BOOT_ID, b"another boot")
            restarted.close()

    # That it goes on ----------------------------------------------------------------------------------

    def _check_progress(self) -> None:
        """Whoever died, every role has got on since the last time; else let it, before anybody dies again."""
        deadline = time.monotonic() + LONGEST_S
        while held_up := self._held_up():
            assert time.monotonic() < deadline, f"no progress of {held_up}: {self.witness.progress}"
            for worker in ended_of(self._crew.working, 0.05):
                self._bury(worker, ALONE)  # it has left
                self._replace(worker)
            self.witness.read_diaries()
        self._last_progress = self.witness.progress.copy()

    def _held_up(self) -> list[str]:
        return [
            role
            for role in sorted({role for role, _ in SLOTS})
            if self.witness.progress[role] == self._last_progress[role]
        ]

    def _drain(self) -> None:
        """Writers write for the last time and leave cleanly; the others go on until they have done everything."""
        for worker in list(self._crew.working):
            if worker.life.role in WRITING:
                self._kill(worker, ALONE)
            elif worker in self._stopped:
                worker.send(signal.SIGCONT)
        self._stopped.clear()
        for role, slot in SLOTS:
            if role in WRITING:
                worker = self._crew.start(role, slot, seed=self._rng.randrange(1 << 32), rounds=5)
                self._wait_for(worker)
        least, deadline = None, 0.0
        while lag := self.witness.lag():
            if least is None or lag < least:
                least, deadline = lag, time.monotonic() + LONGEST_S
            assert time.monotonic() < deadline, f"those who were left do not get on: {lag} to do"
            time.sleep(0.1)
            self._replace_who_leave()
        self._kill_all()
        self.witness.check_complete()
        # Who is stopped while it opens the directory, inside a write of LMDB, or a sync of the journal, holds up
        # everybody, but that is a twentieth of its life: more than half of many stops come elsewhere.
        assert self.long_stops < ENOUGH_STOPS or 2 * self.went_on >= self.long_stops, (
            f"held up in all but {self.went_on} of {self.long_stops} stops"
        )

    def _wait_for(self, worker: Worker) -> None:
        """Until it has left, cleanly."""
        assert ended_of([worker], LONGEST_S), f"{worker} does not leave"
        assert not self.witness.bury(worker).was_killed

    def _replace_who_leave(self) -> None:
        """Some were to leave after a few rounds: others finish."""
        for worker in [worker for worker in self._crew.working if worker.life.rounds is not None]:
            self._kill(worker, ALONE)
            self._crew.start(worker.life.role, worker.life.slot, seed=self._rng.randrange(1 << 32))
