"""Looking at subscriptions from outside, and changing them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import CorruptionError, InvalidRequestError, OffsetOutOfRangeError

from .descriptions import OffsetDescription, SubscriptionDescription, SubscriptionPartitionDescription
from .group_admin import ResetTarget, check_no_members, describe_group, reset_group, reset_offsets
from .group_store import group_key
from .groups import TopicPartition
from .queues.owners import is_dead
from .queues.partition import QueuePartition
from .queues.reading import RangeReader
from .redrive import count_dead_letters
from .subscriptions import Subscription, Subscriptions
from .topic_selection import entries_of


def describe_subscription(directory: DataDirectory, subscription: Subscription) -> SubscriptionDescription:
    """As ``Broker.subscription``."""
    rules = subscription.rules
    if subscription.kind == "queue":
        places = Subscriptions(directory).places(subscription)
        partitions = [_describe_queue(directory, subscription, place) for place in places]
    else:
        offsets = describe_group(directory, subscription.name).offsets
        partitions = [_describe_stream(directory, offset) for offset in offsets]
    return SubscriptionDescription(
        name=subscription.name,
        kind=subscription.kind,
        topics=subscription.topics,
        is_paused=subscription.is_paused,
        filter=rules.filter,
        lease_ms=rules.lease_ms if subscription.kind == "queue" else None,
        max_deliveries=rules.max_deliveries if subscription.kind == "queue" else None,
        dead_letter=rules.dead_letter,
        expired=rules.expired,
        ordered=rules.ordered,
        priorities=rules.priorities,
        created_ms=subscription.created_ms,
        dead_letters=count_dead_letters(directory, subscription),
        partitions=partitions,
    )


def _describe_stream(directory: DataDirectory, offset: OffsetDescription) -> SubscriptionPartitionDescription:
    start_offset = offset.committed_offset or 0
    return SubscriptionPartitionDescription(
        topic=offset.topic,
        partition=offset.partition,
        start_offset=start_offset,
        high_watermark=offset.high_watermark,
        lag=offset.lag or 0,
        in_flight=0,
        delayed=0,
        waiting=0,
        rejected=0,
        oldest_age_ms=_age_ms(directory, (offset.topic, offset.partition), start_offset)
        if offset.lag
        else None,
        consumers=[] if offset.member_id is None else [offset.member_id],
    )


def _describe_queue(
    directory: DataDirectory, subscription: Subscription, place: TopicPartition
) -> SubscriptionPartitionDescription:
    partition = QueuePartition(directory, subscription, place)
    progress = partition.progress()
    high_watermark = partition.log.offsets().high_watermark
    counts = progress.counts
    lag = sum(counts) + max(0, high_watermark - progress.next_offset)
    return SubscriptionPartitionDescription(
        topic=place[0],
        partition=place[1],
        start_offset=progress.start_offset,
        high_watermark=high_watermark,
        lag=lag,
        in_flight=counts.acquired,
        delayed=counts.delayed,
        waiting=counts.waiting,
        rejected=counts.rejected,
        oldest_age_ms=_age_ms(directory, place, progress.start_offset) if lag else None,
        consumers=sorted(owner for owner in partition.owners() if not is_dead(directory, owner)),
    )


def _age_ms(directory: DataDirectory, place: TopicPartition, offset: int) -> int | None:
    """How long ago the first record from *offset* on was sent; None where none can be read."""
    reader = RangeReader(directory.log(*place))
    try:
        records = reader.read(offset, offset).records
    except (CorruptionError, OffsetOutOfRangeError):
        return None
    finally:
        reader.close()
    return max(0, directory.clock.now_ms() - records[0].timestamp_ms) if records else None


def set_paused(subscriptions: Subscriptions, name: str, is_paused: bool) -> None:
    """As ``Broker.pause_subscription`` and ``Broker.resume_subscription``."""
    subscriptions.change(
        name, lambda subscription: msgspec.structs.replace(subscription, is_paused=is_paused)
    )


def delete_subscription(directory: DataDirectory, subscriptions: Subscriptions, name: str) -> None:
    """As ``Broker.delete_subscription``."""

    def check(subscription: Subscription) -> None:
        if subscription.kind == "stream":
            check_no_members(directory, subscription.name, "deleted")

    def forget(subscription: Subscription) -> None:
        for partition in _queue_partitions(directory, subscription):
            partition.forget()

    subscription = subscriptions.delete(name, check=check, then=forget)
    if subscription.kind == "stream":
        directory.view.volatile.update(group_key(name), lambda _: None)


def rename_subscription(
    directory: DataDirectory, subscriptions: Subscriptions, name: str, new_name: str
) -> None:
    """As ``Broker.rename_subscription``."""

    def check(subscription: Subscription) -> None:
        if subscription.kind == "stream":
            check_no_members(directory, subscription.name, "renamed")

    subscriptions.rename(name, new_name, check=check)


def _queue_partitions(directory: DataDirectory, subscription: Subscription) -> list[QueuePartition]:
    if subscription.kind != "queue":
        return []
    places = Subscriptions(directory).places(subscription)
    return [QueuePartition(directory, subscription, place) for place in places]


def reset_subscription(
    directory: DataDirectory,
    subscription: Subscription,
    to: ResetTarget,
    *,
    topics: Iterable[str] | None,
    shift: bool,
    dry_run: bool,
) -> dict[TopicPartition, int]:
    """As ``Broker.reset_subscription``."""
    if subscription.kind == "stream":
        return reset_group(directory, subscription.name, to, topics=topics, shift=shift, dry_run=dry_run)
    wanted = None if topics is None else entries_of(topics)
    partitions = {
        partition.place: partition
        for partition in _queue_partitions(directory, subscription)
        if wanted is None or partition.place[0] in wanted
    }
    if not partitions:
        raise InvalidRequestError(
            f"subscription {subscription.name!r} reads none of these topics; it reads "
            f"{', '.join(subscription.topics)}"
        )
    places = {place: partition.progress().start_offset for place, partition in partitions.items()}
    offsets = reset_offsets(directory, to, places, shift=shift)
    if not dry_run:
        for place, offset in offsets.items():
            partitions[place].reset(offset)
    return offsets
