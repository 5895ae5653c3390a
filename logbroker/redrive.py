"""The dead letters of a subscription, looked at and sent back: each exactly once.

    letters         lie in the dead letter topic until its retention takes them, those of several subscriptions together
    redriven ones   a block of the journal (``QueueBlockEvent``) of the subscription and the dead letter topic, which it
                    never reads as a queue: bit 0 of block 3 says that the letter at offset 3072 was redriven
    redriving       one transaction for some letters: the messages, and the blocks that name these letters

A transaction is decided by one event, which the blocks are journaled with: killed anywhere, the messages are there
and the letters redriven, or neither. The transactional id is the subscription's. To begin is to fence whoever had it,
and to finish what that one had decided; what the journal says behind that is all that was ever redriven, and nobody
else can add to it. So two that redrive at a time send nothing twice. A lock only spares them to fence each other.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    CorruptionError,
    InvalidRequestError,
    SubscriptionNotFoundError,
    TopicNotFoundError,
)
from logbroker_storage.events import BLOCK_OFFSETS, QueueBlockEvent, SubscriptionEvent, encode_attempts
from logbroker_storage.journal import Item, item_of
from logbroker_storage.locks import ProcessLock
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import Record, decode_records

from .arguments import several
from .commits import PendingCommit
from .dead_letters import Death, death_of, without_dead_letter_headers
from .records import Message
from .subscriptions import Subscription
from .transaction import Transactions

logger = logging.getLogger("logbroker.queues")

AT_A_TIME = 500  # letters of one transaction
TIMEOUT_S = 60.0  # of a transaction
NO_ATTEMPTS = encode_attempts([])

LetterPlace = tuple[int, int]  # partition and offset, in the dead letter topic


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that was given up.

    Attributes:
        record: the message, at its place in the dead letter topic; its timestamp is when it was given up.
        death: where it came from, and why it is here.
        is_redriven: it was sent back already.
    """

    record: Record
    death: Death
    is_redriven: bool

    @property
    def place(self) -> LetterPlace:
        """Its partition and offset in the dead letter topic: what ``redrive(only=)`` takes."""
        return self.record.partition, self.record.offset


class Redriven(msgspec.Struct, frozen=True):
    """What ``redrive`` did, or would do.

    Attributes:
        sent: how many messages went to each topic.
        left_out: letters that cannot be sent back, as (partition, offset, why).
    """

    sent: dict[str, int]
    left_out: list[tuple[int, int, str]]

    @property
    def count(self) -> int:
        """How many messages were sent."""
        return sum(self.sent.values())


def dead_letters(
    directory: DataDirectory, subscription: Subscription, *, redriven: bool = False
) -> Iterator[DeadLetter]:
    """As ``Broker.dead_letters``."""
    topic = subscription.rules.dead_letter
    if topic is None or topic not in directory.topics():
        return
    for partition in range(directory.topic(topic).partitions):
        done = _Done(directory, subscription, topic, partition)
        for record in _committed_records(directory, topic, partition):
            death = death_of(record)
            if death is None or not _is_of(subscription, death):
                continue
            is_redriven = record.offset in done
            if redriven or not is_redriven:
                yield DeadLetter(_without_death(record), death, is_redriven)


def count_dead_letters(directory: DataDirectory, subscription: Subscription) -> int:
    """How many wait to be redriven."""
    return sum(1 for _ in dead_letters(directory, subscription))


def _is_of(subscription: Subscription, death: Death) -> bool:
    """By its id, which stays when it is renamed; letters of others than queues only have a name."""
    if death.subscription_id is not None:
        return death.subscription_id == subscription.id
    return death.by == subscription.name


def _without_death(record: Record) -> Record:
    return msgspec.structs.replace(record, header_pairs=tuple(without_dead_letter_headers(record)))


def _committed_records(directory: DataDirectory, topic: str, partition: int) -> Iterator[Record]:
    """Every record of a partition that is there now; damage is told and passed over."""
    log = directory.log(topic, partition)
    offsets = log.offsets()
    end_offset = offsets.visible_end(Isolation.READ_COMMITTED)
    reader = log.reader(offsets.log_start_offset, Isolation.READ_COMMITTED)
    try:
        while reader.position < end_offset:
            try:
                batches = reader.read()
            except CorruptionError as error:
                logger.warning("dead letters are lost: %s", error)
                reader.seek(error.end_offset)
                continue
            if not batches:
                return
            for batch in batches:
                if not batch.header.is_control:
                    yield from decode_records(batch, topic, partition)
    finally:
        reader.close()


class _Done:
    """Which letters of one partition were redriven, as of when it is made."""

    def __init__(
        self, directory: DataDirectory, subscription: Subscription, topic: str, partition: int
    ) -> None:
        self._key = (subscription.id, topic, partition)
        events = directory.view.events.all(QueueBlockEvent, QueueBlockEvent.prefix_of(*self._key))
        self._blocks = {event.block: int.from_bytes(event.done, "little") for event in events}

    def __contains__(self, offset: int) -> bool:
        block, bit = divmod(offset, BLOCK_OFFSETS)
        return bool(self._blocks.get(block, 0) >> bit & 1)

    def with_more(self, offsets: Iterable[int], *, log_start_offset: int) -> list[Item]:
        """What to journal when these are redriven too; blocks that retention has overtaken are dropped."""
        changed: set[int] = set()
        for offset in offsets:
            block, bit = divmod(offset, BLOCK_OFFSETS)
            self._blocks[block] = self._blocks.get(block, 0) | 1 << bit
            changed.add(block)
        gone = [block for block in self._blocks if (block + 1) * BLOCK_OFFSETS <= log_start_offset]
        return [
            *(item_of(self._event(block)) for block in sorted(changed)),
            *((QueueBlockEvent.key_of(*self._key, block), None) for block in gone),
        ]

    def _event(self, block: int) -> QueueBlockEvent:
        done = self._blocks[block].to_bytes(BLOCK_OFFSETS // 8, "little")
        return QueueBlockEvent(*self._key, block, done.rstrip(b"\0"), NO_ATTEMPTS)


class _Target(NamedTuple):
    topic: str
    message: Message


class _Refusal(NamedTuple):
    why: str


def _letter_place(given: LetterPlace) -> LetterPlace:
    if not isinstance(given, tuple) or [type(number) for number in given] != [int, int]:
        raise InvalidRequestError(f"a dead letter is at a (partition, offset), not {given!r:.100}")
    return given


class Redrive:
    """One run over the letters of one subscription. For one thread."""

    def __init__(
        self,
        directory: DataDirectory,
        transactions: Transactions,
        subscription: Subscription,
        *,
        only: Collection[LetterPlace] | None = None,
        to: str | None = None,
    ) -> None:
        """*only* some letters, *to* another topic than they came from.

        Raises:
            InvalidRequestError: the subscription has no dead letter topic, *to* is that topic, or *only* holds
                no places.
            TopicNotFoundError: *to* is not there.
        """
        topic = subscription.rules.dead_letter
        if topic is None:
            raise InvalidRequestError(
                f"subscription {subscription.name!r} was made without dead_letter=: it keeps no dead letters"
            )
        if to == topic:
            raise InvalidRequestError(f"{to!r} is where the dead letters are; send them to another topic")
        if to is not None:
            directory.topic(to)
        self._directory = directory
        self._transactions = transactions
        self._subscription = subscription
        self._topic = topic
        self._only = None if only is None else frozenset(map(_letter_place, several("letters", only)))
        self._to = to

    def preview(self) -> Redriven:
        """What ``run`` would do now.

        Raises:
            InvalidRequestError: some of *only* are no letters of the subscription.
        """
        sent: Counter[str] = Counter()
        left_out: list[tuple[int, int, str]] = []
        for letter in self._letters():
            target = self._target(letter)
            if isinstance(target, _Refusal):
                left_out.append((*letter.place, target.why))
            else:
                sent[target.topic] += 1
        return Redriven(dict(sent), left_out)

    def run(self) -> Redriven:
        """Send the letters back, in the order of their offsets, some at a time.

        Raises:
            As ``preview``; nothing was sent.
            LogbrokerError: those of earlier transactions were sent, the others were not, and are still to be redriven.
        """
        lock = self._directory.layout.lock(f"redrive-{self._subscription.id}")
        process_lock = ProcessLock(self._directory.files, lock)
        try:
            return self._run(process_lock)
        finally:
            process_lock.close()

    def _run(self, process_lock: ProcessLock) -> Redriven:
        sent: Counter[str] = Counter()
        left_out: list[tuple[int, int, str]] = []
        with process_lock:
            letters = self._letters()
            while some := list(islice(letters, AT_A_TIME)):
                targets = {letter.place: self._target(letter) for letter in some}
                left_out += [
                    (*place, target.why) for place, target in targets.items() if isinstance(target, _Refusal)
                ]
                sent += self._send(
                    {place: target for place, target in targets.items() if isinstance(target, _Target)}
                )
        return Redriven(dict(sent), left_out)

    def _letters(self) -> Iterator[DeadLetter]:
        """The letters that are wanted and wait."""
        self._check_only()
        for letter in dead_letters(self._directory, self._subscription):
            if self._only is None or letter.place in self._only:
                yield letter

    def _check_only(self) -> None:
        """Refuse places that hold no letter; those that were redriven are no mistake: a second run finds such."""
        if self._only is None:
            return
        there = {letter.place for letter in dead_letters(self._directory, self._subscription, redriven=True)}
        missing = sorted(self._only - there)
        if missing:
            places = ", ".join(f"{partition}:{offset}" for partition, offset in missing[:10])
            raise InvalidRequestError(
                f"topic {self._topic!r} has no dead letter of subscription {self._subscription.name!r} at {places}"
                f"{' …' if len(missing) > 10 else ''} (partition:offset)"
            )

    def _target(self, letter: DeadLetter) -> _Target | _Refusal:
        """Where a letter goes, or why it cannot."""
        death = letter.death
        if death.timestamp_ms is not None and death.timestamp_ms < 0:
            return _Refusal(death.error or "its record could not be read")
        record = letter.record
        message = Message(record.value, record.key, record.header_pairs)
        if self._to is not None:
            return _Target(self._to, message)
        if death.topic is None:
            return _Refusal("it does not say where it came from")
        try:
            partitions = self._directory.topic(death.topic).partitions
        except TopicNotFoundError:
            return _Refusal(f"topic {death.topic!r} is not there any more")
        if death.partition is not None and death.partition < partitions:
            message = msgspec.structs.replace(message, partition=death.partition)
        return _Target(death.topic, message)

    def _send(self, targets: Mapping[LetterPlace, _Target]) -> Counter[str]:
        """Send those that nobody has sent meanwhile, in one transaction; how many went to each topic."""
        sent: Counter[str] = Counter()
        if not targets:
            return sent
        topic_id = self._directory.topic(self._topic).topic_id
        with self._transactions.begin(f"redrive/{self._subscription.id}", TIMEOUT_S) as transaction:
            offsets: dict[int, list[int]] = {}
            messages: dict[str, list[Message]] = {}
            done = {partition: self._done(partition) for partition, _ in targets}
            for (partition, offset), target in targets.items():
                if offset not in done[partition]:
                    offsets.setdefault(partition, []).append(offset)
                    messages.setdefault(target.topic, []).append(target.message)
            for topic, own in messages.items():
                sent[topic] = transaction.send_many(topic, own)
            if not offsets:
                transaction.abort()
                return sent

            def decide() -> list[Item]:
                self._check_unchanged(topic_id)
                return [
                    item
                    for partition, new in offsets.items()
                    for item in done[partition].with_more(new, log_start_offset=starts[partition])
                ]

            starts = {
                partition: self._directory.log(self._topic, partition).offsets().log_start_offset
                for partition in offsets
            }
            transaction.commit_with(PendingCommit(decide))
        return sent

    def _done(self, partition: int) -> _Done:
        return _Done(self._directory, self._subscription, self._topic, partition)

    def _check_unchanged(self, topic_id: bytes) -> None:
        """Offsets mean the same letters as when they were read."""
        if self._directory.view.events.value(SubscriptionEvent.key_of(self._subscription.id)) is None:
            raise SubscriptionNotFoundError(self._subscription.name)
        if self._directory.topic(self._topic).topic_id != topic_id:
            raise TopicNotFoundError(self._topic)
