"""The group state machine: who owns what, who is to own it, and when it moves."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logbroker.assignor import Assignment, assign
from logbroker.groups import (
    NOBODY,
    Expire,
    GroupState,
    Join,
    Leave,
    Member,
    Release,
    Tick,
    TopicsChanged,
    TopicShape,
    apply,
    decode_group,
    encode_group,
)
from logbroker.topic_selection import TopicSelection

TIMEOUT_MS = 1000


class Group:
    """A group under test: `Group(t=4).join("a").join("b").owners()`."""

    def __init__(self, **topics: int) -> None:
        self.shapes = {name: TopicShape(name.encode(), partitions) for name, partitions in topics.items()}
        self.state = GroupState()
        self.now_ms = 1

    def apply(self, event) -> Group:
        self.state = apply(self.state, event, now_ms=self.now_ms)
        return self

    def join(self, name: str, topics="*") -> Group:
        member = Member("p-" + name, TopicSelection.parse(topics), TIMEOUT_MS)
        return self.apply(Join(name, member, self.shapes))

    def release_all(self) -> Group:
        for place, slot in list(self.state.slots()):
            if slot.owner != slot.target:
                self.apply(Release(slot.owner, (place,)))
        return self

    def owners(self) -> dict:
        return {place: slot.owner for place, slot in self.state.slots()}

    def targets(self) -> dict:
        return {place: slot.target for place, slot in self.state.slots()}

    def load(self) -> dict[str, int]:
        return dict(sorted(Counter(self.owners().values()).items()))


# What each transition does ----------------------------------------------------------------------------------


def test_the_first_member_owns_everything_at_once():
    assert Group(t=3).join("a").load() == {"a": 3}


def test_a_partition_moves_only_when_its_owner_releases_it():
    group = Group(t=4).join("a").join("b")
    assert group.load() == {"a": 4}
    assert Counter(group.targets().values()) == {"a": 2, "b": 2}
    assert group.release_all().load() == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("topics", "wanted", "members"),
    [(5000, "t0", 50), (1000, [f"t{number}" for number in range(1000)], 12), (3000, "t*", 5)],
    ids=["one of many topics", "many names", "a pattern"],
)
def test_many_topics_and_members_take_no_more_than_each_topic_and_member(topics, wanted, members):
    """Joining, and whatever else changes a group, is under the journal's lock, where everybody waits for it."""
    group = Group(**{f"t{number}": 1 for number in range(topics)})
    began = time.thread_time()
    for number in range(members):
        group.join(f"m{number}", wanted)
    for owner in sorted(set(group.owners().values())):
        moving = tuple(place for place, slot in group.state.slots() if slot.owner == owner != slot.target)
        group.apply(Release(owner, moving))
    assert time.thread_time() - began < 1
    assert sum(group.load().values()) == len(group.owners())


def test_a_member_cannot_release_what_it_is_to_keep_or_does_not_own():
    group = Group(t=2).join("a").join("b")
    before = group.state
    kept = [place for place, target in group.targets().items() if target == "a"]
    moving = [place for place, target in group.targets().items() if target == "b"]
    assert group.apply(Release("a", tuple(kept))).state is before
    assert group.apply(Release("b", tuple(moving))).state is before


def test_what_a_leaving_member_owned_is_owned_by_the_others_at_once():
    group = Group(t=4).join("a").join("b").release_all()
    assert group.apply(Leave("a")).load() == {"b": 4}


def test_a_dead_member_that_was_to_release_frees_its_partitions_at_once():
    group = Group(t=4).join("a").join("b")
    assert group.apply(Expire(("a",))).load() == {"b": 4}


def test_a_partition_that_is_not_released_in_time_is_taken_away():
    group = Group(t=4).join("a").join("b")
    group.now_ms += TIMEOUT_MS - 1
    assert group.apply(Tick()).load() == {"a": 4}
    group.now_ms += 1
    assert group.apply(Tick()).load() == {"a": 2, "b": 2}


def test_another_change_does_not_give_the_owner_more_time():
    group = Group(t=6).join("a").join("b")
    group.now_ms += TIMEOUT_MS // 2
    group.join("c")
    group.now_ms += TIMEOUT_MS // 2
    taken = 6 - group.apply(Tick()).load()["a"]
    assert taken == 3
    assert not any(slot.release_by_ms == 0 for _, slot in group.state.slots() if slot.owner != slot.target)


def test_the_generation_grows_and_a_regained_partition_has_a_new_one():
    group = Group(t=1).join("a")
    first = group.state.slot("t", 0).since
    group.apply(Leave("a")).join("b").apply(Leave("b")).join("a")
    again = group.state.slot("t", 0)
    assert again.owner == "a"
    assert again.since > first
    assert group.state.generation >= again.since


def test_new_partitions_and_new_topics_of_a_pattern_are_taken_up():
    group = Group(x1=1).join("a", "x*")
    group.shapes = {"x1": TopicShape(b"x1", 2), "x2": TopicShape(b"x2", 1), "y": TopicShape(b"y", 1)}
    group.apply(TopicsChanged(group.shapes))
    assert group.owners() == {("x1", 0): "a", ("x1", 1): "a", ("x2", 0): "a"}


def test_a_deleted_topic_leaves_and_a_recreated_one_has_new_ownership():
    group = Group(t=2).join("a")
    since = group.state.slot("t", 0).since
    group.apply(TopicsChanged({"t": TopicShape(b"another id", 2)}))
    assert group.state.slot("t", 0).owner == "a"
    assert group.state.slot("t", 0).since > since
    assert group.apply(TopicsChanged({})).owners() == {}
    assert group.state.slot("t", 0) is None


@pytest.mark.parametrize("event", [Leave("x"), Expire(("x",)), Release("x", (("t", 0),)), Tick()])
def test_an_event_that_changes_nothing_gives_the_same_state(event):
    group = Group(t=2).join("a").join("b").release_all()
    before = group.state
    assert group.apply(event).state is before
    assert group.apply(TopicsChanged(group.shapes)).state is before


def test_the_state_survives_encoding():
    group = Group(t=3, u=1).join("a").join("b", ["t", "u*"])
    assert decode_group(encode_group(group.state)) == group.state
    assert decode_group(None) == GroupState()


# The assignor ---------------------------------------------------------------------------------------------


def test_each_topic_is_spread_over_the_members():
    group = Group(heavy=4, light=4).join("a").join("b").release_all()
    assert Counter((topic, owner) for (topic, _), owner in group.owners().items()) == {
        ("heavy", "a"): 2, ("heavy", "b"): 2, ("light", "a"): 2, ("light", "b"): 2,
    }  # fmt: skip


def test_balance_is_found_through_a_member_between():
    """`a` can only hand `x` to `b`, and `b` only `y` to `c`."""
    wanted = Assignment(
        subscriptions={"a": frozenset("x"), "b": frozenset("xy"), "c": frozenset("y")},
        held={("x", 0): ("a",), ("x", 1): ("a",), ("y", 0): ("b",)},
    )
    assert Counter(assign(wanted).values()) == {"a": 1, "b": 1, "c": 1}


members = st.dictionaries(
    st.sampled_from("abcdef"), st.frozensets(st.sampled_from("tuv"), min_size=1), min_size=1
)
shapes = st.fixed_dictionaries({"t": st.integers(0, 7), "u": st.integers(0, 5), "v": st.integers(0, 3)})


@given(members, shapes, st.data())
def test_any_assignment_is_complete_and_as_even_as_the_subscriptions_allow(subscriptions, topics, data):
    places = [(topic, partition) for topic, count in topics.items() for partition in range(count)]
    holders = st.lists(st.sampled_from("abcdefgh"), max_size=2).map(tuple)
    held = {place: data.draw(holders) for place in places}
    owners = assign(Assignment(subscriptions=subscriptions, held=held))
    wanted = {place for place in places if any(place[0] in topics for topics in subscriptions.values())}
    assert set(owners) == wanted
    assert all(place[0] in subscriptions[owner] for place, owner in owners.items())
    load = Counter(owners.values())
    for place, owner in owners.items():
        for other, topics_of_other in subscriptions.items():
            if place[0] in topics_of_other:
                assert load[owner] - load[other] <= 1
    if len(set(subscriptions.values())) == 1 and wanted:
        loads = [load[name] for name in subscriptions]
        assert max(loads) - min(loads) <= 1


@given(st.integers(1, 8), st.integers(0, 30))
def test_a_join_moves_only_what_the_new_member_gets(count, partitions):
    group = Group(t=partitions)
    for index in range(count):
        before = group.targets()
        group.join(f"m{index}").release_all()
        moved = [place for place, target in group.targets().items() if before.get(place) != target]
        assert index == 0 or {group.targets()[place] for place in moved} <= {f"m{index}"}
        assert index == 0 or len(moved) <= partitions // (index + 1)


@given(st.integers(2, 8), st.integers(0, 30), st.data())
def test_a_departure_moves_only_what_the_member_had(count, partitions, data):
    group = Group(t=partitions)
    for index in range(count):
        group.join(f"m{index}").release_all()
    gone = f"m{data.draw(st.integers(0, count - 1))}"
    before = group.owners()
    after = group.apply(Leave(gone)).owners()
    assert {place for place in after if after[place] != before[place]} == {
        place for place, owner in before.items() if owner == gone
    }


# Any sequence of events -----------------------------------------------------------------------------------


class GroupMachine(RuleBasedStateMachine):
    """Members come, go, die and dawdle; topics grow and vanish."""

    @initialize()
    def start(self):
        self.group = Group(t=4, u=2)
        self.joined = 0

    def apply(self, event):
        before = self.group.state
        self.group.apply(event)
        self.check_moves(before, event)

    def check_moves(self, before, event):
        """A living owner loses a partition only by its own release, in time, or with the topic."""
        for place, slot in before.slots():
            now = self.group.state.slot(*place)
            if now is None or slot.owner in (NOBODY, now.owner) or slot.owner not in self.group.state.members:
                continue
            released = isinstance(event, Release) and event.member_id == slot.owner
            late = isinstance(event, Tick) and slot.release_by_ms <= self.group.now_ms
            assert released or late

    @rule(topics=st.sampled_from(["t", "u", "*", ("t", "u")]))
    def join(self, topics):
        self.joined += 1
        before = self.group.state
        self.group.join(f"m{self.joined}", topics)
        self.check_moves(before, None)

    @precondition(lambda self: self.group.state.members)
    @rule(data=st.data(), dies=st.booleans())
    def go(self, data, dies):
        name = data.draw(st.sampled_from(sorted(self.group.state.members)))
        self.apply(Expire((name,)) if dies else Leave(name))

    @precondition(lambda self: any(True for _ in self.group.state.slots()))
    @rule(data=st.data())
    def release(self, data):
        place, slot = data.draw(st.sampled_from(list(self.group.state.slots())))
        self.apply(Release(slot.owner, (place,)))

    @rule(passed_ms=st.integers(0, TIMEOUT_MS))
    def tick(self, passed_ms):
        self.group.now_ms += passed_ms
        self.apply(Tick())

    @rule(t=st.integers(1, 8), u=st.integers(0, 3))
    def change_topics(self, t, u):
        shapes = {"t": TopicShape(b"t", max(t, self.group.shapes["t"].partitions))}
        if u:
            held = self.group.shapes.get("u")
            shapes["u"] = TopicShape(b"u", max(u, held.partitions if held else 0))
        self.group.shapes = shapes
        self.apply(TopicsChanged(shapes))

    @invariant()
    def every_wanted_partition_has_one_owner_who_wants_it(self):
        members = self.group.state.members
        for name, shape in self.group.shapes.items():
            wanted = any(member.selection.wants(name) for member in members.values())
            assert (self.group.state.slot(name, 0) is not None) == (wanted and shape.partitions > 0)
        for (topic, _), slot in self.group.state.slots():
            assert members[slot.owner].selection.wants(topic)
            assert members[slot.target].selection.wants(topic)
            assert (slot.release_by_ms != 0) == (slot.owner != slot.target)
            assert slot.since <= self.group.state.generation

    @invariant()
    def every_partition_comes_to_its_target_in_the_end(self):
        settled = apply(self.group.state, Tick(), now_ms=self.group.now_ms + TIMEOUT_MS)
        assert all(slot.owner == slot.target for _, slot in settled.slots())
        assert not any(slot.release_by_ms for _, slot in settled.slots())


GroupMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_any_sequence_of_events_keeps_the_invariants = GroupMachine.TestCase
