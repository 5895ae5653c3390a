"""A message in a consumer's hands, and several that were received together. ``Queue`` does what they are asked to."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError
from logbroker_storage.record_batch import Record

from ..commits import PendingCommit
from ..of_record import OfPlacedRecord
from .handles import ReceiptHandle

if TYPE_CHECKING:
    from .partition import QueuePartition

logger = logging.getLogger("logbroker.queues")


class Hands(Protocol):
    """Whose hands a message is in: what a ``Queue`` does with messages."""

    owner: str
    """The name of the hands, in a receipt handle."""

    @property
    def subscription(self) -> str: ...

    def accept(self, messages: Iterable[QueueMessage]) -> None: ...

    def release(
        self, messages: Iterable[QueueMessage], *, delay: float | datetime.timedelta = 0.0
    ) -> None: ...

    def reject(self, messages: Iterable[QueueMessage], reason: str = "rejected") -> None: ...

    def extend(self, messages: Iterable[QueueMessage], lease: float | None = None) -> None: ...

    def pending_acceptance(
        self, messages: Iterable[QueueMessage], directory: DataDirectory
    ) -> list[PendingCommit]: ...


class QueueMessage(OfPlacedRecord, msgspec.Struct, eq=False, gc=False):
    """A message in a consumer's hands; the fields are a record's, and ``delivery_count`` (1 at first)."""

    # As with a record, nothing leads back to it: the garbage collector need not go through thousands of them.

    queue: Hands
    queue_partition: QueuePartition  # of a topic that may have been deleted and made again since
    record: Record
    delivery_count: int
    is_settled: bool = False  # whether it was accepted, released or rejected here

    @property
    def handle(self) -> str:
        """What other processes can settle it by while it is in these hands; see ``Queue.accept``."""
        record = self.record
        return str(ReceiptHandle(record.topic, record.partition, record.offset, self.queue.owner))

    def accept(self) -> None:
        """Be done with the message: durable when this returns. See ``Queue.accept``."""
        self.queue.accept([self])

    def release(self, *, delay: float | datetime.timedelta = 0.0) -> None:
        """Give it back, to be delivered again to anybody. See ``Queue.release``."""
        self.queue.release([self], delay=delay)

    def reject(self, reason: str = "rejected") -> None:
        """Never deliver it again: it goes to the dead letters. See ``Queue.reject``."""
        self.queue.reject([self], reason)

    def extend(self, lease: float | None = None) -> None:
        """Hold it for *lease* seconds from now (default: the subscription's). See ``Queue.extend``."""
        self.queue.extend([self], lease)

    def __enter__(self) -> QueueMessage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Accept it, or release it when an exception passes; nothing more when it was settled inside."""
        if self.is_settled:
            return
        if error is None:
            self.accept()
            return
        try:
            self.release()
        except LogbrokerError as failure:
            logger.warning("%r comes again when its lease ends: %s", self, failure)  # *error* goes on

    def __repr__(self) -> str:
        return f"<QueueMessage {self.topic}-{self.partition}@{self.offset} delivery {self.delivery_count}>"


class MessageBatch(list[QueueMessage]):
    """Messages received together: a list that can be settled with one sync of the disk."""

    def __init__(self, queue: Hands, messages: Iterable[QueueMessage] = ()) -> None:
        super().__init__(messages)
        self._queue = queue

    def _open(self) -> list[QueueMessage]:
        return [message for message in self if not message.is_settled]

    def accept(self) -> None:
        """Accept all that are not settled yet."""
        self._queue.accept(self._open())

    def release(self, *, delay: float | datetime.timedelta = 0.0) -> None:
        """Release all that are not settled yet."""
        self._queue.release(self._open(), delay=delay)

    def reject(self, reason: str = "rejected") -> None:
        """Reject all that are not settled yet."""
        self._queue.reject(self._open(), reason)
