"""Transactions in one partition: what readers see, what markers do, and what survives which kind of death."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logbroker_storage.aborted_index import AbortedTransaction
from logbroker_storage.errors import CorruptionError, FencedError, StorageFailedError, WriteFailedError
from logbroker_storage.files import OsFiles
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import ControlType, NewRecord, decode_records, encode_batch, encode_values
from logbroker_storage.segment_files import ABORTED_INDEX_SUFFIX, SNAPSHOT_SUFFIX
from logbroker_storage.segment_removal import delete_segments_below
from logbroker_storage.testing import FaultyFiles, ManualClock, Workbench
from logbroker_storage.testing.workbench import crash

COMMIT, ABORT = ControlType.COMMIT, ControlType.ABORT
COMMITTED, UNCOMMITTED = Isolation.READ_COMMITTED, Isolation.READ_UNCOMMITTED
ALICE, BOB = 101, 202


class Desk(Workbench):
    """A workbench that appends transactional batches and markers."""

    def put_in(self, producer_id: int, *values: bytes, epoch: int = 0, sequence: int | None = None) -> int:
        """Append a transactional batch; its base offset."""
        entry = self.log.view.partitions.producer(self.log.key, producer_id)
        if sequence is None:
            sequence = entry.last_sequence + 1 if entry is not None and entry.epoch == epoch else 0
        batch = encode_values(
            list(values),
            [(0, self.clock.now_ms())],
            producer_id=producer_id,
            producer_epoch=epoch,
            base_sequence=sequence,
            transactional=True,
        )
        result = self.log.append(batch)
        self.log.wait_durable(result.last_offset + 1)
        return result.base_offset

    def finish(self, how: ControlType, producer_id: int, *, epoch: int = 0) -> int | None:
        """Append the marker of the transaction of *epoch*; its offset, None when none was due."""
        result = self.log.append_marker(how, producer_id=producer_id, marker_epoch=epoch + 1)
        self.log.sync()
        return None if result is None else result.base_offset

    def seen(
        self, isolation: Isolation = COMMITTED, *, start: int = 0, max_bytes: int = 1 << 20
    ) -> list[bytes]:
        reader = self.log.reader(start, isolation)
        found: list[bytes] = []
        try:
            while batches := reader.read(max_bytes):
                found += [
                    record.value
                    for batch in batches
                    if not batch.header.is_control
                    for record in decode_records(batch)
                    if record.value is not None and record.offset >= start
                ]
        finally:
            reader.close()
        return found

    def open_offsets(self) -> list[int]:
        return [found.first_offset for found in self.log.view.partitions.open_transactions(self.log.key)]


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def desk(path) -> Iterator[Desk]:
    desk = Desk(path)
    yield desk
    desk.close()


def delete_view(path: str) -> None:
    shutil.rmtree(f"{path}/view")


# What readers see -------------------------------------------------------------------------------------


def test_an_undecided_transaction_holds_committed_readers_up_and_no_others(desk):
    desk.put(b"before")
    desk.put_in(ALICE, b"a")
    desk.put(b"after")
    assert desk.seen() == [b"before"]
    assert desk.seen(UNCOMMITTED) == [b"before", b"a", b"after"]
    assert desk.log.offsets().last_stable_offset == 1
    assert desk.log.offsets().high_watermark == 3


def test_records_may_be_deleted_of_an_undecided_transaction(desk):
    """Committed readers wait where the log begins now, and not below it."""
    desk.put_in(ALICE, b"deleted", b"kept")
    for log_start_offset in (1, 2):
        desk.log.delete_before(log_start_offset)
        offsets = desk.log.offsets()
        assert offsets.last_stable_offset == offsets.log_start_offset == log_start_offset
        assert desk.seen(start=log_start_offset) == []
    desk.put_in(ALICE, b"more")
    assert desk.log.offsets().last_stable_offset == 2
    desk.finish(COMMIT, ALICE)
    assert desk.seen(start=2) == [b"more"]


def test_a_commit_marker_shows_everything_in_order(desk):
    desk.put_in(ALICE, b"a1")
    desk.put(b"plain")
    desk.put_in(ALICE, b"a2")
    assert desk.finish(COMMIT, ALICE) == 3
    assert desk.seen() == [b"a1", b"plain", b"a2"]
    assert desk.log.offsets().last_stable_offset == desk.log.offsets().high_watermark == 4


def test_an_abort_marker_hides_the_transaction_and_nothing_else(desk):
    desk.put_in(ALICE, b"a1")
    desk.put(b"plain")
    desk.put_in(BOB, b"b")
    desk.put_in(ALICE, b"a2")
    desk.finish(ABORT, ALICE)
    assert desk.seen() == [b"plain"]  # Bob's is open from offset 2 on
    desk.finish(COMMIT, BOB)
    assert desk.seen() == [b"plain", b"b"]
    assert desk.seen(UNCOMMITTED) == [b"a1", b"plain", b"b", b"a2"]
    assert desk.log.aborted_transactions(0, 6) == [
        AbortedTransaction(producer_id=ALICE, first_offset=0, last_offset=4, last_stable_offset=2)
    ]


def test_a_producer_whose_transaction_was_aborted_is_heard_in_the_next(desk):
    desk.put_in(ALICE, b"no")
    desk.finish(ABORT, ALICE)
    desk.put_in(ALICE, b"yes", epoch=1)
    desk.finish(COMMIT, ALICE, epoch=1)
    desk.put_in(ALICE, b"no again", epoch=2)
    desk.finish(ABORT, ALICE, epoch=2)
    assert desk.seen() == [b"yes"]


def test_a_reader_that_stands_behind_the_stable_end_waits(desk):
    desk.put_in(ALICE, b"a")
    reader = desk.log.reader(1, COMMITTED)
    assert reader.read() == []
    desk.finish(COMMIT, ALICE)
    assert [batch.header.is_control for batch in reader.read()] == [True]
    reader.close()


@pytest.mark.parametrize("max_bytes", [61, 200, 1 << 20])
def test_aborted_transactions_are_left_out_across_segments_at_any_read_size(path, max_bytes, request):
    desk = Desk(path, segment_bytes=300)
    request.addfinalizer(desk.close)
    expected = []
    for number in range(12):
        desk.put_in(ALICE, b"no %d" % number, epoch=number)
        desk.put(b"plain %d" % number)
        desk.put_in(BOB, b"yes %d" % number, epoch=number)
        desk.finish(ABORT, ALICE, epoch=number)
        desk.finish(COMMIT, BOB, epoch=number)
        expected += [b"plain %d" % number, b"yes %d" % number]
    assert len(desk.log.segments(desk.log.state().end)) > 10
    assert desk.seen(max_bytes=max_bytes) == expected
    assert desk.seen(start=desk.log.offsets().high_watermark - 5, max_bytes=max_bytes) == expected[-2:]


# Markers ----------------------------------------------------------------------------------------------


def test_a_transaction_gets_one_marker_however_often_it_is_ended(desk):
    desk.put_in(ALICE, b"a")
    assert desk.finish(COMMIT, ALICE) == 1
    assert desk.finish(COMMIT, ALICE) is None
    assert desk.finish(ABORT, ALICE) is None
    assert desk.seen() == [b"a"]
    assert desk.log.offsets().log_end_offset == 2


def test_many_who_end_a_transaction_at_once_write_one_marker(desk):
    desk.put_in(ALICE, b"a")
    found: list[object] = []
    gate = threading.Barrier(8)

    def end(how: ControlType) -> None:
        gate.wait()
        found.append(desk.log.append_marker(how, producer_id=ALICE, marker_epoch=1))

    threads = [threading.Thread(target=end, args=(COMMIT if number % 2 else ABORT,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result is not None for result in found) == 1
    assert desk.log.offsets().log_end_offset == 2


def test_an_old_end_cannot_hit_a_later_transaction(desk):
    desk.put_in(ALICE, b"first")
    desk.finish(COMMIT, ALICE)
    desk.put_in(ALICE, b"second", epoch=1)
    assert desk.finish(ABORT, ALICE) is None
    assert desk.open_offsets() == [2]
    desk.finish(COMMIT, ALICE, epoch=1)
    assert desk.seen() == [b"first", b"second"]


@pytest.mark.parametrize("wrote", [False, True])
def test_an_end_fences_the_epochs_before_it_even_where_nothing_was_open(desk, wrote):
    if wrote:
        desk.put_in(ALICE, b"a")
    desk.finish(ABORT, ALICE)
    with pytest.raises(FencedError):
        desk.put_in(ALICE, b"late", epoch=0, sequence=1)
    desk.put_in(ALICE, b"next", epoch=1)
    desk.finish(COMMIT, ALICE, epoch=1)
    assert desk.seen() == [b"next"]


def test_a_marker_goes_into_a_topic_of_tiny_messages(path, request):
    desk = Desk(path, max_message_bytes=80)
    request.addfinalizer(desk.close)
    desk.put_in(ALICE, b"a")
    assert desk.finish(COMMIT, ALICE) == 1


def test_a_segment_without_an_abort_has_no_aborted_index(desk):
    desk.put_in(ALICE, b"a")
    desk.finish(COMMIT, ALICE)
    assert not [name for name in os.listdir(desk.folder) if name.endswith(ABORTED_INDEX_SUFFIX)]


def test_a_marker_that_cannot_be_written_leaves_the_transaction_open(path, request):
    files = FaultyFiles(OsFiles())
    desk = Desk(path, files=files)
    request.addfinalizer(desk.close)
    desk.put_in(ALICE, b"a")
    files.fail("pwrite", error=errno.EIO, path=ABORTED_INDEX_SUFFIX)
    with pytest.raises(WriteFailedError):
        desk.finish(ABORT, ALICE)
    files.heal()
    assert desk.open_offsets() == [0]
    assert desk.log.offsets().log_end_offset == 1
    desk.finish(ABORT, ALICE)
    assert desk.seen() == []
    assert len(desk.log.aborted_transactions(0, 10)) == 1


@pytest.mark.parametrize("operation", ["fdatasync", "fsync_directory"])
def test_a_marker_whose_index_cannot_be_synced_is_tried_again_only_after_the_log_was_verified(
    path, operation, request
):
    """A second sync would report success, whatever became of the first one's data."""
    files = FaultyFiles(OsFiles())
    desk = Desk(path, files=files)
    desk.put_in(ALICE, b"a")
    files.fail(
        operation, error=errno.EIO, path="t-0" if operation == "fsync_directory" else ABORTED_INDEX_SUFFIX
    )
    with pytest.raises(StorageFailedError):
        desk.finish(ABORT, ALICE)
    files.heal()
    with pytest.raises(StorageFailedError):
        desk.finish(ABORT, ALICE)
    desk.crash()
    desk.reopen()
    request.addfinalizer(desk.close)
    desk.log.adopt()
    desk.finish(ABORT, ALICE)
    assert desk.seen() == []
    assert desk.open_offsets() == []
    assert len(desk.log.aborted_transactions(0, 10)) == 1


# Deaths -----------------------------------------------------------------------------------------------


def some_transactions(desk: Desk) -> None:
    """One aborted, one committed, one open, across several segments; each with something of its own."""
    for number in range(3):
        desk.put_in(ALICE, b"no %d" % number)
        desk.put_in(BOB, b"yes %d" % number)
    desk.finish(ABORT, ALICE)
    desk.finish(COMMIT, BOB)
    desk.put(b"plain")
    desk.put_in(ALICE, b"open", epoch=1)
    desk.put(b"behind")


@pytest.mark.parametrize("view", ["kept", "deleted"])
@pytest.mark.parametrize("end", ["closed", "crashed"])
@pytest.mark.parametrize("segment_bytes", [200, 1 << 20])
def test_nothing_is_forgotten_of_transactions(path, view, end, segment_bytes):
    desk = Desk(path, segment_bytes=segment_bytes)
    some_transactions(desk)
    before = (desk.open_offsets(), desk.log.aborted_transactions(0, 99), desk.seen(), desk.log.offsets())
    if end == "closed":
        desk.close()
    else:
        crash(desk.directory)
    if view == "deleted":
        delete_view(path)
    again = Desk(path)
    after = (again.open_offsets(), again.log.aborted_transactions(0, 99), again.seen(), again.log.offsets())
    assert after == before
    assert after[0] == [9]
    again.finish(COMMIT, ALICE, epoch=1)
    assert again.seen() == [b"yes 0", b"yes 1", b"yes 2", b"plain", b"open", b"behind"]
    again.close()


@pytest.mark.parametrize("damage", ["missing", "short", "zeros", "beyond"])
@pytest.mark.parametrize("segment_bytes", [200, 1 << 20])
def test_an_aborted_index_that_cannot_be_believed_is_built_again(path, damage, segment_bytes):
    desk = Desk(path, segment_bytes=segment_bytes)
    some_transactions(desk)
    folder, expected = desk.folder, (desk.seen(), desk.log.aborted_transactions(0, 99))
    crash(desk.directory)
    (name,) = [name for name in os.listdir(folder) if name.endswith(ABORTED_INDEX_SUFFIX)]
    target = f"{folder}/{name}"
    if damage == "missing":
        os.unlink(target)
    elif damage == "short":
        os.truncate(target, 33)
    elif damage == "zeros":
        with open(target, "r+b") as file:
            file.write(bytes(34))
    else:
        with open(target, "ab") as file:
            file.write(b"\0\0" + (7).to_bytes(8, "big") + (500).to_bytes(8, "big") * 3)
    delete_view(path)
    again = Desk(path)
    assert (again.seen(), again.log.aborted_transactions(0, 99)) == expected
    again.close()


@pytest.mark.parametrize("view", ["kept", "lost"])
def test_an_aborted_transaction_stays_hidden_where_the_segment_of_its_marker_is_lost(path, view):
    """Nothing of ours removes a segment between others: its aborted index is what is left to tell."""
    desk = Desk(path)
    desk.put(b"plain")
    desk.put_in(ALICE, b"aborted")
    desk.log.roll_now()
    desk.finish(ABORT, ALICE)
    desk.log.roll_now()
    for value in (b"x", b"y"):  # each roll leaves a snapshot that does not know the transaction any more
        desk.put(value)
        desk.log.roll_now()
    marker = desk.log.segment(2)
    desk.close()
    os.unlink(marker.log_path)
    if view == "lost":
        delete_view(path)
    for _ in range(2):
        desk.open()
        with contextlib.closing(desk.log.reader(0, COMMITTED)) as reader:
            batches = reader.read()
            assert [record.value for batch in batches for record in decode_records(batch)] == [b"plain"]
            with pytest.raises(CorruptionError, match="offsets 2 to 2 cannot be read"):
                reader.read()
        desk.close()
    assert sorted(path.suffix for path in Path(desk.folder).glob(f"{2:020d}.*")) in (
        [".checksums", ".txnindex"],
        [".checksums", ".snapshot", ".txnindex"],
    )


def test_a_process_that_died_in_mid_append_leaves_its_transaction_to_the_next(path):
    """The batches are in the file and nowhere else."""
    desk = Desk(path)
    desk.put(b"x")
    end = desk.log.state().end
    some_transactions(desk)
    expected = (desk.open_offsets(), desk.log.aborted_transactions(0, 99), desk.seen())
    log = desk.log
    with log.view.write() as transaction:  # as it was when the file had nothing but the first batch
        log.view.partitions.put_log_end(transaction, log.key, end)
        log.view.partitions.replace_producers(transaction, log.key, {})
    crash(desk.directory)
    again = Desk(path)
    again.log.adopt()
    again.log.sync()
    assert (again.open_offsets(), again.log.aborted_transactions(0, 99), again.seen()) == expected
    again.close()


# Any history ------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([ALICE, BOB, 303])),
        st.tuples(st.sampled_from(["commit", "abort"]), st.sampled_from([ALICE, BOB, 303])),
        st.just(("plain", 0)),
        st.sampled_from([("crash", 0), ("rebuild", 0)]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, segment_bytes=st.sampled_from([150, 400, 1 << 20]))
def test_readers_agree_with_a_model_of_any_history(tmp_path_factory, steps, segment_bytes):
    path = str(tmp_path_factory.mktemp("history") / "data")
    desk = Desk(path, segment_bytes=segment_bytes)
    log: list[tuple[int, bytes | None]] = []  # producer (0: none) and value; None for a marker
    opened: dict[int, list[int]] = {}  # producer -> offsets of its open transaction
    epochs: dict[int, int] = {}
    aborted: set[int] = set()
    for number, (step, producer) in enumerate(steps):
        epoch = epochs.get(producer, 0)
        if step == "plain":
            desk.put(b"%d" % number)
            log.append((0, b"%d" % number))
        elif step == "put":
            opened.setdefault(producer, []).append(desk.put_in(producer, b"%d" % number, epoch=epoch))
            log.append((producer, b"%d" % number))
        elif step in ("commit", "abort"):
            marked = desk.finish(COMMIT if step == "commit" else ABORT, producer, epoch=epoch)
            epochs[producer] = epoch + 1
            assert marked == (len(log) if producer in opened else None)
            if marked is not None:
                log.append((producer, None))
                aborted.update(opened.pop(producer) if step == "abort" else ())
                opened.pop(producer, None)
        else:
            crash(desk.directory)
            if step == "rebuild":
                delete_view(path)
            desk = Desk(path)
        stable = min((offsets[0] for offsets in opened.values()), default=len(log))
        assert desk.log.offsets().last_stable_offset == stable
        assert desk.seen() == values(log[:stable], leave_out=aborted)
    assert desk.seen(UNCOMMITTED) == values(log)
    assert desk.open_offsets() == sorted(offsets[0] for offsets in opened.values())
    desk.close()


def values(log: Sequence[tuple[int, bytes | None]], leave_out: set[int] = frozenset()) -> list[bytes]:
    return [value for offset, (_, value) in enumerate(log) if value is not None and offset not in leave_out]


# The cleaner --------------------------------------------------------------------------------------------


def cleaner_desk(path: str, request: pytest.FixtureRequest, **config: object) -> Desk:
    desk = Desk(path, clock=ManualClock(), segment_bytes=300, **config)
    request.addfinalizer(desk.close)
    return desk


def put_keyed(desk: Desk, producer_id: int, key: bytes, value: bytes, *, epoch: int, sequence: int) -> None:
    """A transactional batch of one record with a key."""
    batch = encode_batch(
        [NewRecord(value, key, (), desk.clock.now_ms())],
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
        transactional=True,
    )
    desk.log.append(batch)


def test_compaction_keeps_what_tells_the_aborted_from_the_committed(path, request):
    desk = cleaner_desk(
        path, request, cleanup_policy="compact", min_cleanable_dirty_ratio="0.0", segment_index_bytes=4096
    )
    for number in range(12):
        put_keyed(desk, ALICE, b"k%d" % number, b"no %d" % number, epoch=number, sequence=0)
        put_keyed(desk, BOB, b"k%d" % number, b"yes %d" % number, epoch=number, sequence=0)
        desk.finish(ABORT, ALICE, epoch=number)
        desk.finish(COMMIT, BOB, epoch=number)
    desk.directory.alter_topic("t", {"segment.bytes": 1 << 20})  # so that neighbours are merged
    expected = [b"yes %d" % number for number in range(12)]
    segments = len(desk.segments())
    for _ in range(2):
        assert desk.directory.maintenance.clean()
        assert desk.seen() == expected
    assert len(desk.segments()) < segments
    crash(desk.directory)
    delete_view(path)
    again = Desk(path)
    assert again.seen() == expected
    assert again.open_offsets() == []
    again.close()


@pytest.mark.parametrize("policy", ["delete", "compact"])
def test_nothing_above_the_stable_end_is_cleaned(path, request, policy):
    desk = cleaner_desk(
        path, request, cleanup_policy=policy, retention_ms=1000, min_cleanable_dirty_ratio="0.0"
    )
    for number in range(10):
        desk.put(b"before %d" % number, timestamp_ms=desk.clock.now_ms())
    put_keyed(desk, ALICE, b"k", b"open", epoch=0, sequence=0)
    for number in range(10):
        desk.put(b"behind %d" % number, timestamp_ms=desk.clock.now_ms())
    desk.clock.advance(ms=3_600_000)
    desk.directory.maintenance.clean()
    assert desk.seen(UNCOMMITTED, start=10)[0] == b"open"
    assert desk.open_offsets() == [10]
    desk.finish(COMMIT, ALICE)
    assert desk.seen(start=10)[0] == b"open"


def test_a_producer_in_a_transaction_is_never_forgotten(path, request):
    desk = cleaner_desk(path, request, retention_ms=-1)
    desk.put_in(ALICE, b"a")
    desk.put_in(BOB, b"b")
    desk.finish(COMMIT, BOB)
    for _ in range(2):  # a producer is noted as silent, and a day later forgotten
        desk.clock.advance(ms=48 * 3_600_000)
        desk.directory.maintenance.clean()
    assert set(desk.log.view.partitions.producers(desk.log.key)) == {ALICE}
    desk.finish(COMMIT, ALICE)
    assert desk.seen() == [b"a", b"b"]


def test_a_transaction_is_over_whose_end_retention_removed_and_a_power_cut_took_the_snapshot_that_knew(path):
    """A transaction that nobody can end any more would hold committed readers up for ever."""
    desk = Desk(path)
    desk.put_in(ALICE, b"a")
    desk.log.roll_now()  # with a snapshot of the open transaction
    desk.finish(COMMIT, ALICE)
    desk.put(b"b")
    desk.log.roll_now()
    desk.put(b"c")
    delete_segments_below(desk.log, 3)
    desk.crash()
    os.truncate(f"{desk.folder}/{3:020}{SNAPSHOT_SUFFIX}", 0)
    delete_view(path)
    again = desk.open()
    assert again.open_offsets() == []
    assert again.seen(start=3) == [b"c"]
    again.close()


def test_a_marker_that_a_power_cut_took_is_written_again_when_retention_has_removed_the_begin(path):
    """The snapshots from between the two know the transaction as open, and so does who decided it."""
    desk = Desk(path)
    desk.put_in(ALICE, b"a")
    desk.log.roll_now()
    desk.put(b"b")
    desk.log.roll_now()
    desk.put(b"c")
    desk.directory.checkpoint()
    synced_bytes = desk.log.state().end.active_bytes
    desk.log.append_marker(COMMIT, producer_id=ALICE, marker_epoch=1)
    assert desk.open_offsets() == []
    delete_segments_below(desk.log, 1)
    desk.crash()
    os.truncate(f"{desk.folder}/{2:020}.log", synced_bytes)
    for _ in range(2):
        delete_view(path)
        again = desk.open()
        assert again.open_offsets() == [0]
        assert again.log.last_sequence(ALICE) == 0
        again.crash()
    again = desk.open()
    assert again.finish(COMMIT, ALICE) == 3
    assert again.open_offsets() == []
    assert again.seen(start=1) == [b"b", b"c"]
    again.crash()
    delete_view(path)
    assert desk.open().open_offsets() == []
    desk.close()


def test_a_transaction_is_over_whose_marker_compaction_could_take_and_a_power_cut_took_the_snapshots_since(
    path,
):
    """The marker stays as long as there is a snapshot that knows the transaction as open."""
    desk = Desk(path, clock=ManualClock(), cleanup_policy="compact", min_cleanable_dirty_ratio="0")

    def put_plain(value: bytes) -> None:
        desk.log.append(encode_batch([NewRecord(value, b"k", (), desk.clock.now_ms())]))
        desk.log.sync()
        desk.log.roll_now()

    put_keyed(desk, ALICE, b"k", b"first", epoch=0, sequence=0)
    desk.log.sync()
    desk.log.roll_now()  # with a snapshot of the open transaction
    desk.finish(COMMIT, ALICE)
    put_plain(b"second")
    for _ in range(2):  # the producer is noted as silent, and a day later forgotten
        desk.clock.advance(ms=48 * 3_600_000)
        desk.directory.maintenance.clean()
    put_plain(b"third")
    desk.directory.maintenance.clean()
    desk.put(b"last")
    desk.directory.checkpoint()
    assert desk.seen() == [b"third", b"last"]
    desk.crash()
    for offset in (3, 4):
        os.truncate(f"{desk.folder}/{offset:020}{SNAPSHOT_SUFFIX}", 5)
    delete_view(path)
    again = desk.open()
    assert again.open_offsets() == []
    assert again.seen() == [b"third", b"last"]
    again.close()


KEYED_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([ALICE, BOB])),
        st.tuples(st.sampled_from(["commit", "abort"]), st.sampled_from([ALICE, BOB])),
        st.sampled_from([("plain", 0), ("clean", 0), ("rebuild", 0)]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=KEYED_STEPS, keys=st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=40, max_size=40))
def test_compaction_changes_no_latest_value_of_any_history(tmp_path_factory, steps, keys):
    path = str(tmp_path_factory.mktemp("history") / "data")
    config = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": "0.0", "segment_bytes": 300}
    desk = Desk(path, clock=ManualClock(), **config)
    pending: dict[int, list[tuple[bytes, bytes]]] = {}
    committed: list[tuple[bytes, bytes]] = []
    epochs: dict[int, int] = {}
    for number, (step, producer) in enumerate(steps):
        pair = (keys[number], b"%d" % number)
        epoch = epochs.get(producer, 0)
        if step == "plain":
            desk.log.append(encode_batch([NewRecord(pair[1], pair[0], (), desk.clock.now_ms())]))
            desk.log.sync()
            committed.append(pair)
        elif step == "put":
            written = pending.setdefault(producer, [])
            put_keyed(desk, producer, *pair, epoch=epoch, sequence=len(written))
            desk.log.sync()
            written.append(pair)
        elif step in ("commit", "abort"):
            desk.finish(COMMIT if step == "commit" else ABORT, producer, epoch=epoch)
            epochs[producer] = epoch + 1
            done = pending.pop(producer, [])
            committed += done if step == "commit" else []
        elif step == "clean":
            assert desk.directory.maintenance.clean()
        else:
            crash(desk.directory)
            delete_view(path)
            desk = Desk(path, clock=ManualClock())
    for producer in list(pending):
        desk.finish(COMMIT, producer, epoch=epochs.get(producer, 0))
        committed += pending.pop(producer)
    # Within one key the last in the log wins, which is not always the last to be committed: values tell the place.
    latest = dict(sorted(committed, key=lambda pair: int(pair[1])))
    desk.directory.maintenance.clean()
    found: dict[bytes, bytes] = {}
    reader = desk.log.reader(0, COMMITTED)
    while batches := reader.read():
        for batch in batches:
            if not batch.header.is_control:
                found |= {record.key: record.value for record in decode_records(batch)}
    reader.close()
    assert found == latest
    assert desk.open_offsets() == []
    desk.close()
