"""``logbroker serve`` on a disk that is full at every 4 KiB step: from no room up to what its clients' round needs.

The data directory is a tmpfs, which is made so small, and later roomy again. While it is full

    by turns                                       afterwards
    the server goes on                             it is the same process still
    it is stopped as an operator does (SIGTERM)    it says in a line why it could not close cleanly, or did
    it is killed, and started on the full disk     it serves, or says in a line why it cannot

One server's directory and the same clients all the while. The mounts are made in a mount namespace that ends with the
process that made it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import logbroker
from tests.server.server_process import ServerProcess

from ..proof import Row, Scope
from .account import Account
from .clients import TOPICS, Clients
from .full_disk import ROOMY_BYTES, STEP_BYTES, in_a_namespace, mount
from .stories import SMALL

MODULE = "tests.proof.faults.full_disk_served"  # pytest has another name for it
TEST = "a server's disk of a size, full, then with room again"
MAX_STEPS = 300
TURNS = ("goes on", "is stopped", "is killed")
FAILED = 1


def run(scope: Scope) -> Iterator[Row]:
    """Each size for each turn; bounded, every fourth of these pairs."""
    yield in_a_namespace(MODULE, TEST, scope, step=scope.count(4, 1))


def main(disk: str, first: int, step: int) -> None:
    """In the namespace: every *step*-th pair of size and turn until a size is enough; prints how many."""
    mount(f"size={ROOMY_BYTES}", disk)
    try:
        print(_all_sizes(Path(disk), first, step))
    finally:
        subprocess.run(["umount", disk], check=True)


def _all_sizes(data: Path, first: int, step: int) -> int:
    with logbroker.open(data) as broker:
        for topic in TOPICS:
            broker.create_topic(topic, config=SMALL)
    account = Account()
    server = ServerProcess(data, "--log-level", "warning").start()
    try:
        clients = Clients(server.address, account, value_bytes=600)
        clients.go_on()
        cases = 0
        for number in range(first - 1, MAX_STEPS * len(TURNS), step):
            pages, turn = number // len(TURNS), TURNS[number % len(TURNS)]
            try:
                is_enough = _try(server, clients, pages, turn)
            except AssertionError as error:
                told = f"{pages} pages of room, the server {turn}: {error}"
                raise AssertionError(f"{told}\n{server.log()}") from error
            cases += 1
            if is_enough:
                break
        else:
            raise AssertionError("a round needs more than was thought")
        clients.close()
        assert server.stop() == 0, server.log()
    finally:
        server.kill()
    assert "Traceback" not in server.log(), server.log()
    with logbroker.open(data) as broker:
        account.check(broker)
    return cases


def _try(server: ServerProcess, clients: Clients, pages: int, turn: str) -> bool:
    """A round with so many pages of room, and another with all that it takes; whether the first was refused nothing."""
    clients.refusals.clear()
    disk = str(server.data)
    status = os.statvfs(disk)
    used_bytes = (status.f_blocks - status.f_bfree) * status.f_frsize
    mount(f"remount,size={used_bytes + pages * STEP_BYTES}", disk)
    try:
        clients.try_everything()
        assert pages or "loose" in clients.refusals, "a full disk refuses nothing"
        if turn != "goes on":
            clients.may_be_forgotten = True
            if turn == "is killed":
                server.kill()
                server.try_to_start()
            assert server.stop() in (0, FAILED), "it ends otherwise"
    finally:
        mount(f"remount,size={ROOMY_BYTES}", disk)
    if turn != "goes on":
        server.start()
    assert server.is_alive, "the server died"
    is_enough = not clients.refusals
    clients.go_on()
    return is_enough


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
