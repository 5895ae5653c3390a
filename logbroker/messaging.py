"""What a broker has beyond the log: named subscriptions, queues, dead letters, request and reply."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal, Unpack

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    ClosedError,
    SubscriptionExistsError,
)

from .descriptions import (
    SubscriptionDescription,
)
from .expressions import Predicate
from .queues.consumer import Queue
from .records import HeadersArgument
from .redrive import DeadLetter, LetterPlace, Redrive, Redriven, dead_letters
from .request_reply.correlation import RequestCounts
from .request_reply.exchange import Exchange
from .request_reply.messages import Reply
from .request_reply.requester import DEFAULT_TIMEOUT_S, IfNobody, PendingRequest
from .request_reply.responder import DEFAULT_LEASE_S, Responder
from .request_reply.responder import Function as ResponderFunction
from .start import Start
from .subscription_admin import (
    delete_subscription,
    describe_subscription,
    rename_subscription,
    reset_subscription,
    set_paused,
)
from .subscriptions import Kind, QueueOptions, Subscriptions, check_rules
from .transaction import Transactions
from .transaction_coordinator import TransactionCoordinator


class Messaging:
    """The part of ``Broker`` that does not read or write topics as logs."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory_or_none: DataDirectory | None = directory
        self.path = directory.path
        self._coordinator = TransactionCoordinator(directory)
        self._transactions = Transactions(directory, self._coordinator)
        self._subscriptions = Subscriptions(directory)
        self._exchange = Exchange(directory, self._transactions)

    @property
    def _directory(self) -> DataDirectory:
        directory = self._directory_or_none
        if directory is None:
            raise ClosedError(f"the broker on {self.path} was closed; call logbroker.open() again")
        directory.check_usable("this broker")
        return directory

    def _check_open(self) -> None:
        _ = self._directory

    # Subscriptions and queues ---------------------------------------------------------------------

    def create_subscription(
        self,
        name: str,
        *,
        topic: str | Iterable[str],
        kind: Kind = "queue",
        start: Start = "earliest",
        exist_ok: bool = False,
        filter: str | None = None,  # noqa: A002  (as the option is called)
        **options: Unpack[QueueOptions],
    ) -> None:
        """Make a named subscription, durably. It gets every message from *start* on, connected or not.

        Args:
            name: what ``broker.queue(…, subscription=)`` or, of a stream, ``broker.consumer(…, group=)`` gives.
            topic: a name, a list of names, or a pattern that also takes up topics created later.
            kind: "queue" (each message to one of the consumers, done with once accepted) or "stream" (a
                consumer group: in order, by offsets).
            start: where it begins in the partitions that are there; later ones count from their beginning.
            exist_ok: a subscription of the name is accepted as it is.
            filter: a CEL expression over ``key``, ``value``, ``json``, ``headers``, ``topic``, ``partition``,
                ``offset`` and ``timestamp``; only messages that match are delivered.
            options: of a queue; see ``QueueOptions``.

        Raises:
            SubscriptionExistsError, TopicNotFoundError, InvalidRequestError: nothing was made.
        """
        rules = check_rules(kind=kind, filter=filter, **options)
        try:
            self._subscriptions.create(name, topic, kind=kind, start=start, rules=rules)
        except SubscriptionExistsError:
            if not exist_ok or self._subscriptions.find(name) is None:
                raise

    def subscriptions(self) -> list[str]:
        """The names of all subscriptions, ascending."""
        return list(self._subscriptions.all())

    def subscription(self, name: str) -> SubscriptionDescription:
        """A subscription's rules, and how far it is in each partition.

        Raises:
            SubscriptionNotFoundError: there is none.
        """
        return describe_subscription(self._directory, self._subscriptions.get(name))

    def pause_subscription(self, name: str) -> None:
        """Deliver nothing more, durably, until it is resumed. What is in consumers' hands can still be settled.

        Raises:
            SubscriptionNotFoundError: there is none.
        """
        set_paused(self._subscriptions, name, True)

    def resume_subscription(self, name: str) -> None:
        """Deliver again.

        Raises:
            SubscriptionNotFoundError: there is none.
        """
        set_paused(self._subscriptions, name, False)

    def reset_subscription(
        self,
        name: str,
        to: Literal["earliest", "latest"] | int | datetime.datetime | datetime.timedelta,
        *,
        topics: Iterable[str] | None = None,
        shift: bool = False,
        dry_run: bool = False,
    ) -> dict[tuple[str, int], int]:
        """Go on at another place, durably; the new offset of each (topic, partition).

        Of a queue everything below is done, everything else is delivered (again), and what is in consumers' hands
        can no longer be settled. A stream must have no live members.

        Args:
            name: the subscription.
            to: the ends of each partition, an offset, a moment, or (timedelta) a moment that long ago.
            topics: which topics; default: all that it reads.
            shift: *to* is a number added to where it is: of a queue, its first message that is not done.
            dry_run: only say where it would go on.

        An offset outside a partition becomes the nearer end.

        Raises:
            SubscriptionNotFoundError: there is none.
            InvalidRequestError: it is a stream with live members, or reads none of *topics*.
        """
        subscription = self._subscriptions.get(name)
        return reset_subscription(
            self._directory, subscription, to, topics=topics, shift=shift, dry_run=dry_run
        )

    def rename_subscription(self, name: str, new_name: str) -> None:
        """Give a subscription another name, durably. It keeps its progress; consumers of a queue go on.

        Raises:
            SubscriptionNotFoundError: there is none of the old name.
            SubscriptionExistsError: the new one is taken.
            InvalidRequestError: it is a stream with live members.
        """
        rename_subscription(self._directory, self._subscriptions, name, new_name)

    def delete_subscription(self, name: str) -> None:
        """Forget a subscription and how far it is.

        Raises:
            SubscriptionNotFoundError: there is none.
            InvalidRequestError: it is a stream with live members.
        """
        delete_subscription(self._directory, self._subscriptions, name)

    def queue(
        self,
        topic: str | Iterable[str] | None = None,
        *,
        subscription: str,
        filter: str | Predicate | None = None,  # noqa: A002  (as the option is called)
        lease: float | None = None,
        renew: bool = False,
        detached: bool = False,
    ) -> Queue:
        """A consumer of a queue; any number, in any processes, share its messages.

        Args:
            topic: which of the subscription's topics; default: all.
            subscription: its name; see ``create_subscription``.
            filter: a function of a record, or a CEL expression. What it refuses is done with, for the subscription
                as a whole.
            lease: seconds that a message stays in these hands without an answer; default: the subscription's.
            renew: a thread extends the leases of all that is in these hands, until the queue is closed.
            detached: what is received outlives the queue and this process: it is settled by its ``handle``, with
                any queue of the subscription, or delivered again when its lease ends.

        Raises:
            SubscriptionNotFoundError, TopicNotFoundError: there is none of the name.
            InvalidRequestError: the subscription is a stream, or does not read *topic*; *filter* cannot be compiled.
        """
        return Queue(
            self._directory,
            self._transactions,
            topic,
            subscription=subscription,
            filter=filter,
            lease=lease,
            renew=renew,
            detached=detached,
        )

    def dead_letters(self, subscription: str, *, redriven: bool = False) -> Iterator[DeadLetter]:
        """The messages that a subscription gave up and that were not redriven, oldest first in each partition.

        They are read while you iterate, up to where the dead letter topic ended at first.

        Args:
            subscription: its name.
            redriven: also those that were redriven, for as long as the dead letter topic keeps them.

        Raises:
            SubscriptionNotFoundError: there is none of the name.
        """
        return dead_letters(self._directory, self._subscriptions.get(subscription), redriven=redriven)

    def redrive(
        self,
        subscription: str,
        *,
        only: Collection[LetterPlace] | None = None,
        to: str | None = None,
        dry_run: bool = False,
    ) -> Redriven:
        """Send dead letters back to where they came from, each exactly once, whatever dies meanwhile.

        They go as new messages, with key, value and headers but without priority, delay and time to live, so every
        subscription of that topic gets them. In the dead letter topic they stay, as redriven.

        Args:
            subscription: whose letters.
            only: which of them, as (partition, offset) in the dead letter topic; default: all.
            to: another topic that they all go to.
            dry_run: only say what would be sent.

        Raises:
            InvalidRequestError: there is no letter at one of *only*, or the subscription keeps none.
            TopicNotFoundError: *to* is not there.
        """
        found = self._subscriptions.get(subscription)
        redrive = Redrive(self._directory, self._transactions, found, only=only, to=to)
        return redrive.preview() if dry_run else redrive.run()

    # Request and reply ----------------------------------------------------------------------------

    def request(
        self,
        topic: str,
        value: bytes | None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        if_nobody: IfNobody = "raise",
    ) -> Reply:
        """Ask those who respond to *topic*, and wait for the reply of the one that gets the request.

        The request expires with the timeout: nobody begins to work on it later. A responder that dies over it
        leaves it to another, so it may be worked on more than once; a second reply is dropped.

        Args:
            timeout: seconds, up to a day.
            key, headers: as of any record.
            if_nobody: "raise", or "wait": send it although no live responder is known. For clients of other
                kinds that answer, or a responder that comes in time; the topic is made if it is not there.

        Raises:
            NoRespondersError: no live process responds to the topic, or there is no such topic.
            RequestTimeoutError: no reply came in time.
            ResponderError: the responder's function raised; it has the text.
            RecordTooLargeError, WriteFailedError, StorageFailedError: as of a producer's receipt.
            InvalidRequestError: an argument has a value that it does not take.
        """
        return self._begin_request(
            topic, value, timeout=timeout, key=key, headers=headers, if_nobody=if_nobody
        ).result()

    def _begin_request(
        self,
        topic: str,
        value: bytes | None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        key: bytes | None = None,
        headers: HeadersArgument | None = None,
        if_nobody: IfNobody = "raise",
    ) -> PendingRequest:
        self._check_open()
        return self._exchange.begin(
            topic, value, timeout=timeout, key=key, headers=headers, if_nobody=if_nobody
        )

    @property
    def request_counts(self) -> RequestCounts:
        """What became of this object's requests: sent, answered, given up, and replies that were dropped."""
        return self._exchange.counts

    def responder(
        self,
        topic: str,
        *,
        concurrency: int = 1,
        lease: float = DEFAULT_LEASE_S,
        tracebacks: bool = False,
    ) -> Callable[[ResponderFunction], Responder]:
        """Decorate a function that answers the requests on *topic*; it is at work from then on.

        It takes a ``Request`` and returns bytes, a ``Message`` (value, key and headers), or None for an empty
        reply. What it raises is sent to the requester, as text. It runs in threads of its own until
        ``stop()``, or until the broker is closed. Any number, in any processes, compete for the requests: for
        the queue subscription ``responders:<topic>``, which is made on demand, as the topic is.

        Args:
            concurrency: in how many threads the function may run at once.
            lease: seconds after which a process that hangs as a whole loses a request to another. One that
                works on is not concerned, and one that dies is noticed at once.
            tracebacks: tell requesters where an exception came from, too.

        Raises:
            InvalidTopicError, InvalidRequestError: the topic, or an argument, cannot be used.
        """
        self._check_open()
        return self._exchange.responder(topic, concurrency=concurrency, lease=lease, tracebacks=tracebacks)
