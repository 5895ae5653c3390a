"""What a power cut may leave, at every operation of a program, keeps what was promised by then."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .crash_states import run
from .crash_states.exploration import Explorer, Recording, RecordingDisk, record
from .crash_states.judgement import judge
from .crash_states.observation import Observation, Observer, listening
from .crash_states.operations import ROOT, Create, Operation, Rename, Sync, Told, Tree, Write
from .crash_states.promises import Promises
from .crash_states.sight import Record, Seen
from .crash_states.states import Depth, Medium, states
from .crash_states.views import Views
from .crash_states.workloads import Workload, cleaning, queues, records, transactions
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


# Files, directories, and the first script that tells.
FORGETFUL: dict[str, tuple[tuple[str, ...], tuple[str, ...], Workload]] = {
    "the logs": ((".log",), (), records),
    "the journal": (("__journal-0/00000000000000000000.log",), (), records),
    "aborted indexes": ((".txnindex",), (), transactions),
    "rewritten logs": ((".log.cleaned",), (), cleaning),
    "the journal's directory": ((), ("__journal",), records),
    "a partition's directory": ((), ("a", "jobs", "old", "kept"), records),
    "the directory of partitions": ((), ("logs",), records),
    "the data directory": ((), ("data",), records),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = new_folder(in_memory=True)
    yield made
    delete_folder(made)


def explore_quickly(folder: Path, recording: Recording) -> None:
    """The states that tell most: all of them with everything or nothing first."""
    explorer = Explorer(folder, seed=0)
    for depth in (Depth.ALL_OR_NOTHING, Depth.OBVIOUS):
        explorer.explore(recording, 100_000, depth=depth)


@pytest.mark.parametrize("what", FORGETFUL)
def test_a_disk_that_forgets_syncs_is_noticed(folder: Path, what: str) -> None:
    endings, directories, script = FORGETFUL[what]
    make_disk = type("Forgetful", (ForgetfulDisk,), {"endings": endings, "directories": directories})
    recording = record(what, script, folder, make_disk=make_disk)
    with pytest.raises(AssertionError, match="may leave a state in which"):
        explore_quickly(folder, recording)


# The judgement ------------------------------------------------------------------------------------------


def at_the_end(folder: Path, script: Workload) -> tuple[Observation, Promises]:
    """What is found when nothing is lost behind the last operation of *script*, and what was promised."""
    recording = record(script.__name__, script, folder)
    medium, promises = Medium(recording.inodes), Promises()
    for operation in recording.operations:
        medium.do(operation)
        if isinstance(operation, Told):
            operation.change(promises)
    (folder / "opened").mkdir()
    tree, _ = medium.tree(medium.everything())
    with listening() as errors:
        observer = Observer(str(folder / "opened"), recording.clock, recording.views, errors)
        found = observer.observe(tree, len(recording.operations), random.Random(0))
    return found, promises


Tampering = Callable[[Observation], object]


def in_log(topic: str, partition: int, change: Callable[[Seen], Seen]) -> Tampering:
    def tamper(found: Observation) -> None:
        found.sight.logs[topic, partition] = change(found.sight.logs[topic, partition])

    return tamper


def without(seen: Seen, *offsets: int) -> Seen:
    return seen._replace(records=tuple(record for record in seen.records if record.offset not in offsets))


BROKEN: dict[str, tuple[Workload, Tampering, str]] = {
    "a topic is lost": (transactions, lambda found: found.sight.topics.pop("a"), "is gone"),
    "a topic is invented": (
        transactions,
        lambda found: found.sight.topics.update(b=(bytes(16), 0)),
        "was never created",
    ),
    "a record is lost": (transactions, in_log("a", 0, lambda seen: without(seen, 0, 1)), "and are gone"),
    "half a batch is lost": (transactions, in_log("a", 0, lambda seen: without(seen, 1)), "and are gone"),
    "a record is another": (
        transactions,
        in_log("a", 0, lambda seen: seen._replace(records=(Record(0, None, b"?"), *seen.records[1:]))),
        "holds another record",
    ),
    "a record is invented": (
        transactions,
        in_log("a", 0, lambda seen: seen._replace(records=(*seen.records, Record(99, None, b"?")))),
        "were never written",
    ),
    "a transaction is seen in part": (
        transactions,
        in_log("a", 0, lambda seen: seen._replace(committed=seen.committed - {2})),
        "is not whole",
    ),
    "an aborted record is seen": (
        transactions,
        in_log("a", 0, lambda seen: seen._replace(committed=seen.committed | {4})),
        "and can be seen",
    ),
    "a transaction is left open": (
        transactions,
        in_log("a", 0, lambda seen: seen._replace(last_stable_offset=1)),
        "is left open",
    ),
    "the log begins later": (
        transactions,
        in_log("a", 0, lambda seen: seen._replace(log_start_offset=1)),
        "it begins at 1",
    ),
    "a producer is forgotten": (
        transactions,
        in_log("a", 0, lambda seen: seen._replace(sequences=())),
        "and is remembered up to None",
    ),
    "a commit is lost": (
        transactions,
        lambda found: found.sight.commits.pop(("g", "a", 0)),
        "is committed at None",
    ),
    "a commit is ahead of the log": (
        transactions,
        lambda found: found.sight.commits.update({("g", "a", 0): 99}),
        "ends at",
    ),
    "an accepted message comes again": (
        queues,
        lambda found: found.delivered["workers"].append((0, 0)),
        "message 0@0 was handed out 1 times",
    ),
    "a message is lost": (queues, lambda found: found.delivered["workers"].pop(), "was handed out 0 times"),
    "a message comes twice": (
        queues,
        lambda found: found.delivered["workers"].append(found.delivered["workers"][0]),
        "was handed out 2 times",
    ),
    "a dead letter is lost": (
        queues,
        lambda found: found.letters["workers"].remove(b"j1"),
        "is 0 dead letters",
    ),
    "a dead letter comes twice": (
        queues,
        lambda found: found.letters["workers"].append(b"j1"),
        "is 2 dead letters",
    ),
    "anything is wrong by itself": (queues, lambda found: found.faults.append("this"), "this"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_promise_is_noticed(folder: Path, what: str) -> None:
    script, tamper, expected = BROKEN[what]
    found, promises = at_the_end(folder, script)
    assert judge(found, promises) == []
    tampered = copy.deepcopy(found)
    tamper(tampered)
    assert expected in "\n".join(judge(tampered, promises))


# The model of a disk ------------------------------------------------------------------------------------


def medium_of(*operations: Operation) -> Medium:
    """A disk with an empty root directory, on which *operations* were done."""
    medium = Medium({ROOT: {}})
    for operation in operations:
        medium.do(operation)
    return medium


def found_in(medium: Medium, last: Operation) -> set[str]:
    """The trees of many states, as text."""
    choices = states(medium, last, random.Random(0), Depth.EVERYTHING)
    return {repr(medium.tree(next(choices))[0]) for _ in range(300)}


A_NEW_FILE = (Create(1, is_directory=False), Rename(ROOT, (("new", 1),)))


def test_of_a_write_anything_may_be_left_until_it_is_synced() -> None:
    write = Write(1, 0, bytes([7]) * 5000)
    medium = medium_of(*A_NEW_FILE, Sync(ROOT), write)
    contents = found_in(medium, write)
    one_byte_and_zeros = bytes([7]) + bytes(4999)
    for content in (b"", bytes(5000), bytes([7]), bytes([7]) * 512, bytes([7]) * 4096, one_byte_and_zeros):
        assert repr({"new": content}) in contents
    medium.do(Sync(1))
    assert found_in(medium, Sync(1)) == {repr({"new": bytes([7]) * 5000})}


def test_of_a_few_writes_every_subset_is_tried() -> None:
    writes = [Write(1, at, bytes([at + 1])) for at in range(3)]
    medium = medium_of(*A_NEW_FILE, Sync(ROOT), *writes)
    contents = found_in(medium, writes[-1])
    for kept in range(8):
        left = bytes(at + 1 if kept >> at & 1 else 0 for at in range(3))
        assert any(
            repr({"new": left[:size]}) in contents for size in range(4) if not left[size:].strip(b"\0")
        )


def test_a_synced_file_may_have_no_name_and_a_name_no_content() -> None:
    last = Write(1, 0, b"x")
    contents = found_in(medium_of(*A_NEW_FILE, last), last)
    assert {"{}", repr({"new": b""}), repr({"new": b"x"})} <= contents
    assert found_in(medium_of(*A_NEW_FILE, last, Sync(1)), Sync(1)) == {"{}", repr({"new": b"x"})}


def test_a_rename_is_whole_or_not_there_and_never_without_what_it_renames() -> None:
    rename = Rename(ROOT, (("new", None), ("name", 1)))
    medium = medium_of(*A_NEW_FILE, Write(1, 0, b"x"), Sync(1), rename)
    assert found_in(medium, rename) == {"{}", repr({"new": b"x"}), repr({"name": b"x"})}


def test_removals_survive_in_any_combination() -> None:
    removals = [Rename(ROOT, ((name, None),)) for name in ("a", "b")]
    medium = Medium({ROOT: {"a": 1, "b": 2}, 1: b"", 2: b""})
    for removal in removals:
        medium.do(removal)
    both, a, b = {"a": b"", "b": b""}, {"a": b""}, {"b": b""}
    assert found_in(medium, removals[-1]) == {repr(both), repr(a), repr(b), "{}"}
