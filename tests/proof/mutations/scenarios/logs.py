"""A partition's log: what is acknowledged, what readers see, segments, indexes, producers."""

from __future__ import annotations

import contextlib
import errno
import random
import time
from pathlib import Path

from logbroker_storage.checkpoints import parse_partition_offsets
from logbroker_storage.cleaner import segment_infos
from logbroker_storage.deduplication import Taken
from logbroker_storage.errors import StorageFailedError, WriteFailedError
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.message_ids import MESSAGE_ID_HEADER, identified
from logbroker_storage.record_batch import ControlType, NewRecord, decode_records, encode_batch
from logbroker_storage.segment_files import segment_name
from logbroker_storage.testing import Workbench
from logbroker_storage.testing.workbench import crash

from .machine import Machine, died_at_each_operation

PATIENCE_S = 10.0  # what comes by itself comes in milliseconds
ROLLING = 300  # a segment.bytes at which a handful of batches fills several segments


def acknowledged_records(folder: Path) -> None:
    """Records that were synced are there after a power cut, in whatever segment they lie."""
    machine = Machine(folder)
    bench = machine.bench(segment_bytes=ROLLING)
    acknowledged = [b"%d" % number * 60 for number in range(6)]
    for value in acknowledged:
        bench.put(value)
    bench.put(b"not synced", sync=False)
    after = machine.cut()
    assert after.values() == acknowledged, "acknowledged records are gone"
    after.close()


def records_synced_together(folder: Path) -> None:
    """One sync covers the segments that were left since the last one."""
    machine = Machine(folder)
    bench = machine.bench(segment_bytes=ROLLING)
    for number in range(6):
        bench.put(b"%d" % number * 60, sync=False)
    bench.log.sync()
    expected = bench.values()
    assert len(bench.segments()) > 2
    after = machine.cut()
    assert after.values() == expected
    after.close()


def visible_records(folder: Path) -> None:
    """Whatever a reader sees, at any moment, is there after a power cut at that moment."""
    machine = Machine(folder)
    bench = machine.bench(segment_bytes=ROLLING)

    def act() -> None:
        for number in range(5):
            bench.put(b"%d" % number * 60, sync=False)
            if number % 2:
                bench.log.sync()

    for path, seen in machine.states_during(act, bench.values):
        after = Workbench(path)
        assert after.values()[: len(seen)] == seen, "a reader has seen records that are gone"
        after.close()


def an_append_during_a_sync(folder: Path) -> None:
    """What is appended while the disk syncs counts as synced only with the next sync."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"synced", sync=False)
    appended: list[object] = []

    def look(operation: str, path: str) -> None:
        if operation == "fdatasync" and not appended:
            appended.append(bench.put(b"later", sync=False))

    machine.during(bench.log.sync, look)
    assert appended
    assert bench.log.offsets().synced_offset == 1, "it may have come too late for the disk"


def an_interval_sync_misses_nothing(folder: Path) -> None:
    """What is appended while an interval's sync is under way is due for the next one."""
    machine = Machine(folder)
    bench = machine.bench(durability="interval", durability_interval_ms=3_600_000)
    bench.put(b"first", sync=False)
    appended: list[object] = []

    def look(operation: str, path: str) -> None:
        if operation == "fdatasync" and not appended:
            appended.append(bench.put(b"later", sync=False))

    machine.during(bench.log.sync, look)
    assert appended
    assert bench.log.dirty_since is not None, "nobody will sync the last record"


def an_interval_that_passes(folder: Path) -> None:
    """With durability=interval a record is synced by itself when the interval has passed."""
    machine = Machine(folder)
    bench = machine.bench(durability="interval", durability_interval_ms=1)
    bench.put(b"a", sync=False)
    deadline = time.monotonic() + PATIENCE_S
    while bench.log.offsets().synced_offset < 1:
        assert time.monotonic() < deadline, "nobody has synced it"
        time.sleep(0.005)


def a_failed_sync(folder: Path) -> None:
    """After a failed sync nothing is written, and the sync is not tried again, which would seem to succeed."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"synced")
    bench.put(b"lost", sync=False)
    machine.files.fail("fdatasync", error=errno.EIO)
    for _ in range(2):
        try:
            bench.log.sync()
        except StorageFailedError:
            pass
        else:
            raise AssertionError("a failed sync was tried again")
    try:
        bench.put(b"more", sync=False)
    except StorageFailedError:
        pass
    else:
        raise AssertionError("a failed log takes writes")


def a_failed_sync_of_what_was_visible(folder: Path) -> None:
    """After a failed sync readers stop at what is synced, whatever they had seen before."""
    machine = Machine(folder)
    bench = machine.bench(durability="os")
    bench.put(b"synced")
    bench.put(b"lost", sync=False)
    machine.files.fail("fdatasync", error=errno.EIO)
    with contextlib.suppress(StorageFailedError):
        bench.log.sync()
    assert bench.values() == [b"synced"]


def aborted_transactions(folder: Path) -> None:
    """What was aborted stays so after a power cut, also where nothing has to be scanned."""
    machine = Machine(folder)
    bench = machine.bench()
    for epoch in range(2):
        _transactional(bench, producer_id=5, epoch=epoch)
        bench.log.append_marker(ControlType.ABORT, producer_id=5, marker_epoch=epoch + 1)
        bench.log.sync()
        bench.directory.checkpoint()
        after = machine.cut()
        assert committed_values(after) == [], "an aborted transaction came back"
        after.close()


def _transactional(bench: Workbench, *, producer_id: int, epoch: int, value: bytes = b"v") -> None:
    batch = encode_batch(
        [NewRecord(value)],
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=0,
        transactional=True,
    )
    bench.log.append(batch)


def committed_values(bench: Workbench) -> list[bytes | None]:
    """What a reader of committed records sees."""
    reader = bench.log.reader(bench.log.offsets().log_start_offset, Isolation.READ_COMMITTED)
    found = []
    try:
        while batches := reader.read():
            for batch in batches:
                if not batch.header.is_control:
                    found += [record.value for record in decode_records(batch, "t", 0)]
    finally:
        reader.close()
    return found


def sealed_indexes(folder: Path) -> None:
    """A sealed segment's time index is whole after a power cut: retention believes its last entry."""
    machine = Machine(folder)
    bench = machine.bench(index_interval_bytes=0, segment_bytes=600)
    for number in range(12):
        bench.put(b"%d" % number * 60, timestamp_ms=1_000_000 + number)
    bench.directory.checkpoint()
    expected = _sealed_times(bench)
    assert len(expected) > 1
    for seed in range(20):
        after = machine.cut(random.Random(seed))
        assert _sealed_times(after)[: len(expected)] == expected, f"survivors chosen by seed {seed}"
        crash(after.directory)


def _sealed_times(bench: Workbench) -> list[tuple[int, int]]:
    return [(one.base_offset, one.max_timestamp_ms) for one in segment_infos(bench.log)[:-1]]


def recovery_points(folder: Path) -> None:
    """A recovery point is durable, and never above what is synced."""
    machine = Machine(folder)
    bench = machine.bench()
    bench.put(b"a", b"b")
    bench.put(b"c", sync=False)
    bench.directory.checkpoint()
    content = machine.state().read_file("/data/logs/recovery-point-offset-checkpoint")
    points = {(entry.topic, entry.partition): entry.offset for entry in parse_partition_offsets(content)}
    assert points["t", 0] == 2
    after = machine.cut()
    assert after.values() == [b"a", b"b"]
    assert after.log.offsets().log_end_offset == 2, "the recovery point was above what was synced"
    after.close()


def closing(folder: Path) -> None:
    """A clean close syncs what the process has appended, whatever the durability."""
    machine = Machine(folder)
    bench = machine.bench(durability="os")
    bench.put(b"a", b"b", sync=False)
    bench.close()
    after = machine.cut()
    assert after.values() == [b"a", b"b"]
    after.close()


def a_change_to_fsync(folder: Path) -> None:
    """When a topic's durability has become fsync, all that readers see of it is on the disk."""
    machine = Machine(folder)
    bench = machine.bench(durability="os")
    bench.put(b"a", sync=False)
    bench.directory.alter_topic("t", {"durability": "fsync"})
    seen = bench.values()
    after = machine.cut()
    assert after.values() == seen == [b"a"]
    after.close()


def sync_below(folder: Path) -> None:
    """``sync_below`` leaves nothing below the offset that a power cut could take."""
    machine = Machine(folder)
    bench = machine.bench(durability="os")
    bench.put(b"a", b"b", sync=False)
    bench.log.sync_below(2)
    after = machine.cut()
    assert after.values() == [b"a", b"b"]
    after.close()


def waiting_until_durable(folder: Path) -> None:
    """``wait_durable`` is what an acknowledgement waits for."""
    machine = Machine(folder)
    bench = machine.bench()
    result = bench.put(b"a", b"b", sync=False)
    bench.log.wait_durable(result.last_offset + 1)
    after = machine.cut()
    assert after.values() == [b"a", b"b"]
    after.close()


def deaths_in_an_append(folder: Path) -> None:
    """A process that dies while it appends and rolls leaves a log that goes on, with all that was acknowledged."""
    prepared = b"prepared" * 20

    def prepare(path: str) -> None:
        bench = Workbench(path, segment_bytes=ROLLING, index_interval_bytes=0)
        bench.put(prepared)
        bench.close()

    acknowledged: list[bytes] = []

    def act(bench: Workbench) -> None:
        acknowledged.clear()
        for number in range(3):
            value = b"%d" % number * 100
            bench.put(value, producer_id=3, sequence=number)
            acknowledged.append(value)

    for path, _, _ in died_at_each_operation(folder, prepare, act):
        bench = Workbench(path)
        bench.log.adopt()
        bench.log.sync()
        found = bench.values()
        assert found[1 : len(acknowledged) + 1] == acknowledged
        assert found == [prepared, *(b"%d" % number * 100 for number in range(len(found) - 1))]
        assert bench.log.last_sequence(3) == (len(found) - 2 if len(found) > 1 else None)
        more = [b"small", b"large" * 40]
        for number, value in enumerate(more):
            bench.put(value, producer_id=3, sequence=len(found) - 1 + number)
        for offset in range(len(found) + len(more)):
            assert bench.values(offset) == [*found, *more][offset:]
        crash(bench.directory)


def a_failed_roll(folder: Path) -> None:
    """A roll that comes to nothing leaves a segment that is in nobody's way, in whichever the log goes on."""
    machine = Machine(folder)
    bench = machine.bench(segment_bytes=ROLLING, index_interval_bytes=0)
    bench.put(b"prepared")
    machine.files.fail("open", path=f"{segment_name(1)}.index", error=errno.EIO)
    with contextlib.suppress(WriteFailedError):
        bench.put(b"refused" * 40)
    assert Path(bench.folder, f"{segment_name(1)}.log").exists()
    more = [b"small", b"large" * 40]  # the first goes where that roll was not wanted yet
    for value in more:
        bench.put(value)
    for offset in range(3):
        assert bench.values(offset) == [b"prepared", *more][offset:]


def deaths_with_message_ids(folder: Path) -> None:
    """Whoever sends the id of a dead process again finds what that left, in whatever partition."""

    def prepare(path: str) -> None:
        bench = Workbench(path, partitions=2, index_interval_bytes=0)
        bench.directory.note_message_ids("t")
        _send_id(bench, 0, "before")
        _send_id(bench, 1, "between")  # so that the batch goes where the last one did not
        bench.close()

    for path, _, _ in died_at_each_operation(folder, prepare, lambda bench: _send_id(bench, 0, "x", "y")):
        bench = Workbench(path)
        _send_id(bench, 1, "x")
        for number in (0, 1):
            bench.partition(number).adopt()
            bench.partition(number).sync()
        ids = [
            dict(one.header_pairs)[MESSAGE_ID_HEADER] for n in (0, 1) for one in bench.records(partition=n)
        ]
        assert ids.count(b"x") == 1, "an id is there twice"
        crash(bench.directory)


def _send_id(bench: Workbench, partition: int, *ids: str) -> bool:
    """A batch with a record for each of *ids*; whether it was taken."""
    now_ms = bench.clock.now_ms()
    records = [NewRecord(b"v" * 40, None, [(MESSAGE_ID_HEADER, one.encode())], now_ms) for one in ids]
    found = identified((delta, record.headers, record.timestamp_ms) for delta, record in enumerate(records))
    outcome = bench.directory.deduplication("t").append(
        bench.partition(partition), encode_batch(records), found
    )
    return not isinstance(outcome, Taken)
