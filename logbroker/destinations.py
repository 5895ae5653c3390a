"""Where a producer's records go: the topics it has sent to, their partitions' queues, and their open batches.

What is remembered of a topic is true for one version of the catalog. Whoever finds no open batch looks whether
the version is still that one, so a deleted topic is noticed with the first record behind its last batch.

Guards: ``delivery.lock`` for every field; ``plain`` and ``keyed`` are also read without it.
"""

from __future__ import annotations

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError, TopicNotFoundError
from logbroker_storage.events import TopicEvent
from logbroker_storage.record_batch import Compression

from .accumulator import OPEN, Batch
from .delivery import Delivery
from .partition_queue import PartitionQueue
from .partitioner import StickyPartitioner, partition_for_id, partition_for_key
from .pending_record import PendingRecord


class Topic:
    """What a producer remembers of a topic, as of one version of the catalog."""

    __slots__ = ("event", "partitioner", "queues", "sticky")

    def __init__(self, event: TopicEvent) -> None:
        self.event = event
        self.partitioner = StickyPartitioner()
        self.queues: dict[int, PartitionQueue] = {}
        self.sticky: Batch | None = None  # the batch that took the last record without a key


class Destinations:
    """The queues of one producer, by topic and partition; every method is called under ``delivery.lock``."""

    def __init__(
        self, directory: DataDirectory, delivery: Delivery, compression: Compression, *, short_way: bool
    ) -> None:
        """*short_way*: records that are only a value, or a value and a key, may be added without a lock."""
        self._directory = directory
        self._delivery = delivery
        self._compression = compression
        self._short_way = short_way
        self.topics: dict[str, Topic] = {}
        self._version = -1
        # Topic -> the open batch for its plain values.
        self.plain: dict[str, Batch] = {}
        # Topic -> partition -> its open batch of whole records.
        self.keyed: dict[str, list[Batch | None]] = {}

    def queue_for(self, name: str, pending: PendingRecord) -> PartitionQueue:
        """The queue of the partition that *pending* belongs to. Under the lock."""
        self._delivery.check_open()
        try:
            topic = self.topics.get(name)
        except TypeError:
            topic = None  # what cannot be looked up is no text
        if topic is None:
            topic = self._load_topic(name)
        number = pending.partition
        if number is not None:
            if type(number) is not int:  # nor a bool or a float, which find the partition of their value
                raise InvalidRequestError(f"a partition is an integer, not {number!r}")
        else:
            partitions = topic.event.partitions
            if pending.key is not None:
                number = partition_for_key(pending.key, partitions)
            elif pending.message_id is not None:
                number = partition_for_id(pending.message_id, partitions)
            else:
                if topic.sticky is not None and topic.sticky.state is not OPEN:
                    topic.sticky = None
                    topic.partitioner.batch_completed(partitions)
                number = topic.partitioner.partition(partitions)
        queue = topic.queues.get(number)
        if queue is None or queue.open is None:
            if self._directory.topics_version() != self._version:
                self._refresh()
                return self.queue_for(name, pending)  # it may belong elsewhere now
            if queue is None:
                queue = self._load_queue(topic, number)
        return queue

    def offer(self, batch: Batch, pending: PendingRecord) -> None:
        """Let senders find the batch by the short way, where it may be taken."""
        if pending.key is None and pending.partition is None and pending.message_id is None:
            self.topics[batch.queue.topic].sticky = batch
        if not self._short_way or pending.timestamp_ms is not None:
            return
        queue = batch.queue
        batch.widen(pending.size_bytes - batch.overhead_bytes)
        batch.grant(queue.pace_s)
        if batch.records is None:
            if pending.key is None and pending.partition is None:
                self.plain[queue.topic] = batch
        else:
            if self.plain.get(queue.topic) is batch:
                del self.plain[queue.topic]
            self.keyed[queue.topic][queue.partition] = batch

    def _load_topic(self, name: str) -> Topic:
        self._refresh()
        topic = self.topics[name] = Topic(self._directory.topic(name))
        self.keyed[name] = [None] * topic.event.partitions
        return topic

    def _load_queue(self, topic: Topic, number: int) -> PartitionQueue:
        name, partitions = topic.event.name, topic.event.partitions
        if not 0 <= number < partitions:
            raise TopicNotFoundError(name, partition=number, partitions=partitions)
        log, window = self._directory.log(name, number), self._directory.deduplication(name)
        queue = topic.queues[number] = PartitionQueue(self._delivery, log, window, self._compression)
        self._delivery.add_queue(queue)
        return queue

    def _refresh(self) -> None:
        """Drop what was remembered of topics that were deleted (or made anew), update the others."""
        version = self._directory.topics_version()
        if version == self._version:
            return
        for name, topic in list(self.topics.items()):
            try:
                event = self._directory.topic(name)
            except TopicNotFoundError:
                event = None
            if event is not None and event.topic_id == topic.event.topic_id:
                topic.event = event
                self.keyed[name] = [None] * event.partitions
                for number in topic.queues:
                    self._directory.log(name, number)  # takes up a changed configuration
                continue
            del self.topics[name]
            self.plain.pop(name, None)
            self.keyed.pop(name, None)
            for queue in topic.queues.values():
                self._delivery.drop_queue(queue)
        self._version = version

    def clear(self) -> None:
        """In a forked child: the batches are the parent's."""
        self.plain.clear()
        self.keyed.clear()
