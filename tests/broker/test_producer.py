"""The producer: what send promises, what receipts tell, what failures do."""

from __future__ import annotations

import datetime
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import logbroker
from logbroker import Broker, Message, Record, accumulator, delivery, lead, partition_queue, receipts
from logbroker.accumulator import Batch
from logbroker.errors import (
    BufferFullError,
    ClosedError,
    DeliveryTimeoutError,
    ForkedError,
    InvalidRequestError,
    InvalidTopicError,
    RecordTooLargeError,
    StorageFailedError,
    TopicNotFoundError,
    WriteFailedError,
)
from logbroker.partitioner import partition_for_key
from logbroker.receipts import Receipt
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import Compression, decode_records
from logbroker_storage.testing import FaultyFiles, GatedFiles, ManualClock

UTC = datetime.UTC
FOREVER = 1000.0  # a linger that never runs out within a test


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(OsFiles())


@pytest.fixture
def broker(tmp_path, files) -> Iterator[Broker]:
    broker = logbroker.open(tmp_path / "data", files=files)
    broker.create_topic("t")
    broker.create_topic("wide", partitions=4)
    yield broker
    with suppress(StorageFailedError):  # a partition whose sync failed says so again
        broker.close()


@pytest.fixture
def gated(tmp_path) -> Iterator[tuple[Broker, GatedFiles]]:
    files = GatedFiles()
    with logbroker.open(tmp_path / "gated", files=files) as broker:
        broker.create_topic("t")
        yield broker, files
        files.gate.set()


def stored(broker: Broker, topic: str = "t", partition: int = 0) -> list[Record]:
    """All records of a partition, as they are in the log."""
    reader = broker._directory.log(topic, partition).reader(0)
    records: list[Record] = []
    while batches := reader.read(1 << 20):
        for batch in batches:
            records += decode_records(batch, topic, partition)
    return records


def values(broker: Broker, topic: str = "t", partition: int = 0) -> list[bytes | None]:
    return [record.value for record in stored(broker, topic, partition)]


def headers_of_batches(broker: Broker, topic: str = "t", partition: int = 0) -> list:
    reader = broker._directory.log(topic, partition).reader(0)
    found = []
    while batches := reader.read(1 << 20):
        found += [batch.header for batch in batches]
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# Sending ------------------------------------------------------------------------------------------


def test_a_receipt_tells_where_the_record_is(broker):
    with broker.producer() as producer:
        first, second = producer.send("t", b"a"), producer.send("t", b"b")
        metadata = second.result(timeout=5)
        assert (metadata.topic, metadata.partition, metadata.offset) == ("t", 0, 1)
        assert first.result().offset == 0
        assert first.done
        assert first.exception is None
    assert values(broker) == [b"a", b"b"]
    assert stored(broker)[1].timestamp == metadata.timestamp


def test_a_result_needs_no_linger_and_no_other_thread(broker):
    with broker.producer(linger=FOREVER) as producer:
        for number in range(20):
            assert producer.send("t", b"x").result().offset == number


def test_linger_sends_what_nobody_asks_for(broker):
    with broker.producer(linger=0.001) as producer, broker.consumer("t") as consumer:
        producer.send("t", b"x")
        assert [record.value for record in consumer.poll(timeout=10)] == [b"x"]


def test_without_linger_a_record_is_appended_before_send_returns(broker):
    with broker.producer(linger=0, acks="written") as producer:
        receipt = producer.send("t", b"x")
        assert receipt.done
        assert receipt.result(timeout=0).offset == 0
        assert producer.send_many("t", [b"y"] * 10) == 10
        assert broker.topic("t").partitions[0].log_end_offset == 11


def test_a_full_batch_is_appended_by_the_sender(broker):
    with broker.producer(linger=FOREVER, batch_bytes=1000, acks="written") as producer:
        receipts = [producer.send("t", b"x" * 100) for _ in range(20)]
        assert receipts[0].done
        assert not receipts[-1].done
    assert [receipt.result().offset for receipt in receipts] == list(range(20))


def test_leaving_the_with_sends_everything(broker):
    with broker.producer(linger=FOREVER) as producer:
        for number in range(1000):
            producer.send("t", b"%d" % number)
    assert values(broker) == [b"%d" % number for number in range(1000)]


def test_every_field_of_a_record_arrives(broker):
    moment = datetime.datetime(2024, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)
    with broker.producer() as producer:
        producer.send("t", None, key=b"k", headers={"type": b"created", "n": None}, timestamp=moment)
        producer.send("t", b"v", headers=[("a", "ä"), ("a", b"2")], timestamp=1_700_000_000_123)
        producer.send("t", b"plain")
        producer.send("t", None)
    first, second, third, fourth = stored(broker)
    assert (first.key, first.value, first.timestamp) == (b"k", None, moment)
    assert list(first.headers) == [("type", b"created"), ("n", None)]
    assert list(second.headers) == [("a", "ä".encode()), ("a", b"2")]
    assert second.timestamp_ms == 1_700_000_000_123
    assert (third.key, third.value, list(third.headers)) == (None, b"plain", [])
    assert fourth.value is None


def test_a_time_to_live_is_kept_with_the_record(broker):
    with broker.producer() as producer:
        producer.send("t", b"v", ttl=datetime.timedelta(seconds=3)).result()
    assert [key for key, _ in stored(broker)[0].headers] == ["logbroker.ttl.ms"]
    with broker.consumer("t") as consumer:
        assert consumer.poll(timeout=1)[0].headers == []


def test_timestamps_are_the_clocks_at_sending(tmp_path):
    clock = ManualClock()
    with logbroker.open(tmp_path / "data", clock=clock) as broker:
        broker.create_topic("t")
        start_ms = clock.now_ms()
        with broker.producer(linger=FOREVER) as producer:
            receipts = []
            for _ in range(5):
                receipts += [producer.send("t", b"a"), producer.send("t", b"b", key=b"k")]
                clock.advance(ms=7)
        expected = [start_ms + 7 * (number // 2) for number in range(10)]
        assert [record.timestamp_ms for record in stored(broker)] == expected
        assert [receipt.result().timestamp_ms for receipt in receipts] == expected


def test_a_log_append_time_topic_stamps_the_record_itself(broker):
    broker.create_topic("stamped", config={"message.timestamp.type": "LogAppendTime"})
    with broker.producer() as producer:
        metadata = producer.send("stamped", b"x", timestamp=1).result()
    assert metadata.timestamp_ms == stored(broker, "stamped")[0].timestamp_ms > 1_600_000_000_000


def test_a_timestamp_beyond_the_topics_limits_is_refused(broker):
    broker.create_topic("near", config={"message.timestamp.before.max.ms": 1000})
    with broker.producer() as producer:
        with pytest.raises(InvalidRequestError, match=r"message\.timestamp\.before"):
            producer.send("near", b"x", timestamp=1)
        with pytest.raises(InvalidRequestError, match=r"message\.timestamp\.after"):
            producer.send("near", b"x", timestamp=datetime.datetime(2200, 1, 1, tzinfo=UTC))
        producer.send("near", b"y")
    assert values(broker, "near") == [b"y"]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_batches_are_compressed_as_the_producer_or_the_topic_says(broker, codec):
    broker.create_topic("packed", config={"compression.type": codec})
    with broker.producer(compression=codec) as by_producer, broker.producer() as by_topic:
        by_producer.send_many("t", [b"a" * 100] * 50)
        by_topic.send_many("packed", [b"a" * 100] * 50)
    for topic in ("t", "packed"):
        assert headers_of_batches(broker, topic)[0].compression is Compression.from_name(codec)
        assert values(broker, topic) == [b"a" * 100] * 50


# Partitions ---------------------------------------------------------------------------------------


def test_keys_choose_partitions_as_kafkas_java_client_does(broker):
    keys = [b"key-%d" % number for number in range(300)]
    with broker.producer() as producer:
        receipts = [producer.send("wide", b"v", key=key) for key in keys]
        assert [receipt.result().partition for receipt in receipts] == [
            partition_for_key(key, 4) for key in keys
        ]
    for partition in range(4):
        sent = [key for key in keys if partition_for_key(key, 4) == partition]
        assert [record.key for record in stored(broker, "wide", partition)] == sent


def test_records_without_a_key_stay_together_and_reach_every_partition(broker):
    with broker.producer(linger=FOREVER) as producer:
        assert len({producer.send("wide", b"v")._batch for _ in range(10)}) == 1
        used = {producer.send("wide", b"v").result().partition for _ in range(100)}
    assert used == {0, 1, 2, 3}


def test_a_given_partition_wins_over_the_key(broker):
    with broker.producer() as producer:
        for partition in range(4):
            assert producer.send("wide", b"v", key=b"k", partition=partition).result().partition == partition


def test_a_producer_sees_added_partitions_and_changed_settings(broker):
    with broker.producer() as producer:
        producer.send("t", b"x").result()
        broker.alter_topic("t", partitions=3, config={"max.message.bytes": 500})
        assert producer.send("t", b"x", partition=2).result().partition == 2
        with pytest.raises(RecordTooLargeError):
            producer.send("t", b"x" * 1000)


# Wrong calls --------------------------------------------------------------------------------------


def test_a_header_that_has_no_utf8_form_concerns_no_other_record(broker):
    with broker.producer(linger=0.2) as producer:
        before = producer.send("t", b"good", key=b"k")
        for headers in ({"a\ud800": b""}, {"a": "\ud800"}):
            with pytest.raises(InvalidRequestError, match="UTF-8"):
                producer.send("t", b"bad", headers=headers)
        behind = producer.send("t", b"", headers={"bytes of others\udcff": b""})
        assert (before.result(5).offset, behind.result(5).offset) == (0, 1)


def test_altering_a_topic_is_done_whole_or_not_at_all(broker):
    with pytest.raises(InvalidTopicError, match="partitions"):
        broker.alter_topic("wide", config={"retention.ms": 5}, partitions=1)
    assert broker.topic("wide").overrides == {}
    with pytest.raises(TopicNotFoundError):
        broker.alter_topic("nope")


@pytest.mark.parametrize("partitions", [True, 2.0, "3"])
def test_a_number_of_partitions_is_an_integer(tmp_path, broker, partitions):
    """Nothing else comes into the journal, which has to be read again."""
    with pytest.raises(InvalidTopicError, match="partitions"):
        broker.create_topic("other", partitions=partitions)
    with logbroker.open(tmp_path / "data") as again:
        assert again.topics() == ["t", "wide"]


def test_what_cannot_be_sent_is_refused_at_once(broker):
    with broker.producer() as producer:
        with pytest.raises(TopicNotFoundError):
            producer.send("nowhere", b"x")
        with pytest.raises(TopicNotFoundError, match="it has 1"):
            producer.send("t", b"x", partition=1)
        with pytest.raises(TopicNotFoundError):
            producer.send("t", b"x", partition=-1)
        with pytest.raises(InvalidRequestError, match="encode"):
            producer.send("t", "text")
        with pytest.raises(InvalidRequestError):
            producer.send("t", b"x", key="text")
        with pytest.raises(InvalidRequestError):
            producer.send("t", b"x", sequence=1)
        with pytest.raises(InvalidRequestError):
            producer.send("t", b"x", timestamp=datetime.datetime(2024, 1, 1))  # noqa: DTZ001
        with pytest.raises(InvalidRequestError):
            producer.send_many("t", b"bytes are no iterable of values")
    assert values(broker) == []


@pytest.mark.parametrize(
    "options",
    [
        {"acks": "al"},
        {"compression": "zst"},
        {"linger": -1},
        {"batch_bytes": 0},
        {"name": ""},
        {"linger": "1"},
    ],
)
def test_an_option_with_a_wrong_value_is_refused(broker, options):
    with pytest.raises(InvalidRequestError):
        broker.producer(**options)


def test_a_record_is_measured_against_the_topics_limit_exactly(broker):
    broker.create_topic("small", config={"max.message.bytes": 200})
    with broker.producer() as producer:
        largest = (
            200 - 61 - 10
        )  # header; length 2, attributes, timestamp, offset, key, value length 2, headers
        fits = next(
            size for size in range(largest + 10, 0, -1) if not _too_large(producer, "small", b"x" * size)
        )
        producer.flush()
    assert len(values(broker, "small")[-1]) == fits
    assert fits >= largest


def _too_large(producer, topic, value):
    try:
        producer.send(topic, value)
    except RecordTooLargeError:
        return True
    return False


def test_a_closed_producer_takes_nothing_more(broker):
    producer = broker.producer()
    receipt = producer.send("t", b"x")
    producer.close()
    producer.close()
    assert producer.closed
    assert receipt.result().offset == 0
    for call in (lambda: producer.send("t", b"x"), lambda: producer.send_many("t", iter([b"x"] * 3))):
        with pytest.raises(ClosedError):
            call()


def test_a_producer_outlives_its_broker(tmp_path):
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t")
        producer = broker.producer()
    assert producer.send("t", b"x").result().offset == 0
    producer.close()


# Many ---------------------------------------------------------------------------------------------


def test_send_many_takes_lists_and_iterators_and_messages(broker):
    with broker.producer(batch_bytes=500) as producer:
        assert producer.send_many("t", [b"%d" % number for number in range(100)]) == 100
        assert producer.send_many("t", (b"%d" % number for number in range(100, 200))) == 100
        assert producer.send_many("t", [Message(b"m", key=b"k"), b"n", None]) == 3
        assert producer.send_many("t", []) == 0
        assert producer.send_many("wide", [b"v"] * 5, partition=3) == 5
        assert producer.send_many("wide", [b"w", Message(b"w", key=b"other")], key=b"k") == 2
    assert values(broker) == [b"%d" % number for number in range(200)] + [b"m", b"n", None]
    assert values(broker, "wide", 3).count(b"v") == 5


@pytest.mark.parametrize("headers", [None, {"a": b"1"}], ids=["without headers", "with headers"])
def test_a_message_of_send_many_goes_the_way_of_send(broker, headers):
    """The long way takes twice as long, for a message that says no more than what ``send`` takes the short one for."""
    calls = []
    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"v", key=b"k", headers=headers)  # opens the batch
        sys.setprofile(
            lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None
        )
        try:
            producer.send_many("t", [Message(b"v", b"k", headers=headers)] * 1000)
        finally:
            sys.setprofile(None)
    assert calls.count("_send_item") == 1000
    assert calls.count("_pending") < 500


def test_a_slow_iterator_does_not_hold_back_what_it_gave(broker):
    with broker.consumer("t") as consumer, broker.producer(linger=0.001) as producer:
        seen: list[bytes | None] = []

        def slow() -> Iterator[bytes]:
            for number in range(3):
                yield b"%d" % number
                seen.extend(record.value for record in consumer.poll(timeout=10))

        producer.send_many("t", slow())
    assert seen == [b"0", b"1", b"2"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.binary(max_size=400), max_size=80),
    st.integers(100, 2000),
    st.sampled_from(["send", "list", "iterator", "keyed"]),
)
def test_any_values_come_back_in_order(tmp_path_factory, sent, batch_bytes, way):
    with logbroker.open(tmp_path_factory.mktemp("any") / "data") as broker:
        broker.create_topic("t", config={"durability": "os"})
        with broker.producer(batch_bytes=batch_bytes, linger=FOREVER) as producer:
            if way == "list":
                producer.send_many("t", sent)
            elif way == "iterator":
                producer.send_many("t", iter(sent))
            else:
                key = b"k" if way == "keyed" else None
                receipts = [producer.send("t", value, key=key) for value in sent]
                assert [receipt.result().offset for receipt in receipts] == list(range(len(sent)))
        assert values(broker) == sent
        sequences = [(header.base_sequence, header.record_count) for header in headers_of_batches(broker)]
        assert all(
            base == sum(count for _, count in sequences[:place]) for place, (base, _) in enumerate(sequences)
        )


def test_no_batch_exceeds_the_topics_limit_whatever_the_sizes(broker):
    broker.create_topic("small", config={"max.message.bytes": 3000})
    sizes = [1, 2000, 5, 700, 2800, 0, 2800, 1, 1, 1400, 1400] * 20
    with broker.producer(linger=FOREVER) as producer:
        for size in sizes:
            producer.send("small", b"x" * size)
        for size in sizes:
            producer.send("small", b"x" * size, key=b"k")
        for size in sizes:
            producer.send("small", b"x", headers={"é" * (size % 7): b"h" * min(size, 2500)})
        producer.send_many("small", [b"x" * size for size in sizes])
    found = stored(broker, "small")
    rounds = [found[at : at + len(sizes)] for at in range(0, len(found), len(sizes))]
    assert [[len(record.value) for record in rounds[at]] for at in (0, 1, 3)] == [sizes] * 3
    assert [len(record.headers[0][1]) for record in rounds[2]] == [min(size, 2500) for size in sizes]
    assert max(header.size_bytes for header in headers_of_batches(broker, "small")) <= 3000


# Acknowledgements ---------------------------------------------------------------------------------


def test_acks_all_means_synced(gated):
    broker, files = gated
    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"the first also reserves a producer id").result()
        receipt = producer.send("t", b"x")
        files.gate.clear()
        files.waiting.clear()
        thread = threading.Thread(target=receipt.result)
        thread.start()
        files.waiting.wait(10)
        assert not receipt.done
        assert broker.topic("t").partitions[0].high_watermark == 1
        with pytest.raises(DeliveryTimeoutError):
            receipt.result(timeout=0.01)
        files.gate.set()
        thread.join()
        assert receipt.done


def test_acks_written_does_not_wait_for_the_disk_but_is_synced_soon(gated):
    broker, files = gated
    with broker.producer(acks="written", linger=FOREVER) as producer:
        producer.send("t", b"the first also reserves a producer id").result()
        files.gate.clear()
        assert producer.send("t", b"x").result(timeout=5).offset == 1
        assert broker.topic("t").partitions[0].high_watermark <= 1
        files.gate.set()
        with broker.consumer("t", start={0: 1}) as consumer:
            assert len(consumer.poll(timeout=10)) == 1


def test_acks_none_knows_nothing_and_waits_for_nothing(broker, files):
    with broker.producer(acks="none", linger=FOREVER) as producer:
        receipt = producer.send("t", b"x")
        assert receipt.done
        assert receipt.result().offset == -1
        assert not broker.topic("t").partitions[0].log_end_offset
    assert values(broker) == [b"x"]


def test_senders_share_a_sync_while_another_runs(gated):
    broker, files = gated
    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"first").result()
        files.gate.clear()
        files.waiting.clear()
        leader = threading.Thread(target=producer.send("t", b"leader").result)
        leader.start()
        files.waiting.wait(10)
        receipts = [producer.send("t", b"x") for _ in range(8)]
        followers = [threading.Thread(target=receipt.result) for receipt in receipts]
        for follower in followers:
            follower.start()
        before = files.done
        files.gate.set()
        for thread in [leader, *followers]:
            thread.join()
        assert files.done - before == 2
        assert len({receipt._batch for receipt in receipts}) == 1


def test_who_waits_no_longer_has_no_turn_and_the_others_have_theirs(gated):
    broker, files = gated
    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"the first also reserves a producer id").result()
        files.gate.clear()
        files.waiting.clear()
        receipts = [producer.send("t", b"leads")]
        threads = [threading.Thread(target=receipts[0].result)]
        threads[0].start()
        files.waiting.wait(10)
        receipts += [producer.send("t", b"%d" % number) for number in range(9)]
        in_time: list[bool] = []

        def ask(receipt: Receipt, timeout: float | None) -> None:
            with suppress(DeliveryTimeoutError):
                in_time.append(receipt.result(timeout).offset >= 2)

        for number, receipt in enumerate(receipts[1:]):
            threads.append(threading.Thread(target=ask, args=(receipt, 0.05 if number % 3 == 0 else None)))
            threads[-1].start()
        for given_up in threads[1::3]:
            given_up.join(10)
        files.gate.set()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert in_time == [True] * 6
        assert all(receipt.done for receipt in receipts)
    assert [header.record_count for header in headers_of_batches(broker)] == [1, 1, 9]


def test_threads_with_little_time_lose_nobody_the_lead(broker):
    with broker.producer(linger=FOREVER) as producer:

        def work(number: int) -> None:
            for count in range(300):
                receipt = producer.send("t", b"x")
                with suppress(DeliveryTimeoutError):
                    receipt.result((number + count) % 8 * 0.0001 if number % 2 else None)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        producer.flush(60)
    assert len(values(broker)) == 8 * 300


def test_an_interruption_behind_any_call_leaves_nobody_waiting(broker):
    """As an exception out of a signal handler: where Python looks for signals, a function's beginning included."""
    files = {module.__file__ for module in (delivery, lead, partition_queue, accumulator, receipts)}
    left = interrupted = 0

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename in files:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    def send(name: bytes) -> None:
        with suppress(StorageFailedError):  # it was in a batch whose append was broken off
            producer.send("t", name).result(10)

    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"the first also reserves a producer id").result()
        for position in range(2, 200):  # twice what a thread comes to which is alone: some 75
            left, is_alone = position // 2, position % 2 == 0
            receipt = producer.send("t", b"interrupted")
            other = threading.Thread(target=send, args=(b"at the same time",))
            if not is_alone:
                other.start()
            try:
                sys.setprofile(interrupt)
                receipt.result()
            except (KeyboardInterrupt, StorageFailedError):
                interrupted += 1
            finally:
                sys.setprofile(None)
            send(b"behind it")
            with suppress(StorageFailedError):
                receipt.result(10)
            if not is_alone:
                other.join(10)
                assert not other.is_alive()
        queue = receipt._batch.queue
        assert queue.lead.is_idle
    assert interrupted > 40


def test_a_flush_that_is_out_of_time_leaves_the_rest_to_the_linger_thread(broker):
    broker.create_topic("u")
    with broker.producer(linger=FOREVER) as producer:
        held, receipt = producer.send("t", b"x"), producer.send("u", b"y")
        with held._batch.queue.sending, pytest.raises(DeliveryTimeoutError):
            producer.flush(0.01)
        wait_until(lambda: receipt.done)
    assert values(broker) == [b"x"]


def test_what_fills_right_behind_a_sync_of_the_linger_thread_is_synced_soon(broker):
    broker.create_topic("u")
    with broker.producer(linger=FOREVER, batch_bytes=1000) as producer:
        producer.send("u", b"an open batch: the thread sleeps until its linger is over")
        for _ in range(6):
            sent = [producer.send("t", b"x" * 100) for _ in range(20)]
            wait_until(partial(getattr, sent[8], "done"))  # all that are full, each time
            time.sleep(0.005)  # it sleeps now, and wants no news for the rest of 20 ms


def test_a_full_buffer_blocks_and_then_refuses(gated):
    broker, files = gated
    with broker.producer(batch_bytes=1000, buffer_bytes=5000, max_block=0.05, linger=FOREVER) as producer:
        producer.send("t", b"the first also reserves a producer id").result()
        files.gate.clear()
        with pytest.raises(BufferFullError):
            producer.send_many("t", (b"x" * 100 for _ in range(1000)))
        sent = broker.topic("t").partitions[0].log_end_offset
        assert 20 < sent < 60
        files.gate.set()
        producer.flush()
        producer.send("t", b"y").result()


def test_many_partitions_in_turn_get_whole_batches(broker):
    """Open batches take up room for what may come; where there is too little for all, they are smaller."""
    partitions, rounds = 20, 15
    broker.create_topic("many", partitions=partitions, config={"durability": "os"})
    with broker.producer(batch_bytes=10_000, buffer_bytes=100_000, linger=FOREVER) as producer:
        for _ in range(rounds):
            for partition in range(partitions):
                producer.send("many", b"x" * 100, partition=partition)
        producer.flush()
    logs = [broker._directory.log("many", partition) for partition in range(partitions)]
    assert [log.offsets().log_end_offset for log in logs] == [rounds] * partitions
    # In the first round the share of each is still larger; from then on every batch is open at once.
    assert sum(log.appends for log in logs) <= 2 * partitions


def test_a_sender_goes_on_when_the_disk_does(gated):
    broker, files = gated
    with broker.producer(batch_bytes=1000, buffer_bytes=5000, linger=FOREVER) as producer:
        files.gate.clear()
        thread = threading.Thread(target=lambda: [producer.send("t", b"x" * 100) for _ in range(200)])
        thread.start()
        files.waiting.wait(10)
        files.gate.set()
        thread.join(20)
        assert not thread.is_alive()
    assert len(values(broker)) == 200


# Failures -----------------------------------------------------------------------------------------


def test_a_refused_write_fails_its_records_and_nothing_else(broker, files):
    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"a").result()
        files.fail("pwrite", path=".log", error=errno.ENOSPC)
        lost = producer.send("t", b"b")
        with pytest.raises(WriteFailedError):
            lost.result()
        assert isinstance(lost.exception, WriteFailedError)
        assert producer.send("t", b"c").result().offset == 1
    assert values(broker) == [b"a", b"c"]


def test_an_unobserved_failure_is_raised_on_leaving(broker, files):
    producer = broker.producer(linger=FOREVER)
    files.fail("pwrite", path=".log", error=errno.ENOSPC)
    with pytest.raises(WriteFailedError), producer:
        producer.send("t", b"a")
    assert producer.closed


def test_flush_raises_an_unobserved_failure_once(broker, files):
    with broker.producer(linger=FOREVER) as producer:
        files.fail("pwrite", path=".log", error=errno.ENOSPC)
        producer.send_many("t", [b"a"] * 3)
        with pytest.raises(WriteFailedError):
            producer.flush()
        producer.flush()


def test_an_observed_failure_is_not_raised_again(broker, files):
    with broker.producer(linger=FOREVER) as producer:
        files.fail("pwrite", path=".log", error=errno.ENOSPC)
        receipts = [producer.send("t", b"a") for _ in range(3)]
        for receipt in receipts:
            with pytest.raises(WriteFailedError):
                receipt.result()


def test_the_callers_exception_comes_before_a_delivery_failure(broker, files):
    def send_and_raise() -> None:
        with broker.producer(linger=FOREVER) as producer:
            files.fail("pwrite", path=".log", error=errno.ENOSPC)
            producer.send("t", b"a")
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        send_and_raise()
    assert "could not deliver" in caught.value.__notes__[0]


def test_a_failed_sync_is_an_unknown_outcome_and_stops_the_partition(broker, files):
    producer = broker.producer(linger=FOREVER)
    producer.send("t", b"a").result()
    files.fail("fdatasync", path=".log", error=errno.EIO)
    with pytest.raises(StorageFailedError):
        producer.send("t", b"b").result()
    with pytest.raises(StorageFailedError):
        producer.send("t", b"c").result()
    assert producer.send("wide", b"d").result().offset == 0
    producer.close()


def test_a_failed_sync_of_what_was_only_written_is_raised_on_leaving(broker, files):
    files.fail("fdatasync", path=".log", error=errno.EIO)
    with pytest.raises(StorageFailedError), broker.producer(acks="written", linger=FOREVER) as producer:
        producer.send("t", b"b").result()


def test_sequences_go_on_where_an_interrupted_append_left_them(broker, monkeypatch):
    directory = broker._directory
    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"a").result()
        log = directory.log("t", 0)
        append = log.append

        def interrupted(batch, **options):
            append(batch, **options)
            raise KeyboardInterrupt

        log.append = interrupted
        receipt = producer.send("t", b"b")
        with pytest.raises(KeyboardInterrupt):
            receipt.result()
        with pytest.raises(StorageFailedError, match="unknown"):
            receipt.result()
        log.append = append
        assert producer.send("t", b"c").result().offset == 2
    assert values(broker) == [b"a", b"b", b"c"]
    assert [header.base_sequence for header in headers_of_batches(broker)] == [0, 1, 2]


def test_sequences_wrap_to_zero(broker):
    with broker.producer(linger=FOREVER) as producer:
        producer.send("t", b"a").result()
        queue = producer._destinations.topics["t"].queues[0]
        queue.next_sequence = (1 << 31) - 2
        directory = broker._directory
        log = directory.log("t", 0)
        # As if all the sequences between had been written.
        producer_id = producer._delivery._sequences.producer_id
        entry = log.view.partitions.producer(log.key, producer_id)
        span = entry.batches[-1]._replace(last_sequence=(1 << 31) - 3)
        with log.view.write() as transaction:
            log.view.partitions.put_producer(
                transaction, log.key, producer_id, entry._replace(batches=(span,))
            )
        producer.send_many("t", [b"b"] * 4)
        producer.flush()
        producer.send("t", b"c").result()
    assert [header.base_sequence for header in headers_of_batches(broker)] == [0, (1 << 31) - 2, 2]


def test_a_deleted_topic_fails_what_is_under_way_and_refuses_more(broker):
    with broker.producer(linger=FOREVER) as producer:
        producer.send("wide", b"x", partition=1).result()
        receipt = producer.send("wide", b"y", partition=1)
        broker.delete_topic("wide")
        with pytest.raises(TopicNotFoundError):
            receipt.result()
        with pytest.raises(TopicNotFoundError):
            producer.send("wide", b"z", partition=1)
        broker.create_topic("wide")
        assert producer.send("wide", b"again").result().offset == 0
    assert values(broker, "wide") == [b"again"]


# Threads and processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("said", [{}, {"key": b"k"}, {"headers": {"h": b"1"}}])
def test_records_of_many_threads_keep_their_order_and_lose_nothing(broker, said):
    each = 3000

    def run(name: bytes) -> None:
        receipts[name] = [producer.send("t", name + b"%d" % number, **said) for number in range(each)]

    receipts: dict[bytes, list] = {}
    names = [b"a", b"b", b"c", b"d"]
    with broker.producer(batch_bytes=4000, linger=0.001) as producer:
        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = values(broker)
    assert len(found) == each * len(names)
    for name in names:
        assert [value for value in found if value.startswith(name)] == [name + b"%d" % n for n in range(each)]
        for number, receipt in enumerate(receipts[name]):
            assert found[receipt.result().offset] == name + b"%d" % number


def test_durable_sends_of_many_threads_all_return(broker):
    def run() -> None:
        offsets.extend([producer.send("t", b"x").result(timeout=30).offset for _ in range(30)])

    offsets: list[int] = []
    with broker.producer() as producer:
        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(offsets) == list(range(240))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_gets_a_clear_error(broker):
    with broker.producer(linger=FOREVER) as producer:
        settled = producer.send("t", b"a")
        settled.result()
        open_receipt = producer.send("t", b"b")
        child = os.fork()
        if child == 0:
            failures = 0
            for call in (
                lambda: producer.send("t", b"c"),
                lambda: producer.send_many("t", [b"c"]),
                open_receipt.result,
                producer.flush,
            ):
                try:
                    call()
                    failures += 1
                except ForkedError:
                    pass
            producer.close()
            os._exit(failures + (settled.result().offset != 0))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert values(broker) == [b"a", b"b"]


def test_records_of_all_kinds_keep_their_order_and_their_headers_in_a_burst(broker):
    kinds = [
        {},
        {"key": b"k"},
        {"headers": {"type": "order", "trace": b"1"}},
        {"key": b"", "headers": [("again", None), ("again", b"2")]},
        {"headers": {}},
    ]
    expected = [([], None), ([], b"k"), ([("type", b"order"), ("trace", b"1")], None)]
    expected += [([("again", None), ("again", b"2")], b""), ([], None)]
    with broker.producer(batch_bytes=3000) as producer:
        for number in range(2000):
            producer.send("t", b"%d" % number, **kinds[number % len(kinds)])
    found = stored(broker)
    assert [record.value for record in found] == [b"%d" % number for number in range(2000)]
    assert [(record.headers, record.key) for record in found] == expected * 400


def test_headers_may_be_an_iterator_whichever_way_the_record_goes(broker):
    with broker.producer(batch_bytes=500) as producer:
        for number in range(300):
            producer.send("t", b"v", headers=iter([("n", b"%d" % number)]))
    assert [record.headers for record in stored(broker)] == [[("n", b"%d" % number)] for number in range(300)]


def test_a_batch_that_two_senders_tore_is_never_written(broker):
    """The check behind the lock-free append: a wrong count fails the batch instead of shifting offsets."""
    with broker.producer(linger=FOREVER) as producer:
        receipt = producer.send("t", b"a")
        batch: Batch = receipt._batch
        batch.count += 1
        with pytest.raises(StorageFailedError, match="two senders"):
            receipt.result()
        producer._delivery.failures.take()
    assert values(broker) == []
