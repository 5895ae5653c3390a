"""The classic group protocol: who is answered what, when a generation begins, and which clock ends what."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kio.schema.errors import ErrorCode

from logbroker.server.classic_group import NEW_MEMBER_JOIN_TIMEOUT_MS, ClassicGroup, GroupState
from logbroker.server.classic_messages import JoinReply, JoinRequest, SyncReply, SyncRequest

SESSION_MS = 10_000
REBALANCE_MS = 60_000
RANGE = (("range", b"r"),)
EMPTY, PREPARING, COMPLETING, STABLE, DEAD = GroupState


def subscription(*topics: str, version: int = 1, rest: bytes = b"\xff\xff\xff\xff") -> bytes:
    """ConsumerProtocolSubscription as clients send it; *rest* is what follows the topics."""
    names = b"".join(struct.pack(">h", len(topic)) + topic.encode() for topic in topics)
    return struct.pack(">hi", version, len(topics)) + names + rest


class Group:
    """A group under test, with a clock: `Group().stable("a", "b").beat("a")`.

    Members have short names here, and `ids` knows their member ids. Tokens are the names that tests pass;
    `replies` keeps what was delivered for each.
    """

    def __init__(self, **options) -> None:
        numbers = itertools.count(1)
        self.group = ClassicGroup("g", new_member_id=lambda name: f"{name}-{next(numbers)}", **options)
        self.now_ms = 1_000
        self.ids: dict[str, str] = {}
        self.replies: dict[object, JoinReply | SyncReply] = {}

    def __getattr__(self, name: str):
        return getattr(self.group, name)

    def _deliver(self, deliveries) -> None:
        for token, reply in deliveries:
            assert token not in self.replies, f"{token} was answered twice"
            self.replies[token] = reply
            if isinstance(reply, JoinReply) and reply.error is ErrorCode.none:
                self.ids[str(token).rstrip("'")] = reply.member_id

    def join(
        self,
        name: str,
        *,
        token: object = None,
        member_id: str | None = None,
        instance: str | None = None,
        protocols=RANGE,
        protocol_type="consumer",
        session_ms=SESSION_MS,
        rebalance_ms=REBALANCE_MS,
        known=False,
    ) -> Group:
        if member_id is None:
            member_id = self.ids.get(name, "")
        request = JoinRequest(
            member_id, instance, name, "/host", protocol_type, protocols, session_ms, rebalance_ms, known
        )
        self._deliver(self.group.join(request, token or name, self.now_ms))
        return self

    def sync(
        self,
        name: str,
        assignments=None,
        *,
        token: object = None,
        generation: int | None = None,
        instance: str | None = None,
        protocol_type: str | None = None,
        protocol_name: str | None = None,
    ) -> Group:
        request = SyncRequest(
            self.ids.get(name, name),
            instance,
            self.group.generation if generation is None else generation,
            protocol_type,
            protocol_name,
            tuple((self.ids[other], part) for other, part in (assignments or {}).items()),
        )
        self._deliver(self.group.sync(request, token or name, self.now_ms))
        return self

    def beat(self, name: str, *, instance: str | None = None, generation: int | None = None) -> ErrorCode:
        generation = self.group.generation if generation is None else generation
        return self.group.heartbeat(self.ids.get(name, name), instance, generation, self.now_ms)

    def commit(self, name: str, *, instance: str | None = None, generation: int | None = None) -> ErrorCode:
        generation = self.group.generation if generation is None else generation
        return self.group.check_commit(self.ids.get(name, name), instance, generation, self.now_ms)

    def leave(self, *members: tuple[str, str | None]) -> list[ErrorCode]:
        named = [(self.ids.get(name, name), instance) for name, instance in members]
        errors, deliveries = self.group.leave(named, self.now_ms)
        self._deliver(deliveries)
        return errors

    def wait(self, ms: int, *, beating: tuple[str, ...] = ()) -> Group:
        """Let time pass, stopping at each deadline, and at each second for the members that beat."""
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms:
            due_ms = self.group.next_deadline_ms()
            steps_ms = [end_ms, *([self.now_ms + 1_000] if beating else []), *([due_ms] if due_ms else [])]
            self.now_ms = max(self.now_ms, min(steps_ms))
            for name in beating:
                self.beat(name)
            self._deliver(self.group.advance(self.now_ms))
        return self

    def reply(self, token: object) -> JoinReply | SyncReply:
        """The reply to a token, which is free for use again afterwards."""
        return self.replies.pop(token)

    def error(self, token: object) -> ErrorCode:
        return self.reply(token).error

    def joined(self, *names: str, **options) -> Group:
        """Members in their first common generation, not synced yet."""
        self.join(names[0], **options)
        if len(names) > 1:
            for name in names[1:]:
                self.join(name, **options)
            self.replies.pop(names[0], None)
            self.join(names[0], **options)
        self.replies.clear()
        assert self.group.state is COMPLETING
        assert len(self.group.members) == len(names)
        return self

    def stable(self, *names: str, **options) -> Group:
        """Members of a stable group; the part of each is its own name."""
        self.joined(*names, **options)
        for name in (*names[1:], names[0]):
            self.sync(name, {name: name.encode() for name in names})
        self.replies.clear()
        assert self.group.state is STABLE
        return self

    def static(self, *names: str, **options) -> Group:
        """A stable group whose members have their names as instance ids."""
        self.join(names[0], instance=names[0], **options)
        for name in names[1:]:
            self.join(name, instance=name, **options)
        if len(names) > 1:
            self.replies.pop(names[0], None)
            self.join(names[0], instance=names[0], **options)
        self.replies.clear()
        for name in (*names[1:], names[0]):
            self.sync(name, {name: name.encode() for name in names}, instance=name)
        self.replies.clear()
        assert self.group.state is STABLE
        return self

    def named_members(self) -> set[str]:
        return {name for name, member_id in self.ids.items() if member_id in self.group.members}


# The first member -------------------------------------------------------------------------------------------


def test_a_group_begins_empty_and_has_nothing_to_wait_for():
    group = Group()
    assert group.state is EMPTY
    assert group.generation == 0
    assert group.next_deadline_ms() is None
    assert group.advance(10**9) == []


def test_the_first_member_is_answered_at_once_and_leads():
    group = Group().join("a")
    reply = group.reply("a")
    assert reply == JoinReply(
        ErrorCode.none, 1, "consumer", "range", "a-1", "a-1", (("a-1", None, b"r"),), skip_assignment=False
    )
    assert group.state is COMPLETING


def test_the_leaders_sync_makes_the_group_stable():
    group = Group().joined("a").sync("a", {"a": b"all"})
    assert group.reply("a") == SyncReply(ErrorCode.none, "consumer", "range", b"all")
    assert group.state is STABLE


def test_a_member_shows_what_describe_groups_wants_to_know():
    group = Group().static("a")
    member = group.members[group.ids["a"]]
    assert (member.client_id, member.client_host, member.instance_id) == ("a", "/host", "a")
    assert (member.metadata, member.assignment) == (b"r", b"a")


@pytest.mark.parametrize("session_ms", [5_999, 1_800_001, 0, -1])
def test_a_session_timeout_out_of_bounds_is_refused(session_ms):
    group = Group().join("a", session_ms=session_ms)
    assert group.error("a") is ErrorCode.invalid_session_timeout
    assert not group.members


@pytest.mark.parametrize("session_ms", [6_000, 1_800_000])
def test_the_bounds_of_the_session_timeout_are_allowed(session_ms):
    assert Group().join("a", session_ms=session_ms).error("a") is ErrorCode.none


@pytest.mark.parametrize(("protocol_type", "protocols"), [("", RANGE), ("consumer", ())])
def test_the_first_member_needs_a_protocol_type_and_a_protocol(protocol_type, protocols):
    group = Group().join("a", protocol_type=protocol_type, protocols=protocols)
    assert group.error("a") is ErrorCode.inconsistent_group_protocol


# Member ids (KIP-394) ---------------------------------------------------------------------------------------


def test_a_client_that_can_is_told_to_come_again_with_an_id():
    group = Group().join("a", known=True)
    reply = group.reply("a")
    assert (reply.error, reply.member_id, reply.generation) == (ErrorCode.member_id_required, "a-1", -1)
    assert group.state is EMPTY
    group.join("a", member_id="a-1", known=True)
    assert group.reply("a").leader == "a-1"


def test_a_static_member_needs_no_second_request():
    assert Group().join("a", instance="i", known=True).reply("a").member_id == "i-1"


def test_an_id_that_was_not_handed_out_is_unknown():
    group = Group().join("a", member_id="made-up")
    reply = group.reply("a")
    assert (reply.error, reply.member_id) == (ErrorCode.unknown_member_id, "made-up")


def test_an_id_that_is_not_used_is_forgotten_after_the_session_timeout():
    group = Group().join("a", known=True)
    group.replies.clear()
    assert group.next_deadline_ms() == group.now_ms + SESSION_MS
    group.wait(SESSION_MS).join("a", member_id="a-1", known=True)
    assert group.error("a") is ErrorCode.unknown_member_id


def test_a_pending_id_cannot_become_static():
    group = Group().join("a", known=True)
    group.replies.clear()
    group.join("a", member_id="a-1", instance="i")
    assert group.error("a") is ErrorCode.unknown_member_id


def test_a_rebalance_waits_for_pending_ids():
    group = Group().stable("a").join("b", known=True, token="id").join("a")
    assert "a" not in group.replies
    group.join("b", member_id=group.reply("id").member_id, known=True)
    assert group.error("a") is group.error("b") is ErrorCode.none
    assert group.generation == 2


def test_a_pending_id_that_expires_ends_the_wait():
    group = Group().stable("a").join("b", known=True, token="id").join("a").wait(SESSION_MS)
    assert group.reply("a").generation == 2


def test_a_pending_id_that_leaves_ends_the_wait():
    group = Group().stable("a").join("b", known=True, token="id").join("a")
    assert group.leave((group.reply("id").member_id, None)) == [ErrorCode.none]
    assert group.reply("a").generation == 2


def test_a_pending_id_that_leaves_a_stable_group_disturbs_nobody():
    group = Group().stable("a").join("b", known=True, token="id")
    assert group.leave((group.reply("id").member_id, None)) == [ErrorCode.none]
    assert group.state is STABLE


# Protocols --------------------------------------------------------------------------------------------------


def test_members_agree_on_the_protocol_type():
    group = Group().stable("a").join("b", protocol_type="connect")
    assert group.error("b") is ErrorCode.inconsistent_group_protocol
    assert group.state is STABLE


def test_a_member_needs_a_protocol_that_all_others_know():
    group = Group().stable("a").join("b", protocols=(("sticky", b""),))
    assert group.error("b") is ErrorCode.inconsistent_group_protocol


def test_an_empty_group_may_change_its_protocol_type():
    group = Group().stable("a")
    group.leave(("a", None))
    group.join("b", protocol_type="connect")
    assert group.reply("b").protocol_type == "connect"


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        (["xy", "xy"], "x"),
        (["xyz", "yxz", "yz"], "y"),
        (["zxy", "zyx", "xy", "yx", "yx"], "y"),  # z has votes only where it is known to all
        (["xy", "yx"], "x"),
        (["xyz", "zyx", "yxz", "zyx"], "z"),
    ],
)
def test_the_protocol_with_the_most_votes_among_those_known_to_all_is_chosen(offers, chosen):
    group = Group(initial_rebalance_delay_ms=100)
    for number, offer in enumerate(offers):
        group.join(f"m{number}", protocols=tuple((name, name.encode()) for name in offer))
    group.wait(1_000)
    assert group.protocol_name == chosen
    assert {metadata for _, _, metadata in group.reply("m0").members} == {chosen.encode()}


# Joining together -------------------------------------------------------------------------------------------


def test_a_new_member_calls_the_others_to_join_again():
    group = Group().stable("a").join("b")
    assert group.state is PREPARING
    assert group.beat("a") is ErrorCode.rebalance_in_progress
    assert "b" not in group.replies
    group.join("a")
    leader, follower = group.reply("a"), group.reply("b")
    assert leader.generation == follower.generation == 2
    assert leader.leader == follower.leader == leader.member_id
    assert [member_id for member_id, _, _ in leader.members] == [leader.member_id, follower.member_id]
    assert follower.members == ()


def test_a_join_phase_ends_without_those_who_did_not_come():
    group = Group().stable("a").join("b").wait(REBALANCE_MS - 1, beating=("a",))
    assert "b" not in group.replies
    reply = group.wait(1, beating=("a",)).reply("b")
    assert (reply.generation, reply.leader) == (2, reply.member_id)
    assert group.beat("a") is ErrorCode.unknown_member_id


def test_a_static_member_that_did_not_come_keeps_its_place_until_its_session_ends():
    """But it does not lead."""
    group = Group().static("s", session_ms=1_000_000).join("b").wait(REBALANCE_MS)
    assert group.reply("b").leader == group.ids["b"]
    assert group.named_members() == {"s", "b"}
    group.wait(1_000_000 - REBALANCE_MS, beating=("b",))
    assert group.named_members() <= {"b"}


def test_the_longest_rebalance_timeout_counts():
    group = Group().stable("a", rebalance_ms=70_000).join("b", rebalance_ms=20_000)
    group.wait(69_999, beating=("a",))
    assert "b" not in group.replies
    assert group.wait(1).error("b") is ErrorCode.none


def test_a_member_that_times_out_ends_the_wait_for_it():
    group = Group().stable("a").join("b").wait(SESSION_MS)
    assert group.reply("b").generation == 2


def test_waiting_members_do_not_time_out_and_start_afresh_when_answered():
    group = Group().stable("a", "b").join("a").wait(REBALANCE_MS - 1, beating=("b",))
    assert "a" not in group.replies
    assert group.wait(1).reply("a").generation == 3
    group.wait(SESSION_MS - 1)
    assert group.named_members() == {"a"}
    assert group.wait(1).state is EMPTY


def test_a_join_replaces_the_one_that_its_member_waits_in():
    group = Group().stable("a", "b").join("a", token="first").join("a", token="second")
    assert group.error("first") is ErrorCode.rebalance_in_progress
    group.join("b")
    assert group.error("second") is ErrorCode.none


def test_a_new_member_that_waits_too_long_is_to_start_over():
    late = {"session_ms": 1_000_000, "rebalance_ms": 2 * NEW_MEMBER_JOIN_TIMEOUT_MS}
    group = Group().stable("a", **late).join("b", **late).wait(NEW_MEMBER_JOIN_TIMEOUT_MS)
    reply = group.reply("b")
    assert (reply.error, reply.member_id) == (ErrorCode.unknown_member_id, "")
    assert group.named_members() == {"a"}


def test_a_follower_with_the_same_metadata_is_told_the_stable_generation():
    group = Group().stable("a", "b").join("b")
    reply = group.reply("b")
    assert (reply.error, reply.generation, reply.members) == (ErrorCode.none, 2, ())
    assert group.state is STABLE


def test_other_metadata_starts_a_rebalance():
    group = Group().stable("a", "b").join("b", protocols=(("range", b"new"),))
    assert group.state is PREPARING
    group.join("a")
    assert (group.ids["b"], None, b"new") in group.reply("a").members


def test_the_leader_starts_a_rebalance_by_joining_again():
    group = Group().stable("a", "b").join("a")
    assert group.state is PREPARING
    assert group.beat("b") is ErrorCode.rebalance_in_progress


def test_a_repeated_join_before_the_assignment_hears_the_same_again():
    group = Group().joined("a", "b").join("a").join("b")
    assert (group.reply("a").generation, group.generation) == (2, 2)
    assert group.reply("b").members == ()
    assert group.state is COMPLETING


def test_a_repeated_join_of_the_leader_lists_the_members_again():
    group = Group().joined("a", "b").join("a")
    assert [member_id for member_id, _, _ in group.reply("a").members] == [group.ids["a"], group.ids["b"]]


def test_other_metadata_before_the_assignment_cancels_the_syncs():
    group = Group().joined("a", "b").sync("b", token="sync").join("b", protocols=(("range", b"new"),))
    assert group.error("sync") is ErrorCode.rebalance_in_progress
    assert group.state is PREPARING


def test_a_full_group_takes_no_new_member():
    group = Group(max_size=2).stable("a", "b").join("c")
    reply = group.reply("c")
    assert (reply.error, reply.member_id) == (ErrorCode.group_max_size_reached, "")
    assert group.join("b").error("b") is ErrorCode.none


def test_in_a_join_phase_the_places_go_to_those_who_come_first():
    group = Group(max_size=2).stable("a", "b").join("a").join("c").join("b")
    assert group.error("b") is ErrorCode.group_max_size_reached
    assert group.error("a") is group.error("c") is ErrorCode.none
    assert group.named_members() == {"a", "c"}


def test_a_static_member_comes_back_to_a_full_group():
    group = Group(max_size=1).static("s").join("s", member_id="", instance="s")
    assert group.error("s") is ErrorCode.none


# The first join phase of an empty group ---------------------------------------------------------------------


def test_the_initial_delay_gathers_members():
    group = Group(initial_rebalance_delay_ms=3_000).join("a").wait(1_000).join("b")
    assert group.replies == {}
    group.wait(2_000)
    assert group.replies == {}, "a newcomer extends the delay"
    group.wait(3_000)
    assert group.reply("a").generation == group.reply("b").generation == 1


def test_the_initial_delay_is_not_extended_without_a_newcomer():
    group = Group(initial_rebalance_delay_ms=3_000).join("a").wait(2_999)
    assert group.replies == {}
    assert group.wait(1).error("a") is ErrorCode.none


def test_the_initial_delay_is_extended_up_to_the_rebalance_timeout():
    group = Group(initial_rebalance_delay_ms=3_000).join("m0", rebalance_ms=10_000)
    for number in range(1, 10):
        group.wait(1_000).join(f"m{number}", rebalance_ms=10_000)
    assert group.replies == {}
    assert len(group.wait(1_000).replies) == 10


def test_the_initial_delay_is_only_for_an_empty_group():
    group = Group(initial_rebalance_delay_ms=3_000).join("a").wait(3_000)
    group.join("b")
    group.replies.clear()
    group.join("a")
    assert group.error("a") is group.error("b") is ErrorCode.none


def test_a_group_that_everybody_leaves_in_the_initial_delay_is_empty_again():
    group = Group(initial_rebalance_delay_ms=3_000).join("a")
    assert group.leave(*((member_id, None) for member_id in list(group.members))) == [ErrorCode.none]
    assert group.error("a") is ErrorCode.unknown_member_id
    assert group.wait(3_000).state is EMPTY
    assert group.generation == 1


# Syncing ----------------------------------------------------------------------------------------------------


def test_followers_wait_for_the_leaders_assignment():
    group = Group().joined("a", "b").sync("b")
    assert group.replies == {}
    group.sync("a", {"a": b"1", "b": b"2"})
    assert (group.reply("a").assignment, group.reply("b").assignment) == (b"1", b"2")


def test_members_that_the_leader_forgot_get_an_empty_assignment():
    group = Group().joined("a", "b").sync("b").sync("a", {"a": b"1"})
    assert group.reply("b") == SyncReply(ErrorCode.none, "consumer", "range", b"")


def test_a_stable_group_answers_a_sync_at_once_and_ignores_its_assignments():
    group = Group().stable("a", "b").sync("a", {"a": b"other"}).sync("b")
    assert (group.reply("a").assignment, group.reply("b").assignment) == (b"a", b"b")


def test_a_sync_and_a_repeated_join_count_as_heartbeats():
    group = Group().stable("a").wait(SESSION_MS - 1).sync("a").wait(SESSION_MS - 1)
    assert group.state is STABLE
    group = Group().joined("a").wait(SESSION_MS - 1).join("a").wait(SESSION_MS - 1)
    assert group.state is COMPLETING


def test_a_sync_replaces_the_one_that_its_member_waits_in():
    group = Group().joined("a", "b").sync("b", token="first").sync("b", token="second")
    assert group.error("first") is ErrorCode.rebalance_in_progress
    group.sync("a")
    assert group.error("second") is ErrorCode.none


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"generation": 1}, ErrorCode.illegal_generation),
        ({"generation": 3}, ErrorCode.illegal_generation),
        ({"instance": "i"}, ErrorCode.unknown_member_id),
        ({"protocol_type": "connect"}, ErrorCode.inconsistent_group_protocol),
        ({"protocol_name": "sticky"}, ErrorCode.inconsistent_group_protocol),
        ({"protocol_type": "consumer", "protocol_name": "range"}, ErrorCode.none),
    ],
)
def test_a_sync_is_checked(options, error):
    assert Group().stable("a", "b").sync("b", **options).error("b") is error


def test_a_sync_of_a_stranger_is_refused():
    group = Group()
    assert group.sync("stranger").error("stranger") is ErrorCode.unknown_member_id
    group.stable("a")
    assert group.sync("stranger").error("stranger") is ErrorCode.unknown_member_id


def test_a_sync_in_a_join_phase_is_told_to_join():
    assert Group().stable("a").join("b").sync("a").error("a") is ErrorCode.rebalance_in_progress


def test_a_leader_that_does_not_sync_is_removed():
    group = Group().joined("a", "b").sync("b").wait(REBALANCE_MS, beating=("a", "b"))
    assert group.error("b") is ErrorCode.rebalance_in_progress
    assert group.named_members() == {"b"}
    assert group.leader == group.ids["b"]
    assert group.join("b").reply("b").generation == 3


def test_a_follower_that_does_not_sync_is_removed_from_a_stable_group():
    group = Group().joined("a", "b").sync("a").wait(REBALANCE_MS - 1, beating=("a", "b"))
    assert group.state is STABLE
    group.wait(1, beating=("a", "b"))
    assert group.named_members() == {"a"}
    assert group.state is PREPARING


def test_no_sync_clock_runs_once_all_have_synced():
    group = Group().stable("a", "b").wait(3 * REBALANCE_MS, beating=("a", "b"))
    assert group.state is STABLE


def test_members_that_wait_for_the_assignment_do_not_time_out():
    group = Group().joined("a", "b").sync("b").wait(REBALANCE_MS - 1, beating=("a",))
    assert group.named_members() == {"a", "b"}
    group.sync("a").wait(SESSION_MS - 1)
    assert group.named_members() == {"a", "b"}
    group.wait(1)
    assert group.state is EMPTY


# Heartbeats and sessions ------------------------------------------------------------------------------------


def test_heartbeats_keep_a_member():
    group = Group().stable("a").wait(10 * SESSION_MS, beating=("a",))
    assert group.state is STABLE
    assert group.wait(SESSION_MS - 1).state is STABLE
    assert group.wait(1).state is EMPTY


def test_a_heartbeat_is_fine_between_join_and_assignment():
    assert Group().joined("a").beat("a") is ErrorCode.none


@pytest.mark.parametrize("question", ["beat", "commit"])
@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("a", {}, ErrorCode.none),
        ("stranger", {}, ErrorCode.unknown_member_id),
        ("a", {"generation": 7}, ErrorCode.illegal_generation),
        ("a", {"generation": -1}, ErrorCode.illegal_generation),
        ("a", {"instance": "i"}, ErrorCode.unknown_member_id),
    ],
)
def test_members_are_checked(question, name, options, error):
    assert getattr(Group().stable("a"), question)(name, **options) is error


def test_when_one_member_times_out_the_others_rebalance():
    group = Group().stable("a", "b").wait(SESSION_MS, beating=("a",))
    assert group.state is PREPARING
    assert group.join("a").reply("a").generation == 3


def test_when_all_members_time_out_the_group_is_empty_and_its_generation_grows():
    group = Group().stable("a", "b").wait(SESSION_MS)
    assert (group.state, group.generation, group.leader, group.protocol_name) == (EMPTY, 3, None, None)
    assert group.protocol_type == "consumer"
    assert group.next_deadline_ms() is None
    group.ids.clear()
    assert group.join("c").reply("c").generation == 4


# Commits ----------------------------------------------------------------------------------------------------


def test_a_consumer_that_assigns_itself_may_commit_to_an_empty_group():
    assert Group().commit("", generation=-1) is ErrorCode.none


def test_a_consumer_that_assigns_itself_may_not_commit_beside_members():
    assert Group().stable("a").commit("", generation=-1) is ErrorCode.unknown_member_id


def test_a_member_that_was_removed_may_not_commit():
    group = Group().stable("a").wait(SESSION_MS)
    assert group.commit("a", generation=1) is ErrorCode.unknown_member_id


def test_a_commit_counts_as_a_heartbeat():
    group = Group().stable("a").wait(SESSION_MS - 1)
    assert group.commit("a") is ErrorCode.none
    assert group.wait(SESSION_MS - 1).state is STABLE


def test_members_may_commit_until_they_join_again_and_not_before_they_have_synced():
    group = Group().stable("a").join("b")
    assert group.commit("a") is ErrorCode.none
    group.join("a")
    assert group.commit("a") is ErrorCode.rebalance_in_progress


# Leaving ----------------------------------------------------------------------------------------------------


def test_the_group_rebalances_when_a_member_leaves():
    group = Group().stable("a", "b")
    assert group.leave(("a", None)) == [ErrorCode.none]
    assert (group.state, group.leader) == (PREPARING, group.ids["b"])
    assert group.beat("b") is ErrorCode.rebalance_in_progress
    assert group.beat("a") is ErrorCode.unknown_member_id


def test_the_longest_member_leads_when_the_leader_leaves():
    group = Group(initial_rebalance_delay_ms=10).join("a").join("m").join("b").join("z").wait(20)
    group.leave(("a", None))
    assert group.leader == group.ids["m"]


def test_the_group_is_empty_when_all_leave():
    group = Group().stable("a", "b")
    assert group.leave(("a", None), ("b", None)) == [ErrorCode.none] * 2
    assert (group.state, group.generation) == (EMPTY, 3)


def test_leaving_answers_what_the_member_waits_for():
    group = Group().joined("a", "b").sync("b")
    group.leave(("b", None))
    assert group.error("b") is ErrorCode.unknown_member_id
    group = Group().stable("a", "b").join("a")
    group.leave(("a", None))
    assert group.error("a") is ErrorCode.unknown_member_id


def test_the_last_missing_member_ends_a_join_phase_by_leaving():
    group = Group().stable("a", "b").join("a")
    group.leave(("b", None))
    assert group.reply("a").generation == 3


def test_each_leaver_has_its_own_answer():
    group = Group().static("s", "t")
    group.join("x", known=True)
    pending = group.reply("x").member_id
    assert group.leave(
        ("stranger", None), ("", "s"), ("", "nobody"), ("", None), (pending, None), ("s", "t"), ("t", "u")
    ) == [
        ErrorCode.unknown_member_id,
        ErrorCode.none,
        ErrorCode.unknown_member_id,
        ErrorCode.unknown_member_id,
        ErrorCode.none,
        ErrorCode.fenced_instance_id,
        ErrorCode.unknown_member_id,
    ]
    assert group.named_members() == {"t"}


def test_an_unknown_leaver_disturbs_nobody():
    group = Group().stable("a")
    assert group.leave(("stranger", None)) == [ErrorCode.unknown_member_id]
    assert group.state is STABLE


# Static members (KIP-345, KIP-814) --------------------------------------------------------------------------


def test_a_static_follower_comes_back_without_a_rebalance():
    group = Group().static("a", "s")
    old_id = group.ids["s"]
    reply = group.join("s", member_id="", instance="s").reply("s")
    assert (reply.error, reply.generation, reply.members) == (ErrorCode.none, 2, ())
    assert reply.member_id != old_id
    assert not reply.skip_assignment
    assert group.state is STABLE
    assert group.sync("s", instance="s").reply("s").assignment == b"s"


def test_the_old_id_of_a_static_member_is_fenced():
    group = Group().static("s")
    old_id = group.ids["s"]
    group.join("s", member_id="", instance="s")
    assert group.beat(old_id, instance="s") is ErrorCode.fenced_instance_id
    assert group.commit(old_id, instance="s") is ErrorCode.fenced_instance_id
    assert group.sync(old_id, instance="s").error(old_id) is ErrorCode.fenced_instance_id
    assert group.join("old", member_id=old_id, instance="s").error("old") is ErrorCode.fenced_instance_id
    assert group.leave((old_id, "s")) == [ErrorCode.fenced_instance_id]
    assert group.beat(old_id) is ErrorCode.unknown_member_id
    assert group.beat("s", instance="s") is ErrorCode.none


def test_a_static_leader_comes_back_as_leader_and_skips_the_assignment():
    group = Group().static("a", "b")
    reply = group.join("a", member_id="", instance="a").reply("a")
    assert reply.skip_assignment
    assert reply.leader == reply.member_id
    assert [instance for _, instance, _ in reply.members] == ["a", "b"]
    assert group.state is STABLE


def test_a_static_leader_that_kept_its_id_rebalances_like_any_leader():
    group = Group().static("a", "b").join("a", instance="a")
    assert group.state is PREPARING


def test_a_static_member_with_other_topics_rebalances():
    group = Group().static("a", "s", protocols=(("range", subscription("t")),))
    group.join("s", member_id="", instance="s", protocols=(("range", subscription("t", "u")),))
    assert group.state is PREPARING
    group.join("a", instance="a", protocols=(("range", subscription("t")),))
    assert group.error("a") is group.error("s") is ErrorCode.none
    assert group.subscribed_topics() == {"t", "u"}


def test_a_static_member_with_the_same_topics_does_not_rebalance_whatever_else_it_says():
    group = Group().static("s", protocols=(("range", subscription("t", rest=b"\0\0\0\1x")),))
    group.join("s", member_id="", instance="s", protocols=(("range", subscription("t")),))
    assert group.state is STABLE
    assert group.members[group.ids["s"]].metadata == subscription("t")


def test_a_static_member_of_another_protocol_type_must_say_exactly_the_same():
    group = Group().static("s", protocol_type="connect")
    group.join("s", member_id="", instance="s", protocol_type="connect", protocols=(("range", b"x"),))
    assert group.generation == 2


def test_a_static_member_that_changes_the_chosen_protocol_rebalances():
    both = (("range", b"r"), ("sticky", b"s"))
    group = Group().static("a", "s", protocols=both)
    group.join("s", member_id="", instance="s", protocols=both[1:])
    assert group.state is PREPARING
    group.join("a", instance="a", protocols=both)
    assert group.reply("a").protocol_name == "sticky"


def test_a_static_member_that_comes_back_before_the_assignment_rebalances():
    group = Group().static("a", "s").join("a", instance="a").join("s", instance="s")
    group.replies.clear()
    group.sync("s", instance="s", token="sync").join("s", member_id="", instance="s")
    assert group.error("sync") is ErrorCode.fenced_instance_id
    assert group.state is PREPARING
    assert group.join("a", instance="a").reply("a").generation == 4


def test_a_static_member_takes_over_the_join_that_its_old_id_waits_in():
    group = Group().static("a", "s").join("a", instance="a", token="old")
    old_id = group.ids["a"]
    group.join("a", member_id="", instance="a")
    fenced = group.reply("old")
    assert (fenced.error, fenced.member_id) == (ErrorCode.fenced_instance_id, old_id)
    group.join("s", instance="s")
    assert group.reply("a").generation == 3


def test_a_static_member_is_bound_to_the_session_of_its_new_id():
    group = Group().static("s").wait(SESSION_MS - 1).join("s", member_id="", instance="s")
    assert group.wait(SESSION_MS - 1).state is STABLE
    assert group.wait(1).state is EMPTY


def test_a_static_member_that_was_removed_is_a_new_member():
    group = Group().static("s")
    assert group.leave(("", "s")) == [ErrorCode.none]
    assert group.join("s", instance="s").error("s") is ErrorCode.unknown_member_id
    assert group.join("s", member_id="", instance="s").reply("s").generation == 3


def test_a_static_member_that_comes_back_unsynced_has_to_sync_in_time():
    group = Group().static("a", "s").join("a", instance="a").join("s", instance="s")
    group.replies.clear()
    group.sync("a", instance="a").join("s", member_id="", instance="s")
    group.wait(REBALANCE_MS, beating=("a", "s"))
    assert group.named_members() == {"a"}


# Requests whose connection is gone --------------------------------------------------------------------------


def test_a_dropped_join_is_not_answered_and_its_member_times_out():
    group = Group().stable("a", "b").join("a")
    group.drop("a")
    group.join("b")
    assert group.replies.keys() == {"b"}
    assert group.named_members() == {"a", "b"}
    group.sync("b", token="sync").wait(SESSION_MS, beating=("b",))
    assert group.named_members() == {"b"}


def test_a_dropped_sync_is_not_answered():
    group = Group().joined("a", "b").sync("b")
    group.drop("b")
    group.sync("a")
    assert group.replies.keys() == {"a"}


def test_a_member_whose_request_was_dropped_may_ask_again():
    group = Group().stable("a", "b").join("a")
    group.drop("a")
    group.join("a", token="again").join("b")
    assert group.replies.keys() == {"again", "b"}


def test_dropping_an_unknown_token_does_nothing():
    group = Group().stable("a")
    group.drop("nothing")
    assert group.state is STABLE


# Deletion ---------------------------------------------------------------------------------------------------


def test_only_an_empty_group_can_be_deleted():
    group = Group().stable("a")
    assert group.delete() is ErrorCode.non_empty_group
    group.leave(("a", None))
    assert group.delete() is ErrorCode.none
    assert group.delete() is ErrorCode.group_id_not_found
    assert group.state is DEAD


def test_a_dead_group_sends_everybody_to_look_for_the_coordinator():
    group = Group()
    group.delete()
    unavailable = ErrorCode.coordinator_not_available
    assert group.join("a").error("a") is unavailable
    assert group.sync("a").error("a") is unavailable
    assert group.beat("a") is group.commit("a", generation=-1) is unavailable
    assert group.leave(("a", None)) == [unavailable]
    assert group.next_deadline_ms() is None


# Topics -----------------------------------------------------------------------------------------------------


def test_the_topics_of_all_members_are_known():
    group = Group(initial_rebalance_delay_ms=10)
    group.join("a", protocols=(("range", subscription("t", "u")),))
    group.join("b", protocols=(("range", subscription("u", "v", version=3)),)).wait(20)
    assert group.subscribed_topics() == {"t", "u", "v"}


def test_a_newcomers_topics_count_from_its_first_generation():
    group = Group().stable("a", protocols=(("range", subscription("t")),))
    group.join("b", protocols=(("range", subscription("u")),))
    assert group.subscribed_topics() == {"t"}
    group.join("a", protocols=(("range", subscription("t")),))
    assert group.subscribed_topics() == {"t", "u"}


def test_no_topics_are_known_without_consumers():
    assert Group().subscribed_topics() is None
    assert Group().stable("a", protocol_type="connect").subscribed_topics() is None
    assert Group(initial_rebalance_delay_ms=10).join("a").subscribed_topics() is None


def test_a_consumer_group_that_everybody_left_has_no_topics():
    assert Group().stable("a").wait(SESSION_MS).subscribed_topics() == frozenset()


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"\0",
        b"\0\0\0\0",
        b"\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\0\x80\0\0\0" + b"\0" * 8,
        b"\0\0\0\0\0\1\0\1\xff\xff\xff\xff\xff",
        subscription("topic")[:-6],
    ],
)
def test_garbage_in_the_metadata_hides_the_topics(metadata):
    assert Group().stable("a", protocols=(("range", metadata),)).subscribed_topics() is None


@given(st.binary(max_size=40))
def test_any_metadata_is_tolerated(metadata):
    topics = Group().stable("a", protocols=(("range", metadata),)).subscribed_topics()
    assert topics is None or all(isinstance(topic, str) for topic in topics)


# Whatever happens -------------------------------------------------------------------------------------------

NAMES = st.sampled_from("abcde")
INSTANCES = st.sampled_from([None, None, "i", "j"])
OFFERS = st.sampled_from([RANGE, (("range", b"x"),), (("sticky", b"s"), ("range", b"r")), (("other", b""),)])
DELAYS_MS = st.sampled_from([0, 3_000])


class AnyGroup(RuleBasedStateMachine):
    """Clients that say anything in any order, and the promises that hold all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.group = ClassicGroup("g", max_size=4, new_member_id=self.new_member_id)
        self.now_ms = 0
        self.numbers = itertools.count(1)
        self.ids: dict[str, str] = {}  # what each client believes to be its id
        self.client_of: dict[int, str] = {}
        self.waiting: set[int] = set()
        self.dropping: set[str] = set()  # clients of which some request was dropped
        self.generation = 0
        self.last_contact_ms: dict[str, int] = {}

    @property
    def part(self) -> bytes:
        """What every member of the current generation is assigned."""
        return b"part of generation %d" % self.group.generation

    def new_member_id(self, name: str) -> str:
        return f"{name}-{next(self.numbers)}"

    def token(self, client: str) -> int:
        token = next(self.numbers)
        self.client_of[token] = client
        self.waiting.add(token)
        self.last_contact_ms[client] = self.now_ms
        return token

    def deliver(self, deliveries) -> None:
        for token, reply in deliveries:
            assert token in self.waiting, f"{token} is not waiting"
            self.waiting.remove(token)
            self.last_contact_ms[self.client_of[token]] = self.now_ms
            if isinstance(reply, JoinReply):
                self.ids[self.client_of[token]] = reply.member_id
            if reply.error is ErrorCode.none and isinstance(reply, SyncReply):
                assert self.group.state is STABLE

    @initialize(delay_ms=DELAYS_MS)
    def choose_initial_delay(self, delay_ms) -> None:
        self.group = ClassicGroup(
            "g", max_size=4, initial_rebalance_delay_ms=delay_ms, new_member_id=self.new_member_id
        )

    @rule(client=NAMES, instance=INSTANCES, protocols=OFFERS, known=st.booleans(), fresh=st.booleans())
    def join(self, client, instance, protocols, known, fresh) -> None:
        member_id = "" if fresh else self.ids.get(client, "")
        request = JoinRequest(
            member_id, instance, client, "/h", "consumer", protocols, SESSION_MS, REBALANCE_MS, known
        )
        self.deliver(self.group.join(request, self.token(client), self.now_ms))

    @rule(client=NAMES, stale=st.integers(0, 5))
    def sync(self, client, stale) -> None:
        generation = self.group.generation - (stale == 0)
        parts = tuple((member_id, self.part) for member_id in self.group.members)
        member = self.group.members.get(self.ids.get(client, ""))
        instance = member.instance_id if member else None
        request = SyncRequest(self.ids.get(client, ""), instance, generation, None, None, parts)
        self.deliver(self.group.sync(request, self.token(client), self.now_ms))

    @rule(client=NAMES)
    def heartbeat(self, client) -> None:
        self.last_contact_ms[client] = self.now_ms
        self.group.heartbeat(self.ids.get(client, ""), None, self.group.generation, self.now_ms)

    @rule(client=NAMES)
    def commit(self, client) -> None:
        self.last_contact_ms[client] = self.now_ms
        self.group.check_commit(self.ids.get(client, ""), None, self.group.generation, self.now_ms)

    @rule(client=NAMES, instance=INSTANCES)
    def leave(self, client, instance) -> None:
        errors, deliveries = self.group.leave([(self.ids.get(client, ""), instance)], self.now_ms)
        assert len(errors) == 1
        self.deliver(deliveries)

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def drop(self, data) -> None:
        token = data.draw(st.sampled_from(sorted(self.waiting)))
        self.group.drop(token)
        self.waiting.remove(token)
        self.dropping.add(self.client_of[token])

    @rule(ms=st.sampled_from([1, 100, 3_000, 9_999, 20_000, 60_000]))
    def pass_time(self, ms) -> None:
        self.now_ms += ms
        self.deliver(self.group.advance(self.now_ms))

    @rule()
    @precondition(lambda self: self.group.next_deadline_ms() is not None)
    def pass_time_to_the_next_deadline(self) -> None:
        self.now_ms = max(self.now_ms, self.group.next_deadline_ms())
        self.deliver(self.group.advance(self.now_ms))

    @invariant()
    def generations_only_grow(self) -> None:
        assert self.group.generation >= self.generation
        self.generation = self.group.generation

    @invariant()
    def a_stable_group_has_assigned_everybody(self) -> None:
        if self.group.state is STABLE:
            assert all(member.assignment == self.part for member in self.group.members.values())
            assert not self.waiting, "nobody waits in a stable group"

    @invariant()
    def only_a_group_with_members_has_a_leader(self) -> None:
        if self.group.members:
            assert self.group.leader in self.group.members
        else:
            assert self.group.leader is None

    @invariant()
    def members_fit_the_state(self) -> None:
        if self.group.state is EMPTY:
            assert not self.group.members
        if self.group.state in (COMPLETING, STABLE):
            assert self.group.members
            assert len(self.group.members) <= 4
            assert self.group.protocol_name is not None
            for member in self.group.members.values():
                assert self.group.protocol_name in member.names()

    @invariant()
    def an_instance_has_one_member(self) -> None:
        instances = [member.instance_id for member in self.group.members.values() if member.instance_id]
        assert len(instances) == len(set(instances))

    @invariant()
    def nothing_is_overdue(self) -> None:
        due_ms = self.group.next_deadline_ms()
        assert due_ms is None or due_ms > self.now_ms

    @invariant()
    def no_member_survives_its_session(self) -> None:
        excused = self.dropping | {self.client_of[token] for token in self.waiting}
        for member in self.group.members.values():
            if member.client_id not in excused:
                assert self.now_ms < self.last_contact_ms[member.client_id] + SESSION_MS

    @invariant()
    def whoever_waits_is_watched_by_a_clock(self) -> None:
        if self.waiting or self.group.members:
            assert self.group.next_deadline_ms() is not None

    def teardown(self) -> None:
        """In silence every request is answered and every member is gone, in a bounded time."""
        deadline_ms = self.now_ms + 2 * REBALANCE_MS + NEW_MEMBER_JOIN_TIMEOUT_MS
        while (due_ms := self.group.next_deadline_ms()) is not None:
            assert due_ms <= deadline_ms
            self.now_ms = max(self.now_ms, due_ms)
            self.deliver(self.group.advance(self.now_ms))
        assert self.waiting == set()
        assert self.group.members == {}
        assert self.group.state is EMPTY


AnyGroup.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyGroup = AnyGroup.TestCase


@pytest.mark.parametrize("seed", range(10))
def test_a_silent_member_is_gone_at_its_session_timeout_whatever_the_others_do(seed):
    """The others come, beat and go; the silent one, synced and not called to join, has its session only."""
    rng = random.Random(seed)
    group = Group().stable("silent", "b", "c")
    silent_id = group.ids["silent"]
    end_ms = group.now_ms + SESSION_MS
    while group.now_ms < end_ms - 1_000:
        group.wait(rng.randrange(1, 1_000))
        name = rng.choice("bcd")
        group.beat(name)
        group.replies.clear()
        if rng.random() < 0.3:
            group.join(name, token=f"{name}{group.now_ms}")
        assert silent_id in group.members
    group.wait(end_ms - group.now_ms)
    assert silent_id not in group.members
