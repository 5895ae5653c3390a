"""A process that is stopped inside a write to the view, where it holds what every writer needs.

The others wait: nothing is acknowledged meanwhile, and reading goes on. They go on as soon as it continues, or is
killed: the kernel then gives LMDB's mutex to the next, who finds nothing of what was not committed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import logbroker

from ..proof import Row, Scope

PATIENCE_S = 30.0  # longer than anything takes on a busy machine
A_WHILE_S = 0.3  # what is let to happen wrongly in the meantime

_SCRIPT = """
import os, signal, sys
import logbroker
broker = logbroker.open(sys.argv[1])
view = broker._directory.view
with view.write() as transaction:
    view.put_meta_int(transaction, b"unfinished", 1)
    os.kill(os.getpid(), signal.SIGSTOP)
    if sys.argv[2] == "aborts":
        transaction.abort()
"""


def run(scope: Scope) -> Iterator[Row]:
    cases = scope.count(2, 50)
    for ending in (signal.SIGCONT, signal.SIGKILL):
        for number in range(cases):
            _try(f"{scope.folder}/stopped-{ending.name}-{number}", ending)
        yield Row(f"SIGSTOP inside a write to the view, then {ending.name}", cases, "stops")


def _try(path: str, ending: signal.Signals) -> None:
    with logbroker.open(path) as broker:
        broker.create_topic("plain")
        with broker.producer() as producer:
            producer.send("plain", b"before").result()
            stopped = subprocess.Popen([sys.executable, "-c", _SCRIPT, path, "commits"])
            try:
                _, status = os.waitpid(stopped.pid, os.WUNTRACED)
                assert os.WIFSTOPPED(status), f"it ended with {status}"
                told: list[object] = []
                sender = threading.Thread(target=lambda: told.append(_send(producer)), daemon=True)
                sender.start()
                sender.join(A_WHILE_S)
                assert not told, f"told {told} while nobody can publish anything"
                with broker.consumer("plain") as consumer:
                    found = [record.value for record in consumer.poll()]
                    assert found == [b"before"], found
            finally:
                os.kill(stopped.pid, ending)
            sender.join(PATIENCE_S)
            assert told == [1], f"after {ending.name}: {told or 'it hangs'}"
            stopped.wait(PATIENCE_S)
        unfinished = broker._directory.view.meta_int(b"unfinished")
        assert unfinished == (1 if ending is signal.SIGCONT else 0), unfinished
        with broker.consumer("plain") as consumer:
            found = [record.value for record in consumer.poll()]
            assert found == [b"before", b"while it is stopped"], found


def _send(producer: logbroker.Producer) -> object:
    try:
        return producer.send("plain", b"while it is stopped").result().offset
    except logbroker.LogbrokerError as error:
        return error
