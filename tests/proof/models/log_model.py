"""A partition's log in any order of what may happen to it, against a list of records and a few numbers.

The directory is real, with its journal, view, indexes, snapshots and cleaner; it lies in memory. Two handles write to
the log in turn, as two processes do: each has descriptors and caches of its own, and they share nothing but the
files and the view. The model is a list of batches in the order of their offsets; who wrote what, which transactions
are open and what was aborted are found by going through it.

A death leaves the files as they are (``kill -9``); power cuts are another proof.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logbroker_storage.adoption import writable_end
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError, OffsetOutOfRangeError, OutOfOrderSequenceError
from logbroker_storage.log_config import LogConfig
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.producer_state import ProducerEntry
from logbroker_storage.record_batch import (
    ControlType,
    NewRecord,
    assign,
    decode_records,
    encode_batch,
    read_header,
)
from logbroker_storage.testing import ManualClock
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_storage.testing.workbench import crash

from ..proof import delete_folder, new_folder

TOPIC = "t"
REMEMBERED_BATCHES = 5  # of each producer
RETENTION_MS = 20_000
RETENTION_BYTES = 1500

KINDS = {
    "by time": {"retention.ms": str(RETENTION_MS)},
    "by size": {"retention.bytes": str(RETENTION_BYTES)},
    "compacted": {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0",
        "delete.retention.ms": str(RETENTION_MS),
    },
}
KEYS = st.sampled_from([b"a", b"b", b"c", None])
VALUES = st.sampled_from([20, 20, 20, 100, 400, None])  # the length of a value; None is a tombstone
PRODUCERS = st.sampled_from([1, 2, 3])
HANDLES = st.integers(0, 1)
SEEN_RECORD = tuple[int, bytes | None, bytes | None, int]  # offset, key, value, timestamp


@dataclass
class Entry:
    """A record of the model."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    is_gone: bool = False  # compaction has taken it out

    def seen(self) -> SEEN_RECORD:
        return self.offset, self.key, self.value, self.timestamp_ms


@dataclass
class Batch:
    """A batch of the model; a marker has no entries that anybody sees."""

    base_offset: int
    last_offset: int
    timestamp_ms: int
    entries: list[Entry] = field(default_factory=list)
    producer_id: int = -1
    epoch: int = -1
    base_sequence: int = -1
    is_transactional: bool = False
    marker: ControlType | None = None

    @property
    def last_sequence(self) -> int:
        return self.base_sequence + len(self.entries) - 1


@dataclass
class Producer:
    """What the log has to know of a producer."""

    epoch: int
    batches: list[Batch] = field(default_factory=list)  # of this epoch, the last ones
    transaction: list[Batch] = field(default_factory=list)  # the open one
    sure: int = 0  # how many of the last batches are remembered for certain

    @property
    def last_sequence(self) -> int:
        return self.batches[-1].last_sequence if self.batches else -1


class Producers(dict[int, Producer]):
    """All of them, and what was aborted, as the batches tell that ``add`` was given in order."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted: set[int] = set()  # offsets

    def add(self, batch: Batch) -> None:
        if batch.producer_id < 0:
            return
        known = self.setdefault(batch.producer_id, Producer(batch.epoch))
        if batch.epoch > known.epoch:
            known.epoch, known.batches, known.sure = batch.epoch, [], 0
        if batch.marker is None:
            known.batches.append(batch)
            known.sure = min(known.sure + 1, REMEMBERED_BATCHES)
            if batch.is_transactional:
                known.transaction.append(batch)
            return
        if batch.marker is ControlType.ABORT:
            self.aborted |= {entry.offset for each in known.transaction for entry in each.entries}
        known.transaction = []

    def first_unstable(self) -> int | None:
        begun = [known.transaction[0].base_offset for known in self.values() if known.transaction]
        return min(begun, default=None)


class LogMachine(RuleBasedStateMachine):
    """Values are numbered, so that each is told from all others."""

    @initialize(kind=st.sampled_from(sorted(KINDS)), durability=st.sampled_from(["fsync", "fsync", "os"]))
    def begin(self, kind: str, durability: str) -> None:
        self.folder = new_folder(in_memory=True)
        self.kind, self.durability = kind, durability
        self.clock = ManualClock()
        self.number = 0
        self.batches: list[Batch] = []
        self.producers = Producers()
        self.start = self.end = 0
        self.at_least_synced = self.at_most_synced = 0  # bounds of the high watermark
        self.unpublished: Batch | None = None  # written by somebody who died before saying so
        self.cleaned_offset = 0  # what compaction has seen, as the view knows
        self.cleaned_ms: dict[int, int] = {}  # tombstones: when compaction first saw them
        self._open()
        settings = KINDS[kind] | {
            "durability": durability,
            "segment.bytes": "700",
            "index.interval.bytes": "150",
        }
        self.directory.create_topic(TOPIC, 1, LogConfig.parse(settings))
        self._open_handles()

    def _open(self) -> None:
        self.directory = DataDirectory.open(str(self.folder / "data"), clock=self.clock)
        self.directory.maintenance.close()  # nothing happens but what a rule does

    def _open_handles(self) -> None:
        self.handles = [self.directory.log(TOPIC, 0), self._other_handle()]

    def _other_handle(self) -> PartitionLog:
        event = self.directory.topic(TOPIC)
        return self.directory._make_log(self.directory.view, TOPIC, 0, event)

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.handles[1].abandon(None)
            crash(self.directory)
            delete_folder(self.folder)

    # What the model expects -----------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        for batch in self.batches:
            yield from batch.entries

    def visible(self, end: int) -> list[Entry]:
        return [entry for entry in self.entries() if self.start <= entry.offset < end and not entry.is_gone]

    def add(self, batch: Batch) -> None:
        assert batch.base_offset == self.end
        self.batches.append(batch)
        self.producers.add(batch)
        self.end = batch.last_offset + 1
        if self.durability == "os":
            self.at_least_synced = self.at_most_synced = self.end

    def settle_unpublished(self) -> None:
        """Somebody appends, or recovers: what was written whole by one who died is in the log."""
        batch, self.unpublished = self.unpublished, None
        if batch is not None:
            self.add(batch)

    def take_all_as_synced(self) -> None:
        self.at_least_synced = self.at_most_synced = self.end

    def decided_end(self) -> int:
        unstable = self.producers.first_unstable()
        high_watermark = self.handles[0].offsets().high_watermark
        return high_watermark if unstable is None else min(unstable, high_watermark)

    def stable_end(self) -> int:
        return max(self.decided_end(), min(self.start, self.handles[0].offsets().high_watermark))

    # Appending ------------------------------------------------------------------------------------

    def make_batch(
        self,
        keys: list[bytes | None],
        lengths: list[int | None],
        age_ms: int,
        *,
        producer_id: int = -1,
        epoch: int = -1,
        base_sequence: int = -1,
        is_transactional: bool = False,
    ) -> tuple[Batch, bytearray]:
        """A batch of the model for the end of the log, and its bytes."""
        timestamp_ms = self.clock.now_ms() - age_ms
        entries = []
        for index, (key, length) in enumerate(zip(keys, lengths, strict=False)):
            self.number += 1
            value = None if length is None and key is not None else b"%d" % self.number + bytes(length or 0)
            entries.append(Entry(self.end + index, key, value, timestamp_ms + index))
        last_offset = self.end + len(entries) - 1
        batch = Batch(self.end, last_offset, entries[-1].timestamp_ms, entries)
        batch.producer_id, batch.epoch, batch.base_sequence = producer_id, epoch, base_sequence
        batch.is_transactional = is_transactional
        return batch, _encoded(batch)

    def append(self, handle: int, batch: Batch, data: bytearray, syncs: bool) -> None:
        log = self.handles[handle]
        result = log.append(data)
        assert not result.duplicate
        assert (result.base_offset, result.last_offset) == (batch.base_offset, batch.last_offset)
        self.add(batch)
        if syncs:
            log.sync(result.last_offset + 1)
            self.take_all_as_synced()

    @rule(
        handle=HANDLES,
        keys=st.lists(KEYS, min_size=1, max_size=4),
        lengths=st.lists(VALUES, min_size=4, max_size=4),
        age_ms=st.integers(-3000, 3000),
        syncs=st.booleans(),
    )
    def append_plain(
        self,
        handle: int,
        keys: list[bytes | None],
        lengths: list[int | None],
        age_ms: int,
        syncs: bool,
    ) -> None:
        self.settle_unpublished()
        self.append(handle, *self.make_batch(keys, lengths, age_ms), syncs)

    @rule(
        handle=HANDLES,
        producer_id=PRODUCERS,
        keys=st.lists(KEYS, min_size=1, max_size=3),
        lengths=st.lists(VALUES, min_size=3, max_size=3),
        bumps=st.sampled_from([0, 0, 0, 0, 1]),
        is_transactional=st.booleans(),
        syncs=st.booleans(),
    )
    def append_idempotent(
        self,
        handle: int,
        producer_id: int,
        keys: list[bytes | None],
        lengths: list[int | None],
        bumps: int,
        is_transactional: bool,
        syncs: bool,
    ) -> None:
        self.settle_unpublished()
        batch, data = self.next_of(producer_id, keys, lengths, bumps, is_transactional)
        self.append(handle, batch, data, syncs)

    def next_of(
        self,
        producer_id: int,
        keys: list[bytes | None],
        lengths: list[int | None],
        bumps: int,
        is_transactional: bool,
    ) -> tuple[Batch, bytearray]:
        """The batch that follows a producer's last one, perhaps in the next epoch."""
        known = self.producers.get(producer_id)
        epoch = 0 if known is None else known.epoch + bumps
        base_sequence = 0 if known is None or bumps else known.last_sequence + 1
        # A producer is either in a transaction or writes without.
        is_transactional |= known is not None and bool(known.transaction)
        return self.make_batch(
            keys,
            lengths,
            0,
            producer_id=producer_id,
            epoch=epoch,
            base_sequence=base_sequence,
            is_transactional=is_transactional,
        )

    @precondition(lambda self: any(known.batches for known in self.producers.values()))
    @rule(handle=HANDLES, data=st.data())
    def append_again(self, handle: int, data: st.DataObject) -> None:
        """A producer that was told nothing sends one of its last batches again."""
        self.settle_unpublished()
        producers = [known for known in self.producers.values() if known.batches]
        known = data.draw(st.sampled_from(producers))
        back = data.draw(st.integers(1, min(len(known.batches), REMEMBERED_BATCHES)))
        batch = known.batches[-back]
        try:
            result = self.handles[handle].append(_encoded(batch))
        except OutOfOrderSequenceError:
            assert back > max(known.sure, 1), "it was forgotten"
            return
        assert result.duplicate, "it is in the log twice"
        assert (result.base_offset, result.last_offset) == (batch.base_offset, batch.last_offset)

    @precondition(lambda self: any(known.batches for known in self.producers.values()))
    @rule(handle=HANDLES, data=st.data(), ahead=st.integers(1, 5))
    def append_out_of_order(self, handle: int, data: st.DataObject, ahead: int) -> None:
        self.settle_unpublished()
        names = [name for name, known in self.producers.items() if known.batches]
        producer_id = data.draw(st.sampled_from(sorted(names)))
        batch, _ = self.next_of(producer_id, [None], [5], 0, False)
        batch.base_sequence += ahead
        expected = self.producers[producer_id].last_sequence + 1
        try:
            self.handles[handle].append(_encoded(batch))
        except OutOfOrderSequenceError as error:
            found = error.expected
        else:
            raise AssertionError(f"{ahead} batches of producer {producer_id} are missing, and nobody noticed")
        assert found == expected

    @precondition(lambda self: any(known.epoch > 0 for known in self.producers.values()))
    @rule(handle=HANDLES, data=st.data())
    def append_fenced(self, handle: int, data: st.DataObject) -> None:
        self.settle_unpublished()
        names = [name for name, known in self.producers.items() if known.epoch > 0]
        producer_id = data.draw(st.sampled_from(sorted(names)))
        batch, _ = self.next_of(producer_id, [None], [5], 0, False)
        batch.epoch -= 1
        batch.base_sequence = data.draw(st.sampled_from([0, batch.base_sequence]))
        try:
            self.handles[handle].append(_encoded(batch))
        except FencedError:
            return
        raise AssertionError(f"producer {producer_id} writes in an epoch that is over")

    @rule(handle=HANDLES, producer_id=PRODUCERS, commits=st.booleans(), keeps_epoch=st.booleans())
    def end_transaction(self, handle: int, producer_id: int, commits: bool, keeps_epoch: bool) -> None:
        """A marker, of which the second does nothing."""
        if keeps_epoch and producer_id not in self.producers:
            return
        self.settle_unpublished()
        known = self.producers.get(producer_id)
        control_type = ControlType.COMMIT if commits else ControlType.ABORT
        epoch = (-1 if known is None else known.epoch) + (not keeps_epoch)
        before_offset = self.end if keeps_epoch else None
        arguments = {"producer_id": producer_id, "marker_epoch": epoch, "before_offset": before_offset}
        result = self.handles[handle].append_marker(control_type, **arguments)  # type: ignore[arg-type]
        if known is not None and known.transaction:
            assert result is not None, "the transaction is open, and was not ended"
            assert result.base_offset == self.end
            self.add(
                Batch(
                    self.end,
                    self.end,
                    self.clock.now_ms(),
                    producer_id=producer_id,
                    epoch=epoch,
                    marker=control_type,
                )
            )
        else:
            assert result is None, "there is no transaction to end"
            if not keeps_epoch:  # older epochs are fenced all the same
                self.producers[producer_id] = Producer(epoch)
        assert self.handles[1 - handle].append_marker(control_type, **arguments) is None  # type: ignore[arg-type]

    # Dying in the middle, and syncing ---------------------------------------------------------------

    @rule(
        handle=HANDLES,
        producer_id=st.sampled_from([-1, 1, 2]),
        torn=st.integers(0, 3),
        size=st.integers(1, 3),
    )
    def die_in_mid_append(self, handle: int, producer_id: int, torn: int, size: int) -> None:
        """A process wrote a batch, or the first part of one, and did not come to publish it."""
        self.settle_unpublished()
        log = self.handles[handle]
        with log.append_lock:
            end = writable_end(log, log.active, log.state())
            if producer_id < 0:
                batch, data = self.make_batch([b"a"] * size, [20] * size, 0)
            else:
                batch, data = self.next_of(producer_id, [b"a"] * size, [20] * size, 0, False)
            assign(data, self.end, 0)
            if torn:
                log.active.files(end).write_log(data[: len(data) * torn // 4], end.active_bytes)
            else:
                log.active.write(end, data, read_header(data))
                self.unpublished = batch
        if handle:  # the one that died comes back as another
            log.abandon(None)
            self.handles[1] = self._other_handle()

    @rule(handle=HANDLES)
    def sync(self, handle: int) -> None:
        assert self.handles[handle].sync() == self.end
        self.take_all_as_synced()

    @rule()
    def checkpoint(self) -> None:
        self.directory.checkpoint()

    @rule(handle=HANDLES)
    def roll(self, handle: int) -> None:
        self.settle_unpublished()
        self.handles[handle].roll_now()

    # Reading --------------------------------------------------------------------------------------

    @rule(
        handle=HANDLES,
        data=st.data(),
        isolation=st.sampled_from(Isolation),
        max_bytes=st.sampled_from([1, 300]),
    )
    def read_from_anywhere(
        self, handle: int, data: st.DataObject, isolation: Isolation, max_bytes: int
    ) -> None:
        offset = data.draw(st.integers(max(self.start - 2, 0), self.end + 2))
        log = self.handles[handle]
        end = self.seen_end(isolation)
        reader = log.reader(offset, isolation)
        try:
            batches = reader.read(max_bytes)
        except OffsetOutOfRangeError:
            assert not self.start <= offset <= self.end
            return
        finally:
            reader.close()
        assert self.start <= offset <= self.end
        if offset >= end:
            assert batches == []
            return
        if batches:
            assert batches[0].header.base_offset <= offset or isolation is Isolation.READ_COMMITTED
        found = [record for batch in batches for record in _records(batch) if record[0] >= offset]
        expected = [entry for entry in self.expected(isolation) if entry[0] >= offset]
        assert found == expected[: len(found)]

    @rule(handle=HANDLES, data=st.data())
    def look_up_time(self, handle: int, data: st.DataObject) -> None:
        log = self.handles[handle]
        visible = self.visible(log.offsets().high_watermark)
        times = sorted({entry.timestamp_ms for entry in visible}) or [START_MS]
        timestamp_ms = data.draw(st.sampled_from(times)) + data.draw(st.sampled_from([-1, 0, 0, 1]))
        expected = [entry.offset for entry in visible if entry.timestamp_ms >= timestamp_ms]
        assert log.offset_for_timestamp(timestamp_ms) == min(expected, default=None)
        newest = max(visible, key=lambda entry: (entry.timestamp_ms, -entry.offset), default=None)
        found = log.newest_record()
        assert (found and found.offset) == (newest and newest.offset)

    # Losing records on purpose ----------------------------------------------------------------------

    @rule(ms=st.sampled_from([1, 5_000, 15_000, 40_000]))
    def let_time_pass(self, ms: int) -> None:
        self.clock.advance(ms=ms)

    @rule(data=st.data())
    def delete_records(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(max(self.start - 1, 0), self.end + 1))
        high_watermark = self.handles[0].offsets().high_watermark
        self.start = max(self.start, min(offset, high_watermark))
        assert self.directory.delete_records(TOPIC, 0, offset) == self.start

    def _first_base(self) -> int:
        log = self.handles[0]
        return log.segments(log.state().end)[0]

    @rule()
    def clean(self) -> None:
        log = self.handles[0]
        before = self.segments()
        decided = self.decided_end()
        assert self.directory.maintenance.clean()
        if self.unpublished is not None and log.offsets().log_end_offset > self.end:
            self.settle_unpublished()
        if self.kind == "compacted":
            self.at_most_synced = (
                self.end
            )  # what is compacted for the sake of later records, these are on the disk
            self.expect_removal([part for part in before[:-1] if part[1] <= self.start], decided)
            self.expect_compaction(self.segments(), before, decided)
        elif self.kind == "by time":
            self.expect_removal(self.expired(before), decided)
        else:
            self.expect_removal(self.oversized(before), decided)

    def segments(self) -> list[tuple[int, int, int]]:
        """Base, end and size of each."""
        log = self.handles[0]
        end = log.state().end
        bases = log.segments(end)
        sizes = [*(log.segment_bytes(base) for base in bases[:-1]), end.active_bytes]
        return list(zip(bases, [*bases[1:], end.log_end_offset], sizes, strict=True))

    def expired(self, segments: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """The first ones whose newest record is too old, or that were deleted; the active one, too."""
        found = []
        for base, end, size in segments:
            times = [batch.timestamp_ms for batch in self.batches if base <= batch.base_offset < end]
            is_old = bool(times) and self.clock.now_ms() - max(times) > RETENTION_MS
            is_active = (base, end, size) == segments[-1]
            if not is_old and (is_active or end > self.start):
                break
            found.append((base, end, size))
        return found

    def oversized(self, segments: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        left_bytes = sum(size for _, _, size in segments)
        found = []
        for base, end, size in segments[:-1]:
            left_bytes -= size
            if left_bytes < RETENTION_BYTES and end > self.start:
                break
            found.append((base, end, size))
        return found

    def expect_removal(self, segments: list[tuple[int, int, int]], stable: int) -> None:
        ends = [end for _, end, _ in segments if end <= stable]
        self.start = max([self.start, *ends])
        assert self.handles[0].offsets().log_start_offset == self.start
        assert self._first_base() >= max(ends, default=0)

    def expect_compaction(
        self,
        _: list[tuple[int, int, int]],
        before: list[tuple[int, int, int]],
        stable: int,
    ) -> None:
        """What is superseded or aborted goes, of the sealed and decided segments; the latest of each key stays."""
        covered = max([end for _, end, _ in before[:-1] if end <= stable], default=0)
        if covered <= self.cleaned_offset or not any(size for _, end, size in before if end <= covered):
            return
        now_ms = self.clock.now_ms()
        latest: dict[bytes | None, int] = {}
        of_part = [entry for entry in self.entries() if entry.offset < covered and not entry.is_gone]
        for entry in of_part:
            if entry.offset not in self.producers.aborted:
                latest[entry.key] = entry.offset
        for entry in of_part:
            is_superseded = entry.key is not None and latest.get(entry.key, -1) > entry.offset
            seen_ms = self.cleaned_ms.get(entry.offset)
            is_over = entry.value is None and seen_ms is not None and now_ms - seen_ms >= RETENTION_MS
            entry.is_gone = entry.offset in self.producers.aborted or is_superseded or is_over
            if entry.value is None:
                self.cleaned_ms.setdefault(entry.offset, now_ms)
        self.cleaned_offset = covered

    # Ends and beginnings ----------------------------------------------------------------------------

    @rule(loses_view=st.booleans())
    def die(self, loses_view: bool) -> None:
        """Everybody is killed at this instant."""
        self.handles[1].abandon(None)
        crash(self.directory)
        self.begin_anew(loses_view)

    @rule(loses_view=st.booleans())
    def close(self, loses_view: bool) -> None:
        appended = any(log.appends for log in self.handles)
        self.handles[1].close_cleanly()
        self.directory.close()
        if appended:
            self.settle_unpublished()
            self.take_all_as_synced()
        self.begin_anew(loses_view)

    def begin_anew(self, loses_view: bool) -> None:
        if loses_view:
            shutil.rmtree(self.folder / "data" / "view")
            self.settle_unpublished()
            self.cleaned_offset = 0
            self.cleaned_ms.clear()
        self._open()
        self._open_handles()
        if loses_view:
            self.take_all_as_synced()
            self.replay()

    def replay(self) -> None:
        """Only what is in the log is known of its producers now, and of that the last batch for certain.

        A fence without a marker may be remembered: a snapshot can have it. Compaction and retention may have taken
        batches that were not a producer's last ones, and are now: the fence that came behind them is forgotten.
        Nothing tells of those any more.
        """
        entries = self.directory.view.partitions.producers(self.handles[0].key)
        told = self.told_by_batches()
        for producer_id, known in told.items():
            if self.producers[producer_id].epoch > known.epoch:
                self.forget_what_is_forgotten(producer_id, entries.get(producer_id))
        self.producers = self.told_by_batches()
        for producer_id, entry in entries.items():
            known = self.producers.setdefault(producer_id, Producer(entry.epoch))
            assert entry.epoch >= known.epoch
            assert not known.transaction or entry.txn_first_offset == known.transaction[0].base_offset
            if entry.epoch > known.epoch:
                assert entry.last_sequence < 0
                known.epoch, known.batches = entry.epoch, []
        for known in self.producers.values():
            known.sure = min(known.sure, 1)

    def told_by_batches(self) -> Producers:
        producers = Producers()
        for batch in self.batches:
            producers.add(batch)
        return producers

    def forget_what_is_forgotten(self, producer_id: int, entry: ProducerEntry | None) -> None:
        """Batches of which the log does not know any more tell nothing from now on; they must have been taken."""
        for batch in [batch for batch in self.batches if batch.producer_id == producer_id]:
            if batch.marker is not None and entry is not None:
                batch.epoch = min(
                    batch.epoch, entry.epoch
                )  # taken itself, it ended its transaction all the same
            elif entry is None or (batch.epoch, batch.last_sequence) > (entry.epoch, entry.last_sequence):
                assert self.is_taken(batch), f"{batch} is in the log, and forgotten"
                batch.producer_id = -1
        known = self.told_by_batches().get(producer_id)
        for batch in known.transaction if known is not None else ():
            if entry is None or not 0 <= entry.txn_first_offset <= batch.base_offset:
                assert self.is_taken(batch), f"{batch} is of an open transaction, and forgotten"
                batch.is_transactional = False

    def is_taken(self, batch: Batch) -> bool:
        """Whether compaction or retention has taken all of it."""
        return batch.last_offset < self._first_base() or all(entry.is_gone for entry in batch.entries)

    # After every step -----------------------------------------------------------------------------

    def seen_end(self, isolation: Isolation) -> int:
        committed_only = isolation is Isolation.READ_COMMITTED
        return self.stable_end() if committed_only else self.handles[0].offsets().high_watermark

    def expected(self, isolation: Isolation) -> list[SEEN_RECORD]:
        hidden = self.producers.aborted if isolation is Isolation.READ_COMMITTED else frozenset[int]()
        end = self.seen_end(isolation)
        return [entry.seen() for entry in self.visible(end) if entry.offset not in hidden]

    @invariant()
    def offsets_are_those_of_the_model(self) -> None:
        for log in self.handles:
            offsets = log.offsets()
            assert (offsets.log_start_offset, offsets.log_end_offset) == (self.start, self.end)
            assert self.at_least_synced <= offsets.high_watermark <= self.at_most_synced
            assert offsets.last_stable_offset == self.stable_end()
        # From now on it may not go back.
        self.at_least_synced = self.handles[0].offsets().high_watermark

    @invariant()
    def readers_see_what_the_model_holds(self) -> None:
        for log, isolation in zip(self.handles, Isolation, strict=True):
            reader = log.reader(self.start, isolation)
            found: list[SEEN_RECORD] = []
            expected_base = None
            while batches := reader.read():
                for batch in batches:
                    assert isolation is Isolation.READ_COMMITTED or expected_base in (
                        None,
                        batch.header.base_offset,
                    ), "batches do not tile the offsets"
                    expected_base = batch.header.next_offset
                    found += _records(batch)
            reader.close()
            assert [record for record in found if record[0] >= self.start] == self.expected(isolation)

    @invariant()
    def producers_are_those_of_the_model(self) -> None:
        for producer_id, known in self.producers.items():
            last = known.last_sequence if known.last_sequence >= 0 else None
            assert self.handles[0].last_sequence(producer_id) == last


def _encoded(batch: Batch) -> bytearray:
    return encode_batch(
        [NewRecord(entry.value, entry.key, (), entry.timestamp_ms) for entry in batch.entries],
        producer_id=batch.producer_id,
        producer_epoch=batch.epoch,
        base_sequence=batch.base_sequence,
        transactional=batch.is_transactional,
    )


def _records(batch: object) -> list[SEEN_RECORD]:
    if batch.header.is_control:  # type: ignore[attr-defined]
        return []
    records = decode_records(batch)  # type: ignore[arg-type]
    return [(record.offset, record.key, record.value, record.timestamp_ms) for record in records]
