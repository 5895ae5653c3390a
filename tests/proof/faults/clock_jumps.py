"""A wall clock that jumps by an hour, forward or back, at each step of a scripted run.

runs on monotonic time    leases, members of groups: a jump ends none, and prolongs none
runs on wall time         timestamps of records, retention by age: a jump of less than retention.ms removes
                          nothing that was written within it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import logbroker
from logbroker_storage.testing import ManualClock

from ..proof import Row, Scope, delete_folder, new_folder
from .stories import NOON_MS, SMALL

HOUR_MS = 3_600_000
RETENTION_MS = 2 * HOUR_MS
STEPS = 6


def run(scope: Scope) -> Iterator[Row]:
    for name, jump_ms in (("late", -HOUR_MS), ("early", HOUR_MS)):
        for at in range(STEPS):
            folder = new_folder(in_memory=True)
            try:
                _try(f"{folder}/data", at, jump_ms)
            finally:
                delete_folder(folder)
        yield Row(f"a wall clock that is suddenly an hour {name}", STEPS, "steps")


def _try(path: str, at: int, jump_ms: int) -> None:
    clock = ManualClock(NOON_MS)
    sent: list[bytes] = []
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("plain", config={**SMALL, "retention.ms": RETENTION_MS})
        broker.create_subscription("workers", topic="plain", lease=30.0)
        with (
            broker.producer() as producer,
            broker.queue(subscription="workers") as queue,
            broker.queue(subscription="workers") as other,
            broker.consumer("plain", group="readers", delivery="manual") as consumer,
        ):

            def send() -> None:
                for _ in range(6):
                    sent.append(b"%03d" % len(sent) * 30)
                    producer.send("plain", sent[-1]).result()

            def work() -> None:
                held.append(queue.receive_many(1)[0])

            def read() -> None:
                read_values.extend(_rest(consumer))
                consumer.commit()

            def clean() -> None:
                broker._directory.maintenance.clean()

            held: list[logbroker.QueueMessage] = []
            read_values: list[bytes | None] = []
            steps: list[Callable[[], None]] = [send, work, read, send, clean, read]
            for number, step in enumerate(steps):
                if number == at:
                    clock.set_back(ms=-jump_ms)
                step()
            # No lease has ended, no member was removed: not a second has passed.
            assert held[0].offset not in {message.offset for message in other.receive_many(100)}
            held[0].accept()
            assert read_values == sent, read_values
            assert consumer.position() == {0: len(sent)}
            clock.advance(ms=31_000)
            again = {message.offset for message in queue.receive_many(100)}
            assert again == set(range(len(sent))) - {0}, again
        with broker.consumer("plain") as consumer:
            assert (left := _rest(consumer)) == sent, left


def _rest(consumer: logbroker.Consumer) -> list[bytes | None]:
    """The values of all that is to be polled."""
    found: list[bytes | None] = []
    while records := consumer.poll():
        found += [record.value for record in records]
    return found
