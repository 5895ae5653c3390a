"""The processes that ask and answer in the end-to-end tests: ``python rpc_worker.py ROLE DATA …``.

respond DATA [LEASE]   answers "<pid> <delivery count> <value>"; what the value says first happens first
ask DATA VALUE         asks once, with a minute's patience
fork DATA              asks, forks, and says what the child and then the parent can still do
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import logbroker

TOPIC = "rpc"


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def respond(path: str, lease: str = "10") -> None:
    with logbroker.open(path) as broker:

        @broker.responder(TOPIC, concurrency=2, lease=float(lease))
        def answer(request: logbroker.Request) -> bytes:
            value = request.value or b""
            if value == b"poison":
                os._exit(1)
            if value == b"wait":
                say("working")
                sys.stdin.readline()
            if value.startswith(b"sleep ") and request.delivery_count == 1:
                say("working")
                time.sleep(float(value.split()[1]))
            return b"%d %d %s" % (os.getpid(), request.delivery_count, value)

        say("ready")
        answer.run()


def ask(path: str, value: str) -> None:
    with logbroker.open(path) as broker:
        say("ready")
        broker.request(TOPIC, value.encode(), timeout=60)


def fork(path: str) -> None:
    with logbroker.open(path) as broker:
        broker.request(TOPIC, b"before")
        child = os.fork()
        if child == 0:
            try:
                broker.request(TOPIC, b"in the child")
            except logbroker.ForkedError:
                say("child: forked")
            broker.close()
            os._exit(0)
        os.waitpid(child, 0)
        say("parent: " + (broker.request(TOPIC, b"after").value or b"").decode().split()[-1])


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    roles: dict[str, Callable[..., None]] = {"respond": respond, "ask": ask, "fork": fork}
    roles[role](*arguments)
