"""The groups whose members are connected over the network: state machines, their clocks, and waiting answers.

Membership lives as long as the server: after a restart members find that nobody knows them, and join again. What
must last, committed offsets and which topics a group reads, is in the directory, where embedded consumers and
the command line see it too.

A group speaks one protocol at a time. When nobody is in it any more it may change to another, and goes on behind
its last generation: classic, KIP-848, or embedded consumers of the same directory.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable
from typing import TypeVar

from kio.schema.errors import ErrorCode

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError

from ..membership import live_members, mark_network_group, record_subscription
from ..topic_names import check_group_name, is_internal
from .classic_group import ClassicGroup, Delivery, GroupState
from .consumer_group import ConsumerGroup, TopicShape
from .error_codes import RefusedError
from .settings import ServerSettings

logger = logging.getLogger("logbroker.server")

Group = ClassicGroup | ConsumerGroup
AnyGroup = TypeVar("AnyGroup", ClassicGroup, ConsumerGroup)
RunInBackground = Callable[..., None]


def is_empty(group: Group) -> bool:
    if isinstance(group, ClassicGroup):
        return group.state in (GroupState.EMPTY, GroupState.DEAD)
    return not group.members


def type_of(group: Group) -> str:
    """As ListGroups names it."""
    return "classic" if isinstance(group, ClassicGroup) else "consumer"


class GroupRegistry:
    """On the event loop."""

    def __init__(
        self, directory: DataDirectory, settings: ServerSettings, run_in_background: RunInBackground
    ) -> None:
        """*run_in_background* calls a function in a thread, and logs what it raises."""
        self._directory = directory
        self._settings = settings
        self._run_in_background = run_in_background
        self._loop = asyncio.get_running_loop()
        self._groups: dict[str, Group] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._marked: set[str] = set()  # groups of which embedded consumers are told that they are in use
        self._reads: dict[str, frozenset[str]] = {}  # topics that the journal was told of

    def now_ms(self) -> int:
        return int(self._directory.clock.monotonic() * 1000)

    # Groups -------------------------------------------------------------------------------------------

    def get(self, group_id: str) -> Group | None:
        return self._groups.get(group_id)

    def all(self) -> dict[str, Group]:
        return self._groups

    def classic(self, group_id: str) -> ClassicGroup:
        """The group, for a join of the classic protocol; it is made if need be.

        Raises:
            RefusedError: it is in use with another protocol, or cannot be named so.
        """
        return self._of_type(group_id, ClassicGroup, self._new_classic, ErrorCode.inconsistent_group_protocol)

    def consumer(self, group_id: str) -> ConsumerGroup:
        """As ``classic``, for a member of KIP-848."""
        return self._of_type(group_id, ConsumerGroup, self._new_consumer, ErrorCode.group_id_not_found)

    def _of_type(
        self, group_id: str, kind: type[AnyGroup], make: Callable[[str, int], AnyGroup], refusal: ErrorCode
    ) -> AnyGroup:
        known = self._groups.get(group_id)
        if isinstance(known, kind):
            if not is_empty(known):
                return known
        elif known is not None and not is_empty(known):
            raise RefusedError(refusal, f"group {group_id!r} has members of the {type_of(known)} protocol")
        self._check_name(group_id)
        if live_members(self._directory, group_id):
            raise RefusedError(refusal, f"group {group_id!r} has embedded consumers as members")
        if not isinstance(known, kind):
            known = self._groups[group_id] = make(group_id, 0 if known is None else _generation(known))
        return known

    def _check_name(self, group_id: str) -> None:
        try:
            check_group_name(group_id)
        except InvalidRequestError as error:
            raise RefusedError(ErrorCode.invalid_group_id, str(error)) from error

    def _new_classic(self, group_id: str, generation: int) -> ClassicGroup:
        group = ClassicGroup(
            group_id,
            initial_rebalance_delay_ms=self._settings.initial_rebalance_delay_ms,
            new_member_id=lambda prefix: f"{prefix}-{uuid.uuid4()}",
        )
        group.generation = generation
        return group

    def _new_consumer(self, group_id: str, generation: int) -> ConsumerGroup:
        return ConsumerGroup(group_id, new_member_id=lambda: str(uuid.uuid4()), generation=generation)

    def forget(self, group_id: str) -> None:
        """*group_id* was deleted."""
        self._groups.pop(group_id, None)
        self._reads.pop(group_id, None)
        timer = self._timers.pop(group_id, None)
        if timer is not None:
            timer.cancel()

    def shapes(self) -> dict[str, TopicShape]:
        """The topics that members may be given."""
        return {
            event.name: TopicShape(uuid.UUID(bytes=event.topic_id), event.partitions)
            for event in self._directory.catalog.live()
            if not is_internal(event.name)
        }

    # After each step ------------------------------------------------------------------------------------

    def deliver(self, deliveries: Iterable[Delivery]) -> None:
        """Give the waiting requests their answers. A token is the future that one waits for."""
        for token, reply in deliveries:
            assert isinstance(token, asyncio.Future)
            if not token.done():
                token.set_result(reply)

    def touched(self, group_id: str) -> None:
        """A group's state machine was asked something: set its clock, and make known what must be."""
        group = self._groups.get(group_id)
        if group is None:
            return
        timer = self._timers.pop(group_id, None)
        if timer is not None:
            timer.cancel()
        deadline_ms = group.next_deadline_ms()
        if deadline_ms is not None:
            wait_s = max(0.0, (deadline_ms - self.now_ms()) / 1000)
            self._timers[group_id] = self._loop.call_later(wait_s, self._advance, group_id)
        self._mark(group_id, in_use=not is_empty(group))
        self._tell_topics(group_id, group)

    def _advance(self, group_id: str) -> None:
        self._timers.pop(group_id, None)
        group = self._groups.get(group_id)
        if isinstance(group, ClassicGroup):
            self.deliver(group.advance(self.now_ms()))
        elif group is not None:
            group.advance(self.shapes(), self.now_ms())
        self.touched(group_id)

    def _mark(self, group_id: str, *, in_use: bool) -> None:
        if in_use == (group_id in self._marked):
            return
        if in_use:
            self._marked.add(group_id)
        else:
            self._marked.discard(group_id)
        self._run_in_background(mark_network_group, self._directory, group_id, in_use)

    def _tell_topics(self, group_id: str, group: Group) -> None:
        """Have the journal name the topics that the group reads: lag and retention go by it."""
        if isinstance(group, ClassicGroup):
            topics = group.subscribed_topics() if group.state is GroupState.STABLE else None
        else:
            topics = group.subscribed_topics(self.shapes()) if group.members else None
        if topics and not topics <= self._reads.get(group_id, frozenset()):
            self._reads[group_id] = topics
            self._run_in_background(record_subscription, self._directory, group_id, topics)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for group_id in list(self._marked):
            mark_network_group(self._directory, group_id, False)


def _generation(group: Group) -> int:
    return group.generation if isinstance(group, ClassicGroup) else group.group_epoch
