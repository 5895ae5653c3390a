"""A server whose calls to the file system fail, as its clients meet it: the same faults as ``every_call``.

The server runs in this process, because the file system that fails does; its clients are those of librdkafka. One
directory, one server, the same clients all the while: fault after fault, each at a call of its own. What they do at
once comes in no fixed order, so the number of a case tells which call it was only roughly.

    a sync has failed    the partition takes no writes, and the sync is never repeated, until the server is started
                         anew: then the clients, who were told nothing yet, get through
    anything else        they get through as soon as the disk is well
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress

from confluent_kafka import KafkaException

import logbroker
from logbroker.errors import LogbrokerError, StorageFailedError
from logbroker_storage.clock import SYSTEM_CLOCK
from logbroker_storage.files import Files, OsFiles

from ..proof import Row, Scope, delete_folder, new_folder
from .account import Account
from .clients import TOPICS, Clients
from .every_call import FAULTS, Fault
from .server_thread import ServerThread
from .stories import SMALL
from .sync_ledger import SyncLedger

TEST = "a server: "
MAX_CALLS = 2000


def run(scope: Scope) -> Iterator[Row]:
    """Each call of one round; in the long form ten times, for what is done at once comes in another order each time.

    Bounded, every other call from which on all fail: librdkafka has patience with those.
    """
    for fault in FAULTS:
        cases = 0
        step = scope.count(2 if fault.forever else 1, 1)
        first = scope.rng("served").randint(1, step)
        for _ in range(scope.count(1, 10)):
            folder = new_folder(in_memory=True)
            try:
                with Served(f"{folder}/data") as served:
                    cases += served.run(fault, first, step)
                    served.close()
            finally:
                delete_folder(folder)
        yield Row(f"{TEST}{fault.name}", cases, "calls", scope.seed if step > 1 else None)


class Served:
    """One server and its clients, through fault after fault."""

    def __init__(self, path: str, *, make_files: Callable[[Files], SyncLedger] = SyncLedger) -> None:
        self.path = path
        with logbroker.open(path) as broker:
            for topic in TOPICS:
                broker.create_topic(topic, config=SMALL)
        self.files = make_files(OsFiles())
        self.account = Account()
        self.server = ServerThread(path, self.files, SYSTEM_CLOCK).start()
        self.clients = Clients(self.server.address, self.account)
        self.clients.go_on()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Where a promise was broken, leave nothing running; what more goes wrong is not told."""
        if kind is not None:
            self.files.heal()
            with suppress(AssertionError, RuntimeError, KafkaException):
                self.clients.close()
                self.server.stop(may_tell=(BaseException,))

    def run(self, fault: Fault, first: int = 1, step: int = 1) -> int:
        """Every *step*-th call of a round from the *first* on; how many there were."""
        for at in range(first, MAX_CALLS, step):
            if not self.try_at(fault, at):
                return (at - first) // step
        raise AssertionError(f"{fault.name}: it makes more calls than was thought")

    def try_at(self, fault: Fault, at: int) -> bool:
        """Whether there was a call of that number."""
        self.files.hits.clear()
        self.files.fail(
            fault.operations, error=fault.error, at=at, forever=fault.forever, written=fault.written
        )
        try:
            self.clients.try_everything()
            was_hit = bool(self.files.hits)
            self.server.check()
            self.files.heal()
            if failed := self._failed():
                self._check_marks(failed)
                self.restart()
            self.clients.go_on()
            self.server.check()
            assert not self.files.repeated, (
                f"syncs were repeated after they had failed: {self.files.repeated}"
            )
        except AssertionError as error:
            raise AssertionError(f"{fault.name} at call {at} ({self.files.hits[:3]}): {error}") from error
        return was_hit

    def _failed(self) -> list[str]:
        """The folders of partitions, the journal among them, that take no writes since a sync has failed."""
        directory = self.server.directory
        logs = [directory.journal.log, *(directory.log(topic, 0) for topic in TOPICS)]
        return [log.directory for log in logs if log.state().sync.failed]

    def _check_marks(self, failed: list[str]) -> None:
        for folder in failed:
            assert self.files.has_failed_in(folder), f"{folder} is failed without a failed sync"

    def restart(self) -> None:
        self.server.stop(may_tell=(StorageFailedError,))
        self.files.forget()
        self.clients.may_be_forgotten = True
        self.server.start()

    def close(self) -> None:
        """The end of server and clients; with the view and without, the directory holds what was told."""
        self.clients.close()
        self.server.stop()
        self.files.forget()
        for without_view in (False, True):
            if without_view:
                shutil.rmtree(f"{self.path}/view")
            try:
                with logbroker.open(self.path) as broker:
                    self.account.check(broker)
            except LogbrokerError as error:
                raise AssertionError(f"what is there cannot be read: {error}") from error
