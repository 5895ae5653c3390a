"""Every error that logbroker raises on purpose, as one tree cut by what the caller can do.

    LogbrokerError
    ├── TopicNotFoundError, TopicExistsError, InvalidTopicError      name another topic
    ├── SubscriptionNotFoundError, SubscriptionExistsError           name another subscription
    ├── BindingNotFoundError, BindingExistsError, RoutingLoopError   choose another binding
    ├── InvalidConfigError, InvalidRequestError                      mend the call
    ├── RecordTooLargeError                                          send less, or raise max.message.bytes
    ├── FencedError, OutOfOrderSequenceError                         another holder took over: stop
    ├── OffsetOutOfRangeError                                        seek inside [start, end)
    ├── CorruptionError                                              seek behind end_offset; run verify
    ├── WriteFailedError                                             nothing was written: mend the cause, retry
    ├── StorageFailedError                                           outcome unknown: reopen and look
    ├── FileSystemError                                              mend the cause, and call again
    ├── DirectoryInUseError, ViewError                               close other processes, reopen
    ├── ClosedError, ForkedError                                     open a handle of your own
    ├── LeaseLostError, QueueEmptyError                              the message comes again, or another time
    └── BufferFullError, DeliveryTimeoutError, MessageIdInUseError   wait, or send slower

Attributes carry the facts; the message says what to do next. ``CorruptBatchError`` is the codec's own
finding: it knows a position in a buffer but no topic, and the log turns it into ``CorruptionError``.
"""

from __future__ import annotations

import difflib
import enum
import errno
from collections.abc import Collection, Sequence
from typing import Any

NAMES_SHOWN = 10  # in a message, of those that there are


class LogbrokerError(Exception):
    """The root of every error raised on purpose. Each can be copied, and pickled on its way to another process."""

    def __reduce__(self) -> str | tuple[Any, ...]:
        # An exception is otherwise rebuilt with cls(*args), but here args is the message, made of the arguments.
        return _without_init, (type(self), self.args), self.__dict__


def _without_init(kind: type[LogbrokerError], args: tuple[Any, ...]) -> LogbrokerError:
    return kind.__new__(kind, *args)


def _there(what: str, name: str, known: Collection[str]) -> str:
    """What *name* may have been meant to be."""
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" ({what} here: {', '.join(sorted(known)[:NAMES_SHOWN])})" if known else ""


class TopicNotFoundError(LogbrokerError):
    """The topic, or one partition of it, does not exist (or was deleted meanwhile)."""

    def __init__(
        self,
        topic: str,
        *,
        partition: int | None = None,
        partitions: int | None = None,
        known: Collection[str] = (),
    ) -> None:
        """*partitions*: how many the topic has; *known*: the names of the topics that there are."""
        self.topic = topic
        self.partition = partition
        what = f"topic {topic!r}" if partition is None else f"partition {partition} of topic {topic!r}"
        there = _there("topics", topic, known)
        if partitions is not None:
            there = f" (it has {partitions}, numbered from 0)"
        super().__init__(
            f"{what} does not exist{there}; create it with create_topic() or `logbroker topic create`"
        )


class TopicExistsError(LogbrokerError):
    """A topic of this name is already there."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"topic {topic!r} already exists; pass exist_ok=True to accept it as it is")


class InvalidTopicError(LogbrokerError):
    """The name, partition count or pattern cannot be used for a topic."""

    @classmethod
    def no_text(cls, name: object) -> InvalidTopicError:
        """*name* is none."""
        return cls(f"a topic's name is text, not {type(name).__name__}: {name!r:.100}")


class InvalidPartitionCountError(InvalidTopicError):
    """Of these, the partition count."""


class BindingExistsError(LogbrokerError):
    """A binding of this name is already there."""

    def __init__(self, binding: str) -> None:
        self.binding = binding
        super().__init__(
            f"binding {binding!r} already exists; give this one another name with name=, or unbind that one first"
        )


class BindingNotFoundError(LogbrokerError):
    """No binding of this name."""

    def __init__(self, binding: str, *, known: Collection[str] = ()) -> None:
        self.binding = binding
        there = _there("bindings", binding, known)
        super().__init__(f"there is no binding {binding!r}{there}; `logbroker route list` names them")


class RoutingLoopError(LogbrokerError):
    """The binding would bring records back to a topic that they came from; *cycle* names the topics on the way."""

    def __init__(self, binding: str, *, cycle: list[str], bindings: list[str]) -> None:
        self.binding = binding
        self.cycle = cycle
        self.bindings = bindings
        super().__init__(
            f"binding {binding!r} would close a loop: {' -> '.join(cycle)} (by "
            f"{', '.join(map(repr, bindings))}); choose a target or dead letter that no source of these "
            "matches, now or later"
        )


class InvalidConfigError(LogbrokerError):
    """An unknown configuration key or a value that it does not take."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


class InvalidRequestError(LogbrokerError):
    """The arguments of a call contradict each other or cannot be carried out."""


class RecordTooLargeError(LogbrokerError):
    """A record (or a batch of them) is larger than the topic's max.message.bytes."""

    def __init__(self, topic: str, *, size_bytes: int, max_bytes: int) -> None:
        self.topic = topic
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes
        super().__init__(
            f"{size_bytes} bytes for topic {topic!r} exceed max.message.bytes={max_bytes}; "
            "send less at once, or raise max.message.bytes of the topic"
        )


class FencedError(LogbrokerError):
    """A newer holder of the same name or membership took over; nothing of this call was written."""


class OutOfOrderSequenceError(LogbrokerError):
    """A producer's sequence does not follow its last one; a batch between them is missing."""

    def __init__(self, topic: str, partition: int, *, producer_id: int, expected: int, received: int) -> None:
        self.topic = topic
        self.partition = partition
        self.producer_id = producer_id
        self.expected = expected
        self.received = received
        super().__init__(
            f"producer {producer_id} sent sequence {received} to {topic}-{partition} where {expected} was due; "
            "an earlier batch was lost: open a new producer and send again from there"
        )


class OffsetOutOfRangeError(LogbrokerError):
    """The offset lies outside what the partition still (or already) holds."""

    def __init__(
        self, topic: str, partition: int, *, offset: int, start_offset: int, end_offset: int
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.start_offset = start_offset
        self.end_offset = end_offset
        super().__init__(
            f"offset {offset} of {topic}-{partition} is outside [{start_offset}, {end_offset}]; "
            "seek to an offset in that range"
        )


UNKNOWN_POSITION = -1


class CorruptionError(LogbrokerError):
    """Bytes on disk are damaged: offsets [start_offset, end_offset) of one partition cannot be read.

    Everything else stays readable: ``consumer.seek(error.partition, error.end_offset)`` goes on behind it.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        start_offset: int,
        end_offset: int,
        path: str,
        position: int,
        reason: str,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.start_offset = start_offset
        self.end_offset = end_offset
        self.path = path
        self.position = position
        self.reason = reason
        super().__init__(
            f"{topic}-{partition} is damaged at byte {position} of {path} ({reason}): offsets {start_offset} to "
            f"{end_offset - 1} cannot be read; seek to {end_offset} to go on behind them, "
            "and run `logbroker inspect verify` for the whole picture"
        )

    @classmethod
    def of_records(
        cls,
        topic: str,
        partition: int,
        *,
        start_offset: int,
        end_offset: int,
        path: str,
        error: CorruptBatchError,
    ) -> CorruptionError:
        """Of a batch whose checksum is right and whose records do not parse: it was written so. *path* is its log's."""
        return cls(
            topic,
            partition,
            start_offset=start_offset,
            end_offset=end_offset,
            path=path,
            position=UNKNOWN_POSITION,
            reason=str(error),
        )


class SubscriptionNotFoundError(LogbrokerError):
    """There is no subscription of this name."""

    def __init__(self, name: str, *, known: Collection[str] = ()) -> None:
        self.name = name
        there = _there("subscriptions", name, known)
        super().__init__(
            f"there is no subscription {name!r}{there}; make it with broker.create_subscription() or "
            "`logbroker subscription create`"
        )


class SubscriptionExistsError(LogbrokerError):
    """The name is taken."""

    def __init__(self, name: str, *, what: str = "subscription") -> None:
        self.name = name
        super().__init__(f"there is a {what} {name!r} already; choose another name, or delete it first")


class LeaseLostError(LogbrokerError):
    """A message is in these hands no longer: its lease has ended, or it was settled before.

    Attributes:
        lost: (topic, partition, first offset, last offset) of each range, both inclusive.
    """

    def __init__(self, lost: Sequence[tuple[str, int, int, int]]) -> None:
        self.lost = list(lost)
        first = ", ".join(
            f"{topic}-{partition} {begin} to {end}" for topic, partition, begin, end in self.lost[:5]
        )
        super().__init__(
            f"no longer in these hands: {first}{' …' if len(self.lost) > 5 else ''}; the lease has ended, and the "
            "messages are delivered again (use a longer lease=, extend(), or renew=True), or they were settled before"
        )


class QueueEmptyError(LogbrokerError):
    """No message came within the timeout."""


class WriteFailedError(LogbrokerError):
    """The file system refused a write (full disk, limits, I/O error); nothing of the call was appended."""


class StorageFailedError(LogbrokerError):
    """A write or sync failed: whether the records are on the disk is unknown.

    The partition takes no writes, in any process, until the directory is opened again and verified.
    """


class FileSystemError(LogbrokerError, OSError):
    """A call to the system failed (I/O error, limits, permissions) where nothing was to be written, or nobody waits.

    What became of records is told by the two errors above.
    """

    __reduce__ = OSError.__reduce__  # its args lack the file's name

    def __str__(self) -> str:
        return f"{reason_of(self)}; {advice_on(self)}"


class _FileNotFoundError(FileSystemError, FileNotFoundError):
    pass


class _FileExistsError(FileSystemError, FileExistsError):
    pass


class _IsADirectoryError(FileSystemError, IsADirectoryError):
    pass


class _PermissionError(FileSystemError, PermissionError):
    pass


_KINDS: dict[type[OSError], type[FileSystemError]] = {
    FileNotFoundError: _FileNotFoundError,
    FileExistsError: _FileExistsError,
    IsADirectoryError: _IsADirectoryError,
    PermissionError: _PermissionError,
}


def file_system_error(error: OSError) -> FileSystemError:
    """*error* as one of our tree, which ``except FileNotFoundError`` and its like still take for what it is."""
    kind = _KINDS.get(type(error), FileSystemError)
    return kind(error.errno, error.strerror, error.filename)


def reason_of(error: OSError) -> str:
    """What the system said, for a message that goes on with what to do."""
    return OSError.__str__(error)


# Something else has the name of a file or a directory; of a socket and a FIFO, the system says ENXIO.
_NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENXIO)


def advice_on(error: OSError, *, again: str = "try again") -> str:
    """What to do about it, for the end of a message."""
    if error.errno == errno.ESTALE:  # the directory is another now (``files.PlacedFiles``)
        return "close the broker and all that uses it, and open it again"
    if error.errno in _NO_FILE:
        return f"put back what belongs there, or move what is there out of the way, and {again}"
    return f"mend the cause (free space, limits, permissions, the disk) and {again}"


class DirectoryInUseError(LogbrokerError):
    """Another process has the data directory open in a way that excludes this call."""


class ViewError(LogbrokerError):
    """The LMDB view cannot be used; it is rebuilt when the directory is next opened alone."""


class ClosedError(LogbrokerError):
    """The handle was closed; open a new one."""

    @classmethod
    def in_use(cls) -> ClosedError:
        """By somebody else, while a call was going on."""
        return cls("the broker was closed while it was in use; call logbroker.open() again")


class ForkedError(LogbrokerError):
    """The handle was made before fork(); the child must open one of its own."""

    def __init__(self, what: str = "this handle") -> None:
        super().__init__(f"{what} was opened before fork(); call logbroker.open() again in the child process")


class MessageIdInUseError(LogbrokerError):
    """A record of an open transaction has the message id: whether this one is its duplicate shows when that ends."""

    def __init__(self, topic: str, message_id: str) -> None:
        self.topic = topic
        self.message_id = message_id
        super().__init__(
            f"message id {message_id!r} of {topic!r} is in an open transaction of another sender; nothing was "
            "written: send it again when that transaction has ended"
        )


class BufferFullError(LogbrokerError):
    """The producer's memory bound stayed full for longer than it may block."""


class DeliveryTimeoutError(LogbrokerError):
    """A receipt was not settled within the time that the caller gave; it may still be."""


class BatchDefect(enum.Enum):
    """What is wrong with the bytes of a record batch."""

    TRUNCATED = "the batch ends after the data does"
    ZEROS = "only zeros where a batch should start"
    BAD_MAGIC = "the magic byte is not 2"
    BAD_LENGTH = "the length field is impossible"
    BAD_HEADER = "a header field is impossible"
    BAD_CRC = "the checksum does not match"
    BAD_OFFSET = "the base offset does not follow the batch before"
    BAD_EPOCH = "the leader epoch is not the partition's"
    BAD_RECORDS = "the records do not parse"
    TOO_LARGE = "the records decompress to more than is allowed"


class CorruptBatchError(LogbrokerError):
    """A buffer does not hold a sound record batch at *position* (a byte)."""

    def __init__(self, defect: BatchDefect, *, position: int = 0, detail: str = "") -> None:
        self.defect = defect
        self.position = position
        super().__init__(
            f"no sound record batch at byte {position}: {defect.value}{': ' if detail else ''}{detail}"
        )
