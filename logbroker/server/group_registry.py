"""The groups whose members are connected over the network: state machines, their clocks, and waiting answers.

Membership lives as long as the server: after a restart members find that nobody knows them, and join again. What
must last, committed offsets and which topics a group reads, is in the directory, where embedded consumers and
the command line see it too.

Members of both protocols may share a group (``classic_members``): it is upgraded when the first of KIP-848 joins. The
embedded consumers of the directory have groups of their own; when nobody is in one any more it may change between the
two, and goes on behind its last generation.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.data_directory import DataDirectory

from ..group_store import Reservation, record_subscription, release_from_network, reserve_for_network
from ..topic_names import is_internal
from .classic_group import ClassicGroup, GroupState
from .classic_members import ClassicMembers, can_join, upgraded
from .classic_messages import Delivery, JoinRequest
from .consumer_group import ConsumerGroup
from .consumer_messages import TopicShape
from .error_codes import RefusedError, check_group_id
from .settings import ServerSettings

logger = logging.getLogger("logbroker.server")

CLASSIC = "classic"

Group = ClassicGroup | ConsumerGroup
RunInThread = Callable[..., Awaitable[Any]]
RunInBackground = Callable[..., None]
KEPT_PAST = 10_000


def is_empty(group: Group) -> bool:
    if isinstance(group, ClassicGroup):
        return group.state in (GroupState.EMPTY, GroupState.DEAD)
    return group.is_empty


def type_of(group: Group) -> str:
    """As ListGroups names it."""
    return CLASSIC if isinstance(group, ClassicGroup) else "consumer"


class _Turns:
    """A lock that goes with the last who wants it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class GroupRegistry:
    """On the event loop."""

    def __init__(
        self,
        directory: DataDirectory,
        settings: ServerSettings,
        run: RunInThread,
        run_in_background: RunInBackground,
    ) -> None:
        """*run* calls a function in a thread; *run_in_background* does not wait for it, and logs what it raises."""
        self._directory = directory
        self._settings = settings
        self._run = run
        self._run_in_background = run_in_background
        self._loop = asyncio.get_running_loop()
        self._groups: dict[str, Group] = {}
        self._waiting: set[asyncio.Future[Any]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._marking = asyncio.Lock()  # guards _marked, and what it says in the view
        self._marked: set[str] = set()  # groups of which embedded consumers are told that they are in use
        # Type and generation of groups that were empty and are forgotten, oldest first.
        self._past: dict[str, tuple[str, int]] = {}
        self._commits: dict[str, _Turns] = {}
        self._shapes: tuple[int, dict[str, TopicShape]] = (-1, {})  # by the version of the topics
        self._reads: dict[str, frozenset[str]] = {}  # topics that the journal was told of
        self._looked_at: dict[
            str, tuple[int, object]
        ] = {}  # generation and state at the last look for topics

    def now_ms(self) -> int:
        return self._directory.clock.monotonic_ms()

    # Groups -------------------------------------------------------------------------------------------

    def get(self, group_id: str) -> Group | None:
        return self._groups.get(group_id)

    def type_of(self, group_id: str) -> str:
        """The protocol of the group's members, or of the last ones it had; as ListGroups names it."""
        group = self._groups.get(group_id)
        return self._past.get(group_id, (CLASSIC, 0))[0] if group is None else type_of(group)

    def all(self) -> dict[str, Group]:
        return self._groups

    async def classic(self, group_id: str, request: JoinRequest) -> ClassicGroup | ClassicMembers:
        """What takes a join of the classic protocol: the group, made if need be, or its side for such members.

        The caller lets its member join before it waits for anything, or calls ``touched``.

        Raises:
            RefusedError: it is in use in another way, or cannot be named so.
        """
        refusal = ErrorCode.inconsistent_group_protocol
        known = await self._reserved(group_id, refusal)
        if isinstance(known, ConsumerGroup) and not known.is_empty:
            if not can_join(known, request):
                raise RefusedError(refusal, f"group {group_id!r} has members of the consumer protocol")
            return self._classic_side(known)
        if not isinstance(known, ClassicGroup):
            known = self._groups[group_id] = self._new_classic(group_id, self._last_generation(group_id))
        return known

    async def consumer(self, group_id: str) -> ConsumerGroup:
        """The group, for a join of KIP-848; one of the classic protocol is upgraded, with its members in it.

        If the join succeeds the caller calls ``install``, before it waits for anything.

        Raises:
            RefusedError: as ``classic``.
        """
        refusal = ErrorCode.group_id_not_found
        known = await self._reserved(group_id, refusal)
        if isinstance(known, ClassicGroup) and not is_empty(known):
            return self._upgraded(group_id, known, refusal)
        if not isinstance(known, ConsumerGroup):
            known = self._groups[group_id] = self._new_consumer(group_id, self._last_generation(group_id))
        return known

    def install(self, group_id: str, group: ConsumerGroup) -> None:
        """Let *group*, which ``consumer`` gave, be the one that goes on."""
        replaced = self._groups.get(group_id)
        if isinstance(replaced, ClassicGroup):
            logger.info("group %r goes on with the consumer protocol, its classic members in it", group_id)
            self.deliver(replaced.dissolve(self.now_ms()))
        self._groups[group_id] = group

    def speaking_classic(self, group_id: str) -> ClassicGroup | ClassicMembers | None:
        """What answers members of the classic protocol; None where the group is not known."""
        group = self._groups.get(group_id)
        return self._classic_side(group) if isinstance(group, ConsumerGroup) else group

    def _classic_side(self, group: ConsumerGroup) -> ClassicMembers:
        return ClassicMembers(group, new_member_id=_member_id)

    def _upgraded(self, group_id: str, known: ClassicGroup, refusal: ErrorCode) -> ConsumerGroup:
        fresh = upgraded(
            known,
            self.shapes(),
            self.now_ms(),
            heartbeat_interval_ms=self._settings.group_heartbeat_ms,
            session_timeout_ms=self._settings.group_session_ms,
            new_member_id=lambda: str(uuid.uuid4()),
        )
        if fresh is None:
            raise RefusedError(refusal, f"group {group_id!r} has members that are no consumers")
        return fresh

    async def _reserved(self, group_id: str, refusal: ErrorCode) -> Group | None:
        """The group as it is, which no embedded consumer can join now."""
        check_group_id(group_id)
        await self._reserve(group_id, refusal)
        return self._groups.get(group_id)

    def _last_generation(self, group_id: str) -> int:
        known = self._groups.get(group_id)
        return self._past.get(group_id, ("", 0))[1] if known is None else _generation(known)

    def _new_classic(self, group_id: str, generation: int) -> ClassicGroup:
        group = ClassicGroup(
            group_id,
            initial_rebalance_delay_ms=self._settings.initial_rebalance_delay_ms,
            new_member_id=_member_id,
        )
        group.generation = generation
        return group

    def _new_consumer(self, group_id: str, generation: int) -> ConsumerGroup:
        return ConsumerGroup(
            group_id,
            heartbeat_interval_ms=self._settings.group_heartbeat_ms,
            session_timeout_ms=self._settings.group_session_ms,
            new_member_id=lambda: str(uuid.uuid4()),
            generation=generation,
        )

    def forget(self, group_id: str) -> None:
        """*group_id* was deleted."""
        self._groups.pop(group_id, None)
        self._reads.pop(group_id, None)
        self._looked_at.pop(group_id, None)
        timer = self._timers.pop(group_id, None)
        if timer is not None:
            timer.cancel()

    def shapes(self) -> dict[str, TopicShape]:
        """The topics that members may be given."""
        version = self._directory.topics_version()
        if self._shapes[0] != version:
            shapes = {
                event.name: TopicShape(uuid.UUID(bytes=event.topic_id), event.partitions)
                for event in self._directory.catalog.live()
                if not is_internal(event.name)
            }
            self._shapes = (version, shapes)
        return self._shapes[1]

    # After each step ------------------------------------------------------------------------------------

    def deliver(self, deliveries: Iterable[Delivery]) -> None:
        """Give the waiting requests their answers. A token is the future that one waits for."""
        for token, reply in deliveries:
            assert isinstance(token, asyncio.Future)
            if not token.done():
                token.set_result(reply)

    def new_token(self) -> asyncio.Future[Any]:
        """What a request waits for that a state machine answers later."""
        token: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.add(token)
        token.add_done_callback(self._waiting.discard)
        return token

    def refuse_waiting(self) -> None:
        """The server stops: members look for their coordinator anew."""
        for token in list(self._waiting):
            if not token.done():
                token.set_exception(RefusedError(ErrorCode.coordinator_not_available))

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
        if is_empty(group):
            self._loop.create_task(self.settle(group_id)).add_done_callback(_log_failure)
        else:
            self._tell_topics(group_id, group)

    def _advance(self, group_id: str) -> None:
        self._timers.pop(group_id, None)
        group = self._groups.get(group_id)
        if isinstance(group, ClassicGroup):
            self.deliver(group.advance(self.now_ms()))
        elif group is not None:
            group.advance(self.shapes(), self.now_ms())
        self.touched(group_id)

    async def _reserve(self, group_id: str, refusal: ErrorCode) -> None:
        """Have embedded consumers and other servers know that the group is used here; unless it is by them.

        Raises:
            RefusedError: it is. A member that another server's members keep out tries again until they are gone:
                the protocol cannot name their server, because each is the only broker that its clients know.
        """
        if group_id in self._marked:
            return
        async with self._marking:
            if group_id in self._marked:
                return
            reservation = await self._run(reserve_for_network, self._directory, group_id)
            if reservation is Reservation.ON_OTHER_SERVER:
                refusal = ErrorCode.coordinator_not_available
            if reservation is not Reservation.KEPT:
                raise RefusedError(refusal, f"group {group_id!r}: {reservation.value}")
            self._marked.add(group_id)

    async def settle(self, group_id: str) -> None:
        """Give back the reservation of a group that is empty, and forget it if nothing tells of it but we."""
        async with self._marking:
            group = self._groups.get(group_id)
            if group is not None and not is_empty(group):
                return
            if group_id in self._marked:
                self._marked.discard(group_id)  # first: whoever joins meanwhile waits for his turn
                await self._run(release_from_network, self._directory, group_id)
            if group is not None and is_empty(group) and group.next_deadline_ms() is None:
                self._keep_generation(group_id, group)

    def _keep_generation(self, group_id: str, group: Group) -> None:
        """Forget an empty group but for its type and generation, as long as there are not too many of those."""
        if self._groups.get(group_id) is group:
            self.forget(group_id)
            self._past.pop(group_id, None)
            self._past[group_id] = (type_of(group), _generation(group))
            while len(self._past) > KEPT_PAST:
                del self._past[next(iter(self._past))]

    @asynccontextmanager
    async def committing(self, group_id: str) -> AsyncIterator[None]:
        """One at a time of each group."""
        turns = self._commits.setdefault(group_id, _Turns())
        turns.users += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.users -= 1
            if not turns.users:
                del self._commits[group_id]

    def _is_new(self, group_id: str, group: Group) -> bool:
        """Whether this generation of the group has not been looked at yet."""
        at = (_generation(group), group.state if isinstance(group, ClassicGroup) else "")
        if self._looked_at.get(group_id) == at:
            return False
        self._looked_at[group_id] = at
        return True

    def _tell_topics(self, group_id: str, group: Group) -> None:
        """Have the journal name the topics that the group reads: lag and retention go by it."""
        if not self._is_new(group_id, group):
            return
        if isinstance(group, ClassicGroup):
            topics = group.subscribed_topics() if group.state is GroupState.STABLE else None
        else:
            topics = group.subscribed_topics(self.shapes())
        if topics and not topics <= self._reads.get(group_id, frozenset()):
            self._reads[group_id] = topics
            self._run_in_background(record_subscription, self._directory, group_id, topics)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for group_id in list(self._marked):
            release_from_network(self._directory, group_id)


def _member_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4()}"


def _generation(group: Group) -> int:
    return group.generation if isinstance(group, ClassicGroup) else group.group_epoch


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.warning("a group could not be given back to embedded consumers: %s", task.exception())
