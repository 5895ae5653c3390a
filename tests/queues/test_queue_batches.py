"""What the network needs of a queue besides messages: their batches, bounds in bytes, several outcomes at once."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import logbroker
from logbroker.errors import SubscriptionExistsError
from logbroker.queues import reading
from logbroker.queues.looks import Held
from logbroker.queues.partition import QueuePartition
from logbroker.queues.reading import RangeReader
from logbroker.queues.settlement import Settlement
from logbroker.subscriptions import Rules
from logbroker_storage import record_decoding
from logbroker_storage.errors import (
    InvalidRequestError,
    InvalidTopicError,
    LeaseLostError,
    SubscriptionNotFoundError,
)
from logbroker_storage.record_batch import NewRecord, decode_batch, decode_records, encode_batch

from .desk import QueueDesk, values

OWNER = "0/somebody"
LEASE_MS = 30_000


class Partition:
    """One partition of a queue, with batches of the sizes that are asked for."""

    def __init__(self, desk: QueueDesk, *sizes: int, **options: object) -> None:
        desk.queue_of(**options)
        self.desk = desk
        subscription = desk.broker._subscriptions.get("workers")
        self.queue = QueuePartition(desk.directory, subscription, ("jobs", 0))
        self.log = desk.directory.log("jobs", 0)
        self.batch_bytes: list[int] = []
        for size in sizes:
            self.batch(size)

    def batch(self, size: int) -> None:
        now_ms = self.desk.clock.now_ms()
        encoded = encode_batch([NewRecord(b"%d" % number, timestamp_ms=now_ms) for number in range(size)])
        self.batch_bytes.append(len(encoded))
        self.log.append(encoded)
        self.log.sync()

    def take(self, limit: int = 1000, owner: str = OWNER, **options: object) -> list[Held]:
        return self.queue.receive(owner, limit, lease_ms=LEASE_MS, **options)  # type: ignore[arg-type]

    def settle(self, settlement: Settlement) -> None:
        def refuse(place: object, lost: object) -> None:
            raise LeaseLostError([])

        pending = self.queue.settlement(OWNER, settlement, refuse, lease_ms=LEASE_MS, note="no")
        self.desk.directory.journal.decide(pending.decide, take_back=pending.take_back)
        pending.settle()


def offsets(held: list[Held]) -> list[int]:
    return [record.offset for one in held for record in one.records]


def bases(held: list[Held]) -> list[int]:
    return [batch.header.base_offset for one in held for batch in one.batches]


# Batches --------------------------------------------------------------------------------------------------------


def test_messages_come_with_the_batches_that_hold_them(desk: QueueDesk):
    partition = Partition(desk, 3, 2, 4)
    (held,) = partition.take(4)
    assert (offsets([held]), bases([held])) == ([0, 1, 2, 3], [0, 3])
    assert [record.value for record in decode_records(held.batches[0])] == [b"0", b"1", b"2"]


def test_no_more_is_taken_than_fits_and_the_rest_is_nobodys(desk: QueueDesk):
    partition = Partition(desk, 3, 3, 3)
    held = partition.take(max_bytes=2 * partition.batch_bytes[0])
    assert (offsets(held), bases(held)) == (list(range(6)), [0, 3])
    assert desk.partition().in_flight == 6
    assert offsets(partition.take(owner="0/other")) == [6, 7, 8]


def test_what_does_not_fit_counts_as_no_delivery(desk: QueueDesk):
    partition = Partition(desk, 3, 3)
    partition.take(max_bytes=1)
    (second,) = partition.take(max_bytes=1)
    assert (offsets([second]), second.delivery_count) == ([3, 4, 5], 1)


def test_one_batch_comes_however_large_it_is(desk: QueueDesk):
    assert offsets(Partition(desk, 5, 5).take(max_bytes=1)) == [0, 1, 2, 3, 4]


def test_of_several_ranges_that_were_given_back_those_come_that_fit(desk: QueueDesk):
    partition = Partition(desk, 3, 3, 3)
    partition.take()
    partition.settle(Settlement(finished=[(3, 5)], released=[(0, 2), (6, 8)]))
    held = partition.take(max_bytes=partition.batch_bytes[0])
    assert offsets(held) == [0, 1, 2]
    (rest,) = partition.take(max_bytes=partition.batch_bytes[0])
    assert (offsets([rest]), rest.delivery_count) == ([6, 7, 8], 2)


def test_the_rest_of_a_batch_comes_along_where_that_is_asked_for(desk: QueueDesk):
    partition = Partition(desk, 3, 10)
    assert offsets(partition.take(5, whole_batches=True)) == list(range(13))


@pytest.mark.parametrize("limit", [3, 13, 20])
def test_a_batch_that_is_whole_already_brings_nothing_along(desk: QueueDesk, limit: int):
    partition = Partition(desk, 3, 10, 10)
    partition_end = {3: 3, 13: 13, 20: 23}[limit]
    assert offsets(partition.take(limit, whole_batches=True)) == list(range(partition_end))


def test_the_rest_of_a_batch_that_somebody_else_has_does_not_come_along(desk: QueueDesk):
    partition = Partition(desk, 10)
    partition.take(2)
    partition.take(2, owner="0/other")
    partition.settle(Settlement(released=[(0, 1)]))
    assert offsets(partition.take(1, whole_batches=True)) == [0]


def test_messages_by_priority_come_with_their_batches_too(desk: QueueDesk):
    desk.topic().subscription(priorities=True)
    desk.put("low", priority=0).put("high", priority=3)
    queue = QueuePartition(desk.directory, desk.broker._subscriptions.get("workers"), ("jobs", 0))
    held = queue.receive(OWNER, 10, lease_ms=LEASE_MS, max_bytes=1)
    assert (offsets(held), bases(held)) == ([1], [1])
    assert offsets(queue.receive(OWNER, 10, lease_ms=LEASE_MS, max_bytes=1)) == [0]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_range_of_any_extent_is_read_with_its_batches_up_to_where_it_fits(
    read: ReadLog, data: st.DataObject
):
    first = data.draw(st.integers(0, read.end - 1))
    last = data.draw(st.integers(first, read.end - 1))
    max_bytes = data.draw(st.sampled_from([0, 1, 100, 200, 300, 1000, float("inf")]))
    found = read.reader.read(first, last, max_bytes)
    wanted = [base for base in read.bases if base <= last and read.ends[base] > first]
    held = [batch.header.base_offset for batch in found.batches]
    assert held == wanted[: len(held)], "batches without a gap, from the first on"
    assert held
    size = sum(len(batch.data) for batch in found.batches)
    assert size <= max_bytes or len(held) == 1
    if len(held) < len(wanted):
        assert found.end_offset == wanted[len(held)]
        assert size + read.sizes[wanted[len(held)]] > max_bytes, "it would have fitted"
    else:
        assert found.end_offset == last + 1
    assert [record.offset for record in found.records] == list(range(first, found.end_offset))


@pytest.fixture
def scattered(desk: QueueDesk) -> RangeReader:
    """A reader of 12 batches of 100 records."""
    return RangeReader(Partition(desk, *[100] * 12).log)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    jumps=st.lists(st.tuples(st.integers(0, 1199), st.sampled_from([1, 2, 12, 13, 150])), max_size=60),
    kept_bytes=st.sampled_from([0, 10_000, reading.KEPT_BYTES]),
)
def test_whoever_jumps_reads_what_is_there(
    scattered: RangeReader, jumps: list[tuple[int, int]], kept_bytes: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "KEPT_BYTES", kept_bytes)
        for first, count in jumps:
            last = min(first + count, 1200) - 1
            found = scattered.read(first, last)
            assert [record.offset for record in found.records] == list(range(first, last + 1))
            assert found.end_offset == last + 1


def test_of_messages_that_lie_scattered_no_batch_is_decoded_whole_and_none_read_twice(
    scattered: RangeReader, monkeypatch: pytest.MonkeyPatch
):
    """Those of one order key, say: each time a whole batch was read and decoded, which took 0.3 ms a message."""
    calls: Counter[str] = Counter()
    for name in ("decode_batch", "decode_range"):
        kept = getattr(reading, name)
        monkeypatch.setattr(
            reading, name, lambda *given, kept=kept, name=name: calls.update([name]) or kept(*given)
        )
    monkeypatch.setattr(reading, "READ_BYTES", 1)
    offsets_read = [number * 100 + step for step in range(5) for number in range(12)]
    for offset in offsets_read:
        scattered.read(offset, offset)
    assert calls == {"decode_range": 60}
    assert len(scattered._stretches) == 12


def test_who_takes_many_parts_of_a_batch_or_reads_on_has_it_decoded_once(
    scattered: RangeReader, monkeypatch: pytest.MonkeyPatch
):
    decoded: list[int] = []
    monkeypatch.setattr(reading, "READ_BYTES", 1)
    monkeypatch.setattr(
        reading,
        "decode_batch",
        lambda batch, *place: decoded.append(batch.header.base_offset) or decode_batch(batch, *place),
    )
    for offset in range(0, 100, 2):
        scattered.read(offset, offset)
    assert decoded == [0]
    for offset in range(300, 500):
        scattered.read(offset, offset)
    assert decoded == [0, 300, 400]
    assert len(scattered._stretches) <= 2, "what lies behind a reader that reads on is not kept"


def test_a_batch_of_which_compaction_left_some_is_decoded_once(
    desk: QueueDesk, monkeypatch: pytest.MonkeyPatch
):
    """Its records are not found without those before them: 16 parts of it took 16 times as long as all of it."""
    desk.queue_of()
    log = desk.directory.log("jobs", 0)
    records = [NewRecord(b"%d" % number, timestamp_ms=0) for number in range(100)]
    log.append(encode_batch(records, offset_deltas=range(0, 200, 2), last_offset_delta=199))
    log.sync()
    decoded: list[int] = []
    for module in (reading, record_decoding):
        monkeypatch.setattr(module, "decode_batch", lambda *given: decoded.append(1) or decode_batch(*given))
    reader = RangeReader(log)
    for offset in range(0, 200, 10):
        assert [record.offset for record in reader.read(offset, offset + 1).records] == [offset]
    assert decoded == [1]


def test_of_reads_that_found_little_no_more_are_kept_than_of_full_ones(desk: QueueDesk):
    """Two who share the messages as they come each find one at the log's end, and never read on: 1,500 such reads
    were kept by each, took 100 MB, and were all looked at again for the next message."""
    partition = Partition(desk)
    reader = RangeReader(partition.log)
    for offset in range(0, 80, 2):
        partition.batch(1)
        partition.batch(1)
        assert [record.offset for record in reader.read(offset, offset).records] == [offset]
        assert len(reader._stretches) <= reading.KEPT_BYTES // reading.READ_BYTES


def test_all_readers_of_a_process_together_keep_so_much(desk: QueueDesk, monkeypatch: pytest.MonkeyPatch):
    """Those of 256 partitions kept 1 GB."""
    partition = Partition(desk, *[10] * 12)
    monkeypatch.setattr(reading, "_readers", weakref.WeakSet())
    monkeypatch.setattr(reading, "READ_BYTES", 1)
    monkeypatch.setattr(reading, "ALL_KEPT_BYTES", 8 * partition.batch_bytes[0])

    def kept_of_jumps(reader: RangeReader) -> int:
        for offset in range(0, 120, 10):
            assert len(reader.read(offset, offset).records) == 1
        return len(reader._stretches)

    first, second = RangeReader(partition.log), RangeReader(partition.log)
    assert kept_of_jumps(first) == 8
    assert [kept_of_jumps(reader) for reader in (second, first)] == [4, 4]
    second.close()
    assert kept_of_jumps(first) == 8


class ReadLog:
    """A log of batches of several sizes, and what is known of them."""

    def __init__(self, desk: QueueDesk) -> None:
        partition = Partition(desk, 1, 4, 2, 7, 1, 1, 5)
        self.reader = RangeReader(partition.log)
        self.bases: list[int] = []
        self.ends: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.end = 0
        for size, batch_bytes in zip((1, 4, 2, 7, 1, 1, 5), partition.batch_bytes, strict=True):
            self.bases.append(self.end)
            self.sizes[self.end] = batch_bytes
            self.ends[self.end] = self.end + size
            self.end += size


@pytest.fixture
def read(desk: QueueDesk) -> ReadLog:
    return ReadLog(desk)


def test_what_may_be_had_is_told_without_taking_it(desk: QueueDesk):
    partition = Partition(desk, 5)
    assert tuple(partition.queue.ahead()) == (False, 0, 5)
    partition.take(3)
    partition.settle(Settlement(released=[(1, 1)]))
    assert tuple(partition.queue.ahead()) == (True, 3, 5)
    assert partition.queue.lag() == 5


# Several outcomes -----------------------------------------------------------------------------------------------


def test_a_settlement_does_all_that_is_asked_with_one_record_of_the_journal(desk: QueueDesk):
    partition = Partition(desk, 8, dead_letter="jobs.dead")
    partition.take()
    desk.advance(20)
    partition.settle(Settlement(finished=[(0, 1)], released=[(2, 3)], rejected=[(4, 4)], renewed=[(5, 6)]))
    desk.advance(20)  # behind the end of the first lease, and before that of the renewed one
    found = desk.partition()
    assert (found.in_flight, found.rejected, found.lag) == (2, 1, 6)
    assert [(one.records[0].offset, one.delivery_count) for one in partition.take()] == [(2, 2), (7, 2)]


def test_a_settlement_that_is_refused_changes_nothing(desk: QueueDesk):
    partition = Partition(desk, 4)
    partition.take()
    with pytest.raises(LeaseLostError):
        partition.settle(Settlement(finished=[(0, 1)], released=[(2, 9)]))
    assert (desk.partition().in_flight, desk.lag()) == (4, 4)


# Subscriptions as share groups ------------------------------------------------------------------------------------


def test_a_queue_is_made_for_topics_that_need_not_be_there(desk: QueueDesk):
    desk.topic("a").put("before", topic="a")
    desk.broker._subscriptions.share("g", ["later", "a"], start="latest", rules=Rules())
    assert desk.broker.subscription("g").topics == ["a", "later"]
    desk.topic("later").put("first", topic="later").put("after", topic="a")
    assert sorted(desk.left(subscription="g")) == ["after", "first"]


def test_a_queue_that_reads_all_of_it_is_left_as_it_is(desk: QueueDesk):
    desk.topic("a").topic("b").subscription("g", topic=["a", "b*"], lease=7.0)
    before = desk.broker._subscriptions.get("g")
    assert desk.broker._subscriptions.share("g", ["b"], start="earliest", rules=Rules()) == before


def test_a_queue_is_widened_and_keeps_its_rules_and_progress(desk: QueueDesk):
    desk.topic("a").topic("b").subscription("g", topic="a", lease=7.0)
    desk.put("a1", "a2", topic="a").put("b1", topic="b")
    hands = desk.hands(subscription="g")
    hands.receive(0).accept()
    desk.broker._subscriptions.share("g", ["b"], start="earliest", rules=Rules())
    assert desk.broker.subscription("g").lease_ms == 7000
    assert sorted(values(hands.receive_many())) == ["a2", "b1"]


def test_the_name_of_a_group_or_a_stream_is_no_queues(desk: QueueDesk):
    desk.topic("a").subscription("stream", topic="a", kind="stream")
    with desk.broker.consumer("a", group="group"):
        for name in ("stream", "group"):
            with pytest.raises(SubscriptionExistsError):
                desk.broker._subscriptions.share(name, ["a"], start="latest", rules=Rules())


def test_a_queue_does_not_come_to_read_its_own_dead_letters_or_what_is_no_topic(desk: QueueDesk):
    desk.topic("a").subscription("g", topic="a", dead_letter="dead")
    with pytest.raises(InvalidRequestError, match="dead"):
        desk.broker._subscriptions.share("g", ["dead"], start="latest", rules=Rules())
    with pytest.raises(InvalidTopicError):
        desk.broker._subscriptions.share("g", ["a*"], start="latest", rules=Rules())


def test_a_queue_that_leaves_a_topic_begins_anew_when_it_comes_back(desk: QueueDesk):
    desk.topic("a").topic("b").subscription("g", topic=["a", "b"]).put("a1", "a2", topic="a")
    desk.hands(subscription="g").receive(0).accept()
    partition = QueuePartition(desk.directory, desk.broker._subscriptions.get("g"), ("a", 0))
    desk.broker._subscriptions.leave_topics("g", ["a"])
    partition.forget()
    assert desk.broker.subscription("g").topics == ["b"]
    assert desk.left(subscription="g") == []
    desk.broker._subscriptions.share("g", ["a"], start="earliest", rules=Rules())
    assert desk.left(subscription="g") == ["a1", "a2"]


def test_a_queue_without_topics_lasts(desk: QueueDesk):
    desk.topic("a").subscription("g", topic="a")
    desk.broker._subscriptions.leave_topics("g", ["a"])
    desk.close()
    desk.reopen(without_view=True)
    assert desk.broker.subscription("g").topics == []
    with pytest.raises(SubscriptionNotFoundError):
        desk.broker._subscriptions.leave_topics("nobody", ["a"])


@pytest.mark.parametrize("other", ["queue first", "consumer first"])
def test_a_queue_and_a_consumer_group_never_have_one_name(desk: QueueDesk, other: str):
    desk.topic("a")
    if other == "queue first":
        desk.subscription("g", topic="a")
        with pytest.raises(logbroker.LogbrokerError, match="queue"):
            desk.broker.consumer("a", group="g").poll(1, 0)
    else:
        with desk.broker.consumer("a", group="g") as consumer:
            consumer.poll(1, 0)
            with pytest.raises(SubscriptionExistsError):
                desk.subscription("g", topic="a")
