"""What a power cut may leave, at every operation of a program, keeps what was promised by then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .crash_states import run
from .crash_states.exploration import Explorer, RecordingDisk, record
from .crash_states.operations import Tree
from .crash_states.states import Depth
from .crash_states.views import Views
from .crash_states.workloads import SCRIPTS, Workload
from .proof import Proof, Row, delete_folder, new_folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_a_power_cut_leaves_keeps_the_promises(prove: Callable[[Proof], list[Row]]) -> None:
    prove(run)


# The checker notices ------------------------------------------------------------------------------------


class ForgetfulDisk(RecordingDisk):
    """A disk that is not told of some syncs: of files with these endings, or of these directories."""

    endings: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()

    def __init__(self, root: str, tree: Tree | None, views: Views) -> None:
        super().__init__(root, tree, views)
        self._paths: dict[int, str] = {}

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        fd = super().open(path, create=create, exclusive=exclusive, readonly=readonly)
        self._paths[fd] = path
        return fd

    def fsync(self, fd: int) -> None:
        if not self.endings or not self._paths[fd].endswith(self.endings):
            super().fsync(fd)

    def fsync_directory(self, path: str) -> None:
        if os.path.basename(path).rstrip("-0123456789") not in self.directories:
            super().fsync_directory(path)


FORGETFUL = {
    "the logs": ((".log",), ()),
    "the journal": (("__journal-0/00000000000000000000.log",), ()),
    "aborted indexes": ((".txnindex",), ()),
    "rewritten logs": ((".log.cleaned",), ()),
    "the journal's directory": ((), ("__journal",)),
    "a partition's directory": ((), ("a", "jobs", "old", "kept")),
    "the directory of partitions": ((), ("logs",)),
    "the data directory": ((), ("data",)),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = new_folder(in_memory=True)
    yield made
    delete_folder(made)


def explore_all(folder: Path, make_disk: type[RecordingDisk], scripts: tuple[Workload, ...] = SCRIPTS) -> int:
    """The first states of every script; how many there were."""
    explorer = Explorer(folder, seed=0)
    for script in scripts:
        recording = record(script.__name__, script, folder, make_disk=make_disk)
        for depth in (Depth.ALL_OR_NOTHING, Depth.OBVIOUS):
            explorer.explore(recording, 100_000, depth=depth)
    return len(explorer.digests)


@pytest.mark.parametrize("what", FORGETFUL)
def test_a_disk_that_forgets_syncs_is_noticed(folder: Path, what: str) -> None:
    class Forgetful(ForgetfulDisk):
        endings, directories = FORGETFUL[what]

    with pytest.raises(AssertionError, match="may leave a state in which"):
        explore_all(folder, Forgetful)
