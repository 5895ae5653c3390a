"""Typed journal events: what must survive a power cut besides the records themselves.

The journal is a compacted partition, ``__journal-0``. An event is one record of it:

    record key    the event's ``key()``: kind, NUL, and the parts of its identity
    record value  the event as msgpack, tagged with its kind; null deletes the key (a tombstone)

An event is the *whole* state of the thing its key names, so the latest event of a key is all that
counts: replaying the journal and compacting it need no other rule.

    kind         key parts                 says
    topic        name                      partitions, id and configuration; or that it is being deleted
    offset       group, topic, partition   the group's committed offset
    group        group                     which topics the group has subscribed to
    producer     name                      a named producer's epoch and producer ids
    ids          (none)                    the first producer id that no process has reserved
    start        topic, partition          records below this offset were deleted on request
    transaction  transactional id          who holds it, and how its last transaction ended
    ttl          topic                     some of its records have a time to live of their own
    message-id   topic                     some of its records have a message id
    subscription id                        a named subscription: its kind, topics and rules
    queue        subscription id, topic,   where the subscription's queue begins: every message below is done
                   partition
    queue-block  the same, and a block     which of 1024 messages are done, and which were handed out in vain
                   number
    share-config group                     what was configured of a share group, whether or not it is there
    binding      name                      which records of which topics the router writes to another

Names hold no NUL (topic names and group names are checked where they come in).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from .errors import BatchDefect, CorruptBatchError, InvalidRequestError

SEPARATOR = b"\0"


def _key(*parts: str | int) -> bytes:
    return "\0".join(map(str, parts)).encode()


class Event(msgspec.Struct, frozen=True, tag_field="kind"):
    """The base of every event; ``key()`` names the thing whose state it is."""

    KIND: ClassVar[str] = ""

    def key(self) -> bytes:
        raise NotImplementedError


class TopicEvent(Event, frozen=True, tag="topic"):
    """A topic: ``topic_id`` is 16 bytes; ``config`` holds only what differs from the defaults."""

    KIND: ClassVar[str] = "topic"
    ALL: ClassVar[bytes] = b"topic\0"  # what the key of every such event begins with

    name: str
    topic_id: bytes
    partitions: int
    config: dict[str, str]
    created_ms: int
    state: Literal["live", "deleting"] = "live"

    def key(self) -> bytes:
        return _key(self.KIND, self.name)

    @classmethod
    def key_of(cls, name: str) -> bytes:
        return _key(cls.KIND, name)


class OffsetEvent(Event, frozen=True, tag="offset"):
    """The group goes on at *offset* of this partition (every record below it is done)."""

    KIND: ClassVar[str] = "offset"
    ALL: ClassVar[bytes] = b"offset\0"  # what the key of every such event begins with

    group: str
    topic: str
    partition: int
    offset: int
    metadata: str
    committed_ms: int

    def key(self) -> bytes:
        return _key(self.KIND, self.group, self.topic, self.partition)

    @classmethod
    def key_of(cls, group: str, topic: str, partition: int) -> bytes:
        return _key(cls.KIND, group, topic, partition)

    @classmethod
    def prefix_of(cls, group: str, topic: str | None = None) -> bytes:
        return _key(cls.KIND, group, *([] if topic is None else [topic])) + SEPARATOR


class GroupEvent(Event, frozen=True, tag="group"):
    """A consumer group and the topics it has subscribed to, ascending."""

    KIND: ClassVar[str] = "group"
    ALL: ClassVar[bytes] = b"group\0"

    group: str
    topics: list[str]
    created_ms: int

    def key(self) -> bytes:
        return _key(self.KIND, self.group)

    @classmethod
    def key_of(cls, group: str) -> bytes:
        return _key(cls.KIND, group)


class NamedProducerEvent(Event, frozen=True, tag="producer"):
    """A named producer: each new holder raises *epoch*.

    ``producer_ids`` maps a block of user sequences (``sequence >> 31``) to the producer id that carries
    it, because Kafka's sequences have 31 bits.
    """

    KIND: ClassVar[str] = "producer"
    ALL: ClassVar[bytes] = b"producer\0"

    name: str
    epoch: int
    producer_ids: dict[int, int]

    def key(self) -> bytes:
        return _key(self.KIND, self.name)

    @classmethod
    def key_of(cls, name: str) -> bytes:
        return _key(cls.KIND, name)


class ProducerIdsEvent(Event, frozen=True, tag="ids"):
    """Producer ids below *next_producer_id* are taken, or reserved by some process."""

    KIND: ClassVar[str] = "ids"

    next_producer_id: int

    def key(self) -> bytes:
        return self.key_of()

    @classmethod
    def key_of(cls) -> bytes:
        return _key(cls.KIND)


class LogStartEvent(Event, frozen=True, tag="start"):
    """Records below *log_start_offset* of this partition were deleted on request."""

    KIND: ClassVar[str] = "start"
    ALL: ClassVar[bytes] = b"start\0"

    topic: str
    partition: int
    log_start_offset: int

    def key(self) -> bytes:
        return _key(self.KIND, self.topic, self.partition)

    @classmethod
    def key_of(cls, topic: str, partition: int) -> bytes:
        return _key(cls.KIND, topic, partition)

    @classmethod
    def prefix_of(cls, topic: str) -> bytes:
        return _key(cls.KIND, topic) + SEPARATOR


class TransactionEvent(Event, frozen=True, tag="transaction"):
    """A transactional id: who holds it, and how its last transaction ended.

    With state "commit" or "abort" the transaction of *epoch* over *partitions* (topic, number) is decided;
    its markers carry ``epoch + 1``, which is what the holder goes on with. With "empty" nothing was begun
    since the id was claimed for *epoch*. With "begun" something was that only the memory of its process knows:
    when that is gone, so is the transaction.

    *holder_goes_on* says that whoever held the epoch before is to go on with the following one: it asked for it
    itself, or its transaction was aborted for it. Otherwise that belongs to somebody else.

    A holder that keeps its epoch (a Kafka client of before KIP-890) has several transactions in it, of which this
    is the one with this *number*. Its markers carry ``epoch``, and end only what began below *ends*, an offset for
    each of *partitions*. Of others *ends* is None.
    """

    KIND: ClassVar[str] = "transaction"
    ALL: ClassVar[bytes] = b"transaction\0"

    transactional_id: str
    producer_id: int
    epoch: int
    state: Literal["empty", "begun", "commit", "abort"]
    partitions: list[tuple[str, int]]
    timeout_ms: int
    updated_ms: int
    number: int = 0
    ends: list[int] | None = None
    holder_goes_on: bool = False

    def key(self) -> bytes:
        return _key(self.KIND, self.transactional_id)

    @property
    def is_decided(self) -> bool:
        """Whether it says how a transaction ended."""
        return self.state in ("commit", "abort")

    @property
    def following_epoch(self) -> int:
        """What the markers carry, and the holder goes on with."""
        return self.epoch if self.ends is not None or not self.is_decided else self.epoch + 1

    @classmethod
    def key_of(cls, transactional_id: str) -> bytes:
        return _key(cls.KIND, transactional_id)


class _AboutTopic(Event, frozen=True):
    """Says something of the topic that it names, by being there."""

    topic: str

    def key(self) -> bytes:
        return self.key_of(self.topic)

    @classmethod
    def key_of(cls, topic: str) -> bytes:
        return _key(cls.KIND, topic)


class TtlEvent(_AboutTopic, frozen=True, tag="ttl"):
    """Records of the topic may have a time to live of their own: whoever passes them on has to look."""

    KIND: ClassVar[str] = "ttl"


class MessageIdEvent(_AboutTopic, frozen=True, tag="message-id"):
    """Records of the topic may have a message id: whoever makes the view anew has to look."""

    KIND: ClassVar[str] = "message-id"


class SubscriptionEvent(Event, frozen=True, tag="subscription"):
    """A named subscription to *topics* (names and patterns); ``subscription_id`` is 16 hex digits and never changes.

    A "stream" is the consumer group of the same name. A "queue" hands each message to one of its consumers;
    ``rules`` are the broker's, as msgpack.
    """

    KIND: ClassVar[str] = "subscription"
    ALL: ClassVar[bytes] = b"subscription\0"

    subscription_id: str
    name: str
    subscription_kind: Literal["queue", "stream"]
    topics: list[str]
    rules: bytes
    is_paused: bool
    created_ms: int

    def key(self) -> bytes:
        return _key(self.KIND, self.subscription_id)

    @classmethod
    def key_of(cls, subscription_id: str) -> bytes:
        return _key(cls.KIND, subscription_id)


class QueueEvent(Event, frozen=True, tag="queue"):
    """Of this partition every message below *start_offset* is done, as far as the subscription goes."""

    KIND: ClassVar[str] = "queue"
    ALL: ClassVar[bytes] = b"queue\0"

    subscription_id: str
    topic: str
    partition: int
    start_offset: int

    def key(self) -> bytes:
        return self.key_of(self.subscription_id, self.topic, self.partition)

    @classmethod
    def key_of(cls, subscription_id: str, topic: str, partition: int) -> bytes:
        return _key(cls.KIND, subscription_id, topic, partition)

    @classmethod
    def prefix_of(cls, subscription_id: str, topic: str | None = None) -> bytes:
        return _key(cls.KIND, subscription_id, *([] if topic is None else [topic])) + SEPARATOR


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """Messages of a queue that were handed out in vain; offsets are relative to their block, both inclusive.

    With *not_before_ms* (since 1970 UTC) they are delivered again at that time; rejected ones never, and *note* says
    why.
    """

    first: int
    last: int
    delivery_count: int
    not_before_ms: int = 0
    is_rejected: bool = False
    note: str = ""


BLOCK_OFFSETS = 1024  # how many messages a block is about


class QueueBlockEvent(Event, frozen=True, tag="queue-block"):
    """Of the messages [1024 * block, 1024 * (block + 1)): which are done, and which were handed out in vain.

    *done* is a number in little-endian bytes, whose bit 0 stands for the first; *attempts* are a list of ``Attempt``,
    as msgpack. Of a dead letter topic, *done* says which letters of the subscription were redriven.
    """

    KIND: ClassVar[str] = "queue-block"
    ALL: ClassVar[bytes] = b"queue-block\0"

    subscription_id: str
    topic: str
    partition: int
    block: int
    done: bytes
    attempts: bytes

    def key(self) -> bytes:
        return self.key_of(self.subscription_id, self.topic, self.partition, self.block)

    @classmethod
    def key_of(cls, subscription_id: str, topic: str, partition: int, block: int) -> bytes:
        return _key(cls.KIND, subscription_id, topic, partition, block)

    @classmethod
    def prefix_of(cls, subscription_id: str, topic: str | None = None, partition: int | None = None) -> bytes:
        """What the keys of a subscription's blocks begin with; with *topic* and *partition* those of one queue."""
        parts = [part for part in (topic, partition) if part is not None]
        return _key(cls.KIND, subscription_id, *parts) + SEPARATOR


class ShareConfigEvent(Event, frozen=True, tag="share-config"):
    """What Kafka clients configured of the share group of this name: only what differs from the defaults."""

    KIND: ClassVar[str] = "share-config"
    ALL: ClassVar[bytes] = b"share-config\0"

    group: str
    config: dict[str, str]

    def key(self) -> bytes:
        return self.key_of(self.group)

    @classmethod
    def key_of(cls, group: str) -> bytes:
        return _key(cls.KIND, group)


class TopicReach(msgspec.Struct, frozen=True):
    """From which offset on a binding takes records of a topic, by partition; both 0 for later partitions.

    Below *starts* the binding was not there yet. Below *routed* its records were written before: the router
    was taken back behind them for the sake of another binding.
    """

    topic: str
    topic_id: bytes
    starts: list[int]
    routed: list[int]


class BindingEvent(Event, frozen=True, tag="binding"):
    """The router writes what it takes of *source*, a topic or a wildcard over topics, to *target*.

    It takes records for which *when* (a CEL expression) and *headers* hold; with *unrouted* those that no other
    binding takes. *transform* is a pipeline in TOML. Where either fails the record goes to *dead_letter*. Topics
    without a reach are taken from their beginning: they came to be after the binding.
    """

    KIND: ClassVar[str] = "binding"
    ALL: ClassVar[bytes] = b"binding\0"

    name: str
    source: str
    target: str
    dead_letter: str
    created_ms: int
    when: str | None = None
    headers: dict[str, str | None] = {}
    headers_match: Literal["all", "any"] = "all"
    transform: str | None = None
    unrouted: bool = False
    reach: list[TopicReach] = []

    def key(self) -> bytes:
        return _key(self.KIND, self.name)

    @classmethod
    def key_of(cls, name: str) -> bytes:
        return _key(cls.KIND, name)


AnyEvent = (
    TopicEvent
    | OffsetEvent
    | GroupEvent
    | NamedProducerEvent
    | ProducerIdsEvent
    | LogStartEvent
    | TransactionEvent
    | TtlEvent
    | SubscriptionEvent
    | QueueEvent
    | QueueBlockEvent
    | MessageIdEvent
    | ShareConfigEvent
    | BindingEvent
)

# What msgspec raises for bytes that are no such event; text that is not UTF-8 gets an error of Python's.
_NO_EVENT = (msgspec.MsgspecError, UnicodeDecodeError)

_ATTEMPTS = msgspec.msgpack.Decoder(list[Attempt])
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)


def encode_event(event: Event) -> bytes:
    """The event as a journal record's value.

    Raises:
        InvalidRequestError: a field is of another type than it must be (a bool in place of a number, say): nobody could
            read the journal any more.
    """
    value = _ENCODER.encode(event)
    try:
        _DECODER.decode(value)
    except _NO_EVENT as error:
        raise InvalidRequestError(f"{type(event).__name__}: {error}") from None
    return value


def decode_event(value: bytes | memoryview) -> AnyEvent:
    """The event in a journal record's value.

    Raises:
        CorruptBatchError: the bytes are no event known to this version.
    """
    try:
        return _DECODER.decode(value)
    except _NO_EVENT as error:
        raise CorruptBatchError(BatchDefect.BAD_RECORDS, detail=f"journal event: {error}") from error


def encode_attempts(attempts: list[Attempt]) -> bytes:
    return _ENCODER.encode(attempts)


def decode_attempts(data: bytes) -> list[Attempt]:
    """The attempts of a block.

    Raises:
        CorruptBatchError: the bytes are none.
    """
    try:
        return _ATTEMPTS.decode(data)
    except _NO_EVENT as error:
        raise CorruptBatchError(BatchDefect.BAD_RECORDS, detail=f"attempts of a queue: {error}") from error
