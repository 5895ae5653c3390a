"""Death at every file operation of an append with a message id: the id is in the topic's logs once, or not yet."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from logbroker_storage.deduplication import Taken
from logbroker_storage.files import OsFiles
from logbroker_storage.message_ids import MESSAGE_ID_HEADER, identified
from logbroker_storage.partition_log import AppendResult
from logbroker_storage.record_batch import NewRecord, encode_batch
from logbroker_storage.testing import FaultyFiles, ManualClock, RecordingFiles, Workbench
from logbroker_storage.testing.faulty_files import ProcessKilled
from logbroker_storage.view.message_ids import FirstRecord


def send(bench: Workbench, partition: int, *ids: str) -> AppendResult | Taken:
    """One batch, a record for each of *ids*."""
    records = [
        NewRecord(b"v", None, [(MESSAGE_ID_HEADER, message_id.encode())], bench.clock.now_ms())
        for message_id in ids
    ]
    found = identified((delta, record.headers, record.timestamp_ms) for delta, record in enumerate(records))
    window = bench.directory.deduplication("t")
    return window.append(bench.partition(partition), encode_batch(records), found)


def new_bench(
    path: str, files: OsFiles | FaultyFiles | RecordingFiles | None = None, **settings: object
) -> Workbench:
    # With an index entry for every batch a process can die between writing the batch and publishing it.
    bench = Workbench(
        path, files=files, clock=ManualClock(), partitions=2, index_interval_bytes=0, **settings
    )
    bench.directory.note_message_ids("t")
    return bench


def ids_in(bench: Workbench) -> list[str]:
    """The ids of all records, in both partitions."""
    found = []
    for partition in (0, 1):
        log = bench.partition(partition)
        log.adopt()
        log.sync()
        found += [dict(one.header_pairs)[MESSAGE_ID_HEADER] for one in bench.records(partition=partition)]
    return sorted(value.decode() for value in found if value is not None)


@pytest.mark.parametrize("segment_bytes", [1 << 20, 14])
@pytest.mark.parametrize("without_view", [False, True])
def test_whoever_sends_the_id_of_a_dead_process_again_finds_what_it_left(
    tmp_path: Path, segment_bytes: int, without_view: bool
) -> None:
    outcomes = set()
    for operation in itertools.count(1):
        files = FaultyFiles(OsFiles())
        bench = new_bench(str(tmp_path / str(operation)), files, segment_bytes=segment_bytes)
        for message_id in ("before", "between"):
            assert isinstance(send(bench, 0, message_id), AppendResult)
        files.kill(at=operation)
        died = True
        try:
            send(bench, 0, "x", "y")
            died = False
        except ProcessKilled:
            pass
        bench.crash()
        bench.reopen(without_view=without_view)
        found = send(bench, 1, "x")
        if isinstance(found, Taken):
            first = found.by[b"x"]
            assert isinstance(first, FirstRecord)
            assert (first.partition, first.offset) == (0, 2)
        outcomes.add(type(found))
        assert ids_in(bench).count("x") == 1
        assert isinstance(send(bench, 1, "x"), Taken)
        bench.close()
        if not died:
            break
    assert outcomes == {AppendResult, Taken}


@pytest.mark.parametrize("repetition", range(6))
@pytest.mark.parametrize("survivors", ["what was synced", "any part of the rest"])
def test_a_power_cut_doubles_no_id_and_loses_none_that_was_acknowledged(
    tmp_path: Path, rng: random.Random, survivors: str, repetition: int
) -> None:
    (tmp_path / "recorded").mkdir()
    files = RecordingFiles(OsFiles(), str(tmp_path / "recorded"))
    bench = new_bench(str(tmp_path / "recorded" / "data"), files, segment_bytes=rng.choice([300, 1 << 20]))
    acknowledged: set[str] = set()
    for step in range(40):
        message_id = str(rng.randrange(step + 1))
        partition = rng.randrange(2)
        found = send(bench, partition, message_id)
        if rng.random() < 0.5:
            holder, end = partition, -1
            if isinstance(found, AppendResult):
                end = found.last_offset + 1
            elif isinstance(first := found.by[message_id.encode()], FirstRecord):
                holder, end = first.partition, first.offset + 1
            bench.directory.deduplication("t").wait_durable(holder, end)
            acknowledged.add(message_id)
        if rng.random() < 0.1:
            bench.directory.checkpoint()
        if step % 10 == 9:
            target = tmp_path / f"cut-{step}"
            target.mkdir()
            files.export_after_power_cut(str(target), rng if survivors.startswith("any") else None)
            check_after_power_cut(str(target / "data"), acknowledged)
    bench.close()


def check_after_power_cut(path: str, acknowledged: set[str]) -> None:
    bench = Workbench(path, clock=ManualClock())
    left = ids_in(bench)
    assert len(left) == len(set(left))
    assert acknowledged <= set(left)
    for message_id in map(str, range(40)):
        send(bench, 1, message_id)  # everything once more, from the start
    assert ids_in(bench) == sorted(map(str, range(40)))
    bench.close()


def test_a_batch_that_a_plain_append_adopted_has_taken_its_ids(tmp_path: Path) -> None:
    files = FaultyFiles(OsFiles())
    bench = new_bench(str(tmp_path / "data"), files)
    log = bench.log
    end = log.state().end
    send(bench, 0, "x")
    with log.view.write() as transaction:  # as a process leaves it that dies before it publishes
        log.view.partitions.put_log_end(transaction, log.key, end)
        log.view.message_ids.drop_from(transaction, log.topic_id, 0, 0)
    bench.put(b"plain")
    assert isinstance(send(bench, 1, "x"), Taken)
    bench.close()


def test_what_the_disk_lost_has_no_ids(tmp_path: Path) -> None:
    bench = new_bench(str(tmp_path / "data"))
    for message_id in "abc":
        send(bench, 0, message_id)
    bench.lose(1)
    assert isinstance(send(bench, 1, "a"), Taken)
    assert isinstance(send(bench, 1, "b", "c"), AppendResult)
    bench.close()


def test_all_ids_that_are_taken_are_told_at_once_and_nothing_is_appended(tmp_path: Path) -> None:
    bench = new_bench(str(tmp_path / "data"))
    send(bench, 0, "a", "b")
    found = send(bench, 1, "b", "c", "a")
    assert isinstance(found, Taken)
    assert {key: first.offset for key, first in found.by.items() if isinstance(first, FirstRecord)} == {
        b"a": 0,
        b"b": 1,
    }
    assert ids_in(bench) == ["a", "b"]
    bench.close()


def test_ids_are_found_behind_a_damaged_batch_when_the_view_is_made_anew(tmp_path: Path) -> None:
    bench = new_bench(str(tmp_path / "data"))
    for message_id in "abc":
        send(bench, 0, message_id)
        bench.log.sync()
    bench.directory.checkpoint()
    size = bench.log.state().end.active_bytes
    path = bench.log.segment(0).log_path
    bench.close()
    with open(path, "r+b") as file:
        file.seek(size // 3 + 70)  # in the second batch
        file.write(b"\xff\xff\xff")
    bench.reopen(without_view=True)
    assert isinstance(send(bench, 1, "a", "c"), Taken)
    assert isinstance(send(bench, 1, "b"), AppendResult)
    bench.close()


def test_ids_are_found_before_a_segment_that_is_empty(tmp_path: Path) -> None:
    bench = new_bench(str(tmp_path / "data"))
    send(bench, 0, "a")
    bench.log.roll_now()
    bench.log.sync()
    bench.reopen(without_view=True)
    assert isinstance(send(bench, 1, "a"), Taken)
    bench.close()
