"""``verify`` tells a partition that is gone, and never takes for one what another process makes or deletes."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import logbroker
from logbroker_storage.log_config import LogConfig
from logbroker_storage.testing import FaultyFiles, ManualClock, UnsyncedFiles, Workbench
from logbroker_storage.testing.faulty_files import ProcessKilled
from logbroker_tools.cli import run
from logbroker_tools.findings import Code, Finding, Severity
from logbroker_tools.layout import find
from logbroker_tools.verify import verify

Scenario = Callable[[Workbench], object]


def errors(path: Path) -> list[Finding]:
    return [finding for finding in verify(find(str(path))) if finding.severity is Severity.ERROR]


def missing(path: Path) -> list[Finding]:
    return [finding for finding in errors(path) if finding.code is Code.MISSING_PARTITION]


# What is gone -------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Topic t with records in partition 0 and none in partition 1; a deleted topic; closed."""
    path = tmp_path / "data"
    with logbroker.open(path) as broker, broker.producer() as producer:
        for topic in ("t", "deleted"):
            broker.create_topic(topic, partitions=2)
            producer.send(topic, b"value", partition=0).result(timeout=10)
        broker.delete_topic("deleted")
    assert errors(path) == []
    return path


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def remove_logs(folder: Path) -> None:
    for log in folder.glob("*.log"):
        log.unlink()


def put_a_file_there(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize("removed", [remove_folder, remove_logs, put_a_file_there])
@pytest.mark.parametrize(
    ("name", "points"), [("t-0", {1}), ("t-1", {None}), ("__journal-0", range(1, 99))], ids=str
)
def test_a_partition_that_is_gone_is_an_error(
    data: Path, name: str, points: set[int | None], removed: Callable[[Path], None]
) -> None:
    folder = data / "logs" / name
    removed(folder)
    (finding,) = errors(data)
    assert (finding.code, finding.path) == (Code.MISSING_PARTITION, str(folder))
    assert finding.end_offset in points
    assert run(["verify", str(data)]) == 1


def test_without_the_journal_the_recovery_points_tell(data: Path) -> None:
    for folder in (data / "logs").glob("*-*/"):
        shutil.rmtree(folder)
    assert {Path(finding.path).name for finding in errors(data)} == {"__journal-0", "t-0"}


def test_without_recovery_points_the_journal_tells(data: Path) -> None:
    (data / "logs" / "recovery-point-offset-checkpoint").unlink()
    shutil.rmtree(data / "logs" / "t-0")
    assert [(Path(finding.path).name, finding.end_offset) for finding in errors(data)] == [("t-0", None)]


def test_only_what_was_asked_for_is_told(data: Path) -> None:
    shutil.rmtree(data / "logs" / "t-0")
    assert run(["verify", str(data), "--topic", "__journal"]) == 0
    assert run(["verify", str(data), "--topic", "t", "--partition", "1"]) == 0
    assert run(["verify", str(data), "--topic", "t"]) == 1


def test_behind_the_next_open_only_the_offsets_are_missing(data: Path) -> None:
    shutil.rmtree(data / "logs" / "t-0")
    shutil.rmtree(data / "view")
    with logbroker.open(data) as broker, broker.producer() as producer:
        producer.send("t", b"value", partition=0).result(timeout=10)
    found = [(finding.code, finding.start_offset, finding.end_offset) for finding in errors(data)]
    assert found == [(Code.MISSING_OFFSETS, 0, 1)]


# What is not --------------------------------------------------------------------------------------------


def create(bench: Workbench) -> None:
    bench.directory.create_topic("new", 2, LogConfig.parse({}))


def add_partitions(bench: Workbench) -> None:
    bench.directory.add_partitions("doomed", 4)


def delete(bench: Workbench) -> None:
    bench.directory.delete_topic("doomed")


def delete_and_create_again(bench: Workbench) -> None:
    delete(bench)
    bench.directory.create_topic("doomed", 1, LogConfig.parse({}))
    bench.directory.checkpoint()


def compact_the_journal(bench: Workbench) -> None:
    delete(bench)
    bench.directory.journal.compact_from_bytes = 0
    with bench.directory.journal.exclusive() as turn:
        turn.compact()


def prepare(path: Path) -> Path:
    """A directory with a topic that has records and a recovery point."""
    bench = Workbench(str(path), files=UnsyncedFiles(), clock=ManualClock())
    bench.put(b"value")
    bench.directory.create_topic("doomed", 2, LogConfig.parse({}))
    bench.directory.log("doomed", 1).append(bench.batch(b"value"))
    bench.close()
    return path


@pytest.mark.parametrize(
    "scenario", [create, add_partitions, delete, delete_and_create_again, compact_the_journal]
)
def test_nothing_is_missing_wherever_a_process_dies(tmp_path: Path, scenario: Scenario) -> None:
    prepared = prepare(tmp_path / "prepared")
    for operation in itertools.count(1):
        path = shutil.copytree(prepared, tmp_path / "data")
        files = FaultyFiles(UnsyncedFiles())
        bench = Workbench(str(path), files=files, clock=ManualClock())
        files.kill(at=operation)
        try:
            scenario(bench)
            died = False
        except ProcessKilled:
            died = True
        bench.crash()
        assert missing(path) == [], operation
        shutil.rmtree(path)
        if not died:
            return


@pytest.mark.parametrize("is_deleting", [False, True])
def test_nothing_is_missing_wherever_a_process_dies_that_opens_the_directory(
    tmp_path: Path, is_deleting: bool
) -> None:
    prepared = tmp_path / "prepared"
    if is_deleting:
        prepare(prepared)
        files = FaultyFiles(UnsyncedFiles())
        bench = Workbench(str(prepared), files=files, clock=ManualClock())
        files.fail("rename", path="doomed-0", forever=True, error=5)
        delete(bench)
        bench.crash()
        shutil.rmtree(prepared / "view")
    else:
        prepared.mkdir()
    for operation in itertools.count(1):
        path = shutil.copytree(prepared, tmp_path / "data")
        try:
            bench = Workbench(
                str(path), files=FaultyFiles(UnsyncedFiles()).kill(at=operation), clock=ManualClock()
            )
        except ProcessKilled:
            if (path / "logs" / "meta.properties").exists():
                assert missing(path) == [], operation
            shutil.rmtree(path)
            continue
        bench.crash()
        assert errors(path) == []
        return


def test_nothing_is_missing_while_topics_come_and_go(tmp_path: Path) -> None:
    path = prepare(tmp_path / "data")
    bench = Workbench(str(path), files=UnsyncedFiles(), clock=ManualClock())
    bench.directory.journal.compact_from_bytes = 2000

    def come_and_go() -> None:
        for number in range(150):
            bench.directory.create_topic(f"topic-{number % 3}", 2, LogConfig.parse({}))
            bench.directory.log(f"topic-{number % 3}", 0).append(bench.batch(b"value"))
            bench.directory.checkpoint()
            bench.directory.delete_topic(f"topic-{number % 3}")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        while thread.is_alive():
            assert missing(path) == []
    finally:
        thread.join()
        bench.close()
    assert errors(path) == []
