"""Classic members in a KIP-848 group: joining, moving partitions, their clocks, and upgrading a group at work."""

from __future__ import annotations

import random
import struct
import uuid
from collections import Counter
from itertools import count
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

from logbroker.server.classic_group import ClassicGroup, GroupState
from logbroker.server.classic_members import ClassicMembers, can_join, upgraded
from logbroker.server.classic_messages import Delivery, JoinReply, JoinRequest, SyncReply, SyncRequest
from logbroker.server.consumer_group import ConsumerGroup
from logbroker.server.consumer_messages import (
    GroupError,
    HeartbeatReply,
    HeartbeatRequest,
    Partitions,
    TopicShape,
)
from logbroker.server.consumer_protocol import (
    assignment_bytes,
    read_assignment,
    read_subscription,
    read_topics,
)
from logbroker.server.request_bounds import MAX_ITEMS

SESSION_MS = 45_000
OWN_SESSION_MS = 20_000
REBALANCE_MS = 60_000
INTERVAL_MS = 5_000
EAGER, COOPERATIVE = "range", "cooperative-sticky"
NONE, AGAIN = ErrorCode.none, ErrorCode.rebalance_in_progress


def string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def places_bytes(partitions: Partitions) -> bytes:
    return struct.pack(">i", len(partitions)) + b"".join(
        string(topic) + struct.pack(f">i{len(numbers)}i", len(numbers), *numbers)
        for topic, numbers in partitions.items()
    )


def subscription(*topics: str, version: int = 1, owned: Partitions | None = None) -> bytes:
    """ConsumerProtocolSubscription as clients write it."""
    told = struct.pack(">hi", version, len(topics)) + b"".join(map(string, topics)) + struct.pack(">i", -1)
    if version >= 1:
        told += places_bytes(owned or {})
    if version >= 2:
        told += struct.pack(">i", 7)
    return told + (string("rack") if version >= 3 else b"")


def join_request(member_id: str, *topics: str, **fields: Any) -> JoinRequest:
    owned, name = fields.pop("owned", None), fields.pop("name", EAGER)
    asked = JoinRequest(
        member_id=member_id,
        instance_id=None,
        client_id="client",
        client_host="/host",
        protocol_type="consumer",
        protocols=((name, subscription(*topics, owned=owned)),),
        session_timeout_ms=OWN_SESSION_MS,
        rebalance_timeout_ms=REBALANCE_MS,
        requires_known_member_id=False,
    )
    return asked._replace(**fields)


def sync_request(member_id: str, generation: int, **fields: Any) -> SyncRequest:
    return SyncRequest(member_id, None, generation, None, None, ())._replace(**fields)


def beat_request(member_id: str, epoch: int, **fields: Any) -> HeartbeatRequest:
    silent = HeartbeatRequest(member_id, epoch, None, None, -1, None, None, None, None, "client", "/host")
    return silent._replace(**fields)


class World:
    """Topics, a clock and a group: ``World(t=4)``, ``world.enter("t")``, ``world.sync(a)``."""

    def __init__(self, *, max_size: int = 100, generation: int = 0, **topics: int) -> None:
        self.ids = count(1)
        self.topics = {
            topic: TopicShape(uuid.uuid5(uuid.NAMESPACE_DNS, topic), n) for topic, n in topics.items()
        }
        self.now_ms = 1_000
        self.group = ConsumerGroup(
            "g",
            max_size=max_size,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=INTERVAL_MS,
            new_member_id=lambda: f"new-{next(self.ids)}",
            generation=generation,
        )

    @property
    def classic(self) -> ClassicMembers:
        return ClassicMembers(self.group, new_member_id=lambda prefix: f"{prefix}-{next(self.ids)}")

    def grow(self, topic: str, partitions: int) -> None:
        self.topics[topic] = self.topics[topic]._replace(partitions=partitions)

    def let(self, ms: int) -> None:
        self.now_ms += ms
        self.group.advance(self.topics, self.now_ms)

    # Classic members

    def join(self, member_id: str, *topics: str, **fields: Any) -> JoinReply:
        return self.classic.join(join_request(member_id, *topics, **fields), self.topics, self.now_ms)

    def sync(self, member_id: str, **fields: Any) -> Partitions | ErrorCode:
        """What it is assigned, or the error."""
        reply = self.classic.sync(
            sync_request(member_id, fields.pop("generation", self.epoch(member_id)), **fields),
            self.topics,
            self.now_ms,
        )
        return read_assignment(reply.assignment) if reply.error is NONE else reply.error

    def enter(self, *topics: str, **fields: Any) -> str:
        """The id of a member that joined and synced."""
        member_id = self.join("", *topics, **fields).member_id
        assert not isinstance(self.sync(member_id), ErrorCode)
        return member_id

    def beat(
        self, member_id: str, *, instance: str | None = None, generation: int | None = None
    ) -> ErrorCode:
        generation = self.epoch(member_id) if generation is None else generation
        return self.classic.heartbeat(member_id, instance, generation, self.topics, self.now_ms)

    def leave(self, *members: tuple[str, str | None]) -> list[ErrorCode]:
        return self.classic.leave(members, self.topics, self.now_ms)

    # KIP-848 members

    def heartbeat(self, member_id: str, epoch: int | None = None, **fields: Any) -> HeartbeatReply:
        epoch = self.epoch(member_id) if epoch is None else epoch
        return self.group.heartbeat(beat_request(member_id, epoch, **fields), self.topics, self.now_ms)

    def come(self, member_id: str, *topics: str, **fields: Any) -> HeartbeatReply:
        told = {"rebalance_timeout_ms": REBALANCE_MS, "subscribed_topics": topics, "owned": {}}
        return self.heartbeat(member_id, 0, **(told | fields))

    # What is seen

    def epoch(self, member_id: str) -> int:
        members = self.group.members
        return members[member_id].member_epoch if member_id in members else 1

    def assigned(self, member_id: str) -> Partitions:
        return self.group.members[member_id].assigned


# Joining and syncing --------------------------------------------------------------------------------------


def test_a_classic_member_follows_and_is_assigned_by_the_server():
    world = World(t=2)
    assert world.join("", "t") == JoinReply(NONE, 1, "consumer", EAGER, "", "client-1", (), False)
    assert world.classic.has("client-1")
    reply = world.classic.sync(sync_request("client-1", 1), world.topics, world.now_ms)
    assert reply == SyncReply(NONE, "consumer", EAGER, assignment_bytes({"t": (0, 1)}))
    assert world.group.state == "Stable"


def test_the_assignment_is_written_as_version_0_without_user_data():
    assert assignment_bytes({"t": (0, 2)}) == b"\0\0" + places_bytes({"t": (0, 2)}) + b"\xff\xff\xff\xff"
    assert assignment_bytes({}) == b"\0\0\0\0\0\0\xff\xff\xff\xff"


def test_a_generation_goes_on_behind_the_last_one():
    assert World(generation=7, t=1).join("", "t").generation == 8


def test_the_first_protocol_is_the_one():
    world = World(t=1)
    both = tuple((name, subscription("t")) for name in ("b", "a"))
    reply = world.join("", protocols=both)
    assert reply.protocol_name == "b"
    assert world.sync(reply.member_id, protocol_name="a") == ErrorCode.inconsistent_group_protocol
    assert world.sync(reply.member_id, protocol_type="connect") == ErrorCode.inconsistent_group_protocol
    assert world.sync(reply.member_id, protocol_name="b", protocol_type="consumer") == {"t": (0,)}


def test_a_new_client_is_told_an_id_to_join_with():
    world = World(t=1)
    told = world.join("", "t", requires_known_member_id=True)
    assert (told.error, told.generation, told.member_id) == (ErrorCode.member_id_required, -1, "client-1")
    assert world.group.is_empty
    assert world.group.next_deadline_ms() == world.now_ms + OWN_SESSION_MS
    assert world.join("client-1", "t", requires_known_member_id=True).error is NONE
    assert world.group.reserved_ids == {}


def test_an_id_that_nobody_joins_with_is_forgotten():
    world = World(t=1)
    member_id = world.join("", "t", requires_known_member_id=True).member_id
    world.let(OWN_SESSION_MS)
    assert world.group.next_deadline_ms() is None
    assert world.join(member_id, "t").error is ErrorCode.unknown_member_id


def test_an_id_can_be_given_back():
    world = World(t=1)
    member_id = world.join("", "t", requires_known_member_id=True).member_id
    assert world.leave((member_id, None)) == [NONE]
    assert world.join(member_id, "t").error is ErrorCode.unknown_member_id


def test_nobody_joins_under_an_id_that_is_unknown():
    assert World(t=1).join("x", "t").error is ErrorCode.unknown_member_id


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"protocol_type": "connect"}, ErrorCode.inconsistent_group_protocol),
        ({"protocols": ()}, ErrorCode.inconsistent_group_protocol),
        ({"protocols": (("range", b"?"),)}, ErrorCode.inconsistent_group_protocol),
        ({"session_timeout_ms": 5_999}, ErrorCode.invalid_session_timeout),
        ({"session_timeout_ms": 1_800_001}, ErrorCode.invalid_session_timeout),
        ({"instance_id": ""}, ErrorCode.invalid_request),
    ],
    ids=str,
)
def test_a_join_that_makes_no_sense_is_refused(fields, error):
    world = World(t=1)
    assert world.join("", "t", **fields).error is error
    assert world.group.is_empty


def test_a_full_group_hands_out_no_ids():
    world = World(max_size=1, t=1)
    member_id = world.enter("t")
    assert world.join("", "t", requires_known_member_id=True).error is ErrorCode.group_max_size_reached
    assert world.join("", "t").error is ErrorCode.group_max_size_reached
    assert world.join("", "t", instance_id="i").error is ErrorCode.group_max_size_reached
    assert world.join(member_id, "t").error is NONE


def test_a_member_of_the_other_protocol_does_not_speak_this_one():
    world = World(t=1)
    world.come("k", "t")
    assert not world.classic.has("k")
    assert not can_join(world.group, join_request("k", "t"))
    assert world.sync("k") == world.beat("k") == ErrorCode.unknown_member_id


def test_what_members_are_told_of_generations_that_are_not_theirs():
    world = World(t=1)
    member_id = world.enter("t")
    for generation in (0, 2, -1):
        assert world.beat(member_id, generation=generation) == ErrorCode.illegal_generation
        assert world.sync(member_id, generation=generation) == ErrorCode.illegal_generation
        assert world.group.check_commit(member_id, generation) == ErrorCode.illegal_generation
    assert world.group.check_commit(member_id, 1) is NONE
    assert world.beat("x") == world.sync("x") == ErrorCode.unknown_member_id
    assert world.group.check_commit("x", 1) == ErrorCode.unknown_member_id


# Moving partitions ----------------------------------------------------------------------------------------


def test_an_eager_member_gives_up_everything_by_joining():
    world = World(t=2)
    member_id = world.enter("t")
    assert world.come("k", "t").assignment == {}
    assert world.heartbeat("k").assignment is None
    assert world.beat(member_id) is AGAIN
    # What it claims to own does not count: a client that offers "range" stops before it joins.
    assert world.join(member_id, "t", owned={"t": (0, 1)}).generation == 2
    kept = world.sync(member_id)
    assert len(kept["t"]) == 1
    assert world.heartbeat("k").assignment == {"t": tuple({0, 1} - set(kept["t"]))}
    assert world.beat(member_id) is NONE


def test_a_cooperative_member_gives_up_between_two_joins():
    world = World(t=2)
    member_id = world.enter("t", name=COOPERATIVE)
    world.come("k", "t")
    assert world.beat(member_id) is AGAIN

    # It owns everything still: it stays in its generation, and hears what it may keep.
    both = {"t": (0, 1)}
    assert world.join(member_id, "t", name=COOPERATIVE, owned=both).generation == 1
    kept = world.sync(member_id)
    assert len(kept["t"]) == 1
    assert world.heartbeat("k").assignment is None
    assert world.beat(member_id) is AGAIN

    assert world.join(member_id, "t", name=COOPERATIVE, owned=kept).generation == 2
    assert world.sync(member_id) == kept
    assert world.heartbeat("k").assignment == {"t": tuple({0, 1} - set(kept["t"]))}
    assert world.beat(member_id) is NONE


def test_a_member_that_waits_for_partitions_joins_again_once_all_are_free():
    world = World(t=6)
    modern = ("j", "k")
    for name in modern:
        world.come(name, "t")
    for name in modern * 2:
        world.heartbeat(name, owned=world.assigned(name))
    member_id = world.join("", "t").member_id
    assert world.sync(member_id) == {}
    for name in modern:
        assert world.beat(member_id) is NONE
        world.heartbeat(name)
        assert world.beat(member_id) is NONE
        world.heartbeat(name, owned=world.assigned(name))
    assert world.beat(member_id) is AGAIN
    assert world.join(member_id, "t").generation == world.group.group_epoch
    assert len(world.sync(member_id)["t"]) == 2
    assert world.beat(member_id) is NONE
    assert world.group.state == "Stable"


def test_a_sync_that_came_too_late_is_a_call_to_join():
    world = World(t=2)
    member_id = world.join("", "t").member_id
    world.come("k", "t")
    assert world.sync(member_id) is AGAIN
    assert world.join(member_id, "t").generation == 2
    assert len(world.sync(member_id)["t"]) == 1


def test_topics_that_change_call_to_join():
    world = World(t=1)
    member_id = world.enter("t")
    assert world.beat(member_id) is NONE
    world.grow("t", 3)
    assert world.beat(member_id) is AGAIN
    world.join(member_id, "t")
    assert world.sync(member_id) == {"t": (0, 1, 2)}


def test_a_join_brings_a_new_subscription():
    world = World(t=1, u=1)
    member_id = world.enter("t")
    assert world.join(member_id, "u").generation == 2
    assert world.sync(member_id) == {"u": (0,)}


def test_a_join_may_be_repeated():
    world = World(t=1)
    member_id = world.join("", "t").member_id
    assert world.join(member_id, "t").generation == 1
    assert world.sync(member_id) == world.sync(member_id) == {"t": (0,)}


# Leaving --------------------------------------------------------------------------------------------------


def test_what_a_member_had_is_free_when_it_leaves():
    world = World(t=2)
    one, other = world.enter("t"), world.enter("t")
    world.join(one, "t")
    assert world.leave((one, None), (one, None), ("x", None)) == [NONE] + [ErrorCode.unknown_member_id] * 2
    assert world.beat(other) is AGAIN
    world.join(other, "t")
    assert world.sync(other) == {"t": (0, 1)}
    assert world.leave((other, None)) == [NONE]
    assert world.group.is_empty


def test_static_members_can_be_removed_by_instance_whatever_they_speak():
    world = World(t=2)
    static = world.enter("t", instance_id="i")
    world.come("k", "t", instance_id="j")
    assert world.leave((static, "j")) == [ErrorCode.fenced_instance_id]
    assert world.leave(("", "i"), ("", "j"), ("", "x")) == [NONE, NONE, ErrorCode.unknown_member_id]
    assert world.group.is_empty


def test_members_of_the_other_protocol_can_be_removed_by_their_ids():
    """Java's Admin names every member so, when it is to remove all of them."""
    world = World(t=2)
    world.come("k", "t")
    world.come("s", "t", instance_id="i")
    assert world.leave(("k", "i"), ("s", "x")) == [ErrorCode.fenced_instance_id, ErrorCode.unknown_member_id]
    assert world.leave(("k", None), ("s", "i")) == [NONE, NONE]
    assert world.group.is_empty


# Clocks ---------------------------------------------------------------------------------------------------


def test_a_session_timeout_is_the_members_own():
    world = World(t=1)
    member_id = world.enter("t")
    assert world.group.next_deadline_ms() == world.now_ms + OWN_SESSION_MS
    world.let(OWN_SESSION_MS - 1)
    assert world.beat(member_id) is NONE
    world.let(OWN_SESSION_MS - 1)
    assert world.classic.has(member_id)
    world.let(1)
    assert world.beat(member_id) == ErrorCode.unknown_member_id


def test_a_member_that_does_not_join_when_it_is_told_to_is_removed():
    world = World(t=1)
    member_id = world.enter("t", rebalance_timeout_ms=10_000)
    world.come("k", "t")
    assert world.beat(member_id) is AGAIN
    world.let(9_999)
    assert world.beat(member_id) is AGAIN
    assert world.group.next_deadline_ms() == world.now_ms + 1
    world.let(1)
    assert not world.classic.has(member_id)


def test_a_member_that_does_not_sync_is_removed():
    world = World(t=1)
    member_id = world.join("", "t", rebalance_timeout_ms=10_000).member_id
    world.let(9_999)
    assert world.beat(member_id) is NONE
    world.let(1)
    assert not world.classic.has(member_id)


def test_a_member_that_joins_and_syncs_in_time_stays():
    world = World(t=1)
    member_id = world.enter("t", rebalance_timeout_ms=10_000)
    world.come("k", "t")
    world.beat(member_id)
    world.let(9_999)
    world.join(member_id, "t", rebalance_timeout_ms=10_000)
    world.let(9_999)
    assert world.sync(member_id) is not AGAIN
    world.let(9_999)
    assert world.classic.has(member_id)


def test_a_cooperative_member_that_does_not_give_up_is_removed():
    world = World(t=2)
    member_id = world.enter("t", name=COOPERATIVE, rebalance_timeout_ms=10_000)
    world.come("k", "t")
    for _ in range(2):
        world.join(member_id, "t", name=COOPERATIVE, owned={"t": (0, 1)}, rebalance_timeout_ms=10_000)
        world.let(5_000)
    assert not world.classic.has(member_id)


# Static members -------------------------------------------------------------------------------------------


def test_a_static_member_that_is_back_keeps_its_partitions_without_a_rebalance():
    world = World(t=2)
    static = world.enter("t", instance_id="i")
    other = world.enter("t")
    world.join(static, "t", instance_id="i")
    mine = world.sync(static, instance_id="i")
    world.join(other, "t")
    epoch = world.group.group_epoch
    back = world.join("", "t", instance_id="i")
    assert (back.error, back.generation, world.group.group_epoch) == (NONE, epoch, epoch)
    assert world.sync(back.member_id, instance_id="i") == mine
    assert world.beat(static, instance="i", generation=epoch) == ErrorCode.fenced_instance_id
    assert world.join(static, "t", instance_id="i").error is ErrorCode.fenced_instance_id
    assert world.sync(static, instance_id="i") == ErrorCode.fenced_instance_id
    assert world.join("x", "t", instance_id="unknown").error is ErrorCode.unknown_member_id
    assert world.beat(other) is NONE


@pytest.mark.parametrize("left", [True, False], ids=["left", "crashed"])
def test_a_static_member_may_be_downgraded(left):
    world = World(t=2)
    world.come("k", "t", instance_id="i")
    if left:
        world.heartbeat("k", -2, instance_id="i")
    back = world.join("", "t", instance_id="i")
    assert (back.error, back.generation) == (NONE, 1)
    assert world.sync(back.member_id) == {"t": (0, 1)}
    assert list(world.group.members) == [back.member_id]


def test_a_static_member_may_be_upgraded_though_it_never_says_that_it_leaves():
    world = World(t=2)
    static = world.enter("t", instance_id="i")
    assert world.come("k", "t", instance_id="i").assignment == {"t": (0, 1)}
    assert list(world.group.members) == ["k"]
    assert not world.classic.has("k")
    assert world.beat(static, instance="i") == ErrorCode.fenced_instance_id


# Bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4])
def test_subscriptions_of_all_versions_are_read(version):
    owned = {"t": (0, 3), "u": ()}
    read = read_subscription(subscription("t", "u", version=version, owned=owned))
    assert read == (("t", "u"), owned if version else {}, "rack" if version >= 3 else None)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\0",
        b"\0\1",
        b"\xff\xff" + subscription("t")[2:],
        subscription("t")[:-5],
        b"\0\0\xff\xff\xff\xff",
    ],
)
def test_what_is_no_subscription_is_not_read(broken):
    assert read_subscription(broken) is None


@pytest.mark.parametrize("read", [read_subscription, read_topics, read_assignment])
def test_a_count_is_checked_before_room_is_taken_for_it(read):
    """A count of 2³¹ ends the process that believes it."""
    count = MAX_ITEMS + 1
    empty_names = b"\0\0" * (3 * count)  # whatever is read of each
    assert read(b"\0\0" + struct.pack(">i", count) + empty_names) is None


def test_an_assignment_is_read_or_not():
    assert read_assignment(b"") == {}
    assert read_assignment(assignment_bytes({"t": (1, 2)})) == {"t": (1, 2)}
    assert read_assignment(b"\0\3" + assignment_bytes({"t": (1, 2)})[2:]) == {"t": (1, 2)}
    assert read_assignment(b"\0") is None
    assert read_assignment(b"\xff\xff" + assignment_bytes({})[2:]) is None
    assert read_assignment(assignment_bytes({"t": (1, 2)})[:-7]) is None


# Upgrading ------------------------------------------------------------------------------------------------


class Classic:
    """A classic group: ``Classic(t=2).stable("a", "b")``; tokens and client ids are the members' names."""

    def __init__(self, **topics: int) -> None:
        self.world = World(**topics)
        numbers = count(1)
        self.group = ClassicGroup("g", new_member_id=lambda name: f"{name}-{next(numbers)}")
        self.replies: dict[object, JoinReply | SyncReply] = {}
        self.ids: dict[str, str] = {}

    def deliver(self, deliveries: list[Delivery]) -> None:
        for token, reply in deliveries:
            self.replies[token] = reply
            if isinstance(reply, JoinReply):
                self.ids[str(token)] = reply.member_id

    def join(self, name: str, /, *topics: str, **fields: Any) -> Classic:
        request = join_request(self.ids.get(name, ""), *topics, client_id=name, **fields)
        self.deliver(self.group.join(request, name, self.world.now_ms))
        return self

    def sync(self, name: str, assignments: dict[str, bytes] | None = None) -> Classic:
        parts = tuple((self.ids[other], part) for other, part in (assignments or {}).items())
        request = sync_request(self.ids[name], self.group.generation, assignments=parts)
        self.deliver(self.group.sync(request, name, self.world.now_ms))
        return self

    def stable(self, given: dict[str, Partitions], *topics: str, **fields: Any) -> Classic:
        for _ in range(2):  # the first round lets all of them in, the second has them all join
            for name in given:
                self.join(name, *topics, **fields)
        leader = next(iter(given))
        for name in reversed(given):
            self.sync(name, {n: assignment_bytes(p) for n, p in given.items()} if name == leader else None)
        assert self.group.state is GroupState.STABLE
        return self

    def upgrade(self) -> World | None:
        group = upgraded(
            self.group,
            self.world.topics,
            self.world.now_ms,
            heartbeat_interval_ms=INTERVAL_MS,
            session_timeout_ms=SESSION_MS,
            new_member_id=lambda: f"new-{next(self.world.ids)}",
        )
        if group is None:
            return None
        self.world.group = group
        self.deliver(self.group.dissolve(self.world.now_ms))
        return self.world


GIVEN: dict[str, Partitions] = {"a": {"t": (0, 1)}, "b": {"t": (2, 3)}}


def test_members_of_a_stable_group_keep_what_they_have():
    classic = Classic(t=4).stable(GIVEN, "t")
    world, a, b = classic.upgrade(), classic.ids["a"], classic.ids["b"]
    generation = classic.group.generation
    assert (world.group.group_epoch, world.group.state) == (generation, "Stable")
    for name, member_id in (("a", a), ("b", b)):
        assert world.classic.has(member_id)
        member = world.group.members[member_id]
        assert (member.member_epoch, member.client_id, member.client_host) == (generation, name, "/host")
        assert member.assigned == member.target == GIVEN[name]
        assert world.beat(member_id) is NONE
        assert world.sync(member_id, protocol_name=EAGER) == GIVEN[name]
    world.let(OWN_SESSION_MS)
    assert world.group.is_empty


def test_nothing_is_taken_from_a_member_that_does_not_know_of_the_upgrade_yet():
    classic = Classic(t=4).stable(GIVEN, "t")
    world, a, b = classic.upgrade(), classic.ids["a"], classic.ids["b"]
    reply = world.come("k", "t")
    assert (reply.member_epoch, reply.assignment) == (classic.group.generation + 1, {})
    assert world.group.check_commit(a, classic.group.generation) is NONE
    for member_id in (a, b):
        assert world.beat(member_id) is AGAIN
        world.join(member_id, "t")
        world.sync(member_id)
    world.heartbeat("k")
    sizes = [len(world.assigned(member_id)["t"]) for member_id in (a, b, "k")]
    assert sorted(sizes) == [1, 1, 2]
    assert world.group.state == "Stable"


def test_static_members_are_upgraded_one_by_one():
    classic = Classic(t=4).stable({"a": {"t": (0, 1, 2, 3)}}, "t", instance_id="i")
    world = classic.upgrade()
    assert world.come("k", "t", instance_id="i").assignment == {"t": (0, 1, 2, 3)}
    assert list(world.group.members) == ["k"]


def test_who_waits_is_told_to_join_again():
    classic = Classic(t=4).stable(GIVEN, "t").join("c", "t").join("a", "t")
    world, a = classic.upgrade(), classic.ids["a"]
    for name in ("c", "a"):
        assert classic.replies[name].error is AGAIN
    assert set(world.group.members) == {classic.ids["a"], classic.ids["b"]}
    assert world.assigned(a) == GIVEN["a"]
    assert world.join(classic.ids["c"], "t").error is NONE  # its id was kept for it
    assert world.join(a, "t").error is NONE


def test_who_waits_for_the_leader_is_told_to_join_again():
    classic = Classic(t=2).join("a", "t").join("b", "t").join("a", "t").sync("b")
    assert classic.group.state is GroupState.COMPLETING_REBALANCE
    world = classic.upgrade()
    assert classic.replies["b"].error is AGAIN
    assert set(world.group.members) == set(classic.ids.values())
    assert classic.group.dissolve(world.now_ms) == []


def test_a_cooperative_member_is_known_to_own_what_it_joined_with():
    """A phase that was broken off took away its assignment, but not its partitions."""
    classic = Classic(t=4).stable({"a": {"t": (0, 1, 2, 3)}}, "t", name=COOPERATIVE)
    owned = {"t": (0, 1, 2, 3)}
    classic.join("b", "t", name=COOPERATIVE).join("a", "t", name=COOPERATIVE, owned=owned)
    assert classic.group.state is GroupState.COMPLETING_REBALANCE
    classic.join("c", "t", name=COOPERATIVE)
    world = classic.upgrade()
    assert world.assigned(classic.ids["a"]) == owned
    assert world.come("k", "t").assignment == {}


def test_what_two_were_assigned_is_the_first_ones_and_what_is_gone_is_nobodys():
    classic = Classic(t=2).stable({"a": {"t": (0, 1)}, "b": {"t": (1, 7), "gone": (0,)}}, "t")
    world = classic.upgrade()
    assert [member.assigned for member in world.group.members.values()] == [{"t": (0, 1)}, {}]


def test_ids_that_were_handed_out_stay_good():
    classic = Classic(t=4).stable(GIVEN, "t").join("c", "t", requires_known_member_id=True)
    assert classic.replies["c"].error is ErrorCode.member_id_required
    world = classic.upgrade()
    assert world.join(classic.ids["c"], "t").error is NONE


@pytest.mark.parametrize(
    "fields", [{"protocol_type": "connect"}, {"protocols": (("range", b"?"),)}], ids=["type", "metadata"]
)
def test_a_group_that_is_not_one_of_consumers_stays_as_it_is(fields):
    classic = Classic(t=4).stable(GIVEN, "t", **fields)
    assert classic.upgrade() is None
    assert classic.group.state is GroupState.STABLE


def test_a_group_with_an_assignment_that_cannot_be_read_stays_as_it_is():
    classic = Classic(t=1).join("a", "t").sync("a", {"a": b"?"})
    assert classic.upgrade() is None


# Random walks ---------------------------------------------------------------------------------------------


def spread(partitions: Partitions) -> set[tuple[str, int]]:
    return {(topic, number) for topic, numbers in partitions.items() for number in numbers}


def gathered(places: set[tuple[str, int]]) -> Partitions:
    topics = sorted({topic for topic, _ in places})
    return {topic: tuple(sorted(n for name, n in places if name == topic)) for topic in topics}


class ClassicClient:
    """A well-behaved client of the classic protocol; ``held`` is what it may be reading from."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.member_id = ""
        self.generation = 0
        self.phase = "join"  # then "wait", "sync", "wait", "stay"
        self.held: set[tuple[str, int]] = set()
        self.kept: set[tuple[str, int]] = set()  # of what it holds; the rest goes when it joins
        self.roster: tuple[tuple[str, str | None, bytes], ...] = ()

    def joining(self, topics: tuple[str, ...]) -> JoinRequest:
        self.held = self.kept = set() if self.kind == EAGER else self.kept
        return join_request(
            self.member_id,
            *topics,
            name=self.kind,
            owned=gathered(self.held),
            client_id=self.name,
            requires_known_member_id=True,
        )

    def joined(self, reply: JoinReply) -> None:
        self.phase = "join"
        if reply.error is NONE:
            assert reply.member_id != self.member_id or reply.generation >= self.generation
            self.member_id, self.generation, self.roster = reply.member_id, reply.generation, reply.members
            self.phase = "sync"
        elif reply.error is ErrorCode.member_id_required:
            self.member_id = reply.member_id
        else:
            self.refused(reply.error)

    def synced(self, reply: SyncReply) -> None:
        if reply.error is not NONE:
            self.refused(reply.error)
            return
        self.kept = spread(read_assignment(reply.assignment) or {})
        has_to_give_up = not self.held <= self.kept
        self.held = self.held | self.kept
        self.phase = "join" if has_to_give_up else "stay"

    def refused(self, error: ErrorCode) -> None:
        self.phase = "join"
        if error is not AGAIN:
            assert error in (ErrorCode.unknown_member_id, ErrorCode.illegal_generation)
            self.forgotten()

    def forgotten(self) -> None:
        self.member_id, self.generation, self.phase = "", 0, "join"
        self.held = self.kept = set()


class ModernClient:
    """A well-behaved client of KIP-848, which gives up what it is told to before its next heartbeat."""

    def __init__(self, name: str) -> None:
        self.member_id = name
        self.epoch = 0
        self.held: set[tuple[str, int]] = set()
        self.kept: set[tuple[str, int]] = set()

    def request(self, topics: tuple[str, ...]) -> HeartbeatRequest:
        self.held = self.kept
        return beat_request(
            self.member_id,
            self.epoch,
            rebalance_timeout_ms=REBALANCE_MS,
            subscribed_topics=topics,
            owned=gathered(self.held),
        )

    def receive(self, reply: HeartbeatReply) -> None:
        assert reply.member_epoch >= self.epoch
        self.epoch = reply.member_epoch
        if reply.assignment is not None:
            self.kept = spread(reply.assignment)
            self.held = self.held | self.kept

    def forgotten(self) -> None:
        self.epoch = 0
        self.held = self.kept = set()


Someone = ClassicClient | ModernClient


class Walk:
    """Clients of both protocols that come, go and die, from a classic group on; every step is checked."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(t=5, u=4)
        self.numbers = count(1)
        self.kinds = self.random.choice(((EAGER,), (COOPERATIVE,)))  # those of a classic group agree
        self.old: ClassicGroup | None = ClassicGroup("g", new_member_id=self.new_id)
        self.clients: list[Someone] = []
        self.dead: list[Someone] = []
        self.epoch = 0

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self.numbers)}"

    @property
    def wanted(self) -> tuple[str, ...]:
        return tuple(sorted(self.world.topics))

    def any(self) -> Someone | None:
        return self.random.choice(self.clients) if self.clients else None

    # Moves

    def step(self) -> None:
        moves = [self.come] + [self.act] * 12 + [self.leave, self.lose_reply]
        if self.old is None:
            moves += [self.come_modern, self.die, self.wait, self.grow]
        self.random.choice(moves)()
        self.check()

    def come(self) -> None:
        if len(self.clients) < 7:
            kind = self.random.choice(self.kinds)
            self.clients.append(ClassicClient(f"c{next(self.numbers)}", kind))

    def come_modern(self) -> None:
        if len(self.clients) < 7:
            self.clients.append(ModernClient(f"k{next(self.numbers)}"))

    def act(self) -> None:
        if (client := self.any()) is not None:
            self.move(client)

    def move(self, client: Someone, *, lost: bool = False) -> None:
        if isinstance(client, ModernClient):
            self.beat(client, lost=lost)
        elif client.phase == "join":
            self.join(client, lost=lost)
        elif client.phase == "sync":
            self.sync(client)
        elif client.phase == "stay":
            self.stay(client)

    def lose_reply(self) -> None:
        client = self.any()
        if client is not None and self.old is None:
            self.move(client, lost=True)

    def beat(self, client: ModernClient, *, lost: bool) -> None:
        reply = self.answer(client.request(self.wanted))
        if isinstance(reply, ErrorCode):
            assert reply in (ErrorCode.unknown_member_id, ErrorCode.fenced_member_epoch)
            client.forgotten()
        elif not lost:
            client.receive(reply)

    def answer(self, asked: HeartbeatRequest) -> HeartbeatReply | ErrorCode:
        try:
            return self.world.group.heartbeat(asked, self.world.topics, self.world.now_ms)
        except GroupError as error:
            return error.code

    def join(self, client: ClassicClient, *, lost: bool) -> None:
        asked = client.joining(self.wanted)
        if self.old is not None:
            client.phase = "wait"
            self.deliver(self.old.join(asked, client, self.world.now_ms))
            return
        reply = self.world.classic.join(asked, self.world.topics, self.world.now_ms)
        if not lost:
            client.joined(reply)

    def sync(self, client: ClassicClient) -> None:
        asked = sync_request(client.member_id, client.generation, assignments=self.led_by(client))
        if self.old is not None:
            client.phase = "wait"
            self.deliver(self.old.sync(asked, client, self.world.now_ms))
        else:
            client.synced(self.world.classic.sync(asked, self.world.topics, self.world.now_ms))

    def stay(self, client: ClassicClient) -> None:
        if self.old is not None:
            error = self.old.heartbeat(client.member_id, None, client.generation, self.world.now_ms)
        else:
            error = self.world.beat(client.member_id, generation=client.generation)
        if error is not NONE:
            client.refused(error)

    def deliver(self, deliveries: list[Delivery]) -> None:
        for client, reply in deliveries:
            assert isinstance(client, ClassicClient)
            if client not in self.clients:
                continue
            if isinstance(reply, JoinReply):
                client.joined(reply)
            else:
                client.synced(reply)

    def led_by(self, client: ClassicClient) -> tuple[tuple[str, bytes], ...]:
        """What a leader assigns: in turn, but nothing that another member owns still."""
        owner = {}
        for member_id, _, metadata in client.roster:
            said = read_subscription(metadata)
            assert said is not None
            owner.update(dict.fromkeys(spread(said.owned), member_id))
        given: dict[str, set[tuple[str, int]]] = {member_id: set() for member_id, _, _ in client.roster}
        everything = sorted((t, n) for t, shape in self.world.topics.items() for n in range(shape.partitions))
        for index, place in enumerate(everything if given else []):
            taker = list(given)[index % len(given)]
            if owner.get(place, taker) == taker:
                given[taker].add(place)
        return tuple((member_id, assignment_bytes(gathered(places))) for member_id, places in given.items())

    def leave(self) -> None:
        client = self.any()
        if client is None:
            return
        self.clients.remove(client)
        if isinstance(client, ModernClient):
            reply = self.answer(beat_request(client.member_id, -1))
            assert isinstance(reply, HeartbeatReply) or reply is ErrorCode.unknown_member_id
        elif self.old is not None:
            self.deliver(self.old.leave([(client.member_id, None)], self.world.now_ms)[1])
        else:
            self.world.leave((client.member_id, None))

    def die(self) -> None:
        if (client := self.any()) is not None:
            self.clients.remove(client)
            self.dead.append(client)

    def grow(self) -> None:
        topic = self.random.choice(self.wanted)
        if self.world.topics[topic].partitions < 9:
            self.world.grow(topic, self.world.topics[topic].partitions + 1)

    def wait(self) -> None:
        self.let(self.random.choice((500, 2_000, INTERVAL_MS)))

    def let(self, ms: int) -> None:
        self.world.let(ms)
        there = self.world.group.members
        self.dead = [client for client in self.dead if client.member_id in there]
        for client in self.clients:
            is_in = client.epoch > 0 if isinstance(client, ModernClient) else client.generation > 0
            if is_in and client.member_id not in there:
                client.forgotten()  # by its own clock

    def upgrade(self) -> None:
        """A KIP-848 client comes, wherever the classic group stands."""
        assert self.old is not None
        group = upgraded(
            self.old,
            self.world.topics,
            self.world.now_ms,
            heartbeat_interval_ms=INTERVAL_MS,
            session_timeout_ms=SESSION_MS,
            new_member_id=lambda: self.new_id("new"),
        )
        if group is None:
            assert not self.old.members
            return
        self.world.group, old, self.old = group, self.old, None
        modern = ModernClient(f"k{next(self.numbers)}")
        self.clients.append(modern)
        self.beat(modern, lost=False)
        for delivery in old.dissolve(self.world.now_ms):
            self.deliver_late(delivery)
        self.kinds = (EAGER, COOPERATIVE)
        self.check()

    def deliver_late(self, delivery: Delivery) -> None:
        assert delivery.reply.error is AGAIN
        self.deliver([delivery])

    # Checks

    def check(self) -> None:
        held = Counter(place for client in self.clients + self.dead for place in client.held)
        assert not [place for place, holders in held.items() if holders > 1]
        group = self.world.group
        epoch = self.old.generation if self.old is not None else group.group_epoch
        assert epoch >= self.epoch
        self.epoch = epoch
        if self.old is None:
            assigned = Counter(p for member in group.members.values() for p in spread(member.assigned))
            assert not [place for place, holders in assigned.items() if holders > 1]
            assert group.assignment_epoch <= group.group_epoch
            assert (group.next_deadline_ms() is None) == (not group.members and not group.reserved_ids)
            for client in self.clients + self.dead:
                member = group.member(client.member_id)
                if member is not None:
                    assert client.held <= spread(group.named(member.in_hands))

    def settle(self) -> None:
        for _ in range(3 * SESSION_MS // INTERVAL_MS):
            self.let(INTERVAL_MS)
            for client in self.clients:
                self.move(client)
                self.check()

    def check_settled(self) -> None:
        group = self.world.group
        assert group.state == ("Stable" if self.clients else "Empty")
        assert set(group.members) == {client.member_id for client in self.clients}
        for client in self.clients:
            member = group.members[client.member_id]
            assert gathered(client.held) == gathered(spread(member.assigned))
            assert member.assigned == member.target
            assert member.member_epoch == group.group_epoch
            assert group.is_classic(client.member_id) == isinstance(client, ClassicClient)
        if self.clients:
            held = sorted(place for client in self.clients for place in client.held)
            topics = self.world.topics.items()
            assert held == sorted((topic, n) for topic, shape in topics for n in range(shape.partitions))
            loads = [len(client.held) for client in self.clients]
            assert max(loads) - min(loads) <= 1


@pytest.mark.parametrize("seed", range(80))
def test_random_walk_of_both_protocols_in_one_group(seed):
    """Nobody shares a partition, epochs grow, and in the end everything is assigned, evenly."""
    walk = Walk(seed)
    for _ in range(walk.random.randrange(10, 120)):
        walk.step()
    while walk.old is not None:
        walk.come()
        walk.act()
        walk.upgrade()
    for _ in range(3):
        for _ in range(80):
            walk.step()
        walk.settle()
        walk.check_settled()
