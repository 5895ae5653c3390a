"""A data directory on a machine whose power can be cut, and whose processes can be killed, at any operation.

machine = Machine(folder)
bench = machine.bench()
bench.put(b"a")
after = machine.cut()                                    a bench on what a power cut now leaves: what was synced
for path, told in machine.states_during(act, promised)   what power cuts at each operation of act leave
for path, … in died_at_each_operation(folder, prepare, act)   what deaths at each operation leave
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from logbroker_storage.files import Files, OsFiles
from logbroker_storage.testing import FaultyFiles, MemoryFiles, ProcessKilled, RecordingFiles, Workbench

CHANGES = {
    "pwrite", "pwritev", "write_zeros", "truncate", "allocate", "rename", "unlink", "mkdir", "rmdir", "open",
    "fsync", "fdatasync", "fsync_directory",
}  # fmt: skip


class WatchedFiles(FaultyFiles):
    """Calls ``before``, while there is one, with the name and the path of each call, ahead of it."""

    before: Callable[[str, str], object] | None = None

    def _planned(self, operation: str, path: str, *more: Any) -> Any:
        if self.before is not None:
            self.before(operation, path)
        return super()._planned(operation, path, *more)


class Machine:
    """See the module. Its files lie in *folder*, which is empty."""

    def __init__(self, folder: Path, *, root: str = "machine") -> None:
        self.folder = folder
        self.root = folder / root
        self.root.mkdir()
        self.recorded = RecordingFiles(OsFiles(), str(self.root))
        self.files = WatchedFiles(self.recorded)
        self.path = str(self.root / "data")
        self._cuts = itertools.count()

    def bench(self, **settings: Any) -> Workbench:
        """The data directory, opened on this machine; settings are those of the topic, where it is made."""
        return Workbench(self.path, files=self.files, **settings)

    def state(self, survivors: random.Random | None = None) -> MemoryFiles:
        """The files after a power cut now: what was synced, and of the rest what *survivors* chooses."""
        return self.recorded.mirror.after_power_cut(survivors)

    def started(self, state: MemoryFiles) -> str:
        """The path of a data directory as the machine finds it when it starts again from *state*."""
        target = self.folder / f"cut-{next(self._cuts)}"
        target.mkdir()
        state.export("/", OsFiles(), str(target))
        return f"{target}/data"

    def started_again(self, survived: dict[str, bytes]) -> Machine:
        """The machine after a power cut now, which *survived*, files with their content, was not lost in."""
        again = Machine(self.folder, root=f"machine-{next(self._cuts)}")
        _copy(self.state(), "/", again.files, str(again.root))
        for path, content in survived.items():
            again.files.replace_file(path.replace(str(self.root), str(again.root)), content)
        return again

    def cut(self, survivors: random.Random | None = None) -> Workbench:
        """A bench on what a power cut now leaves."""
        return Workbench(self.started(self.state(survivors)))

    def during(
        self, act: Callable[[], object], look: Callable[[str, str], object], *, any_thread: bool = False
    ) -> None:
        """Do *act*, and call *look* ahead of each of its operations that change something or sync, and at its end.

        Its operations are those of this thread, unless *any_thread* says that others work for it.
        """
        here, inside = threading.get_ident(), set[int]()

        def before(operation: str, path: str) -> None:
            thread = threading.get_ident()
            if operation in CHANGES and (any_thread or thread == here) and thread not in inside:
                inside.add(thread)
                try:
                    look(operation, path)
                finally:
                    inside.remove(thread)

        self.files.before = before
        try:
            act()
        finally:
            self.files.before = None
        look("end", "")

    def states_during(
        self,
        act: Callable[[], object],
        promised: Callable[[], Any] = lambda: None,
        *,
        seeds: int = 0,
        any_thread: bool = False,
    ) -> Iterator[tuple[str, Any]]:
        """Do *act* while the power is cut at each of its operations: where each state is found, and what
        *promised* said then.

        Of each moment there are the state without anything that was not synced, and so many with a part of it.
        """
        found: dict[bytes, tuple[MemoryFiles, list[Any]]] = {}

        def look(operation: str, path: str) -> None:
            said = promised()
            for number in range(-1, seeds):
                state = self.state(None if number < 0 else random.Random(number))
                promises = found.setdefault(_digest(state), (state, []))[1]
                if said not in promises:
                    promises.append(said)

        self.during(act, look, any_thread=any_thread)
        for state, promises in found.values():
            for said in promises:
                yield self.started(state), said


def _copy(state: MemoryFiles, folder: str, files: Files, target: str) -> None:
    """Put what *state* holds in *folder* into *target*, all of it synced."""
    for name in state.listdir(folder):
        path = f"{folder.rstrip('/')}/{name}"
        try:
            files.replace_file(f"{target}/{name}", state.read_file(path))
        except IsADirectoryError:
            files.mkdir(f"{target}/{name}")
            _copy(state, path, files, f"{target}/{name}")
    files.fsync_directory(target)


def _digest(state: MemoryFiles, folder: str = "/") -> bytes:
    """The same for states that are the same."""
    digest = hashlib.blake2b()
    for name in state.listdir(folder):
        path = f"{folder.rstrip('/')}/{name}"
        try:
            content = state.read_file(path)
        except IsADirectoryError:
            content = _digest(state, path)
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.digest()


def died_at_each_operation(
    folder: Path, prepare: Callable[[str], object], act: Callable[[Workbench], object]
) -> Iterator[tuple[str, int, bool]]:
    """Directories in which *act* was killed at its first, second, … operation, until it gets through.

    Each is prepared by *prepare* and left as the process leaves it. Path, operation, and whether it died.
    """
    template = folder / "prepared"
    prepare(str(template))
    for operation in itertools.count(1):
        path = str(folder / f"death-{operation}")
        shutil.copytree(template, path)
        files = FaultyFiles(OsFiles())
        bench = Workbench(path, files=files)
        files.kill(at=operation)
        died = True
        try:
            act(bench)
            died = False
        except ProcessKilled:
            pass
        bench.crash()
        yield path, operation, died
        if not died:
            return


def names(folder: str) -> list[str]:
    return sorted(os.listdir(folder))
