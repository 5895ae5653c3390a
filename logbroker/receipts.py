"""A receipt: what became of one record that was handed to a producer.

A receipt is a batch and an index: two words, made in 0.05 µs. It settles when its batch does. Asking for
the ``result`` does not merely wait: the asking thread appends and syncs the batch itself when nobody else is
about to, so that one durable send costs no other thread's time, and no ``linger``.
"""

from __future__ import annotations

import msgspec
from msgspec import structs

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.view.message_ids import FirstRecord

from .accumulator import NO_OFFSET, Batch
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
        if not batch.is_over or batch.queue.delivery.fire_and_forget:
            return None
        failure = batch.failure_of(self._index)
        if failure is not None:
            batch.observe(self._index)
        return failure

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Where the record is, once it is acknowledged as the producer's ``acks`` asks.

        *timeout* is in seconds and bounds the waiting for other threads; a disk sync that the calling
        thread itself has begun is not broken off. 0 only looks.

        With ``acks="none"`` it returns at once, with offset -1. A record that a named producer had already
        written is acknowledged with offset -1 too: it is in the log, at an offset that nobody kept. Of a record
        whose ``message_id`` had been sent before it is where that one is, which is acknowledged by now too, with
        ``duplicate`` set.

        Raises:
            DeliveryTimeoutError: not settled in time; it may still be.
            WriteFailedError: the file system refused; the record is not in the log.
            StorageFailedError: whether the record is on the disk is unknown.
            FencedError: a newer holder of the producer's name took over; the record is not in the log.
            MessageIdInUseError: another sender's open transaction has the message id; the record is not in the
                log.
            TopicNotFoundError: the topic was deleted meanwhile.
            ForkedError: asked in a forked child, of a record that was not settled before.
        """
        batch = self._batch
        queue = batch.queue
        if not batch.is_over and not queue.delivery.fire_and_forget:
            queue.delivery.settle(batch, timeout)
        if batch.error is not None or batch.elsewhere is not None:
            failure = None if queue.delivery.fire_and_forget else batch.failure_of(self._index)
            if failure is not None:
                batch.observe(self._index)
                raise failure
        return self._metadata()

    def _metadata(self) -> RecordMetadata:
        batch = self._batch
        queue = batch.queue
        if self._index == DUPLICATE:
            return RecordMetadata(queue.topic, queue.partition, NO_OFFSET, NO_OFFSET)
        if queue.delivery.fire_and_forget:
            return self._unasked()
        first = None if batch.elsewhere is None else batch.elsewhere.get(self._index)
        if isinstance(first, FirstRecord):
            return RecordMetadata(
                queue.topic, first.partition, first.offset, first.timestamp_ms, duplicate=True
            )
        offset, timestamp_ms = batch.offset_of(self._index), batch.timestamp_ms_of(self._index)
        return RecordMetadata(queue.topic, queue.partition, offset, timestamp_ms)

    def _unasked(self) -> RecordMetadata:
        batch = self._batch
        timestamp_ms = batch.timestamp_ms_of(self._index)
        return RecordMetadata(batch.queue.topic, batch.queue.partition, NO_OFFSET, timestamp_ms)


class RepeatedReceipt(Receipt, gc=False, eq=False):
    """Of a record whose message id another record of the same batch had; it is that one's, as a duplicate."""

    def _metadata(self) -> RecordMetadata:
        return structs.replace(Receipt._metadata(self), duplicate=True)


class ForgottenReceipt(Receipt, gc=False, eq=False):
    """Of one record that was sent with ``acks="none"``, by a producer that otherwise asks."""

    @property
    def done(self) -> bool:
        return True

    @property
    def exception(self) -> LogbrokerError | None:
        return None

    def result(self, timeout: float | None = None) -> RecordMetadata:  # noqa: ARG002 (as Receipt.result)
        return self._unasked()
