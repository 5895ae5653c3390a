"""A disk that is full at every 4 KiB step: from no room at all up to all that a scripted run needs.

A process runs on a tmpfs of that size until nothing goes any more, somebody gives the disk more room, and it goes
on. One that dies of it (a full disk is a SIGBUS where a file is mapped) breaks the promise.

The mounts are made in a mount namespace that ends with the process that made it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..proof import Row, Scope
from .squeezed import ENOUGH, go_through, in_a_child

MODULE = "tests.proof.faults.full_disk"  # pytest has another name for it
ROOT = Path(__file__).parents[3]

TEST = "a disk of a size, full, then with room again"
STEP_BYTES = 4096
ROOMY_BYTES = 64 << 20
PATIENCE_S = 1500.0  # bounded, it takes one minute
MAX_STEPS = 1000  # 4 MiB: the run needs a seventh of that


def run(scope: Scope) -> Iterator[Row]:
    """Bounded, every eighth size from one on that the seed chooses."""
    yield in_a_namespace(MODULE, TEST, scope, step=scope.count(8, 1))


def in_a_namespace(module: str, test: str, scope: Scope, *, step: int) -> Row:
    """What ``main`` of *module* does in a mount namespace of its own, with every *step*-th size."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("unshare") is None:
        return Row(test, 0, "sizes", skipped="needs Linux, root and unshare(1) to mount a tmpfs")
    first = scope.rng("full disk").randint(1, step)
    disk = f"{scope.folder}/disk"
    os.makedirs(disk, exist_ok=True)
    command = ["unshare", "--mount", sys.executable, "-m", module, disk, str(first), str(step)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"it hangs; it said: {error.stdout!r}\n{error.stderr!r}") from error
    if "cannot be mounted" in done.stderr or "unshare failed" in done.stderr:
        return Row(test, 0, "sizes", skipped=done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Row(test, int(done.stdout.split()[-1]), "sizes", scope.seed if step > 1 else None)


def main(disk: str, first: int, step: int) -> None:
    """In the namespace: every *step*-th size from the *first* on until one is enough; prints how many."""
    for number in range(first, MAX_STEPS, step):
        mount(f"size={number * STEP_BYTES}", disk)
        try:
            ease = partial(mount, f"remount,size={ROOMY_BYTES}", disk)
            status = in_a_child(partial(go_through, f"{disk}/data", lambda: None, ease))
        finally:
            subprocess.run(["umount", disk], check=True)
        if status == ENOUGH:
            print((number - first) // step + 1)
            return
        if status != 0:
            sys.exit(f"a disk of {number} pages: the process ended with {status} (negative: by that signal)")
    sys.exit("the run needs more than was thought")


def mount(options: str, disk: str) -> None:
    """A tmpfs at *disk*, or (``remount``) another size of it."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        sys.exit("a tmpfs cannot be mounted here")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
