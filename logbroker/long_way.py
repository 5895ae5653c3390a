"""The long way of a record into its partition's open batch: for all that the short way of ``send`` cannot take.

under the producer's lock                          then, without it
the queue, the open batch with room: add           -
the batch is full                                  append it, and look again
the buffer is full                                 wait for space, and look again
a named producer has not claimed the partition     claim it, and look again
the topic's first time to live, or message id      note it in the journal, and look again
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from logbroker_storage.clock import SYSTEM_CLOCK
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError, RecordTooLargeError
from logbroker_storage.record_batch import HEADER_BYTES, Compression, NewRecord, encode_batch
from logbroker_storage.record_encoding import values_bytes

from .accumulator import OPEN, VALUE_OVERHEAD_BYTES, Batch
from .delivery import Delivery
from .destinations import Destinations
from .named_producer import NamedSequences, block_of
from .partition_queue import PartitionQueue
from .pending_record import PendingRecord
from .receipts import DUPLICATE, ForgottenReceipt, Receipt, RepeatedReceipt

SLOW_PACE_S = 1.0
# Of a batch. They are taken in one transaction of the view, 5 µs each, and nobody else can write to it meanwhile.
MOST_IDS = 200
FIRST_SLICE = 64  # values that send_many tries first; then as many as a batch takes


class LongWay:
    """The long way of one producer. Safe across threads."""

    def __init__(
        self,
        directory: DataDirectory,
        delivery: Delivery,
        destinations: Destinations,
        *,
        named: NamedSequences | None,
        max_block: float,
    ) -> None:
        self._directory = directory
        self._delivery = delivery
        self._destinations = destinations
        self._named = named
        self._max_block = max_block
        self._appends_at_once = delivery.linger == 0
        self._now_s = _wall_clock(directory)

    def send(self, topic: str, pending: PendingRecord) -> Receipt:
        """One record into its batch, after whatever has to happen first."""
        while True:
            with self._delivery.lock:
                queue = self._destinations.queue_for(topic, pending)
                place = self._place_for(queue, pending)
                if isinstance(place, Batch):
                    place = self._add(place, pending)
            if isinstance(place, Receipt):
                if self._appends_at_once:
                    self._append_now(place._batch)
                return place
            place()

    def send_slice(self, topic: str, first: PendingRecord, values: Sequence[bytes]) -> tuple[int, int]:
        """As many *values* as fit into one batch, at least one; how many, and how many the next may take."""
        while True:
            with self._delivery.lock:
                queue = self._destinations.queue_for(topic, first)
                place = self._place_for(queue, first)
                # A value without a sequence of its own is never a duplicate.
                assert not isinstance(place, Receipt)
                if isinstance(place, Batch):
                    taken = self._add_values(place, values)
                    filled_bytes = max(1, place.limit_bytes - place.spare)
                    guess = max(FIRST_SLICE, place.count * place.limit_bytes // filled_bytes)
                    self._destinations.offer(place, first)
                    break
            place()
        if self._appends_at_once:
            self._append_now(place)
        return taken, guess

    def _place_for(
        self, queue: PartitionQueue, pending: PendingRecord
    ) -> Batch | Receipt | Callable[[], None]:
        """The open batch with room for *pending*, frozen; or what has to be done first, without the lock.

        A receipt instead: a named producer has written the record before. Under the lock.
        """
        if pending.has_ttl and not queue.may_hold_ttl:
            return partial(self._note_ttl, queue)
        if pending.message_id is not None and not queue.may_hold_ids:
            return partial(self._note_message_ids, queue)
        if self._named is not None:
            if not queue.claimed:
                return partial(self.claim, queue)
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
            ids = batch.message_ids
            if ids is None or pending.message_id is None or len(ids) < MOST_IDS:
                return batch
        self._delivery.close_batch(batch)
        return partial(self._delivery.append_closed, queue)

    def _note_ttl(self, queue: PartitionQueue) -> None:
        self._directory.note_ttl(queue.topic)
        queue.may_hold_ttl = True

    def _note_message_ids(self, queue: PartitionQueue) -> None:
        self._directory.note_message_ids(queue.topic)
        queue.may_hold_ids = True

    def _new_batch(self, queue: PartitionQueue, pending: PendingRecord) -> Batch | Callable[[], None]:
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

    def _check_fits(self, queue: PartitionQueue, pending: PendingRecord) -> None:
        max_bytes = queue.log.config.max_message_bytes
        if HEADER_BYTES + pending.size_bytes <= max_bytes or queue.compression is not Compression.NONE:
            return
        # size_bytes is an upper bound; only this close to the limit are the exact bytes worth their time.
        record = NewRecord(pending.value, pending.key, pending.headers, pending.timestamp_ms or 0)
        size_bytes = len(encode_batch([record]))
        if size_bytes > max_bytes:
            raise RecordTooLargeError(queue.topic, size_bytes=size_bytes, max_bytes=max_bytes)

    def _same_block(self, batch: Batch, pending: PendingRecord) -> bool:
        return pending.sequence is None or block_of(pending.sequence) == block_of(batch.last_sequence)

    def _add(self, batch: Batch, pending: PendingRecord) -> Receipt:
        """Put the record into *batch*, which is frozen and has room. Under the lock."""
        message_id = pending.message_id
        if message_id is not None:
            if not batch.queue.log.config.deduplication_window_ms:
                message_id = None
            elif (first := batch.index_of_id(message_id)) is not None:
                self._destinations.offer(batch, pending)
                return RepeatedReceipt(batch, first)
        if pending.timestamp_ms is None:
            batch.stamp_now(self.look(batch))
        else:
            self._check_timestamp(batch.queue, pending.timestamp_ms)
            batch.stamp(pending.timestamp_ms)
        index = batch.add(pending.value, pending.key, pending.headers, pending.size_bytes)
        if pending.sequence is not None:
            batch.last_sequence = batch.queue.last_sequence = pending.sequence
        if message_id is not None:
            batch.take_id(message_id, index)
        self._destinations.offer(batch, pending)
        if pending.is_forgotten:
            batch.forget(index)
            return ForgottenReceipt(batch, index)
        return Receipt(batch, index)

    def _add_values(self, batch: Batch, values: Sequence[bytes]) -> int:
        """Put the first of *values* into *batch*, as many as it has room for; how many."""
        if self._named is not None:
            values = values[: self._named.room_in_block(batch.queue)]
        while True:
            count = len(values)
            size_bytes = values_bytes(values) + count * VALUE_OVERHEAD_BYTES
            if size_bytes <= batch.spare or count == 1:
                break
            values = values[: max(1, min(count - 1, count * batch.spare // size_bytes))]
        batch.stamp_now(self.look(batch))
        batch.add_values(values, size_bytes)
        if self._named is not None:
            batch.queue.last_sequence += count
            batch.last_sequence = batch.queue.last_sequence
        return count

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

    def look(self, batch: Batch) -> float:
        """The time in seconds since 1970; remembers how fast records come in. Under the lock."""
        now_s = self._now_s()
        queue = batch.queue
        new = batch.count - batch.looked_count + 1
        elapsed_s = now_s - queue.looked_s
        queue.pace_s = elapsed_s / new if elapsed_s > 0 else SLOW_PACE_S
        queue.looked_s = now_s
        batch.looked_count = batch.count
        return now_s

    def _append_now(self, batch: Batch) -> None:
        """Without linger a record is appended before ``send`` returns."""
        with self._delivery.lock:
            if batch.state is OPEN:
                self._delivery.close_batch(batch)
        self._delivery.append_closed(batch.queue)

    def claim(self, queue: PartitionQueue) -> None:
        """Be the one who writes to the partition under the producer's name; see ``named_producer``."""
        assert self._named is not None
        with queue.sending:
            if queue.claimed:
                return
            last_sequence = self._named.claim(queue)
            with self._delivery.lock:
                queue.last_sequence = last_sequence
                queue.failure = None
                queue.claimed = True


def _wall_clock(directory: DataDirectory) -> Callable[[], float]:
    """Seconds since 1970, as cheap as can be where the clock is the system's."""
    clock = directory.clock
    if clock is SYSTEM_CLOCK:
        return time.time
    # The middle of the millisecond, because a float's rounding could fall below its start.
    return lambda: (clock.now_ms() + 0.5) / 1000
