"""Named subscriptions: what reads a topic, by which rules, whether or not anybody is connected.

    kind     is                                                 its progress is
    stream   the consumer group of the same name: in order      the group's committed offsets
    queue    competing consumers, each message to one of them   a ``QueueEvent`` and its blocks for each partition

Several subscriptions of both kinds on one topic are broadcast among each other. A subscription is one event of the
journal (``SubscriptionEvent``), whose rules are here. Every process keeps the decoded events, and a version counter
in the view says when they are stale. Names of subscriptions and of consumer groups are one name space: a group with
the name of a queue cannot be joined.
"""

from __future__ import annotations

import difflib
import logging
import secrets
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal, TypedDict

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.events import (
    GroupEvent,
    OffsetEvent,
    QueueBlockEvent,
    QueueEvent,
    SubscriptionEvent,
)
from logbroker_storage.journal import SUBSCRIPTIONS_VERSION, Item, item_of
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import Record

from .dead_letters import make_dead_letter_topic
from .errors import SubscriptionExistsError, SubscriptionNotFoundError
from .expressions import ExpressionError, Predicate, as_predicate, compile_expression
from .group_store import check_no_group
from .queues.settings import (
    DEFAULT_LEASE_S,
    DEFAULT_MAX_DELIVERIES,
    MAX_DELIVERIES,
    QueueSettings,
    lease_ms_of,
)
from .start import Start, StartPolicy, check_start
from .topic_names import check_group_name, check_subscription_name, check_text, check_topic_name
from .topic_selection import TopicSelection

logger = logging.getLogger("logbroker.subscriptions")

Kind = Literal["queue", "stream"]
Expired = Literal["drop", "dead-letter"]

SIGNAL = "subscriptions"
QUEUE_ONLY = {
    "lease": DEFAULT_LEASE_S,
    "max_deliveries": DEFAULT_MAX_DELIVERIES,
    "dead_letter": None,
    "expired": "drop",
    "ordered": False,
    "priorities": False,
}


class QueueOptions(TypedDict, total=False):
    """The options of a queue subscription. Times are seconds.

    Attributes:
        lease: how long a message stays in a consumer's hands without an answer; default 30.
        max_deliveries: after so many deliveries in vain it goes to the dead letters; default 5.
        dead_letter: the topic that they go to, made if it is not there; default: they are done with.
        expired: "drop" (default), or "dead-letter": what becomes of a message that outlived its time to live.
        ordered: messages of one key are never in two hands at once, and keep their order.
        priorities: messages that were sent with a higher ``priority=`` are delivered first.
    """

    lease: float
    max_deliveries: int
    dead_letter: str | None
    expired: Expired
    ordered: bool
    priorities: bool


class Rules(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a subscription hands out messages; of a stream only ``filter`` counts. Times are milliseconds.

    Attributes:
        filter: a CEL expression over the record (see ``expressions``); only messages that match are delivered.
        lease_ms: how long a message stays in a consumer's hands without an answer.
        max_deliveries: after so many deliveries in vain a message goes to the dead letters.
        dead_letter: the topic that they go to; None: they are done with.
        expired: whether a message that outlived its time to live is dropped, or goes to the dead letters.
        ordered: messages of one key are never in two hands at once, and keep their order.
        priorities: messages of higher priority are handed out first.
    """

    filter: str | None = None
    lease_ms: int = int(DEFAULT_LEASE_S * 1000)
    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    dead_letter: str | None = None
    expired: Expired = "drop"
    ordered: bool = False
    priorities: bool = False

    @property
    def queue(self) -> QueueSettings:
        return QueueSettings(
            max_deliveries=self.max_deliveries,
            has_dead_letter=self.dead_letter is not None,
            looks_ahead=self.ordered or self.priorities,
        )


class Subscription(msgspec.Struct, frozen=True):
    """A named subscription as the journal has it; ``id`` stays the same when the name changes."""

    id: str
    name: str
    kind: Kind
    selection: TopicSelection
    rules: Rules
    is_paused: bool
    created_ms: int

    @property
    def topics(self) -> list[str]:
        """The names and patterns that it was made with."""
        return self.selection.entries

    def event(self) -> SubscriptionEvent:
        return SubscriptionEvent(
            subscription_id=self.id,
            name=self.name,
            subscription_kind=self.kind,
            topics=self.topics,
            rules=msgspec.msgpack.encode(self.rules),
            is_paused=self.is_paused,
            created_ms=self.created_ms,
        )

    @classmethod
    def of(cls, event: SubscriptionEvent) -> Subscription:
        return cls(
            id=event.subscription_id,
            name=event.name,
            kind=event.subscription_kind,
            # A share group may be left without a topic.
            selection=TopicSelection.parse(event.topics) if event.topics else TopicSelection(),
            rules=msgspec.msgpack.decode(event.rules, type=Rules),
            is_paused=event.is_paused,
            created_ms=event.created_ms,
        )


def check_rules(
    *,
    kind: Kind,
    filter: str | None = None,  # noqa: A002  (as the option is called)
    **options: Any,
) -> Rules:
    """The rules that the options of ``Broker.create_subscription`` stand for.

    Raises:
        InvalidRequestError: an option is unknown, out of range, or a queue's although this is a stream.
    """
    for name, value in options.items():
        if name not in QUEUE_ONLY:
            near = difflib.get_close_matches(name, ["filter", *QUEUE_ONLY], 1)
            raise InvalidRequestError(
                f"unknown option {name!r} of a subscription{f'; did you mean {near[0]!r}?' if near else ''}"
            )
        if kind == "stream" and value != QUEUE_ONLY[name]:
            raise InvalidRequestError(f"{name}= is for queues: a stream is read in order, by offsets")
    if filter is not None:
        if not isinstance(filter, str):
            raise InvalidRequestError(
                "filter= of a subscription is stored, so it is a CEL expression; give a Python function to "
                "broker.queue(…, filter=…)"
            )
        compile_expression(filter)
    settings = {**QUEUE_ONLY, **options}
    lease_ms, max_deliveries = lease_ms_of(settings["lease"]), settings["max_deliveries"]
    if isinstance(max_deliveries, bool) or not isinstance(max_deliveries, int):
        raise InvalidRequestError(f"max_deliveries={max_deliveries!r}: give it a whole number")
    if not 1 <= max_deliveries <= MAX_DELIVERIES:
        raise InvalidRequestError(
            f"max_deliveries={max_deliveries}: give it a number from 1 to {MAX_DELIVERIES}"
        )
    dead_letter, expired = settings["dead_letter"], settings["expired"]
    if dead_letter is not None:
        check_topic_name(dead_letter)
    if expired not in ("drop", "dead-letter"):
        raise InvalidRequestError(f"expired={expired!r}: use 'drop' or 'dead-letter'")
    if expired == "dead-letter" and dead_letter is None:
        raise InvalidRequestError("expired='dead-letter' needs dead_letter=, the topic that they go to")
    return Rules(
        filter=filter,
        lease_ms=lease_ms,
        max_deliveries=max_deliveries,
        dead_letter=dead_letter,
        expired=expired,
        ordered=bool(settings["ordered"]),
        priorities=bool(settings["priorities"]),
    )


class Subscriptions:
    """The subscriptions of a directory: a cache of the journal's events, and the changes to them.

    Safe across threads and processes.
    """

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._cached: tuple[int, dict[str, Subscription]] = (-1, {})  # replaced whole, so it needs no lock

    def version(self) -> int:
        """Grows with every change to any subscription."""
        return self._directory.view.meta_int(SUBSCRIPTIONS_VERSION)

    def all(self) -> dict[str, Subscription]:
        """Every subscription by name. Do not change the result."""
        version = self.version()
        cached = self._cached
        if cached[0] != version:
            events = self._directory.view.events.all(SubscriptionEvent, SubscriptionEvent.ALL)
            by_name = {event.name: Subscription.of(event) for event in events}
            cached = self._cached = (version, dict(sorted(by_name.items())))
        return cached[1]

    def find(self, name: str) -> Subscription | None:
        return self.all().get(name)

    def get(self, name: str) -> Subscription:
        """The subscription of this name.

        Raises:
            SubscriptionNotFoundError: there is none.
            InvalidRequestError: *name* is no text.
        """
        found = self.find(check_text("subscription", name))
        if found is None:
            raise SubscriptionNotFoundError(name, known=list(self.all()))
        return found

    def get_by_id(self, subscription_id: str, known_as: str) -> Subscription:
        """The subscription that was made with this id, whatever its name is now; once it was *known_as*.

        Raises:
            SubscriptionNotFoundError: it was deleted.
        """
        for subscription in self.all().values():
            if subscription.id == subscription_id:
                return subscription
        raise SubscriptionNotFoundError(known_as, known=list(self.all()))

    def places(self, subscription: Subscription) -> list[tuple[str, int]]:
        """The (topic, partition)s that it reads now."""
        return [
            (topic, number)
            for topic in subscription.selection.resolve(self._directory.topics())
            for number in range(self._directory.topic(topic).partitions)
        ]

    def queue_offsets(self, topic: str, partition: int) -> list[int]:
        """How far each queue is in a partition that it reads: what is below has been made to last as done."""
        reading = [
            subscription
            for subscription in self.all().values()
            if subscription.kind == "queue" and subscription.selection.wants(topic)
        ]
        keys = [QueueEvent.key_of(subscription.id, topic, partition) for subscription in reading]
        events = [self._directory.view.events.get(QueueEvent, key) for key in keys]
        return [0 if event is None else event.start_offset for event in events]

    # Changes --------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        topics: str | Iterable[str],
        *,
        kind: Kind,
        start: Start,
        rules: Rules,
    ) -> Subscription:
        """Make a subscription, durably; its dead letter topic too, where that is not there.

        Raises:
            SubscriptionExistsError: the name is taken, by a subscription or a consumer group.
            TopicNotFoundError: a topic that is named is not there.
        """
        check_subscription_name(name)
        check_start(start)
        if kind not in ("queue", "stream"):
            raise InvalidRequestError(f"kind={kind!r}: use 'queue' or 'stream'")
        selection = TopicSelection.parse(topics)
        selection.check_names(self._directory.topics())
        self.make_dead_letter_topic(selection, rules)
        subscription = self._new(name, kind, selection, rules)
        with self._directory.journal.exclusive() as turn:
            if name in self.all():
                raise SubscriptionExistsError(name)
            if kind == "queue":
                check_no_group(self._directory, name)
            begun = self._begin(subscription, start)
            turn.write([item_of(subscription.event()), *begun])
        self._directory.signal(SIGNAL)
        return subscription

    def share(self, name: str, topics: Collection[str], *, start: Start, rules: Rules) -> Subscription:
        """The queue of this name, which reads *topics* too from now on; made with *rules* if it is not there.

        It begins in each topic that it did not read at *start*. Topics need not be there yet.

        Raises:
            SubscriptionExistsError: the name is that of a stream or a consumer group.
            InvalidRequestError: one of *topics* is where its dead letters go.
        """
        check_group_name(name)
        names = TopicSelection(tuple(sorted({check_topic_name(topic) for topic in topics})))
        with self._directory.journal.exclusive() as turn:
            before = self.find(name)
            if before is None:
                check_no_group(self._directory, name)
                wanted = self._new(name, "queue", names, rules)
                new_topics = names
            elif before.kind != "queue":
                raise SubscriptionExistsError(name, what="stream")
            else:
                new_topics = TopicSelection(before.selection.unread(names.names))
                if not new_topics.names:
                    return before
                selection = TopicSelection(
                    tuple(sorted({*before.selection.names, *new_topics.names})), before.selection.patterns
                )
                wanted = msgspec.structs.replace(before, selection=selection)
            _check_dead_letter(new_topics, wanted.rules)
            begun = self._begin(msgspec.structs.replace(wanted, selection=new_topics), start)
            turn.write([item_of(wanted.event()), *begun])
        self._directory.signal(SIGNAL)
        return wanted

    def leave_topics(self, name: str, topics: Collection[str]) -> Subscription:
        """Have the queue of this name read *topics*, which it names, no longer; its progress there is forgotten.

        Raises:
            SubscriptionNotFoundError: there is none of this name.
        """
        with self._directory.journal.exclusive() as turn:
            before = self.get(name)
            left = tuple(topic for topic in before.selection.names if topic not in topics)
            after = msgspec.structs.replace(before, selection=TopicSelection(left, before.selection.patterns))
            prefixes = [
                key_of(before.id, topic)
                for topic in topics
                for key_of in (QueueEvent.prefix_of, QueueBlockEvent.prefix_of)
            ]
            keys = [key for prefix in prefixes for key, _ in self._directory.view.events.items(prefix)]
            turn.write([item_of(after.event()), *((key, None) for key in keys)])
        self._directory.signal(SIGNAL)
        return after

    def _new(self, name: str, kind: Kind, selection: TopicSelection, rules: Rules) -> Subscription:
        return Subscription(
            id=secrets.token_hex(8),
            name=name,
            kind=kind,
            selection=selection,
            rules=rules,
            is_paused=False,
            created_ms=self._directory.clock.now_ms(),
        )

    def _begin(self, subscription: Subscription, start: Start) -> list[Item]:
        """Where it begins in each partition that is there."""
        places = self.places(subscription)
        policy = StartPolicy(start, frozenset(places), Isolation.READ_COMMITTED)
        now_ms = self._directory.clock.now_ms()
        items: list[Item] = []
        if subscription.kind == "stream":
            topics = sorted({topic for topic, _ in places})
            items.append(item_of(GroupEvent(subscription.name, topics, now_ms)))
        for topic, partition in places:
            log = self._directory.log(topic, partition)
            offset = policy.offset(log)
            log.sync_below(offset)
            if subscription.kind == "queue":
                items.append(item_of(QueueEvent(subscription.id, topic, partition, offset)))
            elif self._directory.groups.committed(subscription.name, topic, partition) is None:
                items.append(item_of(OffsetEvent(subscription.name, topic, partition, offset, "", now_ms)))
        return items

    def make_dead_letter_topic(self, selection: TopicSelection, rules: Rules) -> None:
        """Have the topic that dead letters go to.

        Raises:
            InvalidRequestError: it is one of those that the subscription reads.
        """
        topic = rules.dead_letter
        if topic is None:
            return
        _check_dead_letter(selection, rules)
        make_dead_letter_topic(self._directory, topic)

    def change(self, name: str, change: Callable[[Subscription], Subscription]) -> Subscription:
        """Replace a subscription by a function of it, durably.

        Raises:
            SubscriptionNotFoundError: there is none of this name.
        """
        with self._directory.journal.exclusive() as turn:
            before = self.get(name)
            after = change(before)
            if after != before:
                turn.record([after.event()])
        if after != before:
            self._directory.signal(SIGNAL)
        return after

    def delete(
        self,
        name: str,
        *,
        check: Callable[[Subscription], None],
        then: Callable[[Subscription], None],
    ) -> Subscription:
        """Forget a subscription and its progress, durably.

        Both under the journal lock: *check* may refuse, *then* comes before anybody journals anything more of it.
        """
        directory = self._directory
        with directory.journal.exclusive() as turn:
            subscription = self.get(name)
            check(subscription)
            keys = [SubscriptionEvent.key_of(subscription.id), *self._keys_of(subscription)]
            turn.write([(key, None) for key in keys])
            then(subscription)
        directory.signal(SIGNAL)
        return subscription

    def _keys_of(self, subscription: Subscription) -> list[bytes]:
        view = self._directory.view
        if subscription.kind == "stream":
            committed = self._directory.groups.committed_offsets(subscription.name)
            return [GroupEvent.key_of(subscription.name), *(event.key() for event in committed)]
        prefixes = (QueueEvent.prefix_of(subscription.id), QueueBlockEvent.prefix_of(subscription.id))
        return [key for prefix in prefixes for key, _ in view.events.items(prefix)]

    def rename(self, name: str, new_name: str, *, check: Callable[[Subscription], None]) -> Subscription:
        """Give a subscription another name, durably; it keeps its progress.

        Raises:
            SubscriptionExistsError: that name is taken.
        """
        check_subscription_name(new_name)
        directory = self._directory
        with directory.journal.exclusive() as turn:
            before = self.get(name)
            check(before)
            if new_name in self.all():
                raise SubscriptionExistsError(new_name)
            check_no_group(directory, new_name)
            after = msgspec.structs.replace(before, name=new_name)
            items = [item_of(after.event())]
            if before.kind == "stream":
                known = directory.view.events.get(GroupEvent, GroupEvent.key_of(name))
                items += [(key, None) for key in self._keys_of(before)]
                if known is not None:
                    items.append(item_of(msgspec.structs.replace(known, group=new_name)))
                items += [
                    item_of(msgspec.structs.replace(event, group=new_name))
                    for event in directory.groups.committed_offsets(name)
                ]
            turn.write(items)
        directory.signal(SIGNAL)
        return after


class StreamRules:
    """What a stream subscription asks of a consumer in the group of its name, if there is one.

    *also* is the consumer's own filter.
    """

    def __init__(self, directory: DataDirectory, group: str | None, *, also: str | Predicate | None) -> None:
        self._subscriptions = Subscriptions(directory)
        self._group = group
        found = None if group is None else self._subscriptions.find(group)
        own = _lenient(also, group or "") if isinstance(also, str) else also
        stored = (
            None if found is None or found.rules.filter is None else _lenient(found.rules.filter, found.name)
        )
        self.matches = both(stored, None if own is None else as_predicate(own))

    @property
    def is_paused(self) -> bool:
        """Whether nothing is to be delivered now."""
        if self._group is None:
            return False
        found = self._subscriptions.find(self._group)
        return found is not None and found.is_paused


def both(one: Predicate | None, other: Predicate | None) -> Predicate | None:
    """A filter that lets through what each of two does; None lets everything through."""
    if one is None or other is None:
        return one or other
    return lambda record: one(record) and other(record)


def _lenient(text: str, name: str) -> Predicate:
    """A stored filter as a function of a record: what it has no value for is passed over, and logged."""
    matches = as_predicate(text)

    def is_wanted(record: Record) -> bool:
        try:
            return matches(record)
        except ExpressionError as error:
            logger.warning("subscription %r passes over a record: %s", name, error)
            return False

    return is_wanted


def _check_dead_letter(selection: TopicSelection, rules: Rules) -> None:
    if rules.dead_letter is not None and selection.wants(rules.dead_letter):
        raise InvalidRequestError(
            f"dead letters cannot go to {rules.dead_letter!r}, which the subscription reads itself: "
            "they would go round"
        )
