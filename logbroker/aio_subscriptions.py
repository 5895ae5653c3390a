"""The part of the asyncio broker that is about subscriptions and their dead letters."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack

from .aio_queue import AsyncQueue

if TYPE_CHECKING:
    from .broker import Broker
    from .descriptions import SubscriptionDescription
    from .expressions import Predicate
    from .redrive import DeadLetter, LetterPlace, Redriven
    from .start import Start
    from .subscriptions import Kind, QueueOptions

Result = TypeVar("Result")


class AsyncSubscriptions:
    """``Broker``'s methods of the same names, awaited: they mean the same, and raise the same."""

    async def _call(self, call: Callable[[Broker], Result]) -> Result:
        raise NotImplementedError

    async def create_subscription(
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
        """Make a named subscription, durably; see ``Broker.create_subscription``."""
        await self._call(
            lambda broker: broker.create_subscription(
                name, topic=topic, kind=kind, start=start, exist_ok=exist_ok, filter=filter, **options
            )
        )

    async def subscriptions(self) -> list[str]:
        """The names of all subscriptions, ascending."""
        return await self._call(lambda broker: broker.subscriptions())

    async def subscription(self, name: str) -> SubscriptionDescription:
        """A subscription's rules, and how far it is in each partition."""
        return await self._call(lambda broker: broker.subscription(name))

    async def pause_subscription(self, name: str) -> None:
        """Deliver nothing more until it is resumed."""
        await self._call(lambda broker: broker.pause_subscription(name))

    async def resume_subscription(self, name: str) -> None:
        """Deliver again."""
        await self._call(lambda broker: broker.resume_subscription(name))

    async def reset_subscription(
        self,
        name: str,
        to: Literal["earliest", "latest"] | int | datetime.datetime | datetime.timedelta,
        *,
        topics: Iterable[str] | None = None,
        shift: bool = False,
        dry_run: bool = False,
    ) -> dict[tuple[str, int], int]:
        """Go on at another place, durably; see ``Broker.reset_subscription``."""
        return await self._call(
            lambda broker: broker.reset_subscription(name, to, topics=topics, shift=shift, dry_run=dry_run)
        )

    async def rename_subscription(self, name: str, new_name: str) -> None:
        """Give a subscription another name, durably."""
        await self._call(lambda broker: broker.rename_subscription(name, new_name))

    async def delete_subscription(self, name: str) -> None:
        """Forget a subscription and how far it is."""
        await self._call(lambda broker: broker.delete_subscription(name))

    def queue(
        self,
        topic: str | Iterable[str] | None = None,
        *,
        subscription: str,
        filter: str | Predicate | None = None,  # noqa: A002  (as the option is called)
        lease: float | None = None,
        renew: bool = False,
        detached: bool = False,
    ) -> AsyncQueue:
        """A consumer of a queue; the arguments are those of ``Broker.queue``, checked when it is opened."""
        return AsyncQueue(
            lambda: self._call(
                lambda broker: broker.queue(
                    topic,
                    subscription=subscription,
                    filter=filter,
                    lease=lease,
                    renew=renew,
                    detached=detached,
                )
            ),
            subscription=subscription,
        )

    async def dead_letters(self, subscription: str, *, redriven: bool = False) -> list[DeadLetter]:
        """The messages that a subscription gave up; see ``Broker.dead_letters``. All in one list."""
        return await self._call(lambda broker: list(broker.dead_letters(subscription, redriven=redriven)))

    async def redrive(
        self,
        subscription: str,
        *,
        only: Collection[LetterPlace] | None = None,
        to: str | None = None,
        dry_run: bool = False,
    ) -> Redriven:
        """Send dead letters back to where they came from, each exactly once; see ``Broker.redrive``."""
        return await self._call(
            lambda broker: broker.redrive(subscription, only=only, to=to, dry_run=dry_run)
        )
