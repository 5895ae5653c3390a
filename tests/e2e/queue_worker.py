"""A worker on a queue, to be killed: ``python queue_worker.py DATA LOG HABIT``.

It receives and settles until it dies, and says in LOG what it does, before and after, with monotonic times:

    received BEFORE AFTER PARTITION OFFSET KEY VALUE      in these hands since some moment between the two
    settling BEFORE PARTITION OFFSET                      perhaps not in these hands from here on
    accepted | rejected | released | lost AFTER PARTITION OFFSET

Each chunk is one write to a file that is only appended to, so a killed worker leaves no half line that matters.
HABIT "hold" takes one message, says so on standard output, and accepts it once there is a line on standard input.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterable

import logbroker
from logbroker.queues.consumer import Queue, QueueMessage

LEASE_S = 1.0
REJECTED, RELEASED = 5, 7  # with the habit "bury": what can be divided by one of these is not accepted


class Diary:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, lines: Iterable[str]) -> None:
        os.write(self._fd, "".join(f"{line}\n" for line in lines).encode())


def number_of(message: QueueMessage) -> int:
    return int(message.value or b"")


def settle(diary: Diary, messages: list[QueueMessage], how: str, action: Callable[[], None]) -> None:
    if not messages:
        return
    diary.note(f"settling {time.monotonic()} {message.partition} {message.offset}" for message in messages)
    lost: set[tuple[int, int]] = set()
    try:
        action()
    except logbroker.LeaseLostError as error:
        lost = {
            (partition, offset)
            for _, partition, first, last in error.lost
            for offset in range(first, last + 1)
        }
    now = time.monotonic()
    diary.note(
        f"{'lost' if (message.partition, message.offset) in lost else how} {now} {message.partition} {message.offset}"
        for message in messages
    )


def work(queue: Queue, diary: Diary, habit: str, rng: random.Random) -> None:
    while True:
        before = time.monotonic()
        batch = queue.receive_many(rng.randint(1, 20), timeout=0.2)
        after = time.monotonic()
        diary.note(
            f"received {before} {after} {message.partition} {message.offset} "
            f"{(message.key or b'-').decode()} {number_of(message)}"
            for message in batch
        )
        if rng.random() < 0.01:
            time.sleep(LEASE_S * 1.2)  # too long: what is in these hands is lost
        left = list(batch)
        if habit == "bury":
            rejected = [message for message in left if number_of(message) % REJECTED == 0]
            settle(diary, rejected, "rejected", lambda rejected=rejected: queue.reject(rejected, "bad"))  # type: ignore[misc]
            released = [
                message
                for message in left
                if number_of(message) % REJECTED and number_of(message) % RELEASED == 0
            ]
            settle(diary, released, "released", lambda released=released: queue.release(released))  # type: ignore[misc]
            left = [message for message in left if message not in rejected and message not in released]
        if rng.random() < 0.5:
            settle(diary, left, "accepted", lambda left=left: queue.accept(left))  # type: ignore[misc]
        else:
            for message in left:
                settle(diary, [message], "accepted", message.accept)


def hold(queue: Queue) -> None:
    message = queue.receive(timeout=30)
    print("held", flush=True)
    sys.stdin.readline()
    try:
        message.accept()
    except logbroker.LeaseLostError:
        print("lost", flush=True)
    else:
        print("accepted", flush=True)


def main() -> None:
    path, log, habit = sys.argv[1:]
    with logbroker.open(path) as broker, broker.queue(subscription="workers") as queue:
        if habit == "hold":
            hold(queue)
        else:
            work(queue, Diary(log), habit, random.Random(os.getpid()))


if __name__ == "__main__":
    main()
