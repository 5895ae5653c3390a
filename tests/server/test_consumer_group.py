"""The consumer-group machine of KIP-848: joining, moving partitions, leaving, and what it refuses."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from itertools import count, pairwise

import pytest
from kio.schema.errors import ErrorCode

from logbroker.server.consumer_group import ConsumerGroup, compiled_expression
from logbroker.server.consumer_messages import (
    GroupError,
    HeartbeatReply,
    HeartbeatRequest,
    Partitions,
    TopicShape,
)
from logbroker.server.group_assignors import AssignorInput, Subscriber, ranges, uniform

SESSION_MS = 45_000
INTERVAL_MS = 5_000
REBALANCE_MS = 30_000


class World:
    """Topics, a clock and a group: ``World(t=4)``, ``world.join("a", "t")``, ``world.beat("a")``."""

    def __init__(self, *, max_size: int = 100, generation: int = 0, **topics: int) -> None:
        self.topics: dict[str, TopicShape] = {}
        self.ids = count(1)
        for topic, partitions in topics.items():
            self.make(topic, partitions)
        self.now_ms = 1_000
        self.group = ConsumerGroup(
            "g",
            max_size=max_size,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=INTERVAL_MS,
            new_member_id=lambda: f"made-{next(self.ids)}",
            generation=generation,
        )

    def make(self, topic: str, partitions: int) -> None:
        self.topics[topic] = TopicShape(uuid.UUID(int=next(self.ids)), partitions)

    def grow(self, topic: str, partitions: int) -> None:
        self.topics[topic] = self.topics[topic]._replace(partitions=partitions)

    def join(self, member_id: str, *topics: str, **fields: object) -> HeartbeatReply:
        told = {
            "rebalance_timeout_ms": REBALANCE_MS,
            "subscribed_topics": topics,
            "owned": {},
            "member_epoch": 0,
        }
        return self.send(member_id, **(told | fields))

    def beat(self, member_id: str, **fields: object) -> HeartbeatReply:
        """A heartbeat at the member's epoch that changes nothing but *fields*."""
        if "member_epoch" not in fields:
            fields["member_epoch"] = self.group.members[member_id].member_epoch
        return self.send(member_id, **fields)

    def send(self, member_id: str, **fields: object) -> HeartbeatReply:
        return self.group.heartbeat(request(member_id, **fields), self.topics, self.now_ms)

    def refused(self, member_id: str, **fields: object) -> ErrorCode:
        """The error of a heartbeat, which changed nothing."""
        before = self.seen()
        with pytest.raises(GroupError) as caught:
            self.beat(member_id, **fields)
        assert caught.value.message == str(caught.value)
        assert self.seen() == before
        return caught.value.code

    def seen(self) -> tuple[object, ...]:
        group = self.group
        return (
            group.group_epoch,
            group.assignment_epoch,
            group.members,
            group.state,
            group.next_deadline_ms(),
        )

    def let(self, ms: int) -> None:
        self.now_ms += ms
        self.group.advance(self.topics, self.now_ms)

    def assigned(self) -> dict[str, Partitions]:
        return {member_id: member.assigned for member_id, member in self.group.members.items()}

    def epochs(self) -> dict[str, int]:
        return {member_id: member.member_epoch for member_id, member in self.group.members.items()}

    def acknowledge(self, member_id: str) -> HeartbeatReply:
        """A heartbeat of a member that owns what it is assigned."""
        return self.beat(member_id, owned=self.group.members[member_id].assigned)

    def settle(self, rounds: int = 4) -> None:
        for _ in range(rounds):
            for member_id in self.group.members:
                self.acknowledge(member_id)


def request(member_id: str, **fields: object) -> HeartbeatRequest:
    silent = HeartbeatRequest(
        member_id=member_id,
        member_epoch=0,
        instance_id=None,
        rack_id=None,
        rebalance_timeout_ms=-1,
        subscribed_topics=None,
        subscribed_regex=None,
        assignor=None,
        owned=None,
        client_id="client",
        client_host="/127.0.0.1",
    )
    return silent._replace(**fields)  # type: ignore[arg-type]


# Joining --------------------------------------------------------------------------------------------------


def test_a_group_without_members_is_empty():
    group = World().group
    assert (group.state, group.group_epoch, group.members) == ("Empty", 0, {})
    assert group.assignor_name == "uniform"
    assert group.next_deadline_ms() is None


def test_the_first_member_gets_everything_with_its_first_heartbeat():
    world = World(t=3, other=1)
    assert world.join("a", "t") == HeartbeatReply("a", 1, INTERVAL_MS, {"t": (0, 1, 2)})
    assert world.group.state == "Stable"


def test_a_member_without_an_id_is_given_one():
    world = World(t=1)
    reply = world.join("", "t")
    assert reply.member_id.startswith("made-")
    assert list(world.group.members) == [reply.member_id]


def test_a_group_goes_on_above_its_classic_generation():
    world = World(t=1, generation=7)
    assert world.join("a", "t").member_epoch == 8
    assert world.group.group_epoch == world.group.assignment_epoch == 8


def test_a_member_may_subscribe_to_topics_that_do_not_exist_yet():
    world = World()
    assert world.join("a", "t").assignment == {}
    world.make("t", 2)
    assert world.beat("a") == HeartbeatReply("a", 2, INTERVAL_MS, {"t": (0, 1)})


def test_a_member_may_join_with_an_empty_subscription():
    reply = World(t=1).join("a")
    assert (reply.member_epoch, reply.assignment) == (1, {})


def test_a_join_whose_reply_was_lost_can_be_sent_again():
    world = World(t=2)
    first = world.join("a", "t")
    assert world.join("a", "t") == first
    assert world.group.group_epoch == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"subscribed_topics": None},
        {"rebalance_timeout_ms": -1},
        {"rebalance_timeout_ms": 0},
        {"owned": None},
        {"owned": {"t": (0,)}},
        {"instance_id": ""},
        {"rack_id": ""},
        {"member_epoch": -3},
    ],
    ids=str,
)
def test_an_incomplete_join_is_refused(fields):
    told = {
        "member_epoch": 0,
        "subscribed_topics": ("t",),
        "rebalance_timeout_ms": REBALANCE_MS,
        "owned": {},
    }
    assert World(t=1).refused("a", **(told | fields)) == ErrorCode.invalid_request


@pytest.mark.parametrize(("epoch", "instance"), [(1, None), (-1, None), (-2, "i")])
def test_only_a_join_may_come_without_a_member_id(epoch, instance):
    assert World().refused("", member_epoch=epoch, instance_id=instance) == ErrorCode.invalid_request


def test_a_full_group_takes_nobody_new_but_keeps_who_is_there():
    world = World(t=1, max_size=1)
    world.join("a", "t")
    with pytest.raises(GroupError) as caught:
        world.join("b", "t")
    assert caught.value.code == ErrorCode.group_max_size_reached
    assert world.join("a", "t").member_epoch == 1


def test_the_description_tells_what_the_member_said():
    world = World(t=2)
    world.join("a", "t", instance_id="i", rack_id="r", subscribed_regex="t.*", assignor="range")
    member = world.group.members["a"]
    assert member._asdict() == {
        "instance_id": "i",
        "rack_id": "r",
        "member_epoch": 1,
        "client_id": "client",
        "client_host": "/127.0.0.1",
        "subscribed_topics": ("t",),
        "subscribed_regex": "t.*",
        "assignor": "range",
        "assigned": {"t": (0, 1)},
        "target": {"t": (0, 1)},
    }


# Moving partitions ----------------------------------------------------------------------------------------


def test_a_partition_moves_only_after_its_owner_let_it_go():
    world = World(t=2)
    world.join("a", "t")

    assert world.join("b", "t") == HeartbeatReply("b", 2, INTERVAL_MS, {})
    assert world.group.state == "Reconciling"

    # The owner is told to give up, at its old epoch, and told once.
    told = world.beat("a")
    assert told.member_epoch == 1
    (kept,) = told.assignment["t"]
    assert world.beat("a").assignment is None
    assert world.beat("b").assignment is None

    # Still owning it, the owner cannot go on, and nobody else gets it.
    assert world.beat("a", owned={"t": (0, 1)}).member_epoch == 1
    assert world.beat("b").assignment is None

    assert world.beat("a", owned={"t": (kept,)}) == HeartbeatReply("a", 2, INTERVAL_MS, None)
    assert world.beat("b") == HeartbeatReply("b", 2, INTERVAL_MS, {"t": (1 - kept,)})
    assert world.group.state == "Stable"


def test_members_that_lose_nothing_go_on_at_once():
    world = World(t=1)
    world.join("a", "t")
    world.join("b", "t")
    assert world.beat("a") == HeartbeatReply("a", 2, INTERVAL_MS, None)
    assert world.group.state == "Stable"


def test_partitions_of_a_member_that_left_go_to_the_next_that_heartbeats():
    world = World(t=2)
    world.join("a", "t")
    world.join("b", "t")
    world.settle()
    assert world.beat("a", member_epoch=-1) == HeartbeatReply("a", -1, 0, None)
    assert world.group.state == "Assigning"
    assert world.beat("b") == HeartbeatReply("b", 3, INTERVAL_MS, {"t": (0, 1)})


def test_a_member_takes_the_free_part_of_its_target_and_waits_for_the_rest():
    world = World(t=4)
    world.join("a", "t")
    world.join("b", "t")
    world.settle()
    world.grow("t", 6)
    (third,) = {4, 5} - set(world.beat("a").assignment["t"])
    assert world.join("c", "t") == HeartbeatReply("c", 4, INTERVAL_MS, {"t": (third,)})
    assert world.group.state == "Reconciling"
    world.settle()
    assert world.group.state == "Stable"
    assert Counter(len(held["t"]) for held in world.assigned().values()) == {2: 3}


def test_a_partition_that_comes_back_before_it_was_given_up_has_to_be_given_up_first():
    world = World(t=2)
    world.join("a", "t")
    world.join("b", "t")
    assert world.beat("a").assignment != {"t": (0, 1)}
    world.beat("b", member_epoch=-1)
    assert world.beat("a").member_epoch == 1
    assert world.acknowledge("a") == HeartbeatReply("a", 3, INTERVAL_MS, {"t": (0, 1)})


def test_while_it_gives_up_a_member_loses_what_it_unsubscribes_at_once():
    world = World(t=2, u=1)
    world.join("a", "t", "u")
    world.join("b", "t", "u")
    world.beat("a")
    owned = {"t": (0, 1), "u": (0,)}
    world.beat("a", subscribed_topics=("t",), owned=owned)
    assert "u" not in world.group.members["a"].assigned
    assert "u" not in world.assigned()["b"] or world.assigned()["b"]["u"] == ()
    world.settle()
    assert world.group.state == "Stable"
    assert world.assigned()["b"]["u"] == (0,)


def test_new_members_do_not_make_partitions_move_that_need_not():
    world = World(t=9)
    world.join("a", "t")
    world.join("b", "t")
    world.settle()
    before = world.assigned()
    world.join("c", "t")
    world.settle()
    after = world.assigned()
    assert all(set(after[name]["t"]) < set(before[name]["t"]) for name in "ab")
    assert [len(after[name]["t"]) for name in "abc"] == [3, 3, 3]


# Replies --------------------------------------------------------------------------------------------------


def test_the_assignment_is_told_again_only_to_who_tells_everything():
    world = World(t=1)
    world.join("a", "t")
    full = {"rebalance_timeout_ms": REBALANCE_MS, "subscribed_topics": ("t",), "owned": {"t": (0,)}}
    assert world.beat("a").assignment is None
    assert world.beat("a", **full).assignment == {"t": (0,)}
    for left_out in full:
        partial = {name: value for name, value in full.items() if name != left_out}
        assert world.beat("a", **partial).assignment is None


def test_a_full_heartbeat_may_subscribe_by_expression():
    world = World(t=1)
    world.join("a", subscribed_topics=None, subscribed_regex="t")
    full = {"rebalance_timeout_ms": REBALANCE_MS, "subscribed_regex": "t", "owned": {}}
    assert world.beat("a", **full).assignment == {"t": (0,)}


# Epochs ---------------------------------------------------------------------------------------------------


def test_an_unknown_member_has_to_join():
    assert World().refused("a", member_epoch=1) == ErrorCode.unknown_member_id
    assert World().refused("a", member_epoch=-1) == ErrorCode.unknown_member_id
    assert World().refused("a", member_epoch=1, instance_id="i") == ErrorCode.unknown_member_id


def test_a_greater_epoch_is_fenced():
    world = World(t=1)
    world.join("a", "t")
    assert world.refused("a", member_epoch=2, owned={}) == ErrorCode.fenced_member_epoch


def test_the_previous_epoch_is_a_retry_if_nothing_else_is_owned():
    world = World(t=2)
    world.join("a", "t")
    world.grow("t", 3)
    assert world.beat("a").member_epoch == 2
    assert world.refused("a", member_epoch=1) == ErrorCode.fenced_member_epoch
    assert world.refused("a", member_epoch=1, owned={"t": (0, 7)}) == ErrorCode.fenced_member_epoch
    again = world.beat("a", member_epoch=1, owned={"t": (0, 1)})
    assert again == HeartbeatReply("a", 2, INTERVAL_MS, None)


def test_a_retry_may_be_lost_as_well_while_the_member_waits_for_partitions():
    world = World(t=2)
    world.join("a", "t")
    for _ in range(3):
        assert world.join("b", "t") == HeartbeatReply("b", 2, INTERVAL_MS, {})


def test_an_epoch_before_the_previous_is_fenced():
    world = World(t=1)
    world.join("a", "t")
    for partitions in (2, 3):
        world.grow("t", partitions)
        world.beat("a")
    assert world.refused("a", member_epoch=1, owned={}) == ErrorCode.fenced_member_epoch


def test_a_member_that_was_fenced_joins_again_under_its_id():
    """At once: it has given up everything. Its partitions are free, and it is a new member."""
    world = World(t=2)
    for name in ("a", "b"):
        world.join(name, "t")
    world.settle()
    world.grow("t", 3)
    world.settle()
    assert world.refused("a", member_epoch=1) == ErrorCode.fenced_member_epoch
    before = world.epochs()["a"]
    again = world.join("a", "t")
    assert again.member_epoch > before
    world.settle()
    assert sorted(part for owned in world.assigned().values() for part in owned["t"]) == [0, 1, 2]


def test_whoever_goes_on_where_a_member_joined_again_is_fenced():
    """A late join, repeated by the network: its member does not go on with what was given to another."""
    world = World(t=2)
    for name in ("a", "b"):
        world.join(name, "t")
    world.settle()
    world.grow("t", 3)
    world.settle()
    epoch = world.epochs()["a"]
    world.join("a", "t")
    assert world.refused("a", member_epoch=epoch) == ErrorCode.fenced_member_epoch


def test_a_refused_heartbeat_does_not_keep_the_session():
    world = World(t=1)
    world.join("a", "t")
    world.let(SESSION_MS - 1)
    world.refused("a", member_epoch=9)
    world.let(1)
    assert world.group.members == {}


@pytest.mark.parametrize(
    "change",
    [
        {"subscribed_topics": ("t", "u")},
        {"subscribed_topics": ()},
        {"subscribed_regex": "u"},
        {"assignor": "range"},
    ],
    ids=str,
)
def test_a_change_of_what_a_member_wants_makes_a_group_epoch(change):
    world = World(t=1, u=1)
    world.join("a", "t")
    world.beat("a", **change)
    assert world.group.group_epoch == 2
    world.beat("a", **change)
    assert world.group.group_epoch == 2


def test_the_order_of_subscribed_topics_means_nothing():
    world = World(t=1, u=1)
    world.join("a", "t", "u")
    world.beat("a", subscribed_topics=("u", "t", "t"))
    assert world.group.group_epoch == 1


def test_topics_make_a_group_epoch_only_if_someone_subscribes_to_them():
    world = World(t=1)
    world.join("a", "t")
    world.make("u", 1)
    world.let(1)
    assert (world.group.group_epoch, world.group.state) == (1, "Stable")
    world.grow("t", 2)
    world.let(1)
    assert (world.group.group_epoch, world.group.state) == (2, "Assigning")
    assert world.beat("a").assignment == {"t": (0, 1)}


def test_topics_that_only_a_former_member_wanted_make_no_group_epoch():
    world = World(t=1, u=1)
    world.join("a", "t")
    world.join("b", "u")
    world.beat("b", member_epoch=-1)
    world.grow("u", 2)
    world.let(1)
    assert world.group.group_epoch == 3


def test_epochs_of_commits():
    world = World(t=1)
    check = world.group.check_commit
    assert check("", -1) == ErrorCode.none
    assert check("a", 1) == ErrorCode.unknown_member_id
    world.join("a", "t", instance_id="i")
    assert check("a", 1) == ErrorCode.none
    assert check("a", 0) == check("a", 2) == check("a", -1) == ErrorCode.stale_member_epoch
    assert check("", -1) == ErrorCode.unknown_member_id
    world.beat("a", member_epoch=-2, instance_id="i")
    assert check("a", -2) == check("a", 1) == ErrorCode.stale_member_epoch


# Topics ---------------------------------------------------------------------------------------------------


def test_a_topic_that_is_gone_is_no_longer_assigned():
    world = World(t=1, u=1)
    world.join("a", "t", "u")
    del world.topics["u"]
    assert world.beat("a").assignment == {"t": (0,)}
    assert world.acknowledge("a").member_epoch == 2


def test_a_topic_made_again_is_revoked_and_assigned_anew():
    world = World(t=1)
    world.join("a", "t")
    world.make("t", 1)
    assert world.beat("a") == HeartbeatReply("a", 1, INTERVAL_MS, {})
    assert world.beat("a", owned={}) == HeartbeatReply("a", 2, INTERVAL_MS, {"t": (0,)})


def test_subscribed_topics_are_the_existing_ones_of_all_members():
    world = World(t=1, u=1, orders=1, rest=1)
    world.join("a", "t", "missing")
    world.join("b", "u", subscribed_regex="ord.*")
    assert world.group.subscribed_topics(world.topics) == {"t", "u", "orders"}
    assert world.group.subscribed_topics({}) == frozenset()


# Regular expressions --------------------------------------------------------------------------------------


def test_an_expression_matches_whole_names_and_topics_that_come_later():
    world = World(**{"log-a": 1, "my-log-a": 1})
    assert world.join("a", subscribed_topics=None, subscribed_regex="log-.*").assignment == {"log-a": (0,)}
    world.make("log-b", 1)
    assert world.beat("a").assignment == {"log-a": (0,), "log-b": (0,)}


def test_names_and_expression_add_up_and_an_empty_expression_ends_it():
    world = World(t=1, u=1)
    assert world.join("a", "t", subscribed_regex="u").assignment == {"t": (0,), "u": (0,)}
    assert world.beat("a", subscribed_regex="").assignment == {"t": (0,)}


GOOD_EXPRESSIONS = (
    ".*",
    "(foo|bar)-.+",
    "(?i)orders",
    "(?:a|b)?c",
    r"a\.b\..*",
    "[a-z]+-[0-9]{1,4}",
    "|".join(f"team{number}-.*" for number in range(20)),
    "(?P<kind>x|y)-.*?",
    "[]a]+",
    "(ab)*",
    "a{3}",
)


@pytest.mark.parametrize("expression", GOOD_EXPRESSIONS)
def test_usual_expressions_are_taken(expression):
    assert compiled_expression(expression) is not None


BAD_EXPRESSIONS = (
    "(",
    ")",
    "a)(",
    "[a",
    "*a",
    "a**",
    "a*+",
    "a\\",
    r"(a)\1",
    "(?=a)a",
    "(?<!a)a",
    "(?P<x>a)(?P=x)",
    "(?>a)",
    "(?x)a b",
    r"\p{L}",
    "[[:alpha:]]",
    "[a--b]",
    "(a+)+",
    "(a*)*b",
    "(a|a)*b",
    "(a?){30}",
    "((a+)b)+",
    "(?:a{1,3}){2}",
    "a{1,9999}",
    "a?" * 40,
    "(a|a)" * 40,
    ".*.*.*.*",
    "(" * 100 + ")" * 100,
    "a" * 1_001,
    "{" * 1_001,
)


@pytest.mark.parametrize("expression", BAD_EXPRESSIONS)
def test_broken_foreign_and_explosive_expressions_are_refused(expression):
    join = {"member_epoch": 0, "rebalance_timeout_ms": REBALANCE_MS, "owned": {}}
    code = World(t=1).refused("a", subscribed_regex=expression, **join)
    assert code == ErrorCode.invalid_regular_expression


def test_an_expression_that_is_taken_ends_in_time_on_the_worst_name():
    pattern = compiled_expression("a*a*a*b")
    assert pattern is not None
    assert pattern.fullmatch("a" * 249) is None


# Leaving --------------------------------------------------------------------------------------------------


def test_the_last_member_leaves_an_empty_group():
    world = World(t=1)
    world.join("a", "t")
    world.beat("a", member_epoch=-1)
    assert (world.group.state, world.group.group_epoch) == ("Empty", 2)
    assert world.refused("a", member_epoch=1) == ErrorCode.unknown_member_id


@pytest.mark.parametrize("epoch", [-1, -2])
def test_a_member_may_leave_whatever_it_says_its_rebalance_timeout_is(epoch):
    """The client of @platformatic/kafka says 0, which Kafka does not look at."""
    world = World(t=1)
    static(world, "a")
    reply = world.beat("a", member_epoch=epoch, instance_id="i", rebalance_timeout_ms=0)
    assert reply.member_epoch == epoch
    assert static(world, "b").assignment == {"t": (0,)}


def test_a_silent_member_is_removed_when_its_session_ends():
    world = World(t=2)
    world.join("a", "t")
    world.join("b", "t")
    world.settle()
    assert world.group.next_deadline_ms() == world.now_ms + SESSION_MS
    world.let(SESSION_MS - 1)
    world.beat("b")
    world.let(1)
    assert list(world.group.members) == ["b"]
    assert world.beat("b").assignment == {"t": (0, 1)}


def test_a_member_that_does_not_give_up_is_removed_after_its_rebalance_timeout():
    world = World(t=2)
    world.join("a", "t", rebalance_timeout_ms=10_000)
    world.join("b", "t")
    world.beat("a")
    assert world.group.next_deadline_ms() == world.now_ms + 10_000
    world.let(9_999)
    world.beat("a")
    world.let(1)
    assert list(world.group.members) == ["b"]
    assert world.beat("b").assignment == {"t": (0, 1)}


def test_a_member_that_gave_up_in_time_stays():
    world = World(t=2)
    world.join("a", "t", rebalance_timeout_ms=10_000)
    world.join("b", "t")
    world.beat("a")
    world.acknowledge("a")
    world.let(10_000)
    assert list(world.group.members) == ["a", "b"]


# Static members -------------------------------------------------------------------------------------------


def static(world: World, member_id: str, *, instance: str = "i", epoch: int = 0) -> HeartbeatReply:
    if epoch == 0:
        return world.join(member_id, "t", instance_id=instance)
    return world.beat(member_id, instance_id=instance, member_epoch=epoch)


def test_a_static_member_that_left_for_a_while_keeps_its_partitions():
    world = World(t=2)
    static(world, "a")
    world.join("b", "t")
    world.settle()
    mine = world.assigned()["a"]
    assert static(world, "a", epoch=-2) == HeartbeatReply("a", -2, 0, None)
    assert world.beat("b").assignment is None

    back = static(world, "a2")
    assert (back.assignment, back.member_epoch) == (mine, 2)
    assert list(world.group.members) == ["a2", "b"]
    assert (world.group.group_epoch, world.group.state) == (2, "Stable")


def test_the_former_member_of_an_instance_is_fenced():
    world = World(t=1)
    static(world, "a")
    static(world, "a", epoch=-2)
    static(world, "a2")
    for epoch in (1, -1, -2):
        fields = {"member_epoch": epoch, "instance_id": "i"}
        assert world.refused("a", **fields) == ErrorCode.fenced_instance_id
    assert world.refused("a", member_epoch=1) == ErrorCode.unknown_member_id


def test_an_instance_cannot_be_taken_while_its_member_is_there():
    world = World(t=1)
    static(world, "a")
    join = {"member_epoch": 0, "subscribed_topics": ("t",), "rebalance_timeout_ms": 1, "owned": {}}
    assert world.refused("a2", instance_id="i", **join) == ErrorCode.unreleased_instance_id
    assert static(world, "a").assignment == {"t": (0,)}


def test_a_member_that_joins_again_as_another_instance_frees_the_first():
    world = World(t=1)
    static(world, "a", instance="i")
    static(world, "a", instance="j")
    assert static(world, "b", instance="i").member_id == "b"
    assert [member.instance_id for member in world.group.members.values()] == ["j", "i"]


def test_a_member_cannot_take_over_an_instance_under_the_id_of_another():
    world = World(t=1)
    static(world, "a")
    world.join("b", "t")
    static(world, "a", epoch=-2)
    join = {"member_epoch": 0, "subscribed_topics": ("t",), "rebalance_timeout_ms": 1, "owned": {}}
    assert world.refused("b", instance_id="i", **join) == ErrorCode.invalid_request


def test_a_static_member_may_come_back_under_its_own_id():
    world = World(t=1)
    static(world, "a")
    static(world, "a", epoch=-2)
    assert static(world, "a") == HeartbeatReply("a", 1, INTERVAL_MS, {"t": (0,)})


def test_a_full_group_lets_static_members_come_back():
    world = World(t=1, max_size=1)
    static(world, "a")
    static(world, "a", epoch=-2)
    assert static(world, "a2").assignment == {"t": (0,)}


def test_a_static_member_that_does_not_come_back_is_removed():
    world = World(t=2)
    static(world, "a")
    world.join("b", "t")
    world.settle()
    static(world, "a", epoch=-2)
    world.let(SESSION_MS - 1)
    world.beat("b")
    world.let(1)
    assert world.beat("b").assignment == {"t": (0, 1)}
    assert static(world, "a").assignment == {}


def test_a_static_member_that_leaves_while_it_gives_up_has_given_up():
    world = World(t=2)
    static(world, "a")
    world.join("b", "t")
    world.beat("a", instance_id="i")
    static(world, "a", epoch=-2)
    (given_up,) = world.beat("b").assignment["t"]
    assert static(world, "a2").assignment == {"t": (1 - given_up,)}


def test_a_static_member_that_wants_something_else_when_it_returns_makes_a_group_epoch():
    world = World(t=1, u=1)
    static(world, "a")
    static(world, "a", epoch=-2)
    reply = world.join("a2", "u", instance_id="i")
    assert (reply.member_epoch, reply.assignment) == (2, {"u": (0,)})


def test_only_static_members_can_leave_for_a_while():
    world = World(t=1)
    world.join("a", "t")
    assert world.refused("a", member_epoch=-2) == ErrorCode.invalid_request


def test_a_static_member_may_leave_for_good():
    world = World(t=1)
    static(world, "a")
    static(world, "a", epoch=-1)
    assert world.group.members == {}
    assert static(world, "b").assignment == {"t": (0,)}


# Assignors ------------------------------------------------------------------------------------------------


def test_the_group_uses_the_assignor_that_most_members_prefer():
    world = World(t=1)
    world.join("a", "t", assignor="range")
    assert world.group.assignor_name == "range"
    world.join("b", "t", assignor="uniform")
    assert world.group.assignor_name == "uniform"
    world.join("c", "t", assignor="range")
    assert world.group.assignor_name == "range"


def test_an_unknown_assignor_is_refused():
    join = {"member_epoch": 0, "subscribed_topics": ("t",), "rebalance_timeout_ms": 1, "owned": {}}
    assert World(t=1).refused("a", assignor="sticky", **join) == ErrorCode.unsupported_assignor


def assignor_input(topics: dict[str, int], held: dict | None = None, **members: str) -> AssignorInput:
    """``a="t u"``: member a subscribes to t and u."""
    subscribers = [Subscriber(name, None, frozenset(wanted.split())) for name, wanted in members.items()]
    return AssignorInput(subscribers, topics, held or {})


def places(owners: dict[tuple[str, int], str]) -> dict[str, list[str]]:
    by_owner: dict[str, list[str]] = {}
    for (topic, number), owner in sorted(owners.items()):
        by_owner.setdefault(owner, []).append(f"{topic}{number}")
    return by_owner


def test_ranges_are_co_partitioned():
    owners = ranges(assignor_input({"t": 5, "u": 5, "v": 2}, b="t u v", a="t u v"))
    assert places(owners) == {
        "a": ["t0", "t1", "t2", "u0", "u1", "u2", "v0"],
        "b": ["t3", "t4", "u3", "u4", "v1"],
    }


def test_ranges_go_to_subscribers_only_and_may_run_out():
    owners = ranges(assignor_input({"t": 2, "u": 2}, a="t", b="t u", c="t"))
    assert places(owners) == {"a": ["t0"], "b": ["t1", "u0", "u1"]}


def test_ranges_begin_with_static_members():
    dynamic, fixed = Subscriber("a", None, frozenset("t")), Subscriber("z", "i", frozenset("t"))
    assert places(ranges(AssignorInput([dynamic, fixed], {"t": 3}, {}))) == {"z": ["t0", "t1"], "a": ["t2"]}


def test_uniform_is_even_across_topics():
    owners = uniform(assignor_input({"t": 1, "u": 1, "v": 1}, a="t u v", b="t u v", c="t u v"))
    assert set(Counter(owners.values()).values()) == {1}


def test_uniform_stays_with_who_was_to_have_it():
    held = {("t", number): (owner,) for number, owner in enumerate("bbaa")}
    assert uniform(assignor_input({"t": 4}, held, a="t", b="t")) == {
        ("t", number): owner for number, owner in enumerate("bbaa")
    }


def test_uniform_is_as_even_as_subscriptions_allow():
    owners = uniform(assignor_input({"t": 4, "u": 2}, a="t", b="t u"))
    assert Counter(owners.values()) == {"a": 3, "b": 3}


# A random walk --------------------------------------------------------------------------------------------


class Client:
    """A well-behaved member: it gives up what it is told to, says what it owns, and rejoins when fenced."""

    def __init__(
        self, member_id: str, instance_id: str | None, wanted: tuple[str, ...], regex: str, assignor: str
    ):
        self.member_id, self.instance_id = member_id, instance_id
        self.wanted, self.regex, self.assignor = wanted, regex, assignor
        self.epoch = 0
        self.owned: Partitions = {}
        self.acknowledged: Partitions | None = None
        self.tell_all = True

    def request(self) -> HeartbeatRequest:
        said = {
            "member_epoch": self.epoch,
            "instance_id": self.instance_id,
            "owned": self.owned if self.tell_all or self.owned != self.acknowledged else None,
        }
        if self.tell_all:
            said |= {
                "rebalance_timeout_ms": REBALANCE_MS,
                "subscribed_topics": self.wanted,
                "subscribed_regex": self.regex,
                "assignor": self.assignor,
            }
        return request(self.member_id, **said)

    def receive(self, reply: HeartbeatReply, sent: HeartbeatRequest) -> None:
        self.epoch, self.tell_all = reply.member_epoch, False
        if sent.owned is not None:
            self.acknowledged = sent.owned
        if reply.assignment is not None:
            self.owned = reply.assignment

    def fenced(self) -> None:
        self.epoch, self.owned, self.acknowledged, self.tell_all = 0, {}, None, True


class Walk:
    """Clients that come, go, die and lose replies while topics change; every step is checked."""

    TOPICS = ("alpha", "beta", "gamma", "delta")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(alpha=3, beta=4)
        self.alike = self.random.random() < 0.5  # everybody subscribes to the same topics
        self.assignors = self.random.choice((("uniform",), ("uniform", "range")))
        self.clients: list[Client] = []
        self.dead: list[Client] = []
        self.away: list[Client] = []  # static, left for a while
        self.names = count()
        self.epochs = [(0, 0)]

    def step(self) -> None:
        moves = [self.join] + [self.beat] * 12 + [self.lose_reply] * 2 + [self.change_topics, self.wait]
        moves += [self.leave, self.die, self.leave_for_a_while, self.come_back, self.resubscribe]
        self.random.choice(moves)()
        self.check()

    def wants(self) -> tuple[tuple[str, ...], str]:
        if self.alike:
            return self.TOPICS, ""
        wanted = tuple(self.random.sample(self.TOPICS, self.random.randint(0, 3)))
        return wanted, self.random.choice(("", "", ".*a", "(alpha|delta)"))

    def any(self) -> Client | None:
        return self.random.choice(self.clients) if self.clients else None

    def join(self) -> None:
        if len(self.clients) < 7:
            name = f"m{next(self.names)}"
            instance = f"i-{name}" if self.random.random() < 0.4 else None
            client = Client(name, instance, *self.wants(), self.random.choice(self.assignors))
            self.clients.append(client)
            self.send(client)

    def beat(self) -> None:
        if (client := self.any()) is not None:
            self.send(client)

    def lose_reply(self) -> None:
        if (client := self.any()) is not None:
            self.send(client, lost=True)

    def send(self, client: Client, *, lost: bool = False) -> None:
        sent = client.request()
        reply = self.answer(sent)
        if isinstance(reply, ErrorCode):
            assert reply in (ErrorCode.fenced_member_epoch, ErrorCode.unknown_member_id)
            client.fenced()
        elif lost:
            client.tell_all = True
        else:
            client.receive(reply, sent)

    def answer(self, sent: HeartbeatRequest) -> HeartbeatReply | ErrorCode:
        try:
            return self.world.group.heartbeat(sent, self.world.topics, self.world.now_ms)
        except GroupError as error:
            return error.code

    def leave(self) -> None:
        if (client := self.any()) is not None:
            self.clients.remove(client)
            self.say_goodbye(client, -1)

    def say_goodbye(self, client: Client, epoch: int) -> bool:
        client.owned = {}
        reply = self.answer(request(client.member_id, member_epoch=epoch, instance_id=client.instance_id))
        assert isinstance(reply, HeartbeatReply) or reply == ErrorCode.unknown_member_id
        return isinstance(reply, HeartbeatReply)

    def leave_for_a_while(self) -> None:
        client = self.any()
        if client is not None and client.instance_id is not None:
            self.clients.remove(client)
            if self.say_goodbye(client, -2):
                self.away.append(client)

    def come_back(self) -> None:
        if self.away:
            gone = self.away.pop()
            client = Client(f"m{next(self.names)}", gone.instance_id, gone.wanted, gone.regex, gone.assignor)
            self.clients.append(client)
            self.send(client)

    def die(self) -> None:
        if (client := self.any()) is not None:
            self.clients.remove(client)
            self.dead.append(client)

    def resubscribe(self) -> None:
        client = self.any()
        if client is not None:
            client.wanted, client.regex = self.wants()
            client.tell_all = True

    def change_topics(self) -> None:
        topic = self.random.choice(self.TOPICS)
        if topic not in self.world.topics:
            self.world.make(topic, self.random.randint(1, 6))
            return
        if self.random.random() < 0.3:
            del self.world.topics[topic]
            # Clients know topics by id: what they owned of this one has no name any more.
            for client in self.clients + self.dead:
                client.owned = {name: numbers for name, numbers in client.owned.items() if name != topic}
        elif self.world.topics[topic].partitions < 12:
            self.world.grow(topic, self.world.topics[topic].partitions + self.random.randint(1, 3))

    def wait(self) -> None:
        self.pass_time(self.random.choice((1_000, INTERVAL_MS, 3 * INTERVAL_MS)))

    def pass_time(self, ms: int) -> None:
        self.world.let(ms)
        there = self.world.group.members
        self.dead = [client for client in self.dead if client.member_id in there]
        for client in self.clients:
            if client.epoch > 0 and client.member_id not in there:
                client.fenced()  # its own clock told it, too

    def check(self) -> None:
        group = self.world.group
        for held in (
            [member.assigned for member in group.members.values()],
            [client.owned for client in self.clients + self.dead],
        ):
            everything = Counter((topic, n) for owned in held for topic, ns in owned.items() for n in ns)
            assert not [place for place, holders in everything.items() if holders > 1]
        assert group.assignment_epoch <= group.group_epoch
        self.epochs.append((group.group_epoch, group.assignment_epoch))
        before, after = self.epochs[-2:]
        assert all(one <= other for one, other in zip(before, after, strict=True))
        deadline = group.next_deadline_ms()
        assert (deadline is None) == (not group.members)

    def settle(self) -> None:
        """Everybody heartbeats, long enough for the dead to be noticed."""
        for _ in range(4 * SESSION_MS // INTERVAL_MS):
            self.pass_time(INTERVAL_MS)
            for client in self.clients:
                self.send(client)
                self.check()

    def check_settled(self) -> None:
        group, topics = self.world.group, self.world.topics
        assert group.state == ("Stable" if self.clients else "Empty")
        assert set(group.members) == {client.member_id for client in self.clients}
        for client in self.clients:
            member = group.members[client.member_id]
            assert client.owned == member.assigned == member.target
            assert client.epoch == member.member_epoch == group.group_epoch
        everything = sorted((topic, n) for c in self.clients for topic, ns in c.owned.items() for n in ns)
        wanted = group.subscribed_topics(topics)
        assert everything == sorted((topic, n) for topic in wanted for n in range(topics[topic].partitions))
        loads = sorted(sum(map(len, client.owned.values())) for client in self.clients)
        if loads and self.alike and group.assignor_name == "uniform":
            assert loads[-1] - loads[0] <= 1


@pytest.mark.parametrize("seed", range(60))
def test_random_walk_of_well_behaved_members(seed):
    """Nobody shares a partition, epochs grow, and in the end everybody is stable and all is assigned."""
    walk = Walk(seed)
    for _ in range(3):
        for _ in range(80):
            walk.step()
        walk.settle()
        walk.check_settled()
        walk.away.clear()


def test_the_same_heartbeats_give_the_same_assignments():
    def history(seed: int) -> list[object]:
        walk, seen = Walk(seed), []
        for _ in range(100):
            walk.step()
            seen.append(walk.world.assigned())
        return seen

    assert history(1) == history(1)


def test_member_epochs_only_grow_while_members_come():
    world = World(t=12)
    seen = []
    for name in "abcd":
        world.join(name, "t")
        world.settle(3)
        seen.append(world.epochs()["a"])
    assert all(before < after for before, after in pairwise(seen))
