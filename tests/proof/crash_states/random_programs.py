"""A program that does anything in any order: the same one for the same seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from logbroker.queues.message import QueueMessage

from .program import DEAD_LETTERS, Program

STEPS = 45
PRODUCERS = ("a", "b", "c")
GROUPS = ("g", "h")
SIZES = (1, 1, 1, 3, 30, 30, 200, 600, 5000)  # of values, in bytes


class RandomProgram:
    """One program; its topics are few, so that a state is opened quickly."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._values = itertools.count()
        self._partitions: dict[str, int] = {}
        self._in_hand: list[QueueMessage] = []
        self._has_queue = rng.random() < 0.4
        # Of a message that was deleted, too, nothing could be said: it is neither lost nor delivered.
        self._is_compacted = not self._has_queue and rng.random() < 0.4
        self._is_limited = not self._has_queue and not self._is_compacted and rng.random() < 0.5

    def __call__(self, program: Program) -> None:
        rng = self._rng
        program.open()
        self._create(program, "a", rng.choice((1, 2)))
        if self._has_queue:
            self._create(program, "jobs", 1)
            program.create(DEAD_LETTERS)
            program.subscribe("workers", "jobs")
        steps = self._steps()
        for step in rng.choices(list(steps), weights=list(steps.values()), k=STEPS):
            step(program)
        program.close()

    def _steps(self) -> dict[Callable[[Program], None], int]:
        steps: dict[Callable[[Program], None], int] = {
            self._append: 40,
            self._send: 4,
            self._sync: 6,
            self._roll: 5,
            self._checkpoint: 4,
            self._transact: 12,
            self._consume: 8,
            self._clean: 6,
            self._delete_records: 2,
            self._compact_journal: 2,
            self._change_topics: 4,
            self._reopen: 3,
        }
        if self._has_queue:
            steps |= {self._receive: 12, self._settle: 15}
        return steps

    # Steps --------------------------------------------------------------------------------------------

    def _create(self, program: Program, name: str, partitions: int) -> None:
        config: dict[str, str | int | float] = {
            "segment_bytes": self._rng.choice((300, 700, 2000, 20_000)),
            "index_interval_bytes": self._rng.choice((1, 200, 4096)),
        }
        if self._is_compacted:
            config |= {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0.01}
        if self._is_limited:
            config["retention_bytes"] = self._rng.choice((200, 1500))
        program.create(name, partitions, **config)
        self._partitions[name] = partitions

    def _place(self) -> tuple[str, int]:
        topic = self._rng.choice(list(self._partitions))
        return topic, self._rng.randrange(self._partitions[topic])

    def _value(self) -> bytes:
        return b"%d:" % next(self._values) + bytes(self._rng.choice(SIZES))

    def _append(self, program: Program) -> None:
        values = [
            (self._rng.choice((None, b"k", b"l", b"m")), self._value())
            for _ in range(self._rng.choice((1, 1, 2, 5)))
        ]
        sync = self._rng.random() < 0.6
        program.append(*self._place(), self._rng.choice(PRODUCERS), values, sync=sync)

    def _send(self, program: Program) -> None:
        program.send(*self._place(), self._value(), self._value())

    def _sync(self, program: Program) -> None:
        program.sync(*self._place())

    def _roll(self, program: Program) -> None:
        program.roll(*self._place())

    def _checkpoint(self, program: Program) -> None:
        program.checkpoint()

    def _transact(self, program: Program) -> None:
        places = {self._place() for _ in range(self._rng.choice((1, 2, 3)))}
        sends = [
            (*place, [self._value() for _ in range(self._rng.choice((1, 1, 2)))]) for place in sorted(places)
        ]
        offsets = [(self._rng.choice(GROUPS), "a")] if self._rng.random() < 0.3 else []
        accept = [self._in_hand.pop()] if self._in_hand and self._rng.random() < 0.5 else []
        commit = self._rng.random() < 0.6
        program.transaction(
            self._rng.choice(("t", "u")), sends, commit=commit, offsets=offsets, accept=accept
        )
        if not commit:
            self._in_hand += accept

    def _consume(self, program: Program) -> None:
        program.consume(self._rng.choice(GROUPS), "a", at_most=self._rng.choice((1, 5, 500)))

    def _clean(self, program: Program) -> None:
        places = [(topic, number) for topic, count in self._partitions.items() for number in range(count)]
        program.clean(
            retention=places if self._is_limited else [],
            compaction=places if self._is_compacted else [],
        )

    def _delete_records(self, program: Program) -> None:
        if self._has_queue:
            return
        place = self._place()
        offsets = program.offsets(*place)
        if offsets.log_start_offset < offsets.high_watermark:
            before = self._rng.randint(offsets.log_start_offset + 1, offsets.high_watermark)
            program.delete_records(*place, before)

    def _compact_journal(self, program: Program) -> None:
        program.compact_journal()

    def _change_topics(self, program: Program) -> None:
        if "x" not in self._partitions:
            self._create(program, "x", 1)
        elif self._partitions["x"] == 1 and self._rng.random() < 0.5:
            program.add_partitions("x", 2)
            self._partitions["x"] = 2
        else:
            program.delete("x")
            del self._partitions["x"]

    def _reopen(self, program: Program) -> None:
        program.close()
        self._in_hand.clear()
        program.open()

    def _receive(self, program: Program) -> None:
        self._in_hand += program.receive("workers", self._rng.choice((1, 2, 5)))

    def _settle(self, program: Program) -> None:
        count = min(len(self._in_hand), self._rng.choice((1, 1, 2)))
        if not count:
            return
        self._rng.shuffle(self._in_hand)
        messages = [self._in_hand.pop() for _ in range(count)]
        self._rng.choice((program.accept, program.accept, program.reject, program.release))(*messages)
