"""Topics: created, changed and deleted as a whole, also by processes that die or fail on the way."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from logbroker_storage.errors import (
    InvalidConfigError,
    InvalidTopicError,
    LogbrokerError,
    TopicExistsError,
    TopicNotFoundError,
    WriteFailedError,
)
from logbroker_storage.events import LogStartEvent, OffsetEvent, QueueBlockEvent, QueueEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.journal import JOURNAL_TOPIC
from logbroker_storage.layout import MAX_PARTITIONS
from logbroker_storage.log_config import LogConfig
from logbroker_storage.testing import FaultyFiles, LogBuilder, Workbench
from logbroker_storage.topic_folders import create_partition_folder
from logbroker_storage.view.environment import Environment

DEFAULTS = LogConfig.parse({})


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def bench(path: str) -> Iterator[Workbench]:
    bench = Workbench(path)
    yield bench
    bench.close()


def folders(bench: Workbench) -> list[str]:
    return sorted(
        name
        for name in os.listdir(bench.directory.layout.logs)
        if name[0] not in "._" and "-" in name[1:] and os.path.isdir(f"{bench.directory.layout.logs}/{name}")
    )


def test_a_topic_has_its_partitions_its_configuration_and_an_id_of_its_own(bench):
    config = LogConfig.parse({"retention.ms": "5"})
    event = bench.directory.create_topic("u", 3, config)
    assert (event.name, event.partitions, event.config) == ("u", 3, {"retention.ms": "5"})
    assert event.topic_id != bench.directory.topic("t").topic_id
    assert folders(bench) == ["t-0", "u-0", "u-1", "u-2"]
    for again in (bench, bench.reopen(), bench.reopen(without_view=True)):
        assert again.directory.topic("u") == event
        assert again.directory.topics() == ["t", "u"]


def test_a_topic_is_not_created_twice(bench):
    with pytest.raises(TopicExistsError):
        bench.directory.create_topic("t", 1, DEFAULTS)


def test_the_folders_of_a_creation_that_was_cut_short_go_with_the_next_who_comes_alone(bench):
    directory = bench.directory
    for name, number in (("u", 0), ("t", 1)):  # a new topic, and a partition that was being added
        create_partition_folder(directory.files, directory.layout.partition(name, number), b"u" * 16)
    os.mkdir(directory.layout.partition("u", 1))  # not even its files were made
    bench.crash()
    bench.open()
    assert folders(bench) == ["t-0"]
    assert bench.directory.create_topic("u", 2, DEFAULTS).partitions == 2


def test_an_empty_copy_of_a_topics_folder_takes_nothing_of_the_topic_along(bench):
    layout = bench.directory.layout
    copies = [layout.partition(name, 0) for name in ("copy", "notes")]
    for source, copy in zip(
        (layout.partition("t", 0), layout.partition(JOURNAL_TOPIC, 0)), copies, strict=True
    ):
        shutil.copytree(source, copy)
        Path(copy, f"{0:020}.log").write_bytes(b"")
    bench.put(b"a")
    bench.reopen()
    assert not any(map(os.path.exists, copies))
    assert bench.values() == [b"a"]
    bench.directory.create_topic("u", 1, DEFAULTS)
    bench.reopen()
    assert bench.directory.topics() == ["t", "u"]


def test_a_strange_folder_with_records_stays_until_the_view_is_rebuilt(bench):
    bench.put(b"a")
    bench.close()
    layout = bench.directory.layout
    shutil.copytree(layout.partition("t", 0), layout.partition("u", 0))
    bench.open()
    assert folders(bench) == ["t-0", "u-0"]
    bench.reopen(without_view=True)
    assert bench.directory.topics() == ["t", "u"]


def test_files_that_were_being_replaced_go_with_the_next_who_comes_alone(bench):
    layout = bench.directory.layout
    left = [
        f"{layout.recovery_points}.17-42.tmp",
        f"{layout.partition('t', 0)}/{0:020}.replaces.17-42.tmp",
        f"{layout.partition(JOURNAL_TOPIC, 0)}/{0:020}.log.cut-9.17-42.tmp",
    ]
    for path in left:
        Path(path).touch()
    bench.crash()
    bench.open()
    assert [path for path in left if os.path.exists(path)] == []


@pytest.mark.parametrize("without_view", [False, True])
def test_the_indexes_of_a_segment_whose_log_is_gone_go_with_the_next_who_comes_alone(bench, without_view):
    """Who removed the segment was killed between its files."""
    bench.put(b"a")
    bench.close()
    folder = bench.directory.layout.partition("t", 0)
    before = sorted(os.listdir(folder))
    for suffix in (".index", ".timeindex", ".txnindex"):
        Path(f"{folder}/{77:020}{suffix}").touch()
    bench.reopen(without_view=without_view)
    assert bench.values() == [b"a"]
    bench.close()
    assert [name for name in os.listdir(folder) if f"{77:020}" in name] == []
    assert {f"{0:020}.log", f"{0:020}.index", f"{0:020}.timeindex"} <= set(before) & set(os.listdir(folder))


@pytest.mark.parametrize("partitions", [0, -1, MAX_PARTITIONS + 1])
def test_an_impossible_number_of_partitions_is_refused(bench, partitions):
    with pytest.raises(InvalidTopicError):
        bench.directory.create_topic("u", partitions, DEFAULTS)
    assert bench.directory.topics() == ["t"]


def test_threads_that_create_one_topic_make_it_once(bench):
    outcomes: list[str] = []

    def create() -> None:
        try:
            bench.directory.create_topic("u", 2, DEFAULTS)
            outcomes.append("created")
        except TopicExistsError:
            outcomes.append("exists")

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["created"] + ["exists"] * 5


def test_keys_change_and_go_back_to_their_defaults(bench):
    bench.directory.alter_topic("t", {"retention.ms": 5, "segment.bytes": 1000})
    bench.directory.alter_topic("t", {"retention.ms": None})
    assert bench.directory.topic("t").config == {"segment.bytes": "1000"}
    with pytest.raises(InvalidConfigError):
        bench.directory.alter_topic("t", {"segment.bytes": "many"})
    with pytest.raises(TopicNotFoundError):
        bench.directory.alter_topic("u", {})
    assert bench.reopen(without_view=True).directory.topic("t").config == {"segment.bytes": "1000"}


def test_altering_to_fsync_syncs_what_there_is(path):
    bench = Workbench(path, durability="os")
    bench.put(b"a", sync=False)
    bench.directory.alter_topic("t", {"durability": "fsync"})
    assert bench.log.offsets().synced_offset == 1
    bench.close()


def test_partitions_can_be_added_and_never_taken_away(bench):
    bench.put(b"a")
    assert bench.directory.add_partitions("t", 3).partitions == 3
    bench.put(b"b", partition=2)
    for total in (3, 2, 0):
        with pytest.raises(InvalidTopicError):
            bench.directory.add_partitions("t", total)
    bench.reopen(without_view=True)
    assert [bench.values(partition=number) for number in range(3)] == [[b"a"], [], [b"b"]]


def test_a_deleted_topic_leaves_nothing(bench):
    directory = bench.directory
    bench.put(b"a", producer_id=1, sequence=0)
    directory.journal.record([OffsetEvent("g", "t", 0, 1, "", 0), OffsetEvent("g", "other", 0, 1, "", 0)])
    directory.delete_records("t", 0, 1)
    directory.checkpoint()
    key = bench.log.key
    directory.delete_topic("t")
    assert directory.topics() == folders(bench) == []
    assert [event.topic for event in directory.groups.committed_offsets("g")] == ["other"]
    assert directory.view.events.items(LogStartEvent.ALL) == []
    assert directory.view.partitions.state(key) is None
    assert directory.view.partitions.producers(key) == {}
    assert "t 0" not in Path(directory.layout.recovery_points).read_text()
    with pytest.raises(TopicNotFoundError):
        directory.delete_topic("t")


def test_deleting_a_topic_reads_none_of_what_groups_committed_elsewhere(bench, monkeypatch):
    """Under the journal's lock everybody would wait while the offsets of all groups are gone through."""
    events = [OffsetEvent("g", f"topic-{number}", 0, 1, "", 0) for number in range(300)]
    events += [OffsetEvent("g", "t", 0, 1, "", 0), OffsetEvent("h", "t", 7, 1, "", 0)]
    queues = [QueueEvent("q", topic, 0, 1) for topic in ("t", "t2")]
    blocks = [QueueBlockEvent("q", topic, 0, 0, b"", b"") for topic in ("t", "t2")]
    bench.directory.journal.record([*events, *queues, *blocks])
    read = []
    unseal = Environment.unseal

    def counting(self: Environment, key: bytes, stored: bytes) -> bytes:
        read.append(key)
        return unseal(self, key, stored)

    monkeypatch.setattr(Environment, "unseal", counting)
    bench.directory.delete_topic("t")
    monkeypatch.undo()
    assert len(read) < 100
    left = bench.directory.view.events
    assert len(left.items(OffsetEvent.ALL)) == 300
    assert [key for kind in (QueueEvent, QueueBlockEvent) for key, _ in left.items(kind.ALL)] == [
        queues[1].key(),
        blocks[1].key(),
    ]


def test_a_topic_made_anew_is_another_and_begins_at_0(bench):
    first = bench.directory.topic("t")
    bench.put(b"a", producer_id=1, sequence=0)
    bench.directory.delete_topic("t")
    second = bench.directory.create_topic("t", 1, DEFAULTS)
    assert second.topic_id != first.topic_id
    assert bench.values() == []
    assert bench.log.last_sequence(1) is None
    assert bench.put(b"b", producer_id=1, sequence=5).base_offset == 0


def test_topics_whose_names_begin_alike_are_not_mixed_up(bench):
    for name in ("t-0", "t-0-1", "tt", "t.a"):
        bench.directory.create_topic(name, 2, DEFAULTS)
    bench.directory.delete_topic("t-0")
    assert bench.directory.topics() == ["t", "t-0-1", "t.a", "tt"]
    bench.reopen(without_view=True)
    assert bench.directory.topics() == ["t", "t-0-1", "t.a", "tt"]


OPERATIONS = ["mkdir", "open", "pwrite", "fsync", "fsync_directory", "rename", "truncate"]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_creation_that_fails_leaves_no_topic_and_can_be_tried_again(path, operation, at):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    files.fail(operation, path="", error=errno.ENOSPC, at=at)
    try:
        bench.directory.create_topic("u", 2, DEFAULTS)
    except LogbrokerError:
        assert bench.directory.topics() == ["t"]
        if not bench.directory.view.partitions.failed():
            files.heal()
            bench.directory.create_topic("u", 2, DEFAULTS)
    files.heal()
    bench.crash()
    bench.open().reopen(without_view=True)
    topics = bench.directory.topics()
    assert topics in (["t"], ["t", "u"])
    assert folders(bench) == (["t-0", "u-0", "u-1"] if "u" in topics else ["t-0"])
    bench.close()


@pytest.mark.parametrize("way", ["create", "add"])
def test_a_folder_with_records_that_is_in_the_way_is_left_alone(bench, way):
    """Somebody copied it in while the directory was open; the partitions made before it are taken back."""
    name = "u-1" if way == "create" else "t-2"
    found = LogBuilder(f"{bench.directory.layout.logs}/{name}").batch(b"precious")
    make = {
        "create": lambda: bench.directory.create_topic("u", 3, DEFAULTS),
        "add": lambda: bench.directory.add_partitions("t", 4),
    }[way]
    with pytest.raises(WriteFailedError, match="records of no known topic"):
        make()
    assert found.values() == [b"precious"]
    assert folders(bench) == sorted(["t-0", name])
    assert bench.directory.topic("t").partitions == 1


def test_deletions_by_many_threads_beside_creations_remove_only_what_was_deleted(bench):
    """Whoever finishes a deletion must not take the folder of the next topic of that name for the old one."""
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(6):
                bench.directory.create_topic(name, 2, DEFAULTS)
                log = bench.directory.log(name, 1)
                log.append(bench.batch(b"%d" % number))
                log.sync()
                assert log.offsets().log_end_offset == 1
                bench.directory.delete_topic(name)
            bench.directory.create_topic(name, 2, DEFAULTS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert folders(bench) == ["a-0", "a-1", "b-0", "b-1", "c-0", "c-1", "t-0"]
