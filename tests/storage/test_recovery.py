"""Recovery: what an opener makes of the files that a dead process, or a stopped machine, left."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from logbroker_storage.checkpoints import PartitionOffset, encode_partition_offsets
from logbroker_storage.errors import CorruptionError, OffsetOutOfRangeError
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.segment_files import ROOM_BYTES
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.startup import BOOT_ID
from logbroker_storage.testing import FaultyFiles, LogBuilder, Workbench
from logbroker_storage.testing.manual_clock import START_MS


class CountingFiles(FaultyFiles):
    """Also counts the bytes read of log files, and the syncs."""

    def __init__(self) -> None:
        super().__init__(OsFiles())
        self.log_bytes_read = 0

    def pread(self, fd: int, size: int, position: int) -> bytes:
        data = super().pread(fd, size, position)
        if self._path(fd).endswith(".log"):
            self.log_bytes_read += len(data)
        return data


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def open_bench(path: str, request: pytest.FixtureRequest) -> Callable[..., Workbench]:
    def make(**settings: object) -> Workbench:
        bench = Workbench(path, **settings)  # type: ignore[arg-type]
        request.addfinalizer(bench.close)
        return bench

    return make


def note_point(bench: Workbench, offset: int | None) -> None:
    """Have the recovery point of the (closed) log be *offset*; None for none at all."""
    points = bench.directory.layout.recovery_points
    if offset is None:
        Path(points).unlink(missing_ok=True)
    else:
        OsFiles().replace_file(points, encode_partition_offsets([PartitionOffset("t", 0, offset)]))


def restart_machine(bench: Workbench, *, point: int | None) -> Workbench:
    """What the next boot finds: no view that could be believed, and this recovery point."""
    bench.close()
    note_point(bench, point)
    shutil.rmtree(bench.directory.layout.view)
    return bench.open()


def a_second_recovery_changes_nothing(bench: Workbench, point: int | None) -> None:
    before = bench.contents(), bench.values(), bench.log.offsets(), bench.side_files()
    restart_machine(bench, point=point)
    assert (bench.contents(), bench.values(), bench.log.offsets(), bench.side_files()) == before


# After a restart of the machine -----------------------------------------------------------------------


def test_the_view_of_another_boot_is_not_believed(open_bench):
    bench = open_bench()
    bench.put(b"a")
    log, view = bench.log, bench.directory.view
    end = log.state().end._replace(log_start_offset=1)
    with view.write() as transaction:
        view.put_meta_bytes(transaction, BOOT_ID, b"another boot")
        view.partitions.put_log_end(transaction, log.key, end)
    assert bench.reopen().values() == [b"a"]
    assert bench.log.offsets().log_start_offset == 0


@pytest.mark.parametrize("point", [None, 0, 1, 7, 12])
def test_everything_is_found_again_wherever_the_recovery_point_was(open_bench, point):
    bench = open_bench(segment_bytes=300, index_interval_bytes=1)
    for number in range(6):
        bench.put(b"%d" % number * 30, b"second", producer_id=4, sequence=2 * number)
    bench.close()
    bench.open()
    everything = bench.values(), bench.contents(), bench.log.offsets(), bench.log.last_sequence(4)
    restart_machine(bench, point=point)
    assert (bench.values(), bench.contents(), bench.log.offsets(), bench.log.last_sequence(4)) == everything
    assert bench.side_files() == []
    again = bench.put(b"5" * 30, b"second", producer_id=4, sequence=10)
    assert (again.duplicate, again.base_offset) == (True, 10)
    bench.put(b"more", producer_id=4, sequence=12)
    assert bench.reopen().values() == [*everything[0], b"more"]


def test_a_torn_tail_above_the_point_is_cut_into_a_side_file(open_bench):
    bench = open_bench()
    for value in (b"a", b"b", b"c"):
        bench.put(value)
    bench.close()
    log = LogBuilder(bench.folder).torn(drop_bytes=3)
    torn = log.content()[log.positions[2] :]
    restart_machine(bench, point=2)
    assert bench.values() == [b"a", b"b"]
    (side_file,) = bench.side_files()
    assert Path(bench.folder, side_file).read_bytes() == torn
    assert bench.put(b"d").base_offset == 2
    a_second_recovery_changes_nothing(bench, 2)


@pytest.mark.parametrize("tail", ["zeros and more", "rubbish", "half a header", "another log's batch"])
def test_whatever_lies_behind_the_last_batch_is_kept_aside_and_no_record(open_bench, tail):
    bench = open_bench()
    bench.put(b"a")
    bench.close()
    log = LogBuilder(bench.folder)
    data = {
        "zeros and more": bytes(5000) + b"\1",
        "rubbish": random.Random(1).randbytes(3000),
        "half a header": log.content()[:30],
        "another log's batch": log.content(),  # its base offset is 0, where 1 is due
    }[tail]
    log.raw(data)
    restart_machine(bench, point=1)
    assert bench.values() == [b"a"]
    (side_file,) = bench.side_files()
    assert Path(bench.folder, side_file).read_bytes() == data
    a_second_recovery_changes_nothing(bench, 1)


@pytest.mark.parametrize("size_bytes", [1, 60, 61, 5000, 3 << 20])
def test_zeros_behind_the_last_batch_are_room_and_go(open_bench, size_bytes):
    bench = open_bench()
    bench.put(b"a")
    bench.close()
    log = LogBuilder(bench.folder)
    content = log.content()
    log.zeros(size_bytes)
    restart_machine(bench, point=1)
    assert log.content() == content
    assert bench.values() == [b"a"]
    assert bench.side_files() == []
    assert bench.put(b"b").base_offset == 1


def test_damage_below_the_point_is_quarantined_and_everything_behind_stays_readable(open_bench, caplog):
    bench = open_bench()
    for number in range(5):
        bench.put(b"%d" % number, b"second")
    bench.close()
    log = LogBuilder(bench.folder).flip(batch=1)
    damaged = log.content()
    with caplog.at_level(logging.ERROR, "logbroker.recovery"):
        restart_machine(bench, point=10)
    assert "offsets 2 to 3 are damaged" in caplog.text
    assert log.content() == damaged
    assert bench.side_files() == []
    reader = bench.log.reader(0)
    reader.read()
    with pytest.raises(CorruptionError) as caught:
        reader.read()
    reader.close()
    error = caught.value
    assert (error.start_offset, error.end_offset, error.position) == (2, 4, log.positions[1])
    assert bench.values(4) == [b"2", b"second", b"3", b"second", b"4", b"second"]
    assert bench.put(b"more").base_offset == 10
    before = bench.contents(), bench.values(4)
    restart_machine(bench, point=11)
    assert (bench.contents(), bench.values(4)) == before


@pytest.mark.parametrize("damaged_batch", range(6))
@pytest.mark.parametrize("point", [0, 2, 3, 5, 6])
def test_the_recovery_point_alone_tells_quarantine_from_cut(open_bench, damaged_batch, point):
    """One record a batch, so that batch numbers are offsets."""
    bench = open_bench(index_interval_bytes=1)
    everything = [b"%d" % number * 9 for number in range(6)]
    for value in everything:
        bench.put(value)
    bench.close()
    LogBuilder(bench.folder).flip(batch=damaged_batch)
    restart_machine(bench, point=point)
    if damaged_batch >= point:
        assert bench.values() == everything[:damaged_batch]
        assert len(bench.side_files()) == 1
        a_second_recovery_changes_nothing(bench, point)
    else:
        assert bench.side_files() == []
        with pytest.raises(CorruptionError) as caught:
            bench.values(damaged_batch)
        assert (caught.value.start_offset, caught.value.end_offset) == (damaged_batch, damaged_batch + 1)
        if damaged_batch < 5:
            assert bench.values(damaged_batch + 1) == everything[damaged_batch + 1 :]
    end = bench.log.offsets().log_end_offset
    assert end >= point
    assert bench.put(b"more").base_offset == end
    assert bench.values(end) == [b"more"]


def test_segments_behind_a_cut_go_aside_whole(open_bench):
    bench = open_bench(segment_bytes=100)
    for number in range(4):
        bench.put(b"%d" % number * 50)
    bench.close()
    with open(f"{bench.folder}/{1:020}.log", "r+b") as file:
        file.seek(70)
        file.write(b"damage")
    restart_machine(bench, point=1)
    assert bench.values() == [b"0" * 50]
    assert sorted(name.split(".log")[0] for name in bench.side_files()) == [
        f"{base:020}" for base in (1, 2, 3)
    ]
    assert bench.segments() == [0, 1]
    a_second_recovery_changes_nothing(bench, 1)


def test_a_log_that_ends_below_its_recovery_point_goes_on_behind_it(open_bench, caplog):
    """Offsets that consumers have seen never come to name other records."""
    bench = open_bench()
    for value in (b"a", b"b", b"c"):
        bench.put(value)
    bench.close()
    log = LogBuilder(bench.folder)
    os.truncate(log.log_path, log.positions[1])
    with caplog.at_level(logging.ERROR, "logbroker.recovery"):
        restart_machine(bench, point=3)
    assert "offsets 1 to 2 are damaged" in caplog.text
    assert bench.put(b"d").base_offset == 3
    with pytest.raises(CorruptionError) as caught:
        bench.values()
    assert (caught.value.start_offset, caught.value.end_offset) == (1, 3)
    assert bench.values(3) == [b"d"]
    before = bench.contents()
    restart_machine(bench, point=4)
    assert bench.values(3) == [b"d"]
    assert bench.contents([".log"]) == {name: data for name, data in before.items() if name.endswith(".log")}


def test_a_lost_log_begins_at_its_recovery_point(open_bench):
    bench = open_bench()
    for value in (b"a", b"b", b"c"):
        bench.put(value)
    bench.close()
    os.unlink(f"{bench.folder}/{0:020}.log")
    restart_machine(bench, point=3)
    assert bench.values() == []
    assert bench.put(b"d").base_offset == 3


def test_what_was_deleted_on_request_stays_deleted(open_bench):
    bench = open_bench(segment_bytes=100)
    for number in range(4):
        bench.put(b"%d" % number * 50)
    assert bench.directory.delete_records("t", 0, 2) == 2
    assert bench.directory.delete_records("t", 0, 1) == 2
    for point in (None, 0, 4):
        restart_machine(bench, point=point)
        assert bench.log.offsets().log_start_offset == 2
        assert bench.values() == [b"2" * 50, b"3" * 50]
        with pytest.raises(OffsetOutOfRangeError):
            bench.log.reader(1).read()


def test_a_log_never_ends_below_its_start(open_bench):
    """Weak durability lost the records behind the deletion that was journaled: new ones must not be hidden."""
    bench = open_bench(durability="os")
    for value in (b"a", b"b", b"c"):
        bench.put(value, sync=False)
    bench.directory.delete_records("t", 0, 3)
    bench.close()
    log = LogBuilder(bench.folder)
    os.truncate(log.log_path, log.positions[1])
    restart_machine(bench, point=0)
    assert bench.log.offsets().log_start_offset == 3
    assert bench.put(b"d").base_offset == 3
    restart_machine(bench, point=None)
    assert bench.values() == [b"d"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-3],
        lambda content: bytes(len(content)),
        lambda content: content[::-1],
        lambda content: content + content,
        lambda content: b"\xff" * len(content),
        None,
    ],
    ids=["empty", "torn", "zeros", "reversed", "doubled", "ones", "missing"],
)
@pytest.mark.parametrize("point", [0, 12])
def test_a_damaged_index_is_built_again_as_it_was(open_bench, damage, point):
    bench = open_bench(segment_bytes=400, index_interval_bytes=1)
    for number in range(12):
        bench.put(b"%d" % number * 30, timestamp_ms=1000 + number)
    bench.reopen()
    sound, values = bench.contents(), bench.values()
    bench.close()
    for name, content in sound.items():
        if name.endswith("index"):
            if damage is None:
                os.unlink(f"{bench.folder}/{name}")
            else:
                Path(bench.folder, name).write_bytes(damage(content))
    restart_machine(bench, point=point)
    assert bench.contents() == sound
    assert bench.values() == values
    assert [bench.log.offset_for_timestamp(1000 + number) for number in range(12)] == list(range(12))


def test_recovery_reads_only_the_end_of_a_log_that_was_closed(open_bench, path):
    bench = open_bench()
    for number in range(80):
        bench.put(os.urandom(8000), sync=False, timestamp_ms=START_MS + number)
    bench.log.sync()
    bench.close()
    shutil.rmtree(bench.directory.layout.view)
    files = CountingFiles()
    bench.open(files=files)
    assert files.log_bytes_read < 100_000
    bench.close()


def test_after_a_clean_close_nothing_is_scanned(open_bench):
    bench = open_bench()
    for _ in range(20):
        bench.put(os.urandom(8000), sync=False)
    bench.close()
    files = CountingFiles()
    bench.open(files=files)
    assert files.log_bytes_read == 0
    assert files.calls["fdatasync"] + files.calls["fsync"] == 0


def test_without_a_producer_snapshot_or_with_a_torn_one_headers_tell_the_same(open_bench):
    bench = open_bench(segment_bytes=300)
    for number in range(9):
        bench.put(b"v" * 50, producer_id=number % 2, sequence=number // 2)
    for spoil in (lambda path: os.truncate(path, 12), os.unlink):
        bench.close()
        for name in os.listdir(bench.folder):
            if name.endswith(".snapshot"):
                spoil(f"{bench.folder}/{name}")
        restart_machine(bench, point=9)
        assert (bench.log.last_sequence(0), bench.log.last_sequence(1)) == (4, 3)


def test_a_producer_is_remembered_whose_records_retention_removed(open_bench):
    """Also where the fold must begin before the snapshot that knows it: nothing was ever noted as synced."""
    bench = open_bench(segment_bytes=150)
    bench.put(b"a" * 60, producer_id=1, sequence=7, gaps=True)
    for number in range(5):
        bench.put(b"%d" % number * 60, producer_id=2, sequence=number)
    delete_segments_below(bench.log, 1)
    restart_machine(bench, point=None)
    assert (bench.log.last_sequence(1), bench.log.last_sequence(2)) == (7, 4)
    assert bench.log.state().end.log_start_offset == 1


def test_a_removed_producer_is_remembered_also_when_a_power_cut_took_every_snapshot_since(open_bench):
    bench = open_bench(segment_bytes=150)
    bench.put(b"a" * 60, producer_id=1, sequence=7, gaps=True)
    bench.put(b"b" * 60)
    bench.put(b"b" * 60)
    delete_segments_below(bench.log, 1)
    synced = {name for name in os.listdir(bench.folder) if name.endswith(".snapshot")}
    for number in range(5):
        bench.put(b"%d" % number * 60, producer_id=2, sequence=number)
    bench.close()
    for name in os.listdir(bench.folder):
        if name.endswith(".snapshot") and name not in synced:
            os.truncate(f"{bench.folder}/{name}", 0)
    restart_machine(bench, point=None)
    assert (bench.log.last_sequence(1), bench.log.last_sequence(2)) == (7, 4)


@pytest.mark.parametrize("how", ["close", "crash"])
@pytest.mark.parametrize("snapshots", [(), (1,), (5,), (7,), (8,), (2, 4, 6), (6, 7, 8)])
def test_all_batches_that_a_client_may_have_in_flight_are_known_again(open_bench, snapshots, how):
    """Wherever the snapshots lie between them, and of a producer who has written nothing since, too."""
    bench = open_bench()
    sent = []
    for number in range(8):
        for producer_id in (7, 8):
            if producer_id == 7 or number < 5:
                last_offset = bench.put(b"a", b"b", producer_id=producer_id, sequence=2 * number).last_offset
                sent.append((producer_id, 2 * number, last_offset))
        if number + 1 in snapshots:
            bench.log.roll_now()
    getattr(bench, how)()
    shutil.rmtree(bench.directory.layout.view)
    bench.open()
    for producer_id, sequence, last_offset in sent:
        if producer_id == 8 or sequence >= 6:
            again = bench.log.append(bench.batch(b"a", b"b", producer_id=producer_id, sequence=sequence))
            assert (again.duplicate, again.last_offset) == (True, last_offset)


def test_a_snapshot_of_records_that_were_cut_is_forgotten(open_bench):
    bench = open_bench(segment_bytes=150)
    for number in range(4):
        bench.put(b"%d" % number * 60, producer_id=1, sequence=number)
    bench.close()
    for base in (2, 3):
        os.unlink(f"{bench.folder}/{base:020}.log")  # the power cut took them
    restart_machine(bench, point=2)
    assert bench.log.last_sequence(1) == 1
    for number in (2, 3):
        assert not bench.put(b"%d" % number * 60, producer_id=1, sequence=number).duplicate
    restart_machine(bench, point=2)
    assert bench.values() == [b"%d" % number * 60 for number in range(4)]


def test_a_snapshot_of_a_log_that_is_lost_as_a_whole_is_forgotten(open_bench):
    """Once the log is as long again it would be taken for one of the records that are there."""
    bench = open_bench()
    bench.put(b"lost", producer_id=1, sequence=0)
    bench.close()
    os.unlink(f"{bench.folder}/{0:020}.log")
    restart_machine(bench, point=None)
    bench.put(b"other", b"another")
    bench.directory.checkpoint()
    bench.crash()
    shutil.rmtree(bench.directory.layout.view)
    bench.open()
    assert not bench.put(b"lost", producer_id=1, sequence=0).duplicate
    assert bench.values() == [b"other", b"another", b"lost"]


def test_bytes_of_a_torn_temporary_file_are_swept(open_bench):
    bench = open_bench()
    bench.put(b"a")
    bench.close()
    leftover = Path(bench.folder, "partition.metadata.12-34.tmp")
    leftover.write_bytes(b"half")
    restart_machine(bench, point=None)
    assert not leftover.exists()


# Folders that no topic knows --------------------------------------------------------------------------


def test_the_folder_of_a_creation_that_was_cut_short_is_removed(open_bench):
    bench = open_bench()
    bench.close()
    for name in ("half-0", "half-1"):
        LogBuilder(f"{bench.directory.layout.logs}/{name}")
    restart_machine(bench, point=None)
    assert bench.directory.topics() == ["t"]
    assert not any(name.startswith("half") for name in os.listdir(bench.directory.layout.logs))


def test_a_folder_with_records_that_no_topic_knows_becomes_a_topic(open_bench):
    bench = open_bench()
    bench.close()
    LogBuilder(f"{bench.directory.layout.logs}/found-1").batch(b"a").batch(b"b").indexes()
    restart_machine(bench, point=None)
    assert bench.directory.topics() == ["found", "t"]
    assert bench.directory.topic("found").partitions == 2
    log = bench.directory.log("found", 1)
    assert log.offsets().log_end_offset == 2
    log.append(bench.batch(b"c"))
    restart_machine(bench, point=None)
    assert bench.directory.log("found", 1).offsets().log_end_offset == 3
    assert bench.directory.log("found", 0).offsets().log_end_offset == 0


@pytest.mark.parametrize(
    "name",
    [
        "t-20261126",
        "t-10000",
        f"t-{'9' * 23}",
        "t-00",
        "found-01",
        "found-20261126",
        "t-\u0662",
        pytest.param(os.fsdecode(b"\xff-0"), id="no text"),
    ],
)
@pytest.mark.parametrize("has_records", [True, False])
def test_a_folder_whose_number_no_partition_has_is_left_alone(open_bench, caplog, name, has_records):
    """Nobody would have meant millions of partitions by a date."""
    bench = open_bench()
    bench.put(b"a")
    bench.close()
    stray = f"{bench.directory.layout.logs}/{name}"
    log = LogBuilder(stray)
    if has_records:
        log.batch(b"b")
    bench.open()
    assert caplog.text == ""
    bench.close()
    restart_machine(bench, point=None)
    assert len([line for line in caplog.messages if "stay unread" in line]) == 1
    assert (bench.directory.topics(), bench.directory.topic("t").partitions) == (["t"], 1)
    assert bench.values() == [b"a"]
    assert os.path.exists(stray)


@pytest.mark.parametrize(
    "name", [f"{1 << 63}.log", f"{'9' * 20}.log", f"{'9' * 21}.log", "-0000000000000000001.log"]
)
def test_a_name_that_is_no_offset_is_no_segments(open_bench, name):
    bench = open_bench()
    bench.put(b"a")
    bench.close()
    stray = Path(bench.folder, f"{name:0>24}")
    stray.write_bytes(b"")
    restart_machine(bench, point=None)
    assert bench.values() == [b"a"]
    bench.reopen()
    bench.put(b"b")
    assert bench.values() == [b"a", b"b"]
    assert stray.exists()


def test_a_partition_that_a_known_topic_never_had_is_left_alone_and_one_that_it_may_have_had_is_not(
    open_bench, caplog
):
    """A topic grows by every partition up to its new number: there is no gap in what it ever had."""
    bench = open_bench()
    created_ms = bench.directory.topic("t").created_ms
    bench.close()
    logs = bench.directory.layout.logs
    LogBuilder(f"{logs}/t-5").batch(b"copied")
    LogBuilder(f"{logs}/t-7")
    restart_machine(bench, point=None)
    assert bench.directory.topic("t").partitions == 1
    assert "'t-5': no topic has such partitions" in caplog.text
    bench.close()
    for number in (1, 2):
        LogBuilder(f"{logs}/t-{number}").batch(b"adopted")
    restart_machine(bench, point=None)
    topic = bench.directory.topic("t")
    assert (topic.partitions, topic.created_ms) == (3, created_ms)
    assert bench.values(partition=2) == [b"adopted"]
    assert sorted(name for name in os.listdir(logs) if name.startswith("t-")) == ["t-0", "t-1", "t-2", "t-5"]


def test_a_folder_on_its_way_out_is_removed(open_bench):
    bench = open_bench()
    gone = f"{bench.directory.layout.logs}/gone-0.{'ab' * 16}-delete"
    for reopen in (lambda: restart_machine(bench, point=None), bench.reopen):
        bench.close()
        LogBuilder(gone).batch(b"a")
        reopen()
        assert not os.path.exists(gone)
    assert bench.directory.topics() == ["t"]


def test_a_missing_folder_of_a_topic_begins_empty_and_says_so(open_bench, caplog):
    bench = open_bench()
    bench.put(b"a")
    bench.close()
    shutil.rmtree(bench.folder)
    with caplog.at_level(logging.ERROR, "logbroker.recovery"):
        restart_machine(bench, point=None)
    assert "is missing" in caplog.text
    assert bench.values() == []
    bench.put(b"b")


def test_a_topic_made_anew_does_not_begin_with_the_recovery_point_of_the_one_before(open_bench):
    bench = open_bench()
    for value in (b"a", b"b", b"c"):
        bench.put(value)
    bench.directory.checkpoint()
    bench.directory.delete_topic("t")
    bench.directory.create_topic("t", 1, LogConfig.parse({}))
    bench.put(b"new")
    bench.crash()
    shutil.rmtree(bench.directory.layout.view)  # the machine stops before the next checkpoint
    bench.open()
    assert bench.values() == [b"new"]
    assert bench.put(b"more").base_offset == 1


def test_recovery_points_that_cannot_be_read_cost_a_longer_scan(open_bench, caplog):
    bench = open_bench()
    bench.put(b"a")
    bench.close()
    Path(bench.directory.layout.recovery_points).write_bytes(b"rubbish")
    shutil.rmtree(bench.directory.layout.view)
    bench.open()
    assert "cannot be read" in caplog.text
    assert bench.values() == [b"a"]


# After the death of a process -------------------------------------------------------------------------


def test_a_whole_batch_that_was_not_published_is_adopted_by_the_next_append(open_bench):
    bench = open_bench(index_interval_bytes=1)
    bench.put(b"a", producer_id=1, sequence=0)
    stray = bench.batch(b"b", producer_id=1, sequence=1)
    LogBuilder(bench.folder).append(stray)
    assert bench.log.offsets().log_end_offset == 1
    again = bench.put(
        b"b", producer_id=1, sequence=1
    )  # its producer, alive again, sends what it has no answer for
    assert (again.duplicate, again.base_offset) == (True, 1)
    assert bench.values() == [b"a", b"b"]
    written = bench.contents()
    assert bench.reopen().contents()[f"{0:020}.index"] == written[f"{0:020}.index"] != b""


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_adopting_makes_records_as_visible_as_appending_does(open_bench, durability):
    bench = open_bench(durability=durability)
    LogBuilder(bench.folder).batch(b"a")
    bench.log.adopt()
    assert bench.values() == ([b"a"] if durability == "os" else [])
    bench.log.sync()
    assert bench.values() == [b"a"]


def test_half_a_batch_is_cut_into_a_side_file_by_the_next_append(open_bench):
    bench = open_bench()
    bench.put(b"a")
    log = LogBuilder(bench.folder)
    half = bytes(bench.batch(b"b" * 100))[:80]
    log.raw(half)
    assert bench.put(b"c").base_offset == 1
    assert bench.values() == [b"a", b"c"]
    (side_file,) = bench.side_files()
    assert Path(bench.folder, side_file).read_bytes() == half


def test_a_log_cut_behind_the_view_s_back_is_recovered_by_the_next_append(open_bench):
    bench = open_bench()
    for value in (b"a", b"b", b"c"):
        bench.put(value)
    log = LogBuilder(bench.folder)
    os.truncate(log.log_path, log.positions[1])
    assert bench.put(b"d").base_offset == 3
    assert bench.values(3) == [b"d"]
    with pytest.raises(CorruptionError) as caught:
        bench.values()
    assert (caught.value.start_offset, caught.value.end_offset) == (1, 3)


WRITER = """
    import sys
    from logbroker_storage.testing import Workbench
    bench = Workbench(sys.argv[1], segment_bytes=2000, index_interval_bytes=300)
    last = bench.log.take_over(1, epoch=0)
    number = 0 if last is None else (last + 1) // 2
    while True:
        bench.put(b"%d" % number, b"v" * (number % 300), producer_id=1, sequence=2 * number)
        print(number, flush=True)
        number += 1
"""


def test_a_writer_killed_at_any_moment_loses_nothing_and_repeats_nothing(path):
    """Thirty times a process appends in a loop and is killed; the next one goes on from what it finds."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    bench = Workbench(path, segment_bytes=2000, index_interval_bytes=300)
    bench.close()
    acknowledged = -1
    for cycle in range(30):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), path],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        lines += [writer.stdout.readline() for _ in range(choose.randint(0, 40))]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        acknowledged = max([acknowledged, *(int(line) for line in lines if line.endswith("\n"))])
        if cycle % 5 == 4:
            bench.open()
            check_written(bench, acknowledged)
            bench.reopen(without_view=choose.random() < 0.5)
            check_written(bench, acknowledged)
            bench.close()


def check_written(bench: Workbench, acknowledged: int) -> None:
    bench.log.adopt()
    bench.log.sync()
    values = bench.values()
    assert len(values) // 2 > acknowledged
    assert values[::2] == [b"%d" % number for number in range(len(values) // 2)]
    assert values[1::2] == [b"v" * (number % 300) for number in range(len(values) // 2)]
    assert [record.offset for record in bench.records()] == list(range(len(values)))
    assert bench.log.last_sequence(1) == len(values) - 1


def test_the_last_process_to_leave_a_directory_may_be_killed_and_the_view_is_still_true(path):
    bench = Workbench(path)
    bench.put(b"a" * 1_000_000)
    bench.crash()
    files = CountingFiles()
    bench.open(files=files)
    assert files.log_bytes_read < 3 * ROOM_BYTES, "looks behind the ends, at no batch"
    assert bench.values() == [b"a" * 1_000_000]
    bench.close()


@pytest.mark.parametrize("left", [0, 12, 40])
@pytest.mark.parametrize("opened_before", [1, 2, 3])
def test_a_log_that_was_cut_behind_the_view_s_back_goes_on_in_a_new_segment(path, opened_before, left):
    """Its first batch was once written into the old segment's file, over what was left there."""
    bench = Workbench(path)
    bench.put(b"a", b"b")
    for _ in range(opened_before):
        bench.reopen(without_view=True)
    bench.close()
    segment = f"{bench.folder}/{0:020d}.log"
    os.truncate(segment, left)
    before = Path(segment).read_bytes()
    bench.open()
    assert bench.put(b"c").base_offset == 2
    for without_view in (False, True):
        bench.reopen(without_view=without_view)
        assert Path(segment).read_bytes() == before
        assert bench.values(2) == [b"c"]
        with pytest.raises(CorruptionError) as raised:
            bench.values(0)
        assert (raised.value.start_offset, raised.value.end_offset) == (0, 2)
    bench.close()
