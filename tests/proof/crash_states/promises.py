"""What the program was promised so far, and what it has tried: a state of the disk is judged by both.

Each promise goes through the same stages, and each stage is noted in the list of operations when the program
comes to it:

    tried    it is under way: a state may show it, whole, or not
    kept     it was acknowledged: every state must show it

A record's offset is known when its append returns; of a state before that it is only said "the next offset of
the log", and a state is judged when the whole recording is known. So ``Batch`` is filled in later.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from .sight import Record, Seen, Sight

Place = tuple[str, int]  # topic and partition


class Stage(enum.Enum):
    """How far a promise is."""

    TRIED = "tried"
    KEPT = "kept"


class End(enum.Enum):
    """How a transaction ends."""

    NONE = "open"
    COMMIT_TRIED = "commit was tried"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(eq=False)
class Batch:
    """Records that stand in a log together or not at all."""

    pairs: list[tuple[bytes | None, bytes | None]]
    """Key and value of each."""
    transaction: str | None = None
    base_offset: int | None = None
    """None as long as its append has not returned."""

    @property
    def end_offset(self) -> int:
        assert self.base_offset is not None
        return self.base_offset + len(self.pairs)

    def records(self) -> list[Record]:
        assert self.base_offset is not None
        return [Record(self.base_offset + n, key, value) for n, (key, value) in enumerate(self.pairs)]


@dataclass
class LogPromise:
    """Of one partition of one topic that was created."""

    batches: list[Batch] = field(default_factory=list)
    """Tried, oldest first."""
    kept_end: int = 0
    """Records below this offset were acknowledged."""
    sequences: dict[int, int] = field(default_factory=dict)
    """Of each producer id the last sequence that was acknowledged."""
    start_kept: int = 0
    """Records below were deleted on request, and that was acknowledged."""
    start_tried: int = 0
    """Records below may be deleted."""
    compacting: bool = False
    """A record may be gone when a later one of its key is there."""

    def become(self, seen: Seen) -> None:
        """What was seen of it lasts, and nothing else."""
        there = {record.offset for record in seen.records}
        self.batches = [
            batch
            for batch in self.batches
            if batch.base_offset is not None
            and there.intersection(range(batch.base_offset, batch.end_offset))
        ]
        self.kept_end = seen.log_end_offset
        self.sequences = dict(seen.sequences)
        self.start_kept = self.start_tried = seen.log_start_offset


@dataclass
class TopicPromise:
    """Of one topic; another one of the same name comes after it only when it is gone."""

    name: str
    logs: list[LogPromise]
    topic_id: bytes
    created: Stage = Stage.TRIED
    deleted: Stage | None = None
    added: list[LogPromise] = field(default_factory=list)
    """Partitions that may be there, too."""


@dataclass
class MessagePromise:
    """Of a message of a queue, by subscription and place."""

    accepted: Stage | None = None
    rejected: Stage | None = None
    transactions: list[str] = field(default_factory=list)
    """Those that accept it, if they are committed."""


@dataclass
class CommitPromise:
    """Of a group's offset in a partition."""

    kept: int | None = None
    tried: list[int] = field(default_factory=list)
    """Since the one that was kept."""
    by_transaction: dict[str, int] = field(default_factory=dict)
    """Offsets that were tried as part of a transaction that is not over."""


@dataclass
class Promises:
    """All of them."""

    topics: dict[str, list[TopicPromise]] = field(default_factory=dict)
    transactions: dict[str, End] = field(default_factory=dict)
    commits: dict[tuple[str, str, int], CommitPromise] = field(default_factory=dict)
    queues: dict[str, str] = field(default_factory=dict)
    """Subscriptions that were kept, and their topics."""
    messages: dict[tuple[str, str, int, int], MessagePromise] = field(default_factory=dict)
    """By subscription, topic, partition and offset."""
    version: int = 0
    """Grows with each change."""

    def topic(self, name: str) -> TopicPromise:
        """The newest of the name."""
        return self.topics[name][-1]

    def log(self, topic: str, partition: int) -> LogPromise:
        return self.topic(topic).logs[partition]

    def commit(self, group: str, topic: str, partition: int) -> CommitPromise:
        return self.commits.setdefault((group, topic, partition), CommitPromise())

    def message(self, subscription: str, topic: str, partition: int, offset: int) -> MessagePromise:
        return self.messages.setdefault((subscription, topic, partition, offset), MessagePromise())

    def aborted(self, label: str) -> None:
        """A transaction was, and what it had tried to commit."""
        self.transactions[label] = End.ABORTED
        for commit in self.commits.values():
            commit.by_transaction.pop(label, None)

    def become(self, found: Sight) -> None:
        """After a recovery: what there is lasts, what there is not does not come back."""
        for name in [name for name in self.topics if name not in found.topics]:
            del self.topics[name]
        for name, (topic_id, partitions) in found.topics.items():
            (topic,) = [topic for topic in self.topics[name] if topic.topic_id == topic_id]
            topic.created, topic.deleted = Stage.KEPT, None
            topic.logs, topic.added = (topic.logs + topic.added)[:partitions], []
            self.topics[name] = [topic]
            for number, log in enumerate(topic.logs):
                log.become(found.logs[name, number])
        decided = self._decided(found)
        for label, end in self.transactions.items():
            if end is not End.COMMITTED:
                counts = end is End.COMMIT_TRIED and label in decided
                self.transactions[label] = End.COMMITTED if counts else End.ABORTED
        self.commits = {key: CommitPromise(kept=offset) for key, offset in found.commits.items()}

    def _decided(self, found: Sight) -> set[str]:
        """The transactions of which something can be seen."""
        decided = {
            batch.transaction
            for name, topics in self.topics.items()
            for number, log in enumerate(topics[-1].logs)
            for batch in log.batches
            if batch.transaction is not None and batch.base_offset in found.logs[name, number].committed
        }
        for key, commit in self.commits.items():
            offset = found.commits.get(key)
            if offset not in (commit.kept, *commit.tried):
                decided |= {label for label, pending in commit.by_transaction.items() if pending == offset}
        return decided
