"""Where workers come from: a process that has imported everything, has opened nothing, and forks.

A worker that is forked here costs 2 ms of processor time, and 5 more until it has the directory open; one that
starts Python costs 300. Commands come line by line on standard input, answers go to standard output:

    start LIFE (JSON)    the process id of a new worker
    reap PID             how the worker ended, as ``os.waitpid`` says it. Until then its process id is its own

When the input ends, whoever started the nursery is gone: every worker that is left is killed.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

import msgspec

from .roles import Life, live

NICE = (
    10  # whoever kills comes before those who are to be killed: else they live longer than they are meant to
)


def main() -> None:
    gc.collect()
    gc.freeze()  # what was imported is shared with all the workers, and stays so
    workers: set[int] = set()
    try:
        for line in sys.stdin:
            command, _, argument = line.partition(" ")
            if command == "start":
                pid = _fork(msgspec.json.decode(argument, type=Life))
                workers.add(pid)
                answer = pid
            else:
                pid = int(argument)
                _, answer = os.waitpid(pid, 0)
                workers.remove(pid)
            sys.stdout.write(f"{answer}\n")
            sys.stdout.flush()
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)


def _fork(life: Life) -> int:
    pid = os.fork()
    if pid == 0:
        _be_born(life)
    return pid


def _be_born(life: Life) -> NoReturn:
    """Live and exit: 0 when all was done, 1 after an exception, whose traceback is in the worker's errors."""
    status = 1
    os.nice(NICE)
    try:
        errors = os.open(life.errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDWR)
        for inherited, own in ((0, nothing), (1, nothing), (2, errors)):
            os.dup2(own, inherited)
        live(life)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
