"""What every client process is made of: its task, its life until SIGTERM, and one client after the other.

A client that cannot go on (it was fenced, or its library gave up) is followed by a new one in the same process, with a
new name; what it did not hear of stays unknown. Processes are killed, or end at SIGTERM with exit code 0.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from .operations import Isolation, Recorder

EVENTS, COPIES = "events", "copies"
PARTITIONS = 3
PLACES = [f"{topic}-{number}" for topic in (EVENTS, COPIES) for number in range(PARTITIONS)]
CALL_S = 10.0  # a call of the library that takes longer is made again
GIVE_UP_S = 60.0
STUCK_S = 20.0
CLIENT: dict[str, Any] = {
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 100,
    "retry.backoff.ms": 20,
    "retry.backoff.max.ms": 200,
    "socket.timeout.ms": 2000,
    "topic.metadata.refresh.interval.ms": 5000,
    "log_level": 0,
}


class Task(msgspec.Struct, frozen=True):
    """What a process is to do."""

    role: str
    name: str
    folder: str
    """Where its history goes."""
    address: str
    """host:port, or for an embedded client the data directory."""
    seed: int
    isolation: Isolation = Isolation.COMMITTED
    group: str = ""
    options: dict[str, Any] = {}
    """Further settings of the library."""


class GaveUpError(Exception):
    """This client cannot go on; the next may."""


class Life:
    """Of the process: SIGTERM ends it, when its clients are through with what they began; SIGUSR1 asks where it is."""

    def __init__(self) -> None:
        self.is_over = False
        faulthandler.register(signal.SIGUSR1)
        # A handler would not be called while the library does not return; and a signal that is blocked outlives execv.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=self._wait_for_end, daemon=True).start()

    def _wait_for_end(self) -> None:
        signal.sigwait([signal.SIGTERM])
        self.is_over = True

    @contextmanager
    def returning_within(self, seconds: float) -> Iterator[None]:
        """Begin the process anew if the block takes longer, as whoever runs it would; end it, if its life is over.

        librdkafka 2.16's send_offsets_to_transaction may hang when its coordinator was away, whatever its timeout
        (librdkafka issues 5456 and 5511).
        """
        timer = threading.Timer(seconds, self._begin_anew)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _begin_anew(self) -> None:
        print("a call of the library does not return:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback()
        if self.is_over:
            os._exit(0)
        os.execv(sys.executable, sys.orig_argv)


Role = Callable[[Task, Recorder, Life, random.Random], None]


def live(task: Task, role: Role) -> None:
    """One client after the other, until SIGTERM."""
    life = Life()
    rng = random.Random(task.seed)
    while not life.is_over:
        recorder = Recorder.of_new_client(Path(task.folder), f"{task.name}.{os.getpid()}")
        try:
            role(task, recorder, life, rng)
        except GaveUpError as error:
            print(f"{recorder.client} gave up: {error!r} {error.__cause__!r}", file=sys.stderr, flush=True)
        finally:
            recorder.close()
