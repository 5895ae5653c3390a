"""That the proof of kill -9 can fail: notes and logs with one planted fault each, which is caught."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from logbroker_storage.record import Record

from .kills.crew import Ending, Worker
from .kills.handed_out import HandedOut, Stretches
from .kills.in_hands import InHands
from .kills.made import Made
from .kills.roles import Life, Run
from .kills.values import read_value, value_of
from .kills.written import Derived, Newest, Pairs, Written

# The log ----------------------------------------------------------------------------------------------------

W0 = ("t", 0, "w0")
W1 = ("t", 0, "w1")


def log_of(*records: tuple[tuple[str, int, str], int]) -> Written:
    """A log of these records, at 0, 1, 2, …"""
    written = Written()
    for offset, (place, number) in enumerate(records):
        written.found(place, number, offset)
    return written


def test_a_log_that_holds_what_was_acknowledged_passes_whichever_is_told_first() -> None:
    written = log_of((W0, 0), (W1, 0), (W0, 1))
    written.acknowledged(W0, 0, 0)
    written.compare()
    written.acknowledged(W0, 1, 2)
    written.acknowledged(W0, 2, 3)
    written.found(W0, 2, 3)
    written.compare()


def test_what_was_acknowledged_and_is_not_there_is_found() -> None:
    written = log_of((W0, 0))
    written.acknowledged(W0, 1, 1)
    with pytest.raises(AssertionError, match="is not there"):
        written.compare()


def test_what_is_at_another_offset_than_was_acknowledged_is_found() -> None:
    written = log_of((W1, 0), (W0, 0))
    written.acknowledged(W0, 0, 0)
    with pytest.raises(AssertionError, match="is at 1"):
        written.compare()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([(W0, 0), (W0, 0)], "where 1 comes next"),  # twice
        ([(W0, 0), (W0, 2)], "where 1 comes next"),  # left out
        ([(W0, 1), (W0, 0)], "where 0 comes next"),  # in another order
    ],
)
def test_a_record_that_is_doubled_left_out_or_moved_is_found(
    records: list[tuple[tuple[str, int, str], int]], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        log_of(*records)


def test_a_gap_of_offsets_is_found() -> None:
    written = log_of((W0, 0))
    with pytest.raises(AssertionError, match="offset 2 comes after 0"):
        written.found(W0, 1, 2)


@pytest.mark.parametrize("number", [0, 1, 97, 12345])
def test_a_value_is_recognised(number: int) -> None:
    assert read_value(value_of("w0", number)) == ("w0", number)


@pytest.mark.parametrize(
    "value", [None, b"", b"w0:5", value_of("w0", 5)[:-1], value_of("w0", 5).replace(b"5", b"6")]
)
def test_a_value_that_nobody_sent_is_found(value: bytes | None) -> None:
    with pytest.raises(AssertionError, match="no writer sent"):
        read_value(value)


# What is made of it -----------------------------------------------------------------------------------------


def newest(acknowledged: int = -1) -> Newest:
    found = Newest(keys=2, tombstone_every=3)
    found.acknowledged = acknowledged
    return found


def test_a_compacted_topic_that_holds_the_newest_of_each_key_passes() -> None:
    newest(4).check([(b"key-1", 3, True), (b"key-0", 4, False)])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([(b"key-1", 1, False), (b"key-0", 4, False)], "its newest is 3"),  # an old value is back
        ([(b"key-0", 4, False)], "its newest is 3"),
        ([(b"key-1", 3, True)], "4 was acknowledged"),
        ([(b"key-0", 4, False), (b"key-1", 3, True)], "3 comes after 4"),
        ([(b"key-1", 3, False), (b"key-0", 4, False)], "number 3"),
        ([(b"key-0", 3, True), (b"key-0", 4, False)], "number 3 under"),
    ],
)
def test_a_compacted_topic_with_a_fault_is_found(found: list[tuple[bytes, int, bool]], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        newest(4).check(found)


@pytest.mark.parametrize("offsets", [[0, 0], [0, 2], [1, 0]])
def test_what_was_derived_twice_not_at_all_or_in_another_order_is_found(offsets: list[int]) -> None:
    derived = Derived()

    def find() -> None:
        for offset in offsets:
            derived.found(0, offset)

    with pytest.raises(AssertionError, match="is due"):
        find()


def pairs_of(*found: tuple[str, int]) -> Pairs:
    pairs = Pairs()
    for topic, offset in found:
        pairs.found(topic, 0, offset)
    return pairs


def test_pairs_pass_in_any_order() -> None:
    pairs_of(("left", 1), ("right", 1), ("right", 0), ("left", 0)).check_complete({0: 2})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([("left", 0), ("right", 0), ("left", 1)], "one topic only"),
        ([("left", 0), ("right", 0)], "pairs up to"),  # one message has no pair
        ([("left", 1), ("right", 1)], "behind what is not"),
        ([("left", 0), ("left", 0)], "twice"),
        ([("left", 0), ("right", 0), ("right", 0)], "twice"),
    ],
)
def test_half_a_transaction_a_missing_and_a_doubled_one_are_found(
    found: list[tuple[str, int]], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        pairs_of(*found).check_complete({0: 2})


# Readers ----------------------------------------------------------------------------------------------------


def test_stretches_grow_together() -> None:
    stretches = Stretches()
    for first, end in [(5, 7), (0, 2), (8, 9), (1, 5), (7, 8)]:
        stretches.add(first, end)
    assert stretches.end_of_first == 9


def handed_out(*polls: tuple[int, float, float, int, int]) -> HandedOut:
    """Polls of partition 0: worker, before, after, first, end."""
    found = HandedOut()
    for worker, before, after, first, end in polls:
        found.polled(worker, before, after, 0, first, end)
    return found


def test_a_group_that_reads_again_what_was_not_committed_passes() -> None:
    found = handed_out((1, 0.0, 1.0, 0, 5), (1, 1.0, 2.0, 5, 9), (2, 3.0, 4.0, 5, 12))
    found.compare()
    found.compare()
    found.check_complete({0: 12})


def test_what_comes_again_after_it_was_committed_is_found() -> None:
    found = handed_out((1, 0.0, 1.0, 0, 5), (1, 1.0, 2.0, 5, 9), (2, 3.0, 4.0, 4, 12))
    with pytest.raises(AssertionError, match="begins at 4, 5 was committed"):
        found.compare()


def test_a_poll_that_began_before_the_commit_may_return_what_it_names() -> None:
    handed_out((1, 0.0, 1.0, 0, 5), (1, 1.0, 2.0, 5, 9), (2, 1.5, 4.0, 4, 12)).compare()


def test_offsets_that_nobody_was_handed_are_found() -> None:
    found = handed_out((1, 0.0, 1.0, 0, 5), (2, 2.0, 3.0, 6, 9))
    found.compare()  # the diary that has them may be one that was read too early
    with pytest.raises(AssertionError, match="handed to nobody"):
        found.compare()
    with pytest.raises(AssertionError, match="handed out up to"):
        found.check_complete({0: 9})


def records(*found: tuple[int, int]) -> list[Record]:
    """Of one writer: offset and number."""
    return [record_at(offset, value_of("w0", number)) for offset, number in found]


def record_at(offset: int, value: bytes) -> Record:
    return Record("t", 0, offset, 0, None, value, ())


def test_a_reader_notes_the_stretch_of_each_poll() -> None:
    run = Run()
    assert run.of(records((7, 3), (8, 4))) == [(0, 7, 9)]
    assert run.of(records((9, 5))) == [(0, 9, 10)]
    assert run.of(records((4, 0))) == [(0, 4, 5)]  # it was another member's meanwhile


@pytest.mark.parametrize(
    "polls",
    [
        [[(0, 0), (2, 1)]],  # an offset is passed over
        [[(1, 1), (0, 0)]],  # backwards
        [[(0, 0), (1, 2)]],  # a number is missing
        [[(0, 0)], [(1, 0)]],  # and comes twice
    ],
)
def test_a_reader_finds_what_is_wrong_with_what_it_reads(polls: list[list[tuple[int, int]]]) -> None:
    def read() -> None:
        run = Run()
        for poll in polls:
            run.of(records(*poll))

    with pytest.raises(AssertionError):
        read()


# Queues -----------------------------------------------------------------------------------------------------

LEASE_S = 1.0
MESSAGE = (0, 7)


def accepted_by_one(until: float = 1.5) -> InHands:
    """Worker 1 has the message from 1.1 on, and begins to accept it at *until*."""
    hands = InHands(LEASE_S)
    hands.received(1, 1.0, 1.1, MESSAGE)
    hands.settling(1, until, MESSAGE)
    hands.settled(1, "accepted", until + 0.1, MESSAGE)
    return hands


def by_two(called: float, returned: float, *, ended: float = 9.0) -> Callable[[InHands], None]:
    """Worker 2 receives it, too, and dies."""

    def tell(hands: InHands) -> None:
        hands.received(2, called, returned, MESSAGE)
        hands.ended(2, ended)

    return tell


@pytest.mark.parametrize(
    "tell", [by_two(1.7, 1.8), by_two(1.65, 5.0), by_two(1.2, 1.3), by_two(0.5, 1.2), by_two(1.15, 1.45)]
)
def test_a_message_in_two_hands_or_after_it_was_accepted_is_found(tell: Callable[[InHands], None]) -> None:
    with pytest.raises(AssertionError):
        tell(accepted_by_one())


@pytest.mark.parametrize(
    "tell",
    [
        by_two(0.1, 0.2, ended=0.9),  # died before
        by_two(0.05, 0.06),  # its lease had ended, at 1.048, before the call returned
        by_two(1.2, 1.55),  # the acceptance had begun, and may be another's
    ],
)
def test_what_may_have_been_passes(tell: Callable[[InHands], None]) -> None:
    tell(accepted_by_one())


def test_the_same_holds_when_the_other_was_told_first() -> None:
    hands = InHands(LEASE_S)
    by_two(1.7, 1.8)(hands)
    hands.received(1, 1.0, 1.1, MESSAGE)
    hands.settling(1, 1.5, MESSAGE)
    with pytest.raises(AssertionError, match="after 1 had it accepted"):
        hands.settled(1, "accepted", 1.6, MESSAGE)


def test_a_message_that_is_accepted_twice_is_found() -> None:
    hands = accepted_by_one()
    hands.received(2, 0.1, 0.2, MESSAGE)
    hands.settling(2, 0.5, MESSAGE)
    with pytest.raises(AssertionError, match="done before"):
        hands.settled(2, "accepted", 2.0, MESSAGE)


def test_a_message_that_is_gone_though_nobody_was_done_with_it_is_found() -> None:
    hands = InHands(LEASE_S)
    hands.received(1, 1.0, 1.1, (0, 0))
    hands.ended(1, 2.0)
    with pytest.raises(AssertionError, match="done by nobody"):
        hands.check_complete({0: 1})


def test_a_message_that_the_dead_was_accepting_may_be_gone() -> None:
    hands = InHands(LEASE_S)
    hands.received(1, 1.0, 1.1, (0, 0))
    hands.settling(1, 1.2, (0, 0))
    hands.ended(1, 2.0)
    hands.check_complete({0: 1})


def test_what_nobody_can_have_any_more_is_forgotten_but_not_that_it_was_done() -> None:
    hands = accepted_by_one()
    hands.forget(5.0)
    with pytest.raises(AssertionError, match="was done at"):
        by_two(6.0, 6.1)(hands)


# Topics, and ends -------------------------------------------------------------------------------------------


def made(*notes: tuple[str, int]) -> Made:
    """What worker 1 noted of topic "a"."""
    found = Made()
    for kind, count in notes:
        found.note(1, kind, "a", count)
    return found


NOTES = [("making", 0), ("made", 0), ("wrote", 3), ("deleting", 0), ("deleted", 0)]


@pytest.mark.parametrize(
    ("count", "there", "left"),
    [
        (1, [], {}),
        (1, ["a"], {"a": None}),
        (3, ["a"], {"a": 3}),
        (4, [], {}),
        (4, ["a"], {"a": None}),
        (5, [], {}),
    ],
)
def test_a_topic_that_may_be_as_it_is_passes(
    count: int, there: list[str], left: dict[str, int | None]
) -> None:
    assert made(*NOTES[:count]).compare(there, working=[]) == left


@pytest.mark.parametrize(("count", "there"), [(0, ["a"]), (2, []), (3, []), (5, ["a"])])
def test_a_topic_that_is_lost_comes_back_or_was_never_made_is_found(count: int, there: list[str]) -> None:
    with pytest.raises(AssertionError, match="a"):
        made(*NOTES[:count]).compare(there, working=[])


def ending(status: int, errors: str = "") -> Ending:
    life = Life(role="read", slot=0, number=1, seed=0, data="", diary="", errors="")
    worker = Worker.__new__(Worker)
    worker.life = life
    return Ending(worker, status, errors)


@pytest.mark.parametrize(
    ("status", "errors"),
    [
        (256, ""),
        (signal.SIGSEGV, ""),
        (signal.SIGBUS, ""),
        (0, "Exception in thread …\nTraceback (most recent call"),
        (signal.SIGKILL, "Traceback"),
    ],
)
def test_a_worker_that_fails_by_itself_is_found(status: int, errors: str) -> None:
    with pytest.raises(AssertionError):
        ending(status, errors).check()


def test_a_killed_worker_and_one_that_left_are_well() -> None:
    ending(signal.SIGKILL).check()
    ending(0, "a warning").check()
