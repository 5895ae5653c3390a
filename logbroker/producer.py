"""The producer: what ``broker.producer()`` returns.

``send`` puts a record into its partition's open batch and returns. A record that is only a value goes the
short way, which takes no lock (see ``accumulator``); everything else takes ``_send``. What happens to
batches is ``delivery``'s business, which sequences they carry that of ``sequences`` and ``named_producer``.

Guards: ``delivery.lock`` for every field; ``_plain`` and ``_keyed`` are also read without it.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from types import TracebackType
from typing import Unpack

from msgspec import structs

from logbroker_storage.clock import SYSTEM_CLOCK
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    InvalidRequestError,
    LogbrokerError,
    RecordTooLargeError,
    TopicNotFoundError,
)
from logbroker_storage.events import TopicEvent
from logbroker_storage.record_batch import HEADER_BYTES, Compression, NewRecord, encode_batch

from .accumulator import HEADER_OVERHEAD_BYTES, OPEN, RECORD_OVERHEAD_BYTES, VALUE_OVERHEAD_BYTES, Batch
from .delivery import Acks, Delivery, HandleState, PartitionQueue
from .named_producer import NEVER_WROTE, NamedSequences, block_of
from .partitioner import StickyPartitioner, partition_for_key, positive_hash
from .receipts import DUPLICATE, ForgottenReceipt, Receipt, RepeatedReceipt
from .records import (
    NO_HEADERS,
    AcksName,
    Message,
    SendOptions,
    due_ms,
    message_id_bytes,
    stored_headers,
    timestamp_ms_of,
)
from .sequences import AnonymousSequences, Sequences
from .topic_names import check_producer_name

logger = logging.getLogger("logbroker.producer")

DEFAULT_LINGER = 0.005
DEFAULT_BATCH_BYTES = 128 * 1024
DEFAULT_BUFFER_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_BLOCK = 60.0
SLOW_PACE_S = 1.0
UTF8_BYTES = 4  # at most, of one character
FIRST_SLICE = 64  # values that send_many tries first; then as many as a batch takes

# Without a GIL the short way of ``send`` would be a race: see ``accumulator``.
_SHORT_WAY_IS_SAFE: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class _Topic:
    """What a producer remembers of a topic, as of one version of the catalog."""

    __slots__ = ("event", "partitioner", "queues", "sticky")

    def __init__(self, event: TopicEvent) -> None:
        self.event = event
        self.partitioner = StickyPartitioner()
        self.queues: dict[int, PartitionQueue] = {}
        self.sticky: Batch | None = None  # the batch that took the last record without a key


class _Pending:
    """A record on the long way: checked, and not yet in a batch."""

    __slots__ = (
        "deadline_s",
        "has_ttl",
        "headers",
        "is_forgotten",
        "key",
        "message_id",
        "partition",
        "sequence",
        "size_bytes",
        "timestamp_ms",
        "value",
    )

    def __init__(self, message: Message, now_ms: Callable[[], int]) -> None:
        value, key = message.value, message.key
        if type(value) is not bytes and value is not None:
            raise _not_bytes("value", value)
        if type(key) is not bytes and key is not None:
            raise _not_bytes("key", key)
        self.value = value
        self.key = key
        self.has_ttl = message.ttl is not None
        self.message_id = None if message.message_id is None else message_id_bytes(message.message_id)
        self.is_forgotten = message.acks == "none"
        self.headers = stored_headers(
            message.headers,
            message.ttl,
            deliver_at_ms=None
            if message.deliver_at is None and message.delay is None
            else due_ms(message.deliver_at, message.delay, now_ms),
            priority=message.priority,
            message_id=self.message_id,
            sent_ms=None if message.timestamp is None or self.message_id is None else now_ms(),
        )
        self.partition = message.partition
        self.timestamp_ms = None if message.timestamp is None else timestamp_ms_of(message.timestamp)
        self.sequence = message.sequence
        self.size_bytes = self._size_bytes()
        self.deadline_s: float | None = None  # of waiting for space; monotonic

    def _size_bytes(self) -> int:
        """An upper bound of what it takes in a batch."""
        size_bytes = 0 if self.value is None else len(self.value)
        if self.key is None and not self.headers and self.timestamp_ms is None:
            return size_bytes + VALUE_OVERHEAD_BYTES
        size_bytes += RECORD_OVERHEAD_BYTES + (0 if self.key is None else len(self.key))
        for name, content in self.headers:
            size_bytes += HEADER_OVERHEAD_BYTES + UTF8_BYTES * len(name) + len(content or b"")
        return size_bytes


class Producer:
    """Sends records to the topics of a data directory. Safe to share between threads.

    Always idempotent: nothing is appended twice, whatever fails. Use it in a ``with``: leaving it flushes,
    and raises the first failure that no receipt has told. In a forked child it raises ``ForkedError``; open
    another.
    """

    def __init__(
        self,
        directory: DataDirectory,
        *,
        name: str | None = None,
        acks: AcksName = "all",
        linger: float = DEFAULT_LINGER,
        batch_bytes: int = DEFAULT_BATCH_BYTES,
        compression: str | None = None,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        max_block: float = DEFAULT_MAX_BLOCK,
        sequences: Sequences | None = None,
    ) -> None:
        """Use ``broker.producer()``.

        Args:
            name: take over the named producer of this name, for sequences that last (see ``send``). The
                holder before is fenced.
            acks: what a receipt waits for: ``"all"``: as durable as the topic's ``durability`` (on the disk,
                by default); ``"written"``: in the operating system's memory, synced soon after; ``"none"``:
                nothing, and failures are only logged.
            linger: seconds that a record may wait for others to share its batch; 0 appends each at once.
            batch_bytes: a batch is complete at this size, before compression.
            compression: ``"gzip"``, ``"snappy"``, ``"lz4"``, ``"zstd"`` or None, for topics whose
                ``compression.type`` is ``producer``.
            buffer_bytes: most that may wait, in memory or for the disk, before ``send`` blocks.
            max_block: seconds that ``send`` may block for space before it raises ``BufferFullError``.
            sequences: how batches are numbered, for a transaction's producer; not together with *name*.

        Raises:
            InvalidRequestError: an argument has a value that it does not take.
        """
        self._acks = Acks(_one_of("acks", acks, [member.value for member in Acks]))
        codecs = [codec.name.lower() for codec in Compression]
        self._compression = Compression.from_name(
            None if compression is None else _one_of("compression", compression, codecs)
        )
        for option, number, least in (
            ("linger", linger, 0),
            ("batch_bytes", batch_bytes, 1),
            ("buffer_bytes", buffer_bytes, 1),
            ("max_block", max_block, 0),
        ):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= least:
                raise InvalidRequestError(f"{option} is a number not below {least}, not {number!r}")
        checked_name = None if name is None else check_producer_name(name)
        # A user of the directory of its own: closing the broker first must not pull it away from under sends.
        self._directory = directory = DataDirectory.open(directory.path)
        try:
            self._named = None if checked_name is None else NamedSequences(directory, checked_name)
        except BaseException:
            directory.close()
            raise
        if sequences is None:
            sequences = self._named if self._named is not None else AnonymousSequences(directory)
        self._delivery = Delivery(
            sequences=sequences,
            acks=self._acks,
            linger=linger,
            batch_bytes=batch_bytes,
            buffer_bytes=buffer_bytes,
        )
        self._max_block = max_block
        self._now_s = _wall_clock(directory)
        self._topics: dict[str, _Topic] = {}
        self._topics_version = -1
        # Topic -> the open batch for its plain values.
        self._plain: dict[str, Batch] = {}
        # Topic -> partition -> its open batch of whole records.
        self._keyed: dict[str, list[Batch | None]] = {}
        self._appends_at_once = linger == 0
        self._short_way = _SHORT_WAY_IS_SAFE and self._named is None and not self._appends_at_once
        _producers.add(self)

    @property
    def name(self) -> str | None:
        """The name it was opened with."""
        return None if self._named is None else self._named.name

    @property
    def closed(self) -> bool:
        """Whether it takes no more records."""
        return self._delivery.state is not HandleState.OPEN

    @property
    def lost_records(self) -> int:
        """How many records sent with ``acks="none"`` failed so far, as far as that is known by now."""
        return self._delivery.lost_records

    def __repr__(self) -> str:
        named = "" if self._named is None else f" {self._named.name!r}"
        return f"<Producer{named} acks={self._acks.value} {self._delivery.state.value}>"

    # Sending ----------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: bytes | None,
        # Meant to be given by name; CPython 3.11 takes 0.1 µs longer to call a function that insists on it.
        key: bytes | None = None,
        **options: Unpack[SendOptions],
    ) -> Receipt:
        """Hand over one record; the receipt tells what became of it.

        Returns as soon as the record is in its batch: a failure to write it is the receipt's, and
        ``flush``'s. Records of one partition keep their order.

        Args:
            topic: an existing topic.
            value: the payload; None is a tombstone in a compacted topic.
            key: records of one key go to one partition (murmur2, as Kafka's Java client).
            headers: a mapping or pairs; values are bytes, text (stored as UTF-8) or None.
            partition: the partition, instead of the key's.
            timestamp: an aware datetime, or milliseconds since 1970 UTC; default: now.
            ttl: a timedelta: how long after its timestamp the record may be delivered.
            sequence: with a named producer, the user's number of this record in its partition: 0 or more,
                growing. One not above the last is acknowledged and not appended. Without it: the one after
                the last.
            deliver_at: an aware datetime, or milliseconds since 1970 UTC, before which no queue delivers the
                record. Consumers that read the topic as a stream get it at once.
            delay: the same as a timedelta from now; not together with ``deliver_at``.
            priority: 0 (normal, the default) to 9. A queue delivers higher ones first; to a stream it means
                nothing.
            message_id: text of 1 to 200 bytes in UTF-8. Of the records with one id that the topic is sent within
                its ``deduplication.window.ms`` the first is appended, whoever sends them to whichever partition;
                the receipts of the others are that one's. Without a key and a partition the id decides on the
                partition. Not with a named producer, which has sequences for that.
            acks: ``"none"``: nobody will ask what becomes of the record. Its receipt is done at once; if it fails,
                that is logged and counted (``lost_records``).

        Raises:
            TopicNotFoundError: no such topic or partition.
            RecordTooLargeError: the record cannot fit the topic's ``max.message.bytes``.
            InvalidRequestError: a value of a wrong type, a sequence without a name, a reserved header, …
            BufferFullError: no space for ``max_block`` seconds.
            FencedError: a newer holder has the producer's name (or through the receipt).
            ClosedError, ForkedError: this producer takes nothing more.
        """
        if not options and type(value) is bytes:
            if key is not None:
                return self._send_keyed(topic, value, key)
            try:
                batch = self._plain[topic]
            except KeyError:
                pass
            else:
                size_bytes = len(value)
                # No call from here to append: see accumulator, "The lock-free append".
                index = batch.count
                if index < batch.granted_until and size_bytes <= batch.granted_bytes:
                    batch.count = index + 1
                    batch.values.append(value)
                    return Receipt(batch, index)
                receipt = self._send_plain(batch, value)
                if receipt is not None:
                    return receipt
        return self._send(topic, self._pending(Message(value, key, **options)))

    def _pending(self, message: Message) -> _Pending:
        if message.acks is not None and message.acks not in ("none", self._acks.value):
            raise InvalidRequestError(
                f"acks={message.acks!r} of one record: a producer opened with acks={self._acks.value!r} takes "
                "'none' or its own; open another with broker.producer(acks=…)"
            )
        if message.message_id is not None and self._named is not None:
            raise InvalidRequestError(
                "a named producer knows its records by their sequences: send with message_id= through another "
                "producer, or with sequence= and no message_id="
            )
        return _Pending(message, self._directory.clock.now_ms)

    def _send_keyed(self, topic: str, value: bytes, key: bytes) -> Receipt:
        """The short way of a record with a key and nothing else."""
        batches = self._keyed.get(topic)
        if batches is not None and type(key) is bytes:
            batch = batches[positive_hash(key) % len(batches)]
            if batch is not None:
                size_bytes = len(value) + len(key)
                record = NewRecord(value, key, NO_HEADERS, batch.timestamp_ms)
                # No call from here to append: see accumulator, "The lock-free append".
                index = batch.count
                records = batch.records
                if records is not None and index < batch.granted_until and size_bytes <= batch.granted_bytes:
                    batch.count = index + 1
                    records.append(record)
                    return Receipt(batch, index)
        return self._send(topic, self._pending(Message(value, key)))

    def _send_plain(self, batch: Batch, value: bytes) -> Receipt | None:
        """The short way's look at the clock and the room; None when the batch is full or gone."""
        size_bytes = len(value) + VALUE_OVERHEAD_BYTES
        with self._delivery.lock:
            if batch.state is not OPEN:
                return None
            batch.freeze()
            if size_bytes > batch.spare:
                return None
            batch.widen(len(value))
            batch.stamp_now(self._look(batch))
            index = batch.add(value, None, NO_HEADERS, size_bytes)
            batch.grant(batch.queue.pace_s)
        return Receipt(batch, index)

    def send_many(
        self,
        topic: str,
        values: Iterable[bytes | Message | None],
        *,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> int:
        """Hand over many records; returns how many.

        Each item is a value or a ``Message``. The iterable is consumed as it comes, in bounded memory. *key*
        and *partition* hold for the items that bring none of their own. A list or tuple of ``bytes`` is
        fastest.

        There is no receipt for a record: a failure is raised by ``flush``, or on leaving the ``with``. With a
        named producer the values take the sequences after the last one, a ``Message`` may bring its own.

        Raises:
            as ``send``; the records before the failing item were handed over.
        """
        if isinstance(values, (bytes, str, dict, Message)):
            raise InvalidRequestError(
                f"send_many takes an iterable of bytes or Message, not one {type(values).__name__}"
            )
        if key is None and isinstance(values, (list, tuple)):
            return self._send_sequence(topic, values, partition)
        if key is None and partition is None:
            return self._send_iterator(topic, values)
        count = 0
        for item in values:
            self._send_item(topic, item, key, partition)
            count += 1
        return count

    def _send_item(
        self, topic: str, item: bytes | Message | None, key: bytes | None, partition: int | None
    ) -> None:
        if not isinstance(item, Message):
            item = Message(item, key, partition=partition)
        elif (key is not None and item.key is None) or (partition is not None and item.partition is None):
            item = structs.replace(
                item,
                key=key if item.key is None else item.key,
                partition=partition if item.partition is None else item.partition,
            )
        self._send(topic, self._pending(item))

    def _send_iterator(self, topic: str, values: Iterable[bytes | Message | None]) -> int:
        """Items one by one, because an iterator may take its time and nothing may wait for its next item."""
        count = 0
        for item in values:
            count += 1
            batch = self._plain.get(topic)
            if batch is not None and type(item) is bytes:
                size_bytes = len(item)
                # No call from here to append: see accumulator, "The lock-free append".
                if batch.count < batch.granted_until and size_bytes <= batch.granted_bytes:
                    batch.count += 1
                    batch.values.append(item)
                    continue
                if self._send_plain(batch, item) is not None:
                    continue
            self._send_item(topic, item, None, None)
        return count

    def _send_sequence(
        self, topic: str, values: Sequence[bytes | Message | None], partition: int | None
    ) -> int:
        """Plain values in slices as large as the batches; anything else one by one."""
        position = 0
        guess = FIRST_SLICE
        while position < len(values):
            chunk = values[position : position + guess]
            if set(map(type, chunk)) == {bytes}:
                taken, guess = self._send_slice(topic, chunk, partition)  # type: ignore[arg-type]
                position += taken
            else:
                for item in chunk:
                    self._send_item(topic, item, None, partition)
                position += len(chunk)
        return len(values)

    def _send_slice(self, topic: str, values: Sequence[bytes], partition: int | None) -> tuple[int, int]:
        """As many *values* as fit into one batch, at least one; how many, and how many the next may take."""
        first = self._pending(Message(values[0], partition=partition))
        while True:
            with self._delivery.lock:
                queue = self._queue_for(topic, first)
                place = self._place_for(queue, first)
                # A value without a sequence of its own is never a duplicate.
                assert not isinstance(place, Receipt)
                if isinstance(place, Batch):
                    taken = self._add_values(place, values)
                    filled_bytes = max(1, place.limit_bytes - place.spare)
                    guess = max(FIRST_SLICE, place.count * place.limit_bytes // filled_bytes)
                    self._thaw(place, first)
                    break
            place()
        if self._appends_at_once:
            self._append_now(place)
        return taken, guess

    def _add_values(self, batch: Batch, values: Sequence[bytes]) -> int:
        """Put the first of *values* into *batch*, as many as it has room for; how many."""
        sizes = list(map(len, values))
        count = len(values)
        if self._named is not None:
            count = min(count, self._named.room_in_block(batch.queue))
        size_bytes = sum(sizes[:count]) + count * VALUE_OVERHEAD_BYTES
        while size_bytes > batch.spare and count > 1:
            count = max(1, min(count - 1, count * batch.spare // size_bytes))
            size_bytes = sum(sizes[:count]) + count * VALUE_OVERHEAD_BYTES
        batch.stamp_now(self._look(batch))
        batch.add_values(values[:count], sizes[:count], size_bytes)
        if self._named is not None:
            batch.queue.last_sequence += count
            batch.last_sequence = batch.queue.last_sequence
        return count

    # The long way -----------------------------------------------------------------------------------

    def _send(self, topic: str, pending: _Pending) -> Receipt:
        """One record into its batch, after whatever has to happen first."""
        while True:
            with self._delivery.lock:
                queue = self._queue_for(topic, pending)
                place = self._place_for(queue, pending)
                if isinstance(place, Batch):
                    place = self._add(place, pending)
            if isinstance(place, Receipt):
                if self._appends_at_once:
                    self._append_now(place._batch)
                return place
            place()

    def _queue_for(self, name: str, pending: _Pending) -> PartitionQueue:
        """The queue of the partition that *pending* belongs to. Under the lock."""
        self._delivery.check_open()
        topic = self._topics.get(name)
        if topic is None:
            topic = self._load_topic(name)
        number = pending.partition
        if number is None:
            partitions = topic.event.partitions
            if pending.key is not None:
                number = partition_for_key(pending.key, partitions)
            elif pending.message_id is not None:
                number = partition_for_key(pending.message_id, partitions)
            else:
                if topic.sticky is not None and topic.sticky.state is not OPEN:
                    topic.sticky = None
                    topic.partitioner.batch_completed(partitions)
                number = topic.partitioner.partition(partitions)
        queue = topic.queues.get(number)
        if queue is None or queue.open is None:
            if self._directory.topics_version() != self._topics_version:
                self._refresh_topics()
                return self._queue_for(name, pending)  # it may belong elsewhere now
            if queue is None:
                queue = self._load_queue(name, number)
        return queue

    def _place_for(self, queue: PartitionQueue, pending: _Pending) -> Batch | Receipt | Callable[[], None]:
        """The open batch with room for *pending*, frozen; or what has to be done first, without the lock.

        A receipt instead: a named producer has written the record before. Under the lock.
        """
        if pending.has_ttl and not queue.may_hold_ttl:
            return partial(self._note_ttl, queue)
        if pending.message_id is not None and not queue.may_hold_ids:
            return partial(self._note_message_ids, queue)
        if self._named is not None:
            if not queue.claimed:
                return partial(self._claim, queue)
            sequence = self._named.assign(queue, pending.sequence)
            if sequence is None:
                return Receipt(queue.last_batch() or queue.settled, DUPLICATE)
            pending.sequence = sequence
        elif pending.sequence is not None:
            raise InvalidRequestError("sequence= needs a named producer: broker.producer(name=…)")
        batch = queue.open
        if batch is None:
            return self._new_batch(queue, pending)
        batch.freeze()
        if pending.size_bytes <= batch.spare and self._same_block(batch, pending):
            return batch
        self._delivery.close_batch(batch)
        return partial(self._delivery.append_closed, queue)

    def _note_ttl(self, queue: PartitionQueue) -> None:
        self._directory.note_ttl(queue.topic)
        queue.may_hold_ttl = True

    def _note_message_ids(self, queue: PartitionQueue) -> None:
        self._directory.note_message_ids(queue.topic)
        queue.may_hold_ids = True

    def _new_batch(self, queue: PartitionQueue, pending: _Pending) -> Batch | Callable[[], None]:
        self._check_fits(queue, pending)
        batch = self._delivery.open_batch(queue, pending.size_bytes)
        if batch is not None:
            return batch
        if pending.deadline_s is None:
            pending.deadline_s = time.monotonic() + self._max_block
        return partial(
            self._delivery.wait_for_space,
            self._delivery.limit_bytes(queue, pending.size_bytes),
            deadline_s=pending.deadline_s,
            max_block=self._max_block,
        )

    def _add(self, batch: Batch, pending: _Pending) -> Receipt:
        """Put the record into *batch*, which is frozen and has room. Under the lock."""
        message_id = pending.message_id
        if message_id is not None:
            if not batch.queue.log.config.deduplication_window_ms:
                message_id = None
            elif (first := batch.index_of_id(message_id)) is not None:
                self._thaw(batch, pending)
                return RepeatedReceipt(batch, first)
        if pending.timestamp_ms is None:
            batch.stamp_now(self._look(batch))
        else:
            self._check_timestamp(batch.queue, pending.timestamp_ms)
            batch.stamp(pending.timestamp_ms)
        index = batch.add(pending.value, pending.key, pending.headers, pending.size_bytes)
        if pending.sequence is not None:
            batch.last_sequence = batch.queue.last_sequence = pending.sequence
        if message_id is not None:
            batch.take_id(message_id, index)
        self._thaw(batch, pending)
        if pending.is_forgotten:
            batch.forget(index)
            return ForgottenReceipt(batch, index)
        return Receipt(batch, index)

    def _look(self, batch: Batch) -> float:
        """The time in seconds since 1970; remembers how fast records come in. Under the lock."""
        now_s = self._now_s()
        queue = batch.queue
        new = batch.count - batch.looked_count + 1
        elapsed_s = now_s - queue.looked_s
        queue.pace_s = elapsed_s / new if elapsed_s > 0 else SLOW_PACE_S
        queue.looked_s = now_s
        batch.looked_count = batch.count
        return now_s

    def _thaw(self, batch: Batch, pending: _Pending) -> None:
        """Let senders find the batch by the short way, where it may be taken."""
        if pending.key is None and pending.partition is None and pending.message_id is None:
            self._topics[batch.queue.topic].sticky = batch
        if not self._short_way or pending.timestamp_ms is not None:
            return
        queue = batch.queue
        batch.grant(queue.pace_s)
        if batch.records is None:
            if pending.key is None and pending.partition is None:
                self._plain[queue.topic] = batch
        else:
            if self._plain.get(queue.topic) is batch:
                del self._plain[queue.topic]
            self._keyed[queue.topic][queue.partition] = batch

    def _append_now(self, batch: Batch) -> None:
        """Without linger a record is appended before ``send`` returns."""
        with self._delivery.lock:
            if batch.state is OPEN:
                self._delivery.close_batch(batch)
        self._delivery.append_closed(batch.queue)

    # Named producers --------------------------------------------------------------------------------

    def last_sequence(self, topic: str, partition: int = 0) -> int | None:
        """The last sequence of this producer's name in the partition; None when it never wrote there.

        What an earlier holder wrote is on the disk when this returns, and it can write nothing more. Records
        handed over since count too. After a failed send the partition takes records again once this was
        asked: go on behind what it returns.

        Raises:
            InvalidRequestError: the producer has no name.
            TopicNotFoundError: no such topic or partition.
            FencedError: a newer holder has the name.
        """
        if self._named is None:
            raise InvalidRequestError("last_sequence needs a named producer: broker.producer(name=…)")
        with self._delivery.lock:
            queue = self._queue_for(topic, self._pending(Message(None, partition=partition)))
            if queue.failure is not None:
                queue.claimed = False
            claimed = queue.claimed
        if not claimed:
            self._claim(queue)
        last_sequence = queue.last_sequence
        return None if last_sequence == NEVER_WROTE else last_sequence

    def _claim(self, queue: PartitionQueue) -> None:
        assert self._named is not None
        with queue.sending:
            if queue.claimed:
                return
            last_sequence = self._named.claim(queue)
            with self._delivery.lock:
                queue.last_sequence = last_sequence
                queue.failure = None
                queue.claimed = True

    def _same_block(self, batch: Batch, pending: _Pending) -> bool:
        return pending.sequence is None or block_of(pending.sequence) == block_of(batch.last_sequence)

    # Topics -----------------------------------------------------------------------------------------

    def _load_topic(self, name: str) -> _Topic:
        if not isinstance(name, str):
            raise InvalidRequestError(f"a topic is named by text, not by {name!r}")
        self._refresh_topics()
        topic = self._topics[name] = _Topic(self._directory.topic(name))
        self._keyed[name] = [None] * topic.event.partitions
        return topic

    def _load_queue(self, name: str, number: int) -> PartitionQueue:
        """The queue of a partition, after a look at whether topics have changed."""
        self._refresh_topics()
        topic = self._topics.get(name)
        if topic is None:
            topic = self._load_topic(name)
        queue = topic.queues.get(number)
        if queue is None:
            if type(number) is not int:
                raise InvalidRequestError(f"a partition is an integer, not {number!r}")
            if not 0 <= number < topic.event.partitions:
                known = f" (it has {topic.event.partitions}, numbered from 0)"
                raise TopicNotFoundError(name, partition=number, known=known)
            log, window = self._directory.log(name, number), self._directory.deduplication(name)
            queue = PartitionQueue(self._delivery, log, window, self._compression)
            topic.queues[number] = queue
            self._delivery.add_queue(queue)
        return queue

    def _refresh_topics(self) -> None:
        """Drop what was remembered of topics that were deleted (or made anew), update the others."""
        version = self._directory.topics_version()
        if version == self._topics_version:
            return
        for name, topic in list(self._topics.items()):
            try:
                event = self._directory.topic(name)
            except TopicNotFoundError:
                event = None
            if event is not None and event.topic_id == topic.event.topic_id:
                topic.event = event
                self._keyed[name] = [None] * event.partitions
                for number in topic.queues:
                    self._directory.log(name, number)  # takes up a changed configuration
                continue
            del self._topics[name]
            self._plain.pop(name, None)
            self._keyed.pop(name, None)
            for queue in topic.queues.values():
                self._delivery.drop_queue(queue)
        self._topics_version = version

    def _check_fits(self, queue: PartitionQueue, pending: _Pending) -> None:
        max_bytes = queue.log.config.max_message_bytes
        if HEADER_BYTES + pending.size_bytes <= max_bytes or queue.compression is not Compression.NONE:
            return
        # size_bytes is an upper bound; only this close to the limit are the exact bytes worth their time.
        record = NewRecord(pending.value, pending.key, pending.headers, pending.timestamp_ms or 0)
        size_bytes = len(encode_batch([record]))
        if size_bytes > max_bytes:
            raise RecordTooLargeError(queue.topic, size_bytes=size_bytes, max_bytes=max_bytes)

    def _check_timestamp(self, queue: PartitionQueue, timestamp_ms: int) -> None:
        config = queue.log.config
        now_ms = self._directory.clock.now_ms()
        if timestamp_ms > now_ms + config.message_timestamp_after_max_ms:
            raise InvalidRequestError(
                f"timestamp {timestamp_ms} is further in the future than message.timestamp.after.max.ms="
                f"{config.message_timestamp_after_max_ms} of topic {queue.topic!r} allows"
            )
        if timestamp_ms < now_ms - config.message_timestamp_before_max_ms:
            raise InvalidRequestError(
                f"timestamp {timestamp_ms} is further in the past than message.timestamp.before.max.ms="
                f"{config.message_timestamp_before_max_ms} of topic {queue.topic!r} allows"
            )

    # Flushing and closing ---------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Have every record that was handed over acknowledged; *timeout* in seconds.

        Raises:
            DeliveryTimeoutError: not all were in time.
            LogbrokerError: the first failure that no receipt has told; it counts as told from now on.
        """
        self._delivery.flush(timeout)
        self._delivery.raise_unobserved()

    def close(self) -> None:
        """Flush, have everything on the disk that was written, and take no more records.

        Closing twice is closing once; in a forked child it does nothing.

        Raises:
            LogbrokerError: as ``flush``. The producer is closed all the same.
        """
        if self._delivery.state is not HandleState.OPEN:
            return
        try:
            self._delivery.close()
        finally:
            self._directory.close()
        self._delivery.raise_unobserved()

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except LogbrokerError as failure:
            if error is None:
                raise
            # The caller's own exception comes first; the failure must not hide it.
            error.add_note(f"and the producer could not deliver everything: {failure}")

    def _abandon(self) -> None:
        """In a forked child: the batches are the parent's."""
        self._plain = {}
        self._keyed = {}
        self._delivery.abandon()


def _wall_clock(directory: DataDirectory) -> Callable[[], float]:
    """Seconds since 1970, as cheap as can be where the clock is the system's."""
    clock = directory.clock
    if clock is SYSTEM_CLOCK:
        return time.time
    # The middle of the millisecond, because a float's rounding could fall below its start.
    return lambda: (clock.now_ms() + 0.5) / 1000


def _one_of(option: str, value: object, allowed: Sequence[str]) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    near = get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    choices = ", ".join(map(repr, allowed))
    raise InvalidRequestError(f"{option}={value!r} is not allowed; {hint}it takes {choices}")


def _not_bytes(what: str, value: object) -> InvalidRequestError:
    hint = "; encode it first: text.encode()" if isinstance(value, str) else ""
    return InvalidRequestError(f"a record's {what} is bytes or None, not {type(value).__name__}{hint}")


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for producer in list(_producers):
        producer._abandon()


def _close_at_exit() -> None:
    """What was sent goes out, also when the user forgot to close."""
    for producer in list(_producers):
        try:
            producer.close()
        except LogbrokerError as error:
            logger.warning("%r could not deliver everything at exit: %s", producer, error)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_at_exit)
