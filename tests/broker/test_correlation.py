"""The correlation table: each request ends once, as the first thing that happens to it says."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from logbroker.request_reply.correlation import CorrelationTable, RequestCounts


def test_whoever_asked_gets_the_reply_with_its_id():
    table = CorrelationTable[str]("p")
    first, second = table.issue("first"), table.issue("second")
    assert first != second
    assert table.claim(second) == "second"
    assert table.claim(first) == "first"
    assert table.counts == RequestCounts(sent=2, answered=2)


def test_a_reply_that_is_late_or_comes_twice_or_is_nobodys_is_dropped_and_counted():
    table = CorrelationTable[str]("p")
    late, twice = table.issue("late"), table.issue("twice")
    assert table.give_up(late)
    assert table.claim(twice) == "twice"
    assert [table.claim(one) for one in (late, twice, b"p.77", b"\xff", None)] == [None] * 5
    assert table.counts == RequestCounts(sent=2, answered=1, given_up=1, dropped=5)


def test_giving_up_what_was_answered_changes_nothing():
    table = CorrelationTable[str]("p")
    one = table.issue("one")
    table.claim(one)
    assert not table.give_up(one)
    assert table.counts == RequestCounts(sent=1, answered=1)


def test_tables_with_other_prefixes_have_other_ids():
    one, other = CorrelationTable[str]("12-ab-1"), CorrelationTable[str]("12-ab-2")
    assert other.claim(one.issue("x")) is None


class Table(RuleBasedStateMachine):
    """Against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.table: CorrelationTable[int] = CorrelationTable("p")
        self.waiting: dict[bytes, int] = {}
        self.number = 0
        self.ended = 0

    issued = Bundle("issued")

    @rule(target=issued)
    def issue(self):
        self.number += 1
        one = self.table.issue(self.number)
        assert one not in self.waiting
        self.waiting[one] = self.number
        return one

    @rule(one=issued)
    def claim(self, one):
        expected = self.waiting.pop(one, None)
        self.ended += expected is not None
        assert self.table.claim(one) == expected

    @rule(one=consumes(issued))
    def give_up(self, one):
        was_waiting = self.waiting.pop(one, None) is not None
        self.ended += was_waiting
        assert self.table.give_up(one) == was_waiting

    @rule(one=st.binary(max_size=4))
    def claim_nonsense(self, one):
        if one not in self.waiting:
            assert self.table.claim(one) is None

    @rule()
    def give_up_all(self):
        assert sorted(self.table.give_up_all()) == sorted(self.waiting.values())
        self.ended += len(self.waiting)
        self.waiting.clear()

    @invariant()
    def only_what_waits_is_kept(self):
        counts = self.table.counts
        assert len(self.table) == len(self.waiting)
        assert counts.sent == self.number
        assert counts.answered + counts.given_up == self.ended


TestTable = Table.TestCase
