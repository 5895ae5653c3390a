"""Deduplication: of the records with one message id within the topic's window, one is appended."""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import logbroker
from logbroker import Broker, Message
from logbroker.errors import (
    InvalidRequestError,
    MessageIdInUseError,
    StorageFailedError,
    WriteFailedError,
)
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles, GatedFiles, ManualClock

WINDOW_MS = 1000
FOREVER = 1000.0  # a linger that never runs out within a test


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def files():
    return FaultyFiles(OsFiles())


@pytest.fixture
def broker(tmp_path, clock, files):
    with logbroker.open(tmp_path / "data", clock=clock, files=files) as broker:
        broker.create_topic("t", partitions=3, config={"deduplication.window.ms": WINDOW_MS})
        yield broker


@pytest.fixture
def producer(broker):
    with broker.producer() as producer:
        yield producer


def values(broker: Broker, topic: str = "t") -> list[bytes]:
    """What a reader of committed records finds, over all partitions, sorted."""
    found: list[bytes] = []
    with broker.consumer(topic, start="earliest") as consumer:
        while records := consumer.poll(1000, 0):
            found += [record.value for record in records]
    return sorted(found)


def entries(broker: Broker) -> int:
    """How many ids the view remembers of all topics."""
    view = broker._directory.view
    return len(view.items(b"", view.message_ids._ids))


# One topic ------------------------------------------------------------------------------------------------


def test_a_second_record_with_the_id_is_not_appended_and_its_receipt_is_the_firsts(broker, producer):
    first = producer.send("t", b"1", message_id="a").result()
    second = producer.send("t", b"2", message_id="a").result()
    assert (first.duplicate, second.duplicate) == (False, True)
    assert (second.partition, second.offset, second.timestamp_ms) == (
        first.partition,
        first.offset,
        first.timestamp_ms,
    )
    assert values(broker) == [b"1"]


def test_records_without_an_id_and_with_other_ids_are_all_appended(broker, producer):
    for message_id in ("a", "b", None, None):
        assert not producer.send("t", b"v", message_id=message_id).result().duplicate
    assert len(values(broker)) == 4


def test_the_window_ends_after_its_time_and_the_next_record_begins_another(broker, producer, clock):
    producer.send("t", b"1", message_id="a").result()
    clock.advance(ms=WINDOW_MS - 1)
    assert producer.send("t", b"2", message_id="a").result().duplicate
    clock.advance(ms=1)
    assert not producer.send("t", b"3", message_id="a").result().duplicate
    clock.advance(ms=WINDOW_MS - 1)
    assert producer.send("t", b"4", message_id="a").result().duplicate
    assert values(broker) == [b"1", b"3"]


def test_a_timestamp_of_the_users_own_does_not_move_the_window(broker, producer, clock):
    producer.send("t", b"1", message_id="a", timestamp=5).result()
    clock.advance(ms=WINDOW_MS - 1)
    assert producer.send("t", b"2", message_id="a", timestamp=clock.now_ms()).result().duplicate
    clock.advance(ms=1)
    assert not producer.send("t", b"3", message_id="a", timestamp=5).result().duplicate


def test_a_clock_that_was_set_back_prolongs_the_window(broker, producer, clock):
    producer.send("t", b"1", message_id="a").result()
    clock.set_back(ms=10 * WINDOW_MS)
    assert producer.send("t", b"2", message_id="a").result().duplicate


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"key": b"k1"}, {"key": b"k2"}),
        ({"partition": 0}, {"partition": 1}),
        ({"partition": 2}, {}),
        ({}, {"key": b"k1"}),
    ],
)
def test_the_id_is_the_topics_whatever_partition_a_record_is_sent_to(broker, producer, first, second):
    for message_id in "abcdefgh":
        one = producer.send("t", b"1", message_id=message_id, **first).result()
        other = producer.send("t", b"2", message_id=message_id, **second).result()
        assert (other.partition, other.offset, other.duplicate) == (one.partition, one.offset, True)
    assert values(broker) == [b"1"] * 8


def test_without_a_key_the_id_decides_on_the_partition(broker, producer):
    places = {producer.send("t", b"v", message_id=f"id-{n}").result().partition for n in range(30)}
    assert places == {0, 1, 2}
    with broker.producer() as another:
        for n in range(30):
            assert another.send("t", b"v", message_id=f"id-{n}").result().duplicate


def test_another_topic_has_ids_of_its_own(broker, producer):
    broker.create_topic("u")
    assert not producer.send("t", b"v", message_id="a").result().duplicate
    assert not producer.send("u", b"v", message_id="a").result().duplicate


def test_a_topic_made_anew_begins_without_ids(broker, producer):
    producer.send("t", b"1", message_id="a").result()
    broker.delete_topic("t")
    assert entries(broker) == 0
    broker.create_topic("t", config={"deduplication.window.ms": WINDOW_MS})
    assert not producer.send("t", b"2", message_id="a").result().duplicate


def test_a_window_of_zero_takes_every_record(broker):
    broker.create_topic("all", config={"deduplication.window.ms": 0})
    with broker.producer() as producer:
        producer.send_many("all", [Message(b"1", message_id="a"), Message(b"2", message_id="a")])
    assert values(broker, "all") == [b"1", b"2"]


def test_more_partitions_do_not_double_an_id(broker, producer):
    for n in range(20):
        producer.send("t", b"v", message_id=f"id-{n}").result()
    broker.alter_topic("t", partitions=7)
    for n in range(20):
        assert producer.send("t", b"v", message_id=f"id-{n}").result().duplicate


def test_a_named_producer_takes_no_ids(broker):
    with broker.producer(name="loader") as producer, pytest.raises(InvalidRequestError, match="sequence"):
        producer.send("t", b"v", message_id="a")


# Batches --------------------------------------------------------------------------------------------------


def test_an_id_twice_in_one_batch_is_there_once(broker):
    with broker.producer(linger=FOREVER) as producer:
        receipts = [producer.send("t", b"%d" % n, partition=0, message_id=i) for n, i in enumerate("abacb")]
        plain = producer.send("t", b"p", partition=0)
        producer.flush()
    found = [receipt.result() for receipt in receipts]
    assert [(one.offset, one.duplicate) for one in found] == [
        (0, False), (1, False), (0, True), (2, False), (1, True),
    ]  # fmt: skip
    assert plain.result().offset == 3
    assert values(broker) == [b"0", b"1", b"3", b"p"]


def test_records_of_a_batch_keep_their_offsets_when_duplicates_between_them_are_left_out(broker, producer):
    producer.send("t", b"old", partition=0, message_id="b").result()
    with broker.producer(linger=FOREVER) as batching:
        receipts = [batching.send("t", i.encode(), partition=0, message_id=i) for i in "abc"]
        receipts.append(batching.send("t", b"p", partition=0))
        batching.flush()
        again = batching.send("t", b"q", partition=0).result()  # sequences went on without a gap
    assert [one.result().offset for one in receipts] == [1, 0, 2, 3]
    assert [one.result().duplicate for one in receipts] == [False, True, False, False]
    assert again.offset == 4
    assert values(broker) == [b"a", b"c", b"old", b"p", b"q"]


def test_a_batch_of_nothing_but_duplicates_appends_nothing(broker, producer):
    for i in "abc":
        producer.send("t", b"1", partition=1, message_id=i).result()
    with broker.producer() as other:
        assert other.send_many("t", [Message(b"2", partition=1, message_id=i) for i in "abc"]) == 3
    assert values(broker) == [b"1"] * 3


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("linger", [0, 0.001])
def test_ids_work_with_compression_and_without_linger(broker, compression, linger):
    with broker.producer(compression=compression, linger=linger) as producer:
        producer.send_many("t", [Message(b"%d" % n, message_id=str(n % 50)) for n in range(200)])
    assert len(values(broker)) == 50


@pytest.mark.parametrize("config", [{"message.timestamp.type": "LogAppendTime"}, {"durability": "os"}])
def test_ids_work_whatever_the_topics_clock_and_durability(broker, config):
    broker.create_topic("u", config=config)
    with broker.producer() as producer:
        first = producer.send("u", b"1", message_id="a").result()
        assert producer.send("u", b"2", message_id="a").result() == logbroker.RecordMetadata(
            "u", 0, first.offset, first.timestamp_ms, duplicate=True
        )


@pytest.mark.parametrize("acks", ["written", "none"])
def test_ids_hold_whatever_the_acknowledgement(broker, acks):
    with broker.producer(acks=acks) as producer:
        for n in range(3):
            receipt = producer.send("t", b"%d" % n, message_id="a")
            producer.flush()
    assert receipt.result().duplicate is (acks == "written")
    assert values(broker) == [b"0"]


def test_a_batch_takes_a_few_hundred_ids_so_that_the_view_is_free_for_others(broker):
    with broker.producer(linger=FOREVER, batch_bytes=1 << 20) as producer:
        receipts = [producer.send("t", b"v", partition=0, message_id=str(n)) for n in range(1000)]
        assert len({id(receipt._batch) for receipt in receipts}) == 5
        producer.flush()
    assert [receipt.result().offset for receipt in receipts] == list(range(1000))


# What becomes of the first --------------------------------------------------------------------------------


def test_an_expired_record_keeps_its_id_for_the_window(broker, producer, clock):
    producer.send("t", b"1", message_id="a", ttl=timedelta(milliseconds=10)).result()
    clock.advance(ms=20)
    assert values(broker) == []
    assert producer.send("t", b"2", message_id="a").result().duplicate


def test_a_deleted_record_keeps_its_id_for_the_window(broker, producer):
    first = producer.send("t", b"1", message_id="a").result()
    broker.delete_records("t", {first.partition: first.offset + 1})
    assert producer.send("t", b"2", message_id="a").result().offset == first.offset
    assert values(broker) == []


def test_a_write_that_failed_takes_no_id(broker, files):
    with broker.producer(linger=0) as producer:
        producer.send("t", b"0", partition=0, message_id="x").result()
        files.fail("pwrite", error=errno.ENOSPC, path=".log")
        with pytest.raises(WriteFailedError):
            producer.send("t", b"1", partition=0, message_id="a").result()
        assert not producer.send("t", b"2", partition=1, message_id="a").result().duplicate
    assert values(broker) == [b"0", b"2"]


# Transactions ---------------------------------------------------------------------------------------------


def test_an_id_of_an_aborted_transaction_is_free(broker, producer):
    for partition in (None, 0, 1, None):
        tx = broker.transaction("tx")
        tx.send("t", b"aborted", message_id="a", partition=partition).result()
        tx.abort()
    assert not producer.send("t", b"1", message_id="a").result().duplicate
    assert producer.send("t", b"2", message_id="a").result().duplicate
    assert values(broker) == [b"1"]


def test_an_id_of_an_aborted_transaction_stays_free_when_its_segment_is_gone(tmp_path, clock):
    """What says that it was aborted goes with the segment; the window is not over."""
    with logbroker.open(tmp_path / "data", clock=clock) as broker:
        config = {"deduplication.window.ms": 60_000, "retention.ms": 1000, "cleanup.policy": "compact,delete"}
        broker.create_topic("t", config=config)
        with broker.producer() as producer:
            tx = broker.transaction("tx")
            tx.send("t", b"aborted", b"key", message_id="aborted").result()
            tx.abort()
            with broker.transaction("tx") as tx:
                tx.send("t", b"committed", b"key", message_id="committed")
            clock.advance(ms=2000)
            assert broker.clean()
            assert broker.topic("t").partitions[0].log_start_offset == 4
            assert producer.send("t", b"v", b"key", message_id="committed").result().duplicate
            assert not producer.send("t", b"v", b"key", message_id="aborted").result().duplicate


def test_an_id_of_a_committed_transaction_is_taken(broker, producer):
    with broker.transaction("tx") as tx:
        first = tx.send("t", b"1", message_id="a").result()
    assert producer.send("t", b"2", message_id="a").result().offset == first.offset
    with broker.transaction("tx") as tx:
        assert tx.send("t", b"3", message_id="a").result().duplicate
        tx.send("t", b"4", message_id="b")
    assert values(broker) == [b"1", b"4"]


def test_within_a_transaction_an_id_is_there_once(broker):
    with broker.transaction("tx") as tx:
        first = tx.send("t", b"1", message_id="a", partition=0).result()
        assert tx.send("t", b"2", message_id="a", partition=1).result().offset == first.offset
        assert tx.send("t", b"3", message_id="b", partition=1).result().offset == 0
    assert values(broker) == [b"1", b"3"]


def test_while_a_transaction_is_open_its_ids_are_refused_to_others(broker, producer):
    tx = broker.transaction("tx")
    tx.send("t", b"1", message_id="a").result()
    beside = producer.send("t", b"beside", message_id="b")
    with pytest.raises(MessageIdInUseError, match="'a'") as refused:
        producer.send("t", b"2", message_id="a").result()
    assert (refused.value.topic, refused.value.message_id) == ("t", "a")
    assert not beside.result().duplicate
    tx.abort()
    assert not producer.send("t", b"3", message_id="a").result().duplicate


def test_a_transaction_that_was_refused_an_id_can_only_be_aborted(broker):
    tx = broker.transaction("tx")
    tx.send("t", b"1", message_id="a").result()
    other = broker.transaction("other")
    other.send("t", b"2", message_id="b", partition=0)
    other.send("t", b"3", message_id="a", partition=0)
    with pytest.raises(MessageIdInUseError):
        other.commit()
    tx.commit()
    assert values(broker) == [b"1"]


def test_a_refusal_that_nobody_was_told_is_raised_on_leaving(broker):
    tx = broker.transaction("tx")
    tx.send("t", b"1", message_id="a", partition=0).result()
    producer = broker.producer(linger=FOREVER)
    kept = producer.send("t", b"2", message_id="b", partition=0)
    producer.send("t", b"3", message_id="a", partition=0)
    with pytest.raises(MessageIdInUseError):
        producer.close()
    assert kept.result().offset == 1
    tx.abort()


# Durability -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", [0, 1])
def test_a_duplicate_is_acknowledged_when_the_first_record_is_on_the_disk(tmp_path, partition):
    files = GatedFiles()
    with logbroker.open(tmp_path / "data", files=files) as broker:
        broker.create_topic("t", partitions=2)
        with broker.producer(acks="written") as careless, broker.producer() as careful:
            careful.send("t", b"0", partition=partition, message_id="x").result()
            files.gate.clear()
            careless.send("t", b"1", partition=0, message_id="a").result()
            duplicate = careful.send("t", b"2", partition=partition, message_id="a")
            asking = threading.Thread(target=duplicate.result)
            asking.start()
            asking.join(0.1)
            assert asking.is_alive()
            assert not duplicate.done
            log = broker._directory.log("t", 0)
            assert log.offsets().synced_offset == (1 if partition == 0 else 0)
            files.gate.set()
            asking.join(30)
            assert duplicate.result().duplicate
            assert log.offsets().synced_offset == (2 if partition == 0 else 1)


# The view -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"timestamp": 5}])
@pytest.mark.parametrize("config", [{}, {"segment.bytes": 200}, {"message.timestamp.type": "LogAppendTime"}])
def test_a_view_that_was_deleted_knows_the_ids_of_the_window_again(tmp_path, config, options):
    clock = ManualClock()
    with logbroker.open(tmp_path / "data", clock=clock) as broker:
        broker.create_topic("t", partitions=2, config={"deduplication.window.ms": WINDOW_MS, **config})
        with broker.producer() as producer:
            producer.send("t", b"old", message_id="old", **options).result()
            clock.advance(ms=WINDOW_MS)
            sent = {n: producer.send("t", b"v", message_id=f"id-{n}", **options).result() for n in range(20)}
            with broker.transaction("tx") as tx:
                tx.send("t", b"v", message_id="committed", **options)
            aborted = broker.transaction("tx")
            aborted.send("t", b"v", message_id="aborted", **options)
            aborted.abort()
    shutil.rmtree(tmp_path / "data" / "view")
    with logbroker.open(tmp_path / "data", clock=clock) as broker, broker.producer() as producer:
        for n, first in sent.items():
            found = producer.send("t", b"again", message_id=f"id-{n}").result()
            assert (found.partition, found.offset, found.timestamp_ms, found.duplicate) == (
                first.partition, first.offset, first.timestamp_ms, True,
            )  # fmt: skip
        assert producer.send("t", b"again", message_id="committed").result().duplicate
        assert not producer.send("t", b"again", message_id="aborted").result().duplicate
        assert not producer.send("t", b"again", message_id="old").result().duplicate


def test_ids_that_grew_too_old_leave_the_view(broker, producer, clock):
    for _ in range(20):
        producer.send_many("t", [Message(b"v", message_id=f"{clock.now_ms()}-{n}") for n in range(100)])
        producer.flush()
        clock.advance(ms=WINDOW_MS // 2)
    assert entries(broker) <= 400
    assert broker._directory.view.items(b"", broker._directory.view.message_ids._ages)


def test_an_id_taken_anew_is_not_forgotten_with_its_first_life(broker, producer, clock):
    producer.send("t", b"1", message_id="a").result()
    clock.advance(ms=WINDOW_MS)
    producer.send("t", b"2", message_id="a").result()
    producer.send_many("t", [Message(b"v", message_id=str(n)) for n in range(100)])
    producer.flush()
    assert producer.send("t", b"3", message_id="a").result().duplicate


def test_a_topic_that_never_had_ids_is_not_searched_for_them(broker):
    with broker.producer() as producer:
        producer.send("t", b"v")
    assert not [key for key, _ in broker._directory.view.events.items(b"") if b"message_id" in key]


# Threads --------------------------------------------------------------------------------------------------


def test_threads_that_send_the_same_ids_append_each_once(broker):
    counted = [0] * 6

    def send(number: int) -> None:
        with broker.producer(linger=0.001) as producer:
            receipts = [
                producer.send("t", b"%d" % n, message_id=str(n), partition=None if number % 2 else n % 3)
                for n in range(300)
            ]
            counted[number] = sum(not receipt.result(timeout=30).duplicate for receipt in receipts)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted) == 300
    assert values(broker) == sorted(b"%d" % n for n in range(300))


# acks="none" of one record --------------------------------------------------------------------------------


def test_a_record_sent_and_forgotten_is_done_at_once_and_still_appended(broker):
    with broker.producer(linger=FOREVER) as producer:
        receipt = producer.send("t", b"v", acks="none")
        assert receipt.done
        assert receipt.exception is None
        assert receipt.result().offset == -1
        assert producer.send("t", b"w", acks="all").result().offset >= 0
    assert values(broker) == [b"v", b"w"]
    assert producer.lost_records == 0


def test_a_forgotten_record_that_fails_is_counted_and_not_raised(broker, files, caplog):
    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"v", partition=0, acks="none")
        producer.send("t", b"w", partition=0, acks="none")
        files.fail("pwrite", error=errno.ENOSPC, path=".log")
        producer.flush()
        assert producer.lost_records == 2
        asked = producer.send("t", b"x", partition=0)
        producer.send("t", b"y", partition=0, acks="none")
        files.fail("pwrite", error=errno.ENOSPC, path=".log")
        with pytest.raises(WriteFailedError):
            producer.flush()
        assert isinstance(asked.exception, WriteFailedError)
    assert producer.lost_records == 3
    assert "2 records to t-0 were lost" in caplog.text
    assert values(broker) == []


def test_a_failed_sync_of_the_first_record_fails_its_duplicate_too(tmp_path, files):
    broker = logbroker.open(tmp_path / "data", files=files)
    broker.create_topic("t", partitions=2)
    careless, careful = broker.producer(acks="written", linger=FOREVER), broker.producer(linger=0)
    on_the_disk = careful.send("t", b"0", partition=0, message_id="x").result()
    careless.send("t", b"1", partition=0, message_id="a")
    careless._delivery.append_open()
    files.fail("fdatasync", error=errno.EIO, path=".log")
    for _ in range(2):
        with pytest.raises(StorageFailedError):
            careful.send("t", b"2", partition=1, message_id="a").result()
    careful.close()
    for handle in (careless, broker):
        with pytest.raises(StorageFailedError):
            handle.close()
    with logbroker.open(tmp_path / "data", files=files) as broker, broker.producer() as producer:
        assert producer.send("t", b"3", message_id="x").result().offset == on_the_disk.offset
        assert producer.send("t", b"4", message_id="a").result().duplicate  # it was on the disk after all


@pytest.mark.parametrize("acks", ["written", "some", 1])
def test_a_single_record_is_sent_as_the_producer_asks_or_not_at_all(producer, acks):
    with pytest.raises(InvalidRequestError, match="acks="):
        producer.send("t", b"v", acks=acks)


# A model --------------------------------------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "c", None])


class WindowModel(RuleBasedStateMachine):
    """The window under a clock of its own: sends, transactions, time, and views that are lost."""

    @initialize(path=st.just(None))
    def begin(self, path):
        self.folder = tempfile.mkdtemp()
        self.clock = ManualClock()
        self.taken: dict[str, tuple[int, int, int]] = {}  # id -> partition, offset, sent
        self.open: dict[str, tuple[int, int, int]] = {}  # of the transaction
        self.expected: list[bytes] = []
        self.pending: list[bytes] = []
        self.count = 0
        self.tx = None
        self.enter()
        self.broker.create_topic("t", partitions=2, config={"deduplication.window.ms": WINDOW_MS})

    def enter(self):
        self.broker = logbroker.open(f"{self.folder}/data", clock=self.clock)
        self.producer = self.broker.producer(linger=FOREVER)

    def holder(self, taken, message_id):
        found = taken.get(message_id)
        return found if found is not None and self.clock.now_ms() - found[2] < WINDOW_MS else None

    def value(self):
        self.count += 1
        return b"%d" % self.count

    @rule(message_id=IDS, partition=st.sampled_from([None, 0, 1]), own_time=st.booleans())
    def send(self, message_id, partition, own_time):
        value = self.value()
        options = {"timestamp": 7} if own_time else {}
        receipt = self.producer.send("t", value, message_id=message_id, partition=partition, **options)
        if message_id is not None and self.holder(self.open, message_id):
            with pytest.raises(MessageIdInUseError):
                receipt.result()
            return
        found, first = receipt.result(), self.holder(self.taken, message_id)
        assert found.duplicate is (first is not None)
        if first is not None:
            assert (found.partition, found.offset) == first[:2]
            return
        self.expected.append(value)
        if message_id is not None:
            self.taken[message_id] = (found.partition, found.offset, self.clock.now_ms())

    @rule(message_id=IDS, partition=st.sampled_from([None, 0, 1]))
    def send_in_transaction(self, message_id, partition):
        if self.tx is None:
            self.tx = self.broker.transaction("tx")
        value = self.value()
        found = self.tx.send("t", value, message_id=message_id, partition=partition).result()
        first = self.holder(self.open, message_id) or self.holder(self.taken, message_id)
        assert found.duplicate is (first is not None)
        if first is not None:
            assert (found.partition, found.offset) == first[:2]
            return
        self.pending.append(value)
        if message_id is not None:
            self.open[message_id] = (found.partition, found.offset, self.clock.now_ms())

    @precondition(lambda self: self.tx is not None)
    @rule(commits=st.booleans())
    def end_transaction(self, commits):
        if commits:
            self.tx.commit()
            self.expected += self.pending
            for message_id, found in self.open.items():
                if message_id not in self.taken or self.taken[message_id][2] < found[2]:
                    self.taken[message_id] = found
        else:
            self.tx.abort()
        self.tx, self.open, self.pending = None, {}, []

    @rule(ms=st.sampled_from([1, WINDOW_MS // 2, WINDOW_MS - 1, WINDOW_MS]))
    def wait(self, ms):
        self.clock.advance(ms=ms)

    @precondition(lambda self: self.tx is None)
    @rule(view_is_lost=st.booleans())
    def reopen(self, view_is_lost):
        self.leave()
        if view_is_lost:
            shutil.rmtree(f"{self.folder}/data/view")
        self.enter()

    def leave(self):
        try:
            self.producer.close()
        finally:
            self.broker.close()

    def teardown(self):
        if hasattr(self, "folder"):
            if self.tx is not None:
                self.tx.abort()
            assert values(self.broker) == sorted(self.expected)
            self.leave()
            shutil.rmtree(self.folder)


TestWindowModel = WindowModel.TestCase
TestWindowModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
