"""Share groups by themselves: members and assignments, sessions, acknowledgements, configuration. No server."""

from __future__ import annotations

import datetime
import uuid
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode

from logbroker.queues.settlement import Settlement
from logbroker.server.consumer_messages import GroupError, HeartbeatReply, TopicShape
from logbroker.server.error_codes import RefusedError
from logbroker.server.share_acknowledgements import MAX_RANGES, settlement_of
from logbroker.server.share_config import as_config, check_config, difference, rules_of, start_of
from logbroker.server.share_group import ShareGroup, ShareHeartbeat, assign
from logbroker.server.share_sessions import LAST_EPOCH, ShareSessions
from logbroker.subscriptions import Rules
from logbroker_storage.errors import InvalidConfigError

SESSION_MS = 45_000
INTERVAL_MS = 5_000


def shape(partitions: int, number: int = 0) -> TopicShape:
    return TopicShape(uuid.UUID(int=number or partitions), partitions)


class Room:
    """A group with the topics t (2 partitions) and u (1), and a clock."""

    def __init__(self, **options: int) -> None:
        self.group = ShareGroup(
            "g", session_timeout_ms=SESSION_MS, heartbeat_interval_ms=INTERVAL_MS, **options
        )
        self.topics = {"t": shape(2, 7), "u": shape(1, 8)}
        self.now_ms = 1000

    def beat(
        self,
        member_id: str,
        epoch: int = 0,
        topics: tuple[str, ...] | None = None,
        rack_id: str | None = None,
    ) -> HeartbeatReply:
        request = ShareHeartbeat(member_id, epoch, rack_id, topics)
        return self.group.heartbeat(request, dict(self.topics), self.now_ms)

    def join(self, member_id: str, *topics: str) -> HeartbeatReply:
        return self.beat(member_id, 0, topics or ("t",))

    def refused(self, *args: object, **options: object) -> ErrorCode:
        before = (self.group.group_epoch, self.group.members)
        with pytest.raises(GroupError) as caught:
            self.beat(*args, **options)  # type: ignore[arg-type]
        assert (self.group.group_epoch, self.group.members) == before, "a refused heartbeat changed something"
        return caught.value.code


# Members ----------------------------------------------------------------------------------------------------------


def test_a_first_member_gets_all_partitions_at_once():
    reply = Room().join("a", "t", "u")
    assert reply == HeartbeatReply("a", 1, INTERVAL_MS, {"t": (0, 1), "u": (0,)})


def test_members_share_the_partitions_and_each_learns_of_it_with_its_next_heartbeat():
    room = Room()
    room.join("a")
    assert room.join("b").assignment == {"t": (1,)}
    assert room.beat("a", 1) == HeartbeatReply("a", 2, INTERVAL_MS, {"t": (0,)})


def test_an_assignment_that_did_not_change_is_not_told_again():
    room = Room()
    room.join("a")
    assert room.beat("a", 1) == HeartbeatReply("a", 1, INTERVAL_MS, None)


def test_a_member_that_names_its_topics_is_told_its_assignment_even_if_nothing_changed():
    room = Room()
    room.join("a")
    assert room.beat("a", 1, ("t",)).assignment == {"t": (0, 1)}


def test_with_more_members_than_partitions_some_share_one():
    room = Room()
    for name in "abc":
        room.join(name, "u")
    assert all(member.assigned == {"u": (0,)} for member in room.group.members.values())


def test_a_topic_that_is_not_there_yet_is_assigned_when_it_is():
    room = Room()
    assert room.join("a", "later").assignment == {}
    room.topics["later"] = shape(1, 9)
    assert room.beat("a", 1) == HeartbeatReply("a", 2, INTERVAL_MS, {"later": (0,)})


def test_partitions_that_are_added_are_assigned():
    room = Room()
    room.join("a")
    room.topics["t"] = shape(3, 7)
    assert room.beat("a", 1).assignment == {"t": (0, 1, 2)}


def test_topics_that_nobody_wants_change_nothing():
    room = Room()
    room.join("a")
    room.topics["v"] = shape(1, 10)
    assert room.beat("a", 1).member_epoch == 1


def test_a_topic_that_is_gone_is_assigned_no_longer():
    room = Room()
    room.join("a", "t", "u")
    del room.topics["u"]
    assert room.beat("a", 1).assignment == {"t": (0, 1)}


def test_a_member_that_leaves_is_told_so_and_its_partitions_go_to_the_others():
    room = Room()
    room.join("a")
    room.join("b")
    assert room.beat("b", -1) == HeartbeatReply("b", -1, 0, None)
    assert list(room.group.members) == ["a"]
    assert room.beat("a", 1).assignment == {"t": (0, 1)}


def test_a_reply_that_was_lost_may_be_asked_for_again_with_the_epoch_before():
    room = Room()
    room.join("a")
    room.join("b")
    assert room.beat("a", 1) == HeartbeatReply("a", 2, INTERVAL_MS, {"t": (0,)})
    assert room.beat("a", 1) == HeartbeatReply("a", 2, INTERVAL_MS, {"t": (0,)})
    assert room.beat("a", 2) == HeartbeatReply("a", 2, INTERVAL_MS, None)


def test_an_older_or_a_made_up_epoch_is_fenced():
    room = Room()
    room.join("a")
    room.join("b")
    room.beat("a", 1)
    room.join("c")
    room.beat("a", 2)
    assert room.refused("a", 1) is ErrorCode.fenced_member_epoch
    assert room.refused("a", 9) is ErrorCode.fenced_member_epoch


def test_a_member_that_joins_again_is_the_same_member():
    room = Room()
    room.join("a")
    room.join("a")
    assert list(room.group.members) == ["a"]
    assert room.group.group_epoch == 1


@pytest.mark.parametrize("epoch", [1, -1])
def test_who_is_no_member_cannot_go_on_or_leave(epoch: int):
    assert Room().refused("nobody", epoch) is ErrorCode.unknown_member_id


@pytest.mark.parametrize(
    ("member_id", "epoch", "topics", "rack_id"),
    [
        ("", 0, ("t",), None),
        ("a\n", 0, ("t",), None),
        ("a" * 256, 0, ("t",), None),
        ("a", -2, None, None),
        ("a", 0, None, None),
        ("a", 0, (), None),
        ("a", 0, ("t",), ""),
    ],
    ids=[
        "no id",
        "id that cannot be printed",
        "long id",
        "epoch -2",
        "no topics",
        "empty topics",
        "empty rack",
    ],
)
def test_a_request_that_is_not_complete_is_refused(
    member_id: str, epoch: int, topics: object, rack_id: str | None
):
    assert Room().refused(member_id, epoch, topics, rack_id) is ErrorCode.invalid_request


def test_a_group_takes_so_many_members_and_no_more():
    room = Room(max_size=2)
    room.join("a")
    room.join("b")
    assert room.refused("c", 0, ("t",)) is ErrorCode.group_max_size_reached
    assert room.join("a").member_epoch == 2, "one that is in it may join again"


def test_a_member_that_is_silent_for_its_session_is_removed():
    room = Room()
    room.join("a")
    room.now_ms += SESSION_MS - 1
    room.join("b")
    assert room.group.next_deadline_ms() == 1000 + SESSION_MS
    assert room.group.advance(room.now_ms) == []
    assert room.group.advance(room.now_ms + 1) == ["a"]
    assert room.beat("b", 2).assignment == {"t": (0, 1)}
    assert room.refused("a", 1) is ErrorCode.unknown_member_id


def test_a_group_that_is_empty_waits_for_nothing():
    room = Room()
    assert (room.group.state, room.group.next_deadline_ms()) == ("Empty", None)
    room.join("a")
    assert room.group.state == "Stable"
    room.beat("a", -1)
    assert (room.group.state, room.group.next_deadline_ms()) == ("Empty", None)


def test_a_check_says_what_a_heartbeat_would():
    room = Room(max_size=1)
    room.group.check(ShareHeartbeat("a", 0, None, ("t",)))
    assert room.group.is_empty
    room.join("a")
    for request in (
        ShareHeartbeat("b", 0, None, ("t",)),
        ShareHeartbeat("b", 1, None, None),
        ShareHeartbeat("b", -1, None, None),
        ShareHeartbeat("a", 5, None, None),
    ):
        with pytest.raises(GroupError):
            room.group.check(request)


@given(
    subscriptions=st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.lists(st.sampled_from(["t", "u", "v", "gone"]), unique=True).map(sorted),
    ),
    partitions=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
)
def test_every_partition_has_a_member_and_every_member_a_partition_of_a_topic_that_it_wants(
    subscriptions: dict[str, list[str]], partitions: tuple[int, int, int]
):
    topics = {
        name: shape(count, number + 1)
        for number, (name, count) in enumerate(zip("tuv", partitions, strict=True))
    }
    targets = assign(subscriptions, topics)
    ids = {found.topic_id: name for name, found in topics.items()}
    for member_id, wanted in subscriptions.items():
        assert {ids[topic_id] for topic_id, _ in targets[member_id]} <= set(wanted)
        assert bool(targets[member_id]) == bool(set(wanted) & topics.keys())
    wanted_by_some = {topic for wanted in subscriptions.values() for topic in wanted} & topics.keys()
    everything = {
        (topics[name].topic_id, number)
        for name in wanted_by_some
        for number in range(topics[name].partitions)
    }
    assert set().union(*targets.values()) == everything
    alike: dict[tuple[str, ...], list[int]] = {}
    for member_id, wanted in subscriptions.items():
        alike.setdefault(tuple(wanted), []).append(len(targets[member_id]))
    assert all(max(sizes) - min(sizes) <= 1 for sizes in alike.values()), "members alike have alike many"


# Sessions ---------------------------------------------------------------------------------------------------------

T0, T1, U0 = ((uuid.UUID(int=number), partition) for number, partition in ((7, 0), (7, 1), (8, 0)))
HERE, THERE = "a connection", "another"


def code_of(call: object, *args: object) -> ErrorCode:
    with pytest.raises(RefusedError) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.code


def test_a_session_goes_on_with_the_epochs_in_turn():
    sessions = ShareSessions()
    begun = sessions.begin("g", "m", HERE)
    assert [sessions.go_on("g", "m", epoch, HERE) for epoch in (1, 2, 3)] == [begun] * 3
    assert code_of(sessions.go_on, "g", "m", 3, HERE) is ErrorCode.invalid_share_session_epoch
    assert code_of(sessions.go_on, "g", "m", 5, HERE) is ErrorCode.invalid_share_session_epoch
    assert sessions.go_on("g", "m", -1, HERE) is begun, "the last request may come at any epoch"


def test_behind_the_last_epoch_comes_the_first_again():
    sessions = ShareSessions()
    session = sessions.begin("g", "m", HERE)
    session.epoch = LAST_EPOCH
    sessions.go_on("g", "m", LAST_EPOCH, HERE)
    assert sessions.go_on("g", "m", 1, HERE) is session


def test_there_is_one_session_for_each_member_of_each_group():
    sessions = ShareSessions()
    sessions.begin("g", "m", HERE)
    assert code_of(sessions.go_on, "g", "n", 1, HERE) is ErrorCode.share_session_not_found
    assert code_of(sessions.go_on, "h", "m", 1, HERE) is ErrorCode.share_session_not_found


def test_a_closed_session_is_not_found_and_knows_it():
    sessions = ShareSessions()
    begun = sessions.begin("g", "m", HERE)
    assert sessions.close("g", "m") is begun
    assert begun.is_closed
    assert sessions.close("g", "m") is None
    assert code_of(sessions.go_on, "g", "m", 1, HERE) is ErrorCode.share_session_not_found


def test_the_next_session_of_a_member_has_other_hands():
    sessions = ShareSessions()
    first = sessions.begin("g", "m", HERE)
    sessions.close("g", "m")
    assert sessions.begin("g", "m", HERE).hands != first.hands


def test_there_are_so_many_sessions_and_no_more():
    sessions = ShareSessions(most=2)
    sessions.begin("g", "m", HERE)
    sessions.begin("g", "n", HERE)
    assert code_of(sessions.begin, "g", "o", HERE) is ErrorCode.share_session_limit_reached
    sessions.close("g", "m")
    sessions.begin("g", "o", HERE)
    assert len(sessions) == 2


def test_a_session_belongs_to_the_connection_that_used_it_last():
    sessions = ShareSessions()
    session = sessions.begin("g", "m", HERE)
    sessions.go_on("g", "m", 1, THERE)
    assert (sessions.of_connection(HERE), sessions.of_connection(THERE)) == ([], [session])


def test_partitions_are_added_and_forgotten_and_those_served_go_behind_the_others():
    session = ShareSessions().begin("g", "m", HERE)
    session.change([T0, T1, U0], [])
    session.served([T0])
    assert list(session.places) == [T1, U0, T0]
    session.change([T1], [U0])
    assert list(session.places) == [T1, T0]
    session.served([U0])
    assert U0 not in session.places


# Acknowledgements -------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    first_offset: int
    last_offset: int
    acknowledge_types: tuple[int, ...]


def test_one_type_holds_for_a_whole_range():
    assert settlement_of([Batch(3, 9, (1,)), Batch(10, 10, (3,))], may_renew=False) == Settlement(
        finished=[(3, 9)], rejected=[(10, 10)], released=[], renewed=[]
    )


def test_types_of_single_offsets_come_together_as_ranges():
    found = settlement_of([Batch(0, 7, (1, 1, 2, 2, 0, 3, 4, 1))], may_renew=True)
    assert found == Settlement(
        finished=[(0, 1), (7, 7), (4, 4)], released=[(2, 3)], rejected=[(5, 5)], renewed=[(6, 6)]
    )


@pytest.mark.parametrize(
    "batches",
    [
        [Batch(5, 4, (1,))],
        [Batch(-1, 4, (1,))],
        [Batch(0, 4, ())],
        [Batch(0, 4, (1, 1))],
        [Batch(0, 0, (1, 1))],
        [Batch(0, 4, (5,))],
        [Batch(0, 4, (-1,))],
        [Batch(0, 4, (1,)), Batch(4, 5, (1,))],
        [Batch(4, 5, (1,)), Batch(0, 1, (1,))],
        [Batch(0, 2 * MAX_RANGES + 1, (1, 2) * (MAX_RANGES + 1))],
        [Batch(0, 4, (4,))],
    ],
    ids=[
        "backwards", "negative", "no type", "too few types", "too many types", "type 5", "type -1", "twice",
        "not ascending", "too many ranges", "renewal where there is none",
    ],
)  # fmt: skip
def test_what_is_no_acknowledgement_is_refused(batches: list[Batch]):
    with pytest.raises(RefusedError) as caught:
        settlement_of(batches, may_renew=False)
    assert caught.value.code is ErrorCode.invalid_request


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 4), min_size=1, max_size=9)), max_size=9)
)
def test_every_offset_is_settled_once_as_its_type_says(parts: list[tuple[int, list[int]]]):
    position, batches, wanted = 0, [], {}
    for gap, types in parts:
        first = position + gap
        batches.append(Batch(first, first + len(types) - 1, tuple(types)))
        wanted |= {first + index: kind for index, kind in enumerate(types)}
        position = first + len(types)
    found = settlement_of(batches, may_renew=True)
    settled: dict[int, set[int]] = {}
    by_type = {(0, 1): found.finished, (2,): found.released, (3,): found.rejected, (4,): found.renewed}
    for types_, ranges in by_type.items():
        for first, last in ranges:
            for offset in range(first, last + 1):
                assert offset not in settled
                settled[offset] = set(types_)
    assert settled.keys() == wanted.keys()
    assert all(wanted[offset] in settled[offset] for offset in wanted)


@pytest.mark.parametrize(
    ("settlement", "is_lasting"),
    [
        (Settlement(finished=[(0, 0)]), True),
        (Settlement(rejected=[(0, 0)]), True),
        (Settlement(released=[(0, 0)], renewed=[(1, 1)]), False),
    ],
    ids=["accepted", "rejected", "given back or renewed"],
)
def test_only_what_is_done_with_waits_for_the_disk(settlement: Settlement, is_lasting: bool):
    assert settlement.is_lasting is is_lasting


# Configuration ----------------------------------------------------------------------------------------------------


def test_defaults_are_kafkas_but_for_the_isolation_level():
    assert as_config({}, None) == {
        "share.auto.offset.reset": "latest",
        "share.record.lock.duration.ms": "30000",
        "share.delivery.count.limit": "5",
        "share.isolation.level": "read_committed",
    }


def test_what_a_subscription_has_is_shown_whoever_set_it():
    shown = as_config({"share.record.lock.duration.ms": "1"}, Rules(lease_ms=77, max_deliveries=2))
    assert (shown["share.record.lock.duration.ms"], shown["share.delivery.count.limit"]) == ("77", "2")


def test_only_what_is_named_becomes_a_rule():
    rules = Rules(filter="true", lease_ms=77, max_deliveries=2, ordered=True)
    assert rules_of({}, rules) == rules
    changed = rules_of({"share.record.lock.duration.ms": "500"}, rules)
    assert (changed.lease_ms, changed.max_deliveries, changed.ordered) == (500, 2, True)


def test_what_is_no_longer_configured_is_the_default_again():
    before = {"share.delivery.count.limit": "9", "share.auto.offset.reset": "earliest"}
    after = {"share.auto.offset.reset": "earliest", "share.record.lock.duration.ms": "500"}
    assert difference(before, after) == {
        "share.delivery.count.limit": "5",
        "share.record.lock.duration.ms": "500",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share.delivery.count.limit", "0"),
        ("share.delivery.count.limit", "five"),
        ("share.delivery.count.limit", "10001"),
        ("share.record.lock.duration.ms", "-5"),
        ("share.record.lock.duration.ms", "86400001"),
        ("share.auto.offset.reset", "newest"),
        ("share.auto.offset.reset", "by_duration:1h"),
        ("share.auto.offset.reset", "by_duration:P"),
        ("share.auto.offset.reset", "by_duration:PT"),
        ("share.isolation.level", "read_uncommitted"),
        ("share.frobnicate", "1"),
    ],
)
def test_what_cannot_be_configured_is_refused_with_the_key_in_the_message(name: str, value: str):
    with pytest.raises(InvalidConfigError, match=name):
        check_config({name: value})


@pytest.mark.parametrize(
    ("value", "ago"),
    [
        ("PT1H30M", datetime.timedelta(hours=1, minutes=30)),
        ("P2D", datetime.timedelta(days=2)),
        ("P1DT0.5S", datetime.timedelta(days=1, seconds=0.5)),
    ],
)
def test_a_group_may_begin_some_time_ago(value: str, ago: datetime.timedelta):
    now = datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC)
    config = {"share.auto.offset.reset": f"by_duration:{value}"}
    assert start_of(config, now_ms=int(now.timestamp() * 1000)) == now - ago


def test_longer_ago_than_1970_is_1970():
    start = start_of({"share.auto.offset.reset": "by_duration:P999999D"}, now_ms=1000)
    assert start == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize("value", ["earliest", "latest"])
def test_a_group_may_begin_at_either_end(value: str):
    assert start_of({"share.auto.offset.reset": value}, now_ms=0) == value
