"""Who leads a partition's queue: the line for the lead, without threads."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from logbroker.lead import Lead, Turn


def turn(*, is_over: bool = False) -> Turn:
    return Turn(SimpleNamespace(is_over=is_over))


def asked(lead: Lead, count: int) -> list[Turn]:
    turns = [turn() for _ in range(count)]
    for each in turns:
        lead.ask(each)
    return turns


def told(turns: list[Turn]) -> list[bool]:
    """Of which the lock was released, as whoever waits for it would notice."""
    return [not each.has_come.locked() for each in turns]


def test_the_first_leads_at_once_and_the_others_wait():
    lead = Lead()
    first, second = asked(lead, 2)
    assert lead.holder is first
    assert told([first, second]) == [False, False]


def test_those_who_are_served_pass_it_on_to_the_first_who_waits_still():
    lead = Lead()
    leader, served, waiting, served_too = turns = asked(lead, 4)
    for each in (leader, served, served_too):
        each.batch.is_over = True
    for leaves, comes in ((leader, served), (served, served_too), (served_too, waiting)):
        assert lead.pass_on(leaves)
        assert lead.holder is comes
    assert told(turns) == [False, True, True, True]
    assert not lead.pass_on(waiting)
    assert lead.holder is waiting


def test_who_gives_up_waiting_is_passed_over():
    lead = Lead()
    leader, gone, last = asked(lead, 3)
    lead.pass_on(gone)
    lead.pass_on(leader)
    assert lead.holder is last


@given(st.lists(st.tuples(st.sampled_from(["ask", "serve", "leave", "leave twice"]), st.integers(0, 5))))
def test_one_of_those_who_are_there_leads(steps):
    """Whatever comes in whatever order: the lead is with somebody who was told of it, and no one else is."""
    lead, there, led = Lead(), [], []
    for step, number in steps:
        if step == "ask":
            there.append(turn())
            if lead.holder is None:
                led.append(there[-1])
            lead.ask(there[-1])
        elif there and step == "serve":
            there[number % len(there)].batch.is_over = True
        elif there:
            leaves = there.pop(number % len(there))
            for _ in range(2 if step == "leave twice" else 1):
                if not lead.pass_on(leaves):
                    lead.holder = None
        if there:
            assert lead.holder in there
            if lead.holder not in led:
                led.append(lead.holder)
                assert told([lead.holder]) == [True]
        else:
            assert lead.is_idle
        assert not any(told([each for each in there if each not in led]))
