"""``python -m tests.proof.crash_states.quick``: the states that tell most, in seconds; exit code 1 at a broken promise.

For whoever changes the product and wants to know at once whether a sync is missing (``mutations`` does).
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..proof import delete_folder, new_folder
from .exploration import Explorer, MakeDisk, Recording, RecordingDisk, record
from .states import Depth
from .workloads import SCRIPTS, recovery

SEED = 0
UNLIMITED = 1 << 30
RECOVERIES = 8  # of each script


def quick(folder: Path, make_disk: MakeDisk = RecordingDisk) -> int:
    """How many states there were.

    Raises:
        AssertionError: one breaks a promise.
    """
    explorer = Explorer(folder, SEED)
    recordings = [record(script.__name__, script, folder, make_disk=make_disk) for script in SCRIPTS]
    recoveries: list[Recording] = []
    for recording in recordings:
        for sample in explorer.explore(recording, UNLIMITED, depth=Depth.ALL_OR_NOTHING, samples=RECOVERIES):
            name = f"recovery of {recording.name} at {sample.operation}"
            recoveries.append(
                record(
                    name,
                    recovery,
                    folder,
                    tree=sample.tree,
                    promises=sample.promises,
                    make_disk=make_disk,
                )
            )
    for recording in recoveries:
        explorer.explore(recording, UNLIMITED, depth=Depth.ALL_OR_NOTHING)
    for recording in recordings + recoveries:
        explorer.explore(recording, UNLIMITED, depth=Depth.OBVIOUS)
    return len(explorer.digests)


def main() -> int:
    folder = new_folder(in_memory=True)
    try:
        print(f"{quick(folder)} states: held")
    except AssertionError as error:
        print(error)
        return 1
    finally:
        delete_folder(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
