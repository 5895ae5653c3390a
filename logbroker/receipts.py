"""A receipt: what became of one record that was handed to a producer.

A receipt is a batch and an index: two words, made in 0.05 µs. It settles when its batch does. Asking for
the ``result`` does not merely wait: the asking thread appends and syncs the batch itself when nobody else is
about to, so that one durable send costs no other thread's time, and no ``linger``.
"""

from __future__ import annotations

import msgspec

from logbroker_storage.errors import LogbrokerError

from .accumulator import FAILED, NO_OFFSET, Batch
from .records import RecordMetadata

DUPLICATE = -1  # the index of a record that a named producer had written before


class Receipt(msgspec.Struct, gc=False, eq=False, repr_omit_defaults=True):
    """Of one ``send``. Any thread may ask it; it stays valid after the producer was closed."""

    # gc=False: a batch never refers to its receipts, so a receipt can be no part of a cycle.
    _batch: Batch
    _index: int

    def __repr__(self) -> str:
        queue = self._batch.queue
        return f"<Receipt {queue.topic}-{queue.partition} {self._batch.state.value}>"

    @property
    def done(self) -> bool:
        """Whether ``result`` would return, or raise, at once."""
        return self._batch.is_over or self._batch.queue.delivery.fire_and_forget

    @property
    def exception(self) -> LogbrokerError | None:
        """Why the record failed; None while it is under way, and when it did not fail."""
        batch = self._batch
        if batch.state is FAILED and not batch.queue.delivery.fire_and_forget:
            batch.observe(self._index)
            return batch.error
        return None

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Where the record is, once it is acknowledged as the producer's ``acks`` asks.

        *timeout* is in seconds and bounds the waiting for other threads; a disk sync that the calling
        thread itself has begun is not broken off. 0 only looks.

        With ``acks="none"`` it returns at once, with offset -1. A record that a named producer had already
        written is acknowledged with offset -1 too: it is in the log, at an offset that nobody kept.

        Raises:
            DeliveryTimeoutError: not settled in time; it may still be.
            WriteFailedError: the file system refused; the record is not in the log.
            StorageFailedError: whether the record is on the disk is unknown.
            FencedError: a newer holder of the producer's name took over; the record is not in the log.
            TopicNotFoundError: the topic was deleted meanwhile.
            ForkedError: asked in a forked child, of a record that was not settled before.
        """
        batch = self._batch
        queue = batch.queue
        if not batch.is_over and not queue.delivery.fire_and_forget:
            queue.delivery.settle(batch, timeout)
        if batch.state is FAILED and not queue.delivery.fire_and_forget:
            batch.observe(self._index)
            assert batch.error is not None
            raise batch.error
        return self._metadata()

    def _metadata(self) -> RecordMetadata:
        batch = self._batch
        queue = batch.queue
        if self._index == DUPLICATE:
            return RecordMetadata(queue.topic, queue.partition, NO_OFFSET, NO_OFFSET)
        fire_and_forget = queue.delivery.fire_and_forget
        offset = NO_OFFSET if fire_and_forget else batch.base_offset + self._index
        return RecordMetadata(queue.topic, queue.partition, offset, batch.timestamp_ms_of(self._index))
