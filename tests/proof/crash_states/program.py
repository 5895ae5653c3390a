"""A program that uses a data directory, and writes down what it was promised.

    program = Program(disk, clock)
    program.create("orders", 2, segment_bytes=600)
    program.append("orders", 0, "a", [b"1", b"2"])          producer "a", idempotent; acknowledged
    program.append("orders", 0, "b", [b"3"], sync=False)    written, not acknowledged

Each method notes what it tries, does it, and notes what it was told. One thread, so the order is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import logbroker
from logbroker.broker import Broker
from logbroker.consumer import Consumer
from logbroker.queues.consumer import Queue
from logbroker.queues.message import Hands, MessageBatch, QueueMessage
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import OffsetOutOfRangeError
from logbroker_storage.log_config import ConfigValue
from logbroker_storage.log_offsets import LogOffsets
from logbroker_storage.record_batch import NewRecord, encode_batch
from logbroker_storage.testing import ManualClock

from .disk import Disk
from .operations import Told
from .promises import (
    Batch,
    CommitPromise,
    End,
    LogPromise,
    MessagePromise,
    Promises,
    Stage,
    TopicPromise,
)
from .sight import Eye

DEAD_LETTERS = "dead"  # the topic for those of every queue

Pair = tuple[bytes | None, bytes | None]
Place = tuple[str, int]


class Program:
    """See the module."""

    def __init__(self, disk: Disk, clock: ManualClock) -> None:
        self.disk = disk
        self.clock = clock
        self._sequences: dict[tuple[str, str, int], int] = {}
        self._producer_ids: dict[str, int] = {}
        self._transactions = itertools.count()
        self._consumers: dict[tuple[str, str], Consumer] = {}
        self._hands: dict[str, Queue] = {}
        self._pending: dict[Place, Batch] = {}
        self.broker: Broker

    @property
    def directory(self) -> DataDirectory:
        return self.broker._directory

    def tell(self, what: str, change: Callable[[Promises], None]) -> None:
        self.disk.tell(Told(what, change))

    # Opening and closing --------------------------------------------------------------------------

    def open(self) -> None:
        self.broker = logbroker.open(self.disk.path, files=self.disk, clock=self.clock)

    def recover(self) -> None:
        """Open after a power cut: what can be seen then is promised."""
        self.open()
        found = Eye().look(self.directory)
        self.tell("recovered", lambda promises: promises.become(found))

    def close(self) -> None:
        """A clean close: what was written is on the disk then."""
        for consumer in self._consumers.values():
            consumer.close()
        for hands in self._hands.values():
            hands.close()
        self._consumers.clear()
        self._hands.clear()
        self.broker.close()
        for place in list(self._pending):
            self._synced(*place)
        self.tell("closed", lambda promises: None)

    # Topics ---------------------------------------------------------------------------------------

    def create(self, name: str, partitions: int = 1, **config: ConfigValue) -> None:
        topic_id: list[bytes] = []  # as soon as it is known

        def tried(promises: Promises) -> None:
            topic = TopicPromise(name, [LogPromise() for _ in range(partitions)], topic_id[0])
            promises.topics.setdefault(name, []).append(topic)

        self.tell(f"create {name}", tried)
        self.broker.create_topic(
            name, partitions, config={key.replace("_", "."): value for key, value in config.items()}
        )
        topic_id.append(self.directory.topic(name).topic_id)
        self.tell(f"created {name}", lambda promises: setattr(promises.topic(name), "created", Stage.KEPT))

    def topics(self) -> dict[str, int]:
        """Names and numbers of partitions, but for those whose records are judged otherwise."""
        topics = self.directory.catalog.live()
        return {topic.name: topic.partitions for topic in topics if topic.name != DEAD_LETTERS}

    def add_partitions(self, name: str, total: int) -> None:
        def tried(promises: Promises) -> None:
            topic = promises.topic(name)
            topic.added = [LogPromise() for _ in range(total - len(topic.logs))]

        def kept(promises: Promises) -> None:
            topic = promises.topic(name)
            topic.logs, topic.added = topic.logs + topic.added, []

        self.tell(f"add partitions to {name}", tried)
        self.broker.alter_topic(name, partitions=total)
        self.tell(f"added partitions to {name}", kept)

    def delete(self, name: str) -> None:
        self.tell(f"delete {name}", lambda promises: setattr(promises.topic(name), "deleted", Stage.TRIED))
        self.broker.delete_topic(name)

        def kept(promises: Promises) -> None:
            promises.topic(name).deleted = Stage.KEPT
            for key in [key for key in promises.commits if key[1] == name]:
                del promises.commits[key]

        self.tell(f"deleted {name}", kept)
        for key in [key for key in self._sequences if key[1] == name]:
            del self._sequences[key]
        for place in [place for place in self._pending if place[0] == name]:
            del self._pending[place]

    # Records --------------------------------------------------------------------------------------

    def append(
        self, topic: str, partition: int, producer: str, values: Sequence[bytes | Pair], *, sync: bool = True
    ) -> None:
        """One batch of an idempotent producer, as ``Delivery`` appends and acknowledges it."""
        pairs = [value if isinstance(value, tuple) else (None, value) for value in values]
        if producer not in self._producer_ids:
            self._producer_ids[producer] = self.directory.producer_ids.allocate()
        sequence = self._sequences.get((producer, topic, partition), 0)
        now_ms = self.clock.now_ms()
        encoded = encode_batch(
            [NewRecord(value, key, (), now_ms) for key, value in pairs],
            producer_id=self._producer_ids[producer],
            producer_epoch=0,
            base_sequence=sequence,
        )
        batch = self._tried(topic, partition, pairs)
        batch.base_offset = self.directory.log(topic, partition).append(encoded).base_offset
        self._sequences[producer, topic, partition] = sequence + len(pairs)
        self._pending[topic, partition] = batch
        if sync:
            self.sync(topic, partition)

    def sync(self, topic: str, partition: int) -> None:
        log = self.directory.log(topic, partition)
        log.wait_durable(log.state().end.log_end_offset)
        self._synced(topic, partition)

    def send(self, topic: str, partition: int, *values: bytes) -> None:
        """Each value by itself, through a producer of the library."""
        with self.broker.producer(linger=0) as producer:
            for value in values:
                batch = self._tried(topic, partition, [(None, value)])
                receipt = producer.send(topic, value, partition=partition)
                batch.base_offset = receipt.result().offset
                self._pending[topic, partition] = batch
                self._synced(topic, partition)

    def _tried(
        self, topic: str, partition: int, pairs: Sequence[Pair], transaction: str | None = None
    ) -> Batch:
        batch = Batch(list(pairs), transaction)
        self.tell(
            f"append {len(pairs)} to {topic}-{partition}",
            lambda promises: promises.log(topic, partition).batches.append(batch),
        )
        return batch

    def _synced(self, topic: str, partition: int) -> None:
        batch = self._pending.pop((topic, partition), None)
        if batch is None:
            return

        sequences = {
            self._producer_ids[producer]: following - 1
            for (producer, *place), following in self._sequences.items()
            if place == [topic, partition]
        }

        def kept(promises: Promises) -> None:
            log = promises.log(topic, partition)
            log.kept_end = batch.end_offset
            log.sequences |= sequences

        self.tell(f"acknowledged {topic}-{partition} below {batch.end_offset}", kept)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        def tried(promises: Promises) -> None:
            promises.log(topic, partition).start_tried = before

        def kept(promises: Promises) -> None:
            promises.log(topic, partition).start_kept = before

        self.tell(f"delete records of {topic}-{partition} below {before}", tried)
        self.broker.delete_records(topic, {partition: before})
        self.tell(f"deleted records of {topic}-{partition} below {before}", kept)

    def offsets(self, topic: str, partition: int) -> LogOffsets:
        return self.directory.log(topic, partition).offsets()

    def roll(self, topic: str, partition: int) -> None:
        self.directory.log(topic, partition).roll_now()

    # Transactions ---------------------------------------------------------------------------------

    def transaction(
        self,
        name: str,
        sends: Sequence[tuple[str, int, Sequence[bytes]]],
        *,
        commit: bool = True,
        offsets: Sequence[tuple[str, str]] = (),
        accept: Sequence[QueueMessage] = (),
    ) -> None:
        """Send, take the *offsets* of (group, topic) along, *accept* messages, and end it."""
        label = f"{name} #{next(self._transactions)}"
        self.tell(f"begin {label}", lambda promises: promises.transactions.update({label: End.NONE}))
        transaction = self.broker.transaction(name)
        batches: list[tuple[Place, Batch]] = []
        for topic, partition, values in sends:
            for value in values:
                batch = self._tried(topic, partition, [(None, value)], label)
                batch.base_offset = transaction.send(topic, value, partition=partition).result().offset
                batches.append(((topic, partition), batch))
        for group, topic in offsets:
            consumer = self._consumer(group, topic)
            self._poll(consumer, 500)
            self._try_offsets(group, _uncommitted(consumer, topic), label)
            transaction.commit_offsets(consumer)
        if accept:
            self._try_accept(accept, label)
            transaction.accept(accept)
        if not commit:
            transaction.abort()
            self.tell(f"aborted {label}", lambda promises: promises.aborted(label))
            for key in list(self._consumers):
                if key in offsets:
                    self._consumers.pop(key).close()
            return

        def decided(promises: Promises) -> None:
            promises.transactions[label] = End.COMMITTED
            for key, known in promises.commits.items():
                if label in known.by_transaction:
                    promises.commits[key] = CommitPromise(kept=known.by_transaction[label])
            for place, batch in batches:
                log = promises.log(*place)
                log.kept_end = max(log.kept_end, batch.end_offset)

        self.tell(f"commit {label}", lambda promises: promises.transactions.update({label: End.COMMIT_TRIED}))
        transaction.commit()
        self.tell(f"committed {label}", decided)
        for key in offsets:
            self._consumers.pop(key).close()

    def _try_offsets(self, group: str, offsets: dict[Place, int], label: str) -> None:
        def tried(promises: Promises) -> None:
            for place, offset in offsets.items():
                promises.commit(group, *place).by_transaction[label] = offset

        self.tell(f"{group} takes its offsets into {label}", tried)

    # Groups ---------------------------------------------------------------------------------------

    def _consumer(self, group: str, topic: str) -> Consumer:
        known = self._consumers.get((group, topic))
        if known is None:
            known = self._consumers[group, topic] = self.broker.consumer(
                topic, group=group, delivery="manual"
            )
        return known

    def _poll(self, consumer: Consumer, at_most: int) -> None:
        """Read on; behind records that were deleted meanwhile, where the log begins now."""
        while True:
            try:
                consumer.poll(at_most)
            except OffsetOutOfRangeError as error:
                consumer.seek(error.partition, error.start_offset, topic=error.topic)
            else:
                return

    def consume(self, group: str, topic: str, *, at_most: int = 500) -> None:
        """Read on, and commit."""
        consumer = self._consumer(group, topic)
        self._poll(consumer, at_most)
        offsets = _uncommitted(consumer, topic)

        def tried(promises: Promises) -> None:
            for place, offset in offsets.items():
                promises.commit(group, *place).tried.append(offset)

        def kept(promises: Promises) -> None:
            for place, offset in offsets.items():
                promises.commits[group, *place] = CommitPromise(kept=offset)

        self.tell(f"{group} commits {offsets}", tried)
        consumer.commit()
        self.tell(f"{group} has committed {offsets}", kept)

    # Queues ---------------------------------------------------------------------------------------

    def subscribe(self, name: str, topic: str) -> None:
        self.broker.create_subscription(name, topic=topic, dead_letter=DEAD_LETTERS, lease=1000.0)
        self.tell(f"subscribed {name}", lambda promises: promises.queues.update({name: topic}))

    def hands(self, name: str) -> Queue:
        if name not in self._hands:
            self._hands[name] = self.broker.queue(subscription=name)
        return self._hands[name]

    def receive(self, name: str, count: int) -> MessageBatch:
        return self.hands(name).receive_many(count)

    def accept(self, *messages: QueueMessage) -> None:
        self._settle("accept", "accepted", messages, lambda queue: queue.accept(messages))

    def reject(self, *messages: QueueMessage) -> None:
        self._settle("reject", "rejected", messages, lambda queue: queue.reject(messages))

    def release(self, *messages: QueueMessage) -> None:
        messages[0].queue.release(messages)

    def _settle(
        self,
        verb: str,
        field: str,
        messages: Sequence[QueueMessage],
        settle: Callable[[Hands], None],
    ) -> None:
        def at(stage: Stage) -> Callable[[Promises], None]:
            def change(promises: Promises) -> None:
                for message in messages:
                    setattr(_promise_of(promises, message), field, stage)

            return change

        offsets = [message.offset for message in messages]
        self.tell(f"{verb} {offsets}", at(Stage.TRIED))
        settle(messages[0].queue)
        self.tell(f"{field} {offsets}", at(Stage.KEPT))

    def _try_accept(self, messages: Sequence[QueueMessage], label: str) -> None:
        def tried(promises: Promises) -> None:
            for message in messages:
                _promise_of(promises, message).transactions.append(label)

        self.tell(f"accept {[message.offset for message in messages]} in {label}", tried)

    # Housekeeping ---------------------------------------------------------------------------------

    def clean(self, *, retention: Sequence[Place] = (), compaction: Sequence[Place] = ()) -> None:
        """Run the cleaner, which may delete from *retention* and compact *compaction*."""

        def tried(promises: Promises) -> None:
            for place in retention:
                log = promises.log(*place)
                log.start_tried = max((batch.end_offset for batch in log.batches), default=0)
            for place in compaction:
                promises.log(*place).compacting = True

        self.tell("clean", tried)
        self.broker.clean()
        starts = {place: self.offsets(*place).log_start_offset for place in retention}

        def cleaned(promises: Promises) -> None:
            for place, start in starts.items():
                promises.log(*place).start_tried = start

        self.tell("cleaned", cleaned)

    def checkpoint(self) -> None:
        self.directory.checkpoint()

    def compact_journal(self) -> None:
        journal = self.directory.journal
        journal.compact_from_bytes = 0
        with journal.exclusive() as turn:
            turn.compact()

    def advance(self, seconds: float) -> None:
        self.clock.advance(ms=round(seconds * 1000))


def _uncommitted(consumer: Consumer, topic: str) -> dict[Place, int]:
    """Where *consumer*, of one topic, is in the partitions in which it has gone on since its last commit."""
    positions = consumer.position()
    return {place: positions[place[1]] for place in consumer.uncommitted_places() if place[0] == topic}


def _promise_of(promises: Promises, message: QueueMessage) -> MessagePromise:
    return promises.message(message.queue.subscription, message.topic, message.partition, message.offset)
