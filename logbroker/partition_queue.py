"""The batches of one partition that a producer has under way; see ``delivery`` for the way they go.

field                                                    guard
open, closed, written, lead, written_end, durable_end,   Delivery.lock
  last_sequence, failure
next_sequence, clearing in_doubt, removing from closed   sending
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

from logbroker_storage.deduplication import DeduplicationWindow
from logbroker_storage.errors import LogbrokerError
from logbroker_storage.log_config import TopicCompression
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import Compression

from .accumulator import SETTLED, Batch
from .lead import Lead

FIRST_SEQUENCE = 0
NEVER_WROTE = -1  # the last sequence of a named producer that has none

_CODECS = {
    TopicCompression.UNCOMPRESSED: Compression.NONE,
    TopicCompression.GZIP: Compression.GZIP,
    TopicCompression.SNAPPY: Compression.SNAPPY,
    TopicCompression.LZ4: Compression.LZ4,
    TopicCompression.ZSTD: Compression.ZSTD,
}


class Settler(Protocol):
    """Who has a queue's batches appended and synced."""

    fire_and_forget: bool
    """Whether nobody asks what becomes of a record."""

    def settle(self, batch: Batch, timeout: float | None) -> None:
        """Have *batch* settled or failed when this returns; see ``Delivery.settle``."""


class PartitionQueue:
    """The batches of one partition of one topic; what guards which field is in the module's table."""

    def __init__(
        self, delivery: Settler, log: PartitionLog, window: DeduplicationWindow, compression: Compression
    ) -> None:
        self.delivery = delivery
        self.window = window
        self.topic = log.topic
        self.partition = log.partition
        self.log = log
        self.sending = threading.Lock()
        self.open: Batch | None = None
        self.closed: deque[Batch] = deque()
        self.written: deque[Batch] = deque()  # with acks=all: not yet settled
        self.lead = Lead()
        self.written_end = 0  # our batches end here, exclusive
        self.durable_end = 0  # as of our last sync
        self.next_sequence = FIRST_SEQUENCE
        self.in_doubt = False  # ask the log for next_sequence
        self.looked_s = 0.0  # when the clock was last looked at (wall seconds), and
        self.pace_s = 1.0  # seconds between records then; both guarded by Delivery.lock
        self.is_gone = False  # the topic was deleted
        # What the journal knows of the topic; set once, which any thread may do.
        self.may_hold_ttl = False
        self.may_hold_ids = False
        self.claimed = False
        self.last_sequence = NEVER_WROTE  # named producers: given to a record, whether written yet or not
        self.failure: LogbrokerError | None = None  # named producers: takes nothing more
        self._producer_compression = compression
        self.settled = _settled_batch(self)  # what receipts of duplicates show when nothing is under way

    @property
    def compression(self) -> Compression:
        """The topic's codec, or the producer's where the topic leaves it to that."""
        choice = self.log.config.compression_type
        return self._producer_compression if choice is TopicCompression.PRODUCER else _CODECS[choice]

    def last_batch(self) -> Batch | None:
        """The newest batch that is not settled; all others of the partition settle before it."""
        if self.open is not None:
            return self.open
        if self.closed:
            return self.closed[-1]
        return self.written[-1] if self.written else None

    @property
    def needs_sync(self) -> bool:
        return self.written_end > self.durable_end


def _settled_batch(queue: PartitionQueue) -> Batch:
    batch = Batch(queue, limit_bytes=0, opened_s=0.0)
    batch.end(SETTLED)
    return batch
