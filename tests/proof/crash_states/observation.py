"""What a state of the disk turns out to be, when the real recovery opens it.

    1. open, as after a restart of the machine: the view is gone, or not to be believed
    2. look at everything
    3. die, lose the view, open again, and look again: it must be the same
    4. send each producer's last batch again: it must be known
    5. let the queues' messages be received until none is left
    6. append to every log, and close

Steps 3 to 6 depend on nothing but what the first recovery left on the disk: where it leaves what another state's
did, byte for byte, they are not done again.

What must be so of any state is found to be a fault here. What depends on what was promised is judged
afterwards (``judgement``), so a state that is met twice is opened once.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import logbroker
from logbroker.broker import Broker
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import encode_values
from logbroker_storage.testing import ManualClock
from logbroker_storage.testing.workbench import crash

from .disk import Disk
from .operations import Tree
from .sight import Eye, Sight, batches_of
from .views import Views


@dataclass
class Observation:
    """One state."""

    view: str = ""
    """What was left of the view."""
    sight: Sight = field(default_factory=Sight)
    """As the first recovery left it."""
    delivered: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By subscription, partition and offset of every message that was handed out."""
    letters: dict[str, list[bytes | None]] = field(default_factory=dict)
    """By subscription, the values of its dead letters when all was handed out."""
    faults: list[str] = field(default_factory=list)
    judged: int = -1
    """The version of the promises that it was last judged by."""


FAILURES = (LogbrokerError, OSError, AssertionError, ValueError)


@dataclass
class Use:
    """What came of opening, and using, what a first recovery left on the disk (steps 3 to 6)."""

    sight: Sight = field(default_factory=Sight)
    delivered: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    letters: dict[str, list[bytes | None]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Observer:
    """Opens states, one after the other, in one real directory."""

    def __init__(self, root: str, clock: ManualClock, views: Views, errors: Errors) -> None:
        self._root = root
        self._clock = clock
        self._views = views
        self._eye = Eye()
        self._errors = errors
        self._uses: dict[bytes, Use] = {}  # by the digest of the disk that each begins with

    def observe(self, tree: Tree, moment: int, rng: random.Random) -> Observation:
        """Open *tree*, which a power cut behind operation *moment* left."""
        found = Observation()
        self._errors.found.clear()
        disk = Disk(self._root, tree)
        try:
            found.view = self._views.put(disk.path, moment, rng)
            broker = self._open(disk)
            try:
                found.sight = self._eye.look(broker._directory)
            finally:
                crash(broker._directory)
        except FAILURES as error:
            found.faults.append("".join(traceback.format_exception(error)))
        found.faults += self._errors.found
        if not found.faults:
            found.faults += [f"{name} is not wholly deleted" for name in found.sight.half_deleted]
            self._views.remove(disk.path)
            left = disk.digest()
            use = self._uses.get(left)
            if use is None:
                use = self._uses[left] = self._use(disk)
            again = [f"the second recovery: {change}" for change in found.sight.differences(use.sight)]
            found.faults += again + use.faults
            found.delivered, found.letters = use.delivered, use.letters
        return found

    def _open(self, disk: Disk) -> Broker:
        return logbroker.open(disk.path, files=disk, clock=self._clock)

    def _use(self, disk: Disk) -> Use:
        """Open what a first recovery left, and use it."""
        use = Use()
        self._errors.found.clear()
        try:
            broker = self._open(disk)
            try:
                use.sight = self._eye.look(broker._directory)
                self._send_again(broker._directory, use)
                self._drain(broker, use)
                self._go_on(broker._directory, use)
            except BaseException:
                crash(broker._directory)
                raise
            broker.close()
        except FAILURES as error:
            use.faults.append("".join(traceback.format_exception(error)))
        use.faults += self._errors.found
        return use

    def _send_again(self, directory: DataDirectory, use: Use) -> None:
        for place, seen in use.sight.logs.items():
            log = directory.log(*place)
            for base_offset, batch in seen.last_batches:
                result = log.append(bytearray(batch))
                if not result.duplicate or result.base_offset != base_offset:
                    use.faults.append(f"{place}: a batch that was sent again was not recognised: {result}")
            if log.offsets().log_end_offset != seen.log_end_offset:
                use.faults.append(f"{place}: a batch that was sent again was appended again")

    def _drain(self, broker: Broker, use: Use) -> None:
        for name in broker.subscriptions():
            handed_out = use.delivered[name] = []
            with broker.queue(subscription=name) as queue:
                while messages := queue.receive_many(1000):
                    handed_out += [(message.partition, message.offset) for message in messages]
                    messages.accept()
            topic = broker.subscription(name).dead_letter
            if topic in use.sight.topics:
                use.letters[name] = [
                    record.value
                    for number in range(use.sight.topics[topic][1])
                    for batch in batches_of(broker._directory.log(topic, number), Isolation.READ_COMMITTED)
                    for record in self._eye.records(batch)
                ]

    def _go_on(self, directory: DataDirectory, use: Use) -> None:
        for place in use.sight.logs:
            log = directory.log(*place)
            end_offset = log.offsets().log_end_offset
            result = log.append(encode_values([b"goes on"], [(0, self._clock.now_ms())]))
            log.wait_durable(end_offset + 1)
            if result.base_offset != end_offset or log.offsets().high_watermark != end_offset + 1:
                use.faults.append(f"{place} does not go on at {end_offset}: {result}, {log.offsets()}")


class Errors(logging.Handler):
    """Collects what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"logged: {record.getMessage()}")


@contextmanager
def listening() -> Iterator[Errors]:
    """What the product logs as an error is collected, and the rest kept off the terminal."""
    logger = logging.getLogger("logbroker")
    errors = Errors()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(errors)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        yield errors
    finally:
        logger.removeHandler(errors)
        logger.setLevel(level)
        logger.propagate = propagates
