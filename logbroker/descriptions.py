"""What the broker says about a topic or a group: plain values, as of the moment they were asked for."""

from __future__ import annotations

import msgspec


class PartitionDescription(msgspec.Struct, frozen=True):
    """One partition. Offsets are exclusive ends but ``log_start_offset``; sizes are bytes on disk.

    Attributes:
        log_start_offset: the first offset that can be read.
        high_watermark: records below it are on the disk, or as far as the topic's durability asks.
        last_stable_offset: consumers see records below it; what follows waits for an undecided transaction.
        log_end_offset: where the next record goes.
        synced_offset: everything below it is on the disk.
        failed: a disk sync failed; the partition takes no writes until the directory is opened again.
    """

    partition: int
    log_start_offset: int
    high_watermark: int
    last_stable_offset: int
    log_end_offset: int
    synced_offset: int
    size_bytes: int
    failed: bool


class TopicDescription(msgspec.Struct, frozen=True):
    """A topic: its partitions in order, and every configuration key with its value as text."""

    name: str
    topic_id: str
    partitions: list[PartitionDescription]
    config: dict[str, str]
    overrides: dict[str, str]

    @property
    def size_bytes(self) -> int:
        return sum(partition.size_bytes for partition in self.partitions)

    @property
    def records(self) -> int:
        """Offsets between start and end; compaction and control records make it an upper bound."""
        return sum(partition.high_watermark - partition.log_start_offset for partition in self.partitions)


class MemberDescription(msgspec.Struct, frozen=True):
    """A live member of a consumer group; ``process_id`` begins with the operating system's pid."""

    member_id: str
    process_id: str
    topics: list[str]
    assignment: list[tuple[str, int]]


class OffsetDescription(msgspec.Struct, frozen=True):
    """A group's place in one partition; ``lag`` counts the visible offsets from it on.

    ``committed_offset`` and ``lag`` are None while the group has committed nothing there.
    """

    topic: str
    partition: int
    committed_offset: int | None
    high_watermark: int
    lag: int | None
    member_id: str | None


class GroupDescription(msgspec.Struct, frozen=True):
    """A consumer group: its live members and its place in each partition it reads."""

    name: str
    generation: int
    members: list[MemberDescription]
    offsets: list[OffsetDescription]

    @property
    def lag(self) -> int:
        """The sum over the partitions whose lag is known."""
        return sum(offset.lag for offset in self.offsets if offset.lag is not None)


class SubscriptionPartitionDescription(msgspec.Struct, frozen=True):
    """How far a subscription is in one partition; counts are of messages.

    Attributes:
        start_offset: every message below it is done.
        lag: not done yet, whatever their state.
        in_flight: in the hands of consumers.
        delayed: to be delivered later.
        waiting: for others of their key.
        rejected: on their way to the dead letters.
        oldest_age_ms: how long ago the first that is not done was sent; None when all are, or it cannot be read.
        consumers: who holds messages (of a stream: who owns the partition).
    """

    topic: str
    partition: int
    start_offset: int
    high_watermark: int
    lag: int
    in_flight: int
    delayed: int
    waiting: int
    rejected: int
    oldest_age_ms: int | None
    consumers: list[str]

    @property
    def ready(self) -> int:
        """To be delivered now."""
        return self.lag - self.in_flight - self.delayed - self.waiting - self.rejected


class SubscriptionDescription(msgspec.Struct, frozen=True):
    """A subscription: its rules, and how far it is. Of a stream ``lease_ms`` and ``max_deliveries`` are None.

    ``dead_letters`` counts those of this subscription that are in the dead letter topic and were not redriven.
    """

    name: str
    kind: str
    topics: list[str]
    is_paused: bool
    filter: str | None
    lease_ms: int | None
    max_deliveries: int | None
    dead_letter: str | None
    expired: str
    ordered: bool
    priorities: bool
    created_ms: int
    dead_letters: int
    partitions: list[SubscriptionPartitionDescription]

    @property
    def lag(self) -> int:
        """Messages that are not done, in all partitions."""
        return sum(partition.lag for partition in self.partitions)

    @property
    def in_flight(self) -> int:
        """Messages in the hands of consumers."""
        return sum(partition.in_flight for partition in self.partitions)

    @property
    def oldest_age_ms(self) -> int | None:
        """The greatest of the partitions'."""
        ages = [
            partition.oldest_age_ms for partition in self.partitions if partition.oldest_age_ms is not None
        ]
        return max(ages, default=None)
