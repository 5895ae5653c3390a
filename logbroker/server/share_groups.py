"""The share groups of a server: members, their sessions, and the subscriptions that the groups are.

A share group *is* the queue subscription of its name: a first member makes it, members that subscribe to more topics
widen it, and it stays when they leave. Only who is a member, and who has a session, lives as long as the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from weakref import WeakValueDictionary

import msgspec
from kio.schema.errors import ErrorCode

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    InvalidTopicError,
    LogbrokerError,
    SubscriptionExistsError,
    SubscriptionNotFoundError,
)
from logbroker_storage.events import Event, ShareConfigEvent

from ..subscriptions import SIGNAL, Rules, Subscription, Subscriptions
from ..topic_names import check_topic_name
from .consumer_messages import JOIN_EPOCH, LEAVE_EPOCH, HeartbeatReply, TopicShape
from .error_codes import RefusedError, check_group_id
from .group_registry import RunInBackground, RunInThread
from .settings import ServerSettings
from .share_config import check_config, difference, rules_of, start_of
from .share_group import ShareGroup, ShareHeartbeat
from .share_partitions import SharePartitions
from .share_sessions import ShareSession, ShareSessions

logger = logging.getLogger("logbroker.server")

MAX_TOPICS = 2_000  # that members may name, all together: they are in one event of the journal
LAST_WORDS_S = 5.0  # how long the session of a member that has left may go on


class ShareGroups:
    """On the event loop, but for ``partitions``, ``subscription`` and what says that it is for threads."""

    def __init__(
        self,
        directory: DataDirectory,
        settings: ServerSettings,
        partitions: SharePartitions,
        run: RunInThread,
        run_in_background: RunInBackground,
    ) -> None:
        """*run* calls a function in a thread; *run_in_background* does not wait for it, and logs what it raises."""
        self.subscriptions = Subscriptions(directory)
        self.sessions = ShareSessions()
        self.partitions = partitions
        self._directory = directory
        self._settings = settings
        self._run = run
        self._run_in_background = run_in_background
        self._loop = asyncio.get_running_loop()
        self._groups: dict[str, ShareGroup] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by subscription

    def now_ms(self) -> int:
        return self._directory.clock.monotonic_ms()

    # Groups -------------------------------------------------------------------------------------------

    def subscription(self, group_id: str) -> Subscription | None:
        """The queue that a group is; None where there is none."""
        found = self.subscriptions.find(group_id)
        return found if found is not None and found.kind == "queue" else None

    def existing(self, group_id: str | None) -> Subscription:
        """The same.

        Raises:
            RefusedError: there is no such group.
        """
        found = None if group_id is None else self.subscription(group_id)
        if found is None:
            raise RefusedError(ErrorCode.group_id_not_found, f"Group {group_id} is not a share group.")
        return found

    def all(self) -> list[str]:
        """The names of all share groups, ascending."""
        return [name for name, found in self.subscriptions.all().items() if found.kind == "queue"]

    def get(self, group_id: str) -> ShareGroup | None:
        """The members of a group; None where nobody was in it since the server began."""
        return self._groups.get(group_id)

    def has_members(self, group_id: str) -> bool:
        group = self._groups.get(group_id)
        return group is not None and not group.is_empty

    async def heartbeat(
        self, group_id: str, request: ShareHeartbeat, shapes: Mapping[str, TopicShape]
    ) -> HeartbeatReply:
        """One step of one member; the first makes the group.

        Raises:
            GroupError, RefusedError: it is refused.
        """
        check_group_id(group_id)
        group = self._groups.get(group_id) or self._new(group_id)
        group.check(request)
        if request.member_epoch == JOIN_EPOCH or request.subscribed_topics is not None:
            await self._subscribe(group_id, request.subscribed_topics or ())
        elif self.subscription(group_id) is None:
            self._forget(group_id)
            raise RefusedError(ErrorCode.unknown_member_id, f"Group {group_id} was deleted; join again.")
        group = self._groups.setdefault(group_id, group)
        reply = group.heartbeat(request, shapes, self.now_ms())
        if request.member_epoch == JOIN_EPOCH:
            logger.info("share group %r: member %s joins", group_id, request.member_id)
        if reply.member_epoch == LEAVE_EPOCH:
            logger.info("share group %r: member %s leaves", group_id, request.member_id)
            self._expect_end(group_id, request.member_id)
        self._set_clock(group_id)
        return reply

    def _new(self, group_id: str) -> ShareGroup:
        return ShareGroup(
            group_id,
            session_timeout_ms=self._settings.group_session_ms,
            heartbeat_interval_ms=self._settings.group_heartbeat_ms,
        )

    async def _subscribe(self, group_id: str, topics: Collection[str]) -> None:
        """Have the group's subscription read *topics*; it is made if need be."""
        names = {check_name(topic) for topic in topics}
        known = self.subscription(group_id)
        if known is not None:
            names = set(known.selection.unread(names))
            if not names:
                return
        if len(names) + (0 if known is None else len(known.selection.names)) > MAX_TOPICS:
            raise RefusedError(ErrorCode.invalid_request, f"a share group reads at most {MAX_TOPICS} topics")
        try:
            subscription = await self._run(self.widen, group_id, names)
        except SubscriptionExistsError as error:
            raise RefusedError(
                ErrorCode.group_id_not_found, f"Group {group_id} is not a share group."
            ) from error
        logger.info("share group %r reads %s", group_id, ", ".join(subscription.topics))

    def widen(self, group_id: str, topics: Collection[str]) -> Subscription:
        """In a thread: have the group read *topics* too, from where its configuration says; made if need be.

        Raises:
            SubscriptionExistsError: it is a group of another kind.
            InvalidRequestError, InvalidTopicError: a topic cannot be read, or is where its dead letters go.
        """
        config = self.config(group_id)
        start = start_of(config, now_ms=self._directory.clock.now_ms())
        return self.subscriptions.share(group_id, topics, start=start, rules=rules_of(config, Rules()))

    def _set_clock(self, group_id: str) -> None:
        timer = self._timers.pop(group_id, None)
        if timer is not None:
            timer.cancel()
        group = self._groups.get(group_id)
        deadline_ms = None if group is None else group.next_deadline_ms()
        if deadline_ms is not None:
            wait_s = max(0.0, (deadline_ms - self.now_ms()) / 1000)
            self._timers[group_id] = self._loop.call_later(wait_s, self._advance, group_id)
        elif group is not None:
            del self._groups[group_id]  # its subscription says that it is there

    def _advance(self, group_id: str) -> None:
        self._timers.pop(group_id, None)
        group = self._groups.get(group_id)
        if group is None:
            return
        for member_id in group.advance(self.now_ms()):
            logger.info(
                "share group %r: member %s has not been heard of, and is removed", group_id, member_id
            )
            self._drop_session(group_id, member_id)
        self._set_clock(group_id)

    def _forget(self, group_id: str) -> None:
        self._groups.pop(group_id, None)
        self._set_clock(group_id)

    def turn(self, subscription: Subscription) -> asyncio.Lock:
        """What a fetch holds that looks whether others have left it something."""
        lock = self._turns.get(subscription.id)
        if lock is None:
            lock = self._turns[subscription.id] = asyncio.Lock()
        return lock

    # Sessions -----------------------------------------------------------------------------------------

    async def begin_session(
        self, subscription: Subscription, member_id: str, connection: object
    ) -> ShareSession:
        """A new session in the group that *subscription* is; an earlier one of the member is closed before.

        Raises:
            RefusedError: there are too many.
        """
        group_id = subscription.name
        while self.sessions.get(group_id, member_id) is not None:  # another may have begun meanwhile
            await self.close_session(group_id, member_id)
        return self.sessions.begin(group_id, member_id, connection, subscription_id=subscription.id)

    async def close_session(self, group_id: str, member_id: str) -> None:
        """End a member's session, if it has one, and give back what it holds before this returns."""
        session = self.sessions.close(group_id, member_id)
        if session is not None:
            await self._run(self._release, session)

    def _drop_session(self, group_id: str, member_id: str) -> None:
        """The same, soon."""
        session = self.sessions.close(group_id, member_id)
        if session is not None:
            self._run_in_background(self._release, session)

    def _expect_end(self, group_id: str, member_id: str) -> None:
        """A member has left: what it acknowledges last may come behind, on another connection (librdkafka)."""
        session = self.sessions.get(group_id, member_id)

        def end() -> None:
            if session is not None and self.sessions.get(group_id, member_id) is session:
                self._drop_session(group_id, member_id)

        if session is not None:
            self._loop.call_later(LAST_WORDS_S, end)

    def disconnected(self, connection: object) -> None:
        """A connection is lost: what its sessions hold goes to others."""
        for session in self.sessions.of_connection(connection):
            self._drop_session(session.group_id, session.member_id)

    def _release(self, session: ShareSession) -> None:
        """In a thread: give back what the session's member holds."""
        try:
            subscription = self.subscriptions.get_by_id(session.subscription_id, known_as=session.group_id)
        except SubscriptionNotFoundError:
            return
        places = [place for place in self.subscriptions.places(subscription) if place in session.held_in]
        count = self.partitions.give_up(subscription, session, places)
        if count:
            logger.info(
                "share group %r: what member %s held in %d partitions goes to others",
                session.group_id,
                session.member_id,
                count,
            )

    # Configuration ------------------------------------------------------------------------------------

    def config(self, group_id: str) -> dict[str, str]:
        """What was configured of a group, whether or not it is there. Safe in threads."""
        event = self._directory.view.events.get(ShareConfigEvent, ShareConfigEvent.key_of(group_id))
        return {} if event is None else dict(event.config)

    def configured(self) -> list[str]:
        """The groups that differ from the defaults, whether or not they are there."""
        events = self._directory.view.events.all(ShareConfigEvent, ShareConfigEvent.ALL)
        return [event.group for event in events if event.config]

    def change_config(self, group_id: str, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        """In a thread: configure a group, durably; its subscription, if it is there, goes by it from now on.

        Raises:
            InvalidConfigError: the configuration cannot be that of a share group.
        """
        with self._directory.journal.exclusive() as turn:
            before = self.config(group_id)
            after = change(before)
            check_config(after)
            events: list[Event] = [ShareConfigEvent(group_id, after)]
            found = self.subscription(group_id)
            if found is not None:
                rules = rules_of(difference(before, after), found.rules)
                events.append(msgspec.structs.replace(found, rules=rules).event())
            turn.record(events)
        self._directory.signal(SIGNAL)

    # Ending -------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Give back what is in the hands of members."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for session in self.sessions.all():
            try:
                await self.close_session(session.group_id, session.member_id)
            except LogbrokerError as error:
                logger.warning("what member %s holds comes when its lease ends: %s", session.member_id, error)
        await self._run(self.partitions.close)


def check_name(topic: str) -> str:
    """*topic*, if a member can subscribe to it.

    Raises:
        RefusedError: no topic can have this name.
    """
    try:
        return check_topic_name(topic)
    except InvalidTopicError as error:
        raise RefusedError(ErrorCode.invalid_topic_exception, str(error)) from error
