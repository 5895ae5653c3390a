"""One process of the long form: ``python -m tests.proof.crash_states.worker SEED STATES FOLDER``.

Prints a broken promise and exits with 1, or leaves the digests of its states in the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .exploration import Explorer
from .run import explore_random

if __name__ == "__main__":
    seed, wanted, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    explorer = Explorer(folder, seed)
    try:
        explore_random(explorer, wanted)
    except AssertionError as error:
        print(error)
        sys.exit(1)
    (folder / "digests").write_bytes(b"".join(explorer.digests))
