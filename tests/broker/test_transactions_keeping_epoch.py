"""Transactions of a holder that keeps its epoch, as Kafka's clients of before KIP-890 do over the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from logbroker.holdings import Claim
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError
from logbroker_storage.log_config import LogConfig
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import ControlType, decode_records, encode_values

PLACE = ("t", 0)
TIMEOUT_MS = 60_000


class Holder:
    """Who holds the id ``id`` and writes to one partition, always under the same epoch."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.directory = DataDirectory.open(self.path)
        if "t" not in self.directory.topics():
            self.directory.create_topic("t", 1, LogConfig.parse({}))
        self.coordinator = TransactionCoordinator(self.directory)
        self.claim = self.coordinator.claim("id", timeout_ms=TIMEOUT_MS)
        self._sequence = 0

    def write(self, value: bytes) -> Holder:
        self.coordinator.holdings.add_partitions(self.claim, [PLACE])
        batch = encode_values(
            [value],
            [(0, 1)],
            producer_id=self.claim.producer_id,
            producer_epoch=self.claim.epoch,
            base_sequence=self._sequence,
            transactional=True,
        )
        self.directory.log(*PLACE).append(batch)
        self.directory.log(*PLACE).sync()
        self._sequence += 1
        return self

    def commit(self) -> Claim:
        return self.coordinator.commit(self.claim, keeps_epoch=True)

    def commit_without_markers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Commit as a process does that dies, or meets a bad disk, behind the decision."""
        with monkeypatch.context() as dying:
            dying.setattr(
                TransactionCoordinator, "_write_markers", lambda *_: (_ for _ in ()).throw(OSError("gone"))
            )
            self.commit()

    def abort(self) -> Claim | None:
        return self.coordinator.abort(self.claim, keeps_epoch=True)

    def values(self, isolation: Isolation = Isolation.READ_COMMITTED) -> list[bytes | None]:
        reader = self.directory.log(*PLACE).reader(0, isolation)
        found: list[bytes | None] = []
        while batches := reader.read():
            found += [
                record.value
                for batch in batches
                if not batch.header.is_control
                for record in decode_records(batch)
            ]
        reader.close()
        return found

    def open_transactions(self) -> int:
        return len(self.directory.view.partitions.open_transactions())


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path / "data")
    yield holder
    holder.directory.close()


def test_one_transaction_follows_the_other_under_one_epoch(holder):
    for number in range(6):
        holder.write(b"%d" % number)
        following = holder.abort() if number % 3 == 2 else holder.commit()
        assert following == holder.claim
    assert holder.values() == [b"0", b"1", b"3", b"4"]
    assert holder.open_transactions() == 0


def test_a_late_marker_of_one_does_not_end_the_next(holder):
    """Somebody has seen the decision of the first, and writes its markers when the second is under way."""
    holder.write(b"first").commit()
    decided = holder.coordinator.event("id")
    holder.write(b"second")
    holder.coordinator._write_markers(decided)
    assert holder.open_transactions() == 1
    assert holder.values() == [b"first"]
    holder.abort()
    assert holder.values() == [b"first"]


def test_a_marker_that_was_written_is_not_written_again(holder):
    holder.write(b"a").commit()
    end_offset = holder.directory.log(*PLACE).offsets().log_end_offset
    holder.coordinator._write_markers(holder.coordinator.event("id"))
    assert holder.directory.log(*PLACE).offsets().log_end_offset == end_offset


def test_a_decision_whose_markers_are_missing_is_finished_by_whoever_comes(holder, monkeypatch):
    holder.write(b"a")
    holder.commit_without_markers(monkeypatch)
    assert holder.values() == []
    assert TransactionCoordinator(holder.directory).abort_orphans() == 1
    assert holder.values() == [b"a"]


def test_whoever_asks_for_the_abort_of_what_is_committed_already_finishes_the_commit(holder, monkeypatch):
    holder.write(b"a")
    holder.commit_without_markers(monkeypatch)
    assert not TransactionCoordinator(holder.directory).abort_hanging(holder.claim.producer_id)
    assert holder.values() == [b"a"]


def test_committing_again_finishes_a_decision_whose_markers_are_missing(holder, monkeypatch):
    holder.write(b"a")
    holder.commit_without_markers(monkeypatch)
    holder.commit()
    holder.write(b"b").commit()
    assert holder.values() == [b"a", b"b"]


def test_a_newer_holder_aborts_what_is_open_and_fences(holder):
    holder.write(b"a").commit()
    holder.write(b"b")
    newer = holder.coordinator.claim("id", timeout_ms=TIMEOUT_MS)
    assert newer.epoch > holder.claim.epoch
    with pytest.raises(FencedError):
        holder.commit()
    with pytest.raises(FencedError):
        holder.write(b"c")
    assert holder.values() == [b"a"]
    assert holder.open_transactions() == 0


def test_nobody_aborts_a_transaction_that_is_in_time(holder):
    holder.write(b"a").commit()
    holder.write(b"b")
    assert holder.coordinator.abort_orphans() == 0
    holder.commit()
    assert holder.values() == [b"a", b"b"]


def test_a_log_with_such_markers_is_understood_without_the_view(holder, tmp_path):
    holder.write(b"a").commit()
    holder.write(b"b").abort()
    holder.write(b"c").commit()
    holder.directory.close()
    shutil.rmtree(tmp_path / "data" / "view")
    again = Holder(tmp_path / "data")
    assert again.values() == [b"a", b"c"]
    assert again.open_transactions() == 0
    again.directory.close()


def test_a_holder_goes_on_after_everybody_has_left(holder, tmp_path):
    """The server was restarted between two transactions: what it holds is in the journal."""
    holder.write(b"a").commit()
    holder.directory.close()
    directory = DataDirectory.open(str(tmp_path / "data"))
    coordinator = TransactionCoordinator(directory)
    assert coordinator.holdings.of("id") is None
    resumed = coordinator.resume(holder.claim)
    assert resumed is not None
    assert resumed.is_held_by(holder.claim)
    assert coordinator.resume(holder.claim._replace(epoch=holder.claim.epoch + 1)) == resumed
    directory.close()


def test_a_holder_that_left_something_open_does_not_go_on(holder, tmp_path):
    holder.write(b"a")
    holder.directory.close()
    directory = DataDirectory.open(str(tmp_path / "data"))
    coordinator = TransactionCoordinator(directory)
    assert coordinator.resume(holder.claim) is None
    directory.close()


@pytest.mark.parametrize(("before_offset", "ends"), [(0, False), (1, True), (9, True)])
def test_a_marker_ends_only_what_began_below_its_bound(holder, before_offset, ends):
    holder.write(b"a")
    written = holder.directory.log(*PLACE).append_marker(
        ControlType.COMMIT,
        producer_id=holder.claim.producer_id,
        marker_epoch=holder.claim.epoch,
        before_offset=before_offset,
    )
    assert (written is not None) is ends
    assert holder.open_transactions() == (0 if ends else 1)


def test_a_strangers_transaction_of_the_last_epoch_that_there_is_is_aborted(holder: Holder) -> None:
    """No epoch is left for a marker behind it: without one, committed readers would wait there for ever."""
    log = holder.directory.log(*PLACE)
    for sequence, value in enumerate((b"begun", b"more")):
        batch = encode_values(
            [value],
            [(0, 1)],
            producer_id=1 << 40,
            producer_epoch=(1 << 15) - 1,
            base_sequence=sequence,
            transactional=True,
        )
        log.append(batch)
    assert holder.coordinator.abort_orphans() == 1
    assert holder.coordinator.abort_orphans() == 0
    holder.write(b"ours").commit()
    assert holder.values() == [b"ours"]
    holder.directory.close()
    shutil.rmtree(f"{holder.path}/view")
    again = Holder(Path(holder.path))
    assert again.values() == [b"ours"]
    assert again.coordinator.abort_orphans() == 0
    again.directory.close()
