"""What may happen to a queue's messages: each row of the table in ``logbroker.queues.state``, and each rule."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import pytest

from logbroker.queues import rows as rows_module
from logbroker.queues.rows import BLOCK_OFFSETS, MAX_PRIORITY, Run, State, decode_run, encode_run, entry_key
from logbroker.queues.settings import QueueSettings
from logbroker.queues.state import LIMIT_REACHED, MAX_NOTE_CHARACTERS, Attempt, BlockChange, QueueState
from logbroker_storage.testing import MemoryRows

from .specification import QueueSpecification, message

LAST_INT64 = (1 << 63) - 1


def taken(count: int, **settings: object) -> QueueSpecification:
    """A queue of which ann has taken the first *count* messages."""
    queue = QueueSpecification(**settings)  # type: ignore[arg-type]
    queue.fresh("ann", count)
    return queue


def arranged(*keys: str, **settings: object) -> QueueSpecification:
    """A queue that looks ahead, of which all messages are arranged: one a key, "" for none."""
    queue = QueueSpecification(looks_ahead=True, **settings)  # type: ignore[arg-type]
    queue.look("ann", *[message(offset, key=key) for offset, key in enumerate(keys)])
    return queue


def rejected(count: int, **settings: object) -> QueueSpecification:
    """A queue with a dead letter, whose first messages ann has rejected."""
    queue = taken(count, has_dead_letter=True, **settings)
    queue.reject("ann", 0, count - 1)
    return queue


# Into somebody's hands ----------------------------------------------------------------------------


def test_fresh_messages_go_to_one_owner_after_the_other():
    queue = QueueSpecification()
    assert queue.fresh_range("ann", 3) == (0, 2)
    assert queue.fresh_range("bob", 2) == (3, 4)
    assert queue.shows() == "aaaaa"
    assert queue.state.owners() == {"ann", "bob"}


def test_fresh_messages_end_where_the_log_is_visible():
    queue = QueueSpecification()
    assert queue.fresh_range("ann", 10, visible_end=4) == (0, 3)
    assert queue.fresh("bob", 10, visible_end=4) is None
    assert queue.fresh("bob", 10, visible_end=2) is None


def test_who_acquires_gets_the_oldest_that_are_ready_up_to_the_limit():
    queue = taken(6)
    queue.release("ann", 4, 5)
    queue.release("ann", 0, 1)
    assert queue.take("bob", 3) == [0, 1, 4]
    assert queue.shows() == "aaaaar"
    assert queue.take("bob", 3) == [5]
    assert queue.take("bob", 3) == []


def test_a_limit_of_none_gets_none():
    queue = taken(2)
    queue.release("ann", 0, 1)
    assert queue.take("bob", 0) == []
    assert queue.shows() == "rr"


def test_a_run_is_split_at_the_limit():
    queue = taken(5)
    queue.release("ann", 0, 4)
    assert queue.take("bob", 2) == [0, 1]
    assert queue.shows() == "aarrr"


# Out of them --------------------------------------------------------------------------------------


def test_a_finished_message_is_done_and_the_start_follows():
    queue = taken(3)
    assert queue.finish("ann", 0) == []
    assert queue.shows() == ".aa"
    assert queue.state.head.start_offset == 1


def test_the_start_waits_for_the_first_that_is_not_done():
    queue = taken(5)
    queue.finish("ann", 1, 3)
    assert queue.state.head.start_offset == 0
    queue.finish("ann", 0)
    assert queue.state.head.start_offset == 4
    assert queue.shows() == "....a"


def test_a_range_is_cut_out_of_the_run_that_it_is_in():
    queue = taken(6)
    queue.finish("ann", 2, 3)
    assert queue.shows() == "aa..aa"
    queue.release("ann", 4)
    assert queue.shows() == "aa..ra"


def test_a_range_may_go_over_many_runs_and_blocks():
    queue = taken(3 * BLOCK_OFFSETS)
    queue.release("ann", 1500)
    queue.finish("ann", 10, 1499)
    queue.finish("ann", 1501, 3 * BLOCK_OFFSETS - 1)
    assert queue.shows() == "a" * 10 + "." * 1490 + "r" + "." * (3 * BLOCK_OFFSETS - 1501)


def test_what_others_hold_comes_back_as_lost():
    queue = taken(3)
    queue.fresh("bob", 2)
    queue.fresh("ann", 2)
    assert queue.finish("ann", 1, 5) == [(3, 4)]
    assert queue.shows() == "a..aa.a"


@pytest.mark.parametrize("act", ["finish", "release", "reject", "bury"])
def test_what_nobody_holds_comes_back_as_lost(act):
    queue = taken(4)
    queue.release("ann", 1)
    queue.finish("ann", 0)
    nobody = getattr(queue, act)
    assert nobody("bob", 0, 9) == [(0, 9)]
    assert queue.shows() == ".raa"


@pytest.mark.parametrize(
    ("first", "last"), [(-5, -1), (0, LAST_INT64), (LAST_INT64, LAST_INT64), (-9, LAST_INT64)]
)
def test_any_range_that_a_client_may_name_is_answered(first, last):
    queue = QueueSpecification()
    assert queue.finish("ann", first, last) == [(first, last)]


def test_of_a_range_far_too_long_what_is_held_is_finished():
    queue = taken(3)
    assert queue.finish("ann", -2, LAST_INT64) == [(-2, -1), (3, LAST_INT64)]
    assert queue.shows() == "..."


def test_an_inverted_range_names_nothing():
    queue = taken(9)
    assert queue.finish("ann", 5, 3) == []
    assert queue.shows() == "aaaaaaaaa"


def test_a_message_is_finished_once():
    queue = taken(2)
    assert queue.finish("ann", 0) == []
    assert queue.finish("ann", 0) == [(0, 0)]


def test_ranges_of_one_call_may_join_repeat_and_leave_out():
    queue = taken(8)
    lost = queue.state.finish("ann", [(0, 0), (1, 1), (2, 3), (5, 5), (5, 6)], now_ms=0)
    assert lost == [(5, 5)]
    assert queue.shows() == "....a..a"


def test_what_was_finished_in_vain_is_in_the_same_hands_again():
    """The journal could not be written: the view takes it back."""
    queue = taken(5)
    queue.finish("ann", 1)
    state = QueueState(queue.rows, queue.settings)
    state.finish("ann", [(0, 0), (2, 3)], now_ms=0)
    assert state.head.start_offset == 4
    QueueState(queue.rows, queue.settings).restore(state.settled)
    queue.extend("ann", 0, until=100)
    assert queue.shows() == "a.aaa"
    assert queue.finish("ann", 0, 4) == [(1, 1)]


def test_what_was_finished_in_vain_waits_where_another_has_its_key_now():
    queue = arranged("k", "k", "j", "j")
    queue.take("ann", 1)
    queue.take("ann", 1)
    state = QueueState(queue.rows, queue.settings)
    state.finish("ann", [(0, 0), (2, 2)], now_ms=0)
    QueueState(queue.rows, queue.settings).acquire("bob", 1, lease_end_ms=100)
    QueueState(queue.rows, queue.settings).restore(state.settled)
    queue.extend("bob", 1, until=100)
    assert queue.shows() == "waaw", "of j nobody else took any: it is with ann again"
    assert queue.finish("ann", 0) == [(0, 0)]
    queue.finish("bob", 1)
    assert queue.delivery_counts()[0] == 0
    assert queue.take("cid", 1) == [0]


# Leases -------------------------------------------------------------------------------------------


def test_a_lease_is_over_exactly_at_its_end():
    queue = taken(2)
    assert queue.at(99).shows() == "aa"
    assert queue.state.next_lease_end_ms() == 100
    assert queue.at(100).shows() == "rr"
    assert queue.state.next_lease_end_ms() is None
    assert queue.has_woken_others


def test_an_owner_is_late_at_the_very_end_even_if_nobody_looked():
    queue = taken(2)
    queue.now_ms = 99
    assert queue.finish("ann", 0) == []
    queue.now_ms = 100
    assert queue.finish("ann", 1) == [(1, 1)]
    assert queue.extend("ann", 1, until=200) == [(1, 1)]
    assert queue.shows() == ".a"


def test_a_lease_can_be_extended_for_some_of_its_messages():
    queue = taken(3)
    assert queue.extend("ann", 1, until=300) == []
    assert queue.at(100).shows() == "rar"
    assert queue.at(300).shows() == "rrr"


def test_a_lease_can_be_made_shorter():
    queue = taken(1)
    queue.extend("ann", 0, until=10)
    assert queue.at(10).shows() == "r"


def test_the_leases_of_an_owner_that_is_gone_end_at_once():
    queue = taken(2)
    queue.fresh("bob", 2)
    queue.die("ann")
    assert queue.shows() == "rraa"
    assert queue.has_woken_others
    assert queue.state.owners() == {"bob"}


# Deliveries ---------------------------------------------------------------------------------------


def test_every_delivery_counts():
    queue = taken(1)
    for count in (1, 2, 3):
        assert queue.delivery_counts() == {0: count}
        queue.release("ann", 0)
        queue.take("ann", 1)


def test_a_delivery_that_the_user_never_saw_does_not_count():
    queue = taken(1, max_deliveries=1)
    queue.release("ann", 0, was_delivered=False)
    assert queue.delivery_counts() == {0: 0}
    assert queue.take("ann", 1) == [0]
    assert queue.delivery_counts() == {0: 1}


@pytest.mark.parametrize(
    ("end", "note"),
    [
        (lambda queue: queue.release("ann", 0), "gave up"),
        (lambda queue: queue.at(100), LIMIT_REACHED),
        (lambda queue: queue.die("ann"), LIMIT_REACHED),
    ],
    ids=["release", "lease", "death"],
)
def test_the_last_delivery_in_vain_rejects_the_message(
    end: Callable[[QueueSpecification], object], note: str
) -> None:
    queue = taken(1, max_deliveries=1, has_dead_letter=True)
    end(queue)
    assert queue.shows() == "x"
    assert queue.has_woken_others
    assert queue.take("bob", 1) == []
    assert queue.take_rejected("bob", 1) == [(0, note)]


def test_without_a_dead_letter_the_message_is_done_after_its_last_delivery():
    queue = taken(2, max_deliveries=2)
    queue.release("ann", 0, 1)
    queue.take("ann", 2)
    queue.release("ann", 0, 1)
    assert queue.shows() == ".."
    assert queue.state.head == (2, 2)


def test_a_delay_does_not_save_from_the_limit():
    queue = taken(1, max_deliveries=1, has_dead_letter=True)
    queue.release("ann", 0, until=50)
    assert queue.shows() == "x"


# Rejection and burial -----------------------------------------------------------------------------


def test_a_rejected_message_is_buried_by_one_who_holds_it():
    queue = rejected(3)
    assert queue.shows() == "xxx"
    assert queue.take_rejected("bob", 2) == [(0, "bad"), (1, "bad")]
    assert queue.take_rejected("cid", 5) == [(2, "bad")]
    assert queue.bury("bob", 0, 2) == [(2, 2)]
    assert queue.shows() == "..b"


def test_a_rejected_message_without_a_dead_letter_is_done():
    queue = taken(2)
    queue.reject("ann", 0, 1)
    assert queue.shows() == ".."


def test_a_burial_whose_lease_ends_is_for_others_to_do():
    queue = rejected(2)
    queue.take_rejected("bob", 2)
    assert queue.at(100).shows() == "xx"
    queue.take_rejected("cid", 2)
    queue.die("cid")
    assert queue.shows() == "xx"
    assert queue.has_woken_others
    assert queue.bury("bob", 0, 1) == [(0, 1)]


def test_what_is_being_buried_cannot_be_finished_released_or_extended():
    queue = rejected(1)
    queue.take_rejected("bob", 1)
    assert queue.finish("bob", 0) == [(0, 0)]
    assert queue.release("bob", 0) == [(0, 0)]
    assert queue.extend("bob", 0, until=500) == [(0, 0)]
    assert queue.shows() == "b"


def test_what_was_only_delivered_cannot_be_buried():
    queue = taken(1, has_dead_letter=True)
    assert queue.bury("ann", 0) == [(0, 0)]


def test_a_reason_is_kept_up_to_its_limit():
    queue = taken(1, has_dead_letter=True)
    queue.reject("ann", 0, note="é" * 2 * MAX_NOTE_CHARACTERS)
    assert queue.take_rejected("bob", 1) == [(0, "é" * MAX_NOTE_CHARACTERS)]


# Delays -------------------------------------------------------------------------------------------


def test_a_message_released_with_a_delay_is_ready_exactly_at_its_time():
    queue = taken(2)
    queue.release("ann", 0, until=50)
    assert queue.shows() == "da"
    assert queue.state.next_delivery_ms() == 50
    assert queue.take("bob", 1) == []
    assert queue.at(49).shows() == "da"
    assert queue.at(50).shows() == "ra"
    assert queue.has_woken_others
    assert queue.state.next_delivery_ms() is None


def test_a_message_that_asks_to_be_delivered_later_leaves_the_hands_without_a_delivery():
    queue = QueueSpecification()
    run = queue.fresh("ann", 4)
    queue.arrange("ann", run, message(0), message(1, not_before=50), message(2), message(3))
    assert queue.shows() == "adaa"
    assert queue.delivery_counts() == {0: 1, 1: 0, 2: 1, 3: 1}
    queue.at(50)
    assert queue.take("bob", 9) == [1]


def test_a_time_that_has_come_is_no_delay():
    queue = QueueSpecification()
    queue.now_ms = 50
    run = queue.fresh("ann", 1)
    queue.arrange("ann", run, message(0, not_before=50))
    assert queue.shows() == "a"


# Looking ahead ------------------------------------------------------------------------------------


def test_offsets_without_a_message_are_done():
    """Gaps of compaction, control records, what a filter leaves out."""
    queue = QueueSpecification()
    run = queue.fresh("ann", 6)
    queue.arrange("ann", run, message(1), message(4))
    assert queue.shows() == ".a..a."
    queue = QueueSpecification(looks_ahead=True)
    queue.look("ann", message(1), message(4), count=6)
    assert queue.shows() == ".r..r."


def test_a_run_without_any_message_is_done():
    queue = QueueSpecification(looks_ahead=True)
    queue.look("ann", count=5)
    assert queue.shows() == "....."
    assert queue.has_woken_others, "the next may be looked at"


def test_what_is_looked_at_is_not_delivered():
    queue = QueueSpecification(looks_ahead=True, max_deliveries=1)
    queue.fresh("ann", 3)
    assert queue.shows() == "lll"
    assert queue.state.next_lease_end_ms() == 100
    assert queue.state.counts().acquired == 0
    queue.at(100)
    assert queue.delivery_counts() == {0: 0, 1: 0, 2: 0}
    queue.take("bob", 3)
    queue.die("bob")
    queue.take("ann", 3)
    queue.release("ann", 0, 2, was_delivered=False)
    assert queue.shows() == "rrr"
    assert queue.delivery_counts() == {0: 0, 1: 0, 2: 0}


def test_the_highest_priority_comes_first_then_the_oldest():
    queue = QueueSpecification(looks_ahead=True)
    queue.look("ann", message(0), message(1, priority=1), message(2, priority=2), message(3, priority=1))
    assert queue.take("ann", 9) == [2, 1, 3, 0]


def test_priorities_beyond_the_last_count_as_the_last():
    queue = QueueSpecification(looks_ahead=True)
    queue.look("ann", message(0, priority=MAX_PRIORITY), message(1, priority=255), message(2))
    assert queue.take("ann", 9) == [0, 1, 2]


def test_what_was_not_looked_at_comes_before_all_others_and_alone():
    queue = arranged("", "")
    queue.fresh("ann", 2)
    queue.release("ann", 2, 3, was_delivered=False)
    assert queue.take("bob", 9) == [2, 3]
    assert queue.shows() == "rrll"


def test_a_block_of_messages_at_most_is_looked_at_whatever_the_limit():
    """Who wants one message is to get the first in rank of many, not of one."""
    queue = QueueSpecification(looks_ahead=True)
    queue.fresh("ann", BLOCK_OFFSETS + 5)
    queue.release("ann", 0, BLOCK_OFFSETS + 4, was_delivered=False)
    assert queue.take("bob", 1) == list(range(BLOCK_OFFSETS))
    assert queue.shows()[-7:] == "llrrrrr"


@pytest.mark.parametrize("order", [range(9), reversed(range(9)), [3, 5, 4, 0, 8, 1, 7, 6, 2]])
def test_messages_that_are_given_back_one_by_one_are_one_run(order):
    """So is what the journal says of them: each change of a block writes down all of its runs."""
    queue = taken(10)
    for offset in order:
        queue.release("ann", offset)
    assert [(run.first, run.last) for run in queue.state.runs()] == [(0, 8), (9, 9)]
    assert len(queue.journal.blocks[0].attempts) == 1
    assert queue.crash().delivery_counts() == dict.fromkeys(range(9), 1)
    assert queue.take("bob", 4) == [0, 1, 2, 3]


def test_messages_that_are_rejected_for_one_reason_are_one_run():
    queue = taken(6, has_dead_letter=True)
    for offset, note in enumerate(["a", "a", "b", "b", "a"]):
        queue.reject("ann", offset, note=note)
    runs = [(run.first, run.last, run.note) for run in queue.state.runs() if run.state is State.REJECTED]
    assert runs == [(0, 1, "a"), (2, 3, "b"), (4, 4, "a")]


def test_what_differs_is_no_run():
    """In the count of its deliveries, its priority, or by an order key."""
    queue = taken(3)
    queue.release("ann", 0, 2)
    queue.take("ann", 1)
    queue.release("ann", 0)
    assert [run.first for run in queue.state.runs()] == [0, 1]
    queue = QueueSpecification(looks_ahead=True)
    queue.look("ann", message(0), message(1, priority=5), message(2, key="k"), message(3, key="l"))
    queue.take("ann", 9)
    queue.release("ann", 0, 3)
    assert [run.first for run in queue.state.runs()] == [0, 1, 2, 3]


def test_a_look_that_failed_may_count_as_a_delivery():
    """So what cannot be read is rejected at last."""
    queue = QueueSpecification(looks_ahead=True, max_deliveries=2, has_dead_letter=True)
    queue.fresh("ann", 1)
    queue.release("ann", 0, until=50, note="damaged")
    assert queue.delivery_counts() == {0: 1}
    queue.at(50)
    queue.take("ann", 1)
    queue.release("ann", 0, note="damaged")
    assert queue.take_rejected("bob", 1) == [(0, "damaged")]


def test_messages_in_a_row_that_ask_for_the_same_are_arranged_as_one_run():
    queue = QueueSpecification(looks_ahead=True)
    asked = [
        (0, "", 0),
        (0, "", 0),
        (5, "", 0),
        (5, "", 0),
        (5, "", 50),
        (5, "", 50),
        (0, "k", 0),
        (0, "k", 0),
    ]
    messages = [message(at, priority=p, key=k, not_before=b) for at, (p, k, b) in enumerate(asked)]
    queue.look("ann", *messages[:2], *messages[3:])  # there is none at offset 2: it is done
    assert [(run.first, run.last) for run in queue.state.runs()] == [(0, 1), (3, 3), (4, 5), (6, 6), (7, 7)]
    assert queue.shows() == "rr.rddrw"
    assert queue.take("bob", 9) == [3, 0, 1, 6, 7]


def test_one_at_a_time_looks_while_others_take_what_is_arranged():
    queue = arranged("", "")
    queue.fresh("ann", 2)
    assert queue.fresh("bob", 2) is None
    assert queue.take("bob", 1) == [0]
    queue.release("ann", 3, was_delivered=False)
    assert queue.take("bob", 9) == [1]
    assert queue.shows() == "aalr"
    queue.at(100)
    assert queue.fresh("bob", 2) is None, "older ones are to be looked at first"
    assert queue.take("bob", 9) == [2, 3], "what came back lies beside the other, and is one run with it"


def test_there_is_work_where_something_can_be_had():
    """Who waits sleeps while another looks at the only messages there are, and is told when they are arranged."""
    queue = QueueSpecification(looks_ahead=True)
    assert queue.state.has_fresh(1)
    assert not queue.state.has_fresh(0)
    run = queue.fresh("ann", 2)
    assert not queue.state.has_fresh(9)
    assert not queue.state.has_ready()
    queue.arrange("ann", run, message(0), message(1, key="k"))
    assert queue.has_woken_others
    assert queue.state.has_ready()
    queue.take("ann", 2)
    assert not queue.state.has_ready()
    assert queue.state.has_fresh(9)


def test_who_lost_what_it_looked_at_arranges_nothing():
    queue = QueueSpecification(looks_ahead=True)
    run = queue.fresh("ann", 2)
    queue.at(100)
    queue.arrange("ann", run, message(0, priority=5))
    assert queue.shows() == "rr"
    queue.take("bob", 1)
    queue.arrange("ann", run, message(0, priority=5))
    assert queue.shows() == "ll"


def test_without_looking_ahead_there_is_no_priority_and_no_order_key():
    """A delayed message would have them, those that stay in the owner's hands would not."""
    queue = QueueSpecification()
    run = queue.fresh("ann", 2)
    queue.arrange("ann", run, message(0, key="k"), message(1, key="k", priority=3, not_before=5))
    queue.at(5)
    assert queue.take("bob", 1) == [1]


def test_a_subscription_may_stop_looking_ahead():
    """What was arranged keeps its order; what was not goes out as it comes."""
    queue = arranged("k", "k", "")
    queue.fresh("ann", 2)
    queue.settings = QueueSettings(looks_ahead=False)
    assert queue.take("bob", 1) == [0]
    assert queue.shows() == "awrll"
    run = queue.fresh("cid", 2)
    queue.arrange("cid", run, message(5), message(6, not_before=50))
    queue.die("ann")
    assert queue.shows() == "awrrrad"
    assert queue.take("cid", 9) == [3, 4, 2]


def test_a_subscription_may_begin_to_look_ahead():
    queue = taken(4)
    queue.release("ann", 2, 3)
    queue.settings = QueueSettings(looks_ahead=True)
    assert queue.take("bob", 9) == [2, 3]
    queue.finish("ann", 0)
    queue.release("ann", 1)
    assert queue.shows() == ".rll"


# Order keys ---------------------------------------------------------------------------------------


def test_messages_of_one_key_are_in_one_hand():
    queue = arranged("k", "k", "other", "k")
    assert queue.take("ann", 1) == [0]
    assert queue.take("bob", 9) == [2]
    assert queue.shows() == "awaw"
    assert queue.take("cid", 9) == []


def test_of_a_key_one_is_ready_and_the_others_wait():
    assert arranged("k", "k", "", "j", "k", "j").shows() == "rwrrww"


def test_an_owner_takes_along_those_that_wait_for_its_message():
    queue = arranged("k", "j", "k", "k", "k")
    assert queue.take("ann", 3) == [0, 2, 3]
    assert queue.shows() == "araaw"


def test_the_next_of_a_key_is_ready_when_the_last_in_hand_is_done():
    queue = arranged("k", "k", "k")
    queue.take("ann", 2)
    queue.finish("ann", 0)
    assert queue.shows() == ".aw"
    assert not queue.has_woken_others
    queue.finish("ann", 1)
    assert queue.shows() == "..r"
    assert queue.has_woken_others
    assert queue.take("bob", 1) == [2]


def test_a_released_message_comes_before_the_younger_ones_of_its_key():
    queue = arranged("k", "k", "k")
    queue.take("ann", 1)
    queue.take("bob", 1)
    queue.release("ann", 0)
    assert queue.shows() == "rww"
    assert queue.take("bob", 2) == [0, 1]


def test_an_older_message_of_a_key_that_wakes_comes_first():
    queue = QueueSpecification(looks_ahead=True)
    queue.look("ann", message(0, key="k", not_before=50), message(1, key="k"), message(2, key="k"))
    assert queue.shows() == "drw"
    assert queue.at(50).shows() == "rww"


def test_a_message_that_wakes_waits_for_its_key():
    queue = QueueSpecification(looks_ahead=True)
    queue.look("ann", message(0, key="k", not_before=50), message(1, key="k"))
    queue.take("bob", 1)
    assert queue.at(50).shows() == "wa"
    assert not queue.has_woken_others
    queue.finish("bob", 1)
    assert queue.shows() == "r."


def test_a_delayed_or_rejected_message_holds_up_nobody():
    queue = arranged("k", "k", "k", has_dead_letter=True)
    queue.take("ann", 1)
    queue.release("ann", 0, until=50)
    assert queue.shows() == "drw"
    queue.take("ann", 1)
    queue.reject("ann", 1)
    assert queue.shows() == "dxr"


def test_a_key_is_kept_while_its_lease_is_extended():
    queue = arranged("k", "k")
    queue.take("ann", 1)
    queue.extend("ann", 0, until=500)
    assert queue.at(100).shows() == "aw"
    queue.finish("ann", 0)
    assert queue.shows() == ".r"


def test_the_keys_of_an_owner_that_is_gone_are_free_in_order():
    queue = arranged("k", "k", "k", "j")
    queue.take("ann", 2)
    queue.die("ann")
    assert queue.shows() == "rwwr"
    assert queue.take("bob", 9) == [0, 1, 2, 3]


def test_a_younger_message_of_a_key_is_not_arranged_before_an_older_one():
    """The older is still looked at by somebody slow: who comes after looks at nothing."""
    queue = QueueSpecification(looks_ahead=True)
    slow = queue.fresh("ann", 2)
    assert queue.fresh("bob", 2) is None
    queue.arrange("ann", slow, message(0), message(1, key="k"))
    queue.look("bob", message(2, key="k"), message(3))
    assert queue.take("bob", 9) == [0, 1, 2, 3]


# The log loses its beginning ----------------------------------------------------------------------


def test_what_the_log_has_lost_is_done_whoever_holds_it():
    queue = taken(6)
    queue.release("ann", 1)
    queue.drop_below(4)
    assert queue.shows() == "....aa"
    assert queue.finish("ann", 3, 4) == [(3, 3)]


def test_the_log_may_lose_what_nobody_ever_had():
    queue = taken(2)
    queue.drop_below(10)
    assert queue.state.head == (10, 10)
    assert queue.fresh_range("ann", 1) == (10, 10)


def test_the_log_loses_nothing_twice():
    queue = taken(3)
    queue.drop_below(2)
    queue.drop_below(1)
    assert queue.state.head == (2, 3)


def test_a_key_whose_holder_the_log_has_lost_goes_on_with_the_next():
    queue = arranged("k", "k", "k", "j", "k")
    queue.take("ann", 1)
    queue.drop_below(2)
    assert queue.shows() == "..rrw"
    queue.drop_below(3)
    assert queue.shows() == "...rr"
    assert queue.take("bob", 9) == [3, 4]


def test_the_rejected_are_lost_with_the_log():
    queue = rejected(3)
    queue.drop_below(2)
    assert queue.take_rejected("bob", 9) == [(2, "bad")]


# What lasts ---------------------------------------------------------------------------------------


def test_what_was_in_hands_is_ready_after_a_crash_and_what_was_done_is_done():
    queue = taken(5)
    queue.finish("ann", 0)
    queue.finish("ann", 2, 3)
    assert queue.crash().shows() == ".r.."
    assert queue.fresh_range("bob", 1) == (4, 4), "nothing lasts of it: it is fresh again"


def test_deliveries_in_vain_are_counted_beyond_a_crash():
    queue = taken(3)
    queue.release("ann", 1, 2)
    queue.take("ann", 1)
    queue.release("ann", 1)
    queue.take("bob", 2)
    assert queue.crash().delivery_counts() == {0: 0, 1: 2, 2: 1}, "the one under way does not count"


def test_rejections_and_their_reasons_outlive_a_crash():
    queue = taken(3, has_dead_letter=True)
    queue.reject("ann", 0, note="no price")
    queue.reject("ann", 2, note="no name")
    queue.take_rejected("bob", 1)
    assert queue.crash().shows() == "xrx"
    assert queue.take_rejected("bob", 9) == [(0, "no price"), (2, "no name")]


@pytest.mark.parametrize("was_delivered", [True, False])
def test_a_delay_asked_for_on_release_outlives_crashes(was_delivered):
    queue = taken(2)
    queue.release("ann", 0, until=50, was_delivered=was_delivered)
    assert queue.crash().shows() == "d"
    queue.fresh("ann", 1)
    queue.release("ann", 1)
    assert queue.crash().shows() == "dr"
    assert queue.at(50).shows() == "rr"


def test_a_delay_that_the_message_asks_for_costs_the_journal_nothing():
    queue = QueueSpecification()
    run = queue.fresh("ann", 100)
    queue.arrange("ann", run, *[message(offset, not_before=50 + offset) for offset in range(100)])
    queue.fresh("ann", 1)
    queue.finish("ann", 100)
    assert queue.journal.blocks[0].attempts == []


def test_a_message_being_looked_at_keeps_the_deliveries_that_it_had():
    queue = arranged("", "")
    queue.take("ann", 2)
    queue.release("ann", 0, 1)
    queue.crash()
    queue.take("ann", 1)
    assert queue.shows() == "ll"
    queue.release("ann", 0, until=50, was_delivered=False)
    assert queue.crash().delivery_counts() == {0: 1, 1: 1}
    queue.take("ann", 1)
    queue.release("ann", 1, was_delivered=False)
    assert queue.crash().delivery_counts() == {0: 1, 1: 1}


def test_a_limit_that_was_lowered_rejects_at_the_end_of_a_delivery_and_not_of_a_look():
    queue = arranged("", has_dead_letter=True)
    for _ in range(3):
        queue.take("ann", 1)
        queue.release("ann", 0)
    queue.crash()
    queue.settings = QueueSettings(max_deliveries=2, has_dead_letter=True, looks_ahead=True)
    queue.take("ann", 1)
    assert queue.at(100).shows() == "r"
    queue.settings = QueueSettings(max_deliveries=2, has_dead_letter=True)
    queue.take("ann", 1)
    assert queue.at(200).shows() == "x"


def test_messages_are_looked_at_again_after_a_crash():
    queue = arranged("k", "k")
    queue.take("ann", 1)
    queue.release("ann", 0)
    queue.crash()
    assert queue.take("bob", 9) == [0]
    assert queue.shows() == "l"


def test_a_subscription_begins_anywhere():
    queue = QueueSpecification(start=5000)
    assert queue.fresh_range("ann", 2) == (5000, 5001)
    queue.finish("ann", 5001)
    assert queue.crash().shows(start=5000) == "r."


def test_nothing_is_journaled_of_acceptances_in_order_but_the_start():
    queue = taken(3000)
    for first in range(0, 3000, 100):
        queue.finish("ann", first, first + 99)
    assert queue.journal.start_offset == 3000
    assert queue.journal.blocks == {}


def test_blocks_are_dropped_from_the_journal_when_the_start_is_behind_them():
    queue = taken(3 * BLOCK_OFFSETS)
    queue.release("ann", 0, 5)
    queue.finish("ann", 1000, 2000)
    assert sorted(queue.journal.blocks) == [0, 1]
    queue.crash()
    queue.take("bob", 3 * BLOCK_OFFSETS)
    queue.finish("bob", 0, 999)
    assert sorted(queue.journal.blocks) == [1]
    queue.fresh("bob", 100)
    queue.finish("bob", 2001, 2100)
    assert queue.journal.blocks == {}


def test_a_journal_with_more_than_is_needed_is_understood():
    """Blocks behind the start, and messages both done and tried, as a crash between two events may leave them."""
    rows = MemoryRows()
    state = QueueState(rows, QueueSettings())
    tried = [Attempt(0, 7, 2), Attempt(4, 9, 1, is_rejected=True, note="no")]
    state.begin(1026, {0: BlockChange(b"\xff", []), 1: BlockChange(b"\x18", tried), 4: BlockChange(b"", [])})
    assert [(run.first, run.last, run.delivery_count, run.state) for run in state.runs()] == [
        (1026, 1026, 2, State.READY),
        (1029, 1031, 2, State.READY),
        (1032, 1033, 1, State.REJECTED),
    ]
    assert state.changes().dropped_blocks == [0]


def test_a_queue_that_begins_anew_forgets_what_was_before():
    queue = taken(9)
    queue.finish("ann", 3)
    queue.state.begin(100, {})
    assert queue.state.head == (100, 100)
    assert list(queue.state.runs()) == []
    assert queue.state.changes() == (None, {}, [])


def test_a_cleared_queue_has_no_rows():
    queue = taken(3)
    queue.state.clear()
    assert queue.rows.snapshot() == {}
    assert not QueueState(queue.rows, queue.settings).exists


# Cost ---------------------------------------------------------------------------------------------


def touched_by_a_hundred(queue: QueueSpecification) -> int:
    """How many rows are touched by taking and finishing 100 messages, in each of the ways there are."""
    state = QueueState(queue.rows, queue.settings)
    before = queue.rows.touched
    run = state.acquire_fresh("ann", 100, visible_end=1 << 40, lease_end_ms=100)
    assert run is not None
    messages = [message(offset, key=f"k{offset % 50}") for offset in range(run.first, run.last + 1)]
    state.arrange("ann", run, messages, now_ms=0, now_wall_ms=0)
    for _ in range(2):
        held = state.acquire("bob", 100, lease_end_ms=100)
        state.release("bob", [(one.first, one.last) for one in held], now_ms=0)
    state.acquire("bob", 100, lease_end_ms=100)
    state.finish("bob", [(run.first, run.last)], now_ms=0)
    state.expire(now_ms=0)
    state.wake(now_wall_ms=0)
    state.changes()
    return queue.rows.touched - before


@pytest.mark.parametrize("key", ["", "busy"], ids=["delayed", "waiting"])
def test_the_cost_does_not_grow_with_what_is_delayed_or_waits(key):
    """Ten times as many messages that cannot be handed out, and not one more row is touched."""
    costs = []
    for count in (BLOCK_OFFSETS, 10 * BLOCK_OFFSETS):
        queue = QueueSpecification(looks_ahead=True)
        busy = [message(offset, key=key, not_before=0 if key else 10**9) for offset in range(count)]
        run = queue.state.acquire_fresh("ann", count, visible_end=count, lease_end_ms=10**9)
        queue.state.arrange("ann", run, busy, now_ms=0, now_wall_ms=0)
        if key:
            queue.state.acquire("ann", 1, lease_end_ms=10**9)
        costs.append(touched_by_a_hundred(queue))
    assert costs[0] == costs[1]


def test_the_journal_costs_what_failed_and_not_what_is_arranged():
    """Of a block full of single messages that are ready, only those that were tried in vain are read."""
    queue = QueueSpecification(looks_ahead=True)
    queue.look("ann", *[message(offset, priority=offset % 3) for offset in range(BLOCK_OFFSETS)])
    assert queue.take("ann", 2) == [2, 5]
    before = queue.rows.touched
    queue.state = QueueState(queue.rows, queue.settings)
    queue.state.finish("ann", [(2, 2)], now_ms=0)
    queue.state.release("ann", [(5, 5)], now_ms=0)
    assert queue.state.changes().blocks == {0: BlockChange(b"\4", [Attempt(5, 5, 1)])}
    assert queue.rows.touched - before < 50


def test_acceptances_one_by_one_cost_as_those_of_a_range():
    costs = []
    for step in (1, 100):
        queue = taken(100)
        before = queue.rows.touched
        ranges = [(first, first + step - 1) for first in range(0, 100, step)]
        queue.state.finish("ann", ranges, now_ms=0)
        costs.append(queue.rows.touched - before)
    assert costs[0] == costs[1]


# The rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HEAD", "ENTRY"])
def test_the_table_of_the_docstring_is_the_layout(name):
    """Positions and sizes as documented are those of the struct."""
    layout: struct.Struct = getattr(rows_module, name)
    sizes = {"int64": 8, "uint8": 1, "uint16": 2, "8 bytes": 8}
    text = re.split(r"\n    [A-Z]", (rows_module.__doc__ or "").split(f"\n    {name} ")[-1])[0]
    fields = re.findall(r"^ +(\d+)  \w+ +(int64|uint8|uint16|8 bytes)", " " * 9 + text, re.MULTILINE)
    position = 0
    for documented, kind in fields:
        assert int(documented) == position
        position += sizes[kind]
    assert fields
    assert position == layout.size


def test_a_run_is_read_as_it_was_written():
    run = Run(7, 9, State.DELAYED, 3, 1234, "ann é", "why ü", True, True, 200, b"8 bytes!")
    assert decode_run(entry_key(7), encode_run(run)) == run
