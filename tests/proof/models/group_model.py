"""Consumers of one group in any order of what they may do, against two numbers for each partition.

The consumers are real, in a real data directory that lies in memory; so is the coordinator, but for its thread: it
takes a step when a rule says so, and time goes by only then. Members are taken for dead while they are not, and
go on with what they have in their hands, as a process does that was stopped for a while.

Of each partition the model knows what the group has committed, and the first offset that was never handed out:

    committed ≤ unread       nothing is skipped
    committed never falls    but for a reset; a commit counts only with the ownership that its records were read in
    in the end both are      everything was handed out, and every partition has one owner, who is to own it
    the log's end
"""

from __future__ import annotations

import shutil
from collections.abc import Set
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logbroker import group_coordinator
from logbroker.consumer import Consumer
from logbroker.consumer_commits import DELIVERIES, Delivery
from logbroker.group_admin import delete_group, reset_group
from logbroker.group_coordinator import Coordinator
from logbroker.group_store import change_group, group_state
from logbroker.groups import Expire, Slot, Tick, TopicPartition
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError, InvalidRequestError, TopicNotFoundError
from logbroker_storage.log_config import LogConfig
from logbroker_storage.record_batch import encode_values
from logbroker_storage.testing import ManualClock
from logbroker_storage.testing.workbench import crash

from ..proof import delete_folder, new_folder

GROUP = "g"
SESSION_MS = 10_000
MEMBERS = 5
PARTITIONS = 4
DELIVERY = st.sampled_from(("manual", *DELIVERIES))  # what is in hands for long is what can go wrong
ROUNDS = 12  # of everybody, after which nothing moves any more
NEVER = -1  # since no generation


class SteppedCoordinator(Coordinator):
    """The coordinator of a process without its thread: it does what is due when it is told to."""

    def _stop(self) -> None:
        self._waiter.close()
        self._directory.close()


@dataclass(eq=False)
class Member:
    """A consumer, and what it has in its hands: of each partition the ownership, and the offset to commit."""

    consumer: Consumer
    delivery: Delivery
    pending: dict[TopicPartition, tuple[int, int]] = field(default_factory=dict)
    may_be_fenced: bool = False  # it lost something of which it was told once, or is to be told

    @property
    def member_id(self) -> str:
        joined = self.consumer._assigned.membership
        assert joined is not None
        return joined.member_id


class GroupMachine(RuleBasedStateMachine):
    """Topics "t" and "u", of which the second comes and goes."""

    @initialize(partitions=st.integers(2, 3), deliveries=st.lists(DELIVERY, min_size=2, max_size=3))
    def begin(self, partitions: int, deliveries: list[Delivery]) -> None:
        self.folder = new_folder(in_memory=True)
        self.clock = ManualClock()
        self.members: list[Member] = []
        self.dead: list[Consumer] = []
        self.ends: dict[TopicPartition, int] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.unread: dict[TopicPartition, int] = {}
        self.generation = 0
        self._open()
        self.create("t", partitions)
        for delivery in deliveries:
            self.join(delivery=delivery, topics="*")
        for number in range(partitions):
            self.append_to(("t", number), 5)

    def _open(self) -> None:
        self.directory = DataDirectory.open(str(self.folder / "data"), clock=self.clock)
        self.directory.maintenance.close()

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self._close_consumers()
            crash(self.directory)
            delete_folder(self.folder)

    def _close_consumers(self) -> None:
        for member in self.members:
            self._bury(member)
        for consumer in self.dead:
            consumer._commits.delivery = "manual"  # the dead do not commit
            consumer.close()
        self.dead.clear()
        self.members.clear()

    # What is so now -------------------------------------------------------------------------------

    def slot(self, place: TopicPartition) -> Slot | None:
        return group_state(self.directory, GROUP).slot(*place)

    def still_owns(self, member: Member, place: TopicPartition, since: int) -> bool:
        slot = self.slot(place)
        return (
            slot is not None and place in self.ends and (slot.owner, slot.since) == (member.member_id, since)
        )

    def take_as_committed(self, member: Member) -> None:
        """What the member still owns of what it has in hands is committed; the rest is not its own any more."""
        for place, (since, offset) in member.pending.items():
            if self.still_owns(member, place, since):
                self.committed[place] = offset
        member.pending.clear()

    def coordinator(self) -> Coordinator:
        """That of this process, made anew when its last member left."""
        known = group_coordinator._coordinators.get(id(self.directory))
        if known is None:
            known = group_coordinator._coordinators[id(self.directory)] = SteppedCoordinator(self.directory)
        return known

    # Topics ---------------------------------------------------------------------------------------

    def create(self, topic: str, partitions: int) -> None:
        self.directory.create_topic(topic, partitions, LogConfig.parse({}))
        for number in range(partitions):
            self.ends[topic, number] = self.unread[topic, number] = 0

    @rule(count=st.integers(1, 5))
    def append(self, count: int) -> None:
        for place in self.ends:
            self.append_to(place, count)

    def append_to(self, place: TopicPartition, count: int) -> None:
        log = self.directory.log(*place)
        values = [b"%d" % (self.ends[place] + index) for index in range(count)]
        result = log.append(encode_values(values, [(0, self.clock.now_ms())]))
        log.sync(result.last_offset + 1)
        self.ends[place] += count

    @rule(topic=st.sampled_from(["t", "u"]))
    def add_partition(self, topic: str) -> None:
        count = sum(place[0] == topic for place in self.ends)
        if not count:
            self.create(topic, 2)
        elif count < PARTITIONS:
            self.directory.add_partitions(topic, count + 1)
            self.ends[topic, count] = self.unread[topic, count] = 0

    @precondition(lambda self: ("u", 0) in self.ends)
    @rule(comes_back=st.booleans())
    def delete_topic(self, comes_back: bool) -> None:
        self.directory.delete_topic("u")
        for places in (self.ends, self.unread, self.committed):
            for place in [place for place in places if place[0] == "u"]:
                del places[place]
        for member in self.members:  # what they have of it in hands is committed nowhere
            kept = {place: held for place, held in member.pending.items() if place[0] != "u"}
            member.may_be_fenced |= len(kept) < len(member.pending)
            member.pending = kept
        if comes_back:
            self.create("u", 1)

    # Members --------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.members) < MEMBERS)
    @rule(delivery=DELIVERY, topics=st.sampled_from(["t", "*", "*"]))
    def join(self, delivery: Delivery, topics: str) -> None:
        self.coordinator()
        consumer = Consumer(
            self.directory,
            topics,
            group=GROUP,
            delivery=delivery,
            session_timeout=SESSION_MS / 1000,
        )
        self.members.append(Member(consumer, delivery))

    @precondition(lambda self: len(self.members) > 1)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.leave_as(data.draw(st.sampled_from(self.members)))

    def leave_as(self, member: Member) -> None:
        if member.delivery == "at-least-once":
            self.take_as_committed(member)
        member.consumer.close()
        self.members.remove(member)

    @precondition(lambda self: len(self.members) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """It never does anything again, and the others see that it is dead."""
        member = data.draw(st.sampled_from(self.members))
        self._bury(member)
        change_group(self.directory, GROUP, [Expire((member.member_id,))])
        self.members.remove(member)

    def _bury(self, member: Member) -> None:
        joined = member.consumer._assigned.membership
        assert joined is not None
        Coordinator.forget(self.directory, joined)
        self.dead.append(member.consumer)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def be_taken_for_dead(self, data: st.DataObject) -> None:
        """It was stopped for too long, and goes on behind that as if nothing had happened."""
        member = data.draw(st.sampled_from(self.members))
        change_group(self.directory, GROUP, [Expire((member.member_id,))])

    def with_something_in_hands(self) -> list[Member]:
        return [member for member in self.members if member.delivery == "manual" and member.pending]

    @precondition(lambda self: self.with_something_in_hands())
    @rule(data=st.data())
    def commit_behind_its_time(self, data: st.DataObject) -> None:
        """It is taken for dead just before it commits."""
        member = data.draw(st.sampled_from(self.with_something_in_hands()))
        change_group(self.directory, GROUP, [Expire((member.member_id,))])
        self.commit_as(member)

    def moving(self, member: Member) -> set[TopicPartition]:
        """What it has in hands of partitions that somebody else is to have."""
        return {
            place
            for place in member.pending
            if (slot := self.slot(place)) is not None and slot.target != member.member_id
        }

    @precondition(lambda self: any(map(self.moving, self.with_something_in_hands())))
    @rule(data=st.data(), goes_first=st.booleans())
    def commit_what_it_lost_and_got_back(self, data: st.DataObject, goes_first: bool) -> None:
        """Another had its partitions for a moment, and it has them again, but not since it read them."""
        member = data.draw(st.sampled_from(list(filter(self.moving, self.with_something_in_hands()))))
        others = [other for other in self.members if other is not member]
        moving = self.moving(member)
        self.clock.advance(ms=SESSION_MS)
        change_group(self.directory, GROUP, [Tick()])
        change_group(self.directory, GROUP, [Expire(tuple(other.member_id for other in others))])
        if goes_first:
            member.consumer.assignment()  # it looks, and sees that it is so
        self.commit_as(member, moving)

    @precondition(lambda self: self.members)
    @rule(ms=st.sampled_from([0, 0, 1000, SESSION_MS]))
    def look_around(self, ms: int) -> None:
        """The coordinator does what is due; a member that was removed joins again, idle ones let go."""
        self.clock.advance(ms=ms)
        self.coordinator()._step()

    @precondition(lambda self: self.members)
    @rule(data=st.data(), count=st.sampled_from([1, 2, 3, 100]))
    def poll(self, data: st.DataObject, count: int) -> None:
        self.poll_as(data.draw(st.sampled_from(self.members)), count)

    @rule(count=st.sampled_from([1, 2, 100]))
    def everybody_polls(self, count: int) -> None:
        for member in self.members:
            self.poll_as(member, count)

    def poll_as(self, member: Member, count: int) -> None:
        if member.delivery == "manual":
            member.may_be_fenced |= any(
                not self.still_owns(member, place, since) for place, (since, _) in member.pending.items()
            )
        elif member.delivery == "at-least-once":
            self.take_as_committed(member)
        records = member.consumer.poll(count, 0)
        member.pending = {
            place: held for place, held in member.pending.items() if self.still_owns(member, place, held[0])
        }
        for record in records:
            place = (record.topic, record.partition)
            slot = self.slot(place)
            assert slot is not None
            assert slot.owner == member.member_id, f"{place} is read by a member that does not own it"
            assert record.value == b"%d" % record.offset
            assert record.offset >= self.committed.get(place, 0), f"{record} was committed, and comes again"
            assert record.offset <= self.unread[place], (
                f"{record} comes, and {self.unread[place]} was skipped"
            )
            self.unread[place] = max(self.unread[place], record.offset + 1)
            if member.delivery != "at-most-once":
                held = member.pending.get(place)
                assert held is None or record.offset == held[1], f"{record} is out of order"
                member.pending[place] = (slot.since, record.offset + 1)
        if member.delivery == "at-most-once":
            for record in records:
                self.committed[record.topic, record.partition] = record.offset + 1

    @precondition(lambda self: any(member.delivery == "manual" for member in self.members))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from([one for one in self.members if one.delivery == "manual"]))
        self.commit_as(member)

    def commit_as(self, member: Member, had_by_others: Set[TopicPartition] = frozenset()) -> None:
        """*had_by_others* belonged to somebody else meanwhile, whatever the group says of it now."""
        owned = {
            place
            for place, (since, _) in member.pending.items()
            if self.still_owns(member, place, since) and place not in had_by_others
        }
        lost = set(member.pending) - owned
        try:
            member.consumer.commit()
        except (FencedError, TopicNotFoundError):
            assert lost or member.may_be_fenced, "nothing was lost, and the commit was refused"
        else:
            assert not lost, f"{sorted(lost)} moved on, and the commit was taken"
            for place in owned:
                self.committed[place] = member.pending[place][1]
                del member.pending[place]
            member.may_be_fenced = False
        member.may_be_fenced |= bool(lost)
        member.pending = {place: held for place, held in member.pending.items() if place in owned}

    # From outside ---------------------------------------------------------------------------------

    @rule(to=st.sampled_from(["earliest", "latest", 1, 3]), all_leave=st.booleans())
    def reset(self, to: str | int, all_leave: bool) -> None:
        deliveries = self.all_leave() if all_leave else []
        self.reset_to(to)
        self.come_back(deliveries)

    def all_leave(self) -> list[Delivery]:
        deliveries = [member.delivery for member in self.members]
        for member in list(self.members):
            self.leave_as(member)
        return deliveries

    def come_back(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self.join(delivery=delivery, topics="*")

    def reset_to(self, to: str | int) -> None:
        places = [place for place in self.ends if place[0] == "t"]
        try:
            targets = reset_group(self.directory, GROUP, to, topics=["t"])
        except InvalidRequestError:
            assert self.has_members(), "nobody is in the group, and it cannot be reset"
            return
        assert not self.has_members(), "the offsets of a group at work were reset"
        assert sorted(targets) == sorted(places)
        for place in places:
            wanted = {"earliest": 0, "latest": self.ends[place]}[to] if isinstance(to, str) else to
            assert targets[place] == min(wanted, self.ends[place])
            self.committed[place] = self.unread[place] = targets[place]

    @precondition(lambda self: GROUP in self.directory.groups.names())
    @rule(all_leave=st.booleans())
    def delete(self, all_leave: bool) -> None:
        deliveries = self.all_leave() if all_leave else []
        try:
            delete_group(self.directory, GROUP)
        except InvalidRequestError:
            assert self.has_members()
        else:
            assert not self.has_members()
            self.committed.clear()
            self.unread = dict.fromkeys(self.unread, 0)
            self.generation = 0
            # Generations are counted anew, and what they had before is not theirs in a generation of the same number.
            for member in self.members:
                member.pending = {place: (NEVER, end) for place, (_, end) in member.pending.items()}
        self.come_back(deliveries)

    def has_members(self) -> bool:
        return bool(group_state(self.directory, GROUP).members)

    @rule(loses_view=st.booleans())
    def restart(self, loses_view: bool) -> None:
        """Everybody dies at once, and others come; what was committed is still so."""
        deliveries = [member.delivery for member in self.members]
        self._close_consumers()
        crash(self.directory)
        if loses_view:
            shutil.rmtree(self.folder / "data" / "view")
        self._open()
        self.generation = 0
        self.come_back(deliveries)

    # In the end -----------------------------------------------------------------------------------

    @precondition(lambda self: self.members)
    @rule()
    def settle(self) -> None:
        """Everybody reads and commits what there is: then nothing is left, and nothing moves any more."""
        for number in range(ROUNDS):
            self.clock.advance(ms=SESSION_MS if number == ROUNDS // 2 else 1)
            self.coordinator()._step()
            for member in self.members:
                self.poll_as(member, 100)
                if member.delivery == "manual":
                    self.commit_as(member)
        names = {member.member_id for member in self.members}
        state = group_state(self.directory, GROUP)
        assert set(state.members) == names
        wanted = {
            place
            for place in self.ends
            if any(one.selection.wants(place[0]) for one in state.members.values())
        }
        assert {place for place, _ in state.slots()} == wanted
        for place, slot in state.slots():
            assert slot.owner == slot.target, f"{place} does not come to rest"
            assert self.unread[place] == self.ends[place], f"{place}: not everything was handed out"
            assert self.committed.get(place, 0) == self.ends[place], f"{place}: not everything is committed"

    # After every step -----------------------------------------------------------------------------

    @invariant()
    def offsets_are_those_of_the_model(self) -> None:
        found = {
            (event.topic, event.partition): event.offset
            for event in self.directory.groups.committed_offsets(GROUP)
        }
        assert found == self.committed
        for place, offset in found.items():
            assert offset <= self.unread[place], f"{place}: {self.unread[place]} was skipped"

    @invariant()
    def owners_are_members(self) -> None:
        state = group_state(self.directory, GROUP)
        assert state.generation >= self.generation
        self.generation = state.generation
        for place, slot in state.slots():
            assert slot.owner in state.members, f"{place} belongs to {slot.owner}, who is gone"
            assert slot.since <= state.generation
