"""What one consumer does: reading, places, starts, delivery modes, expiry, errors, closing."""

from __future__ import annotations

import contextlib
import itertools
import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import logbroker
from logbroker import cursor, group_coordinator
from logbroker.errors import (
    ClosedError,
    CorruptionError,
    FencedError,
    InvalidRequestError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
)
from logbroker.records import stored_headers
from logbroker.rotation import READ_BYTES
from logbroker_storage.clock import SYSTEM_CLOCK
from logbroker_storage.events import decode_event
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import (
    Compression,
    ControlType,
    NewRecord,
    decode_range,
    encode_batch,
    encode_control_batch,
)
from logbroker_storage.testing import ManualClock

NOON_MS = 1_700_000_000_000
MORE_THAN_HALF_A_READ = "x" * (READ_BYTES * 5 // 8)


class Desk:
    """A broker, and a short way to put records into it: `desk.put("a", "b", partition=1)`."""

    def __init__(self, path, clock=SYSTEM_CLOCK) -> None:
        self.broker = logbroker.open(path, clock=clock)
        self.directory = self.broker._directory
        self.clock = clock

    def topic(self, name="t", partitions=1, **config) -> Desk:
        config = {key.replace("_", "."): value for key, value in config.items()}
        self.broker.create_topic(name, partitions, config=config)
        return self

    def put(
        self, *values, topic="t", partition=0, at_ms=None, ttl=None, codec=Compression.NONE, synced=True
    ) -> Desk:
        """One batch."""
        at_ms = self.clock.now_ms() if at_ms is None else at_ms
        headers = stored_headers({"h": b"1"}, ttl) if ttl is not None else ()
        records = [NewRecord(value.encode(), None, headers, at_ms) for value in values]
        self.append(encode_batch(records, compression=codec), topic, partition, synced)
        return self

    def append(self, batch, topic="t", partition=0, synced=True) -> None:
        log = self.directory.log(topic, partition)
        result = log.append(batch)
        if synced:
            log.wait_durable(result.last_offset + 1)

    def committed(self, group="g", topic="t", partition=0):
        event = self.directory.groups.committed(group, topic, partition)
        return None if event is None else event.offset

    def consumer(self, topics="t", **arguments):
        return self.broker.consumer(topics, **arguments)


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path / "data")
    yield desk
    desk.broker.close()


@pytest.fixture
def slow_desk(tmp_path):
    """A desk whose wall clock stands at noon until it is advanced."""
    desk = Desk(tmp_path / "data", ManualClock(NOON_MS))
    yield desk
    desk.broker.close()


def values(records) -> list[str]:
    return [record.value.decode() for record in records]


def first(consumer, count) -> list[str]:
    """The first *count* values of an iteration."""
    return [record.value.decode() for _, record in zip(range(count), consumer, strict=False)]


# Reading ----------------------------------------------------------------------------------------------------


def test_a_poll_returns_what_is_there_in_order_and_then_nothing(desk):
    desk.topic().put("a", "b").put("c")
    with desk.consumer() as consumer:
        records = consumer.poll()
        assert values(records) == ["a", "b", "c"]
        assert [record.offset for record in records] == [0, 1, 2]
        assert (records[0].topic, records[0].partition) == ("t", 0)
        assert consumer.poll() == []


def test_a_poll_returns_at_most_as_many_as_asked_for_and_goes_on_there(desk):
    desk.topic().put("a", "b", "c").put("d", "e")
    with desk.consumer() as consumer:
        assert values(consumer.poll(2)) == ["a", "b"]
        assert values(consumer.poll(2)) == ["c", "d"]
        assert values(consumer.poll(2)) == ["e"]


@pytest.mark.parametrize("timeout", ["1", float("nan"), timedelta(seconds=1), True])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(desk, timeout):
    desk.topic().put("a")
    with desk.consumer() as consumer:
        with pytest.raises(InvalidRequestError, match="give it seconds"):
            consumer.poll(timeout=timeout)
        assert values(consumer.poll(timeout=-1)) == ["a"]


def test_a_poll_returns_records_of_all_partitions(desk):
    desk.topic(partitions=3).put("a").put("b", partition=1).put("c", partition=2)
    with desk.consumer() as consumer:
        assert sorted(values(consumer.poll())) == ["a", "b", "c"]


def test_a_busy_partition_does_not_keep_another_from_being_read(desk):
    desk.topic(partitions=2).put(*("a" * 100)).put("b", partition=1)
    with desk.consumer() as consumer:
        assert "b" in values(consumer.poll(1)) + values(consumer.poll(1))


def test_iterating_waits_for_records_that_come_later(desk):
    desk.topic().put("a")
    with desk.consumer() as consumer:
        writer = threading.Timer(0.05, desk.put, ["b"])
        writer.start()
        assert first(consumer, 2) == ["a", "b"]
        writer.join()


def test_a_waiting_poll_returns_as_soon_as_a_record_is_there(desk):
    desk.topic()
    with desk.consumer() as consumer:
        writer = threading.Timer(0.05, desk.put, ["a"])
        writer.start()
        assert values(consumer.poll(timeout=30)) == ["a"]
        writer.join()


def test_what_an_iteration_left_over_is_polled_and_the_other_way_round(desk):
    desk.topic().put(*"abcdefgh")
    with desk.consumer() as consumer:
        assert first(consumer, 3) == ["a", "b", "c"]
        assert values(consumer.poll(2)) == ["d", "e"]
        assert first(consumer, 2) == ["f", "g"]
        assert consumer.position() == {0: 7}


def test_two_iterations_of_one_consumer_share_the_records(desk):
    desk.topic().put(*"abcdef")
    with desk.consumer() as consumer:
        one, other = iter(consumer), iter(consumer)
        seen = [next(one), next(one), next(other), next(one), next(other), next(one)]
        assert sorted(values(seen)) == list("abcdef")


def test_records_that_nobody_synced_are_synced_by_who_waits_for_them(desk):
    desk.topic().put("a", synced=False)
    with desk.consumer() as consumer:
        assert consumer.poll() == []
        assert values(consumer.poll(timeout=30)) == ["a"]


def test_control_batches_and_empty_ones_are_passed_over(desk):
    desk.topic().put("a")
    desk.append(
        encode_control_batch(ControlType.COMMIT, producer_id=5, producer_epoch=0, timestamp_ms=NOON_MS)
    )
    with desk.consumer(group="g") as consumer:
        assert values(consumer.poll()) == ["a"]
        assert consumer.lag() in ({0: 1}, {0: 0})
        consumer.poll()
        assert consumer.lag() == {0: 0}


def test_headers_come_back_in_order_without_the_brokers(desk):
    desk.topic().put("a", ttl=timedelta(hours=1))
    with desk.consumer() as consumer:
        assert consumer.poll()[0].headers == [("h", b"1")]


@pytest.mark.parametrize("codec", list(Compression))
def test_compressed_batches_are_read_like_others(desk, codec):
    desk.topic().put("a", "b", codec=codec)
    with desk.consumer() as consumer:
        assert values(consumer.poll()) == ["a", "b"]


# Topics -----------------------------------------------------------------------------------------------------


def test_several_topics_have_results_keyed_by_topic_and_partition(desk):
    desk.topic("x").topic("y", partitions=2).put("a", topic="x").put("b", "c", topic="y", partition=1)
    with desk.consumer(["x", "y"]) as consumer:
        assert consumer.assignment() == [("x", 0), ("y", 0), ("y", 1)]
        assert consumer.lag() == {("x", 0): 1, ("y", 0): 0, ("y", 1): 2}
        assert sorted(values(consumer.poll())) == ["a", "b", "c"]
        assert consumer.position() == {("x", 0): 1, ("y", 0): 0, ("y", 1): 2}


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_pattern_takes_up_topics_created_later_from_their_beginning(desk, group, start):
    desk.topic("orders.eu")
    with desk.consumer("orders.*", group=group, start=start) as consumer:
        assert consumer.poll() == []
        desk.topic("orders.us").topic("other").put("a", topic="orders.us").put("b", topic="other")
        assert values(consumer.poll(timeout=30)) == ["a"]
        assert consumer.assignment() == [("orders.eu", 0), ("orders.us", 0)]


@pytest.mark.parametrize("group", [None, "g"])
def test_partitions_that_are_added_are_taken_up(desk, group):
    desk.topic()
    with desk.consumer(group=group, start="latest") as consumer:
        desk.broker.alter_topic("t", partitions=2)
        desk.put("a", partition=1)
        assert values(consumer.poll(timeout=30)) == ["a"]


def test_a_name_that_does_not_exist_is_an_error_and_names_what_does(desk):
    desk.topic("orders")
    with pytest.raises(TopicNotFoundError, match="orders"):
        desk.consumer("ordres")


def test_what_the_broker_keeps_for_itself_is_not_named_among_the_topics_there_are(desk):
    desk.topic("orders")
    with desk.broker.transaction("counter") as tx:
        tx.state.put(b"n", b"1")
    with pytest.raises(TopicNotFoundError, match=r"\(topics here: orders\)"):
        desk.consumer("invoices")


@pytest.mark.parametrize("group", [None, "g"])
def test_a_deleted_topic_is_an_error_of_every_poll_until_it_is_there_again(desk, group):
    desk.topic().put("a")
    with desk.consumer(group=group) as consumer:
        assert values(consumer.poll()) == ["a"]
        desk.broker.delete_topic("t")
        for _ in range(2):
            with pytest.raises(TopicNotFoundError):
                consumer.poll(timeout=1)
        desk.topic().put("b")
        assert values(consumer.poll(timeout=30)) == ["b"]


@pytest.mark.parametrize("comes_back", [False, True])
def test_nothing_more_comes_of_a_deleted_topic_of_a_pattern_also_before_the_group_is_told(desk, comes_back):
    desk.topic().put("a", "b")
    with desk.consumer("t*", group="g") as consumer:
        assert values(consumer.poll(1)) == ["a"]
        with group_coordinator._coordinators_lock:  # the coordinator waits
            desk.broker.delete_topic("t")
            if comes_back:
                desk.topic()
            assert consumer.poll() == []
        assert desk.committed() is None


def test_what_was_read_of_a_deleted_topic_is_not_committed_for_the_next_of_its_name(desk):
    """Else the group would skip as many records of that."""
    desk.topic().put("a", "b")
    with desk.consumer("t*", group="g", delivery="manual") as consumer:
        assert values(consumer.poll()) == ["a", "b"]
        with group_coordinator._coordinators_lock:  # the coordinator waits
            commit = consumer.pending_commit()
            desk.broker.delete_topic("t")
            desk.topic().put("c")
            with pytest.raises((TopicNotFoundError, FencedError)):
                commit.decide()
        assert values(consumer.poll(timeout=30)) == ["c"]


# Starts -----------------------------------------------------------------------------------------------------


def test_latest_starts_behind_what_was_there_when_the_consumer_was_made(desk):
    desk.topic().put("a")
    with desk.consumer(start="latest") as consumer:
        desk.put("b")
        assert values(consumer.poll()) == ["b"]


@pytest.mark.parametrize(
    ("start_ms", "expected"),
    [(0, ["a", "b", "c"]), (NOON_MS + 1000, ["b", "c"]), (NOON_MS + 1001, ["c"]), (NOON_MS + 9999, [])],
)
def test_a_moment_starts_at_the_first_record_that_is_not_older(desk, start_ms, expected):
    desk.topic().put("a", at_ms=NOON_MS).put("b", at_ms=NOON_MS + 1000).put("c", at_ms=NOON_MS + 2000)
    moment = datetime.fromtimestamp(start_ms / 1000, tz=UTC)
    with desk.consumer(start=moment) as consumer:
        assert values(consumer.poll()) == expected


@pytest.mark.parametrize("start", [{0: 2}, {("t", 0): 2}])
def test_offsets_start_there_and_other_partitions_at_their_beginning(desk, start):
    desk.topic(partitions=2).put(*"abc").put("x", partition=1)
    with desk.consumer(start=start) as consumer:
        assert sorted(values(consumer.poll())) == ["c", "x"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": "newest"},
        {"start": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"start": {0: -1}},
        {"start": {0: "1"}},
        {"delivery": "sometimes"},
        {"delivery": "exactly-once"},
        {"session_timeout": 0},
        {"group": ""},
    ],
)
def test_arguments_that_cannot_be_used_are_refused(desk, arguments):
    desk.topic()
    with pytest.raises(InvalidRequestError):
        desk.consumer(**arguments)


def test_exactly_once_points_to_transform_and_transactions(desk):
    desk.topic()
    with pytest.raises(InvalidRequestError, match=r"transform.*transaction"):
        desk.consumer(delivery="exactly-once")


def test_a_committed_offset_comes_before_the_start(desk):
    desk.topic().put("a", "b")
    with desk.consumer(group="g") as consumer:
        consumer.poll(1)
    with desk.consumer(group="g", start="latest") as consumer:
        assert values(consumer.poll()) == ["b"]


def test_a_group_that_starts_at_latest_remembers_it_before_the_first_record(desk):
    desk.topic().put("a")
    desk.consumer(group="g", start="latest").close()
    desk.put("b")
    with desk.consumer(group="g", start="latest") as consumer:
        assert values(consumer.poll()) == ["b"]


@pytest.mark.parametrize(("start", "expected"), [("earliest", ["c", "d"]), ("latest", [])])
def test_a_committed_offset_that_was_deleted_leaves_it_to_the_start(desk, start, expected, caplog):
    desk.topic().put("a").put("b").put("c").put("d")
    with desk.consumer(group="g") as consumer:
        consumer.poll(1)
    desk.broker.delete_records("t", {0: 2})
    with desk.consumer(group="g", start=start) as consumer:
        assert values(consumer.poll()) == expected
    assert "the committed offset of t-0 is 1, outside of [2, 4]" in caplog.text


def test_whoever_goes_on_behind_what_was_deleted_decodes_a_few_of_a_batch_alone_once(desk, monkeypatch):
    """Each of its polls for a few did so, and passed over all of the batch before them."""
    desk.topic().put("a").put(*"bcdefgh")
    with desk.consumer(group="g") as consumer:
        consumer.poll(1)
    desk.put("i")
    desk.broker.delete_records("t", {0: 2})
    parts = []
    monkeypatch.setattr(
        cursor, "decode_range", lambda *given: parts.append(given[1:3]) or decode_range(*given)
    )
    with desk.consumer(group="g") as consumer:
        assert [value for _ in range(7) for value in values(consumer.poll(1))] == list("cdefghi")
    assert parts == [(2, 3)]


@pytest.mark.parametrize("start", [{0: 99}, {0: (1 << 63) - 1}])
@pytest.mark.parametrize("is_polled", [True, False])
def test_a_start_behind_the_end_leaves_out_nothing_that_comes_later(desk, start, is_polled, caplog):
    desk.topic().put("a").put("b")
    with desk.consumer(group="g", start=start) as consumer:
        assert consumer.position() == {0: 2}
        if is_polled:
            assert consumer.poll() == []
    assert desk.broker.group("g").offsets[0].committed_offset == 2
    assert f"offset {start[0]} of t-0, which is not there: it begins at 2" in caplog.text
    desk.put("c")
    with desk.consumer(group="g") as consumer:
        assert values(consumer.poll()) == ["c"]


def test_a_start_below_what_was_deleted_is_committed_as_the_log_start(desk):
    desk.topic().put("a").put("b").put("c")
    desk.broker.delete_records("t", {0: 2})
    desk.consumer(group="g", start={0: 1}).close()
    assert desk.broker.group("g").offsets[0].committed_offset == 2


# Places -----------------------------------------------------------------------------------------------------


def test_seek_goes_back_and_forth(desk):
    desk.topic().put(*"abc").put("d")
    with desk.consumer() as consumer:
        assert values(consumer.poll()) == list("abcd")
        consumer.seek(0, 1)
        assert consumer.position() == {0: 1}
        assert values(consumer.poll()) == list("bcd")
        consumer.seek(0, 4)
        assert consumer.poll() == []


def test_one_record_of_a_place_costs_no_megabyte_and_reading_on_is_done_in_large_pieces(desk, monkeypatch):
    desk.topic(durability="os")
    with desk.broker.producer(batch_bytes=131_072) as producer:
        for _ in range(20):
            producer.send_many("t", [b"x" * 1000] * 100)
    sizes = []
    pread = OsFiles.pread

    def counting(files, fd, size, position):
        sizes.append(size)
        return pread(files, fd, size, position)

    monkeypatch.setattr(OsFiles, "pread", counting)
    with desk.consumer() as consumer:
        consumer.seek(0, 1500)
        (record,) = consumer.poll(1)
        assert (record.offset, len(record.value)) == (1500, 1000)
        assert sum(sizes) < 300_000, "a piece of the log, and the batch if it was longer"
        sizes.clear()
        consumer.seek(0, 0)
        assert len(consumer.poll(10_000)) > 800
        assert max(sizes) >= 1 << 20


@pytest.fixture
def sought(desk):
    """A topic of four batches of 25 records, one of which expires, and no, or a filtering, consumer of it."""
    desk.topic()
    for number in range(4):
        desk.put(
            *(f"{number * 25 + index}" for index in range(25)), ttl=timedelta(days=9) if number == 2 else None
        )
    return desk


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.none() | st.integers(0, 100), st.sampled_from([1, 2, 10, 11, 60])), max_size=12
    ),
    odd_only=st.booleans(),
)
def test_whatever_is_sought_and_polled_comes_in_order_and_whole(sought, steps, odd_only):
    """Of a place that was sought, the first poll decodes no more than was asked for."""
    wanted = [offset for offset in range(100) if offset % 2 or not odd_only]
    matches = (lambda record: record.offset % 2 == 1) if odd_only else None
    with sought.broker.consumer("t", filter=matches) as consumer:
        position = 0
        for place, count in steps:
            if place is not None:
                consumer.seek(0, place)
                position = place
            ahead = [offset for offset in wanted if offset >= position]
            found = consumer.poll(count)
            assert [record.offset for record in found] == ahead[: len(found)]
            assert [record.value for record in found] == [b"%d" % offset for offset in ahead[: len(found)]]
            assert found or not ahead
            assert not any(record.header_pairs and record.headers != [("h", b"1")] for record in found)
            position = consumer.position()[0]
            assert [offset for offset in wanted if offset >= position] == ahead[len(found) :]


def test_seek_inside_an_iteration_takes_effect_at_the_next_record(desk):
    desk.topic().put(*"abcdefghijklmnop")
    with desk.consumer() as consumer:
        seen = []
        for record in consumer:
            seen.append(record.value.decode())
            if record.value == b"e" and len(seen) == 5:
                consumer.seek(0, 1)
            if record.value == b"p":
                break
    assert "".join(seen) == "abcde" + "bcdefghijklmnop"


def test_seek_to_a_moment_moves_every_partition(desk):
    desk.topic(partitions=2).put("a", at_ms=NOON_MS).put("b", at_ms=NOON_MS + 2000).put(
        "x", partition=1, at_ms=NOON_MS
    )
    with desk.consumer() as consumer:
        consumer.seek_to(datetime.fromtimestamp((NOON_MS + 1000) / 1000, tz=UTC))
        assert consumer.position() == {0: 1, 1: 1}
        assert values(consumer.poll()) == ["b"]


@pytest.mark.parametrize("offset", [-1, 3, 100])
def test_seek_outside_the_log_says_what_there_is(desk, offset):
    desk.topic().put("a", "b")
    with desk.consumer() as consumer, pytest.raises(OffsetOutOfRangeError) as caught:
        consumer.seek(0, offset)
    assert (caught.value.start_offset, caught.value.end_offset) == (0, 2)


def test_seek_needs_a_partition_that_is_assigned_and_unambiguous(desk):
    desk.topic("x").topic("y").put("a", topic="y")
    with desk.consumer(["x", "y"]) as consumer:
        with pytest.raises(InvalidRequestError, match="not assigned"):
            consumer.seek(7, 0)
        with pytest.raises(InvalidRequestError, match="several topics"):
            consumer.seek(0, 0)
        consumer.seek(("y", 0), 1)
        consumer.seek(0, 1, topic="y")
        assert consumer.poll() == []


def test_records_deleted_while_they_are_read_are_an_error_until_a_seek(desk):
    desk.topic().put("a").put("b").put("c").put("d")
    with desk.consumer() as consumer:
        assert values(consumer.poll(1)) == ["a"]
        consumer.seek(0, 1)
        desk.broker.delete_records("t", {0: 3})
        for _ in range(2):
            with pytest.raises(OffsetOutOfRangeError) as caught:
                consumer.poll()
        consumer.seek(caught.value.partition, caught.value.start_offset)
        assert values(consumer.poll()) == ["d"]


# Committing -------------------------------------------------------------------------------------------------


def test_at_least_once_commits_what_was_handed_out_when_the_next_is_asked_for(desk):
    desk.topic().put("a", "b", "c")
    with desk.consumer(group="g") as consumer:
        consumer.poll(2)
        assert desk.committed() is None
        consumer.poll()
        assert desk.committed() == 2
    assert desk.committed() == 3


def test_at_most_once_commits_before_it_hands_out(desk):
    desk.topic().put("a", "b", "c")
    with desk.consumer(group="g", delivery="at-most-once") as consumer:
        consumer.poll(2)
        assert desk.committed() == 2


def test_at_most_once_takes_back_on_closing_what_was_never_handed_out(desk):
    desk.topic().put(*"abcdefghij")
    with desk.consumer(group="g", delivery="at-most-once") as consumer:
        assert first(consumer, 5) == list("abcde")
    assert desk.committed() == 5


def test_manual_commits_only_when_told(desk):
    desk.topic().put("a", "b", "c")
    with desk.consumer(group="g", delivery="manual") as consumer:
        consumer.poll(1)
        consumer.poll(1)
        assert desk.committed() is None
        consumer.commit()
        assert desk.committed() == 2
        consumer.poll()
    assert desk.committed() == 2


@pytest.mark.parametrize("delivery", ["at-least-once", "manual"])
def test_commit_inside_an_iteration_includes_the_current_record(desk, delivery):
    desk.topic().put(*"abcdefghij")
    with desk.consumer(group="g", delivery=delivery) as consumer:
        for record in consumer:
            consumer.commit()
            assert desk.committed() == record.offset + 1
            if record.offset == 7:
                break
    assert desk.committed() == 8


def test_an_iteration_has_committed_everything_before_it_waits(desk):
    desk.topic().put(*"abc")
    with desk.consumer(group="g") as consumer:
        seen = []
        desk_sees = threading.Event()

        def look():
            while desk.committed() != 3:
                pass
            desk_sees.set()
            desk.put("d")

        looker = threading.Thread(target=look)
        looker.start()
        for record in consumer:
            seen.append(record.value.decode())
            if record.value == b"d":
                break
        looker.join()
    assert desk_sees.is_set()
    assert seen == list("abcd")


def test_leaving_with_an_exception_does_not_commit_the_record_that_failed(desk):
    desk.topic().put(*"abcdef")

    def fail_at_d():
        with desk.consumer(group="g") as consumer:
            for record in consumer:
                if record.value == b"d":
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_d()
    assert desk.committed() == 3


def test_leaving_with_an_exception_does_not_commit_the_last_poll(desk):
    desk.topic().put(*"abcdef")

    def fail_after_two_polls():
        with desk.consumer(group="g") as consumer:
            consumer.poll(2)
            consumer.poll(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_two_polls()
    assert desk.committed() == 2


def test_leaving_with_an_exception_keeps_an_explicit_commit(desk):
    desk.topic().put(*"abcdef")

    def fail_behind_a_commit():
        with desk.consumer(group="g") as consumer:
            for record in consumer:
                consumer.commit()
                if record.value == b"d":
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_behind_a_commit()
    assert desk.committed() == 4


@pytest.mark.parametrize("fails", [True, False])
def test_a_slice_that_was_cut_short_is_committed_only_as_far_as_it_was_handed_out(desk, fails):
    desk.topic().put(*(str(number) for number in range(100)))
    seen = []

    def read_to_40():
        with desk.consumer(group="g") as consumer:
            for record in consumer:
                seen.append(record.offset)
                if record.offset == 40:
                    consumer._assigned.handout.started -= 1  # as if a second had passed
                    assert consumer.tend()
                    assert consumer.position() == {0: 41}
                    if fails:
                        raise ZeroDivisionError
                if record.offset == 60:
                    break

    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        read_to_40()
    assert seen == list(range(41 if fails else 61))
    assert desk.committed() == (40 if fails else 61)


def test_breaking_out_of_an_iteration_commits_the_last_record_on_closing(desk):
    desk.topic().put(*"abcdef")
    with desk.consumer(group="g") as consumer:
        assert first(consumer, 4) == list("abcd")
    assert desk.committed() == 4


def test_commit_after_a_seek_commits_the_new_place(desk):
    desk.topic().put(*"abc")
    with desk.consumer(group="g", delivery="manual") as consumer:
        consumer.poll()
        consumer.commit()
        consumer.seek(0, 1)
        consumer.commit()
        assert consumer.committed() == {0: 1}
    assert desk.committed() == 1


def test_a_consumer_without_a_group_has_nothing_to_commit(desk):
    desk.topic().put("a")
    with desk.consumer() as consumer:
        consumer.poll()
        with pytest.raises(InvalidRequestError, match="group="):
            consumer.commit()


def test_a_committed_offset_is_never_above_what_is_on_the_disk(desk):
    desk.topic(durability="os").put("a", "b")
    log = desk.directory.log("t", 0)
    assert log.offsets().synced_offset == 0
    with desk.consumer(group="g", delivery="manual") as consumer:
        assert values(consumer.poll()) == ["a", "b"]
        consumer.commit()
    assert log.offsets().synced_offset == 2


def test_what_was_only_passed_over_is_committed_too(slow_desk):
    slow_desk.topic(message_ttl_ms=1000).put("a", "b")
    slow_desk.clock.advance(ms=2000)
    with slow_desk.consumer(group="g") as consumer:
        assert consumer.poll() == []
        assert consumer.poll() == []
    assert slow_desk.committed() == 2


# Expiry -----------------------------------------------------------------------------------------------------


def test_a_record_older_than_the_topics_ttl_is_never_delivered(slow_desk):
    slow_desk.topic(message_ttl_ms=1000).put("a")
    slow_desk.clock.advance(ms=600)
    slow_desk.put("b")
    slow_desk.clock.advance(ms=600)
    with slow_desk.consumer() as consumer:
        assert values(consumer.poll()) == ["b"]
        assert consumer.position() == {0: 2}


@pytest.mark.parametrize("codec", [Compression.NONE, Compression.ZSTD])
def test_a_records_own_ttl_passes_it_over(slow_desk, codec):
    slow_desk.topic().put("a", ttl=timedelta(seconds=1), codec=codec).put("b", codec=codec)
    slow_desk.clock.advance(ms=1000)
    with slow_desk.consumer() as consumer:
        assert values(consumer.poll()) == ["b"]


def test_records_that_expire_after_they_were_decoded_are_not_delivered(slow_desk):
    slow_desk.topic().put("a", "b", "c", ttl=timedelta(seconds=1)).put("d")
    with slow_desk.consumer() as consumer:
        assert values(consumer.poll(1)) == ["a"]
        slow_desk.clock.advance(ms=1000)
        assert values(consumer.poll(10)) == ["d"]
        assert consumer.lag() == {0: 0}


@pytest.mark.parametrize("config", [{"message_ttl_ms": 1000}, {}])
def test_records_that_expire_inside_an_iteration_are_not_delivered(slow_desk, config):
    ttl = None if config else timedelta(seconds=1)
    slow_desk.topic(**config).put(*"abcdefgh", ttl=ttl)
    with slow_desk.consumer() as consumer:
        seen = []
        for record in consumer:
            seen.append(record.value.decode())
            if record.value == b"c":
                slow_desk.clock.advance(ms=1000)
                slow_desk.put("x")
            if record.value == b"x":
                break
    assert seen == list("abcx")


def test_a_changed_ttl_is_taken_up_by_a_consumer_that_runs(slow_desk):
    slow_desk.topic().put("a")
    with slow_desk.consumer() as consumer:
        assert values(consumer.poll()) == ["a"]
        slow_desk.put("b")
        slow_desk.broker.alter_topic("t", config={"message.ttl.ms": 1000})
        slow_desk.clock.advance(ms=1000)
        assert consumer.poll() == []


# Damage -----------------------------------------------------------------------------------------------------


def damage(desk, batch, *, topic="t", partition=0):
    """Flip a bit in the last byte of the batch with this number."""
    log = desk.directory.log(topic, partition)
    reader = log.reader(0)
    sizes = [stored.header.size_bytes for stored in reader.read()]
    reader.close()
    path = f"{log.directory}/{0:020}.log"
    with open(path, "r+b") as file:
        file.seek(sum(sizes[: batch + 1]) - 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def test_a_paused_partition_hands_out_nothing_until_it_is_resumed(desk):
    desk.topic(partitions=2).put("a").put("x", partition=1)
    with desk.consumer(group="g") as consumer:
        consumer.pause(("t", 0))
        assert values(consumer.poll()) == ["x"]
        assert consumer.poll(timeout=0.05) == []
        consumer.resume(("t", 0))
        assert values(consumer.poll()) == ["a"]
        consumer.pause(("t", 7))  # not assigned: nothing to pause
        with pytest.raises(InvalidRequestError, match="topic, number"):
            consumer.pause(0)


def test_pausing_a_partition_in_an_iteration_ends_its_slice(desk):
    desk.topic(partitions=2).put(*[f"a{number}" for number in range(300)])
    with desk.consumer(group="g") as consumer:
        iteration = iter(consumer)
        seen = values(itertools.islice(iteration, 250))  # slices are long by now
        consumer.pause(("t", 0))
        desk.put("x", partition=1)
        assert values([next(iteration)]) == ["x"]
        consumer.resume(("t", 0))
        seen += values(itertools.islice(iteration, 50))
        assert seen == [f"a{number}" for number in range(300)]
        consumer.commit()
        assert consumer.committed() == {0: 300, 1: 1}


def test_a_consumer_returns_to_what_is_stored_whatever_it_remembers(desk):
    desk.topic().put("a", "b")
    with desk.consumer(group="g", delivery="manual") as consumer:
        consumer.poll()
        consumer.commit()
        assert consumer.committed_in(("t", 0)) == 2
        event = desk.directory.groups.committed("g", "t", 0)
        desk.directory.journal.record([msgspec.structs.replace(event, offset=1)])
        consumer.return_to_committed()
        assert consumer.poll() == []
        consumer.return_to_stored()
        assert consumer.committed_in(("t", 0)) == 1
        assert values(consumer.poll()) == ["b"]


def test_damage_comes_after_the_records_before_it_and_again_until_a_seek_behind_it(desk):
    desk.topic().put("a", "b").put("c", "d").put("e")
    damage(desk, 1)
    with desk.consumer() as consumer:
        assert values(consumer.poll()) == ["a", "b"]
        for _ in range(2):
            with pytest.raises(CorruptionError) as caught:
                consumer.poll()
        assert (caught.value.start_offset, caught.value.end_offset) == (2, 4)
        consumer.seek(caught.value.partition, caught.value.end_offset)
        assert values(consumer.poll()) == ["e"]


def test_damage_ends_an_iteration_which_goes_on_behind_it(desk):
    desk.topic().put("a").put("b").put("c")
    damage(desk, 1)
    seen = []
    with desk.consumer() as consumer:
        with pytest.raises(CorruptionError) as caught:
            seen.extend(record.value.decode() for record in consumer)
        consumer.seek(caught.value.partition, caught.value.end_offset)
        assert first(consumer, 1) == ["c"]


def test_damage_in_one_partition_does_not_keep_the_others_from_being_read(desk):
    desk.topic(partitions=2).put("a").put("x", partition=1).put("y", partition=1)
    damage(desk, 0)
    seen, damaged = [], []
    with desk.consumer() as consumer:
        for _ in range(6):
            try:
                seen += values(consumer.poll(1))
            except CorruptionError as error:
                damaged.append(error.partition)
    assert seen == ["x", "y"]
    assert set(damaged) == {0}


# Threads and closing ----------------------------------------------------------------------------------------


def test_wakeup_ends_a_poll_that_waits(desk):
    desk.topic()
    with desk.consumer() as consumer:
        timer = threading.Timer(0.05, consumer.wakeup)
        timer.start()
        assert consumer.poll(timeout=None) == []
        timer.join()


def test_close_from_another_thread_ends_an_iteration(desk):
    desk.topic().put("a")
    consumer = desk.consumer(group="g")
    timer = threading.Timer(0.05, consumer.close)
    timer.start()
    assert values(consumer) == ["a"]
    timer.join()
    assert desk.committed() == 1


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("how", ["wakeup", "close"])
def test_a_poll_whose_filter_lets_nothing_through_is_ended_too(desk, how, partitions):
    desk.topic(partitions=partitions)
    for number in range(4):
        desk.put(MORE_THAN_HALF_A_READ, partition=number % partitions)
    seen = []
    is_looking, is_told = threading.Event(), threading.Event()

    def matches(record):
        seen.append(record.offset)
        is_looking.set()
        is_told.wait(10)
        return False

    with desk.consumer(filter=matches) as consumer:
        polling = threading.Thread(target=consumer.poll, kwargs={"timeout": None})
        polling.start()
        is_looking.wait(10)
        telling = threading.Thread(target=getattr(consumer, how))
        telling.start()
        while not (consumer._woken or consumer._closing):
            pass
        is_told.set()
        polling.join()
        telling.join()
    assert seen == [0]


def test_a_poll_commits_what_it_passes_over_on_its_way(desk):
    """One that dies in a long log would else begin anew each time."""
    desk.topic()
    for _ in range(3):
        desk.put(MORE_THAN_HALF_A_READ)
    committed = []

    def matches(record):
        committed.append(desk.committed())
        return False

    with desk.consumer(group="g", filter=matches) as consumer:
        assert consumer.poll() == []
    assert committed[:2] == [None, 1]
    assert desk.committed() == 3


def test_what_lies_behind_much_that_is_passed_over_comes_with_the_same_poll(desk):
    desk.topic()
    for _ in range(3):
        desk.put(MORE_THAN_HALF_A_READ)
    desk.put("a")
    with desk.consumer(filter=lambda record: record.offset == 3) as consumer:
        assert values(consumer.poll()) == ["a"]
        consumer.seek(0, 0)
        assert first(consumer, 1) == ["a"]


def test_a_subscription_that_is_paused_ends_a_poll_that_passes_records_over(desk):
    desk.topic()
    for _ in range(3):
        desk.put(MORE_THAN_HALF_A_READ)
    desk.broker.create_subscription("g", topic="t", kind="stream")

    def matches(record):
        if record.offset == 0:
            desk.broker.pause_subscription("g")
        return False

    with desk.consumer(group="g", filter=matches) as consumer:
        assert consumer.poll(timeout=0.01) == []
        assert consumer.position() == {0: 1}
        desk.broker.resume_subscription("g")
        assert consumer.poll() == []
        assert consumer.position() == {0: 3}


def test_a_second_thread_that_polls_is_refused(desk):
    desk.topic()
    with desk.consumer() as consumer:
        waiting = threading.Thread(target=consumer.poll, kwargs={"timeout": None})
        waiting.start()
        while consumer._turn_thread is None:
            pass
        with pytest.raises(InvalidRequestError, match="another thread"):
            consumer.poll()
        consumer.wakeup()
        waiting.join()


def test_a_closed_consumer_says_so_and_closing_again_is_nothing(desk):
    desk.topic()
    consumer = desk.consumer(group="g")
    consumer.close()
    consumer.close()
    for use in (consumer.poll, consumer.commit, consumer.position, lambda: next(iter(consumer))):
        with pytest.raises(ClosedError):
            use()
    assert "closed" in repr(consumer)


def test_a_consumer_outlives_the_broker_that_made_it(tmp_path):
    desk = Desk(tmp_path / "data").topic().put("a")
    consumer = desk.consumer(group="g")
    desk.broker.close()
    assert values(consumer.poll()) == ["a"]
    consumer.close()


def test_two_groups_read_independently(desk):
    desk.topic().put("a", "b")
    with desk.consumer(group="g") as one, desk.consumer(group="h") as other:
        assert values(one.poll()) == values(other.poll()) == ["a", "b"]


def test_pending_commit_is_what_a_transaction_journals(desk):
    desk.topic().put("a", "b")
    with desk.consumer(group="g", delivery="manual") as consumer:
        consumer.poll()
        pending = consumer.pending_commit()
        events = [decode_event(value) for _, value in pending.decide()]
        assert [(event.partition, event.offset) for event in events] == [(0, 2)]
        desk.directory.journal.decide(pending.decide)
        pending.settle()
        assert consumer.committed() == {0: 2}
        assert consumer.pending_commit().decide() == []


def test_a_commit_after_the_topic_was_made_anew_is_refused(desk):
    desk.topic().put("a", "b")
    with desk.consumer(group="g", delivery="manual") as consumer:
        consumer.poll()
        desk.broker.delete_topic("t")
        with pytest.raises((TopicNotFoundError, FencedError)):
            consumer.commit()
        desk.topic()
        with contextlib.suppress(FencedError, TopicNotFoundError):
            consumer.commit()
    assert desk.committed() is None


# Broken off ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConnectionError, StopIteration, KeyboardInterrupt])
def test_a_filter_that_raises_once_loses_no_record(desk, error):
    desk.topic().put(*map(str, range(10))).put(*map(str, range(10, 20)))
    broken = True

    def matches(record):
        if broken and record.offset == 15:
            raise error
        return True

    with desk.consumer(group="g", filter=matches) as consumer:
        found = consumer.poll(3)
        with pytest.raises(error):  # noqa: PT012 (in one of the polls)
            while records := consumer.poll(10):
                found += records
        broken = False
        while records := consumer.poll(10):
            found += records
    assert values(found) == list(map(str, range(20)))


@pytest.mark.parametrize("error", [ConnectionError, KeyboardInterrupt])
def test_a_filter_that_raises_leaves_the_records_of_other_partitions(desk, error):
    desk.topic(partitions=2).put("a", "b", partition=0).put("c", "d", partition=1)
    broken = True

    def matches(record):
        if broken and record.partition == 1:
            raise error
        return True

    found = []
    with desk.consumer(group="g", filter=matches) as consumer:
        for _ in range(5):
            try:
                found += values(consumer.poll(100))
            except error:
                broken = False
    assert sorted(found) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("offset", [True, 2.5, 3.0])
def test_an_offset_is_an_integer(desk, offset):
    """Nothing else comes into the journal, which has to be read again."""
    desk.topic().put("a", "b", "c", "d")
    with desk.consumer(group="g", delivery="manual") as consumer:
        with pytest.raises(InvalidRequestError, match="integer"):
            consumer.seek(0, offset)
        consumer.commit()
    with pytest.raises(InvalidRequestError):
        desk.broker.delete_records("t", {0: offset})
    with logbroker.open(desk.directory.path) as again:
        again.group("g")
