"""The client processes on librdkafka: ``python -m tests.proof.history.clients`` with a ``Task`` as JSON.

role             does
producer         sends bursts to every partition of EVENTS; idempotent or not
transactional    the same in transactions, of which it aborts some
transformer      reads EVENTS in a group and writes a copy of each record to COPIES: exactly once
reader           reads everything from the beginning by ``assign``, seeks back now and then
member           reads EVENTS by ``subscribe``, commits
"""

from __future__ import annotations

import sys

import msgspec

from .client import Role, Task, live
from .consumers import member, reader
from .producers import producer, transactional
from .transformer import transformer

ROLES: dict[str, Role] = {
    "producer": producer,
    "transactional": transactional,
    "transformer": transformer,
    "reader": reader,
    "member": member,
}

if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.argv[1], type=Task)
    live(wanted, ROLES[wanted.role])
