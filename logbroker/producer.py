"""The producer: what ``broker.producer()`` returns.

``send`` puts a record into its partition's open batch and returns. A record that is only a value, or a value
and a key, goes the short way, which takes no lock (see ``accumulator``); everything else goes the long one
(``long_way``). Which batch that is, ``destinations`` knows; what happens to batches is ``delivery``'s business,
which sequences they carry that of ``sequences`` and ``named_producer``.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Unpack

from msgspec import structs

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError, InvalidTopicError, LogbrokerError
from logbroker_storage.record_batch import Compression, NewRecord

from .accumulator import OPEN, VALUE_OVERHEAD_BYTES, Batch, headers_bytes
from .arguments import several, whole_number
from .deadlines import seconds_to_wait
from .delivery import Acks, Delivery, HandleState
from .destinations import Destinations
from .long_way import FIRST_SLICE, LongWay
from .named_producer import NamedSequences
from .partition_queue import NEVER_WROTE
from .partitioner import positive_hash
from .pending_record import PendingRecord
from .receipts import Receipt
from .records import NO_HEADERS, AcksName, HeadersArgument, Message, SendOptions, stored_headers
from .sequences import AnonymousSequences, Sequences
from .topic_names import check_producer_name

logger = logging.getLogger("logbroker.producer")

DEFAULT_LINGER_S = 0.005
# Appending a batch costs much the same for any size, so a burst wants large ones: with 128 KiB records of 1 KiB were
# written at half the rate. But a reader reads and checks all of a batch for one of its records: 0.14 ms at random.
DEFAULT_BATCH_BYTES = 512 * 1024
DEFAULT_BUFFER_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_BLOCK_S = 60.0

# Without a GIL the short way of ``send`` would be a race: see ``accumulator``.
_SHORT_WAY_IS_SAFE: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


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
        linger: float = DEFAULT_LINGER_S,
        batch_bytes: int = DEFAULT_BATCH_BYTES,
        compression: str | None = None,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        max_block: float = DEFAULT_MAX_BLOCK_S,
        sequences: Sequences | None = None,
    ) -> None:
        """Use ``broker.producer()``.

        Args:
            name: take over the named producer of this name, for sequences that last (see ``send``). The
                holder before is fenced.
            acks: what a receipt waits for: ``"all"``: as durable as the topic's ``durability`` (on the disk,
                by default); ``"written"``: in the operating system's memory, synced soon after; ``"none"``:
                nothing, and failures are only logged.
            linger: seconds that a record may wait for others to share its batch; 0 appends each at once, and
                ``math.inf`` leaves it to ``flush`` and full batches.
            batch_bytes: a batch is complete at this size, before compression; at a smaller one where half of the
                buffer has no room for a batch of each partition that was written to.
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
        linger = seconds_to_wait("linger", linger)
        max_block = seconds_to_wait("max_block", max_block)
        whole_number("batch_bytes", batch_bytes)
        whole_number("buffer_bytes", buffer_bytes)
        checked_name = None if name is None else check_producer_name(name)
        # A user of the directory of its own: closing the broker first must not pull it away from under sends.
        self._directory = directory = directory.one_more_use()
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
        short_way = _SHORT_WAY_IS_SAFE and self._named is None and linger > 0
        self._destinations = Destinations(directory, self._delivery, self._compression, short_way=short_way)
        # For the short way, which reads them without the lock.
        self._plain = self._destinations.plain
        self._keyed = self._destinations.keyed
        self._long_way = LongWay(
            directory, self._delivery, self._destinations, named=self._named, max_block=max_block
        )
        _producers.add(self)
        _deliveries.add(self._delivery)

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
        return self._delivery.failures.lost_records

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
        headers: HeadersArgument | None = None,
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
            TopicNotFoundError, InvalidTopicError: no such topic or partition; *topic* is no text.
            RecordTooLargeError: the record cannot fit the topic's ``max.message.bytes``.
            InvalidRequestError: a value of a wrong type, a sequence without a name, a reserved header, …
            BufferFullError: no space for ``max_block`` seconds.
            FencedError: a newer holder has the producer's name (or through the receipt).
            ClosedError, ForkedError: this producer takes nothing more.
        """
        if key is None and headers is None and not options and type(value) is bytes:
            try:
                batch = self._plain[topic]
            except (KeyError, TypeError):
                pass  # the long way finds the topic, or says what is wrong with it
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
        elif not options and type(value) is bytes:
            return self._send_whole(topic, value, key, headers)
        return self._long_way.send(topic, self._pending(Message(value, key, headers, **options)))

    def _pending(self, message: Message) -> PendingRecord:
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
        return PendingRecord(message, self._directory.clock.now_ms)

    def _send_whole(
        self, topic: str, value: bytes, key: bytes | None, headers: HeadersArgument | None
    ) -> Receipt:
        """The short way of a record with a key, or headers, and nothing else."""
        try:
            batches = self._keyed.get(topic)
        except TypeError:
            batches = None  # as in send
        if batches is not None and (type(key) is bytes or (key is None and len(batches) == 1)):
            batch = batches[positive_hash(key) % len(batches) if key is not None and len(batches) > 1 else 0]
            if batch is not None:
                size_bytes = len(value) + (0 if key is None else len(key))
                stored = NO_HEADERS
                if headers is not None:
                    headers = stored = stored_headers(headers)  # it may be an iterator: read it once
                    size_bytes += headers_bytes(stored)
                record = NewRecord(value, key, stored, batch.timestamp_ms)
                # No call from here to append: see accumulator, "The lock-free append".
                index = batch.count
                records = batch.records
                if records is not None and index < batch.granted_until and size_bytes <= batch.granted_bytes:
                    batch.count = index + 1
                    records.append(record)
                    return Receipt(batch, index)
        return self._long_way.send(topic, self._pending(Message(value, key, headers)))

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
            batch.stamp_now(self._long_way.look(batch))
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
        if not isinstance(topic, str):
            raise InvalidTopicError.no_text(topic)
        several("values", values)
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
        if item == Message(item.value, item.key, item.headers):
            # It says nothing else: the short way, if there is one.
            self.send(topic, item.value, item.key, item.headers)
        else:
            self._long_way.send(topic, self._pending(item))

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
                first = self._pending(Message(chunk[0], partition=partition))  # type: ignore[arg-type]
                taken, guess = self._long_way.send_slice(topic, first, chunk)  # type: ignore[arg-type]
                position += taken
            else:
                for item in chunk:
                    self._send_item(topic, item, None, partition)
                position += len(chunk)
        return len(values)

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
        whole_number("partition", partition, least=0)
        with self._delivery.lock:
            queue = self._destinations.queue_for(topic, self._pending(Message(None, partition=partition)))
            if queue.failure is not None:
                queue.claimed = False
            claimed = queue.claimed
        if not claimed:
            self._long_way.claim(queue)
        last_sequence = queue.last_sequence
        return None if last_sequence == NEVER_WROTE else last_sequence

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

        Closing twice is closing once; in a forked child, and at the interpreter's end, it does nothing. Not for signal
        handlers: one that has interrupted its own thread's ``send`` or ``flush`` would wait for that for ever. A
        handler sets an ``Event``, or raises ``KeyboardInterrupt`` or ``SystemExit``, and nothing else.

        Raises:
            LogbrokerError: as ``flush``. The producer is closed all the same.
        """
        if self._delivery.state is not HandleState.OPEN or self._directory.closed:
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
        self._destinations.clear()


def _one_of(option: str, value: object, allowed: Sequence[str]) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    near = get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    choices = ", ".join(map(repr, allowed))
    raise InvalidRequestError(f"{option}={value!r} is not allowed; {hint}it takes {choices}")


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()
# A producer that is dropped without ``close`` leaves its own behind, as long as that has something to deliver.
_deliveries: weakref.WeakSet[Delivery] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for producer in list(_producers):
        producer._abandon()
    for delivery in list(_deliveries):
        delivery.abandon()


def _close_at_exit() -> None:
    """What was sent goes out, also when the user forgot to close."""
    for producer in list(_producers):
        try:
            producer.close()
        except LogbrokerError as error:
            logger.warning("%r could not deliver everything at exit: %s", producer, error)
    for delivery in list(_deliveries):
        try:
            delivery.close()
            delivery.raise_unobserved()
        except LogbrokerError as error:
            logger.warning("a producer that was dropped could not deliver everything at exit: %s", error)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_at_exit)
