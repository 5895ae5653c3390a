"""A process that goes through a scripted run on a disk that fails, and keeps account of what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import logbroker
from logbroker.errors import FileSystemError, StorageFailedError, WriteFailedError
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.testing import ManualClock

from .account import DEAD, Account, Decision, Told
from .sync_ledger import SyncLedger

OF_THE_DISK = (WriteFailedError, StorageFailedError, FileSystemError)
PATIENCE_S = 30.0  # longer than anything takes on a busy machine
LINGER_S = 600.0  # only the thread that runs the script writes, so that calls come in one order


@dataclass(frozen=True)
class Answer:
    """What became of a call."""

    told: Told
    error: logbroker.LogbrokerError | None = None


class Process:
    """One open broker under *files*, and the account of it. Calls that fail with anything untyped end the run."""

    def __init__(self, path: str, files: SyncLedger, clock: ManualClock, account: Account) -> None:
        self.path = path
        self.files = files
        self.clock = clock
        self.account = account
        self.broker: Any = None  # the Broker while it is open
        self.failures = 0  # calls that did
        self.result: Any = None  # of the last attempt

    # Calls ----------------------------------------------------------------------------------------------

    def attempt(self, call: Callable[[], object], *also: type[logbroker.LogbrokerError]) -> Answer:
        """*call*, which may fail with an error of a disk, or one of *also*, and with no other."""
        self.result = None
        try:
            self.result = call()
        except logbroker.LogbrokerError as error:
            if not isinstance(error, OF_THE_DISK + also):
                raise AssertionError(f"a call raised {error!r}, which is no error of a disk") from error
            self.failures += 1
            is_refused = isinstance(error, WriteFailedError)
            return Answer(Told.REFUSED if is_refused else Told.UNKNOWN, error)
        except Exception as error:
            raise AssertionError(f"a call raised {error!r}, which is no error of a disk") from error
        return Answer(Told.DONE)

    def open(self) -> bool:
        """Open the directory; whether that succeeded."""
        self.files.forget()
        self.attempt(lambda: logbroker.open(self.path, files=self.files, clock=self.clock))
        self.broker = self.result
        return self.broker is not None

    def producer(self, **options: object) -> Any:
        self.attempt(lambda: self.broker.producer(linger=LINGER_S, **options))
        return self.result

    def send(self, producer: Any, topic: str, value: bytes, **options: Any) -> Answer:
        """Send a record, wait for its acknowledgement, and note it."""
        if producer is None:
            return Answer(Told.REFUSED)
        answer = self.attempt(lambda: producer.send(topic, value, **options).result())
        self.account.add(topic, value, answer.told, key=options.get("key") if topic == "kept" else None)
        return answer

    def transaction(
        self, records: list[tuple[str, bytes]], *, name: str = "script", commits: bool = True
    ) -> None:
        """All of *records* in a transaction, which is committed (or aborted)."""
        self.attempt(lambda: self.broker.transaction(name))
        transaction = self.result
        if transaction is None:
            return
        decision = Decision(records, Told.REFUSED)
        self.account.decisions.append(decision)
        for topic, value in records:
            if self.attempt(partial(transaction.send, topic, value)).error is not None:
                commits = False
        if commits:
            answer = self.attempt(transaction.commit)
            is_unknown = isinstance(answer.error, StorageFailedError)
            decision.told = answer.told if answer.error is None or is_unknown else Told.REFUSED
        else:
            self.attempt(transaction.abort)

    # Afterwards -----------------------------------------------------------------------------------------

    def directory(self) -> DataDirectory:
        directory: DataDirectory = self.broker._directory
        return directory

    def excuse(self, topic: str) -> bool:
        """Whether *topic*, or the journal, takes no writes because one of its syncs has failed."""
        directory = self.directory()
        journal = directory.journal.log
        logs = [directory.log(topic, number) for number in range(directory.topic(topic).partitions)]
        for log in [journal, *logs]:
            if log.state().sync.failed:
                assert self.files.has_failed_in(log.directory), (
                    f"{log.directory} is failed without a failed sync"
                )
                return True
        return False

    def journal_excuse(self) -> bool:
        log = self.directory().journal.log
        return bool(log.state().sync.failed)

    def close(self) -> Answer:
        """Close the broker; when this returns, nothing of the process has the directory open."""
        broker, self.broker = self.broker, None
        directory = broker._directory
        answer = self.attempt(broker.close)
        deadline = time.monotonic() + PATIENCE_S
        while not directory.closed:  # a thread of a group may have to leave it first
            assert time.monotonic() < deadline, "the directory stays open"
            time.sleep(0.01)
        return answer

    def goes_on(self, word: bytes, *, topics: Collection[str] | None = None) -> None:
        """Everything can be written again, but for what a failed sync has closed until the next open."""
        producer = self.producer()
        for topic in set(self.broker.topics() if topics is None else topics) - {DEAD}:
            answer = self.send(producer, topic, b"%s %s" % (word, topic.encode()), key=b"key")
            assert answer.error is None or self.excuse(topic), f"{topic} does not go on: {answer.error!r}"
        answer = self.attempt(producer.close)
        assert answer.error is None or self.files.failed, f"closing: {answer.error!r}"
        if not self.journal_excuse():
            self._group_goes_on()
        before = len(self.account.decisions)
        self.transaction([("plain", b"%s in a transaction" % word)], name=word.decode())
        excused = self.excuse("plain")
        decisions = self.account.decisions[before:]
        assert excused or (decisions and decisions[0].told is Told.DONE), f"no transaction: {decisions}"

    def _group_goes_on(self) -> None:
        """A new member of the group gets the partition, whatever the members before it could not do."""
        with self.broker.consumer("plain", group="readers", delivery="manual") as consumer:
            deadline = time.monotonic() + PATIENCE_S
            while not consumer.position():
                assert time.monotonic() < deadline, "the group's partition is in nobody's hands"
                consumer.poll()
                self.clock.advance(ms=1000)
                time.sleep(0.001)
