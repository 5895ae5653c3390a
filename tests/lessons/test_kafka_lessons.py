"""Faults that Apache Kafka had and mended, one test each: this broker does not have them.

What each was is told as its fix tells it: the commit (or pull request) of that name in apache/kafka.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

from logbroker.server.error_codes import RefusedError
from logbroker.server.network_transactions import NetworkTransactions
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker_storage.checkpoints import LEADER_EPOCH_CHECKPOINT, parse_partition_offsets
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError, StorageFailedError, TopicNotFoundError, WriteFailedError
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.partition_log import AppendResult
from logbroker_storage.record_batch import (
    TTL_HEADER,
    ControlType,
    NewRecord,
    decode_records,
    encode_batch,
    encode_values,
)
from logbroker_storage.record_expiry import TTL
from logbroker_storage.segment_files import list_segments, list_snapshots
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.testing import FaultyFiles, LogBuilder, ManualClock, RecordingFiles, Workbench
from logbroker_storage.testing.faulty_files import ProcessKilled
from logbroker_storage.testing.manual_clock import START_MS
from tests.proof.proof import delete_folder, new_folder

DAY_MS = 86_400_000
RETENTION_MS = 60_000
ALICE, BOB = 101, 202
COMPLETERS = 6
COMMIT, ABORT = ControlType.COMMIT, ControlType.ABORT


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: what a disk does is not the matter here, but for the files that record it."""
    folder = new_folder(in_memory=True)
    yield folder
    delete_folder(folder)


class Desk(Workbench):
    """A workbench on a clock that stands, with keys and transactions; in the middle of nothing it cleans."""

    def __init__(self, path: str | Path, **settings: object) -> None:
        clock = settings.pop("clock", None) or ManualClock()
        super().__init__(str(path), clock=clock, **settings)  # type: ignore[arg-type]
        self.sequences: dict[int, int] = {}

    def put_keyed(
        self,
        *pairs: tuple[bytes, bytes | None],
        producer_id: int = -1,
        epoch: int = 0,
        transactional: bool = False,
    ) -> AppendResult:
        sequence = self.sequences.get(producer_id, 0)
        batch = encode_batch(
            [NewRecord(value, key, (), self.clock.now_ms()) for key, value in pairs],
            producer_id=producer_id,
            producer_epoch=epoch if producer_id >= 0 else -1,
            base_sequence=sequence if producer_id >= 0 else -1,
            transactional=transactional,
        )
        self.sequences[producer_id] = sequence + len(pairs)
        result = self.log.append(batch)
        self.log.sync()
        return result

    def finish(self, how: ControlType, producer_id: int, *, epoch: int = 0) -> AppendResult | None:
        """The marker of a transaction whose producer goes on under the same epoch."""
        end = self.log.offsets().log_end_offset
        result = self.log.append_marker(how, producer_id=producer_id, marker_epoch=epoch, before_offset=end)
        self.log.sync()
        return result

    def clean(self) -> None:
        assert self.directory.maintenance.clean()

    def committed(self) -> list[tuple[bytes | None, bytes | None]]:
        """Key and value of what a committed reader sees."""
        reader = self.log.reader(self.log.offsets().log_start_offset, Isolation.READ_COMMITTED)
        found = []
        while batches := reader.read():
            for batch in batches:
                if not batch.header.is_control:
                    found += [(record.key, record.value) for record in decode_records(batch)]
        reader.close()
        return found

    def die_and_recover(self) -> Desk:
        """Everybody dies, and the view is lost."""
        self.crash()
        self.reopen(without_view=True)
        return self


# Indexes and retention --------------------------------------------------------------------------------------


def test_kafka_10471_a_death_while_opening_does_not_make_the_next_opening_trust_an_index(
    tmp_path: Path,
) -> None:
    """A broker that had shut down cleanly died while it loaded its logs.

    Its file "clean shutdown" was removed only behind the loading, so the one after that skipped recovery, and took
    a time index that the dead one had lengthened to its full size for a full one: the newest timestamp was 0, and
    retention deleted the segment. Here no file says that recovery can be skipped, the view does; the used length of
    the active segment's index is in it, and zeros behind the last entry of any index are no entries.
    """
    prepared = tmp_path / "prepared"
    desk = Desk(prepared, retention_ms=RETENTION_MS, index_interval_bytes=1)
    for value in (b"a", b"b", b"c"):
        desk.put(value)
    desk.close()
    files = CopiedFiles(prepared, tmp_path / "copies")
    DataDirectory.open(str(prepared), files=files, clock=desk.clock).close()
    assert files.count > 20
    for number in range(files.count):
        path = files.copies / str(number)
        for suffix in (".index", ".timeindex"):
            pad(f"{path}/logs/t-0/{0:020d}{suffix}", 10 * 1024)
        if number % 2:
            shutil.rmtree(path / "view")
        after = Desk(path, clock=desk.clock)
        after.log.roll_now()  # so that retention may take it
        after.clean()
        assert after.values() == [b"a", b"b", b"c"]
        assert after.log.offset_for_timestamp(START_MS) == 0
        assert after.log.newest_record() == (0, START_MS)
        after.close()


class CopiedFiles(FaultyFiles):
    """Keeps a copy of the tree as each operation finds it: what is left when the process dies there."""

    def __init__(self, root: Path, copies: Path) -> None:
        super().__init__(OsFiles())
        self.root, self.copies, self.count = root, copies, 0

    def _planned(self, operation: str, path: str, *more: Any) -> Any:
        shutil.copytree(self.root, self.copies / str(self.count))
        self.count += 1
        return super()._planned(operation, path, *more)


def test_kafka_10207_zeros_behind_an_index_do_not_make_a_segment_old(tmp_path: Path) -> None:
    """Index files that were not trimmed when their segment was rolled ended in zeros.

    At the next start the last entry of the time index was such a zero, so the segment looked as old as 1970 and
    retention deleted it. Here zeros behind the last entry are not entries, for retention as for lookups, and
    recovery cuts them off.
    """
    for without_view in (False, True):
        desk = Desk(tmp_path / str(without_view), retention_ms=RETENTION_MS, segment_bytes=200)
        for number in range(6):
            desk.put(b"%d" % number * 60, timestamp_ms=START_MS + number)
        bases = desk.segments()
        assert len(bases) > 3
        desk.close()
        for base in bases:
            for suffix in (".index", ".timeindex"):
                pad(f"{desk.folder}/{base:020d}{suffix}", 10 * 1024)
        desk.reopen(without_view=without_view)
        desk.clean()
        assert desk.segments() == bases
        assert len(desk.values()) == 6
        assert [desk.log.offset_for_timestamp(START_MS + number) for number in range(6)] == list(range(6))
        desk.close()


def pad(path: str, size_bytes: int) -> None:
    with open(path, "ab") as file:
        file.truncate(os.path.getsize(path) + size_bytes)


def test_kafka_6264_offsets_too_far_from_the_segments_base_stop_neither_appends_nor_the_cleaner(
    tmp_path: Path,
) -> None:
    """Old segments held offsets more than 2**31 - 1 above their base, for which an index entry has no room.

    The cleaner's thread died of them, and with it all compaction; Kafka now splits such segments. Here a log goes on
    in a new segment before that happens, and a segment that came from elsewhere is read, recovered and compacted
    without an entry for what has no room in its indexes.
    """
    far = (1 << 31) + 10
    desk = Desk(tmp_path / "data", cleanup_policy="compact", min_cleanable_dirty_ratio="0")
    desk.put_keyed((b"k", b"old"))
    desk.close()
    builder = LogBuilder(desk.folder)
    builder.empty(1 << 31)
    builder.empty(far - builder.next_offset)
    builder.keyed((b"k", b"new"), (b"other", b"1"))
    desk.reopen(without_view=True)
    assert [record.offset for record in desk.records()] == [0, far, far + 1]
    desk.put_keyed((b"other", b"2"))
    assert desk.segments()[-1] == far + 2, "it goes on in a segment whose offsets fit"
    desk.log.roll_now()
    desk.clean()
    assert [(record.offset, record.value) for record in desk.records()] == [(far, b"new"), (far + 2, b"2")]
    assert [record.value for record in desk.records(far)] == [b"new", b"2"]
    desk.die_and_recover()
    assert [(record.offset, record.value) for record in desk.records()] == [(far, b"new"), (far + 2, b"2")]
    assert desk.log.offset_for_timestamp(START_MS) == far
    desk.close()


# Producer state ---------------------------------------------------------------------------------------------


def test_kafka_9892_a_power_cut_does_not_take_the_sequences_with_a_snapshot(tmp_path: Path) -> None:
    """A producer snapshot was closed, but not forced to the disk, and its loss was the loss of what it said.

    Here a snapshot is written without a sync as well, on purpose: it only spares reading. It has a checksum, the ones
    before it are kept, and behind the newest sound one the headers of all batches are read. So a batch that was
    acknowledged before a power cut is recognised after it, whatever the disk kept of the snapshots.
    """
    root = tmp_path / "root"
    root.mkdir()
    files = RecordingFiles(OsFiles(), str(root))
    desk = Desk(root / "data", files=files, segment_bytes=200)
    for number in range(12):
        desk.put_keyed((b"k", b"%d" % number * 30), producer_id=ALICE if number % 2 else BOB)
    desk.directory.checkpoint()  # so that recovery has no reason to read the batches, if the snapshots are sound
    assert len(list_snapshots(OsFiles(), desk.folder)) == 3
    for number in range(20):
        after = tmp_path / f"after-{number}"
        after.mkdir()
        files.export_after_power_cut(str(after), random.Random(number) if number else None)
        shutil.rmtree(after / "data" / "view", ignore_errors=True)  # as of another boot
        left = Desk(after / "data")
        for producer_id in (ALICE, BOB):
            assert left.log.last_sequence(producer_id) == 5
            left.sequences[producer_id] = 5
            assert left.put_keyed((b"k", b"again"), producer_id=producer_id).duplicate
        assert len(left.values()) == 12
        left.close()
    desk.crash()


def test_kafka_5747_a_snapshot_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    """A broker did not start when it found a producer snapshot that was empty, or did not fit its schema.

    Here each of them is checked before it is believed, and passed over with a warning; the one before it, or the log,
    says the same.
    """
    damages: list[Callable[[bytes], bytes]] = [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:1],
        lambda content: content[:20] + b"%" + content[21:],
        lambda content: content + bytes(46),
        lambda content: b"\0\x02" + content[2:],  # a version nobody knows
        lambda content: bytes(len(content)),
    ]
    for number, damaged in enumerate(damages):
        desk = Desk(tmp_path / str(number), segment_bytes=200)
        for _ in range(4):
            desk.put_keyed((b"k", b"v" * 60), producer_id=ALICE)
        desk.close()
        snapshots = list_snapshots(OsFiles(), desk.folder)
        assert len(snapshots) == 3
        for offset in snapshots[-1 - number % 3 :]:
            path = Path(f"{desk.folder}/{offset:020d}.snapshot")
            path.write_bytes(damaged(path.read_bytes()))
        desk.reopen(without_view=True)
        assert desk.log.last_sequence(ALICE) == 3
        desk.sequences[ALICE] = 3
        assert desk.put_keyed((b"k", b"again"), producer_id=ALICE).duplicate
        assert not desk.put_keyed((b"k", b"next"), producer_id=ALICE).duplicate
        desk.close()


def test_kafka_12520_a_replacement_that_was_broken_off_does_not_cost_the_producers(tmp_path: Path) -> None:
    """A broker that found a compacted segment which was not put in place yet recovered the log for its sake.

    That threw away all producer snapshots, and the whole log was read to make them anew: hours. Here a replacement that
    was broken off, wherever that was, is finished or removed before the log is looked at, and the snapshots stay.
    """
    operation, died = 1, True
    while died:
        desk = Desk(
            tmp_path / str(operation),
            segment_bytes=300,
            cleanup_policy="compact",
            min_cleanable_dirty_ratio="0",
        )
        for number in range(8):
            desk.put_keyed((b"k%d" % (number % 2), b"%d" % number * 60), producer_id=ALICE)
        desk.close()
        snapshots = list_snapshots(OsFiles(), desk.folder)
        files = FaultyFiles(OsFiles())
        desk.open(files=files)
        files.kill(at=operation)
        try:
            desk.clean()
            died = False
        except ProcessKilled:
            pass
        desk.crash()
        shutil.rmtree(desk.directory.layout.view)
        counted = FaultyFiles(OsFiles())
        desk.open(files=counted)
        assert list_snapshots(OsFiles(), desk.folder) == snapshots
        assert not [name for name in os.listdir(desk.folder) if name.endswith((".cleaned", ".replaces"))]
        assert {record.key: record.value for record in desk.records()} == {b"k0": b"6" * 60, b"k1": b"7" * 60}
        assert desk.log.last_sequence(ALICE) == 7
        desk.sequences[ALICE] = 7
        assert desk.put_keyed((b"k1", b"again"), producer_id=ALICE).duplicate
        desk.close()
        operation += 1
    assert operation > 20


def test_kafka_7298_records_deleted_before_the_marker_do_not_break_their_producer(tmp_path: Path) -> None:
    """DeleteRecords came between a transaction's records and its marker, and only the marker was left in the log.

    A marker has no sequence, so the producer's next batch was refused as out of order, which is fatal to it. Here the
    sequences outlive the records: they are in the view, and in the snapshot that every roll writes, so the next batch
    is taken, and one that is sent again is still recognised.
    """
    desk = Desk(tmp_path / "data")
    desk.put_keyed((b"k", b"1"), (b"k", b"2"), producer_id=ALICE, transactional=True)
    desk.log.roll_now()
    desk.directory.delete_records("t", 0, 2)
    marker = desk.finish(COMMIT, ALICE)
    assert marker is not None
    desk.clean()
    assert desk.segments() == [2], "nothing but the marker is left"
    for without_view in (False, True):
        desk.crash()
        desk.reopen(without_view=without_view)
        assert desk.committed() == []
        desk.sequences[ALICE] = 1
        assert desk.log.last_sequence(ALICE) == 1
    desk.sequences[ALICE] = 2
    following = desk.put_keyed((b"k", b"3"), producer_id=ALICE, transactional=True)
    assert (following.base_offset, following.duplicate) == (3, False)
    desk.sequences[ALICE] = 2
    assert desk.put_keyed((b"k", b"3"), producer_id=ALICE, transactional=True).duplicate
    assert desk.finish(COMMIT, ALICE) is not None
    assert desk.committed() == [(b"k", b"3")]
    desk.close()


def test_kafka_9144_a_marker_is_a_sign_of_life_of_its_producer(tmp_path: Path) -> None:
    """Whether a producer was silent was told by the timestamps of its records alone, not by those of its markers.

    A producer whose transaction was ended late was forgotten at once, so an epoch could come back that was over; and a
    snapshot of a producer of which only a marker was left was read as another state than was written. Here a producer
    is forgotten when a pass of the cleaner finds it as one found it a day before.
    """
    clock = ManualClock()
    desk = Desk(tmp_path / "data", clock=clock, retention_ms="-1")
    desk.put_keyed((b"k", b"1"), producer_id=ALICE, epoch=3, transactional=True)
    clock.advance(ms=2 * DAY_MS)
    desk.clean()
    assert desk.finish(ABORT, ALICE, epoch=3) is not None  # as a coordinator does that has waited for long
    for _ in range(3):
        desk.clean()
        desk.sequences[ALICE] = 0
        assert desk.put_keyed((b"k", b"1"), producer_id=ALICE, epoch=3, transactional=True).duplicate
        desk.sequences[ALICE] = 0
        with pytest.raises(FencedError):
            desk.put_keyed((b"k", b"1"), producer_id=ALICE, epoch=2, transactional=True)
        clock.advance(ms=DAY_MS // 4)
    assert (
        desk.log.append_marker(ABORT, producer_id=BOB, marker_epoch=5) is None
    )  # fences, and writes nothing
    desk.close()  # a snapshot says so
    desk.reopen(without_view=True)
    desk.clean()
    with pytest.raises(FencedError):
        desk.put_keyed((b"k", b"late"), producer_id=BOB, epoch=4)
    assert desk.log.offsets().last_stable_offset == desk.log.offsets().log_end_offset
    desk.close()


# Transactions -----------------------------------------------------------------------------------------------


def test_kafka_10080_a_transaction_that_many_complete_at_once_is_completed_once(tmp_path: Path) -> None:
    """Two threads could write the completion of one transaction, the second of them after the next had begun.

    Here whoever completes a transaction asks the partition under its lock whether there is one to end, and names it by
    the offset that it began below; so the second finds nothing, and cannot hit the next one.
    """
    desk = Desk(tmp_path / "data")

    def complete(before_offset: int, barrier: threading.Barrier) -> AppendResult | None:
        barrier.wait()
        return desk.log.append_marker(COMMIT, producer_id=ALICE, marker_epoch=0, before_offset=before_offset)

    for round_number in range(10):
        begun = desk.put_keyed((b"k", b"%d" % round_number), producer_id=ALICE, transactional=True)
        before_offset = begun.last_offset + 1
        barrier = threading.Barrier(COMPLETERS)
        with ThreadPoolExecutor(COMPLETERS) as threads:
            completions = [threads.submit(complete, before_offset, barrier) for _ in range(COMPLETERS)]
        written = [completion.result() for completion in completions if completion.result() is not None]
        assert len(written) == 1, "it was completed more than once"
        following = desk.put_keyed((b"k", b"open"), producer_id=ALICE, transactional=True)
        late = desk.log.append_marker(COMMIT, producer_id=ALICE, marker_epoch=0, before_offset=before_offset)
        assert late is None, "a late completion ended the next transaction"
        assert desk.log.offsets().last_stable_offset == following.base_offset
        assert desk.finish(ABORT, ALICE) is not None
    assert [value for _, value in desk.committed()] == [b"%d" % number for number in range(10)]
    desk.close()


def test_kafka_14402_a_batch_that_comes_behind_the_end_of_its_transaction_opens_no_other(
    tmp_path: Path,
) -> None:
    """A batch that had been delayed in the network arrived when its transaction was aborted already (KIP-890).

    It began a transaction that nobody was ever to end: committed readers and the cleaner stood still before it, or it
    became part of the producer's next transaction. Here a batch is refused whose epoch is over, or whose partition is
    not of the transaction in progress. One that had been let in a moment before the end is found open without a
    holder, and aborted by whoever looks around, or with the producer's next request for an epoch.
    """
    desk = Desk(tmp_path / "data")
    transactions = NetworkTransactions(desk.directory, TransactionCoordinator(desk.directory))
    fenced = ErrorCode.invalid_producer_epoch
    place = ("t", 0)

    def late_batch(epoch: int, producer_id: int, sequence: int) -> bytearray:
        return encode_values(
            [b"late"],
            [(0, START_MS)],
            producer_id=producer_id,
            producer_epoch=epoch,
            base_sequence=sequence,
            transactional=True,
        )

    for keeps_epoch in (False, True):
        name = f"id-{keeps_epoch}"
        claim = transactions.begin_holding(
            name, timeout_ms=60_000, producer_id=-1, producer_epoch=-1, fenced=fenced
        )
        transactions.add_partitions(name, claim.producer_id, claim.epoch, [place], fenced=fenced)
        desk.log.append(late_batch(claim.epoch, claim.producer_id, 0))
        transactions.end(claim, commit=False, keeps_epoch=keeps_epoch, fenced=fenced)
        with pytest.raises((RefusedError, FencedError)):
            transactions.check_batch(name, claim.producer_id, claim.epoch, place, adds=not keeps_epoch)
        if not keeps_epoch:
            with pytest.raises(FencedError):
                desk.log.append(late_batch(claim.epoch, claim.producer_id, 1))
        else:  # it was checked before the end, and is appended behind it
            desk.log.append(late_batch(claim.epoch, claim.producer_id, 1))
            assert desk.log.offsets().last_stable_offset < desk.log.offsets().log_end_offset
            transactions.begin_holding(
                name,
                timeout_ms=60_000,
                producer_id=claim.producer_id,
                producer_epoch=claim.epoch,
                fenced=fenced,
            )
        desk.log.sync()
        offsets = desk.log.offsets()
        assert offsets.last_stable_offset == offsets.high_watermark == offsets.log_end_offset
        assert desk.directory.view.partitions.open_transactions() == []
        assert desk.committed() == []
    desk.close()


# Compaction -------------------------------------------------------------------------------------------------


def test_kafka_8351_a_transaction_that_spans_segments_keeps_its_marker(tmp_path: Path) -> None:
    """The cleaner forgot between two groups of segments which transactions still had records left.

    When it came to the marker, in a later group, it took it for that of an empty transaction and dropped it. Here the
    producers with something left are carried through the whole pass.
    """
    for how in (COMMIT, ABORT):
        desk = Desk(
            tmp_path / how.name,
            segment_bytes=250,
            cleanup_policy="compact",
            min_cleanable_dirty_ratio="0",
        )
        desk.put_keyed((b"a", b"1" * 100), producer_id=ALICE, transactional=True)
        desk.put_keyed((b"b", b"2" * 100))
        desk.put_keyed((b"c", b"3" * 100), producer_id=ALICE, transactional=True)
        desk.put_keyed((b"d", b"4" * 100))
        marker = desk.finish(how, ALICE)
        assert marker is not None
        # The producer goes on: the marker is not kept for being its last batch.
        desk.put_keyed((b"e", b"5" * 100), producer_id=ALICE, transactional=True)
        assert desk.finish(COMMIT, ALICE) is not None
        desk.put_keyed((b"b", b"6" * 100))
        desk.log.roll_now()
        expected = desk.committed()
        for _ in range(2):
            desk.clean()
        by_key = dict(expected)
        assert dict(desk.committed()) == by_key
        assert marker.base_offset in control_offsets(desk)
        desk.die_and_recover()
        assert desk.directory.view.partitions.open_transactions() == [], (
            "a transaction is open that was ended"
        )
        assert dict(desk.committed()) == by_key
        assert desk.log.offsets().last_stable_offset == desk.log.offsets().log_end_offset
        desk.close()


def control_offsets(desk: Desk) -> list[int]:
    reader = desk.log.reader(0)
    found = []
    while batches := reader.read():
        found += [batch.header.base_offset for batch in batches if batch.header.is_control]
    reader.close()
    return found


def test_kafka_17076_the_end_of_the_log_outlives_the_records_at_its_end(tmp_path: Path) -> None:
    """Compaction removed the last batch of the last segment it cleaned, and with it how far the log had come.

    If the segment behind was empty, and was lost, the offsets were given to other records. Here what is left of
    batches without records is an empty batch that spans their offsets, and the recovery point says where the log went
    on.
    """
    for keeps_point in (True, False):
        clock = ManualClock()
        desk = Desk(
            tmp_path / str(keeps_point),
            clock=clock,
            cleanup_policy="compact",
            min_cleanable_dirty_ratio="0",
        )
        desk.put_keyed((b"a", b"1"))
        short_lived = NewRecord(b"2", b"b", ((TTL_HEADER, TTL.pack(1000)),), START_MS)
        desk.log.append(encode_batch([short_lived]))
        desk.log.append(encode_batch([short_lived]))
        desk.log.roll_now()
        desk.log.sync()
        clock.advance(ms=1000)
        desk.clean()
        end = desk.log.offsets().log_end_offset
        assert [record.key for record in desk.records()] == [b"a"], "the last two have outlived their time"
        desk.close()
        base = list_segments(OsFiles(), desk.folder)[-1]
        assert base == end
        for name in os.listdir(desk.folder):
            if name.startswith(f"{base:020d}") or name.endswith(".snapshot"):
                os.unlink(f"{desk.folder}/{name}")
        if not keeps_point:
            os.unlink(desk.directory.layout.recovery_points)
        desk.reopen(without_view=True)
        assert desk.log.offsets().log_end_offset == end
        assert desk.put_keyed((b"next", b"4")).base_offset == end
        desk.close()


# Failing disks, power cuts and races --------------------------------------------------------------------------


def test_kafka_16541_a_checkpoint_is_whole_after_a_power_cut(tmp_path: Path) -> None:
    """The leader epoch checkpoint was written and renamed without a sync, and could be empty after a power cut.

    The broker then did not start. Here every small file is replaced whole: synced before its name, and the name with
    its directory. This broker keeps no leader epochs, and a broken checkpoint of them that it finds is nothing to it.
    """
    root = tmp_path / "root"
    root.mkdir()
    files = RecordingFiles(OsFiles(), str(root))
    desk = Desk(root / "data", files=files)
    for number in range(6):
        desk.put(b"%d" % number)
        desk.directory.checkpoint()
        for seed in range(5):
            after = tmp_path / f"after-{number}-{seed}"
            after.mkdir()
            files.export_after_power_cut(str(after), random.Random(seed) if seed else None)
            content = (after / "data" / "logs" / "recovery-point-offset-checkpoint").read_bytes()
            known = {point.topic: point.offset for point in parse_partition_offsets(content)}
            assert known["t"] == desk.log.offsets().synced_offset
    desk.close()
    for garbage in (b"", b"0\n7\n", b"\0" * 40):
        Path(f"{desk.folder}/{LEADER_EPOCH_CHECKPOINT}").write_bytes(garbage)
        assert desk.reopen(without_view=True).values() == [b"%d" % number for number in range(6)]
    desk.close()


def test_kafka_10778_behind_a_failed_write_no_append_finds_the_producers_ahead_of_the_log(
    tmp_path: Path,
) -> None:
    """An append that met an I/O error took the log offline, but a moment later: others got in before.

    They were checked against producers of whom the failed batch counted, or not, at random. Here a failed write is
    taken back before its lock is given up: neither the end of the log nor the producer's entry has moved. If it
    cannot be taken back, the next append finds by the bytes what it has to do. Behind a failed sync nothing is taken.
    """
    files = FaultyFiles(OsFiles())
    desk = Desk(tmp_path / "data", files=files)
    desk.put_keyed((b"k", b"0"), producer_id=ALICE)
    # The batch is written in part, and taken back.
    files.fail("pwrite", path=".log", written=30, error=errno.EIO)
    with pytest.raises(WriteFailedError):
        desk.put_keyed((b"k", b"1"), producer_id=ALICE)
    files.heal()
    desk.put_keyed((b"k", b"of another"))
    desk.sequences[ALICE] = 1
    assert desk.put_keyed((b"k", b"1"), producer_id=ALICE).base_offset == 2
    # It cannot be taken back either.
    files.fail("pwrite", path=".log", written=30, error=errno.EIO)
    files.fail("truncate", error=errno.EIO, forever=True)
    with pytest.raises(StorageFailedError):
        desk.put_keyed((b"k", b"2"), producer_id=ALICE)
    files.heal()
    desk.put_keyed((b"k", b"of a third"))
    desk.sequences[ALICE] = 2
    assert not desk.put_keyed((b"k", b"2"), producer_id=ALICE).duplicate
    values = [b"0", b"of another", b"1", b"of a third", b"2"]
    assert desk.values() == values
    # The sync fails: nothing more comes in, through no handle.
    files.fail("fdatasync", path=".log", error=errno.EIO)
    with pytest.raises(StorageFailedError):
        desk.put_keyed((b"k", b"3"), producer_id=ALICE)
    files.heal()
    event = desk.directory.topic("t")
    other = desk.directory._make_log(desk.directory.view, "t", 0, event)
    for log in (desk.log, other):
        with pytest.raises(StorageFailedError):
            log.append(desk.batch(b"too late"))
    assert desk.values() == values, "readers stop at what is on the disk"
    other.abandon(None)
    desk.crash()
    desk.reopen()
    assert desk.values()[:5] == values
    desk.sequences[ALICE] = 3
    assert desk.put_keyed((b"k", b"3"), producer_id=ALICE).duplicate == (len(desk.values()) == 6)
    assert desk.values() == [*values, b"3"]
    desk.close()


class DeletingFiles(OsFiles):
    """Does something just before a sync opens or syncs a segment's file."""

    def __init__(self) -> None:
        self.before_open: Callable[[], None] | None = None
        self.before_sync: Callable[[], None] | None = None

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        action, self.before_open = self.before_open, None
        if action is not None:
            action()
        return super().open(path, create=create, exclusive=exclusive, readonly=readonly)

    def fdatasync(self, fd: int) -> None:
        action, self.before_sync = self.before_sync, None
        if action is not None:
            action()
        super().fdatasync(fd)


def test_kafka_19571_a_segment_that_is_deleted_while_it_is_synced_fails_nobody(tmp_path: Path) -> None:
    """A segment's file was deleted between the decision to flush it and the flush, which then met a closed channel.

    The whole log directory went offline for it. Here a sync has descriptors of its own, and a segment that is gone when
    it comes to open it owes the disk nothing; a topic that was deleted meanwhile is reported as that, and the others
    go on.
    """
    files = DeletingFiles()
    desk = Desk(tmp_path / "data", files=files, segment_bytes=100)
    log = desk.log

    def fill() -> int:
        for number in range(4):
            desk.put(b"%d" % number * 60, sync=False)
        return log.offsets().log_end_offset

    for moment in ("before_open", "before_sync"):
        end = fill()
        setattr(files, moment, lambda end=end: delete_segments_below(log, end - 1))
        assert log.sync() == end
        assert log.offsets().log_start_offset == end - 1
        assert desk.values() == [b"3" * 60]
    desk.directory.create_topic("u", 1, LogConfig.parse({}))
    other = desk.directory.log("u", 0)
    for moment in ("before_open", "before_sync"):
        fill()
        setattr(files, moment, lambda: desk.directory.delete_topic("t"))
        with pytest.raises(TopicNotFoundError):
            log.sync()
        assert desk.directory.view.partitions.failed() == []
        result = other.append(desk.batch(b"goes on"))
        assert other.sync() == result.last_offset + 1
        desk.directory.create_topic("t", 1, LogConfig.parse({"segment.bytes": "100"}))
        log = desk.log
    desk.close()
