"""Which messages a queue delivers, when, and in which order: delays, priorities, order keys, expiry, filters."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta

import pytest

from logbroker.errors import ClosedError, InvalidRequestError
from logbroker.records import Record

from .desk import NOON_MS, QueueDesk, counts, values

# Delays -----------------------------------------------------------------------------------------------------


def test_a_message_is_delivered_when_its_delay_is_over(desk: QueueDesk) -> None:
    desk.queue_of().put("later", delay=timedelta(seconds=5)).put("now")
    hands = desk.hands()
    assert values(hands.receive_many()) == ["now"]
    desk.advance(4.999)
    assert values(hands.receive_many()) == []
    desk.advance(0.001)
    assert counts(hands.receive_many()) == [1]


def test_a_message_is_delivered_at_its_time_whatever_the_order_of_sending(desk: QueueDesk) -> None:
    noon = datetime.fromtimestamp(NOON_MS / 1000, UTC)
    desk.queue_of(lease=100.0)
    for seconds in (30, 10, 20, -10):
        desk.put(f"at {seconds}", deliver_at=noon + timedelta(seconds=seconds))
    hands = desk.hands()
    seen = []
    for _ in range(4):
        seen += values(hands.receive_many())
        desk.advance(10)
    assert seen == ["at -10", "at 10", "at 20", "at 30"]


def test_a_receive_waits_for_the_next_delayed_message_and_no_longer(desk: QueueDesk) -> None:
    desk.queue_of().put("later", delay=timedelta(seconds=5))
    hands = desk.hands()
    hands.receive_many()
    assert (
        hands._pause(list(hands._partitions.values()), 60.0) == 0.25
    )  # looks after its neighbours meanwhile
    desk.advance(4.9)
    assert hands._pause(list(hands._partitions.values()), 60.0) == pytest.approx(0.1)


def test_a_release_with_a_delay_comes_again_after_it(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "b")
    hands = desk.hands()
    for message, delay in zip(hands.receive_many(), (3, timedelta(seconds=5)), strict=True):
        message.release(delay=delay)
    assert desk.partition().delayed == 2
    desk.advance(3)
    assert values(hands.receive_many()) == ["a"]
    desk.advance(2)
    again = hands.receive_many()
    assert (values(again), counts(again)) == (["b"], [2])


def test_what_is_released_one_by_one_comes_again_in_few_goes_and_never_early(desk: QueueDesk) -> None:
    """Each moment would be a run of its own, and each release write down all of its block."""
    desk.queue_of(lease=1000.0).put(*"abcdefghij" * 10)
    hands = desk.hands()
    for message in hands.receive_many():
        message.release(delay=60)
        desk.advance(0.001)
    desk.advance(59.899)
    goes = []
    for elapsed_ms in range(60_000 - 1, 60_100 + 60):
        found = hands.receive_many()
        if found:
            goes.append((elapsed_ms, len(found)))
            found.accept()
        desk.advance(0.001)
    assert len(goes) <= 5
    came = 0
    for elapsed_ms, count in goes:
        came += count
        assert came <= elapsed_ms - 60_000 + 1, "message n was released n ms behind the first"
        assert came >= min(100, elapsed_ms - 60_000 + 1 - 60)
    assert came == 100


def test_delays_go_by_the_wall_clock_and_leases_do_not(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("held").put("later", delay=timedelta(seconds=5))
    hands = desk.hands()
    assert values(hands.receive_many()) == ["held"]
    desk.clock.set_back(ms=3_600_000)
    desk.advance(10)
    assert values(hands.receive_many()) == ["held"]
    desk.advance(3_600)
    assert "later" in values(hands.receive_many())


# Priorities -------------------------------------------------------------------------------------------------


def test_urgent_messages_come_first_and_equal_ones_in_their_order(desk: QueueDesk) -> None:
    desk.queue_of(priorities=True)
    for text, priority in [("a", 0), ("b", 5), ("c", 9), ("d", 5), ("e", 0)]:
        desk.put(text, priority=priority)
    hands = desk.hands()
    assert values(hands.receive_many(2)) == ["c", "b"]
    desk.put("f", priority=7)
    assert values(hands.receive_many()) == ["f", "d", "a", "e"]


def test_a_released_message_keeps_its_priority(desk: QueueDesk) -> None:
    desk.queue_of(priorities=True).put("a").put("b", priority=1)
    hands = desk.hands()
    hands.receive_many(2).release()
    again = hands.receive_many()
    assert values(again) == ["b", "a"]
    assert counts(again) == [2, 2]


def test_what_was_taken_in_search_of_a_message_goes_back_at_once(desk: QueueDesk) -> None:
    """A view that was made anew has many single messages to look at; each that goes back is journaled."""
    desk.queue_of(priorities=True)
    for number in range(60):
        desk.put("x", priority=number % 2)
    desk.hands().receive_many(30).release()
    desk.close()
    desk.reopen(without_view=True)
    journal = desk.directory.journal.log
    before = journal.state().end.log_end_offset
    assert counts(desk.hands().receive_many(1)) == [2]
    assert journal.state().end.log_end_offset - before < 5


def test_without_priorities_messages_come_in_their_order(desk: QueueDesk) -> None:
    desk.queue_of().put("a").put("b", priority=9)
    assert values(desk.hands().receive_many()) == ["a", "b"]


def test_an_urgent_message_may_be_delayed(desk: QueueDesk) -> None:
    desk.queue_of(priorities=True).put("a", priority=9, delay=timedelta(seconds=5)).put("b", "c")
    hands = desk.hands()
    assert values(hands.receive_many(1)) == ["b"]
    desk.advance(5)
    assert values(hands.receive_many()) == ["a", "c"]


# Order keys -------------------------------------------------------------------------------------------------


def test_messages_of_one_key_are_in_one_pair_of_hands_at_a_time(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True)
    for text in ("a1", "b1", "a2", "b2"):
        desk.put(text, key=text[:1].encode())
    one, other = desk.hands(), desk.hands()
    first = one.receive(0)
    assert first.value == b"a1"
    theirs = other.receive_many()
    assert values(theirs) == ["b1", "b2"]
    assert desk.partition().waiting + desk.partition().in_flight == 4
    first.accept()
    assert values(other.receive_many()) == ["a2"]
    theirs.accept()


def test_one_receive_takes_along_the_next_messages_of_the_key(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True).put("a1", "a2", "a3", key=b"a")
    one, other = desk.hands(), desk.hands()
    first, second = one.receive_many(2)
    assert (first.value, second.value) == (b"a1", b"a2")
    first.accept()
    assert values(other.receive_many()) == []
    second.accept()
    assert values(other.receive_many()) == ["a3"]


def test_a_released_message_comes_before_the_later_ones_of_its_key(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True).put("a1", "a2", "a3", key=b"a")
    hands = desk.hands()
    hands.receive(0).release()
    assert values(desk.hands().receive_many()) == ["a1", "a2", "a3"]


def test_a_key_goes_on_when_the_lease_of_its_message_ends(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True, lease=10.0).put("a1", "a2", key=b"a")
    one, other = desk.hands(), desk.hands()
    one.receive(0)
    assert values(other.receive_many()) == []
    desk.advance(10)
    assert values(other.receive_many()) == ["a1", "a2"]


def test_a_key_goes_on_when_its_message_is_rejected(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True, dead_letter="jobs.dead").put("a1", "a2", key=b"a")
    desk.hands().receive(0).reject("bad")
    assert desk.left() == ["a2"]
    assert desk.deaths() == [("a1", "bad")]


def test_messages_without_a_key_go_to_anybody(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True).put("a", "b")
    assert values(desk.hands().receive_many(1)) == ["a"]
    assert values(desk.hands().receive_many(1)) == ["b"]


def test_each_key_is_worked_on_in_its_order_by_many_hands(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True, partitions=2)
    for number in range(200):
        desk.put(str(number), key=b"%d" % (number % 7))
    hands = [desk.hands() for _ in range(5)]
    seen: dict[bytes | None, list[int]] = {}
    turn = 0
    while desk.lag():
        batch = hands[turn % 5].receive_many(1 + turn % 4)
        for message in batch:
            seen.setdefault(message.key, []).append(int(message.value or b""))
        batch.accept()
        turn += 1
    assert seen == {b"%d" % key: list(range(key, 200, 7)) for key in range(7)}


# Expiry -----------------------------------------------------------------------------------------------------


def test_an_expired_message_is_dropped(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").put("a", ttl=timedelta(seconds=5)).put("b")
    desk.advance(5)
    assert desk.left() == ["b"]
    assert desk.dead_letters() == []
    assert desk.lag() == 0


def test_an_expired_message_goes_to_the_dead_letters_where_that_was_asked_for(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead", expired="dead-letter").put("a", ttl=timedelta(seconds=5)).put("b")
    desk.advance(5)
    assert desk.left() == ["b"]
    assert desk.deaths() == [("a", "expired")]
    with pytest.raises(InvalidRequestError, match="needs dead_letter="):
        desk.subscription("other", expired="dead-letter")


def test_the_topics_time_to_live_holds_for_every_message(desk: QueueDesk) -> None:
    desk.topic(message_ttl_ms=5000).subscription().put("a")
    desk.advance(1)
    desk.put("b")
    desk.advance(4)
    assert desk.left() == ["b"]


def test_a_message_that_expires_between_two_deliveries_does_not_come_again(desk: QueueDesk) -> None:
    desk.queue_of().put("a", ttl=timedelta(seconds=5))
    message = desk.hands().receive(0)
    desk.advance(5)
    message.release()
    assert desk.left() == []
    assert desk.lag() == 0


@pytest.mark.parametrize("ordered", [False, True])
def test_what_no_hands_got_to_see_counts_no_delivery(desk: QueueDesk, *, ordered: bool) -> None:
    """A look that finds a message expired, or the filter without an answer, hands nothing out."""
    desk.queue_of(
        filter="json.total > 1.0", ordered=ordered, dead_letter="jobs.dead", expired="dead-letter"
    ).put("no json").put('{"total": 2.0}', ttl=timedelta(seconds=5)).put(
        '{"total": 3.0}', ttl=timedelta(seconds=9)
    )
    desk.advance(5)
    desk.hands().receive(0).release()
    desk.advance(4)
    assert desk.left() == []
    letters = desk.broker.dead_letters("workers")
    assert [letter.death.deliveries for letter in letters] == [0, 0, 1]


def test_an_expired_message_lets_the_others_of_its_key_go_on(desk: QueueDesk) -> None:
    desk.queue_of(ordered=True).put("a1", key=b"a", ttl=timedelta(seconds=5)).put("a2", key=b"a")
    desk.hands().receive(0).release()
    desk.advance(5)
    assert desk.left() == ["a2"]


# Filters ----------------------------------------------------------------------------------------------------


def test_a_stored_filter_lets_through_what_matches(desk: QueueDesk) -> None:
    desk.queue_of(filter="json.total > 10.0")
    desk.put('{"total": 5.0}', '{"total": 50.0}', '{"total": 11.0}')
    assert desk.left() == ['{"total": 50.0}', '{"total": 11.0}']
    assert desk.lag() == 0


def test_a_filter_goes_by_headers_and_key(desk: QueueDesk) -> None:
    desk.queue_of(filter='headers["type"] == "order"')
    desk.put("a", headers={"type": b"order"}).put("b", headers={"type": b"bill"})
    desk.subscription("of alice", filter='key == "alice"').put("c", key=b"alice")
    assert desk.left() == ["a"]
    assert desk.left(subscription="of alice") == ["c"]


def test_what_a_stored_filter_has_no_value_for_is_passed_over_or_dead(desk: QueueDesk) -> None:
    desk.topic().subscription("plain", filter="json.total > 10.0")
    desk.subscription("careful", filter="json.total > 10.0", dead_letter="jobs.dead")
    desk.put("no json", '{"total": 50.0}')
    assert desk.left(subscription="plain") == ['{"total": 50.0}']
    assert desk.left(subscription="careful") == ['{"total": 50.0}']
    [(value, reason)] = desk.deaths()
    assert value == "no json"
    assert reason.startswith("filter: ")


def test_a_function_is_a_filter_for_the_subscription_as_a_whole(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "bb", "c", "dd")
    assert desk.left(filter=lambda record: len(record.value) == 2) == ["bb", "dd"]
    assert desk.left() == []


def test_an_expression_is_a_filter_of_a_consumer_too(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "bb", "cc")
    assert desk.left(filter='value == "bb"') == ["bb"]
    assert desk.lag() == 0


@pytest.mark.parametrize("nonsense", ["json.total >", "total > 10", "", 5])
def test_a_filter_of_a_consumer_is_checked_when_it_is_made(desk: QueueDesk, nonsense: object) -> None:
    desk.queue_of()
    with pytest.raises(InvalidRequestError):
        desk.hands(filter=nonsense)


def test_both_filters_must_match(desk: QueueDesk) -> None:
    desk.queue_of(filter='value.startsWith("a")').put("a", "ab", "b")
    assert desk.left(filter=lambda record: len(record.value) == 2) == ["ab"]


def test_a_filter_that_raises_ends_the_receive_and_takes_nothing(desk: QueueDesk) -> None:
    desk.queue_of(partitions=2).put("a", "b", partition=0).put("c", "bad", partition=1)

    def judge(record: object) -> bool:
        if record.value == b"bad":
            raise ZeroDivisionError
        return True

    hands = desk.hands(filter=judge)
    with pytest.raises(ZeroDivisionError):
        hands.receive_many()
    assert desk.broker.subscription("workers").in_flight == 0
    again = desk.hands().receive_many()
    assert sorted(values(again)) == ["a", "b", "bad", "c"]
    assert counts(again) == [1] * 4


def test_a_message_whose_lease_ends_while_others_are_looked_for_is_received_once(desk: QueueDesk) -> None:
    desk.queue_of(lease=10.0).put("a", "slow", "b")
    pauses = [10]

    def takes_its_time_once(record: Record) -> bool:
        if record.value == b"slow" and pauses:
            desk.advance(pauses.pop())
        return record.value != b"slow"

    batch = desk.hands(filter=takes_its_time_once).receive_many(2)
    assert [(message.value, message.delivery_count) for message in batch] == [(b"a", 2), (b"b", 1)]
    batch.accept()
    assert desk.lag() == 0


@pytest.mark.parametrize("how", ["wakeup", "close"])
def test_a_receive_whose_filter_lets_nothing_through_is_ended_too(desk: QueueDesk, how: str) -> None:
    desk.queue_of().put(*"abcdefgh")
    seen = []
    is_looking, is_told = threading.Event(), threading.Event()

    def judge(record: Record) -> bool:
        seen.append(record.value)
        is_looking.set()
        is_told.wait(10)
        return False

    hands = desk.hands(filter=judge)

    def receive() -> None:
        with contextlib.suppress(ClosedError):
            assert hands.receive_many(1, timeout=None) == []

    receiving = threading.Thread(target=receive)
    receiving.start()
    is_looking.wait(10)
    getattr(hands, how)()
    is_told.set()
    receiving.join()
    assert seen == [b"a"]


def test_a_filter_may_use_the_broker(desk: QueueDesk) -> None:
    """Nothing is locked while it runs."""
    desk.queue_of().topic("seen").put("a", "b")

    def judge(record: object) -> bool:
        desk.put(record.value.decode(), topic="seen")
        return desk.broker.subscription("workers").in_flight > 0

    assert desk.left(filter=judge) == ["a", "b"]
    assert desk.broker.topic("seen").partitions[0].log_end_offset == 2


def test_a_receive_of_one_does_not_search_one_by_one(desk: QueueDesk) -> None:
    """What it found beyond that one goes back, undelivered."""
    desk.queue_of(lease=1000.0).put(*("no" for _ in range(3000)), "a", "no", "b", "c")
    looks = 0

    def judge(record: object) -> bool:
        nonlocal looks
        looks += 1
        return record.value != b"no"

    hands = desk.hands(filter=judge)
    journal = desk.directory.journal.log
    written = journal.state().end.log_end_offset
    first = hands.receive_many(1)
    assert values(first) == ["a"]
    assert desk.partition().in_flight == 1
    assert counts(hands.receive_many()) == [1, 1]
    first.accept()
    assert looks < 3100
    assert journal.state().end.log_end_offset - written < 60


def test_a_stored_filter_is_checked_when_it_is_made(desk: QueueDesk) -> None:
    desk.topic()
    with pytest.raises(InvalidRequestError):
        desk.subscription(filter="value ==")
    with pytest.raises(InvalidRequestError, match=r"broker\.queue\("):
        desk.subscription(filter=lambda record: True)
