"""Real power cuts: ext4 and XFS on a loop device, shut down under load, mounted again, recovered, checked.

    module      is
    disk        the file system, and the ioctl that cuts its power
    load        the processes that are at work when it happens
    promises    what they were told
    check       whether it is kept
    machine     one life after the other: load, cut, recovery, check

What ``acknowledged`` means is taken from the workers' mouths: each notes an acknowledgement behind the call that gave
it, in a file on another file system. Records, consumers' reads, committed offsets, transactions with their state and
offsets, settled messages of a queue, dead letters, message ids, deleted records, topics made and deleted and the newest
record of a compacted key are checked; the inspector reads the directory before and after recovery.

What this cannot show is a disk that loses what it has called synced: the loop device's own memory is not cut.
It needs root, loop devices and name spaces; elsewhere it is skipped, loudly.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..proof import SHARED_MEMORY, Row, Scope, delete_folder, new_folder

ROOT = Path(__file__).parents[3]
MACHINE = "tests.proof.power_cuts.machine"
FILE_SYSTEMS = ("ext4", "xfs")
# Mounts and processes of its own: when it ends, however it ends, the kernel takes down what it left.
NAME_SPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
MEMORY_WANTED = 1 << 30
TRIAL_S = 240

Story = dict[str, Any]


def run(scope: Scope) -> Iterator[Row]:
    for file_system in FILE_SYSTEMS:
        test = f"{file_system}: power cut under load"
        reason = why_not(file_system)
        if reason:
            yield Row(test, 0, "cuts", skipped=reason)
            continue
        cuts = scope.count(bounded=6, long=500)
        seed = scope.rng(file_system).randrange(1 << 32)
        lost = 0
        acknowledgements = 0
        endings: Counter[str] = Counter()
        for story in lives(file_system, cuts, seed):
            broken = "\n".join(story["broken"])
            assert not broken, f"{file_system}, --seed {scope.seed}, {story}:\n{broken}"
            lost += story["lost"]
            acknowledgements += story["acknowledgements"]
            endings.update(story["endings"].values())
        assert lost, f"{file_system}: {cuts} cuts took not one record that was not synced: were they cuts?"
        print(
            f"{file_system}: {acknowledgements:,} acknowledgements held, {lost:,} records of topics without syncs "
            f"lost; workers ended by {dict(endings)}"
        )
        yield Row(test, cuts, "cuts", seed=scope.seed)


def lives(file_system: str, cuts: int, seed: int, *options: str) -> Iterator[Story]:
    """What happened in each life of a machine, up to and with the first that broke a promise.

    Raises:
        AssertionError: the machine failed otherwise; with all that it said.
    """
    memory = os.path.isdir(SHARED_MEMORY) and shutil.disk_usage(SHARED_MEMORY).free > MEMORY_WANTED
    folder = new_folder(in_memory=memory)
    command = [
        *NAME_SPACES,
        sys.executable,
        "-m",
        MACHINE,
        file_system,
        str(folder),
        str(cuts),
        str(seed),
        *options,
    ]
    log = folder / "machine.log"
    try:
        with (
            log.open("wb") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT) as machine,
        ):
            assert machine.stdout is not None
            seen: list[Story] = []
            try:
                for line in machine.stdout:
                    seen.append(json.loads(line))
                    yield seen[-1]
            finally:
                machine.stdout.close()
                if machine.poll() is None and (not seen or len(seen) < cuts):
                    machine.terminate()
                machine.wait()
            is_through = len(seen) == cuts or (seen and seen[-1]["broken"])
            assert is_through, f"the machine ended with {machine.returncode}: {log.read_text()[-20_000:]}"
    finally:
        let_go(folder)
        delete_folder(folder)


def let_go(folder: Path) -> None:
    """Nothing of the machine's disk may stay attached; its name space took the mounts along."""
    listed = subprocess.run(
        ["losetup", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in listed.stdout.splitlines():
        device, _, image = line.partition(" ")
        if image.startswith(f"{folder}/"):
            subprocess.run(["losetup", "--detach", device], check=True)


def why_not(file_system: str) -> str:
    """What this machine lacks for it; empty when it can be done."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    for program in ("unshare", "mount", "losetup", f"mkfs.{file_system}"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    if not os.path.exists("/dev/loop-control"):
        return "needs loop devices"
    folder = new_folder()
    try:
        command = [*NAME_SPACES, sys.executable, "-m", MACHINE, file_system, str(folder), "trial", "0"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TRIAL_S, check=False)
        if done.returncode != 0:
            return f"cannot mount and cut a disk here: {done.stderr.strip().splitlines()[-1:]}"
    finally:
        let_go(folder)
        delete_folder(folder)
    return ""
