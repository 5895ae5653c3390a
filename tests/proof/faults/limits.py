"""Limits of a process, of every size up to what a scripted run needs, and raised again while it runs.

RLIMIT_FSIZE    writes come short, then fail with EFBIG (Python ignores the signal)
RLIMIT_NOFILE   calls fail with EMFILE
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..proof import Row, Scope, delete_folder, new_folder
from .squeezed import ENOUGH, go_through, in_a_child

MODULE = "tests.proof.faults.limits"  # pytest has another name for it
ROOT = Path(__file__).parents[3]

LIMITS = {
    "RLIMIT_FSIZE": (resource.RLIMIT_FSIZE, range(0, 1 << 20, 4096)),
    "RLIMIT_NOFILE": (resource.RLIMIT_NOFILE, range(8, 65)),
}


def run(scope: Scope) -> Iterator[Row]:
    """From the smallest on until one is enough; bounded, every fourth."""
    step = scope.count(4, 1)
    for name in LIMITS:
        folder = new_folder(in_memory=True)
        try:
            # In a process of its own, because it forks, and here are threads.
            command = [sys.executable, "-m", MODULE, str(folder), name, str(step)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        finally:
            delete_folder(folder)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        yield Row(f"{name}, then raised", int(done.stdout.split()[-1]), "sizes")


def main(folder: str, name: str, step: int) -> None:
    """Try sizes until one is enough, or all; prints how many."""
    kind, sizes = LIMITS[name]
    before = resource.getrlimit(kind)
    tried = 0
    for size in [*sizes[::step], sizes[-1]]:
        path = f"{folder}/{tried}"
        squeeze = partial(resource.setrlimit, kind, (size, before[1]))
        ease = partial(resource.setrlimit, kind, before)
        status = in_a_child(partial(go_through, path, squeeze, ease))
        shutil.rmtree(path, ignore_errors=True)
        tried += 1
        if status == ENOUGH:
            break
        if status != 0:
            sys.exit(f"{name}={size}: the process ended with {status} (negative: by that signal)")
    print(tried)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
