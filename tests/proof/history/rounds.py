"""One round: a server, a network, clients, a nemesis; then peace, what the log holds, and what is wrong with it.

1  everything runs, and the nemesis goes through its plan
2  peace; producers end, with what they began
3  the groups read what there is to read; all other clients end
4  the log is read: by this process, by fresh consumers over the network, and again when the server was killed
5  the checker
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import logbroker
from tests.server.server_process import ServerProcess

from .checker import check
from .client import COPIES, EVENTS, PARTITIONS, Task
from .final_reads import read_embedded, read_over_network, read_topic
from .findings import Finding
from .nemesis import Fault, Target, inflict, plan
from .operations import FinalRead, History, Isolation, read_history
from .proxy import FAIR, Proxy, Weather

ROOT = Path(__file__).parents[3]
SAYING_S = 0.5  # in which a process has said where it is
PATIENCE_S = 90.0  # whatever is to happen happens within it, on a machine that has much else to do
SERVER_OPTIONS = ("--group-session", "2", "--no-auto-create")
GROUPS = {"eager": {}, "cooperative": {"partition.assignment.strategy": "cooperative-sticky"}}
# Not idempotent: when records of librdkafka's idempotent producer time out, it sends those behind them under a new
# epoch, also those that may have been appended under the old one.
HASTY = {"enable.idempotence": False, "message.timeout.ms": 1500, "linger.ms": 0}
KIP_848 = {"group.protocol": "consumer"}
TRANSFORMERS = "transformers"


class Outcome(NamedTuple):
    history: History
    findings: list[Finding]
    faults: Counter[str]
    """How many of each kind."""
    log: str
    """What the server and the clients said."""


# Clients --------------------------------------------------------------------------------------------------


class Process:
    """A client in a process of its own."""

    def __init__(self, module: str, task: Task, log: Path) -> None:
        self.module = module
        self.task = task
        self._log = log
        command = [sys.executable, "-m", f"tests.proof.history.{module}", msgspec.json.encode(task).decode()]
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=out)

    def killed(self) -> Process:
        """kill -9; another one in its place."""
        self.check_alive()
        self._process.kill()
        self._process.wait()
        return Process(self.module, msgspec.structs.replace(self.task, seed=self.task.seed + 1), self._log)

    def ask_to_end(self) -> None:
        self.check_alive()
        self._process.send_signal(signal.SIGTERM)

    def ask_where(self) -> None:
        """Have it say where it is."""
        self._process.send_signal(signal.SIGUSR1)

    def wait(self) -> None:
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            self.ask_where()
            time.sleep(SAYING_S)
            raise AssertionError(f"{self.task.name} does not end:\n{self._log.read_text()}") from error
        # SIGTERM ends one at once that has only just been started.
        assert code in (0, -signal.SIGTERM), f"{self.task.name} failed:\n{self._log.read_text()}"

    def check_alive(self) -> None:
        code = self._process.poll()
        assert code is None, f"{self.task.name} ended by itself with {code}:\n{self._log.read_text()}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def tasks(
    rng: random.Random, folder: Path, address: str, data: Path, *, embedded: bool
) -> list[tuple[str, Task]]:
    """Who takes part in a round: modules and their tasks."""
    classic = rng.choice(list(GROUPS.values()))
    transformers = rng.choice([*GROUPS.values(), KIP_848])

    def client(role: str, name: str, **fields: Any) -> tuple[str, Task]:
        return "clients", Task(role, name, str(folder), address, rng.randrange(1 << 32), **fields)

    found = [
        client("producer", "idempotent", options={"message.timeout.ms": 120_000}),
        client("producer", "hasty", options=HASTY),
        client("transactional", "t1"),
        client("transactional", "t2", options={"linger.ms": 0}),
        client("reader", "committed", isolation=Isolation.COMMITTED),
        client("reader", "uncommitted", isolation=Isolation.UNCOMMITTED),
        *(
            client("transformer", f"x{number}", group=TRANSFORMERS, options=transformers)
            for number in range(2)
        ),
        *(client("member", f"classic{number}", group="classic", options=classic) for number in range(2)),
        *(
            client(
                "member",
                f"kip848-{number}",
                group="kip-848",
                options=KIP_848,
                isolation=Isolation.UNCOMMITTED,
            )
            for number in range(2)
        ),
    ]
    if embedded:
        for role in ("embedded-producer", "embedded-transactor"):
            task = Task(role, role, str(folder), str(data), rng.randrange(1 << 32))
            found.append(("embedded", task))
    return found


# The round ------------------------------------------------------------------------------------------------


class Round:
    """A directory with its server, proxy and clients, while they last."""

    def __init__(
        self,
        folder: Path,
        rng: random.Random,
        *,
        embedded: bool = False,
        roles: Sequence[str] = (),
        program: Sequence[str] = (),
    ) -> None:
        """*roles*: only those take part, all by default. *program*: the server's, if it is another."""
        self._rng = rng
        self._history = folder / "history"
        self._history.mkdir()
        self._log = folder / "clients.log"
        self._embedded = embedded
        self._roles = roles
        self.data = folder / "data"
        self.proxy = Proxy(rng)
        self._program = program
        self._server: ServerProcess | None = None
        self._clients: list[Process] = []

    def run(self, faults: Sequence[Fault], seconds: float, weather: Weather = FAIR) -> Outcome:
        """A whole round. *weather* is that of its whole first half, where no fault makes it other."""
        with ExitStack() as stack:
            stack.enter_context(self.proxy)
            stack.callback(self._kill_all)
            self._begin()
            _until(self._all_are_at_work, lambda: f"not all clients came to work:\n{self._said()}")
            steps = plan(self._rng, faults, seconds)
            inflict(steps, self._target(), weather)
            self._end_producers()
            self._end_readers()
            final_reads = self._read_all()
        history = read_history(self._history)
        done = Counter(step.fault.value for step in steps) + self.proxy.done
        return Outcome(history, check(history, final_reads), done, self._said())

    @property
    def server(self) -> ServerProcess:
        assert self._server is not None
        return self._server

    def _begin(self) -> None:
        with logbroker.open(self.data) as broker:
            for topic in (EVENTS, COPIES):
                broker.create_topic(topic, partitions=PARTITIONS)
        advertised = f"127.0.0.1:{self.proxy.port}"
        self._server = ServerProcess(
            self.data, "--advertise", advertised, *SERVER_OPTIONS, program=self._program
        )
        self._start_server()
        for module, task in tasks(self._rng, self._history, advertised, self.data, embedded=self._embedded):
            if not self._roles or task.role in self._roles:
                self._clients.append(Process(module, task, self._log))

    def _all_are_at_work(self) -> bool:
        """Whether every client has written something down that it did."""
        for client in self._clients:
            client.check_alive()
        at_work = {
            path.name.split(".")[0] for path in self._history.glob("*.lines") if path.stat().st_size > 200
        }
        return at_work >= {client.task.name for client in self._clients}

    def _start_server(self) -> None:
        self.proxy.upstream_port = self.server.start().port

    def _target(self) -> Target:
        return Target(
            kill_server=self.server.kill,
            start_server=self._start_server,
            stop_server=lambda: os.kill(self.server.pid, signal.SIGSTOP),
            continue_server=lambda: os.kill(self.server.pid, signal.SIGCONT),
            replace_client=self._replace_client,
            proxy=self.proxy,
        )

    def _replace_client(self, victim: int) -> None:
        index = victim % len(self._clients)
        self._clients[index] = self._clients[index].killed()

    def _kill_all(self) -> None:
        for client in self._clients:
            client.kill()
        if self._server is not None:
            self._server.kill()

    def _said(self) -> str:
        """What the clients are at, if there are any yet, and what all have said."""
        for client in self._clients:
            client.ask_where()
        time.sleep(SAYING_S)
        return "".join(path.read_text() for path in (self._log, self.data.parent / "data-server.log"))

    # Peace --------------------------------------------------------------------------------------------------

    def _end(self, roles: set[str]) -> None:
        ending = [client for client in self._clients if client.task.role in roles]
        for client in ending:
            client.ask_to_end()
        for client in ending:
            client.wait()
            self._clients.remove(client)

    def _end_producers(self) -> None:
        self._end({"producer", "transactional", "embedded-producer", "embedded-transactor"})

    def _end_readers(self) -> None:
        groups = {client.task.group: client.task.isolation for client in self._clients if client.task.group}
        with logbroker.open(self.data) as broker:
            self._wait_for_decisions(broker, EVENTS)
            for group, isolation in groups.items():
                ends = _ends(broker, isolation)
                _until(
                    lambda group=group, ends=ends: _has_read(broker, group, ends),  # type: ignore[misc]
                    lambda group=group, ends=ends: (  # type: ignore[misc]
                        f"group {group!r} does not come to {ends}: {broker.group(group)}\n{self._said()}"
                    ),
                )
            self._end({"transformer"})
            self._wait_for_decisions(broker, COPIES)
        self._end({"member", "reader"})

    def _wait_for_decisions(self, broker: logbroker.Broker, topic: str) -> None:
        """Until no transaction is open in *topic*; those of clients that gave up end by their timeout."""
        _until(lambda: _is_decided(broker, topic), lambda: f"transactions are still open:\n{self._said()}")

    # The log ------------------------------------------------------------------------------------------------

    def _read_all(self) -> list[FinalRead]:
        reads = [*read_embedded(self.data, "embedded"), *read_over_network(self.proxy.port)]
        self.server.kill()
        return [*reads, *read_embedded(self.data, "embedded, after the server was killed")]


def _until(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.05)


def _is_decided(broker: logbroker.Broker, topic: str) -> bool:
    return all(
        partition.last_stable_offset == partition.log_end_offset
        for partition in broker.topic(topic).partitions
    )


def _ends(broker: logbroker.Broker, isolation: Isolation) -> dict[int, int]:
    """Behind the last record of each partition of EVENTS."""
    records = read_topic(broker, EVENTS, isolation)
    return {int(place.rpartition("-")[2]): found[-1][0] + 1 for place, found in records.items()}


def _has_read(broker: logbroker.Broker, group: str, ends: dict[int, int]) -> bool:
    if group not in broker.groups():
        return not ends
    committed = {found.partition: found.committed_offset or 0 for found in broker.group(group).offsets}
    return all(committed.get(partition, 0) >= end for partition, end in ends.items())
