"""Who holds each transactional id, and what its transaction in progress may have written to.

These facts are volatile: they are gone when nobody has the directory open. What lasts is in the journal; see
``transaction_coordinator``.

An id that is held is forgotten only when its holder was not seen for a week (``transactional_id_expiry``). Who looks
whether it is still the holder is seen; those of the library have that done while a transaction is open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import FencedError
from logbroker_storage.events import TransactionEvent

from .groups import TopicPartition

_PREFIX = b"transaction\0"
EXPIRATION_MS = 7 * 86_400_000  # Kafka's transactional.id.expiration.ms
SEEN_MS = 86_400_000  # a holder is noted as seen once in so long: each note is a write


class Claim(NamedTuple):
    """What makes somebody the holder of a transactional id: its newest epoch."""

    transactional_id: str
    producer_id: int
    epoch: int


class Holding(msgspec.Struct, frozen=True):
    """The holder of an id, and the partitions that its transaction in progress may have written to."""

    producer_id: int
    epoch: int
    process_id: str | None  # None: only the timeout ends it
    partitions: list[TopicPartition]
    started_ms: int  # of the transaction in progress, by the wall clock: for those who ask
    timeout_ms: int
    number: int = 0  # of the transaction in progress, among those of one epoch
    # Of the transaction in progress, by the monotonic clock, which all processes share. Before it begins: as if it had
    # when the holder was last seen.
    deadline_ms: int = 0
    # Partitions may have been added in a process that died, and nobody knows which: a batch adds its own.
    is_resumed: bool = False

    def is_held_by(self, claim: Claim) -> bool:
        return (self.producer_id, self.epoch) == (claim.producer_id, claim.epoch)

    def is_ended_by(self, decided: TransactionEvent) -> bool:
        """Whether *decided* is about the transaction in progress."""
        return decided.is_decided and (
            (self.producer_id, self.epoch, self.number)
            == (decided.producer_id, decided.epoch, decided.number)
        )

    def is_given_up(self, monotonic_ms: int) -> bool:
        """Whether the holder was not seen for so long, or is so late, that nobody waits for it any more."""
        return monotonic_ms - self.deadline_ms >= EXPIRATION_MS


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Holding).decode


class Holdings:
    """The Holding of every id. Safe across threads and processes; keeps nothing itself."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory  # whose view is no other's in a forked child
        self._clock = directory.clock

    def of(self, transactional_id: str) -> Holding | None:
        value = self._directory.view.volatile.value(_key(transactional_id))
        return None if value is None else _decode(value)

    def seen(self, claim: Claim) -> Holding | None:
        """The Holding of the claim's id, whoever holds it. If *claim* does, it is not forgotten in the next days."""
        holding = self.of(claim.transactional_id)
        monotonic_ms = self._clock.monotonic_ms()

        def noted(current: Holding | None) -> Holding | None:
            if current is None or not current.is_held_by(claim) or current.partitions:
                return current
            return msgspec.structs.replace(current, deadline_ms=monotonic_ms + current.timeout_ms)

        if holding is None or monotonic_ms - holding.deadline_ms < SEEN_MS:
            return holding
        return self._change(claim.transactional_id, noted)

    def give_up(self, transactional_id: str) -> bool:
        """Have nobody hold the id, if its holder is given up; whether nobody does.

        Under the journal's lock: then nobody begins to hold it meanwhile.
        """
        monotonic_ms = self._clock.monotonic_ms()

        def given_up(current: Holding | None) -> Holding | None:
            return None if current is None or current.is_given_up(monotonic_ms) else current

        return self.of(transactional_id) is None or self._change(transactional_id, given_up) is None

    def is_in_time(self, holding: Holding) -> bool:
        """Whether the timeout of its transaction is still to come, whatever was done to the wall clock."""
        return self._clock.monotonic_ms() < holding.deadline_ms

    def begin(
        self,
        claim: Claim,
        process_id: str | None,
        timeout_ms: int,
        *,
        number: int = 0,
        is_resumed: bool = False,
    ) -> Holding:
        """Have *claim* hold its id, with no partition in its next transaction, whoever held it before."""
        fresh = self._fresh(claim, process_id, timeout_ms, number=number, is_resumed=is_resumed)
        self._directory.view.volatile.update(_key(claim.transactional_id), lambda _: _encode(fresh))
        return fresh

    def take(self, claim: Claim, process_id: str | None, timeout_ms: int) -> list[TopicPartition]:
        """Have *claim* hold its id; the partitions that the holder before may still write to.

        They stay in Holding until it is known that nothing more can come of them.
        """
        left: list[TopicPartition] = []

        def taken(value: bytes | None) -> bytes:
            left[:] = [] if value is None else _decode(value).partitions
            return _encode(self._fresh(claim, process_id, timeout_ms, partitions=left))

        self._directory.view.volatile.update(_key(claim.transactional_id), taken)
        return left

    def add_partitions(self, claim: Claim, places: Sequence[TopicPartition]) -> None:
        """Note that the transaction writes to *places*; before its first batch goes to any of them.

        Raises:
            FencedError: the id was claimed by a newer holder, or its transaction timed out and was aborted.
        """
        now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()

        def with_places(holding: Holding | None) -> Holding:
            if holding is None or not holding.is_held_by(claim):
                raise fenced(claim)
            added = [place for place in places if place not in holding.partitions]
            if not holding.partitions:
                holding = msgspec.structs.replace(
                    holding, started_ms=now_ms, deadline_ms=monotonic_ms + holding.timeout_ms
                )
            return msgspec.structs.replace(holding, partitions=[*holding.partitions, *added])

        self._change(claim.transactional_id, with_places)

    def go_on(self, decided: TransactionEvent, following: Claim, holding: Holding) -> None:
        """Have *following* begin the next transaction of *holding*, unless that has been done since *decided*."""
        number = 0 if decided.ends is None else decided.number + 1

        def gone_on(current: Holding | None) -> Holding | None:
            if current is None or not current.is_ended_by(decided):
                return current
            return self._fresh(following, holding.process_id, holding.timeout_ms, number=number)

        self._change(decided.transactional_id, gone_on)

    def _change(
        self, transactional_id: str, change: Callable[[Holding | None], Holding | None]
    ) -> Holding | None:
        def changed(value: bytes | None) -> bytes | None:
            holding = change(None if value is None else _decode(value))
            return None if holding is None else _encode(holding)

        value = self._directory.view.volatile.update(_key(transactional_id), changed)
        return None if value is None else _decode(value)

    def _fresh(
        self,
        claim: Claim,
        process_id: str | None,
        timeout_ms: int,
        *,
        partitions: list[TopicPartition] | None = None,
        number: int = 0,
        is_resumed: bool = False,
    ) -> Holding:
        return Holding(
            producer_id=claim.producer_id,
            epoch=claim.epoch,
            process_id=process_id,
            partitions=partitions or [],
            started_ms=self._clock.now_ms(),
            timeout_ms=timeout_ms,
            number=number,
            deadline_ms=self._clock.monotonic_ms() + timeout_ms,
            is_resumed=is_resumed,
        )


def _key(transactional_id: str) -> bytes:
    return _PREFIX + transactional_id.encode()


def fenced(claim: Claim) -> FencedError:
    return FencedError(
        f"transaction {claim.transactional_id!r}: a newer holder has the id, or the transaction took longer than "
        "its timeout, and it was aborted; nothing of it will be seen"
    )
