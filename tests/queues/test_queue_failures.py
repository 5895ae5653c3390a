"""What disks and machines do to queues: full, failing and damaged ones, views that are gone, power cuts."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from logbroker.errors import CorruptionError, StorageFailedError, WriteFailedError
from logbroker_storage.batch_header import CRC_START
from logbroker_storage.crc32c import crc32c
from logbroker_storage.events import QueueBlockEvent, QueueEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.journal import COMPACTED_BYTES
from logbroker_storage.record_batch import HEADER_BYTES, NewRecord, encode_batch
from logbroker_storage.testing import FaultyFiles, RecordingFiles, UnsyncedFiles
from logbroker_storage.testing.workbench import crash

from .desk import QueueDesk, counts, values

JOURNAL_LOG = "__journal-0/00000000000000000000.log"


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(OsFiles())


@pytest.fixture
def faulty_desk(tmp_path: Path, files: FaultyFiles) -> Iterator[QueueDesk]:
    """A desk on *files*."""
    desk = QueueDesk(tmp_path / "data", files=files)
    yield desk
    files.heal()
    desk.close()


def fill_disk(files: FaultyFiles, path: str) -> None:
    for write in ("pwrite", "pwritev"):
        files.fail(write, path=path, error=errno.ENOSPC, forever=True)


# A full disk ------------------------------------------------------------------------------------------------


def test_on_a_full_disk_nothing_is_accepted_and_everything_stays_in_hand(
    faulty_desk: QueueDesk, files: FaultyFiles
) -> None:
    desk = faulty_desk.queue_of(partitions=2, dead_letter="jobs.dead")
    for number in range(6):
        desk.put(str(number), partition=number % 2)
    hands = desk.hands()
    batch = hands.receive_many()
    fill_disk(files, JOURNAL_LOG)
    for settle in (batch.accept, batch[3].accept, batch[2].reject, batch.reject):
        with pytest.raises(WriteFailedError):
            settle()
    assert desk.broker.subscription("workers").in_flight == 6
    assert not any(message.is_settled for message in batch)
    files.heal()
    assert hands.receive_many() == []
    batch[0].reject("bad")
    batch.accept()
    assert desk.lag() == 0
    assert [reason for _, reason in desk.deaths()] == ["bad"]
    desk.close()
    assert desk.reopen(without_view=True).left() == []


def test_on_a_full_disk_messages_can_be_given_back_and_received_again(
    faulty_desk: QueueDesk, files: FaultyFiles
) -> None:
    desk = faulty_desk.queue_of(lease=10.0).put("a", "b")
    hands = desk.hands()
    fill_disk(files, JOURNAL_LOG)
    hands.receive(0).release()
    assert counts(hands.receive_many()) == [2, 1]
    desk.advance(10)
    batch = hands.receive_many()
    assert counts(batch) == [3, 2]
    files.heal()
    batch[1].release()
    batch[0].release()
    desk.close()
    desk.reopen(without_view=True)
    assert counts(desk.hands().receive_many()) == [4, 3]


def test_on_a_full_disk_a_transaction_accepts_nothing(faulty_desk: QueueDesk, files: FaultyFiles) -> None:
    desk = faulty_desk.queue_of().topic("out").put("a")
    message = desk.hands().receive(0)
    tx = desk.broker.transaction("t")
    tx.send("out", b"A").result()
    tx.accept([message])
    fill_disk(files, JOURNAL_LOG)
    with pytest.raises(WriteFailedError):
        tx.commit()
    files.heal()
    assert desk.partition().in_flight == 1
    message.accept()


def test_a_dead_letter_that_cannot_be_written_loses_nothing_and_is_written_later(
    faulty_desk: QueueDesk, files: FaultyFiles
) -> None:
    desk = faulty_desk.queue_of(dead_letter="jobs.dead").put("a", "b")
    hands = desk.hands()
    first, second = hands.receive_many()
    fill_disk(files, "jobs.dead-0/00000000000000000000.log")
    first.reject("bad")  # lasts; the dead letter has time
    second.accept()
    assert desk.partition().rejected == 1
    desk.advance(60)
    assert hands.receive_many() == []
    assert desk.partition().rejected == 1
    files.heal()
    desk.advance(60)
    hands.receive_many()
    assert desk.deaths() == [("a", "bad")]
    assert desk.lag() == 0


def test_a_message_that_was_rejected_is_buried_after_a_crash_too(
    faulty_desk: QueueDesk, files: FaultyFiles
) -> None:
    desk = faulty_desk.queue_of(dead_letter="jobs.dead", lease=1000.0).put("a", "b")
    fill_disk(files, "jobs.dead-0/00000000000000000000.log")
    desk.hands().receive(0).reject("bad")
    desk.crash()
    desk.reopen(without_view=True)
    assert desk.left() == ["b"]
    assert desk.deaths() == [("a", "bad")]


def test_what_was_released_for_later_comes_with_the_first_look_at_a_queue_that_was_read_back(
    tmp_path: Path,
) -> None:
    desk = QueueDesk(tmp_path / "data").queue_of().put("a")
    desk.hands().receive(0).release(delay=10)
    desk.crash()
    desk.advance(10)
    assert values(desk.reopen(without_view=True).hands().receive_many()) == ["a"]
    desk.close()


# A failing disk ---------------------------------------------------------------------------------------------


def test_after_a_failed_sync_it_is_unknown_what_was_accepted(
    faulty_desk: QueueDesk, files: FaultyFiles
) -> None:
    desk = faulty_desk.queue_of(lease=1000.0).put("a", "b", "c")
    hands = desk.hands()
    first, second = hands.receive_many(2)
    first.accept()
    files.fail("fdatasync", path=JOURNAL_LOG, error=errno.EIO)
    with pytest.raises(StorageFailedError, match="unknown"):
        second.accept()
    assert not second.is_settled
    desk.crash()
    assert desk.reopen().left() in (["b", "c"], ["c"])
    desk.close()
    assert desk.reopen(without_view=True).left() == []


@pytest.mark.parametrize("without_view", [False, True])
def test_after_a_failed_sync_a_transaction_has_accepted_and_written_or_neither(
    faulty_desk: QueueDesk, files: FaultyFiles, without_view: bool
) -> None:
    desk = faulty_desk.queue_of(lease=1000.0).topic("out").put("a")
    message = desk.hands().receive(0)
    tx = desk.broker.transaction("t")
    tx.send("out", b"A").result()
    tx.accept([message])
    files.fail("fdatasync", path=JOURNAL_LOG, error=errno.EIO)
    with pytest.raises(StorageFailedError):
        tx.commit()
    desk.crash()
    desk.reopen(without_view=without_view)
    left = desk.left()
    with desk.broker.consumer("out") as consumer:
        written = [record.value for record in consumer.poll()]
    assert (left, written) in (([], [b"A"]), (["a"], []))


# Damage -----------------------------------------------------------------------------------------------------


def damage(desk: QueueDesk, number: int) -> None:
    """Flip a bit of the batch with this number."""
    log = desk.directory.log("jobs", 0)
    reader = log.reader(0)
    sizes = [batch.header.size_bytes for batch in reader.read()]
    reader.close()
    with open(f"{log.directory}/{0:020}.log", "r+b") as file:
        file.seek(sum(sizes[: number + 1]) - 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def put_with_a_flipped_bit(desk: QueueDesk) -> None:
    desk.put("a").put("b", "c").put("d")
    damage(desk, 1)


def put_with_records_that_do_not_parse(desk: QueueDesk) -> None:
    """In a log from elsewhere, say: their checksum is right."""
    desk.put("a")
    log = desk.directory.log("jobs", 0)
    malformed = encode_batch([NewRecord(b"b", timestamp_ms=0), NewRecord(b"c", timestamp_ms=0)])
    malformed[HEADER_BYTES] ^= 1  # the first record's length is odd as it is stored: negative
    malformed[CRC_START - 4 : CRC_START] = crc32c(bytes(malformed[CRC_START:])).to_bytes(4, "big")
    log.append(malformed)
    log.sync()
    desk.put("d")


@pytest.mark.parametrize("put", [put_with_a_flipped_bit, put_with_records_that_do_not_parse])
def test_damage_is_told_and_the_other_messages_go_on(
    desk: QueueDesk, put: Callable[[QueueDesk], None]
) -> None:
    put(desk.queue_of(dead_letter="jobs.dead", max_deliveries=2))
    hands = desk.hands()
    with pytest.raises(CorruptionError) as caught:
        hands.receive_many()
    assert (caught.value.start_offset, caught.value.end_offset) == (1, 3)
    batch = hands.receive_many()
    assert (values(batch), counts(batch)) == (["a", "d"], [1, 1])
    batch.accept()
    assert hands.receive_many() == []
    desk.advance(30)
    with pytest.raises(CorruptionError):
        hands.receive_many()
    hands.receive_many()
    [(value, death)] = desk.dead_letters()
    assert value == ""
    assert (death.offset, death.error) == (1, "offsets 1 to 2 cannot be read")
    assert death.reason.startswith("damaged: ")
    assert desk.lag() == 0


def test_damage_in_one_partition_keeps_no_message_of_another(desk: QueueDesk) -> None:
    desk.queue_of(partitions=2).put("a", partition=0).put("x", "y", partition=1)
    damage(desk, 0)
    hands = desk.hands()
    seen = []
    for _ in range(4):
        try:
            batch = hands.receive_many()
        except CorruptionError:
            continue
        assert counts(batch) == [1] * len(batch)
        seen += values(batch)
        batch.accept()
    assert seen == ["x", "y"]


# Without the view -------------------------------------------------------------------------------------------


def test_what_is_done_stays_done_without_the_view(desk: QueueDesk) -> None:
    count = 3000
    desk.queue_of().put(*map(str, range(count)))
    hands = desk.hands()
    batch = hands.receive_many(count)
    hands.accept(message for message in batch if message.offset % 3)
    desk.crash()
    desk.reopen(without_view=True)
    assert desk.left() == [str(number) for number in range(0, count, 3)]


def test_deliveries_rejections_and_delays_last_without_the_view(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead", max_deliveries=3, lease=1000.0).put(
        "twice", "later", "held", "sent later"
    )
    desk.put("sent later", delay=timedelta(seconds=100))
    hands = desk.hands()
    for _ in range(2):
        hands.receive(0).release()
    for message in hands.receive_many():
        if message.value == b"later":
            message.release(delay=50)
    hands.close()
    desk.close()
    desk.reopen(without_view=True)
    assert desk.partition().delayed == 1
    assert desk.deaths() == [("twice", "delivery limit reached")]
    batch = desk.hands().receive_many()
    assert dict(zip(values(batch), counts(batch), strict=True)) == {"held": 2, "sent later": 2}
    desk.advance(50.1)
    assert (values(again := desk.hands().receive_many()), counts(again)) == (["later"], [2])
    desk.advance(50)
    assert "sent later" in values(desk.hands().receive_many())


def test_order_keys_hold_without_the_view(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True).put("a1", "a2", "a3", key=b"a").put("b1", key=b"b")
    hands = desk.hands()
    first, second = hands.receive_many(2)
    first.accept()
    second.release()
    desk.close()
    desk.reopen(without_view=True)
    one, other = desk.hands(), desk.hands()
    assert one.receive(0).value == b"a2"
    assert values(other.receive_many()) == ["b1"]


def test_the_journal_stays_small_however_much_is_accepted(tmp_path: Path) -> None:
    desk = QueueDesk(tmp_path / "data", files=UnsyncedFiles())
    desk.queue_of(max_deliveries=100, lease=1000.0).put(*("x" for _ in range(4000)))
    hands = desk.hands()
    for start in range(4):
        for message in hands.receive_many(4000):
            (message.release if message.offset % (2 * start + 2) == 1 else message.accept)()
    view, journal = desk.directory.view, desk.directory.journal
    assert view.meta_int(COMPACTED_BYTES) > 0
    assert journal.log.state().end.active_bytes < 6 << 20
    assert len(view.events.items(QueueEvent.ALL)) == 1
    assert len(view.events.items(QueueBlockEvent.ALL)) <= 4
    before = hands.receive_many(4000)
    assert {message.offset for message in before} == set(range(1, 4000, 24))
    hands.close()
    desk.close()
    desk.reopen(without_view=True)
    again = desk.hands().receive_many(4000)
    assert [(m.offset, m.delivery_count) for m in again] == [(m.offset, m.delivery_count + 1) for m in before]
    again.accept()
    assert len(desk.directory.view.events.items(QueueBlockEvent.ALL)) <= 1
    desk.close()


# Power cuts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repetition", range(4))
@pytest.mark.parametrize("survivors", ["what was synced", "any part of the rest"])
def test_a_power_cut_takes_back_no_acknowledged_acceptance_and_loses_no_message(
    tmp_path: Path, rng: random.Random, survivors: str, repetition: int
) -> None:
    root = tmp_path / "recorded"
    root.mkdir()
    files = RecordingFiles(OsFiles(), str(root))
    desk = QueueDesk(root / "data", files=files)
    desk.queue_of(partitions=2, dead_letter="jobs.dead", max_deliveries=1000)
    hands = desk.hands()
    sent, accepted, rejected = 0, set(), set()
    held: list[object] = []
    for step in range(40):
        match rng.randrange(6):
            case 0 | 1:
                desk.put(*(f"{sent + n}" for n in range(20)))
                sent += 20
            case 2:
                held += hands.receive_many(rng.randint(1, 30))
            case 3 | 4 if held:
                chosen = rng.sample(held, rng.randint(1, len(held)))
                hands.accept(chosen)
                accepted.update(message.value for message in chosen)
                held = [message for message in held if not message.is_settled]
            case 5 if held:
                chosen = rng.choice(held)
                if rng.random() < 0.5:
                    chosen.release(delay=rng.choice([0, 0.5]))
                else:
                    chosen.reject("bad")
                    rejected.add(chosen.value)
                held.remove(chosen)
        if rng.random() < 0.15:
            target = tmp_path / f"cut-{step}"
            target.mkdir()
            files.export_after_power_cut(str(target), rng if survivors.startswith("any") else None)
            check_after_power_cut(target / "data", sent, accepted, rejected)
    desk.close()


def check_after_power_cut(path: Path, sent: int, accepted: set[bytes], rejected: set[bytes]) -> None:
    desk = QueueDesk(path)
    desk.advance(1)
    left = {value.encode() for value in desk.left()}
    dead = [value.encode() for value, _ in desk.dead_letters()]
    assert not left & accepted
    assert len(dead) == len(set(dead))
    assert set(dead) >= rejected
    assert left | accepted | set(dead) == {b"%d" % number for number in range(sent)}
    assert desk.lag() == 0
    crash(desk.directory)


@pytest.mark.parametrize("how", ["accept", "reject", "release", "filtered"])
def test_after_a_power_cut_new_messages_are_not_taken_for_those_that_are_gone(
    tmp_path: Path, how: str
) -> None:
    """A topic that is not synced may lose messages; what was settled of them says nothing of their successors."""
    root = tmp_path / "recorded"
    root.mkdir()
    files = RecordingFiles(OsFiles(), str(root))
    desk = QueueDesk(root / "data", files=files)
    desk.topic(durability="os").topic("synced").subscription(
        topic=["jobs", "synced"], dead_letter="jobs.dead"
    )
    desk.put("a", "b", "c").put("d", topic="synced")
    hands = desk.hands(filter=lambda record: how != "filtered" or record.topic == "synced")
    batch = hands.receive_many()
    for message in batch:
        if how == "filtered" or message.topic == "synced":
            continue
        getattr(message, how)()
    next(
        message for message in batch if message.topic == "synced"
    ).accept()  # whatever was journaled is synced
    target = tmp_path / "cut"
    target.mkdir()
    files.export_after_power_cut(str(target))
    desk.close()

    after = QueueDesk(target / "data")
    kept = after.broker.topic("jobs").partitions[0].log_end_offset
    after.put("u", "v", "w", "x")
    again = [message for message in after.hands().receive_many() if message.offset >= kept]
    assert (values(again), counts(again)) == (list("uvwx"), [1] * 4)
    after.close()
