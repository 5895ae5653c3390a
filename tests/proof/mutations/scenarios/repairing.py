"""``logbroker inspect repair``: every byte that it replaces is kept, also when the power is cut in between."""

from __future__ import annotations

from pathlib import Path

from logbroker_storage.testing import Workbench
from logbroker_tools.layout import find
from logbroker_tools.repair import repair_all

from .machine import Machine

LOG = f"{0:020d}.log"
TORN = b"\1torn off" * 9


def _damaged(machine: Machine, name: str, content: bytes, *, behind: bool = False) -> Workbench:
    """A closed directory in which a file of the topic's folder holds *content*, or goes on with it, on the disk."""
    bench = machine.bench(index_interval_bytes=0)
    for number in range(4):
        bench.put(b"%d" % number)
    bench.close()
    path = f"{bench.folder}/{name}"
    before = machine.files.read_file(path) if behind else b""
    machine.files.replace_file(path, before + content)
    return bench


def a_repaired_log(folder: Path) -> None:
    """A tail is cut off when it lies in a side file, and stays off."""
    machine = Machine(folder)
    bench = _damaged(machine, LOG, TORN, behind=True)
    sound = machine.files.read_file(f"{bench.folder}/{LOG}").removesuffix(TORN)
    for path, _ in machine.states_during(lambda: repair_all(find(machine.path), files=machine.files)):
        contents = [file.read_bytes() for file in Path(path, "logs", "t-0").glob("*.log*")]
        assert any(TORN in content for content in contents), "bytes are gone"
    state = machine.state()
    assert state.read_file(f"/data/logs/t-0/{LOG}") == sound
    assert state.read_file(f"/data/logs/t-0/{LOG}.cut-{len(sound)}") == TORN


def a_repaired_index(folder: Path) -> None:
    """An index that was built again is whole, and the one before it is kept."""
    machine = Machine(folder)
    name = f"{0:020d}.timeindex"
    bench = _damaged(machine, name, b"\xff" * 12)
    repair_all(find(machine.path), files=machine.files)
    built = machine.files.read_file(f"{bench.folder}/{name}")
    assert built != b"\xff" * 12
    state = machine.state()
    assert state.read_file(f"/data/logs/t-0/{name}") == built
    assert state.read_file(f"/data/logs/t-0/{name}.old") == b"\xff" * 12


def a_repaired_folder(folder: Path) -> None:
    """A file that is set aside is so after a power cut."""
    machine = Machine(folder)
    name = f"{4:020d}.snapshot"
    _damaged(machine, name, b"no snapshot")
    repair_all(find(machine.path), files=machine.files)
    state = machine.state()
    assert not state.exists(f"/data/logs/t-0/{name}")
    assert state.read_file(f"/data/logs/t-0/{name}.old") == b"no snapshot"
