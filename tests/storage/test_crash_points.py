"""Death at every single file operation of what a process does: the next one finds all that was acknowledged.

Each scenario is run again and again with the process dying at its first, second, … operation, until one run
gets through. The directory is then opened with the view as it was left, and once more without it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from logbroker_storage import journal as journal_module
from logbroker_storage.errors import TopicExistsError
from logbroker_storage.events import OffsetEvent
from logbroker_storage.log_config import LogConfig
from logbroker_storage.testing import FaultyFiles, UnsyncedFiles, Workbench
from logbroker_storage.testing.faulty_files import ProcessKilled

Scenario = Callable[[Workbench, list[bytes]], None]

PREPARED = [b"prepared-%d" % number for number in range(5)]


def append_and_roll(bench: Workbench, acknowledged: list[bytes]) -> None:
    for number in range(6):
        value = b"value-%d" % number * 10
        bench.put(value, producer_id=3, sequence=number)
        acknowledged.append(value)


def commit_offsets(bench: Workbench, acknowledged: list[bytes]) -> None:
    for number in range(3):
        bench.directory.journal.record([OffsetEvent("g", "t", 0, number, "", 0)])
        acknowledged.append(b"commit %d" % number)


def compact_the_journal(bench: Workbench, acknowledged: list[bytes]) -> None:
    commit_offsets(bench, acknowledged)
    with bench.directory.journal.exclusive() as turn:
        turn.compact()


def create_a_topic(bench: Workbench, acknowledged: list[bytes]) -> None:
    bench.directory.create_topic("new", 2, LogConfig.parse({}))
    acknowledged.append(b"created")


def delete_a_topic(bench: Workbench, acknowledged: list[bytes]) -> None:
    bench.directory.delete_topic("doomed")
    acknowledged.append(b"deleted")


def close_cleanly(bench: Workbench, acknowledged: list[bytes]) -> None:
    append_and_roll(bench, acknowledged)
    bench.directory.checkpoint()
    for log in bench.directory.open_logs():
        log.close_cleanly()


SCENARIOS: list[Scenario] = [
    append_and_roll,
    commit_offsets,
    compact_the_journal,
    create_a_topic,
    delete_a_topic,
    close_cleanly,
]


def prepare(path: str) -> None:
    bench = Workbench(path, files=UnsyncedFiles(), segment_bytes=400)
    for value in PREPARED:
        bench.put(value)
    bench.directory.create_topic("doomed", 2, LogConfig.parse({}))
    bench.directory.journal.record([OffsetEvent("g", "doomed", 1, 0, "", 0)])
    bench.close()


def die_at(path: str, scenario: Scenario, operation: int) -> tuple[Workbench, list[bytes], bool]:
    """Run *scenario* on the directory and die at its operation of this number, if it has so many."""
    files = FaultyFiles(UnsyncedFiles())
    bench = Workbench(path, files=files)
    acknowledged: list[bytes] = []
    files.kill(at=operation)
    try:
        scenario(bench, acknowledged)
        died = False
    except ProcessKilled:
        died = True
    bench.crash()
    return bench, acknowledged, died


def check(bench: Workbench, scenario: Scenario, acknowledged: list[bytes]) -> tuple[object, ...]:
    directory = bench.directory
    bench.log.adopt()  # as the next append does: what was written whole counts, though nobody was told so
    bench.log.sync()
    values = [value for value in bench.values() if value is not None]
    if scenario in (append_and_roll, close_cleanly):
        attempted = [b"value-%d" % number * 10 for number in range(6)]
        assert values[: len(PREPARED)] == PREPARED
        rest = values[len(PREPARED) :]
        assert rest[: len(acknowledged)] == acknowledged
        assert rest == attempted[: len(rest)]
        assert bench.log.last_sequence(3) == (len(rest) - 1 if rest else None)
    else:
        assert values == PREPARED
    if scenario in (commit_offsets, compact_the_journal):
        event = directory.groups.committed("g", "t", 0)
        offset = event.offset if event is not None else -1
        assert len(acknowledged) - 1 <= offset <= min(len(acknowledged), 2)
    topics = directory.topics()
    if acknowledged == [b"created"]:
        assert "new" in topics
    if acknowledged == [b"deleted"]:
        assert "doomed" not in topics
    for name in topics:
        for number in range(directory.topic(name).partitions):
            directory.log(name, number).offsets()  # all or nothing: every partition of it is there
    if "doomed" not in topics:
        assert directory.groups.committed("g", "doomed", 1) is None
    return topics, values, directory.groups.committed_offsets("g"), bench.log.offsets()


@pytest.mark.slow
@pytest.mark.parametrize("without_view", [False, True], ids=["with the view", "without the view"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_dying_at_any_operation_loses_nothing_and_invents_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario, without_view: bool
) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_FROM_BYTES", 0)
    monkeypatch.setattr(journal_module, "COMPACT_GROWTH", 0)
    prepared, path = str(tmp_path / "prepared"), str(tmp_path / "data")
    prepare(prepared)
    operation, died = 1, True
    while died:
        shutil.copytree(prepared, path)
        bench, acknowledged, died = die_at(path, scenario, operation)
        bench.reopen(without_view=without_view, files=UnsyncedFiles())
        found = check(bench, scenario, acknowledged)
        bench.reopen(without_view=True, files=UnsyncedFiles())
        again = check(bench, scenario, acknowledged)
        assert again == found, f"operation {operation}: the second recovery changed something"
        go_on(bench)
        bench.close()
        shutil.rmtree(path)
        operation += 1
    assert operation > 10


def go_on(bench: Workbench) -> None:
    """Whatever was cut short does not stand in the way of the same again."""
    bench.put(b"goes on")
    assert bench.values()[-1] == b"goes on"
    try:
        bench.directory.create_topic("new", 2, LogConfig.parse({}))
    except TopicExistsError:
        pass  # it was created before the process died
    assert "new" in bench.directory.topics()
