"""The cleaner takes out what a topic's configuration no longer wants kept, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec import structs

from logbroker_storage import compaction
from logbroker_storage.batch_header import BatchHeader
from logbroker_storage.compression import Buffer
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import OffsetOutOfRangeError
from logbroker_storage.events import GroupEvent, OffsetEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.locks import ProcessLock
from logbroker_storage.log_config import LogConfig
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import NewRecord, Record, decode_records, encode_batch
from logbroker_storage.testing import ManualClock, RecordingFiles, Workbench

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


class Fixture:
    """A directory on a manual clock, and the tiny language of these tests."""

    def __init__(self, path: str) -> None:
        self.clock = ManualClock(START_MS)
        self.path = path
        self.directory = DataDirectory.open(path, clock=self.clock)

    def topic(self, **config: object) -> PartitionLog:
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        self.directory.create_topic("t", 1, LogConfig.parse(settings))
        return self.directory.log("t", 0)

    def put(
        self, log: PartitionLog, *pairs: tuple[bytes | None, bytes | None], producer_id: int = -1
    ) -> None:
        now_ms = self.clock.now_ms()
        records = [NewRecord(value=value, key=key, timestamp_ms=now_ms) for key, value in pairs]
        sequence = 0 if producer_id >= 0 else -1
        batch = encode_batch(
            records, producer_id=producer_id, producer_epoch=sequence, base_sequence=sequence
        )
        log.append(batch)
        log.sync()

    def records(self, log: PartitionLog) -> list[Record]:
        reader = log.reader(log.offsets().log_start_offset)
        found = []
        while batches := reader.read():
            for batch in batches:
                found += decode_records(batch, "t", 0)
        reader.close()
        return found

    def values(self, log: PartitionLog) -> list[bytes | None]:
        return [record.value for record in self.records(log)]

    def clean(self) -> None:
        assert self.directory.maintenance.clean()


@pytest.fixture
def fixture(tmp_path: object) -> Iterator[Fixture]:
    made = Fixture(f"{tmp_path}/data")
    yield made
    made.directory.close()


def test_segments_older_than_retention_ms_go_and_younger_ones_stay(fixture: Fixture) -> None:
    log = fixture.topic(retention_ms=HOUR_MS, segment_bytes=200)
    fixture.put(log, (None, b"old" * 40))
    fixture.put(log, (None, b"old too" * 20))
    fixture.clock.advance(ms=HOUR_MS)
    fixture.put(log, (None, b"young" * 30))
    fixture.clock.advance(ms=1)
    fixture.clean()
    assert fixture.values(log) == [b"young" * 30]
    assert log.offsets().log_start_offset == 2


def test_the_active_segment_is_rolled_when_all_of_it_is_too_old(fixture: Fixture) -> None:
    log = fixture.topic(retention_ms=HOUR_MS)
    fixture.put(log, (None, b"old"))
    fixture.clock.advance(ms=HOUR_MS + 1)
    fixture.clean()
    assert fixture.values(log) == []
    assert log.offsets() == (1, 1, 1, 1, 1)
    fixture.put(log, (None, b"new"))
    assert [(record.offset, record.value) for record in fixture.records(log)] == [(1, b"new")]


def test_the_oldest_segments_go_while_the_partition_is_larger_than_retention_bytes(fixture: Fixture) -> None:
    log = fixture.topic(retention_bytes=500, segment_bytes=200)
    for number in range(10):
        fixture.put(log, (None, b"%03d" % number * 40))
    fixture.clean()
    left = fixture.values(log)
    assert left == [b"%03d" % number * 40 for number in range(10 - len(left), 10)]
    assert 500 <= log.size_bytes() < 500 + 200


def test_a_reader_in_a_removed_segment_gets_out_of_range_and_not_garbage(fixture: Fixture) -> None:
    log = fixture.topic(retention_ms=HOUR_MS, segment_bytes=200)
    for number in range(5):
        fixture.put(log, (None, b"%d" % number * 120))
    reader = log.reader(0)
    assert reader.read(1)[0].header.base_offset == 0
    fixture.clock.advance(ms=HOUR_MS + 1)
    fixture.clean()
    with pytest.raises(OffsetOutOfRangeError) as caught:
        reader.read()
    assert (caught.value.offset, caught.value.start_offset) == (1, 5)
    reader.close()


def test_expired_messages_go_with_their_segment_even_when_the_topic_is_compacted(fixture: Fixture) -> None:
    log = fixture.topic(cleanup_policy="compact", message_ttl_ms=1000, segment_bytes=200)
    fixture.put(log, (b"a", b"x" * 120))
    fixture.put(log, (b"b", b"x" * 120))
    fixture.clock.advance(ms=1001)
    fixture.put(log, (b"c", b"x" * 120))
    fixture.clean()
    assert [record.key for record in fixture.records(log)] == [b"c"]


def test_consumed_segments_go_when_every_subscribed_group_has_committed_past_them(fixture: Fixture) -> None:
    log = fixture.topic(retention_policy="consumed", segment_bytes=200)
    for number in range(4):
        fixture.put(log, (None, b"%d" % number * 120))
    fixture.clean()
    assert len(fixture.values(log)) == 4  # nobody has subscribed
    journal = fixture.directory.journal
    journal.record(
        [GroupEvent("fast", ["t"], 0), GroupEvent("slow", ["t"], 0), GroupEvent("other", ["u"], 0)]
    )
    journal.record([OffsetEvent("fast", "t", 0, 4, "", 0)])
    fixture.clean()
    assert len(fixture.values(log)) == 4  # slow has committed nothing
    journal.record([OffsetEvent("slow", "t", 0, 2, "", 0)])
    fixture.clean()
    assert log.offsets().log_start_offset == 2
    journal.record([OffsetEvent("slow", "t", 0, 4, "", 0)])
    fixture.clean()
    assert fixture.values(log) == []
    assert log.size_bytes() == 0


def test_consumed_retention_has_no_time_limit_unless_one_is_set(fixture: Fixture) -> None:
    log = fixture.topic(retention_policy="consumed")
    fixture.put(log, (None, b"unread"))
    fixture.clock.advance(ms=365 * 24 * HOUR_MS)
    fixture.clean()
    assert fixture.values(log) == [b"unread"]
    fixture.directory.alter_topic("t", {"retention.ms": HOUR_MS})
    fixture.clean()
    assert fixture.values(log) == []


def test_compaction_keeps_the_latest_value_of_each_key_at_its_offset(fixture: Fixture) -> None:
    log = fixture.topic(cleanup_policy="compact", segment_bytes=300, min_cleanable_dirty_ratio=0)
    for number in range(40):
        fixture.put(log, (b"k%d" % (number % 3), b"%02d" % number))
    before = {record.key: (record.offset, record.value) for record in fixture.records(log)}
    log.roll_now()
    bytes_before = log.size_bytes()
    fixture.clean()
    after = {record.key: (record.offset, record.value) for record in fixture.records(log)}
    assert after == before
    assert len(fixture.records(log)) == 3
    assert log.size_bytes() < bytes_before / 3


def test_neighbouring_segments_that_became_small_are_joined(fixture: Fixture) -> None:
    log = fixture.topic(cleanup_policy="compact", segment_bytes=1000, min_cleanable_dirty_ratio=0)
    for _ in range(6):
        fixture.put(log, (b"same", b"value"))
        log.roll_now()
    fixture.clean()
    assert [record.offset for record in fixture.records(log)] == [5]
    assert sum(name.endswith(".log") for name in os.listdir(log.directory)) == 2  # and the active one


def test_compaction_survives_the_loss_of_the_view_and_leaves_no_gap(fixture: Fixture) -> None:
    log = fixture.topic(cleanup_policy="compact", segment_bytes=300, min_cleanable_dirty_ratio=0)
    for number in range(40):
        fixture.put(log, (b"k%d" % (number % 3), b"%02d" % number), producer_id=number)
    log.roll_now()
    fixture.clean()
    records, offsets = fixture.records(log), log.offsets()
    last = log.last_sequence(7)
    fixture.directory.close()
    os.system(f"rm -r {fixture.path}/view")
    fixture.directory = DataDirectory.open(fixture.path, clock=fixture.clock)
    log = fixture.directory.log("t", 0)
    assert fixture.records(log) == records
    assert log.offsets() == offsets
    assert log.last_sequence(7) == last == 0


def test_what_a_producer_s_later_batch_makes_dispensable_goes_when_that_one_is_on_the_disk(
    tmp_path: Path,
) -> None:
    (tmp_path / "recorded").mkdir()
    files = RecordingFiles(OsFiles(), str(tmp_path / "recorded"))
    settings = {"segment_bytes": 200, "cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0.01}
    bench = Workbench(str(tmp_path / "recorded" / "data"), files=files, clock=ManualClock(), **settings)
    log = bench.log
    log.append(encode_batch([NewRecord(b"1" * 150, b"k")], producer_id=7, producer_epoch=0, base_sequence=0))
    log.append(encode_batch([NewRecord(b"2" * 150, b"k")]))
    log.append(encode_batch([NewRecord(b"other" * 30, b"another")]))
    log.sync()
    log.append(encode_batch([NewRecord(b"3", b"k")], producer_id=7, producer_epoch=0, base_sequence=1))
    assert bench.directory.maintenance.clean()
    (tmp_path / "cut").mkdir()
    files.export_after_power_cut(str(tmp_path / "cut"), None)
    bench.close()

    left = Workbench(str(tmp_path / "cut" / "data"), clock=ManualClock())
    assert (
        left.log.view.partitions.producers(left.log.key)[7].last_sequence >= 0
    )  # else its first batch could come again
    left.close()


def test_a_tombstone_goes_only_when_delete_retention_ms_has_passed_since_it_was_first_compacted(
    fixture: Fixture,
) -> None:
    log = fixture.topic(
        cleanup_policy="compact", segment_bytes=150, min_cleanable_dirty_ratio=0, delete_retention_ms=HOUR_MS
    )
    fixture.put(log, (b"gone", b"value"))
    fixture.put(log, (b"gone", None))
    log.roll_now()
    fixture.clean()
    assert [(record.key, record.value) for record in fixture.records(log)] == [(b"gone", None)]
    fixture.clock.advance(ms=HOUR_MS)
    fixture.put(log, (b"other", b"1"))
    log.roll_now()
    fixture.clean()
    assert [record.key for record in fixture.records(log)] == [b"other"]


def test_one_cleaner_at_a_time_and_the_next_one_follows(fixture: Fixture) -> None:
    other = ProcessLock(fixture.directory.files, fixture.directory.layout.lock("cleaner"))
    assert other.try_acquire()
    assert fixture.directory.maintenance.clean() is False
    other.release()
    other.close()
    assert fixture.directory.maintenance.clean() is True


@pytest.mark.parametrize("stop_after", range(1, 40))
def test_a_cleaner_that_dies_at_any_step_leaves_a_log_that_reads_the_same(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    log = fixture.topic(cleanup_policy="compact", segment_bytes=300, min_cleanable_dirty_ratio=0)
    for number in range(30):
        fixture.put(log, (b"k%d" % (number % 3), b"%02d" % number))
    latest = {record.key: record.value for record in fixture.records(log)}
    log.roll_now()
    files = log.files
    left = [stop_after]

    class Died(BaseException):
        pass

    for operation in ("pwrite", "pwritev", "fsync", "rename", "unlink", "replace_file", "fsync_directory"):

        def die_there(*arguments: object, _real: object = getattr(files, operation)) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise Died
            return _real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(files, operation, die_there)
    try:
        fixture.clean()
    except Died:
        pass
    monkeypatch.undo()
    assert {record.key: record.value for record in fixture.records(log)} == latest
    fixture.clean()
    assert {record.key: record.value for record in fixture.records(log)} == latest
    fixture.directory.close()
    os.system(f"rm -r {fixture.path}/view")
    fixture.directory = DataDirectory.open(fixture.path, clock=fixture.clock)
    log = fixture.directory.log("t", 0)
    assert {record.key: record.value for record in fixture.records(log)} == latest
    assert not [name for name in os.listdir(log.directory) if name.endswith((".cleaned", ".replaces"))]


def test_a_topic_that_is_deleted_while_others_are_cleaned_stops_nothing(fixture: Fixture) -> None:
    """It was listed, and is gone when its turn comes: the topics behind it are cleaned all the same."""
    for name in ("a", "b"):  # readers are asked where it is they who decide
        fixture.directory.create_topic(name, 1, LogConfig.parse({"retention.policy": "consumed"}))
    log = fixture.topic(retention_ms=HOUR_MS)
    fixture.put(log, (None, b"old"))
    fixture.clock.advance(ms=HOUR_MS + 1)

    def delete_the_next(topic: str, _: int) -> list[int]:
        if topic == "a":
            fixture.directory.delete_topic("b")
        return []

    fixture.directory.maintenance.add_readers("one that deletes", delete_the_next)
    fixture.clean()
    assert fixture.directory.topics() == ["a", "t"]
    assert fixture.values(log) == []


def test_a_mistake_in_cleaning_one_topic_stops_nothing(fixture: Fixture) -> None:
    """Whatever it is: the disk must not fill up with what could be removed of the others."""
    fixture.directory.create_topic("a", 1, LogConfig.parse({"retention.policy": "consumed"}))
    log = fixture.topic(retention_ms=HOUR_MS)
    fixture.put(log, (None, b"old"))
    fixture.clock.advance(ms=HOUR_MS + 1)

    def mistaken(topic: str, _: int) -> list[int]:
        raise ValueError(topic)

    fixture.directory.maintenance.add_readers("one that is mistaken", mistaken)
    fixture.clean()
    assert fixture.values(log) == []


def test_chores_of_layers_above_come_behind_the_last_log_and_one_that_fails_stops_no_other(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    log = fixture.topic(retention_ms=HOUR_MS)
    fixture.put(log, (None, b"old"))
    fixture.clock.advance(ms=HOUR_MS + 1)
    found = []

    def fail() -> None:
        raise ZeroDivisionError("of a mistake")

    fixture.directory.maintenance.add_chore("first", fail)
    fixture.directory.maintenance.add_chore("second", lambda: found.append(fixture.values(log)))
    fixture.clean()
    assert found == [[]]
    assert "of a mistake" in caplog.text


def test_producers_that_were_silent_for_a_day_are_forgotten_but_not_named_ones(fixture: Fixture) -> None:
    log = fixture.topic()
    named = fixture.directory.producer_ids.open_named("loader")
    named_id = fixture.directory.producer_ids.add_block("loader", named.epoch, 0)
    anonymous_id = fixture.directory.producer_ids.allocate()
    fixture.put(log, (None, b"1"), producer_id=named_id)
    fixture.put(log, (None, b"2"), producer_id=anonymous_id)
    fixture.clock.advance(ms=24 * HOUR_MS + 1)
    fixture.clean()
    assert log.last_sequence(anonymous_id) == 0, "it was not seen to be silent yet"
    fixture.clock.advance(ms=24 * HOUR_MS)
    fixture.clean()
    assert log.last_sequence(named_id) == 0
    assert log.last_sequence(anonymous_id) is None


def test_a_producer_of_old_records_is_not_taken_for_silent(fixture: Fixture) -> None:
    """It sends the records of last year, and sends a batch again of whose answer it heard nothing."""
    log = fixture.topic(retention_ms=-1)
    records = [NewRecord(value=b"old", timestamp_ms=START_MS - 365 * 24 * HOUR_MS)]
    batch = encode_batch(records, producer_id=1, producer_epoch=0, base_sequence=0)
    log.append(batch)
    for _ in range(3):
        fixture.clean()
        fixture.clock.advance(ms=30_000)
        assert log.append(batch).duplicate
    log.sync()
    assert fixture.values(log) == [b"old"]
    fixture.clock.advance(ms=24 * HOUR_MS)
    fixture.clean()
    assert log.last_sequence(1) is None, "now it was silent for a day"


def test_a_rewritten_segment_of_the_same_size_is_not_taken_for_unchanged(fixture, monkeypatch):
    """Compressed again without a record it may be as large as it was; its tombstone goes later all the same."""
    log = fixture.topic(
        cleanup_policy="compact", min_cleanable_dirty_ratio=0, segment_bytes=300, delete_retention_ms=0
    )
    fixture.put(log, (b"gone", b"x" * 20), (b"kept", b"y"))
    fixture.put(log, (b"gone", None), (b"other", bytes(200)))
    fixture.put(log, (b"last", bytes(200)))

    def as_large(header: BatchHeader, kept: Sequence[Record]) -> Buffer:
        left = [record for record in kept if record.key != b"gone"]
        value = left[0].value + b"z" * (header.size_bytes - len(rewritten(header, left)))
        return rewritten(header, [structs.replace(left[0], value=value), *left[1:]])

    rewritten = compaction.with_records
    monkeypatch.setattr(compaction, "with_records", as_large)
    before = segment_sizes(log)
    fixture.clean()
    assert segment_sizes(log)[0] == before[0]
    monkeypatch.setattr(compaction, "with_records", rewritten)
    for _ in range(3):
        fixture.put(log, (b"last", bytes(200)))
        fixture.clean()
        assert b"x" * 20 not in fixture.values(log)


def segment_sizes(log: PartitionLog) -> list[int]:
    return [log.segment_bytes(base) for base in log.segments(log.state().end)]


def test_a_batch_with_timestamps_far_apart_is_compacted(fixture):
    """Its distances fit the format from its own base timestamp, not from whichever record is left."""
    log = fixture.topic(cleanup_policy="compact", min_cleanable_dirty_ratio=0, segment_bytes=300)
    apart = [NewRecord(b"first", b"a", (), 0), NewRecord(b"old", b"b", (), 1 - (1 << 63))]
    log.append(encode_batch([*apart, NewRecord(b"now", b"c", (), START_MS)]))
    fixture.put(log, (b"a", b"second"), (b"d", bytes(300)))
    fixture.put(log, (b"e", b"active"))
    fixture.clean()
    assert [(record.value, record.timestamp_ms) for record in fixture.records(log)[:2]] == [
        (b"old", 1 - (1 << 63)),
        (b"now", START_MS),
    ]
    assert fixture.values(log)[2] == b"second"
