"""What a consumer of a queue sees: messages in its hands, and the ways out of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta

import pytest

import logbroker
from logbroker.errors import (
    ClosedError,
    InvalidRequestError,
    LeaseLostError,
    QueueEmptyError,
    SubscriptionExistsError,
    SubscriptionNotFoundError,
    TopicNotFoundError,
)

from .desk import NOON_MS, QueueDesk, counts, values

# Receiving and accepting ------------------------------------------------------------------------------------


def test_each_message_goes_to_one_consumer(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "b", "c")
    one, other = desk.hands(), desk.hands()
    assert values(one.receive_many(2)) == ["a", "b"]
    assert values(other.receive_many()) == ["c"]
    assert values(one.receive_many()) == []


def test_a_message_is_a_record_that_knows_how_often_it_was_delivered(desk: QueueDesk) -> None:
    desk.queue_of().put("a", key=b"k", headers={"h": b"1"}, ttl=timedelta(hours=1), priority=3)
    message = desk.hands().receive(0)
    assert (message.topic, message.partition, message.offset) == ("jobs", 0, 0)
    assert (message.value, message.key, message.headers) == (b"a", b"k", [("h", b"1")])
    assert message.timestamp_ms == NOON_MS
    assert message.timestamp.timestamp() * 1000 == NOON_MS
    assert message.delivery_count == 1
    assert repr(message) == "<QueueMessage jobs-0@0 delivery 1>"


def test_a_message_that_was_accepted_never_comes_again(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a", "b")
    hands = desk.hands()
    hands.receive(0).accept()
    desk.advance(100)
    assert values(hands.receive_many()) == ["b"]
    desk.advance(100)
    assert values(hands.receive_many()) == ["b"]


def test_messages_are_accepted_in_any_order(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put(*"abcdef")
    batch = desk.hands().receive_many()
    for number in (4, 1, 2, 5):
        batch[number].accept()
    assert desk.partition().start_offset == 0
    batch[0].accept()
    assert desk.partition().start_offset == 3
    desk.advance(10)
    assert desk.left() == ["d"]
    assert desk.partition().start_offset == 6


def test_a_batch_is_accepted_at_once_but_for_what_was_settled_before(desk: QueueDesk) -> None:
    desk.queue_of(partitions=3, lease=10.0).put("a", partition=0).put("b", partition=1).put("c", partition=2)
    hands = desk.hands()
    batch = hands.receive_many()
    assert sorted(values(batch)) == ["a", "b", "c"]
    batch[0].release()
    batch.accept()
    batch.accept()  # nothing is left to accept
    assert values(hands.receive_many()) == [values(batch)[0]]


def test_a_batch_is_released_or_rejected_at_once(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").put("a", "b", "c")
    hands = desk.hands()
    hands.receive_many(2).release()
    again = hands.receive_many()
    assert (values(again), counts(again)) == (["a", "b", "c"], [2, 2, 1])
    again[2].accept()
    again.reject("no use")
    assert desk.deaths() == [("a", "no use"), ("b", "no use")]


def test_an_accepted_message_that_is_given_twice_counts_once(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    hands = desk.hands()
    message = hands.receive(0)
    hands.accept([message, message])
    assert desk.lag() == 0


def test_a_receive_finds_nothing_in_time(desk: QueueDesk) -> None:
    desk.queue_of()
    hands = desk.hands()
    assert hands.receive_many() == []
    assert hands.receive_many(timeout=0.01) == []
    with pytest.raises(QueueEmptyError, match=r"'workers' came within 0\.01 seconds"):
        hands.receive(0.01)


def test_a_waiting_receive_is_woken_by_a_message(desk: QueueDesk) -> None:
    desk.queue_of()
    hands = desk.hands()
    sender = threading.Timer(0.05, desk.put, ["a"])
    sender.start()
    assert hands.receive(30).value == b"a"
    sender.join()


def test_a_waiting_receive_is_woken_by_a_release(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    held = desk.hands().receive(0)
    sender = threading.Timer(0.05, held.release)
    sender.start()
    began = time.monotonic()
    assert desk.hands().receive(30).delivery_count == 2
    assert time.monotonic() - began < 10
    sender.join()


def test_iteration_goes_on_from_message_to_message(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "b")
    seen = []
    for message in desk.hands():
        seen.append(message.value)
        message.accept()
        if len(seen) == 2:
            break
    assert seen == [b"a", b"b"]


# As context managers ----------------------------------------------------------------------------------------


def test_leaving_a_message_accepts_it(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    with desk.hands().receive(0) as message:
        assert message.value == b"a"
    assert message.is_settled
    assert desk.lag() == 0


def test_an_exception_releases_it(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    hands = desk.hands()
    with pytest.raises(ZeroDivisionError), hands.receive(0):
        raise ZeroDivisionError
    assert hands.receive(0).delivery_count == 2


def test_what_was_settled_inside_stays_so(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").put("a", "b")
    hands = desk.hands()
    with hands.receive(0) as message:
        message.reject("bad")
    with pytest.raises(ZeroDivisionError), hands.receive(0) as message:  # noqa: PT012 (it passes through the block)
        message.accept()
        raise ZeroDivisionError
    assert desk.deaths() == [("a", "bad")]
    assert desk.lag() == 0


def test_leaving_a_message_whose_lease_is_over_says_so(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a")
    with pytest.raises(LeaseLostError), desk.hands().receive(0):
        desk.advance(10)


def test_the_exception_inside_is_the_one_that_is_seen_when_the_lease_is_over(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a")
    with pytest.raises(ZeroDivisionError), desk.hands().receive(0):  # noqa: PT012 (it passes through the block)
        desk.advance(10)
        raise ZeroDivisionError


def test_closing_a_queue_releases_what_is_in_its_hands(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "b")
    with desk.hands() as hands:
        first, _ = hands.receive_many()
        first.accept()
    assert values(desk.hands().receive_many()) == ["b"]
    with pytest.raises(ClosedError, match="the queue was closed"):
        hands.receive_many()
    with pytest.raises(ClosedError):
        first.accept()
    hands.close()


@pytest.mark.parametrize("renew", [False, True])
def test_a_signal_handler_may_close_the_queue_that_its_thread_receives_from(
    desk: QueueDesk, renew: bool
) -> None:
    desk.queue_of().put("a")
    hands = desk.hands(renew=renew)
    assert values(hands.receive_many()) == ["a"]
    before = signal.signal(signal.SIGUSR1, lambda *_: hands.close())
    sender = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    sender.start()
    try:
        with pytest.raises(ClosedError, match="the queue was closed"):
            hands.receive(60)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert values(desk.hands().receive_many()) == ["a"]


# Leases -----------------------------------------------------------------------------------------------------


def test_a_message_comes_again_at_the_end_of_its_lease_and_not_a_millisecond_earlier(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a")
    one, other = desk.hands(), desk.hands()
    held = one.receive(0)
    desk.advance(9.999)
    assert values(other.receive_many()) == []
    desk.advance(0.001)
    assert counts(other.receive_many()) == [2]
    with pytest.raises(LeaseLostError) as caught:
        held.accept()
    assert caught.value.lost == [("jobs", 0, 0, 0)]


def test_a_lease_holds_to_its_last_millisecond(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a")
    held = desk.hands().receive(0)
    desk.advance(9.999)
    held.accept()
    assert desk.lag() == 0


def test_a_lease_that_is_over_is_lost_even_if_nobody_else_has_taken_the_message(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a")
    held = desk.hands().receive(0)
    desk.advance(10)
    for settle in (held.accept, held.release, held.reject, held.extend):
        with pytest.raises(LeaseLostError):
            settle()
    assert desk.left() == ["a"]


def test_what_is_still_in_hand_is_settled_when_other_messages_are_lost(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a")
    hands = desk.hands()
    lost = hands.receive(0)
    desk.advance(5)
    desk.put("b", "c")
    held = hands.receive_many()
    desk.advance(5)
    with pytest.raises(LeaseLostError) as caught:
        hands.accept([lost, *held])
    assert caught.value.lost == [("jobs", 0, 0, 0)]
    assert desk.left() == ["a"]


def test_a_lease_is_extended(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a")
    held = desk.hands().receive(0)
    desk.advance(9)
    held.extend()
    desk.advance(9.999)
    held.extend(60)
    desk.advance(59.999)
    assert desk.left() == []
    desk.advance(0.001)
    assert desk.left() == ["a"]


def test_an_extension_may_be_shorter(desk: QueueDesk) -> None:
    desk.queue_of(lease=100.0).put("a")
    held = desk.hands().receive(0)
    held.extend(1)
    desk.advance(1)
    assert desk.left() == ["a"]


def test_a_consumer_has_a_lease_of_its_own(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a")
    desk.hands(lease=50).receive(0)
    desk.advance(49.999)
    assert desk.left() == []
    desk.advance(0.001)
    assert desk.left() == ["a"]


def test_renewing_hands_keep_what_they_hold(desk: QueueDesk) -> None:
    desk.queue_of(lease=0.3).put("long work")
    hands, others = desk.hands(renew=True), desk.hands()
    message = hands.receive(0)
    (partition,) = hands._partitions.values()
    for _ in range(4):
        desk.advance(0.2)
        ends = time.monotonic() + 30
        while partition.glance().next_due_s < 0.3:
            assert time.monotonic() < ends, "it is not renewed"
            time.sleep(0.001)
        assert others.receive_many() == []
    message.accept()


def test_the_messages_of_a_dead_process_return_at_once(desk: QueueDesk) -> None:
    desk.queue_of(lease=1000.0).put("a", "b", "c")
    assert desk.somebody_dies_with(2) == ["a", "b"]
    again = desk.hands().receive_many()
    assert sorted(zip(values(again), counts(again), strict=True)) == [("a", 2), ("b", 2), ("c", 1)]


def test_they_return_also_when_the_last_process_of_all_has_died(desk: QueueDesk) -> None:
    desk.queue_of(lease=1000.0).put("a", "b")
    desk.close()
    assert desk.somebody_dies_with(1) == ["a"]
    desk.open()
    assert values(desk.hands().receive_many()) == ["a", "b"]


def test_they_return_to_a_consumer_that_has_looked_before(desk: QueueDesk) -> None:
    desk.queue_of(lease=1000.0, max_deliveries=100).put("a")
    hands = desk.hands()
    for death in (1, 2, 3):
        assert desk.somebody_dies_with(1) == ["a"]
        desk.advance(1)
        message = hands.receive(0)
        assert message.delivery_count == 2 * death
        message.release()


def test_they_return_while_there_are_others_to_be_had(desk: QueueDesk) -> None:
    desk.queue_of(lease=1000.0).put("a", "b", "c")
    hands = desk.hands()
    hands.receive(0).release()
    assert desk.somebody_dies_with(1) == ["a"]
    desk.advance(1)
    seen = [hands.receive(0).value, hands.receive(0).value]
    assert seen == [b"a", b"b"]


# Deliveries, rejection, dead letters -------------------------------------------------------------------------


def test_deliveries_are_counted_however_they_end(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0, max_deliveries=10).put("a")
    hands = desk.hands()
    hands.receive(0).release()
    assert hands.receive(0).delivery_count == 2
    desk.advance(10)
    assert hands.receive(0).delivery_count == 3
    hands.close()
    assert desk.hands().receive(0).delivery_count == 4


def test_a_message_dies_at_the_delivery_limit(desk: QueueDesk) -> None:
    desk.queue_of(max_deliveries=2, dead_letter="jobs.dead").put("a", key=b"k", headers={"h": b"1"})
    hands = desk.hands()
    for _ in range(2):
        hands.receive(0).release()
    assert values(hands.receive_many()) == []
    [(value, death)] = desk.dead_letters()
    assert value == "a"
    assert (death.topic, death.partition, death.offset, death.timestamp_ms) == ("jobs", 0, 0, NOON_MS)
    assert (death.by, death.reason, death.deliveries) == ("workers", "delivery limit reached", 2)
    assert desk.broker.subscription("workers").dead_letters == 1
    assert desk.lag() == 0


def test_a_message_whose_last_lease_ends_dies_too(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0, max_deliveries=1, dead_letter="jobs.dead").put("a")
    hands = desk.hands()
    hands.receive(0)
    desk.advance(10)
    assert values(hands.receive_many()) == []
    assert desk.deaths() == [("a", "delivery limit reached")]


def test_a_dead_letter_keeps_key_value_and_headers(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").put(
        "a", key=b"k", headers=[("h", b"1"), ("n", None)], timestamp=NOON_MS - 5, ttl=timedelta(hours=1)
    )
    desk.advance(60)
    desk.hands().receive(0).reject("no such customer")
    with desk.broker.consumer("jobs.dead") as consumer:
        [record] = consumer.poll()
    assert (record.key, record.value, record.timestamp_ms) == (b"k", b"a", NOON_MS + 60_000)
    assert ("x-dead-letter-timestamp", b"%d" % (NOON_MS - 5)) in record.headers
    assert record.headers[:2] == [("h", b"1"), ("n", None)]
    assert ("x-dead-letter-reason", b"no such customer") in record.headers
    assert ("x-dead-letter-deliveries", b"1") in record.headers


def test_without_a_dead_letter_topic_a_rejected_message_is_done_with(desk: QueueDesk) -> None:
    desk.queue_of(max_deliveries=1).put("a", "b")
    hands = desk.hands()
    hands.receive(0).reject("bad")
    hands.receive(0).release()
    assert values(hands.receive_many()) == []
    assert desk.lag() == 0


def test_every_rejected_message_has_one_dead_letter(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").put(*(f"{n:04}" for n in range(1200)))
    hands = desk.hands()
    batch = hands.receive_many(1200)
    batch.reject("all")
    assert sorted(desk.deaths()) == [(f"{n:04}", "all") for n in range(1200)]
    assert desk.lag() == 0


def test_the_dead_letter_topic_is_made_with_the_subscription_and_cannot_be_read_by_it(
    desk: QueueDesk,
) -> None:
    desk.topic()
    with pytest.raises(InvalidRequestError, match="they would go round"):
        desk.subscription(dead_letter="jobs")
    with pytest.raises(InvalidRequestError, match="they would go round"):
        desk.subscription(topic="job*", dead_letter="jobs.dead")
    desk.subscription(dead_letter="graveyard")
    assert desk.broker.topics() == ["graveyard", "jobs"]


def test_what_somebody_rejected_who_died_is_buried_by_the_next_who_comes_by(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0, max_deliveries=1, dead_letter="jobs.dead").put("a")
    desk.somebody_dies_with(1)
    assert values(desk.hands().receive_many()) == []
    assert desk.deaths() == [("a", "delivery limit reached")]


def test_a_consumer_that_waits_buries_what_dies_meanwhile(tmp_path: object) -> None:
    with logbroker.open(f"{tmp_path}/data") as broker:
        broker.create_topic("jobs")
        broker.create_subscription(
            "workers", topic="jobs", lease=0.1, max_deliveries=1, dead_letter="jobs.dead"
        )
        with broker.producer() as producer:
            producer.send("jobs", b"a")
        with broker.queue(subscription="workers") as hands:
            hands.receive(0)
            hands.receive_many(timeout=2.0)
            assert broker.subscription("workers").dead_letters == 1


# Several threads ---------------------------------------------------------------------------------------------


def test_threads_with_hands_of_their_own_share_the_messages(desk: QueueDesk) -> None:
    count = 400
    desk.queue_of(partitions=2).put(*map(str, range(count)))
    seen: list[list[str]] = [[] for _ in range(4)]

    def work(mine: list[str]) -> None:
        with desk.broker.queue(subscription="workers") as hands:
            while batch := hands.receive_many(7):
                mine += values(batch)
                batch.accept()

    threads = [threading.Thread(target=work, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(value) for mine in seen for value in mine) == list(range(count))
    assert desk.lag() == 0


def test_one_thread_receives_and_another_accepts(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    hands = desk.hands()
    message = hands.receive(0)
    waiting = threading.Thread(target=hands.receive_many, kwargs={"timeout": 5.0})
    waiting.start()
    message.accept()
    assert desk.lag() == 0
    desk.put("b")
    waiting.join()


def test_a_thread_that_waits_does_not_hold_another_up_beyond_its_timeout(desk: QueueDesk) -> None:
    desk.queue_of()
    hands = desk.hands()
    waiting = threading.Thread(target=hands.receive_many, kwargs={"timeout": None}, daemon=True)
    waiting.start()
    while hands._arrivals._waiter is None:
        time.sleep(0.001)
    began = time.monotonic()
    assert hands.receive_many(timeout=0.05) == []
    assert time.monotonic() - began < 30
    desk.put("a")
    waiting.join(timeout=10)


def test_closing_ends_the_waiting_of_another_thread(desk: QueueDesk) -> None:
    desk.queue_of()
    hands = desk.hands()
    caught = []

    def wait() -> None:
        try:
            hands.receive(None)
        except ClosedError as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while hands._arrivals._waiter is None:
        time.sleep(0.001)
    hands.close()
    waiting.join(timeout=10)
    assert len(caught) == 1


# Misuse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_messages", [0, -1, True, 1.5, "3", None])
def test_a_number_of_messages_is_a_positive_whole_number(desk: QueueDesk, max_messages: object) -> None:
    with pytest.raises(InvalidRequestError, match="max_messages"):
        desk.queue_of().hands().receive_many(max_messages)


@pytest.mark.parametrize("lease", [0, -1, 0.0001, 86_401, True, "1", float("nan")])
def test_a_lease_is_seconds_within_bounds(desk: QueueDesk, lease: object) -> None:
    desk.queue_of().put("a")
    with pytest.raises(InvalidRequestError, match="lease="):
        desk.hands(lease=lease)
    with pytest.raises(InvalidRequestError, match="lease="):
        desk.subscription("other", lease=lease)
    with pytest.raises(InvalidRequestError, match="lease="):
        desk.hands().receive(0).extend(lease)


@pytest.mark.parametrize("delay", [-1, float("nan"), 366 * 86_400 + 1, "1", True, timedelta(seconds=-1)])
def test_a_delay_is_seconds_within_bounds(desk: QueueDesk, delay: object) -> None:
    desk.queue_of().put("a")
    message = desk.hands().receive(0)
    with pytest.raises(InvalidRequestError, match="delay="):
        message.release(delay=delay)
    message.accept()  # it is still in hand


@pytest.mark.parametrize("reason", ["", None, 3, "caf\udce9"])
def test_a_rejection_needs_a_reason(desk: QueueDesk, reason: object) -> None:
    desk.queue_of().put("a")
    message = desk.hands().receive(0)
    with pytest.raises(InvalidRequestError, match="reason"):
        message.reject(reason)
    message.accept()


def test_a_message_is_settled_where_it_was_received(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    message = desk.hands().receive(0)
    with pytest.raises(InvalidRequestError, match="in the hands of another Queue"):
        desk.hands().accept([message])


def test_settling_twice_is_an_error(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    message = desk.hands().receive(0)
    message.accept()
    with pytest.raises(LeaseLostError, match="settled before"):
        message.accept()


def test_a_queue_is_of_a_subscription_that_is_there_and_is_a_queue(desk: QueueDesk) -> None:
    desk.queue_of().topic("other").subscription("stream", kind="stream")
    with pytest.raises(SubscriptionNotFoundError, match=r"did you mean 'workers'"):
        desk.hands(subscription="worker")
    with pytest.raises(InvalidRequestError, match="is a stream"):
        desk.hands(subscription="stream")
    with pytest.raises(TopicNotFoundError):
        desk.hands("nowhere")
    with pytest.raises(InvalidRequestError, match="does not read topic 'other'"):
        desk.hands("other")


def test_a_name_is_taken_once(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0)
    with pytest.raises(SubscriptionExistsError):
        desk.subscription()
    desk.subscription(exist_ok=True, lease=20.0)  # as it is
    assert desk.broker.subscription("workers").lease_ms == 10_000
    with pytest.raises(InvalidRequestError, match="did you mean 'lease'"):
        desk.subscription("other", leese=3)
    with pytest.raises(InvalidRequestError, match="is for queues"):
        desk.subscription("other", kind="stream", lease=3)


def test_a_group_cannot_have_the_name_of_a_queue(desk: QueueDesk) -> None:
    desk.queue_of()
    with pytest.raises(InvalidRequestError):
        desk.broker.consumer("jobs", group="workers")


def test_a_forked_child_works_with_hands_of_its_own(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "b", "c")
    held = desk.hands().receive(0)
    child = os.fork()
    if child == 0:
        status = 1
        with (
            logbroker.open(desk.path, clock=desk.clock) as broker,
            broker.queue(subscription="workers") as hands,
        ):
            batch = hands.receive_many(1)
            batch.accept()
            status = 0 if values(batch) == ["b"] else 2
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    held.accept()
    assert desk.left() == ["c"]


def test_nothing_is_to_be_had_from_a_forked_childs_copy(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    hands = desk.hands()
    message = hands.receive(0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        told = b""
        for use in (message.accept, message.release, message.extend, hands.receive_many):
            try:
                use()
                told += b"it worked; "
            except logbroker.LogbrokerError as error:
                told += type(error).__name__.encode() + b" "
        hands.close()
        os.write(writing, told + b"closed")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"ForkedError ForkedError ForkedError ForkedError closed"
    message.accept()
    assert desk.lag() == 0


@pytest.mark.parametrize("timeout", ["1", float("nan"), timedelta(seconds=1), True])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(desk: QueueDesk, timeout: object) -> None:
    hands = desk.queue_of().put("a").hands()
    for receive in (hands.receive, lambda timeout: hands.receive_many(1, timeout)):
        with pytest.raises(InvalidRequestError, match="give it seconds"):
            receive(timeout)
    assert desk.lag() == 1


@pytest.mark.parametrize("thing", [5, None, b"handle"])
def test_what_is_neither_a_message_nor_a_handle_is_not_settled(desk: QueueDesk, thing: object) -> None:
    hands = desk.queue_of().put("a").hands()
    message = hands.receive(0)
    with pytest.raises(InvalidRequestError, match="no receipt handle"):
        hands.accept([message, thing])
    message.accept()
