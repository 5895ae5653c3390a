"""A recorded program, and the states of the disk that a power cut at any of its operations may leave."""

from __future__ import annotations

import copy
import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from logbroker_storage.testing import ManualClock

from .disk import Disk
from .judgement import judge
from .observation import Observation, Observer, listening
from .operations import Operation, Told, Tree
from .program import Program
from .promises import Promises
from .states import Depth, Medium, Survivors, described, states
from .views import Views

VIEW_EVERY = 6  # promises between two copies of the view
TRIES = 4  # states that may be looked at, for each new one that is wanted; and at
LEAST = 40  # …


@dataclass
class Recording:
    """What a program did, beginning with what it found."""

    name: str
    inodes: dict[int, bytes | dict[str, int]]
    operations: list[Operation]
    promises: Promises
    """Those that held when it began."""
    views: Views
    clock: ManualClock
    known: dict[bytes, Observation] = field(default_factory=dict)
    """What was found of each state so far, by its digest."""


class RecordingDisk(Disk):
    """Keeps copies of the view beside what it writes down."""

    def __init__(self, root: str, tree: Tree | None, views: Views) -> None:
        super().__init__(root, tree)
        self._views = views
        self._promises = 0

    def tell(self, told: Told) -> None:
        super().tell(told)
        self._promises += 1
        if self._promises % VIEW_EVERY == 0:
            self._views.copy(self.path, len(self.operations))


MakeDisk = Callable[[str, Tree | None, Views], RecordingDisk]


def record(
    name: str,
    workload: Callable[[Program], None],
    folder: Path,
    *,
    tree: Tree | None = None,
    promises: Promises | None = None,
    make_disk: MakeDisk = RecordingDisk,
) -> Recording:
    """Run *workload* on a disk that holds *tree*, in the existing *folder*, which is emptied afterwards."""
    root = folder / "recorded"
    root.mkdir()
    views = Views(folder / "copy")
    clock = ManualClock()
    disk = make_disk(str(root), tree, views)
    inodes = disk.inodes()
    with listening() as errors:
        workload(Program(disk, clock))
    assert not errors.found, f"{name}: {errors.found}"
    shutil.rmtree(root)
    return Recording(name, inodes, disk.operations, promises or Promises(), views, clock)


class Sample(NamedTuple):
    """A state, for a program that begins with it."""

    tree: Tree
    promises: Promises
    operation: int


@dataclass
class Explorer:
    """Goes through recordings, and counts the distinct states that it has opened."""

    folder: Path
    seed: int
    digests: set[bytes] = field(default_factory=set)

    def explore(
        self, recording: Recording, limit: int, *, depth: Depth = Depth.EVERYTHING, samples: int = 0
    ) -> list[Sample]:
        """Open and judge about *limit* new states; some of them, which were picked at random.

        Raises:
            AssertionError: a state breaks a promise; the message says how to repeat it.
        """
        root = self.folder / "opened"
        root.mkdir(exist_ok=True)
        medium = Medium(recording.inodes)
        promises = copy.deepcopy(recording.promises)
        goal = len(self.digests) + limit
        picked: list[Sample] = []
        count = len(recording.operations)
        pick = random.Random(f"{self.seed} {recording.name}")
        sampled = set(pick.sample(range(count), min(samples, count)))
        with listening() as errors:
            observer = Observer(str(root), recording.clock, recording.views, errors)
            for index, operation in enumerate(recording.operations):
                medium.do(operation)
                if isinstance(operation, Told):
                    operation.change(promises)
                    promises.version += 1
                wanted = -(-(goal - len(self.digests)) // (count - index))
                rng = random.Random(f"{self.seed} {recording.name} {index}")
                # A promise changes no file: what is found then is known but for what lies between.
                deep = min(depth, Depth.OBVIOUS) if isinstance(operation, Told) else depth
                choices = itertools.islice(states(medium, operation, rng, deep), max(TRIES * wanted, LEAST))
                for survivors in choices:
                    tree, digest = medium.tree(survivors)
                    found = recording.known.get(digest)
                    if found is None:
                        if wanted <= 0:
                            break
                        wanted -= digest not in self.digests
                        self.digests.add(digest)
                        found = recording.known[digest] = observer.observe(tree, index, rng)
                    elif found.judged == promises.version:
                        continue
                    found.judged = promises.version
                    broken = judge(found, promises)
                    if broken:
                        raise AssertionError(self._report(recording, index, medium, survivors, found, broken))
                if index in sampled:
                    tree, _ = medium.tree(medium.random(pick))
                    picked.append(Sample(tree, copy.deepcopy(promises), index))
        return picked

    def _report(
        self,
        recording: Recording,
        index: int,
        medium: Medium,
        survivors: Survivors,
        found: Observation,
        broken: list[str],
    ) -> str:
        told = [op.what for op in recording.operations[: index + 1] if isinstance(op, Told)]
        lines = [
            f"{recording.name}, seed {self.seed}, operation {index} of {len(recording.operations)}:",
            f"{recording.operations[index]!r:.200}",
            f"the last promises: {told[-6:]}",
            f"a power cut there, with the view {found.view}, may leave a state in which",
            *(f"  - {fault}" for fault in broken[:10]),
            "what was lost:",
            *(f"  - {loss}" for loss in described(medium, survivors)),
        ]
        return "\n".join(lines)
