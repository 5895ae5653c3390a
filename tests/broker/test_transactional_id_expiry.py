"""Transactional ids that had no transaction for a week are forgotten, and nobody misses them."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import logbroker
from logbroker import FencedError, StorageFailedError, WriteFailedError
from logbroker.broker import Broker
from logbroker.holdings import EXPIRATION_MS, Claim, Holding
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker.transactional_id_expiry import expire_transactional_ids, expired
from logbroker_storage.events import TransactionEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import encode_values
from logbroker_storage.testing import FaultyFiles, ManualClock, ProcessKilled
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_storage.testing.workbench import crash
from logbroker_tools import cli

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
KEPT_FOREVER = {"retention.ms": "-1"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def broker(path: Path, clock: ManualClock) -> Iterator[Broker]:
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("out", partitions=2, config=KEPT_FOREVER)
        broker._directory.maintenance.close()  # what its thread does, ``look_around`` does
        yield broker


def write(broker: Broker, transactional_id: str, value: bytes = b"v", partition: int = 0) -> None:
    with broker.transaction(transactional_id) as tx:
        tx.send("out", value, partition=partition)


def values(broker: Broker) -> list[bytes]:
    with broker.consumer("out") as consumer:
        found = []
        while records := consumer.poll(1000, 0):
            found += [record.value for record in records]
    return sorted(found)


def known(broker: Broker) -> dict[str, TransactionEvent]:
    return {event.transactional_id: event for event in TransactionCoordinator(broker._directory).events()}


def transactional_batch(claim: Claim, value: bytes) -> bytearray:
    return encode_values(
        [value],
        [(0, START_MS)],
        producer_id=claim.producer_id,
        producer_epoch=claim.epoch,
        base_sequence=0,
        transactional=True,
    )


def look_around(broker: Broker) -> None:
    """What the background thread of a process does every 3 s."""
    for task in broker._directory.maintenance._tasks.values():
        task()


# The decision -------------------------------------------------------------------------------------------

NOW_MS, MONOTONIC_MS = 100 * WEEK_MS, 50 * WEEK_MS
OLD_MS, YOUNG_MS = NOW_MS - EXPIRATION_MS, NOW_MS - EXPIRATION_MS + 1
LATE_MS, SEEN_MS = MONOTONIC_MS - EXPIRATION_MS, MONOTONIC_MS - EXPIRATION_MS + 1


@pytest.mark.parametrize(
    ("updated_ms", "deadline_ms", "is_open", "is_expired"),
    [
        (OLD_MS, None, False, True),
        (YOUNG_MS, None, False, False),
        (OLD_MS, LATE_MS, False, True),
        (OLD_MS, SEEN_MS, False, False),
        (YOUNG_MS, LATE_MS, False, False),
        (OLD_MS, None, True, False),
        (OLD_MS, LATE_MS, True, False),
    ],
)
def test_an_id_expires_when_nothing_was_decided_and_its_holder_not_seen_for_a_week(
    updated_ms: int, deadline_ms: int | None, is_open: bool, is_expired: bool
) -> None:
    event = TransactionEvent("t", 5, 0, "commit", [("out", 0)], 1000, updated_ms)
    held = {} if deadline_ms is None else {"t": Holding(5, 1, "p", [], 0, 1000, deadline_ms=deadline_ms)}
    opened = {5} if is_open else {6}
    found = expired([event], held.get, opened=opened, now_ms=NOW_MS, monotonic_ms=MONOTONIC_MS)
    assert found == ([event] if is_expired else [])


# What is forgotten --------------------------------------------------------------------------------------


def test_an_id_is_forgotten_a_week_after_its_last_transaction(broker, clock):
    write(broker, "old")
    clock.advance(ms=DAY_MS)
    write(broker, "young", partition=1)
    clock.advance(ms=6 * DAY_MS)
    broker.clean()
    assert known(broker).keys() == {"old", "young"}, (
        "the holder's time begins when a transaction would time out"
    )
    clock.advance(ms=3_600_000)
    broker.clean()
    assert known(broker).keys() == {"young"}
    assert TransactionCoordinator(broker._directory).holdings.of("old") is None
    assert values(broker) == [b"v", b"v"]


def test_a_view_that_is_made_anew_has_forgotten_too(broker, clock, path):
    write(broker, "once")
    clock.advance(ms=WEEK_MS + 60_000)
    broker.clean()
    broker.close()
    shutil.rmtree(path / "view")
    with logbroker.open(path, clock=clock) as again:
        assert known(again) == {}
        assert values(again) == [b"v"]


def test_compaction_drops_from_the_journal_what_was_forgotten(broker, clock):
    journal = broker._directory.journal
    journal.compact_from_bytes = 1000
    for number in range(50):
        write(broker, f"once-{number}")
    before = journal.log.size_bytes()
    clock.advance(ms=WEEK_MS + 60_000)
    broker.clean()
    assert known(broker) == {}
    assert journal.log.size_bytes() < before / 4


def test_an_id_that_nobody_holds_is_forgotten_though_it_was_begun_in_memory(broker, clock, path):
    coordinator = TransactionCoordinator(broker._directory)
    claim = coordinator.claim("client", timeout_ms=1000)
    coordinator.begin_in_memory(claim, ("__consumer_offsets", 0))
    broker.close()
    clock.advance(ms=WEEK_MS)
    with logbroker.open(path, clock=clock) as again:
        assert known(again).keys() == {"client"}
        again.clean()
        assert known(again) == {}


def test_the_state_of_a_forgotten_id_stays(broker, clock):
    with broker.transaction("t") as tx:
        tx.state[b"last"] = b"7"
    clock.advance(ms=WEEK_MS + 60_000)
    broker.clean()
    assert known(broker) == {}
    with broker.transaction("t") as tx:
        assert tx.state[b"last"] == b"7"
        tx.state[b"last"] = b"8"
    with broker.transaction("t") as tx:
        assert tx.state[b"last"] == b"8"


# Who comes back -----------------------------------------------------------------------------------------


def test_whoever_comes_back_has_a_producer_id_that_nobody_had(broker, clock):
    write(broker, "t", b"1")
    before = known(broker)["t"].producer_id
    clock.advance(ms=WEEK_MS + 60_000)
    broker.clean()
    write(broker, "t", b"2")
    assert known(broker)["t"].producer_id > before
    assert values(broker) == [b"1", b"2"]


def test_a_transaction_that_is_open_for_weeks_before_its_first_record_keeps_its_id(broker, clock):
    """The timeout counts from the first record on: nobody may have taken the id away."""
    write(broker, "t", b"1")
    clock.advance(ms=6 * DAY_MS)
    with broker.transaction("t", timeout=5) as tx:
        for _ in range(30):
            clock.advance(ms=DAY_MS)
            look_around(broker)
            broker.clean()
        tx.send("out", b"2", partition=0)
    assert values(broker) == [b"1", b"2"]


def test_an_id_is_not_forgotten_between_the_beginning_of_a_transaction_and_its_first_record(broker, clock):
    """It was used last a week ago: whoever begins is seen, before anybody looks around."""
    write(broker, "t", b"1")
    clock.advance(ms=WEEK_MS + 60_000)
    with broker.transaction("t") as tx:
        broker.clean()
        tx.send("out", b"2", partition=0)
    assert values(broker) == [b"1", b"2"]


def test_a_wall_clock_that_jumps_takes_nobody_s_id_away(broker, clock):
    write(broker, "t", b"1")
    clock.set_back(ms=-2 * WEEK_MS)
    broker.clean()
    assert known(broker).keys() == {"t"}


def test_an_older_holder_is_fenced_by_one_whose_claim_was_forgotten_since(broker, clock, path):
    coordinator = TransactionCoordinator(broker._directory)
    older = coordinator.claim("t", timeout_ms=1000)
    coordinator.claim("t", timeout_ms=1000)
    clock.advance(ms=2 * WEEK_MS)
    broker.clean()
    assert known(broker) == {}
    with pytest.raises(FencedError):
        coordinator.holdings.add_partitions(older, [("out", 0)])
    with pytest.raises(FencedError):
        coordinator.commit(older)
    assert not coordinator.is_current(older)


# What is not decided ------------------------------------------------------------------------------------


def test_an_id_whose_transaction_is_open_in_a_log_is_never_forgotten(broker, clock):
    slow = broker.transaction("t", timeout=5)
    slow.send("out", b"slow", partition=0).result(5)
    clock.advance(ms=5 * WEEK_MS)
    broker.clean()
    assert known(broker).keys() == {"t"}
    look_around(broker)  # it is aborted, now
    expire_transactional_ids(broker._directory)
    assert known(broker)["t"].state == "abort"
    with pytest.raises(FencedError):
        slow.commit()
    assert values(broker) == []


def test_a_batch_that_comes_weeks_late_of_a_transaction_that_was_given_up_is_never_seen(broker, clock):
    coordinator = TransactionCoordinator(broker._directory)
    claim = coordinator.claim("t", timeout_ms=1000)
    coordinator.holdings.add_partitions(claim, [("out", 0)])
    clock.advance(ms=WEEK_MS + 1000)
    broker.clean()
    assert known(broker) == {}
    broker._directory.log("out", 0).append(transactional_batch(claim, b"late"))
    with pytest.raises(FencedError):
        coordinator.commit(claim)
    write(broker, "t", b"next")
    look_around(broker)
    assert values(broker) == [b"next"]


def test_a_decided_transaction_whose_markers_are_missing_keeps_its_id_until_they_are_written(broker, clock):
    coordinator = TransactionCoordinator(broker._directory)
    tx = broker.transaction("t")
    tx.send("out", b"v", partition=0).result(5)
    holding = coordinator.holdings.of("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator, "_write_markers", lambda _: None)
        coordinator.commit(Claim("t", holding.producer_id, holding.epoch))
    clock.advance(ms=2 * WEEK_MS)
    broker.clean()
    assert known(broker)["t"].state == "commit"
    coordinator.abort_orphans()
    expire_transactional_ids(broker._directory)
    assert known(broker) == {}
    assert values(broker) == [b"v"]
    with pytest.raises(FencedError):
        tx.commit()


def test_a_partition_that_cannot_be_synced_keeps_the_ids_that_wrote_there(path, clock):
    closing = pytest.raises(StorageFailedError, match="out-0")
    with closing, logbroker.open(path, clock=clock) as broker:
        broker.create_topic("out", partitions=2, config=KEPT_FOREVER)
        write(broker, "there", partition=0)
        write(broker, "elsewhere", partition=1)
        broker._directory.log("out", 0).syncing.refused(OSError(errno.EIO, "refused"))
        clock.advance(ms=2 * WEEK_MS)
        broker.clean()
        left = known(broker).keys()
    assert left == {"there"}


# Accidents ----------------------------------------------------------------------------------------------


def test_a_full_disk_forgets_nothing_by_half(path, clock):
    files = FaultyFiles(OsFiles())
    with logbroker.open(path, files=files, clock=clock) as broker:
        broker.create_topic("out", config=KEPT_FOREVER)
        write(broker, "t", b"1")
        clock.advance(ms=2 * WEEK_MS)
        files.fail("pwrite", error=errno.ENOSPC, path=".log")
        with pytest.raises(WriteFailedError):
            expire_transactional_ids(broker._directory)
        files.heal()
        assert known(broker).keys() == {"t"}
        write(broker, "t", b"2")
        assert values(broker) == [b"1", b"2"]


def ids_of_a_month_ago(path: Path, clock: ManualClock) -> None:
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("out", partitions=2, config=KEPT_FOREVER)
        for number in range(3):
            write(broker, f"once-{number}", b"%d" % number, partition=number % 2)
    clock.advance(ms=4 * WEEK_MS)


@pytest.mark.parametrize("without_view", [False, True])
def test_whenever_the_process_dies_each_id_is_there_or_forgotten_and_no_record_is_lost(
    tmp_path: Path, clock: ManualClock, without_view: bool
) -> None:
    ids_of_a_month_ago(tmp_path / "prepared", clock)
    for operation in itertools.count(1):
        path = tmp_path / f"death-{operation}"
        shutil.copytree(tmp_path / "prepared", path)
        files = FaultyFiles(OsFiles())
        dying = logbroker.open(path, files=files, clock=clock)
        files.kill(at=operation)
        has_died = False
        try:
            expire_transactional_ids(dying._directory)
        except ProcessKilled:
            has_died = True
        crash(dying._directory)
        if without_view:
            shutil.rmtree(path / "view")
        with logbroker.open(path, clock=clock) as broker:
            assert len(known(broker)) in (0, 3)
            assert has_died or known(broker) == {}
            write(broker, "once-0", b"again")
            assert values(broker) == [b"0", b"1", b"2", b"again"]
            assert expire_transactional_ids(broker._directory) in (0, 2)
            assert known(broker).keys() == {"once-0"}
        if not has_died:
            assert operation > 3
            return


def test_what_others_do_meanwhile_counts(broker, clock, monkeypatch):
    """Between the look and the lock: an id is decided about, its holder is seen, or its last batch comes after all."""
    for partition, name in enumerate(("decided", "seen")):
        write(broker, name, partition=partition)
    coordinator = TransactionCoordinator(broker._directory)
    holding = coordinator.holdings.of("seen")
    late = coordinator.claim("late", timeout_ms=1000)
    coordinator.holdings.add_partitions(late, [("out", 0)])
    write(broker, "nothing happens to it")
    clock.advance(ms=2 * WEEK_MS)
    log, journal = broker._directory.log("out", 0), broker._directory.journal

    def meanwhile() -> None:
        monkeypatch.undo()
        journal.record([msgspec.structs.replace(known(broker)["decided"], updated_ms=clock.now_ms())])
        coordinator.holdings.seen(Claim("seen", holding.producer_id, holding.epoch))
        log.append(transactional_batch(late, b"late"))

    monkeypatch.setattr(log, "sync", meanwhile)
    assert expire_transactional_ids(broker._directory) == 1
    assert known(broker).keys() == {"decided", "seen", "late"}


def test_the_inspector_finds_nothing_wrong(broker, clock, path, capsys):
    write(broker, "once")
    clock.advance(ms=WEEK_MS + 60_000)
    broker.clean()
    broker.close()
    assert cli.run(["verify", str(path)]) == 0
    capsys.readouterr()
    assert cli.run(["transactions", str(path), "--topic", "out", "--json"]) == 0
    (row,) = msgspec.json.decode(capsys.readouterr().out)
    assert (row["transactional_id"], row["state"], row["records"]) == (None, "committed", 1)
