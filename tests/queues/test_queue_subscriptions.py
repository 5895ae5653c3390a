"""Queues as named subscriptions: which topics they read, and what is done to them while consumers are at work."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import msgspec
import pytest

from logbroker.errors import LeaseLostError, SubscriptionExistsError, SubscriptionNotFoundError
from logbroker_storage.journal import item_of

from .desk import QueueDesk, counts, values

# Which messages ---------------------------------------------------------------------------------------------


def test_every_subscription_gets_every_message(desk: QueueDesk) -> None:
    desk.topic().subscription("one").subscription("other").subscription("stream", kind="stream").put("a", "b")
    assert desk.left(subscription="one") == ["a", "b"]
    assert desk.lag("other") == 2
    assert desk.left(subscription="other") == ["a", "b"]
    with desk.broker.consumer("jobs", group="stream") as consumer:
        assert [record.value for record in consumer.poll()] == [b"a", b"b"]


@pytest.mark.parametrize(("start", "expected"), [("earliest", ["old", "new"]), ("latest", ["new"])])
def test_a_subscription_begins_where_it_says(desk: QueueDesk, start: str, expected: list[str]) -> None:
    desk.topic().put("old").subscription(start=start).put("new")
    assert desk.left() == expected


def test_a_subscription_gets_what_was_sent_while_nobody_was_connected(desk: QueueDesk) -> None:
    desk.queue_of(start="latest").put("a")
    desk.close()
    desk.reopen().put("b")
    assert desk.left() == ["a", "b"]


def test_a_pattern_takes_up_topics_that_are_made_later_from_their_beginning(desk: QueueDesk) -> None:
    desk.topic("jobs.mail").subscription(topic="jobs.*", start="latest").put("a", topic="jobs.mail")
    hands = desk.hands()
    assert values(hands.receive_many()) == ["a"]
    desk.topic("jobs.print").topic("other").put("b", topic="jobs.print").put("c", topic="other")
    assert values(hands.receive_many()) == ["b"]


def test_a_consumer_may_take_from_some_of_the_topics_only(desk: QueueDesk) -> None:
    desk.topic("jobs.mail").topic("jobs.print").subscription(topic="jobs.*")
    desk.put("a", topic="jobs.mail").put("b", topic="jobs.print")
    assert values(desk.hands("jobs.print").receive_many()) == ["b"]
    assert values(desk.hands(["jobs.mail"]).receive_many()) == ["a"]


def test_partitions_that_are_added_later_are_read_from_their_beginning(desk: QueueDesk) -> None:
    desk.queue_of()
    hands = desk.hands()
    assert hands.receive_many() == []
    desk.broker.alter_topic("jobs", partitions=3)
    desk.put("a", partition=2).put("b", partition=0)
    assert sorted(values(hands.receive_many())) == ["a", "b"]


def test_a_waiting_receive_takes_up_a_topic_that_is_made_meanwhile(desk: QueueDesk) -> None:
    desk.subscription(topic="jobs*")
    hands = desk.hands()
    maker = threading.Timer(0.05, lambda: desk.topic().put("a"))
    maker.start()
    assert hands.receive(30).value == b"a"
    maker.join()


def test_all_partitions_are_taken_from_in_turn(desk: QueueDesk) -> None:
    desk.queue_of(partitions=3)
    for number in range(3):
        desk.put("a", "b", partition=number)
    hands = desk.hands()
    assert sorted(hands.receive(0).partition for _ in range(3)) == [0, 1, 2]


# Topics that go away ----------------------------------------------------------------------------------------


def test_the_messages_of_a_deleted_topic_are_gone(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "b")
    hands = desk.hands()
    held = hands.receive(0)
    desk.broker.delete_topic("jobs")
    assert hands.receive_many() == []
    with pytest.raises(LeaseLostError):
        held.accept()
    assert desk.broker.subscription("workers").partitions == []


def test_a_topic_that_is_made_again_begins_anew(desk: QueueDesk) -> None:
    desk.queue_of(lease=1000.0).put("a", "b")
    hands = desk.hands()
    old, _ = hands.receive_many()
    old_accepted = hands.receive_many()
    assert old_accepted == []
    desk.broker.delete_topic("jobs")
    desk.topic().put("c", "d")
    new = hands.receive_many()
    assert (values(new), counts(new)) == (["c", "d"], [1, 1])
    with pytest.raises(LeaseLostError):
        old.accept()  # and not the new message with its offset
    new[1].accept()
    hands.close()
    assert desk.left() == ["c"]


def test_a_topic_that_is_made_again_begins_anew_also_without_the_view(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "b", "c")
    desk.hands().receive_many(2).accept()
    desk.broker.delete_topic("jobs")
    desk.topic().put("d")
    desk.close()
    desk.reopen(without_view=True)
    assert desk.left() == ["d"]


def test_what_is_settled_while_a_topic_is_being_deleted_is_nothing_to_the_next_of_its_name(
    desk: QueueDesk,
) -> None:
    desk.queue_of(dead_letter="jobs.dead").put(*"abcdef")
    hands = desk.hands()
    batch = hands.receive_many(4)
    directory = desk.directory
    with directory.journal.exclusive() as turn:  # the first half of a deletion, whose process dies then
        event = msgspec.structs.replace(directory.topic("jobs"), state="deleting")
        turn.write([item_of(event), *((key, None) for key in directory.catalog._keys_about("jobs"))])
    for settle in (batch[0].accept, batch[1].release, batch[2].reject):
        with pytest.raises(LeaseLostError):
            settle()
    assert hands.receive_many() == []
    desk.close()
    desk.open()
    desk.topic().put(*"uvwxyz")
    assert desk.left() == list("uvwxyz")


def test_what_a_dead_letter_topic_held_up_is_buried_once_it_is_there_again(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").put("a", "b")
    desk.broker.delete_topic("jobs.dead")
    hands = desk.hands()
    hands.receive(0).reject("bad")
    assert desk.partition().rejected == 1
    desk.advance(5)
    assert values(hands.receive_many()) == ["b"]
    assert desk.partition().rejected == 1
    desk.topic("jobs.dead")
    desk.advance(5)
    hands.receive_many()
    assert desk.deaths() == [("a", "bad")]
    assert desk.partition().rejected == 0


def test_a_dead_letter_that_does_not_fit_keeps_no_other_from_the_topic(desk: QueueDesk) -> None:
    desk.topic(max_message_bytes=5_000_000).topic("jobs.dead", max_message_bytes=2000)
    desk.subscription(dead_letter="jobs.dead").put("a", "b" * 3000, "c")
    hands = desk.hands()
    hands.receive_many().reject("bad")
    assert desk.deaths() == [("a", "bad"), ("c", "bad")]
    assert desk.partition().rejected == 1
    desk.broker.alter_topic("jobs.dead", config={"max.message.bytes": 1_000_000})
    desk.advance(5)
    hands.receive_many()
    assert [value[:1] for value, _ in desk.deaths()] == ["a", "c", "b"]


# Records that go away ---------------------------------------------------------------------------------------


def test_records_that_are_deleted_on_request_are_done_with(desk: QueueDesk) -> None:
    desk.queue_of().put(*"abcdef")
    hands = desk.hands()
    held = hands.receive_many(2)
    desk.broker.delete_records("jobs", {0: 4})
    assert desk.lag() == 2
    assert values(hands.receive_many()) == ["e", "f"]
    with pytest.raises(LeaseLostError):
        held[0].accept()
    hands.close()
    assert desk.left() == ["e", "f"]
    assert desk.partition().start_offset == 6


def test_a_queue_goes_on_when_everything_that_it_had_not_seen_is_deleted(desk: QueueDesk) -> None:
    desk.queue_of().put(*"abc")
    hands = desk.hands()
    desk.broker.delete_records("jobs", {0: 3})
    assert values(hands.receive_many()) == []
    assert desk.lag() == 0
    desk.put("d")
    assert values(hands.receive_many()) == ["d"]


def test_retention_takes_messages_out_of_hands_and_queue(desk: QueueDesk) -> None:
    desk.topic(retention_ms=10_000).subscription(lease=1000.0).put("old", "older")
    hands = desk.hands()
    held = hands.receive(0)
    desk.advance(20)
    assert desk.broker.clean()
    desk.put("new")
    assert values(hands.receive_many()) == ["new"]
    with pytest.raises(LeaseLostError):
        held.accept()


def test_a_topic_of_consumed_messages_is_emptied_when_all_subscriptions_are_done(desk: QueueDesk) -> None:
    desk.topic(retention_policy="consumed").subscription("one").subscription("other")
    desk.put(*"abc")
    desk.left(subscription="one")
    assert desk.broker.clean()
    assert desk.broker.topic("jobs").partitions[0].log_start_offset == 0
    desk.left(subscription="other")
    assert desk.broker.clean()
    assert desk.broker.clean()
    assert desk.broker.topic("jobs").partitions[0].log_start_offset == 3


def test_it_is_emptied_of_messages_that_no_filter_lets_through(desk: QueueDesk) -> None:
    desk.topic(retention_policy="consumed").subscription(filter='value == "z"').put(*"abc")
    assert desk.left() == []
    assert desk.broker.clean()
    assert desk.broker.clean()
    assert desk.broker.topic("jobs").partitions[0].log_start_offset == 3


def test_it_keeps_what_is_in_hands_delayed_or_rejected(desk: QueueDesk) -> None:
    desk.topic(retention_policy="consumed", segment_bytes=1000).subscription(dead_letter="jobs.dead")
    desk.put("held").put("later", delay=timedelta(hours=1)).put(*("x" * 500 for _ in range(6)))
    hands = desk.hands()
    held = hands.receive(0)
    hands.receive_many().accept()
    desk.broker.clean()
    assert desk.broker.topic("jobs").partitions[0].log_start_offset == 0
    held.accept()
    desk.broker.clean()
    assert desk.broker.topic("jobs").partitions[0].log_start_offset == 0
    desk.advance(3600)
    hands.receive(0).accept()
    desk.broker.clean()
    desk.broker.clean()
    assert desk.broker.topic("jobs").partitions[0].log_start_offset == 8


# Management -------------------------------------------------------------------------------------------------


def test_a_paused_subscription_delivers_nothing_but_lets_settle_what_is_in_hand(desk: QueueDesk) -> None:
    desk.queue_of().put("a", "b")
    hands = desk.hands()
    held = hands.receive(0)
    desk.broker.pause_subscription("workers")
    assert hands.receive_many() == []
    held.accept()
    desk.broker.resume_subscription("workers")
    assert values(hands.receive_many()) == ["b"]


def test_waiting_for_a_paused_subscription_costs_nothing_and_ends_when_it_is_resumed(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    desk.broker.pause_subscription("workers")
    hands = desk.hands()
    began, began_cpu = time.monotonic(), time.thread_time()
    assert hands.receive_many(timeout=0.5) == []
    assert time.monotonic() - began >= 0.5
    assert time.thread_time() - began_cpu < 0.2
    resumer = threading.Timer(0.05, desk.broker.resume_subscription, ["workers"])
    resumer.start()
    assert hands.receive(30).value == b"a"
    resumer.join()


def test_a_paused_subscription_stays_so_when_the_directory_is_opened_again(desk: QueueDesk) -> None:
    desk.queue_of().put("a")
    desk.broker.pause_subscription("workers")
    desk.close()
    desk.reopen(without_view=True)
    assert desk.left() == []
    desk.broker.resume_subscription("workers")
    assert desk.left() == ["a"]


def test_a_reset_delivers_again_what_is_behind_it_and_takes_it_out_of_hands(desk: QueueDesk) -> None:
    desk.queue_of(lease=1000.0).put(*"abcdef")
    hands = desk.hands()
    hands.receive_many(2).accept()
    held = hands.receive_many(2)
    assert desk.broker.reset_subscription("workers", 1, dry_run=True) == {("jobs", 0): 1}
    assert desk.broker.reset_subscription("workers", 1) == {("jobs", 0): 1}
    again = hands.receive_many(3)
    assert values(again) == ["b", "c", "d"]
    assert counts(again) == [1] * 3
    held[0].accept()  # the same message is in the same hands
    assert desk.broker.reset_subscription("workers", "latest") == {("jobs", 0): 6}
    with pytest.raises(LeaseLostError):
        again[2].accept()
    assert hands.receive_many() == []
    assert desk.broker.reset_subscription("workers", "earliest") == {("jobs", 0): 0}
    assert desk.left() == list("abcdef")


@pytest.mark.parametrize("without_view", [False, True])
def test_a_reset_lasts(desk: QueueDesk, without_view: bool) -> None:
    desk.queue_of().put(*"abcdef")
    batch = desk.hands().receive_many()
    for number in (0, 2, 4):
        batch[number].accept()
    batch[1].release()  # journaled, but not waited for
    desk.broker.reset_subscription("workers", 1)
    desk.close()
    desk.reopen(without_view=without_view)
    assert desk.left() == list("bcdef")


def test_a_renamed_subscription_keeps_its_progress_and_its_consumers(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").subscription("taken").put("a", "b", "c")
    hands = desk.hands()
    held = hands.receive(0)
    with pytest.raises(SubscriptionExistsError):
        desk.broker.rename_subscription("workers", "taken")
    desk.broker.rename_subscription("workers", "helpers")
    assert hands.receive(0).value == b"b"
    held.reject("bad")
    assert hands.subscription == "helpers"
    assert [death.by for _, death in desk.dead_letters()] == ["helpers"]
    hands.close()
    assert desk.left(subscription="helpers") == ["c", "b"] or desk.lag("helpers") == 0
    with pytest.raises(SubscriptionNotFoundError, match="'workers'"):
        desk.hands()


def test_a_deleted_subscription_ends_its_consumers(desk: QueueDesk) -> None:
    desk.queue_of(dead_letter="jobs.dead").put("a", "b")
    hands = desk.hands()
    held = hands.receive(0)
    desk.broker.delete_subscription("workers")
    with pytest.raises(SubscriptionNotFoundError, match="'workers'"):
        hands.receive_many()
    with pytest.raises(LeaseLostError):
        held.accept()
    hands.close()
    assert desk.broker.subscriptions() == []
    desk.subscription()
    assert desk.left() == ["a", "b"]


def test_a_deleted_subscription_ends_a_waiting_receive(desk: QueueDesk) -> None:
    desk.queue_of()
    hands = desk.hands()
    deleter = threading.Timer(0.05, desk.broker.delete_subscription, ["workers"])
    deleter.start()
    with pytest.raises(SubscriptionNotFoundError):
        hands.receive(30)
    deleter.join()


def test_nothing_of_a_deleted_subscription_is_left_in_the_journal(desk: QueueDesk) -> None:
    desk.queue_of().put(*"abcdef")
    view = desk.directory.view
    before = {key for key, _ in view.events.items(b"")}
    hands = desk.hands()
    batch = hands.receive_many()
    batch[3].accept()
    batch[1].release()
    assert {key for key, _ in view.events.items(b"")} > before
    desk.broker.delete_subscription("workers")
    for message in (batch[0], batch[2]):
        with pytest.raises(LeaseLostError):
            message.accept()
    desk.directory.journal.finish()
    assert [key for key, _ in view.events.items(b"queue")] == []


def test_a_description_says_how_far_a_queue_is(desk: QueueDesk) -> None:
    desk.queue_of(partitions=2, dead_letter="jobs.dead", ordered=True)
    desk.put("a1", "a2", "a3", key=b"a", partition=0)
    desk.put("b", partition=0).put("c", partition=0, delay=timedelta(seconds=50)).put("d", partition=1)
    hands = desk.hands("jobs")
    desk.advance(2)
    batch = hands.receive_many(3)
    batch[0].reject("bad") if batch[0].partition else batch[-1].accept()
    described = desk.broker.subscription("workers")
    assert (described.kind, described.topics, described.is_paused) == ("queue", ["jobs"], False)
    assert described.ordered
    assert not described.priorities
    assert described.lag == 6 - 1
    assert described.in_flight == 2
    assert described.oldest_age_ms == 2000
    assert sum(part.delayed for part in described.partitions) <= 1
    assert hands.owner in {owner for part in described.partitions for owner in part.consumers}


@pytest.mark.parametrize("what_goes", ["the subscription", "the topic"])
def test_nothing_is_left_in_the_view_of_a_queue_that_is_gone(desk: QueueDesk, what_goes: str) -> None:
    """A process that lives for long makes and deletes any number of them."""
    directory = desk.broker._directory
    desk.topic("other")
    before = directory.view.volatile.items(b"")
    desk.topic("jobs").subscription("passing", topic="jobs").put("a", "b")
    assert desk.left(subscription="passing") == ["a", "b"]
    if what_goes == "the topic":
        desk.broker.delete_topic("jobs")
    else:
        desk.broker.delete_subscription("passing")
    assert directory.view.volatile.items(b"") == before
